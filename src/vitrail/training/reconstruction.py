"""How far a reconstruction is from its picture: pixels, edges, and the features of a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.kernels.training import train_fast
from vitrail.models.perceptual import load_efficientnet, load_lpips
from vitrail.recipe.adversarial import ReconstructionObjective

__all__ = [
    "Perceptual",
    "coloured",
    "feature_distance",
    "load_perceptual",
    "psnr",
    "reconstruction_loss",
    "sobel_error",
]

#: Two batches of pictures (B, C, H, W) in [-1, 1] -> their distances (B,).
Perceptual: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def load_perceptual(objective: ReconstructionObjective, device: torch.device) -> Perceptual | None:
    """Load the frozen network that ``objective.perceptual`` names; None for "none".

    Raises :class:`DataError` (with the command that fetches it) if it is not on this machine.
    """
    if objective.perceptual == "none":
        return None
    if objective.perceptual == "lpips":
        lpips = load_lpips().to(device)
        if device.type == "cpu":
            lpips = lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            train_fast(lpips)
        return lambda a, b: lpips(coloured(a), coloured(b))
    network = load_efficientnet().to(device)
    return lambda a, b: feature_distance(network.features(coloured(a)), network.features(coloured(b)))


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of features, each level over its own mean size in ``second``; (B,).

    Levels have sizes of their own kind, so each is measured against what it is on the pictures themselves.
    """
    total = first[0].new_zeros(len(first[0]), dtype=torch.float32)
    for ours, theirs in zip(first, second, strict=True):
        theirs = theirs.detach().float()
        size = theirs.abs().mean(dim=(1, 2, 3)).clamp_min(1e-6)
        total = total + (ours.float() - theirs).abs().mean(dim=(1, 2, 3)) / size
    return total / len(first)


def sobel_error(difference: Tensor) -> Tensor:
    """Mean absolute Sobel response of a difference of pictures (B, C, H, W), both directions; (B,).

    The operator is linear, so this is the difference of the two pictures' edges. Kernels are divided by 4:
    a step of height 1 answers 1.
    """
    smooth = difference.new_tensor([1.0, 2.0, 1.0])
    slope = difference.new_tensor([-1.0, 0.0, 1.0])
    channels = difference.shape[1]
    across = (torch.outer(smooth, slope) / 4.0).expand(channels, 1, 3, 3)
    padded = functional.pad(difference, (1, 1, 1, 1), mode="replicate")
    total = functional.conv2d(padded, across, groups=channels).abs().mean(dim=(1, 2, 3))
    down = across.transpose(2, 3)
    return total + functional.conv2d(padded, down, groups=channels).abs().mean(dim=(1, 2, 3))


def reconstruction_loss(
    objective: ReconstructionObjective, perceptual: Perceptual | None, made: Tensor, pixels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of reconstructions ``made`` of ``pixels``, (B,) float32, and its terms by name.

    loss = l1 mean|d| + l2 mean d^2 + edge mean|Sobel d| + perceptual_weight P(made, pixels)

    With ``perceptual_share`` s below 1 the last term is there for the first s B pictures alone, 1/s times as
    heavy: its mean over batches is the same. That term has as many values as pictures compared.
    """
    difference = made.float() - pixels.float()
    terms = {"l1": difference.abs().mean(dim=(1, 2, 3))}
    total = objective.l1 * terms["l1"]
    if objective.l2 > 0:
        terms["l2"] = difference.square().mean(dim=(1, 2, 3))
        total = total + objective.l2 * terms["l2"]
    if objective.edge > 0:
        with torch.autocast(difference.device.type, enabled=False):
            terms["edge"] = sobel_error(difference)
        total = total + objective.edge * terms["edge"]
    if perceptual is not None and objective.perceptual_weight > 0:
        count = max(1, round(objective.perceptual_share * len(pixels)))
        terms[objective.perceptual] = perceptual(made[:count], pixels[:count]).float()
        weighed = objective.perceptual_weight * len(pixels) / count * terms[objective.perceptual]
        total = total + functional.pad(weighed, (0, len(pixels) - count))
    return total, terms


def psnr(made: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in [-1, 1], in decibels, (B,); ``made`` is clamped first."""
    error = (made.float().clamp(-1.0, 1.0) - pixels.float()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(4.0 / error.clamp_min(1e-12))


def coloured(x: Tensor) -> Tensor:
    """Pictures of one channel as grey ones of three."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
