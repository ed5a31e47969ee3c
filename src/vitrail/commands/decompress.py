"""``vitrail decompress``: what ``vitrail compress`` wrote, back to a picture."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.commands import decode
from vitrail.commands.language import Language, Text

__all__ = ["run"]

ABOUT = Text(
    "Turn a .vtl file back into a picture, for instance: vitrail decompress cat.vtl cat.png",
    "把 .vtl 文件还原成图片，例如：vitrail decompress cat.vtl cat.png",
)


def run(arguments: Sequence[str], language: Language) -> int:
    """Decompress the file and return 0; raises a VitrailError for what cannot be."""
    return decode.run(arguments, language, "decompress", ABOUT)
