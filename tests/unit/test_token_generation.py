"""`generate` with models that draw codes: the same request, seeds, sizes, records, previews, refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.errors import ArtifactError, CancelledError, InputError
from vitrail.models.registry import build
from vitrail.recipe.priors import TokenTransformerConfig
from vitrail.schema import (
    ImageRecord,
    PictureDone,
    Preview,
    Progress,
    SamplingDefaults,
    TextToImageRequest,
    parse,
)
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader
from vitrail.tasks.loading import TokenModel


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, tiny_causal_prior: Path) -> Path:
    """A class-conditional network of taming-transformers' kind, its three classes by name."""
    folder = tmp_path_factory.mktemp("classes") / "model"
    torch.manual_seed(0)
    config = TokenTransformerConfig(
        mode="causal",
        block="gpt",
        codes=64,
        rows=6,
        columns=6,
        width=32,
        depth=2,
        heads=2,
        styles=3,
        prefix=1,
    )
    network = build("token_transformer", config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    artifacts.save(
        folder,
        kind="token_transformer",
        name="classes",
        config=config.model_dump(mode="json", exclude={"kind"}),
        tensors=network.state_dict(),
        licence="MIT",
        extra_files={
            "styles.json": json.dumps(["goldfish", "tabby cat", "Egyptian_cat"]),
            "tokenizer": tiny_causal_prior / "tokenizer",
        },
    )
    return folder


def make(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> list[PictureDone]:
    request = parse(TextToImageRequest, {"prompt": "a cat", "seed": 5, "model": str(model), **given})
    events = TASKS[request.kind](request, loader, context or Context(precision="float32"))
    return [event for event in events if isinstance(event, PictureDone)]


def pixels(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> np.ndarray:
    return np.stack([np.asarray(event.picture) for event in make(loader, model, context, **given)])


@pytest.fixture(params=["tiny_prior", "tiny_causal_prior", "classes"])
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def words(model: Path) -> dict[str, Any]:
    return {"prompt": "goldfish"} if "classes" in str(model) else {}


def test_a_picture_depends_on_its_own_seed_alone(loader: Loader, model: Path) -> None:
    four = pixels(loader, model, n=4, **words(model))
    assert four.shape == (4, 48, 48, 3)
    for i in range(4):
        assert np.array_equal(four[i], pixels(Loader(), model, seed=5 + i, **words(model))[0])
        assert all(np.abs(four[i].astype(int) - four[j]).mean() > 2 for j in range(i))
    together = pixels(loader, model, Context(precision="float32", batch_size=4), n=4, **words(model))
    assert np.abs(four.astype(int) - together).max() <= 1  # float32 sums in another order


def test_the_record_makes_the_same_picture_again(loader: Loader, model: Path) -> None:
    event = make(loader, model, n=2, temperature=0.8, top_k=30, top_p=0.95, **words(model))[1]
    record = ImageRecord.from_json(event.record.to_json())
    request = record.again().model_copy(update={"model": str(model)})
    again = next(TASKS["text_to_image"](request, Loader(), Context(precision="float32")))
    assert isinstance(again, PictureDone)
    assert np.array_equal(np.asarray(event.picture), np.asarray(again.picture))
    resolved = record.request
    assert resolved.kind == "text_to_image"
    sampler, schedule = resolved.sampler, resolved.schedule
    assert (sampler, schedule) == (
        ("maskgit", "cosine") if model.name == "prior" else ("autoregressive", "raster")
    )


def test_a_record_from_before_these_settings_is_still_read(loader: Loader, tiny_prior: Path) -> None:
    record = json.loads(make(loader, tiny_prior)[0].record.to_json())
    for name in ("temperature", "top_k", "top_p", "choice_temperature"):
        del record["request"][name]
    old = ImageRecord.from_json(json.dumps(record)).again()
    assert (old.temperature, old.top_k, old.top_p, old.choice_temperature) == (1.0, 0, 1.0, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"cfg_scale": 1.0},
        {"guidance_interval": [0.0, 0.5]},
        {"steps": 3},
        {"negative_prompt": "red"},
        {"prompt": "night"},
        {"temperature": 0.3},
        {"top_k": 2},
        {"top_p": 0.1},
        {"choice_temperature": 0.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_reaches_the_picture(loader: Loader, tiny_prior: Path, change: dict[str, Any]) -> None:
    assert not np.array_equal(pixels(loader, tiny_prior), pixels(loader, tiny_prior, **change))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "tiny_prior",
            {"sampler": "euler"},
            "sampler euler is not for model tiny-masked; use one of maskgit",
        ),
        ("tiny_prior", {"sampler": "autoregressive"}, "sampler autoregressive is not for model tiny-masked"),
        (
            "tiny_prior",
            {"schedule": "karras"},
            "schedule karras is not for model tiny-masked; use one of cosine",
        ),
        ("tiny_prior", {"shift": 3.0}, "shift is not for model tiny-masked, which draws codes; leave it out"),
        ("tiny_prior", {"cfg_rescale": 0.5}, "cfg_rescale is not for model tiny-masked, which draws codes"),
        (
            "tiny_prior",
            {"style": "noto"},
            "style 'noto' is unknown; model tiny-masked has no styles, leave it out",
        ),
        (
            "tiny_prior",
            {"width": 50, "height": 50},
            "size 50x50 is not possible; model tiny-masked makes 48x48",
        ),
        ("tiny_prior", {"width": 40, "height": 48}, "size 40x48 is not possible"),
        (
            "tiny_causal_prior",
            {"steps": 9},
            "steps is not for model tiny-causal, which draws code after code",
        ),
        ("tiny_causal_prior", {"choice_temperature": 1.0}, "choice_temperature is not for model tiny-causal"),
        (
            "tiny_causal_prior",
            {"cfg_scale": 3.0},
            "model tiny-causal reads no words, so guidance has nothing",
        ),
        (
            "classes",
            {"prompt": "dog"},
            "style 'dog' is unknown; allowed are goldfish, tabby cat, Egyptian_cat",
        ),
        ("classes", {"style": "goldfisch"}, "style 'goldfisch' is unknown; did you mean goldfish?"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(
    loader: Loader, name: str, given: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        make(loader, request.getfixturevalue(name), **given)


def test_classes_are_asked_for_by_name_number_or_style(loader: Loader, classes: Path) -> None:
    first = pixels(loader, classes, prompt="tabby cat")
    assert np.array_equal(first, pixels(loader, classes, prompt="1"))
    assert np.array_equal(first, pixels(loader, classes, prompt="anything", style="Tabby Cat"))
    assert not np.array_equal(first, pixels(loader, classes, prompt="egyptian_cat"))


def test_a_model_without_words_says_so(loader: Loader, tiny_causal_prior: Path) -> None:
    event = make(loader, tiny_causal_prior, prompt="一只猫")[0]
    assert event.record.hints == ("model tiny-causal reads no words: the prompt was left out",)


def test_chinese_is_understood(loader: Loader, tiny_prior: Path) -> None:
    chinese = make(loader, tiny_prior, prompt="猫")[0]
    assert chinese.record.understood_as == "cat"
    english = make(loader, tiny_prior, prompt="cat")[0]
    assert np.array_equal(np.asarray(chinese.picture), np.asarray(english.picture))


def test_sizes_go_through_the_upsampler_or_the_sliding_window(loader: Loader, model: Path) -> None:
    wide = pixels(loader, model, width=64, height=48, **words(model))
    assert wide.shape == (1, 48, 64, 3)
    twice = pixels(loader, model, width=96, height=96, **words(model))
    assert twice.shape == (1, 96, 96, 3)
    native = pixels(loader, model, **words(model))[0].astype(float)
    smaller = twice[0].reshape(48, 2, 48, 2, 3).mean((1, 3))
    # The shipped upsampler keeps the picture, noise as it is; the window draws another, larger one.
    alike = float(np.corrcoef(smaller.ravel(), native.ravel())[0, 1])
    assert alike > 0.6 if model.name == "prior" else alike < 0.4


def test_previews_and_progress(loader: Loader, model: Path) -> None:
    told: list[Any] = []
    context = Context(precision="float32", preview_every=4, report=told.append)
    events = make(loader, model, context, n=2, **words(model))
    steps = [event for event in told if isinstance(event, Progress)]
    count = 12 if model.name == "prior" else 36
    assert [event.step for event in steps] == list(range(1, 2 * count + 1))
    assert {event.steps for event in steps} == {2 * count}
    previews = [event for event in told if isinstance(event, Preview)]
    assert [(event.index, event.step) for event in previews] == [
        (index, step) for index in range(2) for step in range(4, count + 1, 4)
    ]
    assert np.array_equal(np.asarray(previews[-1].picture), np.asarray(events[1].picture))
    assert not np.array_equal(np.asarray(previews[0].picture), np.asarray(events[0].picture))


def test_a_cancel_stops_within_the_picture(loader: Loader, model: Path) -> None:
    context = Context(precision="float32")
    context.report = lambda event: context.cancelled.set()
    with pytest.raises(CancelledError):
        make(loader, model, context, n=2, **words(model))


def test_the_models_own_settings_fill_the_request(tiny_prior: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_prior, folder)
    manifest = json.loads((folder / "artifact.json").read_text())
    own = SamplingDefaults(
        steps=3, sampler="maskgit", schedule="cosine", temperature=0.7, top_k=9, width=96, height=96
    )
    manifest["sampling"] = own.model_dump(mode="json")
    (folder / "artifact.json").write_text(json.dumps(manifest))
    resolved = make(Loader(), folder)[0].record.request
    assert resolved.kind == "text_to_image"
    assert {name: getattr(resolved, name) for name in SamplingDefaults.model_fields} == own.model_dump()


def test_bfloat16_draws_a_picture(loader: Loader, model: Path) -> None:
    event = make(loader, model, Context(precision="bfloat16"), **words(model))[0]
    # One code at a time is always float32, and the record says what was computed.
    assert event.record.precision == ("bfloat16" if model.name == "prior" else "float32")


def test_a_tokenizer_that_does_not_belong_is_refused(
    tiny_prior: Path, tmp_path: Path, make_tokenizer: Any
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_prior, folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ArtifactError, match="has no tokenizer/"):
        Loader().text_to_image(str(folder))
    make_tokenizer(folder / "tokenizer", stages=2)
    with pytest.raises(ArtifactError, match=r"draws 64 codes, one at a place; its tokenizer has"):
        Loader().text_to_image(str(folder))


def test_the_loader_keeps_a_token_model(loader: Loader, tiny_prior: Path) -> None:
    first = loader.text_to_image(str(tiny_prior))
    assert isinstance(first, TokenModel)
    assert loader.text_to_image(str(tiny_prior)) is first
    assert first.size == (48, 48)
    assert first.sizes == (48, 96, 192)
