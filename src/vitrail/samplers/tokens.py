"""From a token model to codes: one after the other, or all at once and the surest first.

Plain functions of a model, what is known already, and a generator a picture. Codes are int64 (B, H, W); -1
stands for a code not known yet, so drawing, inpainting, outpainting and varying are one call: whatever is
known stays. Picture i draws all its random numbers from ``generators[i]``, so it does not depend on the
pictures beside it. Guidance is classifier-free (Ho & Salimans, arXiv:2207.12598, on logits): the model then
reads 2 B rows, the wanted conditions first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from vitrail.errors import InputError, NonFiniteError

__all__ = [
    "UNKNOWN",
    "CodeReader",
    "MaskedModel",
    "choose",
    "cosine_schedule",
    "filtered",
    "guided",
    "gumbel",
    "sample_autoregressive",
    "sample_maskgit",
    "windowed",
    "windows_read",
]

UNKNOWN = -1
"""Stands for a code that is to be drawn."""

Report: TypeAlias = Callable[[int, int, Tensor], None]
"""(steps done, steps in all, codes (B, H, W) as they stand) -> None; may raise to stop."""


class CodeReader(Protocol):
    """A causal model with its conditions, read code after code over a window of ``rows`` x ``columns``."""

    rows: int
    columns: int

    def begin(self, past: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Start anew: read codes (B, m) of a window, its first m; return the logits (B, K) of the next.

        ``prefix`` (B, P): condition codes of this window, where they move with it.
        """
        ...

    def advance(self, code: Tensor) -> Tensor:
        """Read one more code (B,); return the logits (B, K) of the next."""
        ...


MaskedModel: TypeAlias = Callable[[Tensor], Tensor]
"""Codes (R, H, W), -1 where unknown -> logits (R, H, W, K). R is B, or 2 B under guidance: the wanted
conditions, then the unwanted ones."""


def guided(wanted: Tensor, unwanted: Tensor, scale: float) -> Tensor:
    """Return unwanted + scale * (wanted - unwanted), logits of one shape; 1 is ``wanted`` itself."""
    return unwanted + scale * (wanted - unwanted)


