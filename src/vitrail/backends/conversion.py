"""What a converted model is, and the strict check that nothing is missing, left over or of another shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.models.registry import build

__all__ = ["Converted", "Leftover", "fitted", "renamed", "validated", "without_attention"]

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Converted:
    """A foreign model in our terms.

    what: one line that says what it was. kind, config: ours, for ``models.registry.build``. tensors: its
    weights under our names. left: what of the file is not needed to run it. parts: further models by the
    name of their subfolder (``tokenizer``). styles: names of its classes, number 1 first; a request's style.
    """

    what: str
    kind: str
    config: BaseModel
    tensors: dict[str, Tensor] = field(repr=False)
    left: tuple[str, ...] = ()
    parts: Mapping[str, Converted] = field(default_factory=dict)
    styles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leftover:
    """Weights of a foreign file that are known and not needed: the start of their names, and what they
    are."""

    prefix: str
    what: str


def renamed(
    tensors: Mapping[str, Tensor], known: Iterable[Leftover]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take the known leftovers out of ``tensors``; returns the rest and a line for each kind of leftover."""
    rest = dict(tensors)
    lines = []
    for leftover in known:
        names = [name for name in rest if name.startswith(leftover.prefix)]
        for name in names:
            del rest[name]
        if names:
            lines.append(f"{len(names)} of {leftover.prefix}* ({leftover.what})")
    return rest, tuple(lines)


def validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Build a configuration; :class:`ArtifactError` with one line that names the field of ``where``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = (
            "" if first["type"] in ("missing", "value_error") else f" (given: {shown(first['input'], 40)})"
        )
        raise ArtifactError(f"{where}: {shown(place, 80)} cannot be used here: {message}{given}") from None


def fitted(
    kind: str, config: BaseModel, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Check ``tensors`` against the network that ``config`` describes, and add what only our networks keep.

    own: values for our names that foreign files lack (statistics of training). Raises :class:`ArtifactError`
    that counts and names what is missing, left over or of another shape.
    """
    with torch.device("meta"):  # shapes alone: no memory, whatever the file claims
        wanted = {name: tuple(value.shape) for name, value in build(kind, config).state_dict().items()}
    whole = {**{name: value for name, value in own.items() if name in wanted}, **tensors}
    missing = sorted(set(wanted) - set(whole))
    unknown = sorted(set(whole) - set(wanted))
    other = sorted(name for name in set(wanted) & set(whole) if wanted[name] != tuple(whole[name].shape))
    parts = [f"{len(names)} {what} ({_some(names)})" for what, names in (("missing", missing),) if names]
    parts += [f"{len(unknown)} not known ({_some(unknown)})"] if unknown else []
    parts += (
        [f"{len(other)} of another shape ({other[0]}: {tuple(whole[other[0]].shape)} for {wanted[other[0]]})"]
        if other
        else []
    )
    if parts:
        raise ArtifactError(f"its weights do not fit its configuration: {', '.join(parts)}")
    return whole


def without_attention(tensors: dict[str, Tensor], width: int) -> None:
    """Give a network that has no attention in its middle one that adds nothing: all its weights are zero."""
    for side in ("encoder", "decoder"):
        place = f"{side}.mid.attn_1"
        for name in ("norm.weight", "norm.bias", "q.bias", "k.bias", "v.bias", "proj_out.bias"):
            tensors[f"{place}.{name}"] = torch.zeros(width)
        for name in ("q", "k", "v", "proj_out"):
            tensors[f"{place}.{name}.weight"] = torch.zeros(width, width, 1, 1)


def _some(names: list[str]) -> str:
    return ", ".join(shown(name, 60) for name in names[:3]) + (", ..." if len(names) > 3 else "")
