"""Optimizer, learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from vitrail.recipe import OptimSection

__all__ = ["Ema", "adamw", "learning_rate", "trainable"]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``module`` that take a gradient, in their fixed order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adamw(parameters: Iterable[nn.Parameter], settings: OptimSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101); matrices and kernels decay, vectors do not."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in every)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.lr, betas=settings.betas, fused=fused
    )


def learning_rate(settings: OptimSection) -> Callable[[int, float], float]:
    """Return the learning rate as a function of (pictures seen, share of the run done in [0, 1]).

    A linear rise over ``warmup_images``, then a fall over the whole run to ``final_share`` of the rate.
    Under a time budget the share is elapsed time over budget, so the fall ends with the budget on a slow
    and a fast machine.
    """
    shapes: dict[str, Callable[[float], float]] = {
        "none": lambda share: 1.0,
        "linear": lambda share: 1.0 - share,
        "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
    }
    shape = shapes[settings.decay]

    def rate(images: int, share: float) -> float:
        rise = min(1.0, (images + 1) / (settings.warmup_images + 1))
        floor = 1.0 if settings.decay == "none" else settings.final_share
        return settings.lr * rise * (floor + (1.0 - floor) * shape(min(max(share, 0.0), 1.0)))

    return rate


class Ema:
    """Moving average of a module's parameters in float32, with a half-life counted in pictures.

    After ``n`` more pictures an old weight counts ``0.5 ** (n / half_life)``. The half-life never exceeds
    ``ramp`` times the pictures seen so far (EDM2's ramp-up, Karras et al., arXiv:2312.02696, code), so the
    random start is forgotten and a short run, or one under a time budget of unknown speed, has an average
    that fits its length.

    Parameters
    ----------
    module: whose parameters are followed; the average starts as a copy of them.
    half_life_images, ramp: see above.
    """

    def __init__(self, module: nn.Module, half_life_images: float, ramp: float = 0.1) -> None:
        self.half_life_images = float(half_life_images)
        self.ramp = float(ramp)
        self.shadow: dict[str, Tensor] = {
            name: value.detach().float().clone(memory_format=torch.preserve_format)
            for name, value in module.named_parameters()
        }

    def decay(self, batch: int, images_seen: int) -> float:
        """Return the factor of the old average for a step of ``batch`` pictures ending at ``images_seen``."""
        half_life = min(self.half_life_images, self.ramp * images_seen)
        return float(0.5 ** (batch / half_life)) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, module: nn.Module, batch: int, images_seen: int) -> None:
        """Move the average towards ``module`` after a step of ``batch`` pictures up to ``images_seen``."""
        current = [value.detach().float() for value in module.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), current, 1.0 - self.decay(batch, images_seen))

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into ``module``, rounded to its precision. Buffers stay as they are."""
        for name, value in module.named_parameters():
            value.copy_(self.shadow[name])

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """Give ``module`` the averaged weights, in evaluation mode, for the block; then put all back."""
        kept = {name: value.detach().clone() for name, value in module.named_parameters()}
        was_training = module.training
        self.copy_to(module)
        module.eval()
        try:
            yield module
        finally:
            with torch.no_grad():
                for name, value in module.named_parameters():
                    value.copy_(kept[name])
            module.train(was_training)
