"""Recipes from TOML and to TOML, changes from the command line, and errors of one line."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.recipe.kinds import KINDS, Recipe

__all__ = ["SHIPPED", "dump_recipe", "find_recipe", "load_recipe", "parse_recipe", "recipe_differences"]

SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the recipes that come with vitrail; a checkout shows it as ``recipes`` too."""


def find_recipe(name: str | Path) -> Path:
    """Return the recipe file that ``name`` means: a file, or a shipped recipe by its name.

    ``dcgan-fashion``, ``staged/default`` and ``recipes/dcgan-fashion.toml`` name shipped recipes wherever
    vitrail is installed; a file of that path comes first. A path of no file comes back as it is.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts
    inside = "/".join(parts).removesuffix(".toml")
    for found in SHIPPED.rglob("*.toml"):
        if found.relative_to(SHIPPED).with_suffix("").as_posix() == inside:
            return found
    return path


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a TOML file and apply ``overrides``, each ``section.key=value``.

    path: a file, or the name of a shipped recipe (:func:`find_recipe`). Raises :class:`InputError` with one
    line for a missing file, broken TOML, or a key or value not allowed.
    """
    path = find_recipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"recipe {str(path)!r} cannot be read: {error.strerror}{_instead(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"recipe {str(path)!r} cannot be read: {reason}") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {str(path)!r} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"recipe {str(path)!r} is nested too deeply") from error
    return parse_recipe(tables, overrides, origin=str(path))


def _instead(path: Path) -> str:
    """Return which shipped recipes may have been meant, as the end of a line."""
    names = sorted(found.relative_to(SHIPPED).with_suffix("").as_posix() for found in SHIPPED.rglob("*.toml"))
    near = difflib.get_close_matches(path.with_suffix("").name, names, 3, 0.5)
    return f"; give a file, or a recipe of vitrail's own: {', '.join(near or names)}"


def parse_recipe(
    tables: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "recipe"
) -> Recipe:
    """Build a recipe from nested dictionaries; ``origin`` is the name used in error messages."""
    merged: dict[str, Any] = _copy(tables)
    for override in overrides:
        _apply(merged, override)
    kind = merged.get("kind")
    if kind not in KINDS:
        raise InputError(f"{origin}: kind is {shown(repr(kind), 80)}; choose {_either(KINDS)}")
    _check_keys(merged, KINDS[kind], origin)
    try:
        return KINDS[kind].model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(error)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the whole recipe, defaults included, as TOML that :func:`load_recipe` reads back as equal."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    scalars = {key: value for key, value in data.items() if not isinstance(value, dict)}
    lines = [f"{key} = {_toml(scalars[key])}" for key in ("kind", "name")]
    for section, table in data.items():
        if isinstance(table, dict) and (table or section != "expected"):
            lines += _section(section, table)
    return "\n".join(lines) + "\n"


def _section(name: str, table: Mapping[str, Any]) -> list[str]:
    """Lines of a table, its own tables (``[model.quantizer]``) after its values."""
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = ["", f"[{name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in values.items())]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _section(f"{name}.{_key(key)}", value)
    return lines


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ, sorted."""
    first, second = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    missing = object()
    return sorted(key for key in first | second if first.get(key, missing) != second.get(key, missing))


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def _copy(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tables.items()}


def _apply(tables: dict[str, Any], override: str) -> None:
    """Write one ``a.b=c`` into nested tables; a value that is no TOML is taken as a plain word or path."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise InputError(f"--set {override!r}: write section.key=value, for instance optim.lr=2e-4")
    text = text.strip()
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        value = text
    except RecursionError as error:
        raise InputError(f"--set {key}: the value is nested too deeply") from error
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override!r}: {part!r} is a value, not a section")
    if value == "none" and parts[-1] in ("until_images", "time_budget_minutes", "warm_start"):
        table.pop(parts[-1], None)  # TOML has no null
        return
    table[parts[-1]] = value
    # The two lengths exclude each other: giving one on the command line replaces the other.
    twins = {"until_images": "time_budget_minutes", "time_budget_minutes": "until_images"}
    if parts[0] == "optim" and parts[-1] in twins:
        table.pop(twins[parts[-1]], None)


def _check_keys(table: Mapping[str, Any], model: type[BaseModel], origin: str, prefix: str = "") -> None:
    """Refuse unknown keys with the nearest valid one; pydantic alone would not name it."""
    root = model
    pending: list[tuple[Mapping[str, Any], type[BaseModel], str]] = [(table, model, prefix)]
    while pending:
        table, model, prefix = pending.pop()
        for key, value in table.items():
            if key not in model.model_fields:
                near = difflib.get_close_matches(
                    prefix + key, [prefix + name for name in model.model_fields], 1
                )
                leaves = {name.rpartition(".")[2]: name for name in _all_keys(root)}
                near = near or [leaves[name] for name in difflib.get_close_matches(key, leaves, 1)]
                hint = f"did you mean {near[0]!r}?" if near else f"allowed: {_either(model.model_fields)}"
                raise InputError(f"{origin}: key {shown(repr(prefix + key), 120)} is unknown; {hint}")
            inner = model.model_fields[key].annotation
            if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
                pending.append((value, inner, f"{prefix}{key}."))


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _all_keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(str(part) for part in first["loc"] if part not in KINDS)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if place else message
    given = repr(first["input"])
    return f"{place} = {given if len(given) <= 60 else given[:57] + '...'}: {message}"


def _either(names: Iterable[str]) -> str:
    return ", ".join(names)


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings take JSON's escapes, except that DEL must be escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"a recipe cannot hold the number {value}")
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise InputError(f"a recipe cannot hold a value of type {type(value).__name__}")
