"""Adversarial losses, gradient penalties, the adaptive weight, LeCAM, and the state that balances them.

Logits are tensors of any shape whose first axis counts pictures: one number a picture, or one a patch.
Penalties differentiate twice and are computed in float32 whatever the run's precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.recipe.adversarial import AdversarialObjective

__all__ = [
    "LOSSES",
    "AdversarialLoss",
    "Balance",
    "adaptive_weight",
    "gradient_penalty",
    "lecam",
    "ramp",
    "zero_centred_penalty",
]

#: Steps over which the controller of the penalty's weight doubles or halves it, at most.
PENALTY_DOUBLING_STEPS = 200
PENALTY_RANGE = (1e-3, 1e3)  #: of the weight over the recipe's


class TwoPlayers(Protocol):
    """(logits of real pictures, logits of made ones) -> a player's loss, scalar."""

    def __call__(self, real: Tensor, made: Tensor, /) -> Tensor: ...


class AdversarialLoss(NamedTuple):
    """The two players' losses.

    ``paired``: the maker's loss needs the logits of real pictures too.
    ``chance``: the discriminator's loss when it knows nothing, or None where that is no measure.
    """

    discriminator: TwoPlayers
    maker: TwoPlayers
    paired: bool
    chance: float | None


def _hinge_d(real: Tensor, made: Tensor) -> Tensor:
    return 0.5 * (functional.relu(1.0 - real).mean() + functional.relu(1.0 + made).mean())


def _vanilla_d(real: Tensor, made: Tensor) -> Tensor:
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(made).mean())


def _minus_mean(real: Tensor, made: Tensor) -> Tensor:
    return -made.mean()


#: Losses by name.
#:
#: hinge: Lim & Ye, arXiv:1705.02894; Miyato et al., arXiv:1802.05957, eq. 16-17; halved as in taming.
#: vanilla: Goodfellow et al., arXiv:1406.2661; the maker's is the non-saturating one of section 3.
#: wgan_gp: Gulrajani et al., arXiv:1704.00028, eq. 3 without its penalty, which is added separately.
#: relativistic: Huang et al. (R3GAN), arXiv:2501.05441, eq. 2-3: each logit against that of its pair. Here
#: the pair is a picture and its own reconstruction, patch by patch.
LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(_hinge_d, _minus_mean, False, 1.0),
    "vanilla": AdversarialLoss(
        _vanilla_d, lambda real, made: functional.softplus(-made).mean(), False, 0.6931471805599453
    ),
    "wgan_gp": AdversarialLoss(lambda real, made: made.mean() - real.mean(), _minus_mean, False, None),
    "relativistic": AdversarialLoss(
        lambda real, made: functional.softplus(made - real).mean(),
        lambda real, made: functional.softplus(real - made).mean(),
        True,
        0.6931471805599453,
    ),
}


@contextlib.contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False):
        yield


def zero_centred_penalty(
    discriminator: Callable[[Tensor], Tensor], pictures: Tensor, generator: torch.Generator
) -> Tensor:
    """Half the mean squared length of the gradient of a logit in its picture: R1 on real pictures
    (Mescheder et al., arXiv:1801.04406, eq. 9), R2 on made ones.

    For several logits a picture, the mean over them is estimated from one backward pass with random signs s:
    E |grad sum_p s_p D_p|^2 = sum_p |grad D_p|^2 (Hutchinson). One logit a picture is exact.
    """
    with _float32(pictures.device), torch.enable_grad():
        x = pictures.detach().float().requires_grad_(True)
        logits = discriminator(x).float()
        patches = logits[0].numel()
        signs = 1.0
        if patches > 1:
            drawn = torch.randint(0, 2, logits.shape, generator=generator, device=generator.device)
            signs = (2 * drawn - 1).to(logits)  # type: ignore[assignment]
        (gradient,) = torch.autograd.grad((logits * signs).sum(), x, create_graph=True)
        return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean() / patches


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, generator: torch.Generator
) -> Tensor:
    """WGAN-GP (arXiv:1704.00028, algorithm 1): mean of (|grad D(x)| - 1)^2 at random points between pairs.

    D of a picture is the mean of its logits.
    """
    with _float32(real.device), torch.enable_grad():
        share = torch.rand((len(real), 1, 1, 1), generator=generator, device=generator.device).to(real.device)
        x = torch.lerp(made.detach().float(), real.detach().float(), share).requires_grad_(True)
        logits = discriminator(x).float().reshape(len(x), -1).mean(1)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        # A length of exactly 0 has no slope: the tiny number keeps the second derivative finite.
        length = (gradient.square().sum(dim=(1, 2, 3)) + 1e-12).sqrt()
        penalty: Tensor = (length - 1.0).square().mean()
        return penalty


