"""Logs, progress, samples and the guard around random numbers."""

from __future__ import annotations

import importlib.util
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from vitrail import files
from vitrail.errors import MissingExtraError, StorageError
from vitrail.training import checkpoint
from vitrail.training.hooks import (
    Checkpointer,
    MetricsLog,
    ProgressLine,
    every_images,
    preserved_randomness,
    seed_everything,
    tensorboard_writer,
)
from vitrail.training.loop import StepReport, TrainState


def make_state(images: int = 0) -> TrainState:
    return TrainState({"model": nn.Linear(1, 1)}, {}, {}, images_seen=images, step=images // 4)


def report(images: int, loss: float = 1.0, batch: int = 4, seconds: float = 0.5, **more: Any) -> StepReport:
    fields: dict[str, Any] = {
        "share": min(1.0, images / 100), "learning_rate": 0.25, "gradient_norms": {"model": 2.0},
        "figures": {"mse/t0": (loss, 1.0)},
    }  # fmt: skip
    return StepReport(
        step=images // 4,
        images_seen=images,
        batch=batch,
        seconds=seconds,
        losses={"model": loss},
        **fields | more,
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_holds_means_over_its_window(tmp_path: Path) -> None:
    now = [0.0]
    log = MetricsLog(tmp_path / "m.jsonl", 10.0, 0, clock=lambda: now[0])
    with log:
        for images, loss, figures in ((4, 1.0, (6.0, 3.0)), (8, 2.0, (0.0, 0.0)), (12, 6.0, (2.0, 1.0))):
            now[0] += 4.0
            log(make_state(images), report(images, loss, figures={"mse/t0": figures, "never": (0.0, 0.0)}))
    (line,) = lines_of(tmp_path / "m.jsonl")
    assert line["images"] == 12
    assert line["step"] == 3
    assert line["loss/model"] == 3.0
    assert line["mse/t0"] == 2.0  # 8 / 4: weighted by how many pictures fell into the bin
    assert "never" not in line
    assert line["images_per_second"] == pytest.approx(8.0)
    assert line["learning_rate"] == 0.25


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"images": 4, "a": 1}\n{"images": 8}\n{"images": 12}\nrubbish\n{"images": 16}\n{"imag')
    with MetricsLog(path, 0.0, 8) as log:
        log(make_state(12), report(12))
    assert [line["images"] for line in lines_of(path)] == [4, 8, 12]
    untouched = path.stat().st_mtime_ns, path.stat().st_ino
    with MetricsLog(path, 0.0, 12):
        pass
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == untouched


def test_hooks_by_pictures_fire_once_a_multiple_whatever_the_batch() -> None:
    for batch in (1, 3, 7, 64):
        fired: list[int] = []
        hook = every_images(10, lambda state, fired=fired: fired.append(state.images_seen))
        for images in range(batch, 200 + batch, batch):
            hook(make_state(images), report(images, batch=batch))
        due = {n // 10 for n in range(10, fired[-1] + 1)}
        assert len(fired) == (len(due) if batch <= 10 else len({(i // 10) for i in fired}))
        assert fired == sorted(set(fired))


def test_randomness_is_given_back() -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.rand()), random.random(), float(np.random.randn())]

    outer = TrainState.random_state()
    try:
        seed_everything(3)
        expected = draw() + draw()
        seed_everything(3)
        first = draw()
        with pytest.raises(ZeroDivisionError), preserved_randomness():
            draw(), seed_everything(77), 1 / 0
        assert first + draw() == expected
    finally:
        TrainState.set_random_state(outer)


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=200)
    with ProgressLine(0.0, console, every_seconds=0.0) as progress:
        progress(make_state(4), report(4, 2.0))
        progress(make_state(50), report(50, 2.0))
        progress.tell("[red]kept[/red] as it is")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("4.0 %  4 pictures  loss 2.0000  8.0 pictures/s")
    assert lines[1].startswith("50.0 %  50 pictures")
    assert lines[1].endswith("left")
    assert lines[2] == "[red]kept[/red] as it is"
    assert len(lines) == 3
    quiet = io.StringIO()
    with ProgressLine(0.0, Console(file=quiet), every_seconds=0.0, quiet=True) as progress:
        progress(make_state(4), report(4))
        progress.tell("nothing")
    assert quiet.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=150)
    with ProgressLine(0.0, console) as progress:
        progress(make_state(50), report(50, 2.0))
        progress.tell("a line")
    assert "50.0 %  50 pictures" in out.getvalue()
    assert "a line" in out.getvalue()


def test_a_full_disk_in_the_middle_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    now = [0.0]
    saver = Checkpointer(tmp_path, 10.0, 1, told.append, clock=lambda: now[0])
    state = make_state(4)

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no room left: 9 bytes needed, 1 free")

    with monkeypatch.context() as patch:
        patch.setattr(files, "check_space", full)
        saver(state, report(4))
        assert told == []  # not yet due
        now[0] = 11.0
        saver(state, report(4))
        assert told == ["checkpoint not saved, training goes on: no room left: 9 bytes needed, 1 free"]
        saver(state, report(4))
        assert len(told) == 1  # tried again at the next turn, not at every step
        with pytest.raises(StorageError):
            saver.save(state)
    now[0] = 22.0
    saver(state, report(4))
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["images-000000000004"]


def test_tensorboard_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tensorboard_writer(tmp_path / "off", "off", 0) as writer:
        assert writer is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with tensorboard_writer(tmp_path / "auto", "auto", 0) as writer:
        assert writer is None
    with pytest.raises(MissingExtraError, match=r"pip install 'vitrail\[train\]'"):
        tensorboard_writer(tmp_path / "on", "on", 0).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    with tensorboard_writer(tmp_path, "on", 0) as writer:
        assert writer is not None
        with MetricsLog(tmp_path / "m.jsonl", 0.0, 0, (writer,)) as log:
            log(make_state(4), report(4, 2.5))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/model")] == [(4, 2.5)]
