"""Files are wholly there or not at all, whatever fails in between."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from vitrail import files
from vitrail.errors import StorageError
from vitrail.files import (
    atomic_folder,
    atomic_write,
    check_space,
    ensure_folder,
    remove_stale,
    sha256_of,
    shown,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"\x00\xff", "猫\n", lambda file: file.write(b"abc")])
def test_write_and_replace(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "deep" / "er" / "x.bin"
    expected = {bytes: b"\x00\xff", str: "猫\n".encode()}.get(type(data), b"abc")
    for _ in range(2):
        assert atomic_write(path, data) == path
        assert path.read_bytes() == expected
    assert names(path.parent) == ["x.bin"]


def test_no_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "x"
    atomic_write(path, b"first", overwrite=False)
    with pytest.raises(StorageError, match="exists already"):
        atomic_write(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


def test_no_overwrite_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_no_overwrite(tmp_path)


def fail(code: int) -> Callable[..., Any]:
    def raiser(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return raiser


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_system_call_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = atomic_write(tmp_path / "x", b"old")
    monkeypatch.setattr(files.os, call, fail(code))
    with pytest.raises(StorageError) as caught:
        atomic_write(path, b"new")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_full_disk_names_bytes_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(StorageError, match=r"1000 bytes needed, 10 free"):
        atomic_write(tmp_path / "x", bytes(1000))
    with pytest.raises(StorageError, match=r"5 bytes needed, 10 free"):
        check_space(tmp_path / "not" / "yet", 5)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    """A write that the free-space check could not foresee: a writer function on a 1 MiB file system."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        atomic_write(disk / "x", b"old")

        def much(file: BinaryIO) -> None:
            for _ in range(100):
                file.write(bytes(100_000))

        with pytest.raises(StorageError, match="no room left"):
            atomic_write(disk / "x", much)
        assert (disk / "x").read_bytes() == b"old"
        assert names(disk) == ["x"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def broken(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x", broken)
    assert names(tmp_path) == []


def test_read_only_and_impossible_places_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file" / "x", tmp_path / ("n" * 300), Path("/proc/nothing/x")):
        with pytest.raises(StorageError) as caught:
            atomic_write(bad, b"data")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        files.os, "access", lambda *_: False
    )  # root may write anywhere, so a mode proves nothing
    with pytest.raises(StorageError, match="read-only; choose another folder"):
        ensure_folder(tmp_path)


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as staged:
        (staged / "a").write_bytes(b"1")
        (staged / "sub").mkdir()
        (staged / "sub" / "b").write_bytes(b"2")
        assert not target.exists()
    assert names(target) == ["a", "sub"]
    assert names(tmp_path) == ["model"]


def test_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as staged:
        (staged / "a").write_bytes(b"old")
    with pytest.raises(StorageError, match="exists already"), atomic_folder(target):
        pass

    def half() -> None:
        with atomic_folder(target, overwrite=True) as staged:
            (staged / "a").write_bytes(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert (target / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("exchange", [True, False])
def test_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files.sys, "platform", "darwin")
    target = tmp_path / "model"
    for content in (b"old", b"new"):
        with atomic_folder(target, overwrite=True) as staged:
            (staged / "a").write_bytes(content)
    assert (target / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["model"]


_LOOP = """
import sys
from pathlib import Path
from vitrail.files import atomic_folder, atomic_write
root = Path(sys.argv[1])
i = 0
while True:
    i += 1
    atomic_write(root / "file", (b"%d," % i) * 20000)
    with atomic_folder(root / "folder", overwrite=True) as staged:
        for name in "ab":
            (staged / name).write_bytes((b"%d," % i) * 5000)
    print(i, flush=True)
"""


def test_killed_at_any_moment_the_published_files_are_whole(tmp_path: Path) -> None:
    for round_ in range(8):
        worker = subprocess.Popen([sys.executable, "-c", _LOOP, str(tmp_path)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(0.013 * round_)
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        parts = (tmp_path / "file").read_bytes().split(b",")
        assert len(set(parts[:-1])) == 1
        assert len(parts) == 20001
        both = [(tmp_path / "folder" / name).read_bytes() for name in "ab"]
        assert both[0] == both[1]
        assert both[0].count(b",") == 5000
        remove_stale(tmp_path)
        assert names(tmp_path) == ["file", "folder"]


def test_stale_removal_touches_nothing_foreign(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / f".x.vitrail-{gone.pid}-0123456789ab.part"
    stale.mkdir()
    (stale / "half").write_bytes(b"")
    mine = tmp_path / f".x.vitrail-{os.getpid()}-0123456789ab.part"
    foreign = [tmp_path / name for name in (".x.part", "x.vitrail-1-0123456789ab.part", ".hidden")]
    for path in (mine, *foreign):
        path.write_bytes(b"")
    assert remove_stale(tmp_path) == [stale]
    assert sorted(tmp_path.iterdir()) == sorted([mine, *foreign])
    assert remove_stale(tmp_path / "missing") == []


def test_small_helpers(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert shown("a\nb\x1b[31m\ud800") == "a\\nb\\x1b[31m\\ud800"
    assert len(shown("x" * 10_000)) <= 160
