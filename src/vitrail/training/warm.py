"""First weights from an earlier model: a model folder, or the folder of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import CheckpointError
from vitrail.files import shown
from vitrail.store import artifacts
from vitrail.training import checkpoint

__all__ = ["read_weights", "start_from"]


def read_weights(source: str) -> dict[str, Tensor]:
    """Return the averaged weights of ``source``: a run folder, a model folder, or the name of an installed
    model.

    Raises :class:`CheckpointError` or :class:`ArtifactError` if there is nothing whole to read.
    """
    folder = Path(source).expanduser()
    if (folder / "checkpoints").is_dir():
        loaded = checkpoint.load_latest(folder / "checkpoints")
        if loaded is None:
            raise CheckpointError(
                f"{shown(folder)} has no checkpoint yet; wait for one or give another folder"
            )
        return {key.partition("/")[2]: value for key, value in loaded.tensors["average"].items()}
    return artifacts.load(artifacts.find(source)).tensors


@torch.no_grad()
def start_from(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Copy every tensor of ``weights`` that has the same name and shape in ``model``; returns a line with
    counts.

    Learned positions (1, side^2, W) of a model for another picture size are resampled to this one's grid
    (Dosovitskiy et al., arXiv:2010.11929, section 3.2), so training can start small and go on large.
    A network that gained transformer blocks computes what the old one did: the output layers of blocks
    ("blocks.N.") that the old one lacks are set to zero (Net2Net, arXiv:1511.05641). A quantizer that gained
    channels behind the old ones keeps those, and the new ones count nothing at first. Raises
    :class:`CheckpointError` if nothing fits.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    weights = {name: _on_grid_of(own.get(name), name, value) for name, value in weights.items()}
    weights = {name: _with_channels_of(own.get(name), name, value) for name, value in weights.items()}
    fitting = [name for name, value in weights.items() if name in own and own[name].shape == value.shape]
    if not fitting:
        raise CheckpointError(
            f"warm start: none of the {len(weights)} tensors has a name and shape of this model; "
            "give weights of the same kind, or leave run.warm_start out"
        )
    for name in fitting:
        own[name].copy_(weights[name])
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    grown = 0
    for name, value in own.items():
        parts = name.split(".")
        new = parts[0] == "blocks" and depth > 0 and parts[1].isdigit() and int(parts[1]) >= depth
        if new and name.split(".", 2)[2].rpartition(".")[0] in ("attention.out", "mlp.2"):
            value.zero_()
            grown += 1
    line = f"warm start: {len(fitting)} of {len(own)} tensors taken over"
    if grown:
        line += f", blocks from {depth} on begin as the identity"
    left = sorted(own.keys() - set(fitting))
    return line + (f"; begun afresh: {', '.join(left[:4])}{', ...' if len(left) > 4 else ''}" if left else "")


def _on_grid_of(own: Tensor | None, name: str, value: Tensor) -> Tensor:
    """Return learned positions ``value`` on the grid of ``own``; anything else as it is."""
    if name != "position" or own is None or own.shape == value.shape or own.shape[2] != value.shape[2]:
        return value
    old, new = (round(tensor.shape[1] ** 0.5) for tensor in (value, own))
    grid = value.float().transpose(1, 2).reshape(1, -1, old, old)
    resampled = functional.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    return resampled.flatten(2).transpose(1, 2)


def _with_channels_of(own: Tensor | None, name: str, value: Tensor) -> Tensor:
    """Return a quantizer's projection ``value`` with the further channels of ``own``: those of the way in as
    they are there, those of the way out zero. Anything else as it is.
    """
    way = name.rpartition(".")[0].rpartition(".")[2]
    axis = {"project_in": 0, "project_out": 1}.get(way)
    if own is None or axis is None or own.ndim != value.ndim or axis >= value.ndim:
        return value
    old, new = list(value.shape), list(own.shape)
    more = new[axis] - old[axis]
    if more <= 0 or new[:axis] + new[axis + 1 :] != old[:axis] + old[axis + 1 :]:
        return value
    fresh = own.detach().to(value.dtype).narrow(axis, old[axis], more)
    return torch.cat([value, fresh if way == "project_in" else torch.zeros_like(fresh)], axis)
