"""Model folders: what is saved comes back, and whatever was changed is found."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from vitrail.errors import ArtifactError, StorageError, VitrailError
from vitrail.files import sha256_of
from vitrail.schema import SamplingDefaults
from vitrail.store import artifacts
from vitrail.store.artifacts import Artifact, available, find, home, load, read_manifest, save
from vitrail.store.weights import SCALE, pack, read_weights, unpack


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 128))
    net[2].weight.data[5] *= 1000  # one loud row must not coarsen the others
    return net


def store(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "kind": "toy",
        "name": "toy-1",
        "config": {"width": 64, "scales": [1, 2], "text": None},
        "tensors": network().state_dict(),
        "licence": "Apache-2.0",
        "sampling": SamplingDefaults(steps=7),
        "data_manifest_sha256": "ab" * 32,
        "metrics": {"hit_seen": {"value": 0.5, "n": 100, "ci95": (0.4, 0.6)}},
        "extra_files": {"card.md": "# 猫\n", "recipe.toml": b"kind = 'toy'\n"},
    }
    save(folder, **(values | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return store(tmp_path / "model")


# -- round trips ---------------------------------------------------------------------------------------------


def test_everything_comes_back(folder: Path) -> None:
    artifact = load(folder)
    assert (artifact.kind, artifact.name) == ("toy", "toy-1")
    assert artifact.config == {"width": 64, "scales": [1, 2], "text": None}
    assert artifact.manifest.sampling == SamplingDefaults(steps=7)
    assert artifact.manifest.metrics["hit_seen"].ci95 == (0.4, 0.6)
    assert artifact.manifest.data_manifest_sha256 == "ab" * 32
    assert artifact.file("card.md").read_text(encoding="utf-8") == "# 猫\n"
    assert artifact.sha256 == sha256_of(folder / "model.safetensors")
    assert set(artifact.manifest.files) == {"card.md", "recipe.toml", "model.safetensors"}
    wanted = network().state_dict()
    assert artifact.tensors.keys() == wanted.keys()
    for name, value in artifact.tensors.items():
        assert torch.equal(value, wanted[name]), name
        assert value.dtype == wanted[name].dtype
    fresh = network(seed=1)
    artifact.fill(fresh)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), wanted.values(), strict=True))
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.parametrize(
    "storage", ["float16", "int8", lambda name, _: "int8" if name == "2.weight" else "float16"]
)
def test_smaller_storage_is_within_its_rounding(tmp_path: Path, storage: Any) -> None:
    """float16 has 11 significant bits; int8 errs by at most half a step of 1/127 of its row's peak."""
    back = load(store(tmp_path / "m", storage=storage)).tensors
    stored = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    for name, value in network().state_dict().items():
        assert back[name].dtype == (torch.int64 if name.endswith("tracked") else torch.float32)
        if stored[name].dtype == torch.int8:
            step = value.flatten(1).abs().amax(1) / 127
            error = (back[name] - value).flatten(1).abs().amax(1)
            assert bool((error <= step * 0.5001).all())
        else:
            assert torch.allclose(back[name], value, rtol=2**-11, atol=2**-24)
    assert (stored["2.weight"].dtype == torch.int8) == (storage != "float16")
    assert stored["2.bias"].dtype == torch.float16


def test_storage_keeps_what_would_overflow_and_all_zero_rows() -> None:
    loud, zero = torch.full((2, 3), 70_000.0), torch.zeros(64, 64)
    packed = pack({"loud": loud, "zero": zero}, "int8")
    assert packed["loud"].dtype == torch.float32
    back = unpack(packed)
    assert torch.equal(back["loud"], loud)
    assert torch.equal(back["zero"], zero)
    assert torch.equal(unpack(pack({"x": loud[:0]}, "float16"))["x"], loud[:0])
    shared = torch.ones(4, 4)
    assert set(pack({"a": shared, "b": shared.T})) == {"a", "b"}


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    digests = {load(store(tmp_path / name)).sha256 for name in "ab"}
    assert len(digests) == 1


def test_tied_and_sliced_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base, "b": base, "c": base[:, 1:3]}
    back = load(store(tmp_path / "m", tensors=tensors)).tensors
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_save_refuses_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    before = read_manifest(folder)
    with pytest.raises(StorageError, match="exists already"):
        store(folder)
    broken = network().state_dict() | {"2.bias": torch.tensor([float("nan")])}
    for changes, words in (
        ({"tensors": broken}, "NaN or infinite"),
        ({"kind": "../x"}, "kind"),
        ({"metrics": {"x": {"value": float("nan"), "n": 1}}}, "not a finite number"),
        ({"config": {"x": float("inf")}}, "finite"),
        ({"extra_files": {"x.py": b""}}, "cannot hold a file x.py"),
        ({"extra_files": {"../x.md": b""}}, "cannot hold a file"),
        ({"tensors": {"x" + SCALE: torch.ones(1)}}, "the format's own"),
    ):
        with pytest.raises(ArtifactError, match=words) as caught:
            store(folder, overwrite=True, **changes)
        assert "\n" not in str(caught.value)
    assert load(folder).manifest == before
    assert os.listdir(tmp_path) == ["model"]
    store(folder, overwrite=True, name="second")
    assert load(folder).name == "second"


