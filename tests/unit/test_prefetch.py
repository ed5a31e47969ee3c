"""Batches made ahead: the same, in the same order, within the depth, and no thread is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vitrail.data.prefetch import prefetched
from vitrail.errors import DataError


def numbers(seen: int) -> Iterator[int]:
    yield from range(seen, seen + 50)


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_the_same_batches_in_the_same_order(depth: int) -> None:
    assert list(prefetched(numbers, depth)(7)) == list(numbers(7))


def test_a_batch_may_be_none_and_a_stream_empty() -> None:
    assert list(prefetched(lambda seen: iter([None, None]), 2)(0)) == [None, None]
    assert list(prefetched(lambda seen: iter(()), 2)(0)) == []


def test_it_stays_within_its_depth_and_ends_with_its_reader() -> None:
    made: list[int] = []
    closed: list[str] = []

    def endless(seen: int) -> Iterator[int]:
        try:
            while True:
                made.append(seen)
                yield seen
                seen += 1
        finally:
            closed.append(threading.current_thread().name)

    before = threading.active_count()
    stream = prefetched(endless, 3)(0)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # read, ready, and one in the hand
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert closed == ["vitrail-batches"]  # where it was made, and not whenever memory is tidied


def test_errors_arrive_after_the_batches_before_them() -> None:
    def failing(seen: int) -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("gone")

    stream = prefetched(failing, 3)(0)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(DataError, match="gone"):
        next(stream)


def test_an_error_at_the_very_start_arrives_too() -> None:
    def refused(seen: int) -> Iterator[int]:
        raise DataError(f"no batches from {seen}")

    with pytest.raises(DataError, match="from 9"):
        next(prefetched(refused, 1)(9))
