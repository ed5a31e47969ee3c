"""Whole networks before and after: the same pictures, with and without a compiler, with hooks, wrapped."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.kernels import accelerate, library
from vitrail.kernels import library as library_of
from vitrail.kernels.blocks import FastAttention
from vitrail.kernels.layers import FastConv2d, FastLinear
from vitrail.kernels.library import build
from vitrail.models.rrdb import RRDBConfig, RRDBNet
from vitrail.tasks.wrapping import circular

diffusers = pytest.importorskip("diffusers")

# the issue asks for 1e-4 of a U-Net pass; ten convolutions in float32 stay far below it
CLOSE = 2e-5


@pytest.fixture(params=["kernels", "no compiler"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "kernels":
        if library() is None:
            pytest.skip("no C compiler here")
        return True
    monkeypatch.setenv("VITRAIL_KERNELS", "off")
    return False


def unet(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    made = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        **settings,
    )
    assert isinstance(made, nn.Module)
    return made.eval().requires_grad_(False)


def vae() -> nn.Module:
    torch.manual_seed(0)
    made = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    assert isinstance(made, nn.Module)
    return made.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def passed(network: nn.Module, x: Tensor, states: Tensor) -> Tensor:
    with torch.no_grad():
        made = network(x, torch.tensor(501), states).sample
    assert isinstance(made, Tensor)
    return made


def error(made: Tensor, wanted: Tensor) -> float:
    assert made.shape == wanted.shape
    return float((made - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("settings", [{}, {"use_linear_projection": True}])
@pytest.mark.parametrize("size", [(16, 16), (10, 14), (2, 22)])
def test_unet_pass(compiler: bool, settings: dict[str, object], size: tuple[int, int]) -> None:
    network, x, states = unet(**settings), noise(2, 4, *size), noise(2, 77, 32, seed=1)
    wanted = passed(network, x, states)
    assert accelerate(network) is network
    assert any(isinstance(module, FastConv2d) for module in network.modules()) == compiler
    assert error(passed(network, x, states), wanted) < CLOSE
    # a second text, and the first changed in place: nothing kept from before is used
    other = noise(2, 5, 32, seed=2)
    fresh = unet(**settings)
    assert error(passed(network, x, other), passed(fresh, x, other)) < CLOSE
    states.mul_(-1)
    assert error(passed(network, x, states), passed(fresh, x, states)) < CLOSE


def test_text_keys_are_computed_once(compiler: bool) -> None:
    network, x, states = accelerate(unet()), noise(1, 4, 8, 8), noise(1, 77, 32, seed=1)
    calls: list[int] = []
    for module in network.modules():
        if isinstance(module, FastAttention) and module.is_cross_attention:
            plain = module.to_k.forward
            module.to_k.forward = lambda given, plain=plain: calls.append(1) or plain(given)  # type: ignore[method-assign,func-returns-value]
    for _ in range(3):
        passed(network, x, states)
    once = sum(isinstance(m, FastAttention) and m.is_cross_attention for m in network.modules())
    assert once > 0
    assert len(calls) == once


def test_changed_weight_is_seen() -> None:
    if library() is None:
        pytest.skip("no C compiler here")
    network, plain = accelerate(unet()), unet()
    x, states = noise(1, 4, 8, 8), noise(1, 77, 32, seed=1)
    passed(network, x, states)
    for name in (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.0.resnets.0.conv1",
    ):
        layer, twin = network.get_submodule(name), plain.get_submodule(name)
        assert isinstance(layer, FastLinear | FastConv2d)
        assert isinstance(twin.weight, Tensor)
        layer.load_weight(twin.weight * 1.5)
        twin.weight.mul_(1.5)
    assert error(passed(network, x, states), passed(plain, x, states)) < CLOSE


HOOKED = (
    "resnets.0.conv1",
    "resnets.0.conv2",
    "attentions.0.transformer_blocks.0.attn2.to_v",
    "attentions.0.transformer_blocks.0.attn1.to_out.0",
    "attentions.0.transformer_blocks.0.ff.net.0.proj",
    "attentions.0.transformer_blocks.0.ff.net.2",
)


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_are_called(compiler: bool, name: str) -> None:
    # a live LoRA is a forward hook that adds to the output
    network, plain = accelerate(unet()), unet()
    x, states = noise(2, 4, 8, 8), noise(2, 77, 32, seed=1)
    before = passed(network, x, states)
    handles = [
        each.get_submodule(f"down_blocks.0.{name}").register_forward_hook(
            lambda m, i, o: o + o.roll(1, 1) * i[0].abs().mean()
        )
        for each in (network, plain)
    ]
    wanted = passed(plain, x, states)
    assert error(passed(network, x, states), wanted) < CLOSE
    assert error(before, wanted) > 1e-3
    for handle in handles:
        handle.remove()
    assert error(passed(network, x, states), before) < CLOSE


@pytest.mark.parametrize(("x_wraps", "y_wraps"), [(True, False), (False, True), (True, True)])
def test_wrapping_goes_through(compiler: bool, x_wraps: bool, y_wraps: bool) -> None:
    network, plain = accelerate(unet()), unet()
    x, states = noise(1, 4, 8, 12), noise(1, 77, 32, seed=1)
    with circular([network, plain], x=x_wraps, y=y_wraps):
        assert error(passed(network, x, states), passed(plain, x, states)) < CLOSE


def test_masks_take_the_usual_way(compiler: bool) -> None:
    network, plain = accelerate(unet()), unet()
    x, states, mask = noise(2, 4, 8, 8), noise(2, 9, 32, seed=1), torch.ones(2, 9)
    mask[:, 5:] = 0
    with torch.no_grad():
        made, wanted = (
            each(x, torch.tensor(7), states, encoder_attention_mask=mask.bool()).sample
            for each in (network, plain)
        )
    assert error(made, wanted) < CLOSE


def test_autoencoder_both_ways(compiler: bool) -> None:
    network, plain = accelerate(vae()), vae()
    with torch.no_grad():
        for size in ((16, 16), (14, 10)):
            picture = noise(1, 3, *size)
            wanted = plain.encode(picture).latent_dist.mean  # type: ignore[operator]
            assert error(network.encode(picture).latent_dist.mean, wanted) < CLOSE  # type: ignore[operator]
            assert error(network.decode(wanted).sample, plain.decode(wanted).sample) < CLOSE  # type: ignore[operator]


def test_autoencoder_that_joins_and_overwrites(monkeypatch: pytest.MonkeyPatch) -> None:
    # what only pictures beyond a cache do: norms are read through, sums take the place of what was added
    if library() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr("vitrail.kernels.layers._JOINED", 1)
    network, plain = accelerate(vae()), vae()
    with torch.inference_mode():
        z = noise(2, 4, 7, 6)
        given = z.clone()
        wanted = plain.decode(z).sample  # type: ignore[operator]
        for _ in range(2):
            assert error(network.decode(z).sample, wanted) < CLOSE  # type: ignore[operator]
        assert torch.equal(z, given)


@pytest.mark.parametrize(("channels", "filters"), [(48, 24), (48, 48), (40, 17)])
def test_shortcut_over_its_input(monkeypatch: pytest.MonkeyPatch, channels: int, filters: int) -> None:
    built = library()
    if built is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr("vitrail.kernels.layers._PIXELS", 7)
    torch.manual_seed(2)
    layer = FastConv2d(nn.Conv2d(channels, filters, 1).eval().requires_grad_(False), built)
    x = noise(2, channels, 5, 9).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted, place = layer(x), x.data_ptr()
        assert layer.narrows(x)
        made = layer.narrowed(x)
    assert made.data_ptr() == place
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert error(made, wanted) < CLOSE
    assert not layer.narrows(noise(2, channels, 5, 9))  # another layout
    wide = FastConv2d(nn.Conv2d(32, 33, 1).eval().requires_grad_(False), built)
    assert not wide.narrows(noise(1, 32, 4, 4).contiguous(memory_format=torch.channels_last))


def test_unet_that_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr("vitrail.kernels.layers._JOINED", 1)
    x, states = noise(2, 4, 10, 12), noise(2, 7, 32, seed=1)
    assert error(passed(accelerate(unet()), x, states), passed(unet(), x, states)) < CLOSE


def test_upscaler(compiler: bool) -> None:
    torch.manual_seed(0)
    plain = RRDBNet(RRDBConfig(blocks=2, width=32, growth=16)).eval().requires_grad_(False)
    network = accelerate(copy.deepcopy(plain))
    with torch.no_grad():
        for size in ((8, 8), (13, 7)):
            picture = noise(1, 3, *size).sigmoid()
            assert error(network(picture), plain(picture)) < CLOSE
        with circular([network, plain], x=True, y=False):
            assert error(network(picture), plain(picture)) < CLOSE


def test_copies_and_other_types() -> None:
    if library() is None:
        pytest.skip("no C compiler here")
    network, x, states = accelerate(unet()), noise(1, 4, 8, 8), noise(1, 7, 32, seed=1)
    wanted = passed(network, x, states)
    assert torch.equal(passed(copy.deepcopy(network), x, states), wanted)
    doubled = copy.deepcopy(network).double()
    assert error(passed(doubled, x.double(), states.double()).float(), wanted) < CLOSE
    with torch.enable_grad():
        given = x.clone().requires_grad_()
        network(given, torch.tensor(3), states).sample.sum().backward()
        assert given.grad is not None
        twin = x.clone().requires_grad_()
        unet()(twin, torch.tensor(3), states).sample.sum().backward()
        assert twin.grad is not None
        assert error(given.grad, twin.grad) < 1e-4


def test_only_what_it_serves() -> None:
    with pytest.raises(ValueError, match="eval"):
        accelerate(nn.Sequential(nn.Conv2d(32, 32, 3)))
    half = nn.Sequential(nn.Conv2d(32, 32, 3)).eval().half()
    assert type(accelerate(half)[0]) is nn.Conv2d
    few = nn.Sequential(nn.Conv2d(4, 32, 3), nn.Conv2d(32, 32, 3, groups=2), nn.Linear(8, 8)).eval()
    assert [type(layer) for layer in accelerate(few)] == [nn.Conv2d, nn.Conv2d, nn.Linear]


def test_build_is_kept_private_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("no C compiler here")
    # the same sources without the processor's extensions: they build, and the file is found the next time
    first = build(tmp_path / "k", machine=("",))
    stamp = first.stat().st_mtime_ns
    assert first.stat().st_mode & 0o077 == 0
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert build(tmp_path / "k", machine=("",)) == first
    assert first.stat().st_mtime_ns == stamp
    first.chmod(0o722)
    with pytest.raises(OSError, match="other users"):
        build(tmp_path / "k", machine=("",))


def test_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = __import__("vitrail.kernels.library", fromlist=["library"])
    monkeypatch.setenv("VITRAIL_KERNELS", "on")
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    loaded: Callable[[], object] = module._loaded
    module._loaded.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert library_of() is None
        assert "no C compiler" in caplog.text
        network = accelerate(nn.Sequential(nn.Conv2d(32, 32, 3)).eval())
        assert type(network[0]) is nn.Conv2d
    finally:
        module._loaded.cache_clear()
    assert loaded is module._loaded


def test_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'out of cheese' >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(OSError, match="out of cheese"):
        build(tmp_path / "k")
    assert list((tmp_path / "k").iterdir()) == []


def test_plain_enlargement() -> None:
    if library() is None:
        pytest.skip("no C compiler here")
    layer = nn.Conv2d(16, 16, 3, padding=1).eval()
    found = library()
    assert found is not None
    fast, x = FastConv2d(layer, found), noise(1, 16, 5, 4)
    with torch.no_grad():
        wanted = layer(functional.interpolate(x, scale_factor=2.0))
        assert error(fast.run(x, enlarge=2), wanted) < CLOSE
        assert error(fast.run(x.double(), enlarge=2).float(), wanted) < CLOSE
