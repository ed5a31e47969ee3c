"""The engine with a tiny real model: events, saving, cancel, re-attaching, failures."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.errors import ArtifactError, CancelledError, InputError, StorageError, VitrailError
from vitrail.provenance import metadata
from vitrail.schema import Done, PictureDone, Preview, Progress, TextToImageRequest, parse
from vitrail.serving import save as save_module
from vitrail.serving.engine import Engine
from vitrail.serving.save import Destination


def request(model: Path | str, **settings: Any) -> TextToImageRequest:
    return parse(TextToImageRequest, {"prompt": "a red cat", "seed": 7, "model": str(model), **settings})


@pytest.fixture
def engine() -> Any:
    with Engine("cpu", "float32") as engine:
        yield engine


def test_a_job_tells_progress_pictures_and_the_end_in_order(engine: Engine, tiny_model: Path) -> None:
    events = list(engine.events(engine.submit(request(tiny_model, n=2, steps=3), preview_every=2)))

    kinds = [type(event) for event in events]
    one = [Progress, Progress, Preview, Progress, PictureDone]
    assert kinds == [*one, *one, Done]
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3, 4, 5, 6]
    assert all(event.steps == 6 for event in events if isinstance(event, Progress))
    pictures = [event for event in events if isinstance(event, PictureDone)]
    assert [event.index for event in pictures] == [0, 1]
    assert [event.record.seed for event in pictures] == [7, 8]
    assert all(event.picture.size == (16, 16) and event.path is None for event in pictures)


def test_with_a_destination_pictures_are_saved_with_their_record_and_a_grid(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    events = list(engine.events(engine.submit(request(tiny_model, n=2), Destination(tmp_path))))

    done = events[-1]
    assert isinstance(done, Done)
    names = [Path(path).name for path in done.paths]
    assert names == ["0001-red-cat-seed7.png", "0002-red-cat-seed8.png", "0003-red-cat-grid.png"]
    assert sorted(os.listdir(tmp_path)) == names
    for event in events:
        if isinstance(event, PictureDone):
            info = metadata.read(Path(str(event.path)))
            assert info.record == event.record
            assert "a red cat" in info.texts["parameters"]
            with Image.open(str(event.path)) as stored:
                assert np.array_equal(np.asarray(stored), np.asarray(event.picture))


def test_no_picture_is_ever_overwritten_by_a_numbered_one(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "0041-old.png").write_bytes(b"old")
    for _ in range(2):
        list(engine.events(engine.submit(request(tiny_model), Destination(tmp_path))))
    assert sorted(os.listdir(tmp_path)) == [
        "0041-old.png",
        "0042-red-cat-seed7.png",
        "0043-red-cat-seed7.png",
    ]
    assert (tmp_path / "0041-old.png").read_bytes() == b"old"


def test_events_can_be_read_twice_and_from_another_thread(engine: Engine, tiny_model: Path) -> None:
    job = engine.submit(request(tiny_model))
    seen: list[list[Any]] = [[], []]

    def read(into: list[Any]) -> None:
        into.extend(engine.events(job))

    threads = [threading.Thread(target=read, args=(into,)) for into in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen[0] == seen[1] == list(engine.events(job))
    assert isinstance(seen[0][-1], Done)


def test_cancel_stops_within_one_step_and_leaves_the_next_job_alone(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    long = engine.submit(request(tiny_model, steps=200, n=8), Destination(tmp_path))
    following = engine.submit(request(tiny_model, steps=2))
    told: list[Any] = []

    def read() -> None:
        for event in engine.events(long):
            told.append(event)
            if len(told) == 3:
                engine.cancel(long)

    with pytest.raises(CancelledError):
        read()
    # The worker may be some steps ahead of the reader, never a picture.
    assert {type(event) for event in told} == {Progress}
    assert len(told) < 200
    assert os.listdir(tmp_path) == []
    assert isinstance(list(engine.events(following))[-1], Done)


def test_a_job_that_waits_is_cancelled_before_it_begins(engine: Engine, tiny_model: Path) -> None:
    running = engine.submit(request(tiny_model, steps=200))
    waiting = engine.submit(request(tiny_model))
    engine.cancel(waiting)
    engine.cancel(running)
    with pytest.raises(CancelledError, match="before it began"):
        list(engine.events(waiting))


def test_a_failed_job_raises_its_error_and_the_next_one_works(engine: Engine, tiny_model: Path) -> None:
    with pytest.raises(ArtifactError, match="no model nowhere"):
        list(engine.events(engine.submit(request("nowhere"))))
    with pytest.raises(InputError, match="style 'notto' is unknown; did you mean noto"):
        list(engine.events(engine.submit(request(tiny_model, style="notto"))))
    assert isinstance(list(engine.events(engine.submit(request(tiny_model))))[-1], Done)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"a file, not a folder|exists already"):
        engine.submit(request("never looked at"), Destination(tmp_path / "file" / "sub"))


def test_a_disk_that_fills_up_fails_the_job_in_one_line_and_leaves_nothing(
    engine: Engine, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no room left") as caught:
        list(engine.events(engine.submit(request(tiny_model), Destination(tmp_path))))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_model_stays_loaded_between_jobs(
    engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrail.store import artifacts

    loads: list[Any] = []
    real = artifacts.load
    monkeypatch.setattr(
        artifacts, "load", lambda folder, **more: (loads.append(folder), real(folder, **more))[1]
    )
    for _ in range(3):
        list(engine.events(engine.submit(request(tiny_model))))
    assert loads == [tiny_model, tiny_model / "upsampler"]


def test_the_time_of_a_job_is_told_by_part(engine: Engine, tiny_model: Path, tmp_path: Path) -> None:
    job = engine.submit(request(tiny_model), Destination(tmp_path))
    list(engine.events(job))
    seconds = engine.seconds(job)
    assert set(seconds) == {"load", "text", "denoise", "decode", "save"}
    assert all(value > 0 for value in seconds.values())


def test_out_of_memory_fails_the_job_with_a_reason_and_the_next_one_works(
    engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        torch.empty(2**60)  # more than any machine has: the allocator's own error

    with monkeypatch.context() as patch:
        patch.setattr("vitrail.tasks.text_to_image.to_pil", too_large)
        with pytest.raises(VitrailError, match="not enough memory for this picture"):
            list(engine.events(engine.submit(request(tiny_model))))
    assert isinstance(list(engine.events(engine.submit(request(tiny_model))))[-1], Done)


def test_an_unknown_job_and_a_closed_engine_are_refused(tiny_model: Path) -> None:
    engine = Engine("cpu")
    with pytest.raises(InputError, match="no such job"):
        engine.cancel("0" * 16)  # type: ignore[arg-type]
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.submit(request(tiny_model))


@pytest.mark.parametrize(
    ("output", "format", "folder", "name", "kind"),
    [
        (None, None, "out", None, "png"),
        ("pics", "webp", "pics", None, "webp"),
        ("a/cat.JPG", None, "a", "cat.JPG", "jpeg"),
        ("cat.jpeg", "jpeg", ".", "cat.jpeg", "jpeg"),
        ("v1.5", None, "v1.5", None, "png"),
    ],
)
def test_where_pictures_go(
    output: str | None, format: str | None, folder: str, name: str | None, kind: str
) -> None:
    destination = Destination.of(output, format)
    assert (destination.folder, destination.name, destination.format) == (Path(folder), name, kind)


@pytest.mark.parametrize(
    ("output", "format"), [("cat.png", "jpeg"), ("x", "gif"), ("", None), ("a\0b", None)]
)
def test_impossible_places_are_refused(output: str, format: str | None) -> None:
    with pytest.raises(InputError):
        Destination.of(output, format)


def test_a_named_file_is_replaced_and_several_are_numbered(
    engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    target = Destination.of(str(tmp_path / "cat.webp"))
    for _ in range(2):
        list(engine.events(engine.submit(request(tiny_model), target)))
    assert os.listdir(tmp_path) == ["cat.webp"]
    list(engine.events(engine.submit(request(tiny_model, n=2), target, preview_every=4)))
    assert sorted(os.listdir(tmp_path)) == [
        "cat-1.webp",
        "cat-2.webp",
        "cat-grid.webp",
        "cat-preview-1.webp",
        "cat-preview-2.webp",
        "cat.webp",
    ]


def test_two_writers_never_take_the_same_name(tmp_path: Path) -> None:
    def write() -> None:
        for _ in range(10):
            save_module._numbered("x", b"data", Destination(tmp_path))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([name for name in os.listdir(tmp_path) if name.endswith("-x.png")]) == 40
