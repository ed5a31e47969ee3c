"""Fonts for the labels of contact sheets: Pillow's own, else one of the machine's that has the characters.

Pillow's own font has ASCII and little more, and vitrail ships none. For accents the usual Latin fonts are
tried; for Chinese, in this order: what lies in ``fonts`` of :func:`vitrail.files.cache_folder` (``vitrail
data build font`` puts one there), the usual names on Linux, Windows and macOS, then what fontconfig says
covers Chinese. A font counts only if it has every character of the label.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import ImageFont

from vitrail.files import cache_folder

__all__ = ["Font", "can_draw", "chinese_font_file", "font_folder", "font_for", "forget_fonts", "plain_font"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

ENDINGS = (".ttf", ".otf", ".ttc", ".woff2", ".woff")

#: Usual names of fonts with accents; Pillow searches the system's own font folders for them.
LATIN_NAMES = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf", "Helvetica.ttc")

#: Usual names of fonts with Chinese.
USUAL_NAMES = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "msyh.ttc",
    "msyh.ttf",
    "Deng.ttf",
    "simhei.ttf",
    "simsun.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "Songti.ttc",
    "uming.ttc",
)

_SAMPLE = "的一猫图画"  # a font that lacks one of these is not for Chinese
_ACCENTS = "éßñØřž"
_NO_CHARACTER = "\U0010ffff"  # never assigned: shows what a missing glyph looks like


def font_folder() -> Path:
    """Where a person's own fonts for labels may lie; need not exist."""
    return cache_folder() / "fonts"


def can_draw(text: str) -> bool:
    """Whether some font at hand has every character of ``text``."""
    return font_for(text, 12) is not None


def font_for(text: str, size: int) -> Font | None:
    """A font of ``size`` pixels that has every character of ``text``; None if there is none on this machine.

    Pillow's own if that has them, else a Latin, else a Chinese one.
    """
    characters = frozenset(text)
    if _has_all(None, characters):
        return plain_font(size)
    for find in (_latin_font_file, chinese_font_file):
        file = find()
        if file is not None and _has_all(file, characters):
            return _from_file(file, size)
    return None


@functools.lru_cache(maxsize=32)
def plain_font(size: int) -> Font:
    """Pillow's own font (ASCII and a few signs) of ``size`` pixels."""
    return ImageFont.load_default(size)


@functools.cache
def chinese_font_file() -> str | None:
    """File (or name that Pillow finds) of the first font that has Chinese; looked for once. None: none."""
    return _first_with(_SAMPLE, _candidates())


@functools.cache
def _latin_font_file() -> str | None:
    return _first_with(_ACCENTS, LATIN_NAMES)


def _first_with(characters: str, candidates: Iterable[str]) -> str | None:
    for candidate in candidates:
        try:
            font = ImageFont.truetype(candidate, 12)
        except OSError:
            continue  # not on this machine, or damaged: the next one
        if all(_has(font, character) for character in characters):
            return candidate
    return None


def forget_fonts() -> None:
    """Look for fonts anew at the next label, for after one was installed."""
    for found in (chinese_font_file, _latin_font_file, _from_file, _has_all):
        found.cache_clear()


def _candidates() -> Iterator[str]:
    own = font_folder()
    if own.is_dir():
        yield from (str(path) for path in sorted(own.iterdir()) if path.suffix.lower() in ENDINGS)
    yield from USUAL_NAMES
    yield from _from_fontconfig()


def _from_fontconfig() -> list[str]:
    """Files of the installed fonts that cover Chinese, by fontconfig; [] where it is not installed."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, ":lang=zh-cn", "file"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return []  # labels are then written without it
    return sorted(line.partition(":")[0].strip() for line in answer.stdout.splitlines() if line.strip())


@functools.lru_cache(maxsize=32)
def _from_file(file: str, size: int) -> Font:
    return ImageFont.truetype(file, size)


@functools.lru_cache(maxsize=4096)
def _has_all(file: str | None, characters: frozenset[str]) -> bool:
    font = plain_font(24) if file is None else _from_file(file, 24)
    return all(_has(font, character) for character in characters)


def _has(font: Font, character: str) -> bool:
    """Whether ``font`` has the character: a missing glyph looks like that of a non-character."""
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType: a bitmap font of ASCII
        return character.isascii()
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))
