"""Folders of diffusers: the same latents and pixels as diffusers' own pipelines, for the same noise."""

from __future__ import annotations

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
    noise,
    pipeline,
    relative,
    sample,
    sigmas_of,
)
from sd_tiny import make_folder

from vitrail.backends.sd.open import open_stable_diffusion
from vitrail.tasks.diffusion import first_state, noise_levels

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 5


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("sd")
    return {family: make_folder(home / family, family) for family in ("sd1", "sd2", "sd2-v", "lcm")}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: open_stable_diffusion(folder) for family, folder in folders.items()}


def theirs(folder: Path, sampler: str, **options: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    pipe = pipeline("StableDiffusionPipeline", folder, sampler, **options)
    latent = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=SCALE,
        num_inference_steps=STEPS,
        width=SIZE,
        height=SIZE,
        latents=noise(),
        generator=torch.Generator().manual_seed(9),
        output_type="latent",
    ).images
    return pipe, latent, sigmas_of(pipe.scheduler)


CASES = [("sd1", sampler) for sampler in SCHEDULERS]
CASES += [("sd2-v", sampler) for sampler in ("euler", "dpmpp_2m", "ddim", "unipc")] + [("sd2", "euler")]


@pytest.mark.parametrize(("family", "sampler"), CASES)
def test_text_to_image(family: str, sampler: str, folders: dict[str, Path], models: dict[str, Any]) -> None:
    """Leading times with an offset of 1, as the checkpoints' own schedulers have them."""
    pipe, wanted, sigmas = theirs(folders[family], sampler)
    model = models[family]
    start = model.path.start(noise(), float(sigmas[0]))
    got = sample(model, sampler, sigmas, start, generator=torch.Generator().manual_seed(9))
    assert relative(got, wanted) <= TOLERANCE
    pixels = pipe.vae.decode(wanted / pipe.vae.config.scaling_factor).sample
    assert relative(model.autoencoder.decode(got), pixels) <= TOLERANCE


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("euler", {"timestep_spacing": "trailing"}),
        ("dpmpp_2m", {"timestep_spacing": "trailing"}),
        ("unipc", {"timestep_spacing": "linspace"}),
        ("euler", {"use_karras_sigmas": True}),
        # As SD 1's own configuration has it: the last step does not reach sigma 0.
        ("ddim", {"set_alpha_to_one": False}),
    ],
)
def test_other_schedules(
    sampler: str, options: dict[str, Any], folders: dict[str, Path], models: dict[str, Any]
) -> None:
    _, wanted, sigmas = theirs(folders["sd1"], sampler, **options)
    start = models["sd1"].path.start(noise(), float(sigmas[0]))
    if options.get("timestep_spacing") == "trailing" and sampler == "euler":
        start = noise() * float(sigmas[0])  # diffusers starts so where the first time is the last one trained
    assert relative(sample(models["sd1"], sampler, sigmas, start), wanted) <= TOLERANCE


# Where diffusers' multistep schedulers space their times otherwise ("leading" of one step more,
# "linspace" without its end and rounded), test_other_schedules compares the walks alone.
@pytest.mark.parametrize(
    ("sampler", "schedule", "options"),
    [(sampler, "leading", {}) for sampler in ("euler", "euler_ancestral", "ddim")]
    + [
        (sampler, "simple", {"timestep_spacing": "trailing"})
        for sampler in ("euler", "euler_ancestral", "ddim", "dpmpp_2m", "unipc")
    ]
    + [(sampler, "linspace", {"timestep_spacing": "linspace"}) for sampler in ("euler", "euler_ancestral")],
)
def test_our_own_schedules(
    sampler: str, schedule: str, options: dict[str, Any], folders: dict[str, Path], models: dict[str, Any]
) -> None:
    """Sigmas and start are ours: nothing is taken over from diffusers' scheduler."""
    _, wanted, _ = theirs(folders["sd1"], sampler, **options)
    model = models["sd1"]
    settings = model.defaults.model_copy(update={"sampler": sampler, "schedule": schedule, "steps": STEPS})
    sigmas = noise_levels(settings, model.path)
    start = first_state(settings, model.path, noise(), float(sigmas[0]))
    got = sample(model, sampler, sigmas, start, generator=torch.Generator().manual_seed(9))
    assert relative(got, wanted) <= TOLERANCE


