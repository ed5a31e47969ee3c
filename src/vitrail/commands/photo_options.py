"""What the commands on photographs have in common: their numbers, and several pictures at once."""

from __future__ import annotations

import contextlib
from typing import Any

from pydantic import BaseModel

from vitrail.commands.token_options import settings_of

__all__ = ["photo_settings"]

_WHOLE = ("grow", "scale", "tile")


def photo_settings(options: object, request: type[BaseModel]) -> dict[str, Any]:
    """Return those fields of ``request`` that the flags give, numbers as numbers where they are some."""
    settings = settings_of(options, request)
    for name in _WHOLE:
        if isinstance(settings.get(name), str):
            with contextlib.suppress(ValueError):  # left as text: the schema refuses it with its limits
                settings[name] = int(settings[name])
    if isinstance(settings.get("fidelity"), str):
        with contextlib.suppress(ValueError):
            settings["fidelity"] = float(settings["fidelity"])
    return settings
