"""Weights that are kept in bfloat16: the same answers to the bit, and no second copy of anything else."""

from __future__ import annotations

import torch
from torch import nn

from vitrail.models.half_weights import in_bfloat16
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.upsampler import Upsampler
from vitrail.recipe import ShellDiTConfig, UpsamplerConfig


def randomised(network: nn.Module) -> nn.Module:
    """Weights that no initialisation left at zero: zeros would agree whatever is done to them."""
    torch.manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(False)


def small() -> ShellDiT:
    config = ShellDiTConfig(
        image_size=16,
        patch=2,
        shell_width=16,
        shell_blocks=1,
        width=32,
        depth=2,
        heads=2,
        text_width=24,
        vocabulary=50,
        word_width=8,
        refiner_depth=1,
        styles=3,
        canvas_width=24,
        canvas_depth=1,
        canvas_channels=8,
    )
    network = randomised(ShellDiT(config))
    assert isinstance(network, ShellDiT)
    return network


def test_answers_are_the_same_to_the_bit() -> None:
    network = small()
    half = in_bfloat16(network)
    generator = torch.Generator().manual_seed(5)
    given = (
        torch.randn(2, 3, 16, 16, generator=generator),
        torch.tensor([0.3, 0.9]),
        torch.randn(2, 8, 24, generator=generator),
        torch.ones(2, 8, dtype=torch.bool),
        torch.randint(50, (2, 8), generator=generator),
        torch.tensor([1, 0]),
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        answer, other = network(*given), half(*given)
    assert answer.std() > 0.01
    assert torch.equal(answer, other)
    with torch.inference_mode():  # the same weights rounded, not the same weights
        assert not torch.equal(network(*given), answer)


def test_an_upsampler_likewise() -> None:
    network = randomised(Upsampler(UpsamplerConfig(width=16, blocks=2, scale=2)))
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(pixels), in_bfloat16(network)(pixels))


def test_only_products_are_converted_and_nothing_else_is_copied() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    half = in_bfloat16(network)
    layers = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    others = 0
    for name, tensor in half.named_parameters():
        if name.rpartition(".")[0] in layers:
            assert tensor.dtype == torch.bfloat16, name
        else:
            assert tensor.data_ptr() == network.get_parameter(name).data_ptr(), name
            others += 1
    assert others > 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
