"""MI-GAN: from its ONNX file to plain PyTorch.

Sargsyan et al., "MI-GAN", ICCV 2023. The file holds a whole pipeline around the network; only the network's
weights are taken. Names of weights say where they belong, the fixed noise (folded into nameless constants) is
found by following the graph, and the smoothing filters are checked against those of
:mod:`vitrail.models.migan`, which has them built in.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from vitrail.backends.onnx_weights import Array, Graph, Node, read_graph
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.kernels import accelerate
from vitrail.models.migan import MIGAN, MIGANConfig
from vitrail.store import artifacts

__all__ = ["from_onnx", "load"]

_PREFIX = "model."
_LAYER = re.compile(r"model\.(synthesis\.b[0-9]{1,4}\.conv[12])\.conv2\.weight")
_TAPS = np.array([1.0, 3.0, 3.0, 1.0])


def from_onnx(data: bytes) -> tuple[MIGANConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, under the names of :class:`MIGAN`, of an ONNX file.

    Raises :class:`~vitrail.errors.DataError` for a damaged file and :class:`ArtifactError` for another
    network.
    """
    graph = read_graph(data)
    tensors: dict[str, Array] = {}
    for name, array in graph.weights.items():
        if not name.startswith(_PREFIX):
            continue
        if name.endswith(".filter.weight"):
            _check_filter(name, array, halving=".downsample." in name)
        elif not name.endswith(".filter_const"):
            tensors[name.removeprefix(_PREFIX)] = array
    config = _config(tensors)
    tensors |= _noise(graph)
    wanted = {name: tuple(value.shape) for name, value in MIGAN(config).state_dict().items()}
    given = {name: array.shape for name, array in tensors.items()}
    if given != wanted:
        other = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
        raise ArtifactError(
            f"{len(other)} weights are not those of a MI-GAN network, such as {shown(other[0], 60)}; it is "
            "another network"
        )
    weights = {}
    for name, array in tensors.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ArtifactError(f"{shown(name, 60)} is not float32 without NaN and infinity; get it again")
        weights[name] = torch.from_numpy(array.copy())
    return config, weights


def _config(tensors: dict[str, Array]) -> MIGANConfig:
    """Read the channels of each size off the layers that make colours."""
    channels: list[int] = []
    while (layer := tensors.get(f"synthesis.b{4 << len(channels)}.torgb.weight")) is not None:
        channels.append(int(layer.shape[1]) if layer.ndim == 4 else 0)
    try:
        return MIGANConfig(channels=tuple(channels))
    except ValidationError:
        raise ArtifactError(
            "the ONNX file holds no MI-GAN network (no layers synthesis.b4.torgb, ...)"
        ) from None


def _noise(graph: Graph) -> dict[str, Array]:
    """The constants that are added behind a layer's mixture of channels, by our names."""
    maker = {output: node for node in graph.nodes for output in node.outputs}
    found: dict[str, Array] = {}
    for node in graph.nodes:
        if node.kind != "Add" or len(node.inputs) != 2:
            continue
        constant = graph.weights.get(node.inputs[1])
        if constant is None or constant.ndim != 2:
            continue
        layer = _layer_before(node, maker)
        if layer is not None:
            found[f"{layer}.noise"] = constant
    return found


def _layer_before(node: Node, maker: dict[str, Node]) -> str | None:
    """Go back along first inputs to the nearest mixture of channels; None if there is none at hand."""
    here: Node | None = node
    for _ in range(8):
        here = maker.get(here.inputs[0]) if here is not None and here.inputs else None
        if here is not None and here.kind == "Conv" and len(here.inputs) >= 2:
            match = _LAYER.fullmatch(here.inputs[1])
            if match:
                return match[1]
    return None


def _check_filter(name: str, array: Array, *, halving: bool) -> None:
    kernel = np.outer(_TAPS, _TAPS) / (64 if halving else 16)
    if array.shape[1:] != (1, 4, 4) or not np.allclose(array, kernel, atol=1e-6):
        raise ArtifactError(f"{shown(name, 60)} is another filter than MI-GAN's (1 3 3 1); it cannot be used")


def load(folder: Path | str, device: torch.device | None = None) -> tuple[MIGAN, artifacts.Artifact]:
    """Return the network of a model folder of kind ``migan``, frozen, on ``device``, and the folder's
    content.

    Raises :class:`ArtifactError` for a damaged folder or another kind.
    """
    artifact = artifacts.load(folder)
    if artifact.kind != "migan":
        raise ArtifactError(
            f"model {artifact.name} is of kind {artifact.kind}; one that repairs photographs is a migan "
            "(vitrail models pull migan)"
        )
    try:
        config = MIGANConfig.model_validate(artifact.config)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(f"model {artifact.name}: configuration does not fit: {where}") from None
    network = MIGAN(config)
    artifact.fill(network)
    # On a CPU by our own kernels: the same numbers but for the order of sums.
    return accelerate(network.eval().requires_grad_(False).to(device or torch.device("cpu"))), artifact
