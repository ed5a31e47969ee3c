"""The parts of an evaluation's page that show pictures and charts, and how its texts are written."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from vitrail.data.folder_files import printable
from vitrail.evaluation.catalogue import CATALOGUE, Entry, Words
from vitrail.evaluation.distribution import squared_distances
from vitrail.evaluation.image_sets import ImageSet
from vitrail.evaluation.metrics import laplacian_variance
from vitrail.evaluation.plots import Dot, dots, histogram, scatter
from vitrail.evaluation.suite import Evaluation

__all__ = ["both", "escaped", "formatted", "pair_sections", "section", "set_sections", "worded"]

_SLIDERS, _CELLS, _COUPLES = 4, 24, 8
_SHOWN_SIDE = 256


def formatted(value: float, entry: Entry) -> str:
    """Return a value as people read it: shares in per cent, else with the metric's digits and unit."""
    if entry.share:
        return f"{100 * value:.{entry.digits}f} %"
    return f"{value:,.{entry.digits}f}" + (f" {entry.unit}" if entry.unit else "")


def escaped(text: object) -> str:
    """Return text that is safe between tags and in attributes, control characters made visible."""
    return html.escape(printable(str(text)), quote=True)


def both(en: str, zh: str) -> str:
    """Return a text in both languages; the style sheet shows one of them."""
    if en == zh:
        return escaped(en)
    return f'<span lang="en">{escaped(en)}</span><span lang="zh">{escaped(zh)}</span>'


def worded(words: Words) -> str:
    """As :func:`both`, of one pair of words."""
    return both(words.en, words.zh)


def _thumbnail(images: ImageSet, i: int, side: int = _SHOWN_SIDE) -> str:
    """Return picture i as a data address: lossless, reduced only where it is larger than ``side``."""
    picture = Image.fromarray(np.asarray(images.pixels(i)))
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=60, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _figures(charts: Iterable[tuple[Words, str]]) -> str:
    return "".join(
        f"<figure><figcaption>{worded(title)}</figcaption>{chart}</figure>" for title, chart in charts
    )


def section(title: Words, hint: Words | None, body: str) -> str:
    """Return one card of the page; ``body`` is markup already."""
    note = f'<p class="hint">{worded(hint)}</p>' if hint is not None else ""
    return f"<section><h2>{worded(title)}</h2>{note}{body}</section>"


# -- pairs ---------------------------------------------------------------------------------------------------


