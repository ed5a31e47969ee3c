"""Tiny networks for photographs, and writers of the foreign files that such networks come in.

The writers are made from the formats' documents alone and share nothing with the readers in the product.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.models.migan import MIGAN, MIGANConfig
from vitrail.models.rrdb import RRDBConfig, RRDBNet
from vitrail.store import artifacts

FLOAT16_TAG = 0x01306B47


def random_weights(network: torch.nn.Module, seed: int = 0, spread: float = 0.1) -> dict[str, Tensor]:
    """Fill a network with random float16 numbers, so that no format rounds them; returns its weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        mean = 0.4 if name.endswith("conv_last.bias") else 0.0
        value.copy_((torch.randn(value.shape, generator=generator) * spread + mean).half().float())
    return network.state_dict()


def tiny_rrdb(seed: int = 0, blocks: int = 1, width: int = 8, growth: int = 4) -> RRDBNet:
    """An upscaler with random weights."""
    network = RRDBNet(RRDBConfig(blocks=blocks, width=width, growth=growth)).eval()
    random_weights(network, seed)
    return network


def tiny_migan(seed: int = 0, channels: tuple[int, ...] = (8, 8, 4)) -> MIGAN:
    """A repairer of 16 px with random weights; all its 16 x 16 pictures are within [-1, 1]."""
    network = MIGAN(MIGANConfig(channels=channels)).eval()
    random_weights(network, seed, 0.2)
    return network


def save_rrdb(folder: Path, network: RRDBNet | None = None) -> Path:
    network = network or tiny_rrdb()
    artifacts.save(
        folder,
        kind="rrdb",
        name="tiny-rrdb",
        config=network.config.model_dump(mode="json"),
        tensors=network.state_dict(),
        licence="BSD-3-Clause",
    )
    return folder


def save_migan(folder: Path, network: MIGAN | None = None) -> Path:
    network = network or tiny_migan()
    artifacts.save(
        folder,
        kind="migan",
        name="tiny-migan",
        config=network.config.model_dump(mode="json"),
        tensors=network.state_dict(),
        licence="MIT",
    )
    return folder


# -- ncnn ----------------------------------------------------------------------------------------------------