def test_the_comparison_can_fail(folders: dict[str, Path], models: dict[str, Any]) -> None:
    """What the comparisons rest on is seen by them: prompt, negative prompt, scale, prediction."""
    _, wanted, sigmas = theirs(folders["sd1"], "euler")
    model = models["sd1"]
    start = model.path.start(noise(), float(sigmas[0]))
    for changed in ({"prompt": "a red house"}, {"negative": ""}, {"scale": SCALE + 0.05}):
        assert relative(sample(model, "euler", sigmas, start, **changed), wanted) > 3 * TOLERANCE
    wrong = open_stable_diffusion(folders["sd1"], predicts="v")
    assert relative(sample(wrong, "euler", sigmas, start), wanted) > 0.1


def test_without_guidance(folders: dict[str, Path], models: dict[str, Any]) -> None:
    pipe = pipeline("StableDiffusionPipeline", folders["sd1"], "euler")
    wide = noise().repeat(1, 1, 1, 2)[..., :12]
    settings = {"guidance_scale": 1.0, "num_inference_steps": 3, "width": 96, "height": SIZE}
    wanted = pipe(PROMPT, latents=wide, output_type="latent", **settings).images
    sigmas = sigmas_of(pipe.scheduler)
    got = sample(models["sd1"], "euler", sigmas, models["sd1"].path.start(wide, float(sigmas[0])), scale=1.0)
    assert models["sd1"].latent_size(96, SIZE) == (8, 12)
    assert relative(got, wanted) <= TOLERANCE


def test_lcm_is_told_the_guidance(folders: dict[str, Path], models: dict[str, Any]) -> None:
    pipe = pipeline("LatentConsistencyModelPipeline", folders["lcm"])
    wanted = pipe(
        PROMPT,
        guidance_scale=6.0,
        num_inference_steps=4,
        width=SIZE,
        height=SIZE,
        latents=noise(),
        generator=torch.Generator().manual_seed(9),
        output_type="latent",
    ).images
    model = models["lcm"]
    assert model.takes_guidance
    assert model.defaults.sampler == "lcm"
    assert not models["sd1"].takes_guidance
    sigmas = sigmas_of(pipe.scheduler)
    bound = model.bind(model.read(PROMPT), SIZE, SIZE, "float32")
    bound.guidance = 6.0
    from vitrail.samplers import lcm

    generator = torch.Generator().manual_seed(9)
    got = lcm(
        bound.cond,
        model.path.start(noise(), float(sigmas[0])),
        sigmas,
        path=model.path,
        noise=lambda x: torch.randn(x.shape, generator=generator),
    )
    assert relative(got, wanted) <= TOLERANCE


@pytest.mark.parametrize("how", ["bin", "fp16", "new tokenizer"])
def test_other_files_of_a_folder(how: str, tmp_path: Path, models: dict[str, Any]) -> None:
    from sd_tiny import make_vocabulary

    folder = make_folder(tmp_path / "m", safe=how != "bin", variant="fp16" if how == "fp16" else None)
    if how == "new tokenizer":
        for path in (folder / "tokenizer").iterdir():
            path.unlink()
        make_vocabulary(folder / "tokenizer", style="new")
        assert not (folder / "tokenizer" / "vocab.json").exists()
    model = open_stable_diffusion(folder)
    for name, network in model.networks.items():
        for key, value in network.state_dict().items():
            exact = models["sd1"].networks[name].state_dict()[key]
            assert value.dtype == torch.float32
            assert torch.equal(value, exact.half().float() if how == "fp16" else exact)
    words = model.parts.text.towers[0].words
    assert words.ids("a photo of a cat!") == models["sd1"].parts.text.towers[0].words.ids("a photo of a cat!")


def test_what_a_model_says_of_itself(folders: dict[str, Path], models: dict[str, Any]) -> None:
    model = models["sd1"]
    assert model.name == "sd1"
    assert (model.defaults.width, model.defaults.height) == (64, 64)
    assert model.latent_channels == 4
    assert not model.needs_known
    assert model.autoencoder.latent.downsample == 8
    assert len(model.sha256) == 64
    assert model.sha256 == open_stable_diffusion(folders["sd1"]).sha256 != models["sd2"].sha256
    assert models["sd2-v"].parts.predicts == "v"
    assert models["sd2"].parts.predicts == "eps"
