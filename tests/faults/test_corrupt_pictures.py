"""Folders as strangers hand them in: every broken file is found before training, listed, and left out."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data import folder as folder_module
from vitrail.data.folder import FolderSource, scan
from vitrail.data.folder_stream import FolderStream
from vitrail.data.inspect import inspect
from vitrail.data.inspect_report import write_report
from vitrail.data.transforms import Augmentation
from vitrail.errors import DataError, InputError
from vitrail.images import read_header

Shown = tuple[torch.Tensor, list[str], torch.Tensor]


def drawing(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """A smooth random picture: compresses like a drawing and differs from every other seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A whole PNG of a few kilobytes that says it is ``width`` x ``height``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 22), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CORRUPT = {  # name -> (bytes, what the reason must say)
    "zero.png": (b"", "is empty"),
    "text.png": (b"this is not a picture, it only says so\n" * 20, "not a picture"),
    "truncated.jpg": (encoded(drawing(900, 200, 200), "JPEG")[:-900], "damaged or cut off"),
    "truncated.png": (encoded(drawing(901, 90, 90), "PNG")[:-700], "damaged or cut off"),
    "truncated.webp": (encoded(drawing(902, 90, 90), "WEBP")[:-60], "damaged"),
    "half_header.gif": (b"GIF89a\x10\x00", "bad header"),
    "bomb.png": (png_bomb(), "30000x30000"),
    "page.jpg": (b"<html><script>alert(1)</script></html>", "not a picture"),
    "program.gif": (b"\x7fELF" + bytes(200), "not a picture"),
    "flipped.png": (
        bytes(b ^ (0xFF if i == 60 else 0) for i, b in enumerate(encoded(drawing(903), "PNG"))),
        "damaged",
    ),
}


def thousand(folder: Path) -> list[str]:
    """990 good pictures and 10 corrupt ones, with captions for all; returns the corrupt names."""
    for i in range(990):
        kind, suffix = (("PNG", "png"), ("JPEG", "jpg"))[i % 2]
        shape = ((24, 24), (30, 18), (18, 30))[i % 3]
        (folder / f"p{i:04}.{suffix}").write_bytes(encoded(drawing(i, *shape), kind))
        (folder / f"p{i:04}.txt").write_text(f"drawing number {i}", encoding="utf-8")
    for name, (data, _) in CORRUPT.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("never to be seen", encoding="utf-8")
    return sorted(CORRUPT)


def batches(
    source: FolderSource, count: int, prefetch: int = 2
) -> list[tuple[torch.Tensor, list[str], torch.Tensor]]:
    stream = FolderStream(
        source,
        batch_size=16,
        seed=5,
        size=16,
        buckets=True,
        granularity=4,
        augmentation=Augmentation(flip=0.5, crop=0.1),
        prefetch=prefetch,
    )
    return [(b.pixels, b.captions, b.styles) for b in itertools.islice(stream(0), count)]


def equal(a: list[Shown], b: list[Shown]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(p, q) and c == d and torch.equal(s, t) for (p, c, s), (q, d, t) in zip(a, b, strict=True)
    )


@pytest.fixture(scope="module")
def set_with_corrupt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("thousand")
    return folder, thousand(folder)


