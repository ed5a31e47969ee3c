"""The models page's routes: what is on this machine, what could be fetched, fetching and removing."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter

import vitrail
from vitrail.errors import InputError, VitrailError
from vitrail.request_fields import Model, Name
from vitrail.store import artifacts
from vitrail.store.catalogue import CATALOGUE, Entry, installed, wanted

__all__ = ["DRAWS", "TOKENIZERS", "Fetching", "make_shelf"]

#: Kinds of model folders that draw pictures from words, and those that see pictures as codes.
DRAWS = frozenset({"shell_dit", "token_transformer", "dcgan", "biggan", "vae"})
TOKENIZERS = frozenset({"token_transformer", "vq_autoencoder"})
_MAX_ENLARGEMENT = 4  # as in vitrail.tasks.loading
_LOG = logging.getLogger("vitrail.studio")
_FOREIGN_SIZES = ((512, 512), (768, 512), (512, 768), (768, 768))


class ModelName(Model):
    """Which model is meant."""

    name: Name


@dataclass
class Fetching:
    """A model on its way here. ``done`` and ``total``: bytes; ``error``: why it did not arrive.

    A registry's client does not tell how far it is, so ``done`` stays None and only the seconds since it
    ``began`` are known; None while another one is fetched first.
    """

    done: int | None = None
    total: int = 0
    running: bool = True
    error: str | None = None
    began: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What the page shows."""
        told = {name: value for name, value in vars(self).items() if name != "began"}
        return told | {"seconds": None if self.began is None else time.monotonic() - self.began}


class _Fetcher:
    """Fetches models one after the other, in threads of its own."""

    def __init__(self) -> None:
        self.state: dict[str, Fetching] = {}
        self._one = threading.Lock()

    def start(self, entry: Entry) -> None:
        from vitrail.backends.pull import check_absent

        check_absent(entry)
        known = self.state.get(entry.name)
        if known is not None and known.running:
            return
        self.state[entry.name] = Fetching(total=entry.size)
        threading.Thread(target=self._fetch, args=(entry,), name="vitrail-pull", daemon=True).start()

    def _fetch(self, entry: Entry) -> None:
        from vitrail.backends.pull import pull

        state = self.state[entry.name]

        def count(done: int, total: int) -> None:
            state.done, state.total = done, total or entry.size

        try:
            with self._one:
                state.began = time.monotonic()
                pull(entry, progress=count)
        except VitrailError as error:
            state.error = _said(entry, error)
        except Exception:  # the person is told, whatever the library raised; the thread has no other listener
            state.error = f"fetching {entry.name} failed; the server's log says why"
            raise
        finally:
            state.running = False


def _said(entry: Entry, error: VitrailError) -> str:
    """Why a model did not arrive, for a person. Where nobody answers, installers say so at length."""
    if "check the network" not in str(error):
        return str(error)
    _LOG.warning("%s", error)
    return f"{entry.name} cannot be fetched: nobody who has it answers; check the network and try again"


def make_shelf() -> APIRouter:
    """Return the routes below ``/models``."""
    router, fetcher = APIRouter(), _Fetcher()

    @router.get("/models")
    def models() -> list[dict[str, Any]]:
        """Models on this machine, and those of the catalogue that could be fetched."""
        here = _folders() + _files()
        names = {row["name"] for row in here}
        return here + [_of_catalogue(one, fetcher) for one in CATALOGUE.values() if one.name not in names]

    @router.post("/models/pull", status_code=202)
    def pull(body: ModelName) -> dict[str, str]:
        """Begin to fetch a model of the catalogue; the list of models tells how far it is."""
        fetcher.start(wanted(body.name))
        return {"name": body.name}

    @router.post("/models/remove")
    def remove(body: ModelName) -> dict[str, str]:
        """Remove a model from the models folder; those that came with vitrail stay."""
        from vitrail.backends.pull import remove as take_away

        take_away(body.name)
        fetcher.state.pop(body.name, None)
        return {"name": body.name}

    return router


