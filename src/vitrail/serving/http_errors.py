"""What goes wrong, as an answer: one shape for each interface, and nothing of the request in it.

A message is one line. Paths are cut to their last part, and what the server itself did wrong is said without
details; those are in its log.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vitrail.chinese import in_chinese
from vitrail.errors import (
    ArtifactError,
    CancelledError,
    DataError,
    InputError,
    MissingExtraError,
    QueueFullError,
    StorageError,
    UnknownJobError,
    UnreachableError,
    VitrailError,
)
from vitrail.request_fields import Model
from vitrail.validation import parse

__all__ = [
    *("ErrorAnswer", "NoPictureError", "NotFoundError", "ParamError", "Refusal"),
    *("documented", "error_answer", "handle_errors", "public"),
]

LOG = logging.getLogger("vitrail.http")
MAX_MESSAGE = 500
RETRY_SECONDS = 5
"""What Retry-After says where the queue is full: the time of a few pictures."""

_PATH = re.compile(r"""(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'",;:]+[/\\])*([^\s/\\'",;:]+)""")


class NotFoundError(InputError):
    """Nothing is called so."""


class NoPictureError(VitrailError):
    """A picture was waited for, and its job, at the address ``job``, ended without one."""

    def __init__(self, message: str, job: str) -> None:
        super().__init__(message)
        self.job = job


class ParamError(InputError):
    """A value that cannot be used, with the name of its field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class ErrorBody(Model):
    """What went wrong."""

    code: str = Field(description="Stable name for programs.", examples=["InputError"])
    message: str = Field(
        description="One line for people: what is allowed, what to do.",
        examples=["steps is out of range; allowed 1 to 200"],
    )


class ErrorAnswer(Model):
    """The one shape of every error of the native API."""

    error: ErrorBody


_MEANING = {
    400: "The request cannot be served as it is.",
    401: "The token is missing or wrong.",
    403: "Another host or page than this server's own asks.",
    404: "There is nothing with this id or name.",
    408: "The body came too slowly.",
    409: "The job ended without a picture.",
    411: "The length of the body is not said.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken here.",
    422: "A value is missing or out of range.",
    429: "The queue is full; Retry-After says when to ask again.",
    503: "The server is not ready, or its database is away for a moment.",
    507: "The disk is full or cannot be written.",
}


def documented(*codes: int, model: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """The errors ``codes``, and those that every route may answer, in the shape ``model``, for OpenAPI."""
    always = (400, 401, 403, 404, 422, 503, 507)
    return {code: {"model": model, "description": _MEANING[code]} for code in sorted({*always, *codes})}


@dataclass(frozen=True)
class Refusal:
    """An error as it is answered."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    param: str | None = None


def refusal_of(error: BaseException) -> Refusal:
    """What ``error`` becomes over HTTP."""
    name = type(error).__name__
    match error:
        case UnknownJobError():
            return Refusal(404, name, "there is no such job; it may have been forgotten")
        case ParamError(param=param):
            return Refusal(400, "InputError", public(str(error)), param=param)
        case NotFoundError():
            return Refusal(404, "NotFound", public(str(error)))
        case NoPictureError(job=job):
            return Refusal(409, "NoPicture", public(str(error)), {"Location": job})
        case QueueFullError():
            return Refusal(429, name, public(str(error)), {"Retry-After": str(RETRY_SECONDS)})
        case UnreachableError():
            LOG.error("storage: %s", error)
            message = "the server's database does not answer; ask again in a moment"
            return Refusal(503, name, message, {"Retry-After": str(RETRY_SECONDS)})
        case StorageError():
            LOG.error("storage: %s", error)
            return Refusal(507, name, "the server cannot write to its disk or database; free some space")
        case ClientDisconnect():  # nobody reads this; where it was our own refusal, the guard answers
            return Refusal(400, name, "the body broke off")
        case MissingExtraError():
            return Refusal(501, name, public(str(error)))
        case InputError() | DataError() | ArtifactError() | CancelledError():
            return Refusal(400, name, public(str(error)))
        case VitrailError():
            return Refusal(500, name, public(str(error)))
        case _:
            LOG.error("unexpected", exc_info=error)
            message = "this is a mistake of the server's own; its log says more"
            # uvicorn ends the connection, for the error goes on to it: nobody is to ask on it again.
            return Refusal(500, "InternalError", message, {"Connection": "close"})


