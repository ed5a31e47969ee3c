"""Convolutions that train on the kernels: the same results and gradients, the same parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.kernels import library
from vitrail.kernels.operations import pack_winograd
from vitrail.kernels.training import TrainedConv2d, packed_filters, train_fast

#: Relative error of Winograd's filtering in float32: 6e-6 to 9e-6 of the largest value (F(6) below 2e-5).
CLOSE = 2e-5


def apart(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize("shape", [(2, 16, 24, 8, 8), (2, 24, 16, 13, 7), (128, 32, 20, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_result_and_gradients_are_those_of_double_precision(
    shape: tuple[int, ...], bias: bool, layout: torch.memory_format
) -> None:
    count, inputs, outputs, height, width = shape
    torch.manual_seed(0)
    layer = train_fast(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))
    assert type(layer) is TrainedConv2d
    x = torch.randn(count, inputs, height, width).to(memory_format=layout).requires_grad_()
    slope = torch.randn(count, outputs, height, width)
    made = layer(x)
    wanted = [x, *layer.parameters()]
    ours = torch.autograd.grad(made, wanted, slope)
    exact = [value.detach().double().requires_grad_() for value in wanted]
    expected = functional.conv2d(exact[0], exact[1], exact[2] if bias else None, padding=1)
    theirs = torch.autograd.grad(expected, exact, slope.double())
    assert apart(made, expected) < CLOSE
    assert [apart(a, b) < CLOSE for a, b in zip(ours, theirs, strict=True)] == [True] * len(wanted)


@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize("shape", [(64, 40), (33, 17), (16, 48)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, None])
def test_filters_are_packed_as_for_pictures(
    shape: tuple[int, int], layout: torch.memory_format | None
) -> None:
    lib = library()
    assert lib is not None
    weight = torch.randn(*shape, 3, 3)
    weight = weight.transpose(2, 3) if layout is None else weight.to(memory_format=layout)
    weight[1], weight[2, 3] = 0.0, 1e-42  # no scale, and one that is far too large for a channel
    expected = pack_winograd(weight, lib.panel).flatten()
    assert torch.equal(packed_filters(lib, weight, turned=False), expected)
    turned = pack_winograd(weight.flip(2, 3).transpose(0, 1), lib.panel).flatten()
    assert torch.equal(packed_filters(lib, weight, turned=True), turned)


@pytest.mark.skipif(library() is None, reason="no C compiler here")
def test_frozen_weights_pass_the_gradient_on_alone() -> None:
    layer = train_fast(nn.Conv2d(16, 16, 3, padding=1)).requires_grad_(False)
    x = torch.randn(1, 16, 12, 12, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert [parameter.grad for parameter in layer.parameters()] == [None, None]


@pytest.mark.skipif(library() is None, reason="no C compiler here")
def test_a_second_derivative_is_refused_not_wrong() -> None:
    layer = train_fast(nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(1, 16, 12, 12, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_only_layers_that_gain_are_changed_and_their_parameters_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
    )
    before = dict(network.named_parameters())
    train_fast(network)
    assert [type(layer) is TrainedConv2d for layer in network] == [False, True, *[False] * 4]
    assert all(value is before[name] for name, value in network.named_parameters())
    assert type(copy.deepcopy(network)[1]) is TrainedConv2d


@pytest.mark.parametrize("case", ["autocast", "double", "few pixels", "no compiler"])
def test_what_the_kernels_do_not_do_goes_through_pytorch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(16, 16, 3, padding=1), torch.randn(1, 16, 12, 12)
    if case == "few pixels":
        x = x[..., :10, :10]
    if case == "double":
        layer, x = layer.double(), x.double()
    if case == "no compiler":
        monkeypatch.setenv("VITRAIL_KERNELS", "off")
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        plain = layer(x)
        made = train_fast(layer)(x)
    assert made.dtype == plain.dtype
    assert torch.equal(made, plain)
