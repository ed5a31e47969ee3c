"""What every task writes into the record of a picture that it made."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from importlib import metadata

import torch

from vitrail.schema import ImageRecord, ResolvedRequest, ResolvedTextToImage
from vitrail.tasks.context import Context

__all__ = ["record_of", "seed_at", "versions"]


def record_of(
    request: ResolvedRequest,
    index: int,
    context: Context,
    *,
    model_name: str,
    model_sha256: str,
    precision: str = "float32",
    understood_as: str | None = None,
    hints: tuple[str, ...] = (),
) -> ImageRecord:
    """Return the record of picture ``index`` of ``request``."""
    return ImageRecord(
        request=request,
        index=index,
        seed=seed_at(request, index),
        model_name=model_name,
        model_sha256=model_sha256,
        versions=versions(),
        device=context.device.type,
        precision=precision,
        created=datetime.now(UTC),
        understood_as=understood_as,
        hints=hints[:16],
    )


def seed_at(request: ResolvedRequest, index: int) -> int:
    """Return the seed of picture ``index`` of ``request``."""
    return request.seed_of(index) if isinstance(request, ResolvedTextToImage) else request.seed + index


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of vitrail and torch, without their local parts (``+cpu``)."""
    try:
        own = metadata.version("vitrail")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        own = "source"
    return {"vitrail": own.split("+")[0], "torch": str(torch.__version__).split("+")[0]}
