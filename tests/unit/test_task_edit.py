"""Image to image, inpainting and outpainting with a diffusion model, against the formulas and to the byte."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.codes_schema import InpaintRequest
from vitrail.edit_schema import EditRequest
from vitrail.errors import CancelledError, DataError, InputError, NonFiniteError
from vitrail.images import to_pil, to_tensor
from vitrail.request_fields import FileRef
from vitrail.samplers.schedules import flow_shift, simple
from vitrail.schema import ImageRecord, PictureDone, Preview, Progress, parse
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader
from vitrail.tasks.diffusion import steps_taken
from vitrail.tasks.masks import blended, box_around, held, read_mask, release_levels


def ref(picture: Image.Image, name: str = "cat.png") -> FileRef:
    target = io.BytesIO()
    picture.save(target, "PNG")
    return FileRef.of(name, target.getvalue())


def photo(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def mask_of(width: int, height: int, box: tuple[int, int, int, int], value: int = 255) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(value, box)
    return mask


@pytest.fixture(scope="module")
def loader(tiny_model: Path) -> Loader:
    return Loader()


def make(
    kind: type[Any], loader: Loader, model: Path, context: Context | None = None, **given: Any
) -> list[PictureDone]:
    fields = {"prompt": "a red cat", "seed": 5, "steps": 4, "model": str(model), **given}
    request = parse(kind, fields)
    events = TASKS[request.kind](request, loader, context or Context(precision="float32"))
    return [event for event in events if isinstance(event, PictureDone)]


def edited(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> np.ndarray:
    return np.stack(
        [np.asarray(event.picture) for event in make(EditRequest, loader, model, context, **given)]
    )


def painted(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> np.ndarray:
    made = make(InpaintRequest, loader, model, context, **given)
    return np.stack([np.asarray(event.picture) for event in made])


def test_an_edit_is_what_the_formula_says(loader: Loader, tiny_model: Path) -> None:
    """Euler's method from the noised picture, written out, with guidance."""
    model = loader.text_to_image(str(tiny_model))
    picture = photo()
    known = to_tensor([picture])
    states = model.text(["a red cat", ""])  # type: ignore[misc]
    eps = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    levels = flow_shift(simple(8), 3.0)[2:]  # 6 of 8 steps
    x = (1 - levels[0]) * known + levels[0] * eps
    with torch.inference_mode():
        for level, after in itertools.pairwise(levels):
            both = model.network(
                x.repeat(2, 1, 1, 1),
                level.repeat(2),
                states.states,
                states.mask,
                states.ids,
                torch.zeros(2, dtype=torch.long),
            )
            x0 = both[1:] + 2.5 * (both[:1] - both[1:])
            x = x0 + (x - x0) * (after / level)
    expected = np.asarray(to_pil(x)[0]).astype(int)
    given = {"sampler": "euler", "schedule": "simple", "shift": 3.0, "cfg_scale": 2.5, "steps": 8}
    found = edited(loader, tiny_model, picture=ref(picture), strength=0.75, **given)[0]
    assert np.abs(found - expected).max() <= 1


def test_strength_decides_how_much_changes(loader: Loader, tiny_model: Path) -> None:
    picture = photo()
    before = np.asarray(picture).astype(int)
    changes = [
        np.abs(edited(loader, tiny_model, picture=ref(picture), strength=s, steps=10)[0] - before).mean()
        for s in (0.0, 0.1, 0.5, 1.0)
    ]
    assert changes[0] == 0.0
    assert min(changes[1:]) > 2
    assert len(set(changes)) == 4
    assert [steps_taken(20, s) for s in (0.0, 0.01, 0.5, 0.99, 1.0)] == [0, 1, 10, 19, 20]


def test_a_grey_mask_is_a_smaller_strength(loader: Loader, tiny_model: Path) -> None:
    """A place of mask 0.5 is held to the picture until half the walk is done: the same as strength 0.5."""
    picture, grey = photo(), Image.new("L", (16, 16), 128)
    given = {"picture": ref(picture), "sampler": "euler", "steps": 8}
    half = edited(loader, tiny_model, strength=0.5, **given)[0].astype(int)
    masked = edited(loader, tiny_model, strength=1.0, mask=ref(grey), **given)[0]
    assert np.abs(masked - half).max() <= 1
    assert np.abs(edited(loader, tiny_model, strength=1.0, **given)[0] - half).mean() > 5


