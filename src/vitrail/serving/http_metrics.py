"""How the server is: alive, ready, and its figures for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import vitrail
from vitrail.errors import VitrailError
from vitrail.request_fields import Model
from vitrail.serving.http_errors import ErrorAnswer, Refusal, error_answer
from vitrail.serving.http_stream import Streams
from vitrail.serving.jobs import TERMINAL, JobEngine
from vitrail.store.gallery import Gallery

__all__ = ["Metrics", "status_router"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Health(Model):
    """That the process answers."""

    status: str
    version: str


class _Live(Collector):
    """Figures that are looked up when they are asked for."""

    def __init__(self, engine: JobEngine, gallery: Gallery, streams: Streams) -> None:
        self._engine, self._gallery, self._streams = engine, gallery, streams

    def collect(self) -> Iterator[Metric]:
        """Yield them; those of a database that does not answer are left out."""
        try:
            counts = self._engine.counts()
            jobs = GaugeMetricFamily("vitrail_jobs", "Jobs that have not ended, by state.", labels=["state"])
            for state in ("queued", "running"):
                jobs.add_metric([state], counts.get(state, 0))
            yield jobs
            # Kept in the database: it neither falls back at a restart nor counts what this server did alone.
            ended = CounterMetricFamily(
                "vitrail_jobs_ended", "Jobs that have ended, by state, of the whole queue.", labels=["state"]
            )
            for state in sorted(TERMINAL):
                ended.add_metric([state], counts.get(state, 0))
            yield ended
            pictures = self._gallery.count()
            yield GaugeMetricFamily("vitrail_pictures", "Pictures in the gallery.", value=pictures)
            workers = self._engine.workers()
            yield GaugeMetricFamily("vitrail_workers", "Workers that live.", value=workers)
        except VitrailError:
            pass
        yield GaugeMetricFamily("vitrail_streams", "Clients that follow jobs.", value=self._streams.open)


class Metrics:
    """Counts requests and their time, by route, around ``app``."""

    def __init__(self, engine: JobEngine, gallery: Gallery, streams: Streams) -> None:
        self.registry = CollectorRegistry()
        self._count = Counter(
            "vitrail_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vitrail_request_seconds",
            "Seconds until an answer began.",
            ["route"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(_Live(engine, gallery, streams))

    def around(self, app: ASGIApp) -> ASGIApp:
        """``app``, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.perf_counter()

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    # Only names of our own become labels, or a stranger could make as many as he likes.
                    route = getattr(scope.get("route"), "path", "other")
                    method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE") else "other"
                    self._count.labels(method, route, str(message["status"])).inc()
                    self._seconds.labels(route).observe(time.perf_counter() - began)
                await send(message)

            await app(scope, receive, noting)

        return counted


def status_router(engine: JobEngine, gallery: Gallery, metrics: Metrics) -> APIRouter:
    """The routes ``/health``, ``/ready`` and ``/metrics``."""
    router = APIRouter(tags=["status"])

    @router.get("/health", response_model=Health)
    async def health() -> Health:
        """Whether the process answers."""
        return Health(status="ok", version=vitrail.__version__)

    @router.get("/ready", response_model=Health, responses={503: {"model": ErrorAnswer}})
    def ready() -> Any:
        """Whether the queue and the gallery answer, and a worker lives where this server keeps any."""
        try:
            engine.jobs(limit=1)
            gallery.count()
            if engine.beside and not engine.workers():
                return error_answer(
                    "", Refusal(503, "NotReady", "no worker lives yet; ask again in a moment")
                )
        except VitrailError:
            return error_answer("", Refusal(503, "NotReady", "the database does not answer"))
        return Health(status="ready", version=vitrail.__version__)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "In Prometheus' text format."}},
    )
    def figures() -> Response:
        """Requests, queue, pictures and the process, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
