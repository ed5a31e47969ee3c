"""Where a command talks: paths on standard output for scripts, everything else on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from vitrail import schema

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Screen"]


class Screen:
    """Standard output for results, standard error for the rest; a bar there if a person can see it."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: RichProgress | None = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # Not redirected: rich would send standard output to its own console, and a pipe would stay empty.
            self.bar = RichProgress(
                *columns,
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Screen:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, event: schema.Progress) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=event.step, total=event.steps)

    def say(self, line: str) -> None:
        """Tell the person something, unless they want quiet."""
        if not self.quiet:
            self._print(line, sys.stderr)

    def result(self, line: str) -> None:
        """Print a line that scripts read."""
        self._print(line, sys.stdout)

    def _print(self, line: str, file: TextIO) -> None:
        if self.bar is not None:
            self.bar.stop()  # the bar leaves its line to the text, and comes back below it
        print(line, file=file, flush=True)
        if self.bar is not None:
            self.bar.start()
