"""The codebook viewer's route. Codes are drawn once a model, in a process of their own, and kept.

A process of its own, because drawing them loads torch and a model, which the server itself never does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from vitrail.errors import ArtifactError, VitrailError
from vitrail.files import atomic_folder, ensure_folder
from vitrail.store.artifacts import WEIGHTS_NAME, read_manifest
from vitrail.studio.places import Places
from vitrail.studio.shelf import model_named

__all__ = ["draw_codebook", "make_codebook"]

COUNT = 256
"""How many codes are shown, the most used first."""

COLUMNS = 32
_SECONDS = 300.0


def make_codebook(places: Places) -> APIRouter:
    """Return the routes below ``/codebook``."""
    router, one = APIRouter(), threading.Lock()

    def folder_of(model: str) -> Path:
        folder = model_named(model)
        digest = read_manifest(folder, verify=False).files[WEIGHTS_NAME].sha256
        kept = places.home / "codebooks" / digest[:32]
        with one:
            if not (kept / "codes.json").is_file():
                _in_a_child(folder, kept)
        return kept

    @router.get("/codebook")
    def codes(model: str) -> dict[str, Any]:
        """The most used codes of a tokenizer: their numbers, their use, and where each is on the sheet."""
        kept = folder_of(model)
        return {**json.loads((kept / "codes.json").read_text()), "digest": kept.name}

    @router.get("/codebook/sheet")
    def sheet(model: str) -> FileResponse:
        """All drawings on one sheet, row by row, as a PNG."""
        return FileResponse(folder_of(model) / "sheet.png", media_type="image/png")

    return router


def _in_a_child(model: Path, kept: Path) -> None:
    ensure_folder(kept.parent)
    command = [sys.executable, "-m", "vitrail.studio.codebook", str(model), str(kept)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"drawing the codes took longer than {_SECONDS:.0f} s and was stopped") from error
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [
            "the codes could not be drawn; the server's log says why"
        ]
        sys.stderr.write(done.stderr)
        raise ArtifactError(lines[-1])


def draw_codebook(model: Path, kept: Path) -> None:
    """Draw the codes of the model in ``model`` into the folder ``kept``: ``sheet.png`` and ``codes.json``."""
    from PIL import Image

    from vitrail.runtime import pick_device
    from vitrail.tasks.codebook import read_codebook
    from vitrail.tasks.context import Context
    from vitrail.tasks.loading import Loader

    device = pick_device("cpu")
    found = read_codebook(str(model), Loader(device), Context(device), count=COUNT)
    tile = found.tiles[0].width
    rows = -(-len(found.tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * tile, rows * tile))
    for place, drawing in enumerate(found.tiles):
        sheet.paste(drawing, (place % COLUMNS * tile, place // COLUMNS * tile))
    about = {
        "columns": COLUMNS,
        "tile": tile,
        "order": found.order,
        "shares": found.shares,
        "codes": found.codes,
    }
    about |= {"used": found.used, "perplexity": found.perplexity, "source": found.source}
    with atomic_folder(kept, overwrite=True) as folder:
        sheet.save(folder / "sheet.png")
        (folder / "codes.json").write_text(json.dumps(about))


if __name__ == "__main__":
    try:
        draw_codebook(Path(sys.argv[1]), Path(sys.argv[2]))
    except VitrailError as error:
        print(error)
        sys.exit(1)
