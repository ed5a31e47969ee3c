"""Hostile checkpoints: nothing that they hold is ever run, and each is refused in one line."""

from __future__ import annotations

import contextlib
import io
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import hostile_files as hostile
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitrail.backends import checkpoints
from vitrail.backends.checkpoints import read_checkpoint
from vitrail.backends.inert import read_inert
from vitrail.backends.inert_values import Opaque
from vitrail.backends.unpacking import Limits
from vitrail.cli import main
from vitrail.errors import ArtifactError

HERE = Path("canary-of-the-table")
NAMES = sorted(hostile.exploits(HERE, Path("/dev/null")))


class _PlainReader(pickle.Unpickler):
    """Python's own reader, as torch.load used it."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def exploit(name: str, canary: Path, folder: Path) -> bytes:
    other = folder / "other.py"
    data = hostile.exploits(canary, other)[name]
    other.with_suffix(".pt").write_bytes(
        hostile.zipped(hostile.exploits(canary, other)["system at the root"])
    )
    return data


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 600
    return message.removeprefix(str(path))


# What the negative control leaves behind (a process nobody waits for, an open file) is not the matter here.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_checkpoint_is_run(name: str, canary: Path, tmp_path: Path) -> None:
    data = exploit(name, canary, tmp_path)
    path = tmp_path / "evil.ckpt"
    path.write_bytes(hostile.zipped(data, {"0": bytes(16)}))
    message = refused(path)
    assert not canary.exists()
    assert ": it would run " in message
    # Negative control: the same bytes, opened as pickles are, do create it.
    with contextlib.suppress(Exception):
        _PlainReader(io.BytesIO(data)).load()
    for _ in range(200):  # Popen does not wait for its child
        if canary.exists():
            break
        time.sleep(0.01)
    assert canary.exists()


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 30
    assert len(hostile.lies()) >= 60


def test_the_old_format_and_conversion_are_no_back_doors(
    canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    evil = hostile.Calls(__import__("os").system, f"touch {canary}")
    torch.save({"state_dict": {"a": torch.zeros(2), "b": evil}}, path, _use_new_zipfile_serialization=False)
    assert "it would run " in refused(path)
    path.write_bytes(pickle.dumps(evil))
    assert "torch.save did not write" in refused(path)
    torch.save({"state_dict": {"a": torch.zeros(2)}, "callbacks": evil}, path)
    assert main(["models", "convert", str(path), "--to", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "it would run posix.system" in err
    assert not (tmp_path / "out").exists()
    assert not canary.exists()


@pytest.mark.parametrize("name", hostile.lies())
def test_a_file_that_lies_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, words = hostile.lies()[name]
    path = tmp_path / "lies.ckpt"
    path.write_bytes(data)
    assert words in refused(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_what_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "nowhere.ckpt", "a\0b"):
        with pytest.raises(ArtifactError):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["deflated", "deflated pickle", "many members", "a long header"])
def test_a_bomb_is_refused_by_its_head_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tracemalloc

    path = tmp_path / "bomb.ckpt"
    path.write_bytes(hostile.bombs()[name])
    monkeypatch.setattr(checkpoints, "_run_child", None)  # no child is started for it
    refused(path)
    tracemalloc.start()
    started = time.thread_time()
    refused(path)
    spent = time.thread_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 0.1
    assert peak < 20 << 20


def test_numbers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(hostile.bombs()["a header of numbers that are not there"])
    assert "not a sound safetensors file" in refused(path)


def _limited(path: Path, limits: Limits) -> dict[str, Any]:
    with open(path, "rb") as source, open(path.with_suffix(".out"), "wb") as output:
        return checkpoints._run_child(source, output, limits)


def test_the_child_stops_at_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "long.ckpt"
    path.write_bytes(hostile.zipped(b"N0" * 3_000_000 + b"N."))
    with pytest.raises(ArtifactError, match="took more than 1 s"):
        _limited(path, Limits(memory=1 << 30, seconds=1, output=1 << 20))
    path.write_bytes(hostile.zipped(b"]" * 2_000_000 + b"N."))
    answer = _limited(path, Limits(memory=80 << 20, seconds=30, output=1 << 20))
    assert "needs more than 80 MiB" in answer["error"]
    torch.save({"a": torch.zeros(4 << 20)}, path)
    answer = _limited(path, Limits(memory=1 << 30, seconds=30, output=8 << 20))
    assert "would unfold to more" in answer["error"]


def test_behind_the_reader_stands_a_second_wall(tmp_path: Path) -> None:
    """Whatever ran in the child could open no file, start no program, connect nowhere and import nothing."""
    attempts = [
        f"open({str(tmp_path / 'canary')!r}, 'w')",
        "os.system('true')",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.fork()",
        "os.remove('/nowhere')",
        "os.rename('/nowhere', '/elsewhere')",
        "os.open('/etc/passwd', os.O_RDONLY)",
        "os.listdir('/')",
        "subprocess.Popen(['true'])",
        "socket.socket()",
        "eval('1')",
        "exec('1')",
        "__import__('webbrowser')",
        "ctypes.CDLL(None)",
        "marshal.loads(b'N')",
        "pickle.loads(b'cos' + bytes([10]) + b'system' + bytes([10]) + b'.')",
    ]
    functions = "\n".join(f"    lambda: {attempt}," for attempt in attempts)
    program = f"""
