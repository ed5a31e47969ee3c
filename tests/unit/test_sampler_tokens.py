"""Drawing codes: filters, the inverse distribution function, orders, windows, guidance, known codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.errors import InputError, NonFiniteError
from vitrail.runtime import cpu_generator
from vitrail.samplers.tokens import (
    UNKNOWN,
    choose,
    cosine_schedule,
    filtered,
    guided,
    gumbel,
    sample_autoregressive,
    sample_maskgit,
    windowed,
)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [cpu_generator(seed + index) for index in range(count)]


def unknown(*shape: int) -> Tensor:
    return torch.full(shape, UNKNOWN)


@pytest.mark.parametrize("seed", range(3))
def test_top_k_is_that_of_transformers(seed: int) -> None:
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(5, 40, generator=cpu_generator(seed))
    for k in (1, 3, 40):
        assert torch.equal(filtered(logits, top_k=k), warpers.TopKLogitsWarper(k)(None, logits))
    assert torch.equal(filtered(logits, top_k=0), logits)
    assert torch.equal(filtered(logits, top_k=400), logits)


@pytest.mark.parametrize("seed", range(3))
def test_top_p_is_that_of_transformers(seed: int) -> None:
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = 3 * torch.randn(20, 40, generator=cpu_generator(seed), dtype=torch.float64)
    for p in (0.001, 0.3, 0.9, 0.999):
        assert torch.equal(filtered(logits, top_p=p), warpers.TopPLogitsWarper(p)(None, logits))
    both = warpers.TopPLogitsWarper(0.7)(None, warpers.TopKLogitsWarper(5)(None, logits))
    assert torch.equal(filtered(logits, top_k=5, top_p=0.7), both)
    assert torch.equal(filtered(logits, top_p=1.0), logits)


def test_draws_follow_the_distribution() -> None:
    """20,000 draws against the probabilities, within four standard deviations of each count."""
    logits, count = torch.tensor([0.5, 0.25, 0.0, 0.25]).log(), 20_000
    noise = gumbel(generators(2), count // 2, 4).flatten(0, 1)
    for temperature, wanted in ((1.0, [1 / 2, 1 / 4, 0, 1 / 4]), (0.5, [4 / 6, 1 / 6, 0, 1 / 6])):
        drawn = choose(logits.expand(count, 4), noise, temperature)
        for told, share in zip(torch.bincount(drawn, minlength=4).tolist(), wanted, strict=True):
            assert abs(told - count * share) <= 4 * math.sqrt(count * share * (1 - share))
    assert choose(logits.expand(3, 4), noise[:3], 0.0).tolist() == [0, 0, 0]


def test_noise_is_gumbel_and_each_pictures_own() -> None:
    """Mean Euler's constant, variance pi^2 / 6; picture by picture the same numbers as alone."""
    noise = gumbel(generators(3), 100, 200)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=4 * 1.2825 / math.sqrt(60_000))
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.04)
    assert torch.equal(noise[2], gumbel(generators(3)[2:], 100, 200)[0])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.integers(0, 10_000))
def test_what_cannot_be_drawn_is_never_drawn(values: list[float], seed: int) -> None:
    logits = torch.tensor([-math.inf, *values, -math.inf])
    drawn = int(choose(logits[None], gumbel(generators(1, seed), len(logits)))[0])
    assert 0 < drawn < len(logits) - 1


def test_rounding_of_the_logits_changes_no_draw() -> None:
    """20,000 draws of 1,024 codes, once from logits that are off by float32 rounding: none differs."""
    logits = torch.randn(20_000, 1024, generator=cpu_generator(0))
    noise = gumbel(generators(1), 20_000, 1024)[0]
    other = logits * (1 + 2e-7 * torch.randn(logits.shape, generator=cpu_generator(1)))
    assert int((choose(logits, noise) != choose(other, noise)).sum()) <= 1


def test_what_others_know_changes_no_picture() -> None:
    """A picture drawn alone, and beside one of which half is known."""
    known = unknown(2, 3, 4)
    known[1, :2] = 3

    class Noisy(Rule):
        def _told(self, count: int) -> Tensor:
            return torch.randn(self.codes, generator=cpu_generator(self.index)).expand(count, -1)

    both = sample_autoregressive(Noisy(3, 4), known, generators(2))
    for index in range(2):
        alone = sample_autoregressive(Noisy(3, 4), known[index : index + 1], generators(2)[index : index + 1])
        assert torch.equal(alone[0], both[index])


def test_guidance_in_closed_form() -> None:
    """Guided logits are those of p(c|y)^s p(c)^(1-s), normalised: the definition of guidance."""
    wanted, unwanted = torch.randn(2, 7, generator=cpu_generator(0), dtype=torch.float64)
    for scale in (0.0, 1.0, 3.0):
        power = wanted.softmax(0) ** scale * unwanted.softmax(0) ** (1 - scale)
        told = guided(wanted, unwanted, scale).softmax(0)
        assert torch.allclose(told, power / power.sum(), rtol=1e-12)


