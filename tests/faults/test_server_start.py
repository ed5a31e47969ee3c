"""How a server and its workers begin where something is wrong: a signal, no process to be had, files of
another user's, a full disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import light_hands
import pytest

from vitrail.chinese import in_chinese
from vitrail.errors import StorageError
from vitrail.schema import TextToImageRequest, parse
from vitrail.serving import durable
from vitrail.serving.durable import DurableEngine
from vitrail.serving.processes import unsignalled
from vitrail.serving.queue_worker import Worker, WorkerSettings

WAIT = 60.0


def request(prompt: str = "draw") -> TextToImageRequest:
    return parse(TextToImageRequest, {"prompt": prompt, "seed": 7, "steps": 2})


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- signals and processes -----------------------------------------------------------------------------------

SLOW = """#!/bin/sh
exec {python} -c '
import sys, time
print("begun", file=sys.stderr, flush=True)
time.sleep(0.5)  # as if it imported for longer
from vitrail.serving import queue_worker
queue_worker.main()
'
"""


def test_a_worker_comes_when_it_can_and_ctrl_c_is_the_servers_matter(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At first no worker can be started, as where a machine has no process or file left. Then one is told
    SIGINT while it still imports: a terminal's Ctrl-C reaches all of a group.
    """
    program = fast_folder / "worker"
    monkeypatch.setattr(durable, "_WORKER", (str(program),))
    said = ""

    def heard(words: str) -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return words in said

    with DurableEngine(str(fast_folder), hands=light_hands.COMMAND) as engine:
        job = engine.submit(request())
        until(lambda: heard("no worker could be started"))
        program.with_suffix(".new").write_text(SLOW.format(python=sys.executable))
        program.with_suffix(".new").chmod(0o755)
        program.with_suffix(".new").rename(program)
        until(lambda: heard("begun"))
        (worker,) = engine._workers
        until(lambda: worker._process is not None)
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGINT)
        assert list(engine.events(job.id, timeout=WAIT))[-1].job.state == "succeeded"
    heard("")
    assert said.splitlines()[1:] == ["begun"]


@pytest.mark.parametrize("defence", ["in", "out"])
def test_what_imports_lives_on_because_signals_wait(defence: str) -> None:
    code = "import time; print(1, flush=True); time.sleep(0.2)"
    with unsignalled() if defence == "in" else contextlib.nullcontext():
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert (process.wait(WAIT) == 0) == (defence == "in")


@pytest.fixture
def worker(fast_folder: Path) -> Worker:
    """One that takes nothing by itself, and whose working process cannot be started."""
    return Worker(WorkerSettings(folder=str(fast_folder), hands=(str(fast_folder / "nothing"),)))


