"""What the grammar of :mod:`vitrail.models.lexicon_grammar` knows of English words: sides, times, plurals."""

from __future__ import annotations

import re

__all__ = [
    "ANIMATE",
    "DOUBLED",
    "ENTIRE_PLURALS",
    "HEAD_ENDS",
    "INTRANSITIVE",
    "MANY_AFTER",
    "ONE",
    "OPPOSITE",
    "PLURALS",
    "SIDES",
    "TAGS",
    "TIMES",
    "plural",
]

TAGS: dict[str, str] = {
    "n": "count noun",
    "u": "mass noun",
    "t": "the noun",
    "P": "plural noun",
    "c": "colour",
    "a": "adjective",
    "v": "verb",
    "s": "style",
    "m": "measure",
    "q": "number",
    "f": "place",
    "l": "phrase",
    "p": "preposition",
    "&": "conjunction",
    "x": "particle",
    "-": "filler",
    "@": "person name",
}
"""Parts of speech of lexicon entries and the section of the hand-written table that each one stands for."""

SIDES = {
    "to the left of": "on the left",
    "to the right of": "on the right",
    "above": "at the top",
    "on": "at the top",
    "below": "at the bottom",
    "under": "at the bottom",
    "in front of": "in front",
    "behind": "in the back",
    "in the middle of": "in the middle",
    "in": "inside",
    "between": "in the middle",
    "next to": "next to it",
    "around": "all around",
}
"""A place word without a noun of its own: what it says of the whole picture."""

OPPOSITE = {
    ("on the left", "on the right"): "to the left of",
    ("on the right", "on the left"): "to the right of",
    ("at the top", "at the bottom"): "above",
    ("at the bottom", "at the top"): "below",
}
TIMES = {
    "night": "at night",
    "daytime": "by day",
    "morning": "in the morning",
    "dusk": "at dusk",
    "dawn": "at dawn",
    "noon": "at noon",
    "spring": "in spring",
    "summer": "in summer",
    "autumn": "in autumn",
    "winter": "in winter",
}
_INTRANSITIVE_TEXT = """
sitting standing lying walking running jumping flying swimming smiling laughing crying sleeping dancing
singing floating rising falling spinning burning melting exploding blooming resting screaming yawning
"""
INTRANSITIVE = frozenset(_INTRANSITIVE_TEXT.split())
_ENTIRE_PLURALS_TEXT = """
sheep fish deer bison moose squid people
"""
ENTIRE_PLURALS = frozenset(_ENTIRE_PLURALS_TEXT.split())
PLURALS = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "calf": "calves",
    "snowman": "snowmen",
    "fireman": "firemen",
    "ox": "oxen",
    "cactus": "cacti",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "loaf": "loaves",
    "elf": "elves",
    "shelf": "shelves",
    "bookshelf": "bookshelves",
    "hero": "heroes",
    "mango": "mangoes",
}
HEAD_ENDS = re.compile(r" (?:with|of|in|on|at|from|without|holding|wearing|looking|to) |:")
_ANIMATE_TEXT = """
girl boy man woman child baby person people princess prince king queen father mother brother sister friend
doctor nurse teacher student witch wizard cat kitten dog puppy bear panda lion tiger elephant horse rabbit
bird monkey fox wolf pig cow sheep mouse dragon unicorn fish frog snake chicken duck penguin owl eagle
robot
"""
ANIMATE = frozenset(_ANIMATE_TEXT.split())
MANY_AFTER = ("full of", "covered with", "without", "selling", "picking")
DOUBLED = re.compile(r"\b(on|in|at|with|of|by|to|under|around) \1\b")
ONE = ("", "a", "the", "another", "half", "every")


def plural(head: str) -> str:
    """Plural of a noun phrase: of its last word, or of the last one before "with", "of" and the like."""
    cut = HEAD_ENDS.search(head)
    start, end = (head[: cut.start()], head[cut.start() :]) if cut else (head, "")
    first, _, word = start.rpartition(" ")
    if word in PLURALS:
        many = PLURALS[word]
    elif word in ENTIRE_PLURALS or (word.endswith("s") and not word.endswith(("ss", "us"))):
        many = word
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        many = word + "es"
    elif word.endswith("y") and word[-2:-1] not in ("a", "e", "i", "o", "u"):
        many = word[:-1] + "ies"
    else:
        many = word + "s"
    return f"{first} {many}".strip() + end
