"""What an evaluation comes to, in sentences that a person who knows no metric understands."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from vitrail.evaluation.catalogue import Words
from vitrail.evaluation.results import MetricResult
from vitrail.evaluation.suite import Evaluation

__all__ = ["Sentence", "verdict"]


class Sentence(NamedTuple):
    """One finding and how to take it."""

    tone: Literal["good", "note", "warn"]
    words: Words


def _say(tone: Literal["good", "note", "warn"], en: str, zh: str) -> Sentence:
    return Sentence(tone, Words(en, zh))


def verdict(evaluation: Evaluation) -> list[Sentence]:
    """Return the findings, most important first; never empty."""
    found = _of_pairs(evaluation) if evaluation.kind == "pairs" else _of_sets(evaluation)
    blank = evaluation.results.get("blank")
    if blank is not None and blank.value > 0:
        count = round(blank.value * blank.n)
        found.insert(
            0,
            _say(
                "warn",
                f"{count} of {blank.n} pictures are blank or broken; look at them before anything else.",
                f"{blank.n} 张中有 {count} 张空白或损坏，请先检查它们。",
            ),
        )
    n = len(evaluation.pictures)
    least = min(n, len(evaluation.reference)) if evaluation.reference is not None else n
    if evaluation.kind == "sets" and least < 1000:
        found.append(
            _say(
                "note",
                f"With as few as {least} pictures the intervals are wide; 1,000 or more of each "
                "are better for comparing two models.",
                f"只有 {least} 张图片，区间较宽；比较两个模型时每组最好有 1000 张以上。",
            )
        )
    if evaluation.kind == "sets" and evaluation.reference is None:
        found.append(
            _say(
                "note",
                "No real pictures were given to compare with, so nothing here says how real these look.",
                "没有提供用来对照的真实图片，因此无法判断这些图片有多真实。",
            )
        )
    return found or [_say("note", "Nothing stands out.", "没有特别之处。")]


def _of_pairs(evaluation: Evaluation) -> list[Sentence]:
    found = []
    lpips = evaluation.results.get("lpips")
    if lpips is not None and lpips.each is not None:
        value = lpips.value
        if value < 0.1:
            found.append(
                _say(
                    "good",
                    f"People would hardly see a difference (LPIPS {value:.3f}).",
                    f"人眼几乎看不出差别（LPIPS {value:.3f}）。",
                )
            )
        elif value < 0.25:
            found.append(
                _say(
                    "note",
                    f"Side by side the difference is visible (LPIPS {value:.3f}).",
                    f"并排比较时可以看出差别（LPIPS {value:.3f}）。",
                )
            )
        else:
            found.append(
                _say(
                    "warn",
                    f"The difference is plain to see (LPIPS {value:.3f}).",
                    f"差别明显（LPIPS {value:.3f}）。",
                )
            )
        worst = int(np.argmax(lpips.each))
        key = evaluation.pictures.keys[worst]
        found.append(
            _say(
                "note" if lpips.each[worst] < 0.5 else "warn",
                f"The worst picture is {key} with {lpips.each[worst]:.3f}.",
                f"最差的一张是 {key}，为 {lpips.each[worst]:.3f}。",
            )
        )
    psnr = evaluation.results.get("psnr")
    if lpips is None and psnr is not None and psnr.each is not None:
        worst = int(np.argmin(psnr.each))
        key = evaluation.pictures.keys[worst]
        found.append(
            _say(
                "note",
                f"On average the pixels agree to {psnr.value:.1f} dB; the worst picture is {key} with "
                f"{psnr.each[worst]:.1f} dB.",
                f"像素平均一致到 {psnr.value:.1f} dB；最差的一张是 {key}，为 {psnr.each[worst]:.1f} dB。",
            )
        )
    codes = evaluation.results.get("codes_used")
    if codes is not None and codes.floor is not None and codes.value < 0.5 * codes.floor.value:
        found.append(
            _say(
                "note",
                f"{100 * codes.value:.1f} % of the codebook is used by these {codes.n} pictures, where "
                f"{100 * codes.floor.value:.1f} % could be; if it stays so with more and other pictures, the "
                "codebook has collapsed.",
                f"这 {codes.n} 张图片用到了 {100 * codes.value:.1f}% 的码，而最多可达 "
                f"{100 * codes.floor.value:.1f}%；若增加图片后仍如此，说明码本已坍缩。",
            )
        )
    return found


def _below(result: MetricResult | None) -> bool:
    """Whether a value at the floor's n lies below everything that real pictures got."""
    if result is None or result.floor is None or result.floor.spread is None:
        return False
    value = result.floor.matched if result.floor.matched is not None else result.value
    return value < result.floor.spread[0]


