"""A look through a folder of pictures, in a process of its own.

Uploaded pictures are strangers' files: what one does to a decoder, it does to that process alone. It brings
torch along, which the server does not need, and it tells what it found as JSON.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import VitrailError
from vitrail.serving.processes import serve_parent
from vitrail.serving.queue_pipe import Line

if TYPE_CHECKING:
    from vitrail.data.inspect import InspectReport

__all__ = ["Look"]

_SAMPLES = 60
_TELL_EVERY = 0.1  # seconds
_LISTS = "exact_duplicates near_duplicates tiny huge extreme plain misnamed sizes"


@dataclass
class Look:
    """A look through ``folder``, under way or finished; ``sheet``: a WebP of what is in it, or nothing."""

    id: str
    folder: Path
    what: str = "check"
    done: int = 0
    total: int = 0
    report: dict[str, Any] | None = None
    sheet: bytes = b""
    error: str | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look through the folder; what was found, or why it could not be, is kept."""
        ours, theirs = multiprocessing.Pipe()
        arguments = [str(theirs.fileno()), str(os.getpid()), str(self.folder)]
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrail.studio.looking", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        line = Line(ours)
        try:
            while self.report is None and self.error is None:
                while not line.waits(0.2):
                    if self._stopped.is_set():
                        raise EOFError
                self._hear(*line.receive())
        except EOFError:
            failed = "the look through the folder failed; the server's log says why"
            self.error = "stopped" if self._stopped.is_set() else failed
        finally:
            process.kill()
            process.wait()
            line.close()

    def stop(self) -> None:
        """End it; nobody waits for it any more."""
        self._stopped.set()

    def as_json(self) -> dict[str, Any]:
        """What the page shows: how far it is, then the report without its pictures."""
        row: dict[str, Any] = {"id": self.id, "what": self.what, "done": self.done, "total": self.total}
        return row | {"error": self.error, "folder": str(self.folder), "report": self.report}

    def _hear(self, head: dict[str, Any], body: bytes) -> None:
        match head["tell"]:
            case "progress":
                self.done, self.total, self.what = head["done"], head["total"], head["what"]
            case "failed":
                self.error = head["message"]
            case "report":
                self.sheet, self.report = body, head["report"]


def main() -> None:
    """Run as ``python -m vitrail.studio.looking DESCRIPTOR PARENT FOLDER``."""
    descriptor, parent, folder = sys.argv[1:]
    serve_parent(int(parent))
    line = Line.of(int(descriptor))
    from vitrail.data.inspect import inspect

    told = 0.0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= _TELL_EVERY:
            told = time.monotonic()
            line.send({"tell": "progress", "done": done, "total": total, "what": what})

    with contextlib.suppress(EOFError):  # the server is gone
        try:
            report = inspect(Path(folder), samples=_SAMPLES, progress=progress)
        except VitrailError as error:
            line.send({"tell": "failed", "message": str(error)})
        else:
            line.send({"tell": "report", "report": _shown(report)}, _sheet(report))


def _shown(report: InspectReport) -> dict[str, Any]:
    row = report.model_dump(mode="json", exclude={"samples", "buckets", "content_hash"})
    row["problems"] = row["problems"][:200]
    for name in _LISTS.split():
        row[name] = len(row[name])
    return row | {"repeats": report.repeats}


def _sheet(report: InspectReport) -> bytes:
    from PIL import Image

    from vitrail.data.contact_sheet import contact_sheet

    shown = [one for one in report.samples if one.id in report.thumbnails]
    if not shown:
        return b""
    pictures = [Image.open(io.BytesIO(report.thumbnails[one.id]), formats=["WEBP"]) for one in shown]
    target = io.BytesIO()
    contact_sheet(pictures, [one.caption for one in shown], cell=120).save(target, "WEBP", quality=85)
    return target.getvalue()


if __name__ == "__main__":
    main()
