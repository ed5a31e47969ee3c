"""Pictures as codes in files: ``.vtl``, as small as the models can make it, and plain ``.npz``.

:func:`compress` writes the codes with every probability model it has (:mod:`vitrail.store.code_models`, and
the prior if there is one), reads each result back, and keeps the smallest that gives the very same codes. So
a prior whose numbers are not the same twice can cost bits but never a picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitrail.codes_schema import DecodeRequest
from vitrail.errors import DataError, InputError
from vitrail.files import shown
from vitrail.images import to_pil, to_tensor
from vitrail.schema import Done, Event, PictureDone, Progress
from vitrail.store import artifacts, vtl
from vitrail.store.code_models import (
    MAX_CONTEXT_CODES,
    Shape,
    read_context,
    read_static,
    write_context,
    write_static,
)
from vitrail.store.vtl import CodesFile, CodingMethod
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.prior_coding import MAX_PRIOR_CODES, PriorCoder, load_prior_coder
from vitrail.tasks.records import record_of
from vitrail.tasks.tokenizers import (
    TokenizerModel,
    check_codes,
    decode_codes,
    encode_pixels,
    grid_of,
    load_tokenizer,
)

__all__ = ["Compressed", "compress", "decode", "encode", "read_codes"]

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Compressed:
    """A ``.vtl`` file and what it took: bytes by each method that was tried, bits a pixel of the file."""

    data: bytes
    method: CodingMethod
    tried: dict[CodingMethod, int]
    width: int
    height: int
    codes: int

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the whole file, header included, for each pixel."""
        return 8 * len(self.data) / (self.width * self.height)


def encode(picture: Image.Image, model: str, loader: Loader, context: Context) -> CodesFile:
    """Return the codes of ``picture`` by the tokenizer of ``model``."""
    tokenizer = load_tokenizer(loader, model)
    codes = encode_pixels(tokenizer, to_tensor([picture])[0], context)
    return CodesFile(codes.numpy(), picture.width, picture.height, tokenizer.sha256)


def compress(
    picture: Image.Image | CodesFile, model: str, loader: Loader, context: Context, *, prior: bool = True
) -> Compressed:
    """Write ``picture`` (or codes that are there already) as a ``.vtl`` file.

    ``prior``: try the model's prior too, where it has one; without it a file can be read by the tokenizer
    alone. Raises :class:`ArtifactError` for a model without a tokenizer, :class:`DataError` for codes of
    another tokenizer.
    """
    file = picture if isinstance(picture, CodesFile) else encode(picture, model, loader, context)
    tokenizer = load_tokenizer(loader, model)
    _check_file(file, tokenizer, "the codes")
    planes = _planes(file.codes)
    shape, usage = Shape(*planes.shape), tokenizer.usage()
    made: dict[CodingMethod, bytes] = {"static": write_static(planes, usage)}
    if shape.codes <= MAX_CONTEXT_CODES:
        made["context"] = write_context(planes, usage)
    coder = load_prior_coder(loader, model) if prior and shape.codes <= MAX_PRIOR_CODES else None
    if coder is not None and shape.planes == 1:
        made["prior"] = coder.write(planes[0], context)
    tried = {
        method: vtl.pack(
            method,
            file.width,
            file.height,
            file.codes,
            payload,
            tokenizer_sha256=tokenizer.sha256,
            prior_sha256=coder.sha256 if coder is not None and method == "prior" else None,
        )
        for method, payload in made.items()
    }
    for method in sorted(tried, key=lambda name: len(tried[name])):
        data = tried[method]
        try:
            same = np.array_equal(_unpacked(vtl.unpack(data), shape, tokenizer, coder, context), planes)
        except DataError:
            same = False  # the prior's numbers came out differently the second time: the next smallest
        if same:
            sizes = {name: len(content) for name, content in tried.items()}
            return Compressed(data, method, sizes, file.width, file.height, shape.codes)
    raise AssertionError("integer models read back what they wrote")


