"""Every task with a tiny Stable Diffusion: what is added to it, by name and by path, and what records say."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")

import sd_tiny

from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.backends.sd.fast import DeepReuse
from vitrail.cli import main
from vitrail.codes_schema import InpaintRequest, VaryRequest
from vitrail.edit_schema import EditRequest
from vitrail.errors import ArtifactError, CancelledError, InputError
from vitrail.request_fields import FileRef
from vitrail.schema import ImageRecord, PictureDone, Preview, TextToImageRequest, parse
from vitrail.tasks.canvas import plan_canvas
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader
from vitrail.tasks.loading import checkpoint_place
from vitrail.tasks.opening import open_diffusion

SIZE = sd_tiny.SIZE


def ref_of_a_picture() -> FileRef:
    target = io.BytesIO()
    Image.new("RGB", (16, 16)).save(target, "PNG")
    return FileRef.of("edges.png", target.getvalue())


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of another program: a checkpoint, a VAE, a LoRA, an embedding."""
    root = tmp_path_factory.mktemp("comfy")
    sd_tiny.make_folder(root / "models" / "diffusers" / "tiny-sd", "sd1")
    sd_tiny.make_folder(root / "models" / "diffusers" / "tiny-inpaint", "sd1-inpaint")
    for kind in ("loras", "vae", "embeddings"):
        (root / "models" / kind).mkdir()
    torch.manual_seed(5)
    unet = sd_tiny.components("sd1", 0)["unet"]
    tensors: dict[str, torch.Tensor] = {}
    for name, module in unet.named_modules():
        if name.endswith("to_q"):
            key = "lora_unet_" + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, module.weight.shape[1])
            tensors[f"{key}.lora_up.weight"] = torch.randn(module.weight.shape[0], 2)
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, root / "models" / "loras" / "ink.safetensors")
    save_file({"lora_unet_nowhere.lora_down.weight": torch.randn(2, 7),
               "lora_unet_nowhere.lora_up.weight": torch.randn(7, 2)},
              root / "models" / "loras" / "stranger.safetensors")  # fmt: skip
    save_file({"emb_params": torch.randn(2, 128)}, root / "models" / "embeddings" / "mycat.safetensors")
    from diffusers import ControlNetModel

    edges = ControlNetModel.from_unet(unet)
    for parameter in edges.parameters():  # those that begin at zero must speak
        torch.nn.init.normal_(parameter, std=0.1)
    edges.save_pretrained(root / "models" / "controlnet" / "edges")
    torch.manual_seed(9)
    sd_tiny.make_vae("sd1").save_pretrained(root / "models" / "vae" / "other")
    return root


@pytest.fixture(autouse=True)
def _folders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(place))


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


def ref(picture: Image.Image) -> FileRef:
    target = io.BytesIO()
    picture.save(target, "PNG")
    return FileRef.of("cat.png", target.getvalue())


def photo(width: int = SIZE, height: int = SIZE) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make(loader: Loader, kind: type[Any] = TextToImageRequest, **given: Any) -> PictureDone:
    fields: dict[str, Any] = {"prompt": "a cat", "seed": 5, "steps": 2, "model": "tiny-sd", **given}
    request = parse(kind, fields)
    events = TASKS[request.kind](request, loader, Context(precision="float32"))
    return next(event for event in events if isinstance(event, PictureDone))


def pixels(loader: Loader, kind: type[Any] = TextToImageRequest, **given: Any) -> np.ndarray:
    return np.asarray(make(loader, kind, **given).picture)


def test_a_name_and_a_path_are_the_same_model(loader: Loader, place: Path) -> None:
    path = place / "models" / "diffusers" / "tiny-sd"
    assert checkpoint_place("tiny-sd") == checkpoint_place(str(path)) == path
    assert loader.kind("tiny-sd") == "stable_diffusion"
    one, other = make(loader), make(loader, model=str(path))
    assert np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
    assert other.record.request.model == "tiny-sd"
    assert ImageRecord.from_json(other.record.to_json()) == other.record
    assert str(place) not in other.record.to_json()


