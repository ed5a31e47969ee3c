"""The judge of the emoji set: trained once on its training split, then kept in the cache.

Its file is named after its settings and the data's manifest. A changed set or setting gets a new judge, and
figures of two judges must not be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from vitrail.data.captions import english, names, plural
from vitrail.data.emoji_bank import EmojiBank
from vitrail.data.object_index import COLOURS
from vitrail.data.packages import cache_folder
from vitrail.data.scenes import SCENES
from vitrail.data.synthesis import Synthesiser
from vitrail.errors import ArtifactError
from vitrail.evaluation.judge_data import concepts_of, single_pictures
from vitrail.evaluation.judge_scenes import COUNTS, RELATIONS, composed_pictures
from vitrail.evaluation.matcher import Matcher, MatcherSettings
from vitrail.evaluation.matcher_training import MatcherBatch, train_matcher

__all__ = ["data_hash", "judge_captions", "judge_stream", "open_judge"]

COMPOSED_SHARE = 0.2


def data_hash(bank: EmojiBank) -> str:
    """Return a digest of the set: of the file hashes in its manifest, or without one of the data itself."""
    digest = hashlib.sha256()
    if bank.manifest:
        digest.update(json.dumps(bank.manifest["files"], sort_keys=True).encode())
    else:
        for record in bank.records:
            digest.update(record.to_json().encode())
        for side in sorted(bank.arrays):
            digest.update(np.ascontiguousarray(bank.arrays[side]).tobytes())
    return digest.hexdigest()


def judge_captions(bank: EmojiBank, composer: Synthesiser) -> list[str]:
    """Return captions that hold every word the judge learns: names, plurals, keywords, sentences."""
    draw = np.random.default_rng(3)
    captions = [*COLOURS, *COUNTS, *RELATIONS.values(), "a an the and on background"]
    captions += [phrase for scene in SCENES.values() for phrase in scene.phrases]
    for row in bank.indices("train"):
        record = bank.records[row]
        bare = names(record.name_en)
        captions += [record.name_en, *bare, *record.keywords_en, english(record, draw, styled=0.0)]
        captions += [many for name in bare if (many := plural(name)) is not None]
    if not composer.empty:
        captions += [composer.draw(draw).caption for _ in range(2000)]
    return captions


def judge_stream(
    bank: EmojiBank, composer: Synthesiser, settings: MatcherSettings
) -> Callable[[int], Iterator[MatcherBatch]]:
    """Return the judge's training stream as a function of a seed: single pictures, and one in five composed.

    Both kinds are in every batch: batch normalisation must see the mixture that its running means describe.
    """
    composed = 0 if composer.empty else int(settings.batch * COMPOSED_SHARE)
    size = settings.image_size

    def stream(seed: int) -> Iterator[MatcherBatch]:
        singles = single_pictures(bank, size, settings.batch - composed, seed)
        if not composed:
            yield from singles
        for one, other in zip(singles, composed_pictures(bank, composer, size, composed, seed), strict=False):
            yield MatcherBatch(
                torch.cat([one.pixels, other.pixels]),
                [*one.captions, *other.captions],
                [*one.labels, *other.labels],
                other.wrong,
            )

    return stream


def open_judge(
    bank: EmojiBank,
    composer: Synthesiser,
    settings: MatcherSettings | None = None,
    *,
    folder: Path | None = None,
    report: Callable[[int, float, float], None] | None = None,
) -> Matcher:
    """Return the judge of ``bank``: read from ``folder`` (default: ``judges`` in vitrail's cache), else
    trained.

    Training takes about twelve minutes on one free core and is written to the folder. ``report`` as in
    ``train_matcher``. Raises :class:`~vitrail.errors.ArtifactError` for a damaged or renamed file.
    """
    settings = settings or MatcherSettings()
    digest = data_hash(bank)
    path = (folder or cache_folder() / "judges") / f"judge-{settings.digest(digest)}.safetensors"
    if path.is_file():
        found = Matcher.load(path)
        if path.stem != f"judge-{found.name}":
            raise ArtifactError(f"{path} holds the judge {found.name}; delete it and train the judge again")
        return found
    matcher = train_matcher(
        settings,
        judge_captions(bank, composer),
        judge_stream(bank, composer, settings),
        data_hash=digest,
        common=[concept.caption.lower() for concept in concepts_of(bank)],
        report=report,
    )
    matcher.save(path)
    return matcher
