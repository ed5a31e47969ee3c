"""``vitrail compress``: a picture as entropy-coded codes, a few hundred bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.screen import Screen
from vitrail.commands.token_options import CodesOptions, read_file
from vitrail.errors import InputError

__all__ = ["Options", "run"]

ABOUT = Text(
    "Write a picture as codes, as small as can be, for instance: vitrail compress cat.png cat.vtl "
    "(back with: vitrail decompress cat.vtl cat.png)",
    "把图片压缩成编码文件，例如：vitrail compress cat.png cat.vtl"
    "（还原：vitrail decompress cat.vtl cat.png）",
)
EXAMPLE = "vitrail compress cat.png cat.vtl"


@dataclass(frozen=True)
class Options(CodesOptions):
    """The flags of ``vitrail compress``."""

    picture: Annotated[
        str | None, Flag(Text("The picture to compress.", "要压缩的图片。"), "PICTURE", positional=True)
    ] = None
    file: Annotated[
        str | None,
        Flag(
            Text(
                "The file to write. Default: the picture's name with the ending .vtl.",
                "要写出的文件。默认为图片名加 .vtl。",
            ),
            "FILE",
            positional=True,
        ),
    ] = None
    portable: Annotated[
        bool,
        Flag(
            Text(
                "Leave the prior out: whole numbers only, so the tokenizer alone reads the file anywhere.",
                "不使用先验模型：只用整数运算，任何机器上仅凭 tokenizer 即可还原。",
            )
        ),
    ] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Compress the picture, print the file's path, and return 0; raises a VitrailError otherwise."""
    options = parse(Options, arguments, command="compress", about=ABOUT, language=language)
    picture = read_file(options.picture, "picture", EXAMPLE)
    target = Path(options.file or Path(picture.name).with_suffix(".vtl").name)
    if target.suffix.lower() != ".vtl":
        raise InputError(f"{target.name[:80]} does not end in .vtl; write for instance: {EXAMPLE}")

    from vitrail.files import atomic_write
    from vitrail.runtime import pick_device
    from vitrail.tasks.compress import compress
    from vitrail.tasks.context import Context
    from vitrail.tasks.loading import Loader
    from vitrail.tasks.reconstruct import open_picture

    device = pick_device(options.device)
    made = compress(
        open_picture(picture), options.model, Loader(device), Context(device), prior=not options.portable
    )
    path = atomic_write(target, made.data)
    with Screen(options.quiet) as screen:
        screen.say(
            Text(
                f"{len(picture.data)} -> {len(made.data)} bytes, {made.bits_per_pixel:.3f} bits a pixel, "
                f"{made.codes} codes, model of probabilities: {made.method}",
                f"{len(picture.data)} -> {len(made.data)} 字节，每像素 {made.bits_per_pixel:.3f} 比特，"
                f"{made.codes} 个编码，概率模型：{made.method}",
            )[language]
        )
        screen.result(str(path))
    return 0
