"""Hostile .vtl and .npz files: one clear line, no crash, no hang, no memory beyond the file's worth (E1)."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from clock import quickest

from vitrail.cli import main
from vitrail.errors import DataError, InputError
from vitrail.store import vtl
from vitrail.store.vtl import CodesFile
from vitrail.tasks.compress import compress, read_codes
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader
from vitrail.tasks.tokenizers import load_tokenizer

SIZE = (52, 44)
GRID = (6, 7)
SECONDS, BYTES = 1.0, 48 << 20


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


@pytest.fixture(scope="module")
def files(loader: Loader, tiny_prior: Path) -> dict[str, bytes]:
    """A sound file of every kind, for the same model and codes."""
    name, context = str(tiny_prior), Context()
    tokenizer = load_tokenizer(loader, name)
    codes = np.random.default_rng(0).integers(0, 64, GRID)
    file = CodesFile(codes, *SIZE, tokenizer.sha256)
    from vitrail.store.code_models import write_context, write_static
    from vitrail.tasks.prior_coding import load_prior_coder

    coder = load_prior_coder(loader, name)
    assert coder is not None
    usage = tokenizer.usage()
    sha256 = tokenizer.sha256
    found = {
        "static": vtl.pack("static", *SIZE, codes, write_static(codes[None], usage), tokenizer_sha256=sha256),
        "context": vtl.pack(
            "context", *SIZE, codes, write_context(codes[None], usage), tokenizer_sha256=sha256
        ),
        "prior": vtl.pack(
            "prior",
            *SIZE,
            codes,
            coder.write(codes, context, 4),
            tokenizer_sha256=sha256,
            prior_sha256=coder.sha256,
        ),
        "npz": vtl.pack_npz(file),
    }
    for data in found.values():
        assert np.array_equal(read_codes(data, name, loader, context).codes, codes)
    return found


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat or insert: one to three of them, the header as often as the rest."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(min(len(changed), 40) if draw.random() < 0.5 else len(changed)) if changed else 0
        match draw.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << draw.randrange(8)]) if changed else b""
            case 1:
                changed[at : at + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\x80\x80\x80\x01"])
            case 2:
                del changed[draw.randrange(len(changed) + 1) :]
            case 3:
                changed[at:at] = changed[at : at + draw.randrange(1, 30)]
            case 4:
                changed[at:at] = draw.randbytes(draw.randrange(1, 9))
            case _:
                changed[at : at + 2] = struct.pack("<H", draw.randrange(1 << 16))
    return bytes(changed)


@pytest.mark.parametrize(("kind", "count"), [("static", 300), ("context", 300), ("prior", 60), ("npz", 300)])
def test_a_mutated_file_is_one_line_or_the_same_codes(
    loader: Loader, files: dict[str, bytes], tiny_prior: Path, kind: str, count: int
) -> None:
    draw, refused = random.Random(kind), 0
    lines: list[str] = []
    sound = read_codes(files[kind], str(tiny_prior), loader, Context()).codes
    tracemalloc.start()
    for _ in range(count):
        data = mutated(files[kind], draw)
        read: CodesFile | DataError | InputError | None = None

        def attempt(data: bytes = data) -> None:
            nonlocal read
            try:
                read = read_codes(data, str(tiny_prior), loader, Context(), "evil.vtl")
            except (DataError, InputError) as error:
                read = error

        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert quickest(attempt, SECONDS) < SECONDS
        assert tracemalloc.get_traced_memory()[1] - before < BYTES
        if isinstance(read, CodesFile):
            # A file that differs and is accepted: another member of the archive, or a change that is undone.
            assert read.codes.shape == sound.shape or kind == "npz"
            assert kind == "npz" or np.array_equal(read.codes, sound)
            assert kind == "npz" or (read.width, read.height) == SIZE
        else:
            refused += 1
            lines.append(str(read))
    tracemalloc.stop()
    assert refused > 0.7 * count
    assert all("\n" not in line and len(line) < 300 for line in lines)


def test_control_a_slow_read_is_seen() -> None:
    """What is slow every time stays slow; what was slow once does not count."""
    turns: list[float] = []

    def slow_at_first(seconds: tuple[float, ...]) -> None:
        turns.append(until := time.thread_time() + seconds[min(len(turns), len(seconds) - 1)])
        while time.thread_time() < until:
            pass

    assert quickest(lambda: slow_at_first((0.05,)), 0.02) >= 0.05
    assert len(turns) == 3
    turns.clear()
    assert quickest(lambda: slow_at_first((0.05, 0.0)), 0.02) < 0.02
    assert len(turns) == 2


@pytest.mark.parametrize("kind", ["static", "context"])
def test_every_flipped_bit_is_found(
    loader: Loader, files: dict[str, bytes], tiny_prior: Path, kind: str
) -> None:
    data, name = files[kind], str(tiny_prior)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            read_codes(bytes(changed), name, loader, Context())


def header(method: int, width: bytes, height: bytes, sha256: str, payload: bytes = b"") -> bytes:
    own = bytes.fromhex(sha256)[:8]
    return vtl.MAGIC + bytes([method]) + width + height + own + b"\0\0" + payload


@pytest.mark.parametrize("method", [1, 2])
def test_a_header_that_claims_the_largest_picture_costs_nothing(
    loader: Loader, tiny_prior: Path, method: int
) -> None:
    """40 Mpx claimed by a file of 30 bytes: 625,000 codes that are not there."""
    sha256 = load_tokenizer(loader, str(tiny_prior)).sha256
    big = vtl._number(6300)
    data = header(method, big, big, sha256, b"\1\2\3")

    def attempt() -> None:
        with pytest.raises(DataError, match=r"evil\.vtl: the coded picture"):
            read_codes(data, str(tiny_prior), loader, Context(), "evil.vtl")

    assert quickest(attempt, 0.5) < 0.5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither a .vtl nor an .npz"),
        (b"VTL", "of another .vtl format"),
        (b"VTL\x02\x01", "of another .vtl format than 1"),
        (b"VTL\x01", "coding method is unknown"),
        (b"VTL\x01\x09\x01\x01", "coding method is unknown"),
        (b"VTL\x01\x01\xff\xff\xff\xff\xff", "size cannot be read"),
        (b"VTL\x01\x01\x00\x10", "claims 0x16 pixels"),
        (b"VTL\x01\x01\xff\xff\x7f\xff\xff\x7f", "claims 2097151x2097151 pixels"),
        (b"VTL\x01\x01\x10\x10abc", "cut off in its header"),
        (b"\x89PNG\r\n\x1a\n", "neither a .vtl nor an .npz"),
        (b"PK\x03\x04nothing", "cannot be read as codes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_file_of_codes_is_told(loader: Loader, tiny_prior: Path, data: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_codes(data, str(tiny_prior), loader, Context(), "evil.vtl")
    assert words in str(caught.value)


def archive(**members: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return target.getvalue()


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    target = io.BytesIO()
    np.lib.format.write_array(target, array, version=(1, 0), allow_pickle=True)
    return target.getvalue()


def claiming(head: str) -> bytes:
    line = head.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line


SIDES, HASH = npy(np.array(SIZE, np.int32)), npy(np.zeros(32, np.uint8))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (npy(np.zeros(GRID)), "does not hold whole numbers"),
        (npy(np.array([[object()]], dtype=object)), "does not hold whole numbers"),
        (npy(np.full(GRID, -1)), "out of range"),
        (npy(np.full(GRID, 2**40)), "out of range"),
        (npy(np.full(GRID, 2**64 - 1, dtype=np.uint64)), "too large"),
        (npy(np.zeros(5, np.int32)), "arrays of other shapes"),
        (npy(np.zeros((0, 4), np.int32)), "arrays of other shapes"),
        (claiming("{'descr': '<i4', 'fortran_order': False, 'shape': (99999999, 99999999)}"), "impossible"),
        (claiming("{'descr': '<i4', 'fortran_order': False, 'shape': (4000, 4000)}"), "as many numbers"),
        (claiming("{'descr': '<i4', 'fortran_order': False, 'shape': (-1, 4)}"), "impossible"),
        (claiming("{'descr': '<i4', 'shape': 4}"), "damaged header"),
        (claiming("__import__('os').system('true')"), "damaged header"),
        (claiming("(" * 100), "damaged header"),
        (b"\x93NUMPY\x03\x00", "not an array"),
        (bytes(50), "not an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_with_hostile_codes_is_one_line(
    loader: Loader, tiny_prior: Path, codes: bytes, words: str
) -> None:
    data = archive(codes=codes, size=SIDES, tokenizer_sha256=HASH)
    with pytest.raises(DataError) as caught:
        read_codes(data, str(tiny_prior), loader, Context(), "evil.npz")
    assert words in str(caught.value)


def test_a_bomb_is_not_unpacked(loader: Loader, tiny_prior: Path) -> None:
    head = claiming("{'descr': '<i4', 'fortran_order': False, 'shape': (4, 4)}")
    bomb = archive(codes=head + bytes(140 << 20), size=SIDES, tokenizer_sha256=HASH)
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    with pytest.raises(DataError, match="too large"):
        read_codes(bomb, str(tiny_prior), loader, Context(), "evil.npz")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_codes_that_the_tokenizer_has_not_are_told(loader: Loader, tiny_prior: Path) -> None:
    sha256 = load_tokenizer(loader, str(tiny_prior)).sha256
    for codes, words in (
        (np.full(GRID, 64), "codes from 64 to 64 do not fit"),
        (np.zeros((3, 3), np.int64), "has 3x3 codes, which is not what a picture of 52x44 pixels has"),
        (np.zeros((*GRID, 2), np.int64), "which has 1 at a place"),
    ):
        data = vtl.pack_npz(CodesFile(codes, *SIZE, sha256))
        with pytest.raises(DataError, match=words):
            read_codes(data, str(tiny_prior), loader, Context(), "evil.npz")
        with pytest.raises(DataError, match=words):
            compress(CodesFile(codes, *SIZE, sha256), str(tiny_prior), loader, Context())


@pytest.mark.parametrize("content", [b"", b"VTL\x01\x01", b"PK\x03\x04", bytes(100)])
def test_the_command_line_says_it_in_one_line(
    capsys: pytest.CaptureFixture[str], tiny_prior: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "evil.vtl"
    path.write_bytes(content)
    for command in ("decode", "decompress"):
        code = main(
            [command, str(path), str(tmp_path / "out.png"), "--model", str(tiny_prior), "--lang", "en"]
        )
        out, err = capsys.readouterr()
        assert (code, out) == ((2 if not content else 1), "")
        assert err.startswith("vitrail: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
