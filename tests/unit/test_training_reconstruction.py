"""Terms of the reconstruction loss against scikit-image and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from vitrail.recipe import ReconstructionObjective
from vitrail.training.reconstruction import feature_distance, psnr, reconstruction_loss, sobel_error


def pair(count: int = 3, side: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.rand(shape, generator=generator) * 2 - 1


def test_psnr_is_that_of_scikit_image() -> None:
    made, pixels = pair()
    for number, value in enumerate(psnr(made * 1.5, pixels).tolist()):
        wanted = peak_signal_noise_ratio(
            pixels[number].numpy().astype(np.float64),
            (made[number] * 1.5).clamp(-1, 1).numpy().astype(np.float64),
            data_range=2.0,
        )
        assert value == pytest.approx(wanted, rel=1e-5)


def test_sobel_of_a_step_is_its_height() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:] = 3.0
    # Two of eight columns answer 3 across, nothing answers down.
    assert sobel_error(x).item() == pytest.approx(3.0 * 2 / 8)
    assert sobel_error(x.transpose(2, 3)).item() == pytest.approx(3.0 * 2 / 8)
    assert sobel_error(torch.full((1, 2, 8, 8), 5.0)).item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_the_weighed_sum_of_its_terms() -> None:
    made, pixels = pair()
    objective = ReconstructionObjective(l1=2.0, l2=3.0, edge=0.5, perceptual_weight=7.0)
    loss, terms = reconstruction_loss(objective, lambda a, b: (a - b).mean(dim=(1, 2, 3)), made, pixels)
    difference = made - pixels
    wanted = (
        2.0 * difference.abs().mean(dim=(1, 2, 3))
        + 3.0 * difference.square().mean(dim=(1, 2, 3))
        + 0.5 * sobel_error(difference)
        + 7.0 * difference.mean(dim=(1, 2, 3))
    )
    torch.testing.assert_close(loss, wanted)
    assert set(terms) == {"l1", "l2", "edge", "lpips"}


def test_a_share_of_the_pictures_weighs_as_much_as_all() -> None:
    made, pixels = pair(8)
    same = made[:1].expand(8, -1, -1, -1), pixels[:1].expand(8, -1, -1, -1)
    whole = ReconstructionObjective()
    quarter = ReconstructionObjective(perceptual_share=0.25)
    counted: list[int] = []

    def look(a: Tensor, b: Tensor) -> Tensor:
        counted.append(len(a))
        return (a - b).square().mean(dim=(1, 2, 3))

    first, _ = reconstruction_loss(whole, look, *same)
    second, terms = reconstruction_loss(quarter, look, *same)
    assert counted == [8, 2]
    assert len(terms["lpips"]) == 2
    assert second.mean().item() == pytest.approx(first.mean().item(), rel=1e-6)


def test_features_are_measured_against_their_own_size() -> None:
    levels = [torch.full((2, 3, 4, 4), 10.0), torch.full((2, 5, 2, 2), 0.01)]
    off = [levels[0] * 1.5, levels[1] * 0.5]
    assert feature_distance(off, levels).tolist() == pytest.approx([0.5, 0.5])
    assert feature_distance(levels, levels).tolist() == [0.0, 0.0]
    assert math.isfinite(feature_distance(off, [torch.zeros(2, 3, 4, 4), levels[1]])[0].item())
