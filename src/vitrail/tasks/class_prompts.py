"""Words to classes, for models that draw a fixed set of things: English or Chinese, one or several, blends.

``sneaker`` is one class; ``sneaker, 包`` two, and consecutive seeds take turns; ``sneaker + boot`` a blend of
both in every picture; ``anything`` all classes in turn.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.classes import ClassName
from vitrail.errors import ArtifactError, InputError
from vitrail.models.lexicon import translate
from vitrail.store import artifacts

__all__ = ["CLASSES_FILE", "class_names", "find_classes", "read_classes"]

CLASSES_FILE = "classes.json"

ANYTHING = frozenset(
    ("any", "anything", "everything", "all", "random", "whatever", "随便", "随机", "任意", "所有", "全部")
)
_LISTED = 12
_BEFORE = "一个只双件条款张些的色小大"
_AFTER = ",，、。;；和与及或"


def class_names(folder: Path, manifest: artifacts.Manifest) -> tuple[ClassName, ...]:
    """Return the names of a model's classes from its ``classes.json``; plain numbers where it has none.

    Raises :class:`ArtifactError` for a file that is not a list of as many names.
    """
    count = manifest.config.get("classes", 0)
    if not isinstance(count, int) or count < 1:
        return ()
    if CLASSES_FILE not in manifest.files:
        return tuple(ClassName(f"class {number}") for number in range(count))
    wrong = f"{CLASSES_FILE} of model {manifest.name}"
    try:
        rows = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
        names = tuple(ClassName(row["en"], row["zh"], tuple(row["also"])) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{wrong} cannot be read: {error}") from error
    words = [word for name in names for word in (name.en, name.zh, *name.also)]
    if len(names) != count or not all(isinstance(word, str) and len(word) <= 200 for word in words):
        raise ArtifactError(f"{wrong} must list {count} names")
    return names


def read_classes(prompt: str, names: Sequence[ClassName], model: str) -> tuple[list[list[float]], str]:
    """Read ``prompt`` as classes: rows of weights over the classes, and the English for what was read.

    Picture with seed s is drawn with row s modulo the number of rows. Raises :class:`InputError`, with the
    classes there are, for a prompt that names none.
    """

    def row(chosen: Sequence[int]) -> list[float]:
        return [chosen.count(number) / len(chosen) for number in range(len(names))]

    parts = [part for part in _plain(prompt).split("+") if part.strip()]
    if len(parts) > 1:
        mixed = [number for part in parts for number in _chosen(part, prompt, names, model)]
        return [row(mixed)], " + ".join(names[number].en for number in mixed)
    chosen = _chosen(_plain(prompt), prompt, names, model)
    english = "anything" if len(chosen) == len(names) > 1 else ", ".join(names[n].en for n in chosen)
    return [row([number]) for number in chosen], english


def find_classes(text: str, names: Sequence[ClassName]) -> list[int]:
    """Return the numbers of the classes that ``text`` names, each once, in the text's order.

    Longer names go first, so that a t-shirt is no shirt. English names stand between word borders, with a
    plural ending or not; a Chinese name of one character needs a measure word or the like around it.
    """
    text = _plain(text)
    words = sorted(
        ((_plain(word), number) for number, name in enumerate(names) for word in (*name[:2], *name.also)),
        key=lambda pair: -len(pair[0]),
    )
    taken = [False] * len(text)
    found: list[tuple[int, int]] = []
    for word, number in words:
        if not word:
            continue
        for match in re.finditer(_pattern(word), text):
            start, end = match.span()
            if not any(taken[start:end]):
                taken[start:end] = [True] * (end - start)
                found.append((start, number))
    return list(dict.fromkeys(number for _, number in sorted(found)))


def _chosen(part: str, prompt: str, names: Sequence[ClassName], model: str) -> list[int]:
    found = find_classes(part, names)
    if not found and not part.isascii():
        found = find_classes(translate(part).english, names)
    if found:
        return found
    if set(re.findall(r"[a-z]+|[^\W\d_]+", part)) & ANYTHING or part.strip() in ANYTHING:
        return list(range(len(names)))
    near = difflib.get_close_matches(part.strip(), [_plain(name.en) for name in names], 1)
    ask = f"did you mean {near[0]}? " if near else ""
    shown = ", ".join(f"{name.en} ({name.zh})" if name.zh else name.en for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise InputError(
        f"prompt {prompt[:60]!r} names nothing that model {model} draws; {ask}it draws {shown}{more}"
    )


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return " ".join(text.split())


def _pattern(word: str) -> str:
    escaped = re.escape(word)
    if not word.isascii():
        if len(word) > 1:
            return escaped
        return rf"(?:(?<=[{_BEFORE}{_AFTER}\s])|^){escaped}(?=$|[{_AFTER}\s])"
    if word.endswith("y"):
        escaped = rf"{escaped[:-1]}(?:y|ies)"
    return rf"(?<![a-z0-9-]){escaped}(?:e?s)?(?![a-z0-9-])"
