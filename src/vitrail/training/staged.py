"""Trains the stages of a staged recipe in order; the same call goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from vitrail.recipe import Recipe
from vitrail.training.runs import Outcome

__all__ = ["StageRunner", "train_stages"]

#: Trains one stage: (recipe, its run's folder) -> how it ended.
StageRunner: TypeAlias = Callable[[Recipe, Path], Outcome]


def train_stages(stages: Sequence[tuple[Path, Recipe]], train: StageRunner) -> Outcome:
    """Train ``stages``, (run folder, recipe) as :func:`vitrail.recipe.staged.plan_stages` gives them.

    The outcome is that of the last one that ran: a stage that was stopped ends it. A finished stage does
    nothing when it is asked again, so calling this again resumes the stage that was interrupted.
    """
    if not stages:
        raise ValueError("there is no stage to train")
    for folder, recipe in stages:
        outcome = train(recipe, folder)
        if outcome.model is None:
            break
    return outcome
