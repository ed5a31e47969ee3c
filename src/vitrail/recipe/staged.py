"""Staged training as one recipe: several recipes in order, each going on from what the ones before made.

::

    kind = "staged"
    name = "emoji-tokens"
    [[stages]]
    recipe = "tokenizer.toml"                       # beside this file
    [[stages]]
    recipe = "tokenizer-sharp.toml"
    set = ["run.warm_start={tokenizer}"]            # the model folder of the stage of that name
    [[stages]]
    recipe = "prior-masked.toml"
    set = ["tokenizer.source={tokenizer-sharp}"]
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from vitrail.errors import InputError
from vitrail.recipe.files import find_recipe, load_recipe
from vitrail.recipe.kinds import Recipe
from vitrail.recipe.sections import Section

__all__ = ["Stage", "StagedRecipe", "is_staged", "load_staged", "plan_stages"]

_PLACE = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9._-]*)\}")


class Stage(Section):
    """One stage: a recipe and what is changed in it."""

    recipe: str = Field(min_length=1, max_length=4096, description="recipe file, relative to the staged one")
    name: str = Field(
        default="",
        max_length=100,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="folder of its run, and what later stages call it; default: the file's name",
    )
    set: tuple[str, ...] = Field(
        default=(), max_length=100, description="changes, section.key=value; {name}: a stage's model folder"
    )

    @property
    def title(self) -> str:
        """The stage's name, which is also that of its run's folder."""
        return self.name or Path(self.recipe).stem

    def overrides(self, models: Mapping[str, Path]) -> list[str]:
        """Return :attr:`set` with every ``{name}`` as the model folder of that stage."""
        return [_PLACE.sub(lambda found: str(models[found[1]]), change) for change in self.set]


class StagedRecipe(Section):
    """Recipes that are trained one after another."""

    kind: Literal["staged"] = "staged"
    name: str = Field(default="run", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _refers_back(self) -> StagedRecipe:
        known: set[str] = set()
        for stage in self.stages:
            if stage.title in known:
                raise ValueError(f"two stages are called {stage.title}; give one of them a name of its own")
            for change in stage.set:
                for name in _PLACE.findall(change):
                    if name not in known:
                        earlier = ", ".join(sorted(known)) or "none"
                        raise ValueError(f"stage {stage.title}: {{{name}}} is no stage before it ({earlier})")
            known.add(stage.title)
        return self


def is_staged(path: str | Path) -> bool:
    """Tell whether a file is a staged recipe; False where it cannot be read as one."""
    try:
        return tomllib.loads(find_recipe(path).read_text(encoding="utf-8")).get("kind") == "staged"
    except (OSError, ValueError, RecursionError):
        return False  # whoever loads it next says what is wrong


def load_staged(path: str | Path) -> StagedRecipe:
    """Read a staged recipe; :class:`InputError` with one line for what is wrong in it."""
    try:
        tables = tomllib.loads(find_recipe(path).read_text(encoding="utf-8"))
        return StagedRecipe.model_validate(tables)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {str(path)!r} cannot be read") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {str(path)!r} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {place + ': ' if place else ''}{message}") from error


def plan_stages(
    path: str | Path, folder: str | Path, overrides: Sequence[str] = ()
) -> list[tuple[Path, Recipe]]:
    """Return (run folder, complete recipe) of every stage of the staged recipe at ``path``.

    Runs lie in ``folder``, numbered: ``1-tokenizer``, ``2-prior``. ``overrides`` go to every stage. Raises
    :class:`InputError` for anything wrong in any of them, so that the third does not fail hours after the
    first began.
    """
    models: dict[str, Path] = {}
    runs: list[tuple[Path, Recipe]] = []
    for number, stage in enumerate(load_staged(path).stages, 1):
        run = Path(folder) / f"{number}-{stage.title}"
        try:
            recipe = load_recipe(
                find_recipe(path).parent / stage.recipe, [*overrides, *stage.overrides(models)]
            )
        except InputError as error:
            raise InputError(f"stage {stage.title}: {error}") from error
        models[stage.title] = run / "model"
        runs.append((run, recipe))
    return runs
