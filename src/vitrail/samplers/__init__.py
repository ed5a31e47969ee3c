"""Samplers: noise paths, denoisers and their wrappers, schedules, solvers.

A solver is a plain function ``(denoiser, x, sigmas, *, path, noise, callback) -> x``; it knows nothing of
networks, prompts or guidance, which are bound into the denoiser::

    path = Flow()
    sigmas = SCHEDULES["simple"](20, path)
    denoiser = with_guidance(cond, uncond, 4.0)
    x = SAMPLERS["dpmpp_2m"].function(denoiser, path.start(eps), sigmas, path=path)
"""

from __future__ import annotations

from vitrail.samplers.denoisers import (
    Denoiser,
    from_network,
    with_guidance,
    with_known_region,
    with_paired_guidance,
)
from vitrail.samplers.paths import VP, Flow, NoisePath, Predicts
from vitrail.samplers.resampling import with_resampling
from vitrail.samplers.schedules import (
    SCHEDULES,
    Schedule,
    exponential,
    flow_shift,
    karras,
    lcm_times,
    leading,
    linspace,
    sgm_uniform,
    simple,
)
from vitrail.samplers.solvers import (
    SAMPLERS,
    Callback,
    Noise,
    Sampler,
    SamplerInfo,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    lcm,
    unipc,
)

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "VP",
    "Callback",
    "Denoiser",
    "Flow",
    "Noise",
    "NoisePath",
    "Predicts",
    "Sampler",
    "SamplerInfo",
    "Schedule",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "exponential",
    "flow_shift",
    "from_network",
    "heun",
    "karras",
    "lcm",
    "lcm_times",
    "leading",
    "linspace",
    "sgm_uniform",
    "simple",
    "unipc",
    "with_guidance",
    "with_known_region",
    "with_paired_guidance",
    "with_resampling",
]