def read_codes(
    data: bytes, model: str, loader: Loader, context: Context, name: str = "the file"
) -> CodesFile:
    """Read the codes of a ``.vtl`` or ``.npz`` file; they are checked against the tokenizer of ``model``.

    Raises :class:`DataError` for a file that is none of them, damaged, or made with another model.
    """
    tokenizer = load_tokenizer(loader, model)
    if not data.startswith(vtl.MAGIC[:3]):
        if not data.startswith(b"PK"):
            raise DataError(f"{shown(name)} is neither a .vtl nor an .npz file of codes")
        file = vtl.unpack_npz(data, name)
        if file.tokenizer_sha256 != tokenizer.sha256:
            raise _other_model(name, bytes.fromhex(file.tokenizer_sha256), tokenizer.name, tokenizer.sha256)
        _check_file(file, tokenizer, shown(name))
        return file
    container = vtl.unpack(data, name)
    if container.tokenizer != bytes.fromhex(tokenizer.sha256)[:8]:
        raise _other_model(name, container.tokenizer, tokenizer.name, tokenizer.sha256)
    shape = Shape(tokenizer.stages, *grid_of(tokenizer, container.width, container.height))
    coder: PriorCoder | None = None
    if container.method == "prior":
        if shape.codes > MAX_PRIOR_CODES or shape.planes != 1:
            raise DataError(f"{shown(name)} claims more codes than a prior writes; the file is damaged")
        coder = load_prior_coder(loader, model)
        if coder is None or container.prior is None:
            raise DataError(f"{shown(name)} was written with a prior; {tokenizer.name} is a tokenizer alone")
        if container.prior != bytes.fromhex(coder.sha256)[:8]:
            raise _other_model(name, container.prior, coder.name, coder.sha256)
    try:
        planes = _unpacked(container, shape, tokenizer, coder, context)
    except DataError as error:
        raise DataError(f"{shown(name)}: {error}") from error
    codes = np.ascontiguousarray(planes[0] if shape.planes == 1 else np.moveaxis(planes, 0, 2))
    vtl.check_codes(container, codes, name)
    return CodesFile(codes, container.width, container.height, tokenizer.sha256)


def decode(request: DecodeRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Decode a file of codes; yields one :class:`PictureDone`, then :class:`Done`.

    Errors as :func:`read_codes`; :class:`InputError` for a request without the file's content.
    """
    started = time.monotonic()
    context.check()
    if not request.picture.data:
        raise InputError(f"the content of {request.picture.name} is not in the request; give the file again")
    with context.timed("load"):
        tokenizer = load_tokenizer(loader, request.model)
    with context.timed("encode"):
        file = read_codes(request.picture.data, request.model, loader, context, request.picture.name)
    context.report(Progress(step=1, steps=2))
    with context.timed("decode"):
        codes = torch.from_numpy(file.codes)
        pixels = decode_codes(tokenizer, codes, context, (file.width, file.height))
    context.report(Progress(step=2, steps=2))
    resolved = request.model_copy(update={"model": artifacts.public_name(request.model, tokenizer.name)})
    record = record_of(resolved, 0, context, model_name=tokenizer.name, model_sha256=tokenizer.sha256)
    yield PictureDone(index=0, record=record, picture=to_pil(pixels)[0])
    yield Done(seconds=time.monotonic() - started)


def _unpacked(
    container: vtl.Container,
    shape: Shape,
    tokenizer: TokenizerModel,
    coder: PriorCoder | None,
    context: Context,
) -> Integers:
    if container.method == "prior":
        assert coder is not None
        return coder.read(container.payload, shape.rows, shape.columns, context)[None]
    read: Callable[[bytes, Shape, Integers], Integers] = (
        read_static if container.method == "static" else read_context
    )
    return read(container.payload, shape, tokenizer.usage())


def _planes(codes: Integers) -> Integers:
    return codes[None] if codes.ndim == 2 else np.moveaxis(codes, 2, 0)


def _check_file(file: CodesFile, tokenizer: TokenizerModel, name: str) -> None:
    codes: Tensor = torch.from_numpy(file.codes)
    try:
        check_codes(tokenizer, codes)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if tuple(codes.shape[:2]) != grid_of(tokenizer, file.width, file.height):
        raise DataError(
            f"{name} has {codes.shape[1]}x{codes.shape[0]} codes, which is not what a picture of "
            f"{file.width}x{file.height} pixels has with {tokenizer.name}"
        )


def _other_model(name: str, wanted: bytes, model: str, sha256: str) -> DataError:
    return DataError(
        f"{shown(name)} was made with another model (SHA-256 {wanted[:6].hex()}...); "
        f"{model} is {sha256[:12]}...: give the model that made it with --model"
    )
