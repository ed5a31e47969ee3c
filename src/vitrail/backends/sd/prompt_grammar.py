r"""The prompt grammar of A1111's web page: pure text in, a small structure out.

=====================  ============================================================================
``(cat)``              attention to "cat" times 1.1; ``((cat))`` 1.21; ``[cat]`` divided by 1.1
``(cat:1.3)``          attention times 1.3
``\(`` ``\)`` ``\[``   the bracket itself (``\\``: a backslash; ``\:`` and ``\|`` likewise)
``[cat:dog:0.5]``      cat for the first half of the steps, then dog (a number with a point is a share of
                       the steps, one without is a step: ``[cat:dog:8]`` draws 8 steps of cat)
``[cat:0.5]``          nothing, then cat;  ``[cat::0.5]``  cat, then nothing
``[cat|dog]``          cat and dog by turns, a step each
``a cat :1.2 AND rain``  two prompts, each guided on its own and weighed 1.2 and 1
``BREAK``              the rest begins a new chunk of 75 tokens
``<lora:name:0.8>``    take a LoRA in (``<lora:name:te:unet>``, ``<lora:name:te=0.5:unet=1>``)
=====================  ============================================================================

Source: the documented meaning in the web page's own help and examples
(https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features). As there, ``<...>`` is taken out
first, ``AND`` cuts the text whatever brackets it stands in, the schedule chooses a text for the step, and
brackets of that text are read last. Brackets without a partner: an open one weighs all that follows it, a
closing one is text. Four things are read more kindly than there: a ``|`` outside of square brackets is text
and switches nothing else off; ``BREAK`` inside of round brackets is a break; ``(cat:1.2.3)`` is text; and a
number at the end of a prompt is a weight only where there is an ``AND`` (so "a clock at 12:30" is a clock).

Every pass over the text is linear and no deeper than :data:`MAX_DEPTH` brackets.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from vitrail.errors import InputError
from vitrail.files import shown

__all__ = [
    "MAX_DEPTH",
    "MAX_WEIGHT",
    "LoraTag",
    "Prompt",
    "Span",
    "Subprompt",
    "Variant",
    "attention",
    "parse",
]

MAX_DEPTH = 100
"""Brackets inside one another that are read; 1.1 to this power is far beyond any use."""

MAX_WEIGHT = 100.0
"""Largest magnitude of a weight; real ones lie between 0 and 2."""

_ROUND, _SQUARE = 1.1, 1 / 1.1


class Span(NamedTuple):
    """A piece of text and the weight of attention to it (1: as it is)."""

    text: str
    weight: float


Variant: TypeAlias = tuple[tuple[Span, ...], ...]
"""What the prompt says at one step: groups of spans; each after the first begins a new chunk (BREAK)."""


@dataclass(frozen=True)
class LoraTag:
    """``<lora:name:text_encoder:unet>``: a LoRA by name and its weights in both networks."""

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0


@dataclass(frozen=True)
class _Switch:
    before: _Text
    after: _Text
    when: float
    share: bool  # `when` is a share of the steps, not a step

    def choose(self, step: int, steps: int) -> _Text:
        moment = self.when * steps if self.share else self.when
        return self.before if step < min(moment, steps) // 1 else self.after


@dataclass(frozen=True)
class _Turns:
    options: tuple[_Text, ...]

    def choose(self, step: int, steps: int) -> _Text:
        return self.options[step % len(self.options)]


_Text: TypeAlias = "tuple[str | _Switch | _Turns, ...]"


@dataclass(frozen=True)
class Subprompt:
    """One part of an ``AND``: ``weight`` scales its guidance.

    ``fixed``: it says the same at every step.
    """

    weight: float
    parts: _Text
    fixed: bool

    def text_at(self, step: int, steps: int) -> str:
        """Return the text of ``step`` (counted from 0) of ``steps``, with its brackets."""
        pieces: list[str] = []
        _render(self.parts, step, steps, pieces)
        return "".join(pieces)

    def at(self, step: int, steps: int) -> Variant:
        """Return what is said at ``step`` (counted from 0) of ``steps``.

        Equal variants compare and hash equal, so that the caller encodes each one once.
        Raises :class:`~vitrail.errors.InputError` for a weight beyond :data:`MAX_WEIGHT`.
        """
        return attention(self.text_at(step, steps))

    def schedule(self, steps: int) -> list[Variant]:
        """Return the variant of each of ``steps`` steps."""
        if self.fixed:
            return [self.at(0, steps)] * steps
        return [self.at(step, steps) for step in range(steps)]


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read: at least one subprompt, and the tags that were taken out of the text.

    ``hypernetworks``: names in ``<hypernet:...>``, which no model here has.
    """

    subprompts: tuple[Subprompt, ...]
    loras: tuple[LoraTag, ...] = ()
    hypernetworks: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the prompt says the same at every step."""
        return all(part.fixed for part in self.subprompts)


def parse(text: str, *, compose: bool = True) -> Prompt:
    """Read a prompt.

    ``compose=False`` for negative prompts: ``AND`` is a word like any other there.

    Raises :class:`~vitrail.errors.InputError` for more than :data:`MAX_DEPTH` brackets inside one another,
    for a weight beyond :data:`MAX_WEIGHT`, and for a LoRA tag whose weight is not a number.
    """
    text, loras, hypernetworks = _without_tags(text)
    pieces = re.split(r"\bAND\b", text) if compose else [text]
    weighed = [_with_weight(piece) for piece in pieces] if len(pieces) > 1 else [(text, 1.0)]
    parts = []
    for piece, weight in weighed:
        for number in _ATTENTION_NUMBER.finditer(piece):
            _checked(_number(number[1]), piece)
        tree = _scheduled(piece)
        subprompt = Subprompt(weight, tree, all(isinstance(node, str) for node in tree))
        subprompt.at(0, 1)  # a weight that cannot be is an error now, not in the middle of the work
        parts.append(subprompt)
    return Prompt(tuple(parts), tuple(loras), tuple(hypernetworks))


# --- tags ---------------------------------------------------------------------------------------------------

_TAG = re.compile(r"<(lora|lyco|hypernet):", re.IGNORECASE)


def _without_tags(text: str) -> tuple[str, list[LoraTag], list[str]]:
    loras: list[LoraTag] = []
    hypernetworks: list[str] = []
    kept: list[str] = []
    place = 0
    while (tag := _TAG.search(text, place)) is not None:
        end = text.find(">", tag.end() + 1)
        if end < 0:
            break
        kept.append(text[place : tag.start()])
        inside = text[tag.end() : end]
        if tag[1].lower() == "hypernet":
            hypernetworks.append(inside.partition(":")[0].strip())
        else:
            loras.append(_lora(inside))
        place = end + 1
    kept.append(text[place:])
    return "".join(kept), loras, hypernetworks


def _lora(inside: str) -> LoraTag:
    """Read what stands between ``<lora:`` and ``>``."""
    name, *rest = inside.split(":")
    if not name.strip():
        raise InputError(f"<lora:{shown(inside, 60)}> names no LoRA; write <lora:name:0.8>")
    plain = [item for item in rest if "=" not in item]
    named = {key.strip().lower(): value for key, _, value in (i.partition("=") for i in rest if "=" in i)}
    if unknown := sorted(set(named) - {"te", "unet"}) or plain[2:]:
        raise InputError(
            f"<lora:{shown(inside, 60)}>: {shown(unknown[0], 40)} is not known here; known are "
            "<lora:name:weight>, <lora:name:te:unet> and te=, unet="
        )
    text_encoder = _weight_of(inside, named.get("te", plain[0] if plain else "1"))
    unet = named.get("unet", plain[1] if len(plain) > 1 else None)
    return LoraTag(name.strip(), text_encoder, text_encoder if unet is None else _weight_of(inside, unet))


def _weight_of(inside: str, text: str) -> float:
    value = _number(text)
    if value is None or not abs(value) <= MAX_WEIGHT:
        raise InputError(
            f"<lora:{shown(inside, 60)}>: {shown(text, 40)!r} is not a weight; "
            f"it must be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
        )
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# --- AND ----------------------------------------------------------------------------------------------------

_WEIGHT = re.compile(r"[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)")


def _with_weight(text: str) -> tuple[str, float]:
    """Split ``a cat :1.2`` into the text and its weight."""
    head, colon, tail = text.rpartition(":")
    tail = tail.strip()
    if not colon or _WEIGHT.fullmatch(tail) is None:
        return text, 1.0
    _checked(float(tail), text)
    return head, float(tail)


def _checked(weight: float | None, text: str) -> None:
    if weight is not None and not abs(weight) <= MAX_WEIGHT:
        raise InputError(
            f"the prompt gives {shown(text.strip(), 60)!r} a weight of {weight:.6g}; "
            f"weights must lie between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g} (around 1 is usual)"
        )


# --- schedules ----------------------------------------------------------------------------------------------

_PIECE = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_WHEN = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


@dataclass
class _Frame:
    """An open bracket: what came since, cut at the colons and bars of its own level."""

    opener: str
    segments: list[list[str | _Switch | _Turns]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    stray: bool = False  # holds something that keeps square brackets around it from being a schedule


def _scheduled(text: str) -> _Text:
    """Read ``[a:b:0.5]`` and ``[a|b]``; all other brackets stay in the text."""
    frames = [_Frame("")]
    for match in _PIECE.finditer(text):
        piece, top = match[0], frames[-1]
        if piece in ("(", "["):
            if len(frames) > MAX_DEPTH:
                raise _too_deep()
            frames.append(_Frame(piece))
        elif (piece == ")" and top.opener == "(") or (piece == "]" and top.opener == "["):
            frames.pop()
            _close(top, piece, frames[-1])
        elif piece in (":", "|") and top.opener:
            top.separators.append(piece)
            top.segments.append([])
        else:
            top.stray = top.stray or piece in (")", "]")
            top.segments[-1].append(piece)
    while len(frames) > 1:  # brackets without a partner are text
        top = frames.pop()
        frames[-1].segments[-1].extend(_as_text(top, ""))
    return _joined(frames[0].segments[0])


def _close(frame: _Frame, closer: str, parent: _Frame) -> None:
    separators, target = frame.separators, parent.segments[-1]
    if frame.opener == "[" and separators and not frame.stray:
        if all(separator == "|" for separator in separators):
            target.append(_Turns(tuple(_joined(segment) for segment in frame.segments)))
            return
        if separators in ([":"], [":", ":"]) and (when := _moment(frame.segments[-1])) is not None:
            *before, after = (_joined(segment) for segment in frame.segments[:-1])
            target.append(_Switch(before[0] if before else (), after, when[0], when[1]))
            return
    target.extend(_as_text(frame, closer))
    read = separators == [] or (frame.opener == "(" and separators == [":"])
    parent.stray = parent.stray or frame.stray or not read


def _moment(segment: list[str | _Switch | _Turns]) -> tuple[float, bool] | None:
    if len(segment) != 1 or not isinstance(segment[0], str):
        return None
    text = segment[0].strip()
    return (float(text), "." in text) if _WHEN.fullmatch(text) else None


def _as_text(frame: _Frame, closer: str) -> list[str | _Switch | _Turns]:
    parts: list[str | _Switch | _Turns] = [frame.opener, *frame.segments[0]]
    for separator, segment in zip(frame.separators, frame.segments[1:], strict=True):
        parts += [separator, *segment]
    return [*parts, closer]


def _joined(parts: list[str | _Switch | _Turns]) -> _Text:
    """Put neighbouring texts together."""
    result: list[str | _Switch | _Turns] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if texts:
            result.append("".join(texts))
            texts = []
        result.append(part)
    if texts:
        result.append("".join(texts))
    return tuple(result)


def _render(parts: _Text, step: int, steps: int, pieces: list[str]) -> None:
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        else:
            _render(part.choose(step, steps), step, steps, pieces)


# --- attention ----------------------------------------------------------------------------------------------

_ATTENTION_NUMBER = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
_ATTENTION = re.compile(rf"\\[()\[\]\\]|\\|[(\[)\]]|{_ATTENTION_NUMBER.pattern}|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


def attention(text: str) -> Variant:
    """Read ``(a)``, ``(a:1.3)``, ``[a]``, escapes and BREAK of a text without schedules.

    Neighbouring pieces of equal weight are one span. Raises :class:`~vitrail.errors.InputError` as
    :func:`parse` does.
    """
    pieces: list[tuple[str | None, float]] = []  # None: a BREAK
    open_round: list[int] = []
    open_square: list[int] = []

    def weigh(start: int, factor: float) -> None:
        for i in range(start, len(pieces)):
            pieces[i] = (pieces[i][0], pieces[i][1] * factor)

    for match in _ATTENTION.finditer(text):
        piece = match[0]
        factor = _number(match[1]) if match[1] is not None else None
        if piece.startswith("\\"):
            pieces.append((piece[1:], 1.0))
        elif piece == "(":
            open_round.append(len(pieces))
        elif piece == "[":
            open_square.append(len(pieces))
        elif factor is not None and open_round:
            weigh(open_round.pop(), factor)
        elif piece == ")" and open_round:
            weigh(open_round.pop(), _ROUND)
        elif piece == "]" and open_square:
            weigh(open_square.pop(), _SQUARE)
        else:
            _add_text(piece, pieces)
        if len(open_round) + len(open_square) > MAX_DEPTH:
            raise _too_deep()
    for start in open_round:
        weigh(start, _ROUND)
    for start in open_square:
        weigh(start, _SQUARE)
    return _groups(pieces)


def _add_text(text: str, pieces: list[tuple[str | None, float]]) -> None:
    parts = _BREAK.split(text)
    for i, part in enumerate(parts):
        if i > 0:
            pieces.append((None, 1.0))
            part = part.lstrip()
        pieces.append((part.rstrip() if i + 1 < len(parts) else part, 1.0))


def _groups(pieces: list[tuple[str | None, float]]) -> Variant:
    groups: list[tuple[Span, ...]] = []
    spans: list[Span] = []
    texts: list[str] = []
    weight = 1.0

    def end_span() -> None:
        if joined := "".join(texts):
            if not math.isfinite(weight):
                raise InputError(
                    "the prompt's brackets multiply to a weight without end; use smaller weights"
                )
            _checked(weight, joined)
            spans.append(Span(joined, weight))
        texts.clear()

    for text, of in pieces:
        if text is None or of != weight:
            end_span()
        if text is None:
            groups.append(tuple(spans))
            spans.clear()
        elif text:
            weight = of
            texts.append(text)
    end_span()
    return (*groups, tuple(spans))


def _too_deep() -> InputError:
    return InputError(
        f"the prompt opens more than {MAX_DEPTH} brackets inside one another; close them, "
        "or write \\( and \\[ for brackets that are text"
    )
