"""What requests add to a model (LoRA, ControlNet, VAE, embedding), and how records name it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from vitrail.backends.model import Control
from vitrail.diffusion_fields import Addons, ControlUse, public_file
from vitrail.errors import InputError
from vitrail.images import to_tensor
from vitrail.store import artifacts
from vitrail.tasks.reconstruct import open_picture

__all__ = ["ADDONS", "controls_of", "given_additions", "public_names", "refuse_additions"]

R = TypeVar("R", bound=Any)

ADDONS = tuple(Addons.model_fields)
"""Names of the fields that add something to a model."""


def given_additions(request: Any, names: Iterable[str] = ADDONS) -> list[str]:
    """Return those of the fields ``names`` of ``request`` that ask for something."""
    fields = type(request).model_fields
    return [name for name in names if name in fields and getattr(request, name) != fields[name].default]


def refuse_additions(request: Any, what: str, more: Iterable[str] = ()) -> None:
    """Raise :class:`InputError` for an addition (or a setting of ``more``) that ``what`` has no use for."""
    for name in given_additions(request, (*ADDONS, *more)):
        raise InputError(f"{name} is not for {what}; leave it out")


def public_names(resolved: R, asked: str, own: str) -> R:
    """Return a resolved request as it may be recorded: files by name, never where they lie.

    ``asked``: what the model was asked for as, ``own``: what it calls itself.
    """
    update: dict[str, object] = {"model": artifacts.public_name(asked, own)}
    for name in given_additions(resolved):
        value = getattr(resolved, name)
        if name in ("lora", "control"):
            update[name] = tuple(one.model_copy(update={"name": public_file(one.name)}) for one in value)
        elif name == "embedding":
            update[name] = tuple(public_file(one) for one in value)
        elif name == "vae":
            update[name] = public_file(value)
    upscaler = getattr(resolved, "hires_upscaler", None)
    if upscaler is not None:
        update["hires_upscaler"] = public_file(upscaler)
    changed: R = resolved.model_copy(update=update)
    return changed


def controls_of(uses: Sequence[ControlUse], size: tuple[int, int], device: torch.device) -> list[Control]:
    """Return the ControlNets of a request with their pictures at ``size`` (width, height), in [0, 1]."""
    found = []
    for use in uses:
        picture = open_picture(use.picture)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        pixels = (to_tensor([picture]).to(device) + 1.0) / 2.0
        found.append(Control(use.name, pixels, use.strength, (use.start, use.end)))
    return found
