"""``vitrail train`` and ``vitrail data`` as a person runs them, on a handful of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.recipe import load_recipe

RECIPE = """
kind = "text_to_image"
name = "tiny"
[data]
source = "pictures"
size = 16
batch_size = 4
[model]
image_size = 16
patch = 2
shell_width = 8
shell_blocks = 1
width = 24
depth = 1
heads = 2
word_width = 4
styles = 0
[optim]
until_images = 8
warmup_images = 4
precision = "float32"
[run]
sample_every_images = 8
sample_prompts = ["a red square"]
tensorboard = "off"
"""


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of eight captioned pictures in the current folder, with one broken file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        shade = (255 - 25 * i, 25 * i, 60)
        picture = Image.new("RGB", (24, 24), "white")
        picture.paste(shade, (2 + i, 4, 14 + i, 20))
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"square number {i}")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return folder


def test_dry_run_prints_the_whole_recipe_with_its_changes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = main(["train", "recipe.toml", "--set", "optim.lr=2e-4", "--set", "model.depth=2", "--dry-run"])
    out = capsys.readouterr().out
    assert code == 0
    (tmp_path / "printed.toml").write_text(out)
    printed = load_recipe(tmp_path / "printed.toml")
    assert printed == load_recipe("recipe.toml", ["optim.lr=2e-4", "model.depth=2"])
    assert not (tmp_path / "runs").exists()


def test_data_replaces_the_recipes_pictures_whatever_their_folder_is_called(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "2024").mkdir()
    assert main(["train", "recipe.toml", "--data", "2024", "--dry-run"]) == 0
    assert 'source = "2024"' in capsys.readouterr().out


def test_ones_own_pictures_get_a_recipe_and_its_reasons(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "--data", "pictures", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    (tmp_path / "printed.toml").write_text(out)
    assert Path(load_recipe(tmp_path / "printed.toml").data.source).resolve() == tmp_path / "pictures"
    assert "8 pictures can be used, 1 files cannot" in err


def test_train_makes_a_model_that_generate_uses_and_resumes_as_finished(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", "recipe.toml", "--run", "r", "--device", "cpu", "-q"]) == 0
    model = capsys.readouterr().out.strip()
    assert model == "r/model"
    assert (tmp_path / "r" / "samples" / "images-000000000008.png").is_file()

    assert main(["generate", "square", "--model", model, "--precision", "float32", "--steps", "2"]) == 0
    assert capsys.readouterr().out.startswith("out/0001-square-seed")

    assert main(["train", "recipe.toml", "--run", "r", "--device", "cpu", "-q"]) == 0


def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe.toml", "--set", "optim.rate=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "optim.rate" in err


def test_inspect_counts_and_writes_its_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "inspect", "pictures"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("8 pictures can be used")
    assert (tmp_path / "out" / "inspect-pictures" / "report.html").is_file()
    assert main(["data", "inspect", "pictures", "--lang", "zh", "--report", "zh"]) == 0
    chinese = capsys.readouterr().out
    assert "8" in chinese.splitlines()[0]
    assert not chinese.splitlines()[0].isascii()
    assert main(["data", "inspect", "pictures", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] == 8
    assert [Path(problem["path"]).name for problem in report["problems"]] == ["broken.png"]


def test_inspect_of_a_folder_without_pictures_says_so_with_its_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["data", "inspect", "empty"]) == 1
    assert capsys.readouterr().err == ""
