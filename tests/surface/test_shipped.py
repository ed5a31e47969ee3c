"""Whatever comes inside the package opens and draws."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import numpy as np
import pytest

from vitrail import Engine, PictureDone, TextToImageRequest
from vitrail.codes_schema import ReconstructRequest
from vitrail.request_fields import FileRef

SHIPPED = Path(str(importlib.resources.files("vitrail"))) / "shipped"
MODELS = sorted(path.parent.name for path in SHIPPED.glob("*/artifact.json"))


def test_both_models_are_there() -> None:
    assert {"default", "vqgan"} <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_draws_what_differs_by_prompt(name: str) -> None:
    with Engine() as engine:
        drawn = []
        for prompt in ("a red apple", "一颗蓝色的心"):
            job = engine.submit(TextToImageRequest(prompt=prompt, model=name, seed=1, steps=4))
            drawn += [event for event in engine.events(job) if isinstance(event, PictureDone)]
    assert drawn[1].record.understood_as
    first, second = (np.asarray(event.picture, dtype=float) for event in drawn)
    assert first.std() > 5
    assert np.abs(first - second).mean() > 5


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_at_most_60_megabytes(name: str) -> None:
    assert sum(path.stat().st_size for path in (SHIPPED / name).rglob("*") if path.is_file()) <= 60e6
    manifest = json.loads((SHIPPED / name / "artifact.json").read_text(encoding="utf-8"))
    assert "Apache-2.0" in manifest["licence"]
    assert (SHIPPED / name / "card.md").is_file()


def test_without_a_style_the_model_takes_its_own() -> None:
    with Engine() as engine:
        made = {}
        for style in (None, "noto", "none", "firefox"):
            job = engine.submit(
                TextToImageRequest(prompt="a cat", seed=1, steps=2, style=style, width=32, height=32)
            )
            made[style] = next(event for event in engine.events(job) if isinstance(event, PictureDone))
    assert made[None].record.request.style == "noto"
    assert made[None].picture.tobytes() == made["noto"].picture.tobytes()
    assert len({event.picture.tobytes() for event in made.values()}) == 3


def test_the_token_model_gives_a_picture_back() -> None:
    from io import BytesIO

    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill="red")
    data = BytesIO()
    picture.save(data, "PNG")
    request = ReconstructRequest(picture=FileRef.of("circle.png", data.getvalue()))
    with Engine() as engine:
        job = engine.submit(request)
        made = next(event.picture for event in engine.events(job) if isinstance(event, PictureDone))
    difference = np.asarray(made.convert("RGB"), dtype=float) - np.asarray(picture, dtype=float)
    assert np.sqrt((difference**2).mean()) < 30
