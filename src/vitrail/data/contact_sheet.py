"""A contact sheet: many pictures on one page, whole and with a label each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from vitrail.errors import InputError
from vitrail.fonts import Font, font_for

__all__ = ["contact_sheet"]

Colour = tuple[int, int, int]

_PAPER: Colour = (247, 246, 243)
_MOUNT: Colour = (255, 255, 255)
_EDGE: Colour = (226, 223, 216)
_INK: Colour = (38, 36, 33)
_FAINT: Colour = (128, 122, 113)


def contact_sheet(
    pictures: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    *,
    title: str = "",
    subtitle: str = "",
    columns: int | None = None,
    cell: int = 168,
) -> Image.Image:
    """Lay RGB pictures out in a grid, each shrunk to fit ``cell`` pixels, with up to two lines of label
    below.

    Parameters
    ----------
    labels: one for each picture. Where no font of the system has Chinese characters, a label that is not
        Latin is left out rather than drawn as boxes (:func:`vitrail.fonts.can_draw` tells which).
    columns: default: about as many as make the sheet a little wider than high, at most 12.

    Raises :class:`InputError` without pictures, or if the labels are not as many.
    """
    if not pictures:
        raise InputError("no picture was given; a contact sheet needs one")
    texts = [""] * len(pictures) if labels is None else list(labels)
    if len(texts) != len(pictures):
        raise InputError(f"{len(texts)} labels for {len(pictures)} pictures; give one for each")
    across = columns or _columns(len(pictures))
    down = math.ceil(len(pictures) / across)
    gap, margin, mount = cell // 10, cell // 5, cell // 14
    small, big = max(10, cell // 13), max(14, cell // 7)
    label_height = round(2.7 * small) if any(texts) else 0
    top = margin + (round(1.5 * big) if title else 0) + (round(2.2 * small) if subtitle else 0)
    pitch_y = cell + label_height + gap
    width = 2 * margin + across * cell + (across - 1) * gap
    sheet = Image.new("RGB", (width, top + down * pitch_y - gap + margin), _PAPER)
    pen = ImageDraw.Draw(sheet)
    y = margin * 3 // 4
    if title:
        _write(pen, (margin, y), title, big, _INK, width - 2 * margin, 1)
        y += round(1.5 * big)
    if subtitle:
        _write(pen, (margin, y), subtitle, small + 1, _FAINT, width - 2 * margin, 1)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = margin + number % across * (cell + gap), top + number // across * pitch_y
        pen.rounded_rectangle(
            (x, y, x + cell - 1, y + cell - 1), radius=cell // 16, fill=_MOUNT, outline=_EDGE
        )
        room = cell - 2 * mount
        fitted, way = _fit(picture.size, room)
        shrunk = picture.convert("RGB").resize(fitted, way, reducing_gap=3.0)
        sheet.paste(shrunk, (x + (cell - fitted[0]) // 2, y + (cell - fitted[1]) // 2))
        _write(pen, (x + 1, y + cell + small // 3), text, small, _INK, cell - 2, 2)
    return sheet


def _columns(count: int) -> int:
    """Columns that make a sheet a little wider than high and leave few places of the last row empty."""
    ideal = min(12, count, math.ceil(math.sqrt(count * 1.5)))
    return min(
        range(max(1, ideal - 2), min(12, ideal + 2) + 1), key=lambda n: (-count % n + abs(n - ideal), n)
    )


def _fit(size: tuple[int, int], room: int) -> tuple[tuple[int, int], Image.Resampling]:
    """The size to show a picture at. Small ones keep their pixels: one should see that they are small."""
    times = room // max(size)
    if times >= 1:
        return (size[0] * times, size[1] * times), Image.Resampling.NEAREST
    share = room / max(size)
    return (max(1, round(size[0] * share)), max(1, round(size[1] * share))), Image.Resampling.LANCZOS


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: Colour,
    width: int,
    lines: int,
) -> None:
    text = "".join(c if c.isprintable() else " " for c in text)
    font = font_for(text, size)
    if font is None:
        return
    for row, line in enumerate(_break(pen, text, font, width, lines)):
        pen.text((at[0], at[1] + round(1.25 * size * row)), line, fill=colour, font=font)


def _break(pen: ImageDraw.ImageDraw, text: str, font: Font, width: int, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines of ``width`` pixels, with "..." where it had to be cut."""
    rest, broken = text[:400].strip(), list[str]()
    while rest and len(broken) < lines:
        count = len(rest)
        while count > 1 and pen.textlength(rest[:count], font=font) > width:
            count = min(count - 1, max(1, int(count * width / pen.textlength(rest[:count], font=font)) + 1))
        last = len(broken) == lines - 1
        if count == len(rest):
            broken.append(rest)
            break
        if last:
            while count > 1 and pen.textlength(rest[:count] + "...", font=font) > width:
                count -= 1
            broken.append(rest[:count].rstrip() + "...")
            break
        space = rest.rfind(" ", 1, count + 1)
        count = space if space > count // 2 else count
        broken.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    return broken