def public(message: str) -> str:
    """``message`` as strangers may read it: no folders, one line, not long."""
    line = _PATH.sub(lambda match: match[1], " ".join(message.split()))
    line = "".join(c for c in line if c.isprintable())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 3]}..."


def error_answer(path: str, refusal: Refusal, language: str = "") -> Response:
    """The answer in the shape of the interface that ``path`` belongs to.

    ``language``: the Accept-Language header; Chinese where it comes first and there is a translation.
    """
    message = refusal.message
    if language[:2].lower() == "zh":
        message = in_chinese(message) or message
    if path.startswith(("/sdapi/", "/controlnet/")):
        body: dict[str, object] = {"error": refusal.code, "detail": message, "body": "", "errors": message}
    elif path.startswith(_OPENAI):
        kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
        code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(refusal.status, refusal.code)
        body = {"error": {"message": message, "type": kind, "param": refusal.param, "code": code}}
    else:
        body = {"error": {"code": refusal.code, "message": message}}
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    headers = {"Cache-Control": "no-store", **refusal.headers}
    return Response(content, refusal.status, headers, media_type="application/json")


def handle_errors(app: FastAPI) -> None:
    """Let ``app`` answer every error in these shapes."""

    def answer(request: Request, refusal: Refusal) -> Response:
        return error_answer(request.url.path, refusal, request.headers.get("accept-language", ""))

    async def own(request: Request, error: Exception) -> Response:
        return answer(request, refusal_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message, param = _invalid(error, _body_model(request))
        status = 400 if request.url.path.startswith(_OPENAI) else 422  # as those that they stand for do
        return answer(request, Refusal(status, "InputError", message, param=param))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, message = _PLAIN.get(error.status_code, ("Refused", "this cannot be served"))
        return answer(request, Refusal(error.status_code, code, message, error.headers or {}))

    app.add_exception_handler(VitrailError, own)
    app.add_exception_handler(ClientDisconnect, own)
    app.add_exception_handler(Exception, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)


_OPENAI = ("/v1/", "/openai/")
_PLAIN = {
    400: ("InputError", "the body cannot be read; send what the OpenAPI document says"),
    404: ("NotFound", "there is nothing at this address; /openapi.json lists what there is"),
    405: ("MethodNotAllowed", "this address takes another method; /openapi.json lists them"),
}


def _body_model(request: Request) -> type[BaseModel] | None:
    """The model that the body of the request's route is read by."""
    field = getattr(request.scope.get("route"), "body_field", None)
    found = getattr(getattr(field, "field_info", None), "annotation", None)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _invalid(error: RequestValidationError, model: type[BaseModel] | None) -> tuple[str, str | None]:
    """Say what was not right, without what was given, and name the field where it is one of the body's."""
    names: list[str] = []
    for item in error.errors():
        place = [str(part) for part in item["loc"][1:2]]
        if item["type"] in ("extra_forbidden", "json_invalid") or not place:
            names.append("the body")
        elif place[0].isidentifier() and len(place[0]) <= 40:
            names.append(place[0])
    param = names[0] if names and names[0] != "the body" else None
    if param is not None and model is not None and isinstance(error.body, dict):
        try:
            parse(model, error.body, echo=False)
        except InputError as said:
            return public(str(said)), param
    listed = ", ".join(dict.fromkeys(names[:3])) or "the body"
    return f"{listed} cannot be used; /openapi.json says what is allowed", param
