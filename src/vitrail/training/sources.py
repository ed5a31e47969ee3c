"""The batches and the text encoder that a recipe asks for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from torch.nn import functional

from vitrail.data.batch import Batch
from vitrail.data.emoji_bank import STYLES, default_emoji_folder, load_emoji
from vitrail.data.folder import FolderSource
from vitrail.data.folder_stream import FolderStream
from vitrail.data.stream import EmojiStream
from vitrail.data.transforms import Augmentation
from vitrail.files import sha256_of
from vitrail.models.lexicon import translate
from vitrail.models.text import TextEncoder
from vitrail.recipe import TextToImageRecipe, UpsamplerRecipe

__all__ = ["Data", "emoji_data", "folder_data", "is_emoji_set", "open_data", "prefetched", "shipped_encoder"]

#: Seed of the held-out pictures: the same ones in every run.
HELD_OUT_SEED = 123

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """Where a run's pictures come from.

    ``batches``: pictures seen so far -> the batches that follow, without end, a pure function of that number.
    ``held_out``: number of pictures -> batches never trained on; None if there are none.
    ``manifest_sha256``: of the data set, for the model's card.
    ``styles``: names of the styles, in order; number 1 is the first.
    """

    batches: Callable[[int], Iterator[Any]]
    held_out: Callable[[int], Sequence[Any]] | None = None
    manifest_sha256: str | None = None
    styles: tuple[str, ...] = ()


def shipped_encoder() -> TextEncoder:
    """Load the text encoder that comes with vitrail; :class:`ArtifactError` if it is not there."""
    return TextEncoder.load(Path(str(resources.files("vitrail"))) / "shipped" / "default")


def open_data(recipe: TextToImageRecipe | UpsamplerRecipe, tell: Tell) -> Data:
    """Open what ``recipe.data.source`` names: the built emoji set ("emoji", or its folder), or a folder of
    pictures.

    ``tell`` gets a line for every picture of a folder that cannot be used. Raises :class:`DataError` if the
    emoji set is not built or the folder has no usable picture, :class:`InputError` if there is no such
    folder.
    """
    source = recipe.data.source
    if source == "emoji":
        return emoji_data(default_emoji_folder(), recipe)
    if is_emoji_set(Path(source)):
        return emoji_data(Path(source), recipe)
    return folder_data(FolderSource.open(source), recipe, tell)


def is_emoji_set(folder: Path) -> bool:
    """Tell whether ``folder`` is a built emoji set and not a folder of pictures."""
    return (folder / "manifest.json").is_file() and (folder / "metadata.jsonl").is_file()


def emoji_data(folder: Path, recipe: TextToImageRecipe | UpsamplerRecipe) -> Data:
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


def folder_data(source: FolderSource, recipe: TextToImageRecipe | UpsamplerRecipe, tell: Tell) -> Data:
    """Train on a checked folder: order and variations follow from the recipe's seed alone.

    Chinese captions are read in English, as prompts are. Styles beyond those the model has numbers for are 0.
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
        prefetch=0,  # the run prepares batches ahead itself
    )
    return Data(stream, None, source.content_hash(), source.styles[:room])


def prefetched(batches: Callable[[int], Iterator[Any]], depth: int) -> Callable[[int], Iterator[Any]]:
    """Prepare up to ``depth`` batches ahead in a background thread; order and content stay the same.

    An exception in the thread is raised where the batch is asked for. Closing the iterator ends the thread.
    """
    if depth == 0:
        return batches

    def ahead(images_seen: int) -> Iterator[Any]:
        ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=depth)
        closed = threading.Event()

        def put(item: tuple[Any, BaseException | None]) -> bool:
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def work() -> None:
            try:
                for batch in batches(images_seen):
                    if not put((batch, None)):
                        return
                put((None, None))
            except BaseException as error:  # handed over: it is raised in the training thread
                put((None, error))

        thread = threading.Thread(target=work, name="vitrail-batches", daemon=True)
        thread.start()
        try:
            while True:
                batch, error = ready.get()
                if error is not None:
                    raise error
                if batch is None:
                    return
                yield batch
        finally:
            closed.set()
            thread.join(
                timeout=1.0
            )  # it may be in the middle of a slow read; it is a daemon and stops by itself

    return ahead
