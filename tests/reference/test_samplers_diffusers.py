"""Every solver against diffusers' scheduler of the same name, on the same network, sigmas and noise.

Tolerance. Both sides compute in float32, where one rounding is 6e-8; schedulers keep their coefficients
(lambda, its differences) in float32 too, vitrail keeps its own in float64. Over 20 to 25 steps on a random
network, whose answer swings with its input far more than a trained one's, the measured difference is 1e-7 to
2e-6 of the result, so 1e-4 leaves room for other processors and none for a wrong formula: the two nearest
solvers differ by 2e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler
from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import LTXEulerAncestralRFScheduler
from torch import Tensor

from vitrail.samplers import SAMPLERS, VP, Flow, NoisePath, Predicts, from_network
from vitrail.samplers.solvers import ddim, unipc

# diffusers 0.42 turns tensors into arrays in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

TOLERANCE = 1e-4
SHAPE = (2, 4, 8, 8)
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {**TABLE, "timestep_spacing": "trailing"}
KARRAS = {**TABLE, "use_karras_sigmas": True}
NAMES: dict[str, Predicts] = {"epsilon": "eps", "v_prediction": "v"}

Network = Callable[[Tensor, Tensor], Tensor]


def random_network(seed: int = 0) -> Network:
    """A fixed network (input, time (B,)) -> output: two random convolutions, a tanh, a wave over time."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(16, 4, 3, 3, generator=generator) / 6
    second = torch.randn(4, 16, 3, 3, generator=generator) / 12
    phase = torch.randn(16, generator=generator)

    def network(x: Tensor, time: Tensor) -> Tensor:
        wave = torch.cos(phase + 3 * time.reshape(-1, 1)).reshape(len(x), 16, 1, 1)
        hidden = torch.tanh(torch.nn.functional.conv2d(x, first, padding=1) + wave)
        return 0.5 * x + torch.nn.functional.conv2d(hidden, second, padding=1)

    return network


def vp_network(x: Tensor, time: Tensor) -> Tensor:
    """The random network with its time counted in thousandths."""
    return random_network()(x, time / 1000)


