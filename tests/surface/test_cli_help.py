"""``vitrail --help`` and its sisters: at once, without torch, in two languages, and frozen."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from vitrail import schema
from vitrail.cli import COMMANDS, PAGE, main
from vitrail.commands import (
    data,
    edit,
    gallery,
    generate,
    grid,
    models,
    repair,
    serve,
    studio,
    train,
    upscale,
)
from vitrail.commands.language import from_environment, take_language
from vitrail.commands.options import Flag
from vitrail.errors import InputError

FORMS: list[Any] = [
    generate.Options,
    grid.Options,
    edit.Options,
    train.Options,
    data.BuildEmojiOptions,
    data.BuildFashionOptions,
    data.BuildTextOptions,
    data.InspectOptions,
    models.ListOptions,
    models.ShowOptions,
    models.PullOptions,
    models.RemoveOptions,
    gallery.CheckOptions,
    gallery.ExportOptions,
    gallery.SearchOptions,
    gallery.ShowOptions,
    repair.Options,
    serve.Options,
    studio.Options,
    upscale.Options,
]
PAGES = [
    [],
    ["generate"],
    ["grid"],
    ["edit"],
    ["train"],
    ["data"],
    ["data", "build"],
    ["data", "build", "emoji"],
    ["data", "build", "fashion-mnist"],
    ["data", "build", "text"],
    ["data", "inspect"],
    ["models"],
    ["models", "list"],
    ["models", "show"],
    ["models", "pull"],
    ["models", "remove"],
    ["gallery"],
    ["gallery", "check"],
    ["gallery", "export"],
    ["gallery", "search"],
    ["gallery", "show"],
    ["repair"],
    ["serve"],
    ["studio"],
    ["upscale"],
    ["doctor"],
]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_help_answers_at_once_and_without_torch() -> None:
    script = (
        "import sys; from vitrail.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'tyro', 'rich'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Seconds of processor, not of the clock: what the command costs, whatever else the machine is doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_of_generate_needs_no_torch() -> None:
    script = (
        "import sys; from vitrail.cli import main; code = main(['generate', '--help']); "
        "sys.exit('torch' in sys.modules or code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--cfg-scale FLOAT" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_every_page_speaks_both_languages(capsys: pytest.CaptureFixture[str], page: list[str]) -> None:
    english = printed(capsys, *page, "--help", "--lang", "en")
    chinese = printed(capsys, *page, "--help", "--lang=zh")
    assert page == [] or english.isascii()  # the first page shows a Chinese prompt as an example
    assert english.startswith("usage: vitrail")
    assert chinese.startswith("用法：")
    assert "usage:" not in chinese
    assert "show this help" not in chinese
    # Boxes would misalign beside Chinese, and break in pipes.
    assert not set("╭│╰─") & set(english + chinese)


def test_the_language_comes_from_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment({}) == "en"
    assert from_environment({"LANG": "zh_CN.UTF-8"}) == "zh"
    assert from_environment({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}) == "en"
    assert from_environment({"LC_MESSAGES": "zh_TW", "LANG": "de_DE"}) == "zh"
    assert from_environment({"LC_ALL": "", "LANG": "zh"}) == "zh"
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert take_language(["generate", "--lang", "en", "x"]) == ("en", ["generate", "x"])
    assert take_language(["generate", "--", "--lang"]) == ("zh", ["generate", "--", "--lang"])
    with pytest.raises(InputError, match="use en or zh"):
        take_language(["--lang"])


def test_the_environment_switches_the_page() -> None:
    for value, start in (("zh_CN.UTF-8", "用法："), ("en_US.UTF-8", "usage:")):
        done = subprocess.run(
            [sys.executable, "-m", "vitrail"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
            env={**os.environ, "LC_ALL": value, "PYTHONUTF8": "1"},
        )
        assert done.stdout.startswith(start)


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "--help", "--lang", "en")
    assert list(COMMANDS) == [
        *("generate", "grid", "edit", "train", "data", "evaluate", "models", "reconstruct", "vary"),
        *("inpaint", "repair", "upscale", "walk"),
        *("compress", "decompress", "encode", "decode", "codebook"),
        *("studio", "serve", "worker", "gallery", "doctor"),
    ]
    for name, about in COMMANDS.items():
        assert f"  {name:<13}{about.en}\n" in page
    assert PAGE.en.count("vitrail generate") == PAGE.zh.count("vitrail generate")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    import vitrail

    assert printed(capsys, "--version") == f"vitrail {vitrail.__version__}\n"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.__module__}.{form.__name__}")
def test_every_flag_is_explained_in_both_languages(form: Any) -> None:
    hints = get_type_hints(form, include_extras=True)
    for field in dataclasses.fields(form):
        assert get_origin(hints[field.name]) is Annotated
        flag = get_args(hints[field.name])[1]
        assert isinstance(flag, Flag)
        assert flag.help.en.isascii()
        assert any("一" <= character <= "鿿" for character in flag.help.zh)
        assert flag.help.en.endswith(".")


def test_the_surface_of_generate_is_frozen() -> None:
    """A change here is a change for everyone's scripts: make it on purpose."""
    assert [field.name for field in dataclasses.fields(generate.Options)] == [
        "prompt",
        "n",
        "seed",
        "steps",
        "cfg_scale",
        "cfg_rescale",
        "guidance_interval",
        "negative_prompt",
        "style",
        "sampler",
        "schedule",
        "shift",
        "temperature",
        "top_k",
        "top_p",
        "choice_temperature",
        "truncation",
        "noise_strength",
        "noise",
        "width",
        "height",
        "subseed",
        "subseed_strength",
        "hires_scale",
        "hires_strength",
        "hires_steps",
        "hires_upscaler",
        "tile",
        "seamless",
        "panorama",
        "lora",
        "control",
        "vae",
        "embedding",
        "clip_skip",
        "fast",
        "model",
        "prompts_file",
        "output",
        "format",
        "from_record",
        "preview_every",
        "device",
        "precision",
        "quiet",
    ]


def test_every_setting_of_the_request_is_a_flag() -> None:
    flags = {field.name for field in dataclasses.fields(generate.Options)}
    settings = {row.name for row in schema.describe(schema.TextToImageRequest)}
    assert settings <= flags


def test_the_library_exports_what_it_says() -> None:
    import vitrail

    for name in vitrail.__all__:
        assert getattr(vitrail, name) is not None
    assert set(vitrail.__all__) <= set(dir(vitrail))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vitrail.nothing  # type: ignore[attr-defined]
