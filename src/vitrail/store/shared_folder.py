"""A folder that several machines may share: on a disk, or behind an address that fsspec reads (``s3://...``).

On a disk a file goes the way of :func:`vitrail.files.atomic_write`; an object store publishes an object whole
by itself. Names are given by the caller, never by a stranger, and are checked all the same.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.errors import InputError, MissingExtraError, StorageError
from vitrail.files import atomic_write, ensure_folder, remove_stale, shown, storage_errors

__all__ = ["SharedFolder"]

_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*(\.[a-z0-9]{1,5})?")
_STALE_SECONDS = 3600.0


class SharedFolder:
    """Files by name in ``place``, a path or an address such as ``s3://bucket/pictures``."""

    def __init__(self, place: str | Path) -> None:
        text = str(place)
        self.local: Path | None = None
        self._remote: Any = None
        if re.match(r"^[a-z0-9+.-]{2,}://", text) and not text.startswith("file://"):
            self._remote, self._root = _open_remote(text)
        else:
            self.local = ensure_folder(Path(text.removeprefix("file://")).expanduser().absolute())

    def write(self, name: str, data: bytes) -> None:
        """Publish a file, in place of one of that name. Raises :class:`StorageError`."""
        if self.local is not None:
            atomic_write(self.local / _checked(name), data)
            return
        with self._remote_errors(name):
            self._remote.pipe_file(f"{self._root}/{_checked(name)}", data)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none. Raises :class:`StorageError`."""
        try:
            if self.local is not None:
                with storage_errors(self.local):
                    return self._path(name).read_bytes()
            with self._remote_errors(name):
                data = self._remote.cat_file(f"{self._root}/{_checked(name)}")
                return data if isinstance(data, bytes) else bytes(data)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, None if there is none."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                return self._path(name).stat().st_size
            return None
        try:
            with self._remote_errors(name):
                self._remote.invalidate_cache()  # other machines write too
                return int(self._remote.size(f"{self._root}/{_checked(name)}"))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self.local is not None:
            with storage_errors(self.local):
                self._path(name).unlink(missing_ok=True)
            return
        path = f"{self._root}/{_checked(name)}"
        with self._remote_errors(name), contextlib.suppress(FileNotFoundError):
            self._remote.rm_file(path)

    def names(self, below: str) -> Iterator[str]:
        """Yield the names of all files in the sub-folder ``below``, in no order; staged ones are left out."""
        if self.local is not None:
            for path in (self.local / below).rglob("*"):
                if path.is_file() and not path.name.startswith("."):
                    yield path.relative_to(self.local).as_posix()
            return
        with self._remote_errors(below):
            self._remote.invalidate_cache()
            found = self._remote.find(f"{self._root}/{below}")
        for path in found:
            yield str(path).removeprefix(self._root).lstrip("/")

    def tidy(self) -> None:
        """Remove what killed processes left half written, once it is an hour old."""
        if self.local is not None:
            for folder in (self.local, *(path for path in self.local.glob("*/**") if path.is_dir())):
                remove_stale(folder, older_than=_STALE_SECONDS)

    def _path(self, name: str) -> Path:
        assert self.local is not None
        return self.local / _checked(name)

    @contextlib.contextmanager
    def _remote_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"{shown(name)} is not there") from error
        except Exception as error:  # whatever the client of an object store raises
            reason = shown(str(error) or type(error).__name__, 160)
            raise StorageError(f"cannot reach {shown(self._root)}: {reason}") from error


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError("a file's name in a shared folder is made of letters, digits, - and _")
    return name


def _open_remote(address: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("fsspec", "server") from error
    try:
        system, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        if isinstance(error, ImportError) and address.startswith(("s3://", "s3a://")):
            raise MissingExtraError("s3fs", "s3") from error
        raise InputError(f"the folder {shown(address)} cannot be opened: {shown(error)}") from error
    return system, str(root).rstrip("/")
