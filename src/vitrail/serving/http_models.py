"""Models by name, for callers over a network: a name is looked up in lists and never becomes a path.

A request at the command line may name a file or a folder. One that came over HTTP may not: every name in it
must be one of those that this machine's folders hold (:class:`Shelf`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.errors import ArtifactError, InputError, VitrailError
from vitrail.request_fields import Model, Name
from vitrail.sampling_fields import SamplingDefaults
from vitrail.serving.http_errors import NotFoundError
from vitrail.serving.http_folders import check_folders
from vitrail.store import artifacts, model_folders
from vitrail.store.catalogue import CATALOGUE, installed

__all__ = ["CHECKPOINT", "DIFFUSION_KINDS", "ModelInfo", "Shelf", "styles_of"]

CHECKPOINT = "stable_diffusion"
"""Kind of a model that is another program's file or folder."""

DIFFUSION_KINDS = ("shell_dit", CHECKPOINT)
"""Kinds of model that draw by diffusion."""

_FRESH = 3.0  # seconds that a listing is used again
_MAX_STYLES = 1 << 16
#: Fields of requests that name files, and the kind of file.
_ADDONS: dict[str, model_folders.Kind] = {
    "lora": "lora",
    "control": "controlnet",
    "vae": "vae",
    "embedding": "embedding",
}


class ModelInfo(Model):
    """A model on this machine."""

    name: Name
    kind: str
    sha256: str | None = None
    bytes: int | None = None
    licence: str | None = None
    styles: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    problem: str | None = None


@dataclass
class _Listing:
    until: float
    models: dict[str, ModelInfo]
    files: dict[model_folders.Kind, dict[str, model_folders.Found]]


@dataclass
class Shelf:
    """What is on this machine, looked at again every few seconds.

    roots: folders that long works may name; None for all.
    """

    roots: tuple[Path, ...] | None = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listing: _Listing | None = None

    def models(self) -> list[ModelInfo]:
        """Models that make or change pictures, the shipped ones first, then checkpoints of other programs."""
        return list(self._look().models.values())

    def model(self, name: str) -> ModelInfo:
        """Return the model called ``name``; :class:`NotFoundError` for any other text."""
        known = self._look().models
        if name in known:
            return known[name]
        entry = CATALOGUE.get(name)
        if entry is not None and not installed(entry):
            raise NotFoundError(
                f"model {entry.name} is not on this machine yet; run: vitrail models pull {entry.name}"
            )
        raise NotFoundError(f"there is no model of this name; there are: {', '.join(list(known)[:20])}")

    def files(self, kind: model_folders.Kind) -> list[model_folders.Found]:
        """Files of other programs of one kind, each once."""
        return list({id(item): item for item in self._look().files[kind].values()}.values())

    def check(self, request: Model) -> None:
        """Raise :class:`NotFoundError` for a request that names anything that these lists do not hold.

        And :class:`~vitrail.errors.InputError` for a folder that it may not name.
        """
        check_folders(request, self.roots)
        if getattr(request, "kind", None) == "pull_model" and getattr(request, "name", None) not in CATALOGUE:
            raise NotFoundError(f"the catalogue has no such model; it has {', '.join(CATALOGUE)}")
        for kind, name in _named(request):
            if kind == "model":
                self.model(name)
            elif kind == "upscaler":
                if name not in self._look().models and name not in self._look().files["upscaler"]:
                    self.model(name)
            elif name not in self._look().files[kind]:
                there = sorted({item.name for item in self.files(kind)})
                listed = f"there are: {', '.join(there[:10])}" if there else "there is none"
                raise NotFoundError(f"there is no {kind} of this name; {listed}")

    def _look(self) -> _Listing:
        with self._lock:
            if self._listing is None or time.monotonic() > self._listing.until:
                self._listing = _Listing(time.monotonic() + _FRESH, dict(_models()), dict(_files()))
            return self._listing


def _named(request: Model) -> Iterator[tuple[Any, str]]:
    """Every name of a model or file in ``request``, with its kind."""
    model = getattr(request, "model", None)
    if isinstance(model, str):
        yield "model", model
    if isinstance(name := getattr(request, "hires_upscaler", None), str):
        yield "upscaler", name
    for attribute, kind in _ADDONS.items():
        value = getattr(request, attribute, None)
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            yield kind, one if isinstance(one, str) else one.name


def _models() -> Iterator[tuple[str, ModelInfo]]:
    taken = set()
    for name, folder in artifacts.available().items():
        taken.add(name)
        try:
            yield name, _own(name, folder)
        except VitrailError:
            yield name, ModelInfo(name=name, kind="damaged", problem="its folder is damaged: get it again")
    for item in model_folders.listing("checkpoint"):
        if item.name not in taken:
            yield item.name, ModelInfo(name=item.name, kind=CHECKPOINT)


def styles_of(folder: Path, manifest: artifacts.Manifest) -> tuple[str, ...]:
    """Names of a model's styles, () if it lists none; :class:`ArtifactError` where they cannot be read."""
    if "styles.json" not in manifest.files or manifest.files["styles.json"].size > _MAX_STYLES:
        return ()
    try:
        return tuple(str(style) for style in json.loads((folder / "styles.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"styles.json of model {manifest.name} cannot be read") from error


def _own(name: str, folder: Path) -> ModelInfo:
    manifest = artifacts.read_manifest(folder, verify=False)
    sampling = manifest.sampling or SamplingDefaults()
    weights = manifest.files.get(artifacts.WEIGHTS_NAME)
    return ModelInfo(
        name=name,
        kind=manifest.kind,
        sha256=weights.sha256 if weights else None,
        bytes=sum(entry.size for entry in manifest.files.values()),
        licence=manifest.licence,
        styles=styles_of(folder, manifest),
        width=sampling.width if manifest.sampling else None,
        height=sampling.height if manifest.sampling else None,
        steps=sampling.steps if manifest.sampling else None,
    )


def _files() -> Iterator[tuple[model_folders.Kind, dict[str, model_folders.Found]]]:
    """For each kind its files by every spelling that names one of them alone."""
    for kind in model_folders.KINDS:
        try:
            items = model_folders.listing(kind)
        except InputError:  # a damaged settings file: the command line says so
            items = []
        shorts = [item.short for item in items]
        found = {item.name: item for item in items}
        found |= {item.short: item for item in items if shorts.count(item.short) == 1}
        yield kind, found
