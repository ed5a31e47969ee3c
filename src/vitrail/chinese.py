"""The commonest messages of vitrail in Chinese: errors on the command line, reasons in a data report.

Errors are raised in English, in the room where they happen, and that text is what programs and logs see. For
a person whose language is Chinese the line is looked up in :mod:`vitrail.chinese_rows`, by its shape. A line
that is not in the table stays English: better than a wrong translation.
``tests/surface/test_chinese_messages.py`` provokes the errors themselves, so a message that is reworded
without its row is noticed.
"""

from __future__ import annotations

import functools
import re

from vitrail.chinese_rows import ROWS

__all__ = ["in_chinese"]

_PLACE = re.compile(r"\{(\w+)(#?)\}")
_LONGEST = 1000  # a longer line comes from input that filled it; the search would take time


def in_chinese(message: str) -> str | None:
    """The message in Chinese; None where the table does not have it. Several may be joined by ``; ``."""
    line = " ".join(message.split())
    if not line or len(line) > _LONGEST:
        return None
    for pattern, chinese in _table():
        match = pattern.fullmatch(line)
        if match is None:
            continue
        parts = match.groupdict()
        rest = parts.pop("and_then")
        further = "" if rest is None else in_chinese(rest)
        if further is None:
            continue
        words = {name: in_chinese(value) or value for name, value in parts.items()}
        return chinese.format(**words) + (f"；{further}" if further else "")
    return None


@functools.cache
def _table() -> list[tuple[re.Pattern[str], str]]:
    """(pattern, Chinese), those with most words of their own first."""
    lines = ROWS.replace("\\\n", "").strip().splitlines()
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    pairs.sort(key=lambda pair: len(_PLACE.sub("", pair[0])), reverse=True)
    return [(_pattern(english), chinese.strip()) for english, chinese in pairs]


def _pattern(english: str) -> re.Pattern[str]:
    found, last = "", 0
    for place in _PLACE.finditer(english):
        found += re.escape(english[last : place.start()])
        # What a line begins with never reaches into a second complaint.
        text = "(?:(?!; ).)+?" if place.start() == 0 else ".+?"
        found += f"(?P<{place[1]}>{'[-+.0-9e]+' if place[2] else text})"
        last = place.end()
    return re.compile(found + re.escape(english[last:]) + r"(?:; (?P<and_then>.+))?")
