"""The look through a folder: counts, duplicates, advice, and the report on disk."""

from __future__ import annotations

import builtins
import io
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vitrail import fonts
from vitrail.data.contact_sheet import contact_sheet
from vitrail.data.duplicates import Fingerprint, fingerprint, near_groups
from vitrail.data.inspect import inspect
from vitrail.data.inspect_advice import _TEXTS, phrase
from vitrail.data.inspect_report import write_report
from vitrail.errors import CancelledError, InputError, MissingExtraError


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect") / "pictures"
    root.mkdir()
    for i in range(30):
        scene(i).save(root / f"{i:02}.png")
        (root / f"{i:02}.txt").write_text(f"scene {i}" if i % 2 else f"场景 {i}", encoding="utf-8")
    (root / "29.txt").write_text("")
    (root / "28.txt").unlink()
    shutil.copy(root / "03.png", root / "copy.png")
    scene(5).resize((80, 60)).save(root / "smaller.jpg", quality=60)
    ImageEnhance.Brightness(scene(5)).enhance(1.08).save(root / "brighter.webp", quality=80)
    Image.new("RGB", (64, 64), "navy").save(root / "navy.png")
    Image.new("RGB", (64, 64), "white").save(root / "white.png")
    scene(70, (400, 100)).save(root / "wide.png")
    scene(71, (20, 20)).save(root / "tiny.png")
    (root / "zero.png").write_bytes(b"")
    (root / "bad.jsonl").write_text("")
    (root / "metadata.jsonl").write_text("oops\n")
    return root


def test_the_counts_are_right(folder: Path) -> None:
    report = inspect(folder, size=64)
    assert report.pictures == 37
    assert report.formats == {"JPEG": 1, "PNG": 35, "WEBP": 1}
    assert (report.captions.found, report.captions.empty, report.captions.missing) == (28, 1, 8)
    assert report.captions.chinese == 14
    assert report.captions.distinct == 28
    assert report.captions.median_words == 2.5  # "scene 1" has two words, "场景 2" three
    assert [(p.path, p.kind) for p in report.problems] == [
        ("metadata.jsonl:1", "metadata"),
        ("zero.png", "picture"),
    ]
    assert report.unusable == 1
    assert report.exact_duplicates == [["03.png", "copy.png"]]
    assert report.near_duplicates == [["05.png", "brighter.webp", "smaller.jpg"]]
    assert report.plain == ["navy.png", "white.png"]
    assert report.extreme == ["wide.png"]
    assert report.tiny == ["smaller.jpg", "tiny.png"]
    assert sum(size.count for size in report.sizes) == sum(report.buckets.values()) == 37
    assert report.total_bytes == sum(
        p.stat().st_size for p in folder.iterdir() if p.suffix in (".png", ".jpg", ".webp")
    )
    assert inspect(folder, workers=1).model_dump(exclude={"seconds"}) == report.model_dump(
        exclude={"seconds"}
    )


def test_the_hash_is_the_one_of_its_definition() -> None:
    """Against the definition, spelled out: is each of 8 x 8 places brighter than its left neighbour?"""
    values = np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8)
    picture = Image.fromarray(np.kron(values, np.ones((9, 8), dtype=np.uint8))).convert("RGB")  # 72 x 72
    bits = "".join("1" if values[y, x + 1] > values[y, x] else "0" for y in range(8) for x in range(8))
    assert fingerprint(picture).dhash == int(bits, 2)


def test_near_groups_agree_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    prints = []
    for _ in range(60):
        base = int.from_bytes(rng.bytes(8), "big")
        small = rng.integers(40, 200, 432).astype(np.uint8)
        for _ in range(int(rng.integers(1, 5))):
            code = base
            for bit in rng.choice(64, int(rng.integers(0, 5)), replace=False):
                code ^= 1 << int(bit)
            patches = np.kron(rng.integers(-8, 9, (3, 3, 3)), np.ones((4, 4, 1), dtype=np.int64))
            shifted = small.astype(np.int16) + int(rng.integers(-20, 20)) + patches.reshape(-1)
            prints.append(Fingerprint(code, shifted.astype(np.uint8), False))
    aspects = rng.choice([1.0, 1.0, 1.5], len(prints)).tolist()
    linked = {i: {i} for i in range(len(prints))}
    for i, a in enumerate(prints):
        for j, b in enumerate(prints[:i]):
            away = bin(a.dhash ^ b.dhash).count("1")
            rest = a.small.astype(float) - b.small
            alike = abs(rest.mean()) <= 48 and abs(rest - rest.mean()).mean() <= 6
            if away <= 8 and alike and aspects[i] == aspects[j]:
                merged = linked[i] | linked[j]
                for k in merged:
                    linked[k] = merged
    expected = sorted({tuple(sorted(group)) for group in linked.values() if len(group) > 1})
    found = near_groups(prints, aspects)
    assert [tuple(group) for group in found] == expected
    assert len(found) > 20


