"""GANs and VAEs through the same request as the others: classes by words, seeds, truncation, noise, walks."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.chinese import in_chinese
from vitrail.codes_schema import WalkRequest
from vitrail.data.classes import ClassName
from vitrail.data.fashion_mnist import FASHION_CLASSES
from vitrail.errors import ArtifactError, InputError
from vitrail.models import registry
from vitrail.models.gan import Generator
from vitrail.request_fields import FileRef
from vitrail.schema import Done, PictureDone, TextToImageRequest, parse
from vitrail.store import artifacts
from vitrail.tasks.class_prompts import find_classes, read_classes
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader
from vitrail.tasks.gan_generation import gan_walk, generate_from_latents, latents, load_gan, slerp

NAMES = (ClassName("dark", "暗", ("black",)), ClassName("light", "亮", ("white",)), ClassName("grey", "灰色"))


def make_model(folder: Path, kind: str = "biggan", classes: int = 3, **given: Any) -> Path:
    torch.manual_seed(0)
    config = (
        {"image_size": 16, "widths": [8, 8], "hidden": 16, "embed_dim": 8}
        if kind == "vae"
        else {"image_size": 16, "latent": 12, "width": 4, "class_width": 6, "classes": classes,
              "noise_layers": -1, "noise_init": 0.5, **given}
    )  # fmt: skip
    network = registry.build(kind, config)
    rows = [{"en": name.en, "zh": name.zh, "also": list(name.also)} for name in NAMES[:classes]]
    named = classes and kind != "vae"
    artifacts.save(
        folder,
        kind=kind,
        name=f"tiny-{kind}",
        config=config,
        tensors=network.state_dict(),
        licence="MIT",
        extra_files={"classes.json": json.dumps(rows, ensure_ascii=False)} if named else {},
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "biggan")


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


def make(loader: Loader, model: Path, context: Context | None = None, **given: Any) -> list[PictureDone]:
    request = parse(TextToImageRequest, {"prompt": "dark", "seed": 5, "model": str(model), **given})
    events = list(TASKS["text_to_image"](request, loader, context or Context()))
    assert isinstance(events[-1], Done)
    return [event for event in events if isinstance(event, PictureDone)]


def pixels(*args: Any, **given: Any) -> np.ndarray:
    return np.stack([np.asarray(event.picture).astype(int) for event in make(*args, **given)])


# --- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("ankle boot", ["ankle boot"]),
        ("An Ankle Boot!", ["ankle boot"]),
        ("two pairs of boots", ["ankle boot"]),
        ("T-shirt", ["t-shirt"]),
        ("a shirt and a t-shirt", ["shirt", "t-shirt"]),
        ("dresses, bags", ["dress", "bag"]),
        ("短靴", ["ankle boot"]),
        ("一双运动鞋", ["sneaker"]),
        ("红色的包", ["bag"]),
        ("包", ["bag"]),
        ("面包", []),
        ("T恤和裤子", ["t-shirt", "trouser"]),
        ("sandals 凉鞋", ["sandal"]),
        ("coatroom", []),
        ("handbag", ["bag"]),
        ("a cat", []),
    ],
)
def test_words_find_classes(prompt: str, wanted: list[str]) -> None:
    assert [FASHION_CLASSES[number].en for number in find_classes(prompt, FASHION_CLASSES)] == wanted


def test_a_longer_name_hides_the_shorter_one_inside_it() -> None:
    names = (ClassName("boot", "靴"), ClassName("ankle boot", "短靴子"), ClassName("shoe", "靴子"))
    assert find_classes("ankle boots", names) == [1]
    assert find_classes("boots", names) == [0]
    assert find_classes("短靴子和靴子", names) == [1, 2]


def test_every_name_finds_its_own_class() -> None:
    for number, name in enumerate(FASHION_CLASSES):
        for word in (name.en, name.zh, *name.also):
            assert find_classes(word, FASHION_CLASSES) == [number], word


def test_rows_of_weights() -> None:
    assert read_classes("light", NAMES, "m") == ([[0.0, 1.0, 0.0]], "light")
    assert read_classes("light, 暗", NAMES, "m") == ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], "light, dark")
    assert read_classes("dark + white", NAMES, "m") == ([[0.5, 0.5, 0.0]], "dark + light")
    rows, english = read_classes("随机", NAMES, "m")
    assert (len(rows), english) == (3, "anything")
    with pytest.raises(InputError) as caught:
        read_classes("drak", NAMES, "tiny")
    assert str(caught.value) == (
        "prompt 'drak' names nothing that model tiny draws; did you mean dark? "
        "it draws dark (暗), light (亮), grey (灰色)"
    )
    with pytest.raises(InputError, match=r"it draws .* and 88 more$"):
        read_classes("qqq", [ClassName(f"thing {number}") for number in range(100)], "m")
    with pytest.raises(InputError, match="names nothing"):
        read_classes("dark + qqq", NAMES, "m")


def test_chinese_words_for_a_class_go_through_the_lexicon() -> None:
    names = (ClassName("cat"), ClassName("car"))
    assert read_classes("一辆汽车", names, "m")[0] == [[0.0, 1.0]]


# --- pictures --------------------------------------------------------------------------------------


def test_pictures_are_those_of_the_network(loader: Loader, model: Path) -> None:
    event = make(loader, model, prompt="white")[0]
    network = load_gan(loader, str(model)).network
    assert isinstance(network, Generator)
    drawn = network(network.draw_latents(1, torch.Generator().manual_seed(5)), torch.tensor([1]))
    wanted = ((drawn[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).numpy()
    # A mixture of one class is that class up to rounding of float32.
    assert np.abs(np.asarray(event.picture) - wanted).max() <= 1
    assert event.record.understood_as == "light"
    assert event.record.request.steps == 1
    assert event.record.request.width == 16
    assert event.record.request.model == "tiny-biggan"  # never a path


def test_a_picture_depends_on_its_own_seed_alone(loader: Loader, model: Path) -> None:
    four = pixels(loader, model, n=4, prompt="dark, light")
    for i in range(4):
        assert np.array_equal(four[i], pixels(loader, model, seed=5 + i, prompt="dark, light")[0])
    together = pixels(loader, model, Context(batch_size=3), n=4, prompt="dark, light")
    assert np.abs(four - together).max() <= 1
    alone = pixels(loader, model, n=4, prompt="light")
    assert np.array_equal(four[0], alone[0])  # seed 5 is odd: the second class
    assert not np.array_equal(four[1], alone[1])


def test_the_record_makes_the_same_picture_again(loader: Loader, model: Path) -> None:
    given = {"truncation": 0.7, "noise_strength": 2.0, "noise": "laplace", "prompt": "grey + dark"}
    event = make(loader, model, n=3, **given)[2]
    again = event.record.again().model_copy(update={"model": str(model)})
    repeated = next(TASKS["text_to_image"](again, Loader(), Context()))
    assert isinstance(repeated, PictureDone)
    assert np.array_equal(np.asarray(event.picture), np.asarray(repeated.picture))


def test_truncation_and_noise_are_used(loader: Loader, model: Path) -> None:
    plain = pixels(loader, model)
    for given in ({"truncation": 0.3}, {"noise_strength": 0.0}, {"noise": "student_t"}):
        assert not np.array_equal(plain, pixels(loader, model, **given)), given
    assert np.array_equal(plain, pixels(loader, model, noise="gaussian", noise_strength=1.0))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"steps": 20}, "steps is not for model tiny-biggan, which draws in one pass"),
        ({"cfg_scale": 3.0}, "cfg_scale is not for"),
        ({"negative_prompt": "light"}, "negative_prompt is not for"),
        ({"style": "noto"}, "style is not for"),
        ({"temperature": 0.5}, "temperature is not for"),
        ({"width": 64, "height": 64}, "size 64x64 is not possible; model tiny-biggan makes 16x16"),
        ({"prompt": "a cat"}, "it draws dark"),
    ],
)
def test_what_the_model_cannot_do_is_said(
    loader: Loader, model: Path, given: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        make(loader, model, **given)


@pytest.mark.parametrize("given", [{"steps": 20}, {"prompt": "a cat"}, {"prompt": "drak"}])
def test_it_is_said_in_chinese_too(loader: Loader, model: Path, given: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        make(loader, model, **given)
    answer = in_chinese(str(caught.value))
    assert answer is not None
    assert "模型 tiny-biggan" in answer
    assert ("暗" in answer) == ("prompt" in given)  # what the model draws is still listed


def test_settings_of_a_gan_are_refused_by_other_models(tiny_model: Path) -> None:
    for given in ({"truncation": 0.5}, {"noise_strength": 0.5}, {"noise": "uniform"}):
        with pytest.raises(InputError, match=f"{next(iter(given))} is not for model tiny"):
            make(Loader(), tiny_model, **given)


@pytest.mark.parametrize("kind", ["dcgan", "vae"])
def test_models_without_classes_take_any_words(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / "model", kind, classes=0)
    events = make(Loader(), folder, prompt="whatever you like")
    assert events[0].record.hints == (f"model tiny-{kind} reads no words: the seed alone decides",)
    assert not np.array_equal(pixels(Loader(), folder), pixels(Loader(), folder, seed=6))
    if kind == "vae":
        with pytest.raises(InputError, match="no noise in its layers"):
            make(Loader(), folder, noise="uniform")


def test_damaged_class_names_are_refused(tmp_path: Path, model: Path) -> None:
    for number, content in enumerate(("[]", "{", '[{"en": "a", "zh": "", "also": [1]}]', '"abc"')):
        folder = tmp_path / str(number)
        shutil.copytree(model, folder)
        manifest = json.loads((folder / "artifact.json").read_text())
        (folder / "classes.json").write_text(content)
        manifest["files"]["classes.json"] = {
            "size": len(content), "sha256": artifacts.sha256_of(folder / "classes.json")
        }  # fmt: skip
        (folder / "artifact.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError, match=r"classes\.json of model tiny-biggan"):
            load_gan(Loader(), str(folder))


# --- latents and walks -----------------------------------------------------------------------------


def test_latents_have_a_seed_each_and_walk_on_an_arc(loader: Loader, model: Path) -> None:
    gan = load_gan(loader, str(model))
    both = latents(gan, [5, 6])
    assert torch.equal(both.z[1:], latents(gan, [6]).z)
    first, second = latents(gan, [5]), latents(gan, [6])
    weights = torch.tensor([[1.0, 0.0, 0.0]])
    ends = [generate_from_latents(gan, place, weights) for place in (first, second)]
    steps = [generate_from_latents(gan, slerp(first, second, share / 8), weights) for share in range(9)]
    torch.testing.assert_close(steps[0], ends[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(steps[-1], ends[1], atol=1e-4, rtol=0)
    whole = float((ends[1] - ends[0]).abs().mean())
    assert max(float((b - a).abs().mean()) for a, b in pairwise(steps)) < 0.5 * whole


def walked(loader: Loader, model: Path, **given: Any) -> np.ndarray:
    stops = [{"prompt": "dark", "seed": 5}, {"prompt": "light", "seed": 6}]
    request = parse(WalkRequest, {"stops": stops, "seed": 0, "frames": 5, "model": str(model), **given})
    events = [event for event in gan_walk(request, loader, Context()) if isinstance(event, PictureDone)]
    assert all(event.record.model_name == "tiny-biggan" for event in events)
    return np.stack([np.asarray(event.picture).astype(int) for event in events])


def test_a_walk_ends_at_the_pictures_of_its_stops(loader: Loader, model: Path) -> None:
    frames = walked(loader, model)
    assert len(frames) == 5
    assert np.abs(frames[0] - pixels(loader, model, prompt="dark")[0]).max() <= 1
    assert np.abs(frames[-1] - pixels(loader, model, prompt="light", seed=6)[0]).max() <= 1
    looped = walked(loader, model, loop=True, frames=4)
    assert np.abs(looped[2] - frames[-1]).max() <= 1  # half way round
    assert len(walked(loader, model, weights=[1.0, 0.0])) == 1


def test_a_walk_past_pictures_is_refused(loader: Loader, model: Path) -> None:
    stops = [{"picture": FileRef.of("a.png", b"PNG")}, {"prompt": "dark", "seed": 1}]
    request = parse(WalkRequest, {"stops": stops, "model": str(model)})
    with pytest.raises(InputError, match="no encoder"):
        next(gan_walk(request, loader, Context()))


def test_the_kind_decides(loader: Loader, model: Path, tiny_model: Path) -> None:
    assert loader.kind(str(model)) == "biggan"
    with pytest.raises(ArtifactError, match="is of kind shell_dit"):
        load_gan(loader, str(tiny_model))
