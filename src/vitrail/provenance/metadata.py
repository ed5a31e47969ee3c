"""Writing a picture file with its settings in it, and reading them back from anybody's.

Two texts go into every file: the A1111 ``parameters`` text, which every other program shows, and our own
complete record (JSON), from which the same pixels are made again.

========  ==============================  =========================================
format    ``parameters``                  record
========  ==============================  =========================================
PNG       text chunk ``parameters``       iTXt chunk ``vitrail``
JPEG      EXIF UserComment, UTF-16        EXIF MakerNote, ``vitrail\\0`` and UTF-8
WebP      EXIF UserComment, UTF-16        EXIF MakerNote, ``vitrail\\0`` and UTF-8
========  ==============================  =========================================

MakerNote and not XMP, because people carry EXIF along when they save a picture again with Pillow
(``save(..., exif=picture.getexif())``), which keeps every EXIF tag as it is and drops XMP; and because it
takes bytes, while an EXIF text is ASCII by the standard.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from PIL import Image, PngImagePlugin

from vitrail.errors import InputError
from vitrail.images import Source, flatten, open_raw, open_stream, read_header
from vitrail.provenance.dialects import PictureSettings, recognise, settings_of, to_a1111
from vitrail.schema import ImageRecord

__all__ = ["FORMATS", "PictureFormat", "PictureInfo", "encode", "encode_animation", "read"]

PictureFormat = Literal["png", "jpeg", "webp"]

FORMATS: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Formats that are written, and the suffix of their files."""

_RECORD_KEY = "vitrail"
_RECORD_MARK = b"vitrail\0"
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_MAKE, _MODEL = 0x010F, 0x0110
_LEVEL = 4  # of PNG's compression: half the time of the default, and 3 % more bytes
_MAX_EXIF = 65_000  # a JPEG segment holds 65,533 bytes
_MAX_TEXT_BYTES = 8 << 20
_MAX_CHUNKS = 100_000


@dataclass(frozen=True)
class PictureInfo:
    """What a picture file says about how it was made."""

    texts: dict[str, str]
    """Every text field found, by PNG keyword; what EXIF held stands under the keyword of that meaning."""
    settings: PictureSettings | None = None
    """The settings in the common form, whoever wrote them."""
    record: ImageRecord | None = None
    """Our own record, if vitrail made the picture."""
    problems: list[str] = field(default_factory=list)
    """What was there but could not be read."""


def encode(
    picture: Image.Image,
    format: PictureFormat,
    record: ImageRecord | None = None,
    *,
    parameters: str | None = None,
    quality: int = 95,
) -> bytes:
    """The bytes of a picture file that carries ``record`` and the ``parameters`` text made from it.

    Parameters
    ----------
    parameters: another text in place of the one made from ``record``.
    quality: 1 to 100, for JPEG and WebP. From 90 on JPEG keeps full colour resolution.

    Raises :class:`InputError` for an unknown format or quality.
    """
    if format not in FORMATS:
        raise InputError(f"format {str(format)[:20]!r} is unknown; allowed are {', '.join(FORMATS)}")
    if not 1 <= quality <= 100:
        raise InputError(f"quality {quality} is out of range; allowed 1 to 100")
    if parameters is None and record is not None:
        parameters = to_a1111(settings_of(record))
    target = io.BytesIO()
    if format == "png":
        chunks = PngImagePlugin.PngInfo()
        if parameters:
            # iTXt says that it is UTF-8; what stands in tEXt beyond ASCII is read in two ways by others.
            (chunks.add_text if parameters.isascii() else chunks.add_itxt)("parameters", parameters)
        if record is not None:
            chunks.add_itxt(_RECORD_KEY, record.to_json())
        picture.save(target, "PNG", pnginfo=chunks, compress_level=_LEVEL)
        return target.getvalue()
    exif = _exif(parameters, record)
    if format == "jpeg":
        subsampling = 0 if quality >= 90 else 2
        flatten(picture).save(target, "JPEG", quality=quality, subsampling=subsampling, exif=exif)
    else:
        picture.save(target, "WEBP", quality=quality, exif=exif)
    return target.getvalue()


def encode_animation(pictures: Sequence[Image.Image], fps: float, record: ImageRecord) -> bytes:
    """The bytes of a lossless animated WebP, endlessly repeated, that carries ``record``.

    Raises :class:`InputError` for no pictures.
    """
    if not pictures:
        raise InputError("no picture was given; an animation needs at least one")
    target = io.BytesIO()
    pictures[0].save(
        target,
        "WEBP",
        save_all=True,
        append_images=list(pictures[1:]),
        duration=max(1, round(1000 / fps)),
        loop=0,
        lossless=True,
        exif=_exif(to_a1111(settings_of(record)), record),
    )
    return target.getvalue()


