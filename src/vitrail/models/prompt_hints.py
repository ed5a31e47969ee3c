"""Honest hints, in English and Chinese, for prompts that a small illustration model cannot serve well.

The shipped model learned from emoji artwork: one or two everyday things, plain backgrounds, no letters, no
particular person. Nothing here refuses a prompt: the picture is made anyway, and the hint says what to
expect. Pure rules and the vocabulary of the training captions; no network runs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vitrail.models.lexicon import Lexicon, Translation, load_lexicon, translate

__all__ = ["Hint", "hint", "unknown_english"]

LONG_WORDS = 16  # the encoder reads 18 word pieces, and a word is a little more than one


class Hint(NamedTuple):
    """One thing to expect: a fixed ``code`` for programs, the text in ``english`` and in ``chinese``."""

    code: str
    english: str
    chinese: str

    def __str__(self) -> str:
        return self.english


_PHOTO = re.compile(
    r"\b(photo(?!\s+(?:album|frame))s?|photograph\w*|photo-?realis\w*|(?:hyper|ultra|super)?-?realis\w+|lifelike|dslr|"
    r"unreal engine|octane|ray[- ]?trac\w+|cinematic|bokeh|\d+mm|4k|8k|hdr)\b"
    r"|照片|相片|写实|寫實|逼真|摄影|攝影|真实感|真實感|真人|超清|高清|实拍|實拍|电影级|電影級",
    re.IGNORECASE,
)
_WRITING = re.compile(
    r"\b(texts?|captions?|typograph\w*|lettering|slogans?|watermark|logos?|calligraphy|subtitles?|signature|"
    r"(?:the|with) words?|that (?:says?|reads?)|saying|written|spell(?:s|ed|ing)|inscription|headline)\b"
    r"|“[^”]+”|「[^」]+」|『[^』]+』|\"[^\"]+\""
    r"|写着|寫著|写有|寫有|文字|字样|字樣|标语|標語|书法|書法|签名|簽名|字体|字體|标题|標題|汉字|漢字|英文字|水印|海报|海報|商标|商標",
    re.IGNORECASE,
)
_STYLE_OF = re.compile(
    r"\b(?:in the style of|painted by|drawn by|artwork by|art by)\b|的画风|画家.{0,6}风格", re.IGNORECASE
)
_NAMES_TEXT = r"""
einstein, newton, picasso, van gogh, monet, da vinci, mona lisa, shakespeare, napoleon, hitler, lincoln,
obama, trump, biden, putin, zelensky, elon musk, musk, steve jobs, bill gates, taylor swift, beyonc[eé],
michael jackson, marilyn monroe, elvis, messi, ronaldo, beckham, kobe, jackie chan, bruce lee, harry
potter, hermione, gandalf, spider-?man, batman, superman, iron man, captain america, hulk, darth vader,
yoda, mickey mouse, donald duck, pikachu, pok[eé]mon, hello kitty, snoopy, spongebob, sonic, super mario,
mario, zelda, goku, naruto, luffy, totoro, shrek, elsa, barbie, minions?, coca[- ]?cola, pepsi,
mcdonald'?s, kfc, starbucks, nike, adidas, gucci, chanel, disney, marvel, nintendo, lego, tesla, bmw,
mercedes, audi, toyota, honda, ferrari, porsche, lamborghini, iphone, playstation, xbox, google,
microsoft, facebook, twitter, tiktok, wechat
"""
_NAMED = re.compile(r"\b(" + "|".join(" ".join(_NAMES_TEXT.split()).split(", ")) + r")\b", re.IGNORECASE)
_MANY = re.compile(
    r"\b(?:five|six|seven|eight|nine|ten|eleven|twelve|twenty|hundred|thousand|[5-9]|[1-9]\d+)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:['’][a-z]+)?")
_NAME_LIKE = re.compile(r"\b[A-Z][a-z]+(?: [A-Z][a-z]+)+")
_COMMON_TEXT = """
a about above across after against all along also among an and another any are around as at away back be
because been before behind being below beneath beside besides between beyond both but by can colour
coloured colored colors colours could did do does doing done down draw drawing drawn each either else
every few for from front full gets give given go goes going grey had has have having he her hers him his
how i if image images in inside into is it its just kind large left like lot lots made make makes making
many me medium middle mine more most much my near next no nor not of off on one only onto or other our out
outside over own painting per picture pictures piece please portrait put rather right scene seen set
several she show showing shown side sides small so some someone something standing still style styled such
than that the their them then there these they thing things this those through to together too top toward
towards two under up upon upper us very view want was we were what when where which while who whole whose
will with within without would you your illustration icon emoji render rendering background cute beautiful
nice pretty simple detailed vector clipart sticker cartoonish dark light bright pale deep lower corner far
upside tiny huge giant old young wearing holding carrying eating drinking reading riding watching
"""
_COMMON = frozenset(_COMMON_TEXT.split())


def unknown_english(text: str, lexicon: Lexicon | None = None) -> list[str]:
    """Return the words of an English text that no training caption can hold, in order, each once."""
    lexicon = load_lexicon() if lexicon is None else lexicon
    missing = []
    for word in _WORD.findall(text):
        plain = word.lower().replace("’", "'").split("'")[0]
        if len(plain) > 1 and not any(
            form in lexicon.vocabulary or form in _COMMON for form in _forms(plain)
        ):
            missing.append(word)
    return list(dict.fromkeys(missing))


def _forms(word: str) -> list[str]:
    """The word and what it may be an inflection of."""
    forms = [word]
    for ending, stems in (
        ("s", ("",)),
        ("es", ("",)),
        ("ies", ("y",)),
        ("ves", ("f", "fe")),
        ("ing", ("", "e")),
        ("ed", ("", "e")),
        ("er", ("", "e")),
        ("est", ("", "e")),
        ("ly", ("",)),
        ("ily", ("y",)),
        ("y", ("", "e")),
        ("ier", ("y",)),
        ("ish", ("",)),
    ):
        if word.endswith(ending) and len(word) - len(ending) > 1:
            stem = word.removesuffix(ending)
            forms += [stem + end for end in stems]
            if len(stem) > 2 and stem[-1] == stem[-2]:
                forms.append(stem[:-1])  # running, biggest
    return forms


def hint(prompt: str, *, translation: Translation | None = None, truncated: bool | None = None) -> list[Hint]:
    """Return what to tell the person who asked for ``prompt``, most important first; [] when all is well.

    translation: of the prompt, if it is at hand. truncated: what the encoder said (``TextStates.truncated``);
    None estimates it from the number of words. Never raises, for any string.
    """
    read = translate(prompt) if translation is None else translation
    lexicon = load_lexicon()
    hints: list[Hint] = []
    if not read.english.strip():
        hints.append(
            Hint(
                "nothing",
                "nothing in this prompt could be read, so the picture is a free one; "
                "try naming a thing, such as 'a cat'",
                "没有读懂这段描述，画面将是随机的；请写出具体的事物，例如“一只猫”",
            )
        )
    if _PHOTO.search(prompt):
        hints.append(
            Hint(
                "photo",
                "this model draws small illustrations and cannot make photographs or realistic detail",
                "这个模型只画小插画，画不出照片或写实细节",
            )
        )
    if _WRITING.search(prompt):
        hints.append(
            Hint(
                "writing",
                "letters and words in the picture will not be readable; describe the thing without its text",
                "画面中的文字无法辨认；请只描述事物本身",
            )
        )
    named = [match[0] for match in _NAMED.finditer(prompt)]
    named += [
        word
        for word in read.unknown
        if any(sense.tag == "@" for sense in lexicon.words.get(word, lexicon.words.get(word.lower(), [])))
    ]
    for match in _NAME_LIKE.finditer(prompt):
        if len(unknown_english(match[0], lexicon)) == len(match[0].split()):
            named.append(match[0])
    named = list(dict.fromkeys(named))
    if named or _STYLE_OF.search(prompt):
        who = f" ({_listed(named)})" if named else ""
        hints.append(
            Hint(
                "name",
                f"it knows no particular person, character, brand or artist{who}; "
                "describe what is to be seen instead",
                f"它不认识具体的人物、角色、品牌或画家{who}；请改为描述看得见的样子",
            )
        )
    if truncated if truncated is not None else len(_WORD.findall(read.english)) > LONG_WORDS:
        hints.append(
            Hint(
                "long",
                "the prompt is longer than the model reads, its end was left out; "
                "one or two things work best",
                "描述太长，末尾部分没有读入；一两个事物效果最好",
            )
        )
    if _MANY.search(read.english):
        hints.append(
            Hint(
                "count",
                "it counts to about four; larger numbers come out roughly",
                "它大约只能数到四，更多的数量只是大概",
            )
        )
    taken = {word.lower() for name in named for word in name.split()}
    strange = [word for word in read.unknown if word not in named]
    strange += [word for word in unknown_english(read.english, lexicon) if word.lower() not in taken]
    strange = list(dict.fromkeys(strange))
    if strange:
        hints.append(
            Hint(
                "unknown",
                "the model has not learned these words, they may be missing from the picture: "
                + _listed(strange),
                f"模型没有学过这些词，画面中可能缺少：{_listed(strange, '、')}",
            )
        )
    if read.near:
        pairs = [(word, near) for word, near in read.near]
        hints.append(
            Hint(
                "near",
                "read as the nearest word it knows: "
                + _listed([f"{word} as {near}" for word, near in pairs]),
                "按最接近的词理解：" + _listed([f"“{word}”当作“{near}”" for word, near in pairs], "、"),
            )
        )
    return hints


def _listed(words: list[str], mark: str = ", ", most: int = 5) -> str:
    """At most five words of at most 24 characters, on one line."""
    short = [word if len(word) <= 24 else word[:23] + "…" for word in words[:most]]
    return mark.join(short) + ("…" if len(words) > most else "")
