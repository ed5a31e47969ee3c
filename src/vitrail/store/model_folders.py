"""Model files where other programs keep them: the folders of A1111 and ComfyUI, used in place.

Folders are named in ``VITRAIL_MODEL_FOLDERS`` (several with ``:`` between, ``;`` on Windows) and in
``model_folders.toml`` in vitrail's home::

    folders = ["~/stable-diffusion-webui", "/data/ComfyUI"]

    [kinds]                       # folders of one kind, wherever they are
    lora = ["/data/my-loras"]

A program's folder or its ``models`` folder will do. vitrail's own models folder is always the first.

A name never becomes a path: it is looked up among the files that a scan found, so nothing outside of these
folders can be reached by one. Links that the owner of a folder put there are followed (people keep their
files on other disks), each folder once, so that a circle ends.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.store import artifacts

__all__ = [
    "CONFIG_NAME",
    "ENDINGS",
    "Found",
    "Kind",
    "find",
    "kind_folders",
    "knows",
    "listing",
    "resolve",
    "roots",
]

Kind = Literal["checkpoint", "lora", "vae", "embedding", "upscaler", "controlnet"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CONFIG_NAME = "model_folders.toml"
VARIABLE = "VITRAIL_MODEL_FOLDERS"

_LAYOUT: dict[Kind, tuple[str, ...]] = {
    "checkpoint": ("checkpoints", "diffusers", "Stable-diffusion"),
    "lora": ("loras", "Lora", "LyCORIS"),
    "vae": ("vae", "VAE"),
    "embedding": ("embeddings",),
    "upscaler": ("upscale_models", "ESRGAN", "RealESRGAN"),
    "controlnet": ("controlnet", "ControlNet"),
}
_BESIDE: dict[Kind, tuple[str, ...]] = {"controlnet": ("extensions/sd-webui-controlnet/models",)}
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_FOLDER_MARKS: dict[Kind, str] = {
    "checkpoint": "model_index.json",
    "vae": "config.json",
    "controlnet": "config.json",
}
_MAX_DEPTH = 8
_MAX_ENTRIES = 200_000
_MAX_CONFIG = 1 << 20


@dataclass(frozen=True)
class Found:
    """A model file, or a folder of diffusers.

    name: what it is called: its path within the folder of its kind, with ``/``, without its ending.
    """

    name: str
    kind: Kind
    path: Path

    @property
    def short(self) -> str:
        """The last part of the name, by which other programs call it."""
        return self.name.rpartition("/")[2]


def roots() -> list[Path]:
    """Folders of programs, in order: vitrail's own, the variable's, the file's. They need not exist.

    Raises :class:`~vitrail.errors.InputError` for a damaged file.
    """
    named = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part.strip()]
    folders, _ = _config()
    return list(dict.fromkeys([artifacts.home(), *(_absolute(part) for part in (*named, *folders))]))


def kind_folders(kind: Kind) -> list[Path]:
    """Folders that are there and hold models of one kind, each once."""
    _, kinds = _config()
    candidates: list[Path] = []
    for root in roots():
        for name in _LAYOUT[kind]:
            candidates += [root / name, root / "models" / name]
        candidates += [root / name for name in _BESIDE.get(kind, ())]
    candidates += [_absolute(part) for part in kinds.get(kind, [])]
    found: dict[str, Path] = {}
    for folder in candidates:
        if folder.is_dir():
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def listing(kind: Kind | None = None) -> list[Found]:
    """Models in all folders, by kind and name; all of them for ``None``."""
    found: dict[tuple[Kind, str, str], Found] = {}
    for each in KINDS if kind is None else (kind,):
        for folder in kind_folders(each):
            for path in _scan(folder, each):
                item = Found(_name_of(path, folder), each, path)
                found.setdefault((each, item.name, os.path.realpath(path)), item)
    for item in _vaes_beside() if kind in (None, "vae") else ():
        found.setdefault(("vae", item.name, os.path.realpath(item.path)), item)
    return sorted(
        found.values(), key=lambda item: (KINDS.index(item.kind), item.name.casefold(), str(item.path))
    )


def find(kind: Kind, name: str) -> Path:
    """Return the file (or folder of diffusers) of a name.

    ``name``: the whole name, its last part, either with its ending, in any case; A1111's ``name.safetensors
    [0123456789]`` is read too. Raises :class:`~vitrail.errors.InputError` for a name that is not there, or
    that several files have.
    """
    items = listing(kind)
    hits = _hits(items, name)
    if len(hits) == 1:
        return hits[0].path
    raise InputError(_several(kind, name, hits) if hits else _missing(kind, name, items))


def knows(kind: Kind, name: str) -> bool:
    """Whether :func:`find` would find something of that name, be it several files."""
    return bool(_hits(listing(kind), name))


def _hits(items: Sequence[Found], name: str) -> list[Found]:
    """Those that are called ``name``: by the whole name first, and in its own case."""
    wanted = re.sub(r"\s*\[[0-9a-fA-F]{6,64}\]\s*$", "", name.strip()).replace("\\", "/")
    folds: tuple[Callable[[str], str], ...] = (str, str.casefold)
    for fold in folds:
        for part in ("name", "short"):
            hits = [item for item in items if fold(wanted) in _spellings(fold, item, part)]
            files = {os.path.realpath(item.path): item for item in hits}
            if files:
                return list(files.values())
    return []


def resolve(kind: Kind, name_or_path: str | Path) -> Path:
    """As :func:`find`, for a user at the machine itself: the path of a file or folder will do too.

    Never for names that come over a network. Raises :class:`~vitrail.errors.InputError`.
    """
    try:
        path = Path(name_or_path).expanduser()
        if path.exists() and (path.suffix.lower() in ENDINGS or path.is_dir()):
            return path
        if isinstance(name_or_path, Path):
            raise InputError(f"there is no {_WORDS[kind]} at {shown(path)}")
    except (OSError, RuntimeError) as error:  # too long a name, no home folder
        raise InputError(f"{shown(name_or_path, 80)} is not a path: {shown(error, 60)}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown(name_or_path, 80)} is not a path") from None
    name = str(name_or_path)
    if ("/" in name or path.suffix) and not _hits(listing(kind), name):
        if path.is_file():
            raise InputError(f"{shown(name, 80)} is no {_WORDS[kind]}; use one of {', '.join(ENDINGS)} files")
        if "/" in name or path.suffix.lower() in ENDINGS:
            raise InputError(f"there is no {_WORDS[kind]} at {shown(name, 80)}; give the path of its file")
    return find(kind, name)


# --- scanning -----------------------------------------------------------------------------------------------


def _scan(folder: Path, kind: Kind) -> Iterator[Path]:
    """Find model files below a folder, in the order of their names."""
    mark = _FOLDER_MARKS.get(kind)
    seen: set[str] = set()
    waiting: list[tuple[Path, int]] = [(folder, 0)]
    entries = 0
    while waiting:
        place, depth = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(place))
        except OSError:  # not ours to read; the rest is still of use
            continue
        entries += len(names)
        if entries > _MAX_ENTRIES:
            raise InputError(
                f"{shown(folder)} holds more than {_MAX_ENTRIES} files; name the models' own folder"
            )
        if depth > 0 and mark is not None and mark in names:
            yield place
            continue
        below = []
        for name in names:
            path = place / name
            if name.startswith("."):
                continue
            if path.is_dir():
                below.append((path, depth + 1))
            elif (
                name.lower().endswith(ENDINGS)
                and path.is_file()
                and not (kind == "checkpoint" and _is_vae(name))
            ):
                yield path
        if depth < _MAX_DEPTH:
            waiting += reversed(below)


def _vaes_beside() -> Iterator[Found]:
    """VAEs that lie beside checkpoints, as ``model.vae.pt``."""
    for folder in kind_folders("checkpoint"):
        for path in sorted(folder.glob("*.vae.*")):
            if _is_vae(path.name) and path.is_file():
                yield Found(path.stem, "vae", path)


def _is_vae(name: str) -> bool:
    return name.lower().endswith(tuple(f".vae{ending}" for ending in ENDINGS))


def _name_of(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder).as_posix()
    ending = path.suffix if path.suffix.lower() in ENDINGS else ""
    return relative.removesuffix(ending)


def _spellings(fold: Callable[[str], str], item: Found, part: str) -> tuple[str, ...]:
    name = item.name if part == "name" else item.short
    return tuple(fold(spelling) for spelling in (name, name + item.path.suffix))


# --- messages -----------------------------------------------------------------------------------------------

_WORDS: dict[Kind, str] = {
    "checkpoint": "checkpoint",
    "lora": "LoRA",
    "vae": "VAE",
    "embedding": "embedding",
    "upscaler": "upscaler",
    "controlnet": "ControlNet",
}


def _several(kind: Kind, name: str, items: list[Found]) -> str:
    names = ", ".join(shown(item.name + item.path.suffix, 60) for item in items[:4])
    return f"several files are called {shown(name, 60)} ({_WORDS[kind]}): {names}; give the whole name"


def _missing(kind: Kind, name: str, items: list[Found]) -> str:
    message = f"no {_WORDS[kind]} is called {shown(name, 60)!r}"
    near = difflib.get_close_matches(name[:200], [item.short for item in items][:2000], n=3, cutoff=0.5)
    if near:
        return f"{message}; there is {', '.join(shown(item, 60) for item in near)}"
    if items:
        return f"{message}; there are {len(items)}, such as {shown(items[0].name, 60)}"
    place = shown(roots()[0] / _LAYOUT[kind][0], 80)
    return f"{message}; put its file into {place}, or name folders of models in {VARIABLE} or {CONFIG_NAME}"


# --- settings -----------------------------------------------------------------------------------------------


def _absolute(part: str) -> Path:
    return Path(os.path.abspath(Path(part.strip()).expanduser()))


def _config() -> tuple[list[str], dict[str, list[str]]]:
    """Read the folders of the file: of programs, and of single kinds."""
    path = artifacts.home().parent / CONFIG_NAME
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_CONFIG + 1)
    except FileNotFoundError:
        return [], {}
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror}") from None
    try:
        if len(text) > _MAX_CONFIG:
            raise ValueError("it is too large")
        value = tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)} is not TOML: {shown(error, 100)}") from None
    kinds = value.pop("kinds", {})
    folders = value.pop("folders", [])
    if value:
        raise InputError(f"{shown(path)} has {shown(next(iter(value)), 40)}; known are folders and [kinds]")
    if not isinstance(kinds, dict) or (unknown := [key for key in kinds if key not in KINDS]):
        first = shown(unknown[0], 40) if isinstance(kinds, dict) else "no table"
        raise InputError(f"{shown(path)}: [kinds] has {first}; known are {', '.join(KINDS)}")
    for item in (folders, *kinds.values()):
        if not isinstance(item, list) or not all(isinstance(part, str) and part.strip() for part in item):
            raise InputError(
                f'{shown(path)}: folders are given as a list of paths, such as ["/data/ComfyUI"]'
            )
    return folders, kinds
