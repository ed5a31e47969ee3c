"""The size of a picture file, read from its header alone, before any decoder sees it.

A decoder may allocate what a header claims, or read metadata of any length, as soon as it opens a file. So
the few header bytes are walked here, in constant memory, and what is too large is refused: a 1 kB file that
claims 30,000 x 30,000 pixels costs nothing.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

from vitrail.errors import DataError

__all__ = ["Format", "PictureHeader", "check_size", "megapixels", "walk_header"]

_MAX_METADATA_BYTES = 16 << 20  # text, EXIF and colour profiles in front of the first pixel
_ALLOWED = "allowed are PNG, JPEG, WebP and GIF"

Format = Literal["PNG", "JPEG", "WEBP", "GIF"]


@dataclass(frozen=True)
class PictureHeader:
    """What the first bytes of a picture file say: its format and its size in pixels (before any rotation)."""

    format: Format
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


class _BadHeader(Exception):
    """The header is cut off or contradicts its format."""


def walk_header(file: BinaryIO, name: str, max_pixels: int) -> PictureHeader:
    """Format and size of the picture file that ``file`` starts; ``name`` is what messages call it.

    Raises :class:`DataError` for another format, a damaged header, or more than ``max_pixels`` pixels.
    """
    start = file.read(16)
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            header = PictureHeader("PNG", *_png_size(file))
        elif start.startswith(b"\xff\xd8\xff"):
            header = PictureHeader("JPEG", *_jpeg_size(file, max_pixels))
        elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            header = PictureHeader("WEBP", *_webp_size(file))
        elif start[:6] in (b"GIF87a", b"GIF89a"):
            header = PictureHeader("GIF", *_gif_size(file))
        elif not start:
            raise DataError(f"{name} is empty; it is not a picture")
        else:
            raise DataError(f"{name} is not a picture that can be read; {_ALLOWED}")
    except _BadHeader as error:
        raise DataError(f"{name} has a bad header: {error}; the file is damaged or cut off") from error
    check_size(header.width, header.height, name, max_pixels)
    return header


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise :class:`DataError` unless 1 <= width * height <= ``max_pixels``."""
    if width < 1 or height < 1:
        raise DataError(f"{name} is {width}x{height} pixels; it has no picture in it")
    if width * height > max_pixels:
        raise DataError(
            f"{name} is {width}x{height} pixels ({megapixels(width * height)}); "
            f"allowed are {megapixels(max_pixels)}, so make it smaller first"
        )


def megapixels(count: int) -> str:
    """A number of pixels as people say it: 40,000,000 are "40 megapixels"."""
    return f"{count / 1e6:.4g} megapixels"


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _BadHeader("it ends too early")
    return data


def _png_size(file: BinaryIO) -> tuple[int, int]:
    """IHDR, then the chunk lengths up to the first IDAT (PNG specification, third edition, section 5)."""
    file.seek(8)
    length, kind = struct.unpack(">I4s", _take(file, 8))
    if kind != b"IHDR" or length != 13:
        raise _BadHeader("no IHDR")
    width, height = struct.unpack(">II", _take(file, 8))
    file.seek(9, io.SEEK_CUR)
    before = count = 0
    while kind != b"IDAT":
        length, kind = struct.unpack(">I4s", _take(file, 8))
        if kind != b"IDAT":
            before, count = before + length, count + 1
            if before > _MAX_METADATA_BYTES or count > 10_000:
                raise _BadHeader("too much metadata before the pixels")
            file.seek(length + 4, io.SEEK_CUR)
    return width, height


def _jpeg_size(file: BinaryIO, max_pixels: int) -> tuple[int, int]:
    """The largest frame header in front of the first scan (ITU T.81, annex B)."""
    file.seek(2)
    best = (0, 0)
    while True:
        byte = _take(file, 1)
        if byte != b"\xff":
            raise _BadHeader("a marker is missing")
        while byte == b"\xff":
            byte = _take(file, 1)
        marker = byte[0]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        if marker == 0xDA:
            if best == (0, 0):
                raise _BadHeader("no frame header before the first scan")
            return best
        if marker == 0xD9:
            raise _BadHeader("no scan in it")
        (length,) = struct.unpack(">H", _take(file, 2))
        if length < 2 or file.tell() > _MAX_METADATA_BYTES:
            raise _BadHeader("a segment of impossible length" if length < 2 else "too much metadata")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width = struct.unpack(">BHH", _take(file, 5))
            if width * height >= best[0] * best[1]:
                best = (width, height)
            if width * height > max_pixels:
                return best
            length -= 5
        file.seek(length - 2, io.SEEK_CUR)


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    """The first chunk: VP8X canvas, VP8 key frame or VP8L (RFC 9649)."""
    file.seek(12)
    kind = _take(file, 4)
    _take(file, 4)
    if kind == b"VP8X":
        data = _take(file, 10)
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8L":
        data = _take(file, 5)
        if data[0] != 0x2F:
            raise _BadHeader("no VP8L signature")
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        data = _take(file, 10)
        if data[3:6] != b"\x9d\x01\x2a":
            raise _BadHeader("no VP8 start code")
        width, height = struct.unpack("<HH", data[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise _BadHeader("no VP8 chunk")


def _gif_size(file: BinaryIO) -> tuple[int, int]:
    """Logical screen joined with the first frame; the blocks before that frame are bounded (GIF89a, 18-26).

    Pillow joins the pieces of a comment one by one, which takes minutes for a long one: hence the bound.
    """
    file.seek(6)
    width, height, flags = struct.unpack("<HHB", _take(file, 5))
    file.seek(2 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0), io.SEEK_CUR)
    start = file.tell()
    while (block := _take(file, 1)) != b",":
        if block == b";":
            raise _BadHeader("no frame in it")
        if block == b"!":
            _take(file, 1)
            while length := _take(file, 1)[0]:
                file.seek(length, io.SEEK_CUR)
        if file.tell() - start > 1 << 20:
            raise _BadHeader("too much metadata before the first frame")
    left, top, frame_width, frame_height = struct.unpack("<HHHH", _take(file, 8))
    return max(width, left + frame_width), max(height, top + frame_height)
