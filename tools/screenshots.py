"""Draw docs/studio/*.png: every page in both languages, on a desktop and a phone, light and dark.

``python tools/screenshots.py [HOME [VIEW ...]]``: HOME keeps what the pages show (pictures, a training, a
report), so that a second call with the same folder only photographs.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "surface"))

from studio_browser import CHROMIUM, FLAGS  # noqa: E402
from studio_server import serve_studio  # noqa: E402

OUT = ROOT / "docs" / "studio"
MOST_BYTES = 150_000
VIEWS = ("create", "edit", "gallery", "plot", "walk", "codebook", "train", "evaluate", "rate", "models")
SIZES = {"desktop": (1280, 820), "phone": (360, 740)}
PROMPTS = (
    "a panda",
    "a strawberry",
    "an elephant",
    "a blue heart",
    "a butterfly",
    "a carrot",
    "a grinning face",
    "a red car",
)
ACROSS, DOWN = (1, 3, 6), ("noto", "twemoji", "fluent-3d")

RECIPE = """
# A small VAE on a handful of pictures: a few minutes on one core.
kind = "autoencoder"
name = "my-pictures"
[data]
source = FOLDER
size = 32
batch_size = 8
[model]
kind = "vae"
image_size = 32
widths = [16, 32, 64]
hidden = 128
embed_dim = 16
[objective]
l1 = 0.0
l2 = 1.0
perceptual = "none"
kl_weight = 0.01
[optim]
lr = 2e-3
until_images = 4000
[run]
sample_every_images = 800
log_every_seconds = 0
"""


class Content:
    """What the pages show, made through the server as a person would, or found there from the last time."""

    def __init__(self, server: Any, home: Path) -> None:
        self.http, self.kept = server.http, home / "screenshots.json"
        self.ids: dict[str, Any] = json.loads(self.kept.read_text()) if self.kept.exists() else {}

    def job(self, name: str, /, **request: Any) -> str:
        """Ask for a job and remember it under ``name``; one that is remembered is not asked for again."""
        if name not in self.ids:
            answer = self.http.post("/api/jobs", json=request)
            answer.raise_for_status()
            self.ids[name] = answer.json()["id"]
            self.kept.write_text(json.dumps(self.ids))
        return str(self.ids[name])

    def wait(self) -> None:
        """Until every job has ended; a failed one ends the program with its reason."""
        for name, id in self.ids.items():
            while (job := self.http.get(f"/api/jobs/{id}").json())["state"] in ("queued", "running"):
                time.sleep(0.5)
            if job["state"] != "succeeded":
                sys.exit(f"{name}: {job['error'] or job['state']}")

    def pictures(self, name: str) -> list[str]:
        """Ids of the pictures that a job made."""
        return [one["id"] for one in self.http.get(f"/api/jobs/{self.ids[name]}").json()["pictures"]]

    def make(self, home: Path) -> None:
        """Everything, in the order that fills the pages best."""
        self.job(
            "walk",
            kind="walk",
            frames=12,
            stops=[{"prompt": "a red heart", "seed": 1}, {"prompt": "a blue heart", "seed": 2}],
        )
        for down in DOWN:
            for across in ACROSS:
                self.job(
                    f"plot {down} {across}",
                    kind="text_to_image",
                    prompt="a red apple",
                    seed=5,
                    cfg_scale=across,
                    style=down,
                )
        for model in ("vqgan", "default"):
            for i, prompt in enumerate(PROMPTS):
                self.job(f"{model} {i}", kind="text_to_image", prompt=prompt, seed=3, model=model)
        self.job("four", kind="text_to_image", prompt="a blue heart", seed=11, n=4)
        self.wait()
        folder = home / "my pictures"
        folder.mkdir(exist_ok=True)
        for i, prompt in enumerate(PROMPTS):
            (folder / f"{i}.png").write_bytes(
                self.http.get(f"/api/pictures/{self.pictures(f'default {i}')[0]}/file").content
            )
            (folder / f"{i}.txt").write_text(prompt)
        recipe = RECIPE.replace("FOLDER", json.dumps(str(folder)))
        self.job("train", kind="train", run="my-pictures", recipe=recipe)
        for model in ("default", "vqgan"):
            self.job(
                f"evaluate {model}",
                kind="evaluate",
                model=model,
                prompts=list(PROMPTS[:6]),
                seeds=2,
                name=model,
            )
        self.wait()
        if not self.http.get("/api/studio/scores").json():
            for i, winner in enumerate(("left", "left", "right", "left", "tie", "left", "left", "right")):
                left, right = self.pictures(f"default {i}")[0], self.pictures(f"vqgan {i}")[0]
                vote = {"left": left, "right": right, "left_name": "default", "right_name": "vqgan"}
                self.http.post("/api/studio/votes", json={**vote, "winner": winner}).raise_for_status()


def main() -> None:
    """Serve the studio with something in it and photograph every page."""
    from playwright.sync_api import sync_playwright

    home = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    with serve_studio(home) as server, sync_playwright() as p:
        content = Content(server, home)
        content.make(home)
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for language in ("en", "zh"):
            for size, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    page = browser.new_page(
                        viewport={"width": width, "height": height},
                        color_scheme=scheme,
                        reduced_motion="reduce",
                        locale={"en": "en-GB", "zh": "zh-CN"}[language],
                    )
                    page.goto(server.url)
                    remember(page, content)
                    for view in sys.argv[2:] or VIEWS:
                        show(page, server, content, view)
                        save(page.screenshot(), OUT / f"{view}-{language}-{size}-{scheme}.png")
                    page.close()
        browser.close()


def remember(page: Any, content: Content) -> None:
    """Put into the browser what it would remember of a person who was here before."""
    ids = [content.ids[f"plot {down} {across}"] for down in DOWN for across in ACROSS]
    made = {
        "x": "cfg_scale",
        "y": "style",
        "across": ACROSS,
        "down": DOWN,
        "ids": ids,
        "prompt": "a red apple",
    }
    axes = {"x": {"axis": "cfg_scale", "text": "1, 3, 6"}, "y": {"axis": "style", "text": ", ".join(DOWN)}}
    plot = {"prompt": "a red apple", "model": "default", **axes, "made": made}
    page.evaluate(
        """([followed, walked, plot]) => {
          sessionStorage.setItem('vitrail.followed', JSON.stringify(followed));
          sessionStorage.setItem('vitrail.walked', JSON.stringify(walked));
          sessionStorage.setItem('vitrail.form', JSON.stringify({ prompt: 'a blue heart', n: 4 }));
          localStorage.setItem('vitrail.codeOrder', JSON.stringify('colour'));
          localStorage.setItem('vitrail.plot', JSON.stringify(plot)); }""",
        [content.ids["four"], content.ids["walk"], plot],
    )


def show(page: Any, server: Any, content: Content, view: str) -> None:
    """Open a page and bring it into a state that shows what it is for."""
    place = view
    if view == "edit":
        place = f"edit/{content.pictures('four')[0]}/inpaint"
    elif view == "train":
        place = f"train/{server.http.get('/api/studio/runs').json()[0]['id']}"
    elif view == "evaluate":
        place = f"evaluate/{server.http.get('/api/studio/reports').json()['reports'][0]['id']}"
    page.evaluate("place => { location.hash = place }", place)
    page.reload()
    page.wait_for_selector(f"main.view-{view} > *")
    page.wait_for_load_state("networkidle")
    if view == "edit":
        box = page.locator(".paint").bounding_box()
        x, y = box["x"] + 0.3 * box["width"], box["y"] + 0.45 * box["height"]
        page.mouse.move(x, y)
        page.mouse.down()
        for i in range(16):
            page.mouse.move(x + i * box["width"] / 40, y + (i % 4) * box["height"] / 30)
        page.mouse.up()
    elif view == "walk" and page.locator(".film").count():
        page.locator(".film input").fill("5")
    elif view == "codebook":
        page.wait_for_selector(".code")
    page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(400)


def save(data: bytes, path: Path) -> None:
    """Keep a picture as a PNG of at most 256 colours."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    path.write_bytes(out.getvalue())


if __name__ == "__main__":
    main()
