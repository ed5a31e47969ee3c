"""Pictures with classes: Fashion-MNIST, the emoji set by style and by group, folders by style."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.classes import ClassName
from vitrail.data.emoji_bank import STYLES, EmojiBank, EmojiRecord
from vitrail.errors import DataError, InputError
from vitrail.recipe import parse_recipe
from vitrail.training import class_data, sources


def make_recipe(source: str, *overrides: str, classes: int = 0, size: int = 16) -> Any:
    return parse_recipe(
        {
            "kind": "gan",
            "data": {"source": source, "size": size, "batch_size": 4},
            "model": {"kind": "dcgan", "image_size": size, "classes": classes},
            "optim": {"until_images": 10},
        },
        overrides,
    )


def ignore(line: str) -> None:
    pass


def bank() -> EmojiBank:
    """Two concepts in seven styles; the colour tells the style, the half that is drawn the group."""
    records, pictures = [], np.zeros((14, 32, 32, 4), np.uint8)
    for number in range(14):
        style, flag = number % 7, number >= 7
        records.append(
            EmojiRecord(
                f"{STYLES[style]}/{flag}", f"1f4{flag:02d}", STYLES[style], "a", "甲", ("a",), ("甲",),
                "cell" if number == 13 else "train", "object", "Flags" if flag else "Food & Drink", "p",
                "MIT",
            )
        )  # fmt: skip
        half = slice(0, 16) if flag else slice(16, 32)
        pictures[number, half, :, :3] = 30 * style
        pictures[number, half, :, 3] = 255
    return EmojiBank(records, {32: pictures}, {})


@pytest.fixture
def emoji(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(class_data, "load_emoji", lambda folder: bank())
    for name in ("manifest.json", "metadata.jsonl"):
        (tmp_path / name).write_text("{}")
    return str(tmp_path)


def test_emoji_by_style(emoji: str) -> None:
    data = sources.open_data(make_recipe(emoji, classes=7), ignore)
    assert [name.en for name in data.classes] == list(STYLES)
    batch = next(data.batches(0))
    assert batch.pixels.shape == (4, 3, 16, 16)
    for picture, label in zip(batch.pixels, batch.labels, strict=True):
        drawn = ((picture + 1) * 127.5).round()
        values = set(drawn.unique().tolist())
        assert values == {255.0, 30.0 * int(label)}  # white where nothing is drawn
    assert data.held_out is not None
    assert int(data.held_out(1)[0].labels[0]) == 6


def test_emoji_by_group(emoji: str) -> None:
    data = sources.open_data(make_recipe(emoji, "data.classes=group", classes=9), ignore)
    names = [name.en for name in data.classes]
    assert len(names) == 9
    batch = next(data.batches(0))
    for picture, label in zip(batch.pixels, batch.labels, strict=True):
        upper_is_white = bool((picture[:, :8] == 1.0).all())
        assert names[int(label)] == ("food & drink" if upper_is_white else "flags")


def test_a_wrong_number_of_classes_is_refused(emoji: str) -> None:
    with pytest.raises(InputError, match=r"the data have 7 classes; set it to 7, or to 0"):
        sources.open_data(make_recipe(emoji, classes=9), ignore)
    data = sources.open_data(make_recipe(emoji, "data.classes=none"), ignore)
    assert next(data.batches(0)).labels is not None
    with pytest.raises(InputError, match="the data have no classes; set it to 0"):
        sources.open_data(make_recipe(emoji, "data.classes=none", classes=7), ignore)
    with pytest.raises(DataError, match="none for 64"):
        sources.open_data(make_recipe(emoji, size=64), ignore)


def test_a_folder_by_its_styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "art"
    folder.mkdir()
    rows = []
    for number in range(8):
        name, night = f"{number}.png", number % 2
        Image.new("RGB", (20, 20), (5, 5, number) if night else (250, 250, number)).save(folder / name)
        rows.append(json.dumps({"file_name": name, "style": "night" if night else "day", "text": "art"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    data = sources.open_data(make_recipe(str(folder), classes=2), ignore)
    assert [name.en for name in data.classes] == ["day", "night"]
    batch = next(data.batches(0))
    assert torch.equal(batch.labels, (batch.pixels.mean((1, 2, 3)) < 0).long())


def test_fashion_mnist_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def small(split: str, size: int) -> Any:
        seen.append((split, size))
        from vitrail.data.classes import ClassSet

        names = tuple(ClassName(str(number)) for number in range(10))
        labels = np.arange(20) % 10
        return ClassSet(lambda i: np.full((len(i), size, size, 3), 9, np.uint8), labels, names)

    monkeypatch.setattr(class_data, "fashion_set", small)
    data = sources.open_data(make_recipe("fashion-mnist", classes=10), ignore)
    assert seen == [("train", 16), ("test", 16)]
    assert len(data.classes) == 10
    assert next(data.batches(0)).labels.shape == (4,)
    assert data.held_out is not None
    assert len(data.held_out(10)[0]) == 10
    with pytest.raises(InputError, match="has its own"):
        sources.open_data(make_recipe("fashion-mnist", "data.classes=style", classes=10), ignore)
    other = parse_recipe(
        {"kind": "upsampler", "data": {"source": "fashion-mnist", "size": 16}, "optim": {"until_images": 9}}
    )
    assert next(sources.open_data(other, ignore).batches(0)).pixels.shape[1:] == (3, 16, 16)


def test_a_picture_without_a_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "cache"))
    folder = tmp_path / "art"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "style": "day", "text": "art"}))
    data = sources.open_data(make_recipe(str(folder), classes=1), ignore)
    with pytest.raises(DataError, match="no style and so no class"):
        next(data.batches(0))
