"""Models as folders: save, find and load them, strictly and without running anything they hold.

::

    my-model/
      artifact.json       kind, configuration, licence, figures, SHA-256 of each file (:class:`Manifest`)
      model.safetensors   the weights
      recipe.toml, card.md, ...   further files, each listed in artifact.json

A folder appears whole or not at all. A listed file that is missing or differs, an unknown key, a tensor of a
shape or type that cannot be, and any file that could carry code make loading fail with one
:class:`~vitrail.errors.ArtifactError` line.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from vitrail.errors import ArtifactError, InputError
from vitrail.files import atomic_folder, atomic_write, sha256_of, shown
from vitrail.schema import SamplingDefaults, parse
from vitrail.store.misplaced import MANIFEST_NAME as MANIFEST_NAME
from vitrail.store.misplaced import checkpoint_alone, no_model

if TYPE_CHECKING:  # what is there can be listed without torch
    from torch import Tensor, nn

    from vitrail.store.weights import Storage

__all__ = [
    "Artifact",
    "FileEntry",
    "Manifest",
    "Metric",
    "available",
    "find",
    "find_recorded",
    "home",
    "load",
    "public_name",
    "read_manifest",
    "save",
    "stamp",
]

WEIGHTS_NAME = "model.safetensors"

HASHED_BY_DEFAULT = 100 << 20
"""Files up to this size are hashed at every load."""

_MAX_MANIFEST_BYTES = 1 << 20
_MAX_ENTRIES = 1000
_CODE = {
    ".py",
    ".pyc",
    ".pyo",
    ".pyd",
    ".pyw",
    ".so",
    ".dll",
    ".dylib",
    ".exe",
    ".sh",
    ".bat",
    ".js",
    ".html",
}
_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib"}

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class FileEntry(_Strict):
    """Size in bytes and SHA-256 of one file of the folder."""

    size: int = Field(ge=0)
    sha256: Sha256


class Metric(_Strict):
    """One figure of the model's card: value, number of samples, 95 % interval, how it was taken."""

    value: float
    n: int = Field(ge=1)
    ci95: tuple[float, float] | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)


class Manifest(_Strict):
    """The content of ``artifact.json``, format 1."""

    format: Literal[1] = 1
    kind: Word
    name: Word
    config: dict[str, JsonValue]
    sampling: SamplingDefaults | None = None
    licence: Line
    data_manifest_sha256: Sha256 | None = None
    metrics: dict[Word, Metric] = Field(default_factory=dict)
    made_with: dict[Word, Word] = Field(default_factory=dict)
    created: str = Field(max_length=40)
    files: dict[Word, FileEntry]


@dataclass(frozen=True)
class Artifact:
    """A loaded model folder: what it says of itself, and its weights in float32 on the CPU."""

    folder: Path
    manifest: Manifest
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def kind(self) -> str:
        """Which network it is, for ``models.registry.build``."""
        return self.manifest.kind

    @property
    def name(self) -> str:
        """The model's name, as pictures record it."""
        return self.manifest.name

    @property
    def config(self) -> dict[str, Any]:
        """The network's configuration."""
        return dict(self.manifest.config)

    @property
    def sha256(self) -> str:
        """SHA-256 of ``model.safetensors``; other programs call its first ten digits the model hash."""
        return self.manifest.files[WEIGHTS_NAME].sha256

    def file(self, name: str) -> Path:
        """Path of a further file of the folder; :class:`ArtifactError` unless the manifest lists it."""
        if name not in self.manifest.files:
            there = ", ".join(sorted(self.manifest.files))
            raise ArtifactError(f"model {self.name} has no file {shown(name)}; it has {there}")
        return self.folder / name

    def fill(self, network: nn.Module, prefix: str = "") -> None:
        """Put the weights whose names start with ``prefix`` into ``network``; names and shapes must agree.

        Raises :class:`ArtifactError` that names what is missing, unexpected or of another shape. The network
        is untouched then.
        """
        own = network.state_dict()
        given = {
            name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)
        }
        _same_names(self.name, set(own), set(given))
        for name, value in given.items():
            if value.shape != own[name].shape:
                raise ArtifactError(
                    f"model {self.name}: {shown(name)} has shape {tuple(value.shape)}, "
                    f"its configuration asks for {tuple(own[name].shape)}; the folder is inconsistent"
                )
        network.load_state_dict(given, strict=True)


