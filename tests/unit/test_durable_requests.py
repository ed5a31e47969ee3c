"""Requests in the queue's form: every kind comes back as it was, with the contents of its files."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from vitrail.codes_schema import InpaintRequest, VaryRequest, WalkRequest, WalkStop
from vitrail.diffusion_fields import ControlUse
from vitrail.edit_schema import EditRequest
from vitrail.errors import InputError
from vitrail.photo_schema import RepairRequest, UpscaleRequest
from vitrail.request_fields import FileRef
from vitrail.schema import ImageRecord, Request, TextToImageRequest, parse
from vitrail.serving.queue_requests import kinds, read_request, store_request

PICTURE = FileRef.of("cat.png", b"picture")
MASK = FileRef.of("mask.png", b"mask")
CONTROL = ControlUse(name="canny", picture=FileRef.of("edges.png", b"edges"), strength=0.5)

REQUESTS: list[Any] = [
    TextToImageRequest(prompt="一只猫", seed=7, n=3, guidance_interval=(0.1, 0.9), control=(CONTROL,)),
    EditRequest(prompt="a dog", picture=PICTURE, mask=MASK, seed=1),
    InpaintRequest(prompt="a hat", picture=PICTURE, mask=MASK, seed=2),
    VaryRequest(picture=PICTURE, seed=3),
    WalkRequest(stops=(WalkStop(picture=PICTURE), WalkStop(prompt="a dog")), seed=4),
    RepairRequest(picture=PICTURE, mask=MASK),
    UpscaleRequest(picture=PICTURE),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.kind)
def test_a_request_comes_back_with_its_files(request_: Any) -> None:
    stored = store_request(request_)
    again = read_request(stored.text, stored.files)
    assert again == request_
    assert type(again) is type(request_)
    assert "picture" not in json.loads(stored.text).get("prompt", "")
    assert store_request(again).digest == stored.digest


def test_every_task_can_be_asked_for() -> None:
    from vitrail.tasks.core import TASKS

    assert set(TASKS) <= set(kinds())
    for name, model in kinds().items():
        assert model.model_fields["kind"].default == name
    assert set(get_args(Request)) >= {TextToImageRequest, EditRequest}


def test_what_is_left_to_chance_is_drawn_once() -> None:
    one, two = (store_request(TextToImageRequest(prompt="a cat", subseed_strength=0.5)) for _ in range(2))
    assert one.digest == two.digest
    plain = json.loads(one.text)
    assert plain["seed"] is not None
    assert plain["subseed"] is not None
    assert plain["seed"] != json.loads(two.text)["seed"]
    assert read_request(one.text, {}) == read_request(one.text, {})


def test_the_batch_tells_what_may_be_drawn_in_one_pass() -> None:
    def batch(**settings: Any) -> str | None:
        return store_request(parse(TextToImageRequest, {"prompt": "a cat", **settings})).batch

    assert batch(seed=1) == batch(prompt="a dog", style="noto", seed=2, n=3) is not None
    different = [batch(steps=5), batch(width=64, height=64), batch(sampler="euler")]
    assert len({batch(), *different}) == 4
    assert batch(control=[CONTROL]) is None
    assert batch(model="vqgan") is None  # draws one after the other: a worker takes one at a time
    assert batch(model="somebody's checkpoint") is None
    assert store_request(REQUESTS[1]).batch is None


def test_what_is_no_request_is_refused() -> None:
    for wrong in (PICTURE, ImageRecord.model_construct(), "a cat"):
        with pytest.raises(InputError, match="is no request; its kind must be one of text_to_image"):
            store_request(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not known to this version"):
        read_request('{"kind":"hologram"}', {})
    with pytest.raises(InputError, match="is not a setting"):
        read_request('{"kind":"text_to_image","prompt":"a cat","later":1}', {})