def start(seed: int = 1) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def noise_source(seed: int = 2) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest deviation over the largest value, the stricter of the usual relative errors here."""
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert bool(torch.isfinite(theirs).all())
    relative = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"relative difference {relative:.2e}")
    return relative


def walk(
    scheduler: Any, x: Tensor, evaluate: Callable[[Tensor, Tensor], Tensor], sigmas: Tensor, **step: Any
) -> Tensor:
    """Run a scheduler's own loop; ``evaluate(input, sigma (B,))`` is asked at the scheduler's own sigma."""
    for index, t in enumerate(scheduler.timesteps):
        sigma = sigmas[index].expand(len(x))
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(evaluate(scaled, sigma), t, x, **step).prev_sample
    return x


# --- the variance-preserving path
# -------------------------------------------------------------------------------

VP_SCHEDULERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": (diffusers.DPMSolverSDEScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "lcm": (diffusers.LCMScheduler, {}),
}
TWICE = ("heun", "dpmpp_sde")  # their schedulers list the inner sigmas twice
ONE_SCALE = ("dpmpp_2m", "dpmpp_2m_sde", "unipc", "ddim", "lcm")  # these keep the DDPM state


class BrownianMotion:
    """What diffusers' DPM++ SDE asks for noise in place of its own: to the middle of a step, then to its end.

    The end shares with the middle what an Ornstein-Uhlenbeck process that begins at 0 does: the middle is
    worth exp(-h/2) of itself at the end, where the variance is 1 - exp(-2h), and 1 - exp(-h) in the middle.
    """

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        self.draw, self.middle = draw, torch.empty(0)

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        fresh = self.draw(torch.empty(SHAPE))
        if len(self.middle) == 0:
            self.middle = fresh
            return fresh
        h = (start.double() / end.double()).log()
        correlation = torch.exp(-h / 2) * ((1 - torch.exp(-h)) / (1 - torch.exp(-2 * h))).sqrt()
        both = correlation * self.middle + (1 - correlation**2).sqrt() * fresh
        self.middle = torch.empty(0)
        return both.float()


def with_middles(sigmas: Tensor) -> Tensor:
    """Where DPM++ SDE evaluates on the VP path: every sigma but 0, and between two of them."""
    return torch.cat(
        [torch.stack([sigmas[:-2], (sigmas[:-2] * sigmas[1:-1]).sqrt()], 1).flatten(), sigmas[-2:-1]]
    )


def vp_difference(name: str, steps: int, prediction: str, options: dict[str, Any], **ours: Any) -> float:
    """Return the difference between vitrail's solver ``name`` and its scheduler with ``options``."""
    kind, fixed = VP_SCHEDULERS[name]
    scheduler = kind(**options, **fixed, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    path = VP()
    if name in ("ddim", "lcm"):
        kept = scheduler.alphas_cumprod[scheduler.timesteps]
        per_call = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1)])
    else:
        per_call = scheduler.sigmas
    sigmas = torch.unique_consecutive(per_call)
    assert len(sigmas) == steps + 1
    if name == "heun":  # a second evaluation happens at the sigma that the trial step reached
        per_call = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2)])
    elif name == "dpmpp_sde":
        per_call = with_middles(sigmas)
        scheduler.noise_sampler = BrownianMotion(noise_source())

    eta = ours.get("eta")
    step: dict[str, Any] = {} if eta is None else {"eta": eta}
    if (SAMPLERS[name].stochastic and name != "dpmpp_sde") or eta:
        step["generator"] = torch.Generator().manual_seed(2)
    unit = (1 + sigmas[0] ** 2).sqrt()
    x = start() * unit
    theirs = walk(
        scheduler,
        x / unit if name in ONE_SCALE else x,
        lambda scaled, sigma: vp_network(scaled, path.time(sigma)),
        per_call,
        **step,
    )
    denoiser = from_network(vp_network, path, NAMES[prediction])
    solver: Any = SAMPLERS[name].function
    result = solver(denoiser, x, sigmas, path=path, noise=noise_source(), **ours)
    return difference(result, theirs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", list(VP_SCHEDULERS))
def test_vp(name: str, steps: int, prediction: str) -> None:
    options = TABLE if name == "lcm" else TRAILING
    assert vp_difference(name, steps, prediction, options) <= TOLERANCE


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc"])
def test_vp_on_karras_sigmas(name: str, prediction: str) -> None:
    assert vp_difference(name, 25, prediction, KARRAS) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(eta: float) -> None:
    assert vp_difference("ddim", 20, "epsilon", TRAILING, eta=eta) <= TOLERANCE


@pytest.mark.parametrize("order", [1, 3])
def test_unipc_of_other_orders(order: int) -> None:
    options = {**TRAILING, "solver_order": order}
    assert vp_difference("unipc", 20, "epsilon", options, order=order) <= TOLERANCE


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_sigmas_that_do_not_end_in_zero(name: str, steps: int) -> None:
    """The order of the last step is a convention of its own: below 15 steps it is lowered."""
    kind, fixed = VP_SCHEDULERS[name]
    scheduler = kind(**TRAILING, **fixed, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps)
    path, sigmas = VP(), scheduler.sigmas
    step = {"generator": torch.Generator().manual_seed(2)} if SAMPLERS[name].stochastic else {}
    theirs = walk(scheduler, start(), lambda x, sigma: vp_network(x, path.time(sigma)), sigmas, **step)
    x = start() * (1 + sigmas[0] ** 2).sqrt()
    denoiser = from_network(vp_network, path, "eps")
    ours = SAMPLERS[name].function(denoiser, x, sigmas, path=path, noise=noise_source())
    assert difference(ours / (1 + sigmas[-1] ** 2).sqrt(), theirs) <= TOLERANCE


# --- rectified flow
# ---------------------------------------------------------------------------------------------

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def flow_reference(name: str, steps: int, shift: float) -> tuple[Any, Tensor]:
    """Return (scheduler, the sigma of each of its calls, then 0)."""
    if name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        kind, fixed = VP_SCHEDULERS[name]
        scheduler = kind(**FLOW, **fixed, flow_shift=shift)
        scheduler.set_timesteps(steps)
    elif name == "heun":
        scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
    elif name == "euler_ancestral":
        shares = torch.linspace(1, 0, steps + 1)
        scheduler = LTXEulerAncestralRFScheduler()
        scheduler.set_timesteps(sigmas=shift * shares / (1 + (shift - 1) * shares))
    elif name == "lcm":
        scheduler = FlowMatchLCMScheduler(shift=shift)
        scheduler.set_timesteps(steps)
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
    return scheduler, scheduler.sigmas


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpmpp_sde"])
def test_flow(name: str, steps: int, shift: float) -> None:
    assert "flow" in SAMPLERS[name].paths
    scheduler, per_call = flow_reference(name, steps, shift)
    sigmas = torch.unique_consecutive(per_call)
    assert len(sigmas) == steps + 1
    if name == "heun":
        per_call = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2)])
    network = random_network()
    step = {"generator": torch.Generator().manual_seed(2)} if SAMPLERS[name].stochastic else {}
    # LTX's scheduler lists a time for sigma 0 too; it returns the state unchanged there.
    scheduler_calls = [*per_call, torch.zeros(())]
    theirs = walk(scheduler, start(), network, torch.stack(list(scheduler_calls)), **step)
    path: NoisePath = Flow()
    denoiser = from_network(network, path, "flow")
    ours = SAMPLERS[name].function(denoiser, start(), sigmas, path=path, noise=noise_source())
    assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("steps", [4, 20])
