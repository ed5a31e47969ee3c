"""Pictures to train on: folders that are named or uploaded, and a look through them before anything is spent.

Uploaded files get names of the server's own: the picture ``cat.png`` and its caption ``cat.txt`` share the
name that ``cat`` is given, so they still belong together, and nothing that was sent becomes a path.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from vitrail.errors import InputError
from vitrail.files import atomic_write, check_space, ensure_folder
from vitrail.images import MAX_PIXELS
from vitrail.picture_headers import walk_header
from vitrail.request_fields import Model, Text
from vitrail.studio.looking import Look
from vitrail.studio.places import Places

__all__ = ["body_of", "make_folders"]

MAX_PICTURE = 64 << 20
"""Largest uploaded picture in bytes."""

MAX_FILES = 100_000
_KEPT = 8
_SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
_FOLDER = re.compile(r"^[0-9a-f]{16}$")


class NewFolder(Model):
    """A folder for uploads: what its person calls it."""

    name: Text = Field(default="", max_length=80)


class FolderName(Model):
    """A folder of pictures, as a path on the server's machine or as an upload's id."""

    folder: Text = Field(min_length=1, max_length=1000)


def make_folders(places: Places) -> APIRouter:
    """Return the routes below ``/folders`` and ``/inspections``."""
    router = APIRouter()
    found: dict[str, Look] = {}
    lock = threading.Lock()

    def looked(id: str) -> Look:
        with lock:
            if id not in found:
                raise InputError("this look through a folder is forgotten; look again")
            return found[id]

    @router.get("/folders")
    def folders() -> dict[str, Any]:
        """Uploaded folders, the newest first, and whether any folder of the machine may be named."""
        rows = [_row(path) for path in places.uploads.glob("*") if _FOLDER.match(path.name)]
        rows.sort(key=lambda row: -float(row["changed"]))
        roots = None if places.roots is None else [str(root) for root in places.roots]
        return {"folders": rows, "roots": roots}

    @router.post("/folders", status_code=201)
    def new_folder(body: NewFolder) -> dict[str, Any]:
        """Make an empty folder for uploads."""
        folder = ensure_folder(places.uploads / secrets.token_hex(8))
        atomic_write(folder / ".name", body.name or "pictures")
        return _row(folder)

    @router.post("/folders/{id}/files", status_code=201)
    async def add(id: str, name: str, request: Request) -> dict[str, str]:
        """Put a picture, or the ``.txt`` with a picture's caption, into an uploaded folder."""
        folder = places.uploads / id
        if not _FOLDER.match(id) or not folder.is_dir():
            raise InputError("there is no such folder; make one first")
        data = await body_of(request.stream(), MAX_PICTURE)
        return {"name": _keep(folder, name, data)}

    @router.post("/folders/path")
    def path(body: FolderName) -> dict[str, str]:
        """The path by which a long work finds a folder: an upload's, or the one that is named and allowed."""
        return {"path": str(folder_of(places, body.folder).resolve())}

    @router.post("/inspections", status_code=202)
    def look(body: FolderName) -> dict[str, Any]:
        """Begin to look through a folder."""
        folder = folder_of(places, body.folder)
        look = Look(secrets.token_hex(8), folder)
        with lock:
            for old in list(found)[: max(0, len(found) - _KEPT + 1)]:
                found.pop(old).stop()
            found[look.id] = look
        threading.Thread(target=look.run, name="vitrail-inspect", daemon=True).start()
        return look.as_json()

    @router.get("/inspections/{id}")
    def looking(id: str) -> dict[str, Any]:
        """How far the look is, and what it found."""
        return looked(id).as_json()

    @router.get("/inspections/{id}/sheet")
    def sheet(id: str) -> Response:
        """A contact sheet of what is in the folder, as WebP."""
        sheet = looked(id).sheet
        if not sheet:
            raise InputError("there is no contact sheet; the folder has no usable picture")
        return Response(sheet, media_type="image/webp")

    return router


def folder_of(places: Places, name: str) -> Path:
    """The folder that is meant: an upload by its id, any other by its path."""
    if _FOLDER.match(name) and (places.uploads / name).is_dir():
        return places.uploads / name
    return places.pictures_in(name)


async def body_of(stream: AsyncIterator[bytes], most: int) -> bytes:
    """Read a body of at most ``most`` bytes; :class:`InputError` for a longer one, before it is whole."""
    data = bytearray()
    async for part in stream:
        data += part
        if len(data) > most:
            raise InputError(f"the file is larger than {most >> 20} MiB")
    return bytes(data)


def _keep(folder: Path, name: str, data: bytes) -> str:
    if sum(1 for _ in folder.iterdir()) >= MAX_FILES:
        raise InputError(f"the folder holds {MAX_FILES} files; begin another one")
    last = name.replace("\\", "/").rpartition("/")[2]
    stem = last.rpartition(".")[0] or last
    own = hashlib.sha256(
        name.replace("\\", "/").rpartition("/")[0].encode() + b"/" + stem.encode()
    ).hexdigest()[:20]
    if last.lower().endswith(".txt"):
        try:
            text = data[:20_001].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError("a caption must be UTF-8 text") from error
        if len(data) > 20_000:
            raise InputError("a caption is longer than 20,000 bytes")
        suffix, data = ".txt", text.encode()
    else:
        header = walk_header(io.BytesIO(data), "the picture", MAX_PIXELS)
        if header.format not in _SUFFIX:
            raise InputError("only PNG, JPEG and WebP pictures are kept")
        suffix = _SUFFIX[header.format]
    check_space(folder, len(data))
    atomic_write(folder / f"{own}{suffix}", data)
    return f"{own}{suffix}"


def _row(folder: Path) -> dict[str, Any]:
    try:
        name = (folder / ".name").read_text(encoding="utf-8")
    except OSError:
        name = "pictures"
    pictures = sum(1 for path in folder.iterdir() if path.suffix in _SUFFIX.values())
    return {"id": folder.name, "name": name, "pictures": pictures, "changed": folder.stat().st_mtime}