def save(
    folder: Path | str,
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    licence: str,
    storage: Storage = "float32",
    sampling: SamplingDefaults | None = None,
    data_manifest_sha256: str | None = None,
    metrics: Mapping[str, Metric | Mapping[str, Any]] | None = None,
    extra_files: Mapping[str, bytes | str | Path] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a model folder: staged beside ``folder``, then renamed, so that it is never seen half written.

    Parameters
    ----------
    tensors: the weights, such as ``network.state_dict()``. All must be finite.
    storage: ``float32``, ``float16``, ``int8`` (a scale for each row; small tensors stay float16), or a
        function of (name, tensor) that says which. Loading always gives float32 back.
    config, sampling, licence, data_manifest_sha256, metrics: see :class:`Manifest`.
    extra_files: further files by name (``recipe.toml``, ``card.md``, ...): their content, or a path to copy;
        of a model folder (``tokenizer``) what its own ``artifact.json`` lists is copied, as a subfolder.
    overwrite: replace an existing folder.

    Raises :class:`ArtifactError` (a value that the format refuses, a NaN among the weights) or
    :class:`~vitrail.errors.StorageError` (no room, no permission, the folder exists).
    """
    from vitrail.store.weights import pack, write_weights

    packed = pack(tensors, storage)
    extras = dict(extra_files or {})
    parts = {name: Path(v) for name, v in extras.items() if isinstance(v, Path) and v.is_dir()}
    needed = sum(value.numel() * value.element_size() for value in packed.values())
    needed += sum(v.stat().st_size if isinstance(v, Path) else len(v) for v in extras.values())
    with atomic_folder(folder, overwrite=overwrite, needed=needed) as staged:
        write_weights(staged / WEIGHTS_NAME, packed)
        for filename, content in extras.items():
            _check_name(filename)
            if filename in parts:
                _copy_model(parts[filename], staged / filename)
                continue
            data = content.read_bytes() if isinstance(content, Path) else content
            atomic_write(staged / filename, data)
        listed = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(staged.iterdir())
            if path.name not in parts
        }
        manifest = _checked(
            "this model cannot be saved",
            {
                "kind": kind,
                "name": name,
                "config": dict(config),
                "sampling": sampling,
                "licence": licence,
                "data_manifest_sha256": data_manifest_sha256,
                "metrics": dict(metrics or {}),
                "made_with": {"vitrail": _version("vitrail"), "torch": _version("torch")},
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": listed,
            },
        )
        atomic_write(staged / MANIFEST_NAME, manifest.model_dump_json(indent=2, exclude_none=True) + "\n")
    return manifest


def read_manifest(folder: Path | str, *, verify: bool | None = None) -> Manifest:
    """Read and check ``artifact.json`` and the files it lists, without reading the weights.

    ``verify``: hash every file (``True``), none (``False``), or those up to :data:`HASHED_BY_DEFAULT` bytes
    (``None``). Sizes are always compared. Raises :class:`ArtifactError`.
    """
    root = Path(folder)
    manifest = _manifest(root)
    for name, entry in manifest.files.items():
        _check_file(root / name, entry, hashed=entry.size <= HASHED_BY_DEFAULT if verify is None else verify)
    return manifest


def load(folder: Path | str, *, verify: bool | None = None) -> Artifact:
    """Load a model folder; weights come back as float32 (integer tensors as they are), on the CPU.

    ``verify`` as in :func:`read_manifest`. Raises :class:`ArtifactError` with one line for anything that is
    not exactly as ``artifact.json`` says.
    """
    from vitrail.store.weights import read_weights, unpack

    root = Path(folder)
    manifest = read_manifest(root, verify=False)
    for name, entry in manifest.files.items():
        if name != WEIGHTS_NAME and (verify or (verify is None and entry.size <= HASHED_BY_DEFAULT)):
            _check_file(root / name, entry, hashed=True)
    entry = manifest.files[WEIGHTS_NAME]
    hashed = verify or (verify is None and entry.size <= HASHED_BY_DEFAULT)
    if hashed and entry.size > HASHED_BY_DEFAULT:
        _check_file(root / WEIGHTS_NAME, entry, hashed=True)
    # Small files are read once, and what was hashed is what is used.
    data = _bytes(root / WEIGHTS_NAME, entry, bool(hashed)) if entry.size <= HASHED_BY_DEFAULT else None
    return Artifact(
        root, manifest, unpack(read_weights(root / WEIGHTS_NAME, data), shown(root / WEIGHTS_NAME))
    )


def home() -> Path:
    """vitrail's folder for models: ``$VITRAIL_HOME/models``, or ``~/.local/share/vitrail/models``."""
    given = os.environ.get("VITRAIL_HOME")
    return (Path(given).expanduser() if given else Path.home() / ".local" / "share" / "vitrail") / "models"


def available() -> dict[str, Path]:
    """Every model there is, by name: the shipped ones, ``default`` first, then those under :func:`home`."""
    found: dict[str, Path] = {}
    for root in (_shipped(), home()):
        if not root.is_dir():
            continue
        for folder in sorted(root.iterdir(), key=lambda folder: (folder.name != "default", folder.name)):
            if folder.name not in found and (folder / MANIFEST_NAME).is_file():
                found[folder.name] = folder
    return found


def find(name_or_path: str | Path = "default") -> Path:
    """The folder of a model: ``default``, a name under :func:`home`, or a path.

    Raises :class:`ArtifactError` that lists what there is, with the nearest name.
    """
    wanted = str(name_or_path)
    models = available()
    if wanted in models:
        return models[wanted]
    try:
        path = Path(wanted).expanduser()
        if wanted and path.is_dir():
            return path
        file = bool(wanted) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        file = False  # no path at all: an impossible name gets the message below
    if file and (message := checkpoint_alone(path)) is not None:
        raise ArtifactError(message)
    if wanted == "default":
        raise ArtifactError(
            "this installation has no default model; train one with vitrail train, or give --model"
        )
    close = difflib.get_close_matches(wanted[:100], models, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    there = ", ".join(models) or "none"
    if file:
        raise ArtifactError(
            f"{shown(wanted, 80)} is not a model; there are: {shown(there, 300)} (or give a model's folder, "
            "or a checkpoint: .safetensors, .ckpt)"
        )
    raise ArtifactError(
        f"no model {shown(wanted, 80)}{hint}; there are: {shown(there, 300)} (or give a path)"
    )


def public_name(asked: str | Path, own: str) -> str:
    """What a picture's record may call the model that was found as ``asked`` and calls itself ``own``.

    The name of an installed model, else its own name: a path says where somebody keeps their files.
    """
    return str(asked) if str(asked) in available() else own


def find_recorded(name: str, own: str, sha256: str) -> str:
    """The name of the installed model that a record names by ``name``, ``own`` and the hash of its weights.

    The same weights go first, whatever they are called; then the same name, then the same name of its own
    (both may be another version). Raises :class:`ArtifactError` that says what to do where there is none.
    """
    installed: dict[str, Manifest] = {}
    for model, folder in available().items():
        try:
            installed[model] = read_manifest(folder, verify=False)
        except ArtifactError:
            continue  # a damaged model is told when somebody asks for it
    same = [model for model, manifest in installed.items() if manifest.files[WEIGHTS_NAME].sha256 == sha256]
    if same:
        return name if name in same else same[0]
    if name in installed:
        return name
    for model, manifest in installed.items():
        if manifest.name == own:
            return model
    raise ArtifactError(
        f"the picture was made with model {shown(own, 80)} (SHA-256 {sha256[:12]}...), which is not "
        "installed here; give the folder of that model with --model"
    )


# -- checks --------------------------------------------------------------------------------------------------


def _shipped() -> Path:
    return Path(str(importlib.resources.files("vitrail"))) / "shipped"


def _manifest(root: Path) -> Manifest:
    place = shown(root)
    if not root.is_dir():
        raise ArtifactError(f"there is no folder {place}; give the folder of a model")
    path = root / MANIFEST_NAME
    if not _is_file(path):
        raise ArtifactError(no_model(root))
    _refuse_code(root)
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ArtifactError(
            f"{shown(path)} is larger than {_MAX_MANIFEST_BYTES} bytes; it is not a model's manifest"
        )
    try:
        manifest = _checked(f"{shown(path)} is not valid", path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(path)}: {error.strerror}") from error
    for name in manifest.files:
        _check_name(name)
    if WEIGHTS_NAME not in manifest.files:
        raise ArtifactError(f"{shown(path)} lists no {WEIGHTS_NAME}; the folder is incomplete")
    return manifest


def stamp(folder: Path) -> tuple[Path, int]:
    """What tells whether a model folder has changed: where it is, and when its manifest was written.

    Raises :class:`ArtifactError` for a folder that is none.
    """
    try:
        return folder.resolve(), (folder / MANIFEST_NAME).stat().st_mtime_ns
    except OSError as error:
        raise ArtifactError(no_model(folder)) from error


def _checked(what: str, data: Mapping[str, Any] | bytes) -> Manifest:
    try:
        return parse(Manifest, data, max_bytes=_MAX_MANIFEST_BYTES)
    except InputError as error:
        raise ArtifactError(f"{what}: {error}") from error


def _copy_model(source: Path, target: Path) -> None:
    target.mkdir()
    for name in (*read_manifest(source, verify=False).files, MANIFEST_NAME):
        atomic_write(target / name, (source / name).read_bytes())


def _entries(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        yield from (Path(folder, name) for name in [*folders, *names])


def _refuse_code(root: Path) -> None:
    for count, path in enumerate(_entries(root)):
        suffix = path.suffix.lower()
        if suffix in _CODE:
            raise ArtifactError(
                f"{shown(path)} could carry code; a model folder holds none: remove that file"
            )
        if suffix in _PICKLES:
            raise ArtifactError(
                f"{shown(path)} could run code when read; only safetensors is loaded: remove it"
            )
        if count >= _MAX_ENTRIES:
            raise ArtifactError(
                f"{shown(root)} holds more than {_MAX_ENTRIES} files; it is not a model folder"
            )


def _check_name(name: str) -> None:
    suffix = Path(name).suffix.lower()
    if Path(name).name != name or name in ("", ".", "..", MANIFEST_NAME) or suffix in _CODE | _PICKLES:
        raise ArtifactError(f"a model folder cannot hold a file {shown(name)}; use a plain name, no code")


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _check_file(path: Path, entry: FileEntry, *, hashed: bool) -> None:
    if not _is_file(path):
        raise ArtifactError(f"{shown(path)} is missing; the model folder is incomplete: get it again")
    size = path.stat().st_size
    if size != entry.size:
        raise ArtifactError(
            f"{shown(path)} has {size} bytes instead of {entry.size}; it is damaged: get it again"
        )
    try:
        if hashed and sha256_of(path) != entry.sha256:
            raise ArtifactError(
                f"{shown(path)} differs from its SHA-256; it is damaged or changed: get it again"
            )
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(path)}: {error.strerror}") from error


def _bytes(path: Path, entry: FileEntry, hashed: bool) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(path)}: {error.strerror}") from error
    if len(data) != entry.size or (hashed and hashlib.sha256(data).hexdigest() != entry.sha256):
        raise ArtifactError(f"{shown(path)} differs from its SHA-256; it is damaged or changed: get it again")
    return data


def _same_names(model: str, wanted: set[str], given: set[str]) -> None:
    missing, unexpected = sorted(wanted - given), sorted(given - wanted)
    if not missing and not unexpected:
        return
    parts = [
        f"{len(names)} {what} ({', '.join(shown(name, 60) for name in names[:3])})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    raise ArtifactError(f"model {model}: its tensors do not fit its configuration: {', '.join(parts)}")


def _version(package: str) -> str:
    if package == "torch":
        import torch

        return str(torch.__version__).replace("+", "-")
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
