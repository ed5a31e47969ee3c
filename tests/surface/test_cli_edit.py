"""edit, inpaint and vary with a diffusion model, grid, and a file of prompts, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_networks import save_rrdb
from PIL import Image

from vitrail.cli import main
from vitrail.provenance import metadata
from vitrail.schema import EditRequest, ResolvedTextToImage, describe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture of 32 pixels and a mask of it."""
    monkeypatch.chdir(tmp_path)
    small = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((32, 32)).save("cat.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    mask.save("mask.png")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    code = main([*map(str, arguments), "--lang", "en"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments), "--lang", "en"]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("vitrail: ").strip()


def array(path: str) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_edit(capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path) -> None:
    words = ["edit", "cat.png", "--prompt", "a red cat", "--strength", "0.6", "--seed", "4", "--steps", "5"]
    paths = told(capsys, *words, "--model", tiny_model, "--n", "2", "-o", "out")
    assert [Path(path).name for path in paths] == [
        "0001-red-cat-seed4.png",
        "0002-red-cat-seed5.png",
        "0003-red-cat-grid.png",
    ]
    info = metadata.read(paths[0])
    assert info.record is not None
    assert isinstance(info.record.request, EditRequest)
    assert info.record.request.strength == 0.6
    again = told(capsys, *words, "--model", tiny_model, "-o", "again.png")
    assert np.array_equal(array(again[0]), array(paths[0]))
    told(capsys, *words, "--model", tiny_model, "--preview-every", "2", "-o", "seen")
    assert (here / "seen" / "preview-1.png").is_file()
    masked = told(capsys, *words, "--model", tiny_model, "--mask", "mask.png", "-o", "masked.png")
    outside = array("mask.png")[..., 0] == 0
    # The tiny model draws 16 pixels; a mask keeps the picture's own size.
    assert np.array_equal(array(masked[0])[outside], array("cat.png")[outside])


def test_inpaint_takes_the_kind_of_the_model(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path
) -> None:
    words = ["inpaint", "cat.png", "--mask", "mask.png", "--prompt", "a dog", "--steps", "4", "--seed", "1"]
    paths = told(capsys, *words, "--model", tiny_model, "--sampler", "Euler a", "--only-masked")
    outside = array("mask.png")[..., 0] == 0
    assert np.array_equal(array(paths[0])[outside], array("cat.png")[outside])
    assert not np.array_equal(array(paths[0]), array("cat.png"))


def test_variations_of_a_picture_with_a_record(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path
) -> None:
    made = told(capsys, "generate", "a cat", "--seed", "3", "--model", tiny_model, "-o", "made.png")
    words = ["vary", "made.png", "--model", tiny_model, "--seed", "9"]
    none = told(capsys, *words, "--amount", "0", "-o", "none.png")
    assert np.array_equal(array(none[0]), array(made[0]))
    paths = told(capsys, *words, "--amount", "0.3", "--n", "2", "-o", "some.png")
    assert [Path(path).name for path in paths] == ["some-1.png", "some-2.png", "some-grid.png"]
    one, two = array(paths[0]), array(paths[1])
    assert not np.array_equal(one, two)
    record = metadata.read(paths[1]).record
    assert record is not None
    assert isinstance(record.request, ResolvedTextToImage)
    assert (record.seed, record.request.subseed, record.request.subseed_strength) == (3, 9, 0.3)
    again = told(capsys, "generate", "--from-record", paths[1], "--model", tiny_model, "-o", "again.png")
    assert np.array_equal(array(again[0]), two)
    whole = told(capsys, *words, "--amount", "1", "-o", "whole.png")
    other = told(capsys, "generate", "a cat", "--seed", "9", "--model", tiny_model, "-o", "other.png")
    assert np.array_equal(array(whole[0]), array(other[0]))


def test_variations_of_any_other_picture(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path
) -> None:
    paths = told(capsys, "vary", "cat.png", "--model", tiny_model, "--amount", "0.4", "--seed", "2")
    record = metadata.read(paths[0]).record
    assert record is not None
    assert isinstance(record.request, EditRequest)
    assert record.request.strength == 0.4


def test_a_grid_of_two_settings(capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path) -> None:
    words = ["grid", "a cat", "--x", "cfg_scale=1,3,5", "--y", "steps=2,4", "--seed", "7"]
    paths = told(capsys, *words, "--model", tiny_model)
    assert len(paths) == 7
    assert Path(paths[-1]).name == "0007-grid.png"
    records = [metadata.read(path).record for path in paths[:6]]
    settings = [(r.request.cfg_scale, r.request.steps, r.seed) for r in records if r is not None]  # type: ignore[union-attr]
    assert settings == [(cfg, steps, 7) for steps in (2, 4) for cfg in (1.0, 3.0, 5.0)]
    assert array(paths[-1]).shape[1] > 3 * 16
    sheet = told(capsys, *words, "--model", tiny_model, "-o", "sheet.png")
    assert sheet == ["sheet.png"]
    words = ["grid", "a red cat", "--x", "replace=red|a, b", "--model", str(tiny_model), "-q"]
    records = [metadata.read(path).record for path in told(capsys, *words, "-o", "r")[:-1]]
    assert [record.request.prompt for record in records if record] == ["a red cat", "a a, b cat"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a cat"], "the axes are missing"),
        (["--x", "steps=1,2"], "the prompt is missing"),
        (["a cat", "--x", "stepz=1"], "axis stepz is not a setting"),
        (["a cat", "--x", "steps"], "axis 'steps' cannot be read"),
        (["a cat", "--x", "steps=1,,2"], "has an empty value"),
        (["a cat", "--x", "steps=1,900"], "steps 900 is out of range"),
        (["a cat", "--x", "steps=1,2", "--y", "steps=3"], "x and y are both steps"),
        (["a cat", "--x", "replace=dog,cow"], "'dog' is not in the prompt"),
        (["a cat", "--x", "steps=1,2", "--n", "2"], "n is not for a grid"),
        (["a cat", "--x", f"seed={','.join(map(str, range(401)))}"], "a grid of 401 pictures is too large"),
    ],
)
def test_grids_that_cannot_be(
    capsys: pytest.CaptureFixture[str], here: Path, words: list[str], message: str
) -> None:
    assert message in refused(capsys, "grid", *words)


