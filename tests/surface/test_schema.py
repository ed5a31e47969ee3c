"""The surface of a request: what is accepted, what is refused and in which words; the record in a picture."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from vitrail.errors import InputError
from vitrail.schema import (
    MAX_PROMPT,
    MAX_SEED,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    Done,
    Event,
    ImageRecord,
    PictureDone,
    Preview,
    Progress,
    ResolvedTextToImage,
    SamplerName,
    SamplingDefaults,
    ScheduleName,
    TextToImageRequest,
    describe,
    new_seed,
    parse,
)

PROMPT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\t"), min_size=1, max_size=60
)


def request(**values: Any) -> TextToImageRequest:
    return parse(TextToImageRequest, {"prompt": "a cat"} | values)


def record(**values: Any) -> ImageRecord:
    resolved = request(seed=7, n=4).resolve(SamplingDefaults())
    given = {
        "request": resolved,
        "index": 2,
        "seed": 9,
        "model_name": "default",
        "model_sha256": "ab" * 32,
        "versions": {"vitrail": "0.1.0", "torch": "2.13.0+cpu".replace("+", "-")},
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    }
    return parse(ImageRecord, given | values)


def test_the_surface_is_frozen() -> None:
    """A change here changes every flag, HTTP body and form: make it on purpose."""
    rows = [(row.name, row.default, row.low, row.high) for row in describe(TextToImageRequest)]
    assert rows == [
        ("prompt", None, None, None),
        ("negative_prompt", "", None, None),
        ("style", None, None, None),
        ("n", 1, 1, 64),
        ("seed", None, 0, MAX_SEED),
        ("steps", None, 1, 200),
        ("cfg_scale", None, 0.0, 30.0),
        ("cfg_rescale", None, 0.0, 1.0),
        ("guidance_interval", None, 0.0, 1.0),
        ("sampler", None, None, None),
        ("schedule", None, None, None),
        ("shift", None, 0.1, 20.0),
        ("lora", (), None, None),
        ("control", (), None, None),
        ("vae", None, None, None),
        ("embedding", (), None, None),
        ("clip_skip", None, 1, 12),
        ("fast", False, None, None),
        ("tile", False, None, None),
        ("seamless", "none", None, None),
        ("temperature", None, 0.0, 10.0),
        ("top_k", None, 0, 2**20),
        ("top_p", None, 0.001, 1.0),
        ("choice_temperature", None, 0.0, 100.0),
        ("truncation", None, 0.01, 10.0),
        ("noise_strength", None, 0.0, 10.0),
        ("noise", None, None, None),
        ("width", None, 16, 4096),
        ("height", None, 16, 4096),
        ("subseed", None, 0, MAX_SEED),
        ("subseed_strength", 0.0, 0.0, 1.0),
        ("hires_scale", 1.0, 1.0, 4.0),
        ("hires_strength", 0.5, 0.0, 1.0),
        ("hires_steps", None, 1, 200),
        ("hires_upscaler", None, None, None),
        ("panorama", False, None, None),
        ("model", "default", None, None),
    ]
    assert get_args(SamplerName) == tuple(SAMPLER_LABELS)
    assert get_args(ScheduleName) == tuple(SCHEDULE_LABELS)
    assert next(row for row in describe(TextToImageRequest) if row.name == "sampler").choices == tuple(
        SAMPLER_LABELS
    )


def test_every_field_is_described_in_both_languages() -> None:
    for row in describe(TextToImageRequest):
        assert len(row.en) > 10, row.name
        assert re.search(r"[\u4e00-\u9fff]", row.zh), row.name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps 0 is out of range; allowed 1 to 200"),
        ({"steps": 10**20}, "steps 100000000000000000000 is out of range; allowed 1 to 200"),
        ({"steps": 10**5000}, "steps (a huge number) is out of range; allowed 1 to 200"),
        ({"steps": 2.5}, "steps 2.5 is not a whole number; allowed 1 to 200"),
        ({"steps": True}, "steps True is not a whole number; allowed 1 to 200"),
        ({"steps": "20"}, "steps '20' is not a whole number; allowed 1 to 200"),
        ({"n": 65}, "n 65 is out of range; allowed 1 to 64"),
        ({"width": 10**9}, "width 1000000000 is out of range; allowed 16 to 4096"),
        ({"height": -64}, "height -64 is out of range; allowed 16 to 4096"),
        ({"seed": -1}, "seed -1 is out of range; allowed 0 to 9007199254740991"),
        ({"cfg_scale": math.nan}, "cfg_scale nan is not a finite number; allowed 0 to 30"),
        ({"cfg_scale": math.inf}, "cfg_scale inf is not a finite number; allowed 0 to 30"),
        ({"cfg_scale": -1}, "cfg_scale -1 is out of range; allowed 0 to 30"),
        ({"prompt": ""}, "prompt is empty; give at least one character"),
        ({"prompt": " \n "}, "prompt is empty; give at least one character"),
        ({"prompt": "x" * 2001}, "prompt is too long; allowed are 2000 characters"),
        ({"prompt": "a\0b"}, "prompt holds the character U+0000; control characters are not allowed"),
        ({"prompt": "a\x1b[2Jb"}, "prompt holds the character U+001B; control characters are not allowed"),
        ({"prompt": "a\ud83d"}, "prompt holds the character U+D83D; control characters are not allowed"),
        ({"prompt": 7}, "prompt 7 is not text"),
        ({"stpes": 7}, "stpes is not a setting; did you mean steps?"),
        ({"x" * 500: 7}, "x" * 37 + "... is not a setting; remove it"),
        ({"a\nb": 7}, "a\\nb is not a setting; remove it"),
        (
            {"sampler": "eulr"},
            "sampler 'eulr' is unknown; did you mean euler?; allowed are " + ", ".join(SAMPLER_LABELS),
        ),
        (
            {"style": "../x"},
            "style '../x' is not a name; allowed are letters, digits, '.', '_', '-' and space",
        ),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval needs a start below its end, such as 0.1 0.8"),
        ({"guidance_interval": (0.1, 1.5)}, "guidance_interval.1 1.5 is out of range; allowed 0 to 1"),
        (
            {"seed": MAX_SEED, "n": 2},
            f"the request cannot be served: seed {MAX_SEED} + 1 is above {MAX_SEED}",
        ),
    ],
)
def test_a_refusal_is_one_line_that_says_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        request(**values)
    assert str(caught.value) == message


def test_several_refusals_are_still_one_short_line() -> None:
    with pytest.raises(InputError) as caught:
        request(steps=0, n=0, width=1, height=1, cfg_scale=99)
    assert str(caught.value).endswith("(and 2 more)")
    assert str(caught.value).count(";") == 5


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '"x"',
        "null",
        '{"prompt": "a", "cfg_scale": NaN}',
        '{"prompt": "a", "cfg_scale": Infinity}',
        '{"prompt": "a", "cfg_scale": 1e999}',
        '{"prompt": "a", "steps": 1e20}',
        '{"prompt": "a", "seed": ' + "9" * 5000 + "}",
        '{"prompt": "\\ud800"}',
        '{"prompt": "\ud800"}',
        b'{"prompt": "\xff"}',
        "[" * 50_000,
        '{"prompt": "' + "a" * 300_000 + '"}',
    ],
)
def test_hostile_json_is_one_short_line(text: str | bytes) -> None:
    with pytest.raises(InputError) as caught:
        parse(TextToImageRequest, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELD = st.sampled_from(list(TextToImageRequest.model_fields)) | st.text(max_size=9)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(FIELD, ANYTHING, max_size=5))
def test_anything_at_all_is_accepted_or_refused_in_one_line(values: dict[str, Any]) -> None:
    message = ""
    try:
        parse(TextToImageRequest, values)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 800


@settings(max_examples=60, deadline=None)
@given(
    prompt=PROMPT.filter(lambda text: text.strip()),
    seed=st.integers(0, MAX_SEED - 64),
    n=st.integers(1, 64),
    cfg=st.floats(0, 30),
    interval=st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
    sampler=st.sampled_from([*SAMPLER_LABELS]),
)
def test_json_there_and_back(
    prompt: str, seed: int, n: int, cfg: float, interval: tuple[float, float], sampler: str
) -> None:
    made = request(
        prompt=prompt,
        seed=seed,
        n=n,
        cfg_scale=cfg,
        guidance_interval=interval,
        sampler=sampler,
        style="noto",
    )
    assert parse(TextToImageRequest, made.model_dump_json()) == made
    resolved = made.resolve(SamplingDefaults())
    assert parse(ResolvedTextToImage, resolved.model_dump_json()) == resolved
    kept = record(request=resolved, seed=seed + n - 1, index=n - 1, understood_as=prompt)
    assert ImageRecord.from_json(kept.to_json()) == kept
    json.loads(kept.to_json(), parse_constant=lambda name: pytest.fail(name))


def test_text_is_stripped_and_keeps_what_people_write() -> None:
    made = request(prompt="  一只猫,\r\n\t坐在花园里 👩‍👩‍👧 \n", negative_prompt=" x ")
    assert made.prompt == "一只猫,\n\t坐在花园里 👩‍👩‍👧"
    assert made.negative_prompt == "x"
    assert request(prompt="x" * MAX_PROMPT + "  ").prompt == "x" * MAX_PROMPT


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpmpp-2m-sde", "dpmpp_2m_sde"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("Euler a", "euler_ancestral"),
        ("UniPC", "unipc"),
    ],
)
def test_other_spellings_of_samplers(spelling: str, name: str) -> None:
    assert request(sampler=spelling).sampler == name
    assert request(schedule="SGM Uniform").schedule == "sgm_uniform"


def test_resolve_fills_what_is_open_and_keeps_what_is_given() -> None:
    defaults = SamplingDefaults(steps=11, cfg_scale=3.5, sampler="heun", width=64, height=96)
    resolved = request(steps=5, width=80).resolve(defaults, seed=42)
    assert (resolved.steps, resolved.cfg_scale, resolved.sampler) == (5, 3.5, "heun")
    assert (resolved.width, resolved.height, resolved.seed) == (80, 96, 42)
    # Open on purpose: no style, no truncation, the distribution of noise that the model was trained with,
    # nothing added to the model, no variation.
    neutral = {"style", "truncation", "noise", "vae", "clip_skip", "subseed", "hires_steps", "hires_upscaler"}
    assert None not in resolved.model_dump(exclude=neutral).values()
    assert request(seed=0).resolve(defaults, seed=42).seed == 0
    seeds = {request().resolve(defaults).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= new_seed() < 2**32 for _ in range(20))


def test_a_record_makes_its_own_picture_again() -> None:
    again = record().again()
    assert (again.n, again.seed) == (1, 9)
    assert again.model_dump(exclude={"n", "seed"}) == record().request.model_dump(exclude={"n", "seed"})


@pytest.mark.parametrize(
    "values",
    [
        {"index": 4, "seed": 11},
        {"seed": 8},
        {"model_sha256": "AB" * 32},
        {"created": datetime(2026, 1, 1)},
        {"versions": {str(i): "1" for i in range(99)}},
        {"hints": ["x"] * 17},
        {"format": 2},
        {"more": 1},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        record(**values)


def test_long_hints_are_cut_and_never_fail() -> None:
    assert len(record(hints=["x" * 999]).hints[0]) == 200


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError):
        request().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "event",
    [
        Progress(step=3, steps=20, eta=1.5),
        Preview(index=0, step=3, picture=object()),
        PictureDone(index=2, record=record(), picture=object(), path="out/x.png"),
        Done(seconds=1.5, paths=("out/x.png",)),
    ],
)
def test_events_go_to_json_without_their_pictures_and_back(event: Event) -> None:
    text = event.model_dump_json()
    assert "object at" not in text
    back = TypeAdapter(Event).validate_json(text)
    assert type(back) is type(event)
    assert back.model_dump() == event.model_dump()


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, vitrail.schema; print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
