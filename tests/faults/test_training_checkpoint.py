"""T2-T5: failed calls, a full disk, the order of writes, damaged files. Each check is shown to go red as
well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kill_server import KillServer, digest_of
from safetensors import SafetensorError
from safetensors.torch import load_file

from vitrail import files
from vitrail.errors import CheckpointError, StorageError, VitrailError
from vitrail.training import checkpoint
from vitrail.training.loop import TrainState
from vitrail.training.optim import Ema


def make_state(images: int, width: int = 6) -> TrainState:
    """A small state with a filled optimizer; its numbers follow from ``images``."""
    torch.manual_seed(images)
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = TrainState(
        {"model": model}, {"model": optimizer}, {"model": Ema(model, 100.0)}, images_seen=images
    )
    state.step = images // 4
    return state


def left_over(folder: Path) -> list[str]:
    """Everything in a checkpoint folder that is no published checkpoint."""
    return [path.name for path in folder.iterdir() if not re.fullmatch(r"images-\d{12}", path.name)]


@contextlib.contextmanager
def failing(
    nth: int, code: int, names: tuple[str, ...] = ("write", "fsync", "rename", "replace")
) -> Iterator[Any]:
    """Make the nth of the named calls fail, once; yields what was met."""
    met = SimpleNamespace(count=0, failed=None)
    real = {name: getattr(os, name) for name in names}

    def wrap(name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            met.count += 1
            if met.count == nth:
                met.failed = name
                raise OSError(code, os.strerror(code))
            return real[name](*args, **kwargs)

        return called

    for name in names:
        setattr(os, name, wrap(name))
    try:
        yield met
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def failed_saves(folder: Path, code: int) -> list[str]:
    """Fail every call of a save in turn; returns the faults found."""
    faults: list[str] = []
    kinds = set()
    for nth in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        checkpoint.save(folder, make_state(4))
        try:
            with failing(nth, code) as met:
                checkpoint.save(folder, make_state(8))
                checkpoint.prune(folder, 1)
        except StorageError:
            pass
        if met.failed is None:
            assert faults or kinds == {"write", "fsync", "rename"}, kinds
            return faults
        kinds.add(met.failed)
        if left_over(folder):
            faults.append(f"{nth}: left {left_over(folder)}")
        try:
            loaded = checkpoint.load_latest(folder)
            assert loaded is not None
            checkpoint.restore(loaded, make_state(0))
            if loaded.rejected:
                faults.append(f"{nth} ({met.failed}): {loaded.rejected}")
        except (VitrailError, AssertionError, SafetensorError, OSError, ValueError) as error:
            faults.append(f"{nth} ({met.failed}): {error}")
        else:
            checkpoint.save(folder, make_state(12))  # the disk is well again
            if checkpoint.verify(folder / "images-000000000012"):
                faults.append(f"{nth}: the next save is damaged")
    raise AssertionError("a save makes more than 1,000 calls")


@contextlib.contextmanager
def in_place(path: Path, **_: Any) -> Iterator[Path]:
    """The naive way: write the files where they will be read."""
    with files.storage_errors(path):
        path.mkdir(exist_ok=True)
        yield path


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_failed_call_of_a_save_leaves_a_whole_checkpoint(fast_folder: Path, code: int) -> None:
    assert failed_saves(fast_folder / "checkpoints", code) == []


def test_the_failing_calls_find_a_save_in_place(fast_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "atomic_folder", in_place)
    monkeypatch.setattr(checkpoint, "verify", lambda path: "")
    assert len(failed_saves(fast_folder / "checkpoints", errno.ENOSPC)) > 5


def test_every_failed_call_of_a_whole_run_can_be_resumed(server: KillServer, fast_folder: Path) -> None:
    """From the lock to the exported model: fail call N of a run, then run the same command again."""
    assert server.ask(folder=fast_folder / "straight", steps=2)["code"] == 0
    wanted = digest_of(fast_folder / "straight")
    for nth in range(1, 1000):
        run = fast_folder / f"run-{nth}"
        code_there = server.ask(folder=run, steps=2, at_call=nth, act=("ENOSPC", "EIO")[nth % 2])["code"]
        if not (run / "failed.txt").exists():
            assert code_there == 0
            assert nth > 50
            return
        # 0: a failed save in the middle of a run is tried again; 1: StorageError, in one line.
        assert code_there in (0, 1), (nth, (run / "traceback.txt").read_text())
        if code_there == 1:
            message = (run / "error.txt").read_text()
            assert message.startswith("StorageError: "), message
            assert "\n" not in message
        assert server.ask(folder=run, steps=2)["code"] == 0, nth
        assert digest_of(run) == wanted, nth
        assert not [path.name for path in run.rglob(".*")], nth
        shutil.rmtree(run)
    raise AssertionError("a run of two steps makes more than 1,000 calls")


def test_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, make_state(4))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError) as caught:
        checkpoint.save(tmp_path, make_state(8))
    message = str(caught.value)
    assert "\n" not in message
    numbers = [int(number) for number in re.findall(r"(\d+) (?:bytes needed|free)", message)]
    assert len(numbers) == 2
    assert numbers[0] > 3 * 4 * (
        6 * 4 + 6 + 3 * 6 + 3
    )  # weights, average and two moments take more than this
    assert numbers[1] == 1000
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_disk_that_fills_up_during_the_save(tmp_path: Path) -> None:
    """The same on a real file system of 4 MiB, whose free space another file takes while the save goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system needs root; the injected failures cover the same code")
    try:
        checkpoint.save(disk, make_state(4))
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        big = make_state(8, width=40_000)
        with pytest.raises(StorageError, match=r"\d{6,} bytes needed, \d+ free"):
            checkpoint.save(disk, big)
        # Past the first check: the space is gone only once the save has begun.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "check_space", lambda *_, **__: None)
            with pytest.raises(StorageError, match=r"\d{6,} bytes needed, \d+ free"):
                checkpoint.save(disk, big)
            assert left_over(disk) == []
            assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before
            # The control: written in place, the same disk is left with half a checkpoint.
            patch.setattr(checkpoint, "atomic_folder", in_place)
            with pytest.raises(StorageError):
                checkpoint.save(disk, big)
            assert checkpoint.verify(disk / "images-000000000008") != ""
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_size_limit_ends_the_run_in_one_line(server: KillServer, tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write itself, in a run of its own process."""
    assert server.ask(folder=tmp_path / "run", limit_file_bytes=9000)["code"] == 1
    message = (tmp_path / "run" / "error.txt").read_text()
    assert message.startswith("StorageError: cannot write")
    assert "too large" in message
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert server.ask(folder=tmp_path / "run")["code"] == 0


def traced_save(folder: Path) -> list[tuple[str, str]]:
    """The file system calls of one save: (call, path)."""
    calls: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "rename")}

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        handle: int = real["open"](path, *args, **kwargs)
        names[handle] = os.fspath(path)
        return handle

    def wrap(name: str) -> Callable[..., Any]:
        def called(first: Any, *args: Any) -> Any:
            place = names.get(first, "?") if isinstance(first, int) else os.fspath(first)
            calls.append((name, place))
            return real[name](first, *args)

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        for name in ("write", "fsync", "rename"):
            patch.setattr(os, name, wrap(name))
        checkpoint.save(folder, make_state(4))
    return calls


def out_of_order(folder: Path, calls: list[tuple[str, str]]) -> list[str]:
    """What is wrong with the order: T4 wants stage, fsync of each file, fsync of the stage, rename, fsync of
    it all.
    """
    renames = [index for index, (name, _) in enumerate(calls) if name == "rename"]
    if len(renames) != 1:
        return [f"{len(renames)} renames"]
    cut = renames[0]
    staged = calls[cut][1]
    faults = []
    written = {place for name, place in calls if name == "write"}
    if len(written) != 6 or not all(place.startswith(staged + os.sep) for place in written):
        faults.append(f"written: {sorted(written)}")
    for place in [*sorted(written), staged]:
        last_write = max((i for i, call in enumerate(calls) if call == ("write", place)), default=-1)
        if not any(call == ("fsync", place) and last_write < i < cut for i, call in enumerate(calls)):
            faults.append(f"no fsync of {place} between its last write and the rename")
    if ("fsync", str(folder)) not in calls[cut:]:
        faults.append("no fsync of the folder after the rename")
    return faults


def test_stage_fsync_rename_fsync(tmp_path: Path) -> None:
    assert out_of_order(tmp_path, traced_save(tmp_path)) == []


def test_the_trace_finds_a_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fsync_folder", lambda folder: None)
    assert out_of_order(tmp_path, traced_save(tmp_path)) != []


def test_retention_keeps_a_whole_one_and_all_that_is_foreign(tmp_path: Path) -> None:
    for images in (4, 8, 12, 16, 20):
        checkpoint.save(tmp_path, make_state(images))
    foreign = [
        tmp_path / "notes.txt",
        tmp_path / "images-12" / "a.txt",
        tmp_path / "images-000000000004" / "mine",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for newer in (16, 20):  # both newest are damaged: neither may count as the one that stays
        (tmp_path / f"images-{newer:012d}" / "weights.safetensors").write_bytes(b"")
    checkpoint.prune(tmp_path, 1)
    whole = [path.name for path in checkpoint.list_checkpoints(tmp_path) if not checkpoint.verify(path)]
    assert whole == ["images-000000000012", "images-000000000004"]  # the second holds somebody's file
    assert all(path.read_text() == "mine" for path in foreign)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.state["images_seen"] == 12


def test_nothing_is_removed_where_nothing_is_whole(tmp_path: Path) -> None:
    for images in (4, 8, 12):
        checkpoint.save(tmp_path, make_state(images))
        (tmp_path / f"images-{images:012d}" / "state.json").unlink()
    assert checkpoint.prune(tmp_path, 1) == []
    assert len(checkpoint.list_checkpoints(tmp_path)) == 3


def damage(path: Path, chance: random.Random) -> str:
    """Flip one bit, cut the file short, lengthen it or take it away."""
    data = path.read_bytes()
    kind = chance.choice(["flip", "flip", "cut", "cut", "longer", "gone"])
    if kind == "flip":
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :])
    elif kind == "cut":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "longer":
        path.write_bytes(data + bytes([chance.randrange(256)]))
    else:
        path.unlink()
    return kind


def undetected(folder: Path, count: int) -> list[str]:
    """Damage the newest checkpoint ``count`` times; returns what was not found or not fallen back from
    rightly.
    """
    chance = random.Random(5)
    checkpoint.save(folder, make_state(4))
    newest = checkpoint.save(folder, make_state(8))
    faults = []
    for number in range(count):
        path = chance.choice(sorted(newest.iterdir()))
        kept = path.read_bytes()
        kind = damage(path, chance)
        try:
            loaded = checkpoint.load_latest(folder)
            if loaded is None or loaded.folder.name != "images-000000000004":
                faults.append(f"{number}: {kind} of {path.name} was not found")
            elif not (newest.name in loaded.rejected[0] and path.name in loaded.rejected[0]):
                faults.append(f"{number}: {kind} of {path.name} is told as {loaded.rejected}")
        except (VitrailError, SafetensorError, OSError, ValueError, KeyError) as error:
            faults.append(f"{number}: {kind} of {path.name}: {error}")
        path.write_bytes(kept)
    assert checkpoint.verify(newest) == ""
    return faults


def test_500_damaged_files_are_all_found(fast_folder: Path) -> None:
    assert undetected(fast_folder, 500) == []


@pytest.mark.soak
def test_5000_damaged_files_are_all_found(fast_folder: Path) -> None:
    assert undetected(fast_folder, 5000) == []


def test_the_damage_gets_past_sizes_and_the_library(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a check by size and by what safetensors refuses misses most flipped bits."""

    def naive(path: Path) -> str:
        try:
            for file in path.glob("*.safetensors"):
                load_file(file)
        except (SafetensorError, OSError) as error:
            return f"{file.name}: {error}"
        return "" if (path / "manifest.json").exists() and (path / "state.json").exists() else "manifest.json"

    monkeypatch.setattr(checkpoint, "verify", naive)
    assert len(undetected(fast_folder, 60)) > 10


def test_a_run_falls_back_says_so_and_ends_the_same(server: KillServer, fast_folder: Path) -> None:
    assert server.ask(folder=fast_folder / "straight")["code"] == 0
    run = fast_folder / "run"
    assert server.ask(folder=run)["code"] == 0
    newest, before = checkpoint.list_checkpoints(run / "checkpoints")[:2]
    data = (newest / "optimizer.safetensors").read_bytes()
    (newest / "optimizer.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    answer = server.ask(folder=run, tell=True)
    assert answer["code"] == 0
    told = (run / "told.txt").read_text()
    assert newest.name in told
    assert f"going on from {before.name}" in told
    assert digest_of(run) == digest_of(fast_folder / "straight")
    assert (run / "checkpoints" / f"damaged-{newest.name}-0" / "optimizer.safetensors").exists()


def test_no_whole_checkpoint_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    for images in (4, 8):
        (checkpoint.save(tmp_path, make_state(images)) / "weights.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"images-000000000008 is damaged .* images-000000000004 is damaged"
    ):
        checkpoint.load_latest(tmp_path)
