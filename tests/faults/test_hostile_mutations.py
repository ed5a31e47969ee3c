"""Row E1 of the bar: mutated files of every format that is read give a result or one line, soon.

10,000 of each format. The controls read the same mutations with the plain
libraries, which raise whatever they like: take a reader's defences out, and its test is red.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files as hostile
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image, PngImagePlugin

from vitrail.backends import checkpoints
from vitrail.backends.configs import read_json, read_yaml
from vitrail.backends.unpacking import Limits, extract
from vitrail.errors import ArtifactError, VitrailError
from vitrail.images import open_image
from vitrail.provenance.dialects import recognise
from vitrail.provenance.metadata import read as read_metadata
from vitrail.recipe.files import load_recipe
from vitrail.schema import ImageRecord, SamplingDefaults, TextToImageRequest
from vitrail.store import artifacts
from vitrail.store.weights import read_weights, unpack

SECONDS = 1.0
FEW, MANY = 300, 10_000

Reader = Callable[[bytes], object]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to four changes: a byte or a length set, a piece cut out or doubled, the end missing."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        reach = 64 if random.random() < 0.4 else len(changed)  # heads decide more than bodies
        place = int(random.integers(0, max(1, min(reach, len(changed)))))
        match int(random.integers(0, 7)):
            case 0 | 1:
                changed[place : place + 1] = bytes([int(random.integers(0, 256))])
            case 2:
                lengths = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
                changed[place : place + 4] = lengths[int(random.integers(0, 4))]
            case 3:
                del changed[place : place + int(random.integers(1, 40))]
            case 4:
                changed[place:place] = changed[place : place + int(random.integers(1, 40))]
            case 5:
                changed[place:place] = b"[" * int(random.integers(1, 600))
            case _:
                del changed[place:]
    return bytes(changed)


def picture(format: str) -> bytes:
    """A small picture with metadata; the GIF moves."""
    pixels = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image, target = Image.fromarray(pixels), io.BytesIO()
    text = "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 32x24"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", text)
        chunks.add_itxt("prompt", json.dumps({"1": {"class_type": "KSampler", "inputs": {}}}), zip=True)
        image.save(target, format, pnginfo=chunks)
    elif format == "GIF":
        image.save(target, format, save_all=True, append_images=[image.rotate(90)])
    else:
        image.save(target, format, exif=exif)
    return target.getvalue()


def look_at(data: bytes) -> object:
    """Everything that happens to a picture that somebody gives."""
    with contextlib.suppress(VitrailError):
        read_metadata(data)
    return open_image(data)


def torch_file(data: bytes) -> object:
    place = Path(os.environ["VITRAIL_TEST_FOLDER"])
    (place / "file").write_bytes(data)
    with open(place / "file", "rb") as source, open(place / "out", "wb") as output:
        return extract(source, output.fileno(), 1 << 20)


def stream_file() -> bytes:
    target = io.BytesIO()
    weights = {"state_dict": {"a.weight": torch.arange(12.0).reshape(3, 4)}, "epoch": 3}
    torch.save(weights, target, _use_new_zipfile_serialization=False)
    return target.getvalue()


def tensors() -> bytes:
    weights = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.int8)}
    return safetensors.torch.save(weights, {"modelspec.title": "x"})


def weights_of(data: bytes) -> object:
    return unpack(read_weights(Path("evil.safetensors"), data))


def by_file(read: Callable[[Path], object], name: str) -> Reader:
    def of(data: bytes) -> object:
        path = Path(os.environ["VITRAIL_TEST_FOLDER"]) / name
        path.write_bytes(data)
        return read(path)

    return of


def record() -> bytes:
    request = TextToImageRequest(prompt="a cat, 一只猫", seed=5)
    made = ImageRecord(
        request=request.resolve(SamplingDefaults(width=64, height=64)),
        index=0,
        seed=5,
        model_name="m",
        model_sha256="0" * 64,
        created="2026-01-01T00:00:00Z",
    )
    return made.to_json().encode()


RECIPE = b"""kind = "token_prior"
name = "mine"
[model]
mode = "masked"
width = 64
heads = 4
[data]
size = 64
[optim]
until_images = 1000
"""
CONFIG = b"""model: &whole
  target: taming.models.vqgan.VQModel
  params: {embed_dim: 8, n_embed: 96, ddconfig: {ch: 32, ch_mult: [1, 1, 2], attn_resolutions: [8]}}
