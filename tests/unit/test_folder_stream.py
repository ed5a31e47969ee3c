"""The stream of batches: a pure function of (seed, pictures seen)."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.batch import Batch
from vitrail.data.cache import ArrayCache, LatentCache
from vitrail.data.folder import FolderSource
from vitrail.data.folder_files import Place
from vitrail.data.folder_stream import FolderStream
from vitrail.data.transforms import Augmentation
from vitrail.errors import DataError, InputError, NonFiniteError
from vitrail.images import to_tensor

SHAPES = ((40, 40), (60, 30), (30, 60), (90, 88), (33, 47))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(60):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize(SHAPES[i % 5], Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        rows.append(
            f'{{"file_name": "{i:02}.png", "text": ["picture {i}", "number {i}"], "style": "s{i % 3}"}}'
        )
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return FolderSource.open(folder)


def make(source: FolderSource, **changes: object) -> FolderStream:
    settings: dict[str, object] = {
        "batch_size": 8,
        "seed": 3,
        "size": 32,
        "buckets": True,
        "augmentation": Augmentation(flip=0.5, crop=0.1, jitter=0.2),
        "caption_drop": 0.2,
        "style_drop": 0.2,
    }
    return FolderStream(source, **(settings | changes))  # type: ignore[arg-type]


def take(stream: FolderStream, count: int, images_seen: int = 0) -> list[Batch]:
    return list(itertools.islice(stream(images_seen), count))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.pixels, y.pixels) and x.captions == y.captions and torch.equal(x.styles, y.styles)
        for x, y in zip(a, b, strict=True)
    )


def test_batches_have_the_shapes_they_promise(source: FolderSource) -> None:
    stream = make(source)
    assert len(stream.buckets) > 1
    assert sum(stream.buckets.values()) == 60
    seen = set()
    for batch in take(stream, 20):
        assert batch.pixels.shape[:2] == (8, 3)
        assert batch.pixels.dtype == torch.float32
        assert batch.pixels.is_contiguous()
        assert batch.pixels.min() >= -1
        assert batch.pixels.max() <= 1
        assert batch.styles.dtype == torch.int64
        assert batch.styles.shape == (8,)
        assert len(batch) == 8
        seen.add(tuple(batch.pixels.shape[2:]))
    assert seen == {(bucket.height, bucket.width) for bucket in stream.buckets}


@pytest.mark.parametrize("start", [8, 40, 8 * 17])
def test_resuming_gives_what_an_uninterrupted_run_would_have_seen(source: FolderSource, start: int) -> None:
    straight = take(make(source), 25)
    assert same(take(make(source), 25 - start // 8, start), straight[start // 8 :])


def test_resuming_within_a_batch_gives_its_rest(source: FolderSource) -> None:
    straight = take(make(source), 3)
    resumed = take(make(source), 2, images_seen=8 + 5)
    assert resumed[0].captions == straight[1].captions[5:]
    assert torch.equal(resumed[0].pixels, straight[1].pixels[5:])
    assert same(resumed[1:], straight[2:])


def test_threads_prefetch_and_caches_change_no_bit(source: FolderSource, tmp_path: Path) -> None:
    straight = take(make(source, prefetch=0), 20)
    assert same(take(make(source, workers=4, prefetch=5), 20), straight)
    assert same(take(make(source, memory_bytes=0), 20), straight)
    cache = ArrayCache(tmp_path)
    assert same(take(make(source, cache=cache), 20), straight)
    again = ArrayCache(tmp_path)
    assert same(take(make(source, cache=again, memory_bytes=0), 20), straight)
    assert again.misses == 0
    assert again.hits > 100
    assert not same(take(make(source, seed=4), 20), straight)


def test_every_picture_once_in_a_pass_and_both_captions_in_time(source: FolderSource) -> None:
    stream = make(source, batch_size=6, buckets=False, caption_drop=0.0)
    captions = [c for batch in take(stream, 100) for c in batch.captions]
    first = [int(c.split()[1]) for c in captions[:60]]
    assert sorted(first) == list(range(60))
    assert len(set(captions)) == 120


def test_captions_and_styles_are_dropped_at_the_given_rate_and_never_change_pixels(
    source: FolderSource,
) -> None:
    with_drop = take(make(source, caption_drop=0.3, style_drop=0.1), 150)
    without = take(make(source, caption_drop=0.0, style_drop=0.0), 150)
    dropped = np.mean([c == "" for batch in with_drop for c in batch.captions])
    unstyled = np.mean([s == 0 for batch in with_drop for s in batch.styles.tolist()])
    assert abs(dropped - 0.3) < 0.05  # 1,200 draws: 3.8 standard errors
    assert abs(unstyled - 0.1) < 0.035
    for a, b in zip(with_drop, without, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert all(x in (y, "") for x, y in zip(a.captions, b.captions, strict=True))
        assert all(x in (y, 0) for x, y in zip(a.styles.tolist(), b.styles.tolist(), strict=True))
        assert all(1 <= style <= 3 for style in b.styles.tolist())


def test_without_augmentation_pixels_are_those_of_pillow(tmp_path: Path) -> None:
    """A picture that already has the bucket's size arrives unchanged; a larger one as Pillow resizes it."""
    rng = np.random.default_rng(0)
    exact = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    exact.save(tmp_path / "a.png")
    stream = FolderStream(FolderSource.open(tmp_path), batch_size=1, size=16, caption_drop=0.0)
    assert torch.equal(next(stream(0)).pixels, to_tensor([exact]))
    wide = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    wide.save(tmp_path / "a.png")
    stream = FolderStream(FolderSource.open(tmp_path), batch_size=1, size=16)
    middle = wide.resize((16, 16), Image.Resampling.LANCZOS, box=(10, 0, 50, 40))
    assert torch.equal(next(stream(0)).pixels, to_tensor([middle]))


