"""What was probably meant by a path at which no model of vitrail's is: messages, one line each."""

from __future__ import annotations

from pathlib import Path

from vitrail.files import shown

__all__ = ["MANIFEST_NAME", "checkpoint_alone", "no_model"]

MANIFEST_NAME = "artifact.json"
_PIPELINE_NAME = "model_index.json"
_CHECKPOINTS = (".safetensors", ".ckpt")
_MOST = 1000


def no_model(folder: Path) -> str:
    """Say of a folder without a manifest what it is instead, or which model lies in it or around it."""
    place = shown(folder)
    if (folder / _PIPELINE_NAME).is_file():
        return f"{place} is a pipeline of diffusers, which cannot be used for this; give a model of vitrail's"
    message = f"{place} is not a model folder: it has no {MANIFEST_NAME}"
    if (folder.parent / _PIPELINE_NAME).is_file():
        return f"{message}; it is a part of {shown(folder.parent)}: give the whole"
    try:
        inside = sorted(folder.iterdir())[:_MOST]
        models = [
            path for path in inside if any((path / n).is_file() for n in (MANIFEST_NAME, _PIPELINE_NAME))
        ]
        models += [path for path in inside if path.suffix.lower() in _CHECKPOINTS and path.is_file()]
    except OSError:
        return message
    return f"{message}; did you mean {shown(models[0])}?" if models else message


def checkpoint_alone(file: Path) -> str | None:
    """Say of a checkpoint what makes a model of it; None for any other file."""
    if file.suffix.lower() not in _CHECKPOINTS:
        return None
    return (
        f"{shown(file)} is a checkpoint, which cannot be used for this as it is; vitrail models convert "
        "makes a model of an autoencoder or a token transformer"
    )
