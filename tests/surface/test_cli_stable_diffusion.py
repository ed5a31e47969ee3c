"""The commands with a Stable Diffusion of one's own, and what they say when something is not as it should be.

Every complaint is one line, in English and in Chinese.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra sd")
pytest.importorskip("transformers", reason="needs the extra sd")
import sd_tiny
from PIL import Image
from safetensors.torch import save_file

from vitrail.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
ENGLISH = re.compile(r"\b(is|are|the|not|allowed|there|give|use|put)\b")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, LoRAs, pictures, and files that are none of these."""
    home = tmp_path_factory.mktemp("newcomer")
    sd_tiny.make_folder(home / "sd1", "sd1")
    sd_tiny.make_single(home / "single" / "one.safetensors", "sd1")
    sd_tiny.make_vocabulary(home / "single" / "tokenizer")
    for name, layer in (("ink", LAYER), ("zero", "lora_unet_nowhere")):
        factors = {
            f"{layer}.lora_down.weight": torch.ones(2, 32),
            f"{layer}.lora_up.weight": torch.ones(32, 2),
        }
        save_file(factors, home / f"{name}.safetensors")
    Image.new("RGB", (64, 64), "red").save(home / "red.png")
    (home / "text.png").write_text("no picture")
    (home / "words.txt").write_text("no model")
    return home


@pytest.fixture(autouse=True)
def _there(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path))


GENERATE = ("generate", "a cat", "--steps", "2", "--seed", "1", "--model", "sd1")
COMPLAINTS: list[tuple[tuple[str, ...], str]] = [
    ((*GENERATE, "--lora", "zero.safetensors"), "none of the 1 layers of the LoRA zero is in this model"),
    ((*GENERATE, "--lora", "./nope.safetensors"), "there is no LoRA at ./nope.safetensors; give the path"),
    ((*GENERATE, "--lora", "words.txt"), "words.txt is no LoRA; use one of .safetensors, .ckpt, "),
    ((*GENERATE, "--lora", "nope"), "no LoRA is called 'nope'; put its file into "),
    ((*GENERATE, "--vae", "nope"), "no VAE is called 'nope'; put its file into "),
    ((*GENERATE, "--style", "noto"), "sd1 has no styles; say 'noto' in the prompt instead"),
    ((*GENERATE, "--clip-skip", "12"), "clip skip is 12; the text encoder has 3 layers"),
    (
        (*GENERATE, "-o", "x.gif"),
        "x.gif names a format that is not written; allowed are .png, .jpg and .webp",
    ),
    ((*GENERATE[:-1], "ink.safetensors"), "ink.safetensors is a LoRA; write <lora:NAME:1> in the prompt"),
    (
        (*GENERATE[:-1], "words.txt"),
        "words.txt is not a model; there are: default, vqgan (or give a model's folder, or ",
    ),
    (
        (*GENERATE[:-1], "sd1/unet"),
        "sd1/unet is not a model folder: it has no artifact.json; it is a part of sd1",
    ),
    (
        (*GENERATE[:-1], "single"),
        "single is not a model folder: it has no artifact.json; did you mean single/one",
    ),
    (("edit", "text.png", "--model", "sd1"), "text.png is not a picture that can be read; allowed are PNG"),
    (
        ("reconstruct", "red.png", "--model", "sd1"),
        "sd1 is a pipeline of diffusers, which cannot be used for this",
    ),
    (
        ("upscale", "red.png", "--model", "sd1"),
        "sd1 is a pipeline of diffusers, which cannot be used for this",
    ),
    (
        ("compress", "red.png", "--model", "single/one.safetensors"),
        "single/one.safetensors is a checkpoint, which",
    ),
    (
        ("grid", "a cat", "--x", "replace=dog,cow", "--model", "sd1"),
        "'dog' is not in the prompt, so nothing can",
    ),
    (
        ("inpaint", "red.png", "--expand", "side=64", "--model", "sd1"),
        "expand 'side=64' cannot be read; write for instance left=64 or left=32,top=32 (sides: left",
    ),
    (("models", "show", "words.txt"), "words.txt is not a model; allowed are .safetensors, .ckpt, "),
    (
        ("models", "pull", "file:///x/one.safetensors"),
        "file:///x/one.safetensors is a path or an address; pull",
    ),
    (("models", "pull"), "the model's name is missing; see vitrail models list --available"),
    (("models", "remove", "nope"), "no model nope in "),
    (("models", "remove", "../x"), "../x is not the name of a model; see vitrail models list"),
    (
        ("models", "convert", "sd1", "--to", "x"),
        "sd1 is a whole pipeline of diffusers; give its subfolder vqvae",
    ),
    (
        ("models", "convert", "single/one.safetensors", "--to", "x"),
        "single/one.safetensors holds a whole diffusion model, which is used as it is (--model FILE); only",
    ),
    (
        ("models", "convert", "text.png", "--to", "x"),
        "text.png is not a checkpoint; vitrail reads files that",
    ),
    (("models", "convert", "nope.ckpt", "--to", "x"), "cannot open nope.ckpt: No such file or directory"),
    (
        ("models", "convert", "ink.safetensors", "--to", "x"),
        "ink.safetensors is not an autoencoder of taming",
    ),
]


