"""Folders, sidecars, metadata.jsonl and tars become one list of records."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.chinese import in_chinese
from vitrail.data import folder as folder_module
from vitrail.data.cache import ArrayCache
from vitrail.data.folder import FolderSource, scan
from vitrail.data.folder_captions import clean
from vitrail.data.folder_files import printable
from vitrail.errors import CancelledError, StorageError
from vitrail.images import open_image


def picture(
    path: Path, colour: tuple[int, ...] = (10, 200, 30), size: tuple[int, int] = (20, 12), **save: Any
) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path, **save)
    return path.read_bytes()


def test_captions_come_from_metadata_before_sidecars(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.jpg", "sub/c.webp", "d.gif", "e.png", "f.png", "g.png"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("from the sidecar")
    (tmp_path / "d.txt").write_bytes("﻿一只猫\n坐在  花园里\r\n".encode())
    (tmp_path / "e.png.txt").write_text("double ending")
    (tmp_path / "f.caption").write_text("kohya's ending")
    (tmp_path / "g.txt").write_bytes("utf-16 text".encode("utf-16"))
    (tmp_path / "sub" / "c.txt").write_text("  \n")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "from metadata", "style": "ink"}\n'
    )
    (tmp_path / "sub" / "metadata.jsonl").write_text(
        '{"file_name": "./b.jpg", "caption": "relative to its folder"}'
    )
    source = FolderSource.open(tmp_path)
    assert source.problems == ()
    assert {r.id: (r.caption, r.style, r.caption_source) for r in source.records} == {
        "a.png": ("from metadata", "ink", "metadata"),
        "d.gif": ("一只猫 坐在 花园里", None, "sidecar"),
        "e.png": ("double ending", None, "sidecar"),
        "f.png": ("kohya's ending", None, "sidecar"),
        "g.png": ("utf-16 text", None, "sidecar"),
        "sub/b.jpg": ("relative to its folder", None, "metadata"),
        "sub/c.webp": ("", None, "sidecar"),
    }
    assert source.styles == ("ink",)
    assert [r.id for r in source.records] == sorted(r.id for r in source.records)


def test_a_record_holds_hash_size_and_format_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = picture(tmp_path / "turned.jpg", size=(30, 10), exif=exif)
    record = FolderSource.open(tmp_path).records[0]
    assert (record.width, record.height, record.format) == (10, 30, "JPEG")
    assert record.file_bytes == len(data)
    assert record.sha256 == hashlib.sha256(data).hexdigest()


def test_every_kind_of_picture_becomes_upright_rgb(tmp_path: Path) -> None:
    """Against values computed by hand: half-transparent red over white is (255, 127, 127)."""
    picture(tmp_path / "clear.png", (255, 0, 0, 0))
    picture(tmp_path / "half.png", (255, 0, 0, 128))
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "sixteen.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 99, 199])
    palette.save(tmp_path / "palette.png", transparency=0)
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    source = FolderSource.open(tmp_path)
    middle = {}
    for record in source.records:
        image = source.picture(record)
        assert image.mode == "RGB"
        middle[record.id] = image.getpixel((image.width // 2, image.height // 2))
    assert middle.pop("half.png") in ((255, 127, 127), (255, 126, 126))  # rounding of 255 * 127 / 255
    cmyk = middle.pop("cmyk.jpg")
    assert isinstance(cmyk, tuple)
    assert all(abs(a - b) <= 2 for a, b in zip(cmyk, (255, 0, 0), strict=True))  # JPEG
    assert middle == {
        "clear.png": (255, 255, 255),
        "sixteen.png": (128, 128, 128),
        "bits.png": (255, 255, 255),
        "palette.png": (9, 99, 199),
        "moving.gif": (255, 0, 0),
    }


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_tar_gives_the_records_that_its_unpacked_folder_gives(tmp_path: Path) -> None:
    folder, packed = tmp_path / "folder", tmp_path / "packed"
    packed.mkdir()
    members = {}
    for i in range(20):
        members[f"{i:03}.png"] = picture(folder / f"{i:03}.png", (i, 2 * i, 3 * i))
        text = f"número {i}"
        (folder / f"{i:03}.txt").write_text(text, encoding="utf-8")
        members[f"{i:03}.txt"] = text.encode()
    tar_of(packed / "shard-000.tar", dict(list(members.items())[:20]))
    tar_of(packed / "shard-001.tar", dict(list(members.items())[20:]))
    loose, tars = FolderSource.open(folder), FolderSource.open(packed)
    assert [(r.sha256, r.captions, r.width) for r in loose.records] == [
        (r.sha256, r.captions, r.width) for r in tars.records
    ]
    assert [r.id for r in tars.records][:2] == ["shard-000.tar/000.png", "shard-000.tar/001.png"]
    for a, b in zip(loose.records, tars.records, strict=True):
        assert loose.read(a) == tars.read(b)
    alone = FolderSource.open(packed / "shard-001.tar")
    assert len(alone) == 10
    assert alone.picture(alone.records[0]).getpixel((0, 0)) == (10, 20, 30)


def test_json_in_a_tar_gives_captions_and_style(tmp_path: Path) -> None:
    data = picture(tmp_path / "x.png")
    (tmp_path / "x.png").unlink()
    row = json.dumps({"caption": ["a", "b"], "style": "ink"}).encode()
    tar_of(tmp_path / "t.tar", {"deep/k.png": data, "deep/k.json": row, "other/k.png": data})
    records = FolderSource.open(tmp_path).records
    assert [(r.id, r.captions, r.style) for r in records] == [
        ("t.tar/deep/k.png", ("a", "b"), "ink"),
        ("t.tar/other/k.png", (), None),
    ]


def test_duplicates_can_be_dropped_and_their_captions_kept(tmp_path: Path) -> None:
    for name, caption in (("a", "one"), ("b", "two"), ("c", "one")):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    assert len(FolderSource.open(tmp_path)) == 3
    kept = FolderSource.open(tmp_path, drop_duplicates=True)
    assert [(r.id, r.captions) for r in kept.records] == [("a.png", ("one", "two"))]


def test_links_to_files_are_followed_only_on_request(tmp_path: Path) -> None:
    store, farm = tmp_path / "store", tmp_path / "farm"
    picture(store / "real.png")
    farm.mkdir()
    (farm / "link.png").symlink_to(store / "real.png")
    (farm / "folder").symlink_to(store)
    result = scan(farm)
    assert (len(result.records), [p.path for p in result.problems]) == (0, ["folder", "link.png"])
    source = FolderSource.open(farm, follow_links=True)
    assert [r.id for r in source.records] == ["link.png"]
    assert [p.path for p in source.problems] == ["folder"]
    assert source.picture(source.records[0]).size == (20, 12)


def test_the_content_hash_sees_pictures_captions_and_names(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    hashes = [FolderSource.open(tmp_path).content_hash()]
    (tmp_path / "a.txt").write_text("new caption")
    hashes.append(FolderSource.open(tmp_path).content_hash())
    picture(tmp_path / "a.png", (1, 2, 3))
    hashes.append(FolderSource.open(tmp_path).content_hash())
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    hashes.append(FolderSource.open(tmp_path).content_hash())
    assert len(set(hashes)) == 4
    assert FolderSource.open(tmp_path).content_hash() == hashes[-1]


def test_progress_and_cancelling(tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / f"{i}.png", (i, i, i))
    seen: list[tuple[int, int, str]] = []
    scan(tmp_path, progress=lambda *step: seen.append(step), workers=3)
    assert seen == [(i, 40, "check") for i in range(1, 41)]
    with pytest.raises(CancelledError):
        scan(tmp_path, cancelled=lambda: len(seen) >= 50, progress=lambda *step: seen.append(step))
    assert len(seen) < 60


def test_a_cache_saves_decoding_and_never_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(tmp_path / "set" / "good.jpg", size=(200, 120), exif=exif)
    (tmp_path / "set" / "bad.jpg").write_bytes(data[:-90])  # the header is whole, the pixels are not
    cache = ArrayCache(tmp_path / "cache")
    first = scan(tmp_path / "set", cache=cache)
    decoded = []
    real = open_image

    def counting(data: bytes, max_pixels: int) -> Image.Image:
        decoded.append(len(data))
        return real(data, max_pixels)

    monkeypatch.setattr(folder_module, "open_image", counting)
    again = scan(tmp_path / "set", cache=cache)
    assert again == first == scan(tmp_path / "set")
    assert [(r.id, r.width) for r in again.records] == [("good.jpg", 120)]
    assert len(decoded) == 1 + 2  # with the cache only the broken one, without it both
    assert scan(tmp_path / "set", cache=cache, max_pixels=100).records == ()


@pytest.mark.parametrize("refusing", ["7.png", "more.tar", "sub"])
def test_nothing_is_left_out_because_too_many_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    for number in range(9):
        data = picture(tmp_path / f"{number}.png")
    picture(tmp_path / "sub" / "a.png")
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        member = tarfile.TarInfo("b.png")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    assert len(scan(tmp_path).records) == 11

    def refused(plain: Any) -> Any:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            if str(path).endswith(refusing):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return plain(path, *rest, **more)

        return call

    for module, name in ((os, "open"), (os, "scandir"), (io, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, refused(getattr(module, name)))
    with pytest.raises(StorageError, match="no file can be opened now: Too many open files; close ") as found:
        scan(tmp_path)
    assert "请关闭其他程序" in str(in_chinese(str(found.value)))


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / f"{i}.png", (i, i, i))
        (tmp_path / f"bad{i}.png").write_bytes(b"x")
    assert scan(tmp_path, workers=1) == scan(tmp_path, workers=7)


@given(st.text(st.characters(codec=None), max_size=60))
def test_names_become_printable_and_stay_different(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable() or not shown
    shown.encode("utf-8")
    # Undone, an escape gives the name back, so no two names look the same.
    assert "".join(_undo(shown)) == name


def _undo(text: str) -> list[str]:
    out, i = [], 0
    while i < len(text):
        if text[i] != "\\":
            out.append(text[i])
            i += 1
        elif text[i + 1] == "\\":
            out.append("\\")
            i += 2
        elif text[i + 1] in "nrt":
            out.append({"n": "\n", "r": "\r", "t": "\t"}[text[i + 1]])
            i += 2
        else:
            digits = {"x": 2, "u": 4, "U": 8}[text[i + 1]]
            out.append(chr(int(text[i + 2 : i + 2 + digits], 16)))
            i += 2 + digits
    return out


@given(st.text(st.characters(codec=None), max_size=200))
def test_cleaned_captions_are_one_printable_line_and_stay_so(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\n" not in cleaned
    assert cleaned == cleaned.strip()
    assert clean(cleaned) == cleaned
    assert len(clean("word " * 5000)) <= 2000