def test_twenty_thousand_pictures_are_compared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    count = 20_000
    codes = rng.integers(0, 2**63, count, dtype=np.uint64)
    codes[:4000] = codes[0]  # a worst case: many of one hash and different content
    small = rng.integers(0, 256, (count, 432), dtype=np.uint8)
    small[-1], codes[-1] = small[-2], codes[-2] ^ np.uint64(3)
    prints = [Fingerprint(int(code), one, False) for code, one in zip(codes, small, strict=True)]
    begun = time.process_time()
    assert near_groups(prints, [1.0] * count) == [[count - 2, count - 1]]
    assert time.process_time() - begun < 10


def test_drawings_that_share_a_hash_are_told_apart() -> None:
    """A disc on white in two colours has one difference hash; only the recompressed one is a duplicate."""
    yy, xx = np.mgrid[:96, :96]
    disc = ((xx - 48) ** 2 + (yy - 48) ** 2 < 900)[..., None]
    pictures = [
        Image.fromarray(np.where(disc, colour, 255).astype(np.uint8))
        for colour in ([200, 30, 30], [30, 90, 30], [200, 30, 30])
    ]
    buffer = io.BytesIO()
    pictures[2].save(buffer, "JPEG", quality=50)
    pictures[2] = Image.open(buffer).convert("RGB")
    assert near_groups([fingerprint(p) for p in pictures], [1.0] * 3) == [[0, 2]]


def test_the_report_is_four_files_and_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    report = inspect(folder)
    written = write_report(report, tmp_path / "out", language="zh")
    assert [path.name for path in written] == ["report.json", "sizes.png", "contact_sheet.png", "report.html"]
    told = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert told == report.model_dump()
    for name in ("sizes.png", "contact_sheet.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            picture.load()
            assert picture.width > 600
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.images >= len(report.samples)
    assert not re.search(r"<script|https?://|javascript:|\son\w+=", page)
    assert 'id="zh" checked' in page
    for line in report.advice:
        assert line.en.replace("'", "&#x27;") in page
        assert line.zh in page


class _Checker(HTMLParser):
    """Every tag is closed in order, and every picture is inside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images += 1
            assert (dict(attrs)["src"] or "").startswith("data:image/")
        if tag not in ("img", "meta", "input", "source", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_without_matplotlib_the_missing_extra_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)  # type: ignore[arg-type]

    report = inspect(folder)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'vitrail\[data\]'"):
        write_report(report, tmp_path)


def test_both_languages_say_something_everywhere(folder: Path) -> None:
    values = {
        key: 1
        for key in ("n", "all", "size", "share", "exact", "near", "found", "lack", "pictures", "problems")
    }
    values["all"] = 2
    for key in _TEXTS:
        english = phrase(key, "en", name="x", formats="PNG 1", **values)
        chinese = phrase(key, "zh", name="x", formats="PNG 1", **values)
        assert not re.search(r"[{}|]", english + chinese), key
        assert re.search("[一-鿿]", chinese), key
        assert not re.search("[一-鿿]", english), key
        assert "1 pictures" not in english
    report = inspect(folder)
    assert report.summary("en")[0].startswith("37 pictures can be used")
    assert report.summary("en")[-1] == "  zero.png: is empty; it is not a picture"
    assert report.summary("zh")[0].startswith("可用图片 37 张")


def test_a_good_folder_is_called_good(tmp_path: Path) -> None:
    for i in range(120):
        scene(i, (80, 80)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"scene number {i}")
    assert [line.level for line in inspect(tmp_path, size=64).advice] == ["good"]


def test_progress_and_cancelling(folder: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    inspect(folder, progress=lambda *step: steps.append(step))
    assert [what for what in dict.fromkeys(step[2] for step in steps)] == ["check", "compare", "thumbnails"]
    assert all(1 <= done <= total for done, total, _ in steps)
    with pytest.raises(CancelledError):
        inspect(folder, cancelled=lambda: True)


def test_contact_sheets_of_every_size_and_label(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 7, 48, 49):
        pictures = [scene(i, (40 + i, 50)) for i in range(count)]
        sheet = contact_sheet(
            pictures, ["a label that is far too long for its place " * 3] * count, title="title"
        )
        assert sheet.mode == "RGB"
        assert sheet.width <= 12 * 200 + 100
    with pytest.raises(InputError, match="no picture"):
        contact_sheet([])
    with pytest.raises(InputError, match="2 labels for 1"):
        contact_sheet([scene(0)], ["a", "b"])
    monkeypatch.setattr(fonts, "chinese_font_file", lambda: None)
    assert contact_sheet([scene(0)], ["猫"]).size == contact_sheet([scene(0)], ["cat"]).size
