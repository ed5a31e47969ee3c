"""``vitrail train`` with a staged recipe: autoencoder, the same with an adversary, one command, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.recipe import load_recipe
from vitrail.recipe.staged import load_staged, plan_stages
from vitrail.store import artifacts
from vitrail.training.runs import Outcome
from vitrail.training.staged import train_stages

ROOT = Path(__file__).parents[2]

FIRST = """
kind = "autoencoder"
name = "first"
[data]
source = "pictures"
size = 16
batch_size = 4
[model]
kind = "vq_autoencoder"
embed_dim = 4
[model.network]
architecture = "lean"
downsample = 4
patch = 4
widths = [16]
z_channels = 4
[model.quantizer]
kind = "fsq"
levels = [4, 4]
[objective]
perceptual = "none"
[optim]
until_images = 8
warmup_images = 4
precision = "float32"
[run]
tensorboard = "off"
log_every_seconds = 0
"""
SECOND = (
    FIRST.replace('"first"', '"second"')
    + """
[adversary]
start_images = 0
lead_images = 0
ramp_images = 4
guard_images = 4
[adversary.discriminator]
kind = "patch"
width = 8
layers = 2
"""
)
STAGED = """
kind = "staged"
name = "both"
[[stages]]
recipe = "parts/first.toml"
[[stages]]
recipe = "parts/second.toml"
name = "sharp"
set = ["run.warm_start={first}", "optim.until_images=12"]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "parts").mkdir()
    for i in range(8):
        picture = Image.new("RGB", (24, 24), "white")
        picture.paste((255 - 25 * i, 25 * i, 60), (2 + i, 4, 14 + i, 20))
        picture.save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "parts" / "first.toml").write_text(FIRST)
    (tmp_path / "parts" / "second.toml").write_text(SECOND)
    (tmp_path / "both.toml").write_text(STAGED)
    return tmp_path


def test_one_command_trains_all_stages_and_again_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "both.toml", "-q"]) == 0
    model = Path("runs/both/2-sharp/model")
    assert capsys.readouterr().out.strip() == str(model)
    assert artifacts.load(model).kind == "vq_autoencoder"
    assert artifacts.load("runs/both/1-first/model").kind == "vq_autoencoder"
    resolved = load_recipe("runs/both/2-sharp/recipe.toml")
    assert resolved.run.warm_start == "runs/both/1-first/model"
    assert resolved.optim.until_images == 12
    lines = Path("runs/both/2-sharp/metrics.jsonl").read_text().splitlines()
    assert any("loss/discriminator" in json.loads(line) for line in lines)
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.safetensors")}
    assert main(["train", "both.toml", "-q"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.safetensors")} == before


def test_dry_run_prints_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "both.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count('kind = "autoencoder"') == 2
    assert 'warm_start = "runs/both/1-first/model"' in out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{first}", "{frist}", "{frist} is no stage before it (first)"),
        ('name = "sharp"', 'name = "first"', "two stages are called first"),
        ("parts/second", "parts/none", "stage sharp: recipe 'parts/none.toml' cannot be read"),
        (
            "optim.until_images=12",
            "optim.lrr=1",
            "stage sharp: parts/second.toml: key 'optim.lrr' is unknown",
        ),
        ('kind = "staged"', 'kind = "staged"\nspeed = 3', "speed"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    Path("both.toml").write_text(STAGED.replace(old, new))
    assert main(["train", "both.toml", "-q"]) != 0
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not Path("runs").exists()


def test_set_is_refused_with_the_place_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "both.toml", "--set", "optim.lr=1e-3"]) != 0
    assert "write the change into its stage" in capsys.readouterr().err


def test_a_stage_that_was_stopped_ends_the_command() -> None:
    asked: list[str] = []

    def stop(recipe: object, folder: Path) -> Outcome:
        asked.append(folder.name)
        return Outcome("stopped", folder, 4, None, 143)

    outcome = train_stages(plan_stages("both.toml", "runs/both"), stop)
    assert (outcome.exit_code, asked) == (143, ["1-first"])


def test_the_shipped_staged_recipe_is_whole() -> None:
    path = ROOT / "recipes" / "staged" / "emoji-tokens.toml"
    stages = plan_stages(path, "runs/x")
    assert [recipe.kind for _, recipe in stages] == [
        "autoencoder",
        "autoencoder",
        "token_prior",
        "token_prior",
    ]
    assert len(load_staged(path).stages) == 4
    assert stages[1][1].model == stages[0][1].model  # what is warm started fits
    assert stages[3][1].model == stages[2][1].model


def test_the_recipe_of_the_shipped_model_begins_with_its_canvas() -> None:
    (_, canvas), (_, denoiser) = plan_stages(ROOT / "recipes" / "staged" / "default.toml", "runs/x")
    assert canvas.model == denoiser.model
    assert (canvas.objective.trains, denoiser.objective.trains) == ("canvas", "network")
