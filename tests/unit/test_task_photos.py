"""Repair and enlargement as requests: masks, transparency, records, and what is refused in one line."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from photo_networks import save_migan, save_rrdb, tiny_migan, tiny_rrdb
from PIL import Image
from sd_tiny import make_folder

from vitrail.backends.hole_filling import fill_holes
from vitrail.backends.realesrgan import enlarge
from vitrail.codes_schema import InpaintRequest
from vitrail.errors import ArtifactError, CancelledError, DataError, InputError
from vitrail.photo_schema import RepairRequest, UpscaleRequest
from vitrail.request_fields import FileRef
from vitrail.schema import Done, Event, ImageRecord, PictureDone, Progress, describe, parse
from vitrail.tasks import upscale_photo
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader


def png(array: NDArray[np.uint8], name: str = "photo.png") -> FileRef:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return FileRef.of(name, data.getvalue())


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def alike(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Equal but for rounding: sums of another order may fall on the other side of a half."""
    return one.shape == two.shape and int(np.abs(one.astype(int) - two).max()) <= 1


def run(request: RepairRequest | UpscaleRequest) -> tuple[Image.Image, PictureDone, list[Event]]:
    told: list[Event] = []
    events = list(TASKS[request.kind](request, Loader(), Context(report=told.append)))
    (done,) = (event for event in events if isinstance(event, PictureDone))
    assert isinstance(events[-1], Done)
    return done.picture, done, told


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """Folders of a repairer and of an upscaler."""
    return str(save_migan(tmp_path / "migan")), str(save_rrdb(tmp_path / "rrdb"))


def repair(model: str, **values: Any) -> RepairRequest:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 15:30] = 255
    given = {"picture": png(noise(40, 50, 3)), "mask": png(mask, "mask.png"), "model": model}
    return parse(RepairRequest, given | values)


def test_repair_fills_the_mask_and_leaves_the_rest_to_the_byte(models: tuple[str, str]) -> None:
    request = repair(models[0])
    picture, done, told = run(request)
    before, after = noise(40, 50, 3), np.asarray(picture)
    hole = np.zeros((40, 50), bool)
    hole[10:20, 15:30] = True
    assert np.array_equal(after[~hole], before[~hole])
    assert alike(after, fill_holes(tiny_migan(), before, hole))
    assert (after[hole] != before[hole]).any()
    steps = [event for event in told if isinstance(event, Progress)]
    assert steps[-1].step == steps[-1].steps
    record = done.record
    assert (record.model_name, record.request.model, record.seed) == ("tiny-migan", "tiny-migan", 0)
    again = ImageRecord.from_json(record.to_json())
    assert isinstance(again.request, RepairRequest)
    assert again.request.mask.sha256 == request.mask.sha256
    assert b"PNG" not in record.to_json().encode()
    with pytest.raises(InputError, match="run that command again with the same file"):
        again.again()


def test_grey_of_a_mask_mixes_old_and_new(models: tuple[str, str]) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 15:30] = 255
    mask[10:20, 25:30] = 51  # a fifth
    picture, _, _ = run(repair(models[0], mask=png(mask)))
    before, after = noise(40, 50, 3), np.asarray(picture)
    filled = fill_holes(tiny_migan(), before, mask > 0)
    part = np.s_[10:20, 25:30]
    expected = before[part] * 0.8 + filled[part] * 0.2
    assert np.abs(after[part] - expected).max() <= 0.701
    assert alike(after[mask == 255], filled[mask == 255])
    assert np.array_equal(after[mask == 0], before[mask == 0])


def test_a_mask_can_be_widened(models: tuple[str, str]) -> None:
    picture, _, _ = run(repair(models[0], grow=3))
    hole = np.zeros((40, 50), bool)
    hole[7:23, 12:33] = True
    assert alike(np.asarray(picture), fill_holes(tiny_migan(), noise(40, 50, 3), hole))


