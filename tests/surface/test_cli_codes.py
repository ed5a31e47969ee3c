"""reconstruct, encode, decode, compress, decompress, vary, inpaint, walk, codebook from the command line."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

from vitrail import codes_schema, schema
from vitrail.cli import main
from vitrail.commands import codebook, compress, decode, encode, inpaint, reconstruct, vary, walk
from vitrail.commands.options import Flag
from vitrail.provenance import metadata
from vitrail.store import vtl

FORMS: list[Any] = [
    module.Options for module in (reconstruct, encode, decode, compress, vary, inpaint, walk, codebook)
]
COMMANDS = [
    "reconstruct",
    "encode",
    "decode",
    "compress",
    "decompress",
    "vary",
    "inpaint",
    "walk",
    "codebook",
]


@pytest.fixture
def cat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of 50 x 45 pixels in the current folder."""
    monkeypatch.chdir(tmp_path)
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize((50, 45)).save("cat.png")
    mask = Image.new("L", (50, 45))
    mask.paste(255, (16, 16, 32, 32))
    mask.save("mask.png")
    return tmp_path / "cat.png"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run the command line; the lines on standard output."""
    code = main([*arguments, "--lang", "en"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def array(path: str) -> np.ndarray[Any, Any]:
    """The pixels of a picture file."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_help_needs_no_torch() -> None:
    script = (
        "import sys; from vitrail.cli import main\n"
        f"for name in {COMMANDS}:\n"
        "    assert main([name, '--help']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_page_speaks_both_languages_and_shows_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([name, "--help", "--lang", "en"]) == 0
    english = capsys.readouterr().out
    assert main([name, "--help", "--lang", "zh"]) == 0
    chinese = capsys.readouterr().out
    assert english.isascii()
    assert english.startswith("usage: vitrail")
    assert f"vitrail {name} " in " ".join(english.partition("\n")[2].split())
    assert chinese.startswith("用法：")
    assert f"vitrail {name} " in " ".join(chinese.partition("\n")[2].split())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__module__)
def test_every_flag_is_explained_in_both_languages(form: Any) -> None:
    hints = get_type_hints(form, include_extras=True)
    for field in dataclasses.fields(form):
        assert get_origin(hints[field.name]) is Annotated
        flag = get_args(hints[field.name])[1]
        assert isinstance(flag, Flag)
        assert flag.help.en.isascii()
        assert flag.help.en.endswith(".")
        assert any("一" <= character <= "鿿" for character in flag.help.zh)


@pytest.mark.parametrize(
    ("form", "request_model"),
    [
        (vary.Options, codes_schema.VaryRequest),
        (inpaint.Options, codes_schema.InpaintRequest),
        (walk.Options, codes_schema.WalkRequest),
    ],
)
def test_every_setting_of_a_request_is_a_flag(form: Any, request_model: Any) -> None:
    flags = {field.name for field in dataclasses.fields(form)}
    assert {row.name for row in schema.describe(request_model)} <= flags


def test_the_requests_are_frozen() -> None:
    """A change here is a change for every record and every caller: make it on purpose."""
    frozen = {
        codes_schema.ReconstructRequest: ["model", "picture", "compare"],
        codes_schema.DecodeRequest: ["model", "picture"],
        codes_schema.VaryRequest: [
            *("n", "seed", "prompt", "style", "steps", "cfg_scale", "temperature", "model"),
            *("picture", "amount"),
        ],
        codes_schema.InpaintRequest: [
            *("n", "seed", "prompt", "style", "steps", "cfg_scale", "temperature", "model"),
            *("cfg_rescale", "guidance_interval", "sampler", "schedule", "shift"),
            *("lora", "control", "vae", "embedding", "clip_skip", "fast"),
            *("picture", "mask", "expand", "feather"),
            *("negative_prompt", "strength", "content", "repeats", "only_masked", "padding"),
        ],
        codes_schema.WalkRequest: [
            *("stops", "frames", "loop", "curve", "fps", "weights", "seed", "style", "model"),
        ],
    }
    for request, names in frozen.items():
        assert [row.name for row in schema.describe(request)] == names
        for row in schema.describe(request):
            assert row.en.endswith(".")
            assert any("一" <= character <= "鿿" for character in row.zh)
    assert codes_schema.VaryRequest.model_fields["amount"].default == 0.3
    assert codes_schema.InpaintRequest.model_fields["feather"].default == 4
    assert codes_schema.WalkRequest.model_fields["frames"].default == 24


def test_reconstruct(capsys: pytest.CaptureFixture[str], cat: Path, tiny_tokenizer_model: Path) -> None:
    model = str(tiny_tokenizer_model)
    lines = told(capsys, "reconstruct", "cat.png", "mask.png", "-o", "again.png", "--model", model, "-q")
    assert lines == ["again-1.png", "again-2.png"]
    record = metadata.read("again-1.png").record
    assert record is not None
    assert record.request.kind == "reconstruct"
    assert array("again-1.png").shape == (45, 50, 3)
    [compared] = told(capsys, "reconstruct", "cat.png", "--compare", "-o", "out", "--model", model)
    assert array(compared).shape[1] > 150


