"""A worker: takes jobs from the queue, lets a process of its own do them, and publishes what it makes.

The same for the one that a server starts beside itself and for each of a fleet (``vitrail worker``). It loads
no model and so stays small and quick; its working processes (:mod:`vitrail.serving.queue_hands`), one for
pictures and, while there is one, one for a long work, may die without it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from vitrail.errors import InputError, StorageError, VitrailError
from vitrail.files import shown
from vitrail.request_fields import Model
from vitrail.schema import ImageRecord
from vitrail.serving.failures import complain
from vitrail.serving.processes import Identity, collect_seldom, ignore_signals, unsignalled
from vitrail.serving.queue_claims import LEASE, Claim, Claims, Ending, LostClaimError
from vitrail.serving.queue_keeper import HandsLostError, Keeper, Patience, StoppedError
from vitrail.serving.queue_permits import Permits, pace, serve_permits, set_pace, stop_permits
from vitrail.serving.queue_requests import Lane
from vitrail.serving.queue_rows import Change
from vitrail.serving.queue_tables import TABLES
from vitrail.store.database import Database
from vitrail.store.gallery import Gallery, Picture, picture_id

__all__ = ["Worker", "WorkerSettings"]

HANDS = (sys.executable, "-m", "vitrail.serving.queue_hands")
"""Command of a working process; it is given a descriptor, this process's number, a folder and settings."""

BEAT = 2.0
#: A job that waits so long while this worker is idle is worth another permit.
OVERDUE = 2.0
_TIDY_EVERY = 60.0
#: Seconds until a working process that could not be started is tried again.
_AGAIN = 2.0
_LANES: tuple[Lane, ...] = ("pictures", "long")


class WorkerSettings(Model):
    """What a worker is started with; as JSON it goes to the process of one beside a server.

    ``database`` None: the file in ``folder``. ``pictures`` None: in ``folder`` too. ``batch``: how many jobs
    are taken for one pass. ``hands``: the command of the working process. ``beside``: how many workers there
    are beside the server that started this one, all of which it wakes for every job. The others are those of
    :class:`vitrail.serving.queue_work.ModelWork`, :class:`vitrail.serving.queue_keeper.Patience` and
    :data:`vitrail.serving.queue_claims.LEASE`.
    """

    folder: str
    database: str | None = None
    pictures: str | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    memory_budget: int | None = None
    preview_every: int = 2
    format: Literal["png", "jpeg", "webp"] = "png"
    warm: tuple[str, ...] = ()
    batch: int = 16
    hands: tuple[str, ...] = HANDS
    lease: float = LEASE
    silence: float = 60.0
    stall: float = 180.0
    beside: int = 0

    @property
    def work(self) -> Path:
        """The folder in which long works leave what they make."""
        return Path(self.folder) / "work"

    def open(self, *, later: bool = False) -> tuple[Database, Gallery, Permits]:
        """Open the database, with all its tables, and the gallery; ``later``: see :class:`Permits`."""
        database = Database(self.database, Path(self.folder) / "vitrail.sqlite")
        database.create(TABLES)
        gallery = Gallery(self.pictures or self.folder, database)
        gallery.check_writable()
        return database, gallery, Permits(database, later=later)