def _of_sets(evaluation: Evaluation) -> list[Sentence]:
    found = []
    kernel = evaluation.results.get("kernel")
    space = evaluation.space.name if evaluation.space is not None else "?"
    if kernel is not None and kernel.ci95 is not None and kernel.floor is not None and kernel.floor.spread:
        real = kernel.floor.spread[1]
        if kernel.ci95[0] > max(real, 0):
            found.append(
                _say(
                    "warn",
                    f"As a set they can be told from the real pictures (kernel distance {kernel.value:.4f}; "
                    f"real against real at most {max(real, 0):.4f}).",
                    f"从整体上能与真实图片区分（核距离 {kernel.value:.4f}；"
                    f"真实对真实至多 {max(real, 0):.4f}）。",
                )
            )
        else:
            found.append(
                _say(
                    "good",
                    f"As a set they cannot be told from the real pictures at this number, in the features of "
                    f"{space}.",
                    f"在当前数量下，按 {space} 特征从整体上无法与真实图片区分。",
                )
            )
    results = evaluation.results
    if _below(results.get("precision")):
        precision = results["precision"]
        assert precision.floor is not None
        floor = precision.floor
        matched = floor.matched if floor.matched is not None else precision.value
        share, real = 100 * (1 - matched), 100 * (1 - floor.value)
        found.append(
            _say(
                "warn",
                f"{share:.0f} % of them resemble no real picture (of as many real ones, "
                f"{real:.0f} % resemble no other).",
                f"其中 {share:.0f}% 不像任何真实图片（同样数量的真实图片中也有 {real:.0f}% 不像其他的）。",
            )
        )
    if _below(results.get("recall")) or _below(results.get("coverage")):
        found.append(
            _say(
                "warn",
                "Some kinds of real pictures are missing or rare among them (recall or coverage below real "
                "against real).",
                "缺少某些类型的真实图片（召回率或覆盖率低于真实对真实）。",
            )
        )
    if _below(results.get("vendi")):
        real_vendi = results["vendi"].floor
        assert real_vendi is not None
        found.append(
            _say(
                "warn",
                f"They are less varied than the same number of real pictures (Vendi score "
                f"{real_vendi.matched:.1f} against {real_vendi.value:.1f}).",
                f"多样性低于同样数量的真实图片（Vendi 分数 {real_vendi.matched:.1f}，"
                f"真实为 {real_vendi.value:.1f}）。",
            )
        )
    blurry = results.get("blurry")
    if blurry is not None and blurry.ci95 is not None and blurry.ci95[0] > 0.05:
        found.append(
            _say(
                "warn",
                f"{100 * blurry.value:.0f} % are blurrier than nearly all real pictures.",
                f"{100 * blurry.value:.0f}% 比绝大多数真实图片更模糊。",
            )
        )
    variety = results.get("seed_variety")
    if variety is not None and variety.value < 0.1:
        found.append(
            _say(
                "warn",
                "The seed hardly changes the picture: different seeds of a prompt look alike.",
                "换种子几乎不改变图片：同一提示词的不同种子看起来一样。",
            )
        )
    return found
