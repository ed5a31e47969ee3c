"""MI-GAN: the weights of an ONNX file at their places, and the network as its paper and file have it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_networks import onnx_file, onnx_model, onnx_node, onnx_tensor, save_migan, save_rrdb, tiny_migan
from torch import Tensor
from torch.nn import functional

from vitrail.backends import migan
from vitrail.backends.migan import from_onnx
from vitrail.backends.onnx_weights import read_graph
from vitrail.errors import ArtifactError
from vitrail.models.migan import MIGAN


def plainly(weights: dict[str, Tensor], picture: Tensor, known: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The network written out as the published file has it: zeros between pixels, padding, filters."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 64

    def act(x: Tensor) -> Tensor:
        return (functional.leaky_relu(x, 0.2) * math.sqrt(2)).clamp(-256, 256)

    def doubled(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        sparse = torch.zeros(batch, channels, 2 * height, 2 * width)
        sparse[:, :, ::2, ::2] = x
        filters = (4 * kernel).expand(channels, 1, 4, 4)
        return functional.conv2d(functional.pad(sparse, (2, 1, 2, 1)), filters, groups=channels)

    def layer(name: str, x: Tensor, change: str = "same") -> Tensor:
        groups = x.shape[1]
        x = functional.conv2d(
            x, weights[f"{name}.conv1.weight"], weights[f"{name}.conv1.bias"], padding=1, groups=groups
        )
        x = act(x)
        if change == "half":
            x = functional.conv2d(x, kernel.expand(groups, 1, 4, 4), stride=2, padding=1, groups=groups)
        x = functional.conv2d(x, weights[f"{name}.conv2.weight"])
        if change == "double":
            x = doubled(x)
        return act(x + weights.get(f"{name}.noise", torch.zeros(())))

    top = f"encoder.b{sizes[-1]}.fromrgb"
    x = torch.cat((known - 0.5, picture * known), 1)
    x = act(functional.conv2d(x, weights[f"{top}.weight"], weights[f"{top}.bias"]))
    across = {}
    for size in reversed(sizes):
        across[size] = x = layer(f"encoder.b{size}.conv1", x)
        x = layer(f"encoder.b{size}.conv2", x, "half" if size > 4 else "same")
    colours = torch.zeros(())
    for size in sizes:
        x = layer(f"synthesis.b{size}.conv1", x, "double" if size > 4 else "same") + across[size]
        x = layer(f"synthesis.b{size}.conv2", x)
        rgb = f"synthesis.b{size}.torgb"
        made = functional.conv2d(x, weights[f"{rgb}.weight"], weights[f"{rgb}.bias"])
        colours = made if size == 4 else doubled(colours) + made
    return colours


@pytest.mark.parametrize("channels", [(6, 4), (8, 8, 4), (5, 7, 6, 3)])
def test_a_file_becomes_the_same_network(channels: tuple[int, ...]) -> None:
    network = tiny_migan(channels=channels)
    config, tensors = from_onnx(onnx_file(network))
    assert config == network.config
    again = MIGAN(config).eval()
    again.load_state_dict(tensors)
    picture = torch.rand(2, 3, config.size, config.size) * 2 - 1
    known = (torch.rand(2, 1, config.size, config.size) > 0.3).float()
    with torch.inference_mode():
        made = again(picture, known)
    expected = plainly(network.state_dict(), picture, known, config.sizes)
    assert made.shape == picture.shape
    assert float(expected.std()) > 0.05
    assert torch.allclose(made, expected, atol=1e-5)


def test_what_lies_in_the_hole_is_not_read() -> None:
    network = tiny_migan()
    picture, other = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    known = torch.ones(1, 1, 16, 16)
    known[:, :, 3:9, 5:12] = 0
    other = torch.where(known > 0, picture, other)
    with torch.inference_mode():
        assert torch.equal(network(picture, known), network(other, known))
        assert not torch.equal(network(picture, known), network(picture, known * 0 + 1))


def test_names_and_numbers_of_a_graph_are_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = onnx_model([onnx_node("Add", ["a", "b"], ["c"])], [onnx_tensor("b", array)])
    graph = read_graph(data)
    assert [(node.kind, node.name, node.inputs, node.outputs) for node in graph.nodes] == [
        ("Add", "/Add/c", ("a", "b"), ("c",))
    ]
    assert np.array_equal(graph.weights["b"], array)
    assert graph.weights["b"].dtype == np.float32


def test_another_network_is_refused() -> None:
    network = tiny_migan()
    weights = network.state_dict()
    with pytest.raises(ArtifactError, match="no MI-GAN network"):
        from_onnx(onnx_model([], [onnx_tensor("model.conv.weight", np.zeros((1, 1), np.float32))]))
    # a weight of another name
    data = onnx_file(network).replace(b"synthesis.b16.torgb", b"synthesis.b99.torgb")
    with pytest.raises(ArtifactError, match="not those of a MI-GAN network"):
        from_onnx(data)
    # another filter
    kernel = np.tile(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16, (8, 1, 1, 1)).astype(np.float32)
    data = onnx_file(network)
    assert kernel.tobytes() in data
    with pytest.raises(ArtifactError, match="another filter"):
        from_onnx(data.replace(kernel.tobytes(), (kernel * 1.01).tobytes()))
    # a weight that is no number
    weights["encoder.b16.fromrgb.bias"].fill_(float("nan"))
    with pytest.raises(ArtifactError, match=r"encoder\.b16\.fromrgb\.bias is not float32 without NaN"):
        from_onnx(onnx_file(network))


def test_a_folder_gives_the_network_back(tmp_path: Path) -> None:
    network = tiny_migan()
    again, artifact = migan.load(save_migan(tmp_path / "migan", network))
    assert (artifact.name, artifact.kind) == ("tiny-migan", "migan")
    picture, known = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(again(picture, known), network(picture, known), atol=1e-5)
    with pytest.raises(ArtifactError, match="of kind rrdb; one that repairs photographs is a migan"):
        migan.load(save_rrdb(tmp_path / "rrdb"))