class Worker:
    """Takes jobs until :meth:`stop`; one a process, for DBOS is.

    ``tell`` hears (job, number of its newest event) of everything that this worker does.
    """

    def __init__(self, settings: WorkerSettings, tell: Callable[[str, int], None] | None = None) -> None:
        self._settings = settings
        self._database, self._gallery, self._permits = settings.open()
        self._identity = Identity.mine()
        told = {} if tell is None else {"tell": tell}
        self._claims = Claims(self._database, self._permits, self._identity, settings.lease, **told)
        patience = Patience(settings.silence, settings.stall)
        # A file is asked at little cost, a server of many workers is not; and a server beside us says when.
        patience.ask = 1.0 if settings.beside else 0.2 if self._database.sqlite else 0.5
        self._keepers = {lane: Keeper(self._command, patience) for lane in _LANES}
        self._busy = {lane: threading.Event() for lane in _LANES}
        self._turns = {lane: threading.Lock() for lane in _LANES}
        self._woken = {lane: threading.Event() for lane in _LANES}
        #: Lanes of which a claim may have been committed although we were told of an error.
        self._doubtful: set[Lane] = set()
        self._stopping = threading.Event()
        self._serving = False
        self._pause = 0.0
        self._told: dict[str, float] = {}
        #: The last picture of a job whose end is to follow at once: both are kept together.
        self._last: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._complaint: tuple[str, float] = ("", 0.0)

    @property
    def name(self) -> str:
        """What this worker is called in the queue."""
        return self._identity.name

    @property
    def place(self) -> str:
        """The database, without its password."""
        return self._database.shown

    def run(self) -> None:
        """Take jobs until :meth:`stop` is called from another thread or a signal handler."""
        with unsignalled():  # nor are the threads and processes that these start
            self._start_hands("pictures")  # it loads while we look around
            self._care()
            serve_permits(self._database, self._identity.name, self._take)
            for lane in _LANES:
                name = f"vitrail-{lane}"
                threading.Thread(target=self._answer, args=(lane,), name=name, daemon=True).start()
        self._serving = True
        for lane in _LANES:  # what waited before we came
            self.wake(lane)
        tidied = time.monotonic()
        try:
            while not self._stopping.wait(BEAT):
                self._care()
                if time.monotonic() - tidied > _TIDY_EVERY:
                    tidied = time.monotonic()
                    self._unfailing(lambda: self._permits.tidy(self._claims.living()))
        finally:
            for keeper in self._keepers.values():
                keeper.stop()
            for busy in self._busy.values():  # what was being done is given back
                deadline = time.monotonic() + 5
                while busy.is_set() and time.monotonic() < deadline:
                    time.sleep(0.01)
            stop_permits()
            self._unfailing(self._leave)
            self._permits.close()
            self._database.close()

    def wake(self, lane: Lane) -> None:
        """Look for jobs now, before their permits come round; safe to call at any time, from any thread."""
        self._woken[lane].set()

    def look(self) -> None:
        """See at once which jobs were cancelled; safe to call as :meth:`wake` is."""
        for keeper in self._keepers.values():
            keeper.look()

    def stop(self) -> None:
        """Take no more jobs, give back what is being done, and let :meth:`run` return."""
        self._stopping.set()

    # -- looking after the queue -----------------------------------------------------------------------------

    def _care(self) -> None:
        """Say that this worker lives, take back what dead ones held, and see that no job is overlooked."""

        def care() -> None:
            workers = self._claims.beat()
            self._pause = workers / 2000  # a fleet of a thousand tells 2,000 steps a second, not 20,000
            if self._claims.take_back_lost():
                for lane in _LANES:
                    self.wake(lane)
            for lane, busy in self._busy.items():
                if not busy.is_set() and self._claims.overdue(lane, OVERDUE):
                    self._claims.renew_permit(lane)
                    self.wake(lane)  # DBOS looks again a minute after an absence of the database
            if self._serving:
                woken = workers <= self._settings.beside
                set_pace(pace(workers, woken=woken, file=self._database.sqlite))

        self._unfailing(care)

    def _leave(self) -> None:
        """Say good-bye, and leave a permit in place of one that may have come in while we were stopping."""
        self._claims.leave()
        for lane in _LANES:
            if self._claims.overdue(lane, 0.0):
                self._claims.renew_permit(lane, self._identity.name)

    def _unfailing(self, action: Callable[[], object]) -> None:
        """Do what may be left out this time: the database may be full, or away for a while."""
        try:
            action()
        except StorageError as error:
            self._complain(str(error))
        except Exception as error:  # DBOS hands on whatever the database's driver raises
            complain(error)

    # -- doing the work --------------------------------------------------------------------------------------

    def _answer(self, lane: Lane) -> None:
        while self._woken[lane].wait():
            self._woken[lane].clear()
            self._take(lane)

    def _take(self, lane: Lane) -> None:
        """Use a permit: do jobs until none waits."""
        with self._turns[lane]:
            self._take_all(lane)

    def _take_all(self, lane: Lane) -> None:
        self._busy[lane].set()
        try:
            while not self._stopping.is_set():
                try:
                    if lane in self._doubtful:
                        self._claims.give_back_all(lane)
                        self._doubtful.discard(lane)
                    claims = self._claims.claim(lane, self._settings.batch)
                except StorageError as error:
                    self._doubtful.add(lane)
                    self._complain(str(error))
                    self._stopping.wait(1.0)
                    continue
                if not claims:
                    return
                self._do(lane, claims)
        except Exception as error:  # a mistake of ours must not use up the permit unseen
            complain(error)
            self._stopping.wait(1.0)
        finally:
            if lane == "long":
                self._keepers[lane].retire()
            self._busy[lane].clear()

    def _do(self, lane: Lane, claims: Sequence[Claim]) -> None:
        open = {claim.id: claim for claim in claims}
        for id in open:
            self._last.pop(id, None)  # of an attempt that was lost

        def handle(head: dict[str, Any], body: bytes) -> bool:
            claim = open.get(head["job"])
            return claim is None or self._handle(open, claim, head, body)

        def unwanted() -> set[str]:
            try:
                return self._claims.unwanted(list(open.values()))
            except StorageError:
                return set()  # asked again soon

        def more() -> Sequence[Claim]:
            try:
                claims = self._claims.claim(lane, self._settings.batch, together=True)
            except StorageError:
                self._doubtful.add(lane)
                return ()  # asked again when these have ended
            open.update((claim.id, claim) for claim in claims)
            return claims

        try:
            for id in self._keepers[lane].run(claims, handle, unwanted, more):
                if (claim := open.get(id)) is not None:
                    self._end(open, claim, "cancelled")
        except HandsLostError as error:
            reason = str(error)
            for claim in reversed(list(open.values())):  # each to the head of the queue
                self._surely(partial(self._claims.give_back, claim, reason))
            if not self._stopping.is_set():
                self._start_hands(lane)
        except StoppedError:
            for claim in reversed(list(open.values())):
                self._unfailing(partial(self._claims.give_back, claim))
        except OSError as error:  # no process left, no memory or no file for one; that is no job's fault
            reason = shown(error.strerror or error)
            self._complain(f"no process could be started for the work: {reason}; tried again")
            for claim in reversed(list(open.values())):
                self._surely(partial(self._claims.give_back, claim))
            self._stopping.wait(_AGAIN)
        except Exception as error:  # a mistake of ours, which is not to be made for ever
            self._keepers[lane].retire()
            away = isinstance(error, StorageError)  # nor is a database that is away the job's fault
            blame = None if away else f"{type(error).__name__}, a mistake of the worker's own"
            for claim in reversed(list(open.values())):
                self._surely(partial(self._claims.give_back, claim, blame))
            raise

    def _start_hands(self, lane: Lane) -> None:
        """Start the working process before there is a job for it; one that fails is told then."""
        with contextlib.suppress(OSError):
            self._keepers[lane].start()

    def _handle(self, open: dict[str, Claim], claim: Claim, head: dict[str, Any], body: bytes) -> bool:
        """Hand on what the working process tells of a job; False if the job should stop."""
        match head["tell"]:
            case "progress":
                now = time.monotonic()
                if now - self._told.get(claim.id, 0.0) < self._pause and head["step"] != head["steps"]:
                    return True
                self._told[claim.id] = now
                try:
                    return self._claims.progress(claim, head["step"], head["steps"], head["eta"])
                except StorageError:
                    return True  # the next one will do
            case "preview":
                try:
                    self._claims.preview(claim, body)
                except StorageError:
                    return True
            case "log":
                self._unfailing(lambda: self._claims.log(claim, head["line"]))
            case "picture" if head["last"]:
                self._last[claim.id] = head, body
            case "picture":
                return self._publish(open, claim, head, body)
            case "done" if claim.id in self._last:
                self._publish(open, claim, *self._last[claim.id], ended=head["hints"])
            case "done":
                self._end(open, claim, "succeeded", hints=head["hints"])
            case "failed":
                self._end(open, claim, "failed", code=head["code"], message=head["message"])
            case "cancelled":
                self._end(open, claim, "cancelled")
        return True

    def _publish(
        self,
        open: dict[str, Claim],
        claim: Claim,
        head: dict[str, Any],
        body: bytes,
        ended: Sequence[str] | None = None,
    ) -> bool:
        """Keep a picture and tell of it, and of the job's end, where it has ``ended`` with these hints.

        The picture's id follows from the job, so that made again it is the same entry. Not of a job that was
        taken back, and perhaps cancelled, while this worker was cut off. False if the job should stop.
        """
        index, record = int(head["index"]), ImageRecord.from_json(head["record"])
        about = {"id": picture_id(claim.id, index), "job": claim.id, "kind": head["kind"]}
        tried = 0
        change: Change | None = None

        def tell(connection: sa.Connection, picture: Picture) -> None:
            nonlocal change
            change = self._claims.picture(connection, claim, index, picture)
            if ended is not None and change is not None:
                pictures = change.job.pictures
                change = self._claims.end(connection, claim, "succeeded", hints=ended, pictures=pictures)

        def put_away() -> Picture:
            nonlocal tried
            tried += 1
            return self._gallery.add(
                body,
                head["suffix"],
                record,
                **about,
                # The job's end makes it so. A server may crash without us, though, and forget it before that.
                durable=ended is not None or not self._database.sqlite,
                wanted=lambda connection: self._claims.hold(connection, claim),
                tell=tell,
            )

        try:
            picture = self._with_database(put_away)
        except LostClaimError:
            if tried > 1:  # the first time it may have got as far as the file
                self._unfailing(lambda: self._gallery.discard(body, head["suffix"], record, **about))
            self._forget(open, claim)
            return False
        except VitrailError as error:  # no room for it: the job cannot succeed
            self._end(open, claim, "failed", code=type(error).__name__, message=str(error))
            return False
        if picture is None:
            return False
        self._claims.changed(change)
        if ended is not None:
            self._forget(open, claim)
        return True

    def _end(self, open: dict[str, Claim], claim: Claim, state: Ending, **about: Any) -> None:
        self._surely(lambda: self._claims.finish(claim, state, **about))
        self._forget(open, claim)

    def _forget(self, open: dict[str, Claim], claim: Claim) -> None:
        open.pop(claim.id, None)
        self._last.pop(claim.id, None)
        self._told.pop(claim.id, None)

    def _complain(self, line: str) -> None:
        """Say what is wrong, but the same no more than twice a minute."""
        now = time.monotonic()
        if line != self._complaint[0] or now - self._complaint[1] > 30:
            self._complaint = (line, now)
            complain(f"vitrail worker: {line}")

    def _surely(self, action: Callable[[], object]) -> None:
        """Do what must not be left out, as soon as the database can be written again."""
        while True:
            try:
                action()
                return
            except StorageError as error:
                self._complain(str(error))
                if self._stopping.wait(0.5):
                    return

    def _with_database(self, action: Callable[[], Picture]) -> Picture | None:
        """What ``action`` returns, as soon as the database answers; None if we are to stop before that."""
        while True:
            try:
                return action()
            except StorageError as error:
                if not Database.refused(error):
                    raise
                self._complain(str(error))
                if self._stopping.wait(0.5):
                    return None

    def _command(self, descriptor: int) -> Sequence[str]:
        names = {"device", "precision", "memory_budget", "preview_every", "format", "warm"}
        settings = self._settings.model_dump_json(include=names)
        return [*self._settings.hands, str(descriptor), str(os.getpid()), str(self._settings.work), settings]


