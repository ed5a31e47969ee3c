"""From the model that a request names, with what it adds, to a model that draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from vitrail.backends.model import DiffusionModel
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.schema import ImageRecord
from vitrail.store import artifacts, model_folders
from vitrail.tasks.additions import refuse_additions
from vitrail.tasks.context import Context
from vitrail.tasks.loading import STABLE_DIFFUSION, Loader, TokenModel, checkpoint_place
from vitrail.tasks.pixel_model import PixelModel

__all__ = ["draws_pixels", "find_recorded", "open_diffusion", "open_model"]

DIFFUSION_KINDS = ("shell_dit", STABLE_DIFFUSION)
"""Kinds of model that draw by diffusion."""


def open_model(loader: Loader, request: Any, context: Context) -> DiffusionModel | TokenModel:
    """Return the model of ``request``; it stays in memory with the loader.

    Raises :class:`ArtifactError` for a model that is not there, damaged, or of a kind that does not draw by
    words; :class:`~vitrail.errors.InputError` for additions that are not there or that it cannot take.
    """
    if loader.kind(request.model) == STABLE_DIFFUSION:
        return _stable_diffusion(loader, request, context)
    model = loader.text_to_image(request.model)
    if isinstance(model, TokenModel):
        return model
    refuse_additions(request, f"model {model.name}, which draws pixels")
    return PixelModel(model)


def _stable_diffusion(loader: Loader, request: Any, context: Context) -> DiffusionModel:
    from vitrail.backends.sd.open import open_stable_diffusion

    place = checkpoint_place(request.model)
    assert place is not None
    vae = None if request.vae is None else model_folders.resolve("vae", request.vae)
    given: set[str] = set()

    def find(kind: model_folders.Kind, name: str) -> Path:
        # Paths are for those who typed a flag; a tag in a prompt is looked up by its name alone.
        return (model_folders.resolve if name in given else model_folders.find)(kind, name)

    def load() -> tuple[Any, set[str]]:
        # who asks for float32 gets the kernels that compute in it, even where bfloat16 would be faster
        accelerated = True if context.precision == "float32" else None
        opened = open_stable_diffusion(
            place, device=context.device, vae=vae, find=find, accelerated=accelerated
        )
        return opened, given

    key = (place.resolve(), _changed(place), vae, str(context.device), context.precision == "float32")
    model, named = loader.kept(key, load)
    named.clear()
    named.update(use.name for use in (*request.lora, *request.control))
    named.update(request.embedding)
    if not (request.lora or request.embedding or request.clip_skip is not None):
        return cast(DiffusionModel, model)
    changed = model.adding(
        loras=[(use.name, use.weight) for use in request.lora],
        embeddings=request.embedding,
        clip_skip=request.clip_skip,
    )
    return cast(DiffusionModel, changed)


def _changed(place: Path) -> int:
    """When the file, or the list of what is in the folder, was changed last."""
    try:
        return (place / "model_index.json" if place.is_dir() else place).stat().st_mtime_ns
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(place)}: {error.strerror}") from error


def open_diffusion(loader: Loader, request: Any, context: Context) -> DiffusionModel:
    """As :func:`open_model`; :class:`ArtifactError` for a model that draws codes."""
    model = open_model(loader, request, context)
    if isinstance(model, TokenModel):
        raise ArtifactError(
            f"model {model.name} draws codes; this needs a diffusion model, such as --model default"
        )
    return model


def draws_pixels(loader: Loader, name: str) -> bool:
    """Whether the model called ``name`` is a diffusion model; :class:`ArtifactError` if it is not there."""
    kind = loader.kind(name)
    if kind is None:
        return not isinstance(loader.text_to_image(name), TokenModel)
    return kind in DIFFUSION_KINDS


def find_recorded(record: ImageRecord) -> str:
    """Return the name of the model that made a recorded picture, as it is called here.

    Raises :class:`ArtifactError` that says what to do where there is none.
    """
    asked = record.request.model
    try:
        return artifacts.find_recorded(asked, record.model_name, record.model_sha256)
    except ArtifactError:
        # The hash of a large file is taken where the picture is made again; the name will do to find it.
        if checkpoint_place(asked) is None:
            raise
        return asked
