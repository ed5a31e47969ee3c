"""ShellDiT, Upsampler and the registry that builds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import ArtifactError
from vitrail.models.registry import build
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.upsampler import Upsampler
from vitrail.recipe import ShellDiTConfig, UpsamplerConfig


def small_config(**changes: object) -> ShellDiTConfig:
    fields: dict[str, object] = {
        "image_size": 16, "patch": 2, "shell_width": 16, "shell_blocks": 1, "width": 32, "depth": 2,
        "heads": 2, "text_width": 24, "vocabulary": 50, "word_width": 8, "styles": 3,
    }  # fmt: skip
    return ShellDiTConfig.model_validate(fields | changes)


def scrambled(network: nn.Module) -> nn.Module:
    """Give every tensor random values: the zeros that a network starts from would hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25)
    return network.eval()


def inputs(batch: int = 3, tokens: int = 5) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[0, 3:] = False
    return (
        torch.randn(batch, 3, 16, 16),
        torch.rand(batch),
        torch.randn(batch, tokens, 24),
        mask,
        torch.randint(0, 50, (batch, tokens)),
        torch.randint(0, 4, (batch,)),
    )


@torch.no_grad()
def test_shell_dit_returns_pictures_and_starts_from_mid_grey() -> None:
    fresh = ShellDiT(small_config())
    result = fresh(*inputs())
    assert result.shape == (3, 3, 16, 16)
    assert result.dtype == torch.float32
    assert not result.any(), "the last layer begins at zero, so the first guess is mid-grey"


@torch.no_grad()
def test_padding_words_and_neighbours_in_the_batch_change_nothing() -> None:
    network = scrambled(ShellDiT(small_config()))
    x, t, states, mask, ids, styles = inputs()
    together = network(x, t, states, mask, ids, styles)
    other = states.clone()
    other[0, 3:] = 99.0
    torch.testing.assert_close(network(x, t, other, mask, ids, styles), together)
    alone = network(x[:1], t[:1], states[:1, :3], mask[:1, :3], ids[:1, :3], styles[:1])
    # float32 sums of another length in another order
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("which", ["x", "t", "states", "ids", "styles"])
def test_every_input_reaches_the_output(which: str) -> None:
    network = scrambled(ShellDiT(small_config()))
    names = ("x", "t", "states", "mask", "ids", "styles")
    given = dict(zip(names, inputs(), strict=True))
    before = network(*given.values())
    changed = {"ids": (given["ids"] + 1) % 50, "styles": (given["styles"] + 1) % 4}.get(
        which, given[which] * 0.5
    )
    after = network(*(given | {which: changed}).values())
    assert (after - before).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_gradient_reaches_every_parameter_but_unused_words() -> None:
    network = scrambled(ShellDiT(small_config()))
    network(*inputs()).square().mean().backward()
    without = [
        name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()
    ]
    assert without == []


@torch.no_grad()
@pytest.mark.parametrize("scale", [2, 4])
def test_upsampler_starts_as_bicubic_and_keeps_any_shape(scale: int) -> None:
    network = Upsampler(UpsamplerConfig(scale=scale, width=8, blocks=2))  # type: ignore[arg-type]
    x = torch.rand(2, 3, 5, 9) * 2 - 1
    torch.testing.assert_close(network(x), functional.interpolate(x, scale_factor=scale, mode="bicubic"))
    scrambled(network)
    assert network(x).shape == (2, 3, 5 * scale, 9 * scale)


def test_registry_builds_by_kind_and_refuses_the_rest_in_one_line() -> None:
    assert isinstance(build("shell_dit", small_config().model_dump()), ShellDiT)
    assert isinstance(build("upsampler", UpsamplerConfig(scale=2)), Upsampler)
    with pytest.raises(ArtifactError, match=r"'vqvae' is unknown; allowed: .*shell_dit, .*upsampler"):
        build("vqvae", {})
    with pytest.raises(ArtifactError, match="heads 5") as caught:
        build("shell_dit", small_config().model_dump() | {"heads": 5})
    assert "\n" not in str(caught.value)
