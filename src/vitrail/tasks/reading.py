"""What a model is given of a prompt: token states and a style; and what the person should know of it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.models.lexicon import translate
from vitrail.models.prompt_hints import hint
from vitrail.models.text import TextEncoder

__all__ = ["Asked", "Reading", "read_prompt", "style_number"]

#: Longest translation that is recorded; the text encoder reads far less of it.
MAX_UNDERSTOOD = 1000


@dataclass(frozen=True)
class Reading:
    """A prompt as a model reads it.

    ``states`` (2, T, width), ``mask`` and ``ids`` (2, T): the prompt, then the negative prompt; T is 0 for a
    model that reads no words. ``style``: its number, 0 for none. ``understood_as``: the English words where
    they are not the prompt's own. ``hints``: what the model cannot serve well.
    """

    states: Tensor
    mask: Tensor
    ids: Tensor
    style: int
    understood_as: str | None
    hints: tuple[str, ...]


class Asked(Protocol):
    """What a reading needs of a request."""

    @property
    def prompt(self) -> str:
        """The words."""
        ...

    @property
    def negative_prompt(self) -> str:
        """The unwanted words."""
        ...

    @property
    def style(self) -> str | None:
        """Name of a house style."""
        ...


def read_prompt(request: Asked, model: str, text: TextEncoder | None, styles: Sequence[str]) -> Reading:
    """Translate the prompt, look at it with honest eyes, and encode it beside the negative prompt.

    A model without ``text`` that has classes is asked for one by the prompt (its name or number) unless the
    style names it. Raises :class:`InputError` for a style or class that ``model`` does not have.
    """
    if text is None:
        return _without_words(request, model, styles)
    wanted, unwanted = translate(request.prompt), translate(request.negative_prompt)
    states = text([wanted.english, unwanted.english])
    found = hint(request.prompt, translation=wanted, truncated=states.truncated[0])
    hints = [item.chinese if wanted.chinese else item.english for item in found]
    same = wanted.english.split() == request.prompt.split()
    return Reading(
        states=states.states,
        mask=states.mask,
        ids=states.ids,
        style=style_number(request.style, model, styles),
        understood_as=None if same else wanted.english[:MAX_UNDERSTOOD],
        hints=tuple(line[:200] for line in hints[:8]),
    )


def style_number(style: str | None, model: str, styles: Sequence[str]) -> int:
    """Return the number, from 1, of a style's name; 0 for None and "none"."""
    if style is None or style.lower() == "none":
        return 0
    names = {name.lower(): number for number, name in enumerate(styles, start=1)}
    wanted = style.lower().replace(" ", "-").replace("_", "-")
    for spelling in (style.lower(), wanted):
        if spelling in names:
            return names[spelling]
    if not names:
        raise InputError(f"style {style!r} is unknown; model {model} has no styles, leave it out")
    near = difflib.get_close_matches(wanted, names, 1)
    ask = f"did you mean {near[0]}? " if near else ""
    allowed = ", ".join(styles[:20]) + (f" ... ({len(styles)} in all)" if len(styles) > 20 else "")
    raise InputError(f"style {style!r} is unknown; {ask}allowed are {allowed}")


def _without_words(request: Asked, model: str, styles: Sequence[str]) -> Reading:
    hints: tuple[str, ...] = ()
    if request.style is not None:
        style = style_number(request.style, model, styles)
    elif styles and request.prompt.isdecimal() and int(request.prompt) < len(styles):
        style = int(request.prompt) + 1  # classes are counted from 0 where they have numbers
    elif styles:
        style = style_number(request.prompt, model, styles)
    else:
        style = 0
        hints = (f"model {model} reads no words: the prompt was left out",)
    empty = torch.zeros(2, 0)
    return Reading(empty[:, :, None], empty.bool(), empty.long(), style, None, hints)
