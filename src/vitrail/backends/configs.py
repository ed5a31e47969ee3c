"""Configuration files that others wrote, YAML and JSON: data alone, of bounded size and depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["read_json", "read_yaml"]

MAX_BYTES = 256 << 10
"""A configuration has some kilobytes; the YAML reader needs a second for this many."""

MAX_DEPTH = 32


MAX_NODES = 50_000
"""Most values of a configuration with its aliases written out."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without depth, whose aliases unfold to :data:`MAX_NODES` at most (a page of them unfolds to
    gigabytes); tags of objects are refused by the safe loader itself."""

    depth = 0

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _unfolded(node, {}, set())
        return node

    def compose_node(self, parent: Any, index: int) -> Any:
        if self.depth >= MAX_DEPTH:
            raise ArtifactError(f"it is nested more than {MAX_DEPTH} deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _unfolded(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values ``node`` is with every alias written out; :class:`ArtifactError` beyond the limit."""
    if id(node) in above:
        raise ArtifactError("it holds an alias (*name) to what is around it; write the values out")
    if id(node) in known:
        return known[id(node)]
    count = 1
    if isinstance(node, yaml.CollectionNode):
        above.add(id(node))
        for entry in node.value:
            for part in entry if isinstance(entry, tuple) else (entry,):
                count += _unfolded(part, known, above)
        above.discard(id(node))
    if count > MAX_NODES:
        raise ArtifactError(f"it is more than {MAX_NODES} values; it is not a model's configuration")
    known[id(node)] = count
    return count


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file that holds a table. Raises :class:`ArtifactError` with one line."""
    place = shown(path)
    text = _text(Path(path))
    try:
        loader = _PlainLoader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ArtifactError(f"{place} is not a YAML file that can be used: {_reason(error)}") from None
    except (ArtifactError, ValueError, RecursionError, OverflowError) as error:
        raise ArtifactError(f"{place} cannot be used: {shown(error, 120)}") from None
    return _table(value, place)


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON file that holds a table. Raises :class:`ArtifactError` with one line."""
    place = shown(path)
    try:
        value = json.loads(_text(Path(path)))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place} is not valid JSON: {shown(error, 100)}") from None
    return _table(value, place)


def _reason(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark is not None else ""
    return f"{shown(problem, 120)}{line}"


def _text(path: Path) -> str:
    place = shown(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a path"
        raise ArtifactError(f"cannot open {place}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{place} is larger than {MAX_BYTES} bytes; it is not a model's configuration")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArtifactError(f"{place} is not UTF-8 text; it is not a model's configuration") from None


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ArtifactError(f"{place} holds no table of settings; it is not a model's configuration")
    return dict(value)
