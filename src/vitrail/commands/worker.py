"""``vitrail worker``: takes jobs from a queue that several machines share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Device, Flag, Precision, parse, whole
from vitrail.commands.serve import data_folder
from vitrail.errors import InputError, MissingExtraError

__all__ = ["run"]

ABOUT = Text(
    "Take jobs from a queue that several machines share, until it is stopped. For instance: "
    "vitrail worker --database postgresql://vitrail@host/vitrail --pictures s3://bucket/pictures",
    "从多机共享的队列中领取任务，直到停止。例如："
    "vitrail worker --database postgresql://vitrail@host/vitrail --pictures s3://bucket/pictures",
)
PRECISIONS: tuple[Literal["auto", "float32", "bfloat16"], ...] = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """The flags of ``vitrail worker``."""

    database: Annotated[
        str | None,
        Flag(
            Text(
                "The queue: postgresql://user:password@host/name, as vitrail serve was given it. "
                "Default: the file in the folder.",
                "队列：postgresql://用户:密码@主机/库名，与 vitrail serve 的相同。默认为文件夹中的文件。",
            ),
            "URL",
        ),
    ] = None
    pictures: Annotated[
        str | None,
        Flag(
            Text(
                "Where the pictures go: a folder that all machines share, or s3://bucket/name. "
                "Default: the folder.",
                "图片存放处：各机器共享的文件夹，或 s3://bucket/name。默认为本文件夹。",
            ),
            "PLACE",
        ),
    ] = None
    folder: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of this machine for what long works leave. Default: ~/.local/share/vitrail.",
                "本机存放长任务产物的文件夹。默认 ~/.local/share/vitrail。",
            ),
            "FOLDER",
        ),
    ] = None
    device: Device = "auto"
    precision: Precision = "auto"
    memory: Annotated[
        str | None,
        Flag(
            Text(
                "MiB of models that stay loaded. Default: a quarter of the memory.",
                "常驻模型的内存上限（MiB）。默认为内存的四分之一。",
            ),
            "INT",
        ),
    ] = None
    batch: Annotated[
        str,
        Flag(
            Text(
                "Jobs that may be drawn in one pass, if they differ in words and seed alone.",
                "一次可合并处理的任务数（仅提示词与种子不同）。",
            ),
            "INT",
        ),
    ] = "8"
    warm: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Model to load before the first job; may be given several times. Default: default.",
                "在首个任务之前载入的模型；可给出多个。默认 default。",
            ),
            "NAME",
        ),
    ] = ("default",)


def run(arguments: Sequence[str], language: Language) -> int:
    """Take jobs until SIGTERM or Ctrl-C; what is being done then is given back. Returns 0."""
    options = parse(Options, arguments, command="worker", about=ABOUT, language=language)
    memory = None if options.memory is None else whole("memory", options.memory, 64, 1 << 24)
    batch = whole("batch", options.batch, 1, 64)
    precision = next((known for known in PRECISIONS if known == options.precision), None)
    if precision is None:
        raise InputError(
            f"precision {options.precision[:40]!r} is unknown; allowed are {', '.join(PRECISIONS)}"
        )
    try:
        from vitrail.serving.queue_worker import Worker, WorkerSettings
    except ImportError as error:
        raise MissingExtraError(str(error.name or "sqlalchemy").partition(".")[0], "server") from error
    settings = WorkerSettings(
        folder=str(data_folder(options.folder)),
        database=options.database,
        pictures=options.pictures,
        device=options.device,
        precision=precision,
        memory_budget=memory,
        batch=batch,
        warm=options.warm,
    )
    worker = Worker(settings)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: worker.stop())
    said = {"en": "takes jobs from", "zh": "正在领取任务："}[language]
    print(f"vitrail worker {worker.name} {said} {worker.place}", file=sys.stderr, flush=True)
    worker.run()
    return 0
