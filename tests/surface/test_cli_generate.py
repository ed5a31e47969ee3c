"""``vitrail generate`` as a person runs it, with a tiny real model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.cli import main
from vitrail.provenance import metadata


def generate(capsys: pytest.CaptureFixture[str], model: Path, *arguments: str) -> tuple[list[Path], str]:
    """Run it and return the paths it printed, and what it said beside them."""
    code = main(["generate", "--model", str(model), "--precision", "float32", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return [Path(line) for line in out.splitlines()], err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_picture_lands_in_out_with_its_path_on_stdout(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    paths, said = generate(capsys, tiny_model, "a cat sitting in a garden", "--seed", "42")
    assert paths == [Path("out/0001-cat-sitting-garden-seed42.png")]
    assert said == ""
    assert pixels(paths[0]).shape == (16, 16, 3)


def test_several_pictures_come_with_a_grid(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    paths, _ = generate(capsys, tiny_model, "a cat", "--n", "3", "--seed", "1", "-o", "here")
    assert [path.name for path in paths] == [
        "0001-cat-seed1.png",
        "0002-cat-seed2.png",
        "0003-cat-seed3.png",
        "0004-cat-grid.png",
    ]
    assert {path.parent for path in paths} == {Path("here")}
    assert pixels(paths[3]).shape[0] > 32  # two rows


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_format_holds_the_record_and_the_common_text(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, kind: str
) -> None:
    paths, _ = generate(capsys, tiny_model, "a red cat", "--seed", "3", "--format", kind)
    with Image.open(paths[0]) as picture:
        assert picture.format == kind.upper()
    info = metadata.read(paths[0])
    assert info.record is not None
    assert info.record.request.prompt == "a red cat"
    assert info.record.request.steps == 4
    assert info.record.versions.keys() == {"vitrail", "torch"}
    assert "Seed: 3" in info.texts["parameters"]


def test_from_record_gives_identical_pixels(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    settings = ["--n", "3", "--seed", "9", "--style", "noto", "--sampler", "Euler a", "--cfg-scale", "3"]
    paths, _ = generate(capsys, tiny_model, "a dog in a garden", *settings, "--width", "32", "--height", "32")
    for path in paths[:3]:
        again, _ = generate(capsys, tiny_model, "--from-record", str(path))
        assert np.array_equal(pixels(path), pixels(again[0]))
    # A record in a lossy file is as good: it makes the lossless picture.
    lossy, _ = generate(capsys, tiny_model, "--from-record", str(paths[0]), "-o", "lossy.jpg")
    again, _ = generate(capsys, tiny_model, "--from-record", str(lossy[0]))
    assert np.array_equal(pixels(paths[0]), pixels(again[0]))


def test_from_record_with_a_flag_changes_that_setting_alone(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    first, _ = generate(capsys, tiny_model, "a dog", "--seed", "9")
    other, _ = generate(capsys, tiny_model, "--from-record", str(first[0]), "--seed", "10")
    direct, _ = generate(capsys, tiny_model, "a dog", "--seed", "10")
    assert np.array_equal(pixels(other[0]), pixels(direct[0]))
    assert not np.array_equal(pixels(other[0]), pixels(first[0]))


def test_from_record_says_when_the_model_is_another_one(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, make_model: Any, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", seed=1)
    first, _ = generate(capsys, other, "a dog", "--seed", "9")
    _, said = generate(capsys, tiny_model, "--from-record", str(first[0]))
    assert said == "note: the model is another one than the record names; the picture differs\n"


def test_a_chinese_prompt_is_translated_and_the_translation_told(
    capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    paths, said = generate(capsys, tiny_model, "一只猫坐在花园里", "--seed", "1")
    assert said.splitlines()[0] == "understood as: a cat sitting in a garden"
    english, _ = generate(capsys, tiny_model, "a cat sitting in a garden", "--seed", "1")
    assert np.array_equal(pixels(paths[0]), pixels(english[0]))
    assert paths[0].name == "0001-cat-sitting-garden-seed1.png"
    _, said = generate(capsys, tiny_model, "夜景", "--lang", "zh")
    assert said.startswith("理解为：")


def test_quiet_prints_the_paths_alone(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    paths, said = generate(capsys, tiny_model, "一只猫", "-q")
    assert said == ""
    assert len(paths) == 1


def test_previews_are_written_on_demand(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    generate(capsys, tiny_model, "a cat", "--n", "2", "--preview-every", "2")
    names = sorted(os.listdir("out"))
    assert [name for name in names if name.startswith("preview")] == ["preview-1.png", "preview-2.png"]


def test_a_missing_seed_is_drawn_and_recorded(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    seeds = set()
    for _ in range(3):
        paths, _ = generate(capsys, tiny_model, "a cat")
        record = metadata.read(paths[0]).record
        assert record is not None
        seeds.add(record.seed)
    assert len(seeds) == 3


def test_ctrl_c_stops_with_one_line_and_130(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "vitrail", "generate", "a cat", "--model", str(tiny_model)]
    process = subprocess.Popen(
        [*command, "--n", "64", "--steps", "200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("out/0001-")  # it works on the second picture now
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == "vitrail: stopped\n"
    assert not [name for name in os.listdir("out") if name.endswith(".part")]


def test_a_start_imports_nothing_that_is_slow_and_not_needed(tiny_model: Path) -> None:
    slow = "torch._dynamo torch._inductor torchvision diffusers transformers matplotlib scipy rich"
    script = (
        "import sys; from vitrail.cli import main; "
        f"code = main(['generate', 'a cat', '-q', '--model', {str(tiny_model)!r}]); "
        f"found = set({slow!r}.split()) & set(sys.modules); sys.exit(str(found) if found else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error(tiny_model: Path) -> None:
    command = f"{sys.executable} -m vitrail generate 'a cat' --n 8 --model {tiny_model} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith("out/0001-")
    assert done.stderr == ""


def test_models_lists_and_shows(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tiny_model)
    (tmp_path / "models" / "bad").mkdir()
    (tmp_path / "models" / "bad" / "artifact.json").write_text("{")
    assert main(["models", "list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[1] for line in listed.splitlines() if line.startswith(("mine", "bad"))] == [
        "damaged:",
        "shell_dit",
    ]
    assert main(["models", "show", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "name      tiny\n" in shown
    assert "defaults  steps 4" in shown
    assert "styles    noto, twemoji, fluent-3d\n" in shown


def test_doctor_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("vitrail", "python", "torch", "device", "cores"):
        assert word in said


def test_the_bar_goes_to_the_terminal_and_the_paths_to_the_pipe(tiny_model: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vitrail", "generate", "一只猫", "--n", "2", "--model", str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while chunk := _read(ours):
            seen += chunk
        assert process.stdout is not None
        paths = process.stdout.read().decode().splitlines()
    os.close(ours)
    assert process.returncode == 0
    assert [Path(path).name[:5] for path in paths] == ["0001-", "0002-", "0003-"]
    assert all(Path(path).is_file() for path in paths)
    shown = seen.decode(errors="replace")
    assert "8/8" in shown
    assert "understood as: a cat" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux: the other side is closed
        return b""
