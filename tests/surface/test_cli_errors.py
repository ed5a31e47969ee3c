"""Whatever is typed: one line on standard error, an exit code, no traceback."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitrail.cli import main
from vitrail.errors import CheckpointError, NonFiniteError, VitrailError


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the command line and return its exit code and its one line."""
    code = main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitrail: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.strip().isprintable()
    assert "Traceback" not in err
    return code, err.removeprefix("vitrail: ").rstrip("\n")


GENERATE = [
    (["x", "--steps", "0"], "steps 0 is out of range; allowed 1 to 200"),
    (["x", "--steps", "1e3"], "steps '1e3' is not a whole number"),
    (["x", "--steps", "-5"], "steps -5 is out of range"),
    (["x", "--steps", "1" + "0" * 5000], "is not a whole number; allowed 1 to 200"),
    (["x", "--cfg-scale", "nan"], "cfg_scale nan is not a finite number"),
    (["x", "--cfg-scale", "inf"], "cfg_scale"),
    (["x", "--cfg-scale", "ten"], "cfg_scale 'ten' is not a finite number"),
    (["x", "--guidance-interval", "0.9,0.1"], "guidance_interval"),
    (["x", "--guidance-interval", "half"], "guidance_interval"),
    (["x", "--width", "1000000000"], "width 1000000000 is out of range"),
    (["x", "--n", "0"], "n 0 is out of range; allowed 1 to 64"),
    (["x", "--n", "1000000"], "n 1000000 is out of range"),
    (["x", "--seed", "-1"], "seed -1 is out of range"),
    (["x", "--seed", "3.5"], "seed '3.5' is not a whole number"),
    ([""], "prompt is empty"),
    (["   "], "prompt is empty"),
    ([], "the prompt is missing"),
    (["x" * 2001], "prompt is too long"),
    (["a\x00b"], "U+0000"),
    (["a\ud800b"], "prompt"),
    (["x", "--sampler", "eulr"], "did you mean euler?"),
    (["x", "--sampler", "nonsense"], "sampler 'nonsense' is unknown; allowed are euler, "),
    (["x", "--schedule", "karas"], "did you mean karras?"),
    (["x", "--format", "gif"], "format 'gif' is unknown; allowed are png, jpeg, webp"),
    (["x", "-o", "a.png", "--format", "webp"], "leave one of them out"),
    (["x", "--preview-every", "0"], "preview-every 0 is out of range; allowed 1 to 200"),
    (["x", "--preview-every", "x"], "preview-every 'x' is not a whole number"),
    (["x", "--precision", "float16"], "precision 'float16' is unknown"),
    (["x", "--device", "tpu"], "device 'tpu' is unknown"),
    (["x", "--stepz", "3"], "option --stepz is unknown; did you mean --steps?"),
    (["a", "cat"], "'cat' is one word too many; put words that belong together in quotes"),
    (["x", "--steps"], "'--steps'"),
    (["x", "--model", "nowhere"], "no model nowhere"),
    (["--from-record", "missing.png"], "cannot open missing.png"),
    (["x", "--lang", "fr"], "--lang 'fr' is unknown; use en or zh"),
]


@pytest.mark.parametrize(("arguments", "words"), GENERATE, ids=lambda value: str(value)[:40])
def test_bad_input_to_generate_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = refused(capsys, "generate", *arguments)
    assert words in line
    assert len(line) < 300
    assert code == (1 if "nowhere" in arguments else 2)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["generat"], "command 'generat' is unknown; did you mean generate?", 2),
        (["xyz"], "use one of generate, ", 2),
        (["--verson"], "option '--verson' is unknown", 2),
        (["train"], "nothing to train", 2),
        (["train", "missing.toml"], "missing.toml", 2),
        (["train", "--data", "missing"], "the folder missing does not exist", 2),
        (["data", "bild"], "did you mean build?", 2),
        (["data", "build", "cats"], "use one of emoji, ", 2),
        (["data", "build", "emoji", "--size", "100"], "64, 128 or 256", 2),
        (["data", "build", "emoji", "-o", "full"], "full", 2),
        (["data", "inspect"], "the folder is missing", 2),
        (["data", "inspect", "missing"], "missing does not exist", 2),
        (["data", "inspect", ".", "--size", "9"], "size 9 is out of range; allowed 16 to 2048", 2),
        (["models", "shw"], "did you mean show?", 2),
        (["models", "show", "nowhere"], "no model nowhere", 1),
        (["doctor", "--now"], "option --now is unknown", 2),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_to_the_other_commands_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("not ours")
    got, line = refused(capsys, *arguments)
    assert words in line
    assert got == code


