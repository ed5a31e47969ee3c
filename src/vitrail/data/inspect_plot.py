"""The plot of an inspection: sizes on the left, aspect ratios on the right."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray

from vitrail.data.inspect import InspectReport
from vitrail.errors import InputError, MissingExtraError

__all__ = ["plot_sizes"]

_LIGHT = {
    "paper": "#ffffff",
    "ink": "#26241f",
    "faint": "#8a847a",
    "line": "#e4e0d8",
    "main": "#3457b2",
    "mark": "#c8553d",
}
_DARK = {
    "paper": "#1e1f22",
    "ink": "#e9e6df",
    "faint": "#9a958b",
    "line": "#34353a",
    "main": "#8fb0ff",
    "mark": "#f08a6c",
}


def plot_sizes(report: InspectReport, *, dark: bool = False) -> bytes:
    """PNG of 1,980 x 780 pixels: width against height (logarithmic), and a histogram of width / height.

    Raises :class:`MissingExtraError` without matplotlib and :class:`InputError` without pictures.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError as error:
        raise MissingExtraError("matplotlib", "data") from error
    if not report.sizes:
        raise InputError("there is no picture to plot")
    colour = _DARK if dark else _LIGHT
    widths, heights, counts = (
        np.array([getattr(s, name) for s in report.sizes]) for name in ("width", "height", "count")
    )
    figure = Figure(figsize=(11, 4.33), dpi=180, facecolor=colour["paper"])
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.0, 1.15], "wspace": 0.2})
    figure.subplots_adjust(left=0.065, right=0.985, top=0.96, bottom=0.13)

    for value in (left.axhline, left.axvline):
        value(report.size, color=colour["mark"], linestyle=(0, (4, 4)), linewidth=1, zorder=1)
    left.text(
        report.size,
        0.985,
        f" {report.size}",
        color=colour["mark"],
        fontsize=8.5,
        va="top",
        transform=left.get_xaxis_transform(),
    )
    low, high = _reach(np.repeat(np.stack([widths, heights]), counts, axis=1), report.size)
    left.plot([low, high], [low, high], color=colour["line"], linewidth=1, zorder=0)
    far = (np.minimum(widths, heights) < low) | (np.maximum(widths, heights) > high)
    area = 14 + 500 * np.sqrt(counts / counts.sum()) ** 1.5
    style = {"color": colour["main"], "alpha": 0.5, "linewidth": 0.6, "edgecolor": colour["paper"]}
    left.scatter(widths[~far], heights[~far], s=area[~far], **style)
    edge = 1.06  # what lies beyond the axes is drawn at their edge, as a diamond
    x, y = (side[far].clip(low * edge, high / edge) for side in (widths, heights))
    left.scatter(x, y, s=34, marker="D", **style | {"color": colour["mark"], "alpha": 0.9})
    left.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
        xlabel="width (px)",
        ylabel="height (px)",
    )
    for axis in (left.xaxis, left.yaxis):
        steps = (1.0, 2.0, 5.0) if high / low < 3000 else (1.0,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())

    ratios = np.log2(np.repeat(widths / heights, counts))
    reach = 3.0  # 1:8 to 8:1; what lies beyond is counted in the outermost bars
    bins = np.linspace(-reach - 1 / 16, reach + 1 / 16, 50)  # 1:1 is the middle of a bar
    right.hist(ratios.clip(-reach, reach), bins=bins, color=colour["main"], alpha=0.85, rwidth=0.88)
    named = {
        "1:8": 1 / 8,
        "1:4": 1 / 4,
        "1:2": 1 / 2,
        "2:3": 2 / 3,
        "1:1": 1.0,
        "3:2": 3 / 2,
        "2:1": 2.0,
        "4:1": 4.0,
        "8:1": 8.0,
    }
    right.set_xticks([math.log2(v) for v in named.values()], list(named))
    right.set(xlabel="width : height", ylabel="pictures", xlim=(-reach - 0.1, reach + 0.1))
    right.yaxis.get_major_locator().set_params(integer=True)

    for axes in (left, right):
        axes.set_facecolor(colour["paper"])
        axes.grid(color=colour["line"], linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=colour["faint"], labelsize=8.5, length=0)
        axes.xaxis.label.set_color(colour["ink"])
        axes.yaxis.label.set_color(colour["ink"])
        for spine in axes.spines.values():
            spine.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=colour["paper"])
    return buffer.getvalue()


def _reach(sides: NDArray[np.int64], size: int) -> tuple[float, float]:
    """Limits of both axes: what most pictures need, so that one 60,000 x 1 does not squeeze the others."""
    few, most = np.percentile(sides, (1, 99))
    low, high = min(few, size), max(most, size)
    return float(max(low / 4, min(low, sides.min()))) / 1.6, float(
        min(high * 4, max(high, sides.max()))
    ) * 1.6
