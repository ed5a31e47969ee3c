"""Long works: what they tell, what they leave, how they stop and go on; tiny real ones."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from vitrail.data import emoji, feature_weights, font_source
from vitrail.errors import ArtifactError, CancelledError, DataError, InputError
from vitrail.recipe import dump_recipe, parse_recipe
from vitrail.serving import long_work_run
from vitrail.serving.long_work import (
    LONG_KINDS,
    STOPPED_MODEL,
    BuildDataRequest,
    CodebookRequest,
    EvaluateRequest,
    Figure,
    InspectRequest,
    LogLine,
    LongEvent,
    LongProgress,
    LongResult,
    PullModelRequest,
    SamplePicture,
    TrainRequest,
    run_name,
)
from vitrail.serving.long_work_run import run_long_work
from vitrail.store import artifacts

SHAPE: dict[str, Any] = {
    "image_size": 16, "patch": 2, "shell_width": 8, "shell_blocks": 1, "width": 16, "depth": 1, "heads": 2,
    "text_width": 384, "word_width": 4, "vocabulary": 30522, "styles": 2,
}  # fmt: skip


def paint(folder: Path, count: int, side: int = 16) -> Path:
    """Pictures of even colours and noise, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(count)
    for index in range(count):
        pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8) // 4 + 20 * (index % 8)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"a cat number {index}")
    return folder


def recipe(source: Path, *overrides: str) -> str:
    run = {
        "checkpoint_every_seconds": 1000, "log_every_seconds": 0, "tensorboard": "off",
        "sample_every_images": 16, "sample_prompts": ["a cat", "一只狗"], "held_out_every_images": 0,
    }  # fmt: skip
    tables = {
        "kind": "text_to_image",
        "name": "tiny",
        "data": {"source": str(source), "size": 16, "batch_size": 4},
        "model": SHAPE,
        "optim": {"until_images": 32, "warmup_images": 4, "precision": "float32"},
        "run": run,
    }
    return dump_recipe(parse_recipe(tables, overrides))


def work(
    request: Any, folder: Path, hear: Callable[[LongEvent], None] = lambda event: None
) -> tuple[LongResult, list[LongEvent]]:
    events: list[LongEvent] = []

    def report(event: LongEvent) -> None:
        events.append(event)
        hear(event)

    return run_long_work(request, report, threading.Event(), folder), events


