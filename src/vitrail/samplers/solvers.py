"""The table of solvers, by the name that requests use."""

from __future__ import annotations

from dataclasses import dataclass

from vitrail.samplers.solvers_multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from vitrail.samplers.solvers_single import ddim, dpmpp_sde, euler, euler_ancestral, heun, lcm
from vitrail.samplers.walk import Callback, Noise, Sampler

__all__ = [
    "SAMPLERS",
    "Callback",
    "Noise",
    "Sampler",
    "SamplerInfo",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "unipc",
]


@dataclass(frozen=True)
class SamplerInfo:
    """What a caller may want to know about a solver.

    function: the solver itself.
    stochastic: it draws noise after the start, so ``noise=`` is required.
    paths: names of the noise paths that it is right for; tests compare it with a reference on each.
    evaluations_per_step: calls of the denoiser a step (the last step to sigma 0 takes one).
    label: the name for people.
    plain_start: on VP it starts at sigma * eps and not at sqrt(1 + sigma^2) * eps where a schedule begins at
        the last training time: 0.2 % less, as in k-diffusion, and in diffusers with times "linspace" and
        "trailing".
    """

    function: Sampler
    stochastic: bool
    paths: tuple[str, ...]
    evaluations_per_step: int
    label: str
    plain_start: bool = False


_BOTH = ("vp", "flow")

SAMPLERS: dict[str, SamplerInfo] = {
    "euler": SamplerInfo(euler, False, _BOTH, 1, "Euler", True),
    "euler_ancestral": SamplerInfo(euler_ancestral, True, _BOTH, 1, "Euler ancestral", True),
    "heun": SamplerInfo(heun, False, _BOTH, 2, "Heun", True),
    "dpmpp_2m": SamplerInfo(dpmpp_2m, False, _BOTH, 1, "DPM-Solver++ (2M)"),
    "dpmpp_2m_sde": SamplerInfo(dpmpp_2m_sde, True, _BOTH, 1, "DPM-Solver++ (2M) SDE"),
    "dpmpp_sde": SamplerInfo(dpmpp_sde, True, _BOTH, 2, "DPM-Solver++ SDE", True),
    "unipc": SamplerInfo(unipc, False, _BOTH, 1, "UniPC"),
    "ddim": SamplerInfo(ddim, False, _BOTH, 1, "DDIM"),
    "lcm": SamplerInfo(lcm, True, _BOTH, 1, "LCM"),
}
"""Every solver by the name that requests use."""
