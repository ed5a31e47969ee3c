"""CLIP's tokenizer: text to numbers, from the files of a diffusers folder or OpenAI's list of merges.

A single-file checkpoint holds no vocabulary. CLIP's own, with which every Stable Diffusion was trained, is in
a package of the Python registry: it is fetched once, by its hash, and kept
(:func:`standard_words`). Byte-level BPE: Radford et al. 2021, https://github.com/openai/CLIP,
simple_tokenizer.py.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from vitrail.data.packages import Package, fetch, read_members
from vitrail.errors import ArtifactError, DataError, StorageError
from vitrail.files import atomic_write, cache_folder, shown
from vitrail.models.lexicon import HAN, translate

__all__ = ["CLIP_PACKAGE", "MAX_TOKENS", "ClipWords", "chinese_hint", "standard_words", "words_beside"]

MAX_TOKENS = 75
"""Tokens between the start and the end of what CLIP reads at once."""

CLIP_PACKAGE = Package(
    "clip-anytorch",
    "2.6.0",
    "ebc0afed243851b9dc7e16ab8afb665237e8a5838986e97cd99f123ae4ce94ce",
    "MIT",
    "CLIP by OpenAI (github.com/openai/CLIP), packaged by Romain Beaumont",
    "pip",
)
"""Where CLIP's merges come from."""

START, END = "<|startoftext|>", "<|endoftext|>"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_STANDARD_MERGES = 49152 - 256 - 2
_MAX_BYTES = 16 << 20
_MAX_PIECES = 1 << 20

_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipWords:
    """A CLIP vocabulary at work.

    vocabulary: pieces to numbers. merges: pairs of pieces, the most common first. pad: the piece that fills
    what is left of 77 places (SD1 the end, SD2 and the second encoder of SDXL ``!``).

    Raises :class:`ArtifactError` where these are no CLIP vocabulary.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], pad: str = END
    ) -> None:
        for piece in (START, END):
            if piece not in vocabulary:
                raise ArtifactError(f"the tokenizer has no {piece}; it is not CLIP's")
        if pad not in vocabulary:
            raise ArtifactError(f"the tokenizer pads with {shown(pad, 40)!r}, which its vocabulary lacks")
        self.vocabulary = dict(vocabulary)
        self.merges = list(merges)
        self.start, self.end, self.pad = vocabulary[START], vocabulary[END], vocabulary[pad]
        self.comma = vocabulary.get(",</w>")
        try:
            model = models.BPE(
                self.vocabulary, self.merges, unk_token=END, end_of_word_suffix="</w>", fuse_unk=False
            )
        except Exception as error:  # the library raises bare Exceptions for merges that do not fit
            raise ArtifactError(f"the tokenizer's files do not fit together: {shown(error, 100)}") from None
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __len__(self) -> int:
        return 1 + max(self.vocabulary.values())

    def ids(self, text: str) -> list[int]:
        """Return the numbers of a text, without start and end, of any length."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def padded_with(self, pad: str) -> ClipWords:
        """Return the same vocabulary with another padding."""
        return ClipWords(self.vocabulary, self.merges, pad)

    @classmethod
    def from_folder(cls, folder: Path) -> ClipWords:
        """Read a ``tokenizer/`` folder: ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.

        Raises :class:`ArtifactError` with one line for anything else.
        """
        place = shown(folder)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocabulary: Any = _json(folder / "vocab.json")
            lines = _text(folder / "merges.txt").splitlines()
            pairs: Any = [
                tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")
            ]
        elif (folder / "tokenizer.json").is_file():
            model = _json(folder / "tokenizer.json").get("model")
            if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
                raise ArtifactError(f"{place}: tokenizer.json is not a BPE tokenizer; it is not CLIP's")
            vocabulary = model.get("vocab")
            given = model.get("merges")
            pairs = [
                tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
                for pair in (given if isinstance(given, list) else [])
                if isinstance(pair, str | list)
            ]
        else:
            raise ArtifactError(f"{place} has neither vocab.json and merges.txt nor tokenizer.json")
        if not _is_vocabulary(vocabulary):
            raise ArtifactError(f"{place}: its vocabulary is not a table of pieces and their numbers")
        if (
            not pairs
            or len(pairs) > _MAX_PIECES
            or any(len(pair) != 2 or not all(isinstance(piece, str) for piece in pair) for pair in pairs)
        ):
            raise ArtifactError(f"{place}: its merges are not pairs of pieces")
        try:
            return cls(vocabulary, pairs, _pad(folder))
        except ArtifactError as error:
            raise ArtifactError(f"{place}: {error}") from None

    @classmethod
    def from_merges(cls, lines: Sequence[str], pad: str = END) -> ClipWords:
        """Build the vocabulary from merges alone, numbered as OpenAI's: bytes, bytes that end a word, merges,
        start, end."""
        pairs = [(parts[0], parts[1]) for line in lines if len(parts := line.split()) == 2]
        letters = _letters()
        pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs)]
        vocabulary = {piece: number for number, piece in enumerate([*pieces, START, END])}
        return cls(vocabulary, pairs, pad)

    @classmethod
    def from_bpe_file(cls, path: Path, pad: str = END) -> ClipWords:
        """Read ``bpe_simple_vocab_16e6.txt.gz`` (or the same unpacked)."""
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ArtifactError(f"cannot open {shown(path)}: {error.strerror}") from None
        return cls.from_merges(_merge_lines(data, shown(path)), pad)


