"""What a job is, for everybody who asks for one: the command line, HTTP, the client and the studio.

An engine accepts jobs, keeps them in a queue and tells what happens to them. :class:`JobEngine` is what
callers may rely on; :mod:`vitrail.serving.durable` is the engine whose queue survives a restart. Nothing here
imports torch or a database, so that a server and a client start at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol

from pydantic import AwareDatetime, Field

from vitrail.request_fields import Model

__all__ = ["TERMINAL", "Job", "JobEngine", "JobError", "JobEvent", "JobPicture", "State"]

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job never leaves."""

Count = Annotated[int, Field(ge=0)]


class JobError(Model):
    """Why a job failed."""

    code: str = Field(description="Stable name: InputError, ArtifactError, OutOfMemory, WorkerLost, ...")
    message: str = Field(description="One line for people: what was given, what is allowed, what to do.")


class JobPicture(Model):
    """A picture that a job made; its file and record are the gallery's, under ``id``."""

    id: str = Field(description="Opaque; never a path.")
    index: Count
    width: Count
    height: Count
    seed: Count


class Job(Model):
    """A job as it stands."""

    id: str
    kind: str = Field(
        description="The request's kind, such as text_to_image, or train, evaluate, build_data."
    )
    state: State
    title: str = Field(default="", description="What was asked for, in a few words.")
    request: dict[str, Any] = Field(description="The request as JSON, files by name and SHA-256.")
    created: AwareDatetime
    started: AwareDatetime | None = None
    ended: AwareDatetime | None = None
    position: Count | None = Field(default=None, description="Jobs before it in the queue, while it waits.")
    step: Count = 0
    steps: Count = 0
    eta: float | None = Field(default=None, description="Seconds left, once it can be told.")
    attempts: Count = Field(default=0, description="Workers that took it up; more than one after a crash.")
    pictures: tuple[JobPicture, ...] = ()
    hints: tuple[str, ...] = ()
    error: JobError | None = None


class JobEvent(Model):
    """Something that happened to a job. ``seq`` counts from 1 for each job and never repeats."""

    seq: Annotated[int, Field(ge=1)]
    type: Literal["state", "progress", "preview", "picture", "log"]
    job: Job = Field(description="The job after the event.")
    picture: str | None = Field(
        default=None, description="type picture: id in the gallery; type preview: id for JobEngine.preview()."
    )
    message: str | None = Field(default=None, description="type log: a line of a long work's progress.")


class JobEngine(Protocol):
    """A queue of jobs. Methods may be called from any thread; none but ``events`` waits for work."""

    def submit(self, request: Model, *, key: str | None = None) -> Job:
        """Accept ``request``: when this returns, the job is on disk. The same ``key`` again: the same job.

        Raises :class:`~vitrail.errors.InputError` if the key was used for another request,
        ``QueueFullError`` at the limit, :class:`~vitrail.errors.StorageError` if the database cannot be
        written.
        """

    def job(self, id: str) -> Job:
        """Return the job; ``UnknownJobError`` (an :class:`~vitrail.errors.InputError`) for any other id."""

    def jobs(
        self, *, states: frozenset[State] | None = None, limit: int = 100, after: str | None = None
    ) -> list[Job]:
        """Return up to ``limit`` jobs that come after the job ``after``: those that wait in the queue's
        order, then the others, the newest first.
        """

    def events(self, id: str, *, after: int = 0, timeout: float | None = None) -> Iterator[JobEvent]:
        """Yield the job's events with ``seq`` above ``after``, waiting for more until it ends.

        Ends after the event that brings a terminal state, or when nothing happened for ``timeout`` seconds.
        Progress and previews that came and went while nobody listened may be left out; states and pictures
        never are.
        """

    def preview(self, id: str) -> bytes | None:
        """The newest preview of a running job as a PNG, or None."""

    def cancel(self, id: str) -> Job:
        """Ask the job to stop: at once if it waits, within one step if it runs. One that has ended stays."""

    def move(self, id: str, *, before: str | None) -> Job:
        """Put a waiting job before another one, or last (None)."""

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, wherever they were asked for; one without any may be left out."""

    def workers(self) -> int:
        """How many workers live, wherever they are."""

    @property
    def beside(self) -> int:
        """How many workers this engine keeps itself; with none it is ready without any that lives."""
