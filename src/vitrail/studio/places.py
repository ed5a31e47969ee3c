"""Where the studio keeps things, and which folders of the machine a person may name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import InputError

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """Folders of the studio.

    ``home``: votes and uploaded pictures. ``work``: what long works leave behind
    (:mod:`vitrail.serving.long_work`), by default beside ``home``. ``roots``: folders
    of pictures may be named below these only; None, for a server that nobody but its own machine reaches,
    allows whatever its user may read.
    """

    home: Path
    work: Path | None = None
    roots: tuple[Path, ...] | None = None

    @property
    def runs(self) -> Path:
        """The trainings."""
        return (self.work or self.home.parent / "work") / "runs"

    @property
    def reports(self) -> Path:
        """The reports of evaluations."""
        return (self.work or self.home.parent / "work") / "reports"

    @property
    def votes(self) -> Path:
        """The rating page's answers."""
        return self.home / "votes.jsonl"

    @property
    def uploads(self) -> Path:
        """Folders of pictures that came through the page."""
        return self.home / "uploads"

    def pictures_in(self, text: str) -> Path:
        """Return the folder that a person named; :class:`InputError` if there is none or it is not allowed.

        The two refusals read alike where ``roots`` are set: what lies outside is not told.
        """
        named = text.strip()
        refused = InputError("there is no such folder, or it is outside of what this server may open")
        if not named or "\0" in named or len(named) > 1000:
            raise InputError("the folder is missing; give its path on the machine that vitrail runs on")
        try:
            folder = Path(named).expanduser().resolve()
            roots = None if self.roots is None else [*self.roots, self.uploads]
            if roots is not None and not any(folder.is_relative_to(root.resolve()) for root in roots):
                raise refused
            if not folder.is_dir():
                raise refused
        except (OSError, RuntimeError) as error:
            raise refused from error
        return folder
