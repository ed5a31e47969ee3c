"""Files that are either wholly there or not there at all.

Every published file goes: stage beside the target -> flush -> fsync -> rename -> fsync of the folder. So a
reader never sees half a file, and a crash or a full disk at any point leaves the previous one untouched.
What the file system refuses becomes one :class:`~vitrail.errors.StorageError` line that names the cause.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vitrail.errors import StorageError

__all__ = [
    "atomic_folder",
    "atomic_write",
    "cache_folder",
    "check_space",
    "ensure_folder",
    "fsync_folder",
    "remove_stale",
    "sha256_of",
    "shown",
    "storage_errors",
]

Writer = Callable[[BinaryIO], None]

_STAGED = re.compile(r"^\.(?P<name>.+)\.vitrail-(?P<pid>[0-9]{1,10})-[0-9a-f]{12}\.part$", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def shown(value: object, limit: int = 160) -> str:
    """``value`` as text that is safe in a one-line message: no control characters, at most ``limit`` long."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)[: 4 * limit])
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-(limit // 2 - 3) :]}"


def cache_folder() -> Path:
    """Where vitrail keeps what it fetched or built: ``$VITRAIL_DATA``, else ``~/.cache/vitrail``."""
    named = os.environ.get("VITRAIL_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "vitrail"


def ensure_folder(folder: Path | str) -> Path:
    """Make ``folder`` (and its parents) if need be; :class:`StorageError` if it cannot be written to."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise StorageError(f"{shown(path)} is a file, not a folder; choose another folder")
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise StorageError(
            f"the folder {shown(path)} is read-only; choose another folder or change its permissions"
        )
    return path


def check_space(folder: Path | str, needed: int, *, margin: int = 1 << 20) -> None:
    """Raise :class:`StorageError`, naming bytes needed and free, unless ``needed + margin`` bytes are free.

    ``folder`` need not exist yet: its nearest existing parent is asked.
    """
    path = Path(folder).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    with storage_errors(path):
        free = shutil.disk_usage(path).free
    if free < needed + margin:
        raise StorageError(_no_room(Path(folder), needed, free))


@contextlib.contextmanager
def storage_errors(path: Path | str, needed: int | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a :class:`StorageError` line about ``path``.

    ``needed``: how many bytes were being written, for the message of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_explain(Path(path), error, needed)) from error


def atomic_write(path: Path | str, data: bytes | str | Writer, *, overwrite: bool = True) -> Path:
    """Publish one file atomically and durably; returns its path.

    Parameters
    ----------
    data: the bytes, a text (written as UTF-8), or a function that writes to the binary file it is given.
    overwrite: with ``False`` an existing file of that name is an error (checked by the file system itself,
        so that two processes cannot both win).

    Raises :class:`StorageError` (no room, read-only folder, name taken); nothing is left behind then.
    """
    target = Path(path)
    if isinstance(data, str):
        data = data.encode("utf-8")
    needed = len(data) if isinstance(data, bytes) else None
    ensure_folder(target.parent)
    if needed is not None:
        check_space(target.parent, needed, margin=0)
    staged = _staged_name(target)
    with storage_errors(target, needed):
        try:
            with open(staged, "xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    data(file)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(staged, target)
            else:
                _rename_new(staged, target)
            fsync_folder(target.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged)
            raise
    return target


@contextlib.contextmanager
def atomic_folder(path: Path | str, *, overwrite: bool = False, needed: int | None = None) -> Iterator[Path]:
    """Fill a staged sibling of ``path`` in the block; at its end the whole folder appears at once.

    Every file written into the yielded folder is fsynced before the rename. If the block raises, the staged
    folder is removed and ``path`` stays as it was. A taken ``path`` is an error unless ``overwrite``; then
    the two folders are exchanged in one system call where the system has one (Linux), and the old one is
    removed afterwards. ``needed``: bytes that must be free before the block starts.
    """
    target = Path(path).absolute()
    ensure_folder(target.parent)
    if target.exists() and not (overwrite and target.is_dir()):
        raise StorageError(f"{shown(target)} exists already; choose another name or remove it")
    if needed is not None:
        check_space(target.parent, needed)
    staged = _staged_name(target)
    with storage_errors(target, needed):
        try:
            staged.mkdir()
            yield staged
            _fsync_tree(staged)
            if target.exists():
                _exchange(staged, target)
            else:
                os.rename(staged, target)
            fsync_folder(target.parent)
        finally:
            # After a failure: the unfinished folder. After an exchange: the old one. Else it is gone already.
            shutil.rmtree(staged, ignore_errors=True)


def fsync_folder(folder: Path | str) -> None:
    """Make the names in ``folder`` durable (a rename lives in the folder, not in the file)."""
    if sys.platform == "win32":
        return  # a folder cannot be opened for fsync there; NTFS journals its renames
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale(folder: Path | str, *, older_than: float = 0.0) -> list[Path]:
    """Remove what killed processes left staged in ``folder`` by the functions above; returns those paths.

    Only names of our own pattern whose process is gone are touched, never anything foreign. In a folder that
    several machines share, processes of the others cannot be seen: give ``older_than``, in seconds.
    """
    removed: list[Path] = []
    root = Path(folder)
    if not root.is_dir():
        return removed
    for entry in sorted(root.iterdir()):
        match = _STAGED.match(entry.name)
        if match is None or _alive(int(match["pid"])):
            continue
        with storage_errors(entry), contextlib.suppress(FileNotFoundError):
            if older_than and time.time() - entry.stat().st_mtime < older_than:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        removed.append(entry)
    return removed


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _staged_name(target: Path) -> Path:
    # 60 characters of the name: a name at the file system's limit of 255 bytes must still have a staged form.
    return target.with_name(f".{target.name[:60]}.vitrail-{os.getpid()}-{secrets.token_hex(6)}.part")


def _rename_new(staged: Path, target: Path) -> None:
    """Rename, but fail with ``FileExistsError`` where the name is taken."""
    try:
        os.link(staged, target)  # unlike a rename, a link never replaces anything
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A file system without hard links (FAT, some network drives): claim the name, then replace the claim.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(staged, target)
    else:
        os.unlink(staged)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            handle = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(folder)


def _exchange(staged: Path, target: Path) -> None:
    """Swap two folders: atomically by ``renameat2`` (Linux 3.15, glibc 2.28), elsewhere by two renames."""
    if sys.platform == "linux":
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 is not None:
            done = renameat2(
                _AT_FDCWD,
                os.fsencode(staged),
                _AT_FDCWD,
                os.fsencode(target),
                ctypes.c_uint(_RENAME_EXCHANGE),
            )
            if done == 0:
                return
            if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))
    aside = _staged_name(target)
    os.rename(target, aside)
    os.rename(staged, target)
    shutil.rmtree(aside)


def _no_room(path: Path, needed: int | None, free: int | None) -> str:
    need = "" if needed is None else f"{needed} bytes needed, "
    have = "" if free is None else f"{free} free"
    return f"no room left for {shown(path)}: {need}{have}; free some space or choose another disk"


def _explain(path: Path, error: OSError, needed: int | None) -> str:
    place = shown(path)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            parent = path if path.is_dir() else path.parent
            try:
                free: int | None = shutil.disk_usage(parent).free
            except OSError:
                free = None  # the disk is gone as well; the first error is the one to tell
            return _no_room(path, needed, free)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"cannot write {place}: the folder is read-only; choose another or change its permissions"
        case errno.EEXIST:
            return f"{place} exists already; choose another name or remove it"
        case errno.ENOTDIR:
            return f"cannot write {place}: a part of that path is a file, not a folder"
        case errno.ENAMETOOLONG:
            return f"cannot write {place}: the name is too long; choose a shorter one"
        case _:
            return f"cannot write {place}: {shown(error.strerror or error)}"
