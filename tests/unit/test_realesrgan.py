"""Real-ESRGAN: ncnn's files read as they are meant, pictures of any size in tiles without seams."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_networks import ncnn_files, random_weights, save_migan, save_rrdb, tiny_rrdb
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from vitrail.backends import realesrgan
from vitrail.backends.ncnn import read_network
from vitrail.backends.realesrgan import MARGIN, enlarge, from_ncnn, tiles_of
from vitrail.errors import ArtifactError, InputError, NonFiniteError
from vitrail.models.rrdb import RRDBNet


def interpreted(param: bytes, weights: bytes, x: Tensor) -> Tensor:
    """Run the layers one after the other, as ncnn does, knowing nothing of the network they make."""
    values: dict[str, Tensor] = {}
    for layer in read_network(param, weights):
        inputs = [values.get(name, x) for name in layer.inputs]
        match layer.kind:
            case "Convolution":
                made = functional.conv2d(inputs[0], layer.weight, layer.bias, padding=int(layer.numbers[4]))
                if layer.numbers.get(9) == 2:
                    made = functional.leaky_relu(made, layer.arrays[10][0])
            case "Concat":
                made = torch.cat(inputs, 1)
            case "Eltwise":
                made = sum(share * value for share, value in zip(layer.arrays[1], inputs, strict=True))
            case "BinaryOp":
                made = inputs[0] + inputs[1]
            case _:
                made = inputs[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
        values[layer.output] = made
    return made


@pytest.mark.parametrize("half", [True, False])
def test_a_file_is_read_as_ncnn_reads_it(half: bool) -> None:
    network = tiny_rrdb(blocks=2)
    param, weights = ncnn_files(network, half)
    config, tensors = from_ncnn(param, weights)
    assert config == network.config
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    again = RRDBNet(config).eval()
    again.load_state_dict(tensors)
    x = torch.rand(1, 3, 9, 11)
    with torch.inference_mode():
        expected, made = interpreted(param, weights, x), again(x)
    assert made.shape == (1, 3, 36, 44)
    # The weights are float16 numbers, so nothing was rounded; the order of sums differs.
    assert torch.allclose(made, expected, atol=1e-5)
    assert torch.equal(again.state_dict()["conv_hr.weight"], network.state_dict()["conv_hr.weight"])


def test_a_network_that_only_looks_alike_is_refused() -> None:
    param, weights = ncnn_files(tiny_rrdb())
    text = param.decode()
    assert text.count("-23301=2,2.000000e-01,1.000000e+00") == 4
    for old, new in [
        ("-23301=2,2.000000e-01,1.000000e+00", "-23301=2,3.000000e-01,1.000000e+00"),
        ("-23310=1,2.000000e-01", "-23310=1,1.000000e-01"),
        (" 9=2", " 9=1"),
        ("1=2.0e+00", "1=3.0e+00"),
        ("0=0", "0=2"),
    ]:
        assert old in text
        with pytest.raises(ArtifactError, match="another network"):
            from_ncnn(text.replace(old, new, 1).encode(), weights)


def test_tiles_cover_everything_once_and_are_never_too_large() -> None:
    for length in (1, 63, 64, 65, 100, 255, 256, 257, 1000, 4001):
        for tile in (64, 100, 256):
            pieces = tiles_of(length, tile)
            assert [piece[0] for piece in pieces] == [0, *(piece[1] for piece in pieces[:-1])]
            assert pieces[-1][1] == length
            for start, end, before, after in pieces:
                assert start < end
                assert after - before <= tile
                assert start - before == min(start, MARGIN) or len(pieces) == 1
                assert after - end == min(length - end, MARGIN) or len(pieces) == 1


def near_sighted(seed: int = 0) -> RRDBNet:
    """A network whose convolutions, but for the first, see one pixel: it sees one pixel to each side."""
    network = tiny_rrdb(seed)
    random_weights(network, seed, 0.4)
    for name, value in network.state_dict().items():
        if value.ndim == 4 and name != "conv_first.weight":
            centre = value[:, :, 1, 1].clone()
            value.zero_()
            value[:, :, 1, 1] = centre
    return network


@pytest.mark.parametrize("scale", [2, 4])
def test_tiles_leave_no_seam(scale: int) -> None:
    network = near_sighted()
    pixels = np.random.default_rng(0).integers(0, 256, (150, 131, 3)).astype(np.uint8)
    seen: list[tuple[int, int]] = []
    whole = enlarge(network, pixels, scale=scale, tile=256)  # type: ignore[arg-type]
    tiled = enlarge(network, pixels, scale=scale, tile=64, progress=lambda *now: seen.append(now))  # type: ignore[arg-type]
    assert whole.shape == (150 * scale, 131 * scale, 3)
    assert len(np.unique(whole)) > 10
    # A sum of another order may round the other way; a seam would differ by more than a level.
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert seen[0] == (0, 25)
    assert seen[-1] == (25, 25)


def test_twice_the_size_is_the_mean_of_four_pixels() -> None:
    network = tiny_rrdb()
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    with torch.inference_mode():
        made = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0)
    mean = made.reshape(16, 2, 18, 2, 3).mean((1, 3)).clamp(0, 1) * 255
    assert np.array_equal(enlarge(network, pixels, scale=2), mean.round().to(torch.uint8).numpy())


def test_the_channels_keep_their_places() -> None:
    """Red stays red: with a network that hands the colours through, a picture comes back enlarged."""
    network = tiny_rrdb(width=8)
    for value in network.state_dict().values():
        value.zero_()
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"):
        weight = network.get_submodule(name).weight
        for channel in range(3):
            weight.data[channel, channel, 1, 1] = 1.0
    pixels = np.random.default_rng(2).integers(0, 256, (70, 50, 3)).astype(np.uint8)
    assert np.array_equal(enlarge(network, pixels, tile=64), pixels.repeat(4, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize("scale", [2, 4])
def test_fidelity_brings_the_result_back_to_the_picture(scale: int) -> None:
    network = tiny_rrdb()
    pixels = np.random.default_rng(3).integers(60, 200, (40, 44, 3)).astype(np.uint8)

    def error(fidelity: float) -> float:
        made = enlarge(network, pixels, scale=scale, fidelity=fidelity).astype(float)  # type: ignore[arg-type]
        again = made.reshape(40, scale, 44, scale, 3).mean((1, 3))
        return float(np.square(again - pixels).mean())

    assert error(0.0) > 1.5 * error(0.5) > 2 * error(1.0)
    with pytest.raises(InputError, match=r"fidelity 1\.5 is out of range; allowed 0 to 1"):
        error(1.5)


def test_what_cannot_be_enlarged_is_said() -> None:
    network = tiny_rrdb()
    picture = np.zeros((4, 4, 3), np.uint8)
    for array in (picture[:, :, :2], picture.astype(np.float32), picture[:0], picture[0]):
        with pytest.raises(InputError, match="no picture"):
            enlarge(network, array)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scale 3"):
        enlarge(network, picture, scale=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tile 63 is too small"):
        enlarge(network, picture, tile=63)
    network.conv_last.bias.data.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="NaN"):
        enlarge(network, picture)


def test_a_folder_gives_the_network_back(tmp_path: Path) -> None:
    network = tiny_rrdb()
    upscaler = realesrgan.load(save_rrdb(tmp_path / "rrdb", network))
    again = upscaler.network
    assert upscaler.name == "tiny-rrdb"
    assert len(upscaler.sha256) == 64
    assert network.config.parameters == sum(value.numel() for value in network.parameters())
    x = torch.rand(1, 3, 6, 5)
    with torch.inference_mode():
        assert torch.allclose(again(x), network(x), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(ArtifactError, match="of kind migan; one that enlarges photographs is a rrdb"):
        realesrgan.load(save_migan(tmp_path / "migan"))


def old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as the first ESRGAN's program calls them."""
    places = {"conv_first": "0", "conv_body": "1.sub.2", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8"}
    renamed = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        if layer.startswith("body."):
            _, block, dense, number = layer.split(".")
            renamed[f"model.1.sub.{block}.{dense.upper()}.{number}.0.{kind}"] = value
        else:
            renamed[f"model.{places.get(layer, '10')}.{kind}"] = value
    return renamed


@pytest.mark.parametrize("form", ["pth", "pth-ema", "pth-old", "safetensors"])
def test_files_of_other_programs_are_taken_as_they_are(tmp_path: Path, form: str) -> None:
    network = tiny_rrdb(blocks=2)
    weights = network.state_dict()
    path = tmp_path / f"4x some model.{form.partition('-')[0]}"
    if form == "safetensors":
        path.write_bytes(save({name: value.half() for name, value in weights.items()}))
    else:
        content: Any = old_names(weights) if form == "pth-old" else weights
        torch.save({"params_ema": content} if form == "pth-ema" else content, path)
    upscaler = realesrgan.load_file(path)
    assert upscaler.name == "4x-some-model"
    assert upscaler.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.rand(1, 3, 6, 5)
    with torch.inference_mode():
        assert torch.allclose(upscaler.network(x), network(x), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {"a.weight": torch.zeros(3)}, "holds no RRDB network"),
        (lambda weights: weights | {"conv_first.weight": torch.zeros(8, 12, 3, 3)}, "of 12 channels in"),
        (lambda weights: weights | {"more.weight": torch.zeros(3)}, "has other weights than an RRDB network"),
        (
            lambda weights: weights | {"conv_hr.weight": weights["conv_hr.weight"].flatten()},
            "other names or shapes",
        ),
        (lambda weights: weights | {"conv_hr.bias": torch.full((8,), torch.inf)}, "NaN or infinite values"),
    ],
)
def test_a_file_with_another_network_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(save(change(dict(tiny_rrdb().state_dict()))))
    with pytest.raises(ArtifactError, match=message) as caught:
        realesrgan.load_file(path)
    assert str(caught.value).startswith(str(path))
