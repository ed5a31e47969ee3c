"""Which language the command line speaks: English, or Chinese where the environment or ``--lang`` says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitrail.errors import InputError

__all__ = ["Language", "Text", "from_environment", "take_language"]

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Text:
    """The same words in both languages."""

    en: str
    zh: str

    def __getitem__(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


def from_environment(environment: Mapping[str, str] | None = None) -> Language:
    """Return the language of the locale variables, in POSIX order: LC_ALL, then LC_MESSAGES, then LANG."""
    variables = os.environ if environment is None else environment
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := variables.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def take_language(arguments: list[str]) -> tuple[Language, list[str]]:
    """Take ``--lang en|zh`` (or ``--lang=zh``) out of ``arguments``, wherever it stands before a bare ``--``.

    Returns the language, the environment's if there is no such flag, and the other arguments. Raises
    :class:`InputError` for a language that is neither.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    language, rest, index = from_environment(), [], 0
    while index < end:
        word = arguments[index]
        if word == "--lang" or word.startswith("--lang="):
            given = word[7:] if "=" in word else (arguments[index + 1] if index + 1 < end else "")
            index += 1 if "=" in word else 2
            if given not in ("en", "zh"):
                raise InputError(f"--lang {given!r} is unknown; use en or zh")
            language = "zh" if given == "zh" else "en"
        else:
            rest.append(word)
            index += 1
    return language, rest + arguments[end:]
