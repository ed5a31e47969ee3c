"""Real-ESRGAN: from ncnn's files to plain PyTorch, and pictures of any size through it in tiles.

Wang et al., "Real-ESRGAN", arXiv:2107.10833. The order of the layers in an ncnn file is that of the network's
own code; :func:`from_ncnn` still follows every connection, so that a file that only looks alike is refused.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from vitrail.backends.checkpoints import about, read_checkpoint
from vitrail.backends.ncnn import Layer, read_network
from vitrail.errors import ArtifactError, DataError, InputError, NonFiniteError
from vitrail.files import shown
from vitrail.kernels import accelerate
from vitrail.models.rrdb import RRDBConfig, RRDBNet
from vitrail.store import artifacts
from vitrail.store.model_hashes import file_sha256

__all__ = [
    "MIN_TILE",
    "Upscaler",
    "enlarge",
    "from_checkpoint",
    "from_ncnn",
    "load",
    "load_file",
    "read_pair",
    "tiles_of",
]

MIN_TILE = 64
"""Smallest tile, in pixels of the small picture."""

MARGIN = 16
"""Pixels of its surroundings that a tile is given beside its own; what the network sees beyond them changes a
result by less than a level (see ``tests/unit/test_realesrgan.py``)."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Upscaler:
    """A network, frozen and on its device, what records call it, and the SHA-256 of its weights."""

    network: RRDBNet
    name: str
    sha256: str


# -- conversion ----------------------------------------------------------------------------------------------


def from_ncnn(param: bytes, weights: bytes) -> tuple[RRDBConfig, dict[str, Tensor]]:
    """Return the configuration and the weights, under the names of :class:`RRDBNet`, of an ncnn network.

    Raises :class:`DataError` for a damaged file and :class:`ArtifactError` for another network.
    """
    layers = read_network(param, weights)
    convolutions = [layer for layer in layers if layer.weight is not None]
    blocks, rest = divmod(len(convolutions) - 6, 15)
    if blocks < 1 or rest:
        raise ArtifactError(
            f"the network has {len(convolutions)} convolutions; an RRDB network has 6 and 15 a block"
        )
    width, growth = (len(layer.bias) for layer in convolutions[:2] if layer.bias is not None)
    try:
        config = RRDBConfig(blocks=blocks, width=width, growth=growth)
    except ValidationError:
        raise ArtifactError(f"the network has {blocks} blocks of width {width}; that cannot be") from None
    return config, _Walk(layers).network(blocks)


