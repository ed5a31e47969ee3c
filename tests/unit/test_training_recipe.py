"""Recipes: TOML in and out, overrides, bounds, and one clear line for what is not allowed."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.errors import InputError
from vitrail.recipe import (
    SHIPPED,
    TextToImageRecipe,
    UpsamplerRecipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_differences,
)
from vitrail.recipe.staged import load_staged, plan_stages

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"kind": "text_to_image", "optim": {"until_images": 100}}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    source=texts,
    prompts=st.lists(texts, max_size=4),
    lr=st.floats(1e-12, 1.0),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**63 - 1),
    flag=st.booleans(),
    expected=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_what_is_written_reads_back_equal(
    source: str,
    prompts: list[str],
    lr: float,
    share: float,
    seed: int,
    flag: bool,
    expected: dict[str, float],
) -> None:
    recipe = parse_recipe(
        {
            "kind": "text_to_image",
            "data": {"source": source, "caption_drop": share},
            "optim": {"time_budget_minutes": 1.5, "lr": lr, "compile": flag, "betas": [share * 0.99, 0.5]},
            "run": {"sample_prompts": prompts, "seed": seed},
            "expected": expected,
        }
    )
    assert parse_recipe(tomllib.loads(dump_recipe(recipe))) == recipe


def test_every_recipe_of_the_repository_loads_and_is_written_back(tmp_path: Path) -> None:
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        recipe = load_recipe(path)
        (tmp_path / "again.toml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "again.toml") == recipe


def test_kinds_are_told_apart() -> None:
    assert isinstance(parse_recipe(SMALL), TextToImageRecipe)
    assert isinstance(parse_recipe({**SMALL, "kind": "upsampler"}), UpsamplerRecipe)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("optim.lr=2e-4", ("optim", "lr"), 2e-4),
        ("optim.decay=linear", ("optim", "decay"), "linear"),
        ('optim.decay="linear"', ("optim", "decay"), "linear"),
        ("data.source=/my pictures/2024", ("data", "source"), "/my pictures/2024"),
        ("optim.compile=true", ("optim", "compile"), True),
        ("run.sample_prompts=['a', 'b']", ("run", "sample_prompts"), ("a", "b")),
        ("optim.betas=[0.5, 0.75]", ("optim", "betas"), (0.5, 0.75)),
        ("optim.time_budget_minutes=3", ("optim", "time_budget_minutes"), 3.0),
        ("run.warm_start=runs/a=b", ("run", "warm_start"), "runs/a=b"),
    ],
)
def test_overrides_are_toml_values(override: str, place: tuple[str, str], value: object) -> None:
    recipe = parse_recipe(SMALL, [override])
    assert getattr(getattr(recipe, place[0]), place[1]) == value


def test_the_last_override_wins_and_the_tables_given_stay() -> None:
    tables: dict[str, Any] = {"kind": "text_to_image", "optim": {"until_images": 100}}
    assert parse_recipe(tables, ["optim.lr=0.1", "optim.lr=0.2"]).optim.lr == 0.2
    assert tables == {"kind": "text_to_image", "optim": {"until_images": 100}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=3", "key 'optim.lrr' is unknown; did you mean 'optim.lr'?"),
        ("lr=3", "key 'lr' is unknown; did you mean 'optim.lr'?"),
        ("optm.lr=3", "key 'optm' is unknown; did you mean 'optim'?"),
        ("optim.lr=nan", "optim.lr = nan: input should be a finite number"),
        ("optim.lr=inf", "optim.lr = inf"),
        ("optim.lr=-1", "optim.lr = -1: input should be greater than 0"),
        ("optim.lr=fast", "optim.lr = 'fast': input should be a valid number"),
        ("data.batch_size=0", "data.batch_size = 0: input should be greater than or equal to 1"),
        ("data.batch_size=1.5", "data.batch_size = 1.5: input should be a valid integer"),
        ("optim.decay=cosin", "optim.decay = 'cosin': input should be 'none', 'cosine' or 'linear'"),
        ("optim.until_images=none", "optim: set exactly one of until_images and time_budget_minutes"),
        ("model.width=385", "model: width 385 is not divisible by heads 6"),
        ("model.image_size=32", "data.size 64 must equal model.image_size 32"),
        ("optim.betas=[0.9, 1.0]", "optim: betas (0.9, 1.0) must be below 1"),
        ("optim=3", "optim = 3"),
        ("optim.lr.x=3", "--set 'optim.lr.x=3': 'lr' is a value, not a section"),
        ("optim.lr", "--set 'optim.lr': write section.key=value"),
        ("=3", "--set '=3': write section.key=value"),
        ("kind=vae", "kind is 'vae'; choose text_to_image, upsampler"),
        ("name=../evil", "name = '../evil'"),
        ("data.source=\udcff", "data.source"),
        ("optim.lr=" + "[" * 30_000, "nested too deeply"),
    ],
)
def test_what_is_not_allowed_gets_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe({**SMALL, "optim": {"until_images": 100, "lr": 0.1}}, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_no_text_crashes_an_override_or_a_file(text: str) -> None:
    with_key = f"optim.lr={text}"
    for override in (text, with_key):
        try:
            recipe = parse_recipe(SMALL, [override])
        except InputError as error:
            message = str(error)
        else:
            message = ""
            assert math.isfinite(recipe.optim.lr)
        assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"kind = ", "is not valid TOML"),
        (b"a = " + b"[" * 30_000, "nested too deeply"),
        (b"[data]\nsize = 64\n", "kind is None; choose"),
        (b"kind = 'upsampler'\n", "optim"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_differences_name_the_keys() -> None:
    first = parse_recipe(SMALL)
    second = parse_recipe(SMALL, ["optim.lr=0.25", "run.seed=3", "optim.time_budget_minutes=2"])
    assert recipe_differences(first, first) == []
    assert recipe_differences(first, second) == [
        "optim.lr", "optim.time_budget_minutes", "optim.until_images", "run.seed",
    ]  # fmt: skip


def test_recipes_are_read_without_torch() -> None:
    code = (
        "import sys, vitrail.recipe; "
        "print([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["dcgan-fashion", "dcgan-fashion.toml", "recipes/dcgan-fashion.toml", "recipes/dcgan-fashion"]
)
def test_shipped_recipes_are_found_by_name_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name).name == "dcgan-fashion"
    assert load_staged("staged/default").name == "default"
    assert [recipe.kind for _, recipe in plan_stages("recipes/staged/default.toml", "runs/x")]
    own = tmp_path / "dcgan-fashion.toml"
    own.write_text((SHIPPED / "vae-fashion.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_recipe("dcgan-fashion.toml").name == "vae-fashion"  # a file of that path comes first


def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: .*a recipe of vitrail's own: dcgan-fashion"):
        load_recipe(tmp_path / "dcgan-fashin")
    with pytest.raises(InputError, match="vqgan-f8-lean"):
        load_recipe("\x01")


def test_the_checkout_shows_the_shipped_recipes() -> None:
    assert (ROOT / "recipes").resolve() == SHIPPED.resolve()
