"""The small grammar that puts translated Chinese words into English order.

Chinese puts every modifier before its noun (``戴帽子的猫``: wear hat DE cat), places after theirs
(``树的左边``: tree DE left) and the place before the action (``在花园里睡觉``: at garden in sleep). One pass
from left to right keeps a list of finished parts; a noun takes the modifiers that stand before it, a place
word the noun before it, and the end of a clause settles the order of what is left. Prompts are short and
concrete, so this goes a long way; where no rule fits, words simply stay in their order, which a bag-of-words
reader still understands.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from vitrail.models.lexicon_tables import (
    ANIMATE,
    DOUBLED,
    INTRANSITIVE,
    MANY_AFTER,
    ONE,
    OPPOSITE,
    SIDES,
    TIMES,
    plural,
)

__all__ = ["Clauses", "Token"]


class Token(NamedTuple):
    """A word of the prompt: text, English, tag (see TAGS; "?" unknown, "=" Latin, "." mark), near word."""

    word: str
    english: str
    tag: str
    near: str = ""


@dataclasses.dataclass
class _Part:
    """A finished piece of a clause. ``kind`` is N noun, A adjective, D adverb, V verb, P preposition, L place
    phrase, S side of the picture, Q number, & and, H have, I is, or 的."""

    kind: str
    text: str
    before: list[str] = dataclasses.field(default_factory=list)
    after: list[str] = dataclasses.field(default_factory=list)
    number: str = ""
    measure: str = ""
    tag: str = "n"

    def phrase(self, article: bool) -> str:
        """English of the part; a count noun gets "a" if ``article`` and it has no other determiner."""
        if self.kind == "Q":
            return " ".join(filter(None, [self.number, self.measure.removesuffix(" of")]))
        if self.kind != "N":
            return self.text
        head, number = self.text, self.number
        many = number not in ONE or self.measure.removesuffix(" of") in (
            "group",
            "bunch",
            "pile",
            "row",
            "pair",
        )
        if many and self.tag == "n":
            head = plural(head)
        words = " ".join([*self.before, head, *self.after])
        if self.measure:
            measure = self.measure
            if number not in ONE:
                first, _, rest = measure.partition(" ")
                measure = f"{plural(first)} {rest}"
            words = f"{measure} {words}"
            number = number if measure != "some" else ""
        if not number and article and not (self.before and self.before[0].startswith(("a ", "an ", "the "))):
            number = {"n": "a", "t": "the"}.get(self.tag, "") if not self.measure else "a"
        if number == "a" and self.tag in "uP" and not self.measure:
            number = ""
        if (
            number == "a"
            and words[:1] in ("a", "e", "i", "o", "u")
            and not words.startswith(("uni", "one", "eu"))
        ):
            number = "an"
        return f"{number} {words}".strip()


class Clauses:
    """Takes tokens one by one; :meth:`english` says the whole prompt."""

    def __init__(self) -> None:
        self._done: list[list[_Part]] = []
        self._parts: list[_Part] = []
        self._styles: list[str] = []

    def english(self) -> str:
        """Return the English so far: clauses in order, then the styles, separated by commas."""
        self._end()
        sides = _opposite_sides(self._done)
        texts = [sides] if sides else [_say(parts) for parts in self._done]
        text = ", ".join(dict.fromkeys(filter(None, [*texts, *self._styles])))
        return DOUBLED.sub(r"\1", re.sub(r"\s+", " ", text)).replace(" ,", ",").strip()

    def feed(self, token: Token) -> None:
        """Add the next token."""
        word, english, tag = token.word, token.english, token.tag
        if tag in "nutP=":
            self._noun(_Part("N", english, tag="n" if tag == "=" else tag))
        elif tag in "ac":
            self._parts.append(self._with_adverb(english))
        elif tag == "v":
            self._verb(english)
        elif tag == "q":
            self._parts.append(_Part("Q", "", number=english))
        elif tag == "m":
            if self._top("Q"):
                self._parts[-1].measure = "" if self._parts[-1].measure else english
        elif tag == "f":
            self._place(english)
        elif tag == "l":
            if self._top("P"):
                self._parts.pop()
            self._parts.append(_Part("L", english))
        elif tag == "p":
            self._preposition(english)
        elif tag == "&":
            self._parts.append(_Part("&", english))
        elif tag == "s":
            self._styles.append(english)
        elif tag == "-":
            if english:
                self._parts.append(_Part("D", english))
        elif tag == "x":
            self._particle(word, english)
        elif tag == "." and word == "、":
            if self._parts:
                self._parts.append(_Part("&", ","))
        elif tag == ".":
            self._end()
        elif tag in "?@" and self._top("Q"):
            self._parts.pop()  # the number of something that is not known

    def _top(self, *kinds: str) -> bool:
        """Whether the last parts are of these kinds, the very last one named last."""
        return [part.kind for part in self._parts[-len(kinds) :]] == list(kinds)

    def _end(self) -> None:
        if self._parts:
            self._done.append(_settle(self._parts))
        self._parts = []

    def _with_adverb(self, english: str) -> _Part:
        if self._top("D"):
            english = f"{self._parts.pop().text} {english}"
        return _Part("A", english)

    def _particle(self, word: str, english: str) -> None:
        if word in ("的", "之"):
            self._parts.append(_Part("的", ""))
        elif word in ("有", "存在"):
            self._parts.append(_Part("H", "with"))
        elif word in ("是", "是个"):
            if not self._top("D"):
                self._parts.append(_Part("I", ""))
        elif word in ("风格", "风", "画风", "样式"):
            if self._top("的"):
                self._parts.pop()
            if self._parts and self._parts[-1].kind in "NAV":
                self._styles.append(f"{self._parts.pop().phrase(False)} style")
        elif english:
            self._parts.append(_Part("L", english))

    def _preposition(self, english: str) -> None:
        if english == "for" and self._top("N") and self._parts[-1].text == "background":
            self._parts.append(_Part("I", ""))
        else:
            self._parts.append(_Part("P", english))

    def _verb(self, english: str) -> None:
        if self._top("P") and self._parts[-1].text == "in":
            self._parts.pop()  # 在 before a verb only says that it goes on
        elif self._top("P", "N"):
            noun = self._parts.pop()
            preposition = self._parts.pop()
            self._parts.append(_Part("L", f"{preposition.text} {noun.phrase(True)}"))
        self._parts.append(_Part("V", english))

    def _noun(self, noun: _Part) -> None:
        """Push a noun after it has taken the modifiers that stand before it."""
        if noun.text == "background" and self._top("P", "N", "P") and self._parts[-1].text == "for":
            self._parts.pop()
            noun.before.append(self._parts.pop().phrase(False))
            self._parts.pop()
            self._parts.append(_Part("L", f"on {noun.phrase(True)}"))
            return
        parts = self._parts
        while parts:
            top = parts[-1]
            if top.kind == "A":
                parts.pop()
                text = top.text
                while self._top("A", "&"):
                    joint = parts.pop().text
                    text = f"{parts.pop().text} {joint} {text}".replace(" ,", ",")
                noun.before.insert(0, text)
            elif top.kind == "Q" and not noun.number:
                parts.pop()
                noun.number, noun.measure = top.number, top.measure
            elif top.kind == "的":
                parts.pop()
                self._relative(noun)
            elif top.kind == "V" and top.text in INTRANSITIVE and (len(parts) == 1 or parts[-2].kind in "QA"):
                parts.pop()
                noun.before.insert(0, top.text)
            elif top.kind == "N" and not (noun.number or noun.before or top.after):
                parts.pop()
                noun.before = [*top.before, top.text]
                noun.number, noun.measure = top.number, top.measure
            else:
                break
        if parts and parts[-1].text in MANY_AFTER and noun.tag == "n" and not noun.number:
            noun.text, noun.tag = plural(noun.text), "P"
        if noun.text == "couple":
            noun.measure = ""
        parts.append(noun)

    def _relative(self, noun: _Part) -> None:
        """Give ``noun`` the clause that ends before a 的 which was just taken off."""
        parts = self._parts
        if not parts:
            return
        top = parts[-1]
        if top.kind in "LS":
            parts.pop()
            verb = f"{parts.pop().text} " if self._top("V") else ""
            noun.after.append(verb + top.text)
        elif top.kind == "V":
            parts.pop()
            if self._top("L"):
                noun.after.append(_passive(top.text, parts.pop().text))
            elif top.text in INTRANSITIVE:
                noun.before.insert(0, top.text)
            else:
                noun.after.append(top.text)
        elif top.kind == "N":
            parts.pop()
            if self._top("V") or self._top("H") or self._top("P"):
                words = f"{parts.pop().text} {top.phrase(True)}"
                if self._top("L"):
                    words = f"{words} {parts.pop().text}"
                elif self._top("V"):
                    words = f"{parts.pop().text} {words}"
                noun.after.append(words)
            elif top.text == "background":
                noun.after.append(f"on {top.phrase(True)}")
            elif top.text in TIMES:
                noun.after.append(TIMES[top.text])
            elif top.tag == "n" and top.text.split()[-1] in ANIMATE:
                noun.before.insert(0, f"{top.phrase(bool(top.number))}'s")
            else:
                noun.before.insert(0, top.phrase(False))
                noun.number = "" if top.number == "a" else noun.number

    def _place(self, english: str) -> None:
        """A place word: a phrase with the noun before it, after a verb a direction, alone a side."""
        parts = self._parts
        if self._top("的"):
            parts.pop()
        elif self._top("S", "N") and (self._parts[-2].text, SIDES.get(english)) in OPPOSITE:
            parts.append(
                _Part("S", SIDES[english])
            )  # 左边一只猫右边一只狗: the noun belongs to the side before it
            return
        if not self._top("N"):
            if self._top("V"):
                parts.append(_Part("P", {"on": "onto", "in": "into"}.get(english, english)))
                return
            if self._top("P"):
                parts.pop()
            parts.append(_Part("S", SIDES.get(english, english)))
            return
        noun = parts.pop()
        text = noun.phrase(True)
        start = len(parts)
        while start >= 2 and parts[start - 1].kind == "&" and parts[start - 2].kind == "N":
            start -= 2
        if start < len(parts) and (english == "between" or (start > 0 and parts[start - 1].kind == "P")):
            text = _join([part.phrase(True) for part in parts[start:]] + [text])
            del parts[start:]
        if noun.text == "background":
            english = "on"
        if self._top("P"):
            preposition = parts.pop()
            english = english if preposition.text in ("in", "near") else preposition.text
        parts.append(_Part("L", f"{english} {text}"))


def _settle(parts: list[_Part]) -> list[_Part]:
    """Return the parts of a clause in English order, without the words that only joined them."""
    parts = [part for part in parts if part.kind != "的"]
    out: list[_Part] = []
    i = 0
    while i < len(parts):
        part = parts[i]
        rest = [later.kind for later in parts[i + 1 : i + 3]]
        if part.kind in "LS" and not out and rest[:1] in (["H"], ["I"]):
            # 花园里有猫: the place first, then what is there.
            del parts[i + 1]
            continue
        if part.kind == "L" and not out and rest[:1] == ["N"]:
            end = i + 2
            while [later.kind for later in parts[end : end + 2]] == ["&", "N"]:
                end += 2
            parts[i:end] = [*parts[i + 1 : end], part]
            continue
        if part.kind == "L" and rest[:1] == ["V"]:
            verb = parts[i + 1]
            if rest[1:] == ["N"]:
                thing = parts[i + 2]
                order = [verb, thing, part] if out else [thing, verb, part]
                parts[i : i + 3] = order
            else:
                parts[i : i + 2] = [_Part("V", _passive(verb.text, part.text))]
            out.append(parts[i])
            i += 1
            continue
        if part.kind == "I":
            later = parts[i + 1] if i + 1 < len(parts) else None
            if out and out[-1].kind == "N" and out[-1].text == "background" and later and later.kind == "N":
                out[-1].before.insert(0, later.phrase(False))
                i += 2
                continue
        elif part.kind == "H" and not out:
            pass
        elif part.kind == "A" and out and out[-1].kind == "N" and rest[:1] != ["N"]:
            out[-1].before.insert(0, part.text)
        elif part.kind == "Q" and part.number in ONE:
            pass
        elif part.kind != "D":
            out.append(part)
        i += 1
    while out and out[-1].kind in "&PH":
        out.pop()
    while out and out[0].kind == "&":
        out.pop(0)
    return out


def _say(parts: list[_Part]) -> str:
    if len(parts) == 2 and parts[0].kind == "S":
        parts = parts[::-1]
    alone = len(parts) == 1 and not parts[0].after
    return _join([part.phrase(not alone) for part in parts])


def _join(texts: list[str]) -> str:
    return " ".join(texts).replace(" ,", ",")


def _opposite_sides(clauses: list[list[_Part]]) -> str:
    """``左边是猫，右边是狗`` is one relation, "a cat to the left of a dog"; "" for any other form."""
    flat = [part for clause in clauses for part in clause if part.kind != "&"]
    if sorted(part.kind for part in flat) != ["N", "N", "S", "S"]:
        return ""
    nouns = [part for part in flat if part.kind == "N"]
    sides = [part for part in flat if part.kind == "S"]
    if [part.kind for part in flat] not in (["S", "N", "S", "N"], ["N", "S", "N", "S"]):
        return ""
    relation = OPPOSITE.get((sides[0].text, sides[1].text))
    return f"{nouns[0].phrase(True)} {relation} {nouns[1].phrase(True)}" if relation else ""


def _passive(verb: str, place: str) -> str:
    """A verb and the place phrase that stood before it: "covered with" + "by snow" is "covered by snow"."""
    return f"{verb.removesuffix(' with') if place.startswith('by ') else verb} {place}"
