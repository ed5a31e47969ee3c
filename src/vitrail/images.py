"""The only boundary between pictures (Pillow) and tensors: NCHW float32 in [-1, 1].

Pictures come from strangers, so :mod:`vitrail.picture_headers` first decides on the header alone: only PNG,
JPEG, WebP and GIF, at most ``max_pixels``, no metadata that would be large or slow to read. What a decoder
then still refuses becomes one :class:`~vitrail.errors.DataError` line.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import math
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from vitrail.errors import DataError, InputError, NonFiniteError
from vitrail.files import shown
from vitrail.fonts import Font, can_draw, font_for, plain_font
from vitrail.picture_headers import PictureHeader, check_size, megapixels, walk_header

if TYPE_CHECKING:  # a server reads pictures and starts without torch
    from torch import Tensor

__all__ = [
    "MAX_PIXELS",
    "PictureHeader",
    "Source",
    "contained",
    "flatten",
    "grid",
    "open_image",
    "open_raw",
    "open_stream",
    "read_header",
    "to_pil",
    "to_tensor",
]

MAX_PIXELS = 40_000_000
"""Largest width * height that is decoded (a 160 MB RGBA buffer)."""

MAX_FILE_BYTES = 256 << 20
"""Largest file that is opened as a picture."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

Source = Path | str | bytes
"""A path, or the bytes of a file."""


def read_header(source: Source, max_pixels: int = MAX_PIXELS, *, name: str | None = None) -> PictureHeader:
    """Read format and size without decoding anything; a few kilobytes of memory whatever the file claims.

    ``source`` is a path or the bytes of a file; ``name`` is what messages call it, by default the path or
    "the picture". Raises :class:`InputError` where there is no such file and
    :class:`DataError` for another format, a damaged header, or more than ``max_pixels`` pixels.
    """
    with open_stream(source) as file:
        return walk_header(file, name or _name(source), max_pixels)


