"""A server for the page's tests: the in-process engine and a real gallery under the native API's routes."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import TypeAdapter

from vitrail.errors import VitrailError
from vitrail.provenance.metadata import encode
from vitrail.request_fields import FileRef
from vitrail.schema import PictureDone, Preview, Progress
from vitrail.schema import Request as AnyRequest
from vitrail.serving.engine import Engine
from vitrail.serving.jobs import TERMINAL, Job, JobError, JobEvent, JobPicture
from vitrail.store.gallery import Gallery, picture_id
from vitrail.studio.page import CSP, add_studio
from vitrail.studio.places import Places


class Backend:
    def __init__(self, folder: Path, slow: float = 0.0, csp: str = CSP) -> None:
        self.engine, self.gallery, self.slow = Engine(device="cpu"), Gallery(folder), slow
        self.jobs: dict[str, Job] = {}
        self.events: dict[str, list[JobEvent]] = {}
        self.previews: dict[str, bytes] = {}
        self.changed = threading.Condition()
        self.app = self._app(folder, csp)

    def submit(self, body: dict[str, Any]) -> Job:
        for name in ("picture", "mask"):
            if isinstance(body.get(name), dict):
                body[name] = FileRef.of(body[name]["name"], base64.b64decode(body[name]["data"]))
        request = TypeAdapter(AnyRequest).validate_python(body)
        id = self.engine.submit(request, preview_every=2)
        self.jobs[id] = Job(
            id=id,
            kind=request.kind,
            state="queued",
            title=request.prompt,
            position=0,
            request=json.loads(request.model_dump_json()),
            created=datetime.now(UTC),
        )
        self.events[id] = []
        self.tell(id, "state")
        threading.Thread(target=self._follow, args=(id,), daemon=True).start()
        return self.jobs[id]

    def tell(self, id: str, type: str, picture: str | None = None, **change: Any) -> None:
        with self.changed:
            self.jobs[id] = self.jobs[id].model_copy(update=change)
            seq = len(self.events[id]) + 1
            self.events[id].append(
                JobEvent.model_validate({"seq": seq, "type": type, "job": self.jobs[id], "picture": picture})
            )
            self.changed.notify_all()

    def _follow(self, id: str) -> None:
        try:
            for event in self.engine.events(id):  # type: ignore[arg-type]
                if self.jobs[id].state in TERMINAL:
                    return
                if isinstance(event, Progress):
                    self.tell(
                        id,
                        "progress",
                        state="running",
                        position=None,
                        step=event.step,
                        steps=event.steps,
                        eta=event.eta,
                    )
                    time.sleep(self.slow)
                elif isinstance(event, Preview) and event.picture is not None:
                    out = io.BytesIO()
                    event.picture.save(out, "PNG")
                    self.previews[id] = out.getvalue()
                    self.tell(id, "preview", id)
                elif isinstance(event, PictureDone):
                    name = picture_id(id, event.index)
                    found = self.gallery.add(
                        encode(event.picture, "png", event.record), ".png", event.record, id=name, job=id
                    )
                    made = JobPicture(
                        id=name, index=event.index, width=found.width, height=found.height, seed=found.seed
                    )
                    self.tell(id, "picture", name, pictures=(*self.jobs[id].pictures, made))
            self.tell(id, "state", state="succeeded")
        except VitrailError as error:
            if self.jobs[id].state not in TERMINAL:
                self.tell(
                    id, "state", state="failed", error=JobError(code=type(error).__name__, message=str(error))
                )

    def cancel(self, id: str) -> Job:
        if self.jobs[id].state not in TERMINAL:
            self.engine.cancel(id)  # type: ignore[arg-type]
            self.tell(id, "state", state="cancelled")
        return self.jobs[id]

    def stream(self, id: str, after: int) -> Any:
        while True:
            with self.changed:
                self.changed.wait_for(lambda seen=after: len(self.events[id]) > seen, 5)
                fresh = self.events[id][after:]
            for event in fresh:
                yield f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
                if event.job.state in TERMINAL:
                    return
            after += len(fresh)

    def _app(self, folder: Path, csp: str) -> FastAPI:
        app = FastAPI()

        def row(p: Any) -> dict[str, Any]:
            names = ("id", "prompt", "model", "kind", "favourite", "seed", "width", "height")
            return {**{n: getattr(p, n) for n in names}, "record": json.loads(p.record.to_json())}

        @app.middleware("http")
        async def headers(request: Request, call: Any) -> Any:
            answer = await call(request)
            answer.headers.setdefault("Content-Security-Policy", csp)
            answer.headers["X-Content-Type-Options"] = "nosniff"
            return answer

        app.add_exception_handler(
            VitrailError, lambda _, error: JSONResponse({"message": str(error)}, status_code=400)
        )
        api = app.add_api_route

        async def submit(request: Request) -> Any:
            return JSONResponse(self.submit(await request.json()).model_dump(mode="json"), status_code=202)

        def events(id: str, request: Request) -> StreamingResponse:
            after = int(request.headers.get("last-event-id", 0))
            return StreamingResponse(self.stream(id, after), media_type="text/event-stream")

        async def favourite(id: str, request: Request) -> Any:
            return row(self.gallery.set_favourite(id, (await request.json())["favourite"]))

        def page(
            query: str = "", favourite: bool | None = None, before: str | None = None, limit: int = 60
        ) -> Any:
            found = self.gallery.page(query=query or None, favourite=favourite, before=before, limit=limit)
            return {"pictures": [row(p) for p in found.pictures], "next": found.next}

        api("/api/jobs", submit, methods=["POST"])
        api("/api/jobs", lambda: [j.model_dump(mode="json") for j in reversed(self.jobs.values())])
        api("/api/jobs/{id}", lambda id: self.jobs[id].model_dump(mode="json"))
        api("/api/jobs/{id}/events", events, response_model=None)
        api("/api/jobs/{id}/preview", lambda id: Response(self.previews[id], media_type="image/png"))
        api("/api/jobs/{id}/cancel", lambda id: self.cancel(id).model_dump(mode="json"), methods=["POST"])
        api("/api/pictures", page)
        api("/api/pictures/{id}", lambda id: row(self.gallery.get(id)))
        api("/api/pictures/{id}/file", lambda id: Response(self.gallery.open(id), media_type="image/png"))
        api(
            "/api/pictures/{id}/thumbnail",
            lambda id: Response(self.gallery.thumbnail(id), media_type="image/webp"),
        )
        api("/api/pictures/{id}/favourite", favourite, methods=["POST"])
        add_studio(app, Places(folder, runs=folder / "runs", reports=folder / "reports"))
        return app


class Served:
    """The backend on a port of its own; a context manager."""

    def __init__(self, folder: Path, slow: float = 0.0, csp: str = CSP) -> None:
        self.backend = Backend(folder, slow, csp)
        config = uvicorn.Config(self.backend.app, port=0, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)

    def __enter__(self) -> Served:
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.backend.engine.close()


__all__ = ["Served"]