class NcnnWriter:
    """Collects the lines of a ``.param`` and the bytes of a ``.bin``."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.blobs = 0
        self.data = b""

    def value(self) -> str:
        self.blobs += 1
        return f"v{self.blobs}"

    def layer(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *parameters: str) -> None:
        name = f"{kind}_{len(self.lines)}"
        counts = f"{len(inputs)} {len(outputs)}"
        self.lines.append(" ".join([kind, name, counts, *inputs, *outputs, *parameters]))

    def one(self, kind: str, inputs: Sequence[str], *parameters: str) -> str:
        output = self.value()
        self.layer(kind, inputs, [output], *parameters)
        return output

    def split(self, x: str, count: int) -> list[str]:
        outputs = [self.value() for _ in range(count)]
        self.layer("Split", [x], outputs)
        return outputs

    def convolution(self, x: str, weight: Tensor, bias: Tensor, leaky: bool, half: bool = True) -> str:
        words = [f"0={weight.shape[0]}", f"1={weight.shape[2]}", "4=1", "5=1", f"6={weight.numel()}"]
        words += ["9=2", "-23310=1,2.000000e-01"] if leaky else []
        flat = weight.detach().numpy().ravel()
        if half:
            packed = flat.astype("<f2").tobytes()
            self.data += struct.pack("<I", FLOAT16_TAG) + packed + b"\0" * (-len(packed) % 4)
        else:
            self.data += struct.pack("<I", 0) + flat.astype("<f4").tobytes()
        self.data += bias.detach().numpy().astype("<f4").tobytes()
        return self.one("Convolution", [x], *words)

    def files(self) -> tuple[bytes, bytes]:
        head = ["7767517", f"{len(self.lines)} {self.blobs}"]
        return "\n".join(head + self.lines).encode() + b"\n", self.data


def ncnn_files(network: RRDBNet, half: bool = True) -> tuple[bytes, bytes]:
    """The ``.param`` and ``.bin`` of an upscaler, as a converter writes them: every value is used once."""
    w = network.state_dict()
    out = NcnnWriter()

    def conv(name: str, x: str, leaky: bool) -> str:
        return out.convolution(x, w[f"{name}.weight"], w[f"{name}.bias"], leaky, half)

    def residual(made: str, x: str) -> str:
        return out.one("Eltwise", [made, x], "0=1", "-23301=2,2.000000e-01,1.000000e+00")

    first, last = out.split(conv("conv_first", out.one("Input", []), False), 2)
    for block in range(network.config.blocks):
        entered, last = out.split(last, 2)
        for dense in range(1, 4):
            name = f"body.{block}.rdb{dense}"
            begun, *copies = out.split(last, 6)
            seen: list[list[str]] = [copies]
            for number in range(1, 6):
                inputs = [values.pop() for values in seen]
                x = inputs[0] if number == 1 else out.one("Concat", inputs)
                last = conv(f"{name}.conv{number}", x, number < 5)
                if number < 4:
                    seen.append(out.split(last, 5 - number))
                elif number == 4:
                    seen.append([last])
            last = residual(last, begun)
        last = residual(last, entered)
    last = out.one("BinaryOp", [first, conv("conv_body", last, False)], "0=0")
    for name in ("conv_up1", "conv_up2"):
        last = conv(name, out.one("Interp", [last], "0=1", "1=2.0e+00", "2=2.0e+00"), True)
    conv("conv_last", conv("conv_hr", last, True), False)
    return out.files()


# -- ONNX ----------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | str | int) -> bytes:
    """One field of a protocol-buffer message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx_tensor(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(field(1, side) for side in array.shape)
    return dims + field(2, 1) + field(8, name) + field(9, array.astype("<f4").tobytes())


def onnx_node(kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    parts = [field(1, name) for name in inputs] + [field(2, name) for name in outputs]
    return b"".join(parts) + field(3, f"/{kind}/{outputs[0]}") + field(4, kind)


def onnx_model(nodes: Sequence[bytes], tensors: Sequence[bytes]) -> bytes:
    graph = b"".join(field(1, node) for node in nodes) + field(2, "main_graph")
    graph += b"".join(field(5, tensor) for tensor in tensors)
    return field(1, 8) + field(2, "pytorch") + field(7, graph) + field(8, field(1, "") + field(2, 17))


def onnx_file(network: MIGAN) -> bytes:
    """An ONNX file with the weights of a repairer as PyTorch's exporter leaves them.

    Weights keep their names; filters are listed with them; the noise is a constant without a name of its own,
    added to what the layer's mixture of channels (or the filter behind it) made.
    """
    nodes, tensors = [], []
    taps = np.array([1.0, 3.0, 3.0, 1.0], np.float32)
    for name, value in network.state_dict().items():
        array = value.numpy()
        if not name.endswith(".noise"):
            tensors.append(onnx_tensor(f"model.{name}", array))
            continue
        layer = name.removesuffix(".noise")
        made = f"/{layer}/conv2"
        nodes.append(onnx_node("Conv", [f"/{layer}/x", f"model.{layer}.conv2.weight"], [made]))
        if layer.endswith("conv1"):
            kernel = np.tile(np.outer(taps, taps) / 16, (value.shape[0], 1, 1, 1)).astype(np.float32)
            tensors.append(onnx_tensor(f"model.{layer}.upsample.filter.weight", kernel))
            tensors.append(onnx_tensor(f"model.{layer}.upsample.filter_const", array[None, None]))
            nodes.append(onnx_node("Pad", [made, "pads"], [f"{made}/pad"]))
            made = f"/{layer}/filter"
            inputs = [f"/{layer}/conv2/pad", f"model.{layer}.upsample.filter.weight"]
            nodes.append(onnx_node("Conv", inputs, [made]))
        constant = f"onnx::Add_{len(nodes)}"
        tensors.append(onnx_tensor(constant, array))
        nodes.append(onnx_node("Add", [made, constant], [f"/{layer}/sum"]))
    return onnx_model(nodes, tensors)
