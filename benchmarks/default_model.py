"""Measure the shipped model: prompt hit rates, their ceiling, memorisation, a contact sheet.

    python benchmarks/default_model.py --out out/measure   # 480 judged pictures, a sheet of 64
    python benchmarks/default_model.py --quick             # 100 judged pictures, a sheet of 16
    python benchmarks/default_model.py --only real         # the judge alone: ceiling and controls, no model

Pictures are made by the product's own engine with the model's own settings, one a prompt. The judge is
trained once for each data set (about twelve minutes on one free core) and kept in the cache. Progress goes
to stderr; the last line of stdout is JSON. What each figure means: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from default_model_prompts import PROMPTS
from PIL import Image
from torch import Tensor

from vitrail.data.composition import Spec
from vitrail.data.emoji_bank import EmojiBank, load_emoji
from vitrail.data.synthesis import Synthesiser
from vitrail.errors import VitrailError
from vitrail.evaluation.judge import data_hash, open_judge
from vitrail.evaluation.judge_data import ConceptQuestions, pictures_of
from vitrail.evaluation.judge_scenes import SceneQuestions
from vitrail.evaluation.matcher import Matcher
from vitrail.evaluation.matcher_training import soften
from vitrail.evaluation.memorisation import (
    Memorisation,
    Neighbours,
    memorisation,
    neighbours_figure,
    pixel_features,
)
from vitrail.evaluation.prompt_hits import Answers, Question, answer, by_tag
from vitrail.evaluation.stats import Estimate, share_of
from vitrail.images import grid, to_tensor
from vitrail.models.lexicon import translate
from vitrail.runtime import cpu_generator

SETS = ("seen", "cells", "compositions", "zh", "trained")
PARTS = (*SETS, "memorisation", "sheet", "real")
COUNTS = {"seen": 120, "cells": 100, "compositions": 100, "zh": 120, "trained": 40}
QUICK = {"seen": 25, "cells": 25, "compositions": 25, "zh": 25, "trained": 0}
SIZE = 64
Generate = Callable[[Sequence[str], Sequence[str], int], list[Image.Image]]


def say(text: str) -> None:
    """Tell the person at the terminal; stdout belongs to the figures."""
    print(text, file=sys.stderr, flush=True)


def product(model: str) -> Generate:
    """Return a function that makes one picture for each (prompt, style) with the product's engine."""
    from vitrail.schema import PictureDone, TextToImageRequest, parse
    from vitrail.serving.engine import Engine

    engine = Engine()

    def generate(prompts: Sequence[str], styles: Sequence[str], seed: int) -> list[Image.Image]:
        made: list[Image.Image] = []
        started = time.monotonic()
        for number, (prompt, style) in enumerate(zip(prompts, styles, strict=True)):
            wanted = {"prompt": prompt, "style": style or None, "seed": seed + number, "model": model}
            request = parse(TextToImageRequest, wanted)
            events = engine.events(engine.submit(request))
            made += [event.picture for event in events if isinstance(event, PictureDone)]
            if (number + 1) % 20 == 0 or number + 1 == len(prompts):
                each = (time.monotonic() - started) / (number + 1)
                say(f"  {number + 1} of {len(prompts)} pictures, {each:.2f} s each")
        return made

    return generate


class Figures:
    """Collects the estimates: ``last_line`` for the last line of stdout, ``details`` for report.json."""

    def __init__(self) -> None:
        self.last_line: dict[str, Any] = {}
        self.details: dict[str, Any] = {}

    def add(self, name: str, estimate: Estimate) -> None:
        """Put an estimate into the last line, with its interval and n."""
        self.last_line[name] = round(estimate.value, 4)
        self.last_line[f"{name}_ci95"] = [round(estimate.low, 4), round(estimate.high, 4)]
        self.last_line[f"{name}_n"] = estimate.n
        say(f"{name}: {estimate}")

    def keep(self, name: str, answers: Answers, questions: Sequence[Question]) -> None:
        """Keep every single answer of a set, and its rates by kind and by style."""
        styles: dict[str, list[bool]] = {}
        for question, hit in zip(questions, answers.hits.tolist(), strict=True):
            styles.setdefault(question.style or "none", []).append(hit)
        self.details[name] = {
            "rate": asdict(answers.rate),
            "by_kind": {tag: asdict(rate) for tag, rate in by_tag(answers, questions).items()},
            "by_style": {
                style: {"hits": sum(hits), "n": len(hits)} for style, hits in sorted(styles.items())
            },
            "answers": [
                {"prompt": q.prompt, "style": q.style, "caption": q.caption, "hit": hit, "rank": rank}
                for q, hit, rank in zip(questions, answers.hits.tolist(), answers.ranks.tolist(), strict=True)
            ],
        }


