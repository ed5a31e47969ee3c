"""Requests as JSON with their files inside, there and back: what the server takes and the client sends.

A file is ``{"name": "photo.png", "data": "<base64>"}`` in place of a
:class:`~vitrail.request_fields.FileRef`. Nothing is ever fetched from an address and no name is a path.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from typing import Any

from pydantic import TypeAdapter

from vitrail.errors import InputError
from vitrail.picture_headers import walk_header
from vitrail.request_fields import FileRef, Model
from vitrail.serving.queue_requests import kinds
from vitrail.validation import parse

__all__ = ["MAX_PIXELS", "file_of", "from_wire", "load_json", "picture_file", "schema", "to_wire"]

MAX_PIXELS = 40_000_000
"""Largest picture that is taken in, in pixels; seen on its header, before anything is decoded."""

#: What it says of the content is not believed: a picture's header is looked at.
_DATA_URL = re.compile(
    r"^data:(?:image/[\w.+-]{1,40}|application/octet-stream)?(?:;[\w.=+-]{1,80}){0,4};base64,", re.IGNORECASE
)
_ADDRESS = re.compile(r"^\s*[a-z][a-z0-9+.-]{1,20}:", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_json(data: bytes) -> Any:
    """Read JSON strictly: UTF-8, no NaN or infinity, no broken characters. Raises :class:`InputError`."""

    def refuse(_: str) -> Any:
        raise InputError("the body holds NaN or an infinity, which JSON does not know")

    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=refuse)
    except InputError:
        raise
    except (ValueError, RecursionError):  # malformed, a number of thousands of digits, nested too deep
        raise InputError("the body is not valid JSON; numbers have at most 4300 digits") from None
    # A lone surrogate can only come in as an escape, for UTF-8 has none.
    if "\\u" in text.replace("\\\\", "") and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise InputError("the body holds half a character (a lone surrogate); remove it")
    return value


def file_of(value: str, name: str = "picture") -> FileRef:
    """Return the file of a base64 text or a ``data:`` URL. Raises :class:`InputError` for an address."""
    text = _DATA_URL.sub("", value, count=1)
    if _ADDRESS.match(text[:64]) or text.startswith(("//", "\\\\")):
        raise InputError("pictures are not fetched from addresses; send the content as base64")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the content of a file is not base64") from None
    if not data:
        raise InputError("a file is empty; send its content as base64")
    return FileRef.of(name, data)


def picture_file(value: str | bytes, name: str = "picture.png") -> FileRef:
    """As :func:`file_of` (or of bytes) for a picture, whose header is looked at: format and size."""
    found = FileRef.of(name, value) if isinstance(value, bytes) else file_of(value, name)
    walk_header(io.BytesIO(found.data), "the picture", MAX_PIXELS)
    return found


def from_wire(body: object) -> Model:
    """Return the request that a JSON body asks for. Raises :class:`InputError` that repeats nothing of it."""
    if not isinstance(body, dict):
        raise InputError("the body is not a JSON object")
    kind = body.get("kind", "text_to_image")
    known = kinds()
    model = known.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InputError(f"kind is unknown; allowed are {', '.join(known)}")
    return parse(model, _taken(body, pictures=kind != "decode"), echo=False)


def _taken(value: Any, *, pictures: bool) -> Any:
    if isinstance(value, list):
        return [_taken(item, pictures=pictures) for item in value]
    if not isinstance(value, dict):
        return value
    # A request may have a field called data too, a folder; it has a kind, which no file has.
    if "kind" not in value and ("data" in value or "sha256" in value):
        name, data = value.get("name"), value.get("data")
        if value.keys() != {"name", "data"} or not isinstance(name, str) or not isinstance(data, str):
            raise InputError("a file is given by its name and its data, the content as base64")
        return (picture_file if pictures else file_of)(data, name[:400])
    return {key: _taken(item, pictures=pictures) for key, item in value.items()}


def to_wire(request: Model) -> dict[str, Any]:
    """Return ``request`` as JSON values, with the contents of its files."""
    value = _given(request)
    assert isinstance(value, dict)
    return {"kind": getattr(request, "kind", "text_to_image"), **value}


def _given(value: Any) -> Any:
    if isinstance(value, FileRef):
        if not value.data:
            raise InputError(f"the file {value.name} has no content; make it with FileRef.of(name, data)")
        return {"name": value.name, "data": base64.b64encode(value.data).decode()}
    if isinstance(value, Model):
        return {name: _given(getattr(value, name)) for name in sorted(value.model_fields_set)}
    if isinstance(value, tuple | list):
        return [_given(item) for item in value]
    return value


def schema(prefix: str = "#/components/schemas/") -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON schema of a body, and the definitions that it refers to under ``prefix``."""
    union: Any = None
    for model in kinds().values():
        union = model if union is None else union | model
    _, found = TypeAdapter.json_schemas(
        [("body", "validation", TypeAdapter(union))], ref_template=prefix + "{model}"
    )
    definitions = dict(found["$defs"])
    definitions["FileRef"] = {
        "title": "File",
        "type": "object",
        "description": "A file by its content; it is called by its name and never looked for on the server.",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 255, "examples": ["photo.png"]},
            "data": {"type": "string", "contentEncoding": "base64", "description": "The content."},
        },
        "required": ["name", "data"],
        "additionalProperties": False,
    }
    names = {kind: model.__name__ for kind, model in kinds().items()}
    for kind, name in names.items():
        if kind != "text_to_image":
            definitions[name]["required"] = sorted({*definitions[name].get("required", []), "kind"})
    body = {
        "oneOf": [{"$ref": prefix + name} for name in names.values()],
        "discriminator": {
            "propertyName": "kind",
            "mapping": {kind: prefix + name for kind, name in names.items()},
        },
    }
    return body, definitions
