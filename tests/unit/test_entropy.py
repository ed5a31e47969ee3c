"""The entropy coder: exact, as small as information allows, and the same on every machine."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.errors import DataError
from vitrail.store.code_models import Shape, read_context, read_static, write_context, write_static
from vitrail.store.entropy import (
    LOGIT_STEP,
    TOTAL,
    Decoder,
    encode,
    frequencies,
    intervals,
    least_bits,
    weights_of_logits,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=40), st.integers(0, 300), st.integers(0, 2**32))
def test_any_message_comes_back(weights: list[int], length: int, seed: int) -> None:
    table = frequencies(np.array(weights))
    assert table.sum() == TOTAL
    assert table.min() >= 1
    symbols = np.random.default_rng(seed).integers(0, len(weights), length)
    data = encode(*intervals(table, symbols))
    decoder = Decoder(data)
    assert np.array_equal(decoder.read(table, length), symbols)
    decoder.finish()


@pytest.mark.parametrize(("codes", "length"), [(4, 2000), (1024, 256), (16384, 4096)])
def test_a_message_costs_its_information(codes: int, length: int) -> None:
    """Shannon's bound is the reference: -log2 p summed over the message, plus at most five bytes."""
    random = np.random.default_rng(0)
    table = frequencies(weights_of_logits(2.0 * random.normal(size=(1, codes)))[0])
    symbols = random.choice(codes, size=length, p=table / TOTAL)
    bits = -np.log2(table[symbols] / TOTAL).sum()
    size = 8 * len(encode(*intervals(table, symbols)))
    assert bits - 1 <= size <= 1.0005 * bits + 40
    assert least_bits(table) == pytest.approx(-math.log2(table.max() / TOTAL))


def test_tables_may_depend_on_what_came_before() -> None:
    random = np.random.default_rng(1)
    tables = frequencies(weights_of_logits(3.0 * random.normal(size=(200, 50))))
    symbols = random.integers(0, 50, 200)
    decoder = Decoder(encode(*intervals(tables, symbols)))
    for i in range(200):
        assert decoder.read(tables[i : i + 1])[0] == symbols[i]
    decoder.finish()


def test_weights_are_the_softmax_of_logits() -> None:
    logits = np.random.default_rng(2).normal(size=(20, 100)) * 4.0
    weights = weights_of_logits(logits)
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    # Each logit is moved by half a step at most, and so is the largest, which the others are relative to.
    error = np.abs(np.log(np.maximum(weights, 1) / weights.max(1, keepdims=True)) - np.log(wanted))
    assert error[wanted > 1e-6].max() <= LOGIT_STEP + 1e-3


def test_logits_that_differ_in_their_last_bits_give_the_same_table() -> None:
    """What makes a file readable on another machine: noise of 1e-13 moves none of 200,000 logits."""
    random = np.random.default_rng(3)
    logits = 3.0 * random.normal(size=(200, 1000))
    shaken = logits + 1e-13 * random.normal(size=logits.shape)
    assert np.array_equal(weights_of_logits(logits), weights_of_logits(shaken))
    # The control: without rounding the probabilities themselves do differ.
    assert not np.array_equal(np.exp(logits), np.exp(shaken))


def test_the_format_is_frozen() -> None:
    """A change here makes every file written before unreadable: it needs a new format number."""
    codes = (np.arange(64).reshape(1, 8, 8) ** 2) % 13
    usage = np.arange(1, 17)[None] ** 2
    assert write_static(codes, usage).hex() == FROZEN["static"]
    assert write_context(codes, usage).hex() == FROZEN["context"]
    weights = weights_of_logits(np.linspace(-30.0, 9.0, 1000)[None])
    assert hashlib.sha256(weights.astype("<i8").tobytes()).hexdigest() == FROZEN["weights"]


FROZEN = {
    "static": "1c070029f9444efbb43681e9c6908c01700a24442851b9c80f3e85714478"
    "2a4092cd44d150b0530b011de7103e1781",
    "context": "0199ee0e54c3551cf7344866b65ac43315a58c9b79e519a10127ea832fce"
    "6e9b9dc9072a9db3bca5d13b4ec6be653230",
    "weights": "6d99b02b54c6edb016363159f20cabeda26b2b531fa466f1c9da82c6f8a532f0",
}


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        weights_of_logits(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize("weights", [[-1, 2], [2**31 + 1], []])
def test_weights_out_of_range_are_our_own_mistake(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        frequencies(np.array(weights, dtype=np.int64).reshape(1, -1) if weights else np.empty(0))


planes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=80, deadline=None)
@given(planes, st.integers(1, 20), st.integers(0, 2**32))
def test_both_models_bring_planes_of_codes_back(shape: tuple[int, int, int], codes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = random.integers(0, codes, shape)
    usage = random.integers(0, 1000, (shape[0], codes))
    assert np.array_equal(read_static(write_static(grid, usage), Shape(*shape), usage), grid)
    assert np.array_equal(read_context(write_context(grid, usage), Shape(*shape), usage), grid)


def test_repetition_costs_little_with_the_context_model() -> None:
    grid = np.full((1, 32, 32), 7, dtype=np.int64)
    grid[0, 8:24, 8:24] = np.random.default_rng(0).integers(1, 1024, (16, 16))
    usage = np.ones((1, 1024), dtype=np.int64)
    static, context = len(write_static(grid, usage)), len(write_context(grid, usage))
    assert static == pytest.approx(1024 * 10 / 8, abs=6)
    assert context < 0.4 * static  # 256 codes of 10 bits and little else


def test_a_message_that_is_cut_or_changed_is_found() -> None:
    random = np.random.default_rng(0)
    usage = random.integers(1, 1000, (1, 256))
    grid = random.integers(0, 256, (1, 16, 16))
    data = write_static(grid, usage)
    with pytest.raises(DataError, match="cut off"):
        read_static(data[: len(data) // 2], Shape(1, 16, 16), usage)
    with pytest.raises(DataError, match="does not end"):
        read_static(data + b"\x01", Shape(1, 16, 16), usage)
    found = 0
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        try:
            read_static(changed, Shape(1, 16, 16), usage)
        except DataError:
            found += 1
    # A changed byte at the very end may pass for another message of the same length: the file's check is
    # for those (tests/faults/test_codes_files.py).
    assert found >= len(data) - 2
