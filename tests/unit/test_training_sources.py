"""The batches of a run: the emoji set and folders by recipe, and preparing them ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.emoji_bank import KIND_OF_SET, STYLES, EmojiRecord
from vitrail.errors import DataError, InputError
from vitrail.files import sha256_of
from vitrail.recipe import parse_recipe
from vitrail.training import sources


def recipe(*overrides: str) -> Any:
    return parse_recipe({"kind": "text_to_image", "optim": {"until_images": 64}}, overrides)


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built set of twelve drawings, four of them held out, written as the build command lays it out."""
    import json

    folder = tmp_path_factory.mktemp("emoji")
    records = [
        EmojiRecord(
            id=f"noto/{n:x}", concept=f"{n:x}", style="noto", name_en=f"thing {n}", name_zh="物",
            keywords_en=("thing",), keywords_zh=("物",), split="cell" if n % 3 == 0 else "train",
            kind="object", group="Objects", package="p", license="MIT",
        )
        for n in range(1, 13)
    ]  # fmt: skip
    pictures = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 4), np.uint8)
    np.save(folder / "pictures_64.npy", pictures)
    (folder / "metadata.jsonl").write_text("".join(record.to_json() + "\n" for record in records))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / "manifest.json").write_text(json.dumps({"kind": KIND_OF_SET, "format": 1, "files": files}))
    return folder


def pixels(data: sources.Data, seen: int, count: int) -> list[torch.Tensor]:
    return [batch.pixels for batch in islice(data.batches(seen), count)]


def test_the_emoji_set_by_recipe(emoji_folder: Path) -> None:
    data = sources.open_data(recipe(f"data.source={emoji_folder}", "data.batch_size=6"), print)
    first = pixels(data, 0, 3)
    assert [tuple(batch.shape) for batch in first] == [(6, 3, 64, 64)] * 3
    assert first[0].dtype == torch.float32
    assert -1 <= first[0].min() < first[0].max() <= 1
    assert torch.equal(pixels(data, 6, 1)[0], first[1])  # goes on anywhere
    assert data.styles == STYLES
    assert data.manifest_sha256 == sha256_of(emoji_folder / "manifest.json")
    other = sources.open_data(recipe(f"data.source={emoji_folder}", "data.batch_size=6", "run.seed=1"), print)
    assert not torch.equal(pixels(other, 0, 1)[0], first[0])


def test_held_out_pictures_are_of_their_split_and_plain(emoji_folder: Path) -> None:
    data = sources.emoji_data(emoji_folder, recipe())
    assert data.held_out is not None
    batches = data.held_out(4)
    assert sum(len(batch) for batch in batches) == 4
    again = data.held_out(4)
    assert all(torch.equal(first.pixels, second.pixels) for first, second in zip(batches, again, strict=True))
    held = {f"thing {n}" for n in (3, 6, 9, 12)}
    for caption in batches[0].captions:
        assert any(name in caption for name in held) or caption.startswith("thing"), caption
    assert (batches[0].styles == STYLES.index("noto") + 1).all()


def test_smaller_sizes_are_area_averages(emoji_folder: Path) -> None:
    large = sources.emoji_data(emoji_folder, recipe("data.batch_size=4"))
    small = sources.emoji_data(
        emoji_folder, recipe("data.batch_size=4", "data.size=32", "model.image_size=32")
    )
    expected = pixels(large, 0, 1)[0].unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5))
    assert torch.allclose(pixels(small, 0, 1)[0], expected, atol=1e-6)
    with pytest.raises(DataError, match="not of 48"):
        sources.emoji_data(emoji_folder, recipe("data.size=48", "model.image_size=48"))


def test_the_set_must_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    with pytest.raises(DataError, match="vitrail data build emoji"):
        sources.open_data(recipe(), print)
    with pytest.raises(InputError):
        sources.open_data(recipe(f"data.source={tmp_path / 'missing'}"), print)


def test_a_folder_by_recipe(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (40, 40), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("一只猫" if number == 2 else f"picture {number}")
    (tmp_path / "bad.png").write_bytes(b"x")
    told: list[str] = []
    changes = ["data.batch_size=10", "data.caption_drop=0", "data.flip=0.5"]
    data = sources.open_data(recipe(f"data.source={tmp_path}", *changes), told.append)
    batch = next(iter(data.batches(0)))
    assert set(batch.captions) == {"picture 0", "picture 1", "a cat", "picture 3", "picture 4"}
    assert batch.pixels.shape == (10, 3, 64, 64)
    assert len(told) == 1
    assert told[0].startswith("left out: bad.png: ")
    assert data.held_out is None


def test_prefetched_batches_are_the_same_in_the_same_order() -> None:
    def numbers(seen: int) -> Iterator[int]:
        yield from range(seen, seen + 50)

    assert list(sources.prefetched(numbers, 3)(7)) == list(numbers(7))
    assert list(sources.prefetched(numbers, 0)(7)) == list(numbers(7))


def test_prefetching_stays_within_its_depth_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def numbers(seen: int) -> Iterator[int]:
        while True:
            made.append(seen)
            yield seen
            seen += 1

    before = threading.active_count()
    stream = sources.prefetched(numbers, 3)(0)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # read, ready, and one in the hand
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_errors_arrive_after_the_batches_before_them() -> None:
    def numbers(seen: int) -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("gone")

    stream = sources.prefetched(numbers, 3)(0)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(DataError, match="gone"):
        next(stream)