def test_flow_is_vp_in_other_coordinates(steps: int) -> None:
    """diffusers has DPM++ SDE for VP alone. x / alpha on flow is the state on VP, at sigma / alpha."""
    times = torch.linspace(0.98, 0, steps + 1, dtype=torch.float64)
    network, path = random_network(), Flow()
    sigmas = (times / (1 - times)).float()
    scheduler = diffusers.DPMSolverSDEScheduler(**TRAILING)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.noise_sampler = BrownianMotion(noise_source())

    def evaluate(scaled: Tensor, level: Tensor) -> Tensor:
        """The noise that the flow network sees in a state of VP."""
        spread = level[0]
        time, state = level / (1 + level), scaled * (1 + spread**2).sqrt()
        x = state * (1 - time[0])
        return (state - path.to_x0(network(x, time), x, time, "flow")) / spread

    theirs = walk(scheduler, start() * (1 + sigmas[0]), evaluate, with_middles(sigmas))
    denoiser = from_network(network, path, "flow")
    ours = SAMPLERS["dpmpp_sde"].function(denoiser, start(), times, path=path, noise=noise_source())
    assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_flow_from_pure_noise(name: str) -> None:
    """At sigma exactly 1 lambda is minus infinity.

    diffusers' DPM-Solver then computes with infinities that cancel; its UniPC steps back to 1 - 1e-6 by
    itself, and vitrail's result from 1 is the same.
    """
    scheduler, sigmas = flow_reference(name, 20, 1.0)
    exact = sigmas.clone()
    exact[0] = 1.0
    if name != "unipc":
        sigmas = scheduler.sigmas = exact
    network = random_network()
    step = {"generator": torch.Generator().manual_seed(2)} if SAMPLERS[name].stochastic else {}
    theirs = walk(scheduler, start(), network, sigmas, **step)
    denoiser = from_network(network, Flow(), "flow")
    ours = SAMPLERS[name].function(denoiser, start(), exact, path=Flow(), noise=noise_source())
    assert difference(ours, theirs) <= TOLERANCE


def test_every_claim_has_a_reference() -> None:
    assert (
        set(VP_SCHEDULERS) == set(SAMPLERS) == {name for name, info in SAMPLERS.items() if "vp" in info.paths}
    )


def test_the_comparison_can_fail() -> None:
    """The network tells solvers apart: neighbours in quality differ by far more than the tolerance."""
    path = VP()
    denoiser = from_network(vp_network, path, "eps")
    scheduler = diffusers.EulerDiscreteScheduler(**TRAILING)
    scheduler.set_timesteps(20)
    x = start() * scheduler.sigmas[0]
    results = [
        SAMPLERS[name].function(denoiser, x, scheduler.sigmas, path=path)
        for name in ("euler", "heun", "dpmpp_2m", "unipc")
    ]
    results.append(unipc(denoiser, x, scheduler.sigmas, path=path, order=3))
    results.append(ddim(denoiser, x, scheduler.sigmas, path=path, eta=0.1, noise=noise_source()))
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert difference(one, other) > 10 * TOLERANCE
