"""An evaluation on disk: ``report.json`` for programs and ``report.html`` for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from vitrail.data.folder_files import printable
from vitrail.evaluation.catalogue import CATALOGUE, Entry, Words, label_of
from vitrail.evaluation.image_sets import ImageSet
from vitrail.evaluation.report_page import PAGE, POLICY, SCRIPT
from vitrail.evaluation.report_sections import (
    both,
    escaped,
    formatted,
    pair_sections,
    set_sections,
    worded,
)
from vitrail.evaluation.results import Floor, MetricResult
from vitrail.evaluation.suite import Evaluation
from vitrail.evaluation.verdict import verdict
from vitrail.files import atomic_write, ensure_folder

__all__ = ["as_json", "formatted", "write_report"]

Language = Literal["en", "zh"]

_TILES = {
    "pairs": ("lpips", "psnr", "ssim", "codes_used", "codes_perplexity"),
    "sets": ("frechet", "kernel", "precision", "coverage", "vendi", "latency_s"),
}


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as plain data: what was measured of what, with n, intervals, floors, settings."""
    reference = evaluation.reference
    each = {
        name: [round(float(v), 6) for v in result.each]
        for name, result in evaluation.results.items()
        if result.each is not None
    }
    return {
        "format": 1,
        "kind": evaluation.kind,
        "pictures": _set_json(evaluation.pictures),
        "reference": _set_json(reference) if reference is not None else None,
        "metrics": {name: result.as_json() for name, result in evaluation.results.items()},
        "skipped": evaluation.skipped,
        "verdict": [{"tone": s.tone, "en": s.words.en, "zh": s.words.zh} for s in verdict(evaluation)],
        "about": evaluation.about,
        "unmatched": [printable(name) for name in evaluation.unmatched[:1000]],
        "each": {"keys": [printable(key) for key in evaluation.pictures.keys], **each} if each else {},
    }


def _set_json(images: ImageSet) -> dict[str, Any]:
    return {
        "name": printable(images.name),
        "n": len(images),
        "not_finite": images.failed,
        "sizes": images.sizes,
    }


def write_report(evaluation: Evaluation, out: Path | str, *, language: Language = "en") -> list[Path]:
    """Write ``report.json`` and ``report.html`` into ``out`` and return their paths.

    The page holds both languages, ``language`` first, and its pictures; it needs no other file and no
    network. Raises :class:`vitrail.errors.StorageError`.
    """
    folder = ensure_folder(out)
    data = json.dumps(as_json(evaluation), ensure_ascii=False, indent=1)
    return [
        atomic_write(folder / "report.json", data + "\n"),
        atomic_write(folder / "report.html", _page(evaluation, language)),
    ]


# -- the page ------------------------------------------------------------------------------------------------


def _page(evaluation: Evaluation, language: Language) -> str:
    pictures, reference = evaluation.pictures, evaluation.reference
    against = ("against", "对比") if evaluation.kind == "sets" else ("reconstructed from", "重建自")
    subtitle = both(f"{len(pictures)} pictures", f"{len(pictures)} 张图片")
    if reference is not None:
        en, zh = f" {against[0]} {reference.name} ({len(reference)})", f"，{against[1]} {reference.name}"
        subtitle += both(en, f"{zh}（{len(reference)} 张）")
    sections = [_table(evaluation)]
    sections += pair_sections(evaluation) if evaluation.kind == "pairs" else set_sections(evaluation)
    sections.append(_details(evaluation))
    short = "".join(f'<li class="{s.tone}">{worded(s.words)}</li>' for s in verdict(evaluation))
    return PAGE.substitute(
        language=language,
        english="checked" if language == "en" else "",
        chinese="checked" if language == "zh" else "",
        policy=POLICY,
        script=SCRIPT,
        title=both("Evaluation", "评测报告"),
        heading=escaped(evaluation.about.get("model") or evaluation.about.get("name") or pictures.name),
        subtitle=subtitle,
        tiles=_tiles(evaluation),
        short_title=both("In short", "结论"),
        short=short,
        sections="".join(sections),
        made=escaped(evaluation.about.get("created", "")),
    )


def _tiles(evaluation: Evaluation) -> str:
    tiles: list[str] = []
    for name in _TILES[evaluation.kind]:
        result = evaluation.results.get(name)
        if result is None or len(tiles) == 5:
            continue
        entry = CATALOGUE[name]
        number, _, unit = formatted(result.value, entry).partition(" ")
        ci = ""
        if result.ci95 is not None:
            low, high = (formatted(end, entry).partition(" ")[0] for end in result.ci95)
            ci = f"<em>{low} – {high}</em>"
        small = f" <small>{escaped(unit)}</small>" if unit else ""
        label = worded(_label(result))
        tiles.append(f'<div class="tile"><b>{number}{small}</b>{label}{ci}</div>')
    return "".join(tiles)