# -- what was changed is found -------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "artifact.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


def flip(name: str, position: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[position] ^= 1
        (folder / name).write_bytes(data)

    return apply


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip("model.safetensors", -1), "differs from its SHA-256"),
        (flip("model.safetensors", 100), "differs from its SHA-256"),
        (flip("card.md", 0), "card.md differs from its SHA-256"),
        (truncate("model.safetensors", 1000), "has 1000 bytes instead of"),
        (truncate("artifact.json", 50), "not valid"),
        (truncate("artifact.json", 0), "not valid"),
        (lambda f: (f / "card.md").unlink(), "card.md is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "is missing"),
        (lambda f: (f / "artifact.json").unlink(), "is not a model folder"),
        (lambda f: shutil.rmtree(f), "there is no folder"),
        (lambda f: (f / "artifact.json").write_bytes(b"[" * 100_000), "not valid"),
        (lambda f: os.truncate(f / "artifact.json", 2 << 20), "larger than"),
        (edit(lambda d: d.update(hook="x")), "hook is not a setting"),
        (edit(lambda d: d.update(format=2)), "format 2 is unknown"),
        (edit(lambda d: d.pop("licence")), "licence is missing"),
        (edit(lambda d: d["files"].pop("model.safetensors")), "lists no model.safetensors"),
        (edit(lambda d: d["files"].update({"../x": {"size": 1, "sha256": "0" * 64}})), "not a name"),
        (edit(lambda d: d["files"].update({"..": {"size": 1, "sha256": "0" * 64}})), "not a name"),
        (
            edit(lambda d: d["files"].update({"x.py": {"size": 1, "sha256": "0" * 64}})),
            "cannot hold a file x.py",
        ),
        (edit(lambda d: d["files"]["card.md"].update(size=-1)), "out of range"),
        (edit(lambda d: d["metrics"]["hit_seen"].update(value="NaN")), "hit_seen"),
        (lambda f: (f / "modeling.py").write_text("print('hello')"), "could carry code"),
        (lambda f: ((f / "sub").mkdir(), (f / "sub" / "x.SO").write_text("")), "could carry code"),
        (lambda f: (f / "weights.ckpt").write_bytes(b""), "could run code when read"),
        (lambda f: [(f / f"{i}.txt").write_text("") for i in range(1100)], "more than 1000 files"),
    ],
)
def test_a_changed_folder_is_refused_in_one_line(folder: Path, damage: Any, words: str) -> None:
    load(folder)
    damage(folder)
    with pytest.raises(ArtifactError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_any_flipped_byte_is_found(folder: Path) -> None:
    """T5's rule for artifacts: no single flipped byte goes unnoticed, in weights, card or recipe."""
    random = np.random.default_rng(0)
    for _ in range(120):
        name = ("model.safetensors", "card.md", "recipe.toml")[random.integers(3)]
        position = int(random.integers((folder / name).stat().st_size))
        flip(name, position)(folder)
        with pytest.raises(ArtifactError):
            load(folder)
        flip(name, position)(folder)
    load(folder)


def test_large_files_are_hashed_only_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "HASHED_BY_DEFAULT", 1000)
    wanted = load(folder, verify=True).tensors
    assert all(torch.equal(value, wanted[name]) for name, value in load(folder).tensors.items())
    flip("model.safetensors", -1)(folder)
    load(folder)
    for reader in (load, read_manifest):
        with pytest.raises(ArtifactError, match="SHA-256"):
            reader(folder, verify=True)


# -- weights -------------------------------------------------------------------------------------------------


def hashed(folder: Path, data: bytes) -> None:
    """Put ``data`` in as weights whose hash is right: only the content can be refused."""
    (folder / "model.safetensors").write_bytes(data)
    entry = {"size": len(data), "sha256": sha256_of(folder / "model.safetensors")}
    edit(lambda d: d["files"].update({"model.safetensors": entry}))(folder)


def tensors_file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