@contextlib.contextmanager
def open_raw(source: Source, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open a checked picture undecoded for the block, as Pillow sees it (``info`` and EXIF untouched).

    For readers of metadata; to get pixels use :func:`open_image`. Errors as :func:`read_header`.
    """
    name = _name(source)
    with open_stream(source) as file:
        walk_header(file, name, max_pixels)
        file.seek(0)
        try:
            picture = Image.open(file, formats=list(_FORMATS))
        except Exception as error:  # decoders raise whatever they like on hostile bytes
            reason = _reason(error)
            raise DataError(f"{name} cannot be read as a picture: {reason}; the file is damaged") from error
        # A file may hold two sizes (GIF screen and frame, a second JPEG frame header): ask again.
        check_size(picture.width, picture.height, name, max_pixels)
        yield picture


def open_image(source: Source, max_pixels: int = MAX_PIXELS, *, keep_alpha: bool = False) -> Image.Image:
    """Open a picture file, upright, as 8-bit RGB.

    Parameters
    ----------
    source: a path, or the bytes of a file. Of an animation the first frame is taken.
    max_pixels: refuse larger pictures, on the header alone.
    keep_alpha: return RGBA where the file has transparency; otherwise it is laid over white.

    EXIF orientation is applied. 16-bit grey is scaled to 8 bits; colour profiles are not converted.
    Raises :class:`InputError` (no such file) or :class:`DataError` (no picture, damaged, cut off, too large).
    """
    name = _name(source)
    with open_raw(source, max_pixels) as picture:
        try:
            picture.load()
        except Exception as error:  # decoders raise whatever they like on hostile bytes
            raise DataError(
                f"{name} cannot be decoded: {_reason(error)}; the file is damaged or cut off"
            ) from error
        try:
            upright = ImageOps.exif_transpose(picture)
        except Exception:  # damaged EXIF says nothing about the pixels: show them as they are stored
            upright = picture.copy()
    return flatten(upright, keep_alpha=keep_alpha)


def flatten(picture: Image.Image, *, keep_alpha: bool = False) -> Image.Image:
    """Bring any Pillow mode to RGB with transparency laid over white (or to RGBA with ``keep_alpha``)."""
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips it instead of scaling
        grey = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray(np.rint(grey.clip(0, 65535) / 257.0).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    if keep_alpha:
        return rgba
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def contained(picture: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """``picture`` as large as fits into ``size`` (width, height) in its own shape; of the thinnest, whose
    shorter side would come to nothing, a pixel is left.
    """
    if round(picture.width / picture.height * size[1]) < 1:
        return picture.resize((1, size[1]), method)
    if round(picture.height / picture.width * size[0]) < 1:
        return picture.resize((size[0], 1), method)
    return ImageOps.contain(picture, size, method)


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size -> float32 (N, 3, H, W) in [-1, 1]: ``v / 127.5 - 1``. Alpha is laid over white.

    Raises :class:`InputError` for no pictures or for different sizes.
    """
    import torch

    if not pictures:
        raise InputError("no picture was given; at least one is needed")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        listed = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
        raise InputError(f"pictures of different sizes cannot be put together: {listed}; resize them first")
    stacked = np.stack([np.asarray(flatten(picture)) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def to_pil(tensor: Tensor) -> list[Image.Image]:
    """(N, C, H, W) or (C, H, W) in [-1, 1], C = 1 or 3 -> RGB pictures; values are clamped, then rounded.

    ``to_pil(to_tensor(p))`` gives ``p`` back exactly. Raises :class:`NonFiniteError` if any value is NaN or
    infinite (a black picture must never pass for a result) and :class:`InputError` for another shape.
    """
    import torch

    batch = tensor.detach()
    if batch.ndim == 3:
        batch = batch[None]
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise InputError(f"a tensor of shape {tuple(tensor.shape)} is not pictures; needed is (N, 3, H, W)")
    batch = batch.to("cpu", torch.float32)
    if not bool(torch.isfinite(batch).all()):
        raise NonFiniteError(
            "the picture holds NaN or infinite values; try float32 precision or other settings"
        )
    values = batch.clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().to(torch.uint8)
    if values.shape[1] == 1:
        values = values.expand(-1, 3, -1, -1)
    return [Image.fromarray(np.ascontiguousarray(array)) for array in values.permute(0, 2, 3, 1).numpy()]


def _name(source: Source) -> str:
    return "the picture" if isinstance(source, bytes) else shown(source)


def open_stream(source: Source) -> BinaryIO:
    """The bytes of a regular file of at most :data:`MAX_FILE_BYTES`, errors as :func:`read_header`."""
    if isinstance(source, bytes):
        if len(source) > MAX_FILE_BYTES:
            raise DataError(f"the picture has {len(source)} bytes; allowed are {MAX_FILE_BYTES}")
        return io.BytesIO(source)
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        handle = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
        raise InputError(f"cannot open {shown(source)}: {reason}; give the path of a picture file") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise InputError(f"{shown(source)} is not a file; give the path of a picture file")
    if status.st_size > MAX_FILE_BYTES:
        os.close(handle)
        raise DataError(f"{shown(source)} has {status.st_size} bytes; allowed are {MAX_FILE_BYTES}")
    return os.fdopen(handle, "rb")


def _reason(error: Exception) -> str:
    return shown(str(error) or type(error).__name__, 100)


# -- contact sheets ------------------------------------------------------------------------------------------


def grid(
    pictures: Sequence[Image.Image],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    pad: int = 4,
    background: tuple[int, int, int] = (255, 255, 255),
    *,
    substitutes: Sequence[str] | None = None,
) -> Image.Image:
    """Lay pictures out in rows, left to right, with an optional line or two of text under each.

    Parameters
    ----------
    columns: pictures a row; default the square root of their number, rounded up.
    labels: one text a picture, wrapped to two lines and cut with an ellipsis.
    pad: pixels between pictures and around the sheet.
    substitutes: one text a picture, written where its label has characters that no font here has (Chinese, on
        a machine without a Chinese font; see :mod:`vitrail.fonts`): the English that the model understood,
        for instance. Without one those characters are left out, and an all-Chinese label becomes ``#3``.

    Smaller pictures are centred in the cell of the largest. Raises :class:`InputError` for no pictures, a
    count of labels that differs, or a sheet above :data:`MAX_PIXELS`.
    """
    if not pictures:
        raise InputError("no picture was given; a grid needs at least one")
    if labels is not None and len(labels) != len(pictures):
        raise InputError(f"{len(labels)} labels were given for {len(pictures)} pictures; give one for each")
    instead = [""] * len(pictures) if substitutes is None else list(substitutes)
    if len(instead) != len(pictures):
        raise InputError(f"{len(instead)} substitutes for {len(pictures)} pictures; give one for each")
    across = columns if columns is not None else math.ceil(math.sqrt(len(pictures)))
    if across < 1 or pad < 0:
        raise InputError(
            f"columns {across}, pad {pad} is out of range; allowed are columns >= 1 and pad >= 0"
        )
    across = min(across, len(pictures))
    down = math.ceil(len(pictures) / across)
    cell = max(p.width for p in pictures), max(p.height for p in pictures)
    size = max(9, min(22, cell[0] // 11))
    text_height = 2 * (size + 2) + 2 if labels is not None else 0
    width, height = across * (cell[0] + pad) + pad, down * (cell[1] + text_height + pad) + pad
    if width * height > MAX_PIXELS:
        raise InputError(
            f"a sheet of {width}x{height} pixels ({megapixels(width * height)}) is too large; "
            f"allowed are {megapixels(MAX_PIXELS)}"
        )
    sheet = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(sheet)
    ink = (0, 0, 0) if sum(background) > 382 else (255, 255, 255)
    for i, picture in enumerate(pictures):
        x, y = pad + i % across * (cell[0] + pad), pad + i // across * (cell[1] + text_height + pad)
        sheet.paste(
            flatten(picture), (x + (cell[0] - picture.width) // 2, y + (cell[1] - picture.height) // 2)
        )
        if labels is not None:
            text, font = _drawable(labels[i], instead[i], size, i)
            for row, line in enumerate(_wrapped(text, font, cell[0])):
                draw.text((x, y + cell[1] + 1 + row * (size + 2)), line, fill=ink, font=font)
    return sheet


def _drawable(label: str, substitute: str, size: int, index: int) -> tuple[str, Font]:
    """The label, else its substitute, else what can be drawn of it; and the font to draw it with."""
    texts = [_one_line(text) for text in (label, substitute)]
    for text in texts:
        font = font_for(text, size)
        if font is not None and (text or not texts[0]):
            return text, font
    letters = "".join(c for c in unicodedata.normalize("NFKD", texts[0]) if not unicodedata.combining(c))
    kept = " ".join("".join(c if can_draw(c) else " " for c in letters).split())
    text = kept if any(c.isalnum() for c in kept) else f"#{index + 1}"
    return text, font_for(text, size) or plain_font(size)


def _one_line(text: str) -> str:
    return "".join(c for c in " ".join(text[:400].split()) if c.isprintable())


def _fitting(text: str, font: Font, width: int, tail: str = "") -> int:
    """How many characters of ``text``, at least one, fit into ``width`` pixels with ``tail`` after them."""

    def wide(count: int) -> bool:
        return font.getlength(text[:count] + tail) > width

    fits = bisect.bisect_left(range(1, len(text) + 1), True, key=wide)
    return max(fits, 1)


def _wrapped(text: str, font: Font, width: int, rows: int = 2) -> list[str]:
    """Break ``text`` to ``width`` pixels, at spaces where it can; an ellipsis ends the last of ``rows``."""
    lines: list[str] = []
    while text and len(lines) < rows:
        fits = _fitting(text, font, width)
        if fits < len(text) and len(lines) == rows - 1:
            lines.append(text[: _fitting(text, font, width, tail="...")].rstrip() + "...")
            break
        if fits < len(text) and (space := text.rfind(" ", 0, fits + 1)) > 0:
            fits = space
        lines.append(text[:fits].rstrip())
        text = text[fits:].lstrip()
    return lines
