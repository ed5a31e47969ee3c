"""Networks that compare pictures as people do: LPIPS on VGG16, and the features of EfficientNet-Lite0.

Both are frozen and differentiable in the pictures, which are (B, 3, H, W) in [-1, 1]. Their weights are not
shipped: they come from pinned packages of the Python registry, converted once into safetensors files in
vitrail's cache by :mod:`vitrail.data.feature_weights` (``vitrail data build networks``).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import DataError, InputError
from vitrail.files import cache_folder, shown
from vitrail.models.effnet import EfficientNetLite

__all__ = [
    "EFFICIENTNET_FILE",
    "HEADER_KEY",
    "LPIPS",
    "LPIPS_FILE",
    "VGG_LAYERS",
    "load_efficientnet",
    "load_lpips",
    "networks_folder",
    "origin_of",
]

LPIPS_FILE = "lpips-vgg16.safetensors"
EFFICIENTNET_FILE = "efficientnet-lite0.safetensors"
HEADER_KEY = "vitrail"

VGG_LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Convolutions of VGG16 by stage; between stages the picture is halved. Simonyan & Zisserman,
arXiv:1409.1556, configuration D."""


def networks_folder() -> Path:
    """Where the converted networks lie: ``networks`` under ``$VITRAIL_DATA``, else ``~/.cache/vitrail``."""
    return cache_folder() / "networks"


class LPIPS(nn.Module):
    """Learned perceptual distance of picture pairs, version 0.1 on VGG16 ("lpips-vgg").

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924,
    equation 1: at five layers the features are normalised to unit length over channels, their squared
    difference is weighted by channel (the learned heads, no bias) and averaged over places; the layers are
    summed. 0 for equal pictures; symmetric.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in VGG_LAYERS:
            convolutions = []
            for width in widths:
                convolutions.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.stages.append(nn.ModuleList(convolutions))
        self.heads = nn.ParameterList(torch.zeros(widths[-1]) for widths in VGG_LAYERS)
        # What takes [-1, 1] to the scale that VGG was trained on; rounded as in the published metric.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """Return VGG's five levels (B, C, H / s, W / s), C = 64, 128, 256, 512, 512 and s = 1, 2, 4, 8, 16.

        Raises :class:`InputError` for a picture of fewer than 16 pixels a side: VGG halves it four times.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 16:
            raise InputError(
                f"LPIPS was given pictures of shape {tuple(x.shape)}; needed is (B, 3, H, W), sides >= 16"
            )
        x = (x - self.shift) / self.scale
        levels = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = functional.max_pool2d(x, 2)
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                x = functional.relu(convolution(x))
            levels.append(x)
        return levels

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance (B,) of each pair of pictures of one shape; differentiable in both.

        If only ``a`` needs a gradient, the graph of ``b`` is not kept.
        """
        if a.shape != b.shape:
            raise InputError(f"LPIPS compares pictures of one shape; got {tuple(a.shape)}, {tuple(b.shape)}")
        total = torch.zeros(a.shape[0], device=a.device)
        for one, other, head in zip(self.features(a), self.features(b), self.heads, strict=True):
            squared = (_unit(one) - _unit(other)).square()
            total = total + torch.einsum("bchw,c->b", squared, head) / (one.shape[2] * one.shape[3])
        return total


def _unit(x: Tensor) -> Tensor:
    # 1e-10 is added to the length, not under the root, as in the published metric. At a place whose features
    # are all zero (a flat patch after ReLU) the root has an infinite slope and the gradient would be NaN: the
    # tiny value under the root keeps it finite and leaves every other value as it is in float32.
    return x / (x.square().sum(1, keepdim=True).clamp_min(1e-30).sqrt() + 1e-10)


def load_lpips(folder: Path | str | None = None) -> LPIPS:
    """Return LPIPS with its weights, on the CPU. ``folder``: default :func:`networks_folder`.

    Raises :class:`DataError` when the file is not there yet (the message says what to run) or is damaged.
    """
    network = LPIPS()
    _fill(network, _place(folder) / LPIPS_FILE)
    return network


def load_efficientnet(folder: Path | str | None = None) -> EfficientNetLite:
    """Return EfficientNet-Lite0 with its ImageNet weights, frozen, on the CPU; errors as load_lpips."""
    with torch.device("meta"):  # no time spent on random weights that are replaced below
        network = EfficientNetLite()
    _fill(network, _place(folder) / EFFICIENTNET_FILE)
    return network


def origin_of(path: Path | str) -> dict[str, str]:
    """Return what a converted file says of itself: source package, sha256 of its archive, licence."""
    with safe_open(path, framework="pt") as file:
        found = json.loads((file.metadata() or {})[HEADER_KEY])
    return {str(key): str(value) for key, value in found.items()}


def _place(folder: Path | str | None) -> Path:
    return Path(folder) if folder is not None else networks_folder()


def _fill(network: nn.Module, path: Path) -> None:
    """Load exactly the tensors of ``network`` from a file, and freeze it."""
    if not path.is_file():
        raise DataError(
            f"{shown(path)} is not there yet; run: vitrail data build networks (fetches 80 MB once)"
        )
    wanted = network.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            # clone: nothing may hang on a file that could be cut off under the mapping
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{shown(path)} cannot be read ({shown(error, 80)}); delete it, then run: "
            "vitrail data build networks"
        ) from error
    wrong = sorted(
        {name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape}
        | (tensors.keys() - wanted.keys())
    )
    if wrong:
        raise DataError(
            f"{shown(path)} does not hold this network ({len(wrong)} tensors differ, first {wrong[0]}); "
            "delete it, then run: vitrail data build networks"
        )
    network.load_state_dict(tensors, strict=True, assign=True)
    network.requires_grad_(False)
    network.eval()