def read(source: Source, *, name: str | None = None) -> PictureInfo:
    """Read what a picture file says about its making, without decoding the pixels.

    Malformed metadata is reported in ``problems``, never raised; only a file that is no picture at all raises
    as :func:`vitrail.images.read_header` does, which calls it ``name``.
    """
    texts: dict[str, str] = {}
    problems: list[str] = []
    if read_header(source, name=name).format == "PNG":
        with open_stream(source) as file:
            file.seek(8)
            texts.update(_png_texts(file, problems))
    else:
        with open_raw(source) as picture:
            try:
                texts.update(_exif_texts(picture.getexif()))
            except Exception as error:  # Pillow's EXIF reader raises whatever it meets in a damaged block
                problems.append(f"EXIF cannot be read: {type(error).__name__}")
    record = None
    if _RECORD_KEY in texts:
        try:
            record = ImageRecord.from_json(texts[_RECORD_KEY])
        except InputError as error:
            problems.append(f"the vitrail record cannot be read: {error}")
    settings = settings_of(record) if record is not None else recognise(texts)
    return PictureInfo(texts, settings, record, problems)


def _exif(parameters: str | None, record: ImageRecord | None) -> bytes:
    exif = Image.Exif()
    tags = exif.get_ifd(_EXIF_IFD)
    if parameters:
        # EXIF 2.3, 4.6.5: eight bytes name the character code. Pillow writes big-endian, so the text is too.
        tags[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be", "replace")
    if record is not None:
        tags[_MAKER_NOTE] = _RECORD_MARK + record.to_json().encode("utf-8")
    data = exif.tobytes()
    if len(data) > _MAX_EXIF:
        raise InputError(
            f"the settings take {len(data)} bytes; a picture file holds {_MAX_EXIF}: save as PNG"
        )
    return data


def _exif_texts(exif: Image.Exif) -> Iterator[tuple[str, str]]:
    tags = exif.get_ifd(_EXIF_IFD)
    note = tags.get(_MAKER_NOTE)
    if isinstance(note, bytes) and note.startswith(_RECORD_MARK):
        yield _RECORD_KEY, note.removeprefix(_RECORD_MARK).decode("utf-8", "replace")
    elif isinstance(note, str | bytes):  # Fooocus keeps the name of its scheme there
        text = note if isinstance(note, str) else note.decode("latin-1")
        yield "fooocus_scheme", text.rstrip("\0")
    comment = tags.get(_USER_COMMENT)
    if isinstance(comment, str | bytes):
        yield "parameters", _user_comment(comment)
    for tag in (_MAKE, _MODEL):  # ComfyUI: "workflow:{...}" and "prompt:{...}"
        value = exif.get(tag)
        if isinstance(value, str) and value.startswith(("prompt:{", "workflow:{")):
            key, _, text = value.partition(":")
            yield key, text


def _user_comment(value: str | bytes) -> str:
    """Decode EXIF UserComment; programs differ in the byte order of its UTF-16, so the zeros decide."""
    data = value.encode("latin-1", "replace") if isinstance(value, str) else value
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            return text.decode("utf-16", "replace").rstrip("\0")
        # The settings line is ASCII, so one of the two byte positions is mostly zero, whatever the prompt is.
        little = text[1::2].count(0) > text[0::2].count(0)
        return text.decode("utf-16-le" if little else "utf-16-be", "replace").rstrip("\0")
    if code in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)):
        data = text
    return data.decode("utf-8", "replace").rstrip("\0")


def _png_texts(file: BinaryIO, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Every tEXt, zTXt and iTXt chunk, before and after the pixels (PNG specification, 11.3.3).

    Pillow would have to decode the picture to reach those after it.
    """
    budget = _MAX_TEXT_BYTES
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        if length > budget:
            problems.append("the text fields are too long")
            return
        data = file.read(length)
        file.seek(4, io.SEEK_CUR)
        key, _, rest = data.partition(b"\0")
        name = key.decode("latin-1")
        text = _png_text(kind, rest, budget)
        if text is None:
            problems.append(f"the text field {name[:40]!r} is damaged or too long")
            continue
        budget -= len(data) + len(text)
        yield name, text


def _png_text(kind: bytes, rest: bytes, limit: int) -> str | None:
    if kind == b"tEXt":
        try:  # stable-diffusion.cpp writes UTF-8 there; Latin-1, as the standard says, is hardly ever both
            return rest.decode("utf-8")
        except UnicodeDecodeError:
            return rest.decode("latin-1")
    packed, encoding = True, "latin-1"
    if kind == b"zTXt":
        rest = rest[1:]
    else:
        if len(rest) < 2:
            return None
        packed, encoding = rest[0] == 1, "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # skip language and translated keyword
    if packed:
        inflate = zlib.decompressobj()
        try:
            rest = inflate.decompress(rest, max(limit, 1))
        except zlib.error:
            return None
        if inflate.unconsumed_tail or not inflate.eof:
            return None
    return rest.decode(encoding, "replace")
