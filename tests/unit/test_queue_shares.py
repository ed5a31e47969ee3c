"""What the working process draws at a time, and what it tells meanwhile.

A batch on a CPU: each core takes a share of it in a thread of its own, small ones are drawn together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from vitrail.schema import Done, Preview, Progress, TextToImageRequest
from vitrail.serving import queue_work
from vitrail.serving.queue_hands import Assignment, Tell
from vitrail.serving.queue_work import ModelWork
from vitrail.tasks.context import Context


class _Told:
    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def done(self, job: str, hints: Sequence[str] = ()) -> None:
        self.ended.append((job, "done"))

    def failed(self, job: str, error: BaseException) -> None:
        self.ended.append((job, type(error).__name__))


def _run(
    count: int, monkeypatch: pytest.MonkeyPatch, broken: int | None = None, **fields: Any
) -> tuple[_Told, list[Any]]:
    passes: list[Any] = []
    both = threading.Barrier(2, timeout=30)

    def many(requests: Sequence[TextToImageRequest], *_: Any) -> Iterator[tuple[int, Done]]:
        seeds = [request.seed for request in requests]
        passes.append((seeds, torch.get_num_threads()))
        if len(requests) < count:
            both.wait()  # the shares are drawn at the same time, or this fails
        for number, seed in enumerate(seeds):
            if seed == broken:
                raise EOFError
            yield number, Done(seconds=0.0)

    monkeypatch.setattr(queue_work, "text_to_image_many", many)
    told = _Told()
    assignments = [
        Assignment(str(n), "quick", TextToImageRequest(prompt="x", seed=n, **fields)) for n in range(count)
    ]
    ModelWork(device="cpu")(assignments, cast(Tell, told), Path())
    return told, passes


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_each_core_takes_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    told, passes = _run(7, monkeypatch)
    assert sorted(passes) == [([0, 2, 4, 6], 1), ([1, 3, 5], 1)]
    assert sorted(told.ended) == [(str(n), "done") for n in range(7)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_small_batch_is_drawn_by_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    told, passes = _run(5, monkeypatch)
    assert passes == [([0, 1, 2, 3, 4], 2)]
    assert len(told.ended) == 5


@pytest.mark.usefixtures("two_threads")
def test_only_models_that_draw_pixels_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    _, passes = _run(8, monkeypatch, model="vqgan")
    assert passes == [([0, 1, 2, 3, 4, 5, 6, 7], 2)]


@pytest.mark.usefixtures("two_threads")
def test_a_worker_that_is_gone_ends_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EOFError):
        _run(8, monkeypatch, broken=3)
    assert torch.get_num_threads() == 2


class _Words(_Told):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def progress(self, job: str, step: int, steps: int, eta: float | None) -> None:
        self.words.append(f"progress {step}")

    def preview(self, job: str, picture: object) -> None:
        self.words.append("preview")


@pytest.mark.parametrize(("share", "most"), [(1, 5), (16, 2)])
def test_a_job_is_told_of_a_few_times_however_many_steps_it_has(
    share: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_work, "_EVERY_AT_LEAST", 0.02)
    clock = [100.0]
    monkeypatch.setattr(queue_work.time, "monotonic", lambda: clock[0])
    words = _Words()
    assignment = Assignment("a", "pictures", TextToImageRequest(prompt="x"))
    outcome = queue_work._Outcome(assignment, cast(Tell, words), "png", share)
    for step in range(1, 101):  # a second in all
        clock[0] += 0.01
        outcome(Progress(step=step, steps=100, eta=(100 - step) * 0.01))
        if outcome.wants_preview():
            outcome(Preview(index=0, step=step))
    assert words.words[:2] == (["progress 2", "preview"] if share == 1 else ["progress 32", "preview"])
    assert 2 <= len([word for word in words.words if word != "preview"]) <= most
    assert 2 <= words.words.count("preview") <= most


@pytest.mark.parametrize(("eta", "told"), [(9.0, ["progress 1", "preview"]), (0.1, [])])
def test_what_is_nearly_there_is_not_told_of(
    eta: float, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words about a picture that comes within a blink only take the time in which it is drawn."""

    def task(request: TextToImageRequest, loader: object, context: Context) -> Iterator[Done]:
        time.sleep(0.3)  # so long that a word is due
        context.report(Progress(step=1, steps=2, eta=eta))
        if context.previews(2):
            context.report(Preview(index=0, step=2))
        yield Done(seconds=0.0)

    monkeypatch.setitem(queue_work.TASKS, "text_to_image", task)
    words = _Words()
    assignment = Assignment("a", "pictures", TextToImageRequest(prompt="x"))
    ModelWork(device="cpu")([assignment], cast(Tell, words), Path())
    assert (words.words, words.ended) == (told, [("a", "done")])