def test_one_percent_corrupt_among_a_thousand_is_found_listed_and_left_out(
    set_with_corrupt: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, corrupt = set_with_corrupt
    source = FolderSource.open(folder)
    assert len(source) == 990
    assert [problem.path for problem in source.problems] == corrupt
    for problem in source.problems:
        assert problem.kind == "picture"
        assert CORRUPT[problem.path][1] in problem.reason, problem
        assert "\n" not in problem.reason
    clean = tmp_path / "clean"
    shutil.copytree(folder, clean)
    for name in corrupt:
        (clean / name).unlink()
    without = FolderSource.open(clean)
    assert without.problems == ()
    assert source.content_hash() == without.content_hash()
    assert equal(batches(source, 70), batches(without, 70, prefetch=0))  # 70 * 16 > 990: more than one pass


def test_negative_control_without_the_check_the_training_is_another_one(
    set_with_corrupt: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a check that looks at headers only, broken pictures get in and stop the stream."""
    folder, _ = set_with_corrupt
    good = FolderSource.open(folder)

    def header_only(data: bytes, max_pixels: int) -> Image.Image:
        header = read_header(data, max_pixels)
        return Image.new("RGB", (header.width, header.height))

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "open_image", header_only)
        careless = FolderSource.open(folder)
    assert len(careless) > len(good)
    with pytest.raises(DataError, match=r"truncated|flipped"):
        batches(careless, 70)
    assert not equal(batches(good, 20), batches(FolderSource(folder, good.records[1:], (), ()), 20))


# -- the zoo -------------------------------------------------------------------------------------------------


def zoo(root: Path) -> None:
    """Everything at once: names, links, pipes, sizes, archives, metadata."""
    for name, (data, _) in CORRUPT.items():
        (root / name).write_bytes(data)
    good = encoded(drawing(1, 40, 30), "PNG")
    for name in (
        "-rf.png",
        "--help.png",
        "new\nline.png",
        "tab\tand \x1b[31mred.png",
        "quote'\"<script>alert(1)<img src=x onerror=alert(1)>.png",
        "$(touch pwned).png",
        "猫坐在花园里.png",
        "🐈‍⬛.png",
        "right\u202eto left.png",
        "back\\slash.png",
        "%s%n{0}${folder}.png",
        "n" * 250 + ".png",
        "UPPER.PNG",
    ):
        (root / name).write_bytes(good)
    with open(os.fsencode(root) + b"/latin1-\xe9\xff.png", "wb") as file:
        file.write(good)
    (root / "wrong_ending.png").write_bytes(encoded(drawing(2, 30, 30), "JPEG"))
    Image.new("RGB", (60_000, 1), (200, 30, 30)).save(root / "line.png")
    Image.new("RGB", (1, 60_000), (200, 30, 30)).save(root / "column.png")
    Image.new("RGB", (1, 1)).save(root / "dot.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(root / "transparent.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160).save(root / "sixteen_bit.png")
    drawing(3).convert("CMYK").save(root / "cmyk.jpg")
    drawing(4).convert("P").save(root / "palette.gif", save_all=True, append_images=[drawing(5).convert("P")])
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing(6, 40, 20).save(root / "turned.jpg", exif=exif)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "._cat.png").write_bytes(b"AppleDouble")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "notes.docx").write_bytes(b"x")
    (root / "photo.heic").write_bytes(b"x")
    (root / "more.tar.gz").write_bytes(b"\x1f\x8b")
    (root / "orphan.txt").write_text("a caption without a picture")
    (root / "binary.txt").write_bytes(b"\xff\xd8\xff\xe0\x80")
    (root / "binary.png").write_bytes(encoded(drawing(7), "PNG"))
    (root / "a" / "b" / "c" / "d").mkdir(parents=True)
    (root / "__MACOSX").mkdir()
    (root / "folder.png").mkdir()
    (root / "loop").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "outside.png").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)  # the name of a socket is limited to 108 bytes
        try:
            listener.bind("socket.png")
        finally:
            os.chdir(here)
    lines = [
        b'\xef\xbb\xbf{"file_name": "UPPER.PNG", "text": "first"}',
        b'{"file_name": "UPPER.PNG", "text": "second"}',
        b'{"file_name": "missing.png", "text": "x"}',
        b'{"file_name": "../../etc/passwd", "text": "x"}',
        b'{"file_name": "/etc/passwd", "text": "x"}',
        b'{"file_name": "a/../../x.png", "text": "x"}',
        b'{"file_name": "a\\u0000.png"}',
        b'{"file_name": 7}',
        b'{"text": "no name"}',
        b"not json",
        b"[1, 2]",
        b"[" * 100_000,
        b'{"file_name": "-rf.png", "text": ' + b"9" * 5000 + b"}",
        b'{"file_name": "dot.png", "text": 12}',
        b'{"file_name": "line.png", "text": "\\ud800 lone \\u202e surrogate \\u0007", "style": ["x"]}',
        b'{"file_name": "cmyk.jpg", "text": "\\ud800 lone \\u202e surrogate \\u0007", "style": "print"}',
        b'{"file_name": "' + b"n" * 2_000_000 + b'"}',
        b"\xff\xfe\x00",
        b"",
        b'{"file_name": "turned.jpg", "text": ["one", "two", "one"]}',
    ]
    (root / "metadata.jsonl").write_bytes(b"\n".join(lines))


def deep(root: Path, levels: int) -> None:
    """Folders nested ``levels`` deep with a picture at the bottom; beyond any recursion limit."""
    handle = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    with open(os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=handle), "wb") as file:
        file.write(encoded(drawing(8), "PNG"))
    os.close(handle)


def test_a_zoo_of_hostile_files_is_reported_and_never_crashes(tmp_path: Path) -> None:
    root, out = tmp_path / "zoo", tmp_path / "out"
    root.mkdir()
    zoo(root)
    begun = time.monotonic()
    report = inspect(root, workers=2)
    assert time.monotonic() - begun < 10
    problems = {problem.path: problem for problem in report.problems}
    for name, (_, reason) in CORRUPT.items():
        assert reason in problems[name].reason
    for name in ("loop", "a/self", "dangling.png", "outside.png"):
        assert problems[name].kind == "link"
    for name in ("pipe.png", "socket.png"):
        assert "pipe, socket or device" in problems[name].reason
    assert problems["photo.heic"].kind == "unsupported"
    assert problems["more.tar.gz"].kind == "archive"
    assert problems["binary.txt"].kind == "caption"
    metadata = {name: p.reason for name, p in problems.items() if p.kind == "metadata"}
    said = {
        2: "second line",
        3: "not a picture in this folder",
        7: "not a file name",
        11: "not a JSON object",
    }
    said |= dict.fromkeys((4, 5, 6), "outside") | dict.fromkeys((8, 9), "no 'file_name'")
    said |= dict.fromkeys((10, 12, 13, 18), "not JSON")
    said |= {14: "must be a text", 15: "'style' must be a text", 17: "bytes; allowed are"}
    assert set(metadata) == {f"metadata.jsonl:{n}" for n in said}
    for number, text in said.items():
        assert text in metadata[f"metadata.jsonl:{number}"], number
    assert all(
        len(p.reason) < 400 and p.reason.isprintable() and p.path.isprintable() for p in report.problems
    )
    assert report.pictures == 14 + 10  # the odd names, and the odd pictures
    assert report.captions.orphans == ["orphan.txt"]
    assert "wrong_ending.png" in report.misnamed
    assert {"line.png", "column.png"} <= set(report.extreme)
    assert len(report.exact_duplicates) == 1
    assert len(report.exact_duplicates[0]) == 14
    write_report(report, out)
    json.loads((out / "report.json").read_text("utf-8"))
    page = (out / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    source = FolderSource.open(root)
    by_id = {record.id: record for record in source.records}
    assert by_id["UPPER.PNG"].captions == ("first", "second")
    assert by_id["turned.jpg"].captions == ("one", "two")
    assert (by_id["turned.jpg"].width, by_id["turned.jpg"].height) == (20, 40)
    assert by_id["cmyk.jpg"].caption == "? lone surrogate"
    assert source.styles == ("print",)
    stream = FolderStream(
        source, batch_size=8, size=16, buckets=True, augmentation=Augmentation(0.5, 0.1, 0.1)
    )
    for batch in itertools.islice(stream(0), 8):
        assert torch.isfinite(batch.pixels).all()


def test_nesting_beyond_the_recursion_limit(tmp_path: Path) -> None:
    deep(tmp_path, 1100)
    try:
        result = scan(tmp_path)
        assert len(result.records) + len(result.problems) == 1
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # shutil.rmtree is recursive


def test_unreadable_files_and_folders_are_listed(tmp_path: Path) -> None:
    drawing(0).save(tmp_path / "good.png")
    drawing(1).save(tmp_path / "locked.png")
    (tmp_path / "closed").mkdir()
    (tmp_path / "locked.png").chmod(0)
    if os.access(tmp_path / "locked.png", os.R_OK):
        pytest.skip("this user reads everything (root)")
    (tmp_path / "closed").chmod(0)
    try:
        source = FolderSource.open(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert [(p.path, "Permission denied" in p.reason) for p in source.problems] == [
        ("closed/", True),
        ("locked.png", True),
    ]


def test_unreadable_files_are_listed_whoever_runs_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing(0).save(tmp_path / "good.png")
    drawing(1).save(tmp_path / "locked.png")
    real = os.open

    def refusing(path: object, *rest: object, **named: object) -> int:
        if str(path).endswith("locked.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    source = FolderSource.open(tmp_path)
    assert [(p.path, p.reason) for p in source.problems] == [
        ("locked.png", "cannot be opened: Permission denied")
    ]
    assert len(source) == 1


def test_nothing_usable_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable picture in"):
        FolderSource.open(tmp_path)
    (tmp_path / "zero.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 files cannot be used, such as zero.png: is empty"):
        FolderSource.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        FolderSource.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file"):
        FolderSource.open(tmp_path / "zero.png")
    report = inspect(tmp_path)
    assert report.pictures == 0
    assert report.advice[0].level == "warn"
    assert {path.name for path in write_report(report, tmp_path / "out")} == {"report.json", "report.html"}


def test_a_picture_that_vanishes_or_changes_stops_the_stream_with_its_name(tmp_path: Path) -> None:
    for i in range(4):
        drawing(i).save(tmp_path / f"{i}.png")
    source = FolderSource.open(tmp_path)
    drawing(77).save(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"2\.png has changed since it was checked"):
        next(FolderStream(source, batch_size=4, size=16)(0))
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png cannot be opened: No such file"):
        next(FolderStream(source, batch_size=4, size=16, prefetch=0)(0))


def test_mutated_pictures_are_used_or_listed_never_raised(tmp_path: Path) -> None:
    rng = random.Random(0)
    seeds = [encoded(drawing(i, 33, 21), kind) for i, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF"))]
    for i in range(600):
        data = bytearray(seeds[i % 4])
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((40, 400, 10_000))))] = rng.randrange(256)
        cut = len(data) if rng.random() < 0.7 else rng.randrange(len(data))
        (tmp_path / f"{i:03}.png").write_bytes(bytes(data[:cut]))
    begun = time.monotonic()
    result = scan(tmp_path)
    assert time.monotonic() - begun < 15
    assert len(result.records) + len(result.problems) == 600
    assert len(result.problems) > 100
    for record in result.records:
        FolderSource(tmp_path, result.records, (), ()).picture(record)  # what passed the check decodes again


# -- tars ----------------------------------------------------------------------------------------------------


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def test_hostile_tars_read_nothing_outside_and_write_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    picture = encoded(drawing(0), "PNG")
    with tarfile.open(root / "hostile.tar", "w") as tar:
        add(tar, "good.png", picture)
        add(tar, "good.txt", "好图".encode())
        for name in (
            "../../escape.png",
            "/tmp/absolute.png",
            "a/../../b.png",
            "..\\..\\win.png",
            "C:\\x.png",
        ):
            add(tar, name, picture)
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="good.png")
        add(tar, "device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add(tar, "fifo.png", type=tarfile.FIFOTYPE)
        add(tar, "good.jpg", picture)
        add(tar, "broken.jpg", picture[:50])
        add(tar, "deep/er.and.dotted.png", picture)
        add(tar, "deep/er.json", b'{"caption": "from json", "style": "ink"}')
        add(tar, "bad.png", picture)
        add(tar, "bad.json", b'{"caption": 3}')
        add(tar, "._good.png", b"AppleDouble")
        add(tar, "model.pyd", b"MZ")
    huge = tarfile.TarInfo("huge.png")
    huge.size = 1 << 40
    (root / "huge.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    pax = tarfile.TarInfo("././@PaxHeader")
    pax.type, pax.size = tarfile.XHDTYPE, 1 << 34
    with open(root / "pax.tar", "wb") as file:
        file.write(pax.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 34)  # sparse: claims 16 GiB of header, takes no room
    chain = tarfile.TarInfo("././@LongLink")
    chain.type, chain.size = tarfile.GNUTYPE_LONGNAME, 512
    (root / "chain.tar").write_bytes((chain.tobuf(tarfile.GNU_FORMAT) + b"x" * 512) * 5000)
    back = bytearray(tarfile.TarInfo("back.png").tobuf(tarfile.GNU_FORMAT))
    back[124:136] = b"\xff" * 10 + b"\xfc\x00"  # a negative size, base 256
    back[148:156] = b"        "
    back[148:156] = b"%06o\0 " % sum(back)
    (root / "back.tar").write_bytes(bytes(back) + bytes(1024))
    (root / "noise.tar").write_bytes(random.Random(1).randbytes(4096))
    (root / "zero.tar").write_bytes(b"")
    with tarfile.open(root / "cut.tar", "w") as tar:
        add(tar, "one.png", picture)
        add(tar, "two.png", picture * 20)
    (root / "cut.tar").write_bytes((root / "cut.tar").read_bytes()[:3000])
    with tarfile.open(root / "rotten.tar", "w") as tar:
        add(tar, "one.png", picture)
    rotten = bytearray((root / "rotten.tar").read_bytes())
    rotten[-1024:] = random.Random(2).randbytes(1024)  # tarfile itself takes a bad header for the end
    (root / "rotten.tar").write_bytes(
        bytes(rotten[: 512 + 512 * -(-len(picture) // 512)]) + bytes(rotten[-1024:])
    )
    before = sorted(tmp_path.rglob("*"))
    begun = time.monotonic()
    source = FolderSource.open(root)
    assert time.monotonic() - begun < 5
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/absolute.png").exists()
    assert [record.id for record in source.records] == [
        "cut.tar/one.png",
        "hostile.tar/bad.png",
        "hostile.tar/deep/er.and.dotted.png",
        "hostile.tar/good.png",
        "rotten.tar/one.png",
    ]
    captions = {record.id: (record.caption, record.style) for record in source.records}
    assert captions["hostile.tar/good.png"] == ("好图", None)
    assert captions["hostile.tar/deep/er.and.dotted.png"] == ("from json", "ink")
    reasons = {problem.path: problem.reason for problem in source.problems}
    refused = {
        "hostile.tar/../../escape.png": "outside",
        "hostile.tar//tmp/absolute.png": "outside",
        "hostile.tar/a/../../b.png": "outside",
        "hostile.tar/..\\\\..\\\\win.png": "outside",
        "hostile.tar/C:\\\\x.png": "outside",
        "hostile.tar/link.png": "link",
        "hostile.tar/hard.png": "link",
        "hostile.tar/device.png": "device",
        "hostile.tar/fifo.png": "pipe",
        "hostile.tar/good.jpg": "second picture",
        "hostile.tar/broken.jpg": "damaged",
        "hostile.tar/bad.json": "must be a text",
        "huge.tar/huge.png": "more than the archive holds",
        "huge.tar": "damaged",
        "pax.tar": "damaged",
        "chain.tar": "damaged",
        "noise.tar": "damaged",
        "zero.tar": "damaged",
        "cut.tar/two.png": "more than the archive holds",
        "cut.tar": "damaged after 1",
        "rotten.tar": "damaged after 1",
    }
    for name, text in refused.items():
        assert text in reasons.pop(name), name
    assert all(name.startswith("back.tar") for name in reasons), reasons
    assert reasons
