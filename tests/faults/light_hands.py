"""A working process for the queue's tests: all of the real one but the network, so it starts at once.

The prompt says what happens: ``draw`` makes small pictures of the seed's colour, each step ``pause`` seconds
(``draw 0.05``); ``kill``, ``bus``, ``stop`` and ``idle`` end or hang the process; ``fail``, ``bug`` and
``memory`` raise; ``quiet`` waits without a word until it is cancelled; ``late`` draws and then ends no more.
What is begun is noted in ``begun.txt`` in the folder, so that a test sees work that nobody wanted.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from vitrail.errors import CancelledError, InputError
from vitrail.schema import ImageRecord, SamplingDefaults
from vitrail.serving.queue_hands import Assignment, Tell, serve
from vitrail.serving.save import picture_bytes

SIDE = 16
COMMAND = (sys.executable, __file__)


def work(assignments: Sequence[Assignment], tell: Tell, folder: Path) -> None:
    """Do as the prompts say, one job after the other."""
    for assignment in assignments:
        try:
            one(assignment, tell, folder, len(assignments))
        except EOFError:
            raise
        except BaseException as error:
            tell.failed(assignment.id, error)


def one(assignment: Assignment, tell: Tell, folder: Path, together: int) -> None:
    request: Any = assignment.request
    word, _, rest = request.prompt.partition(" ")
    note(folder, {"job": assignment.id, "pid": os.getpid(), "prompt": request.prompt, "together": together})
    match word:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "bus":
            read_beyond_the_end()
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "idle":
            time.sleep(600)
        case "quiet":
            assignment.cancelled.wait(600)
        case "fail":
            raise InputError("this request cannot be served; ask for another")
        case "bug":
            raise RuntimeError("a mistake")
        case "memory":
            bytearray(1 << 60)
        case "stubborn":
            while True:  # works on, whatever it is told
                hashlib.sha256(bytes(1 << 16))
    draw(assignment, tell, float(rest or 0))


def draw(assignment: Assignment, tell: Tell, pause: float) -> None:
    request: Any = assignment.request
    resolved = request.resolve(SamplingDefaults(steps=4, cfg_scale=1.0, width=SIDE, height=SIDE))
    total = resolved.steps * resolved.n
    for index in range(resolved.n):
        for step in range(resolved.steps):
            if assignment.cancelled.is_set():
                raise CancelledError("stopped")
            time.sleep(pause)
            tell.progress(assignment.id, index * resolved.steps + step + 1, total, None)
        if pause:
            tell.preview(assignment.id, picture(resolved.seed + index))
        record = ImageRecord(
            request=resolved,
            index=index,
            seed=resolved.seed + index,
            model_name="light",
            model_sha256="0" * 64,
            created=datetime.now(UTC),
        )
        data = picture_bytes(picture(resolved.seed + index), "png", record)
        last = index + 1 == resolved.n and request.prompt != "late"
        tell.picture(assignment.id, index, record, ".png", data, last=last)
    if request.prompt == "late":
        time.sleep(600)
    tell.done(assignment.id, ("a hint",))


class _Kept(Tell):
    """Keeps the pictures that are told, and nothing else."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, Any], bytes]] = []
        self.open = set()

    def picture(
        self,
        job: str,
        index: int,
        record: ImageRecord,
        suffix: str,
        data: bytes,
        *,
        kind: str | None = None,
        last: bool = False,
    ) -> None:
        head = {"job": job, "index": index, "record": record.to_json(), "suffix": suffix, "kind": kind}
        self.told.append((head | {"last": last}, data))

    def progress(self, *_: Any) -> None: ...
    def done(self, *_: Any) -> None: ...


def drawn(id: str, request: Any) -> list[tuple[dict[str, Any], bytes]]:
    """What a worker hears of the pictures of a job, drawn here."""
    kept = _Kept()
    draw(Assignment(id, "pictures", request), kept, 0.0)
    return kept.told


def picture(seed: int) -> Image.Image:
    digest = hashlib.sha256(str(seed).encode()).digest()
    return Image.new("RGB", (SIDE, SIDE), (digest[0], digest[1], digest[2]))


def read_beyond_the_end() -> None:
    """Read a file that was cut short while it was mapped, as weights may be: SIGBUS."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(1 << 16)
        with mmap.mmap(file.fileno(), 1 << 16, access=mmap.ACCESS_READ) as mapped:
            file.truncate(0)
            mapped[1 << 15]


def note(folder: Path, fact: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "begun.txt", "a") as file:
        file.write(json.dumps(fact) + "\n")


def begun(folder: Path) -> list[dict[str, Any]]:
    """What was noted by the hands of the engine in ``folder``."""
    path = folder / "work" / "begun.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), work)