@settings(max_examples=200)
@given(st.integers(1, 40), st.integers(1, 300))
def test_the_schedule_settles_something_in_every_step_and_all_in_the_last(steps: int, count: int) -> None:
    steps = min(steps, count)
    left = count
    for step in range(1, steps + 1):
        now = min(cosine_schedule(step, steps, count), left)
        assert now < left
        assert now >= steps - step
        left = now
    assert left == 0


def test_the_schedule_is_the_cosine_of_the_paper() -> None:
    left = [cosine_schedule(step, 8, 256) for step in range(1, 9)]
    assert left == [*(math.floor(256 * math.cos(math.pi / 2 * step / 8)) for step in range(1, 8)), 0]


class Rule:
    """A causal model that knows one picture by heart: the next code is (index + offset) % codes, surely."""

    def __init__(self, rows: int, columns: int, codes: int = 11, offset: int = 0) -> None:
        self.rows, self.columns, self.codes, self.offset = rows, columns, codes, offset
        self.begun: list[list[int]] = []
        self.advanced = 0

    def begin(self, past: Tensor, prefix: Tensor | None = None) -> Tensor:
        self.begun.append(past[0].tolist())
        self.index = past.shape[1]
        return self._told(len(past))

    def advance(self, code: Tensor) -> Tensor:
        self.advanced += 1
        self.index += 1
        return self._told(len(code))

    def _told(self, count: int) -> Tensor:
        logits = torch.zeros(count, self.codes)
        logits[:, (self.index + self.offset) % self.codes] = 100.0
        return logits


def test_codes_come_row_by_row_from_one_reading() -> None:
    rule = Rule(3, 4)
    codes = sample_autoregressive(rule, unknown(2, 3, 4), generators(2))
    assert torch.equal(codes, (torch.arange(12) % 11).view(1, 3, 4).expand(2, 3, 4))
    assert rule.begun == [[]]
    assert rule.advanced == 11


