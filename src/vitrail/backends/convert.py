"""Tells what a foreign file or folder is, converts it and writes a model folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.backends import diffusers_vq, taming, taming_prior
from vitrail.backends.checkpoints import SUFFIXES, Checkpoint, about, read_checkpoint
from vitrail.backends.configs import read_json, read_yaml
from vitrail.backends.conversion import Converted
from vitrail.backends.hostile_names import refuse_code
from vitrail.errors import ArtifactError, InputError
from vitrail.files import atomic_folder, sha256_of, shown
from vitrail.store.artifacts import save
from vitrail.store.weights import StorageType

__all__ = ["UNKNOWN_LICENCE", "Source", "convert", "write"]

READ_OFF = "read off the shapes of the weights"
UNKNOWN_LICENCE = "not stated by the file; ask whoever made it"

_CODE = {
    ".py", ".pyc", ".pyo", ".pyd", ".pyw", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd",
    ".ps1", ".js", ".html", ".jar",
}  # fmt: skip
_MAX_ENTRIES = 1000
_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """A foreign model, converted: the checkpoint it was read from, its configuration file, and the result."""

    checkpoint: Checkpoint
    config: Path | None
    model: Converted


def convert(source: Path | str, config: Path | str | None = None) -> Source:
    """Read and convert a checkpoint, or a folder that holds one.

    source: a file of taming-transformers or latent-diffusion (``.ckpt`` and its kin, ``.safetensors``), a run
    folder of theirs (``checkpoints/last.ckpt`` and ``configs/``), or a folder of diffusers with
    ``config.json``.
    config: the YAML (or JSON) file of a single checkpoint; by default the one of the same name beside it.

    Raises :class:`ArtifactError` with one line for whatever cannot be converted exactly.
    """
    path = Path(source)
    given = None if config is None else Path(config)
    if path.is_dir():
        refuse_code(path, _CODE, _MAX_ENTRIES, "the checkpoint")
        path, found = _within(path)
        if given is not None and found is not None and found.name == "config.json":
            raise InputError(
                f"a folder of diffusers has its own config.json; leave --config {shown(given)} out"
            )
        given = given or found
    elif given is None:
        given = _beside(path)
    settings = None
    if given is not None:
        settings = read_json(given) if given.suffix.lower() == ".json" else read_yaml(given)
    checkpoint = read_checkpoint(path)
    try:
        return Source(checkpoint, given, _converted(checkpoint.tensors, settings))
    except ArtifactError as error:
        raise about(path, error) from None


def _converted(tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None) -> Converted:
    if tensors and all(name.startswith("module.") for name in tensors):  # DataParallel's prefix
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if settings is not None and "_class_name" in settings:
        return diffusers_vq.autoencoder(tensors, settings)
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        raise ArtifactError("has diffusers' names of weights; give its config.json with --config")
    if any(name.startswith("model.diffusion_model.") for name in tensors):
        raise ArtifactError(
            "holds a whole diffusion model, which is used as it is (--model FILE); only autoencoders and "
            "token transformers convert"
        )
    section = None if settings is None else taming.model_section(settings)
    if taming_prior.is_prior(tensors):
        return taming_prior.prior(tensors, section)
    return taming.autoencoder(tensors, section)


def write(
    source: Source,
    folder: Path | str,
    *,
    name: str | None = None,
    licence: str = UNKNOWN_LICENCE,
    overwrite: bool = False,
) -> Path:
    """Write a converted model as a model folder, its parts as subfolders; it appears whole or not at all.

    Weights that were float16 stay so; all others are float32. Raises :class:`ArtifactError` for weights
    that are not finite, :class:`~vitrail.errors.StorageError` where there is no room or the folder exists.
    """
    target = Path(folder).absolute()
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", target.name).strip("-._")[:100] or "model"
    needed = 4 * sum(value.numel() for value in source.checkpoint.tensors.values())
    with atomic_folder(target, overwrite=overwrite, needed=needed) as staged:
        whole = staged / "whole"
        _save(whole, source.model, name, licence, _card(source, name))
        for part, model in source.model.parts.items():
            _save(whole / part, model, f"{name[:80]}-{part}", licence, _card(source, name, part))
        for entry in whole.iterdir():
            os.rename(entry, staged / entry.name)
        whole.rmdir()
    return target


def _save(folder: Path, model: Converted, name: str, licence: str, card: str) -> None:
    def storage(weight: str, _: Tensor) -> StorageType:
        return "float16" if model.tensors[weight].dtype == torch.float16 else "float32"

    extras = {"card.md": card}
    if model.styles:
        extras["styles.json"] = json.dumps(model.styles)
    save(
        folder,
        kind=model.kind,
        name=name,
        config=model.config.model_dump(mode="json", exclude={"kind"}),
        tensors=model.tensors,
        licence=licence,
        storage=storage,
        extra_files=extras,
    )


def _card(source: Source, name: str, part: str | None = None) -> str:
    checkpoint, model = source.checkpoint, source.model
    shape = model if part is None else model.parts[part]
    lines = [
        f"# {name}" + (f", {part}" if part else ""),
        "",
        f"Converted from `{shown(checkpoint.path.name)}`: {shape.what}.",
        "",
        f"- SHA-256 of that file: {sha256_of(checkpoint.path)}",
        f"- its configuration: {shown(source.config.name) if source.config else READ_OFF}",
        f"- read as: {checkpoint.container}"
        + (f", weights under `{checkpoint.place}`" if checkpoint.place else ""),
        *(f"- left behind: {line}" for line in model.left),
    ]
    if checkpoint.foreign:
        lines.append(f"- not built: {', '.join(checkpoint.foreign[:10])}")
    return "\n".join(lines) + "\n"


# -- finding the files ---------------------------------------------------------------------------------------


def _within(folder: Path) -> tuple[Path, Path | None]:
    """The checkpoint of a folder, and its configuration."""
    place = shown(folder)
    if (folder / "artifact.json").exists():
        raise InputError(f"{place} is a model of vitrail's already; give it to --model")
    if (folder / "model_index.json").exists():
        raise ArtifactError(
            f"{place} is a whole pipeline of diffusers; give its subfolder vqvae, vae or movq "
            "(Stable Diffusion needs no converting: --model takes the folder)"
        )
    if (folder / "config.json").is_file():
        for name in _DIFFUSERS:
            if (folder / name).is_file():
                return folder / name, folder / "config.json"
        raise ArtifactError(f"{place} has a config.json, but none of {', '.join(_DIFFUSERS)}")
    if (folder / "checkpoints" / "last.ckpt").is_file():
        configs = _files(folder / "configs", (".yaml", ".yml")) or _files(folder, (".yaml", ".yml"))
        projects = [
            path for path in configs if "project" in path.name or path.name == "model.yaml"
        ] or configs
        return folder / "checkpoints" / "last.ckpt", sorted(projects)[-1] if projects else None
    files, configs = _files(folder, SUFFIXES), _files(folder, (".yaml", ".yml"))
    if len(files) != 1 or len(configs) > 1:
        raise ArtifactError(
            f"{place} holds {len(files)} checkpoints and {len(configs)} YAML files; give one checkpoint, and "
            f"its configuration with --config"
        )
    return files[0], configs[0] if configs else None


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())


def _beside(path: Path) -> Path | None:
    if path.name in _DIFFUSERS and (path.parent / "config.json").is_file():
        return path.parent / "config.json"
    for suffix in (".yaml", ".yml"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    return None
