"""Image-to-image and repair (4 and 9 channels) against diffusers' pipelines, for the same noise."""

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
    SCHEDULERS,
    SIZE,
    TOLERANCE,
    mask,
    picture,
    pipeline,
    relative,
    sample,
    sigmas_of,
)
from sd_tiny import make_folder

from vitrail.backends.model import KnownPicture
from vitrail.backends.sd.open import open_stable_diffusion
from vitrail.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 6


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sd")
    return {family: make_folder(home / family, family) for family in ("sd1", "sd2-v", "sd1-inpaint")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: open_stable_diffusion(folder) for family, folder in folders.items()}


def settings(**more: Any) -> dict[str, Any]:
    shared = {"guidance_scale": SCALE, "num_inference_steps": STEPS, "output_type": "latent"}
    return shared | {"generator": torch.Generator().manual_seed(9), "image": picture()} | more


@pytest.mark.parametrize(
    ("family", "sampler"),
    [("sd1", sampler) for sampler in SCHEDULERS]
    + [("sd2-v", sampler) for sampler in ("euler", "dpmpp_2m", "ddim", "unipc")],
)
def test_image_to_image(family: str, sampler: str, folders: dict[str, Path], models: dict[str, Any]) -> None:
    pipe = pipeline("StableDiffusionImg2ImgPipeline", folders[family], sampler)
    wanted = pipe(PROMPT, negative_prompt=NEGATIVE, **settings(strength=0.67)).images
    left = int(STEPS * 0.67)
    sigmas = sigmas_of(pipe.scheduler)[-left - 1 :]
    model, generator = models[family], torch.Generator().manual_seed(9)
    known = model.autoencoder.encode(picture() * 2 - 1).sample(generator)
    eps = torch.randn(known.shape, generator=generator)
    start = model.path.noised(known, eps, float(sigmas[0]))
    got = sample(model, sampler, sigmas, start, generator=generator)
    assert relative(got, wanted) <= TOLERANCE
    pixels = pipe.vae.decode(wanted / pipe.vae.config.scaling_factor).sample
    assert relative(model.autoencoder.decode(got), pixels) <= TOLERANCE


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ddim", "unipc"])
def test_repair_with_any_network(sampler: str, folders: dict[str, Path], models: dict[str, Any]) -> None:
    """Four channels: diffusers puts the noised picture back after every step, we hold the predicted one
    fixed; along the path of a sampler that draws no noise that is the same state."""
    pipe = pipeline("StableDiffusionInpaintPipeline", folders["sd1"], sampler)
    more = settings(strength=0.67, mask_image=mask(), width=SIZE, height=SIZE)
    wanted = pipe(PROMPT, negative_prompt=NEGATIVE, **more).images
    left = int(STEPS * 0.67)
    sigmas = sigmas_of(pipe.scheduler)[-left - 1 :]
    model, generator = models["sd1"], torch.Generator().manual_seed(9)
    known = model.autoencoder.encode(picture() * 2 - 1).sample(generator)
    eps = torch.randn(known.shape, generator=generator)
    small = mask()[..., ::8, ::8]
    start = model.path.noised(known, eps, float(sigmas[0]))
    got = sample(model, sampler, sigmas, start, keep=(known, small))
    assert relative(got, wanted) <= TOLERANCE
    assert torch.equal(got[..., :2, :], known[..., :2, :])


@pytest.mark.parametrize("sampler", list(SCHEDULERS))
def test_repair_with_an_inpainting_network(
    sampler: str, folders: dict[str, Path], models: dict[str, Any]
) -> None:
    """Nine channels: the network is shown the mask and the picture with the masked part grey."""
    pipe = pipeline("StableDiffusionInpaintPipeline", folders["sd1-inpaint"], sampler)
    more = settings(strength=1.0, mask_image=mask(), width=SIZE, height=SIZE)
    wanted = pipe(PROMPT, negative_prompt=NEGATIVE, **more).images
    sigmas = sigmas_of(pipe.scheduler)
    model, generator = models["sd1-inpaint"], torch.Generator().manual_seed(9)
    assert model.needs_known
    eps = torch.randn(1, 4, 8, 8, generator=generator)
    grey = (picture() * 2 - 1) * (mask() < 0.5)
    latent = model.autoencoder.encode(grey).sample(generator)
    known = KnownPicture(mask()[..., ::8, ::8], latent)
    start = model.path.start(eps, float(sigmas[0]))
    state = generator.get_state()
    assert (
        relative(sample(model, sampler, sigmas, start, known=known, generator=generator), wanted) <= TOLERANCE
    )
    generator.set_state(state)
    other = KnownPicture(1 - mask()[..., ::8, ::8], latent)
    found = sample(model, sampler, sigmas, start, known=other, generator=generator)
    assert relative(found, wanted) > 10 * TOLERANCE


def test_the_wrong_kind_of_network(models: dict[str, Any]) -> None:
    known = KnownPicture(torch.ones(1, 1, 8, 8), torch.zeros(1, 4, 8, 8))
    words = models["sd1"].read("a cat")
    with pytest.raises(InputError, match="takes no masked picture"):
        models["sd1"].bind(words, SIZE, SIZE, known=known)
    with pytest.raises(InputError, match="needs a picture and a mask"):
        models["sd1-inpaint"].bind(words, SIZE, SIZE)
    with pytest.raises(InputError, match=r"width is 60; .* for instance 64"):
        models["sd1"].latent_size(60, 64)