def test_a_working_process_that_cannot_be_started_costs_no_job(
    worker: Worker, fast_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job waits again; nobody says that it killed anybody."""
    monkeypatch.setattr("vitrail.serving.queue_worker._AGAIN", 0.0)
    with DurableEngine(str(fast_folder), workers=0) as engine:
        job = engine.submit(request()).id
        for attempt in (1, 2, 3, 4):
            worker._do("pictures", worker._claims.claim("pictures", 1))
            assert (engine.job(job).state, engine.job(job).attempts) == ("queued", attempt)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "no process could be started for the work: No such file" in said


def test_a_mistake_of_a_workers_own_holds_no_job_for_ever(worker: Worker, fast_folder: Path) -> None:
    def mistake(*_: object) -> set[str]:
        raise KeyError("a mistake")

    worker._keepers["pictures"].run = mistake  # type: ignore[method-assign]
    with DurableEngine(str(fast_folder), workers=0) as engine:
        job = engine.submit(request()).id
        for _ in range(3):
            with pytest.raises(KeyError):  # for whoever reads the worker's output
                worker._do("pictures", worker._claims.claim("pictures", 1))
        ended = engine.job(job)
        assert ended.state == "failed"
        assert ended.error is not None
        assert "KeyError, a mistake of the worker's own" in ended.error.message


def test_a_second_ctrl_c_ends_a_server_without_a_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "vitrail", "serve", "--port", "0", "--workers", "0"]
    with subprocess.Popen(
        [*arguments, "--folder", str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        assert "serves at" in server.stderr.readline()
        time.sleep(0.5)
        for _ in range(2):
            server.send_signal(signal.SIGINT)
            time.sleep(0.03)
        assert server.stderr.read() in ("", "vitrail: stopped\n")
        assert server.wait(WAIT) in (0, 130)


# -- files and disks -----------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from vitrail.serving.processes import unsignalled
from vitrail.serving.queue_worker import WorkerSettings
def opened(folder):
    for closing in WorkerSettings(folder=folder).open()[::2]:
        closing.close()
opened(sys.argv[1])  # while all of Python's files can still be read
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for folder in sys.argv[2:]:
    try:
        opened(folder)
        print("it is well")
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
"""


def test_files_that_this_user_cannot_write_are_one_line_at_the_start(
    fast_folder: Path, tmp_path: Path
) -> None:
    """Not a server that takes no job, and complains of its disk."""
    folders = [fast_folder / name for name in ("well", "database", "pictures", "damaged")]
    for folder in folders:
        with DurableEngine(str(folder), workers=0):
            pass
        (folder / "pictures").mkdir(exist_ok=True)
        for place in (fast_folder, folder, *folder.iterdir()):
            place.chmod(0o777 if place.is_dir() else 0o666)
    _, database, pictures, damaged = folders
    (database / "vitrail.sqlite").chmod(0o444)
    (pictures / "pictures").chmod(0o555)
    (damaged / "vitrail.sqlite").write_bytes(b"it was a database " * 500)
    found = run_python(AS_NOBODY, str(tmp_path), *map(str, folders))
    assert (found.returncode, found.stderr) == (0, "")
    first, *said = found.stdout.splitlines()
    assert first == "it is well"
    assert said == [
        f"StorageError: the database {database}/vitrail.sqlite refused: attempt to write a readonly "
        "database; let this user write the file and its folder, or choose another folder",
        f"StorageError: the folder {pictures}/pictures is read-only; choose another folder or change its "
        "permissions",
        f"StorageError: the database {damaged}/vitrail.sqlite refused: file is not a database; put a copy "
        "back, or move it away and run: vitrail gallery repair",
    ]
    for line in said:
        assert in_chinese(line.removeprefix("StorageError: ")) is not None


def run_python(code: str, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=WAIT)


def test_a_disk_that_is_full_at_the_start_is_one_line(tmp_path: Path) -> None:
    """SQLite has no room for the files beside its file, and calls that an error of the disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        with DurableEngine(str(disk), workers=0):
            pass
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(StorageError, match=r"refused: .*; free some space") as said:
            DurableEngine(str(disk), workers=0)
        assert in_chinese(str(said.value)) is not None
        (disk / "ballast").unlink()
        with DurableEngine(str(disk), workers=0) as engine:
            assert engine.submit(request()).state == "queued"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


FULL = """
import dbos
from sqlalchemy import exc
from vitrail.serving import queue_worker
def refuse(*names, **settings):
    raise exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
dbos.DBOS.%s = refuse
queue_worker.main()
"""


@pytest.mark.parametrize("step", ["launch", "register_queue"])
def test_a_worker_that_finds_its_database_full_says_so_in_a_line(fast_folder: Path, step: str) -> None:
    """DBOS writes when it begins, and its errors are the database driver's own."""
    settings = WorkerSettings(folder=str(fast_folder), hands=light_hands.COMMAND)
    found = run_python(FULL % step, given=settings.model_dump_json() + "\n")
    assert found.returncode == 1
    assert found.stderr == (
        f"vitrail worker: the database {fast_folder}/vitrail.sqlite refused DBOS's tables: "
        "database or disk is full\n"
    )
