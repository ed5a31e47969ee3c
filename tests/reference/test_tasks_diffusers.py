"""The tasks with a tiny Stable Diffusion against diffusers' pipelines, from the same seed alone.

The scheduler is DDIM on the trailing times, which is our "simple" schedule. What remains is float32 summed in
another order and the rounding to bytes: at most the last one or two of 255 steps.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import sd_tiny
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)

from vitrail.codes_schema import InpaintRequest
from vitrail.edit_schema import EditRequest
from vitrail.request_fields import FileRef
from vitrail.schema import PictureDone, TextToImageRequest, parse
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader

PROMPT, NEGATIVE, SEED, STEPS, SCALE = "a photo of a cat", "dog", 11, 8, 5.0
SIZE = sd_tiny.SIZE


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_tiny.make_folder(tmp_path_factory.mktemp("sd") / "sd1", "sd1")


@pytest.fixture(scope="module")
def inpaint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_tiny.make_folder(tmp_path_factory.mktemp("sd") / "sd1-inpaint", "sd1-inpaint")


def theirs(kind: Any, folder: Path, **given: Any) -> np.ndarray:
    pipeline = kind.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    generator = torch.Generator().manual_seed(SEED)
    made = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=SCALE,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="np",
        **given,
    )
    return np.rint(made.images[0] * 255).astype(int)


def ours(kind: type[Any], folder: Path, **given: Any) -> np.ndarray:
    fields = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS, "cfg_scale": SCALE}
    fields |= {"sampler": "ddim", "schedule": "simple", "model": str(folder)}
    request = parse(kind, fields | given)
    events = TASKS[request.kind](request, Loader(), Context(precision="float32"))
    return np.asarray(next(event.picture for event in events if isinstance(event, PictureDone))).astype(int)


def picture(size: int = SIZE) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    drawing = Image.new("L", (SIZE, SIZE))
    drawing.paste(255, (16, 24, 48, 56))
    return drawing


def ref(image: Image.Image) -> FileRef:
    target = io.BytesIO()
    image.save(target, "PNG")
    return FileRef.of("x.png", target.getvalue())


def test_text_to_image(folder: Path) -> None:
    expected = theirs(StableDiffusionPipeline, folder, width=SIZE, height=SIZE)
    found = ours(TextToImageRequest, folder, width=SIZE, height=SIZE)
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 5


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(folder: Path, strength: float) -> None:
    expected = theirs(StableDiffusionImg2ImgPipeline, folder, image=picture(), strength=strength)
    found = ours(EditRequest, folder, picture=ref(picture()), strength=strength)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["plain", "trained"])
def test_inpainting(folder: Path, inpaint_folder: Path, kind: str, strength: float) -> None:
    place = folder if kind == "plain" else inpaint_folder
    expected = theirs(
        StableDiffusionInpaintPipeline,
        place,
        image=picture(),
        mask_image=mask(),
        strength=strength,
        width=SIZE,
        height=SIZE,
    )
    given = {"picture": ref(picture()), "mask": ref(mask()), "feather": 0}
    found = ours(InpaintRequest, place, strength=strength, **given)
    inside = np.asarray(mask()) > 0
    assert np.abs(found - expected)[inside].max() <= 2
    assert np.array_equal(found[~inside], np.asarray(picture())[~inside])
