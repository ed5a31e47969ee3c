"""Small charts as inline SVG, drawn here so that they follow the page's language and its light or dark mode.

Colours are the page's own variables, texts come in both languages; nothing is fetched and no script runs.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vitrail.evaluation.catalogue import Words

__all__ = ["Dot", "dots", "histogram", "scatter"]

Values = np.ndarray[Any, np.dtype[np.float64]]

_WIDTH, _LEFT, _RIGHT = 640, 12, 12


class Dot(NamedTuple):
    """One row of :func:`dots`: a value with its interval, and the band that real pictures get."""

    label: Words
    value: float
    ci: tuple[float, float] | None
    band: tuple[float, float] | None
    text: str


def _text(x: float, y: float, words: Words | str, anchor: str = "middle", css: str = "") -> str:
    pair = words if isinstance(words, Words) else Words(words, words)
    style = f' class="{css}"' if css else ""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}'
    if pair.en == pair.zh:
        return f"<text {where}>{html.escape(pair.en)}</text>"
    return "".join(
        f'<text {where} lang="{language}">{html.escape(words)}</text>'
        for language, words in zip(("en", "zh"), pair, strict=True)
    )


def _svg(height: float, body: str, title: Words) -> str:
    label = html.escape(f"{title.en} / {title.zh}", quote=True)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{label}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [tick * step for tick in range(first, math.floor(high / step + 1e-9) + 1)]


def histogram(
    groups: Sequence[tuple[Words, Values, str]],
    axis: Words,
    *,
    marks: Sequence[tuple[float, Words]] = (),
    logarithmic: bool = False,
) -> str:
    """Return overlaid histograms (shares of each group) with optional vertical marks.

    groups: name, values, colour (a CSS colour such as ``var(--main)``). logarithmic: bins and axis in log10;
    values at or below 0 count as the smallest one above.
    """
    clouds = [np.log10(np.maximum(values, 1e-3)) if logarithmic else values for _, values, _ in groups]
    everything = np.concatenate([*clouds, [m for m, _ in marks]])
    low, high = float(everything.min()), float(everything.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    bins = int(np.clip(round(math.sqrt(max(map(len, clouds))) * 1.6), 8, 40))
    edges = np.linspace(low, high, bins + 1)
    heights = [np.histogram(cloud, edges)[0] / len(cloud) for cloud in clouds]
    top, floor, legend = 44.0, 214.0, 22.0
    tallest = max(float(h.max()) for h in heights)

    def across(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for (_, _, colour), share in zip(groups, heights, strict=True):
        for i, height in enumerate(share):
            if height > 0:
                left, right = across(float(edges[i])), across(float(edges[i + 1]))
                up = floor - (floor - top) * float(height) / tallest
                parts.append(
                    f'<rect x="{left + 0.7:.1f}" y="{up:.1f}" width="{right - left - 1.4:.1f}" '
                    f'height="{floor - up:.1f}" rx="1.5" fill="{colour}" opacity=".62"/>'
                )
    parts.append(
        f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - _RIGHT}" y2="{floor}" stroke="var(--line)"/>'
    )
    ticks = list(range(math.ceil(low), math.floor(high) + 1)) if logarithmic else _ticks(low, high)
    for tick in ticks:
        name = f"{10.0**tick:g}" if logarithmic else f"{tick:.4g}"
        x = across(tick)
        edge = "start" if x < _LEFT + 14 else "end" if x > _WIDTH - _RIGHT - 14 else "middle"
        parts.append(_text(x, floor + 18, name, edge, css="tick"))
    for value, words in marks:
        x = across(value)
        parts.append(
            f'<line x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{floor}" stroke="var(--ink)" '
            'stroke-dasharray="3 3"/>'
        )
        anchor = "start" if x < _WIDTH * 0.2 else "end" if x > _WIDTH * 0.8 else "middle"
        parts.append(_text(x, top - 13, words, anchor))
    parts.append(_text(_WIDTH / 2, floor + 40, axis, css="axis"))
    if len(groups) > 1:
        parts.append(_legend([(words, colour) for words, _, colour in groups], legend - 8))
    return _svg(floor + 50, "".join(parts), axis)


def _legend(entries: Sequence[tuple[Words, str]], y: float) -> str:
    parts = []
    for i, (words, colour) in enumerate(entries):
        x = _LEFT + i * 210
        parts.append(f'<rect x="{x}" y="{y - 9}" width="11" height="11" rx="3" fill="{colour}"/>')
        parts.append(_text(x + 17, y, words, "start"))
    return "".join(parts)


def dots(rows: Sequence[Dot], title: Words, *, top: float = 1.0) -> str:
    """Return one row a metric on an axis from 0: a dot with its interval over the band of real pictures."""
    name_width, row_height = 150, 38.0
    high = max([top, *(row.value for row in rows), *(row.ci[1] for row in rows if row.ci)])
    left, right = float(name_width), float(_WIDTH - 74)

    def across(value: float) -> float:
        return left + min(max(value, 0.0), high) / high * (right - left)

    parts, bottom = [], 26 + row_height * len(rows)
    for tick in _ticks(0, high, 5):
        x = across(tick)
        parts.append(f'<line x1="{x:.1f}" y1="22" x2="{x:.1f}" y2="{bottom}" stroke="var(--line)"/>')
        parts.append(_text(x, bottom + 18, f"{tick:.3g}", css="tick"))
    for i, row in enumerate(rows):
        y = 26 + row_height * (i + 0.5)
        parts.append(_text(left - 12, y + 5, row.label, "end"))
        if row.band is not None:
            a, b = across(row.band[0]), across(row.band[1])
            width = max(b - a, 3)
            parts.append(
                f'<rect x="{(a + b - width) / 2:.1f}" y="{y - 12:.1f}" width="{width:.1f}" height="24" '
                'rx="4" fill="var(--good)" opacity=".3"/>'
            )
        if row.ci is not None:
            parts.append(
                f'<line x1="{across(row.ci[0]):.1f}" y1="{y:.1f}" x2="{across(row.ci[1]):.1f}" y2="{y:.1f}" '
                'stroke="var(--main)" stroke-width="2.5" stroke-linecap="round"/>'
            )
        parts.append(f'<circle cx="{across(row.value):.1f}" cy="{y:.1f}" r="6" fill="var(--main)"/>')
        parts.append(_text(_WIDTH - 4, y + 5, row.text, "end"))
    band, dot = Words("real against real", "真实对真实"), Words("these pictures", "这些图片")
    parts.append(_legend([(dot, "var(--main)"), (band, "var(--good)")], 13))
    return _svg(bottom + 26, "".join(parts), title)


def scatter(real: Values, generated: Values, title: Words, *, most: int = 600) -> str:
    """Return the two sets (N, D) and (M, D) on the two main directions of the real ones (PCA)."""
    centre = real.mean(axis=0)
    _, _, directions = np.linalg.svd((real - centre)[:2000], full_matrices=False)
    plane = directions[:2].T
    clouds = [((cloud - centre) @ plane)[:: max(1, len(cloud) // most)] for cloud in (real, generated)]
    everything = np.concatenate(clouds)
    low, high = np.percentile(everything, 0.5, axis=0), np.percentile(everything, 99.5, axis=0)
    span = np.maximum(high - low, 1e-9)
    top, height = 30.0, 330.0
    parts = []
    for cloud, colour in zip(clouds, ("var(--good)", "var(--main)"), strict=True):
        for point in cloud:
            spot = np.clip((point - low) / span, -0.02, 1.02)
            x = _LEFT + 14 + float(spot[0]) * (_WIDTH - _LEFT - _RIGHT - 28)
            y = top + 10 + (1 - float(spot[1])) * (height - 20)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}" opacity=".6"/>')
    names = [(Words("real", "真实"), "var(--good)"), (Words("these pictures", "这些图片"), "var(--main)")]
    parts.append(_legend(names, 14))
    return _svg(top + height, "".join(parts), title)
