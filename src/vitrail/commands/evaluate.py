"""``vitrail evaluate``: how good are these pictures, or what a model makes? A page, a JSON file, a table."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse, whole
from vitrail.errors import InputError
from vitrail.files import shown

if TYPE_CHECKING:
    from vitrail.evaluation.suite import Evaluation
    from vitrail.serving.long_work import EvaluateRequest

__all__ = ["Options", "run"]

ABOUT = Text(
    "Measure pictures, or what a model makes, and write a report, for instance: "
    "vitrail evaluate generated/ --against real/",
    "评测图片或模型并生成报告，例如：vitrail evaluate generated/ --against real/",
)

Bar = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """The flags of ``vitrail evaluate``."""

    folder: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of pictures to judge, or a built set: emoji, fashion-mnist (what no training "
                "sees of it). With --model of an autoencoder: the pictures to reconstruct.",
                "要评测的图片文件夹，或已构建的数据集 emoji、fashion-mnist（未参与训练的部分）。"
                "与自编码器的 --model 同用时，为要重建的图片。",
            ),
            "FOLDER",
            positional=True,
        ),
    ] = None
    against: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of real (or original) pictures, or a built set.",
                "真实（或原始）图片文件夹，或已构建的数据集。",
            ),
            "FOLDER",
        ),
    ] = None
    paired: Annotated[
        bool,
        Flag(
            Text(
                "Compare picture with picture, by file name, as for reconstructions.",
                "按文件名逐张比较，用于重建结果。",
            )
        ),
    ] = False
    model: Annotated[
        str | None,
        Flag(
            Text(
                "Judge a model: an autoencoder reconstructs FOLDER, one that draws is given --prompts, "
                "or all its classes.",
                "评测模型：自编码器重建 FOLDER；生成模型使用 --prompts（类别模型未给出时使用全部类别）。",
            ),
            "NAME",
        ),
    ] = None
    prompts: Annotated[
        str | None,
        Flag(Text("Text file with a prompt on every line.", "每行一个提示词的文本文件。"), "FILE"),
    ] = None
    seeds: Annotated[
        str, Flag(Text("Pictures of each prompt. 1 to 10000.", "每个提示词生成几张。1 到 10000。"), "INT")
    ] = "2"
    seed: Annotated[str, Flag(Text("Seed of the first.", "第一张的种子。"), "INT")] = "0"
    style: Annotated[str | None, Flag(Text("Style, as for generate.", "绘画风格，同 generate。"), "NAME")] = (
        None
    )
    steps: Annotated[str | None, Flag(Text("Steps, as for generate.", "步数，同 generate。"), "INT")] = None
    cfg_scale: Annotated[
        str | None, Flag(Text("Guidance, as for generate.", "引导强度，同 generate。"), "FLOAT")
    ] = None
    metrics: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Only these metrics, with commas between. Default: all that fit.",
                "仅计算这些指标，用逗号分隔。默认计算所有适用指标。",
            ),
            "NAMES",
        ),
    ] = ()
    limit: Annotated[
        str,
        Flag(
            Text("Most pictures of each folder, spread evenly.", "每个文件夹最多取多少张，均匀选取。"),
            "INT",
        ),
    ] = "2000"
    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder for report.html and report.json. Default: out/evaluate-NAME.",
                "报告文件夹：report.html 与 report.json。默认 out/evaluate-名称。",
            ),
            "FOLDER",
            short="-o",
        ),
    ] = None
    device: Annotated[
        str,
        Flag(
            Text("auto, cpu, cuda or cuda:N, for --model.", "auto、cpu、cuda 或 cuda:N，用于 --model。"),
            "NAME",
        ),
    ] = "auto"
    json: Annotated[
        bool, Flag(Text("Print the report as JSON; write no files.", "以 JSON 输出报告，不写文件。"))
    ] = False
    quiet: Annotated[bool, Flag(Text("No progress.", "不显示进度。"), short="-q")] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Measure, write the report, print a line a metric; returns 0."""
    options = parse(Options, arguments, command="evaluate", about=ABOUT, language=language)
    _check(options)
    from vitrail.serving.evaluate_work import evaluate

    request = _request(options, language)
    name = (
        Path(options.folder).resolve().name if options.folder is not None else Path(options.model or "").name
    )
    with _bar(options.quiet or options.json) as bar:
        evaluation = evaluate(request, _out(options, name), bar, keep=not options.json)
    if options.prompts is not None:
        evaluation.about["prompts"] = f"{len(request.prompts)} of {Path(options.prompts).name}"
    from vitrail.evaluation.report import as_json, write_report

    if options.json:
        print(json.dumps(as_json(evaluation), ensure_ascii=False, indent=1))
        return 0
    _print(evaluation, language)
    for path in write_report(evaluation, _out(options, name), language=language):
        print(path)
    return 0


