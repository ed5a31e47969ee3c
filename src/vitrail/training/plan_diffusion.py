"""What text-to-image and upsampler recipes train: one network, one phase."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.data.emoji_bank import STYLES
from vitrail.errors import InputError
from vitrail.models import registry
from vitrail.models.shell_dit import ShellDiT
from vitrail.recipe import OptimSection, TextToImageRecipe, UpsamplerRecipe
from vitrail.training.loop import Phase
from vitrail.training.objectives import (
    canvas_loss,
    flow_loss,
    held_out_canvas_loss,
    held_out_flow_loss,
    upsampler_loss,
)
from vitrail.training.optim import adamw, trainable
from vitrail.training.plan import Measure, Plan, Setting
from vitrail.training.sources import Data

__all__ = ["plan_text_to_image", "plan_upsampler"]


def plan_upsampler(setting: Setting[UpsamplerRecipe]) -> Plan:
    """Return the plan of an upsampler: L1 on pixels and edges."""
    recipe, device = setting.recipe, setting.device
    model = registry.build(recipe.model.kind, recipe.model).to(device)
    loss = upsampler_loss(called(model, recipe.optim), recipe.model.scale, recipe.objective, device)
    return Plan(
        modules={"model": model},
        optimizers={"model": adamw(trainable(model), recipe.optim)},
        phases=lambda data: [Phase("model", trainable(model), loss)],
    )


def plan_text_to_image(setting: Setting[TextToImageRecipe]) -> Plan:
    """Return the plan of a text-to-image network: rectified flow on pixels.

    Raises :class:`InputError` without a text encoder.
    """
    recipe, device, encoder = setting.recipe, setting.device, setting.encoder
    if encoder is None:
        raise InputError("a text-to-image recipe needs a text encoder")
    model = registry.build(recipe.model.kind, recipe.model).to(device)
    assert isinstance(model, ShellDiT)
    canvas = recipe.objective.trains == "canvas"
    if canvas:
        loss = canvas_loss(model, encoder, device)
    else:
        if model.canvas is not None:
            model.canvas.requires_grad_(False)
        loss = flow_loss(called(model, recipe.optim), encoder, recipe.objective, device)
    trained = trainable(model.canvas if canvas and model.canvas is not None else model)

    def measure(data: Data) -> Measure | None:
        if data.held_out is None:
            return None
        batches = list(data.held_out(recipe.run.held_out_images))
        if canvas:
            return held_out_canvas_loss(encoder, batches, device)
        return held_out_flow_loss(encoder, batches, device, recipe.run.seed)

    def files(data: Data | None) -> dict[str, str | bytes | Path]:
        return (
            {} if data is None else {"styles.json": json.dumps(style_names(data.styles, recipe.model.styles))}
        )

    return Plan(
        modules={"model": model},
        optimizers={"model": adamw(trained, recipe.optim)},
        phases=lambda data: [Phase("model", trained, loss)],
        measure=measure,
        files=files,
    )


def called(model: nn.Module, optim: OptimSection) -> Any:
    """Return the network as its loss calls it: compiled where the recipe says so."""
    return torch.compile(model) if optim.compile else model


def style_names(styles: Sequence[str], count: int) -> list[str]:
    """Name all ``count`` style numbers of a network: the data's styles, then those of the emoji set if it
    has as many numbers as that (it began from such a model), then plain numbers.
    """
    rest = STYLES[len(styles) :] if count == len(STYLES) else ()
    names = [*styles, *rest][:count]
    return names + [f"style-{number}" for number in range(len(names) + 1, count + 1)]
