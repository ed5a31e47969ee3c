"""One file of a model hub, fetched whole or not at all, and taken up again where it was cut off.

The file grows in a ``.part`` beside its place and gets its name only when its SHA-256 is right. The hub is
huggingface.co, or the mirror that ``HF_ENDPOINT`` names; ``HF_TOKEN`` goes along for repositories that ask
for a login, to that host and to no other.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vitrail.errors import DataError, InputError
from vitrail.files import check_space, ensure_folder, fsync_folder, shown, storage_errors
from vitrail.store.catalogue import HubFile

__all__ = ["address_of", "fetch_file"]

DEFAULT_HUB = "https://huggingface.co"
TIMEOUT_S = 30
_BLOCK = 1 << 20


def address_of(source: HubFile) -> str:
    """Where the file lies; :class:`InputError` where ``HF_ENDPOINT`` is no address."""
    hub = os.environ.get("HF_ENDPOINT") or DEFAULT_HUB
    if urllib.parse.urlsplit(hub).scheme not in ("http", "https"):
        raise InputError(f"HF_ENDPOINT is {shown(hub, 80)}; it must be an http or https address")
    path = urllib.parse.quote(f"{source.repository}/resolve/{source.revision}/{source.file}")
    return f"{hub.rstrip('/')}/{path}"


def fetch_file(
    source: HubFile, size: int, target: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Fetch ``source`` to ``target``; ``progress(done, total)`` counts bytes.

    What an earlier try left in ``target.part`` is kept and gone on from. Raises :class:`DataError` when the
    hub cannot be reached, refuses, ends early (what came is kept) or sends something else (it is thrown
    away); :class:`~vitrail.errors.StorageError` when there is no room.
    """
    address = address_of(source)
    ensure_folder(target.parent)
    part = target.with_name(target.name + ".part")
    with storage_errors(part):
        have = part.stat().st_size if part.is_file() else 0
        if have > size:
            part.unlink()
            have = 0
    check_space(target.parent, size - have)
    if have < size:
        _append(address, source, part, have, size, progress)
    with storage_errors(part), part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if part.stat().st_size != size or found != source.sha256:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{source} came with SHA-256 {found[:16]}..., expected {source.sha256[:16]}...; it was thrown "
            "away, check HF_ENDPOINT and the network, then run it again"
        )
    with storage_errors(target):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        fsync_folder(target.parent)
    return target


def _append(
    address: str,
    source: HubFile,
    part: Path,
    have: int,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Ask for what is missing and write it behind what is there."""
    request = urllib.request.Request(address, headers={"User-Agent": "vitrail"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            if have and answer.status != 206:  # the host sends the whole file again
                have = 0
            with storage_errors(part, size):
                out = part.open("ab" if have else "wb")
            with out:
                have = _copy(answer, out, part, have, size, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is kept is longer than the hub's file
            part.unlink(missing_ok=True)
        raise DataError(_refused(error.code, source)) from None
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = shown(getattr(error, "reason", None) or error, 100)
        kept = part.stat().st_size if part.is_file() else 0
        advice = f"{kept} bytes are kept, run it again to go on" if kept else "check the network"
        raise DataError(f"the hub cannot be reached for {source}: {reason}; {advice}") from None
    if have < size:
        raise DataError(f"{source} ended after {have} of {size} bytes; they are kept, run it again to go on")


def _copy(
    answer: IO[bytes],
    out: IO[bytes],
    part: Path,
    have: int,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Copy until the file is complete or the line ends; returns the bytes that are there."""
    while have < size:
        block = answer.read(min(_BLOCK, size - have))
        if not block:
            break
        with storage_errors(part, size):
            out.write(block)
            out.flush()
        have += len(block)
        if progress is not None:
            progress(have, size)
    return have


def _refused(code: int, source: HubFile) -> str:
    if code in (401, 403):
        return (
            f"the hub refuses {source} ({code}); accept its licence on the hub's page, then set HF_TOKEN to "
            "an access token of yours"
        )
    if code == 404:
        return f"the hub has no {source} (404); the repository may have moved"
    return f"the hub answered {code} for {source}; try again later"
