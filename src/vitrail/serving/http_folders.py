"""Folders that a long work names: for a server that others reach, only those that its owner has allowed.

A training reads whatever folder of pictures it is given, and a recipe names folders too. Whoever sits at the
machine may do that; over a network it would be a way to look around.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.errors import InputError
from vitrail.request_fields import Model

__all__ = ["check_folders"]

_FIELDS = ("data", "pictures", "against")
_SETS = frozenset({"emoji", "fashion-mnist"})
"""Names of built sets, which are no folders."""

_REFUSED = "a folder is named that this server may not open; see --allow-folder"


def check_folders(request: Model, roots: tuple[Path, ...] | None) -> None:
    """Raise :class:`InputError` for a request that names a folder outside of ``roots``; None allows all."""
    if roots is None:
        return
    allowed = [root.resolve() for root in roots]
    for name in _FIELDS:
        value = getattr(request, name, None)
        if isinstance(value, str) and value not in _SETS and not _inside(value, allowed):
            raise InputError(_REFUSED)
    for text in _of_recipe(request):
        if _looks_like_a_path(text) and not _inside(text, allowed):
            raise InputError(_REFUSED)


def _inside(text: str, roots: list[Path]) -> bool:
    try:
        path = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    return any(path.is_relative_to(root) for root in roots)


def _looks_like_a_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith(("~", "."))


def _of_recipe(request: Model) -> Iterator[str]:
    """Every text in a recipe and in the changes to it."""
    recipe = getattr(request, "recipe", None)
    if isinstance(recipe, str):
        try:
            yield from _texts(tomllib.loads(recipe))
        except (tomllib.TOMLDecodeError, RecursionError):
            raise InputError("the recipe is not TOML; vitrail train --dry-run prints one that is") from None
    for change in getattr(request, "changes", ()):
        yield change.partition("=")[2].strip().strip("\"'")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
