"""What to say about a folder of pictures, in English and Chinese."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from vitrail.chinese import in_chinese

if TYPE_CHECKING:
    from vitrail.data.inspect import InspectReport

__all__ = ["Advice", "Language", "advise", "phrase", "reason_in"]

Language = Literal["en", "zh"]
Level = Literal["good", "note", "warn"]

_PLURAL = re.compile(r"\{(\w+):([^|{}]*)\|([^|{}]*)\}")

_TEXTS: dict[str, tuple[str, str]] = {
    "pictures_line": (
        "{pictures} {pictures:picture|pictures} can be used ({formats}); "
        "{problems} {problems:file|files} cannot",
        "可用图片 {pictures} 张（{formats}）；不可用的文件 {problems} 个",
    ),
    "captions_line": (
        "{found} {found:has|have} a caption, {lack} {lack:has|have} none",
        "有说明文字的 {found} 张，没有的 {lack} 张",
    ),
    "doubles_line": (
        "{exact} {exact:file repeats|files repeat} another one exactly; {near} {near:group looks|groups "
        "look} alike",
        "完全重复的文件 {exact} 个；看起来相似的有 {near} 组",
    ),
    "nothing": (
        "There is no usable picture here. vitrail opens PNG, JPEG, WebP and GIF, in folders or .tar files.",
        "这里没有可用的图片。vitrail 支持 PNG、JPEG、WebP 和 GIF，可以放在文件夹或 .tar 文件里。",
    ),
    "broken": (
        "{n} {n:file|files} cannot be used; each is listed with its reason. A training leaves them out.",
        "有 {n} 个文件不可用，原因逐条列出。训练时会跳过它们，照常进行。",
    ),
    "unread": (
        "{n} {n:line|lines} of captions or metadata could not be read; see the list.",
        "有 {n} 条说明文字或元数据无法读取，见列表。",
    ),
    "uncaptioned": (
        "No picture has a caption, so words will not steer the result. Put a text file beside each picture "
        "(cat.png, cat.txt), or write one metadata.jsonl.",
        "所有图片都没有说明文字，因此无法用文字控制生成结果。"
        "请在每张图片旁边放一个同名文本文件（cat.png 和 cat.txt），或写一个 metadata.jsonl。",
    ),
    "some_uncaptioned": (
        "{n} of {all} pictures have no caption; they teach the look, but not the words.",
        "{all} 张图片中有 {n} 张没有说明文字：它们能教会画面，但教不会词语。",
    ),
    "one_caption": (
        "All captions are the same. That teaches one word for everything; say what is different in each "
        "picture.",
        "所有说明文字都相同，只能学到一个词。请写出每张图片各自的内容。",
    ),
    "long_captions": (
        "Half of the captions have more than {n} words; the text encoder reads the beginning only.",
        "一半以上的说明文字超过 {n} 个词；文本编码器只读开头部分。",
    ),
    "orphans": (
        "{n} {n:caption has|captions have} no picture, such as {name}; check the names.",
        "有 {n} 个说明文件找不到对应的图片，例如 {name}；请检查文件名。",
    ),
    "exact": (
        "{n} {n:file repeats|files repeat} another one exactly and would count double; better removed.",
        "有 {n} 个文件与其他文件完全相同，训练时会被多看几遍；建议删除。",
    ),
    "near": (
        "{n} {n:group|groups} of near-identical pictures (resized, recompressed, a series). Keep the best.",
        "有 {n} 组图片看起来几乎一样（缩放、重新压缩或连拍）。建议每组只留最好的一张。",
    ),
    "tiny": (
        "{n} {n:picture is|pictures are} smaller than {size} px on one side; enlarging teaches softness.",
        "有 {n} 张图片的短边小于 {size} 像素；放大后会让模型学得模糊。",
    ),
    "huge": (
        "{n} {n:picture has|pictures have} over 20 million pixels. That works, but the first pass is slow.",
        "有 {n} 张图片超过 2000 万像素。可以使用，但检查和第一遍训练会比较慢。",
    ),
    "extreme": (
        "{n} {n:picture is|pictures are} beyond 2.5 : 1 in shape; much will be cut off. Better cropped by "
        "hand.",
        "有 {n} 张图片的长宽比超过 2.5，大部分会被裁掉。建议自己先裁剪。",
    ),
    "cropped": (
        "Square training cuts off {share} % of an average picture. If its middle is not what matters, crop "
        "first, or use aspect buckets with a model of free size.",
        "按正方形训练平均会裁掉每张图片的 {share} %。"
        "如果重点不在中间，请用支持任意尺寸的模型和长宽比分桶，或先自行裁剪。",
    ),
    "plain": ("{n} {n:picture is|pictures are} of one plain colour.", "有 {n} 张图片是单一纯色。"),
    "misnamed": (
        "{n} {n:file is|files are} named as another format, such as {name}; content counts.",
        "有 {n} 个文件的扩展名与内容不符，例如 {name}；读取时以内容为准。",
    ),
    "few": (
        "{n} {n:picture is|pictures are} few: a model will learn them by heart. Start from a trained model "
        "and stop early; 200 and more give it room.",
        "{n} 张图片偏少，模型会把它们背下来。请从训练好的模型开始并尽早停止；200 张以上更合适。",
    ),
    "good": ("Nothing stands in the way of a training.", "可以开始训练，没有发现问题。"),
}


class Advice(BaseModel):
    """One line of advice in both languages; ``level`` says how much it matters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Level
    en: str
    zh: str

    def text(self, language: Language) -> str:
        """The line in one language."""
        return self.zh if language == "zh" else self.en