@pytest.mark.parametrize("side", [16, 32, 50])
@pytest.mark.parametrize(
    "more", [{}, {"only_masked": True, "padding": 2}, {"content": "fill", "strength": 0.5}]
)
def test_what_the_mask_leaves_is_the_picture_itself(
    loader: Loader, tiny_model: Path, side: int, more: dict[str, Any]
) -> None:
    picture = photo(side, side)
    mask = mask_of(side, side, (side // 4, side // 4, side // 2, side - 3))
    found = painted(loader, tiny_model, picture=ref(picture), mask=ref(mask), **more)[0]
    before, inside = np.asarray(picture), np.asarray(mask) > 0
    assert found.shape == before.shape
    assert np.array_equal(found[~inside], before[~inside])
    assert np.abs(found[inside].astype(int) - before[inside]).mean() > 2


@pytest.mark.parametrize("content", ["original", "fill", "noise"])
def test_what_lies_under_the_mask_counts_below_full_strength(
    loader: Loader, tiny_model: Path, content: str
) -> None:
    one, other = photo(seed=0), photo(seed=0)
    mask = mask_of(16, 16, (4, 4, 12, 12))
    other.paste((0, 255, 0), (5, 5, 11, 11))
    given = {"mask": ref(mask), "strength": 0.5, "content": content, "steps": 8}
    same = np.array_equal(
        painted(loader, tiny_model, picture=ref(one), **given),
        painted(loader, tiny_model, picture=ref(other), **given),
    )
    assert same == (content != "original")


def test_beyond_the_edges(loader: Loader, tiny_model: Path) -> None:
    picture = photo(16, 16)
    margins = {"left": 8, "bottom": 4}
    found = painted(loader, tiny_model, picture=ref(picture), expand=margins)[0]
    assert found.shape == (20, 24, 3)
    assert np.array_equal(found[:16, 8:], np.asarray(picture))


def test_each_picture_depends_on_its_own_seed_alone(loader: Loader, tiny_model: Path) -> None:
    given = {"picture": ref(photo()), "sampler": "euler_ancestral"}
    three = edited(loader, tiny_model, n=3, **given)
    for i in range(3):
        assert np.array_equal(three[i], edited(loader, tiny_model, seed=5 + i, **given)[0])
    together = edited(loader, tiny_model, Context(precision="float32", batch_size=3), n=3, **given)
    assert np.abs(three.astype(int) - together).max() <= 1


@pytest.mark.parametrize(
    ("size", "result"),
    [((16, 16), (16, 16)), ((40, 24), (27, 16)), ((12, 12), (12, 12)), ((200, 100), (32, 16))],
)
def test_sizes(loader: Loader, tiny_model: Path, size: tuple[int, int], result: tuple[int, int]) -> None:
    events = make(EditRequest, loader, tiny_model, picture=ref(photo(*size)))
    assert events[0].picture.size == result
    assert ("the model's size" in " ".join(events[0].record.hints)) == (size == (200, 100) or size[0] == 40)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_size_that_is_asked_for(loader: Loader, tiny_model: Path, fit: str) -> None:
    given = {"picture": ref(photo(48, 24)), "mask": ref(mask_of(48, 24, (30, 0, 48, 24)))}
    assert edited(loader, tiny_model, width=16, height=16, fit=fit, **given).shape == (1, 16, 16, 3)
    assert edited(loader, tiny_model, width=32, **given).shape == (1, 16, 32, 3)


def test_the_record_tells_all_but_the_picture(loader: Loader, tiny_model: Path) -> None:
    event = make(EditRequest, loader, tiny_model, picture=ref(photo()), n=2)[1]
    record = event.record
    assert ImageRecord.from_json(record.to_json()).model_dump() == record.model_dump()
    assert record.request.model == "tiny"
    assert record.request.kind == "edit"
    assert record.request.sampler == "euler"
    assert (record.index, record.seed) == (1, 6)
    with pytest.raises(InputError, match="made by vitrail edit of a file"):
        record.again()


def test_progress_previews_and_cancel(loader: Loader, tiny_model: Path) -> None:
    told: list[Any] = []
    context = Context(precision="float32", preview_every=2, report=told.append)
    edited(loader, tiny_model, context, picture=ref(photo()), n=2, steps=8, strength=0.5)
    assert [event.step for event in told if isinstance(event, Progress)] == list(range(1, 9))
    assert len([event for event in told if isinstance(event, Preview)]) == 4

    def stop(event: Any) -> None:
        told.append(event)
        context.cancelled.set()

    told.clear()
    context = Context(precision="float32", report=stop)
    with pytest.raises(CancelledError):
        edited(loader, tiny_model, context, picture=ref(photo()), steps=50)
    assert len(told) == 1


def test_no_numbers_are_a_clear_failure(
    loader: Loader, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = loader.text_to_image(str(tiny_model)).network
    monkeypatch.setattr(network, "forward", lambda x, *_: torch.full_like(x, torch.nan))
    with pytest.raises(NonFiniteError, match="no finite picture for seed 5"):
        edited(loader, tiny_model, Context(precision="bfloat16"), picture=ref(photo()))


@pytest.mark.parametrize(
    ("kind", "given", "error", "message"),
    [
        (EditRequest, {"mask": ref(Image.new("L", (16, 16)))}, InputError, "the mask is black everywhere"),
        (EditRequest, {"mask": ref(Image.new("L", (9, 16)))}, InputError, "the mask has 9x16 pixels"),
        (EditRequest, {"sampler": "maskgit"}, InputError, "sampler maskgit is not for model tiny"),
        (EditRequest, {"lora": ["ink"]}, InputError, "lora is not for model tiny, which draws pixels"),
        (EditRequest, {"picture": FileRef.of("x.png", b"\x89PNG")}, DataError, "x.png"),
        (InpaintRequest, {"temperature": 0.5, "expand": {"left": 4}}, InputError, "temperature is not for"),
        (InpaintRequest, {"mask": ref(Image.new("L", (16, 16)))}, InputError, "no white pixel"),
    ],
)
def test_refusals_are_one_line(
    loader: Loader,
    tiny_model: Path,
    kind: type[Any],
    given: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        make(kind, loader, tiny_model, **({"picture": ref(photo())} | given))
    assert "\n" not in str(caught.value)


def test_a_model_of_codes_refuses_what_is_for_diffusion(loader: Loader, tiny_prior: Path) -> None:
    given = {"picture": ref(photo(48, 48)), "expand": {"left": 8}, "prompt": ""}
    for more in ({"strength": 0.5}, {"sampler": "euler"}, {"negative_prompt": "x"}, {"only_masked": True}):
        name = next(iter(more))
        with pytest.raises(InputError, match=f"^{name} is not for"):
            make(InpaintRequest, loader, tiny_prior, **given, **more)


# -- masks ---------------------------------------------------------------------------------------------------


def test_masks_are_read_by_brightness_or_by_what_is_opaque() -> None:
    grey = Image.new("L", (4, 2), 51)
    assert torch.allclose(read_mask(ref(grey), (4, 2))[0], torch.full((2, 4), 0.2))
    drawn = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (1, 0, 2, 2))
    assert read_mask(ref(drawn), (4, 2))[0].tolist() == [[0, 1, 0, 0]] * 2
    mask, hints = read_mask(ref(grey), (8, 4))
    assert mask.shape == (4, 8)
    assert hints == ("the mask was resized from 4x2 to the picture's size",)


def test_release_levels_follow_the_strength() -> None:
    levels = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    mask = torch.tensor([[0.0, 0.001, 0.25, 0.5, 0.99, 1.0]])
    assert release_levels(mask, (1, 6), levels, 4, 1.0).flatten().tolist() == [-1, 0.25, 0.25, 0.5, 0.75, 1.0]
    assert release_levels(mask, (1, 6), levels, 4, 0.5).flatten().tolist() == [
        -1,
        0.25,
        0.25,
        0.25,
        0.25,
        0.5,
    ]
    # Any masked pixel frees its place.
    assert release_levels(mask, (1, 2), levels, 4, 1.0).flatten().tolist() == [0.25, 1.0]


def test_a_held_place_answers_with_the_picture_until_its_level() -> None:
    release = torch.tensor([[[[-1.0, 0.5, 1.0]]]])
    known = torch.tensor([[[[7.0, 7.0, 7.0]]]])
    denoiser = held(lambda x, sigma: torch.zeros_like(x), known, release)
    x = torch.ones(1, 1, 1, 3)
    for level, answer in ((1.0, [7, 7, 0]), (0.51, [7, 7, 0]), (0.5, [7, 0, 0]), (0.1, [7, 0, 0])):
        assert denoiser(x, torch.tensor([level])).flatten().tolist() == answer


def test_colours_meet_at_the_seam() -> None:
    """A painting that is off by a constant (an autoencoder's shift) comes back as the picture."""
    before = torch.linspace(-0.5, 0.5, 40).expand(3, 40, 40).clone()
    mask = torch.zeros(40, 40)
    mask[10:30, 12:28] = 1.0
    result = blended(before, before + 0.2, mask, 4)
    assert torch.equal(result[:, mask == 0], before[:, mask == 0])
    assert (result - before).abs().max() < 1e-5
    assert torch.equal(blended(before, before + 0.2, torch.ones(40, 40), 4), before + 0.2)
    assert torch.equal(blended(before, before + 0.2, torch.zeros(40, 40), 4), before)


def test_the_box_around_a_mask() -> None:
    mask = torch.zeros(20, 30)
    mask[5, 7] = mask[8, 25] = 0.1
    assert box_around(mask, 0) == (7, 5, 26, 9)
    assert box_around(mask, 6) == (1, 0, 30, 15)
