"""What ``vitrail models`` says of models that are not vitrail's own folders: checkpoints, LoRAs and such."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import ArtifactError, InputError
from vitrail.files import shown

if TYPE_CHECKING:
    from vitrail.store.model_folders import Found, Kind

__all__ = ["found_file", "rows", "show_file"]


def rows() -> list[str]:
    """One line for each model file of vitrail's own and of other programs' folders."""
    from vitrail.store.model_folders import listing

    return [
        f"{shown(item.name, 60):<20} {item.kind:<17} {_size(item.path) / 1e6:7.1f} MB  {shown(item.path)}"
        for item in listing()
    ]


def found_file(name: str) -> Found | None:
    """The model file, or folder of diffusers, of that name or at that path; None where there is none.

    Raises :class:`InputError` where several are called so.
    """
    from vitrail.store import model_folders
    from vitrail.store.model_folders import Found

    path = Path(name).expanduser()
    try:
        if path.is_file():
            return Found(path.stem, _kind_of(path), path)
        if (path / "model_index.json").is_file():
            return Found(path.name, "checkpoint", path)
    except (OSError, ValueError):
        return None
    items = model_folders.listing()
    for kind in dict.fromkeys(item.kind for item in items):
        if any(name.casefold() in (item.name.casefold(), item.short.casefold()) for item in items):
            try:
                return Found(name, kind, model_folders.find(kind, name))
            except InputError as error:
                if "several files" in str(error):
                    raise
    return None


def show_file(found: Found) -> int:
    """Print what a foreign model is, without loading it; returns 0."""
    from vitrail.store.catalogue import CATALOGUE, HubFile
    from vitrail.store.model_hashes import file_sha256, lora_hash

    whole = found.path.is_file()
    lines = {
        "name": shown(found.name),
        "kind": found.kind,
        "place": shown(found.path, 400),
        "size": f"{_size(found.path)} bytes",
        "format": found.path.suffix.removeprefix(".") if whole else "folder of diffusers",
    }
    if whole:
        if found.path.suffix.lower() == ".safetensors":
            lines["tensors"] = _tensors(found.path)
        lines["sha256"] = digest = file_sha256(found.path)
        short = lora_hash(found.path) if found.kind == "lora" else digest[:10]
        lines["hash"] = f"{short} (as A1111 writes it)"
        for entry in CATALOGUE.values():
            if any(isinstance(source, HubFile) and source.sha256 == digest for source in entry.sources):
                lines["known as"] = f"{entry.name}: {entry.english}; licence {entry.licence}"
    for label, value in lines.items():
        print(f"{label:<9} {value}")
    return 0


def _size(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError:  # gone since it was found, or not ours to read
        return 0


_NAMES: tuple[tuple[str, Kind], ...] = (
    (r"lora_|lycoris_|.*(\.lora_[AB]\.|_lora\.|\.hada_w|\.lokr_w)", "lora"),
    (r"control_model\.|controlnet_|input_hint_block\.", "controlnet"),
    (r"string_to_param|emb_params|clip_[lg]$", "embedding"),
    (r"model\.diffusion_model\.", "checkpoint"),
    (r"(first_stage_model\.)?(encoder|decoder)\.", "vae"),
)


def _kind_of(path: Path) -> Kind:
    """What a file is, by its tensors' names; a checkpoint where they cannot be told without reading it."""
    from vitrail.store.model_folders import ENDINGS

    if path.suffix.lower() not in ENDINGS:
        raise ArtifactError(f"{shown(path)} is not a model; allowed are {', '.join(ENDINGS)} files")
    names = _header(path) if path.suffix.lower() == ".safetensors" else {}
    return next(
        (kind for pattern, kind in _NAMES if any(re.match(pattern, name) for name in names)), "checkpoint"
    )


def _tensors(path: Path) -> str:
    """How many tensors of which types a safetensors file claims."""
    kinds = list(_header(path).values())
    types = ", ".join(f"{kinds.count(kind)} {shown(kind, 10)}" for kind in sorted(set(kinds))[:6])
    return f"{len(kinds)} ({types})"


def _header(path: Path) -> dict[str, str]:
    """Names and types of a safetensors file's tensors."""
    import json
    import struct

    from vitrail.store.weights import check_safetensors

    check_safetensors(path)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        return {name: str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"the header of {shown(path)} cannot be read; the file is damaged") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {shown(path)}: {error.strerror}") from error
