"""DiffAugment: same change for a pair, exact moves and holes, gradients that pass."""

from __future__ import annotations

import pytest
import torch

from vitrail.training.augment import CHANGES, diff_augment, draw_augmentation

CPU = torch.device("cpu")


def pictures(count: int = 4, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_fixed_once_drawn_and_differs_by_picture(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    change = draw_augmentation([name], 4, (16, 16), generator, CPU)
    same = pictures(1).expand(4, -1, -1, -1)
    once = change(same)
    assert torch.equal(once, change(same))
    assert once.shape == same.shape
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once, draw_augmentation([name], 4, (16, 16), generator, CPU)(same))


def test_nothing_asked_is_nothing_done() -> None:
    assert torch.equal(diff_augment(pictures(), (), torch.Generator()), pictures())


def test_translation_moves_by_whole_pixels_and_fills_with_zero() -> None:
    x = pictures(64)
    moved = diff_augment(x, ["translation"], torch.Generator().manual_seed(3))
    found = set()
    for before, after in zip(x, moved, strict=True):
        matches = []
        for down in range(-2, 3):
            for across in range(-2, 3):
                wanted = torch.zeros_like(before)
                rows = slice(max(0, -down), 16 - max(0, down))
                columns = slice(max(0, -across), 16 - max(0, across))
                from_rows = slice(max(0, down), 16 - max(0, -down))
                from_columns = slice(max(0, across), 16 - max(0, -across))
                wanted[:, rows, columns] = before[:, from_rows, from_columns]
                if torch.equal(wanted, after):
                    matches.append((down, across))
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 15  # of the 25 moves of up to an eighth of 16 pixels
    assert max(max(abs(a), abs(b)) for a, b in found) == 2


def test_cutout_leaves_a_square_hole() -> None:
    x = torch.ones(64, 3, 16, 16)
    holes = (diff_augment(x, ["cutout"], torch.Generator().manual_seed(3)) == 0).float()
    assert torch.equal(holes[:, :1].expand_as(holes), holes)
    areas = holes[:, 0].sum(dim=(1, 2))
    assert areas.max() == 64  # 8 x 8, cut off at the edges elsewhere
    assert areas.min() >= 16
    rows, columns = holes[:, 0].amax(2).sum(1), holes[:, 0].amax(1).sum(1)
    assert torch.equal(rows * columns, areas)


def test_colour_keeps_what_it_must() -> None:
    x = pictures(32)
    changed = diff_augment(x, ["colour"], torch.Generator().manual_seed(3))
    # Brightness moves the mean by up to 0.5; saturation and contrast keep it.
    moved = (changed - x).mean(dim=(1, 2, 3))
    assert moved.abs().max() <= 0.5
    assert moved.std() > 0.2
    # A grey picture stays grey.
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    out = diff_augment(grey, ["colour"], torch.Generator().manual_seed(3))
    torch.testing.assert_close(out, out.mean(1, keepdim=True).expand_as(out), atol=1e-5, rtol=0)


def test_gradients_pass_through_all_changes() -> None:
    x = pictures().double().requires_grad_(True)
    change = draw_augmentation(list(CHANGES), 4, (16, 16), torch.Generator().manual_seed(0), CPU)
    weights = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (slope,) = torch.autograd.grad((change(x) * weights).sum(), x)
    step = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():  # the changes are affine, so a finite difference is exact
        difference = ((change(x + step) - change(x)) * weights).sum()
    assert difference.item() == pytest.approx((slope * step).sum().item(), rel=1e-6)