other: [*whole, {<<: *whole}, 1.5, null, true]
"""
JSON = b'{"_class_name": "VQModel", "a": [1, 2.5, null, {"b": "c"}]}'
MANIFEST = "artifact.json"


def manifest() -> bytes:
    place = Path(os.environ["VITRAIL_TEST_FOLDER"]) / "model"
    if not place.is_dir():
        from vitrail.models.registry import build
        from vitrail.recipe.autoencoders import classic_preset

        config = classic_preset(4)
        network = config.network.model_copy(update={"ch": 32, "ch_mult": (1,), "num_res_blocks": 1})
        config = config.model_copy(update={"network": network})
        weights = build("vq_autoencoder", config).state_dict()
        artifacts.save(
            place, kind="vq_autoencoder", name="m", config=config.model_dump(mode="json", exclude={"kind"}),
            tensors=weights, licence="MIT",
        )  # fmt: skip
    return (place / MANIFEST).read_bytes()


def opened_model(data: bytes) -> object:
    place = Path(os.environ["VITRAIL_TEST_FOLDER"]) / "model"
    (place / MANIFEST).write_bytes(data)
    return artifacts.load(place, verify=False)


FORMATS: dict[str, tuple[Callable[[], bytes], Reader, float]] = {
    # a sound file, its reader, and the share of mutations that it must at least refuse
    "png": (lambda: picture("PNG"), look_at, 0.5),
    "jpeg": (lambda: picture("JPEG"), look_at, 0.1),
    "webp": (lambda: picture("WEBP"), look_at, 0.2),
    "gif": (lambda: picture("GIF"), look_at, 0.2),
    "safetensors": (tensors, weights_of, 0.5),
    "torch zip": (hostile.good, torch_file, 0.4),
    "torch stream": (stream_file, torch_file, 0.4),
    "recipe": (lambda: RECIPE, by_file(load_recipe, "recipe.toml"), 0.5),
    "yaml": (lambda: CONFIG, by_file(read_yaml, "config.yaml"), 0.3),
    "json": (
        lambda: b'{"_class_name": "VQModel", "a": [1, 2.5, null, {"b": "c"}]}',
        by_file(read_json, "c.json"),
        0.5,
    ),
    "record": (record, ImageRecord.from_json, 0.4),
    "manifest": (manifest, opened_model, 0.4),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAIL_TEST_FOLDER", str(tmp_path))
    return tmp_path


def storm(name: str, count: int) -> None:
    make, read, least = FORMATS[name]
    sound = make()
    read(sound)
    random = np.random.default_rng(7)
    refused = 0
    for number in range(count):
        data = mutated(sound, random)
        started = time.process_time()
        try:
            read(data)
        except VitrailError as error:
            refused += 1
            line = str(error)
            assert line.isprintable(), (number, line)
            assert len(line) < 500, (number, line)
        assert time.process_time() - started < SECONDS, number
    assert refused >= least * count, f"{refused} of {count} refused"


@pytest.mark.parametrize("name", list(FORMATS))
def test_10000_mutated_files_are_a_result_or_one_line(name: str) -> None:
    storm(name, MANY)


def test_any_text_of_metadata_is_read_in_no_time() -> None:
    sound = json.dumps(
        {"1": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["2", 0]}}}
    ).encode()
    random = np.random.default_rng(7)
    for _ in range(FEW):
        text = mutated(sound, random).decode("utf-8", "replace")
        for key in ("parameters", "prompt", "workflow", "invokeai_metadata"):
            recognise({key: text})


PLAIN: dict[str, Reader] = {
    "png": lambda data: Image.open(io.BytesIO(data)).load(),
    "safetensors": safetensors.torch.load,
    "recipe": lambda data: tomllib.loads(data.decode()),
    "yaml": lambda data: yaml.safe_load(data),
    "json": json.loads,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(PLAIN))
def test_without_the_defences_the_same_files_raise_whatever_they_like(name: str) -> None:
    sound, random = FORMATS[name][0](), np.random.default_rng(7)
    raised = 0
    for _ in range(100):
        try:
            PLAIN[name](mutated(sound, random))
        except Exception as error:
            raised += not isinstance(error, VitrailError) or not str(error).isprintable()
    assert raised > 10


# -- E5: a file that is cut off while it is mapped -----------------------------------------------------------


def large_file(path: Path) -> Path:
    torch.save({f"w{n}": torch.zeros(1 << 20) for n in range(8)}, path)
    return path


def test_a_checkpoint_cut_off_while_it_is_read_kills_the_reading_child_alone(tmp_path: Path) -> None:
    """The child writes into a pipe here, so it stands still in the middle of its work meanwhile."""
    path = large_file(tmp_path / "m.ckpt")
    out, into = os.pipe()
    size = path.stat().st_size

    def cut() -> None:
        os.read(out, 1 << 16)
        os.truncate(path, 4096)
        while os.read(out, 1 << 20):
            pass

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        with open(path, "rb") as file, open(into, "wb", buffering=0) as output:
            limits = Limits(memory=1 << 30, seconds=60, output=2 * size)
            with pytest.raises(ArtifactError, match="was cut off while it was read; get it again"):
                checkpoints._run_child(file, output, limits)
    finally:
        thread.join()
        os.close(out)


def test_the_same_without_a_child_kills_whoever_reads(tmp_path: Path) -> None:
    """The control: in one process the signal is the end of it."""
    path = large_file(tmp_path / "m.ckpt")
    program = (
        "import mmap, os, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "os.truncate(sys.argv[1], 4096)\n"
        "print(sum(whole[1 << 20 : 2 << 20]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=False)
    assert done.returncode == -7


def test_weights_do_not_hang_on_their_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    weights: dict[str, Any] = {f"w{n}": torch.full((1 << 18,), float(n)) for n in range(4)}
    safetensors.torch.save_file(weights, path)
    found = read_weights(path)
    os.truncate(path, 100)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
