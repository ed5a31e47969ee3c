"""Adversarial losses, penalties, weights and their balance against closed forms and plain autograd."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.recipe import AdversarialObjective, parse_recipe
from vitrail.training.adversarial import (
    LOSSES,
    Balance,
    adaptive_weight,
    gradient_penalty,
    lecam,
    ramp,
    zero_centred_penalty,
)

REAL = torch.tensor([2.0, 0.5, -1.0])
MADE = torch.tensor([-3.0, 0.5, 1.5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hinge_is_the_formula() -> None:
    # real: max(0, 1 - r) = 0, 0.5, 2; made: max(0, 1 + m) = 0, 1.5, 2.5
    assert LOSSES["hinge"].discriminator(REAL, MADE).item() == pytest.approx(0.5 * (2.5 / 3 + 4.0 / 3))
    assert LOSSES["hinge"].maker(REAL, MADE).item() == pytest.approx(-(-3.0 + 0.5 + 1.5) / 3)


def test_vanilla_is_binary_cross_entropy() -> None:
    ones, zeros = torch.ones(3), torch.zeros(3)
    cross = functional.binary_cross_entropy_with_logits
    wanted = 0.5 * (cross(REAL, ones) + cross(MADE, zeros))
    assert LOSSES["vanilla"].discriminator(REAL, MADE).item() == pytest.approx(wanted.item())
    assert LOSSES["vanilla"].maker(REAL, MADE).item() == pytest.approx(cross(MADE, ones).item())


def test_relativistic_compares_pairs() -> None:
    gaps = [5.0, 0.0, -2.5]
    wanted = sum(math.log1p(math.exp(-gap)) for gap in gaps) / 3
    assert LOSSES["relativistic"].discriminator(REAL, MADE).item() == pytest.approx(wanted)
    wanted = sum(math.log1p(math.exp(gap)) for gap in gaps) / 3
    assert LOSSES["relativistic"].maker(REAL, MADE).item() == pytest.approx(wanted)
    assert LOSSES["relativistic"].paired


def test_wasserstein_is_the_difference_of_means() -> None:
    loss = LOSSES["wgan_gp"]
    assert loss.discriminator(REAL, MADE).item() == pytest.approx(MADE.mean().item() - REAL.mean().item())
    assert loss.maker(REAL, MADE).item() == pytest.approx(-MADE.mean().item())


@pytest.mark.parametrize("name", ["hinge", "vanilla", "relativistic"])
def test_chance_is_the_loss_of_a_discriminator_that_knows_nothing(name: str) -> None:
    blank = torch.zeros(4, 1, 2, 2)
    assert LOSSES[name].discriminator(blank, blank).item() == pytest.approx(LOSSES[name].chance)


def test_penalty_of_a_linear_discriminator_is_half_its_squared_weight() -> None:
    weight = torch.randn(3, 4, 4, generator=generator(), requires_grad=True)
    penalty = zero_centred_penalty(
        lambda x: (x * weight).flatten(1).sum(1), torch.randn(5, 3, 4, 4), generator()
    )
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, weight.detach())  # d(|w|^2 / 2)/dw = w


def test_penalty_of_patches_estimates_the_mean_over_patches() -> None:
    """Overlapping patches: random signs must give the mean of each patch's own squared gradient."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 1, 3)
    pictures = torch.randn(3, 2, 6, 6)
    estimates = [zero_centred_penalty(layer, pictures, generator(seed)).item() for seed in range(400)]
    wanted = 0.5 * layer.weight.square().sum().item()  # every patch sees the same weights
    spread = torch.tensor(estimates).std().item() / 20
    assert torch.tensor(estimates).mean().item() == pytest.approx(wanted, abs=4 * spread)


def test_wgan_penalty_of_a_linear_discriminator() -> None:
    weight = torch.full((1, 2, 2), 1.5)
    real, made = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, made, generator())
    assert penalty.item() == pytest.approx((math.sqrt(4 * 1.5**2) - 1.0) ** 2, rel=1e-4)


def test_wgan_penalty_is_taken_between_the_pairs() -> None:
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().flatten(1).sum(1)

    real, made = torch.ones(64, 1, 1, 1), -torch.ones(64, 1, 1, 1)
    gradient_penalty(look, real, made, generator())
    assert seen[0].min() > -1
    assert seen[0].max() < 1
    assert abs(seen[0].mean().item()) < 0.2


def test_penalties_are_float32_under_autocast() -> None:
    layer = nn.Conv2d(1, 1, 3)
    kinds: list[torch.dtype] = []

    def look(x: Tensor) -> Tensor:
        out: Tensor = layer(x)
        kinds.append(out.dtype)
        return out

    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(1, 1, 4, 4)).dtype == torch.bfloat16
        zero_centred_penalty(look, torch.randn(2, 1, 4, 4), generator())
        gradient_penalty(look, torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), generator())
    assert kinds == [torch.float32] * 2