def test_a_grid_over_a_picture(capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path) -> None:
    words = ["grid", "a dog", "--picture", "cat.png", "--x", "strength=0.2,0.8", "--y", "cfg_scale=1,4"]
    paths = told(capsys, *words, "--steps", "3", "--seed", "1", "--model", tiny_model)
    records = [metadata.read(path).record for path in paths[:4]]
    requests = [record.request for record in records if record is not None]
    assert all(isinstance(request, EditRequest) for request in requests)
    settings = [(request.strength, request.cfg_scale) for request in requests]  # type: ignore[union-attr]
    assert settings == [(0.2, 1.0), (0.8, 1.0), (0.2, 4.0), (0.8, 4.0)]
    assert "hires_scale is for grids without --picture" in refused(capsys, *words, "--hires-scale", "2")
    assert "strength is for grids with --picture" in refused(
        capsys, "grid", "a dog", "--x", "steps=1,2", "--strength", "0.5"
    )


def test_a_file_of_prompts(capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path) -> None:
    lines = ["# pets", "a cat", "", json.dumps({"prompt": "a dog", "seed": 5, "steps": 2})]
    Path("prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    words = ["generate", "--prompts-file", "prompts.txt", "--seed", "1", "--model", tiny_model]
    paths = told(capsys, *words)
    assert [Path(path).name for path in paths] == ["0001-cat-seed1.png", "0002-dog-seed5.png"]
    assert told(capsys, *words, "-o", "pet.png") == ["pet-1.png", "pet-2.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a cat\n{oops", "prompts.txt, line 2: it is not valid JSON"),
        (b'{"prompt": "a", "stpes": 2}', "line 1: stpes is not a setting; did you mean steps?"),
        (b"# nothing", "holds no prompt"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_files_of_prompts_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], here: Path, content: bytes, message: str
) -> None:
    Path("prompts.txt").write_bytes(content)
    assert message in refused(capsys, "generate", "--prompts-file", "prompts.txt")
    assert "No such file" in refused(capsys, "generate", "--prompts-file", "missing.txt")
    assert "leave out the prompt" in refused(capsys, "generate", "a cat", "--prompts-file", "prompts.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edit"], "the picture is missing; write for instance: vitrail edit cat.png"),
        (["edit", "missing.png"], "cannot open missing.png"),
        (["edit", "cat.png", "--strength", "2"], "strength 2.0 is out of range; allowed 0 to 1"),
        (["edit", "cat.png", "--fit", "cut"], "fit 'cut' is unknown; allowed are crop, pad, stretch"),
        (["edit", "cat.png", "--control", "canny"], "control 'canny' cannot be read"),
        (["edit", "cat.png", "--seamless", "z"], "seamless 'z' is unknown"),
        (["edit", "cat.png", "--precision", "half"], "precision 'half' is unknown"),
        (["edit", "cat.png", "--preview-every", "0"], "preview-every 0 is out of range"),
    ],
)
def test_edits_that_cannot_be(
    capsys: pytest.CaptureFixture[str], here: Path, words: list[str], message: str
) -> None:
    assert message in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora", "ink:0.8"], "lora is not for model tiny, which draws pixels; leave it out"),
        (["--control", "canny=cat.png:0.5"], "control is not for model tiny"),
        (["--vae", "other"], "vae is not for model tiny"),
        (["--embedding", "word"], "embedding is not for model tiny"),
        (["--clip-skip", "2"], "clip_skip is not for model tiny"),
        (["--width", "24", "--height", "24", "--tile"], None),
        (["--width", "40"], "size 40x16 is not possible; model tiny makes"),
        (["--panorama"], None),
        (["--seamless", "xy"], None),
        (["--hires-scale", "2", "--hires-strength", "0.4"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_flags_reach_the_model(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path, words: list[str], message: str | None
) -> None:
    command = ["generate", "a cat", "--seed", "1", "--model", str(tiny_model), *words]
    if message is not None:
        assert message in refused(capsys, *command)
        return
    path = told(capsys, *command)[0]
    plain = told(capsys, "generate", "a cat", "--seed", "1", "--model", tiny_model)[0]
    assert not np.array_equal(array(path), array(plain))
    again = told(capsys, "generate", "--from-record", path, "--model", tiny_model)[0]
    assert np.array_equal(array(again), array(path))


def test_a_model_may_enlarge_between_the_passes(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path
) -> None:
    save_rrdb(here / "rrdb")
    words = ["generate", "a cat", "--seed", "1", "--model", str(tiny_model), "--hires-scale", "2"]
    plain = told(capsys, *words)[0]
    other = told(capsys, *words, "--hires-upscaler", here / "rrdb")[0]
    assert array(other).shape == array(plain).shape == (32, 32, 3)
    assert not np.array_equal(array(plain), array(other))
    info = metadata.read(other)
    assert str(here) not in str(info.texts)
    assert "Hires upscaler: rrdb" in info.texts["parameters"]
    assert "no model nowhere" in refused(capsys, *words, "--hires-upscaler", "nowhere")


def test_the_surface_of_an_edit_is_frozen() -> None:
    """A change here changes every flag, HTTP body and form: make it on purpose."""
    assert [row.name for row in describe(EditRequest)] == [
        *("prompt", "negative_prompt", "style", "n", "seed", "steps", "cfg_scale"),
        *("cfg_rescale", "guidance_interval", "sampler", "schedule", "shift"),
        *("lora", "control", "vae", "embedding", "clip_skip", "fast"),
        *("tile", "seamless", "width", "height"),
        *("picture", "strength", "mask", "fit", "model"),
    ]


def test_other_programs_read_how_it_was_made(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path
) -> None:
    edited = told(capsys, "edit", "cat.png", "--prompt", "a dog", "--model", tiny_model, "--seed", "1")
    text = metadata.read(edited[0]).texts["parameters"]
    assert "Denoising strength: 0.6" in text
    assert "Sampler: Euler" in text
    assert "Source: cat.png" in text
    made = told(
        capsys,
        *("generate", "a cat", "--model", tiny_model, "--seed", "1", "--subseed", "4"),
        *("--subseed-strength", "0.2", "--hires-scale", "2", "--hires-steps", "3", "--seamless", "x"),
    )
    text = metadata.read(made[0]).texts["parameters"]
    for part in (
        *("Variation seed: 4", "Variation seed strength: 0.2", "Denoising strength: 0.5"),
        *("Hires upscale: 2", "Hires steps: 3", "Tiling: x"),
    ):
        assert part in text
    plain = told(capsys, "generate", "a cat", "--model", tiny_model, "--seed", "1")
    text = metadata.read(plain[0]).texts["parameters"]
    assert not any(word in text for word in ("Variation", "Denoising", "Hires", "Tiling", "Lora", "VAE"))


@pytest.mark.parametrize(
    "words",
    [
        ["grid", "a cat"],
        ["grid", "a cat", "--x", "stepz=1"],
        ["grid", "a cat", "--x", "steps=1,2", "--y", "steps=3"],
        ["edit"],
        ["edit", "cat.png", "--strength", "2"],
        ["edit", "cat.png", "--control", "canny"],
        ["edit", "cat.png", "--mask", "black.png"],
        ["edit", "cat.png", "--lora", "ink"],
        ["generate", "--prompts-file", "missing.txt"],
    ],
    ids=" ".join,
)
def test_the_common_errors_are_chinese_too(
    capsys: pytest.CaptureFixture[str], here: Path, tiny_model: Path, words: list[str]
) -> None:
    Image.new("L", (32, 32)).save("black.png")
    assert main([*words, "--model", str(tiny_model), "--lang", "zh"]) != 0
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert any("一" <= character <= "鿿" for character in line.removeprefix("vitrail: 错误：")), line
