"""Words to pictures with a tiny real model: seeds, batches, sizes, precision, prompts of every kind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitrail.errors import ArtifactError, CancelledError, InputError, NonFiniteError
from vitrail.samplers.schedules import SCHEDULES
from vitrail.samplers.solvers import SAMPLERS
from vitrail.schema import SAMPLER_LABELS, SCHEDULE_LABELS, PictureDone, TextToImageRequest, parse
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader

PROMPT = "a cat sitting in a garden"


@pytest.fixture(scope="module")
def loader(tiny_model: Path) -> Loader:
    return Loader()


def make(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> list[PictureDone]:
    request = parse(
        TextToImageRequest, {"prompt": PROMPT, "seed": 5, "steps": 4, "model": str(model), **given}
    )
    events = TASKS[request.kind](request, loader, context or Context(precision="float32"))
    return [event for event in events if isinstance(event, PictureDone)]


def pixels(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> np.ndarray:
    return np.stack([np.asarray(event.picture) for event in make(loader, model, context, **given)])


def test_the_same_request_gives_the_same_pixels_and_another_seed_others(
    loader: Loader, tiny_model: Path
) -> None:
    first = pixels(loader, tiny_model)
    assert np.array_equal(first, pixels(Loader(), tiny_model))
    other = pixels(loader, tiny_model, seed=6)
    assert np.abs(first.astype(int) - other).mean() > 5
    assert first.std() > 5  # a picture, not a grey square


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_picture_depends_on_its_own_seed_alone(loader: Loader, tiny_model: Path, sampler: str) -> None:
    four = pixels(loader, tiny_model, n=4, sampler=sampler)
    for i in range(4):
        assert np.array_equal(four[i], pixels(loader, tiny_model, seed=5 + i, sampler=sampler)[0])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_the_batch_size_changes_no_pixel_beyond_rounding(
    loader: Loader, tiny_model: Path, sampler: str
) -> None:
    alone = pixels(loader, tiny_model, n=5, sampler=sampler)
    for batch in (2, 5):
        context = Context(precision="float32", batch_size=batch)
        together = pixels(loader, tiny_model, context, n=5, sampler=sampler)
        # float32 sums in another order: at most the last bit of a byte.
        assert np.abs(alone.astype(int) - together).max() <= 1


def test_the_record_makes_the_same_picture_again(loader: Loader, tiny_model: Path) -> None:
    given = {"n": 3, "style": "twemoji", "cfg_scale": 3.5, "sampler": "heun", "negative_prompt": "dog"}
    event = make(loader, tiny_model, **given)[2]
    assert event.record.request.model == "tiny"  # not the folder, which is nobody's business
    request = event.record.again().model_copy(update={"model": str(tiny_model)})
    again = next(TASKS["text_to_image"](request, Loader(), Context(precision="float32")))
    assert isinstance(again, PictureDone)
    assert np.array_equal(np.asarray(event.picture), np.asarray(again.picture))
    assert event.record.seed == 7
    assert event.record.model_name == "tiny"
    assert event.record.request.schedule in SCHEDULE_LABELS


@pytest.mark.parametrize(
    "change",
    [
        {"cfg_scale": 1.0},
        {"cfg_rescale": 1.0},
        {"guidance_interval": [0.0, 0.5]},
        {"steps": 6},
        {"style": "noto"},
        {"negative_prompt": "red"},
        {"prompt": "night"},
        {"sampler": "heun"},
        {"schedule": "karras"},
        {"shift": 3.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_reaches_the_picture(loader: Loader, tiny_model: Path, change: dict[str, Any]) -> None:
    assert not np.array_equal(pixels(loader, tiny_model), pixels(loader, tiny_model, **change))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_sampler_and_schedule_makes_a_picture(
    loader: Loader, tiny_model: Path, sampler: str, schedule: str
) -> None:
    assert sampler in SAMPLER_LABELS
    assert schedule in SCHEDULE_LABELS
    assert pixels(loader, tiny_model, sampler=sampler, schedule=schedule, steps=2).shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "maskgit"}, "sampler maskgit is not for model tiny; use one of euler, "),
        ({"schedule": "cosine"}, "schedule cosine is not for model tiny; use one of karras, "),
        ({"temperature": 0.5}, "temperature is not for model tiny, which draws pixels; leave it out"),
        ({"top_k": 5}, "top_k is not for model tiny"),
        ({"top_p": 0.5}, "top_p is not for model tiny"),
        ({"choice_temperature": 1.0}, "choice_temperature is not for model tiny"),
    ],
)
def test_settings_of_code_models_are_refused(
    loader: Loader, tiny_model: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        make(loader, tiny_model, **given)


def test_larger_sizes_go_through_the_upsampler(loader: Loader, tiny_model: Path) -> None:
    for side in (16, 32, 64):
        assert pixels(loader, tiny_model, width=side, height=side).shape == (1, side, side, 3)
    for width, height in ((128, 128), (32, 16), (24, 24)):
        with pytest.raises(InputError, match=r"tiny makes 16x16, 32x32, 64x64$"):
            make(loader, tiny_model, width=width, height=height)


def test_without_an_upsampler_only_the_native_size_is_offered(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.tasks.loading.SHIPPED", tmp_path / "nowhere")
    shutil.copytree(tiny_model, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "upsampler")
    with pytest.raises(InputError, match=r"tiny makes 16x16$"):
        make(Loader(), tmp_path / "m", width=32, height=32)


def test_a_style_that_is_not_there_is_refused_with_the_nearest(loader: Loader, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean fluent-3d.*allowed are noto, twemoji, fluent-3d"):
        make(loader, tiny_model, style="fluent 3")
    assert np.array_equal(
        pixels(loader, tiny_model, style="Fluent 3D"), pixels(loader, tiny_model, style="fluent-3d")
    )
    assert np.array_equal(pixels(loader, tiny_model, style="none"), pixels(loader, tiny_model))


def test_bfloat16_that_overflows_is_made_again_in_float32(
    loader: Loader, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = loader.text_to_image(str(tiny_model)).network
    right = network.forward

    def broken_in_bfloat16(*inputs: torch.Tensor) -> torch.Tensor:
        return right(*inputs) * (torch.nan if torch.is_autocast_enabled("cpu") else 1.0)

    expected = pixels(loader, tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", broken_in_bfloat16)
        patch.setattr("torch.nn.RMSNorm.forward", lambda norm, x: x)  # see the note on mixed types in layers
        events = make(loader, tiny_model, Context(precision="bfloat16"))
    assert events[0].record.precision == "float32"
    assert events[0].picture.size == (16, 16)
    assert np.array_equal(pixels(loader, tiny_model), expected)


def test_a_model_that_gives_no_numbers_is_an_error_and_never_a_black_picture(
    loader: Loader, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = loader.text_to_image(str(tiny_model)).network
    monkeypatch.setattr(network, "forward", lambda x, *_: torch.full_like(x, torch.nan))
    with pytest.raises(NonFiniteError, match="no finite picture for seed 5") as caught:
        make(loader, tiny_model)
    assert "\n" not in str(caught.value)


def test_cancel_stops_before_the_next_pass_of_the_network(
    loader: Loader, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = loader.text_to_image(str(tiny_model)).network
    right, context, passes = network.forward, Context(precision="float32"), []

    def counted(*inputs: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        if len(passes) == 3:
            context.cancelled.set()
        return right(*inputs)

    monkeypatch.setattr(network, "forward", counted)
    with pytest.raises(CancelledError):
        make(loader, tiny_model, context, steps=50, sampler="heun")
    assert len(passes) == 3


def test_a_damaged_or_foreign_model_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    (tmp_path / "empty").mkdir()
    cases = {
        damaged: "differs from its SHA-256",
        tmp_path / "empty": "not a model folder",
        tiny_model / "upsampler": "is of kind upsampler",
    }
    for folder, words in cases.items():
        with pytest.raises(ArtifactError, match=words) as caught:
            make(Loader(), folder)
        assert "\n" not in str(caught.value)


def test_a_model_in_memory_is_loaded_again_when_its_folder_changes(
    tiny_model: Path, make_model: Any, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    loader = Loader()
    before = pixels(loader, tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    make_model(tmp_path / "m", seed=1)
    assert not np.array_equal(before, pixels(loader, tmp_path / "m"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.one_of(
        st.text(max_size=60),
        st.text(alphabet="一只红色的猫坐在花园里和狗夜景，。三个", min_size=1, max_size=40),
        st.text(alphabet="a b😀👩‍🚀\u200d\ufe0f\u202e\ud83d\x00 \n\t%{}$\\", min_size=1, max_size=40),
        st.sampled_from(["x" * 2000, "猫" * 2000, "😀" * 1000, "a " * 1000, "photorealistic portrait, 8k"]),
    )
)
def test_no_prompt_crashes_it(loader: Loader, tiny_model: Path, prompt: str) -> None:
    try:
        events = make(loader, tiny_model, prompt=prompt, steps=1)
    except InputError:  # empty, or characters that no file can hold
        return
    assert len(events) == 1
    record = events[0].record
    assert type(record).from_json(record.to_json()) == record