def phrase(key: str, language: Language, **values: object) -> str:
    """A text of the table above in one language, filled in; ``{n:one|many}`` chooses by the number ``n``."""
    template = _TEXTS[key][1 if language == "zh" else 0]
    template = _PLURAL.sub(lambda m: m[2] if values[m[1]] == 1 else m[3], template)
    return template.format(**values)


def reason_in(language: Language, reason: str) -> str:
    """Why a file cannot be used, in one language; in English where there is no translation."""
    return (in_chinese(reason) if language == "zh" else None) or reason


def _say(level: Level, key: str, **values: object) -> Advice:
    return Advice(level=level, en=phrase(key, "en", **values), zh=phrase(key, "zh", **values))


def advise(report: InspectReport) -> list[Advice]:
    """What a person should know about this folder before a training, the gravest first."""
    captions, lines = report.captions, list[Advice]()
    if report.pictures == 0:
        lines.append(_say("warn", "nothing"))
    if report.unusable:
        lines.append(_say("warn", "broken", n=report.unusable))
    if unread := len(report.problems) - report.unusable:
        lines.append(_say("note", "unread", n=unread))
    lack = report.pictures - captions.found
    if report.pictures and lack == report.pictures:
        lines.append(_say("warn", "uncaptioned"))
    elif lack:
        lines.append(
            _say(
                "warn" if 10 * lack > report.pictures else "note",
                "some_uncaptioned",
                n=lack,
                all=report.pictures,
            )
        )
    if captions.found > 4 and captions.distinct == 1:
        lines.append(_say("warn", "one_caption"))
    if report.repeats:
        lines.append(
            _say("warn" if 20 * report.repeats > report.pictures else "note", "exact", n=report.repeats)
        )
    if report.near_duplicates:
        lines.append(_say("note", "near", n=len(report.near_duplicates)))
    if report.tiny:
        level: Level = "warn" if 10 * len(report.tiny) > report.pictures else "note"
        lines.append(_say(level, "tiny", n=len(report.tiny), size=report.size))
    if report.extreme:
        lines.append(_say("note", "extreme", n=len(report.extreme)))
    if report.cropped > 0.15:
        lines.append(_say("note", "cropped", share=round(100 * report.cropped)))
    for key, ids in (("huge", report.huge), ("plain", report.plain)):
        if ids:
            lines.append(_say("note", key, n=len(ids)))
    for key, ids in (("misnamed", report.misnamed), ("orphans", captions.orphans)):
        if ids:
            lines.append(_say("note", key, n=len(ids), name=ids[0]))
    if captions.median_words > 48:
        lines.append(_say("note", "long_captions", n=48))
    if 0 < report.pictures < 100:
        lines.append(_say("note", "few", n=report.pictures))
    if report.pictures and all(line.level != "warn" for line in lines):
        lines.insert(0, _say("good", "good"))
    return lines