def test_the_window_slides_with_the_place_that_is_drawn() -> None:
    """Each place is told from its window's codes before it, in the window's own raster order (taming's)."""
    seen: dict[int, list[int]] = {}

    class Watched(Rule):
        def begin(self, past: Tensor, prefix: Tensor | None = None) -> Tensor:
            self.past = past[0].tolist()
            return self._watched(len(past))

        def advance(self, code: Tensor) -> Tensor:
            self.past.append(int(code[0]))
            return self._watched(len(code))

        def _watched(self, count: int) -> Tensor:
            place = len(seen)
            seen[place] = list(self.past)
            logits = torch.zeros(count, 64)
            logits[:, place] = 100.0  # every place gets its own number
            return logits

    height, width, rows, columns = 6, 7, 4, 3
    codes = sample_autoregressive(Watched(rows, columns), unknown(1, height, width), generators(1))
    assert torch.equal(codes[0].flatten(), torch.arange(height * width))
    for row in range(height):
        for column in range(width):
            top = max(0, min(row - rows // 2, height - rows))
            left = max(0, min(column - columns // 2, width - columns))
            window = [(top + r) * width + left + c for r in range(rows) for c in range(columns)]
            place = row * width + column
            assert seen[place] == window[: window.index(place)]


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(InputError, match="2 x 4 codes are fewer than the 3 x 4"):
        sample_autoregressive(Rule(3, 4), unknown(1, 2, 4), generators(1))


def masked(table: Tensor) -> Callable[[Tensor], Tensor]:
    """A masked model that tells the same logits (H, W, K) whatever it sees."""
    return lambda codes: table.expand(len(codes), *table.shape)


def test_known_codes_stay_in_both_samplers() -> None:
    known = unknown(2, 3, 4)
    known[0, 1] = torch.tensor([9, 8, 7, 6])
    known[1, 0, 0] = 5
    fixed = known != UNKNOWN
    drawn = sample_autoregressive(Rule(3, 4), known, generators(2))
    assert torch.equal(drawn[fixed], known[fixed])
    assert torch.equal(drawn[~fixed], (torch.arange(12) % 11).view(1, 3, 4).expand(2, 3, 4)[~fixed])
    logits = torch.randn(3, 4, 11, generator=cpu_generator(1))
    drawn = sample_maskgit(masked(logits), known, generators(2), steps=4, choice_temperature=3.0)
    assert torch.equal(drawn[fixed], known[fixed])
    assert int(drawn.min()) >= 0
    whole = known.clamp_min(0)
    assert torch.equal(sample_maskgit(masked(logits), whole, generators(2), steps=4), whole)


def test_a_row_that_is_known_costs_no_pass() -> None:
    rule = Rule(3, 4)
    known = unknown(1, 3, 4)
    known[0, :2] = 1
    sample_autoregressive(rule, known, generators(1))
    assert rule.begun == [[1] * 8]
    assert rule.advanced == 3


def test_maskgit_keeps_the_surest_first() -> None:
    """Without noise, the codes settled in each step are the likeliest ones, and they never change again."""
    sure = torch.linspace(0.2, 6.0, 16)[torch.randperm(16, generator=cpu_generator(3))]
    logits = torch.zeros(4, 4, 5)
    logits[..., 2] = sure.view(4, 4)
    settled: list[Tensor] = []

    def model(codes: Tensor) -> Tensor:
        settled.append(codes[0].flatten() != UNKNOWN)
        return logits[None]

    sample_maskgit(model, unknown(1, 4, 4), generators(1), steps=5, temperature=0.0)
    assert [int(now.sum()) for now in settled] == [0, *(16 - cosine_schedule(s, 5, 16) for s in range(1, 5))]
    for now in settled[1:]:
        count = int(now.sum())
        assert torch.equal(now.nonzero()[:, 0], sure.argsort(descending=True)[:count].sort().values)


def test_choice_temperature_is_gumbel_noise_that_vanishes_at_the_end() -> None:
    """With all codes equally sure and Gumbel noise, which is settled first is even over the places."""
    first = torch.zeros(4)
    for seed in range(400):
        order: list[Tensor] = []

        def model(codes: Tensor, order: list[Tensor] = order) -> Tensor:
            order.append(codes[0].flatten() != UNKNOWN)
            return torch.zeros(len(codes), 2, 2, 3)

        sample_maskgit(model, unknown(1, 2, 2), generators(1, seed), steps=4, choice_temperature=1.0)
        first += order[1].float()
    assert ((first / 400 - 0.25).abs() < 3 * math.sqrt(0.25 * 0.75 / 400)).all()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_picture_does_not_depend_on_those_beside_it(guidance: float) -> None:
    logits = torch.randn(4, 4, 9, generator=cpu_generator(2))

    def many(index: slice) -> Tensor:
        return sample_maskgit(
            lambda codes: masked(logits)(codes) + codes[..., None] * 0.1,
            unknown(5, 4, 4)[index],
            generators(5, 7)[index],
            steps=6,
            choice_temperature=2.0,
            guidance=guidance,
        )

    class Noisy(Rule):
        def _told(self, count: int) -> Tensor:
            return torch.randn(self.codes, generator=cpu_generator(self.index)).expand(count, -1)

    def in_order(index: slice) -> Tensor:
        return sample_autoregressive(
            Noisy(4, 4), unknown(5, 4, 4)[index], generators(5, 7)[index], guidance=guidance
        )

    for draw in (many, in_order):
        together = draw(slice(None))
        assert len({tuple(one.flatten().tolist()) for one in together}) == 5
        for index in range(5):
            assert torch.equal(draw(slice(index, index + 1))[0], together[index])


def test_guidance_acts_in_its_interval_and_costs_nothing_outside() -> None:
    rows: list[int] = []

    def model(codes: Tensor) -> Tensor:
        rows.append(len(codes))
        return torch.zeros(len(codes), 4, 4, 3)

    sample_maskgit(model, unknown(2, 4, 4), generators(2), steps=8, guidance=2.0, interval=(0.25, 0.5))
    assert rows == [2, 2, 4, 4, 2, 2, 2, 2]


def test_windows_cover_a_larger_picture_and_change_none_of_their_own_size() -> None:
    table = torch.randn(3, 4, 6, generator=cpu_generator(0))
    model = windowed(masked(table), 3, 4)
    assert torch.equal(model(unknown(2, 3, 4)), table.expand(2, 3, 4, 6))
    # A model that does not look at the place tells the same everywhere, however many windows see it.
    even = windowed(lambda codes: torch.arange(6.0).expand(len(codes), 3, 4, 6), 3, 4)
    told = even(unknown(1, 7, 9))
    assert torch.allclose(told, torch.arange(6.0).log_softmax(0).expand(1, 7, 9, 6))
    with pytest.raises(InputError, match="fewer than the 3 x 4"):
        model(unknown(1, 2, 4))


def test_logits_that_are_no_numbers_are_told() -> None:
    with pytest.raises(NonFiniteError):
        sample_maskgit(masked(torch.full((2, 2, 3), math.nan)), unknown(1, 2, 2), generators(1), steps=2)


def test_progress_is_reported_and_can_stop() -> None:
    told: list[tuple[int, int]] = []
    sample_autoregressive(
        Rule(3, 4), unknown(1, 3, 4), generators(1), callback=lambda step, of, codes: told.append((step, of))
    )
    assert told == [(step, 12) for step in range(1, 13)]

    def stop(step: int, steps: int, codes: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_maskgit(masked(torch.zeros(2, 2, 3)), unknown(1, 2, 2), generators(1), steps=2, callback=stop)


@pytest.mark.parametrize("count", [0, 2])
def test_one_generator_a_picture_is_needed(count: int) -> None:
    with pytest.raises(InputError, match="one generator a picture"):
        sample_maskgit(masked(torch.zeros(2, 2, 3)), unknown(1, 2, 2), generators(count), steps=1)
