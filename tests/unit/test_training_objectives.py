"""The objectives against their formulas written out, and against what a perfect network must get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.recipe import FlowObjective, UpsamplerObjective
from vitrail.training.objectives import draw_levels, flow_loss, held_out_flow_loss, upsampler_loss

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    pixels: Tensor
    captions: list[str]
    styles: Tensor


class Encoder:
    """Counts the letters of a caption: enough to see that the right caption arrives."""

    def __call__(self, prompts: list[str]) -> Any:
        lengths = torch.tensor([[[float(len(prompt))]] for prompt in prompts])
        ones = torch.ones(len(prompts), 1)
        return SimpleNamespace(states=lengths, mask=ones.bool(), ids=ones.long())


def make_batch(count: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return Batch(pixels, ["a" * n for n in range(count)], torch.arange(count))


def settings(**changes: Any) -> FlowObjective:
    return FlowObjective(**changes)


class Spy(nn.Module):
    """Predicts half of what it is given and keeps its inputs."""

    def forward(
        self, x: Tensor, t: Tensor, states: Tensor, mask: Tensor, ids: Tensor, styles: Tensor
    ) -> Tensor:
        self.seen = (x, t, states, mask, ids, styles)
        return 0.5 * x


def test_flow_loss_is_the_formula() -> None:
    spy, batch = Spy(), make_batch()
    output = flow_loss(spy, Encoder(), settings(weight_clip=10.0), CPU)(
        batch, torch.Generator().manual_seed(3)
    )
    x, t, states, mask, _, styles = spy.seen
    noise = (x - (1 - t)[:, None, None, None] * batch.pixels) / t[:, None, None, None]
    assert noise.mean().abs() < 0.2
    assert 0.8 < noise.std() < 1.2
    errors = (0.5 * x - batch.pixels).square().flatten(1).mean(1)
    weights = torch.minimum(1 / t.square(), torch.tensor(10.0))
    assert output.loss.item() == pytest.approx((errors * weights).mean().item(), rel=1e-5)
    assert states.flatten().tolist() == [float(n) for n in range(8)]
    assert mask.all()
    assert styles.tolist() == list(range(8))
    for number in range(4):
        inside = (t >= number / 4) & (t < (number + 1) / 4)
        total, count = output.figures[f"mse/t{number}"]
        assert count == inside.sum()
        assert total.item() == pytest.approx(errors[inside].sum().item(), rel=1e-5, abs=1e-6)


def test_the_weight_makes_it_the_velocity_loss() -> None:
    """Where 1/t^2 is below the clip, the loss is the mean square error of v = (x_t - x0) / t = noise - x0."""
    spy, batch = Spy(), make_batch(64)
    output = flow_loss(spy, Encoder(), settings(weight_clip=1e6), CPU)(
        batch, torch.Generator().manual_seed(4)
    )
    x, t, *_ = spy.seen
    level = t[:, None, None, None]
    noise = (x - (1 - level) * batch.pixels) / level
    velocity = (x - 0.5 * x) / level
    expected = (velocity - (noise - batch.pixels)).square().mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_network_that_knows_the_picture_has_no_loss() -> None:
    batch = make_batch()
    output = flow_loss(lambda *_: batch.pixels, Encoder(), settings(), CPU)(
        batch, torch.Generator().manual_seed(5)
    )
    assert output.loss.item() == 0.0


def test_the_encoder_gets_no_gradient() -> None:
    weight = nn.Parameter(torch.ones(1))
    own = nn.Parameter(torch.ones(1))

    def encode(prompts: list[str]) -> Any:
        return SimpleNamespace(
            states=torch.ones(len(prompts), 1, 1) * weight,
            mask=torch.ones(len(prompts), 1, dtype=torch.bool),
            ids=torch.ones(len(prompts), 1, dtype=torch.long),
        )

    def model(x: Tensor, t: Tensor, states: Tensor, *rest: Tensor) -> Tensor:
        return x * own * states[:, :, :, None]

    output = flow_loss(model, encode, settings(), CPU)(make_batch(), torch.Generator().manual_seed(1))
    output.loss.backward()
    assert weight.grad is None
    assert own.grad is not None


@pytest.mark.parametrize(("mean", "std", "share"), [(0.0, 1.0, 0.0), (0.4, 1.0, 0.15), (-1.0, 0.5, 0.5)])
def test_levels_follow_the_mixture(mean: float, std: float, share: float) -> None:
    """Kolmogorov-Smirnov against the closed form; 1.95 / sqrt(n) is the 0.1 % point."""
    count = 20_000
    objective = settings(logit_mean=mean, logit_std=std, uniform_share=share)
    levels = draw_levels(count, objective, torch.Generator().manual_seed(2)).double().sort().values
    logits = torch.log(levels / (1 - levels))
    cdf = (1 - share) * 0.5 * (1 + torch.erf((logits - mean) / (std * math.sqrt(2)))) + share * levels
    steps = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert (cdf - steps).abs().max().item() < 1.95 / math.sqrt(count)
    assert levels.min() >= 0
    assert levels.max() <= 1


def test_held_out_loss_is_the_same_every_time_and_the_mean_of_its_bins() -> None:
    batches = [make_batch(8, 1), make_batch(4, 2)]
    measure = held_out_flow_loss(Encoder(), batches, CPU, seed=9)
    first, second = measure(Spy()), measure(Spy())
    assert first == second
    assert set(first) == {"held_out/mse", *(f"held_out/mse/t{n}" for n in range(4))}
    assert first["held_out/mse"] == pytest.approx(sum(first[f"held_out/mse/t{n}"] for n in range(4)) / 4)
    # Half of x_t errs by var(x0) (1 + t)^2 / 4 + t^2 / 4 on average; numbers even in [-1, 1] have var 1/3.
    for number in range(4):
        t = torch.linspace(number / 4, (number + 1) / 4, 1001)
        expected = ((1 + t) ** 2 / 12 + t**2 / 4).mean().item()
        assert first[f"held_out/mse/t{number}"] == pytest.approx(expected, rel=0.25)


def test_upsampler_loss_is_the_formula() -> None:
    batch = make_batch(4)
    seen: list[Tensor] = []

    def enlarge(small: Tensor) -> Tensor:
        seen.append(small)
        return functional.interpolate(small, scale_factor=2)

    objective = UpsamplerObjective(edge_weight=0.5, noise=0.0)
    output = upsampler_loss(enlarge, 2, objective, CPU)(batch, torch.Generator().manual_seed(0))
    large = batch.pixels
    small = large.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    assert torch.allclose(seen[0], small, atol=1e-6)
    drawn = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    across = ((drawn.diff(dim=3)) - large.diff(dim=3)).abs().mean()
    down = ((drawn.diff(dim=2)) - large.diff(dim=2)).abs().mean()
    expected = (drawn - large).abs().mean() + 0.5 * (across + down)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    noisy = UpsamplerObjective(noise=0.3)
    upsampler_loss(enlarge, 2, noisy, CPU)(batch, torch.Generator().manual_seed(0))
    difference = seen[1] - small
    assert 0 < difference.abs().max() < 0.3 * 5
    assert difference.flatten(1).std(1).max() <= 0.3 * 1.3


def test_upsampler_loss_over_two_passes_compares_every_size() -> None:
    batch = make_batch(2)

    def enlarge(small: Tensor) -> Tensor:
        return functional.interpolate(small, scale_factor=2) + 0.25

    objective = UpsamplerObjective(edge_weight=0.0, noise=0.0, passes=2)
    output = upsampler_loss(enlarge, 2, objective, CPU)(batch, torch.Generator().manual_seed(0))
    half = functional.avg_pool2d(batch.pixels, 2)
    first = functional.interpolate(functional.avg_pool2d(half, 2), scale_factor=2) + 0.25
    second = functional.interpolate(first, scale_factor=2) + 0.25  # the network's own output is enlarged
    expected = ((first - half).abs().mean() + (second - batch.pixels).abs().mean()) / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
