"""The OpenAPI document, driven by schemathesis: no 5xx, and no answer that the document does not have.

The server is the studio's. Its page's own routes are in no document; for them one is made here, and what is
looked for is a 5xx and a status that no route of this server has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

pytest.importorskip("dbos", reason="needs the extra server")
pytest.importorskip("schemathesis", reason="needs the extra dev")
sys.path.insert(0, str(Path(__file__).parent.parent / "surface"))
import schemathesis
from fastapi import FastAPI
from http_server import Served
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from studio_server import impatient_studio

from vitrail.studio.places import Places
from vitrail.studio.routes import make_router

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


#: What the routes of the page may answer.
EXPECTED = (200, 201, 202, 400, 403, 404, 405, 409, 413, 415, 422)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with impatient_studio(tmp_path_factory.mktemp("schema")) as served:
        yield served


def ask_everything(
    server: Served,
    count: int,
    document: dict[str, Any] | None = None,
    checks: Sequence[Callable[..., bool | None]] = CHECKS,
) -> int:
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
                case.validate_response(answer, checks=checks)
                if checks is not CHECKS:
                    assert answer.status_code in EXPECTED, answer.status_code
                if answer.status_code >= 400:
                    assert len(answer.content) <= 2048
                    assert b"Traceback" not in answer.content
                answers += 1

            try:
                ask()
            except Unsatisfiable:  # an operation without parameters has no broken data
                continue
    return answers


def studio_document(folder: Path) -> dict[str, Any]:
    app = FastAPI()
    app.include_router(make_router(Places(folder, roots=()), described=True))
    return app.openapi()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_the_studios_document_is_sound_and_its_references_resolve(server: Served) -> None:
    document = server.http.get("/openapi.json").json()
    found = set(references(document))
    assert len(found) > 20
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]
    assert not [path for path in document["paths"] if path.startswith("/api/studio")]
    schemathesis.openapi.from_dict(document).validate()


def test_no_5xx_and_nothing_beside_the_document(server: Served) -> None:
    assert ask_everything(server, 25) > 1000


def test_no_5xx_on_the_routes_of_the_page(server: Served, tmp_path: Path) -> None:
    document = studio_document(tmp_path)
    assert len(document["paths"]) > 15
    assert ask_everything(server, 25, document, [not_a_server_error]) > 500


@pytest.mark.soak
def test_the_same_at_length(server: Served, tmp_path: Path) -> None:
    assert ask_everything(server, 200) > 8_000
    assert ask_everything(server, 200, studio_document(tmp_path), [not_a_server_error]) > 1_000


def test_control_an_answer_beside_the_document_is_seen(server: Served) -> None:
    document = server.http.get("/openapi.json").json()
    document["paths"] = {"/health": document["paths"]["/health"]}
    assert ask_everything(server, 2, document) > 0
    answer = document["paths"]["/health"]["get"]["responses"]["200"]
    answer["content"]["application/json"]["schema"] = {"type": "object", "required": ["mood"]}
    with pytest.raises(BaseException, match="mood"):
        ask_everything(server, 2, document)
