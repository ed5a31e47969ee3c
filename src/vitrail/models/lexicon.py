"""Chinese prompts into the English that the text encoder reads, by a lexicon and a small grammar.

The text encoder knows English only (a Chinese character is ``[UNK]`` to it), so a Chinese or mixed prompt is
cut into words (:func:`segment`: the cheapest path through a unigram model), each word looked up, and the
words put into English order by :mod:`vitrail.models.lexicon_grammar`. Emoji become their Unicode names. A
word without a translation is left out of the English and reported, never guessed in silence; a word that was
translated by a near one says so too.

The lexicon file is built by :func:`vitrail.data.lexicon_sources.build_lexicon` from a hand-written table, the
parallel names and keywords of Unicode CLDR and, for what those lack, nearest neighbours in a word embedding.
"""

from __future__ import annotations

import functools
import gzip
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from vitrail.errors import ArtifactError
from vitrail.models.lexicon_grammar import Clauses, Token

__all__ = ["Lexicon", "Sense", "Translation", "load_lexicon", "segment", "translate", "whole_key"]

LEXICON_FILE = "lexicon.tsv.gz"
SHIPPED_LEXICON = Path(__file__).parent.parent / "shipped" / "default" / LEXICON_FILE

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3007\U00020000-\U000323af]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:['’-][A-Za-z\u00c0-\u024f]+)*|[0-9]+")
_QUOTED = re.compile('“[^“”]*”|「[^「」]*」|『[^『』]*』|"[^"]*"')
_LETTERS = re.compile(r"[^\W\d_]+")
_NUMBERS = (
    "zero",
    "a",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_UNNAMED = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")  # presentation selectors and skin tones
MAX_CHARACTERS = 2000  # of a Chinese prompt; the encoder reads some twenty words of its English
_UNKNOWN_COST = (
    120  # a character that no entry covers; dearer than any entry (see lexicon_sources.COST_SCALE)
)
_LATIN_COST = 20


class Sense(NamedTuple):
    """One meaning of a Chinese word: ``english`` may be empty (function words), ``tag`` is its part of
    speech.

    Tags are those of :data:`vitrail.models.lexicon_tables.TAGS`. ``near`` is the Chinese word whose meaning
    was taken because it is the nearest one in a word embedding, "" for an exact entry.
    """

    english: str
    tag: str
    near: str = ""


class Lexicon(NamedTuple):
    """A loaded lexicon file.

    ``words``: Chinese word -> its senses, first choice first; ``costs``: word -> its unigram cost;
    ``simplify``: code point of a traditional character -> simplified one; ``emoji``: characters (without
    U+FE0F) -> English name; ``whole``: :func:`whole_key` of a prompt that is the Chinese name of an emoji ->
    its English name; ``vocabulary``: lower-case English words that the training captions can hold.
    """

    words: dict[str, list[Sense]]
    costs: dict[str, int]
    simplify: dict[int, str]
    emoji: dict[str, str]
    whole: dict[str, str]
    vocabulary: frozenset[str]
    longest: int
    longest_emoji: int


class Translation(NamedTuple):
    """English for a prompt.

    ``english``: what the encoder should read (the prompt itself, emoji named, when it holds no Chinese);
    ``unknown``: words that no entry covers, left out of ``english``, in order, each once; ``chinese``:
    whether the prompt holds Chinese characters; ``near``: (word, the word it was read as) for approximate
    entries.
    """

    english: str
    unknown: list[str]
    chinese: bool
    near: list[tuple[str, str]]


def load_lexicon(path: str | os.PathLike[str] | None = None) -> Lexicon:
    """Read a lexicon file (default: the shipped one) once a process; ArtifactError if it is damaged."""
    return _load(os.fspath(path) if path is not None else str(SHIPPED_LEXICON))


@functools.cache
def _load(path: str) -> Lexicon:
    words: dict[str, list[Sense]] = {}
    costs: dict[str, int] = {}
    emoji: dict[str, str] = {}
    whole: dict[str, str] = {}
    simplify: dict[int, str] = {}
    vocabulary: frozenset[str] = frozenset()
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                word, english, tag, cost, near = line.rstrip("\n").split("\t")
                if tag == "emoji":
                    emoji[word] = english
                elif tag == "whole":
                    whole[word] = english
                elif tag == "simplify":
                    simplify = {ord(a): b for a, b in zip(word, english, strict=True)}
                elif tag == "vocabulary":
                    vocabulary = frozenset(english.split())
                else:
                    words.setdefault(word, []).append(Sense(english, tag, near))
                    costs[word] = int(cost)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; build it with `vitrail data build text`") from error
    except (OSError, EOFError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a lexicon ({error}); build it again with `vitrail data build text`"
        ) from error
    if not (words and emoji and simplify and vocabulary):
        raise ArtifactError(f"{path} is not a whole lexicon; build it again with `vitrail data build text`")
    longest, longest_emoji = max(map(len, words)), max(map(len, emoji))
    return Lexicon(words, costs, simplify, emoji, whole, vocabulary, longest, longest_emoji)


def translate(prompt: str, lexicon: Lexicon | None = None) -> Translation:
    """Return the English of ``prompt``. Deterministic, and total: any string has a translation.

    Of a prompt with Chinese in it the first 2,000 characters are read; words in quotation marks are left out.

    >>> translate("一只猫坐在花园里").english
    'a cat sitting in a garden'
    """
    lexicon = load_lexicon() if lexicon is None else lexicon
    # Emoji first: NFKC would turn some of them into letters.
    text = unicodedata.normalize("NFKC", _name_emoji(prompt, lexicon))[:MAX_CHARACTERS]
    if not HAN.search(unicodedata.normalize("NFKC", prompt)):
        plain = _name_emoji(prompt, lexicon)
        foreign = [word for word in _LETTERS.findall(plain) if not _is_latin(word)]
        return Translation(" ".join(plain.split()) if plain != prompt else prompt, _once(foreign), False, [])
    name = lexicon.whole.get(whole_key(text, lexicon.simplify))
    if name is not None:
        return Translation(name, [], True, [])
    text = _QUOTED.sub(" ", text)  # words to be written in the picture are not things to be drawn
    clauses = Clauses()
    unknown: list[str] = []
    near: list[tuple[str, str]] = []
    for token in segment(text.translate(lexicon.simplify), lexicon):
        if token.tag in "?@":
            unknown.append(token.word)
        if token.near and (token.word, token.near) not in near:
            near.append((token.word, token.near))
        clauses.feed(token)
    return Translation(clauses.english(), _once(unknown), True, near)


def whole_key(text: str, simplify: Mapping[int, str]) -> str:
    """The form under which names of emoji are kept that are more than words (``女人: 红发``)."""
    plain = unicodedata.normalize("NFKC", text).translate(simplify).casefold()
    return "".join(character for character in plain if character.isalnum())


def segment(text: str, lexicon: Lexicon) -> Iterator[Token]:
    """Cut simplified text into tokens: the path of least total cost, dynamic programming over positions.

    Words cost what the lexicon says (about the negative logarithm of their frequency), a run of Latin letters
    or digits little, an uncovered character much. Tokens have the tag of their only sense, or of the sense
    that the word before calls for (a measure word needs a number); "?" = unknown, "." = punctuation, "=" =
    Latin.
    """
    size = len(text)
    best = [0.0] * (size + 1)
    step = [1] * size
    latin = {match.start(): len(match[0]) for match in _LATIN.finditer(text)}
    for i in range(size - 1, -1, -1):
        best[i], step[i] = best[i + 1] + (_UNKNOWN_COST if text[i].isalnum() else 0), 1
        if i in latin:
            _keep(best, step, i, latin[i], _LATIN_COST)
        for length in range(1, min(lexicon.longest, size - i) + 1):
            cost = lexicon.costs.get(text[i : i + length].lower())
            if cost is not None:
                _keep(best, step, i, length, cost)
    previous = ""
    i = 0
    while i < size:
        chunk = text[i : i + step[i]]
        i += step[i]
        senses = lexicon.words.get(chunk.lower())
        if senses is not None:
            sense = _choose(senses, previous)
            token = Token(chunk, sense.english, sense.tag, sense.near)
        elif _LATIN.fullmatch(chunk):
            count = int(chunk) if chunk.isdecimal() and len(chunk) < 3 else 99
            number = _NUMBERS[count] if count < len(_NUMBERS) else ""
            token = Token(chunk, number or chunk, "q" if chunk.isdecimal() else "=")
        elif not chunk.isalnum():
            token = Token(chunk, "", " " if chunk.isspace() else ".")
        else:
            while i < size and step[i] == 1 and text[i].isalnum() and text[i].lower() not in lexicon.words:
                chunk += text[i]
                i += 1
            token = Token(chunk, "", "?")
        if token.tag != " ":
            previous = token.tag
        yield token


def _keep(best: list[float], step: list[int], i: int, length: int, cost: int) -> None:
    total = best[i + length] + cost
    if total <= best[i]:  # on a tie the longer word, which is tried later
        best[i], step[i] = total, length


def _choose(senses: list[Sense], previous: str) -> Sense:
    """The measure sense after a number, else the first other one."""
    wanted = [sense for sense in senses if (sense.tag == "m") == (previous == "q")]
    return (wanted or senses)[0]


def _name_emoji(text: str, lexicon: Lexicon) -> str:
    """Put names in place of emoji (longest sequence first), set off by spaces; skin tones have no name."""
    bare = _UNNAMED.sub("", text)
    parts: list[str] = []
    i = 0
    while i < len(bare):
        length = (
            min(lexicon.longest_emoji, len(bare) - i)
            if bare[i] > "\u00a8" or bare[i] in "#*0123456789"
            else 0
        )
        while length and bare[i : i + length] not in lexicon.emoji:
            length -= 1
        parts.append(f" {lexicon.emoji[bare[i : i + length]]} " if length else bare[i])
        i += max(length, 1)
    return "".join(parts).replace("\u200d", "")


def _is_latin(word: str) -> bool:
    return all(character < "\u0250" for character in word)


def _once(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))
