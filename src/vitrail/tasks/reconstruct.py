"""A picture through a tokenizer and back: what its codes keep and what they lose."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vitrail.codes_schema import ReconstructRequest
from vitrail.errors import DataError, InputError
from vitrail.files import shown
from vitrail.images import grid, open_image, to_pil, to_tensor
from vitrail.request_fields import FileRef
from vitrail.schema import Done, Event, PictureDone, Progress
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.records import record_of
from vitrail.tasks.tokenizers import decode_codes, encode_pixels, load_tokenizer

__all__ = ["open_picture", "reconstruct"]


def open_picture(file: FileRef) -> Image.Image:
    """Decode the picture that a request brings, as RGB; :class:`InputError` if its content is not there.

    Raises :class:`~vitrail.errors.DataError` that names the file for what is no sound picture.
    """
    if not file.data:
        raise InputError(f"the content of {file.name} is not in the request; give the file again")
    try:
        return open_image(file.data)
    except DataError as error:  # which calls content without a path "the picture"
        raise DataError(str(error).replace("the picture", shown(file.name), 1)) from error


def reconstruct(request: ReconstructRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Encode the picture and decode it again; yields one :class:`PictureDone`, then :class:`Done`.

    With ``compare`` the result shows the picture, its reconstruction and their difference, grey where they
    agree. Raises :class:`ArtifactError` for a model without a tokenizer, :class:`DataError` for a damaged
    picture.
    """
    started = time.monotonic()
    context.check()
    with context.timed("load"):
        tokenizer = load_tokenizer(loader, request.model)
    picture = open_picture(request.picture)
    with context.timed("encode"):
        codes = encode_pixels(tokenizer, to_tensor([picture])[0], context)
    context.report(Progress(step=1, steps=2))
    with context.timed("decode"):
        again = to_pil(decode_codes(tokenizer, codes, context, picture.size))[0]
    context.report(Progress(step=2, steps=2))
    resolved = request.model_copy(update={"model": artifacts.public_name(request.model, tokenizer.name)})
    record = record_of(resolved, 0, context, model_name=tokenizer.name, model_sha256=tokenizer.sha256)
    result = _side_by_side(picture, again) if request.compare else again
    yield PictureDone(index=0, record=record, picture=result)
    yield Done(seconds=time.monotonic() - started)


def _side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    one, two = (np.asarray(picture, dtype=np.int16) for picture in (before, after))
    difference = np.clip(128 + (two - one) // 2, 0, 255).astype(np.uint8)
    return grid([before, after, Image.fromarray(difference)], columns=3)
