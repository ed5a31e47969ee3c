"""``vitrail models convert``: what it prints, what it writes, and what it refuses, in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.backends import configs
from vitrail.backends.configs import read_json, read_yaml
from vitrail.cli import main
from vitrail.errors import ArtifactError
from vitrail.store import artifacts

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
import taming_reference as reference

SHAPE: dict[str, Any] = {
    "ch": 32, "ch_mult": (1, 2), "blocks": 1, "attn": (), "z": 4, "embed": 4, "codes": 32,
}  # fmt: skip
CONFIG = """
model:
  base_learning_rate: 4.5e-6   # a comment, as people write them
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 4
    n_embed: 32
    ddconfig:
      double_z: False
      z_channels: 4
      resolution: 32
      in_channels: 3
      out_ch: 3
      ch: 32
      ch_mult: [1, 2]
      num_res_blocks: 1
      attn_resolutions: []
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.DummyLoss
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run folder as taming-transformers leaves it."""
    folder = tmp_path / "2020-11-09_vqgan"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "configs").mkdir()
    torch.save(
        {"state_dict": reference.random_vqgan(**SHAPE), "epoch": 1}, folder / "checkpoints" / "last.ckpt"
    )
    (folder / "configs" / "2020-11-09-project.yaml").write_text(CONFIG)
    (folder / "configs" / "2020-11-09-lightning.yaml").write_text("lightning: {trainer: {gpus: '0,'}}")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["models", "convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, out, err = run(capsys, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert err.count("\n") == 1
    assert err.strip().isprintable()
    return err


@pytest.mark.parametrize("way", ["folder", "file", "weights alone"])
def test_what_is_converted_is_said_and_is_there(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    file = checkpoint / "checkpoints" / "last.ckpt"
    given = {
        "folder": [checkpoint],
        "file": [file, "--config", checkpoint / "configs" / "2020-11-09-project.yaml"],
        "weights alone": [file],
    }[way]
    code, out, err = run(capsys, *given, "--to", tmp_path / "my model", "--lang", "en")
    assert (code, err) == (0, "")
    assert "is        VQModel, f2, 32 codes of 4 channels\n" in out
    assert ("read off" in out) == (way == "weights alone")
    artifact = artifacts.load(tmp_path / "my model", verify=True)
    assert (artifact.kind, artifact.name) == ("vq_autoencoder", "my-model")
    assert artifact.manifest.licence == "not stated by the file; ask whoever made it"
    card = (tmp_path / "my model" / "card.md").read_text()
    assert "Converted from `last.ckpt`: VQModel, f2, 32 codes of 4 channels." in card
    assert str(tmp_path) not in card
    weights = reference.random_vqgan(**SHAPE)
    assert all(torch.equal(artifact.tensors[name], value) for name, value in weights.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2020-11-09_vqgan", "my model"]


def test_a_plain_name_goes_into_the_models_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    assert run(capsys, checkpoint, "--to", "mine", "--licence", "MIT", "--lang", "zh")[0] == 0
    assert artifacts.available()["mine"] == tmp_path / "home" / "models" / "mine"
    assert artifacts.read_manifest(artifacts.find("mine")).licence == "MIT"
    before = artifacts.read_manifest(artifacts.find("mine")).created
    assert "exists already; add --overwrite" in refused(capsys, checkpoint, "--to", "mine")
    assert artifacts.read_manifest(artifacts.find("mine")).created == before
    assert run(capsys, checkpoint, "--to", "mine", "--overwrite")[0] == 0
    assert "is a model of vitrail's already" in refused(
        capsys, tmp_path / "home" / "models" / "mine", "--to", "other"
    )


@pytest.mark.parametrize(
    "name", ["modeling.py", "deep/inside/setup.PY", "lib.so", "run.sh", "__pycache__/a.pyc"]
)
def test_a_folder_with_code_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
    (checkpoint / name).write_text("")
    assert "could carry code" in refused(capsys, checkpoint, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments_are_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "the file to convert is missing" in refused(capsys)
    assert "add --to FOLDER" in refused(capsys, checkpoint)
    assert "cannot open" in refused(capsys, tmp_path / "nowhere.ckpt", "--to", out)
    assert "cannot open" in refused(capsys, checkpoint, "--config", tmp_path / "no.yaml", "--to", out)
    assert "holds 0 checkpoints" in refused(capsys, checkpoint / "configs", "--to", out)
    assert "licence" in refused(capsys, checkpoint, "--to", out, "--licence", "x" * 401)
    weights = reference.random_vqgan(**SHAPE)
    weights["decoder.conv_out.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.ckpt")
    assert "decoder.conv_out.bias holds NaN" in refused(capsys, tmp_path / "nan.ckpt", "--to", out)
    torch.save({"model.diffusion_model.x": torch.ones(1)}, tmp_path / "sd.ckpt")
    assert "whole diffusion model" in refused(capsys, tmp_path / "sd.ckpt", "--to", out)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.ckpt")
    assert "is not an autoencoder" in refused(capsys, tmp_path / "other.ckpt", "--to", out)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


HOSTILE_YAML = {
    "python object": "model: !!python/object/apply:os.system ['touch canary']",
    "python name": "model: !!python/name:os.system",
    "python module": "a: !!python/module:antigravity",
    "unknown tag": "a: !mine {b: 1}",
    "billion laughs": "a0: &a0 [x, x]\n"
    + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)),
    "an alias to itself": "a: &a [*a]",
    "a deep list": "a: " + "[" * 5000 + "]" * 5000,
    "deep tables": "\n".join("  " * depth + "a:" for depth in range(100)),
    "a list": "- 1\n- 2",
    "a word": "word",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2",
    "numbers as names": "1: 2",
    "a broken line": "a: [1, 2",
    "a tab": "a:\n\t- b",
    "control characters": "a: \x07",
    "not text": b"\xff\xfe\x00\x01",
    "large": "a: " + "x" * (300 << 10),
    "a date that is none": "a: 2020-99-99",
    "a number of digits": "a: " + "9" * 5000,
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_a_hostile_yaml_file_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = HOSTILE_YAML[name]
    (tmp_path / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArtifactError) as caught:
        read_yaml(tmp_path / "c.yaml")
    assert str(caught.value).isprintable()
    assert str(tmp_path / "c.yaml") in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_json_and_yaml_hold_tables(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert read_yaml(tmp_path / "c.yaml")["model"]["params"]["ddconfig"]["ch_mult"] == [1, 2]
    (tmp_path / "c.json").write_text(json.dumps({"a": 1}))
    assert read_json(tmp_path / "c.json") == {"a": 1}
    for text in ("[1]", "{", "[" * 100_000, '{"a": NaN' + "]"):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ArtifactError):
            read_json(tmp_path / "c.json")
    assert configs.MAX_BYTES < 1 << 20


def test_the_help_speaks_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    english = run(capsys, "--help", "--lang", "en")[1]
    chinese = run(capsys, "--help", "--lang", "zh")[1]
    for flag in ("--config FILE", "--to FOLDER", "--licence TEXT", "--overwrite"):
        assert flag in english
        assert flag in chinese
    assert "without running anything" in " ".join(english.split())
    assert "不会运行" in "".join(chinese.split())