import ctypes, marshal, os, pickle, socket, subprocess, sys
from vitrail.backends import unpacking
from vitrail.errors import ArtifactError
attempts = [\n{functions}\n]
unpacking._restrict(unpacking.Limits(2 << 30, 20, 1 << 20))
held = 0
for attempt in attempts:
    try:
        attempt()
    except ArtifactError:
        held += 1
    else:
        print(attempts.index(attempt))
print(held)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(len(attempts))], done.stderr
    assert not (tmp_path / "canary").exists()


def test_the_child_writes_no_more_than_allowed(tmp_path: Path) -> None:
    program = f"""
import os
from vitrail.backends import unpacking
file = os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT)
unpacking._restrict(unpacking.Limits(2 << 30, 20, 1 << 20))
try:
    for _ in range(100):
        os.write(file, bytes(1 << 20))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "File too large", done.stderr
    assert (tmp_path / "file").stat().st_size <= 10 << 20
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10 << 20  # the child's limits are its own


WORDS = [bytes([code]) for code in b"()]}NtsueaRbo012Q"]
WORDS += [b"h\x00", b"q\x00", b"\x94", b"\x93", b"\x81", b"\x92", b"\x86", b"K\x01", hostile.text("os")]
WORDS += [hostile.named("collections", "OrderedDict"), hostile.named("torch._utils", "_rebuild_tensor_v2")]
WORDS += [hostile.storage(), hostile.integers(2, 2), hostile.text("system")]
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from(WORDS),
    ),
    max_size=40,
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=PIECES)
def test_any_program_ends_in_a_value_or_one_line(pieces: list[bytes]) -> None:
    with contextlib.suppress(ArtifactError):
        read_inert(b"".join(pieces) + b".")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 2000), value=st.integers(0, 255), cut=st.booleans())
def test_a_flipped_byte_or_a_cut_changes_nothing_silently(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: bool
) -> None:
    """Whatever a damaged file gives in the child's own reader: the right numbers, or an error of ours."""
    from vitrail.backends.unpacking import extract

    data = bytearray(hostile.good())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] = value
    folder = tmp_path_factory.mktemp("flip")
    (folder / "file").write_bytes(data)
    with open(folder / "file", "rb") as source, open(folder / "out", "wb") as output:
        try:
            extract(source, output.fileno(), 1 << 20)
        except ArtifactError:
            return
    from safetensors.torch import load_file

    (weight,) = load_file(folder / "out").values()
    if weight.shape == (4,) and weight.dtype == torch.float32:
        assert torch.equal(weight, torch.arange(4.0))


def test_every_changed_byte_of_a_pickle_is_found(tmp_path: Path) -> None:
    """Also one that would be a sound pickle: a stride of 0, for instance, repeats the first number."""
    from vitrail.backends.unpacking import extract

    sound = hostile.good()
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        program = archive.read(name)
    first = sound.index(program)
    for place in range(first, first + len(program)):
        for value in (0, sound[place] ^ 1):
            if value == sound[place]:
                continue
            (tmp_path / "file").write_bytes(sound[:place] + bytes([value]) + sound[place + 1 :])
            with (
                open(tmp_path / "file", "rb") as source,
                open(tmp_path / "out", "wb") as output,
                pytest.raises(ArtifactError, match="is damaged: its pickle differs from its checksum"),
            ):
                extract(source, output.fileno(), 1 << 20)


def test_a_name_that_is_not_known_is_a_placeholder() -> None:
    reading = read_inert(hostile.whole(hostile.call("mine.callbacks", "Early", hostile.text("x")), b"}b"))
    assert isinstance(reading.value, Opaque)
    assert reading.foreign == {"mine.callbacks.Early"}
