"""Requests in shared network passes: the same pictures as alone, and nobody hangs on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.errors import CancelledError, InputError, NonFiniteError
from vitrail.models.shell_dit import ShellDiT
from vitrail.schema import Done, Event, PictureDone, Preview, Progress, TextToImageRequest
from vitrail.tasks.batching import compatible, text_to_image_many
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader

LEVEL = 1.0
"""Float rounding: one of 255 levels."""


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> str:
    return str(tiny_model)


def ask(model: str, prompt: str = "a cat", **values: Any) -> TextToImageRequest:
    return TextToImageRequest(**{"prompt": prompt, "seed": 5, "steps": 4, "model": model, **values})


def context(**values: Any) -> Context:
    return Context(precision="float32", **values)


def alone(request: TextToImageRequest, loader: Loader) -> list[Event]:
    return list(TASKS["text_to_image"](request, loader, context()))


def many(
    requests: list[TextToImageRequest], loader: Loader, contexts: list[Context] | None = None
) -> tuple[dict[int, list[Event]], dict[int, BaseException]]:
    events: dict[int, list[Event]] = {}
    ended: dict[int, BaseException] = {}
    contexts = contexts or [context() for _ in requests]
    for number, event in text_to_image_many(requests, loader, contexts, ended.__setitem__):
        events.setdefault(number, []).append(event)
    return events, ended


def pictures(events: list[Event]) -> np.ndarray[Any, Any]:
    made = [event for event in events if isinstance(event, PictureDone)]
    return np.stack([np.asarray(event.picture).astype(int) for event in made])


def same_as_alone(events: list[Event], request: TextToImageRequest, loader: Loader) -> None:
    single = alone(request, loader)
    assert [type(event) for event in events] == [type(event) for event in single]
    assert np.abs(pictures(events) - pictures(single)).max() <= LEVEL
    assert pictures(events).std() > 5
    for one, other in zip(events[:-1], single[:-1], strict=True):
        assert isinstance(one, PictureDone)
        assert isinstance(other, PictureDone)
        hidden = {"created"}
        assert one.record.model_dump(exclude=hidden) == other.record.model_dump(exclude=hidden)
        assert one.index == other.index


def varied(model: str, **values: Any) -> list[TextToImageRequest]:
    return [
        ask(model, "a cat", n=2, **values),
        ask(model, "a red dog sitting in a garden at night", seed=9, style="twemoji", **values),
        ask(model, "一只猫坐在花园里", negative_prompt="night", seed=2, n=3, style="noto", **values),
        ask(model, "dog", seed=5, style="none", **values),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sampler": "euler_ancestral", "width": 64, "height": 64},
        {"hires_scale": 2.0, "hires_strength": 0.5},
        {"width": 32, "height": 32, "subseed": 3, "subseed_strength": 0.4},
        {"cfg_scale": 1.0},
    ],
)
def test_every_picture_is_what_its_request_alone_gives(
    loader: Loader, model: str, values: dict[str, Any]
) -> None:
    requests = varied(model, **values)
    events, ended = many(requests, loader)
    assert ended == {}
    for number, request in enumerate(requests):
        same_as_alone(events[number], request, loader)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 16])
def test_the_size_of_a_pass_changes_nothing(loader: Loader, model: str, batch: int) -> None:
    requests = varied(model)
    events, _ = many(requests, loader, [context(batch_size=batch) for _ in requests])
    for number, request in enumerate(requests):
        same_as_alone(events[number], request, loader)


def test_prompts_share_passes_with_those_of_their_length_only(loader: Loader, model: str) -> None:
    """Beside a longer prompt a picture would be another in bfloat16: a last bit grows to many levels."""
    requests = varied(model)
    contexts = [Context(precision="bfloat16") for _ in requests]
    events, _ = many(requests, loader, contexts)
    for number, request in enumerate(requests):
        single = list(TASKS["text_to_image"](request, loader, Context(precision="bfloat16")))
        assert (pictures(events[number]) == pictures(single)).all()


def test_requests_share_passes(loader: Loader, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests of one picture take as many passes as one: else nothing is gained."""
    sizes: list[int] = []
    forward = ShellDiT.forward

    def counted(self: ShellDiT, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(ShellDiT, "forward", counted)
    requests = [ask(model, seed=seed, sampler="euler") for seed in range(4)]
    alone(requests[0], loader)
    single = len(sizes)
    assert set(sizes) == {2}
    sizes.clear()
    many(requests, loader)
    assert len(sizes) == single
    assert set(sizes) == {8}


def test_each_hears_of_its_own(loader: Loader, model: str) -> None:
    heard: dict[int, list[Event]] = {0: [], 1: []}
    contexts = [
        context(report=heard[0].append, preview_every=2),
        context(report=heard[1].append),
    ]
    many([ask(model, n=2), ask(model, "dog", seed=1)], loader, contexts)
    progress = [event for event in heard[0] if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in progress] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert [event.index for event in heard[0] if isinstance(event, Preview)] == [0, 1, 0, 1]
    assert [event.step for event in heard[1] if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert not any(isinstance(event, Preview) for event in heard[1])
    assert {"load", "text", "denoise", "decode"} <= contexts[0].seconds.keys()
    assert {"text", "denoise", "decode"} <= contexts[1].seconds.keys()


def test_those_of_another_length_go_on_when_all_of_a_pass_are_cancelled(loader: Loader, model: str) -> None:
    requests = [
        ask(model),
        ask(model, "a dog", seed=2),
        ask(model, "a cat and a dog in a green garden at night"),
    ]
    contexts = [context() for _ in requests]

    def cancel(event: Event) -> None:
        if isinstance(event, Progress) and event.step == 2:
            for leaving in contexts[:2]:
                leaving.cancelled.set()

    contexts[1].report = cancel
    events, ended = many(requests, loader, contexts)
    assert {number: type(error) for number, error in ended.items()} == {0: CancelledError, 1: CancelledError}
    assert list(events) == [2]
    same_as_alone(events[2], requests[2], loader)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_who_is_cancelled_leaves_and_the_others_go_on(
    loader: Loader, model: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told within the step, its rows are in no later pass, and the others' pictures are the same."""
    requests = varied(model)
    contexts = [context() for _ in requests]
    sizes: list[int] = []
    forward = ShellDiT.forward

    def counted(self: ShellDiT, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(ShellDiT, "forward", counted)

    def cancel(event: Event) -> None:
        if isinstance(event, Progress) and event.step == 2 * at:
            contexts[2].cancelled.set()

    contexts[0].report = cancel
    ended: dict[int, BaseException] = {}
    passes_when_told: list[int] = []

    def note(number: int, error: BaseException) -> None:
        ended[number] = error
        passes_when_told.append(len(sizes))

    events: dict[int, list[Event]] = {}
    for number, event in text_to_image_many(requests, loader, contexts, note):
        events.setdefault(number, []).append(event)
    assert list(ended) == [2]
    assert isinstance(ended[2], CancelledError)
    assert 2 not in events
    # Six pictures of short prompts, then three without the one that left, then the long prompt by itself.
    told = passes_when_told[0]
    assert sizes[:told] == [12] * told
    rest = sizes[told:]
    assert set(rest) == {6, 2}
    assert rest == sorted(rest, reverse=True)
    for number in (0, 1, 3):
        same_as_alone(events[number], requests[number], loader)


def test_all_cancelled_ends_the_work(loader: Loader, model: str) -> None:
    contexts = [context(), context()]

    def cancel(event: Event) -> None:
        for other in contexts:
            other.cancelled.set()

    contexts[0].report = cancel
    events, ended = many([ask(model, n=40), ask(model)], loader, contexts)
    assert events == {}
    assert {number: type(error) for number, error in ended.items()} == {0: CancelledError, 1: CancelledError}


def test_what_is_wrong_with_one_is_no_matter_of_the_others(loader: Loader, model: str) -> None:
    requests = [ask(model), ask(model, style="no such style"), ask(model, "dog")]
    events, ended = many(requests, loader)
    assert list(ended) == [1]
    assert isinstance(ended[1], InputError)
    assert "no such style" in str(ended[1])
    for number in (0, 2):
        same_as_alone(events[number], requests[number], loader)


def test_numbers_that_are_none_end_the_one_that_has_them(
    loader: Loader, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that breaks on one style alone: that request fails, the others are drawn again without it."""
    forward = ShellDiT.forward

    def broken(self: ShellDiT, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        answer, styles = forward(self, x, *rest), rest[4]
        return torch.where((styles == 2)[:, None, None, None], torch.full_like(answer, torch.nan), answer)

    requests = varied(model)
    before = [alone(request, loader) for request in requests]
    with monkeypatch.context() as patch:
        patch.setattr(ShellDiT, "forward", broken)
        events, ended = many(requests, loader)
    assert list(ended) == [1]
    assert isinstance(ended[1], NonFiniteError)
    for number in (0, 2, 3):
        assert np.abs(pictures(events[number]) - pictures(before[number])).max() <= LEVEL
        assert isinstance(events[number][-1], Done)


def test_models_that_cannot_share_take_turns(loader: Loader, tiny_prior: Path) -> None:
    requests = [ask(str(tiny_prior), steps=3), ask(str(tiny_prior), "dog", seed=8, steps=3)]
    events, ended = many(requests, loader)
    assert ended == {}
    for number, request in enumerate(requests):
        assert (pictures(events[number]) == pictures(alone(request, loader))).all()


def test_what_fits_together() -> None:
    base = ask("default")
    for values in ({"prompt": "dog"}, {"negative_prompt": "x"}, {"style": "noto"}, {"seed": 1}, {"n": 4}):
        assert compatible(base, base.model_copy(update=values))
    for values in ({"steps": 5}, {"model": "other"}, {"width": 64}, {"cfg_scale": 2.0}, {"sampler": "euler"}):
        assert not compatible(base, base.model_copy(update=values))
    assert not compatible(base, object())  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(loader: Loader, model: str) -> None:
    with pytest.raises(InputError, match="do not fit together"):
        many([ask(model), ask(model, steps=5)], loader)
    with pytest.raises(InputError, match="one for each"):
        many([ask(model)], loader, [context(), context()])