def test_fast_is_another_picture_that_can_be_made_again(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitrail.backends.sd.model as module

    made: list[DeepReuse] = []

    def reuse(*given: Any) -> DeepReuse:
        made.append(DeepReuse(*given))
        return made[-1]

    monkeypatch.setattr(module, "DeepReuse", reuse)
    exact = pixels(loader, steps=6)
    assert not made
    fast = make(loader, steps=6, fast=True)
    # guided for the first 4 of 6 steps; each batch size has its own whole first pass
    assert [(one.passes, one.whole) for one in made] == [(6, 2)]
    request = fast.record.request
    assert (request.fast, request.guidance_interval) == (True, (0.5, 1.0))
    assert not np.array_equal(np.asarray(fast.picture), exact)
    again = make(loader, **fast.record.again().model_dump(exclude_none=True, exclude={"kind"}))
    assert np.array_equal(np.asarray(again.picture), np.asarray(fast.picture))
    own = make(loader, steps=6, fast=True, guidance_interval=(0.1, 0.9)).record.request
    assert own.guidance_interval == (0.1, 0.9)
    assert np.array_equal(pixels(loader, steps=6), exact)  # nothing stays behind


def test_fast_in_tiles_keeps_no_features(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    import vitrail.backends.sd.model as module

    monkeypatch.setattr(module, "DeepReuse", lambda *_: pytest.fail("tiles would mix"))
    size = {"width": 2 * SIZE, "height": SIZE, "tile": True}
    tiled = pixels(loader, steps=6, fast=True, **size)
    assert np.array_equal(tiled, pixels(loader, steps=6, guidance_interval=(0.5, 1.0), **size))


@pytest.mark.parametrize("fast", [False, True])
def test_fast_previews_leave_the_decoder_alone(
    loader: Loader, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    fields = {"prompt": "a cat", "seed": 5, "steps": 4, "model": "tiny-sd", "fast": fast}
    make(loader, steps=1)
    calls: list[tuple[int, ...]] = []
    decode = KLAutoencoder.decode

    def counted(self: KLAutoencoder, z: Tensor) -> Tensor:
        calls.append(tuple(z.shape))
        return decode(self, z)

    monkeypatch.setattr(KLAutoencoder, "decode", counted)
    context = Context(precision="float32", preview_every=1, report=heard.append)
    list(TASKS["text_to_image"](parse(TextToImageRequest, fields), loader, context))
    previews = [event.picture for event in heard if isinstance(event, Preview)]
    side = SIZE // 2 if fast else SIZE
    assert [picture.size for picture in previews] == [(side, side)] * 4
    # the picture itself, and four previews or the one fit
    assert len(calls) == (2 if fast else 5)


def test_fast_is_not_for_models_of_pixels(loader: Loader) -> None:
    with pytest.raises(InputError, match="fast is not for model"):
        make(loader, model="default", fast=True)


def test_a_name_that_is_nowhere_lists_what_there_is(loader: Loader) -> None:
    with pytest.raises(
        ArtifactError, match=r"no model tiny-xd.*checkpoints in your folders: tiny-"
    ) as caught:
        make(loader, model="tiny-xd")
    assert "\n" not in str(caught.value)


def test_the_model_stays_loaded_with_and_without_additions(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitrail.backends.sd.open as module

    make(loader)
    monkeypatch.setattr(module, "open_stable_diffusion", lambda *_, **__: pytest.fail("loaded again"))
    make(loader)
    make(loader, lora=["ink"])


@pytest.mark.parametrize(
    "change",
    [
        {"lora": ["ink:0.5"]},
        {"prompt": "a cat <lora:ink:0.5>"},
        {"vae": "other"},
        {"clip_skip": 2},
        {"seamless": "x"},
        {"subseed": 1, "subseed_strength": 0.2},
        {"hires_scale": 2.0},
        {"negative_prompt": "dog"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_addition_reaches_the_picture_and_leaves_no_trace(
    loader: Loader, change: dict[str, Any]
) -> None:
    plain = pixels(loader)
    changed = pixels(loader, **change)
    assert plain.shape != changed.shape or not np.array_equal(plain, changed)
    assert np.array_equal(pixels(loader), plain)


def test_a_lora_is_the_same_by_flag_tag_and_path(loader: Loader, place: Path) -> None:
    path = place / "models" / "loras" / "ink.safetensors"
    flag = make(loader, lora=["ink:0.5"])
    tag = pixels(loader, prompt="a cat <lora:ink:0.5>")
    by_path = make(loader, lora=[f"{path}:0.5"])
    assert np.array_equal(np.asarray(flag.picture), tag)
    assert np.array_equal(np.asarray(flag.picture), np.asarray(by_path.picture))
    assert by_path.record.request.lora == flag.record.request.lora  # type: ignore[union-attr]
    # What a prompt says is looked up by name alone.
    with pytest.raises(InputError):
        make(loader, prompt=f"a cat <lora:{path}:0.5>")


@pytest.mark.parametrize("more", [{}, {"tile": True, "width": 96}])
def test_a_control_follows_its_picture(loader: Loader, more: dict[str, Any]) -> None:
    def use(picture: Image.Image, **given: Any) -> list[dict[str, Any]]:
        return [{"name": "edges", "picture": ref(picture), **given}]

    plain = pixels(loader, **more)
    event = make(loader, control=use(photo()), **more)
    assert not np.array_equal(np.asarray(event.picture), plain)
    assert not np.array_equal(
        np.asarray(event.picture), pixels(loader, control=use(photo().rotate(90)), **more)
    )
    assert np.array_equal(pixels(loader, control=use(photo(), strength=0.0), **more), plain)
    assert ImageRecord.from_json(event.record.to_json()).request.control[0].name == "edges"  # type: ignore[union-attr]


def test_a_control_of_a_part_is_that_part(loader: Loader) -> None:
    """Where only the masked area is worked on, the rest of the control's picture says nothing."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (16, 16, 48, 48))
    one, other = photo(128, 128), photo(128, 128)
    other.paste((255, 0, 0), (96, 0, 128, 128))
    given = {"picture": ref(photo(128, 128)), "mask": ref(mask), "only_masked": True, "padding": 8}
    found = [
        pixels(loader, InpaintRequest, control=[{"name": "edges", "picture": ref(each)}], **given)
        for each in (one, other, one.rotate(90))
    ]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_an_embedding_is_a_word(loader: Loader, place: Path) -> None:
    path = place / "models" / "embeddings" / "mycat.safetensors"
    given = {"prompt": "a mycat", "embedding": [str(path)]}
    event = make(loader, **given)
    assert event.record.request.embedding == ("mycat",)  # type: ignore[union-attr]
    assert not np.array_equal(np.asarray(event.picture), pixels(loader, prompt="a cat"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": ["nothing"]}, "nothing"),
        ({"lora": ["stranger"]}, "stranger|nothing of it|none"),
        ({"vae": "nothing"}, "nothing"),
        ({"control": [{"name": "nothing", "picture": ref_of_a_picture()}]}, "nothing"),
        ({"embedding": ["nothing"]}, "nothing"),
        ({"shift": 3.0}, "shift is not for model tiny-sd"),
        ({"temperature": 0.5}, "temperature is not for model tiny-sd"),
        ({"style": "noto"}, "no styles"),
        ({"width": 100}, "100"),
        ({"width": 4096, "height": 4096, "hires_scale": 2.0}, "too large"),
    ],
)
def test_refusals_are_one_line(loader: Loader, change: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ArtifactError), match=message) as caught:
        make(loader, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["tiny-sd", "tiny-inpaint"])
def test_every_task_works_with_models_that_were_trained_to_inpaint_too(loader: Loader, model: str) -> None:
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(255, (16, 16, 40, 48))
    assert pixels(loader, model=model).shape == (SIZE, SIZE, 3)
    assert pixels(loader, EditRequest, model=model, picture=ref(photo())).shape == (SIZE, SIZE, 3)
    for more in ({}, {"only_masked": True}, {"strength": 0.5, "content": "fill"}):
        found = pixels(loader, InpaintRequest, model=model, picture=ref(photo()), mask=ref(mask), **more)
        outside = np.asarray(mask) == 0
        assert np.array_equal(found[outside], np.asarray(photo())[outside])
    wide = pixels(loader, InpaintRequest, model=model, picture=ref(photo()), expand={"left": 20})
    assert np.array_equal(wide[:, 20:], np.asarray(photo()))
    tiles = pixels(loader, EditRequest, model=model, picture=ref(photo(100, 72)), tile=True, width=104)
    assert tiles.shape == (75, 104, 3)
    assert pixels(loader, VaryRequest, model=model, picture=ref(photo()), amount=0.3).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(("seamless", "axis"), [("x", 3), ("y", 2)])
def test_an_edge_that_wraps_is_like_any_other_place(loader: Loader, seamless: Any, axis: int) -> None:
    """Denoiser and autoencoder give the same for what is rolled, rolled; on the other axis not."""
    context = Context(precision="float32")
    request = parse(TextToImageRequest, {"prompt": "a cat", "model": "tiny-sd"})
    model = open_diffusion(loader, request, context)
    canvas = plan_canvas(model, SIZE, SIZE, seamless=seamless)
    conditioning = model.read("a cat", "", None)
    bound = canvas.bind(conditioning, "float32", context.check)
    x = torch.randn(1, *canvas.shape, generator=torch.Generator().manual_seed(0)) * 5
    sigma = torch.tensor([5.0])
    with torch.inference_mode(), canvas.seams_closed():
        plain, there = bound.cond(x, sigma), bound.cond(x.roll(4, axis), sigma)
        beside = bound.cond(x.roll(4, 5 - axis), sigma)
    assert torch.allclose(plain.roll(4, axis), there, atol=1e-4)
    assert not torch.allclose(plain.roll(4, 5 - axis), beside, atol=1e-2)
    with torch.inference_mode():
        pixels = canvas.decode(x, "float32")
        assert torch.allclose(pixels.roll(32, axis), canvas.decode(x.roll(4, axis), "float32"), atol=1e-4)
        z = canvas.encode(pixels.clamp(-1, 1))
        assert torch.allclose(z.roll(4, axis), canvas.encode(pixels.clamp(-1, 1).roll(32, axis)), atol=1e-4)


@pytest.mark.parametrize("given", [{"tile": True, "width": 96, "height": 64}, {"panorama": True}])
def test_beyond_the_trained_size(loader: Loader, given: dict[str, Any]) -> None:
    event = make(loader, **given)
    size = (96, 64) if "width" in given else (128, 64)
    assert event.picture.size == size
    again = event.record.again()
    assert np.array_equal(pixels(loader, **again.model_dump(exclude={"kind"})), np.asarray(event.picture))


def test_cancel_is_heard_within_a_tile(loader: Loader) -> None:
    told: list[Any] = []
    context = Context(precision="float32", report=told.append)
    request = parse(
        TextToImageRequest,
        {"prompt": "a cat", "model": "tiny-sd", "tile": True, "width": 128, "height": 128, "steps": 50},
    )
    context.report = lambda event: (told.append(event), context.cancelled.set())[0]  # type: ignore[func-returns-value]
    with pytest.raises(CancelledError):
        list(TASKS["text_to_image"](request, loader, context))
    assert len(told) == 1


def test_the_command_line_finds_it_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a cat", "--model", "tiny-sd", "--steps", "2", "--seed", "1", "--lora", "ink:0.5"]
    assert main([*words, "--precision", "float32", "-o", "one.png"]) == 0
    assert main(["generate", "--from-record", "one.png", "-o", "two.png"]) == 0
    with Image.open("one.png") as one, Image.open("two.png") as two:
        assert np.array_equal(np.asarray(one), np.asarray(two))
    data = Path("one.png").read_bytes()
    assert str(place).encode() not in data
    assert b"Lora: " in data
    capsys.readouterr()
    assert main(["generate", "a cat", "--model", "tiny-sd", "--lora", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