def _table(evaluation: Evaluation) -> str:
    better = {
        "higher": Words("higher is better", "越高越好"),
        "lower": Words("lower is better", "越低越好"),
        "real": Words("closest to real is best", "越接近真实越好"),
    }
    rows = []
    for name, result in evaluation.results.items():
        entry = CATALOGUE[name]
        ci = ""
        if result.ci95 is not None:
            low, high = (formatted(end, entry) for end in result.ci95)
            ci = f'<small title="{escaped(result.interval)}">{escaped(low)} – {escaped(high)}</small>'
        label = worded(_label(result))
        if name == "ms_ssim" and result.settings.get("scales", 5) != 5:
            label += both(f" ({result.settings['scales']} scales)", f"（{result.settings['scales']} 尺度）")
        rows.append(
            f"<tr><th>{label}<small>{worded(better[entry.better])}</small></th>"
            f'<td class="number"><b>{escaped(formatted(result.value, entry))}</b>{ci}</td>'
            f'<td class="number">{result.n:,}</td>'
            f'<td class="number">{_floor(result, entry)}</td>'
            f'<td class="meaning">{worded(entry.meaning)}</td></tr>'
        )
    head = "".join(
        f"<th>{both(en, zh)}</th>"
        for en, zh in (
            ("metric", "指标"),
            ("value, 95 % interval", "数值与 95% 区间"),
            ("n", "数量"),
            ("real pictures get", "真实图片的数值"),
            ("how to read it", "如何理解"),
        )
    )
    note = both(
        "Hover over an interval to see how it was made. Metrics that depend on the number of pictures are "
        "compared with real pictures at the same number.",
        "将鼠标悬停在区间上可查看其计算方法。受图片数量影响的指标，均与同样数量的真实图片比较。",
    )
    return (
        f"<section><h2>{both('In numbers', '各项指标')}</h2>"
        f'<div class="wide"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="hint">{note}</p></section>'
    )


def _label(result: MetricResult) -> Words:
    space = result.settings.get("space")
    return label_of(result.name, space if isinstance(space, str) else None)


def _floor(result: MetricResult, entry: Entry) -> str:
    floor = result.floor
    if floor is None:
        return "–"
    main = f"<b>{escaped(formatted(floor.value, entry))}</b>"
    notes = [_floor_note(floor)]
    if floor.matched is not None and abs(floor.matched - result.value) > 1e-9:
        value = formatted(floor.matched, entry)
        notes.append(Words(f"these at the same n: {value}", f"相同数量下本组为 {value}"))
    if floor.chance is not None:
        value = formatted(floor.chance, entry)
        notes.append(Words(f"unrelated pictures: {value}", f"无关图片：{value}"))
    return main + "".join(f"<small>{worded(note)}</small>" for note in notes)


def _floor_note(floor: Floor) -> Words:
    match floor.kind:
        case "halves":
            return Words(f"half against half, n = {floor.n}", f"两半互比，n = {floor.n}")
        case "reference":
            return Words(f"by themselves, n = {floor.n}", f"真实图片本身，n = {floor.n}")
        case "uniform":
            return Words("if every code were equally likely", "若每个码等可能出现")
        case _:
            return Words("a picture against itself", "图片与自身相比")


# -- the small print -----------------------------------------------------------------------------------------


def _details(evaluation: Evaluation) -> str:
    rows = [
        (Words(key, key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in evaluation.about.items()
    ]
    for words, images in (
        (Words("sizes", "尺寸"), evaluation.pictures),
        (Words("sizes, real", "真实图片尺寸"), evaluation.reference),
    ):
        if images is not None:
            rows.append((words, ", ".join(f"{size}: {n}" for size, n in list(images.sizes.items())[:8])))
    if evaluation.unmatched:
        names = ", ".join(evaluation.unmatched[:8]) + (" ..." if len(evaluation.unmatched) > 8 else "")
        rows.append((Words("without a partner", "未配对"), f"{len(evaluation.unmatched)}: {names}"))
    for name, reason in evaluation.skipped.items():
        label = CATALOGUE[name].label
        rows.append((Words(f"not measured: {label.en}", f"未测量：{label.zh}"), reason))
    for result in evaluation.results.values():
        settings = ", ".join(f"{key} {value}" for key, value in result.settings.items())
        rows.append(
            (_label(result), settings + (f"; interval: {result.interval}" if result.interval else ""))
        )
    facts = "".join(f"<tr><th>{worded(label)}</th><td>{escaped(value)}</td></tr>" for label, value in rows)
    return (
        f"<section><h2>{both('How it was measured', '测量方法')}</h2><details><summary>"
        f"{both('settings, intervals, what was left out', '设置、区间与未测量项')}</summary>"
        f'<div class="wide"><table class="facts"><tbody>{facts}</tbody></table></div></details></section>'
    )
