"""``vitrail models``: which models are on this machine, what one says of itself, and taking in foreign
ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse, pick
from vitrail.errors import InputError, VitrailError
from vitrail.files import shown

__all__ = ["ConvertOptions", "ListOptions", "PullOptions", "RemoveOptions", "ShowOptions", "run"]

ABOUT = Text("Models on this machine.", "本机的模型。")
COMMANDS = {
    "list": Text("list the shipped model and those in the models folder", "列出自带模型与模型目录中的模型"),
    "show": Text("show what a model says of itself, and check its files", "显示某个模型的信息，并校验文件"),
    "pull": Text("fetch a model of the catalogue", "获取目录中的模型"),
    "remove": Text("remove a model from the models folder", "从模型目录中删除模型"),
    "convert": Text(
        "make a model folder of a checkpoint of taming-transformers, latent-diffusion or diffusers",
        "把 taming-transformers、latent-diffusion 或 diffusers 的检查点转换为模型文件夹",
    ),
}


@dataclass(frozen=True)
class ListOptions:
    """The flags of ``vitrail models list``."""

    available: Annotated[
        bool,
        Flag(
            Text(
                "List the catalogue instead: what can be fetched, with size and licence.",
                "改为列出可获取的模型目录，含大小与许可证。",
            )
        ),
    ] = False


@dataclass(frozen=True)
class PullOptions:
    """The flags of ``vitrail models pull``."""

    names: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Names of the models; see vitrail models list --available.",
                "模型名称；见 vitrail models list --available。",
            ),
            "NAME",
            positional=True,
        ),
    ] = ()
    overwrite: Annotated[
        bool, Flag(Text("Fetch a model again that is here already.", "已有该模型时重新获取。"))
    ] = False
    quiet: Annotated[bool, Flag(Text("Print nothing but the places.", "只输出存放位置。"), short="-q")] = (
        False
    )


@dataclass(frozen=True)
class RemoveOptions:
    """The flags of ``vitrail models remove``."""

    names: Annotated[
        tuple[str, ...],
        Flag(Text("Names of the models to remove.", "要删除的模型名称。"), "NAME", positional=True),
    ] = ()


@dataclass(frozen=True)
class ShowOptions:
    """The flags of ``vitrail models show``."""

    model: Annotated[
        str,
        Flag(Text("Name, folder or file of the model.", "模型名称、文件夹或文件。"), "NAME", positional=True),
    ] = "default"


@dataclass(frozen=True)
class ConvertOptions:
    """The flags of ``vitrail models convert``."""

    source: Annotated[
        str | None,
        Flag(
            Text(
                "A .ckpt, .pt, .pth, .bin or .safetensors file, or a folder of diffusers (VQModel, "
                "AutoencoderKL). It is read without running anything it holds.",
                ".ckpt、.pt、.pth、.bin 或 .safetensors 文件，或 diffusers 的文件夹"
                "（VQModel、AutoencoderKL）。读取时不会运行其中的任何内容。",
            ),
            "FILE",
            positional=True,
        ),
    ] = None
    config: Annotated[
        str | None,
        Flag(
            Text(
                "The checkpoint's YAML file. Without it: the one of the same name beside the file, else the "
                "shapes of the weights (autoencoders only).",
                "检查点的 YAML 文件。不给出时使用旁边同名的文件；没有则由权重的形状推断（仅限自编码器）。",
            ),
            "FILE",
        ),
    ] = None
    to: Annotated[
        str | None,
        Flag(
            Text(
                "Folder to write; a plain name goes into the models folder.",
                "要写入的文件夹；只给名称则放入模型目录。",
            ),
            "FOLDER",
        ),
    ] = None
    licence: Annotated[
        str | None,
        Flag(Text("Licence of the weights, if you know it.", "权重的许可证（如果知道）。"), "TEXT"),
    ] = None
    overwrite: Annotated[bool, Flag(Text("Replace the folder if it exists.", "文件夹已存在时替换它。"))] = (
        False
    )


def run(arguments: Sequence[str], language: Language) -> int:
    """Run one of :data:`COMMANDS` and return 0."""
    name, rest = pick(arguments, COMMANDS, command="models", about=ABOUT, language=language)
    if name == "list":
        wanted = parse(ListOptions, rest, command="models list", about=COMMANDS["list"], language=language)
        return _catalogue(language) if wanted.available else _list()
    if name == "pull":
        return _pull(
            parse(PullOptions, rest, command="models pull", about=COMMANDS["pull"], language=language),
            language,
        )
    if name == "remove":
        return _remove(
            parse(RemoveOptions, rest, command="models remove", about=COMMANDS["remove"], language=language)
        )
    if name == "convert":
        return _convert(
            parse(
                ConvertOptions, rest, command="models convert", about=COMMANDS["convert"], language=language
            ),
            language,
        )
    options = parse(ShowOptions, rest, command="models show", about=COMMANDS["show"], language=language)
    return _show(options.model)


def _list() -> int:
    from vitrail.commands.model_files import rows
    from vitrail.store.artifacts import available, home, read_manifest

    models = available()
    for name, folder in models.items():
        try:
            manifest = read_manifest(folder, verify=False)
        except VitrailError as error:  # one damaged folder must not hide the others
            print(f"{name:<20} damaged: {error}")
            continue
        size = sum(entry.size for entry in manifest.files.values())
        print(f"{name:<20} {manifest.kind:<17} {size / 1e6:7.1f} MB  {folder}")
    files = rows()
    for line in files:
        print(line)
    if not models and not files:
        print(f"no model yet; train one with vitrail train, models are kept in {home()}", file=sys.stderr)
    return 0


def _catalogue(language: Language) -> int:
    from vitrail.store.catalogue import CATALOGUE, installed

    for entry in CATALOGUE.values():
        here = Text("here", "已有")[language] if installed(entry) else ""
        about = entry.chinese if language == "zh" else entry.english
        print(f"{entry.name:<24} {entry.size / 1e6:7.0f} MB  {here:<5} {about}")
        print(f"{'':<24} {entry.licence}; {', '.join(str(source) for source in entry.sources)}")
    return 0


def _pull(options: PullOptions, language: Language) -> int:
    if not options.names:
        raise InputError("the model's name is missing; see vitrail models list --available")
    from vitrail.backends.pull import check_absent, pull
    from vitrail.commands.screen import Screen
    from vitrail.schema import Progress
    from vitrail.store.catalogue import wanted

    for name in options.names:
        if "/" in name:
            raise InputError(
                f"{shown(name, 80)} is a path or an address; pull takes names of vitrail models list "
                "--available, and --model takes a file or folder where it lies"
            )
    entries = [wanted(name) for name in options.names]
    for entry in entries:
        check_absent(entry, overwrite=options.overwrite)
    for entry in entries:
        with Screen(options.quiet) as screen:
            size, source = f"{entry.size / 1e6:.0f} MB", entry.sources[0]
            about = Text(
                f"{entry.name}: {size} from {source}, licence {entry.licence}",
                f"{entry.name}：{size}，来源 {source}，许可证 {entry.licence}",
            )
            screen.say(about[language])
            place = pull(
                entry,
                overwrite=options.overwrite,
                progress=lambda done, total, screen=screen: screen.advance(  # type: ignore[misc]
                    Progress(step=done, steps=total)
                ),
            )
            screen.result(str(place))
    return 0


def _remove(options: RemoveOptions) -> int:
    if not options.names:
        raise InputError("the model's name is missing; see vitrail models list")
    from vitrail.backends.pull import remove

    for name in options.names:
        for path in remove(name):
            print(shown(path, 400))
    return 0


def _show(model: str) -> int:
    if not model:
        raise InputError("the model's name is empty; see vitrail models list")
    from vitrail.commands.model_files import found_file, show_file
    from vitrail.store.artifacts import available, find, read_manifest
    from vitrail.tasks.loading import style_names

    if model not in available() and (file := found_file(model)) is not None:
        return show_file(file)
    folder = find(model)
    manifest = read_manifest(folder, verify=True)
    print(f"name      {manifest.name}")
    print(f"kind      {manifest.kind}")
    print(f"folder    {shown(folder, 400)}")
    print(f"licence   {shown(manifest.licence, 400)}")
    print(f"created   {shown(manifest.created)}")
    print("config    " + ", ".join(f"{key} {shown(value, 60)}" for key, value in manifest.config.items()))
    if manifest.sampling is not None:
        settings = manifest.sampling.model_dump()
        print("defaults  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    if manifest.kind == "shell_dit" and (styles := style_names(folder, manifest)):
        print(f"styles    {', '.join(shown(style, 40) for style in styles)}")
    for name, metric in manifest.metrics.items():
        print(f"metric    {name} {metric.value:.4g} (n {metric.n})")
    for name, entry in manifest.files.items():
        print(f"file      {name} {entry.size} bytes, sha256 {entry.sha256}")
    print("checked   every file is as artifact.json says")
    return 0


def _convert(options: ConvertOptions, language: Language) -> int:
    if not options.source:
        raise InputError("the file to convert is missing; vitrail models convert FILE --to FOLDER")
    if not options.to:
        raise InputError("the folder to write is missing; add --to FOLDER")
    if options.licence and (len(options.licence) > 400 or not options.licence.isprintable()):
        raise InputError("licence is longer than 400 characters, or has characters that cannot be shown")
    from pathlib import Path

    from vitrail.backends.convert import UNKNOWN_LICENCE, convert, write
    from vitrail.store.artifacts import home

    plain = Path(options.to).name == options.to and options.to not in (".", "..")
    target = home() / options.to if plain else Path(options.to).expanduser()
    if target.exists() and not options.overwrite:
        raise InputError(f"{shown(target)} exists already; add --overwrite to replace it")
    found = convert(options.source, options.config)
    write(found, target, licence=options.licence or UNKNOWN_LICENCE, overwrite=options.overwrite)
    model, source = found.model, found.checkpoint
    lines = {
        Text("source", "来源"): f"{shown(source.path)} ({source.container})",
        Text("is", "内容"): model.what,
        Text("config", "配置"): shown(found.config)
        if found.config
        else Text("read off", "由权重推断")[language],
        Text("weights", "权重"): f"{sum(value.numel() for value in model.tensors.values()):,}",
        Text("parts", "部分"): ", ".join(model.parts),
        Text("left", "未取"): "; ".join(model.left),
        Text("not built", "未构建"): ", ".join(source.foreign[:8]),
        Text("folder", "文件夹"): shown(target, 400),
    }
    for label, value in lines.items():
        if value:
            print(f"{label[language]:<9} {value}")
    return 0
