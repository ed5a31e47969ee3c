"""Trainings as their folders tell them: recipe, figures, samples, the model; and the recipes to begin with.

A run is told apart by an id made from its folder's name, never by a path, and is found by listing the runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from vitrail.errors import ArtifactError, InputError
from vitrail.files import atomic_folder, atomic_write, ensure_folder
from vitrail.recipe import SHIPPED
from vitrail.serving.long_work import STOPPED_MODEL, run_name
from vitrail.store import artifacts
from vitrail.studio.places import Places
from vitrail.studio.shelf import DRAWS, TOKENIZERS

__all__ = ["find_run", "make_runs", "run_id"]

MAX_POINTS = 400
_MAX_LOG = 64 << 20  # of metrics.jsonl, from its end


def make_runs(places: Places) -> APIRouter:
    """Return the routes below ``/runs`` and ``/recipes``."""
    router = APIRouter()

    @router.get("/recipes")
    def recipes() -> list[dict[str, Any]]:
        """vitrail's recipes and those in the folder ``recipes`` where the server was started."""
        found = {path.name: path for folder in (SHIPPED, Path("recipes")) for path in folder.glob("*.toml")}
        rows = (_recipe(path) for _, path in sorted(found.items()))
        return [row for row in rows if row is not None]

    @router.get("/runs")
    def runs() -> list[dict[str, Any]]:
        """Every run, the latest first, in short."""
        rows = [_short(places, folder) for folder in _folders(places.runs)]
        return sorted(rows, key=lambda row: -float(row["changed"]))

    @router.get("/runs/{id}")
    def run(id: str) -> dict[str, Any]:
        """A run with its figures over time and the names of its sample grids."""
        folder = find_run(places, id)
        return _short(places, folder) | {
            "figures": _figures(folder / "metrics.jsonl"),
            "samples": [path.stem for path in _samples(folder)],
            "recipe": _text(folder / "recipe.toml"),
            "use": _use(_model(folder)),
        }

    @router.post("/runs/{id}/keep", status_code=201)
    def keep(id: str) -> dict[str, str]:
        """Put a run's model, finished or as it was stopped, among the models, where requests find it."""
        return {"name": _keep(find_run(places, id))}

    @router.get("/runs/{id}/samples/{name}")
    def sample(id: str, name: str) -> FileResponse:
        """A sample grid as a PNG."""
        for path in _samples(find_run(places, id)):
            if path.stem == name:
                return FileResponse(path, media_type="image/png")
        raise InputError("there is no such sample")

    return router


def _keep(run: Path) -> str:
    """Copy a run's model into the models folder and return its name; the same model again changes nothing."""
    model = _model(run)
    if model is None:
        raise InputError(
            "this run has no model yet: it has one once it was stopped in good order, or is finished"
        )
    weights = artifacts.read_manifest(model).files[artifacts.WEIGHTS_NAME].sha256
    wanted = run_name(run.name)
    if model.name == STOPPED_MODEL:
        wanted += f"-at-{_images(run)}"
    name, number = wanted, 1
    while name in (here := artifacts.available()):
        if _sha256(here[name]) == weights:
            return name
        number += 1
        name = f"{wanted}-{number}"
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    with atomic_folder(ensure_folder(artifacts.home()) / name, needed=size) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        # Its pictures go by the name it has here: two trainings by one recipe are two models.
        manifest = artifacts.read_manifest(folder, verify=False).model_copy(update={"name": name})
        text = manifest.model_dump_json(indent=2, exclude_none=True)
        atomic_write(folder / artifacts.MANIFEST_NAME, text + "\n")
    return name


def _model(run: Path) -> Path | None:
    """The model folder of a run: the finished one, else the one that a stop left."""
    folders = (run / "model", run / STOPPED_MODEL)
    return next((folder for folder in folders if (folder / artifacts.MANIFEST_NAME).is_file()), None)