@pytest.mark.parametrize(("arguments", "words"), COMPLAINTS, ids=lambda value: str(value)[-60:])
def test_a_complaint_is_one_line_in_both_languages(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert main(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vitrail: {words}"), err
    assert err.count("\n") == 1
    assert main((*arguments, "--lang", "zh")) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitrail: 错误：")
    assert err.count("\n") == 1
    assert not ENGLISH.search(err.replace("No such file or directory", "")), err


def test_a_lora_lies_anywhere_and_changes_the_picture(tmp_path: Path) -> None:
    pictures = []
    for number, more in enumerate(((), ("--lora", "ink.safetensors"), ("--lora", "./ink.safetensors:0"))):
        target = tmp_path / f"{number}.png"
        assert main((*GENERATE, *more, "-o", str(target), "-q")) == 0
        with Image.open(target) as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[2] != pictures[1]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("一只猫在花园里", "提示：该模型的文本编码器只懂英文；请用英文写提示词，例如：a cat in a garden\n"),
        ("(猫:1.3)", "提示：该模型的文本编码器只懂英文；请用英文写提示词\n"),
        ("a cat", ""),
    ],
)
def test_a_chinese_prompt_is_not_taken_for_understood(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, prompt: str, said: str
) -> None:
    target = str(tmp_path / "x.png")
    assert main(("generate", prompt, *GENERATE[2:], "-o", target, "--lang", "zh")) == 0
    assert capsys.readouterr().err == said


def test_folder_and_file_draw_the_same(tmp_path: Path) -> None:
    drawn = []
    for number, model in enumerate(("sd1", "single/one.safetensors")):
        target = tmp_path / f"{number}.png"
        assert main((*GENERATE[:-1], model, "--sampler", "DPM++ SDE", "-o", str(target), "-q")) == 0
        with Image.open(target) as picture:
            drawn.append(picture.tobytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ink.safetensors", "lora"), ("single/one.safetensors", "checkpoint"), ("sd1", "checkpoint")],
)
def test_models_show_tells_what_a_file_is(capsys: pytest.CaptureFixture[str], name: str, kind: str) -> None:
    assert main(("models", "show", name)) == 0
    assert re.search(rf"^kind\s+{kind}$", capsys.readouterr().out, re.MULTILINE)


def test_doctor_names_the_extras(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(("doctor",)) == 0
    assert "extras    data yes, train yes, sd yes, studio " in capsys.readouterr().out
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else found(name)
    )
    assert main(("doctor",)) == 0
    assert "sd no (pip install 'vitrail[sd]')" in capsys.readouterr().out


def test_limits_in_the_help_have_all_their_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("generate", "--help")) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "0 to 9007199254740991." in page
    assert "0 for all. Default: the model's. 0 to 1048576." in page
    assert "0.001 to 1." in page
    assert not re.search(r"\de[+-]?\d", page)