def _folders() -> list[dict[str, Any]]:
    """vitrail's own model folders; a damaged one says so and hides no other."""
    # Not from vitrail.tasks.loading: a server imports no torch.
    from vitrail.serving.http_models import styles_of

    shipped = Path(vitrail.__file__).parent / "shipped"
    rows = []
    for name, folder in artifacts.available().items():
        row: dict[str, Any] = {
            "name": name,
            "here": True,
            "kind": "",
            "shipped": folder.is_relative_to(shipped),
        }
        try:
            manifest = artifacts.read_manifest(folder, verify=False)
            row |= {
                "kind": manifest.kind,
                "size": sum(entry.size for entry in manifest.files.values()),
                "licence": manifest.licence,
                "sources": [_origin(manifest)],
                "styles": list(styles_of(folder, manifest)),
                "sizes": _sizes(folder, manifest),
                "draws": manifest.kind in DRAWS,
                "tokenizer": manifest.kind in TOKENIZERS,
                "card": _card(folder),
            }
        except VitrailError as error:
            row["problem"] = str(error)
        known = CATALOGUE.get(name)
        if known is not None:
            row |= _words(known)
        rows.append(row)
    return rows


def _origin(manifest: artifacts.Manifest) -> str:
    """Where a model of our own format comes from; in words that need no translation."""
    return f"vitrail {manifest.made_with.get('vitrail', '')}, recipe.toml, {manifest.created[:10]}"


def _files() -> list[dict[str, Any]]:
    """Checkpoints, LoRAs and other files of vitrail's and other programs' model folders."""
    from vitrail.store.model_folders import listing

    rows = []
    for item in listing():
        draws = item.kind == "checkpoint"
        row: dict[str, Any] = {
            "name": item.name,
            "here": True,
            "kind": item.kind,
            "foreign": True,
            "draws": draws,
        }
        row["size"] = item.path.stat().st_size if item.path.is_file() else 0
        if draws:
            row["sizes"] = [list(size) for size in _FOREIGN_SIZES]
        known = CATALOGUE.get(item.short) or CATALOGUE.get(item.name)
        rows.append(row if known is None else row | _words(known))
    return rows


def _of_catalogue(entry: Entry, fetcher: _Fetcher) -> dict[str, Any]:
    state = fetcher.state.get(entry.name)
    row = {
        "name": entry.name,
        "here": installed(entry),
        "kind": entry.kind,
        "size": entry.size,
        "catalogue": True,
    }
    if state is not None:
        row["fetching"] = state.as_json()
    return row | _words(entry)


def _words(entry: Entry) -> dict[str, Any]:
    return {
        "licence": entry.licence,
        "credit": entry.credit,
        "sources": [str(source) for source in entry.sources],
        "en": entry.english,
        "zh": entry.chinese,
    }


def _sizes(folder: Path, manifest: artifacts.Manifest) -> list[list[int]]:
    """Squares that a pixel model makes: its own size, then what its enlarger reaches."""
    native = manifest.config.get("image_size")
    if manifest.kind != "shell_dit" or not isinstance(native, int):
        return []
    sides = [native]
    enlarger = folder / "upsampler"
    if (enlarger / artifacts.MANIFEST_NAME).is_file():
        scale = artifacts.read_manifest(enlarger, verify=False).config.get("scale", 2)
        while isinstance(scale, int) and scale > 1 and sides[-1] * scale <= native * _MAX_ENLARGEMENT:
            sides.append(sides[-1] * scale)
    return [[side, side] for side in sides]


def _card(folder: Path) -> str:
    """The card's text, which the page shows as plain text."""
    try:
        return (folder / "card.md").read_text(encoding="utf-8")[:20_000]
    except (OSError, UnicodeDecodeError):
        return ""


def model_named(name: str) -> Path:
    """The folder of an installed model by the name it is listed under; :class:`InputError` for any other."""
    found = artifacts.available().get(name)
    if found is None:
        raise InputError("there is no such model; see the models page")
    return found
