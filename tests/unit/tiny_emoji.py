"""A tiny emoji set for tests: package archives of the real layout, drawn here, and the set built from
them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrail.data import emoji
from vitrail.data.packages import PACKAGES


def _circle(fill: str, r: int = 40) -> str:
    return f'<circle cx="50" cy="50" r="{r}" fill="{fill}"/>'


def _box(fill: str, w: int = 80, h: int = 50) -> str:
    return f'<rect x="{50 - w / 2:g}" y="{50 - h / 2:g}" width="{w}" height="{h}" fill="{fill}"/>'


# concept, icon name, name as CLDR has it, Chinese, keywords, Unicode group, drawing on 100 x 100
CONCEPTS: list[tuple[str, str, str, str, list[str], str, str]] = [
    ("1f408", "cat", "cat", "猫", ["cat", "kitten", "pet"], "Animals & Nature",
     _circle("#f08a1c") + _box("#f08a1c", 90, 20)),
    ("1f415", "dog", "dog", "狗", ["dog", "pet"], "Animals & Nature", _box("#8a5a2c", 70, 60)),
    ("1f333", "deciduous-tree", "deciduous tree", "落叶树", ["tree"], "Animals & Nature",
     '<path d="M50 8L88 70H12Z" fill="#2f9e44"/><rect x="42" y="70" width="16" height="22" fill="#74451f"/>'),
    ("1f697", "automobile", "automobile", "汽车", ["car"], "Travel & Places",
     _box("#d92b2b", 84, 34) +
     '<circle cx="30" cy="70" r="10" fill="#333"/><circle cx="70" cy="70" r="10" fill="#333"/>'),
    ("1f34e", "red-apple", "red apple", "红苹果", ["fruit"], "Food & Drink", _circle("#d81f26", 36)),
    ("1f34c", "banana", "banana", "香蕉", ["fruit"], "Food & Drink",
     '<ellipse cx="50" cy="50" rx="42" ry="18" fill="#f5d020"/>'),
    ("1f600", "grinning-face", "grinning face", "嘿嘿", ["smile"], "Smileys & Emotion",
     _circle("#fcc21b") + '<rect x="30" y="60" width="40" height="8" fill="#fff"/>'),
    ("1f537", "large-blue-diamond", "large blue diamond", "蓝色大菱形", ["geometric"], "Symbols",
     '<path d="M50 5L95 50L50 95L5 50Z" fill="#1a73e8"/>'),
    ("1f1eb-1f1f7", "flag-for-france", "flag: France", "旗: 法国", ["flag"], "Flags",
     _box("#fff", 90, 60) + '<rect x="5" y="20" width="30" height="60" fill="#00f"/>'),
    ("1f3c3", "person-running", "person running", "跑步", ["run"], "People & Body", _box("#3366aa", 30, 80)),
    ("1f3c3-200d-2640", "woman-running", "woman running", "女生跑步", ["run"], "People & Body",
     _box("#aa3399", 30, 84)),
    ("1f4d8", "blue-book", "blue book", "蓝色书本", ["book"], "Objects", _box("#2b59c3", 60, 80)),
    # drawn exactly like the blue book: one of the two must go
    ("1f4d9", "orange-book", "orange book", "橙色书本", ["book"], "Objects", _box("#2b59c3", 60, 80)),
    # an empty drawing
    ("1f573", "hole", "hole", "洞", ["hole"], "Smileys & Emotion", '<rect width="0" height="0"/>'),
]  # fmt: skip
KEPT = len(CONCEPTS) - 2
SHADES = {"noto": 0, "noto-classic": 3, "twemoji": 6, "emojione": 9, "firefox": 12, "fluent-flat": 15}


def _pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, contents in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))


def _iconify(style: str) -> dict[str, bytes]:
    icons: dict[str, Any] = {}
    chars: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for concept, name, _, _, _, group, art in CONCEPTS:
        # a house of its own draws a little smaller, so that no two houses draw the same
        scale = 1 - SHADES[style] / 100
        shift = 50 - 50 * scale
        icons[name] = {
            "body": f'<g transform="translate({shift:g} {shift:g}) scale({scale:g})">{art}</g>',
        }
        chars[concept if style != "noto" else f"{concept}-fe0f"] = name
        groups.setdefault(group, []).append(name)
    icons["person-running-light-skin-tone"] = {"body": _circle("#fff")}
    chars["1f3c3-1f3fb"] = "person-running-light-skin-tone"
    document: dict[str, Any] = {"icons": icons, "width": 100, "height": 100}
    if style in ("noto-classic", "emojione", "firefox"):
        chars = {}
    if style == "emojione":  # known there by an older name, which an alias leads to
        icons["auto"] = icons.pop("automobile")
        document["aliases"] = {"automobile": {"parent": "auto"}}
    if (
        style == "firefox"
    ):  # words run together, a table for what no rule finds, and a picture of nothing known
        for name in list(icons):
            icons[name.replace("-", "")] = icons.pop(name)
        for name, other in (("cat", "catside"), ("dog", "dogside"), ("flagforfrance", "franceflag")):
            icons[other] = icons.pop(name)
        icons["foxgrin"] = {"body": _circle("#f60")}
        del icons["personrunninglightskintone"]
    files = {"icons.json": document, "chars.json": chars, "metadata.json": {"categories": groups}}
    return {name: json.dumps(contents).encode() for name, contents in files.items()}


def _cldr() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {"en": {}, "zh": {}}
    for concept, _, english, chinese, keywords, _, _ in CONCEPTS:
        characters = "".join(chr(int(code, 16)) for code in concept.split("-"))
        tables["en"][characters] = {"default": keywords, "tts": [english]}
        tables["zh"][characters] = {"default": [chinese], "tts": [chinese]}
    return tables


def make_archives(folder: Path) -> None:
    """Write one archive for every package of the real table, named as the cache names them."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = _cldr()
    for style, name in emoji.STYLE_PACKAGES.items():
        if style == "fluent-3d":
            files = {}
            for number, (concept, *_) in enumerate(CONCEPTS[:9]):
                buffer = io.BytesIO()
                picture = Image.new("RGBA", (256, 256))
                picture.paste((40 + 20 * number, 200 - 15 * number, 90, 255), (40, 40, 216, 180 + 8 * number))
                picture.save(buffer, "WEBP", lossless=True)
                files[f"assets/{concept}-fe0f.webp"] = buffer.getvalue()
            files["assets/logo.webp"] = files["assets/1f408-fe0f.webp"]
        else:
            files = _iconify(style)
        _pack(folder / PACKAGES[name].filename, files)
    for name, room in zip(emoji.CLDR_PACKAGES, ("annotations", "annotationsDerived"), strict=True):
        half = slice(0, 10) if room == "annotations" else slice(10, None)
        files = {
            f"{room}/{language}/annotations.json": json.dumps(
                {room: {"annotations": dict(list(table.items())[half])}}
            ).encode()
            for language, table in tables.items()
        }
        _pack(folder / PACKAGES[name].filename, files)


def pin_archives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the build expect the archives that lie in `folder`."""
    pinned = {
        name: replace(package, sha256=hashlib.sha256((folder / package.filename).read_bytes()).hexdigest())
        for name, package in PACKAGES.items()
    }
    monkeypatch.setattr(emoji, "PACKAGES", pinned)


def build_tiny(folder: Path, *, size: int = 128) -> Path:
    """Build the tiny set below `folder`; no network."""
    with pytest.MonkeyPatch.context() as patch:
        make_archives(folder / "archives")
        pin_archives(folder / "archives", patch)
        return emoji.build_emoji(folder / "emoji", size=size, packages_cache=folder / "archives")
