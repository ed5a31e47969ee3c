"""Aspect buckets and the order of batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.buckets import (
    BatchPlan,
    Bucket,
    assign,
    draw_bits,
    draw_unit,
    gather_groups,
    make_buckets,
    shuffled,
)
from vitrail.errors import InputError


@given(st.integers(2, 64), st.sampled_from([1, 4, 8, 16, 32, 64]), st.sampled_from([1.0, 1.5, 2.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_buckets_keep_what_they_promise(steps: int, granularity: int, ratio: float) -> None:
    size = steps * granularity
    buckets = make_buckets(size, granularity, ratio)
    assert Bucket(size, size) in buckets
    assert len(set(buckets)) == len(buckets)
    aspects = [bucket.log_aspect for bucket in buckets]
    assert aspects == sorted(aspects)
    for bucket in buckets:
        assert bucket.width % granularity == bucket.height % granularity == 0
        assert abs(bucket.width * bucket.height / size**2 - 1) <= 0.15
        assert max(bucket.width, bucket.height) / min(bucket.width, bucket.height) <= ratio * 1.011
        assert Bucket(bucket.height, bucket.width) in buckets


def test_bad_bucket_settings_are_refused() -> None:
    with pytest.raises(InputError, match="size 65 must be a multiple of the model's granularity 8"):
        make_buckets(65, 8)
    with pytest.raises(InputError, match="max_ratio"):
        make_buckets(64, 8, float("nan"))
    assert make_buckets(64, 8, 1.0) == (Bucket(64, 64),)


def test_assign_takes_the_nearest_shape() -> None:
    buckets = make_buckets(64, 8)
    sizes = [(64, 64), (1000, 990), (1, 60_000), (60_000, 1), (300, 200), (200, 300)]
    chosen = [buckets[i] for i in assign(sizes, buckets)]
    assert chosen[:4] == [Bucket(64, 64), Bucket(64, 64), buckets[0], buckets[-1]]
    for (width, height), bucket in zip(sizes, chosen, strict=True):  # brute force
        away = [abs(np.log(width / height) - b.log_aspect) for b in buckets]
        assert bucket == buckets[int(np.argmin(away))]


def test_small_buckets_are_joined_and_nobody_is_lost() -> None:
    sizes = [(64, 64)] * 50 + [(100, 70)] * 3 + [(70, 100)] * 20 + [(1, 999)] * 2
    groups = gather_groups(sizes, make_buckets(64, 8), batch_size=8)
    assert all(len(indices) >= 8 for _, indices in groups)
    assert sorted(np.concatenate([indices for _, indices in groups]).tolist()) == list(range(len(sizes)))
    one = gather_groups(sizes[:5], make_buckets(64, 8), batch_size=8)
    assert [len(indices) for _, indices in one] == [5]


def plan(counts: list[int], batch: int, seed: int = 0) -> BatchPlan:
    ends = np.cumsum(counts)
    groups = [(Bucket(8 * (i + 1), 8), np.arange(ends[i] - n, ends[i])) for i, n in enumerate(counts)]
    return BatchPlan(groups, batch, seed)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 24), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_picture_is_shown_equally_often_and_each_batch_is_of_one_bucket(
    counts: list[int], batch: int, seed: int
) -> None:
    """After r rounds every picture was shown r times, less what is in one unfinished batch of its group."""
    order = plan(counts, batch, seed)
    rounds = 3 * batch  # enough for a group of one picture to fill whole batches
    total = sum(n * rounds // batch for n in counts)
    shown: Counter[int] = Counter()
    for number in range(total):
        pick = order.batch(number)
        members = next(indices for bucket, indices in order.groups if bucket == pick.bucket)
        assert len(pick.indices) == batch
        assert set(pick.indices.tolist()) <= set(members.tolist())
        shown.update(pick.indices.tolist())
    for _, indices in order.groups:
        times = [shown[i] for i in indices.tolist()]
        assert max(times) - min(times) <= 1
        assert rounds * len(indices) - sum(times) < batch


def test_a_batch_depends_on_its_number_and_the_seed_only() -> None:
    straight, other = plan([37, 12, 90], 8), plan([37, 12, 90], 8, seed=1)
    first = [straight.batch(k) for k in range(60)]
    for k in (59, 3, 31, 0, 58):
        fresh = plan([37, 12, 90], 8).batch(k)
        assert fresh.bucket == first[k].bucket
        assert fresh.indices.tolist() == first[k].indices.tolist()
    assert any(other.batch(k).indices.tolist() != first[k].indices.tolist() for k in range(5))


def test_far_batches_are_found_at_once() -> None:
    pick = plan([1000, 17, 300], 16).batch(10**12)
    assert len(pick.indices) == 16


def test_draws_are_frozen() -> None:
    """These numbers must never change: a run that resumes after an upgrade draws them again."""
    assert draw_bits(2, 7, "picture", 3).tolist() == DRAWN
    assert shuffled(8, 0, "epoch", 1).tolist() == ORDER
    unit = draw_unit(50_000, 1)
    assert unit.min() >= 0
    assert unit.max() < 1
    assert abs(unit.mean() - 0.5) < 0.006  # 4.6 standard errors of 0.0013
    assert sorted(shuffled(100, 3).tolist()) == list(range(100))


DRAWN = [6696613083522053506, 1844129368123837918]
ORDER = [0, 4, 1, 7, 5, 3, 2, 6]


def test_no_pictures_or_no_batch_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size 0"):
        plan([3], 0)
    with pytest.raises(InputError, match="no pictures"):
        BatchPlan([], 4, 0)
