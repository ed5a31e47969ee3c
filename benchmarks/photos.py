"""Repair and enlargement of the photographs that come with scikit-image, against the undamaged originals.

    python benchmarks/photos.py --out out/photos [--quick] [--only repair|upscale] [--peers PYTHON]

It needs the models (``vitrail models pull migan realesrgan-x4``) and LPIPS (``vitrail data build networks``).
``--peers`` names a Python that has other programs, none of which vitrail needs; what is missing there is left
out of the figures::

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install opencv-python-headless onnxruntime onnx ncnn

Repair: holes of five shapes in each photograph, filled by ``vitrail repair`` and by OpenCV's two methods.
PSNR is of the pixels in the holes alone, SSIM and LPIPS (VGG16) of the whole picture, outside the holes equal
for all. Enlargement: 128 x 128 pixels made by averaging squares of the original, enlarged four times and
twice by ``vitrail upscale`` (``plain``: fidelity 0, ``faithful``: 0.5) and by bicubic. The networks are
compared with the published files in the published runtimes (onnxruntime, ncnn): relative error of the output,
float32.

Writes sheets before / after into ``--out``; the last line printed is JSON. Higher is better for PSNR and
SSIM, lower for LPIPS. Seconds are medians on the machine as it was, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitrail.backends import migan, realesrgan
from vitrail.backends.hole_filling import fill_holes
from vitrail.backends.pull import archive_files
from vitrail.errors import VitrailError
from vitrail.evaluation import metrics
from vitrail.evaluation.image_sets import ImageSet
from vitrail.fonts import plain_font
from vitrail.images import grid
from vitrail.models.perceptual import load_lpips
from vitrail.store.catalogue import CATALOGUE
from vitrail.tasks.photos import find_model

__all__ = ["HOLES", "photographs", "repair", "upscale"]

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "camera.png",
)
PEERS = Path(__file__).with_name("photos_peers.py")

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def photographs(count: int = len(PHOTOGRAPHS)) -> dict[str, Pixels]:
    """Photographs (H, W, 3) by name, as scikit-image ships them, at most 640 pixels a side."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise VitrailError("scikit-image is not installed; run: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    found = {}
    for name in PHOTOGRAPHS[:count]:
        with Image.open(folder / name) as picture:
            photo = picture.convert("RGB")
        photo.thumbnail((640, 640), Image.Resampling.LANCZOS)
        found[Path(name).stem] = np.asarray(photo)
    return found


# -- holes ---------------------------------------------------------------------------------------------------


def _drawn(shape: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw, int, int], None]) -> Mask:
    mask = Image.new("L", (shape[1], shape[0]))
    draw(ImageDraw.Draw(mask), shape[1], shape[0])
    return np.asarray(mask) > 127


