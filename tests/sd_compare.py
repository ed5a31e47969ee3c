"""What the comparisons with diffusers' pipelines share: the same noise, the same sigmas, one relative error.

Tolerance. Both sides run the same network classes in float32; what differs is the order of roundings around
them (1e-7 each). With Euler over six steps of random networks, with guidance, 5e-7 to 2e-6 was measured;
the bar is 1e-4.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.backends.model import KnownPicture
from vitrail.backends.sd.model import StableDiffusion
from vitrail.samplers import SAMPLERS, with_known_region, with_paired_guidance

TOLERANCE = 1e-4
SIZE = 64
PROMPT, NEGATIVE = "a photo of a cat in the garden", "blue dog, night"
SCALE = 5.0

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "lcm": ("LCMScheduler", {}),
}


@cache
def _loaded(kind: str, folder: Path) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe, dict(pipe.scheduler.config)


def pipeline(kind: str, folder: Path, sampler: str | None = None, **options: Any) -> Any:
    """A pipeline of diffusers from a folder, with the scheduler that ``sampler`` is called there."""
    import diffusers

    pipe, config = _loaded(kind, folder)
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    name, fixed = SCHEDULERS[sampler] if sampler is not None else (config["_class_name"], {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = getattr(diffusers, name).from_config({**settings, **fixed, **options})
    return pipe


def sigmas_of(scheduler: Any) -> Tensor:
    """The sigmas that a scheduler visited, ending where it ended."""
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) > 0:
        return torch.unique_consecutive(scheduler.sigmas)
    kept = scheduler.alphas_cumprod[scheduler.timesteps]
    last = getattr(scheduler, "final_alpha_cumprod", torch.ones(()))
    kept = torch.cat([kept, last.reshape(1)])
    return ((1 - kept) / kept).sqrt()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest deviation over the largest value."""
    assert ours.shape == theirs.shape
    assert bool(torch.isfinite(theirs).all())
    found = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"relative difference {found:.2e}")
    return found


def source(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.randn(x.shape, generator=generator)


def noise(seed: int = 3) -> Tensor:
    return torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 5) -> Tensor:
    """A smooth picture (1, 3, 64, 64) in [0, 1]."""
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bilinear")


def mask() -> Tensor:
    """1 in the right half but for a margin, (1, 1, 64, 64), whole latent pixels."""
    made = torch.zeros(1, 1, SIZE, SIZE)
    made[..., 16:48, 24:56] = 1.0
    return made


def sample(
    model: StableDiffusion,
    sampler: str,
    sigmas: Tensor,
    start: Tensor,
    *,
    prompt: str = PROMPT,
    negative: str = NEGATIVE,
    scale: float = SCALE,
    generator: torch.Generator | None = None,
    known: KnownPicture | None = None,
    keep: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Run vitrail's own loop; returns the latent in DDPM's scale.

    keep: (latent, mask) of a repair with 4 channels.
    """
    bound = model.bind(model.read(prompt, negative), SIZE, SIZE, "float32", known=known)
    denoiser = with_paired_guidance(bound.pair, bound.cond, scale, path=model.path)
    if keep is not None:
        denoiser = with_known_region(denoiser, *keep)

    def advance(step: int, steps: int, _: Tensor) -> None:
        bound.step = step + 1

    bound.steps = len(sigmas) - 1
    noises = source(generator) if generator is not None else None
    x = SAMPLERS[sampler].function(denoiser, start, sigmas, path=model.path, noise=noises, callback=advance)
    return model.path.network_input(x, float(sigmas[-1]))
