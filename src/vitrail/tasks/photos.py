"""What the tasks on photographs have in common: models that may not have been fetched yet, and pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vitrail.errors import ArtifactError, DataError, InputError
from vitrail.files import shown
from vitrail.images import open_image
from vitrail.request_fields import FileRef
from vitrail.store import artifacts
from vitrail.store.catalogue import CATALOGUE, installed

__all__ = ["check_fetched", "find_model", "open_photo"]


def check_fetched(name: str) -> None:
    """Raise :class:`ArtifactError`, with the command that fetches it, for a model of the catalogue that is
    not here.
    """
    entry = CATALOGUE.get(name)
    if entry is not None and not installed(entry) and not Path(name).exists():
        raise ArtifactError(
            f"model {name} is not on this machine yet; run: vitrail models pull {name} "
            f"({entry.size / 1e6:.0f} MB, {entry.licence})"
        )


def find_model(name: str) -> Path:
    """Return the folder of the model ``name``.

    Raises :class:`ArtifactError`, for a model of the catalogue with the command that fetches it.
    """
    check_fetched(name)
    return artifacts.find(name)


def open_photo(file: FileRef, *, keep_alpha: bool = False) -> Image.Image:
    """Decode the picture that a request brings, as RGB, or RGBA where it has transparency to keep.

    Raises :class:`InputError` if its content is not there, and :class:`~vitrail.errors.DataError` that names
    the file for what is no sound picture.
    """
    if not file.data:
        raise InputError(f"the content of {file.name} is not in the request; give the file again")
    try:
        return open_image(file.data, keep_alpha=keep_alpha)
    except DataError as error:  # which calls content without a path "the picture"
        raise DataError(str(error).replace("the picture", shown(file.name), 1)) from error
