"""SDXL: base, inpainting and refiner against diffusers' pipelines, for the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sd_compare import (
    NEGATIVE,
    PROMPT,
    SCALE,
    SIZE,
    TOLERANCE,
    mask,
    noise,
    picture,
    pipeline,
    relative,
    sample,
    sigmas_of,
)
from sd_tiny import make_folder

from vitrail.backends.model import KnownPicture
from vitrail.backends.sd.open import open_stable_diffusion

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 5


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("xl")
    return {family: make_folder(home / family, family) for family in ("sdxl", "sdxl-refiner", "sdxl-inpaint")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: open_stable_diffusion(folder) for family, folder in folders.items()}


def shared(**more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"guidance_scale": SCALE, "num_inference_steps": STEPS, "output_type": "latent"}
    return given | more


@pytest.mark.parametrize("negative", [NEGATIVE, None], ids=["negative", "no negative"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_the_base(
    sampler: str, negative: str | None, folders: dict[str, Path], models: dict[str, Any]
) -> None:
    """Without a negative prompt its place is zeros, not the encoding of nothing."""
    pipe = pipeline("StableDiffusionXLPipeline", folders["sdxl"], sampler)
    wanted = pipe(
        PROMPT, negative_prompt=negative, width=SIZE, height=SIZE, latents=noise(), **shared()
    ).images
    sigmas = sigmas_of(pipe.scheduler)
    model = models["sdxl"]
    start = model.path.start(noise(), float(sigmas[0]))
    got = sample(model, sampler, sigmas, start, negative=negative or "")
    assert relative(got, wanted) <= TOLERANCE
    pixels = pipe.vae.decode(wanted / pipe.vae.config.scaling_factor).sample
    assert relative(model.autoencoder.decode(got), pixels) <= TOLERANCE
    assert model.autoencoder.latent.scale == 0.13025


def test_the_sizes_matter(folders: dict[str, Path], models: dict[str, Any]) -> None:
    model = models["sdxl"]
    words = model.read(PROMPT)
    sigma = torch.tensor([3.0])
    one, other = (model.bind(words, SIZE, side, "float32").cond(noise() * 3, sigma) for side in (64, 72))
    assert relative(one, other) > TOLERANCE


def test_the_refiner(folders: dict[str, Path], models: dict[str, Any]) -> None:
    """It reads the second text encoder alone, and a score in the place of a size."""
    pipe = pipeline("StableDiffusionXLImg2ImgPipeline", folders["sdxl-refiner"], "euler")
    generator = torch.Generator().manual_seed(9)
    given = shared(image=picture(), strength=0.61, generator=generator)
    wanted = pipe(PROMPT, negative_prompt=NEGATIVE, **given).images
    sigmas = sigmas_of(pipe.scheduler)[-int(STEPS * 0.61) - 1 :]
    model, generator = models["sdxl-refiner"], torch.Generator().manual_seed(9)
    known = model.autoencoder.encode(picture() * 2 - 1).sample(generator)
    eps = torch.randn(known.shape, generator=generator)
    start = model.path.noised(known, eps, float(sigmas[0]))
    assert model.parts.family.size_numbers == 5
    assert list(model.networks) == ["unet", "text_encoder_2"]
    assert relative(sample(model, "euler", sigmas, start), wanted) <= TOLERANCE


def test_inpainting(folders: dict[str, Path], models: dict[str, Any]) -> None:
    pipe = pipeline("StableDiffusionXLInpaintPipeline", folders["sdxl-inpaint"], "euler")
    given = shared(image=picture(), mask_image=mask(), strength=1.0, width=SIZE, height=SIZE)
    generator = torch.Generator().manual_seed(9)
    wanted = pipe(PROMPT, negative_prompt=NEGATIVE, generator=generator, **given).images
    sigmas = sigmas_of(pipe.scheduler)
    model, generator = models["sdxl-inpaint"], torch.Generator().manual_seed(9)
    eps = torch.randn(1, 4, 8, 8, generator=generator)
    grey = (picture() * 2 - 1) * (mask() < 0.5)
    known = KnownPicture(mask()[..., ::8, ::8], model.autoencoder.encode(grey).sample(generator))
    start = model.path.start(eps, float(sigmas[0]))
    assert relative(sample(model, "euler", sigmas, start, known=known), wanted) <= TOLERANCE
