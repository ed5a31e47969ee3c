"""Requests on their way through the queue: as JSON with their files beside them, and back.

What is stored is what will be run: the seed is drawn before, so that a job that has to begin again makes the
same pictures. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from vitrail.errors import InputError, VitrailError
from vitrail.files import shown
from vitrail.request_fields import FileRef, Model, new_seed
from vitrail.schema import Request
from vitrail.serving.long_work import LONG_KINDS
from vitrail.store import artifacts
from vitrail.validation import parse

__all__ = ["DRAWN_TOGETHER", "Lane", "Stored", "lane_of", "read_request", "store_request"]

Lane = Literal["pictures", "long"]

DRAWN_TOGETHER = "shell_dit"
"""The kind of model that draws pictures of several requests in one pass; others draw one after the other."""

_TITLE = 80
#: Requests that differ in nothing else may share network passes (vitrail.tasks.batching, which needs torch).
_OWN = frozenset({"prompt", "negative_prompt", "style", "seed", "subseed", "n"})


@dataclass(frozen=True)
class Stored:
    """A request as the queue keeps it. ``digest``: of what was asked for, before the seed was drawn."""

    kind: str
    lane: Lane
    title: str
    text: str
    digest: str
    batch: str | None
    files: dict[str, bytes]


def kinds() -> dict[str, type[Model]]:
    """Every kind of request that a job may be, with its model."""
    return {model.model_fields["kind"].default: model for model in _members(Request)} | LONG_KINDS


def lane_of(kind: str) -> Lane:
    """Where jobs of this kind wait: pictures do not wait for long works."""
    return "long" if kind in LONG_KINDS else "pictures"


def store_request(request: Model) -> Stored:
    """Return ``request`` in the form in which it waits. Raises :class:`InputError` for any other object."""
    kind = getattr(request, "kind", None)
    if not isinstance(request, Model) or not isinstance(kind, str) or kind not in kinds():
        raise InputError(
            f"a {shown(type(request).__name__, 40)} is no request; its kind must be one of "
            f"{', '.join(kinds())}"
        )
    plain = request.model_dump(mode="json")
    digest = hashlib.sha256(_text(plain).encode()).hexdigest()
    if "seed" in plain and plain["seed"] is None:
        plain["seed"] = new_seed()
    if plain.get("subseed_strength") and plain.get("subseed") is None:
        plain["subseed"] = new_seed()
    files = {file.sha256: file.data for file in _files(request)}
    return Stored(
        kind=kind,
        lane=lane_of(kind),
        title=_title(request, kind),
        text=_text(plain),
        digest=digest,
        batch=_batch(kind, plain) if not files else None,
        files=files,
    )


def read_request(text: str, files: Mapping[str, bytes]) -> Model:
    """Return the request that :func:`store_request` stored, with the contents of its files.

    Raises :class:`InputError` where this version knows no such request.
    """
    plain = json.loads(text)
    model = kinds().get(plain.get("kind"))
    if model is None:
        raise InputError(f"requests of kind {shown(plain.get('kind'), 40)} are not known to this version")
    return parse(model, _with_files(plain, files))


def _members(union: Any) -> Iterator[type[Model]]:
    for member in get_args(union):
        if get_args(member):
            yield from _members(member)
        else:
            yield member


def _text(plain: dict[str, Any]) -> str:
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _files(value: Any) -> Iterator[FileRef]:
    """The files anywhere in a request."""
    if isinstance(value, FileRef):
        yield value
    elif isinstance(value, Model):
        for name in type(value).model_fields:
            yield from _files(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _files(item)


def _with_files(value: Any, files: Mapping[str, bytes]) -> Any:
    """JSON with the content put beside the name and hash of each file."""
    if isinstance(value, list):
        return [_with_files(item, files) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"name", "sha256"}:
        return {**value, "data": files.get(value["sha256"], b"")}
    return {name: _with_files(item, files) for name, item in value.items()}


def _batch(kind: str, plain: dict[str, Any]) -> str | None:
    """A name that requests share which may be run in one pass; None for those that never are.

    A worker that took several of those would keep them from the others, and from being moved.
    """
    if kind != "text_to_image":
        return None
    try:
        folder = artifacts.find(plain["model"])
        if _kind_of(*artifacts.stamp(folder)) != DRAWN_TOGETHER:
            return None
    except VitrailError:  # a file of another program, or a model that only workers have
        return None
    shared = {name: value for name, value in plain.items() if name not in _OWN}
    return hashlib.sha256(_text(shared).encode()).hexdigest()[:32]


@lru_cache(64)
def _kind_of(folder: Path, written: int) -> str:
    """The kind of the model in ``folder``, whose manifest was ``written`` then."""
    return artifacts.read_manifest(folder, verify=False).kind


def _title(request: Model, kind: str) -> str:
    words = str(getattr(request, "prompt", "") or "")
    if not words:
        words = next((file.name for file in _files(request)), "")
    for name in ("run", "name", "model", "what", "pictures", "data"):  # of a long work
        words = words or str(getattr(request, name, "") or "")
    words = words or kind
    return words if len(words) <= _TITLE else words[: _TITLE - 1] + "…"
