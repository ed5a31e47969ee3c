"""``vitrail train``: a recipe, or a folder of pictures and a recipe made for it. The same command resumes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Device, Flag, parse
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.recipe import Recipe
    from vitrail.training.runs import Outcome

__all__ = ["Options", "run"]

ABOUT = Text(
    "Train a model by a recipe, or on your own pictures: vitrail train --data my_pictures/",
    "按配方训练模型，或用自己的图片训练：vitrail train --data my_pictures/",
)


@dataclass(frozen=True)
class Options:
    """The flags of ``vitrail train``."""

    recipe: Annotated[
        str | None,
        Flag(
            Text(
                "Recipe file (TOML), or the name of a recipe that comes with vitrail, such as dcgan-fashion.",
                "配方文件（TOML），或自带配方的名称，例如 dcgan-fashion。",
            ),
            "RECIPE",
            positional=True,
        ),
    ] = None
    set: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Change one setting of the recipe, for instance optim.lr=2e-4.",
                "修改配方中的一项设置，例如 optim.lr=2e-4。",
            ),
            "KEY=VALUE",
        ),
    ] = ()
    data: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of your own pictures; without a recipe, a sensible one is picked and explained.",
                "自己的图片文件夹；没有配方时会选择合适的配方并说明理由。",
            ),
            "FOLDER",
        ),
    ] = None
    run: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of the run; the same command goes on where it was. Default: runs/NAME.",
                "运行文件夹；再次执行同一命令会继续训练。默认 runs/名称。",
            ),
            "FOLDER",
        ),
    ] = None
    dry_run: Annotated[bool, Flag(Text("Print the whole recipe and stop.", "输出完整配方后退出。"))] = False
    device: Device = "auto"
    quiet: Annotated[bool, Flag(Text("No progress.", "不显示进度。"), short="-q")] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Train, and return 0; 128 + its number after a signal that stopped the run in good order."""
    options = parse(Options, arguments, command="train", about=ABOUT, language=language)
    from vitrail.recipe import dump_recipe

    stages = _stages(options)
    if stages is None:
        recipe = _recipe(options, language)
        folder = Path(options.run) if options.run is not None else Path("runs") / recipe.name
        stages = [(folder, recipe)]
    if options.dry_run:
        print("\n".join(dump_recipe(recipe) for _, recipe in stages), end="")
        return 0
    from vitrail.training.staged import train_stages

    outcome = train_stages(stages, lambda recipe, folder: _train(options, recipe, folder))
    if outcome.model is not None:
        print(outcome.model)
    return outcome.exit_code


def _train(options: Options, recipe: Recipe, folder: Path) -> Outcome:
    """Train one recipe in its folder as the flags say."""
    from vitrail.serving.long_train import prompt_sampler
    from vitrail.training.runs import train
    from vitrail.training.sources import shipped_encoder

    encoder = shipped_encoder() if recipe.kind == "text_to_image" else None
    return train(
        recipe,
        folder,
        device=options.device,
        encoder=encoder,
        sample=prompt_sampler(encoder, recipe.optim.precision) if encoder is not None else None,
        quiet=options.quiet,
    )


def _stages(options: Options) -> list[tuple[Path, Recipe]] | None:
    """Return the runs of a staged recipe; None if the recipe is not one."""
    if options.recipe is None:
        return None
    from vitrail.recipe.staged import is_staged, load_staged, plan_stages

    if not is_staged(options.recipe):
        return None
    if options.set:
        raise InputError("--set does not fit a staged recipe; write the change into its stage, in 'set'")
    folder = Path(options.run) if options.run is not None else Path("runs") / load_staged(options.recipe).name
    changes = [] if options.data is None else [f"data.source={_quoted(options.data)}"]
    return plan_stages(options.recipe, folder, changes)


def _recipe(options: Options, language: Language) -> Any:
    """Return the recipe that the flags ask for."""
    from vitrail.recipe import load_recipe

    if options.recipe is None and options.data is None:
        raise InputError("nothing to train: give a recipe file, or --data with a folder of pictures")
    if options.data is not None and not Path(options.data).exists():
        raise InputError(f"the folder {options.data} does not exist; give a folder of pictures")
    if options.recipe is not None:
        changes = [] if options.data is None else [f"data.source={_quoted(options.data)}"]
        return load_recipe(options.recipe, [*changes, *options.set])
    from vitrail.training.suggest import suggest_recipe

    recipe, reasons = suggest_recipe(str(options.data), options.set)
    if not options.quiet:
        for line in reasons:
            print(line, file=sys.stderr)
    return recipe


def _quoted(text: str) -> str:
    """Return ``text`` as a TOML string, so that a path such as 2024 or true stays a path."""
    import json

    return json.dumps(text, ensure_ascii=False)