def test_transparency_is_kept_and_a_mask_may_have_some(models: tuple[str, str]) -> None:
    photo = noise(40, 50, 4)
    mask = np.full((40, 50, 4), 255, np.uint8)
    mask[:, :, 3] = 0
    mask[5:9, 5:9, 3] = 255
    picture, _, _ = run(repair(models[0], picture=png(photo), mask=png(mask)))
    after = np.asarray(picture)
    assert picture.mode == "RGBA"
    assert np.array_equal(after[:, :, 3], photo[:, :, 3])
    hole = np.zeros((40, 50), bool)
    hole[5:9, 5:9] = True
    assert np.array_equal(after[~hole], photo[~hole])
    assert (after[hole] != photo[hole]).any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 50), np.uint8), "the mask is all black, so there is nothing to repair"),
        (np.full((40, 50), 255, np.uint8), "the mask leaves no pixel of the picture to go by"),
        (np.full((50, 40), 255, np.uint8), "the mask has 40x50 pixels and the picture 50x40; make the"),
        (np.full((1, 1), 255, np.uint8), "the mask has 1x1 pixels and the picture 50x40"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(
    models: tuple[str, str], mask: NDArray[np.uint8], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(repair(models[0], mask=png(mask)))


def test_files_and_models_that_cannot_be_are_named(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"mask\.png"):
        run(repair(models[0], mask=FileRef.of("mask.png", b"no picture")))
    with pytest.raises(InputError, match=r"the content of photo\.png is not in the request"):
        run(repair(models[0], picture=FileRef.of("photo.png", b"x").model_copy(update={"data": b""})))
    with pytest.raises(ArtifactError, match="not on this machine yet; run: vitrail models pull migan"):
        run(repair("migan"))
    with pytest.raises(ArtifactError, match=r"vitrail models pull realesrgan-x4 \(46 MB, BSD-3-Clause\)"):
        run(parse(UpscaleRequest, {"picture": png(noise(4, 4, 3))}))
    with pytest.raises(ArtifactError, match="of kind rrdb; one that repairs photographs is a migan"):
        run(repair(models[1]))
    with pytest.raises(ArtifactError, match="no model nowhere"):
        run(repair("nowhere"))


def upscale(model: str, **values: Any) -> UpscaleRequest:
    return parse(UpscaleRequest, {"picture": png(noise(20, 30, 3)), "model": model} | values)


@pytest.mark.parametrize("scale", [2, 4])
def test_upscale_makes_every_side_so_many_times_larger(models: tuple[str, str], scale: int) -> None:
    picture, done, told = run(upscale(models[1], scale=scale))
    assert picture.size == (30 * scale, 20 * scale)
    fidelity = 0.0 if scale == 4 else 0.5
    expected = enlarge(tiny_rrdb(), noise(20, 30, 3), scale=scale, fidelity=fidelity)  # type: ignore[arg-type]
    assert alike(np.asarray(picture), expected)
    assert [(event.step, event.steps) for event in told if isinstance(event, Progress)] == [(1, 1)]
    assert done.record.model_name == "tiny-rrdb"
    recorded = ImageRecord.from_json(done.record.to_json()).request
    assert isinstance(recorded, UpscaleRequest)
    assert recorded.fidelity == fidelity


def test_transparency_is_enlarged_and_hidden_colours_do_not_bleed(models: tuple[str, str]) -> None:
    photo = np.zeros((40, 40, 4), np.uint8)
    photo[10:30, 10:30] = (200, 100, 50, 255)
    other = photo.copy()
    other[photo[:, :, 3] == 0, :3] = 255
    one, _, _ = run(upscale(models[1], picture=png(photo)))
    two, _, _ = run(upscale(models[1], picture=png(other)))
    assert one.mode == "RGBA"
    assert one.size == (160, 160)
    assert np.array_equal(np.asarray(one), np.asarray(two))
    alpha = np.asarray(one.getchannel("A"))
    assert (alpha[44:116, 44:116] == 255).all()
    assert (alpha[:36] == 0).all()
    assert 0 < alpha[39, 80] < 255
    clear, _, _ = run(upscale(models[1], picture=png(np.zeros((5, 5, 4), np.uint8))))
    assert np.asarray(clear)[:, :, 3].max() == 0


def test_what_does_not_fit_into_memory_is_refused_first(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscale_photo, "_free_bytes", lambda: 100_000)
    with pytest.raises(
        InputError, match=r"a picture of 120x80 needs about 0\.0 GB of memory and 0\.0 GB are"
    ):
        run(upscale(models[1]))
    monkeypatch.setattr(upscale_photo, "_free_bytes", lambda: None)
    run(upscale(models[1]))


@pytest.mark.parametrize("kind", ["repair", "upscale"])
def test_work_stops_before_the_next_tile(models: tuple[str, str], kind: str) -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[10:20, 10:20] = mask[150:160, 150:160] = 255
    photo = png(noise(200, 200, 3))
    request: Any = (
        repair(models[0], picture=photo, mask=png(mask))
        if kind == "repair"
        else upscale(models[1], picture=photo, tile=64)
    )
    cancelled = threading.Event()
    context = Context(cancelled=cancelled)
    seen: list[Event] = []

    def report(event: Event) -> None:
        seen.append(event)
        cancelled.set()

    context.report = report
    with pytest.raises(CancelledError):
        list(TASKS[kind](request, Loader(), context))
    assert len(seen) == 1


def test_the_surface_is_frozen() -> None:
    """A change here changes every flag, HTTP body and form: make it on purpose."""
    rows = [(row.name, row.default, row.low, row.high, row.choices) for row in describe(RepairRequest)]
    assert rows == [
        ("picture", None, None, None, ()),
        ("mask", None, None, None, ()),
        ("grow", 0, 0, 256, ()),
        ("model", "migan", None, None, ()),
    ]
    rows = [(row.name, row.default, row.low, row.high, row.choices) for row in describe(UpscaleRequest)]
    assert rows == [
        ("picture", None, None, None, ()),
        ("scale", 4, None, None, ("2", "4")),
        ("tile", 256, 64, 1024, ()),
        ("fidelity", None, 0.0, 1.0, ()),
        ("model", "realesrgan-x4", None, None, ()),
    ]
    for row in (*describe(RepairRequest), *describe(UpscaleRequest)):
        assert row.en.endswith(".")
        assert any("一" <= character <= "鿿" for character in row.zh)


def test_a_mask_of_the_same_shape_is_resized_with_a_hint(models: tuple[str, str]) -> None:
    mask = np.zeros((80, 100), np.uint8)
    mask[20:40, 30:60] = 255
    picture, done, _ = run(repair(models[0], mask=png(mask)))
    assert done.record.hints == ("the mask was resized from 100x80 to the picture's size",)
    before, after = noise(40, 50, 3), np.asarray(picture)
    assert np.array_equal(after[:8], before[:8])
    assert (after[12:18, 17:28] != before[12:18, 17:28]).any()


def test_a_stable_diffusion_repairs_by_inpainting(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", "sd1-inpaint")
    photo = noise(64, 64, 3)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:44] = 255
    request = repair(str(folder), picture=png(photo), mask=png(mask), grow=2)
    picture, done, _ = run(request)
    after = np.asarray(picture)
    hole = np.zeros((64, 64), bool)
    hole[18:42, 18:46] = True
    assert np.array_equal(after[~hole], photo[~hole])
    assert (after[hole] != photo[hole]).mean() > 0.9
    record = done.record.request
    assert isinstance(record, InpaintRequest)
    assert record.only_masked
    assert record.prompt == ""


def test_upscalers_of_other_programs_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ComfyUI" / "models" / "upscale_models"
    folder.mkdir(parents=True)
    path = folder / "4x_Tiny.pth"
    torch.save({"params_ema": tiny_rrdb().state_dict()}, path)
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(tmp_path / "ComfyUI"))
    expected = enlarge(tiny_rrdb(), noise(20, 30, 3))
    for name in ("4x_tiny", str(path)):
        picture, done, _ = run(upscale(name))
        assert alike(np.asarray(picture), expected)
        assert done.record.model_name == done.record.request.model == "4x_Tiny"
    with pytest.raises(ArtifactError, match="no model 4x_other"):
        run(upscale("4x_other"))