def filtered(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return logits (..., K) with -inf at what must not be drawn.

    ``top_k`` keeps the k largest (ties with the smallest of them too; 0 keeps all). ``top_p`` keeps the
    smallest set of the likeliest codes whose probability reaches p, always at least one (Holtzman et al.,
    arXiv:1904.09751, section 3.1), after top_k.
    """
    count = logits.shape[-1]
    if 0 < top_k < count:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        # Dropped where those before it reach p already; the first has nothing before it and stays.
        dropped = probability.cumsum(-1) - probability >= top_p
        dropped[..., 0] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


def gumbel(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Return Gumbel noise (B, *shape), float32 on the CPU: one picture's from each generator."""
    even = torch.stack([torch.rand(shape, generator=one) for one in generators])
    return -torch.log(-torch.log(even))


def choose(logits: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw codes (...) by logits (..., K): where logits / temperature + Gumbel ``noise`` is largest (Gumbel
    1954; Maddison et al., arXiv:1411.0030). ``temperature`` 0 takes the likeliest.

    Unlike the inverse of the distribution function, whose K steps each move with rounding, the largest of
    these sums is another one only where two are equal up to rounding: codes do not depend on how the logits
    were computed.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    return (logits / temperature + noise).argmax(-1)


def cosine_schedule(step: int, steps: int, count: int) -> int:
    """Return how many of ``count`` codes stay unknown after step ``step`` (from 1) of ``steps``.

    MaskGIT's cosine, floor(count * cos(pi/2 * step/steps)) (arXiv:2202.04200, section 3.3); at least one code
    is left for each step still to come, and none after the last.
    """
    if step >= steps:
        return 0
    share = math.cos(math.pi / 2 * step / steps)
    return min(max(int(count * share), steps - step), count - step)


def sample_autoregressive(
    reader: CodeReader,
    known: Tensor,
    generators: Sequence[torch.Generator],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    prefix: Tensor | None = None,
    callback: Report | None = None,
) -> Tensor:
    """Draw the unknown codes of ``known`` (B, H, W) in raster order; returns all codes.

    Pictures larger than the reader's window are drawn through a window that slides with the place that is
    drawn, which stays in its middle (Esser et al., arXiv:2012.09841, section 3.3). What lies in the window
    and comes later stays unseen, as in training. ``prefix`` (B, H, W): codes of another picture in the same
    places; the window cuts it, too. Raises :class:`InputError` for a picture smaller than the window,
    :class:`NonFiniteError` for logits that are no numbers.
    """
    height, width = known.shape[1:]
    _check(known, generators)
    if height < reader.rows or width < reader.columns:
        raise InputError(
            f"{height} x {width} codes are fewer than the {reader.rows} x {reader.columns} "
            "that the model was trained on; ask for a larger picture"
        )
    copies = 1 if guidance == 1.0 else 2
    codes = known.clone()
    free = known == UNKNOWN
    needed = free.any(0).tolist()
    total, done = int(free.any(0).sum()), 0
    passed = 0  # places since the last draw
    read: tuple[int, int, int] | None = None  # the window that the reader is in, and how far it has read
    for row in range(height):
        top = min(max(row - reader.rows // 2, 0), height - reader.rows)
        for column in range(width):
            if not needed[row][column]:
                passed += 1
                continue
            left = min(max(column - reader.columns // 2, 0), width - reader.columns)
            index = (row - top) * reader.columns + column - left
            window = codes[:, top : top + reader.rows, left : left + reader.columns].flatten(1)
            if read == (top, left, index - 1):
                logits = reader.advance(window[:, index - 1].repeat(copies))
            else:
                cut = None
                if prefix is not None:
                    cut = prefix[:, top : top + reader.rows, left : left + reader.columns].flatten(1)
                    cut = cut.repeat(copies, 1)
                logits = reader.begin(window[:, :index].repeat(copies, 1), cut)
            read = (top, left, index)
            logits = _guided(logits, guidance)
            # Every place has its own noise, whatever is known: nobody else's known codes move it.
            for _ in range(passed):
                gumbel(generators, logits.shape[-1])
            passed = 0
            noise = gumbel(generators, logits.shape[-1]).to(logits.device)
            drawn = _drawn(logits, noise, temperature, top_k, top_p)
            here = codes[:, row, column]
            codes[:, row, column] = torch.where(free[:, row, column], drawn, here)
            done += 1
            if callback is not None:
                callback(done, total, codes)
    return codes


def sample_maskgit(
    model: MaskedModel,
    known: Tensor,
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    choice_temperature: float = 0.0,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    callback: Report | None = None,
) -> Tensor:
    """Draw the unknown codes of ``known`` (B, H, W) in ``steps`` passes; returns all codes.

    Each pass draws every unknown code and keeps those that the model is surest of: log p(code) plus
    ``choice_temperature`` * (1 - step/steps) * Gumbel noise (arXiv:2202.04200, section 3.2; the annealed
    noise is in its published code). A picture with fewer unknown codes than ``steps`` is finished sooner.
    Guidance acts while the share of the steps done is in ``interval``. ``callback`` gets the drawn codes at
    places that are still unknown, too: the picture as the model sees it now.

    Raises :class:`InputError` for no steps, :class:`NonFiniteError` for logits that are no numbers.
    """
    batch, height, width = known.shape
    _check(known, generators)
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 is needed")
    codes = known.clone()
    free = (known == UNKNOWN).flatten(1)
    counts = free.sum(1).tolist()
    lengths = [min(steps, count) for count in counts]
    last = max(lengths, default=0)
    for step in range(1, last + 1):
        strength = guidance if interval[0] <= (step - 1) / last < interval[1] or last == 1 else 1.0
        logits = model(codes.repeat(1 if strength == 1.0 else 2, 1, 1)).flatten(1, 2)
        logits = _guided(logits, strength)
        sure = logits.log_softmax(-1)
        noise = gumbel(generators, *logits.shape[1:]).to(codes.device)
        order_noise = gumbel(generators, height * width).to(codes.device)
        drawn = _drawn(logits, noise, temperature, top_k, top_p)
        flat = codes.flatten(1)
        open_ = flat == UNKNOWN
        drawn = torch.where(open_, drawn, flat)
        annealed = choice_temperature * (1.0 - step / last)
        sureness = sure.gather(-1, drawn[..., None])[..., 0]
        if annealed:
            sureness = sureness + annealed * order_noise
        # Known codes rank above every other; of the rest, the least sure stay unknown.
        order = sureness.masked_fill(~open_, torch.inf).argsort(dim=1, stable=True)
        left = torch.tensor(
            [
                min(cosine_schedule(step, length, count), int(now)) if count else 0
                for length, count, now in zip(lengths, counts, open_.sum(1).tolist(), strict=True)
            ],
            device=codes.device,
        )
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        flat = torch.where(rank < left[:, None], UNKNOWN, drawn)
        codes = flat.view(batch, height, width)
        if callback is not None:
            callback(step, last, drawn.view(batch, height, width))
    return codes


def windowed(model: MaskedModel, rows: int, columns: int) -> MaskedModel:
    """Make a masked model of ``rows`` x ``columns`` codes read larger pictures.

    The picture is covered by windows that overlap by at least a half, and the probabilities of a place are
    averaged in the logarithm over the windows that see it (MultiDiffusion's rule, arXiv:2302.08113, for
    codes). A window without an unknown code is not read; places that only such windows see get zeros, which
    nobody asks for. Pictures of just that size go through unchanged; smaller ones raise :class:`InputError`.
    """

    def read(codes: Tensor) -> Tensor:
        height, width = codes.shape[1:]
        if (height, width) == (rows, columns):
            return model(codes)
        if height < rows or width < columns:
            raise InputError(
                f"{height} x {width} codes are fewer than the {rows} x {columns} that the model was trained "
                "on; ask for a larger picture"
            )
        total: Tensor | None = None
        seen = torch.zeros(height, width, 1, device=codes.device)
        for top in _starts(height, rows):
            for left in _starts(width, columns):
                part = (slice(None), slice(top, top + rows), slice(left, left + columns))
                if not bool((codes[part] == UNKNOWN).any()):
                    continue  # nobody asks what stands where everything is known
                told = model(codes[part]).log_softmax(-1)
                if total is None:
                    total = told.new_zeros(*codes.shape, told.shape[-1])
                total[part] += told
                seen[part[1:]] += 1
        if total is None:
            raise InputError("every code is known already; there is nothing to draw")
        return total / seen.clamp_min(1)

    return read


def windows_read(unknown: Tensor, rows: int, columns: int) -> int:
    """How many windows of ``rows`` x ``columns`` a pass reads for the places of ``unknown`` (H, W)."""
    height, width = max(rows, unknown.shape[0]), max(columns, unknown.shape[1])
    return sum(
        bool(unknown[top : top + rows, left : left + columns].any())
        for top in _starts(height, rows)
        for left in _starts(width, columns)
    )


def _starts(length: int, window: int) -> list[int]:
    """First places of windows that cover ``length``, evenly spread, overlapping by at least half a window."""
    gaps = math.ceil((length - window) / max(1, window // 2))
    return [round(number * (length - window) / gaps) for number in range(gaps + 1)] if gaps else [0]


def _drawn(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    return choose(filtered(logits / temperature, top_k, top_p), noise)


def _guided(logits: Tensor, scale: float) -> Tensor:
    if scale != 1.0:
        wanted, unwanted = logits.chunk(2)
        logits = guided(wanted, unwanted, scale)
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError("the model's logits are not finite")
    return logits


def _check(known: Tensor, generators: Sequence[torch.Generator]) -> None:
    if known.ndim != 3 or len(generators) != len(known):
        raise InputError(
            f"codes of shape {tuple(known.shape)} with {len(generators)} generators; "
            "(B, H, W) and one generator a picture are needed"
        )
