"""The OpenAPI document, driven by schemathesis: no 5xx, and no answer that the document does not have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

pytest.importorskip("dbos", reason="needs the extra server")
pytest.importorskip("schemathesis", reason="needs the extra dev")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
import schemathesis
from http_server import Served
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from vitrail.serving.durable import DurableEngine
from vitrail.serving.jobs import Job

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


class ImpatientEngine(DurableEngine):
    """The real one, which gives every job up at once: dialects that wait for a picture come back."""

    def submit(self, request: Any, *, key: str | None = None) -> Job:
        return self.cancel(super().submit(request, key=key).id)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("schema")
    with Served(folder, engine={"queue_limit": 100_000}, engine_class=ImpatientEngine) as served:
        yield served


def ask_everything(server: Served, count: int, document: dict[str, Any] | None = None) -> int:
    """Ask every operation ``count`` times with sound data and ``count`` times with broken data."""
    schema = schemathesis.openapi.from_dict(document or server.http.get("/openapi.json").json())
    answers = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                nonlocal answers
                answer = case.call(base_url=server.url, timeout=30)
                case.validate_response(answer, checks=CHECKS)
                if answer.status_code >= 400:
                    assert len(answer.content) <= 2048
                    assert b"Traceback" not in answer.content
                answers += 1

            try:
                ask()
            except Unsatisfiable:  # an operation without parameters has no broken data
                continue
    return answers


def test_no_5xx_and_nothing_beside_the_document(server: Served) -> None:
    assert ask_everything(server, 5) > 200


@pytest.mark.soak
def test_the_same_at_length(server: Served) -> None:
    assert ask_everything(server, 200) > 8_000


def test_control_an_answer_beside_the_document_is_seen(server: Served) -> None:
    document = server.http.get("/openapi.json").json()
    document["paths"] = {"/health": document["paths"]["/health"]}
    assert ask_everything(server, 2, document) > 0
    answer = document["paths"]["/health"]["get"]["responses"]["200"]
    answer["content"]["application/json"]["schema"] = {"type": "object", "required": ["mood"]}
    with pytest.raises(BaseException, match="mood"):
        ask_everything(server, 2, document)
