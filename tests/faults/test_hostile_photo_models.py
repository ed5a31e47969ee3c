"""Strangers' networks for photographs: damaged, lying and oversized files end in one short line."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photo_networks import (
    field,
    ncnn_files,
    onnx_file,
    onnx_model,
    onnx_node,
    onnx_tensor,
    save_migan,
    save_rrdb,
    tiny_migan,
    tiny_rrdb,
    varint,
)

from vitrail.backends import migan, realesrgan
from vitrail.backends.migan import from_onnx
from vitrail.backends.onnx_weights import read_graph
from vitrail.backends.realesrgan import from_ncnn
from vitrail.errors import ArtifactError, DataError, VitrailError

PARAM, WEIGHTS = ncnn_files(tiny_rrdb(width=4, growth=2))
ONNX = onnx_file(tiny_migan(channels=(3, 2)))


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to four changes: bytes set, cut out, doubled; or the end missing."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(0, max(1, len(changed))))
        match int(random.integers(0, 5)):
            case 0 | 1:
                changed[place : place + 1] = bytes([int(random.integers(0, 256))])
            case 2:
                del changed[place : place + int(random.integers(1, 40))]
            case 3:
                changed[place:place] = changed[place : place + int(random.integers(1, 40))]
            case _:
                del changed[place:]
    return bytes(changed)


def soundly(read: Callable[[], object]) -> bool:
    """Whether ``read`` succeeds; anything but one short line of ours is a failure of the test."""
    start = time.process_time()
    try:
        read()
        return True
    except (DataError, ArtifactError) as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 400
        assert line.isprintable()
        return False
    finally:
        assert time.process_time() - start < 1.0


def storm(count: int) -> None:
    random = np.random.default_rng(7)
    refused = 0
    for _ in range(count):
        refused += not soundly(lambda: from_ncnn(mutated(PARAM, random), WEIGHTS))
        refused += not soundly(lambda: from_ncnn(PARAM, mutated(WEIGHTS, random)))
        refused += not soundly(lambda: from_onnx(mutated(ONNX, random)))
    # What still reads had only numbers changed, or names that nothing depends on.
    assert refused > 1.2 * count


def test_10000_mutations_of_each_file() -> None:
    storm(10_000)


def test_every_cut_is_seen() -> None:
    for end in range(0, len(WEIGHTS), 97):
        assert not soundly(lambda end=end: from_ncnn(PARAM, WEIGHTS[:end]))  # type: ignore[misc]
    for end in range(0, len(ONNX), 29):
        assert not soundly(lambda end=end: from_onnx(ONNX[:end]))  # type: ignore[misc]
    with pytest.raises(DataError, match=r"1 bytes too many; it does not belong to this network"):
        from_ncnn(PARAM, WEIGHTS + b"\0")


def line(kind: str, words: str, inputs: str = "1 1 a b") -> bytes:
    return f"7767517\n2 2\nInput i 0 1 a\n{kind} c {inputs} {words}\n".encode()


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (b"", "no text of ncnn"),
        (b"\xff\xfe", "no text of ncnn"),
        (b"7767516\n1 1\n", "not of ncnn's format"),
        (b"7767517\n-1 1\n", "claims too many layers"),
        (b"7767517\n99999999999999 1\n", "claims too many layers"),
        (b"7767517\n9000 1\nInput i 0 1 a\n", "claims 9000 layers and has 1"),
        (b"7767517\n" + b"9" * 5000 + b" 1\n", "no text of ncnn"),
        (b"x" * (1 << 21), "allowed are 1048576"),
        (line("Convolution", "0=1 1=3 4=1 5=1 6=999999999999"), "claims 1 outputs and 999999999999 weights"),
        (line("Convolution", "0=67000000 1=1 5=1 6=67000000"), "claims 67000000 outputs"),
        (line("Convolution", "0=3 1=3 4=1 5=1 6=10"), "they do not divide by its outputs"),
        (line("Convolution", "0=0 1=3 4=1 5=1 6=0"), "claims 0 outputs"),
        (line("Convolution", "0=1 1=3 3=2 4=1 5=1 6=9"), "no plain convolution"),
        (line("Convolution", "0=1 1=3 4=1 5=1 6=nan"), "layer c of the .param file cannot be read"),
        (line("Convolution", "0=1e999"), "layer c of the .param file cannot be read"),
        (line("Convolution", "-23310=9999999,1"), "layer c of the .param file cannot be read"),
        (line("Convolution", "0=1 1=3 4=1 5=1 6=4500000"), "ends within layer c"),
        (line("Convolution", "", "1 1 nowhere b"), "does not fit those before it"),
        (line("Convolution", "", "1 1 a a"), "does not fit those before it"),
        (line("Convolution", "", "-5 1 a b"), "layer c of the .param file cannot be read"),
        (line("Convolution", "", "999999 1 a b"), "layer c of the .param file cannot be read"),
        (line("Eval", ""), "layer c is a Eval; no network that is known here has one"),
        (line("Concat", "", "1 2 a b c"), "makes 2 values"),
        (line("Concat", ""), "100 bytes too many"),
    ],
)
def test_a_param_file_that_lies_is_told(param: bytes, message: str) -> None:
    with pytest.raises(VitrailError, match=message) as caught:
        from_ncnn(param, b"\0" * 100)
    assert len(str(caught.value)) < 300


def test_numbers_that_are_none_are_refused() -> None:
    nan = struct.pack("<f", float("nan"))
    with pytest.raises(DataError, match="holds NaN or infinite values"):
        from_ncnn(PARAM, WEIGHTS[:-4] + nan)
    with pytest.raises(DataError, match="is stored as 0xd4b38; known are float16 and float32"):
        from_ncnn(PARAM, struct.pack("<I", 0x000D4B38) + WEIGHTS[4:])


def tensor(*, shape: tuple[int, ...] = (1,), kind: int = 1, raw: bytes = b"", more: bytes = b"") -> bytes:
    dims = b"".join(field(1, side) for side in shape)
    return onnx_model([], [dims + field(2, kind) + field(8, "model.w") + field(9, raw) + more])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no graph"),
        (field(1, 8), "has no graph"),
        (field(7, b"") * 2, "has no graph"),
        (field(7, 5), "has no graph"),
        (b"\xff" * 100, "cannot be read"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "it is cut off"),
        (tensor(shape=(1 << 40,)), "a tensor of shape"),
        (tensor(shape=(1 << 30, 1 << 30)), "0 bytes for a tensor of shape"),
        (tensor(shape=(2,) * 9, raw=b"\0" * 2048), "a tensor of shape"),
        (tensor(shape=(3,), raw=b"\0" * 8), "8 bytes for a tensor of shape"),
        (tensor(kind=8, raw=b"rm"), "numbers of type 8"),
        (tensor(more=field(13, field(1, "location") + field(2, "/etc/passwd"))), "lie in another file"),
        (tensor(more=field(14, 1)), "lie in another file"),
        (onnx_model([], [onnx_tensor("a", np.zeros(1, np.float32))] * 2), "two weights have one name"),
        (onnx_model([field(4, "x" * 2000)], []), "a name is too long"),
        (onnx_model([field(4, b"\xff\xfe")], []), "cannot be read"),
        (onnx_model([field(4, 7)], []), "a number where a message is expected"),
        (onnx_model([b"\x0b"], []), "wire type 3"),
    ],
)
def test_an_onnx_file_that_lies_is_told(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_graph(data)
    assert len(str(caught.value)) < 300


def test_a_bomb_costs_neither_time_nor_memory() -> None:
    """Claims of sizes are compared with the bytes that are there before memory is taken."""
    bombs: list[Callable[[], object]] = [
        lambda: from_ncnn(line("Convolution", "0=1 1=3 4=1 5=1 6=67000000"), b""),
        lambda: from_ncnn(line("Convolution", "0=4096 1=3 4=1 5=1 6=66994176"), WEIGHTS),
        lambda: read_graph(tensor(shape=(1 << 30, 4))),
        lambda: read_graph(field(7, field(5, varint(9 << 3 | 2) + varint(1 << 40)))),
        lambda: read_graph(onnx_model([onnx_node("Add", ["a"], ["b"])] * 12_000, [])),
    ]
    for bomb in bombs:
        tracemalloc.start()
        start = time.process_time()
        try:
            with pytest.raises(DataError):
                bomb()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 60_000_000
        assert time.process_time() - start < 5


def test_noise_that_belongs_nowhere_is_left_out() -> None:
    """Nodes in a circle do not hang the search for the noise, and a graph without it is refused."""
    circle = [onnx_node("Add", ["b", "n"], ["a"]), onnx_node("Add", ["a", "n"], ["b"])]
    noise = onnx_tensor("n", np.zeros((4, 4), np.float32))
    head = onnx_tensor("model.synthesis.b4.torgb.weight", np.zeros((3, 2, 1, 1), np.float32))
    next_ = onnx_tensor("model.synthesis.b8.torgb.weight", np.zeros((3, 2, 1, 1), np.float32))
    with pytest.raises(ArtifactError, match="not those of a MI-GAN network"):
        from_onnx(onnx_model(circle, [noise, head, next_]))


@pytest.mark.parametrize("kind", ["rrdb", "migan"])
def test_a_folder_that_lies_about_its_shape_is_one_line(kind: str, tmp_path: Path) -> None:
    save, load = (save_rrdb, realesrgan.load) if kind == "rrdb" else (save_migan, migan.load)
    good, bad = ('"blocks": 1', '"blocks": 63') if kind == "rrdb" else ("8,\n      8", "8,\n      9")
    folder = save(tmp_path / "model")
    manifest = folder / "artifact.json"
    text = manifest.read_text()
    assert good in text
    manifest.write_text(text.replace(good, bad))
    with pytest.raises(ArtifactError, match=r"its tensors do not fit|has shape") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    manifest.write_text(text.replace(good, good.replace("1", "999").replace("8,", "9999,", 1)))
    with pytest.raises(ArtifactError, match="configuration does not fit"):
        load(folder)