def _check(options: Options) -> None:
    """Refuse what does not go together before anything is loaded."""
    if options.folder is None and options.model is None:
        raise InputError("nothing to judge; write: vitrail evaluate my_pictures/ --against real/")
    if options.paired and options.against is None:
        raise InputError("--paired compares with originals; give their folder with --against")
    if options.prompts is not None and options.model is None:
        raise InputError("--prompts are for a model; give one with --model")


def _request(options: Options, language: Language) -> EvaluateRequest:
    """Return what the flags ask for, as a job would ask it."""
    from vitrail.serving.evaluate_models import read_prompts
    from vitrail.serving.long_work import EvaluateRequest
    from vitrail.validation import parse as parse_request

    given = {
        "pictures": options.folder,
        "against": options.against,
        "paired": options.paired,
        "model": options.model,
        "prompts": read_prompts(Path(options.prompts)) if options.prompts else (),
        "metrics": [name for names in options.metrics for name in names.split(",") if name.strip()],
        "limit": whole("limit", options.limit, 2, 1_000_000),
        "seeds": whole("seeds", options.seeds, 1, 10_000),
        "seed": whole("seed", options.seed, 0, 2**53 - 10_001),
        "style": options.style,
        "steps": _number(options.steps, int),
        "cfg_scale": _number(options.cfg_scale, float),
        "language": language,
        "device": options.device,
    }
    return parse_request(EvaluateRequest, {name: value for name, value in given.items() if value is not None})


def _number(text: str | None, kind: Callable[[str], float]) -> float | str | None:
    """Return the number that ``text`` is; what is none is left to the request's own check."""
    try:
        return None if text is None else kind(text)
    except ValueError:
        return text


def _out(options: Options, name: str) -> Path:
    return (
        Path(options.output) if options.output is not None else Path("out") / f"evaluate-{name or 'pictures'}"
    )


def _print(evaluation: Evaluation, language: Language) -> None:
    """One line a metric, then the findings, then what was left out and why."""
    from vitrail.evaluation.catalogue import CATALOGUE
    from vitrail.evaluation.report import formatted
    from vitrail.evaluation.verdict import verdict

    index = 1 if language == "zh" else 0
    real = "真实" if language == "zh" else "real"
    for name, result in evaluation.results.items():
        entry = CATALOGUE[name]
        line = f"{name:<16} {formatted(result.value, entry):>12}"
        if result.ci95 is not None:
            line += "  [" + ", ".join(formatted(end, entry) for end in result.ci95) + "]"
        line += f"  n={result.n}"
        if result.floor is not None:
            line += f"  {real} {formatted(result.floor.value, entry)}"
        print(line)
    for sentence in verdict(evaluation):
        print(f"- {shown(sentence.words[index], 400)}", file=sys.stderr)
    left_out = "未测量" if language == "zh" else "not measured"
    for name, reason in evaluation.skipped.items():
        print(f"{left_out}: {name}: {shown(reason, 300)}", file=sys.stderr)


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Bar]:
    """Yield a function (stage, done, total) that draws a bar on standard error if a person can see it."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns: tuple[Any, ...] = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)
