"""Pictures with classes for GANs: Fashion-MNIST, the emoji set by style or group, folders by style."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.batch import Batch
from vitrail.data.classes import ClassName, ClassSet, ClassStream
from vitrail.data.emoji_bank import STYLES, EmojiBank, Split, default_emoji_folder, load_emoji
from vitrail.data.fashion_mnist import default_fashion_folder, fashion_set
from vitrail.errors import DataError, InputError
from vitrail.files import sha256_of
from vitrail.recipe import CommonRecipe
from vitrail.recipe.gan import GANRecipe
from vitrail.training import sources
from vitrail.training.sources import HELD_OUT_SEED, Data, Tell

__all__ = ["FASHION", "class_data", "emoji_classes", "fashion_data"]

FASHION = "fashion-mnist"
"""The name of the source in a recipe."""

GROUPS: tuple[ClassName, ...] = (
    ClassName("smileys & emotion", "笑脸与情感", ("smiley", "face", "笑脸", "表情", "脸")),
    ClassName("people & body", "人物与身体", ("person", "people", "人", "人物")),
    ClassName("animals & nature", "动物与自然", ("animal", "nature", "plant", "动物", "植物", "自然")),
    ClassName("food & drink", "食物与饮料", ("food", "drink", "食物", "饮料")),
    ClassName("travel & places", "旅行与地点", ("travel", "place", "vehicle", "旅行", "地点", "交通")),
    ClassName("activities", "活动", ("activity", "sport", "运动")),
    ClassName("objects", "物品", ("object", "thing", "物体")),
    ClassName("symbols", "符号", ("symbol", "sign", "标志")),
    ClassName("flags", "旗帜", ("flag", "国旗", "旗")),
)
"""Unicode's groups of emoji, in its order."""

STYLE_NAMES: tuple[ClassName, ...] = tuple(ClassName(name, "", (name.replace("-", " "),)) for name in STYLES)


def class_data(recipe: GANRecipe, tell: Tell) -> Data:
    """Open ``recipe.data.source`` with the classes that ``recipe.data.classes`` asks for.

    Raises :class:`InputError` where the data have no such classes or the network not as many, and what
    opening the source raises.
    """
    source, wanted = recipe.data.source, recipe.data.classes
    if source == FASHION:
        if wanted in ("style", "group"):
            raise InputError(f"data.classes {wanted} is for emoji; fashion-mnist has its own: set it to auto")
        data = fashion_data(recipe)
    elif source == "emoji" or sources.is_emoji_set(Path(source)):
        folder = default_emoji_folder() if source == "emoji" else Path(source)
        data = emoji_classes(folder, recipe, "group" if wanted == "group" else "style")
    else:
        if wanted == "group":
            raise InputError("data.classes group is for emoji; folders have styles: set it to style")
        data = _labelled(sources.open_pictures(recipe, tell))
    have = 0 if wanted == "none" else len(data.classes)
    if recipe.model.classes not in (0, have):
        raise InputError(
            f"model.classes is {recipe.model.classes}, but the data have {have or 'no'} classes; "
            + (f"set it to {have}, or to 0 for a network without classes" if have else "set it to 0")
        )
    return data


def fashion_data(recipe: CommonRecipe) -> Data:
    """Train on the 60,000 pictures of Fashion-MNIST; its 10,000 test pictures are the held-out ones."""
    size = recipe.data.size
    manifest = sha256_of(default_fashion_folder() / "manifest.json") if _built() else None
    shown, kept = fashion_set("train", size), fashion_set("test", size)
    return _streamed(shown, kept, recipe, manifest)


def _built() -> bool:
    return (default_fashion_folder() / "manifest.json").is_file()


def emoji_classes(folder: Path, recipe: GANRecipe, by: Literal["style", "group"]) -> Data:
    """Train on the plain pictures of the emoji set, on white; the classes are house styles or groups."""
    bank = load_emoji(folder)
    names = STYLE_NAMES if by == "style" else GROUPS
    numbers = {name.en: number for number, name in enumerate(names)}
    labels = np.array(
        [numbers.get(record.style if by == "style" else record.group.lower(), -1) for record in bank.records],
        np.int64,
    )
    shown = _emoji_set(bank, labels, names, ("train",), recipe.data.size)
    kept = _emoji_set(bank, labels, names, ("cell",), recipe.data.size)
    manifest = sha256_of(folder / "manifest.json")
    return _streamed(shown, kept if len(kept.labels) else None, recipe, manifest)


def _emoji_set(
    bank: EmojiBank,
    labels: NDArray[np.int64],
    names: tuple[ClassName, ...],
    splits: tuple[Split, ...],
    size: int,
) -> ClassSet:
    whole = [side for side in sorted(bank.arrays) if side >= size and side % size == 0]
    if not whole:
        raise DataError(f"the emoji set holds pictures of {sorted(bank.arrays)} pixels, none for {size}")
    side = whole[0]
    array, factor = bank.pictures(side), side // size
    members = bank.indices(*splits)
    members = members[labels[members] >= 0]

    def pictures(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        drawn = array[members[indices]].astype(np.float32)
        alpha = drawn[..., 3:] / np.float32(255)
        on_white = drawn[..., :3] * alpha + 255 * (1 - alpha)
        blocks = on_white.reshape(len(indices), size, factor, size, factor, 3)
        averaged: NDArray[np.uint8] = np.rint(blocks.mean((2, 4))).astype(np.uint8)
        return averaged

    return ClassSet(pictures, labels[members], names)


def _streamed(shown: ClassSet, kept: ClassSet | None, recipe: CommonRecipe, manifest: str | None) -> Data:
    data = recipe.data

    def held_out(count: int) -> list[Batch]:
        assert kept is not None
        stream = ClassStream(kept, min(count, 64), HELD_OUT_SEED)
        return list(islice(stream(0), max(1, count // 64)))

    stream = ClassStream(shown, data.batch_size, recipe.run.seed, flip=data.flip)
    return Data(stream, None if kept is None else held_out, manifest, (), shown.names)


def _labelled(data: Data) -> Data:
    """Return folder data whose classes are its styles; pictures without a style cannot be used with them."""
    if not data.styles:
        return data

    def batches(seen: int) -> Iterator[Batch]:
        for batch in data.batches(seen):
            if not bool((batch.styles > 0).all()):
                raise DataError(
                    "a picture of the folder has no style and so no class; sort them all, or set "
                    "data.classes to none and model.classes to 0"
                )
            yield replace(batch, labels=batch.styles.to(torch.int64) - 1)

    return replace(data, batches=batches, classes=tuple(ClassName(name) for name in data.styles))