def test_compress_and_back(capsys: pytest.CaptureFixture[str], cat: Path, tiny_prior: Path) -> None:
    model = str(tiny_prior)
    assert told(capsys, "compress", "cat.png", "--model", model) == ["cat.vtl"]
    assert told(capsys, "compress", "cat.png", "small.vtl", "--portable", "--model", model) == ["small.vtl"]
    assert vtl.unpack(Path("small.vtl").read_bytes()).method != "prior"
    assert told(capsys, "decompress", "cat.vtl", "back.png", "--model", model) == ["back.png"]
    assert told(capsys, "encode", "cat.png", "-o", "cat.npz", "--model", model) == ["cat.npz"]
    assert told(capsys, "encode", "cat.png", "-o", "same.vtl", "--model", model) == ["same.vtl"]
    assert Path("same.vtl").read_bytes() == Path("cat.vtl").read_bytes()
    with np.load("cat.npz") as arrays:
        assert arrays["codes"].shape == (6, 7)
    assert told(capsys, "decode", "cat.npz", "-o", "decoded.png", "--model", model) == ["decoded.png"]
    assert told(capsys, "reconstruct", "cat.png", "-o", "plain.png", "--model", model) == ["plain.png"]
    wanted = array("plain.png")
    for name in ("back.png", "decoded.png"):
        assert np.array_equal(array(name), wanted)


def test_vary_is_repeated_by_its_seed(
    capsys: pytest.CaptureFixture[str], cat: Path, tiny_prior: Path
) -> None:
    given = [
        "--amount",
        "0.5",
        "--seed",
        "3",
        "--steps",
        "2",
        "--prompt",
        "red cat",
        "--model",
        str(tiny_prior),
    ]
    lines = told(capsys, "vary", "cat.png", "--n", "2", "-o", "v.png", *given)
    assert lines == ["v-1.png", "v-2.png", "v-grid.png"]
    assert told(capsys, "vary", "cat.png", "-o", "w.png", *given) == ["w.png"]
    assert np.array_equal(array("v-1.png"), array("w.png"))
    info = metadata.read("v-2.png")
    assert info.record is not None
    assert info.record.seed == 4
    assert "Task: vary" in info.texts["parameters"]
    assert "Source: cat.png" in info.texts["parameters"]


def test_inpaint_and_outpaint(capsys: pytest.CaptureFixture[str], cat: Path, tiny_prior: Path) -> None:
    given = ["--seed", "3", "--steps", "2", "--model", str(tiny_prior)]
    assert told(capsys, "inpaint", "cat.png", "--mask", "mask.png", "-o", "a.png", *given) == ["a.png"]
    before, after = array("cat.png"), array("a.png")
    assert np.array_equal(before[:10], after[:10])
    assert not np.array_equal(before[16:32, 16:32], after[16:32, 16:32])
    assert told(capsys, "inpaint", "cat.png", "--expand", "left=14,top=3", "-o", "b.png", *given) == ["b.png"]
    assert array("b.png").shape == (48, 64, 3)
    twice = ["--expand", "left=14", "--expand", "top=3"]
    assert told(capsys, "inpaint", "cat.png", *twice, "-o", "c.png", *given) == ["c.png"]
    assert np.array_equal(array("c.png"), array("b.png"))


def test_walk_writes_frames_and_an_animation(
    capsys: pytest.CaptureFixture[str], cat: Path, tiny_tokenizer_model: Path
) -> None:
    model = str(tiny_tokenizer_model)
    lines = told(capsys, "walk", "cat.png", "mask.png", "--frames", "4", "-o", "w.png", "--model", model)
    assert lines == ["w-1.png", "w-2.png", "w-3.png", "w-4.png", "w-animated.webp"]
    with Image.open("w-animated.webp") as animation:
        assert animation.n_frames == 4
        animation.seek(3)
        assert np.array_equal(np.asarray(animation.convert("RGB")), array("w-4.png"))
    record = metadata.read("w-animated.webp").record
    assert record is not None
    assert record.request.kind == "walk"
    given = ["--weights", "1,-0.5", "-o", "sum.png", "--model", model]
    assert told(capsys, "walk", "cat.png", "mask.png", *given) == ["sum.png"]


def test_codebook(capsys: pytest.CaptureFixture[str], cat: Path, tiny_tokenizer_model: Path) -> None:
    code = main(
        ["codebook", str(tiny_tokenizer_model), "-o", "s.png", "--count", "9", "--data", ".", "--lang", "en"]
    )
    out, err = capsys.readouterr()
    assert (code, out) == (0, "s.png\n")
    assert "of 64 codes used" in err
    assert "2 pictures" in err