def test_style_names_of_a_model_and_captions_of_a_person(source: FolderSource) -> None:
    stream = make(
        source,
        styles=["other", "s1"],
        style_drop=0.0,
        caption_drop=0.0,
        caption=lambda text: f"photo of {text}",
    )
    for batch in take(stream, 10):
        for caption, style in zip(batch.captions, batch.styles.tolist(), strict=True):
            assert caption.startswith("photo of ")
            assert style == (2 if int(caption.split()[-1]) % 3 == 1 else 0)


def test_a_default_caption_serves_pictures_without(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = FolderSource.open(tmp_path)
    plain = next(FolderStream(source, batch_size=2, size=8, caption_drop=0.0)(0))
    named = next(FolderStream(source, batch_size=2, size=8, caption_drop=0.0, default_caption="a mascot")(0))
    assert (plain.captions, named.captions) == (["", ""], ["a mascot", "a mascot"])


def test_pictures_that_name_a_side_are_never_mirrored(tmp_path: Path) -> None:
    half = np.zeros((16, 16, 3), dtype=np.uint8)
    half[:, 8:] = 255
    for name, caption in (("plain", "a thing"), ("sided", "white on the right"), ("zh", "右边是白色")):
        Image.fromarray(half).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption, encoding="utf-8")
    stream = FolderStream(
        FolderSource.open(tmp_path),
        batch_size=9,
        size=16,
        augmentation=Augmentation(flip=1.0),
        caption_drop=0.0,
    )
    for batch in take(stream, 4):
        for pixels, caption in zip(batch.pixels, batch.captions, strict=True):
            assert bool(pixels[0, 0, 0] > 0) == (caption == "a thing")


def test_latents_are_encoded_once_and_are_those_of_the_encoder(source: FolderSource, tmp_path: Path) -> None:
    network = torch.nn.Conv2d(3, 4, 8, stride=8)
    calls = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        latent: torch.Tensor = network(pixels)
        return latent

    flips = Augmentation(flip=0.5)
    pixels = take(make(source, augmentation=flips), 40)
    latents = take(
        make(source, augmentation=flips, latents=LatentCache(ArrayCache(tmp_path), encode, "conv")), 40
    )
    for seen, batch in zip(pixels, latents, strict=True):
        assert batch.captions == seen.captions
        with torch.no_grad():
            expected = torch.cat([network(one[None]) for one in seen.pixels])
        assert torch.equal(batch.pixels, expected)
    assert len(calls) <= 2 * 60  # every picture at most twice: as it is and mirrored
    assert set(calls) == {1}
    calls.clear()
    again = take(
        make(source, augmentation=flips, latents=LatentCache(ArrayCache(tmp_path), encode, "conv")), 40
    )
    assert same(again, latents)
    assert calls == []
    other = LatentCache(ArrayCache(tmp_path), lambda x: encode(x) * 2, "conv 2")
    assert torch.equal(
        take(make(source, augmentation=flips, latents=other), 1)[0].pixels, 2 * latents[0].pixels
    )
    with pytest.raises(InputError, match="latent cache cannot be used with crop"):
        make(source, latents=other)
    broken = LatentCache(ArrayCache(tmp_path), lambda x: encode(x) * float("nan"), "broken")
    with pytest.raises(NonFiniteError, match="broken"):
        take(make(source, augmentation=flips, latents=broken), 1)


def test_no_thread_outlives_its_stream(source: FolderSource) -> None:
    batches = make(source, workers=3)(0)
    assert isinstance(batches, Generator)
    next(batches)
    assert any(t.name.startswith("vitrail-data") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("vitrail-data") for t in threading.enumerate())


def test_bad_settings_are_refused(source: FolderSource) -> None:
    for change, message in (
        ({"caption_drop": 1.5}, "caption_drop 1.5"),
        ({"style_drop": float("nan")}, "style_drop nan"),
        ({"workers": 0}, "workers 0"),
        ({"size": 30}, "multiple of"),
        ({"batch_size": 0}, "batch_size 0"),
    ):
        with pytest.raises(InputError, match=message):
            make(source, **change)
    with pytest.raises(InputError, match="flip 2"):
        Augmentation(flip=2.0)
    with pytest.raises(InputError, match="images_seen -1"):
        make(source)(-1)
    gone = dataclasses.replace(source.records[0], place=Place(Path("/nowhere.png")))
    with pytest.raises(DataError, match="was good when"):
        source.read(gone)
