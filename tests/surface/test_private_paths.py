"""A picture that is passed on says which model made it, and never where that model lay."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.provenance import metadata
from vitrail.schema import ImageRecord, SamplingDefaults, TextToImageRequest, parse
from vitrail.store import artifacts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "vitrail-home"))
    return tmp_path


def make(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Path, str]:
    code = main(["generate", "--precision", "float32", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return Path(out.splitlines()[0]), err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_no_byte_of_the_file_names_the_folder(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, kind: str
) -> None:
    secret = here / "secret-client" / "model"
    shutil.copytree(tiny_model, secret)
    path, _ = make(capsys, "a cat", "--seed", "1", "--model", str(secret), "--format", kind)
    data = path.read_bytes()
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        assert "secret-client".encode(encoding) not in data
        assert str(here).encode(encoding) not in data
    info = metadata.read(path)
    assert "secret-client" not in json.dumps(info.texts)  # what is packed inside
    record = info.record
    assert record is not None
    assert (record.request.model, record.model_name) == ("tiny", "tiny")
    assert record.model_sha256 == artifacts.read_manifest(tiny_model).files["model.safetensors"].sha256


def test_a_folder_without_a_slash_is_a_path_too(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, here / "client")
    path, _ = make(capsys, "a cat", "--seed", "1", "--model", "client")
    record = metadata.read(path).record
    assert record is not None
    assert record.request.model == "tiny"


def test_from_record_finds_an_installed_model_by_its_weights(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, make_model: Any
) -> None:
    first, _ = make(capsys, "a dog", "--seed", "9", "--model", str(tiny_model))
    make_model(artifacts.home() / "another", seed=3)  # of the same name of its own, other weights
    shutil.copytree(tiny_model, artifacts.home() / "mine")
    again, said = make(capsys, "--from-record", str(first))
    assert np.array_equal(pixels(first), pixels(again))
    assert said == ""
    record = metadata.read(again).record
    assert record is not None
    assert record.request.model == "mine"  # an installed name says nothing private and finds it again
    third, _ = make(capsys, "--from-record", str(again))
    assert np.array_equal(pixels(first), pixels(third))


def test_from_record_takes_another_version_of_the_name_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, make_model: Any
) -> None:
    first, _ = make(capsys, "a dog", "--seed", "9", "--model", str(tiny_model))
    make_model(artifacts.home() / "newer", seed=3)
    _, said = make(capsys, "--from-record", str(first))
    assert said == "note: the model is another one than the record names; the picture differs\n"


def test_from_record_without_the_model_says_what_to_do(
    here: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = make(capsys, "a dog", "--seed", "9", "--model", str(tiny_model))
    assert main(["generate", "--from-record", str(first)]) == artifacts.ArtifactError.exit_code
    error = capsys.readouterr().err
    assert "made with model tiny (SHA-256 " in error
    assert "--model" in error
    assert error.count("\n") == 1
    again, _ = make(capsys, "--from-record", str(first), "--model", str(tiny_model))
    assert np.array_equal(pixels(first), pixels(again))


@pytest.mark.parametrize(
    "asked", ["/home/me/secret/model", "secret/model", "~/model", r"C:\secret", "./model"]
)
def test_no_task_can_forget_it(asked: str) -> None:
    """Whoever makes a record: a path in the request becomes the model's name, made or read from a file."""
    request = parse(TextToImageRequest, {"prompt": "a cat", "model": asked, "seed": 1})
    values = {
        "request": request.resolve(SamplingDefaults()),
        "seed": 1,
        "model_name": "tiny",
        "model_sha256": "ab" * 32,
        "created": datetime(2026, 1, 2, tzinfo=UTC),
    }
    made = parse(ImageRecord, values)
    assert made.request.model == "tiny"
    old = made.to_json().replace('"model":"tiny"', f'"model":{json.dumps(asked)}')
    assert json.loads(old)["request"]["model"] == asked
    assert ImageRecord.from_json(old).request.model == "tiny"
