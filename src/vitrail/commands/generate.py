"""``vitrail generate``: words in, pictures on disk, their paths on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vitrail import schema
from vitrail.commands.diffusion_options import settings_of
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Device, Flag, Precision, parse, said, whole
from vitrail.commands.screen import Screen
from vitrail.errors import InputError
from vitrail.files import shown
from vitrail.schema import ImageRecord

if TYPE_CHECKING:
    from vitrail.serving.engine import Engine, JobId

__all__ = ["Options", "run"]

ABOUT = Text(
    'Make pictures from words, for instance: vitrail generate "a cat sitting in a garden"',
    "用文字生成图片，例如：vitrail generate 一只猫坐在花园里",
)
OTHER_MODEL = Text(
    "the model is another one than the record names; the picture differs",
    "当前模型与记录中的不同，图片会有差异",
)
FORMATS = ("png", "jpeg", "webp")
PRECISIONS = ("auto", "float32", "bfloat16")

_HELP = {row.name: row for row in schema.describe(schema.TextToImageRequest)}
MAX_PROMPTS = 10_000


def _setting(name: str, metavar: str | None = None, **more: Any) -> Flag:
    """Return the flag of the request's field ``name``; its words, limits and choices are the schema's."""
    row = _HELP[name]
    en, zh = row.en, row.zh
    if row.choices:
        en, zh = f"{en} One of: {', '.join(row.choices)}.", f"{zh}可选：{', '.join(row.choices)}。"
    elif row.low is not None and row.high is not None and name != "seed":
        en, zh = (
            f"{en} {said(row.low)} to {said(row.high)}.",
            f"{zh}范围 {said(row.low)} 到 {said(row.high)}。",
        )
    return Flag(Text(en, zh), metavar, **more)


@dataclass(frozen=True)
class Options:
    """The flags of ``vitrail generate``; those of the request are text until the schema has read them."""

    prompt: Annotated[str | None, _setting("prompt", "PROMPT", positional=True)] = None
    n: Annotated[str | None, _setting("n", "INT")] = None
    seed: Annotated[str | None, _setting("seed", "INT")] = None
    steps: Annotated[str | None, _setting("steps", "INT")] = None
    cfg_scale: Annotated[str | None, _setting("cfg_scale", "FLOAT")] = None
    cfg_rescale: Annotated[str | None, _setting("cfg_rescale", "FLOAT")] = None
    guidance_interval: Annotated[str | None, _setting("guidance_interval", "START,END")] = None
    negative_prompt: Annotated[str | None, _setting("negative_prompt", "TEXT")] = None
    style: Annotated[str | None, _setting("style", "NAME")] = None
    sampler: Annotated[str | None, _setting("sampler", "NAME")] = None
    schedule: Annotated[str | None, _setting("schedule", "NAME")] = None
    shift: Annotated[str | None, _setting("shift", "FLOAT")] = None
    temperature: Annotated[str | None, _setting("temperature", "FLOAT")] = None
    top_k: Annotated[str | None, _setting("top_k", "INT")] = None
    top_p: Annotated[str | None, _setting("top_p", "FLOAT")] = None
    choice_temperature: Annotated[str | None, _setting("choice_temperature", "FLOAT")] = None
    truncation: Annotated[str | None, _setting("truncation", "FLOAT")] = None
    noise_strength: Annotated[str | None, _setting("noise_strength", "FLOAT")] = None
    noise: Annotated[str | None, _setting("noise", "NAME")] = None
    width: Annotated[str | None, _setting("width", "INT")] = None
    height: Annotated[str | None, _setting("height", "INT")] = None
    subseed: Annotated[str | None, _setting("subseed", "INT")] = None
    subseed_strength: Annotated[str | None, _setting("subseed_strength", "FLOAT")] = None
    hires_scale: Annotated[str | None, _setting("hires_scale", "FLOAT")] = None
    hires_strength: Annotated[str | None, _setting("hires_strength", "FLOAT")] = None
    hires_steps: Annotated[str | None, _setting("hires_steps", "INT")] = None
    hires_upscaler: Annotated[str | None, _setting("hires_upscaler", "NAME")] = None
    tile: Annotated[bool, _setting("tile")] = False
    seamless: Annotated[str | None, _setting("seamless", "AXES")] = None
    panorama: Annotated[bool, _setting("panorama")] = False
    lora: Annotated[tuple[str, ...], _setting("lora", "NAME:WEIGHT")] = ()
    control: Annotated[tuple[str, ...], _setting("control", "NAME=PICTURE")] = ()
    vae: Annotated[str | None, _setting("vae", "NAME")] = None
    embedding: Annotated[tuple[str, ...], _setting("embedding", "NAME")] = ()
    clip_skip: Annotated[str | None, _setting("clip_skip", "INT")] = None
    fast: Annotated[bool, _setting("fast")] = False
    model: Annotated[str | None, _setting("model", "NAME")] = None
    prompts_file: Annotated[
        str | None,
        Flag(
            Text(
                "Text file with a prompt, or settings as JSON, on each line; other flags go for all.",
                "文本文件，每行一个提示词，或一行 JSON 设置；其他选项对各行都有效。",
            ),
            "FILE",
        ),
    ] = None
    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder for the pictures, or the name of a picture file. Default: out.",
                "图片文件夹，或图片文件名。默认 out。",
            ),
            "PATH",
            short="-o",
        ),
    ] = None
    format: Annotated[
        str | None,
        Flag(Text("png, jpeg or webp. Default: png.", "png、jpeg 或 webp。默认 png。"), "NAME"),
    ] = None
    from_record: Annotated[
        str | None,
        Flag(
            Text(
                "Make the picture of this file again from its record; other flags change its settings.",
                "按图片文件内的记录重新生成同一张图；其他选项可修改其设置。",
            ),
            "PICTURE",
        ),
    ] = None
    preview_every: Annotated[
        str | None,
        Flag(
            Text(
                "Write preview-1.png and so on beside the pictures every so many steps. Default: never.",
                "每隔若干步在图片旁写出 preview-1.png 等预览图。默认不写。",
            ),
            "INT",
        ),
    ] = None
    device: Device = "auto"
    precision: Precision = "auto"
    quiet: Annotated[bool, Flag(Text("Print nothing but the paths.", "只输出图片路径。"), short="-q")] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Make the pictures that ``arguments`` ask for and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="generate", about=ABOUT, language=language)
    precision = _one_of("precision", options.precision, PRECISIONS)
    if options.format is not None:
        _one_of("format", options.format, FORMATS)
    preview_every = 0
    if options.preview_every is not None:
        preview_every = whole("preview-every", options.preview_every, 1, 200)
    settings = settings_of(options, schema.TextToImageRequest)
    requests: list[Any] = []
    if options.prompts_file is not None:
        if options.from_record is not None or "prompt" in settings:
            raise InputError("prompts-file brings the prompts; leave out the prompt and --from-record")
        requests = _listed(options.prompts_file, settings)
    elif options.from_record is None:
        if "prompt" not in settings:
            raise InputError('the prompt is missing; write for instance: vitrail generate "a red car"')
        requests = [schema.parse(schema.TextToImageRequest, settings)]

    # From here on torch is needed; what could be refused without it has been refused.
    from vitrail.serving.engine import Engine
    from vitrail.serving.save import Destination

    destination = Destination.of(options.output, options.format)
    before: ImageRecord | None = None
    if options.from_record is not None:
        before, request, precision = _again(options.from_record, settings, precision)
        requests = [request]
    with Engine(options.device, precision) as engine:
        for number, request in enumerate(requests, start=1):
            place = destination
            if len(requests) > 1 and destination.name is not None:
                name = Path(destination.name)
                place = replace(destination, name=f"{name.stem}-{number}{name.suffix}")
            job = engine.submit(request, place, preview_every=preview_every)
            _follow(engine, job, before, language, quiet=options.quiet)
    return 0


def _listed(path: str, settings: dict[str, Any]) -> list[schema.TextToImageRequest]:
    """Return the requests of a file of prompts; lines that are empty or begin with # are left out.

    Raises :class:`InputError` that names the line that cannot be used, before anything is made.
    """
    try:
        text = Path(path).read_bytes()[: 1 << 24].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise InputError(f"prompts-file {shown(path)} cannot be read: {reason}") from error
    requests: list[schema.TextToImageRequest] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        if len(requests) >= MAX_PROMPTS:
            raise InputError(f"{shown(path)} has more than {MAX_PROMPTS} prompts; split it")
        try:
            own = json.loads(words) if words.startswith("{") else {"prompt": words}
            requests.append(schema.parse(schema.TextToImageRequest, settings | own))
        except (ValueError, RecursionError) as error:  # InputError too
            reason = str(error) if isinstance(error, InputError) else "it is not valid JSON"
            raise InputError(f"{shown(path)}, line {number}: {reason}") from error
    if not requests:
        raise InputError(f"{shown(path)} holds no prompt; write one on each line")
    return requests


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise InputError(f"{name} {value[:40]!r} is unknown; allowed are {', '.join(allowed)}")
    return value


def _again(picture: str, changes: dict[str, Any], precision: Any) -> tuple[ImageRecord, Any, Any]:
    """Return a picture's record, its request with ``changes``, and the precision that it was made in."""
    from vitrail.provenance.metadata import read

    record = read(picture).record
    if record is None:
        raise InputError(f"{picture} holds no record of vitrail's; give a picture that vitrail generate made")
    request = record.again()
    if "model" not in changes:
        from vitrail.tasks.opening import find_recorded

        request = request.model_copy(update={"model": find_recorded(record)})
    if changes:
        request = schema.parse(schema.ResolvedTextToImage, request.model_dump() | changes)
    if precision == "auto" and record.precision in PRECISIONS:
        precision = record.precision
    return record, request, precision


def _follow(
    engine: Engine, job: JobId, before: ImageRecord | None, language: Language, *, quiet: bool
) -> None:
    """Show the job's progress on standard error and its paths on standard output, until it ends.

    ``before`` is the record that a picture is made again from, to say where it cannot be the same.
    """
    explained = False
    with Screen(quiet) as screen:
        for event in engine.events(job):
            if isinstance(event, schema.Progress):
                screen.advance(event)
            elif isinstance(event, schema.PictureDone):
                if not explained:
                    for line in _explanations(event.record, before, language):
                        screen.say(line)
                    explained = True
                screen.result(str(event.path))
            elif isinstance(event, schema.Done) and len(event.paths) > 1:
                screen.result(event.paths[-1])


def _explanations(record: ImageRecord, before: ImageRecord | None, language: Language) -> Iterator[str]:
    if record.understood_as is not None:
        yield Text("understood as: ", "理解为：")[language] + record.understood_as
    note = Text("note: ", "提示：")[language]
    if before is not None and before.model_sha256 != record.model_sha256:
        yield note + OTHER_MODEL[language]
    for hint in record.hints:
        yield note + hint