def lecam(real: Tensor, made: Tensor, mean_real: Tensor, mean_made: Tensor) -> Tensor:
    """LeCAM (Tseng et al., arXiv:2104.03310, eq. 4): logits are pulled to the other kind's running mean.

    One-sided, as in its authors' code: only logits beyond that mean are pulled.
    """
    return (
        functional.relu(real - mean_made).square().mean() + functional.relu(mean_real - made).square().mean()
    )


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, largest: float = 1e4) -> Tensor:
    """VQGAN's lambda (Esser et al., arXiv:2012.09841, eq. 7): the ratio of the lengths of two gradients at
    the decoder's last layer, |reconstruction| / (|adversarial| + 1e-4), clamped to [0, largest].
    """
    ratio: Tensor = reconstruction.float().norm() / (adversarial.float().norm() + 1e-4)
    return ratio.clamp(0.0, largest).detach()


def ramp(images: int, start: int, length: int) -> float:
    """Return how much the discriminator counts after ``images`` pictures: 0 up to ``start``, then a smooth
    rise (3 s^2 - 2 s^3) to 1 over ``length`` pictures.
    """
    if images < start:
        return 0.0
    share = 1.0 if length == 0 else min(1.0, (images - start) / length)
    return share * share * (3.0 - 2.0 * share)


class Balance(nn.Module):
    """What balances the two players and must survive a checkpoint. It has no parameters.

    Counters live on the CPU, running means where the networks are.
    """

    images: Tensor
    turns: Tensor
    mean_real: Tensor
    mean_made: Tensor
    guard: Tensor
    penalty_share: Tensor
    best: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        for name in ("images", "turns"):  # pictures seen; steps of the discriminator
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        for name, value in (
            ("mean_real", 0.0),  # running mean logits, for LeCAM and the controller
            ("mean_made", 0.0),
            ("penalty_share", 1.0),  # weight of the penalty over the recipe's
            ("guard", 1.0),  # factor on the adversarial weight
        ):
            self.register_buffer(name, torch.full((), value, device=device))
        # Best held-out distance so far, before the discriminator counted; 0: not measured.
        self.register_buffer("best", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def follow(self, real: Tensor, made: Tensor, batch: int, half_life: float) -> None:
        """Move the running mean logits; the first step sets them."""
        keep = 0.5 ** (batch / half_life) if int(self.turns) else 0.0
        self.mean_real.mul_(keep).add_(real.detach().float().mean(), alpha=1.0 - keep)
        self.mean_made.mul_(keep).add_(made.detach().float().mean(), alpha=1.0 - keep)
        self.turns += 1

    @torch.no_grad()
    def steer_penalty(self, band: tuple[float, float]) -> None:
        """Raise the penalty's weight while the gap of mean logits is above ``band``, lower it below."""
        gap = self.mean_real - self.mean_made
        direction = (gap > band[1]).float() - (gap < band[0]).float()
        step = 2.0 ** (direction / PENALTY_DOUBLING_STEPS)
        self.penalty_share.mul_(step).clamp_(*PENALTY_RANGE)

    @torch.no_grad()
    def watch(self, distance: float, settings: AdversarialObjective) -> str:
        """Take a held-out distance (lower is better) and move :attr:`guard`; returns "" or what was done.

        Before the discriminator counts, the best distance is remembered. Afterwards the weight is halved at
        every measurement that is worse by more than the tolerance, and let back up by a quarter at every
        one that is better than the best.
        """
        if int(self.images) <= settings.start_images or self.best == 0.0:
            before = float(self.best)
            self.best.fill_(distance if before == 0.0 else min(before, distance))
            return ""
        best = float(self.best)
        if distance > best * (1.0 + settings.guard_tolerance):
            self.guard.mul_(0.5)
            return (
                f"held-out distance {distance:.4f} is {100 * (distance / best - 1):.1f} % worse than before "
                f"the discriminator counted: its weight was halved to {float(self.guard):.3g} of "
                f"adversary.weight"
            )
        if distance < best:
            self.guard.mul_(1.25).clamp_max_(1.0)
        return ""
