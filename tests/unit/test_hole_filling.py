"""Holes in photographs: every one is filled, nothing else is touched, and what is filled leaves no seam."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from photo_networks import tiny_migan
from torch import Tensor

from vitrail.backends.hole_filling import Window, _drawn, fill_holes, plan, spread
from vitrail.errors import InputError, NonFiniteError
from vitrail.models.migan import MIGAN


class Recorder(MIGAN):
    """A network of 16 px that draws one level everywhere and keeps what it was shown."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__(tiny_migan().config)
        self.level = level
        self.shown: list[tuple[Tensor, Tensor]] = []

    def forward(self, picture: Tensor, known: Tensor) -> Tensor:
        self.shown.append((picture.clone(), known.clone()))
        return torch.full_like(picture, self.level)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def covered(windows: list[Window], shape: tuple[int, int]) -> NDArray[np.int64]:
    count = np.zeros(shape, int)
    for window in windows:
        top, left, bottom, right = window.core
        count[top:bottom, left:right] += 1
    return count


BOXES = st.lists(
    st.tuples(st.integers(0, 1499), st.integers(0, 1499), st.integers(1, 700), st.integers(1, 700)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(BOXES, st.integers(20, 1500), st.integers(20, 1500))
def test_windows_cover_every_hole_and_show_its_surroundings(
    boxes: list[tuple[int, int, int, int]], height: int, width: int
) -> None:
    hole = np.zeros((height, width), bool)
    for top, left, tall, wide in boxes:
        top, left = top % height, left % width
        hole[top : top + tall, left : left + wide] = True
    windows = plan(hole, 512)
    assert (covered(windows, hole.shape)[hole] >= 1).all()
    for window in windows:
        top, left, bottom, right = window.view
        assert bottom - top == right - left >= 512
        for axis, length in enumerate(hole.shape):
            start, end = window.view[axis], window.view[axis + 2]
            # inside the picture wherever it is large enough, else around it
            assert (start >= 0 and end <= length) or end - start > length
            core = window.core[axis], window.core[axis + 2]
            for edge, border in ((core[0] - start, core[0]), (end - core[1], length - core[1])):
                assert edge >= min(border, 64)


def test_holes_far_apart_have_windows_of_their_own() -> None:
    hole = np.zeros((2000, 3000), bool)
    hole[100:140, 100:160] = hole[1800:1850, 2900:2990] = hole[150:180, 200:220] = True
    windows = plan(hole, 512)
    assert sorted(window.core for window in windows) == [(100, 100, 180, 220), (1800, 2900, 1850, 2990)]
    assert sorted(window.view for window in windows) == [(0, 0, 512, 512), (1488, 2488, 2000, 3000)]


def test_a_scratch_is_filled_piece_by_piece_and_a_large_hole_at_once() -> None:
    hole = np.zeros((1600, 1600), bool)
    np.fill_diagonal(hole, True)
    assert all(window.view[2] - window.view[0] == 512 for window in plan(hole, 512))
    assert len(plan(hole, 512)) >= 7
    hole[300:600, 200:700] = True
    large = plan(hole, 512)[0]
    top, left, bottom, right = large.core
    assert 230 < top <= 300
    assert 130 < left <= 200
    assert 600 <= bottom < 780
    assert 700 <= right < 780
    assert large.view[2] - large.view[0] == math.ceil(2.5 * max(bottom - top, right - left))
    assert all(window.view[2] - window.view[0] == 512 for window in plan(hole, 512)[1:])


def test_a_mask_of_dust_is_planned_at_once() -> None:
    """Tens of thousands of specks: every one in a window, and no second spent on comparing all with all."""
    hole = np.zeros((3000, 3000), bool)
    hole[::33, ::33] = True
    start = time.process_time()
    windows = plan(hole, 512)
    assert time.process_time() - start < 5
    assert (covered(windows, hole.shape)[hole] == 1).all()
    assert len(windows) < 150


def test_only_holes_change() -> None:
    pixels = noise(50, 70)
    hole = np.zeros((50, 70), bool)
    hole[0:5, 0:7] = hole[20:30, 40:42] = hole[49, 69] = True
    before = pixels.copy()
    result = fill_holes(Recorder(), pixels, hole)
    assert np.array_equal(pixels, before)
    assert np.array_equal(result[~hole], pixels[~hole])
    assert (result[hole] != pixels[hole]).mean() > 0.9


def test_the_network_never_sees_what_lies_in_a_hole() -> None:
    """Whatever is under the mask, the result is the same; also where the picture is shown smaller."""
    hole = np.zeros((90, 80), bool)
    hole[10:70, 15:60] = True
    network = tiny_migan()
    one, two = noise(90, 80), noise(90, 80)
    two[hole] = 255 - two[hole]
    assert np.array_equal(fill_holes(network, one, hole), fill_holes(network, two, hole))


def test_nothing_leaks_out_of_a_hole_when_the_picture_is_made_smaller() -> None:
    known = torch.ones(1, 1, 90, 90)
    known[:, :, 10:70, 15:61] = 0
    one, two = torch.rand(1, 3, 90, 90), torch.rand(1, 3, 90, 90)
    two = torch.where(known > 0, one, two)
    with torch.inference_mode():
        drawn = [_drawn(tiny_migan(), picture, known, 0) for picture in (one, two)]
    assert drawn[0].shape == (1, 3, 90, 90)
    assert torch.equal(*drawn)


def test_a_uniform_picture_is_filled_uniformly() -> None:
    """The network's own level is wrong everywhere by the same amount: the membrane takes it out."""
    pixels = np.full((60, 64, 3), 200, np.uint8)
    hole = np.zeros((60, 64), bool)
    hole[20:34, 21:40] = True
    result = fill_holes(Recorder(level=-0.7), pixels, hole)
    assert (result == 200).all()


def test_a_band_around_a_hole_is_drawn_too() -> None:
    network = Recorder()
    hole = np.zeros((16, 16), bool)
    hole[6:8, 7:9] = True
    fill_holes(network, noise(16, 16), hole)
    known = network.shown[0][1][0, 0]
    assert int((known == 0).sum()) == 16
    assert bool((known[5:9, 6:10] == 0).all())


def test_later_windows_see_what_earlier_ones_drew() -> None:
    network = Recorder()
    hole = np.zeros((16, 200), bool)
    hole[7, 5:195] = True
    seen: list[tuple[int, int]] = []
    fill_holes(network, noise(16, 200), hole, progress=lambda *now: seen.append(now))
    assert len(network.shown) == len(plan(hole, 16)) > 10
    assert seen[0] == (0, len(network.shown))
    assert seen[-1] == (len(network.shown), len(network.shown))
    # the second window's left part was a hole once
    assert bool((network.shown[1][1][0, 0, 7, :2] == 1).all())


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (2, 2), (5, 300), (300, 5)])
def test_pictures_smaller_than_the_window_are_mirrored(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    hole = np.zeros(shape, bool)
    hole[0, 0] = True
    network = Recorder()
    result = fill_holes(network, pixels, hole)
    assert np.array_equal(result[~hole], pixels[~hole])
    assert network.shown[0][0].shape == (1, 3, 16, 16)


def test_spread_keeps_what_is_known_and_is_smooth_elsewhere() -> None:
    known = torch.zeros(1, 1, 33, 41)
    known[:, :, ::8, ::8] = 1
    ramp = torch.linspace(-1, 1, 41).expand(1, 2, 33, 41)
    filled = spread(ramp * known, known)
    assert torch.equal(filled[:, :, ::8, ::8], ramp[:, :, ::8, ::8])
    assert float((filled - ramp).abs().max()) < 0.3
    assert torch.equal(spread(ramp, torch.ones(1, 1, 33, 41)), ramp)
    one = torch.zeros(1, 1, 5, 5)
    one[0, 0, 2, 3] = 1
    assert torch.allclose(spread(torch.full((1, 1, 5, 5), 0.25) * one, one), torch.full((1, 1, 5, 5), 0.25))


def test_what_cannot_be_filled_is_said() -> None:
    pixels, hole = noise(20, 20), np.ones((20, 20), bool)
    with pytest.raises(InputError, match="covers the whole picture"):
        fill_holes(Recorder(), pixels, hole)
    with pytest.raises(InputError, match="do not belong together"):
        fill_holes(Recorder(), pixels, hole[:10])
    hole[:5] = False
    with pytest.raises(NonFiniteError, match="NaN"):
        fill_holes(Recorder(level=float("nan")), pixels, hole)
    assert np.array_equal(fill_holes(Recorder(), pixels, np.zeros((20, 20), bool)), pixels)
