"""``vitrail encode``: the codes of a picture in a file that NumPy reads, or in a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse
from vitrail.commands.token_options import CodesOptions, read_file
from vitrail.errors import InputError

__all__ = ["Options", "run"]

ABOUT = Text(
    "Write the codes of a picture to a file, for instance: vitrail encode cat.png -o cat.npz "
    "(back with: vitrail decode cat.npz cat.png)",
    "把图片的编码写入文件，例如：vitrail encode cat.png -o cat.npz（还原：vitrail decode cat.npz cat.png）",
)
EXAMPLE = "vitrail encode cat.png -o cat.npz"


@dataclass(frozen=True)
class Options(CodesOptions):
    """The flags of ``vitrail encode``."""

    picture: Annotated[
        str | None, Flag(Text("The picture to encode.", "要编码的图片。"), "PICTURE", positional=True)
    ] = None
    output: Annotated[
        str | None,
        Flag(
            Text(
                "The file to write: .npz for NumPy, .vtl for the smallest. Default: the picture's name with "
                "the ending .npz.",
                "要写出的文件：.npz 供 NumPy 读取，.vtl 最小。默认为图片名加 .npz。",
            ),
            "FILE",
            short="-o",
        ),
    ] = None


def run(arguments: Sequence[str], language: Language) -> int:
    """Encode the picture, print the file's path, and return 0; raises a VitrailError otherwise."""
    options = parse(Options, arguments, command="encode", about=ABOUT, language=language)
    picture = read_file(options.picture, "picture", EXAMPLE)
    target = Path(options.output or Path(picture.name).with_suffix(".npz").name)
    if target.suffix.lower() not in (".npz", ".vtl"):
        raise InputError(
            f"{target.name[:80]} ends neither in .npz nor in .vtl; write for instance: {EXAMPLE}"
        )

    from vitrail.files import atomic_write
    from vitrail.runtime import pick_device
    from vitrail.store.vtl import pack_npz
    from vitrail.tasks.compress import compress, encode
    from vitrail.tasks.context import Context
    from vitrail.tasks.loading import Loader
    from vitrail.tasks.reconstruct import open_picture

    device = pick_device(options.device)
    loader, context = Loader(device), Context(device)
    file = encode(open_picture(picture), options.model, loader, context)
    if target.suffix.lower() == ".npz":
        data = pack_npz(file)
    else:
        data = compress(file, options.model, loader, context).data
    print(atomic_write(target, data), flush=True)
    return 0
