"""``vitrail repair``, ``upscale`` and ``models``: from files to files, and what goes wrong in one line."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_networks import save_migan, save_rrdb
from PIL import Image
from safetensors.torch import save

from vitrail.cli import main
from vitrail.provenance import metadata
from vitrail.store.catalogue import CATALOGUE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph, a mask, and the two models under their usual names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    save_migan(tmp_path / "home" / "models" / "migan")
    save_rrdb(tmp_path / "home" / "models" / "realesrgan-x4")
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save("photo.png")
    mask = np.zeros((24, 32), np.uint8)
    mask[8:12, 10:20] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--lang", "en"]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitrail: ")
    assert err.count("\n") == 1
    assert len(err) < 400
    return err.removeprefix("vitrail: ").strip()


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_repair_writes_a_picture_that_says_how(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = run(capsys, "repair", "photo.png", "--mask", "mask.png", "-o", "better.png")
    assert path == "better.png"
    outside = pixels("mask.png") == 0
    assert np.array_equal(pixels(path)[outside], pixels("photo.png")[outside])
    assert not np.array_equal(pixels(path), pixels("photo.png"))
    record = metadata.read(Path(path)).record
    assert record is not None
    assert (record.request.kind, record.model_name) == ("repair", "tiny-migan")
    (numbered,) = run(capsys, "repair", "photo.png", "--mask", "mask.png", "--grow", "2", "--quiet")
    assert numbered.endswith("0001-photo-repair-seed0.png")


def test_upscale_takes_several_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = run(
        capsys, "upscale", "photo.png", "mask.png", "--scale", "2", "--tile", "64", "-o", "large.webp"
    )
    assert paths == ["large-1.webp", "large-2.webp"]
    assert pixels(paths[0]).shape == (48, 64, 3)
    (path,) = run(capsys, "upscale", "photo.png", "--model", str(here / "home/models/realesrgan-x4"))
    assert pixels(path).shape == (96, 128, 3)
    record = metadata.read(Path(path)).record
    assert record is not None
    assert record.request.model == record.model_name == "tiny-rrdb"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repair"], "the picture is missing; write for instance: vitrail repair photo.png --mask mask.png"),
        (["repair", "photo.png"], "the mask is missing; write for instance: vitrail repair photo.png"),
        (["repair", "no.png", "--mask", "mask.png"], "cannot open no.png: No such file or directory"),
        (["repair", "photo.png", "--mask", "letter.txt"], "letter.txt is not a picture"),
        (["repair", "photo.png", "--mask", "cut.png"], "cut.png cannot be"),
        (["repair", "bomb.png", "--mask", "mask.png"], "bomb.png is 60000x60000 pixels"),
        (["repair", "photo.png", "--mask", "small.png"], "the mask has 5x5 pixels and the picture 32x24"),
        (["repair", "photo.png", "--mask", "black.png"], "the mask is all black"),
        (["repair", "photo.png", "--mask", "mask.png", "--grow", "999"], "grow 999 is out of range; allowed"),
        (["repair", "photo.png", "--mask", "mask.png", "--grow", "x"], "grow 'x' is not a whole number"),
        (["repair", "photo.png", "--mask", "mask.png", "--grow", "200"], "the mask leaves no pixel"),
        (["repair", "photo.png", "--mask", "mask.png", "--model", "default"], "of kind shell_dit; one"),
        (["upscale"], "the picture is missing; write for instance: vitrail upscale photo.png --scale 2"),
        (["upscale", "photo.png", "--scale", "3"], "scale 3 is unknown; allowed are 2, 4"),
        (["upscale", "photo.png", "--scale", "huge"], "scale 'huge' is unknown; allowed are 2, 4"),
        (["upscale", "photo.png", "--tile", "1"], "tile 1 is out of range; allowed 64 to 1024"),
        (["upscale", "letter.txt"], "letter.txt is not a picture"),
        (["upscale", "photo.png", "--model", "migan"], "of kind migan; one that enlarges photographs"),
        (["upscale", "photo.png", "--model", "realesrgan-x4-drawings"], "run: vitrail models pull real"),
        (["models", "pull"], "the model's name is missing; see vitrail models list --available"),
        (["models", "pull", "migan"], "model migan is here already"),
        (["models", "pull", "realesrgan-x5"], "did you mean realesrgan-x4"),
        (["models", "pull", "../../etc"], "../../etc is a path or an address; pull takes names"),
        (["models", "remove"], "the model's name is missing; see vitrail models list"),
        (["models", "remove", ".."], ".. is not the name of a model"),
        (["models", "remove", "default"], "came with vitrail and is not removed"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:60],
)  # fmt: skip
def test_an_error_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("letter.txt").write_text("Dear photograph")
    Image.new("L", (5, 5), 255).save("small.png")
    Image.new("L", (32, 24)).save("black.png")
    data = io.BytesIO()
    Image.new("L", (32, 24), 255).save(data, "PNG")
    Path("cut.png").write_bytes(data.getvalue()[:-30])
    bomb = bytearray(data.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    Path("bomb.png").write_bytes(bomb)
    assert message in complaint(capsys, *arguments)
    assert not list(Path("out").glob("*")) if Path("out").exists() else True


def test_models_are_listed_and_removed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = run(capsys, "models", "list", "--available", "--lang", "en")
    for name, entry in CATALOGUE.items():
        assert any(line.startswith(name) and entry.english in line for line in listed)
        assert any(entry.licence in line and str(entry.sources[0]) in line for line in listed)
    assert [line.split()[0] for line in listed if " here " in line] == ["realesrgan-x4", "migan"]
    chinese = run(capsys, "models", "list", "--available", "--lang", "zh")
    assert "照片放大两倍或四倍" in chinese[0]
    stray = here / "home" / "models" / "checkpoints" / "mine.safetensors"
    stray.parent.mkdir()
    stray.write_bytes(save({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.float16)}))
    listed = run(capsys, "models", "list")
    assert {"migan", "realesrgan-x4", "mine"} <= {line.split()[0] for line in listed}
    for name in ("mine", str(stray)):
        shown = run(capsys, "models", "show", name)
        assert "tensors   2 (1 F16, 1 F32)" in shown
        assert f"sha256    {hashlib.sha256(stray.read_bytes()).hexdigest()}" in shown
        assert f"place     {stray}" in shown
    stray.write_bytes(b"\xff" * 100)
    assert "claims a header of" in complaint(capsys, "models", "show", "mine").replace("\n", "")
    assert run(capsys, "models", "remove", "migan", "mine") == [
        str(here / "home" / "models" / "migan"),
        str(stray),
    ]
    assert not {"migan", "mine"} & {line.split()[0] for line in run(capsys, "models", "list")}
    shown = run(capsys, "models", "show", "realesrgan-x4")
    assert "licence   BSD-3-Clause" in shown
