"""A client for a running server, in a few lines::

    from vitrail import Client, TextToImageRequest

    with Client("http://127.0.0.1:7860") as client:
        cat = client.draw(TextToImageRequest(prompt="a cat sitting in a garden"))
        open("cat.png", "wb").write(cat)

Several pictures, progress and long works are jobs: :meth:`Client.submit`, :meth:`Client.events`,
:meth:`Client.wait`, :meth:`Client.file`.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vitrail.errors import (
    InputError,
    MissingExtraError,
    QueueFullError,
    StorageError,
    UnknownJobError,
    VitrailError,
)
from vitrail.request_fields import Model
from vitrail.serving.http_wire import to_wire
from vitrail.serving.jobs import TERMINAL, Job, JobEvent

if TYPE_CHECKING:
    import httpx

__all__ = ["Client", "ServerError"]

_ATTEMPTS = 5
_PATIENCE = 50  # seconds that one request waits for its picture; then the job is followed


class ServerError(VitrailError):
    """The server cannot be reached, refuses the token, or failed."""


class Client:
    """Asks a server for pictures; a context manager, for use from any number of threads.

    Parameters
    ----------
    url: of the server, such as ``http://127.0.0.1:7860``.
    token: where the server asks for one.
    timeout: seconds that an answer may take; streams of events are not bound by it.

    Errors are those that an engine in the process would raise (:class:`InputError`, :class:`UnknownJobError`,
    :class:`QueueFullError`, :class:`StorageError`), and :class:`ServerError`.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:7860", token: str | None = None, *, timeout: float = 30.0
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtraError("httpx", "server") from None
        if not re.match(r"^https?://[^/]+", url):
            raise InputError("the server's url begins with http:// or https://")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Reading all certificates takes 20 ms, and only https needs them.
        secure = url.startswith("https:")
        self._timeout = timeout
        self._http: httpx.Client = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout, trust_env=False, verify=secure
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def draw(self, request: Model, *, key: str | None = None) -> bytes:
        """Ask for a picture and return its file, the first one of several; however long it takes.

        ``key`` as of :meth:`submit`. Raises :class:`ServerError` where the job ends without a picture.
        """
        headers = {"Prefer": f"wait={_PATIENCE}", "Accept": "image/*"}
        headers["Idempotency-Key"] = key or secrets.token_hex(16)
        answer = self._get(
            "/api/jobs", "POST", json=to_wire(request), headers=headers, timeout=self._timeout + _PATIENCE
        )
        if answer.status_code == 200:
            return answer.content
        job = self.wait(_job(answer.json()).id)
        if not job.pictures:
            raise ServerError(job.error.message if job.error else "the job ended without a picture")
        return self.file(job.pictures[0].id)

    # -- jobs ------------------------------------------------------------------------------------------------

    def submit(self, request: Model, *, key: str | None = None) -> Job:
        """Ask for ``request``; when this returns, the server has it on disk.

        ``key``: the same key and request again give the same job. One is made where none is given, so that a
        call that is repeated because the connection broke never makes two jobs.
        """
        headers = {"Idempotency-Key": key or secrets.token_hex(16)}
        return _job(self._ask("POST", "/api/jobs", json=to_wire(request), headers=headers))

    def job(self, id: str) -> Job:
        """Return the job as it stands."""
        return _job(self._ask("GET", f"/api/jobs/{_plain(id)}"))

    def jobs(self, *, limit: int = 100) -> list[Job]:
        """Jobs that wait in their order, then the others, the newest first."""
        return [_job(one) for one in self._ask("GET", "/api/jobs", params={"limit": limit})["jobs"]]

    def cancel(self, id: str) -> Job:
        """Ask the job to stop; one that has ended stays as it is."""
        return _job(self._ask("POST", f"/api/jobs/{_plain(id)}/cancel", json={}))

    def move(self, id: str, *, before: str | None) -> Job:
        """Put a waiting job before another one, or last."""
        return _job(self._ask("POST", f"/api/jobs/{_plain(id)}/move", json={"before": before}))

    def events(self, id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Yield the job's events until it ends; a connection that breaks is taken up again where it was."""
        return self._events(id, after, math.inf)

    def wait(self, id: str, timeout: float | None = None) -> Job:
        """Wait until the job has ended and return it, however it did.

        Raises :class:`ServerError` after ``timeout`` seconds; the job goes on then.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            ended = None
            try:
                for event in self._events(id, 0, until):  # to its end: the connection is used again
                    if event.job.state in TERMINAL:
                        ended = event.job
            except QueueFullError:  # too many follow jobs already: look now and then
                time.sleep(0.5)
            if ended is not None or (ended := self.job(id)).state in TERMINAL:
                return ended
            if time.monotonic() > until:
                raise ServerError(f"the job has not ended within {timeout:g} seconds; it goes on")

    def _events(self, id: str, after: int, until: float) -> Iterator[JobEvent]:
        """As :meth:`events`, but no longer than ``until`` on the monotonic clock."""
        import httpx

        failures, ended = 0, False
        while (left := until - time.monotonic()) > 0:
            try:
                headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
                timeout = httpx.Timeout(min(30.0, left), read=min(60.0, left))
                address = f"/api/jobs/{_plain(id)}/events"
                with self._http.stream("GET", address, headers=headers, timeout=timeout) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        raise _error(answer)
                    for line in answer.iter_lines():  # to its end, so that the connection can be used again
                        if line.startswith("data:"):
                            event = JobEvent.model_validate_json(line[5:])
                            after, failures = event.seq, 0
                            ended = event.job.state in TERMINAL
                            yield event
                        if time.monotonic() > until:
                            return
                if ended or self.job(id).state in TERMINAL:  # it had ended before what was asked for
                    return
            except httpx.HTTPError as error:
                failures += 1
                if ended or time.monotonic() > until:
                    return
                if failures >= _ATTEMPTS:
                    raise ServerError("the server cannot be reached any more; is it running?") from error
                time.sleep(min(0.2 * 2**failures, max(0.0, until - time.monotonic())))

    # -- pictures --------------------------------------------------------------------------------------------

    def pictures(self, query: str | None = None, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield what is known of the gallery's pictures, the newest first, as many as are taken.

        ``filters``: model, kind, style, favourite, job, as the OpenAPI document says.
        """
        before: str | None = None
        while True:
            given = {"query": query, "before": before, **filters}
            params = {name: value for name, value in given.items() if value is not None}
            page = self._ask("GET", "/api/pictures", params=params)
            yield from page["pictures"]
            before = page["next"]
            if before is None:
                return

    def file(self, id: str) -> bytes:
        """The file of a picture, with its settings inside."""
        return self._get(f"/api/pictures/{_plain(id)}/file").content

    def thumbnail(self, id: str, side: int = 256) -> bytes:
        """The picture as a WebP of at most ``side`` pixels a side."""
        return self._get(f"/api/pictures/{_plain(id)}/thumbnail?side={side}").content

    def models(self) -> list[dict[str, Any]]:
        """Models that a request may name."""
        found: list[dict[str, Any]] = self._ask("GET", "/api/models")
        return found

    # -- inside ----------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        return self._get(path, method, **more).json()

    def _get(self, path: str, method: str = "GET", **more: Any) -> httpx.Response:
        import httpx

        failures = 0
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx.TransportError as error:
                failures += 1
                if failures >= 3:
                    raise ServerError("the server cannot be reached; is it running?") from error
                time.sleep(0.2 * failures)
                continue
            if answer.status_code >= 400:
                raise _error(answer)
            return answer


def _job(values: dict[str, Any]) -> Job:
    return Job.model_validate({name: value for name, value in values.items() if name in Job.model_fields})


def _plain(id: str) -> str:
    return quote(id, safe="")


_ERRORS: dict[str, type[VitrailError]] = {
    "UnknownJobError": UnknownJobError,
    "QueueFullError": QueueFullError,
    "StorageError": StorageError,
    "NoPicture": ServerError,
}


def _error(answer: httpx.Response) -> VitrailError:
    try:
        found = answer.json()["error"]
        code, message = str(found["code"]), str(found["message"])
    except (ValueError, KeyError, TypeError, json.JSONDecodeError):
        return ServerError(f"the server answered {answer.status_code}, not as one of vitrail's; is it one?")
    if code in _ERRORS:
        return _ERRORS[code](message)
    if 400 <= answer.status_code < 500 and answer.status_code not in (401, 403):
        return InputError(message)
    return ServerError(message)
