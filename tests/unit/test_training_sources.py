"""The batches of a run: the emoji set and folders by recipe."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data import folder as folder_module
from vitrail.data.emoji_bank import KIND_OF_SET, STYLES, EmojiRecord
from vitrail.data.transforms import Augmentation
from vitrail.errors import DataError, InputError
from vitrail.files import sha256_of
from vitrail.recipe import parse_recipe
from vitrail.recipe.sections import MAX_CROP
from vitrail.training import sources


def recipe(*overrides: str) -> Any:
    return parse_recipe({"kind": "text_to_image", "optim": {"until_images": 64}}, overrides)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "cache"))


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


def photographs(folder: Path) -> Path:
    """Twelve noisy pictures of several shapes, one of them broken."""
    rng = np.random.default_rng(1)
    for number in range(12):
        width, height = 60 + 7 * number, 150 - 5 * number
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "bad.png").write_bytes(b"x")
    return folder


def test_threads_and_the_cache_change_no_bit_and_spare_the_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "kept"))
    changes = [f"data.source={photographs(folder)}", "data.batch_size=5", "data.flip=0.5", "data.crop=0.2"]
    plain = sources.open_data(recipe(*changes, "data.cache=false", "data.prefetch=0"), print)
    assert not (tmp_path / "kept").exists()
    expected = pixels(plain, 0, 6)
    monkeypatch.setattr(sources, "_workers", lambda: 3)
    decoded: list[str] = []
    opened = folder_module.open_image

    def counted(data: Any, *rest: Any, **more: Any) -> Any:
        decoded.append(threading.current_thread().name)
        time.sleep(0.002)  # long enough for a second thread to find work
        return opened(data, *rest, **more)

    monkeypatch.setattr(folder_module, "open_image", counted)
    first = sources.open_data(recipe(*changes), print)
    checked = len(decoded)
    assert checked == 12  # every picture once; the broken file is refused on its header
    found = pixels(first, 0, 6)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len({name for name in decoded[checked:]}) > 1  # several threads
    decoded.clear()
    told: list[str] = []
    again = sources.open_data(recipe(*changes), told.append)  # the same command once more: a resume
    resumed = pixels(again, 10, 4)
    assert all(torch.equal(one, other) for one, other in zip(resumed, expected[2:], strict=True))
    assert decoded == []  # the files were only read and hashed
    assert told[0].startswith("left out: bad.png: ")


def test_the_cache_of_pictures_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "kept"))
    cache = sources.picture_cache()
    for number in range(20):
        assert cache.put(f"{number:064x}", np.zeros(1000, np.uint8))
    monkeypatch.setattr(sources, "MAX_CACHE_BYTES", 5_000)
    count, size = sources.picture_cache().size()
    assert 0 < count < 20
    assert size <= 5_000


def test_the_recipe_and_the_augmentation_agree_on_the_largest_crop(tmp_path: Path) -> None:
    folder = photographs(tmp_path)
    top = recipe(f"data.source={folder}", f"data.crop={MAX_CROP}", "data.batch_size=4")
    assert Augmentation(crop=top.data.crop).crop == MAX_CROP
    assert pixels(sources.open_data(top, print), 0, 1)[0].shape == (4, 3, 64, 64)
    with pytest.raises(InputError, match="crop"):
        recipe("data.crop=0.51")
    with pytest.raises(InputError, match="crop"):
        Augmentation(crop=0.51)
