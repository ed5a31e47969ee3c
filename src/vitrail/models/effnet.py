"""EfficientNet-Lite0 for inference: a small ImageNet classifier whose layers serve as features.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946; the
Lite variants (TensorFlow TPU repository, 2020) drop squeeze-and-excitation and use ReLU6. Batch norms are
folded into the convolutions before them: y = w (x * k) + b is all that is left of them at inference.
Padding is TensorFlow's "SAME": the output has ceil(size / stride) pixels and the odd pixel of padding goes to
the right and bottom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EfficientNetLite", "folded"]

_STAGES = (  # repeats, kernel, stride, expansion, output channels: arXiv:1905.11946 table 1
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_BATCH_NORM_EPS = 1e-3


class _SameConv(nn.Conv2d):
    """A convolution with bias and TensorFlow's SAME padding for any size of picture."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # An odd kernel at stride 1 pads alike on all sides, so the convolution can do it by itself.
        super().__init__(
            inside, outside, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            missing = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
            down, across = missing
            x = functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)


class _Block(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise kxk, project 1x1, residual where the shapes allow it."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inside * expansion
        self.expand = _SameConv(inside, width, 1) if expansion != 1 else None
        self.depthwise = _SameConv(width, width, kernel, stride, groups=width)
        self.project = _SameConv(width, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        result: Tensor = x + y if self.residual else y
        return result


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, 4.65 million parameters. Pictures are (B, 3, H, W) in [-1, 1], any H, W >= 1.

    No resizing happens inside. It was trained at 224 x 224 pixels; smaller pictures give weaker features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv(3, _STEM, 3, 2)
        self.blocks = nn.ModuleList()
        channels, stride_so_far, taps, widths = _STEM, 2, [], []
        for repeats, kernel, stride, expansion, outside in _STAGES:
            if stride > 1 and self.blocks:  # the last block before a downsampling is a level of the pyramid
                taps.append(len(self.blocks) - 1)
                widths.append(channels)
            stride_so_far *= stride
            for i in range(repeats):
                self.blocks.append(_Block(channels, outside, kernel, stride if i == 0 else 1, expansion))
                channels = outside
        taps.append(len(self.blocks) - 1)
        widths.append(channels)
        self.taps = frozenset(taps)
        self.widths: tuple[int, ...] = tuple(widths)
        """Channels of the levels of :meth:`features`: 16, 24, 40, 112, 320 at strides 2, 4, 8, 16, 32."""
        self.head = _SameConv(channels, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    @property
    def embedding_width(self) -> int:
        """Length of :meth:`embed`'s vectors."""
        return _HEAD

    def features(self, x: Tensor) -> list[Tensor]:
        """Return five levels (B, C, H / s, W / s), C = 16, 24, 40, 112, 320 and s = 2, 4, 8, 16, 32."""
        x = functional.relu6(self.stem(_normalised(x)))
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                levels.append(x)
        return levels

    def embed(self, x: Tensor) -> Tensor:
        """Return the pooled last layer before the classifier, (B, 1280), entries in [0, 6]."""
        y: Tensor = functional.relu6(self.head(self.features(x)[-1])).mean((2, 3))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the 1,000 ImageNet classes, (B, 1000)."""
        y: Tensor = self.classifier(self.embed(x))
        return y


def _normalised(x: Tensor) -> Tensor:
    # The network was trained on (byte - 127) / 128, and byte = 127.5 (x + 1).
    return (x * 127.5 + 0.5) / 128.0


def folded(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this module's tensors from a checkpoint with batch norms in the names of efficientnet_pytorch.

    ``w = k g / sqrt(v + eps)`` and ``b = b0 - m g / sqrt(v + eps)`` are formed in float64. Raises KeyError
    for a missing tensor.
    """
    tensors: dict[str, Tensor] = {}

    def fold(ours: str, convolution: str, norm: str) -> None:
        weight = source[f"{convolution}.weight"].double()
        gain = source[f"{norm}.weight"].double() / torch.sqrt(
            source[f"{norm}.running_var"].double() + _BATCH_NORM_EPS
        )
        bias = source[f"{norm}.bias"].double() - source[f"{norm}.running_mean"].double() * gain
        tensors[f"{ours}.weight"] = (weight * gain[:, None, None, None]).float().contiguous()
        tensors[f"{ours}.bias"] = bias.float()

    fold("stem", "_conv_stem", "_bn0")
    blocks = sum(stage[0] for stage in _STAGES)
    for i in range(blocks):
        theirs = f"_blocks.{i}."
        if i > 0:  # only the first block has no expansion
            fold(f"blocks.{i}.expand", theirs + "_expand_conv", theirs + "_bn0")
        fold(f"blocks.{i}.depthwise", theirs + "_depthwise_conv", theirs + "_bn1")
        fold(f"blocks.{i}.project", theirs + "_project_conv", theirs + "_bn2")
    fold("head", "_conv_head", "_bn1")
    tensors["classifier.weight"] = source["_fc.weight"].float().contiguous()
    tensors["classifier.bias"] = source["_fc.bias"].float()
    return tensors
