"""The memorisation ratio on point sets whose ratios are known, and the figure of neighbours."""

from __future__ import annotations

import pytest
import torch

from vitrail.errors import InputError
from vitrail.evaluation.memorisation import Neighbours, memorisation, neighbours_figure, pixel_features


def line(count: int = 201) -> torch.Tensor:
    """Points 0, 1, 2, ... on a line in the plane."""
    return torch.stack([torch.arange(count, dtype=torch.float32), torch.zeros(count)], dim=1)


def test_ratio_on_a_line_is_known() -> None:
    # Around an inner point the 50 nearest are 1..25 on both sides: mean distance 2 * (1 + ... + 25) / 50 =
    # 13.
    queries = torch.tensor([[100.25, 0.0], [60.0, 13.0], [120.0, 0.0]])
    found = memorisation(queries, line())
    assert found.ratios.tolist() == pytest.approx([0.25 / 13, 1.0, 0.0], abs=1e-6)
    assert found.nearest[:, 0].tolist() == [100, 60, 120]
    assert found.nearest[0].tolist()[:3] == [100, 101, 99]
    assert found.mean.value == pytest.approx((0.25 / 13 + 1.0) / 3, abs=1e-6)
    assert found.mean.n == 3
    assert found.share_below(0.5) == pytest.approx(2 / 3)


def test_near_copies_score_far_below_new_points() -> None:
    draw = torch.Generator().manual_seed(0)
    train, new = torch.randn(400, 8, generator=draw), torch.randn(60, 8, generator=draw)
    copies = train[:60] + 0.01 * torch.randn(60, 8, generator=draw)
    assert memorisation(copies, train).mean.high < 0.1 < 0.5 < memorisation(new, train).mean.low


def test_a_neighbourhood_of_equal_pictures_has_a_ratio_too() -> None:
    train = torch.cat([torch.zeros(60, 2), line(20) + 50])
    found = memorisation(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), train)
    assert found.ratios.tolist() == [0.0, 1.0]


def test_refusals() -> None:
    with pytest.raises(InputError, match="more than 50"):
        Neighbours(line(50))
    with pytest.raises(InputError, match="queries"):
        memorisation(torch.zeros(3, 5), line())
    with pytest.raises(InputError, match="NaN"):
        memorisation(torch.full((1, 2), float("nan")), line())


def test_pixel_features_are_block_means() -> None:
    picture = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(1, 3, 32, 32)
    found = pixel_features(picture, side=16).reshape(1, 3, 16, 16)
    assert found[0, 0, 0, 0].item() == pytest.approx((0 + 1 + 32 + 33) / 4)
    assert found.shape == (1, 3, 16, 16)


def test_figure_shows_each_sample_before_its_neighbours() -> None:
    train = torch.linspace(-1, 1, 60)[:, None, None, None].expand(60, 3, 32, 32)
    samples = train[[10, 40]] + 0.01
    found = memorisation(pixel_features(samples), pixel_features(train), shown=3)
    figure = neighbours_figure(samples, train, found, labels=["one", "two"])
    assert figure.width >= 8 * 128  # two samples a row, each with three neighbours
    assert 128 <= figure.height < 256
    assert len(figure.getcolors(maxcolors=100_000)) >= 4
    with pytest.raises(InputError, match="samples"):
        neighbours_figure(samples[:1], train, found)
