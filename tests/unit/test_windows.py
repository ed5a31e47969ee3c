"""Tiles and edges that meet: every place is covered, the average is right, nothing is left of an edge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.tasks.windows import Tiled, axis_starts, tent, windows_of
from vitrail.tasks.wrapping import circular, networks_of, wrap_pad


class Answer:
    """A bound denoiser that answers with a function of its state."""

    step, steps = 0, 1

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 3.0 * x + sigma[:, None, None, None]

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.cond(x, sigma), -x


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    window=st.tuples(st.integers(2, 16), st.integers(2, 16)),
    wraps=st.tuples(st.booleans(), st.booleans()),
    turns=st.booleans(),
)
def test_windows_cover_every_place(
    size: tuple[int, int], window: tuple[int, int], wraps: tuple[bool, bool], turns: bool
) -> None:
    window = min(window[0], size[0]), min(window[1], size[1])
    seen = torch.zeros(1, 1, *size)
    for one in windows_of(size, window, wraps, turns=turns):
        assert (len(one.rows), len(one.columns)) == window
        one.add(seen, torch.ones(1, 1, *window))
        assert one.cut(seen).shape[2:] == window
    assert seen.min() >= 1


def test_an_axis_that_wraps_has_no_first_window() -> None:
    assert axis_starts(32, 32, 16, wraps=False) == [0]
    assert axis_starts(32, 32, 16, wraps=True) == [0]
    assert axis_starts(32, 32, 16, wraps=True, turns=True) == [0, 16]
    assert axis_starts(64, 32, 16, wraps=False) == [0, 16, 32]
    assert axis_starts(64, 32, 16, wraps=True) == [0, 16, 32, 48]
    # Where the canvas closes, a place is as far from the windows' edges as anywhere else.
    weights = torch.zeros(1, 1, 1, 64)
    for one in windows_of((1, 64), (1, 32), (False, True)):
        one.add(weights, tent(1, 32))
    assert weights.max() - weights.min() < 1e-5


@pytest.mark.parametrize("wraps", [(False, False), (True, True)])
def test_tiles_that_agree_give_what_one_pass_gives(wraps: tuple[bool, bool]) -> None:
    x = torch.randn(2, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 2.0])
    calls: list[int] = []
    windows = windows_of((20, 28), (8, 8), wraps)
    tiled = Tiled([Answer()], windows, lambda: calls.append(1))
    torch.testing.assert_close(tiled.cond(x, sigma), Answer().cond(x, sigma))
    assert len(calls) == len(windows)  # a cancel is heard before every tile
    wanted, unwanted = tiled.pair(x, sigma)
    torch.testing.assert_close(wanted, Answer().cond(x, sigma))
    torch.testing.assert_close(unwanted, -x)


def test_every_bound_hears_of_the_steps() -> None:
    windows = windows_of((8, 8), (4, 4))
    bounds = [Answer() for _ in windows]
    tiled = Tiled(bounds, windows, lambda: None)
    tiled.step, tiled.steps = 3, 9
    assert {(bound.step, bound.steps) for bound in bounds} == {(3, 9)}


@pytest.mark.parametrize(("x", "y"), [(True, False), (False, True), (True, True)])
def test_convolutions_go_around_and_are_left_as_they_were(x: bool, y: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 2, 1)
    )
    value = torch.randn(1, 3, 8, 12)
    plain = network(value)
    with circular([network], x=x, y=y):
        around = network(value)
        # A picture that is rolled gives the same, rolled: there is no edge (2 places here are 1 behind the
        # layer of stride 2). With an edge there it does not.
        for axis, wraps, other in ((3, x, y), (2, y, x)):
            rolled = network(value.roll(4, dims=axis)).roll(-2, dims=axis)
            assert torch.allclose(rolled, around, atol=1e-6) == wraps, (axis, other)
    assert not torch.allclose(plain, around)
    assert torch.equal(network(value), plain)


def test_the_network_is_restored_after_an_error() -> None:
    network = nn.Conv2d(1, 1, 3, padding=1)
    value = torch.randn(1, 1, 4, 4)
    plain = network(value)
    with pytest.raises(KeyError), circular([network], x=True, y=True):
        raise KeyError("stop")
    assert torch.equal(network(value), plain)


def test_padding_and_finding() -> None:
    value = torch.arange(4.0).reshape(1, 1, 1, 4)
    assert wrap_pad(value, 1, x=True, y=False).flatten().tolist() == [3, 0, 1, 2, 3, 0]
    assert wrap_pad(value, 1, x=False, y=False).shape == value.shape

    class Holder:
        def __init__(self) -> None:
            self.one = nn.Linear(1, 1)
            self.more = {"two": nn.Linear(1, 1), "again": self.one}
            self.words = "three"

    holder = Holder()
    assert networks_of(holder) == [holder.one, holder.more["two"]]
    assert networks_of(holder.one) == [holder.one]
