"""Every kernel against PyTorch's own operation, in float64, on random shapes, odd sizes and strides."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from vitrail.kernels import library
from vitrail.kernels.layers import FastConv2d, FastLinear
from vitrail.kernels.library import Library
from vitrail.kernels.operations import (
    Borders,
    attention,
    direct,
    group_norm,
    index_map,
    linear,
    norm_table,
    pack_direct,
    pack_winograd,
    unpack_direct,
    unpack_winograd,
    winograd,
)
from vitrail.kernels.winograd import matrices, winograd_conv2d

# float32 has 24 bits: sums of a few thousand products of independent signs keep about 1e-6
EXACT = 3e-6
WINOGRAD = {2: 3e-6, 4: 1e-5, 6: 4e-5}


@pytest.fixture(scope="module")
def lib() -> Library:
    found = library()
    if found is None:
        pytest.skip("no C compiler here")
    return found


def error(made: Tensor, wanted: Tensor, scale: Tensor | None = None) -> float:
    """Relative to ``wanted``, or to ``scale``: the sums of absolute products, which do not cancel."""
    assert made.shape == wanted.shape
    return float(
        (made.double() - wanted).norm() / (wanted if scale is None else scale).norm().clamp_min(1e-30)
    )


def kept(made: Tensor, weight: Tensor) -> bool:
    """Whether weights are what 24 bits keep of them: 2^-23 of the largest of each filter."""
    off = (made - weight).abs().flatten(1).amax(1)
    return made.shape == weight.shape and bool((off <= weight.abs().flatten(1).amax(1) * 2.0**-23).all())


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("out", [2, 4, 6])
def test_plain_winograd_is_the_convolution(out: int) -> None:
    x, weight, bias = draw(0, 2, 5, 13, 9).double(), draw(1, 7, 5, 3, 3).double(), draw(2, 7).double()
    # the identity holds exactly; float64 leaves rounding alone
    assert error(winograd_conv2d(x, weight, bias, out=out), functional.conv2d(x, weight, bias)) < 1e-12


@pytest.mark.parametrize("out", [2, 4, 6])
def test_matrices_are_exact_on_a_line(out: int) -> None:
    to_output, to_filter, to_input = matrices(out)
    line, taps = draw(0, out + 2).double(), draw(1, 3).double()
    made = to_output @ ((to_filter @ taps) * (to_input @ line))
    assert torch.allclose(made, functional.conv1d(line[None, None], taps[None, None])[0, 0])


@settings(max_examples=60, deadline=None)
@given(
    out=st.sampled_from([2, 4, 6]),
    count=st.integers(1, 3),
    channels=st.integers(1, 150),
    filters=st.integers(1, 90),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    padding=st.integers(0, 2),
    modes=st.tuples(*[st.sampled_from(["zeros", "circular", "replicate", "reflect"])] * 2),
    enlarge=st.sampled_from([1, 2]),
    extras=st.integers(0, 7),
)
def test_winograd_on_any_shape(
    out: int,
    count: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
    padding: int,
    modes: tuple[str, str],
    enlarge: int,
    extras: int,
) -> None:
    lib = library()
    if lib is None:
        pytest.skip("no C compiler here")
    sizes = (height * enlarge, width * enlarge)
    for size, mode in zip(sizes, modes, strict=True):
        if size + 2 * padding < 3 or padding > {"circular": size, "reflect": size - 1}.get(mode, 99):
            return
    x, weight = draw(channels, count, channels, height, width), draw(filters, filters, channels, 3, 3)
    bias = (None, draw(3, filters), draw(3, count, filters))[extras % 3]
    wanted = x.double()
    if enlarge == 2:
        wanted = functional.interpolate(wanted, scale_factor=2.0, mode="nearest")
    names = ["constant" if mode == "zeros" else mode for mode in modes]
    wanted = functional.pad(wanted, (0, 0, padding, padding), mode=names[0])
    wanted = functional.pad(wanted, (padding, padding, 0, 0), mode=names[1])
    wanted = functional.conv2d(wanted, weight.double())
    if bias is not None:
        wanted = wanted + bias.double().view(-1, filters, 1, 1)
    residual = draw(4, *wanted.shape) if extras & 1 else None
    if residual is not None:
        wanted = 0.5 * wanted + residual
    slope = 0.2 if extras & 2 else 1.0
    made = winograd(
        lib,
        x.contiguous(memory_format=torch.channels_last) if extras & 4 else x,
        pack_winograd(weight, lib.panel),
        filters,
        bias,
        y_borders=Borders(padding, padding, modes[0], enlarge),
        x_borders=Borders(padding, padding, modes[1], enlarge),
        residual=residual,
        scale=1.0 if residual is None else 0.5,
        slope=slope,
        out=out,
    )
    assert error(made, functional.leaky_relu(wanted, slope)) < WINOGRAD[out]


def test_winograd_inside_a_larger_picture(lib: Library) -> None:
    # the first 24 channels are read, the next 40 written: nothing else may change
    whole = draw(0, 2, 90, 11, 10).contiguous(memory_format=torch.channels_last)
    before, weight = whole.clone(), draw(1, 40, 24, 3, 3)
    same = {"y_borders": Borders(1, 1), "x_borders": Borders(1, 1)}
    winograd(lib, whole[:, :24], pack_winograd(weight, lib.panel), 40, None, into=whole[:, 24:64], **same)
    assert (
        error(whole[:, 24:64], functional.conv2d(before[:, :24].double(), weight.double(), padding=1)) < 1e-5
    )
    assert torch.equal(whole[:, :24], before[:, :24])
    assert torch.equal(whole[:, 64:], before[:, 64:])
    with pytest.raises(ValueError, match="channels last"):
        winograd(
            lib, whole[:, :24], pack_winograd(weight, lib.panel), 40, into=draw(2, 2, 40, 11, 10), **same
        )


@pytest.mark.parametrize("out", [2, 4, 6])
@pytest.mark.parametrize("shape", [(2, 70, 13, 9), (1, 16, 3, 20)])
def test_winograd_of_a_normalised_picture(lib: Library, out: int, shape: tuple[int, ...]) -> None:
    x, weight, filters = draw(0, *shape) * 3 + 1, draw(1, 33, shape[1], 3, 3), 33
    factor, summand = draw(2, shape[1]), draw(3, shape[1])
    plain = functional.silu(functional.group_norm(x.double(), 2, factor.double(), summand.double(), 1e-6))
    wanted = functional.conv2d(
        functional.pad(plain, (1, 1, 0, 0), mode="circular"), weight.double(), padding=(1, 0)
    )
    kept_back = draw(4, *wanted.shape).contiguous(memory_format=torch.channels_last)
    wanted = wanted + kept_back
    made = winograd(
        lib, x, pack_winograd(weight, lib.panel), filters, y_borders=Borders(1, 1), residual=kept_back,
        x_borders=Borders(1, 1, "circular"), into=kept_back, out=out,
        table=norm_table(lib, x, 2, factor, summand, 1e-6),
    )  # fmt: skip
    assert made.data_ptr() == kept_back.data_ptr()  # the sum took the place of what was added
    assert error(made, wanted) < WINOGRAD[out]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3),
    channels=st.integers(1, 140),
    filters=st.integers(1, 90),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 2),
    extras=st.integers(0, 7),
)
def test_direct_on_any_shape(
    count: int,
    channels: int,
    filters: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
    extras: int,
) -> None:
    lib = library()
    if lib is None:
        pytest.skip("no C compiler here")
    if any(side + 2 * padding < length for side, length in zip(size, kernel, strict=True)):
        return
    x, weight = draw(0, count, channels, *size), draw(1, filters, channels, *kernel)
    wanted = functional.conv2d(x.double(), weight.double(), stride=stride, padding=padding)
    bias = draw(2, count, filters) if extras & 1 else None
    residual = draw(3, *wanted.shape) if extras & 2 else None
    if bias is not None:
        wanted = wanted + bias.double()[:, :, None, None]
    if residual is not None:
        wanted = wanted + residual
    slope = 0.1 if extras & 4 else 1.0
    made = direct(
        lib, x, pack_direct(weight, lib.panel), filters, bias, kernel=kernel, stride=stride,
        y_borders=Borders(padding, padding), x_borders=Borders(padding, padding), residual=residual,
        slope=slope,
    )  # fmt: skip
    # A picture of one pixel may be one sum that cancels; its rounding is that of what was added up.
    scale = functional.conv2d(x.double().abs(), weight.double().abs(), stride=stride, padding=padding)
    if bias is not None:
        scale = scale + bias.double().abs()[:, :, None, None]
    if residual is not None:
        scale = scale + residual.double().abs()
    assert error(made, functional.leaky_relu(wanted, slope), scale) < EXACT / 3


def test_direct_deeper_than_one_gathering(lib: Library) -> None:
    # 9 taps of 320 channels are more than the 2,048 columns gathered at a time; 37 filters: a part panel
    x, weight, bias = draw(0, 1, 320, 9, 8), draw(1, 37, 320, 3, 3), draw(2, 37)
    same = {"y_borders": Borders(1, 1), "x_borders": Borders(1, 1)}
    made = direct(lib, x, pack_direct(weight, lib.panel), 37, bias, kernel=(3, 3), stride=(2, 2), **same)
    wanted = functional.conv2d(x.double(), weight.double(), bias.double(), stride=2, padding=1)
    assert error(made, wanted) < EXACT


# Always the same shapes: a single number whose sum cancels (1 x 132 x 1) is 7e-6 off relative to itself, and
# whether one is drawn must not decide a run.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 130), depth=st.integers(1, 200), columns=st.integers(1, 150), extras=st.integers(0, 3)
)
def test_linear_on_any_shape(rows: int, depth: int, columns: int, extras: int) -> None:
    lib = library()
    if lib is None:
        pytest.skip("no C compiler here")
    x, weight, bias = draw(0, rows, depth), draw(1, columns, depth), draw(2, columns)
    wanted = functional.linear(x.double(), weight.double(), bias.double() if extras & 1 else None)
    residual = draw(3, rows, columns) if extras & 2 else None
    made = linear(
        lib, x, pack_direct(weight, lib.panel), columns, bias if extras & 1 else None, residual=residual
    )
    assert error(made, wanted if residual is None else wanted + residual) < EXACT


def test_gated_linear(lib: Library) -> None:
    x, weight, bias = draw(0, 3, 71, 100), draw(1, 8 * lib.panel, 100) / 10, draw(2, 8 * lib.panel)
    left, right = functional.linear(x.double(), weight.double(), bias.double()).chunk(2, -1)
    made = linear(lib, x, pack_direct(weight, lib.panel), 8 * lib.panel, bias, gated=True)
    assert error(made, left * functional.gelu(right)) < EXACT


def test_packing_there_and_back(lib: Library) -> None:
    for filters, channels in ((1, 1), (33, 5), (64, 64), (7, 130)):
        weight = draw(0, filters, channels, 3, 3) * 10.0 ** draw(1, filters, 1, 1, 1)
        assert kept(unpack_winograd(pack_winograd(weight, lib.panel), filters, lib.panel), weight)
        for shape in ((filters, channels, 3, 2), (filters, channels)):
            weight = draw(1, *shape)
            assert kept(unpack_direct(pack_direct(weight, lib.panel), shape, lib.panel), weight)


def test_packing_of_odd_weights(lib: Library) -> None:
    # nothing, next to nothing, huge, whole numbers
    weight = torch.stack(
        [torch.zeros(70), torch.full((70,), 1e-40), draw(0, 70) * 1e37, torch.arange(70.0), -draw(1, 70)]
    )
    made = unpack_direct(pack_direct(weight, lib.panel), (5, 70), lib.panel)
    assert kept(made[2:], weight[2:])
    assert made[:2].abs().max() <= 1e-30
    # what was packed once stays as it is: a weight that is read and put back does not wander
    again = unpack_direct(pack_direct(made, lib.panel), (5, 70), lib.panel)
    assert kept(again, made)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    queries=st.integers(1, 300),
    count=st.integers(1, 600),
    width=st.integers(1, 90),
)
def test_attention_on_any_shape(batch: int, heads: int, queries: int, count: int, width: int) -> None:
    lib = library()
    if lib is None:
        pytest.skip("no C compiler here")
    query, key, value = (
        draw(n, batch, size, heads * width) for n, size in enumerate((queries, count, count))
    )
    parts = [tensor.double().unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value)]
    wanted = functional.scaled_dot_product_attention(*parts, scale=0.3).transpose(1, 2).flatten(2)
    assert error(attention(lib, query, key, value, heads, 0.3), wanted) < 2e-5  # scores of up to 30


def test_attention_with_huge_scores_and_shared_keys(lib: Library) -> None:
    query, key, value = 100 * draw(0, 2, 40, 64), draw(1, 1, 300, 64), draw(2, 1, 300, 64)
    key, value = key.expand(2, -1, -1), value.expand(2, -1, -1)
    wanted = torch.softmax(query.double() @ key.double().transpose(1, 2) * 0.125, -1) @ value.double()
    assert (
        error(attention(lib, query, key, value, 1, 0.125), wanted) < 1e-4
    )  # scores of hundreds lose 2 digits


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 48, 13, 11), 8), ((1, 20, 1, 1), 5), ((3, 6, 200), 2), ((2, 8), 2)]
)
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm(lib: Library, shape: tuple[int, ...], groups: int, silu: bool) -> None:
    # a mean a hundred times the spread must cost no digits
    x, weight, bias = draw(0, *shape) + 100, draw(1, shape[1]), draw(2, shape[1])
    wanted = functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    wanted = functional.silu(wanted) if silu else wanted
    made = group_norm(lib, x, groups, weight, bias, 1e-5, silu=silu)
    assert (made.double() - wanted).abs().max() < 1e-4  # 100 has a rounding step of 8e-6
    assert error(group_norm(lib, x - 100, groups, weight, bias, 1e-5, silu=silu), wanted) < 1e-4


def test_what_is_not_a_number_stays_so(lib: Library) -> None:
    x, weight = draw(0, 1, 32, 8, 8), draw(1, 32, 32, 3, 3)
    x[0, 3, 4, 4] = torch.nan
    same = {"y_borders": Borders(1, 1), "x_borders": Borders(1, 1)}
    packed = pack_winograd(weight, lib.panel)
    assert winograd(lib, x, packed, 32, **same, slope=0.2)[0, :, 3:6, 3:6].isnan().all()
    assert group_norm(lib, x, 8, None, None, 1e-5, silu=True)[0, :4].isnan().all()
    rows = x.flatten(2).transpose(1, 2)
    matrix = pack_direct(draw(2, 2 * lib.panel, 32), lib.panel)
    assert linear(lib, rows, matrix, 2 * lib.panel, gated=True)[0, 36].isnan().all()
    mixed = attention(lib, rows, rows, rows, 1, 1.0)
    assert mixed[0, :, 3].isnan().all()


def test_threads_give_the_same_bits(lib: Library) -> None:
    x, weight = draw(0, 2, 70, 30, 30), draw(1, 100, 70, 3, 3)
    rows = x.flatten(2).transpose(1, 2).contiguous()
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(
                (
                    winograd(
                        lib,
                        x,
                        pack_winograd(weight, lib.panel),
                        100,
                        y_borders=Borders(1, 1),
                        x_borders=Borders(1, 1),
                    ),
                    linear(lib, rows, pack_direct(weight[:, :, 0, 0].contiguous(), lib.panel), 100),
                    attention(lib, rows, rows, rows, 7, 0.1),
                    group_norm(lib, x, 10, None, None, 1e-5, silu=True),
                )
            )
    finally:
        torch.set_num_threads(before)
    for one, other in itertools.pairwise(made):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_index_map_names_the_source() -> None:
    assert index_map(3, Borders(1, 1), 7).tolist() == [-1, 0, 1, 2, -1, -1, -1]
    assert index_map(3, Borders(1, 1, "circular", 2), 8).tolist() == [2, 0, 0, 1, 1, 2, 2, 0]
    assert index_map(3, Borders(2, 0, "reflect"), 5).tolist() == [2, 1, 0, 1, 2]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(20, 40, 3, padding=1),
        nn.Conv2d(20, 40, 3, padding="same", padding_mode="circular"),
        nn.Conv2d(16, 16, 5, stride=2, padding=(1, 2), bias=False),
        nn.Conv2d(16, 16, (1, 5), padding="same"),
        nn.Conv2d(64, 32, 1),
        nn.Conv2d(32, 32, 3, padding=(0, 1), padding_mode="reflect"),
    ],
)
def test_convolution_layer(lib: Library, layer: nn.Conv2d) -> None:
    assert FastConv2d.fits(layer)
    x = draw(0, 2, layer.in_channels, 9, 12)
    fast = FastConv2d(layer, lib)
    with torch.no_grad():
        assert error(fast(x), layer(x).double()) < 1e-5
        assert kept(fast.weight, layer.weight)
        fast.load_weight(layer.weight * 2)
        assert kept(fast.weight, layer.weight * 2)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        fast.weight.mul_(2)  # it would be lost
    with pytest.raises(ValueError, match="shape"):
        fast.load_weight(torch.zeros(2, 2))
    # gradients and other types go through PyTorch's own operation
    fast.load_weight(layer.weight)
    layer = layer.double()
    for other in (x.clone().requires_grad_(), x.double()):
        assert error(fast(other).detach(), layer(other.double()).detach()) < 1e-5


@pytest.mark.parametrize("shape", [(5, 48), (2, 7, 48), (1, 2, 3, 48)])
def test_linear_layer(lib: Library, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(48, 4 * lib.panel)
    fast, x = FastLinear(layer, lib), draw(0, *shape)
    with torch.no_grad():
        assert error(fast(x), layer(x).double()) < EXACT
        left, right = layer(x).double().chunk(2, -1)
        assert error(fast.run(x, gated=True), left * functional.gelu(right)) < EXACT
    given = x.clone().requires_grad_()
    fast(given).sum().backward()
    assert given.grad is not None
    assert torch.allclose(given.grad, layer.weight.sum(0).expand(shape), atol=1e-5)
