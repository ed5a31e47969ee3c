"""AUTOMATIC1111's interface, asked by ``webuiapi``, the client that its users have, and by hand."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

pytest.importorskip("dbos", reason="needs the extra server")
pytest.importorskip("webuiapi", reason="needs the extra dev")
import webuiapi
from http_server import Served

from vitrail.serving.dialects.a1111_requests import Img2Img, Txt2Img, drawn_over, from_words
from vitrail.serving.http_models import ModelInfo

TINY = {"sd_model_checkpoint": "tiny"}
DEFAULT = ModelInfo(name="default", kind="shell_dit", width=128, height=128, styles=("noto", "twemoji"))
STABLE = ModelInfo(name="sd", kind="stable_diffusion")


@pytest.fixture(scope="module")
def api(art_server: Served) -> Any:
    return webuiapi.WebUIApi(host="127.0.0.1", port=art_server.port)


def plain(picture: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(picture.convert("RGB")).astype(int)


def test_txt2img_with_the_client(api: Any, art_server: Served) -> None:
    result = api.txt2img(
        prompt="a red apple",
        negative_prompt="fog",
        seed=7,
        steps=4,
        batch_size=2,
        n_iter=2,
        width=64,
        height=64,
        cfg_scale=3,
        styles=["twemoji", "no such style"],
        sampler_name="DPM++ 2M",
        override_settings=TINY,
    )
    assert [image.size for image in result.images] == [(64, 64)] * 4
    assert result.info["all_seeds"] == [7, 8, 9, 10]
    assert result.info["seed"] == 7
    assert result.info["sampler_name"] == "DPM++ 2M"
    assert result.parameters["prompt"] == "a red apple"
    assert result.info["sd_model_name"] == "tiny"
    for image, text in zip(result.images, result.info["infotexts"], strict=True):
        assert image.info["parameters"] == text
        assert text.startswith("a red apple\nNegative prompt: fog\nSteps: 4, Sampler: DPM++ 2M")
    assert len({plain(image).tobytes() for image in result.images}) == 4
    kept = art_server.http.get("/api/pictures", params={"query": "apple", "style": "twemoji"}).json()
    assert {7, 8, 9, 10} <= {picture["seed"] for picture in kept["pictures"]}
    again = api.txt2img(
        prompt="a red apple",
        negative_prompt="fog",
        seed=8,
        steps=4,
        width=64,
        height=64,
        cfg_scale=3,
        styles=["twemoji"],
        sampler_name="DPM++ 2M",
        override_settings=TINY,
    )
    assert np.abs(plain(again.image) - plain(result.images[1])).max() <= 1


def test_the_shipped_model_serves_the_sizes_that_clients_ask_for(api: Any) -> None:
    # 128 pixels are its own; the client's defaults are 512, and 768 x 512 has another shape.
    for size in ((512, 512), (768, 512), (1024, 1024)):
        result = api.txt2img(prompt="a red apple", seed=3, steps=2, width=size[0], height=size[1])
        assert result.image.size == size
        pixels = plain(result.image)
        assert pixels.std() > 5
        assert result.info["width"] == size[0]


def test_hires_with_the_clients_defaults_is_quick(api: Any) -> None:
    began = time.monotonic()
    result = api.txt2img(prompt="a red apple", seed=3, enable_hr=True)  # 20 steps, 512 pixels, twice enlarged
    assert time.monotonic() - began < 60  # a second pass in tiles would take minutes
    assert result.image.size == (1024, 1024)
    assert plain(result.image).std() > 5
    assert "without a second pass" in result.info["extra_generation_params"]["Hires fix"]
    assert api.txt2img(prompt="a", steps=2, width=128, height=128).info["extra_generation_params"] == {}


def test_img2img_and_its_mask(api: Any) -> None:
    source = Image.new("RGB", (64, 64), (200, 30, 30))
    common = {"prompt": "a blue heart", "width": 64, "height": 64, "seed": 1, "override_settings": TINY}
    whole = api.img2img(images=[source], steps=4, denoising_strength=0.9, **common)
    assert whole.image.size == (64, 64)
    assert np.abs(plain(whole.image) - plain(source)).mean() > 2
    kept = api.img2img(images=[source], steps=4, denoising_strength=0.0, **common)
    # The tiny model draws 32 pixels at most, so even what is kept went through its upsampler.
    assert (
        np.abs(plain(kept.image) - plain(source)).mean() < np.abs(plain(whole.image) - plain(source)).mean()
    )
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((32, 0, 63, 63), fill=255)
    masked = {**common, "mask_blur": 0, "denoising_strength": 1.0, "inpainting_fill": 1, "steps": 4}
    painted = api.img2img(images=[source], mask_image=mask, inpaint_full_res=False, **masked)
    change = np.abs(plain(painted.image) - plain(source)).max(axis=2)
    assert change[:, :32].max() == 0, "black is kept"
    assert change[:, 32:].mean() > 2, "white is painted anew"
    turned = api.img2img(
        images=[source], mask_image=mask, inpainting_mask_invert=1, inpaint_full_res=False, **masked
    )
    change = np.abs(plain(turned.image) - plain(source)).max(axis=2)
    assert change[:, 32:].max() == 0
    assert change[:, :32].mean() > 2
    rgba = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(rgba).rectangle((0, 0, 31, 63), fill=(0, 0, 0, 255))
    opaque = api.img2img(images=[source], mask_image=rgba, inpaint_full_res=False, **masked)
    change = np.abs(plain(opaque.image) - plain(source)).max(axis=2)
    assert change[:, 32:].max() == 0, "of a mask with transparency the opaque part is painted anew"
    assert change[:, :32].mean() > 2


def test_progress_and_interrupt(api: Any) -> None:
    found: list[Any] = []

    def draw() -> None:
        found.append(
            api.txt2img(
                prompt="a red apple", steps=150, n_iter=60, width=32, height=32, override_settings=TINY
            )
        )

    other = webuiapi.WebUIApi(host="127.0.0.1", port=int(api.baseurl.split(":")[2].split("/")[0]))
    thread = threading.Thread(target=draw)
    thread.start()
    steps: list[int] = []
    seen = None
    until = time.monotonic() + 60
    while time.monotonic() < until and (len(set(steps)) < 3 or seen is None):
        now = other.get_progress()
        if now["state"]["job_count"]:
            steps.append(now["state"]["sampling_step"])
            assert 0 <= now["progress"] <= 1
            seen = seen or now["current_image"]
        time.sleep(0.05)
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert seen is not None
    assert Image.open(io.BytesIO(base64.b64decode(seen))).format == "PNG"
    other.interrupt()
    thread.join(30)
    assert not thread.is_alive()
    assert len(found[0].images) < 60
    idle = other.get_progress()
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    api.util_wait_for_ready(check_interval=0.1)


def test_the_lists(api: Any) -> None:
    samplers = {row["name"] for row in api.get_samplers()}
    assert {"Euler", "Euler a", "DPM++ 2M", "DPM++ 2M SDE", "DDIM", "UniPC", "Heun", "LCM"} <= samplers
    assert {"karras", "exponential", "automatic"} <= {row["name"] for row in api.get_schedulers()}
    models = {row["model_name"]: row for row in api.get_sd_models()}
    assert {"default", "tiny"} <= models.keys()
    row = models["default"]
    assert row.keys() == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert row["title"] == f"default [{row['sha256'][:10]}]"
    assert "/" not in row["filename"]
    assert "None" in {row["name"] for row in api.get_upscalers()}
    assert {"noto", "twemoji"} <= {row["name"] for row in api.get_prompt_styles()}
    for ask in (
        *(api.get_loras, api.get_sd_vae, api.get_embeddings, api.get_hypernetworks, api.get_scripts),
        *(api.get_face_restorers, api.get_realesrgan_models, api.get_memory, api.get_cmd_flags),
        *(api.get_latent_upscale_modes, api.refresh_checkpoints, api.skip),
    ):
        ask()


def test_the_model_is_chosen_by_options(api: Any) -> None:
    try:
        api.util_set_model("tiny")
        assert api.util_get_current_model().startswith("tiny [")
        result = api.txt2img(prompt="a red apple", steps=2, width=32, height=32)
        assert result.info["sd_model_name"] == "tiny"
        refused = api.session.post(f"{api.baseurl}/options", json={"sd_model_checkpoint": "nothing like it"})
        assert refused.status_code == 404
        assert api.util_get_current_model().startswith("tiny [")
    finally:
        api.set_options({"sd_model_checkpoint": "default"})


def test_png_info_reads_what_others_wrote(api: Any) -> None:
    settings = "Steps: 31, Sampler: Euler a, CFG scale: 5.5, Seed: 77, Size: 64x32"
    text = f"a lighthouse\nNegative prompt: fog\n{settings}"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=chunks)
    picture = Image.open(io.BytesIO(out.getvalue()))
    assert api.png_info(picture).info == text
    data = base64.b64encode(out.getvalue()).decode()
    found = api.session.post(f"{api.baseurl}/png-info", json={"image": data}).json()
    assert found["items"]["parameters"] == text
    assert found["parameters"]["Seed"] == "77"
    assert found["parameters"]["Prompt"] == "a lighthouse"
    assert found["parameters"]["Size-1"] == "64"


def test_extra_single_image_enlarges(api: Any) -> None:
    picture = Image.new("RGB", (20, 10), "red")
    assert api.extra_single_image(picture, upscaling_resize=2, upscaler_1="Lanczos").image.size == (40, 20)
    fitted = api.extra_single_image(
        picture, resize_mode=1, upscaling_resize_w=30, upscaling_resize_h=30, upscaler_1="None"
    )
    assert fitted.image.size == (30, 30)
    missing = api.session.post(
        f"{api.baseurl}/extra-single-image",
        json={"image": webuiapi.raw_b64_img(picture), "upscaler_1": "R-ESRGAN 4x+"},
    )
    assert missing.status_code == 404
    assert "vitrail models pull realesrgan-x4" in missing.json()["detail"]


def test_refusals_are_in_its_shape(api: Any, art_server: Served) -> None:
    for body, status in (
        ({"prompt": "x", "sampler_name": "no such sampler"}, 400),
        ({"prompt": "x", "scheduler": "no such"}, 400),
        ({"prompt": "x", "width": 10**9}, 400),
        ({"prompt": "x", "steps": 10**20}, 422),
        ({"prompt": "x", "steps": 100_000}, 400),
        ({"prompt": "x", "batch_size": 65}, 400),
        ({"prompt": "x", "override_settings": {"sd_model_checkpoint": "no such"}}, 404),
        ({"prompt": ["x"]}, 422),
    ):
        answer = art_server.http.post("/sdapi/v1/txt2img", json=body)
        assert answer.status_code == status, (body, answer.text)
        assert answer.json().keys() == {"error", "detail", "body", "errors"}
        assert "no such" not in answer.text
    with pytest.raises(RuntimeError):
        api.txt2img(prompt="x", sampler_name="no such sampler")


# -- what each field means, without drawing ------------------------------------------------------------------


def test_defaults_are_those_of_the_interface() -> None:
    body = Txt2Img()
    assert (body.steps, body.cfg_scale, body.width, body.height, body.seed) == (50, 7.0, 512, 512, -1)
    assert (body.denoising_strength, body.hr_scale, body.batch_size, body.n_iter) == (0.75, 2.0, 1, 1)
    over = Img2Img()
    assert (over.mask_blur, over.inpainting_fill, over.inpaint_full_res, over.resize_mode) == (4, 0, True, 0)
    assert over.inpaint_full_res_padding == over.inpainting_mask_invert == 0


@pytest.mark.parametrize(
    ("given", "sampler", "schedule"),
    [
        ({"sampler_name": "Euler a", "scheduler": "automatic"}, "euler_ancestral", None),
        ({"sampler_name": "DPM++ 2M Karras"}, "dpmpp_2m", "karras"),
        ({"sampler_index": "DPM++ 2M SDE Exponential"}, "dpmpp_2m_sde", "exponential"),
        ({"sampler_name": "DPM++ SDE Karras"}, "dpmpp_sde", "karras"),
        ({"sampler_name": "DPM++ SDE"}, "dpmpp_sde", None),
        ({"sampler_name": "k_dpmpp_sde"}, "dpmpp_sde", None),
        ({"sampler_name": "k_euler_a", "scheduler": "Karras"}, "euler_ancestral", "karras"),
        ({"sampler_name": "DDIM", "scheduler": "uniform"}, "ddim", "linspace"),
        ({"sampler_name": "UniPC", "scheduler": "SGM Uniform"}, "unipc", "sgm_uniform"),
        ({}, None, None),
    ],
)
def test_samplers_by_their_names(given: dict[str, str], sampler: str | None, schedule: str | None) -> None:
    request, _ = from_words(Txt2Img(prompt="x", **given), DEFAULT)  # type: ignore[arg-type]
    assert (request.sampler, request.schedule) == (sampler, schedule)


def test_what_a_request_becomes() -> None:
    body = Txt2Img(
        prompt="x",
        seed=5,
        subseed=9,
        subseed_strength=0.25,
        batch_size=3,
        n_iter=2,
        tiling=True,
        enable_hr=True,
        hr_scale=1.5,
        hr_second_pass_steps=7,
        denoising_strength=0.4,
        width=510,
        height=768,
        override_settings={"CLIP_stop_at_last_layers": 2, "sd_vae": "mine"},
    )
    request, size = from_words(body, STABLE)
    assert (request.n, request.seed, request.subseed, request.subseed_strength) == (6, 5, 9, 0.25)
    assert (request.seamless, request.hires_scale, request.hires_strength) == ("xy", 1.5, 0.4)
    assert (request.hires_steps, request.clip_skip, request.vae) == (7, 2, "mine")
    assert (request.width, request.height) == (512, 768)
    assert size.size == (765, 1152)
    random, _ = from_words(Txt2Img(prompt="x"), STABLE)
    assert random.seed is random.subseed is None
    sized = Txt2Img(prompt="x", enable_hr=True, hr_resize_x=1024)
    assert from_words(sized, STABLE)[0].hires_scale == 2.0
    twice, size = from_words(Txt2Img(prompt="x", enable_hr=True, hr_second_pass_steps=9), DEFAULT)
    assert (twice.hires_scale, twice.hires_strength, twice.hires_steps) == (4.0, 0.0, None)
    assert size.size == (1024, 1024)
    small, size = from_words(Txt2Img(prompt="x", width=512, height=512), DEFAULT)
    assert (small.width, small.height, small.hires_scale, small.hires_strength) == (128, 128, 4.0, 0.0)
    assert size.size == (512, 512)


def test_controls_are_read_for_stable_diffusion_alone() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    image = base64.b64encode(out.getvalue()).decode()
    unit = {"image": image, "model": "canny [abc]", "weight": 0.5, "guidance_end": 0.8}
    body = Txt2Img(prompt="x", alwayson_scripts={"ControlNet": {"args": [unit]}})
    request, _ = from_words(body, STABLE)
    assert [(one.name, one.strength, one.start, one.end) for one in request.control] == [
        ("canny", 0.5, 0.0, 0.8)
    ]
    with pytest.raises(ValueError, match="Stable Diffusion"):
        from_words(body, DEFAULT)
    unit["module"] = "canny"
    with pytest.raises(ValueError, match="module must be none"):
        from_words(Txt2Img(prompt="x", alwayson_scripts={"ControlNet": {"args": [unit]}}), STABLE)


def test_resize_modes() -> None:
    out = io.BytesIO()
    wide = Image.new("RGB", (64, 32), "red")
    ImageDraw.Draw(wide).rectangle((0, 0, 15, 31), fill="blue")
    wide.save(out, "PNG")
    image = base64.b64encode(out.getvalue()).decode()
    for mode, fit in ((0, "stretch"), (1, "crop"), (2, "pad")):
        body = Img2Img(prompt="x", init_images=[image], resize_mode=mode, width=32, height=32)
        request, _ = drawn_over(body, STABLE)
        assert request.kind == "edit"
        assert (request.fit, request.width, request.height) == (fit, 32, 32)
        masked = body.model_copy(update={"mask": image})
        over, _ = drawn_over(masked, STABLE)
        picture = Image.open(io.BytesIO(over.picture.data))
        assert picture.size == (32, 32)
        blue = (np.asarray(picture)[16, :, 2] > 128).sum()
        assert blue == {0: 8, 1: 0, 2: 8}[mode]