def _scratches(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    random = np.random.default_rng(1)
    for thickness in (2, 3, 4, 5, 6):
        points = [(float(x) * width, float(y) * height) for x, y in random.uniform(0, 1, (4, 2))]
        draw.line(points, fill=255, width=thickness)


def _lettering(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for row in range(3):
        words = "vitrail repairs photographs"
        draw.text((width * 0.05, height * (0.2 + 0.28 * row)), words, fill=255, font=plain_font(width // 16))


def _spots(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    random = np.random.default_rng(2)
    for radius in (6, 9, 12, 15, 18, 21, 24):
        x, y = random.uniform(0.1, 0.9, 2) * (width, height)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _object(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    x, y = width * 0.3, height * 0.62
    draw.ellipse((x - 0.11 * width, y - 0.14 * height, x + 0.11 * width, y + 0.14 * height), fill=255)


def _corner(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    draw.rectangle((0.72 * width, 0, width, 0.3 * height), fill=255)


HOLES: dict[str, Callable[[ImageDraw.ImageDraw, int, int], None]] = {
    "scratches": _scratches,
    "lettering": _lettering,
    "spots": _spots,
    "object": _object,
    "corner": _corner,
}
"""Each draws a hole into a mask of some width and height."""


# -- measuring -----------------------------------------------------------------------------------------------


class Judge:
    """Collects figures by the name of what made the pictures."""

    def __init__(self) -> None:
        self.lpips = metrics.lpips(load_lpips())
        self.values: dict[str, list[float]] = {}

    def add(self, who: str, made: Pixels, original: Pixels, hole: Mask | None = None) -> dict[str, float]:
        pair = ImageSet.from_arrays(who, [made]), ImageSet.from_arrays("original", [original])
        if hole is None:
            psnr = metrics.psnr(*pair).value
        else:
            error = (made[hole].astype(np.float64) - original[hole]).reshape(-1)
            psnr = 10 * float(np.log10(255**2 / max(float(np.square(error).mean()), 1e-9)))
        figures = {"psnr": psnr, "ssim": metrics.ssim(*pair).value, "lpips": self.lpips(*pair).value}
        for name, value in figures.items():
            self.values.setdefault(f"{who}_{name}", []).append(value)
        return figures

    def means(self) -> dict[str, float]:
        return {name: round(statistics.fmean(values), 4) for name, values in self.values.items()}


def ask_peer(python: str | None, task: str, given: dict[str, Any], *more: str) -> dict[str, Any]:
    """What ``photos_peers.py`` makes of arrays; {} where there is no such peer."""
    if python is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npz", f"{folder}/out.npz"
        np.savez(source, **given)
        done = subprocess.run(
            [python, str(PEERS), task, source, target, *more], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"no peer for {task}: {done.stderr.strip().splitlines()[-1:]}")
            return {}
        with np.load(target, allow_pickle=False) as made:
            return dict(made)


def relative_error(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Euclidean norm of the difference over that of the reference."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# -- repair --------------------------------------------------------------------------------------------------


def repair(photos: dict[str, Pixels], judge: Judge, out: Path, peers: str | None) -> dict[str, Any]:
    """Fill every hole of every photograph; returns figures and writes a sheet for each photograph."""
    network, _ = migan.load(find_model("migan"))
    cases = [
        (photo, shape, _drawn(pixels.shape[:2], draw))
        for photo, pixels in photos.items()
        for shape, draw in HOLES.items()
    ]
    given: dict[str, Any] = {}
    for number, (photo, _, hole) in enumerate(cases):
        damaged = photos[photo].copy()
        damaged[hole] = 255
        given |= {f"picture_{number}": damaged, f"mask_{number}": np.where(hole, 255, 0).astype(np.uint8)}
    theirs = ask_peer(peers, "inpaint", given)
    by_shape: dict[str, dict[str, list[float]]] = {}
    seconds: list[float] = []
    rows: dict[str, list[tuple[str, Image.Image]]] = {}
    for number, (photo, shape, hole) in enumerate(cases):
        original, damaged = photos[photo], given[f"picture_{number}"]
        start = time.perf_counter()
        made = {"repair": fill_holes(network, damaged, hole)}
        seconds.append(time.perf_counter() - start)
        assert np.array_equal(made["repair"][~hole], original[~hole]), "a pixel outside the hole changed"
        made |= {who: theirs[f"{who}_{number}"] for who in ("telea", "ns") if theirs}
        line = f"{photo:<16} {shape:<10} {hole.mean():6.1%}"
        row = rows.setdefault(photo, [])
        row.append((f"{shape}: damaged", Image.fromarray(damaged)))
        for who, picture in made.items():
            figures = judge.add(who, picture, original, hole)
            by_shape.setdefault(shape, {}).setdefault(f"{who}_lpips", []).append(figures["lpips"])
            by_shape[shape].setdefault(f"{who}_psnr", []).append(figures["psnr"])
            line += f"   {who} {figures['psnr']:5.2f} dB, LPIPS {figures['lpips']:.4f}"
            if who != "ns":
                row.append((who, Image.fromarray(picture)))
        row.append(("original", Image.fromarray(original)))
        print(line, flush=True)
    for photo, row in rows.items():
        sheet = grid([picture for _, picture in row], len(row) // len(HOLES), [name for name, _ in row])
        sheet.save(out / f"repair-{photo}.png")
    figures: dict[str, Any] = {"repair_seconds": round(statistics.median(seconds), 2)}
    figures["repair_by_hole"] = {
        shape: {name: round(statistics.fmean(values), 4) for name, values in found.items()}
        for shape, found in by_shape.items()
    }
    return figures | _same_repair(network, photos, given, peers)


def _same_repair(
    network: torch.nn.Module, photos: dict[str, Pixels], given: dict[str, Any], peers: str | None
) -> dict[str, Any]:
    """The network against the published file in onnxruntime, for one 512 px photograph."""
    number = next((i for i, name in enumerate(photos) if photos[name].shape[:2] == (512, 512)), None)
    if peers is None or number is None:
        return {}
    case = {name: given[f"{name}_{number * len(HOLES)}"] for name in ("picture", "mask")}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "migan.onnx")
        (data,) = archive_files(CATALOGUE["migan"]).values()
        model.write_bytes(data)
        theirs = ask_peer(peers, "migan", {"picture_0": case["picture"], "mask_0": case["mask"]}, str(model))
    if not theirs:
        return {}
    picture = torch.from_numpy(case["picture"]).permute(2, 0, 1)[None].float() * 2 / 255 - 1
    known = torch.from_numpy(255 - case["mask"])[None, None].float() / 255
    with torch.inference_mode():
        ours = network(picture, known).numpy()
    return {"migan_rel_err": relative_error(ours, theirs["network_0"])}


# -- enlargement ---------------------------------------------------------------------------------------------


def upscale(
    photos: dict[str, Pixels], judge: Judge, out: Path, peers: str | None, side: int
) -> dict[str, Any]:
    """Enlarge the middle of every photograph four times and twice; returns figures and writes sheets."""
    network = realesrgan.load(find_model("realesrgan-x4")).network
    seconds: list[float] = []
    small = np.zeros((0, 0, 3), np.uint8)
    for scale in (4, 2):
        row: list[tuple[str, Image.Image]] = []
        for photo, pixels in photos.items():
            large = min(side * scale, *(length // scale * scale for length in pixels.shape[:2]))
            top, left = ((length - large) // 2 for length in pixels.shape[:2])
            original = pixels[top : top + large, left : left + large]
            picture = Image.fromarray(original).reduce(scale)
            small = np.asarray(picture)
            start = time.perf_counter()
            made = realesrgan.enlarge(network, small, scale=4 if scale == 4 else 2)
            seconds.append(time.perf_counter() - start)
            faithful = realesrgan.enlarge(network, small, scale=4 if scale == 4 else 2, fidelity=0.5)
            bicubic = picture.resize((large, large), Image.Resampling.BICUBIC)
            line = f"{photo:<16} x{scale}"
            results = {"plain": made, "faithful": faithful, "bicubic": np.asarray(bicubic)}
            for who, result in results.items():
                figures = judge.add(f"{who}{scale}", result, original)
                line += f"   {who} {figures['psnr']:5.2f} dB, LPIPS {figures['lpips']:.4f}"
            print(line, flush=True)
            row += [
                (f"{photo}: bicubic x{scale}", bicubic),
                ("network alone", Image.fromarray(made)),
                ("fidelity 0.5", Image.fromarray(faithful)),
                ("original", Image.fromarray(original)),
            ]
        grid([picture for _, picture in row], 4, [name for name, _ in row]).save(out / f"upscale-{scale}.png")
    figures: dict[str, Any] = {"upscale_seconds": round(statistics.median(seconds), 2), "upscale_side": side}
    return figures | _same_upscale(network, small[:48, :40], peers)


def _same_upscale(network: torch.nn.Module, small: Pixels, peers: str | None) -> dict[str, Any]:
    """The network against the published files in ncnn."""
    if peers is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in archive_files(CATALOGUE["realesrgan-x4"]).items():
            Path(folder, "network").with_suffix(Path(name).suffix).write_bytes(data)
        theirs = ask_peer(peers, "upscale", {"picture_0": small}, f"{folder}/network")
    if not theirs:
        return {}
    with torch.inference_mode():
        ours = network(torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255)[0].numpy()
    return {"realesrgan_rel_err": relative_error(ours, theirs["network_0"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/photos"))
    parser.add_argument("--quick", action="store_true", help="two photographs, enlarged from 64 x 64")
    parser.add_argument("--only", choices=["repair", "upscale"])
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with cv2, onnxruntime, onnx, ncnn")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    photos = photographs(2 if options.quick else len(PHOTOGRAPHS))
    judge = Judge()
    figures: dict[str, Any] = {"photographs": len(photos)}
    if options.only != "upscale":
        figures |= repair(photos, judge, options.out, options.peers)
    if options.only != "repair":
        figures |= upscale(photos, judge, options.out, options.peers, 64 if options.quick else 128)
    print(json.dumps(figures | judge.means()))


if __name__ == "__main__":
    main()
