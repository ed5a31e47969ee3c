"""The array cache: never stale, damage is found, a bad disk stops nothing."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vitrail.data.buckets import Bucket
from vitrail.data.cache import ArrayCache, cache_key
from vitrail.data.transforms import (
    Augmentation,
    Variation,
    canvas_size,
    suggest_augmentation,
    tells_sides,
    vary,
)
from vitrail.errors import InputError

KEY = cache_key("ab" * 32, transform="t", size=[64, 64])


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    rng = np.random.default_rng(0)
    arrays: list[NDArray[np.generic]] = [
        rng.integers(0, 256, (7, 5, 3), dtype=np.uint8),
        rng.standard_normal((4, 8, 8)).astype(np.float32),
        np.zeros((0, 3)),
    ]
    for number, array in enumerate(arrays):
        key = cache_key("picture", number=number)
        assert cache.get(key) is None
        assert cache.put(key, array)
        found = cache.get(key)
        assert found is not None
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        assert not found.flags.writeable
    assert cache.size()[0] == 3


def test_keys_depend_on_content_and_every_setting() -> None:
    keys = {
        cache_key("a", size=64, flip=False),
        cache_key("b", size=64, flip=False),
        cache_key("a", size=65, flip=False),
        cache_key("a", size=64, flip=True),
        cache_key("a", size=64),
        cache_key("a", size="64", flip=False),
    }
    assert len(keys) == 6
    assert cache_key("a", x=1, y=2) == cache_key("a", y=2, x=1)
    for bad in ("../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(InputError, match="not a cache key"):
            ArrayCache("x").get(bad)


def test_every_flipped_or_missing_byte_is_found_and_made_again(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    array = np.arange(20, dtype=np.uint8)
    cache.put(KEY, array)
    (path,) = tmp_path.glob("??/*.arr")
    whole = path.read_bytes()
    damages = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    damages += [whole[:i] for i in range(0, len(whole), 7)] + [whole + b"x", b""]
    for number, damaged in enumerate(damages, start=1):
        path.write_bytes(damaged)
        made = cache.get_or_make(KEY, lambda: array)
        assert np.array_equal(made, array)
        assert cache.rebuilt == number
        assert path.read_bytes() == whole


def test_a_full_or_read_only_disk_is_logged_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ArrayCache(tmp_path / "c")
    real = os.replace

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            array = cache.get_or_make(cache_key("p", n=number), lambda: np.ones(3))
            assert array.sum() == 3
    assert [record.message.count("No space left") for record in caplog.records] == [1]
    assert not [p for p in (tmp_path / "c").rglob("*") if p.is_file()]
    monkeypatch.setattr(os, "replace", real)
    assert cache.put(KEY, np.ones(3))


def test_threads_read_while_rubbish_is_collected_between_them(tmp_path: Path) -> None:
    """What reads a header with Python's own parser fails here a hundred times a second."""
    cache, failures = ArrayCache(tmp_path), []
    cache.put(KEY, np.arange(4))
    done = threading.Event()

    def work() -> None:
        kept: list[object] = []
        while not done.is_set():
            kept = [] if len(kept) > 5000 else kept + [[] for _ in range(37)]  # so that there is rubbish
            try:
                if not np.array_equal(cache.get(KEY), np.arange(4)):
                    failures.append("another array")
            except Exception as error:
                failures.append(str(error))

    def yields(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    interval = sys.getswitchinterval()
    gc.callbacks.append(yields)
    try:
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
        gc.callbacks.remove(yields)
    assert failures == []


def test_threads_that_share_a_cache_see_whole_entries(tmp_path: Path) -> None:
    cache, failures = ArrayCache(tmp_path), []
    keys = [cache_key("p", n=n) for n in range(5)]

    def work() -> None:
        for _ in range(20):
            for number, key in enumerate(keys):
                if cache.get_or_make(key, functools.partial(np.full, 1000, number)).sum() != 1000 * number:
                    failures.append(key)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.rebuilt == 0
    assert len(list(tmp_path.rglob("*.part"))) == 0


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    keys = [cache_key("p", n=n) for n in range(6)]
    for age, key in enumerate(keys):
        cache.put(key, np.zeros(1000, dtype=np.uint8))
        os.utime(cache._path(key), (1000 + age, 1000 + age))
    one = cache.size()[1] // 6
    assert cache.prune(2 * one) == 4
    assert [cache.get(key) is not None for key in keys] == [False] * 4 + [True] * 2
    assert cache.prune(10**9) == 0


# -- transforms ----------------------------------------------------------------------------------------------


def test_a_variation_cuts_the_window_it_says(tmp_path: Path) -> None:
    """At crop 0.5 the canvas is twice the bucket; its smallest window in a corner is that corner."""
    bucket = Bucket(8, 4)
    assert canvas_size(bucket, 0.5) == (16, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    corner = vary(pixels, bucket, Variation(scale=0.5, left=0.0, top=1.0))
    assert np.array_equal(corner, pixels[4:, :8])
    mirrored = vary(pixels, bucket, Variation(flip=True, scale=0.5, left=0.0, top=1.0))
    assert np.array_equal(mirrored, corner[:, ::-1])


def test_colour_jitter_does_what_its_names_say() -> None:
    bucket = Bucket(4, 4)
    pixels = np.random.default_rng(1).integers(60, 120, (4, 4, 3), dtype=np.uint8)
    brighter = vary(pixels, bucket, Variation(brightness=1.5))
    assert np.abs(brighter - pixels * 1.5).max() <= 0.5
    grey = vary(pixels, bucket, Variation(saturation=0.0))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma[..., None]).max() <= 0.51
    flat = vary(pixels, bucket, Variation(contrast=0.0))
    assert np.abs(flat - luma.mean()).max() <= 0.51
    assert np.array_equal(vary(pixels, bucket, Variation()), pixels)


def test_augmentation_draws_within_its_bounds() -> None:
    options = Augmentation(flip=0.25, crop=0.2, jitter=0.1)
    low, high = options.draw([0.0] * 7, "a cat"), options.draw([0.999999] * 7, "a cat")
    assert (low.flip, low.scale) == (True, 1.0)
    assert high.flip is False
    assert high.scale == pytest.approx(0.8, abs=1e-5)
    assert low.brightness == pytest.approx(0.9)
    assert high.contrast == pytest.approx(1.1, abs=1e-5)
    assert Augmentation().draw([0.0] * 7, "") == Variation(left=0.0, top=0.0)


def test_tiny_sets_are_left_as_they_are() -> None:
    assert suggest_augmentation(12)[0] == Augmentation()
    assert suggest_augmentation(500)[0].flip == 0.5
    assert suggest_augmentation(500)[0].jitter == 0
    assert all(map(tells_sides, ("Right arrow", "text on a wall", "左边的猫", "a clock")))
    assert not any(map(tells_sides, ("a bright cat", "a cat sitting in a garden", "一只猫", "")))