def main() -> None:
    """The worker beside a server: its settings come on a line of standard input, whose end is its own."""
    ignore_signals()
    try:
        settings = WorkerSettings.model_validate_json(sys.stdin.buffer.readline())
    except ValueError as error:
        raise InputError("a worker beside a server reads its settings from standard input") from error
    line = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message of ours
    os.set_blocking(line, False)  # a server that does not read must not hold us up; it looks for itself then

    def tell(id: str, seq: int) -> None:
        with contextlib.suppress(OSError):
            os.write(line, f"{id} {seq}\n".encode())

    try:
        worker = Worker(settings, tell)
        collect_seldom()
        threading.Thread(target=_listen, args=(worker,), daemon=True).start()
        worker.run()
    except VitrailError as error:  # a disk that is full, say; the server starts another one soon
        complain(f"vitrail worker: {error}")
        os._exit(error.exit_code)  # not by way of the thread that waits for the server's word


def _listen(worker: Worker) -> None:
    """Do as the server says, until it is gone."""
    while word := sys.stdin.buffer.readline():  # each says where there is a new job, or to look
        match word.strip():
            case b"look":
                worker.look()
            case b"long":
                worker.wake("long")
            case _:
                worker.wake("pictures")
    worker.stop()
    time.sleep(10)
    os._exit(1)  # it hangs


if __name__ == "__main__":
    main()