REFUSED = [
    (["reconstruct"], "the picture is missing; write for instance: vitrail reconstruct photo.png", 2),
    (["reconstruct", "missing.png"], "cannot open missing.png", 2),
    (["reconstruct", "."], ". is not a file; give the path of a picture", 2),
    (["reconstruct", "notes.txt"], "notes.txt", 1),
    (["reconstruct", "cat.png", "--model", "nowhere"], "no model nowhere", 1),
    (["reconstruct", "cat.png", "--model", "DIFFUSION"], "of kind shell_dit and has no codes", 1),
    (["compress"], "the picture is missing", 2),
    (["compress", "cat.png", "cat.zip"], "cat.zip does not end in .vtl", 2),
    (["compress", "missing.png"], "cannot open missing.png", 2),
    (["encode", "cat.png", "-o", "cat.txt"], "ends neither in .npz nor in .vtl", 2),
    (["decode"], "the file of codes is missing", 2),
    (["decode", "missing.vtl"], "cannot open missing.vtl", 2),
    (["decode", "cat.png"], "cat.png is neither a .vtl nor an .npz file of codes", 1),
    (["decompress", "a.vtl", "b.png", "-o", "c.png"], "given twice", 2),
    (["vary"], "the picture is missing", 2),
    (["vary", "cat.png", "--amount", "2"], "amount 2.0 is out of range; allowed 0 to 1", 2),
    (["vary", "cat.png", "--amount", "much"], "amount 'much' is not a finite number", 2),
    (["vary", "cat.png", "--n", "0"], "n 0 is out of range; allowed 1 to 64", 2),
    (["vary", "cat.png", "--seed", "-1"], "seed -1 is out of range", 2),
    (["vary", "cat.png", "--model", "TOKENIZER"], "is a tokenizer alone and draws nothing", 1),
    (["vary", "cat.png", "--style", "noto"], "has no styles, leave it out", 2),
    (["inpaint", "cat.png"], "nothing to paint: give a mask, or expand", 2),
    (["inpaint", "cat.png", "--mask", "missing.png"], "cannot open missing.png", 2),
    (["inpaint", "cat.png", "--expand", "up=3"], "expand 'up=3' cannot be read", 2),
    (["inpaint", "cat.png", "--expand", "up=3,up=3"], "expand 'up=3' cannot be read", 2),
    (["inpaint", "cat.png", "--expand", "left=3,left=4"], "expand names left twice; give each side once", 2),
    (["inpaint", "cat.png", "--expand", "top=3", "--expand", "top=3"], "expand names top twice", 2),
    (["inpaint", "cat.png", "--expand", "left=99999"], "expand.left 99999 is out of range", 2),
    (["inpaint", "cat.png", "--expand", "left=x"], "expand.left 'x' is not a whole number", 2),
    (["walk", "cat.png"], "a walk needs two stops or more", 2),
    (["walk", "cat.png", "missing.png"], "cannot open missing.png", 2),
    (["walk", "cat.png", "mask.png", "--frames", "1"], "frames 1 is out of range; allowed 2 to 240", 2),
    (["walk", "cat.png", "mask.png", "--weights", "1,x"], "weights '1,x' cannot be read", 2),
    (["walk", "cat.png", "mask.png", "--weights", "1"], "2 stops and 1 weights", 2),
    (
        ["walk", "cat.png", "mask.png", "--curve", "arc"],
        "curve 'arc' is unknown; allowed are linear, slerp",
        2,
    ),
    (["walk", "cat", "dog", "--model", "TOKENIZER"], "is a tokenizer alone and draws nothing", 1),
    (["codebook", "--count", "0"], "count 0 is out of range", 2),
    (["codebook", "--data", "missing"], "the folder missing does not exist", 2),
    (["codebook", "nowhere"], "no model nowhere", 1),
    (["vary", "cat.png", "--stepz", "3"], "option --stepz is unknown; did you mean --steps?", 2),
]


@pytest.mark.parametrize(("arguments", "words", "code"), REFUSED, ids=lambda value: str(value)[:50])
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    cat: Path,
    tiny_prior: Path,
    tiny_tokenizer_model: Path,
    tiny_model: Path,
    arguments: list[str],
    words: str,
    code: int,
) -> None:
    Path("notes.txt").write_text("no picture")
    places = {"TOKENIZER": str(tiny_tokenizer_model), "DIFFUSION": str(tiny_model)}
    given = [places.get(word, word) for word in arguments]
    if "--model" not in given and given[0] != "codebook":
        given += ["--model", str(tiny_prior)]
    before = set(os.listdir())
    got = main([*given, "--lang", "en"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("vitrail: ")
    assert words in err
    assert got == code
    assert set(os.listdir()) - before <= {"out"}


def test_a_picture_made_of_another_cannot_be_made_from_its_record_alone(
    capsys: pytest.CaptureFixture[str], cat: Path, tiny_tokenizer_model: Path
) -> None:
    told(capsys, "reconstruct", "cat.png", "-o", "again.png", "--model", str(tiny_tokenizer_model))
    assert main(["generate", "--from-record", "again.png", "--lang", "en"]) == 2
    assert "made by vitrail reconstruct of a file" in capsys.readouterr().err