def rows(questions: Sequence[Question]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows of the real pictures that the questions are about."""
    return np.array([question.source for question in questions], dtype=np.int64)


def renders(composer: Synthesiser, asked: Sequence[tuple[Question, Spec]]) -> Tensor:
    """Return the composer's own pictures of the asked compositions, (N, 3, SIZE, SIZE)."""
    return to_tensor([Image.fromarray(composer.render(spec, SIZE)) for _, spec in asked])


def measure_real(
    figures: Figures, judge: Matcher, bank: EmojiBank, concepts: ConceptQuestions, scenes: SceneQuestions
) -> None:
    """The judge on real pictures: ceilings, and what it says of pictures that show nothing."""
    cells = concepts.ask("cell")
    pixels = pictures_of(bank, rows(cells), SIZE)
    ceiling = answer(judge, pixels, cells)
    figures.add("ceiling", ceiling.rate)
    figures.keep("ceiling", ceiling, cells)
    draw = cpu_generator(11)
    figures.add("ceiling_softened", answer(judge, soften(pixels, draw), cells).rate)
    for name, asked in (("compositions", scenes.held_out(300)), ("trained", scenes.trained(200))):
        answers = answer(judge, renders(scenes.composer, asked), [question for question, _ in asked])
        figures.add(f"ceiling_{name}", answers.rate)
        figures.keep(f"ceiling_{name}", answers, [question for question, _ in asked])
    noise = torch.rand(pixels.shape, generator=draw) * 2 - 1
    for name, nothing in (
        ("noise", noise),
        ("blank", torch.ones_like(pixels)),
        ("shuffled", pixels.roll(7, 0)),
    ):
        answers = answer(judge, nothing, cells)
        figures.add(f"chance_{name}", answers.rate)
        figures.details[f"chance_{name}"] = {"confidence": float(answers.confidence.mean())}


def measure_memorisation(
    figures: Figures, judge: Matcher, bank: EmojiBank, samples: Tensor, labels: Sequence[str], out: Path
) -> None:
    """Ratios of samples, of held-out real pictures, and of blurred training pictures as the control."""
    train = bank.indices("train")
    originals = pictures_of(bank, train, SIZE)
    held = {name: pictures_of(bank, bank.indices(name), SIZE) for name in ("cell", "concept")}
    pick = torch.randperm(len(train), generator=cpu_generator(5))[:200]
    # Softened without moving: a copy as a generator would give it.
    small = torch.nn.functional.interpolate(originals[pick], (40, 40), mode="bilinear", antialias=True)
    copies = torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bicubic").clamp(-1, 1)
    sets = {"samples": samples, "real": held["cell"], "real_concepts": held["concept"], "copies": copies}
    by_space: dict[str, dict[str, Memorisation]] = {}
    for space, features in (("judge", judge.features), ("pixels", pixel_features)):
        neighbours = Neighbours(features(originals))
        by_space[space] = {
            name: memorisation(features(part), neighbours) for name, part in sets.items() if len(part)
        }
        low = float(by_space[space]["real"].ratios.quantile(0.01))
        figures.details[f"memorisation_{space}"] = {
            name: {
                **asdict(found.mean),
                "median": float(found.ratios.median()),
                "share_below_real_1%": found.share_below(low),
            }
            for name, found in by_space[space].items()
        }
        say(
            f"memorisation in {space} space: "
            + ", ".join(f"{k} {v.mean}" for k, v in by_space[space].items())
        )
    figures.add("memorisation_ratio_real", by_space["judge"]["real"].mean)
    figures.add("memorisation_ratio_copies", by_space["judge"]["copies"].mean)
    if len(samples):
        found = by_space["judge"]["samples"]
        figures.add("memorisation_ratio", found.mean)
        # The eight nearest to their neighbours, where a copy would be, and eight as they come.
        order = found.ratios.argsort().tolist()
        shown = (order[:8] + [number for number in range(len(order)) if number not in order[:8]][:8])[
            : len(order)
        ]
        part = Memorisation(found.ratios[shown], found.nearest[shown], found.mean)
        figure = neighbours_figure(samples[shown], originals, part, [labels[number] for number in shown])
        figure.save(out / "neighbours.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="default", help="name or folder of the model (default: the shipped one)"
    )
    parser.add_argument(
        "--data", type=Path, help="built emoji set (default: where vitrail data build emoji puts it)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/default_model"), help="folder for sheet, figure, report"
    )
    parser.add_argument("--judge", type=Path, help="folder of trained judges (default: vitrail's cache)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure these parts only"
    )
    parser.add_argument("--quick", action="store_true", help="100 judged pictures instead of 480")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first picture")
    given = parser.parse_args(arguments)
    try:
        print(json.dumps(run(given)))
    except VitrailError as error:
        say(f"error: {error}")
        return error.exit_code
    return 0


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure what ``given`` asks for, write the files, return the last line."""
    started = time.monotonic()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 1)

    given.out.mkdir(parents=True, exist_ok=True)
    bank = load_emoji(given.data)
    composer = Synthesiser(bank)
    lap("load")
    judge = open_judge(
        bank,
        composer,
        folder=given.judge,
        report=lambda seen, loss, rate: say(
            f"  training the judge: {seen} pictures, loss {loss:.3f}, {rate:.0f} a second"
        ),
    )
    lap("judge")
    say(f"judge {judge.name}, data {judge.data_hash[:12]}")
    figures = Figures()
    concepts, scenes = ConceptQuestions(bank), SceneQuestions(bank, composer)
    counts = QUICK if given.quick else COUNTS
    compositions, trained = scenes.held_out(counts["compositions"]), scenes.trained(counts["trained"])
    asked: dict[str, list[Question]] = {
        "seen": concepts.ask("train", counts["seen"]),
        "cells": concepts.ask("cell", counts["cells"]),
        "compositions": [question for question, _ in compositions],
        "zh": concepts.ask("train", counts["zh"], chinese=True),
        "trained": [question for question, _ in trained],
    }
    names = {"zh": "hit_seen_zh"}
    if "real" in given.only:
        measure_real(figures, judge, bank, concepts, scenes)
        lap("real")

    generate = product(given.model)
    samples: list[Tensor] = []
    labels: list[str] = []
    for part in SETS:
        wanted = part in given.only or ("memorisation" in given.only and part in ("seen", "cells"))
        if not wanted or not asked[part]:
            continue
        questions = asked[part]
        say(f"{part}: {len(questions)} pictures")
        # The Chinese set gets the seeds of the English one: only the language differs.
        made = generate(
            [q.prompt for q in questions],
            [q.style for q in questions],
            given.seed + 10_000 * (SETS.index(part) % 3),
        )
        folder = given.out / part
        folder.mkdir(exist_ok=True)
        for number, picture in enumerate(made):
            picture.save(folder / f"{number:03d}.png")
        pixels = torch.nn.functional.interpolate(
            to_tensor(made), (SIZE, SIZE), mode="bilinear", antialias=True
        )
        answers = answer(judge, pixels, questions)
        figures.add(names.get(part, f"hit_{part}"), answers.rate)
        figures.keep(f"hit_{part}", answers, questions)
        if part in ("seen", "cells"):
            samples.append(pixels)
            labels += [f"{question.caption} ({question.style})" for question in questions]
        lap(part)
    add_shares(figures)
    if "memorisation" in given.only:
        measured = torch.cat(samples) if samples else torch.empty(0, 3, SIZE, SIZE)
        measure_memorisation(figures, judge, bank, measured, labels, given.out)
        lap("memorisation")
    if "sheet" in given.only:
        chosen = PROMPTS[::4] if given.quick else PROMPTS
        say(f"contact sheet: {len(chosen)} pictures")
        made = generate([prompt for prompt, _ in chosen], [style for _, style in chosen], given.seed + 50_000)
        texts = [f"{prompt} ({style})" if style else prompt for prompt, style in chosen]
        read = [translate(prompt).english for prompt, _ in chosen]  # shown where no font has Chinese
        english = [
            f"{words} ({style})" if style else words for words, (_, style) in zip(read, chosen, strict=True)
        ]
        sheet = grid(made, columns=8, labels=texts, substitutes=english)
        sheet.save(given.out / "contact_sheet.png")
        lap("sheet")

    judged = sum(
        len(figures.details[f"hit_{part}"]["answers"]) for part in SETS if f"hit_{part}" in figures.details
    )
    figures.last_line["n"] = judged
    figures.last_line["judge"] = judge.name
    report = {
        "figures": figures.last_line,
        "model": given.model,
        "data_hash": data_hash(bank),
        "judge_settings": asdict(judge.settings),
        "seed": given.seed,
        "seconds": seconds,
        "details": figures.details,
    }
    (given.out / "report.json").write_text(
        json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    say(f"seconds: {seconds}; written to {given.out}")
    return figures.last_line


def add_shares(figures: Figures) -> None:
    """Express the hit rates as shares of their ceilings, as the goals are stated."""
    for hit, ceiling in (
        ("seen", "ceiling"),
        ("cells", "ceiling"),
        ("compositions", "ceiling_compositions"),
        ("trained", "ceiling_trained"),
        ("zh", "ceiling"),
    ):
        if f"hit_{hit}" in figures.details and ceiling in figures.details:
            part, whole = (Estimate(**figures.details[name]["rate"]) for name in (f"hit_{hit}", ceiling))
            name = "hit_seen_zh" if hit == "zh" else f"hit_{hit}"
            figures.add(f"{name}_of_ceiling", share_of(part, whole))


if __name__ == "__main__":
    sys.exit(main())