def test_lecam_pulls_only_what_is_beyond_the_other_kind() -> None:
    real, made = torch.tensor([1.0, -2.0]), torch.tensor([3.0, -1.0])
    # relu(real - (-0.5))^2 = 2.25, 0; relu(0.5 - made)^2 = 0, 2.25
    pull = lecam(real, made, torch.tensor(0.5), torch.tensor(-0.5))
    assert pull.item() == pytest.approx(2.25 / 2 + 2.25 / 2)


def test_adaptive_weight_is_the_clamped_ratio_of_lengths() -> None:
    ours, theirs = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.1])
    assert adaptive_weight(ours, theirs).item() == pytest.approx(5.0 / (0.1 + 1e-4), rel=1e-5)
    assert adaptive_weight(ours, torch.zeros(2)).item() == 1e4  # taming's clamp
    assert adaptive_weight(ours, torch.zeros(2), 7.0).item() == 7.0


def test_ramp_rises_smoothly_from_nothing_to_all() -> None:
    values = [ramp(images, 1000, 400) for images in range(900, 1500, 10)]
    assert values[:11] == [0.0] * 11
    assert values[-10:] == [1.0] * 10
    assert values == sorted(values)
    assert ramp(1200, 1000, 400) == pytest.approx(0.5)
    assert max(b - a for a, b in pairwise(values)) < 0.04
    assert [ramp(images, 1000, 0) for images in (999, 1000)] == [0.0, 1.0]


def test_running_means_start_at_the_first_logits_and_halve_by_pictures() -> None:
    balance = Balance(torch.device("cpu"))
    balance.follow(torch.full((4,), 2.0), torch.full((4,), -2.0), 8, 8.0)
    assert (balance.mean_real.item(), balance.mean_made.item()) == (2.0, -2.0)
    balance.follow(torch.zeros(4), torch.zeros(4), 8, 8.0)
    assert (balance.mean_real.item(), balance.mean_made.item()) == (1.0, -1.0)
    assert int(balance.turns) == 2


def test_the_penalty_is_steered_into_the_band() -> None:
    """A toy player whose gap is inversely proportional to the penalty: the controller finds the band."""
    balance = Balance(torch.device("cpu"))
    for _ in range(1500):
        balance.mean_real.fill_(8.0 / float(balance.penalty_share))
        balance.steer_penalty((0.5, 1.0))
    assert 0.45 < float(balance.mean_real) < 1.05
    for _ in range(4000):
        balance.mean_real.fill_(0.01)
        balance.steer_penalty((0.5, 1.0))
    assert float(balance.penalty_share) == pytest.approx(1e-3)  # and stops at its lowest value


def test_the_guard_halves_while_worse_and_lets_go_when_better() -> None:
    settings = AdversarialObjective(start_images=1000, guard_tolerance=0.02)
    balance = Balance(torch.device("cpu"))
    balance.images.fill_(500)
    assert balance.watch(0.30, settings) == ""
    balance.images.fill_(1000)
    assert balance.watch(0.20, settings) == ""
    balance.images.fill_(1100)
    assert balance.watch(0.203, settings) == ""  # within the tolerance
    assert float(balance.guard) == 1.0
    told = balance.watch(0.22, settings)
    assert "10.0 % worse" in told
    assert float(balance.guard) == 0.5
    balance.watch(0.21, settings)
    assert float(balance.guard) == 0.25
    assert float(balance.best) == pytest.approx(0.20)  # what was before the start, not the latest
    for _ in range(20):
        balance.watch(0.19, settings)
    assert float(balance.guard) == 1.0


def test_balance_survives_a_state_dict() -> None:
    first, second = Balance(torch.device("cpu")), Balance(torch.device("cpu"))
    first.follow(torch.ones(2), -torch.ones(2), 4, 10.0)
    first.images += 12345678
    first.guard.fill_(0.25)
    second.load_state_dict(first.state_dict())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"loss": "wgan_gp", "penalty": "none"}, "no meaning without a penalty"),
        ({"gap": [1.0, 0.5], "penalty": "r1"}, "a lower and an upper end"),
        ({"gap": [0.5, 1.0]}, "penalty to r1"),
        ({"loss": "hing"}, "hinge"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(table: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_recipe({"kind": "autoencoder", "optim": {"until_images": 8}, "adversary": table})
    assert "\n" not in str(caught.value)


def test_penalties_that_belong_to_a_loss() -> None:
    assert AdversarialObjective().penalised == "none"
    assert AdversarialObjective(loss="relativistic").penalised == "r1_r2"
    assert AdversarialObjective(loss="wgan_gp").penalised == "wgan_gp"
    assert AdversarialObjective(loss="hinge", penalty="r1").penalised == "r1"
