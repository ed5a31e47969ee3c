"""Row M4 of the bar, for Stable Diffusion: weights that overflow never become a picture marked as success."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("diffusers")

import sd_tiny

from vitrail.cli import main
from vitrail.edit_schema import EditRequest
from vitrail.errors import NonFiniteError
from vitrail.request_fields import FileRef
from vitrail.schema import Event, PictureDone, TextToImageRequest, parse
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader

UNET, VAE = "model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_out.weight"
BROKEN = {"unet": UNET, "vae": VAE}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint, and two of which one layer's weights are finite, and far too large."""
    home = tmp_path_factory.mktemp("latents")
    sd_tiny.make_vocabulary(home / "tokenizer")
    tensors = sd_tiny.single_tensors("sd1")
    save_file(tensors, home / "sound.safetensors")
    for name, layer in BROKEN.items():
        save_file(tensors | {layer: tensors[layer].sign() * 3e38}, home / f"{name}.safetensors")
    return home


def events(path: Path, **given: Any) -> Iterator[Event]:
    kind: type[Any] = EditRequest if "picture" in given else TextToImageRequest
    request = parse(kind, {"prompt": "a cat", "seed": 5, "steps": 2, "model": str(path), **given})
    return iter(TASKS[request.kind](request, Loader(), Context(device=torch.device("cpu"))))


def picture() -> FileRef:

    target = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(target, "PNG")
    return FileRef.of("a.png", target.getvalue())


@pytest.mark.parametrize(
    "more", [{}, {"sampler": "heun"}, {"sampler": "lcm"}, {"cfg_scale": 1.0}, {"edit": True}], ids=str
)
@pytest.mark.parametrize("name", list(BROKEN))
def test_overflow_is_a_failure_with_a_reason(name: str, more: dict[str, Any], folder: Path) -> None:
    given = {"picture": picture()} if more == {"edit": True} else more
    made: list[Event] = []
    with pytest.raises(NonFiniteError) as caught:
        made.extend(events(folder / f"{name}.safetensors", **given))
    line = str(caught.value)
    assert ("no finite picture for seed 5" if name == "unet" else "try another with --vae") in line
    assert "\n" not in line
    assert not [event for event in made if isinstance(event, PictureDone)]


def test_the_same_weights_in_measure_give_a_picture(folder: Path) -> None:
    assert [event for event in events(folder / "sound.safetensors") if isinstance(event, PictureDone)]


def test_the_command_line_writes_nothing_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    flags = ["--model", str(folder / "unet.safetensors"), "--steps", "2", "-o", str(out)]
    assert main(["generate", "a cat", *flags]) == 3  # its own code, as `vitrail --help` says
    assert not out.exists()
    assert "no finite picture" in capsys.readouterr().err
