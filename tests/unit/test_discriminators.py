"""Discriminators: taming's names, what one logit sees, frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.discriminators import (
    ActNorm,
    FeatureDiscriminator,
    PatchDiscriminator,
    build_discriminator,
)
from vitrail.recipe.autoencoders import FeatureDiscriminatorConfig, PatchDiscriminatorConfig

CHANNELS = (4, 8, 16)


def patch(**fields: object) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(PatchDiscriminatorConfig.model_validate({"width": 8} | fields))


def pyramid(x: Tensor) -> Sequence[Tensor]:
    """Maps of 1/4, 1/8 and 1/16 of the picture, with 4, 8 and 16 channels."""
    return [
        functional.avg_pool2d(x, side).repeat(1, 6, 1, 1)[:, :count]
        for side, count in zip((4, 8, 16), CHANNELS, strict=True)
    ]


def feature(**fields: object) -> FeatureDiscriminator:
    torch.manual_seed(0)
    settings = {"feature_channels": CHANNELS, "width": 8} | fields
    return FeatureDiscriminator(FeatureDiscriminatorConfig.model_validate(settings), pyramid)


def test_names_and_shapes_are_those_of_taming() -> None:
    """What its files hold under ``loss.discriminator``: ndf 64, 3 layers, batch norm."""
    torch.manual_seed(0)
    state = PatchDiscriminator(PatchDiscriminatorConfig()).state_dict()  # type: ignore[call-arg]
    shapes = {name: tuple(value.shape) for name, value in state.items() if value.ndim == 4}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    assert {name for name in state if name.endswith("bias")} == {
        "main.0.bias", "main.3.bias", "main.6.bias", "main.9.bias", "main.11.bias",
    }  # fmt: skip
    assert "main.3.running_mean" in state
    assert float(state["main.8.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert float((state["main.9.weight"] - 1).std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_as_many_pixels_as_the_paper_says(layers: int, field: int) -> None:
    network = patch(layers=layers, norm="none").eval()
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = network(x + 0.1)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    rows = gradient[0].abs().sum((0, 2)).nonzero()[:, 0]
    assert int(rows.max() - rows.min()) + 1 == field


def test_actnorm_normalises_its_first_batch_and_then_stays() -> None:
    layer = ActNorm(5).train()
    x = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    first = layer(x)
    assert torch.allclose(first.mean((0, 2, 3)), torch.zeros(5), atol=1e-5)
    assert torch.allclose(first.transpose(0, 1).flatten(1).std(1), torch.ones(5), atol=1e-4)
    kept = layer.loc.detach().clone()
    layer(x * 5)
    assert torch.equal(layer.loc, kept)
    resumed = ActNorm(5).train()
    resumed.load_state_dict(layer.state_dict())
    resumed(x * 5)
    assert torch.equal(resumed.loc, kept)
    untouched = ActNorm(5).eval()
    assert torch.equal(untouched(x), x)


@pytest.mark.parametrize("norm", ["batch", "act", "group", "none"])
def test_patch_discriminator_gives_finite_logits(norm: str) -> None:
    network = patch(norm=norm, layers=2).train()
    x = torch.rand(2, 3, 32, 48, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert logits.shape == (2, 1, 6, 10)
    assert logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


def test_spectral_norm_is_off_unless_asked_for_and_bounds_each_layer() -> None:
    assert not any("parametrizations" in name for name in patch().state_dict())
    network = patch(spectral_norm=True, norm="none", layers=1).train()
    for _ in range(30):
        network(torch.rand(1, 3, 16, 16))
    for layer in network.eval().modules():
        if isinstance(layer, nn.Conv2d):
            largest = torch.linalg.svdvals(layer.weight.flatten(1))[0]
            assert largest.item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("mixing", [True, False])
def test_feature_discriminator_trains_its_heads_alone(mixing: bool) -> None:
    network = feature(mixing=mixing)
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 3, 4, 4), "one map of logits a level, all of the coarsest map's size"
    logits.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any()), "the gradient reaches the picture through the frozen features"
    assert all(name.startswith("heads.") for name, _ in network.named_parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_projections_are_fixed_by_their_seed_and_saved() -> None:
    one, two, other = feature(), feature(), feature(seed=1)
    key = "mix_channels_0"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])
    assert "mix_scales_1" in one.state_dict()
    assert "mix_scales_2" not in one.state_dict()
    # A change in the coarsest map reaches the finest head: scales are mixed.
    x = torch.rand(1, 3, 64, 64)
    maps = list(pyramid(x))
    network = one.attach(lambda _: maps).eval()
    before = network(x)[:, 0]
    maps[2] = maps[2] + 1.0
    assert not torch.allclose(network(x)[:, 0], before)


def test_heads_tell_two_kinds_of_pictures_apart() -> None:
    network = feature().train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        real = torch.rand(4, 3, 32, 32, generator=generator)
        fake = real * torch.tensor([1.0, 0.0]).repeat_interleave(16)  # the right half is black
        loss = functional.relu(1 - network(real)).mean() + functional.relu(1 + network(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_wrong_features_are_named() -> None:
    config = FeatureDiscriminatorConfig.model_validate({"feature_channels": CHANNELS, "width": 8})
    network = build_discriminator(config)
    with pytest.raises(ValueError, match="attach"):
        network(torch.rand(1, 3, 64, 64))
    assert isinstance(network, FeatureDiscriminator)
    network.attach(lambda x: [x])
    with pytest.raises(ValueError, match=r"channels \(3,\)"):
        network(torch.rand(1, 3, 64, 64))