def test_a_size_that_the_model_has_not_lists_those_it_has(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    code, line = refused(
        capsys, "generate", "x", "--model", str(tiny_model), "-o", str(tmp_path), "--width", "100"
    )
    assert line == "size 100x16 is not possible; model tiny makes 16x16, 32x32, 64x64"
    assert code == 2


def test_a_style_that_the_model_has_not_names_the_nearest(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    model = ["--model", str(tiny_model), "-o", str(tmp_path)]
    code, line = refused(capsys, "generate", "x", *model, "--style", "twemojy")
    assert line == "style 'twemojy' is unknown; did you mean twemoji? allowed are noto, twemoji, fluent-3d"
    assert code == 2


def test_a_damaged_model_is_one_line(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    with (damaged / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    code, line = refused(capsys, "generate", "x", "--model", str(damaged), "-o", str(tmp_path))
    assert "it is damaged" in line
    assert code == 1


def test_a_folder_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, line = refused(capsys, "generate", "x", "-o", str(tmp_path / "file" / "out"))
    assert "a part of that path is a file" in line
    assert code == 1

    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write anywhere; the check itself is what is asked here
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and real(path, mode))
    code, line = refused(capsys, "generate", "x", "-o", str(locked))
    assert f"the folder {locked} is read-only" in line
    assert code == 1


def test_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    model = ["--model", str(tiny_model), "--precision", "float32"]
    code, line = refused(capsys, "generate", "x", *model, "-o", str(tmp_path / "o"))
    assert line.startswith("no room left for ")
    assert code == 1
    assert os.listdir(tmp_path / "o") == []


def test_a_picture_without_a_record_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("not a picture")
    code, line = refused(capsys, "generate", "--from-record", str(tmp_path / "plain.png"))
    assert "holds no record of vitrail's" in line
    assert code == 2
    code, line = refused(capsys, "generate", "--from-record", str(tmp_path / "text.png"))
    assert "is not a picture" in line
    assert code == 1


@pytest.mark.parametrize("error", [CheckpointError("in\nuse"), NonFiniteError("a \x1b[31mNaN")])
def test_every_error_of_ours_is_one_printable_line_with_its_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: VitrailError
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("vitrail.commands.doctor.run", fail)
    code, _ = refused(capsys, "doctor")
    assert code == error.exit_code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "/disk"), 1, "Input/output error (/disk)"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_the_systems_errors_are_one_line_too(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("vitrail.commands.doctor.run", fail)
    got, line = refused(capsys, "doctor")
    assert (got, words in line) == (code, True)


WORDS = st.one_of(
    st.text(max_size=12).filter(lambda word: "\0" not in word),
    st.sampled_from(["--n", "--steps", "--lang", "-o", "--format", "--", "-", "--quiet", "=", "--n=", "-x"]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=5))
def test_no_command_line_gives_a_traceback(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    # A model that is not there: whatever is well-formed ends at it, and nothing is written.
    code = main(["generate", *words, "--model=nowhere", "--output=/proc/nowhere"])
    _, err = capsys.readouterr()
    assert code in (0, 1, 2)
    assert (code == 0) == (err == "")
    assert err.count("\n") <= 1