class _Walk:
    """Follows the layers in the order in which the network makes them."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers: Iterator[Layer] = iter(layers)
        self.start = layers[0].inputs[:1]
        self.tensors: dict[str, Tensor] = {}

    def network(self, blocks: int) -> dict[str, Tensor]:
        first = last = self.convolution("conv_first", *self.start, leaky=False)
        for block in range(blocks):
            entered = last
            for dense in range(1, 4):
                last = self.dense(f"body.{block}.rdb{dense}", last)
            last = self.residual(last, entered)
        last = self.convolution("conv_body", last, leaky=False)
        last = self.expect("BinaryOp", (first, last), {}, {0: 0}).output
        for name in ("conv_up1", "conv_up2"):
            last = self.expect("Interp", (last,), {}, {0: 1, 1: 2, 2: 2}).output
            last = self.convolution(name, last, leaky=True)
        last = self.convolution("conv_hr", last, leaky=True)
        self.convolution("conv_last", last, leaky=False)
        if next(self.layers, None) is not None:
            raise ArtifactError("the network goes on behind its last convolution; it is no RRDB network")
        return self.tensors

    def dense(self, name: str, x: str) -> str:
        seen, last = [x], x
        for number in range(1, 6):
            if number > 1:
                last = self.expect("Concat", tuple(seen), {}, {0: 0}).output
            last = self.convolution(f"{name}.conv{number}", last, leaky=number < 5)
            seen.append(last)
        return self.residual(last, x)

    def residual(self, made: str, x: str) -> str:
        return self.expect("Eltwise", (made, x), {1: (0.2, 1.0)}, {0: 1}).output

    def convolution(self, name: str, x: str, *, leaky: bool) -> str:
        arrays: dict[int, tuple[float, ...]] = {10: (0.2,)} if leaky else {}
        layer = self.expect("Convolution", (x,), arrays, {9: 2 if leaky else 0})
        assert layer.weight is not None
        assert layer.bias is not None
        self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"] = layer.weight, layer.bias
        return layer.output

    def expect(
        self,
        kind: str,
        inputs: tuple[str, ...],
        arrays: dict[int, tuple[float, ...]],
        numbers: dict[int, float],
    ) -> Layer:
        layer = next(self.layers, None)
        if (
            layer is None
            or layer.kind != kind
            or layer.inputs != inputs
            or set(layer.arrays) != set(arrays)
            or not all(np.allclose(layer.arrays[key], values) for key, values in arrays.items())
            or any(layer.numbers.get(key, 0) != value for key, value in numbers.items())
        ):
            found = "nothing" if layer is None else f"{layer.kind} {layer.output}"
            raise ArtifactError(
                f"the network has {found[:60]} where an RRDB network has {kind}; it is another network"
            )
        return layer


def from_checkpoint(tensors: Mapping[str, Tensor]) -> tuple[RRDBConfig, dict[str, Tensor]]:
    """Return the configuration and the weights of a checkpoint as ESRGAN's and Real-ESRGAN's programs save
    them.

    Both ways of naming are known: ``body.0.rdb1.conv1`` and the older ``model.1.sub.0.RDB1.conv1.0``. Raises
    :class:`ArtifactError` for another network.
    """
    blocks = {int(match[1]) for name in tensors if (match := _OLD_BLOCK.match(name))}
    last = max(blocks, default=0)
    named = {_new_name(name, last) if blocks else name: value.float() for name, value in tensors.items()}
    first, growth = named.get("conv_first.weight"), named.get("body.0.rdb1.conv1.weight")
    count = len({name.split(".")[1] for name in named if name.startswith("body.")})
    if first is None or growth is None or first.ndim != 4 or growth.ndim != 4:
        raise ArtifactError("holds no RRDB network (conv_first, body.0.rdb1.conv1, ...), as ESRGAN's are")
    if first.shape[1] != 3:
        raise ArtifactError(
            f"has a network of {first.shape[1]} channels in; one that enlarges pictures four times has 3"
        )
    try:
        config = RRDBConfig(blocks=count, width=first.shape[0], growth=growth.shape[0])
    except ValidationError:
        raise ArtifactError(
            f"has a network of {count} blocks, {first.shape[0]} wide; that cannot be"
        ) from None
    if sum(value.numel() for value in named.values()) != config.parameters:
        raise ArtifactError(
            f"has other weights than an RRDB network of {count} blocks; it is another network"
        )
    return config, named


_OLD_BLOCK = re.compile(r"model\.1\.sub\.([0-9]{1,3})\.")
_OLD_NAMES = {
    "model.0": "conv_first",
    "model.3": "conv_up1",
    "model.6": "conv_up2",
    "model.8": "conv_hr",
    "model.10": "conv_last",
}


def _new_name(name: str, last: int) -> str:
    """The name that newer programs give a weight; ``last``: number of what follows the blocks."""
    match = re.fullmatch(r"model\.1\.sub\.([0-9]{1,3})\.RDB([123])\.conv([1-5])\.0\.(weight|bias)", name)
    if match:
        return f"body.{match[1]}.rdb{match[2]}.conv{match[3]}.{match[4]}"
    layer, _, kind = name.rpartition(".")
    if layer == f"model.1.sub.{last}":
        return f"conv_body.{kind}"
    return f"{_OLD_NAMES.get(layer, layer)}.{kind}"


def load(folder: Path | str, device: torch.device | None = None) -> Upscaler:
    """Return the network of a model folder of kind ``rrdb``.

    Raises :class:`ArtifactError` for a damaged folder or another kind.
    """
    artifact = artifacts.load(folder)
    if artifact.kind != "rrdb":
        raise ArtifactError(
            f"model {artifact.name} is of kind {artifact.kind}; one that enlarges photographs is a rrdb "
            "(vitrail models pull realesrgan-x4)"
        )
    try:
        config = RRDBConfig.model_validate(artifact.config)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(f"model {artifact.name}: configuration does not fit: {where}") from None
    if sum(value.numel() for value in artifact.tensors.values()) != config.parameters:
        # Told before the network is built: a few bytes of configuration may claim gigabytes.
        raise ArtifactError(f"model {artifact.name}: its tensors do not fit its configuration; pull it again")
    network = RRDBNet(config)
    artifact.fill(network)
    return Upscaler(_ready(network, device), artifact.name, artifact.sha256)


def load_file(path: Path, device: torch.device | None = None) -> Upscaler:
    """Return the network of a file (``.pth``, ``.safetensors``) as other programs keep it, read inertly.

    Raises :class:`ArtifactError` for what is damaged, hostile or another network.
    """
    checkpoint = read_checkpoint(path)
    try:
        config, tensors = from_checkpoint(checkpoint.tensors)
    except ArtifactError as error:
        raise about(path, error) from None
    network = RRDBNet(config)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError:  # names or shapes; the sum of all weights fits
        raise ArtifactError(
            f"{shown(path)} has weights of other names or shapes than an RRDB network"
        ) from None
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ArtifactError(f"{shown(path)} holds NaN or infinite values; the model is unusable")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.")[:100] or "upscaler"
    return Upscaler(_ready(network, device), name, file_sha256(path))


def _ready(network: RRDBNet, device: torch.device | None) -> RRDBNet:
    # On a CPU by our own kernels: the same numbers but for the order of sums.
    return accelerate(network.eval().requires_grad_(False).to(device or torch.device("cpu")))


# -- pictures ------------------------------------------------------------------------------------------------


def tiles_of(length: int, tile: int, margin: int = MARGIN) -> list[tuple[int, int, int, int]]:
    """Cut 0 .. length into pieces of nearly equal length: (start, end, start with margin, end with margin).

    With its margins a piece is at most ``tile`` long.
    """
    if length <= tile:
        return [(0, length, 0, length)]
    count = math.ceil(length / (tile - 2 * margin))
    edges = [round(index * length / count) for index in range(count + 1)]
    return [
        (start, end, max(0, start - margin), min(length, end + margin))
        for start, end in itertools.pairwise(edges)
    ]


def enlarge(
    network: RRDBNet,
    pixels: Pixels,
    *,
    scale: Literal[2, 4] = 4,
    tile: int = 256,
    fidelity: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Enlarge a picture (H, W, 3) of bytes; returns (scale H, scale W, 3).

    The network always draws four times the size; for ``scale`` 2 each square of 2 x 2 pixels is averaged
    before rounding. Beside the result itself the memory needed depends on ``tile`` (pixels of the small
    picture, margins included) alone. ``fidelity``: share of the difference between the picture and the result
    made small again that is put back (back-projection: Irani and Peleg, "Improving resolution by image
    registration", 1991): 0 is the network's own result, 1 keeps noise as well. ``progress(done, total)``
    counts tiles; it may raise to stop the work.

    Raises :class:`InputError` for another shape, scale, tile or fidelity, :class:`NonFiniteError` for a
    network that gives NaN or infinite values.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(f"an array of shape {pixels.shape} is no picture; needed is (H, W, 3) of bytes")
    if scale not in (2, 4):
        raise InputError(f"scale {scale} is not possible; allowed are 2 and 4")
    if not 0 <= fidelity <= 1:
        raise InputError(f"fidelity {fidelity} is out of range; allowed 0 to 1")
    if tile < MIN_TILE:
        raise InputError(f"tile {tile} is too small; it must be at least {MIN_TILE}")
    height, width = pixels.shape[:2]
    result = np.empty((scale * height, scale * width, 3), np.uint8)
    device = network.conv_first.weight.device
    rows, columns = tiles_of(height, tile), tiles_of(width, tile)
    total = len(rows) * len(columns)
    done = 0
    if progress is not None:
        progress(0, total)
    for top, bottom, above, below in rows:
        for left, right, before, after in columns:
            piece = torch.from_numpy(pixels[above:below, before:after].copy()).to(device)
            made = _drawn(network, piece.permute(2, 0, 1)[None].float() / 255, scale, fidelity)
            inner = made[
                scale * (top - above) : scale * (bottom - above),
                scale * (left - before) : scale * (right - before),
            ]
            result[scale * top : scale * bottom, scale * left : scale * right] = inner.cpu().numpy()
            done += 1
            if progress is not None:
                progress(done, total)
    return result


@torch.inference_mode()
def _drawn(network: RRDBNet, small: Tensor, scale: int, fidelity: float) -> Tensor:
    """Run (1, 3, h, w) in [0, 1]; returns bytes (scale h, scale w, 3)."""
    made = network(small).float()
    if scale == 2:
        made = functional.avg_pool2d(made, 2)
    if fidelity:
        missed = small - functional.avg_pool2d(made.clamp(0, 1), scale)
        made = made + fidelity * functional.interpolate(missed, scale_factor=float(scale), mode="bicubic")
    if not bool(torch.isfinite(made).all()):
        raise NonFiniteError("the network gave NaN or infinite values; try --precision float32")
    levels: Tensor = made[0].clamp(0, 1).mul(255).round_().to(torch.uint8).permute(1, 2, 0)
    return levels


def read_pair(files: dict[str, bytes], name: str) -> tuple[bytes, bytes]:
    """Return ``NAME.param`` and ``NAME.bin`` of a package's files; :class:`DataError` if one is missing."""
    found = []
    for ending in (".param", ".bin"):
        matches = [data for path, data in files.items() if path.rpartition("/")[2] == name + ending]
        if len(matches) != 1:
            raise DataError(f"the package holds {len(matches)} files {name}{ending}; expected is one")
        found.append(matches[0])
    return found[0], found[1]
