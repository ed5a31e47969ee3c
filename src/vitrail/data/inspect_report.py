"""An :class:`~vitrail.data.inspect.InspectReport` on disk: JSON, two pictures, and one page that needs
nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.contact_sheet import contact_sheet
from vitrail.data.inspect import InspectReport
from vitrail.data.inspect_advice import Language, phrase, reason_in
from vitrail.data.inspect_page import PAGE
from vitrail.data.inspect_plot import plot_sizes
from vitrail.files import atomic_write, ensure_folder
from vitrail.fonts import can_draw

__all__ = ["write_report"]

_SHOWN_PROBLEMS = 500
_PAGE_TEXTS = {
    "title": ("A look at your pictures", "图片数据集检查报告"),
    "pictures": ("usable pictures", "可用图片"),
    "problems": ("files left out", "不可用文件"),
    "captioned": ("with a caption", "有说明文字"),
    "doubles": ("exact copies", "完全重复"),
    "alike": ("groups that look alike", "相似图片组"),
    "median": ("median size, px", "尺寸中位数（像素）"),
    "advice": ("What to do", "建议"),
    "sizes": ("Sizes and shapes", "尺寸与长宽比"),
    "sizes_note": (
        "Left: width and height of every picture, larger dots for more of one size; the dashed lines are "
        "the side that a training at this size uses. Right: pictures by width : height; 1:1 is a square.",
        "左图：每张图片的宽与高，点越大表示同尺寸图片越多，虚线是训练使用的边长。"
        "右图：按宽高比统计的图片数，1:1 为正方形。",
    ),
    "sheet": ("Contact sheet", "图片一览"),
    "sheet_note": ("{n} of {all}, drawn at random.", "从 {all} 张中随机抽取 {n} 张。"),
    "no_caption": ("no caption", "无说明文字"),
    "near": ("Look alike", "相似图片"),
    "near_note": (
        "The same picture resized, recompressed or slightly changed.",
        "同一张图片的缩放、重新压缩或细微改动版本。",
    ),
    "exact": ("Exact copies", "完全重复的文件"),
    "more": ("and {n} more", "另有 {n} 个"),
    "left_out": ("Left out, and why", "未采用的内容及原因"),
    "file": ("file", "文件"),
    "kind": ("what", "类别"),
    "reason": ("why", "原因"),
    "details": ("In numbers", "详细数字"),
    "formats": ("formats", "格式"),
    "sources": ("captions from", "说明文字来源"),
    "styles": ("styles", "风格"),
    "buckets": ("aspect buckets", "长宽比分桶"),
    "volume": ("on disk", "磁盘占用"),
    "hash": ("content hash", "内容哈希"),
    "took": ("checked in {s} s", "检查用时 {s} 秒"),
    "k_picture": ("picture", "图片"),
    "k_unsupported": ("other format", "其他格式"),
    "k_caption": ("caption", "说明文字"),
    "k_metadata": ("metadata", "元数据"),
    "k_archive": ("archive", "压缩包"),
    "k_link": ("link", "链接"),
    "k_folder": ("folder", "文件夹"),
}


def write_report(report: InspectReport, out: Path | str, *, language: Language = "en") -> list[Path]:
    """Write ``report.json``, ``sizes.png``, ``contact_sheet.png`` and ``report.html`` into ``out``; returns
    them.

    The page holds both languages, ``language`` is shown first; it has its pictures inside, follows the
    reader's light or dark setting, and runs no script. Without one usable picture there are no pictures to
    write, only the JSON and the page.

    Raises :class:`MissingExtraError` without matplotlib (extra ``data``) and :class:`StorageError`.
    """
    folder = ensure_folder(out)
    written = [atomic_write(folder / "report.json", report.model_dump_json(indent=1))]
    plots: tuple[bytes, bytes] | None = None
    if report.pictures:
        plots = plot_sizes(report, dark=False), plot_sizes(report, dark=True)
        written.append(atomic_write(folder / "sizes.png", plots[0]))
        written.append(atomic_write(folder / "contact_sheet.png", _sheet(report, language)))
    written.append(atomic_write(folder / "report.html", _page(report, plots, language)))
    return written


def _sheet(report: InspectReport, language: Language) -> bytes:
    shown = [sample for sample in report.samples if sample.id in report.thumbnails]
    pictures = [Image.open(io.BytesIO(report.thumbnails[sample.id]), formats=["WEBP"]) for sample in shown]
    labels = [s.caption if s.caption and can_draw(s.caption) else Path(s.id).name for s in shown]
    title = Path(report.folder).name or report.folder
    subtitle = phrase(
        "pictures_line",
        language,
        pictures=report.pictures,
        problems=report.unusable,
        formats=", ".join(f"{name} {count}" for name, count in report.formats.items()),
    )
    buffer = io.BytesIO()
    contact_sheet(pictures, labels, title=title, subtitle=subtitle).save(buffer, "PNG")
    return buffer.getvalue()


# -- the page ------------------------------------------------------------------------------------------------


def _e(text: object) -> str:
    return html.escape(str(text), quote=True)


def _both(key: str, **values: object) -> str:
    """A text in both languages; the style sheet shows one of them."""
    en, zh = (text.format(**values) for text in _PAGE_TEXTS[key])
    return _pair(en, zh)


def _pair(en: str, zh: str) -> str:
    return f'<span lang="en">{_e(en)}</span><span lang="zh">{_e(zh)}</span>'


def _data(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _page(report: InspectReport, plots: tuple[bytes, bytes] | None, language: Language) -> str:
    return PAGE.substitute(
        language=language,
        english="checked" if language == "en" else "",
        chinese="checked" if language == "zh" else "",
        folder=_e(Path(report.folder).name or report.folder),
        path=_e(report.folder),
        title=_both("title"),
        tiles=_tiles(report),
        advice="".join(f'<li class="{a.level}">{_pair(a.en, a.zh)}</li>' for a in report.advice),
        advice_title=_both("advice"),
        sections="".join(
            (
                _plots(plots),
                _samples(report),
                _near(report),
                _exact(report),
                _problems(report),
                _details(report),
            )
        ),
        took=_both("took", s=f"{report.seconds:.1f}"),
    )


def _section(key: str, body: str, note: str = "") -> str:
    below = f'<p class="hint">{note}</p>' if note else ""
    return f"<section><h2>{_both(key)}</h2>{below}{body}</section>"


def _tiles(report: InspectReport) -> str:
    share = f"{100 * report.captions.found / report.pictures:.0f} %" if report.pictures else "-"
    widths = np.repeat([s.width for s in report.sizes], [s.count for s in report.sizes])
    heights = np.repeat([s.height for s in report.sizes], [s.count for s in report.sizes])
    median = f"{np.median(widths):.0f} × {np.median(heights):.0f}" if report.pictures else "-"
    tiles = [
        ("pictures", f"{report.pictures:,}", ""),
        ("problems", f"{report.unusable:,}", "warn" if report.unusable else ""),
        ("captioned", share, "warn" if report.captions.found < report.pictures else ""),
        ("doubles", f"{report.repeats:,}", "warn" if report.repeats else ""),
        ("alike", f"{len(report.near_duplicates):,}", "warn" if report.near_duplicates else ""),
        ("median", median, "long" if len(median) > 8 else ""),
    ]
    return "".join(
        f'<div class="tile {mark}"><b>{_e(value)}</b>{_both(key)}</div>' for key, value, mark in tiles
    )


def _plots(plots: tuple[bytes, bytes] | None) -> str:
    if plots is None:
        return ""
    light, dark = (_data("png", plot) for plot in plots)
    picture = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="plot" src="{light}" alt="sizes and aspect ratios"></picture>'
    )
    return _section("sizes", picture, _both("sizes_note"))


def _figure(report: InspectReport, identity: str, label: str, title: str) -> str:
    data = report.thumbnails.get(identity)
    if data is None:
        return f'<figure><div class="mount"></div><figcaption>{label}</figcaption></figure>'
    image = f'<img src="{_data("webp", data)}" alt="" loading="lazy">'
    mount = f'<div class="mount">{image}</div>'
    return f'<figure title="{_e(title)}">{mount}<figcaption>{label}</figcaption></figure>'


def _samples(report: InspectReport) -> str:
    if not report.samples:
        return ""
    none = f"<i>{_both('no_caption')}</i>"
    figures = "".join(
        _figure(report, s.id, _e(s.caption) if s.caption else none, f"{s.id}, {s.width} x {s.height}")
        for s in report.samples
    )
    note = _both("sheet_note", n=len(report.samples), all=report.pictures)
    return _section("sheet", f'<div class="sheet">{figures}</div>', note)


def _near(report: InspectReport) -> str:
    if not report.near_duplicates:
        return ""
    rows = []
    for group in report.near_duplicates[:12]:
        figures = "".join(_figure(report, identity, _e(identity), identity) for identity in group[:6])
        more = f'<p class="hint">{_both("more", n=len(group) - 6)}</p>' if len(group) > 6 else ""
        rows.append(f'<div class="group"><div class="sheet">{figures}</div>{more}</div>')
    return _section("near", "".join(rows) + _rest(len(report.near_duplicates) - 12), _both("near_note"))


def _exact(report: InspectReport) -> str:
    if not report.exact_duplicates:
        return ""
    rows = []
    for group in report.exact_duplicates[:12]:
        names = "".join(f"<li>{_e(identity)}</li>" for identity in group[:8])
        rest = f"<li>{_both('more', n=len(group) - 8)}</li>" if len(group) > 8 else ""
        rows.append(
            f'<div class="pair">{_figure(report, group[0], "", group[0])}<ul>{names}{rest}</ul></div>'
        )
    return _section(
        "exact", f'<div class="pairs">{"".join(rows)}</div>' + _rest(len(report.exact_duplicates) - 12)
    )


def _rest(count: int) -> str:
    return f'<p class="hint">{_both("more", n=count)}</p>' if count > 0 else ""


def _problems(report: InspectReport) -> str:
    if not report.problems:
        return ""
    rows = "".join(
        f'<tr><td class="name">{_e(p.path)}</td><td>{_both("k_" + p.kind)}</td>'
        f"<td>{_pair(p.reason, reason_in('zh', p.reason))}</td></tr>"
        for p in report.problems[:_SHOWN_PROBLEMS]
    )
    head = "".join(f"<th>{_both(key)}</th>" for key in ("file", "kind", "reason"))
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return _section("left_out", table + _rest(len(report.problems) - _SHOWN_PROBLEMS))


def _details(report: InspectReport) -> str:
    def listed(pairs: Iterable[tuple[str, int]]) -> str:
        return ", ".join(f"{_e(name)} {count:,}" for name, count in pairs) or "-"

    rows = [
        ("formats", listed(report.formats.items())),
        ("sources", listed(report.captions.sources.items())),
        ("styles", listed(report.styles.items())),
        ("buckets", listed(report.buckets.items())),
        ("volume", f"{report.total_bytes / 1e6:,.1f} MB"),
        ("hash", f"<code>{_e(report.content_hash[:16])}</code>"),
    ]
    body = "".join(f"<tr><th>{_both(key)}</th><td>{value}</td></tr>" for key, value in rows)
    return _section("details", f'<div class="wide"><table class="facts">{body}</table></div>')