def of(events: list[LongEvent], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# -- training ------------------------------------------------------------------------------------------------


def test_a_training_tells_everything_and_leaves_a_model(tmp_path: Path) -> None:
    source = paint(tmp_path / "pictures", 8)
    result, events = work(TrainRequest(recipe=recipe(source), run="first"), tmp_path)
    place = tmp_path / "runs" / "first"
    assert result.paths == (str(place / "model"), str(place))
    assert (place / "model" / "artifact.json").is_file()
    progress = of(events, LongProgress)
    assert (progress[0].total, progress[-1].done, progress[-1].total) == (32, 32, 32)
    assert all(a.done <= b.done for a, b in itertools.pairwise(progress))
    # Every figure of the log, once, at its step.
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    wanted = [
        (name, line["images"], value)
        for line in lines
        for name, value in line.items()
        if name not in ("images", "step", "seconds")
    ]
    assert sorted((f.name, f.step, f.value) for f in of(events, Figure)) == sorted(wanted)
    assert {name for name, _, _ in wanted} >= {"learning_rate", "images_per_second"}
    assert any(name.startswith("loss/") for name, _, _ in wanted)
    assert result.values["learning_rate"] == lines[-1]["learning_rate"]
    samples = of(events, SamplePicture)
    assert [sample.step for sample in samples] == [16, 32]
    for sample in samples:
        assert sample.data == (place / "samples" / f"{sample.name}.png").read_bytes()
        assert sample.data.startswith(b"\x89PNG")
    assert any("finished after 32 pictures" in event.line for event in of(events, LogLine))
    again, events = work(TrainRequest(recipe=recipe(source), run="first"), tmp_path)
    assert again.paths == result.paths
    assert any("nothing to do" in event.line for event in of(events, LogLine))
    assert of(events, Figure) == []


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Stop it in the middle, ask for it again: bit for bit what one uninterrupted run gives."""
    source = paint(tmp_path / "pictures", 8)
    straight, _ = work(TrainRequest(recipe=recipe(source), run="straight"), tmp_path)
    cancelled, events = threading.Event(), []

    def report(event: LongEvent) -> None:
        events.append(event)
        if isinstance(event, LongProgress):
            cancelled.set()

    request = TrainRequest(recipe=recipe(source), run="stopped")
    with pytest.raises(CancelledError, match="stopped at 4 pictures, checkpoint saved"):
        run_long_work(request, report, cancelled, tmp_path)
    assert not (tmp_path / "runs" / "stopped" / "model").exists()
    (checkpoint,) = (tmp_path / "runs" / "stopped" / "checkpoints").iterdir()
    # It can be tried as it is: a whole model folder with the averaged weights of the checkpoint.
    so_far = tmp_path / "runs" / "stopped" / STOPPED_MODEL
    artifacts.read_manifest(so_far, verify=True)
    kept = {f"model/{name}": value for name, value in load_file(so_far / "model.safetensors").items()}
    average, latest = (load_file(checkpoint / f"{name}.safetensors") for name in ("average", "weights"))
    assert average.keys() <= kept.keys()
    assert all((kept[name] == value).all() for name, value in average.items())
    assert not all((kept[name] == latest[name]).all() for name in average)
    result, events = work(request, tmp_path)
    assert min(figure.step for figure in of(events, Figure)) == 8  # nothing is told twice
    assert of(events, LongProgress)[0].done == 8
    assert not so_far.exists()
    one, other = (load_file(Path(end.paths[0]) / "model.safetensors") for end in (straight, result))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_a_training_of_a_time_counts_seconds(tmp_path: Path) -> None:
    source = paint(tmp_path / "pictures", 8)
    text = recipe(source, "optim.time_budget_minutes=0.01", "run.sample_every_images=0")
    text = text.replace("until_images = 32\n", "")
    result, events = work(TrainRequest(recipe=text), tmp_path)
    assert Path(result.paths[1]) == tmp_path / "runs" / "tiny"
    assert of(events, LongProgress)[-1].total == 1


def test_a_recipe_is_suggested_for_a_folder(tmp_path: Path) -> None:
    source = paint(tmp_path / "my pictures", 8, side=40)
    changes = ("optim.until_images=2", "data.batch_size=2", "run.sample_every_images=0", "model.depth=1")
    result, events = work(TrainRequest(data=str(source), changes=changes), tmp_path)
    lines = [event.line for event in of(events, LogLine)]
    assert "8 pictures can be used" in lines[0]
    assert Path(result.paths[0]) == tmp_path / "runs" / "my-pictures" / "model"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"recipe": "kind = "}, "not valid TOML"),
        ({"recipe": 'kind = "text_to_image"\nname = "x"\n[nonsense]\na = 1\n'}, "nonsense"),
        ({"recipe": 'kind = "staged"\nname = "x"\n'}, "staged recipe"),
        ({"recipe": "[" * 5000}, "nested|TOML"),
        ({"data": "/no/such/folder"}, "does not exist|no such|folder"),
        ({"recipe": 'kind = "text_to_image"', "changes": ("nonsense",)}, "nonsense"),
    ],
)
def test_what_cannot_be_trained_is_one_line(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, DataError), match=words) as caught:
        work(TrainRequest(**values), tmp_path)
    assert "\n" not in str(caught.value)


# -- the others ----------------------------------------------------------------------------------------------


def test_an_inspection(tmp_path: Path) -> None:
    source = paint(tmp_path / "pictures", 6)
    (source / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result, events = work(InspectRequest(pictures=str(source), size=16), tmp_path)
    place = tmp_path / "reports" / "inspect-pictures"
    assert result.paths[0] == str(place / "report.html")
    assert Path(result.paths[0]).read_text(encoding="utf-8").startswith("<!")
    assert result.values == {"pictures": 6.0, "problems": 1.0}
    assert of(events, SamplePicture)[0].data.startswith(b"\x89PNG")
    assert any("broken.png" in event.line for event in of(events, LogLine))
    assert of(events, LongProgress)


def test_an_inspection_stops(tmp_path: Path) -> None:
    source = paint(tmp_path / "pictures", 30)
    cancelled = threading.Event()
    with pytest.raises(CancelledError):
        run_long_work(
            InspectRequest(pictures=str(source)), lambda event: cancelled.set(), cancelled, tmp_path
        )
    assert not (tmp_path / "reports").exists()


def test_an_evaluation_of_folders(tmp_path: Path) -> None:
    one, other = paint(tmp_path / "made", 8), paint(tmp_path / "real", 9)
    request = EvaluateRequest(
        pictures=str(one), against=str(other), paired=True, metrics=("psnr", "ssim"), language="zh"
    )
    result, events = work(request, tmp_path)
    assert set(result.values) == {"psnr", "ssim"}
    assert result.paths[0] == str(tmp_path / "reports" / "evaluate-made" / "report.html")
    data = json.loads((tmp_path / "reports" / "evaluate-made" / "report.json").read_text(encoding="utf-8"))
    assert data["metrics"]["psnr"]["value"] == pytest.approx(result.values["psnr"])
    assert of(events, LongProgress)
    second, _ = work(request, tmp_path)  # the first report stays
    assert "evaluate-made-2" in second.paths[0]


def test_two_evaluations_of_one_name_at_the_same_time_leave_two_reports(tmp_path: Path) -> None:
    """As two workers do; one that is stopped leaves no empty folder."""
    one, other = paint(tmp_path / "made", 8), paint(tmp_path / "real", 9)
    request = EvaluateRequest(pictures=str(one), against=str(other), paired=True, metrics=("psnr",))
    inner: list[LongResult] = []

    def report(event: LongEvent) -> None:
        if not inner and isinstance(event, LongProgress):
            inner.append(work(request, tmp_path)[0])

    outer = run_long_work(request, report, threading.Event(), tmp_path)
    pages = {outer.paths[0], inner[0].paths[0]}
    assert len(pages) == 2
    assert all(Path(page).is_file() for page in pages)
    cancelled = threading.Event()
    with pytest.raises(CancelledError):
        run_long_work(request, lambda event: cancelled.set(), cancelled, tmp_path)
    assert len(list((tmp_path / "reports").iterdir())) == 2


def test_a_reports_folder_that_another_worker_takes_away_is_not_worked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with nothing between our opening and our locking of it; and is made anew by a third."""
    one, other = paint(tmp_path / "made", 8), paint(tmp_path / "real", 9)
    request = EvaluateRequest(pictures=str(one), against=str(other), paired=True, metrics=("psnr",))
    real, calls = long_work_run.fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        calls.append(handle)
        if len(calls) < 3:
            place = next((tmp_path / "reports").iterdir())
            place.rmdir()
            if len(calls) == 2:
                place.mkdir()
        real(handle, how)

    monkeypatch.setattr(long_work_run.fcntl, "flock", flock)
    assert "evaluate-made-3" in work(request, tmp_path)[0].paths[0]


def test_an_evaluation_that_finds_no_process_says_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's word for it is the same as for a folder that is locked."""

    def evaluate(*arguments: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("vitrail.serving.evaluate_work.evaluate", evaluate)
    request = EvaluateRequest(pictures=str(paint(tmp_path / "made", 8)), metrics=("psnr",))
    with pytest.raises(BlockingIOError):
        work(request, tmp_path)
    assert not list((tmp_path / "reports").iterdir())


def test_an_evaluation_of_a_model(tmp_path: Path, tiny_model: Path) -> None:
    real = paint(tmp_path / "real", 9)
    request = EvaluateRequest(
        model=str(tiny_model),
        prompts=("a cat", "a dog"),
        seeds=2,
        steps=2,
        against=str(real),
        metrics=("seed_variety",),
        name="mine",
    )
    result, _ = work(request, tmp_path)
    place = tmp_path / "reports" / "evaluate-mine"
    assert len([path for path in (place / "pictures").iterdir() if "grid" not in path.name]) == 4
    assert result.values["seed_variety"] > 0
    cancelled = threading.Event()
    with pytest.raises(CancelledError):
        run_long_work(request, lambda event: cancelled.set(), cancelled, tmp_path)


def test_a_codebook(tmp_path: Path, tiny_tokenizer_model: Path) -> None:
    result, events = work(CodebookRequest(model=str(tiny_tokenizer_model), count=9), tmp_path)
    (sample,) = of(events, SamplePicture)
    assert Path(result.paths[0]).read_bytes() == sample.data
    assert result.values["codes"] == 64
    source = paint(tmp_path / "pictures", 3, side=32)
    (source / "broken.png").write_bytes(b"no picture")
    request = CodebookRequest(model=str(tiny_tokenizer_model), count=9, pictures=str(source))
    counted, events = work(request, tmp_path)
    assert counted.values["used"] <= 48  # 3 pictures of 4 x 4 codes
    assert any("left out" in event.line for event in of(events, LogLine))
    with pytest.raises(InputError, match="does not exist"):
        work(request.model_copy(update={"pictures": "/no/such"}), tmp_path)


@pytest.mark.parametrize(
    ("what", "module", "function"),
    [
        ("emoji", emoji, "build_emoji"),
        ("networks", feature_weights, "build_networks"),
        ("font", font_source, "build_font"),
    ],
)
def test_building_passes_on_progress_and_stops(
    what: Any, module: Any, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builders need packages from a registry; what stands between them and a job is tested here."""
    done: list[int] = []

    def build(*args: Any, progress: Any, **values: Any) -> Any:
        for step in range(3):
            progress("fetch", step, 3)
            done.append(step)
        return [tmp_path / "a"] if what == "networks" else tmp_path / "a"

    monkeypatch.setattr(module, function, build)
    result, events = work(BuildDataRequest(what=what), tmp_path)
    assert result.paths == (str(tmp_path / "a"),)
    assert [(event.what, event.done, event.total) for event in of(events, LongProgress)] == [
        ("fetch", step, 3) for step in range(3)
    ]
    done.clear()
    cancelled = threading.Event()
    with pytest.raises(CancelledError):
        run_long_work(BuildDataRequest(what=what), lambda event: cancelled.set(), cancelled, tmp_path)
    assert done == [0]


def test_a_model_that_no_catalogue_has(tmp_path: Path) -> None:
    with pytest.raises((InputError, ArtifactError), match="no-such-model"):
        work(PullModelRequest(name="no-such-model"), tmp_path)


@pytest.mark.parametrize("kind", sorted(LONG_KINDS))
def test_what_is_cancelled_before_it_begins_does_nothing(kind: str, tmp_path: Path) -> None:
    given: dict[str, dict[str, Any]] = {
        "train": {"data": "x"},
        "build_data": {"what": "font"},
        "evaluate": {"pictures": "x"},
        "inspect": {"pictures": "x"},
        "codebook": {"model": "x"},
        "pull_model": {"name": "x"},
    }
    cancelled = threading.Event()
    cancelled.set()
    request: Any = LONG_KINDS[kind](**given[kind])
    assert request.kind == kind
    assert LONG_KINDS[kind].model_validate_json(request.model_dump_json()) == request
    with pytest.raises(CancelledError):
        run_long_work(request, lambda event: None, cancelled, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_requests_are_strict() -> None:
    assert set(LONG_KINDS) == {"train", "build_data", "evaluate", "inspect", "codebook", "pull_model"}
    for broken in (
        lambda: TrainRequest(),
        lambda: TrainRequest(data="x", run="../up"),
        lambda: EvaluateRequest(),
        lambda: EvaluateRequest(pictures="a", paired=True),
        lambda: EvaluateRequest(pictures="a", prompts=("a cat",)),
        lambda: EvaluateRequest(pictures="a", name="../up"),
        lambda: InspectRequest(pictures="a\0b"),
        lambda: CodebookRequest(model="a", count=0),
        lambda: BuildDataRequest(what="everything"),  # type: ignore[arg-type]
        lambda: PullModelRequest(name="a", more=1),  # type: ignore[call-arg]
    ):
        with pytest.raises(ValidationError):
            broken()
    for model in LONG_KINDS.values():
        for name, field in model.model_fields.items():
            assert name == "kind" or (field.description and field.json_schema_extra), (model, name)


def test_names_of_folders() -> None:
    assert run_name("my pictures/猫 2") == "my-pictures-2"
    assert run_name("../..") == run_name("") == run_name("猫") == "work"
    assert len(run_name("a" * 500)) == 60