HALF = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 95 << 20) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        tensors_file(b"not json"),
        tensors_file(b"[" * 100_000),
        tensors_file({"a": HALF}),
        tensors_file({"a": HALF, "b": HALF}, bytes(8)),
        tensors_file({"a": HALF | {"shape": [2**62, 8]}}, bytes(8)),
        tensors_file({"a": HALF | {"data_offsets": [8, 0]}}, bytes(8)),
        tensors_file({"a": HALF | {"dtype": "X99"}}, bytes(8)),
        tensors_file({"a": HALF}, struct.pack("<2f", float("nan"), 1)),
        tensors_file({"a" + SCALE: HALF}, bytes(8)),
        tensors_file(
            {
                "a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]},
                "a" + SCALE: {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
            },
            bytes(16),
        ),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_hostile_weights_are_one_line(
    folder: Path, data: bytes, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed(folder, data)
    if large:
        monkeypatch.setattr(artifacts, "HASHED_BY_DEFAULT", -1)
    with pytest.raises(ArtifactError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


_BOMB = """
import sys, time
from pathlib import Path
from vitrail.errors import ArtifactError
from vitrail.store.weights import read_weights
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before, start = peak(), time.process_time()
try:
    read_weights(Path(sys.argv[1]))
except ArtifactError as error:
    print(f"{time.process_time() - start:.4f}|{peak() - before}|{error}")
"""


def test_a_header_bomb_is_refused_on_its_first_eight_bytes(tmp_path: Path) -> None:
    """E2: a 95 MB header of real JSON, <= 100 ms and <= 20 MB extra."""
    path = tmp_path / "bomb.safetensors"
    entry = b'"%012d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    count = (95 << 20) // len(entry % 0)
    text = b"{" + b"".join(entry % i for i in range(count))[:-1] + b"}"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    done = subprocess.run([sys.executable, "-c", _BOMB, path], capture_output=True, text=True, check=True)
    seconds, kilobytes, message = done.stdout.strip().split("|")
    assert float(seconds) <= 0.1
    assert int(kilobytes) <= 20_000
    assert "claims a header of" in message


def test_flipped_bytes_in_weights_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    data = safetensors.torch.save({"a": torch.ones(8, 8), "b": torch.zeros(3, dtype=torch.int64)})
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for position in random.integers(0, 200, random.integers(1, 6)):
            broken[position] = random.integers(0, 256)
        start = time.process_time()
        try:
            unpack(read_weights(path, bytes(broken)))
        except VitrailError:
            refused += 1
        assert time.process_time() - start < 1.0
    assert refused > 100


# -- filling a network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("2.weight"), r"1 missing \(2.weight\)"),
        (lambda t: t.update({"3.weight": torch.ones(1)}), r"1 unexpected \(3.weight\)"),
        (
            lambda t: t.update({"2.bias": torch.ones(5)}),
            r"2.bias has shape \(5,\), its configuration asks for \(128,\)",
        ),
        (lambda t: t.clear(), r"9 missing"),
    ],
)
def test_a_network_is_filled_wholly_or_not_at_all(tmp_path: Path, change: Any, words: str) -> None:
    tensors = dict(network().state_dict())
    change(tensors)
    artifact = load(store(tmp_path / "m", tensors=tensors))
    fresh = network(seed=3)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(ArtifactError, match=words):
        artifact.fill(fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_fill_by_prefix(tmp_path: Path) -> None:
    parts = {"body.": network(1), "head.": network(2)}
    tensors = {p + name: v for p, net in parts.items() for name, v in net.state_dict().items()}
    artifact = load(store(tmp_path / "m", tensors=tensors))
    for prefix, wanted in parts.items():
        fresh = network(9)
        artifact.fill(fresh, prefix=prefix)
        assert torch.equal(fresh.state_dict()["2.weight"], wanted.state_dict()["2.weight"])


def test_a_file_that_is_not_listed_is_not_handed_out(folder: Path) -> None:
    artifact = load(folder)
    assert isinstance(artifact, Artifact)
    (folder / "note.txt").write_text("x")
    for name in ("note.txt", "../model", "artifact.json"):
        with pytest.raises(ArtifactError, match=r"it has card\.md, model\.safetensors, recipe\.toml"):
            artifact.file(name)


# -- finding -------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(artifacts, "_shipped", lambda: tmp_path / "shipped")
    store(tmp_path / "shipped" / "default")
    store(tmp_path / "shipped" / "another")
    store(tmp_path / "home" / "models" / "cats-64")
    (tmp_path / "home" / "models" / "not-a-model").mkdir()
    return tmp_path


def test_find_by_name_and_path(models: Path) -> None:
    assert find() == models / "shipped" / "default"
    assert find("cats-64") == models / "home" / "models" / "cats-64"
    assert find(models / "shipped" / "default") == models / "shipped" / "default"
    assert list(available()) == ["default", "another", "cats-64"]
    assert home() == models / "home" / "models"


@pytest.mark.parametrize(
    "name", ["cat-64", "", "x" * 5000, "a\0b", "~nobody/x", "../../etc/passwd", "a\nb", "猫"]
)
def test_an_unknown_name_lists_what_there_is(models: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="default, another, cats-64") as caught:
        find(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    if name == "cat-64":
        assert "did you mean cats-64?" in str(caught.value)


def test_home_without_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VITRAIL_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".local" / "share" / "vitrail" / "models"
    monkeypatch.setattr(artifacts, "_shipped", lambda: tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="no default model"):
        find()


def test_a_pipe_in_place_of_a_file_does_not_hang(folder: Path) -> None:
    (folder / "card.md").unlink()
    os.mkfifo(folder / "card.md")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime >= 0
    with pytest.raises(ArtifactError, match="is missing"):
        load(folder)
