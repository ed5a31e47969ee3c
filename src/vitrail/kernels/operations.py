"""The kernels as functions of tensors: shapes checked, memory found, the C routine called.

All take and give float32 on the CPU. Pictures are logically (N, C, H, W) and lie channels last in memory.
Nothing here records gradients.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.kernels.library import Library, pointer, scratch
from vitrail.kernels.plan import plan_winograd

__all__ = [
    "Borders",
    "attention",
    "direct",
    "group_norm",
    "index_map",
    "linear",
    "norm_table",
    "pack_direct",
    "pack_panels",
    "pack_winograd",
    "unpack_direct",
    "unpack_panels",
    "unpack_winograd",
    "winograd",
]

DEPTH = 64
"""Columns of one block of the left-hand side, as in ``native/vector.h``."""
_LARGEST = (1 << 23) - 1

_long = ctypes.c_long


@dataclass(frozen=True)
class Borders:
    """What a convolution sees beyond an axis' ends, and whether the picture is enlarged first.

    before, after: places of padding. mode: zeros, circular, reflect or replicate. enlarge: each row (column)
    is repeated so many times before anything is padded (nearest-neighbour enlargement).
    """

    before: int = 0
    after: int = 0
    mode: str = "zeros"
    enlarge: int = 1

    def length(self, size: int) -> int:
        """Return the places of the enlarged and padded axis."""
        return size * self.enlarge + self.before + self.after


@functools.lru_cache(maxsize=512)
def index_map(size: int, borders: Borders, length: int) -> Tensor:
    """Return for ``length`` places of the padded axis the source's place in ``size``, -1 for zero; int32."""
    whole = size * borders.enlarge
    place = torch.arange(length) - borders.before
    inside = torch.arange(whole)
    if borders.mode == "zeros":
        source = torch.where((place >= 0) & (place < whole), place, -1)
    else:
        margins = (borders.before, borders.after)
        padded = functional.pad(inside[None, None].double(), margins, mode=borders.mode)[0, 0].long()
        source = torch.full((length,), -1)
        count = min(length, len(padded))
        source[:count] = padded[:count]
    return torch.where(source >= 0, source // borders.enlarge, -1).int()


def pack_winograd(weight: Tensor, panel: int) -> Tensor:
    """(K, C, 3, 3) -> (ceil(K / panel), bytes): rows [C][9], as :func:`pack_panels` writes them."""
    filters, channels = weight.shape[:2]
    return pack_panels(weight.reshape(filters, channels * 9), panel)


def unpack_winograd(packed: Tensor, filters: int, panel: int) -> Tensor:
    """Return (K, C, 3, 3) of :func:`pack_winograd`'s result."""
    flat = unpack_panels(packed, panel)
    return flat[:filters].reshape(filters, flat.shape[1] // 9, 3, 3)


def pack_direct(weight: Tensor, panel: int) -> Tensor:
    """(K, C, *taps) -> (ceil(K / panel), bytes): rows [tap][ceil(C / 64) * 64], missing ones 0."""
    filters, channels = weight.shape[:2]
    flat = functional.pad(weight.reshape(filters, channels, -1), (0, 0, 0, -channels % DEPTH))
    return pack_panels(flat.transpose(1, 2).reshape(filters, -1), panel)


def unpack_direct(packed: Tensor, shape: tuple[int, ...], panel: int) -> Tensor:
    """Return the weight of :func:`pack_direct`; ``shape``: its own."""
    taps = math.prod(shape[2:])
    rows = unpack_panels(packed, panel)
    flat = rows.reshape(len(rows), taps, -1).transpose(1, 2)
    return flat[: shape[0], : shape[1]].reshape(shape).contiguous()


def pack_panels(rows: Tensor, panel: int) -> Tensor:
    """(K, R) float32 -> (ceil(K / panel), 4 panel + 3 panel R) uint8: whole numbers of 24 bits and a scale.

    The scale of a row is its largest magnitude over 2^23 - 1, so each weight is kept to 2^-24 of that: what
    float32 sums of such weights lose anyway, in three quarters of the memory. A panel is its scales
    (float32), then for each place of R the upper 16 bits of all its rows, then their lower 8.
    """
    filters, length = rows.shape
    panels = -(-filters // panel)
    packed = torch.empty(panels, panel * (4 + 3 * length), dtype=torch.uint8)
    for number in range(panels):
        part = rows[number * panel : (number + 1) * panel].float()
        part = functional.pad(part, (0, 0, 0, panel - len(part)))
        scale = part.abs().amax(1) / _LARGEST
        # below the smallest normal number nothing is left of a weight
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, 0.0, scale)
        whole = (
            (part / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None])
            .round_()
            .clamp_(-_LARGEST, _LARGEST)
        )
        columns = torch.where(scale[:, None] > 0, whole, 0.0).T.int()
        packed[number, : 4 * panel] = scale.view(torch.uint8)
        into = packed[number, 4 * panel :].view(length, 3 * panel)
        into[:, : 2 * panel] = (columns >> 8).short().contiguous().view(torch.uint8)
        into[:, 2 * panel :] = (columns & 255).to(torch.uint8)
    return packed


def unpack_panels(packed: Tensor, panel: int) -> Tensor:
    """Return (panels * panel, R) float32 of :func:`pack_panels`'s result."""
    scale = packed[:, : 4 * panel].contiguous().view(torch.float32)
    body = packed[:, 4 * panel :].reshape(len(packed), -1, 3 * panel)
    upper = body[..., : 2 * panel].contiguous().view(torch.int16).int()
    whole = (upper * 256 + body[..., 2 * panel :]).float() * scale[:, None]
    return whole.transpose(1, 2).reshape(len(packed) * panel, -1)


def winograd(
    lib: Library,
    x: Tensor,
    packed: Tensor,
    filters: int,
    bias: Tensor | None = None,
    *,
    y_borders: Borders,
    x_borders: Borders,
    residual: Tensor | None = None,
    scale: float = 1.0,
    slope: float = 1.0,
    out: int | None = None,
    into: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Return a 3x3 convolution of stride 1.

    x: (N, C, H, W). packed: :func:`pack_winograd`. bias: (K,) or (N, K), added to each pixel. scale: factor
    of all that. residual: (N, K, h, w), added then. slope: factor of what is negative then. out: outputs a
    tile and side (2, 4, 6); chosen by :func:`~vitrail.kernels.plan.plan_winograd` where it is not given.
    into: where the result goes, ``residual`` itself if you like. x, residual and into may be some channels of
    a larger picture, channels last. table: (N, 2, C) of :func:`norm_table`: the normalised x is convolved,
    after SiLU.
    """
    count, channels, height, width = x.shape
    high, wide = y_borders.length(height) - 2, x_borders.length(width) - 2
    x, x_step = _pixels(x)
    if into is None:
        into = _pictures(lib, count, filters, high, wide)
    into, y_step = _pixels(into, copy=False)
    added, residual_step = (None, 0) if residual is None else _pixels(residual.expand(into.shape))
    plan = plan_winograd(count, channels, filters, high, wide, lib.panel, lib.threads, out)
    down, across = -(-high // plan.out), -(-wide // plan.out)
    rows = index_map(height, y_borders, down * plan.out + 2)
    columns = index_map(width, x_borders, across * plan.out + 2)
    sizes = (plan.out, _long(channels), _long(plan.super), _long(plan.block), _long(plan.group), lib.threads)
    memory = scratch(lib, lib.raw.vitrail_winograd_scratch(*sizes))
    lib.raw.vitrail_winograd(
        plan.out, pointer(x), _long(x_step), _long(count), _long(height), _long(width), _long(channels),
        pointer(packed), _long(filters), pointer(into), _long(y_step), _long(high), _long(wide),
        pointer(rows), pointer(columns), pointer(bias), _stride(bias), pointer(added), _long(residual_step),
        ctypes.c_float(scale), ctypes.c_float(slope), pointer(table), pointer(memory), _long(plan.super),
        _long(plan.block), _long(plan.group), lib.threads,
    )  # fmt: skip
    return into


def direct(
    lib: Library,
    x: Tensor,
    packed: Tensor,
    filters: int,
    bias: Tensor | None = None,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    y_borders: Borders,
    x_borders: Borders,
    residual: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """Return a convolution of any kernel and stride; arguments as :func:`winograd`'s."""
    count, channels, height, width = x.shape
    high = (y_borders.length(height) - kernel[0]) // stride[0] + 1
    wide = (x_borders.length(width) - kernel[1]) // stride[1] + 1
    x = x.contiguous(memory_format=torch.channels_last)
    made = _pictures(lib, count, filters, high, wide)
    plain = kernel == stride == (1, 1) and y_borders == x_borders == Borders()
    rows = None if plain else index_map(height, y_borders, y_borders.length(height))
    columns = None if plain else index_map(width, x_borders, x_borders.length(width))
    _run_direct(
        lib, x, packed, made, bias, _like(residual, made), (count, height, width, channels), filters,
        (high, wide), (rows, columns), kernel, stride, slope, False,
    )  # fmt: skip
    return made


def linear(
    lib: Library,
    x: Tensor,
    packed: Tensor,
    columns: int,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """Return ``x`` (..., C) times the packed (columns, C) matrix, plus bias, plus residual.

    gated: the left half of the columns times the Gaussian error linear unit of the right half instead
    (C at most 2,048, half of the columns a multiple of the panel).
    """
    shape, depth = x.shape[:-1], x.shape[-1]
    x = x.contiguous()
    rows = x.numel() // depth
    made = lib.large_pages(torch.empty((*shape, columns // 2 if gated else columns)))
    added = None if residual is None else residual.expand(made.shape).contiguous()
    _run_direct(
        lib, x, packed, made, bias, added, (1, 1, rows, depth), columns, (1, rows), (None, None), (1, 1),
        (1, 1), 1.0, gated,
    )  # fmt: skip
    return made


def _run_direct(
    lib: Library,
    x: Tensor,
    packed: Tensor,
    made: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    source: tuple[int, int, int, int],
    filters: int,
    size: tuple[int, int],
    maps: tuple[Tensor | None, Tensor | None],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    slope: float,
    gated: bool,
) -> None:
    threads = lib.threads
    depth = -(-source[3] // DEPTH) * DEPTH * kernel[0] * kernel[1]
    rows = source[0] * size[0] * size[1]
    memory = scratch(lib, lib.raw.vitrail_direct_scratch(_long(rows), _long(depth), int(gated), threads))
    # 2 MB of weights at a time stay in the last cache while all rows pass
    panel_bytes = packed[0].numel() * (2 if gated else 1)
    group = max(1, min((2 << 20) // min(panel_bytes, 2048 * 3 * lib.panel), 16))
    lib.raw.vitrail_direct(
        pointer(x), *map(_long, source), pointer(packed), _long(filters), pointer(made), *map(_long, size),
        *map(pointer, maps), *map(_long, kernel), *map(_long, stride), pointer(bias), _stride(bias),
        pointer(residual), ctypes.c_float(slope), int(gated), pointer(memory), _long(group), threads,
    )  # fmt: skip


def group_norm(
    lib: Library,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    silu: bool,
) -> Tensor:
    """Return the group normalisation of ``x`` (N, C, *), channels last, then SiLU if asked for."""
    x = _channels_last(x)
    made = lib.large_pages(torch.empty_like(x))
    _run_norm(lib, x, groups, weight, bias, eps, silu, made, None)
    return made


def norm_table(
    lib: Library, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return (N, 2, C): what the group normalisation of ``x`` multiplies each channel by, and then adds."""
    table = torch.empty(x.shape[0], 2, x.shape[1])
    _run_norm(lib, _channels_last(x), groups, weight, bias, eps, False, None, table)
    return table


def _run_norm(
    lib: Library,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    made: Tensor | None,
    table: Tensor | None,
) -> None:
    count, channels = x.shape[:2]
    pixels = x.numel() // max(count * channels, 1)
    sizes = (_long(count), _long(pixels), _long(channels))
    memory = scratch(lib, lib.raw.vitrail_group_norm_scratch(*sizes))
    lib.raw.vitrail_group_norm(
        pointer(x), *sizes, _long(groups), pointer(weight), pointer(bias), ctypes.c_double(eps), int(silu),
        pointer(made), pointer(table), pointer(memory), lib.threads,
    )  # fmt: skip


def attention(lib: Library, query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """Return softmax(query key^T scale) value, head by head.

    query: (B, Q, heads * d), key and value: (B, K, heads * d), each row contiguous. The result is (B, Q,
    heads * d).
    """
    batch, queries, inner = query.shape
    count, width = key.shape[1], inner // heads
    query, key, value = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value)
    )
    made = lib.large_pages(torch.empty(batch, queries, inner))
    # keys and values of so many heads lie packed at once as the last cache holds
    packed_bytes = 2 * count * max(width, DEPTH) * 4
    turn = max(lib.threads, min(batch * heads, (8 << 20) // packed_bytes))
    memory = scratch(
        lib, lib.raw.vitrail_attention_scratch(_long(count), _long(width), _long(turn), lib.threads)
    )
    lib.raw.vitrail_attention(
        pointer(query), pointer(key), pointer(value), pointer(made), _long(batch), _long(heads),
        _long(queries), _long(count), _long(width), *(_long(part.stride(1)) for part in (query, key, value)),
        *(_long(part.stride(0)) for part in (query, key, value)), ctypes.c_float(scale), pointer(memory),
        _long(turn), lib.threads,
    )  # fmt: skip
    return made


def _pictures(lib: Library, *shape: int) -> Tensor:
    return lib.large_pages(torch.empty(shape, memory_format=torch.channels_last))


def _stride(bias: Tensor | None) -> ctypes.c_long:
    return _long(bias.stride(0) if bias is not None and bias.ndim == 2 else 0)


def _like(residual: Tensor | None, made: Tensor) -> Tensor | None:
    return (
        None
        if residual is None
        else residual.expand(made.shape).contiguous(memory_format=torch.channels_last)
    )


def _pixels(x: Tensor, *, copy: bool = True) -> tuple[Tensor, int]:
    """Return ``x`` (N, C, H, W) with pixels of C contiguous floats, and the floats from pixel to pixel."""
    count, channels, height, width = x.shape
    step = x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0) if count > 1 else channels
    wanted = (height * width * step, 1, width * step, step)
    given = zip(x.shape, x.stride(), wanted, strict=True)
    if step >= channels and all(size == 1 or have == want for size, have, want in given):
        return x, step
    if not copy:
        raise ValueError(f"strides {x.stride()} of {tuple(x.shape)} are not channels last")
    return x.contiguous(memory_format=torch.channels_last), channels


def _channels_last(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
