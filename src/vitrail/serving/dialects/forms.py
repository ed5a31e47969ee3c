"""Forms with files (``multipart/form-data``), read whole or refused, with bounds on their parts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from vitrail.request_fields import FileRef
from vitrail.serving.http_errors import ParamError
from vitrail.serving.http_wire import picture_file

__all__ = ["described", "one_file", "open_form", "texts_of", "uploads_of"]

_MAX_PARTS, _MAX_FIELD = 32, 64 << 10


class _Parser(MultiPartParser):
    """Starlette's, which takes a form that ends within a part as one that lacks it: a mask would be missing
    and the whole picture drawn over.
    """

    ended = False

    def on_end(self) -> None:
        self.ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self.ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("the form is cut off")
        return form


@contextlib.asynccontextmanager
async def open_form(request: Request, max_files: int) -> AsyncIterator[FormData]:
    """The form that is the body of ``request``; its files are closed afterwards."""
    try:
        async with contextlib.aclosing(request.stream()) as stream:
            limits: dict[str, Any] = {"max_fields": _MAX_PARTS, "max_part_size": _MAX_FIELD}
            form = await _Parser(request.headers, stream, max_files=max_files, **limits).parse()
    except MultiPartException as error:
        raise HTTPException(400) from error
    try:
        yield form
    finally:
        await form.close()


def texts_of(form: FormData) -> dict[str, Any]:
    """Text fields of a form; an empty one is as good as none."""
    given = {name: value for name, value in form.multi_items() if isinstance(value, str) and value != ""}
    return {name: value for name, value in given.items() if len(name) <= 40}


async def uploads_of(form: FormData, name: str) -> list[bytes]:
    """The files that are called ``name``, in their order."""
    files = [value for value in form.getlist(name) if isinstance(value, UploadFile)]
    return [await file.read() for file in files]


def one_file(files: list[bytes], name: str = "image") -> FileRef:
    """The picture in ``files``, of which there is to be one."""
    if not files:
        raise ParamError(f"{name} is missing; send one file", name)
    if len(files) > 1:
        raise ParamError(f"{name} is given several times; send one file", name)
    return picture_file(files[0], f"{name}.png")


def described(model: type[BaseModel], files: tuple[str, ...]) -> dict[str, Any]:
    """The body of a form, for the OpenAPI document."""
    found = model.model_json_schema()
    found["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": found}}}}