def chinese_hint(prompt: str) -> str | None:
    """What to say of a Chinese prompt, in Chinese: CLIP spells it byte by byte; None for any other.

    The lexicon's English is given as an example where the prompt is plain words that it knows.
    """
    if HAN.search(prompt) is None:
        return None
    english = "" if re.search(r"[<>()\[\]|:]", prompt) else translate(prompt).english[:80]
    example = f"，例如：{english}" if english and HAN.search(english) is None else ""
    return f"该模型的文本编码器只懂英文；请用英文写提示词{example}"


def words_beside(file: Path) -> Path | None:
    """Return the tokenizer folder that somebody put beside a single file: ``NAME.tokenizer/`` or
    ``tokenizer/``; None where there is none."""
    for folder in (file.with_suffix(".tokenizer"), file.parent / "tokenizer"):
        if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            return folder
    return None


def standard_words(place: Path | None = None, *, pad: str = END) -> ClipWords:
    """Return CLIP's vocabulary for a checkpoint that brings none.

    place: a tokenizer folder, a diffusers folder that has one, or the file of merges; by default the copy in
    the cache, which is fetched from the Python registry when it is first needed.

    Raises :class:`ArtifactError` where it cannot be had, naming the ways to give one.
    """
    if place is not None:
        if place.is_dir():
            inside = place / "tokenizer"
            words = ClipWords.from_folder(inside if inside.is_dir() else place)
            return words.padded_with(pad)
        return ClipWords.from_bpe_file(place, pad)
    kept = cache_folder() / "networks" / BPE_FILE
    if not kept.is_file():
        try:
            archive = fetch(CLIP_PACKAGE)
            found = [
                data for _, data in read_members(archive, lambda name: name.endswith("clip/" + BPE_FILE))
            ]
            if len(found) != 1:
                raise DataError(
                    f"{archive.name} holds {len(found)} files {BPE_FILE}, expected one; delete it"
                )
            atomic_write(kept, found[0])
        except (DataError, StorageError) as error:
            raise ArtifactError(
                "a single-file checkpoint needs CLIP's vocabulary, which it does not hold, and it could not "
                f"be fetched: {error}. Or put the tokenizer/ folder of any Stable Diffusion beside the file"
            ) from None
    return ClipWords.from_bpe_file(kept, pad)


def _letters() -> list[str]:
    """The letter of each byte, in the order of CLIP's vocabulary: bytes that print stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [value for value in range(256) if value not in set(plain)]
    return [chr(value) for value in plain] + [chr(256 + place) for place in range(len(rest))]


def _merge_lines(data: bytes, place: str) -> list[str]:
    try:
        if data[:2] == b"\x1f\x8b":
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(data, _MAX_BYTES)
        lines = data.decode("utf-8").splitlines()
    except (zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ArtifactError(f"{place} is not a list of merges: {shown(error, 80)}") from None
    if not lines or "version" not in lines[0]:
        raise ArtifactError(f"{place} is not CLIP's list of merges: its first line names no version")
    return lines[1 : 1 + _STANDARD_MERGES]


def _is_vocabulary(value: object) -> bool:
    return (
        isinstance(value, dict)
        and 2 < len(value) <= _MAX_PIECES
        and all(isinstance(piece, str) and type(number) is int for piece, number in value.items())
        and all(0 <= number < _MAX_PIECES for number in value.values())
    )


def _pad(folder: Path) -> str:
    """The padding that a folder names, in whichever of its files; the end where none does."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            given = _json(folder / name).get("pad_token")
            given = given.get("content") if isinstance(given, dict) else given
            if isinstance(given, str):
                return given
    return END


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ArtifactError(f"{shown(path)} is larger than {_MAX_BYTES} bytes; it is no tokenizer's")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ArtifactError(f"cannot open {shown(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{shown(path)} is not UTF-8 text") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{shown(path)} is not valid JSON: {shown(error, 100)}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{shown(path)} holds no table")
    return value
