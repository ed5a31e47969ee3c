"""The durable engine with real (tiny) models: pictures of the in-process engine, batches, memory (M1, M2)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.codes_schema import WalkRequest, WalkStop
from vitrail.errors import ArtifactError
from vitrail.provenance import metadata
from vitrail.request_fields import FileRef
from vitrail.schema import PictureDone, TextToImageRequest, parse
from vitrail.serving.durable import DurableEngine
from vitrail.serving.engine import Engine
from vitrail.serving.jobs import TERMINAL, Job
from vitrail.serving.warm_loader import WarmLoader
from vitrail.store.gallery import picture_id

WAIT = 120.0


def request(model: Path | str, **settings: Any) -> TextToImageRequest:
    return parse(TextToImageRequest, {"prompt": "a red cat", "seed": 7, "model": str(model), **settings})


def wait(engine: DurableEngine, id: str) -> Job:
    for event in engine.events(id, timeout=WAIT):
        last = event
    assert last.job.state in TERMINAL, f"nothing happened for {WAIT} s"
    return last.job


@pytest.fixture(scope="module")
def engine() -> Iterator[DurableEngine]:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="vitrail-test-", dir=base))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with DurableEngine(str(folder), device="cpu", precision="float32", preview_every=1) as made:
            yield made
    shutil.rmtree(folder)


def pixels(engine: DurableEngine, id: str) -> np.ndarray[Any, Any]:
    import io

    with Image.open(io.BytesIO(engine.gallery.open(id))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_pictures_are_those_of_the_in_process_engine(engine: DurableEngine, tiny_model: Path) -> None:
    asked = request(tiny_model, n=2, steps=3)
    job = wait(engine, engine.submit(asked).id)
    assert (job.state, job.error) == ("succeeded", None)
    with Engine("cpu", "float32") as plain:
        expected = [e for e in plain.events(plain.submit(asked)) if isinstance(e, PictureDone)]
    assert [picture.id for picture in job.pictures] == [picture_id(job.id, i) for i in (0, 1)]
    for one, event in zip(job.pictures, expected, strict=True):
        # The worker may use another number of threads, which turns the last bits.
        assert np.abs(pixels(engine, one.id) - np.asarray(event.picture).astype(int)).max() <= 1
        record = metadata.read(engine.gallery.open(one.id)).record
        assert record is not None
        assert record.request == event.record.request
        assert record.model_sha256 == event.record.model_sha256


def test_several_jobs_are_one_batch_and_each_gets_its_own_picture(
    engine: DurableEngine, tiny_model: Path
) -> None:
    blocker = engine.submit(request(tiny_model, steps=200, n=64))  # the others wait together meanwhile
    next(event for event in engine.events(blocker.id, timeout=WAIT) if event.type == "progress")
    asked = [
        request(tiny_model, prompt=prompt, seed=seed, steps=3)
        for prompt, seed in (("a red cat", 1), ("a dog", 2), ("a cat in a garden", 3), ("a dog", 4))
    ]
    ids = [engine.submit(one).id for one in asked]
    bad = engine.submit(request(tiny_model, style="notto", seed=5, steps=3)).id
    engine.cancel(blocker.id)
    jobs = [wait(engine, id) for id in ids]
    assert [job.state for job in jobs] == ["succeeded"] * 4
    refused = wait(engine, bad)
    assert refused.error is not None
    assert refused.error.message.startswith("style 'notto' is unknown")
    started = {job.started for job in (*jobs, refused)}
    assert len(started) <= 2, "they were not taken together"
    with Engine("cpu", "float32") as plain:
        for one, job in zip(asked, jobs, strict=True):
            done = next(e for e in plain.events(plain.submit(one)) if isinstance(e, PictureDone))
            found = pixels(engine, job.pictures[0].id)
            assert (
                np.abs(found - np.asarray(done.picture).astype(int)).max() <= 2
            )  # float rounding of a batch


def test_a_walk_ends_with_its_animation_and_a_file_comes_along(
    engine: DurableEngine, tiny_tokenizer_model: Path, tmp_path: Path
) -> None:
    stops = []
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
        stops.append(WalkStop(picture=FileRef.of(name, (tmp_path / name).read_bytes())))
    walk = WalkRequest(stops=tuple(stops), frames=4, seed=1, model=str(tiny_tokenizer_model))
    job = wait(engine, engine.submit(walk).id)
    assert job.error is None
    assert [picture.index for picture in job.pictures] == [0, 1, 2, 3, 4]
    animation = engine.gallery.get(job.pictures[4].id)
    assert (animation.kind, animation.suffix) == ("animation", ".webp")
    import io

    with Image.open(io.BytesIO(engine.gallery.open(animation.id))) as moving:
        assert moving.n_frames == 4  # type: ignore[attr-defined]


def test_what_cannot_be_served_says_why(engine: DurableEngine, tiny_model: Path) -> None:
    job = wait(engine, engine.submit(request("nowhere")).id)
    assert job.error is not None
    assert job.error.code == "ArtifactError"
    assert "no model nowhere" in job.error.message
    # A picture that no memory holds: a reason, and the next one succeeds in the same process.
    assert wait(engine, engine.submit(request(tiny_model, steps=1)).id).state == "succeeded"


def test_a_device_that_is_not_there_is_told_to_every_job(tmp_path: Path, tiny_model: Path) -> None:
    with DurableEngine(str(tmp_path), device="cuda:77") as engine:
        job = wait(engine, engine.submit(request(tiny_model)).id)
        assert job.error is not None
        assert job.error.code == "InputError"
        assert "cuda:77" in job.error.message
        assert job.attempts == 1


def resident(pid: int | str = "self") -> float:
    """Resident memory of a process in MiB, now."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def family(pid: int) -> dict[str, int]:
    """The worker beside ``pid`` and its working process, by the last word of their module."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            words = (place / "cmdline").read_bytes().split(b"\0")
            if parent == pid and b"-m" in words:
                name = words[words.index(b"-m") + 1].decode().rpartition("_")[2]
                found |= {name: int(place.name)} | family(int(place.name))
    return found


def mean_of_ten(engine: DurableEngine, asked: TextToImageRequest) -> dict[str, float]:
    """Make ten pictures; the mean of what server, worker and working process hold, in MiB."""
    sums: dict[str, float] = {}
    for _ in range(10):
        assert wait(engine, engine.submit(asked).id).state == "succeeded"
        for name, pid in (*family(os.getpid()).items(), ("server", os.getpid())):
            sums[name] = sums.get(name, 0.0) + resident(pid) / 10
    assert set(sums) == {"worker", "hands", "server"}
    return sums


def has_grown(first: dict[str, float], last: dict[str, float]) -> bool:
    """Whether they hold more than M1 allows."""
    # SQLite fills its cache of pages, 2 MiB, while the database grows; in the small worker that is seen.
    return sum(last.values()) >= 1.01 * sum(first.values()) or any(
        last[name] >= 1.01 * first[name] + 2 for name in first
    )


@pytest.mark.soak
@pytest.mark.alone
def test_five_hundred_pictures_take_no_more_memory_than_the_first(tmp_path: Path) -> None:
    """M1: means of ten after fifty pictures of the shipped model, and after five hundred more."""
    with DurableEngine(str(tmp_path), device="cpu", warm=("default",)) as engine:
        asked = request("default", seed=None)
        for _ in range(5):
            mean_of_ten(engine, asked)
        first = mean_of_ten(engine, asked)
        for _ in range(48):
            mean_of_ten(engine, asked)
        last = mean_of_ten(engine, asked)
        print({name: (round(first[name], 1), round(last[name], 1)) for name in first}, "MiB")
        assert not has_grown(first, last), (first, last)


def test_a_list_that_grows_with_every_picture_is_noticed(
    engine: DurableEngine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of M1: a server that keeps a part of its memory of each picture.

    So large a part that it shows although what earlier tests left may be given back meanwhile.
    """
    kept: list[bytes] = []
    share = int(resident() * (1 << 20) / 300)
    real = DurableEngine.submit

    def submit(self: DurableEngine, *args: Any, **settings: Any) -> Job:
        kept.append(os.urandom(share))
        return real(self, *args, **settings)

    monkeypatch.setattr(DurableEngine, "submit", submit)
    asked = request(tiny_model, steps=1)
    first = mean_of_ten(engine, asked)
    for _ in range(3):
        last = mean_of_ten(engine, asked)
    assert has_grown(first, last), (first, last)


