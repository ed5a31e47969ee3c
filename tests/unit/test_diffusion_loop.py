"""The one loop: what it tells the bound denoiser, what it is told, noise of variations, the second try."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.errors import CancelledError, InputError, NonFiniteError
from vitrail.samplers.paths import VP, Flow
from vitrail.schema import Progress, SamplingDefaults, TextToImageRequest
from vitrail.tasks.context import Context
from vitrail.tasks.diffusion import Draws, check_sampling, denoise, noise_levels
from vitrail.tasks.pictures import Order, Piece, in_numbers
from vitrail.tasks.progress import StepCounter


@dataclass
class Spy:
    """A bound denoiser that notes when it was asked."""

    step: int = -1
    steps: int = -1
    guidance: float | None = None
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.asked.append(("cond", self.step, self.steps))
        return torch.zeros_like(x)

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(("pair", self.step, self.steps))
        return torch.zeros_like(x), torch.ones_like(x)


def settings(**given: Any) -> Any:
    base = {"steps": 4, "cfg_scale": 2.0, "cfg_rescale": 0.0, "guidance_interval": (0.0, 1.0)}
    return SimpleNamespace(**(base | {"sampler": "euler", "schedule": "simple", "shift": 1.0} | given))


def walk(bound: Spy, context: Context | None = None, **given: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    repeats = given.pop("repeats", 1)
    asked = settings(**given)
    draws = Draws([0], (1, 2, 2))
    state = denoise(
        SimpleNamespace(path=Flow()),  # type: ignore[arg-type]
        bound,
        draws.first(torch.device("cpu")),
        noise_levels(asked, Flow()),
        asked,
        noise=draws,
        context=context or Context(),
        told=lambda step, steps, _: told.append((step, steps)),
        repeats=repeats,
    )
    return state, told


def test_the_bound_denoiser_hears_every_step() -> None:
    bound = Spy()
    state, told = walk(bound)
    assert bound.asked == [("pair", step, 4) for step in range(4)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(state, -torch.ones(1, 1, 2, 2))  # unwanted + 2 (wanted - unwanted)
    bound = Spy()
    walk(bound, cfg_scale=1.0, sampler="heun")
    assert [row[:2] for row in bound.asked] == [("cond", step) for step in (0, 0, 1, 1, 2, 2, 3)]


def test_repeats_walk_every_step_again_and_are_told_once() -> None:
    bound = Spy()
    _, told = walk(bound, repeats=3)
    assert [row[1] for row in bound.asked] == [step for step in range(4) for _ in range(3)]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_network_that_takes_the_guidance_is_told_it() -> None:
    bound = Spy(guidance=8.0)
    walk(bound, cfg_scale=3.5)
    assert bound.guidance == 3.5
    other = Spy()
    walk(other, cfg_scale=3.5)
    assert other.guidance is None


def test_a_cancel_stops_before_the_next_pass() -> None:
    context = Context()
    context.cancelled.set()
    bound = Spy()
    with pytest.raises(CancelledError):
        walk(bound, context)
    assert bound.asked == []


def test_the_levels_of_an_edit_are_the_last_of_the_walk() -> None:
    for path in (Flow(), VP()):
        whole = noise_levels(settings(steps=10), path)
        assert torch.equal(noise_levels(settings(steps=10), path, 0.35), whole[7:])
        assert noise_levels(settings(steps=10), path, 0.0).tolist() == [0.0]
    assert not torch.equal(noise_levels(settings(shift=3.0), Flow()), noise_levels(settings(), Flow()))


def test_noise_is_each_seeds_own_and_turns_towards_another() -> None:
    device = torch.device("cpu")
    shape = (3, 8, 8)
    one = Draws([4], shape).first(device)
    assert torch.equal(one[0], torch.randn(shape, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(Draws([9, 4], shape).first(device)[1], one[0])
    other = Draws([9], shape).first(device)
    for share in (0.0, 0.3, 1.0):
        turned = Draws([4], shape, [9], share).first(device)
        # On the arc between the two: as long as they are, and the angles add up.
        length = float((1 - share) * one.norm() + share * other.norm())
        assert turned.norm() == pytest.approx(length, rel=1e-5)

        def angle(a: Tensor, b: Tensor) -> float:
            return float(torch.acos((a * b).sum().double() / (a.norm() * b.norm()).double()))

        if 0 < share < 1:
            assert angle(one, turned) == pytest.approx(share * angle(one, other), abs=1e-4)
    assert torch.allclose(Draws([4], shape, [9], 1.0).first(device), other, atol=1e-5)


def test_what_is_not_finite_is_tried_once_more_in_float32() -> None:
    tried: list[str] = []

    def make(precision: Any) -> Tensor:
        tried.append(precision)
        if precision != "float32" or len(tried) > 2:
            raise NonFiniteError("no")
        return torch.ones(1)

    counter = StepCounter(4, Context())
    counter.step(1, 3, 4)
    request = TextToImageRequest(prompt="a cat").resolve(SamplingDefaults(), seed=7)
    pieces = [Piece(Order(request, Context(), counter, SimpleNamespace(name="m", sha256="0" * 64)), 0)]
    assert in_numbers(make, "bfloat16", pieces) == (torch.ones(1), "float32")
    assert tried == ["bfloat16", "float32"]
    assert counter.done == 0
    with pytest.raises(NonFiniteError, match="no finite picture for seed 7, in float32 too"):
        in_numbers(make, "float32", pieces)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "maskgit"}, "sampler maskgit is not for model m; use one of euler"),
        ({"schedule": "raster"}, "schedule raster is not for model m; use one of karras"),
        ({"shift": 2.0}, "shift is not for model m"),
    ],
)
def test_settings_of_other_models_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sampling(SimpleNamespace(**given), "m", VP())
    check_sampling(SimpleNamespace(sampler="euler", schedule="karras", shift=1.0), "m", VP())


def test_progress_is_told_in_order() -> None:
    told: list[Any] = []
    counter = StepCounter(6, Context(report=told.append))
    for step in (1, 2, 3):
        counter.step(2, step, 3)
    assert [event.step for event in told if isinstance(event, Progress)] == [2, 4, 6]
