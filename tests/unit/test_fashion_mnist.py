"""IDX files, Debian packages and the Fashion-MNIST set, made small; hostile files are refused in one line."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitrail.data import fashion_mnist, packages
from vitrail.data.classes import ClassName, ClassSet, ClassStream
from vitrail.data.debian import is_deb, open_deb
from vitrail.data.fashion_mnist import build_fashion_mnist, fashion_set, load_fashion_mnist
from vitrail.data.idx import gunzip, read_idx
from vitrail.data.packages import Package, fetch, read_members
from vitrail.errors import DataError, InputError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return header + lengths + array.astype(array.dtype.newbyteorder(">")).tobytes()


# --- IDX -------------------------------------------------------------------------------------------


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]),
        arrays.array_shapes(min_dims=1, max_dims=4, max_side=4),
    )
)
def test_idx_is_what_numpy_wrote(array: np.ndarray) -> None:
    found = read_idx(idx(array))
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "two zero bytes"),
        (b"\x80\x04pickle", "two zero bytes"),
        (b"\0\0\x07\x01" + b"\0\0\0\x01a", "type code is 0x07"),
        (b"\0\0\x08\x00", "0 axes"),
        (b"\0\0\x08\xff" + b"\0" * 2000, "255 axes"),
        (GOOD[:10], "within its header"),
        (GOOD[:-1], "23 bytes of values, its header says 24"),
        (GOOD + b"x", "25 bytes of values, its header says 24"),
        (b"\0\0\x08\x02\0\0\0\0\0\0\0\x05", "0x5 values"),
        (b"\0\0\x0e\x08" + b"\xff" * 32, "4294967295x4294967295"),  # 2**259 bytes: nothing may overflow
    ],
)
def test_hostile_idx_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_idx(data, "train-images")
    assert str(caught.value).startswith("train-images")
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=64))
def test_random_bytes_are_an_array_or_a_data_error(data: bytes) -> None:
    with contextlib.suppress(DataError):
        assert read_idx(b"\0\0" + data).size > 0


def test_gunzip_is_bounded_and_whole() -> None:
    packed = gzip.compress(b"abc" * 1000)
    assert gunzip(packed) == b"abc" * 1000
    bomb = gzip.compress(b"\0" * 5_000_000)
    for data, what in (
        (bomb, "more than is sane"),
        (packed[:-9], "cut short"),
        (packed + b"more", "goes on after its end"),
        (b"not gzip", "not a whole gzip file"),
    ):
        with pytest.raises(DataError, match=what):
            gunzip(data, limit=100_000)


# --- Debian ----------------------------------------------------------------------------------------


def entry(name: str, data: bytes) -> bytes:
    return (
        f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}".encode()
        + b"`\n"
        + data
        + b"\n" * (len(data) % 2)
    )


def deb(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": buffer.getvalue()}
    return b"!<arch>\n" + b"".join(entry(name, data) for name, data in parts.items())


def test_a_deb_is_read_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb({"./usr/share/a": b"one", "./usr/share/b": b"two"}))
    assert is_deb(path)
    with open_deb(path) as tar:
        assert tar.getnames() == ["./usr/share/a", "./usr/share/b"]
    assert dict(read_members(path, lambda name: name.endswith("b"))) == {"./usr/share/b": b"two"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.deb"]


def test_hostile_debs_are_refused(tmp_path: Path) -> None:
    good = deb({"a": b"one"})
    huge = b"!<arch>\n" + entry("data.tar.xz", b"")[:48] + b"9999999999`\n"
    loop = b"!<arch>\n" + entry("x", b"") * 100
    for data, what in (
        (good[:200], "cut short|no data.tar"),
        (huge, "cut short"),
        (loop, "no data.tar"),
        (b"!<arch>\n" + entry("data.tar.xz", b"neither tar nor xz"), "not a readable archive"),
        (deb({"../../etc/passwd": b"x"}), "unsafe path"),
    ):
        path = tmp_path / "bad.deb"
        path.write_bytes(data)
        with pytest.raises(DataError, match=what):
            list(read_members(path, lambda name: True))


def debian(contents: bytes) -> Package:
    return Package("dataset-tiny", "0.1~git1-1", hashlib.sha256(contents).hexdigest(), "MIT", "us", "debian")


def client(folder: Path, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "apt-get"
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{script}\n")
    path.chmod(0o755)
    return folder


def test_apt_fetches_the_pinned_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "assert sys.argv[1:] == ['--quiet', 'download', 'dataset-tiny=0.1~git1-1'], sys.argv\n"
        "pathlib.Path('dataset-tiny_0.1~git1-1_all.deb').write_bytes(b'deb')"
    )
    monkeypatch.setenv("PATH", str(client(tmp_path / "bin", script)))
    found = fetch(debian(b"deb"), tmp_path / "cache")
    assert found.name == "dataset-tiny_0.1~git1-1_all.deb"
    assert found.read_bytes() == b"deb"
    with pytest.raises(DataError, match="came with SHA-256"):
        fetch(debian(b"another"), tmp_path / "cache2")


@pytest.mark.parametrize("apt", [True, False])
def test_where_apt_fails_the_pool_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: bool) -> None:
    script = "print('E: Unable to locate package', file=sys.stderr); sys.exit(100)"
    monkeypatch.setenv("PATH", str(client(tmp_path / "bin", script)) if apt else str(tmp_path))
    place = tmp_path / "pool" / "d" / "dataset-tiny"
    place.mkdir(parents=True)
    (place / "dataset-tiny_0.1~git1-1_all.deb").write_bytes(b"deb")
    monkeypatch.setattr(packages, "DEBIAN_POOL", (tmp_path / "pool").as_uri())
    assert fetch(debian(b"deb"), tmp_path / "cache").read_bytes() == b"deb"
    (place / "dataset-tiny_0.1~git1-1_all.deb").unlink()
    with pytest.raises(DataError, match=r"cannot fetch dataset-tiny=0\.1~git1-1"):
        fetch(debian(b"deb"), tmp_path / "cache2")


# --- the set ---------------------------------------------------------------------------------------

COUNTS = {"train": 40, "test": 20}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a few random pictures, in a cache, and the module made to expect it."""
    rng = np.random.default_rng(0)
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pictures = rng.integers(0, 256, (COUNTS[split], 28, 28), dtype=np.uint8)
        labels = (np.arange(COUNTS[split]) % 10).astype(np.uint8)
        files[f"./usr/share/d/{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(pictures))
        files[f"./usr/share/d/{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
    contents = deb({**files, "./usr/share/doc/README": b"hello"})
    package = debian(contents)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / package.filename).write_bytes(contents)
    monkeypatch.setattr(fashion_mnist, "FASHION_PACKAGE", package)
    monkeypatch.setattr(fashion_mnist, "_COUNTS", COUNTS)
    return tmp_path / "cache"


def test_the_set_is_built_and_padded(archive: Path, tmp_path: Path) -> None:
    folder = build_fashion_mnist(tmp_path / "set", archive)
    grey, labels = load_fashion_mnist("train", folder)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(grey, rng.integers(0, 256, (40, 28, 28), dtype=np.uint8))
    assert labels.dtype == np.int64
    pictures = fashion_set("train", 32, folder).pictures(np.array([3, 0]))
    assert pictures.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(pictures[0, 2:30, 2:30, 1], grey[3])
    assert pictures[:, :2].max() == pictures[:, 30:].max() == pictures[:, :, :2].max() == 0
    small = fashion_set("train", 16, folder).pictures(np.array([3]))
    wanted = pictures[0, :, :, 0].reshape(16, 2, 16, 2).mean((1, 3))
    assert np.abs(small[0, :, :, 0] - wanted).max() <= 0.5
    with pytest.raises(DataError, match="not of 64"):
        fashion_set("train", 64, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["licence"] == "MIT"
    assert "Zalando" in (folder / "ATTRIBUTION.md").read_text()
    assert build_fashion_mnist(folder, archive) == folder  # again: replaced


def test_a_set_that_is_missing_or_changed_is_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vitrail data build fashion-mnist"):
        load_fashion_mnist("train", tmp_path / "set")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="name another folder"):
        build_fashion_mnist(tmp_path / "other", archive)
    folder = build_fashion_mnist(tmp_path / "set", archive)
    data = bytearray((folder / "train_pictures.npy").read_bytes())
    data[-1] ^= 1
    (folder / "train_pictures.npy").write_bytes(data)
    with pytest.raises(DataError, match="missing or was changed"):
        load_fashion_mnist("train", folder)
    load_fashion_mnist("test", folder)


def test_names_are_ten_and_unlike() -> None:
    words = [w for name in fashion_mnist.FASHION_CLASSES for w in (name.en, name.zh, *name.also)]
    assert len(fashion_mnist.FASHION_CLASSES) == 10
    assert len({word.lower() for word in words}) == len(words)
    assert len(bytes.fromhex(fashion_mnist.FASHION_PACKAGE.sha256)) == 32


# --- the stream ------------------------------------------------------------------------------------


def small_set() -> ClassSet:
    data = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    data[:, :, 0] += 100  # left differs from right
    return ClassSet(lambda i: data[i], np.arange(10) % 3, (ClassName("a"), ClassName("b"), ClassName("c")))


def test_the_stream_is_a_function_of_pictures_seen() -> None:
    def first(seen: int, size: int = 4, **options: Any) -> Any:
        return next(ClassStream(small_set(), size, 7, **options)(seen))

    batch = first(0)
    assert batch.pixels.shape == (4, 3, 4, 4)
    assert torch.equal(batch.pixels, first(0).pixels)
    both = torch.cat([first(0).pixels, first(4).pixels])
    assert torch.equal(first(0, 8).pixels, both)
    running = ClassStream(small_set(), 4, 7)(0)
    assert torch.equal(torch.cat([next(running).pixels, next(running).pixels]), both)
    numbers = ((first(0, 10).pixels[:, 0, 0, 3] + 1) * 127.5).round().long()
    assert sorted(numbers.tolist()) == list(range(10))  # an epoch shows each once
    labels = first(0, 10).labels
    assert torch.equal(labels, numbers % 3)
    assert first(0, 10).captions == ["abc"[int(label)] for label in labels]
    flipped = first(0, 10, flip=1.0).pixels
    assert torch.equal(flipped, first(0, 10).pixels.flip(-1))
    assert bool((batch.styles == 0).all())
    with pytest.raises(InputError, match="flip 2"):
        ClassStream(small_set(), 4, 0, flip=2.0)
