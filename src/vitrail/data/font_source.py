"""A Chinese font for the labels of contact sheets, from a pinned package.

vitrail ships no font: labels without one are written in English. The archive holds the font in many cuts; one
file of 1.1 MB and its licence are taken out of it, and only read.
"""

from __future__ import annotations

import os
from pathlib import Path

from vitrail.data.packages import Package, Progress, fetch, read_members
from vitrail.errors import DataError
from vitrail.files import atomic_write, ensure_folder
from vitrail.fonts import font_folder, forget_fonts

__all__ = ["FONT_PACKAGE", "build_font"]

FONT_PACKAGE = Package(
    "@fontsource/noto-sans-sc",
    "5.3.0",
    "05a7abac78a6cac4bd1361e7b24c680ee820fcc2f22cf5cc92673f4cd12771c5",
    "OFL-1.1",
    "Noto Sans SC by Google and Adobe, packaged by Fontsource (fontsource.org)",
)

_FILE = "package/files/noto-sans-sc-chinese-simplified-400-normal.woff2"
_LICENCE = "package/LICENSE"


def build_font(
    folder: str | os.PathLike[str] | None = None, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """Put Noto Sans SC (simplified Chinese) and its licence into ``folder``; return the font's path.

    folder: by default the one that :mod:`vitrail.fonts` looks in first.  cache: folder of fetched archives,
    as for :func:`vitrail.data.packages.fetch`. Raises DataError when the package cannot be had, StorageError
    when a folder cannot be written.
    """
    if progress is not None:
        progress("fetch", 0, 1)
    archive = fetch(FONT_PACKAGE, cache)
    found = dict(read_members(archive, lambda name: name in (_FILE, _LICENCE)))
    if len(found) != 2:
        raise DataError(f"{archive} lacks the font or its licence; delete it and run it again")
    target = ensure_folder(Path(folder) if folder is not None else font_folder())
    atomic_write(target / "NotoSansSC-LICENSE.txt", found[_LICENCE])
    path = atomic_write(target / "NotoSansSC-Regular.woff2", found[_FILE])
    forget_fonts()
    if progress is not None:
        progress("fetch", 1, 1)
    return path
