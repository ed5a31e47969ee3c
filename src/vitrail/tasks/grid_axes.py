"""X/Y grids: one request made again and again with one or two of its settings changed.

An axis is written ``name=value,value,...`` as on the command line (``|`` between values that hold commas).
``replace=red,blue,green`` puts each word in place of the first one in the prompt. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.schema import TextToImageRequest, describe

__all__ = ["MAX_CELLS", "REPLACE", "Axis", "read_axis"]

MAX_CELLS = 400
"""Most pictures of one grid."""

REPLACE = "replace"
"""Name of the axis that changes words of the prompt."""

_NOT_CHANGED = frozenset({"n", "control", "lora", "embedding", "guidance_interval", "tile", "panorama"}) | {
    *("picture", "mask"),
}


@dataclass(frozen=True)
class Axis:
    """A setting and the texts that it takes, one for each column or row."""

    name: str
    values: tuple[str, ...]

    def changed(self, settings: dict[str, Any], place: int) -> dict[str, Any]:
        """Return ``settings`` with value number ``place`` of this axis."""
        if self.name != REPLACE:
            return settings | {self.name: self.values[place]}
        prompt = str(settings.get("prompt", ""))
        if self.values[0] not in prompt:
            raise InputError(f"'{shown(self.values[0], 40)}' is not in the prompt, so nothing can replace it")
        return settings | {"prompt": prompt.replace(self.values[0], self.values[place])}

    def label(self, place: int) -> str:
        """What is written beside value number ``place``."""
        value = self.values[place]
        return value if self.name in (REPLACE, "prompt") else f"{self.name} {value}"


def read_axis(text: str, request: type[BaseModel] = TextToImageRequest) -> Axis:
    """Read ``cfg_scale=1,3,5``; :class:`InputError` for a setting that ``request`` has not, or no values."""
    name, equals, rest = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    values = tuple(value.strip() for value in rest.split("|" if "|" in rest else ","))
    names = [row.name for row in describe(request) if row.name not in _NOT_CHANGED]
    if not equals or not any(values):
        raise InputError(
            f"axis '{shown(text, 60)}' cannot be read; write a setting and its values: cfg_scale=1,3,5"
        )
    if name not in (*names, REPLACE):
        raise InputError(
            f"axis {shown(name, 40)} is not a setting; use one of {', '.join(names)} or {REPLACE}"
        )
    if any(not value for value in values):
        raise InputError(f"axis '{shown(text, 60)}' has an empty value; write for instance cfg_scale=1,3,5")
    return Axis(name, values)