def pair_sections(evaluation: Evaluation) -> list[str]:
    """Return the cards of an evaluation of pairs: sliders, and how the values are spread."""
    assert evaluation.reference is not None
    name = next((n for n in ("lpips", "psnr", "ssim") if n in evaluation.results), None)
    if name is None:
        rows = range(min(3 * _SLIDERS, len(evaluation.pictures)))
        body = _sliders(evaluation, list(rows), None)
        return [section(Words("Pictures", "图片"), _SLIDER_HINT, body)]
    result = evaluation.results[name]
    assert result.each is not None
    order = np.argsort(result.each, kind="stable")
    if CATALOGUE[name].better == "lower":
        order = order[::-1]  # worst first
    charts = []
    for each in ("lpips", "psnr", "ssim"):
        found = evaluation.results.get(each)
        if found is not None and found.each is not None:
            label = CATALOGUE[each].label
            axis = Words(f"{label.en} of each picture", f"每张图片的 {label.zh}")
            marks = [(found.value, Words("mean", "平均"))]
            if each == "lpips" and found.floor is not None and found.floor.chance is not None:
                marks.append((found.floor.chance, Words("unrelated", "无关图片")))
            charts.append((label, histogram([(label, found.each, "var(--main)")], axis, marks=marks)))
    n, count = len(order), min(_SLIDERS, len(order))
    middle = max(0, n // 2 - count // 2)
    parts = [("Worst", "最差", order[:count])]
    if n >= 3 * count:
        parts.append(("In the middle", "居中", order[middle : middle + count]))
    if n >= 2 * count:
        parts.append(("Best", "最好", order[n - count :][::-1]))
    body = "".join(
        f"<h3>{both(en, zh)}</h3>{_sliders(evaluation, [int(i) for i in rows], name)}"
        for en, zh, rows in parts
    )
    return [
        section(Words("Before and after", "前后对比"), _SLIDER_HINT, body),
        section(Words("Spread", "分布"), None, f'<div class="plots">{_figures(charts)}</div>'),
    ]


_SLIDER_HINT = Words(
    "Drag the edge: the original is on the left of it, the result on the right. Pixels are "
    "shown as they are.",
    "拖动分界线：左侧为原图，右侧为结果。像素按原样显示。",
)


def _sliders(evaluation: Evaluation, rows: Sequence[int], name: str | None) -> str:
    assert evaluation.reference is not None
    figures = []
    for i in rows:
        key = evaluation.pictures.keys[i]
        value = ""
        if name is not None:
            each = evaluation.results[name].each
            assert each is not None
            value = f" <i>{worded(CATALOGUE[name].label)} {formatted(float(each[i]), CATALOGUE[name])}</i>"
        figures.append(
            f'<figure><div class="compare"><img alt="" src="{_thumbnail(evaluation.pictures, i)}">'
            f'<img alt="" src="{_thumbnail(evaluation.reference, i)}">'
            f'<span class="left">{both("original", "原图")}</span>'
            f'<span class="right">{both("result", "结果")}</span>'
            f'<input type="range" min="0" max="100" value="50" step="any" aria-label="{escaped(key)}"></div>'
            f"<figcaption>{escaped(key)}{value}</figcaption></figure>"
        )
    return f'<div class="sliders">{"".join(figures)}</div>'


# -- sets ----------------------------------------------------------------------------------------------------


def set_sections(evaluation: Evaluation) -> list[str]:
    """Return the cards of an evaluation of sets: samples, charts, nearest real pictures."""
    pictures, reference, space = evaluation.pictures, evaluation.reference, evaluation.space
    generator = np.random.default_rng(0)

    def sample(images: ImageSet) -> list[int]:
        return sorted(int(i) for i in generator.permutation(len(images))[:_CELLS])

    halves = [(Words("These pictures", "这些图片"), pictures)]
    if reference is not None:
        halves.append((Words("Real pictures", "真实图片"), reference))
    shown = "".join(
        f"<div><h3>{worded(title)}</h3>{_cells(images, sample(images))}</div>" for title, images in halves
    )
    sections = [
        section(
            Words("Pictures", "图片"), Words("Drawn at random, not chosen.", "随机抽取，未经挑选。"), shown
        )
        if reference is None
        else section(
            Words("Pictures", "图片"),
            Words("Drawn at random, not chosen.", "随机抽取，未经挑选。"),
            f'<div class="two">{shown}</div>',
        )
    ]
    charts = _set_charts(evaluation)
    if charts:
        body = f'<div class="plots">{_figures(charts)}</div>'
        sections.append(section(Words("Spread", "分布"), None, body))
    if reference is not None and space is not None and any(n in evaluation.results for n in _FEATURED):
        sections.append(_neighbours(evaluation))
    return sections


_FEATURED = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def _cells(images: ImageSet, rows: Sequence[int]) -> str:
    cells = "".join(
        f'<img alt="{escaped(images.keys[i])}" title="{escaped(images.keys[i])}" '
        f'src="{_thumbnail(images, i, 128)}">'
        for i in rows
    )
    return f'<div class="pictures">{cells}</div>'


def _set_charts(evaluation: Evaluation) -> list[tuple[Words, str]]:
    charts: list[tuple[Words, str]] = []
    rows = []
    for name in ("precision", "recall", "density", "coverage"):
        result = evaluation.results.get(name)
        if result is not None:
            entry = CATALOGUE[name]
            band = result.floor.spread if result.floor is not None else None
            rows.append(Dot(entry.label, result.value, result.ci95, band, formatted(result.value, entry)))
    if rows:
        title = Words("Like real ones, and all kinds of them?", "像真实图片吗？种类齐全吗？")
        charts.append((title, dots(rows, title)))
    reference = evaluation.reference
    if reference is not None and evaluation.space is not None and rows:
        title = Words("Both sets on a plane (PCA of the features)", "两组图片的特征平面（PCA）")
        chart = scatter(evaluation.space(reference), evaluation.space(evaluation.pictures), title)
        charts.append((title, chart))
    if "sharpness" in evaluation.results:
        title = Words("Sharpness", "清晰度")
        axis = Words("variance of the Laplacian, logarithmic", "拉普拉斯方差（对数）")
        sets = [(Words("these pictures", "这些图片"), evaluation.pictures, "var(--main)")]
        if reference is not None:
            sets.insert(0, (Words("real", "真实"), reference, "var(--good)"))
        groups = [
            (words, np.asarray([laplacian_variance(images.pixels(i)) for i in range(len(images))]), colour)
            for words, images, colour in sets
        ]
        charts.append((title, histogram(groups, axis, logarithmic=True)))
    return charts


def _neighbours(evaluation: Evaluation) -> str:
    """Each shown picture beside its nearest real one: those nearest to any (copies?) and those farthest."""
    reference, space = evaluation.reference, evaluation.space
    assert reference is not None
    assert space is not None
    x, y = space(evaluation.pictures)[:5000], space(reference)[:5000]
    table = squared_distances(x, y)
    nearest = table.argmin(axis=1)
    distance = np.sqrt(table[np.arange(len(x)), nearest])
    order = np.argsort(distance, kind="stable")
    count = min(_COUPLES, max(1, len(order) // 2))

    def couples(rows: Iterable[int]) -> str:
        figures = "".join(
            f'<figure><div class="couple"><img alt="" src="{_thumbnail(evaluation.pictures, i, 128)}">'
            f'<img alt="" src="{_thumbnail(reference, int(nearest[i]), 128)}"></div>'
            f"<figcaption>{escaped(evaluation.pictures.keys[i])} <i>{distance[i]:.2f}</i>"
            "</figcaption></figure>"
            for i in rows
        )
        return f'<div class="couples">{figures}</div>'

    near = Words(
        "Nearest to a real picture: if these are the same, the model may have copied",
        "与真实图片最接近的：若几乎相同，模型可能在照抄",
    )
    far = Words("Farthest from any real picture: often the failures", "离所有真实图片最远的：往往是失败之作")
    body = (
        f"<h3>{worded(near)}</h3>{couples(int(i) for i in order[:count])}"
        f"<h3>{worded(far)}</h3>{couples(int(i) for i in order[::-1][:count])}"
    )
    hint = Words(
        f"Left: a picture of this set. Right: the real one nearest to it in the features of {space.name}, "
        "with the distance.",
        f"左：本组图片；右：按 {space.name} 特征与其最接近的真实图片，并注明距离。",
    )
    return section(Words("Beside their nearest real pictures", "与最接近的真实图片对照"), hint, body)
