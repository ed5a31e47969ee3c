"""Which concept a picture shows: code points, names and keywords from Unicode CLDR, names of icon sets.

A concept is its code points in hex without the presentation selector FE0F ("1f408", "1f468-200d-1f33e").
Sets that name their icons in words are matched by normalised name against CLDR, the Unicode character names
and the sets that carry code points.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitrail.data.packages import read_members
from vitrail.errors import DataError

__all__ = ["Annotation", "NameIndex", "concept_of", "family_of", "is_wanted", "normalise", "read_annotations"]

SKIN_TONES = frozenset(f"{code:x}" for code in range(0x1F3FB, 0x1F400))
HAIR_PARTS = frozenset(f"{code:x}" for code in range(0x1F9B0, 0x1F9B4))
FACING_RIGHT = "-200d-27a1"


@dataclass(frozen=True)
class Annotation:
    """Name and keywords of one concept in English and Chinese."""

    name_en: str
    name_zh: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]


def concept_of(codes: str) -> str:
    """Concept key of hex code points joined by "-" ("0023-FE0F-20E3" -> "23-20e3"); raises ValueError if not
    hex.
    """
    return "-".join(f"{int(part, 16):x}" for part in codes.split("-") if part.lower() != "fe0f")


def is_wanted(concept: str) -> bool:
    """False for skin-tone variants, hair components alone and mirrored "facing right" forms."""
    parts = concept.split("-")
    if SKIN_TONES.intersection(parts) or (len(parts) == 1 and parts[0] in HAIR_PARTS):
        return False
    return not concept.endswith(FACING_RIGHT)


def family_of(concept: str) -> str:
    """The concept without its gender: man, woman and person forms of one activity share a family.

    Splitting by family keeps "woman running" out of training when "man running" is held out.
    """
    plain = re.sub(r"-200d-264[02]$", "", concept)
    return re.sub(r"^1f46[89]-200d-(?!1f46[6-9]|2764|1f91d)", "1f9d1-200d-", plain)


def normalise(name: str) -> str:
    """Name reduced to lower-case letters and digits; "flag for", "flag of" and "flag:" become "flag"."""
    text = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    text = text.replace("&", "and").replace("-", " ").replace("_", " ")
    text = re.sub(r"^flag(?: for| of)? (?:flag )?", "flag ", text)
    return re.sub(r"[^a-z0-9#*]+", "", text)


def read_annotations(archives: Iterable[Path]) -> dict[str, Annotation]:
    """Names and keywords by concept from the CLDR archives (annotations, then derived ones)."""
    tables: dict[str, dict[str, dict[str, list[str]]]] = {"en": {}, "zh": {}}
    for archive in archives:
        members = read_members(
            archive, lambda name: name.endswith(("/en/annotations.json", "/zh/annotations.json"))
        )
        for name, contents in members:
            language = name.split("/")[-2]
            document = json.loads(contents)
            body = document.get("annotations") or document.get("annotationsDerived")
            if body is None:
                raise DataError(
                    f"{archive.name} holds no annotations at {name!r}; the package changed its layout"
                )
            for characters, entry in body["annotations"].items():
                concept = "-".join(f"{ord(c):x}" for c in characters if c != "\ufe0f")
                tables[language].setdefault(concept, entry)
    found = {}
    for concept, english in tables["en"].items():
        chinese = tables["zh"].get(concept)
        if chinese is None or "tts" not in english or "tts" not in chinese:
            continue
        name_en, name_zh = _plain_english(english["tts"][0]), _plain_chinese(chinese["tts"][0])
        found[concept] = Annotation(
            name_en,
            name_zh,
            tuple(word for word in english.get("default", []) if word != name_en),
            tuple(word for word in chinese.get("default", []) if word != name_zh),
        )
    return found


def _plain_english(name: str) -> str:
    """CLDR's "flag: Chad" and "family: man, boy" as a person types them."""
    name = name.replace("’", "'").replace("“", "").replace("”", "")
    head, colon, rest = name.partition(": ")
    if not colon:
        return name
    parts = rest.split(", ")
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    if head in ("flag", "family"):
        return f"{head} of {listed}"
    if head == "keycap":
        return f"keycap {rest}"
    return f"{head}, {listed}" if head in ("kiss", "couple with heart") else f"{head} with {listed}"


def _plain_chinese(name: str) -> str:
    head, colon, rest = name.partition(": ")
    if not colon:
        return name
    return f"{rest}旗" if head == "旗" else f"{head}{rest}" if head == "键帽" else f"{rest}{head}"


class NameIndex:
    """Normalised name -> concept, first come first served in the order the names were added."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def add(self, name: str, concept: str) -> None:
        """Add a name unless an earlier, more trusted source has it."""
        self._names.setdefault(normalise(name), concept)

    def add_unicode_names(self, concepts: Iterable[str]) -> None:
        """Add the Unicode character name of every one-character concept."""
        for concept in concepts:
            if "-" not in concept and (name := unicodedata.name(chr(int(concept, 16)), "")):
                self.add(name, concept)

    def find(self, name: str) -> str | None:
        """The concept of a name, or None."""
        return self._names.get(normalise(name)) if name else None
