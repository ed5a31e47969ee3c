"""Debian packages: where the tar of a .deb lies. Nothing is installed and no code of a package runs.

A .deb is an ``ar`` archive of "debian-binary", "control.tar.*" and "data.tar.*", in this order (deb(5)).
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from vitrail.errors import DataError

__all__ = ["is_deb", "open_deb"]

_MAGIC = b"!<arch>\n"
_HEADER = 60
_MAX_ENTRIES = 16
_MAX_BYTES = 512 * 2**20


def is_deb(path: Path) -> bool:
    """Tell whether a file begins as an ``ar`` archive."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_deb(path: Path) -> tarfile.TarFile:
    """Open the data tar of a .deb for reading; it is held in memory.

    Raises :class:`DataError` for a file that is none, or whose entries do not add up; tarfile's own errors
    for a tar that is broken.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DataError(f"{path.name} is not a Debian package; delete it and run it again")
        left = path.stat().st_size - len(_MAGIC)
        for _ in range(_MAX_ENTRIES):
            header = file.read(_HEADER)
            if len(header) < _HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
                break
            size = int(header[48:58])
            left -= _HEADER
            if size > left or size > _MAX_BYTES:
                raise DataError(f"{path.name} is cut short; delete it and run it again")
            name = header[:16].decode("ascii", "replace").strip().rstrip("/")
            if name.startswith("data.tar"):
                return tarfile.open(fileobj=io.BytesIO(file.read(size)), mode="r:*")
            file.seek(size + size % 2, 1)  # entries begin at even places
            left -= size + size % 2
    raise DataError(f"{path.name} holds no data.tar; delete it and run it again")