def _images(run: Path) -> int:
    """Pictures that the newest checkpoint of a run has seen."""
    names = (path.name.removeprefix("images-") for path in (run / "checkpoints").glob("images-*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _use(model: Path | None) -> str | None:
    """The page of the studio that a model is tried on; None without a model."""
    if model is None:
        return None
    try:
        kind = artifacts.read_manifest(model, verify=False).kind
    except ArtifactError:
        return None
    return "create" if kind in DRAWS else "codebook" if kind in TOKENIZERS else "models"


def _sha256(folder: Path) -> str | None:
    try:
        return artifacts.read_manifest(folder, verify=False).files[artifacts.WEIGHTS_NAME].sha256
    except (ArtifactError, KeyError):
        return None


def run_id(name: str) -> str:
    """The id of the run whose folder, seen from the folder of runs, is called ``name``."""
    return hashlib.sha256(f"vitrail run {name}".encode()).hexdigest()[:20]


def find_run(places: Places, id: str) -> Path:
    """The folder of a run; :class:`InputError` for an unknown id."""
    for folder in _folders(places.runs):
        if run_id(_name(places, folder)) == id:
            return folder
    raise InputError("there is no such run; its folder may have been removed")


def _folders(home: Path) -> Iterator[Path]:
    """Run folders, also those of the stages of a staged recipe; links are not followed."""
    for path in sorted([*home.glob("*/recipe.toml"), *home.glob("*/*/recipe.toml")]):
        folder = path.parent
        if (
            not folder.is_symlink()
            and not folder.parent.is_symlink()
            and folder.name not in ("model", STOPPED_MODEL)
        ):
            yield folder


def _name(places: Places, folder: Path) -> str:
    return folder.relative_to(places.runs).as_posix()


def _short(places: Places, folder: Path) -> dict[str, Any]:
    name, log = _name(places, folder), folder / "metrics.jsonl"
    recipe = _toml(folder / "recipe.toml")
    last = next(iter(_tail(log, 1)), {})
    optim = recipe.get("optim", {})
    wanted = optim.get("until_images")
    budget = optim.get("time_budget_minutes")
    # The log is written now and then, and not at a stop.
    seen, seconds = max(last.get("images", 0), _images(folder)), last.get("seconds", 0.0)
    finished = (folder / "model" / "artifact.json").is_file()
    share = seen / wanted if wanted else seconds / (60 * budget) if budget else 0.0
    return {
        "id": run_id(name),
        "name": name,
        "kind": recipe.get("kind", ""),
        "source": _public(str(recipe.get("data", {}).get("source", ""))),
        "images": seen,
        "until": wanted,
        "minutes": budget,
        "seconds": seconds,
        "share": 1.0 if finished else min(1.0, share),
        "loss": {key: value for key, value in last.items() if key.startswith("loss/")},
        "state": "finished" if finished else "running" if _locked(folder) else "stopped",
        "model": finished,
        "changed": max(
            (path.stat().st_mtime for path in (log, folder / "recipe.toml") if path.exists()), default=0.0
        ),
    }


def _public(source: str) -> str:
    """A source's last part: the page shows what was trained on, not where somebody's files lie."""
    return source.rstrip("/").rpartition("/")[2]


def _locked(folder: Path) -> bool:
    """Whether a process trains in the folder (it holds the lock of vitrail.training.checkpoint.RunLock)."""
    try:
        handle = os.open(folder / "run.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _figures(log: Path) -> dict[str, Any]:
    """Every figure of the log as at most 400 points: means over equal stretches, so no spike is invented."""
    lines = _tail(log, None)
    names = sorted({key for line in lines for key in line} - {"images", "step", "seconds"})
    stretch = max(1, -(-len(lines) // MAX_POINTS))
    series: dict[str, list[list[float]]] = {}
    for name in names:
        points = [(line["images"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
        groups = [points[i : i + stretch] for i in range(0, len(points), stretch)]
        series[name] = [
            [group[-1][0], sum(value for _, value in group) / len(group)] for group in groups if group
        ]
    return {name: points for name, points in series.items() if points}


def _tail(log: Path, count: int | None) -> list[dict[str, Any]]:
    """The last ``count`` whole lines of the log, or all of them; a line that a kill cut short is left out."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (8192 if count else _MAX_LOG)))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines if count is None else lines[-count - 1 :]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("images"), int):
            found.append(row)
    return found if count is None else found[-count:]


def _samples(folder: Path) -> list[Path]:
    return sorted(
        path for path in (folder / "samples").glob("*.png") if path.is_file() and not path.is_symlink()
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:40_000]
    except (OSError, UnicodeDecodeError):
        return ""


def _recipe(path: Path) -> dict[str, Any] | None:
    tables = _toml(path)
    if "kind" not in tables:
        return None
    head = []
    for line in _text(path).splitlines():
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# ").rstrip())
    source = tables.get("data", {}).get("source", "")
    about = {"file": path.name, "kind": tables["kind"], "about": " ".join(head), "source": source}
    return about | {"text": _text(path)}
