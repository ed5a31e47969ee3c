"""``vitrail codebook``: a contact sheet of what each code of a tokenizer draws, and how often it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vitrail.codes_schema import TOKEN_MODEL
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Device, Flag, parse, whole
from vitrail.commands.screen import Screen
from vitrail.errors import DataError, InputError
from vitrail.files import shown

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Options", "run"]

ABOUT = Text(
    "Show what each code of a tokenizer draws and how often it is used, for instance: "
    "vitrail codebook my-tokenizer -o sheet.png",
    "展示 tokenizer 的每个编码画出什么、使用多少，例如：vitrail codebook my-tokenizer -o sheet.png",
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


@dataclass(frozen=True)
class Options:
    """The flags of ``vitrail codebook``."""

    model: Annotated[
        str,
        Flag(
            Text(
                "Name or folder of a tokenizer, or of a prior with one inside.",
                "tokenizer 的名称或文件夹，或内含 tokenizer 的先验模型。",
            ),
            "NAME",
            positional=True,
        ),
    ] = TOKEN_MODEL
    output: Annotated[
        str | None,
        Flag(
            Text(
                "Folder for the sheet, or the name of a picture file. Default: out.",
                "图片文件夹，或图片文件名。默认 out。",
            ),
            "PATH",
            short="-o",
        ),
    ] = None
    data: Annotated[
        str | None,
        Flag(
            Text(
                "Count the codes on the pictures of this folder. Default: their use in training.",
                "用该文件夹中的图片统计编码使用情况。默认用训练时的统计。",
            ),
            "FOLDER",
        ),
    ] = None
    count: Annotated[
        str,
        Flag(Text("How many codes to show, the most used first.", "展示多少个编码，按使用频率排列。"), "INT"),
    ] = "256"
    device: Device = "auto"
    quiet: Annotated[bool, Flag(Text("Print nothing but the path.", "只输出图片路径。"), short="-q")] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Write the sheet, print its path, and return 0; raises a VitrailError for what cannot be."""
    options = parse(Options, arguments, command="codebook", about=ABOUT, language=language)
    count = whole("count", options.count, 1, 4096)
    if options.data is not None and not Path(options.data).is_dir():
        raise InputError(f"the folder {shown(options.data)} does not exist; give a folder with pictures")

    from vitrail.runtime import pick_device
    from vitrail.serving.save import Destination, save_sheet
    from vitrail.tasks.codebook import codebook_sheet
    from vitrail.tasks.context import Context
    from vitrail.tasks.loading import Loader

    destination = Destination.of(options.output)
    device = pick_device(options.device)
    with Screen(options.quiet) as screen:
        pictures = None if options.data is None else _pictures(Path(options.data), screen)
        made = codebook_sheet(options.model, Loader(device), Context(device), count=count, pictures=pictures)
        destination.prepare()
        path = save_sheet(made.sheet, "codebook", destination)
        share = 100 * made.used / made.codes
        screen.say(
            Text(
                f"{made.used} of {made.codes} codes used ({share:.1f} %), perplexity {made.perplexity:.0f}, "
                f"counted on: {made.source}",
                f"{made.codes} 个编码中使用了 {made.used} 个（{share:.1f}%），困惑度 {made.perplexity:.0f}，"
                f"统计自：{made.source}",
            )[language]
        )
        screen.result(str(path))
    return 0


def _pictures(folder: Path, screen: Screen) -> Iterator[Image.Image]:
    """The pictures of ``folder``; what cannot be read is told and left out."""
    from vitrail.images import open_image

    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES and path.is_file():
            try:
                yield open_image(path)
            except DataError as error:
                screen.say(f"left out: {error}")