@pytest.mark.parametrize("budget", [0, 1000], ids=["one at a time", "all: the negative control"])
def test_fifty_switches_take_the_memory_of_one_model(
    budget: int, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    """M2, with 100 MiB of ballast in each of three models, so that what is kept can be told from noise."""
    folders = [make_model(tmp_path / f"m{i}", upsampler=False, seed=i) for i in range(3)]
    size = 100 << 20
    loader = WarmLoader(torch.device("cpu"), budget)
    inner = loader._load

    def load(folder: Path) -> Any:
        model = inner(folder)
        model.network.register_buffer("ballast", torch.ones(size // 4))
        return model

    loader._load = load  # type: ignore[method-assign]
    first = WarmLoader(torch.device("cpu"), 0)
    first._load = load  # type: ignore[method-assign]
    for folder in folders:  # what is imported and kept at the first use is no model
        first.text_to_image(str(folder))
    first.kept("nothing", lambda: None)
    before = resident()
    peak = before
    for switch in range(50 if budget == 0 else 6):
        loader.text_to_image(str(folders[switch % 3]))
        peak = max(peak, resident())
    grown = (peak - before) * (1 << 20) / size
    if budget == 0:
        assert grown < 1.05
    else:
        assert grown > 1.9


def test_the_least_recently_used_model_goes_first(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    a, b, c = (make_model(tmp_path / name, upsampler=False, seed=i) for i, name in enumerate("abc"))
    loader = WarmLoader(torch.device("cpu"), 3)  # MiB; one takes 1.1, with the upsampler that it borrows
    first, second = loader.text_to_image(str(a)), loader.text_to_image(str(b))
    assert 2 << 20 < loader.held <= 3 << 20
    assert loader.text_to_image(str(a)) is first
    loader.text_to_image(str(c))
    assert loader.held <= 3 << 20
    assert loader.text_to_image(str(a)) is first
    assert loader.text_to_image(str(b)) is not second
    small = WarmLoader(torch.device("cpu"), 0)
    kept = small.text_to_image(str(a))
    assert small.text_to_image(str(a)) is kept  # one stays, however large
    small.text_to_image(str(b))
    assert small.text_to_image(str(a)) is not kept
    with pytest.raises(ArtifactError):
        small.text_to_image("nowhere")
    os.utime(a / "artifact.json", ns=(1, 1))  # another model of that name
    assert loader.text_to_image(str(a)) is not first
