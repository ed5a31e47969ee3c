"""The batches and the text encoder that a recipe asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from torch.nn import functional

from vitrail.data.batch import Batch
from vitrail.data.cache import ArrayCache
from vitrail.data.classes import ClassName
from vitrail.data.emoji_bank import STYLES, default_emoji_folder, load_emoji
from vitrail.data.folder import FolderSource
from vitrail.data.folder_stream import FolderStream
from vitrail.data.prefetch import prefetched
from vitrail.data.stream import EmojiStream
from vitrail.data.transforms import Augmentation
from vitrail.files import cache_folder, sha256_of
from vitrail.models.lexicon import translate
from vitrail.models.text import TextEncoder
from vitrail.recipe import CommonRecipe, TextToImageRecipe
from vitrail.recipe.gan import GANRecipe

__all__ = [
    "Data",
    "emoji_data",
    "folder_data",
    "is_emoji_set",
    "open_data",
    "open_pictures",
    "picture_cache",
    "prefetched",
    "shipped_encoder",
]

#: Seed of the held-out pictures: the same ones in every run.
HELD_OUT_SEED = 123

#: Most that the cache of resized pictures may hold when a run begins; what was written first goes first.
MAX_CACHE_BYTES = 8 << 30

#: Most threads that decode the pictures of a folder; the pictures do not depend on their number.
MAX_WORKERS = 8

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """Where a run's pictures come from.

    ``batches``: pictures seen so far -> the batches that follow, without end, a pure function of that number.
    ``held_out``: number of pictures -> batches never trained on; None if there are none.
    ``manifest_sha256``: of the data set, for the model's card.
    ``styles``: names of the styles, in order; number 1 is the first.
    ``classes``: what the labels of the batches mean, from 0; () if they have none.
    """

    batches: Callable[[int], Iterator[Any]]
    held_out: Callable[[int], Sequence[Any]] | None = None
    manifest_sha256: str | None = None
    styles: tuple[str, ...] = ()
    classes: tuple[ClassName, ...] = ()


def shipped_encoder() -> TextEncoder:
    """Load the text encoder that comes with vitrail; :class:`ArtifactError` if it is not there."""
    return TextEncoder.load(Path(str(resources.files("vitrail"))) / "shipped" / "default")


def open_data(recipe: CommonRecipe, tell: Tell) -> Data:
    """Open what ``recipe.data.source`` names: the built emoji set ("emoji", or its folder), Fashion-MNIST
    ("fashion-mnist"), or a folder of pictures; a GAN's with their classes.

    ``tell`` gets a line for every picture of a folder that cannot be used. Raises :class:`DataError` if the
    emoji set is not built or the folder has no usable picture, :class:`InputError` if there is no such
    folder.
    """
    from vitrail.training import class_data  # which opens folders through this module

    if isinstance(recipe, GANRecipe):
        return class_data.class_data(recipe, tell)
    if recipe.data.source == class_data.FASHION:
        return class_data.fashion_data(recipe)
    return open_pictures(recipe, tell)


def open_pictures(recipe: CommonRecipe, tell: Tell) -> Data:
    """Open the emoji set or a folder, without classes; see :func:`open_data`."""
    source = recipe.data.source
    if source == "emoji":
        return emoji_data(default_emoji_folder(), recipe)
    if is_emoji_set(Path(source)):
        return emoji_data(Path(source), recipe)
    cache = picture_cache() if recipe.data.cache else None
    return folder_data(FolderSource.open(source, cache=cache), recipe, tell, cache)


def picture_cache() -> ArrayCache:
    """Open the cache of pictures that were checked and resized, in ``pictures`` of the cache folder.

    Entries are found by content, so every run and every folder shares it; it is cut to
    :data:`MAX_CACHE_BYTES`.
    """
    cache = ArrayCache(cache_folder() / "pictures")
    cache.prune(MAX_CACHE_BYTES)
    return cache


def is_emoji_set(folder: Path) -> bool:
    """Tell whether ``folder`` is a built emoji set and not a folder of pictures."""
    return (folder / "manifest.json").is_file() and (folder / "metadata.jsonl").is_file()


def emoji_data(folder: Path, recipe: CommonRecipe) -> Data:
    """Train on the built emoji set; its held-out pictures are the (concept, style) cells of the split "cell".

    A size that the set does not hold is the area average of the next larger one that it is a whole part of.
    """
    bank = load_emoji(folder)
    data = recipe.data
    whole = [side for side in sorted(bank.arrays) if side >= data.size and side % data.size == 0]
    size = (
        whole[0] if whole else data.size
    )  # a size that cannot be made is refused by the bank, with those it has
    factor = size // data.size

    def stream(batch_size: int, seed: int, **options: Any) -> EmojiStream:
        return EmojiStream(bank, batch_size, seed, size=size, **options)

    def smaller(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch if factor == 1 else replace(batch, pixels=functional.avg_pool2d(batch.pixels, factor))

    shown = stream(
        data.batch_size,
        recipe.run.seed,
        synthetic_share=data.synthetic_share,
        caption_drop=data.caption_drop,
        style_drop=data.style_drop,
        flip=data.flip,
        jitter=data.jitter,
    )

    def held_out(count: int) -> list[Batch]:
        plain = {"synthetic_share": 0.0, "caption_drop": 0.0, "style_drop": 0.0, "flip": 0.0, "jitter": 0.0}
        kept = stream(min(count, 64), HELD_OUT_SEED, splits=("cell",), **plain)
        return list(islice(smaller(kept(0)), max(1, count // 64)))

    return Data(
        lambda seen: smaller(shown(seen)),
        held_out if len(bank.indices("cell")) else None,
        sha256_of(folder / "manifest.json"),
        STYLES,
    )


def folder_data(
    source: FolderSource,
    recipe: CommonRecipe,
    tell: Tell,
    cache: ArrayCache | None = None,
) -> Data:
    """Train on a checked folder: order and variations follow from the recipe's seed alone.

    Chinese captions are read in English, as prompts are. Styles beyond those the model has numbers for are 0.
    With ``cache`` the resized pictures are kept for the next run. Where the recipe prepares batches ahead,
    several threads decode.
    """
    for problem in source.problems:
        tell(f"left out: {problem.path}: {problem.reason}")
    data = recipe.data
    room = recipe.model.styles if isinstance(recipe, TextToImageRecipe) else len(source.styles)
    stream = FolderStream(
        source,
        batch_size=data.batch_size,
        seed=recipe.run.seed,
        size=data.size,
        buckets=data.buckets,
        augmentation=Augmentation(flip=data.flip, crop=data.crop),
        caption_drop=data.caption_drop,
        style_drop=data.style_drop,
        styles=source.styles[:room],
        caption=lambda caption: translate(caption).english,
        cache=cache,
        workers=_workers(),
        # The run itself prepares batches ahead; this one only keeps the decoding threads busy.
        prefetch=min(1, data.prefetch),
    )
    return Data(stream, None, source.content_hash(), source.styles[:room])


def _workers() -> int:
    """Cores that this process may use, at most :data:`MAX_WORKERS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, usable)
