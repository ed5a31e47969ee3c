"""What all solvers have in common: arguments, reports, precision, NaN, cancelling, seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.errors import CancelledError, InputError, NonFiniteError
from vitrail.samplers import SAMPLERS, VP, Flow, karras, simple
from vitrail.samplers.solvers import ddim, unipc

ALL = pytest.mark.parametrize("name", list(SAMPLERS))
SIGMAS = simple(5)


def dim(x: Tensor, sigma: Tensor) -> Tensor:
    return 0.5 * torch.tanh(x + sigma.reshape(-1, 1, 1, 1))


def run(name: str, x: Tensor, sigmas: Tensor = SIGMAS, denoiser: Any = dim, **options: Any) -> Tensor:
    arguments: dict[str, Any] = {"path": Flow(), "noise": torch.randn_like, **options}
    return SAMPLERS[name].function(denoiser, x, sigmas, **arguments)


def start(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


@ALL
def test_the_callback_sees_every_step_and_its_prediction(name: str) -> None:
    seen: list[tuple[int, int]] = []
    answers: list[Tensor] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        answers.append(dim(x, sigma))
        return answers[-1]

    def callback(step: int, steps: int, x0: Tensor) -> None:
        seen.append((step, steps))
        assert any(x0 is answer for answer in answers)

    result = run(name, start(), denoiser=denoiser, callback=callback)
    assert seen == [(step, 5) for step in range(5)]
    assert len(answers) == 4 * SAMPLERS[name].evaluations_per_step + 1
    assert torch.equal(result, answers[-1])  # the step to sigma 0 gives the last prediction itself


@ALL
def test_a_cancelling_callback_stops_at_once(name: str) -> None:
    calls = 0

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return dim(x, sigma)

    def callback(step: int, steps: int, x0: Tensor) -> None:
        if step == 1:
            raise CancelledError("stop")

    with pytest.raises(CancelledError):
        run(name, start(), denoiser=denoiser, callback=callback)
    assert calls == 2 * SAMPLERS[name].evaluations_per_step


@ALL
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_answer_names_its_step(name: str, bad: float) -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = dim(x, sigma)
        if bool((sigma < 0.5).any()):
            x0[0, 0, 0, 0] = bad
        return x0

    # Heun asks at the end of its third step for what the others ask at the start of the fourth.
    step = 3 if name == "heun" else 4
    with pytest.raises(
        NonFiniteError, match=rf"^step {step} of 5 \(sigma 0\.[46]\): the denoiser's answer is not finite; "
    ):
        run(name, start(), denoiser=denoiser)


@ALL
def test_a_non_finite_start_or_noise_is_found(name: str) -> None:
    x = start()
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="step 1 of 5"):
        run(name, x)
    if SAMPLERS[name].stochastic:
        with pytest.raises(NonFiniteError, match="step 1 of 5"):
            run(name, start(), noise=lambda x: x * math.inf)


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_state_is_at_least_float32(name: str, dtype: torch.dtype) -> None:
    seen = set()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        seen.add((x.dtype, sigma.dtype))
        return dim(x, sigma).to(dtype)  # a network in low precision answers in low precision

    x = start(dtype=dtype)
    before = x.clone()
    state = torch.float64 if dtype == torch.float64 else torch.float32
    assert run(name, x, denoiser=denoiser).dtype == state
    assert seen == {(state, state)}
    assert torch.equal(x, before)


@ALL
def test_a_picture_does_not_depend_on_its_neighbours(name: str) -> None:
    """Each picture has its own generator; alone or in a batch, the result is the same to the bit."""

    def make(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise(x: Tensor) -> Tensor:
            return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])

        return run(name, noise(torch.zeros(len(seeds), 1, 4, 4)), noise=noise)

    assert torch.equal(make([7, 8, 9])[1:2], make([8]))


@ALL
def test_stochastic_means_noise_is_drawn(name: str) -> None:
    draws = 0

    def noise(x: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.randn_like(x)

    run(name, start(), noise=noise)
    a_step = 2 if name == "dpmpp_sde" else 1
    assert draws == (4 * a_step if SAMPLERS[name].stochastic else 0)  # none in the step to sigma 0
    if SAMPLERS[name].stochastic:
        with pytest.raises(InputError, match="noise="):
            run(name, start(), noise=None)
    else:
        run(name, start(), noise=None)


@pytest.mark.parametrize(
    "sigmas",
    [
        torch.tensor([1.0]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([1.0, 0.5, 0.5, 0.0]),
        torch.tensor([1.0, -0.1]),
        torch.tensor([math.nan, 0.0]),
        torch.tensor([1.0, math.nan, 0.0]),
        torch.tensor([math.inf, 0.0]),
    ],
)
@ALL
def test_impossible_sigmas_are_refused(name: str, sigmas: Tensor) -> None:
    with pytest.raises(InputError, match="sigmas"):
        run(name, start(), sigmas)


@ALL
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"flow they are at most 1"):
        run(name, start(), karras(4, VP()))
    with pytest.raises(InputError, match="int64"):
        run(name, torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="denoiser returned"):
        run(name, start(), denoiser=lambda x, sigma: x[:, :, :2])
    if SAMPLERS[name].stochastic:
        with pytest.raises(InputError, match="noise source returned"):
            run(name, start(), noise=lambda x: torch.randn(1))


def test_options_of_single_solvers() -> None:
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="eta"):
            ddim(dim, start(), SIGMAS, path=Flow(), noise=torch.randn_like, eta=eta)
    with pytest.raises(InputError, match="noise="):
        ddim(dim, start(), SIGMAS, path=Flow(), eta=0.5)
    for order in (0, 4):
        with pytest.raises(InputError, match="order"):
            unipc(dim, start(), SIGMAS, path=Flow(), order=order)


@ALL
def test_gradients_flow_through(name: str) -> None:
    x = start().requires_grad_()
    (gradient,) = torch.autograd.grad(run(name, x, noise=torch.zeros_like).sum(), x)
    assert bool((gradient != 0).all())
