"""What one kind of recipe trains: the interface between a run and :func:`vitrail.training.loop.fit`.

A run (:mod:`vitrail.training.runs`) knows folders, checkpoints, logs and signals; a plan knows networks and
losses. :mod:`vitrail.training.plans` lists them by the recipe's kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from vitrail.training.loop import Hook, Phase
from vitrail.training.objectives import TextEncoder
from vitrail.training.sources import Data, Tell

__all__ = ["Measure", "Plan", "Setting"]

#: The averaged network -> figures for the log by name, such as a held-out loss.
Measure: TypeAlias = Callable[[nn.Module], Mapping[str, float]]

AnyRecipe = TypeVar("AnyRecipe")


@dataclass(frozen=True)
class Setting(Generic[AnyRecipe]):
    """What a plan is made from.

    ``recipe``: complete and checked. ``device``: where everything lives. ``encoder``: the frozen text
    encoder, None for kinds that read no text. ``tell``: gets lines for the person at the screen.
    """

    recipe: AnyRecipe
    device: torch.device
    encoder: TextEncoder | None
    tell: Tell


@dataclass
class Plan:
    """What one kind of recipe trains.

    Parameters
    ----------
    modules: networks by name. All are in the checkpoint; "model" is the one that is averaged, shown and
        exported. A frozen network (a tokenizer, a loss network) does not belong here.
    optimizers: by the name of their phase. A parameter group may carry ``rate_share``, a factor on the
        recipe's learning rate.
    phases: data -> the phases of a step, in order; called once, after the state was restored.
    measure: data -> how to measure the averaged network on held-out pictures, or None if there are none.
    pictures: data -> a function of the averaged network that returns what a sample grid shows, (N, 3, H, W)
        in [-1, 1]; None where the caller of the run draws (text-to-image models go through the tasks).
    hooks: called after every step, before the checkpoint.
    shown: figures of the log that the progress line shows as well: name in the log -> short label.
    settle: makes the averaged network ready for use, after its weights were set and before it is shown,
        measured or exported: batch statistics, for instance, that belong to the averaged weights.
    files: data -> further files of the exported model folder, by their name there.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    phases: Callable[[Data], Sequence[Phase[Any]]]
    measure: Callable[[Data], Measure | None] = lambda data: None
    pictures: Callable[[Data], Callable[[nn.Module], Tensor]] | None = None
    hooks: Sequence[Hook] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    settle: Callable[[nn.Module], None] = lambda network: None
    files: Callable[[Data | None], Mapping[str, str | bytes | Path]] = field(default=lambda data: {})
