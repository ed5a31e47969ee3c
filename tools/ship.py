"""Puts trained runs into the package as the models that vitrail ships.

    python tools/ship.py default RUN --upsampler RUN2 [--data FOLDER] [--report report.json]
    python tools/ship.py vqgan RUN --tokenizer RUN2 [--data FOLDER] [--report report.json]

``default``: RUN is the folder of a run of recipes/default*.toml, RUN2 of recipes/upsampler.toml. ``vqgan``:
RUN of recipes/prior-masked.toml, RUN2 of recipes/tokenizer.toml. The averaged weights of the newest whole
checkpoints are taken. ``--report``: what benchmarks/default_model.py printed, for the card. The text encoder,
tokenizer and lexicon that are in the default model's folder already stay as they are; vqgan uses them from
there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from vitrail.data.emoji_bank import STYLES
from vitrail.files import sha256_of
from vitrail.recipe import dump_recipe, load_recipe
from vitrail.schema import SamplingDefaults
from vitrail.store import artifacts
from vitrail.store.weights import Storage
from vitrail.training import warm

SHIPPED = Path(__file__).parents[1] / "src" / "vitrail" / "shipped"
TEXT_FILES = ("text.safetensors", "tokenizer.json", "lexicon.tsv.gz", "ATTRIBUTION.md")
#: Where nobody asks for a style: without one the canvas is the average of all, and the judge recognises less
#: (.58 against .68 of 120 development prompts).
STYLE = "noto"
SAMPLING = SamplingDefaults(
    steps=20,
    cfg_scale=3.0,
    sampler="dpmpp_2m",
    schedule="simple",
    shift=4.0,
    style=STYLE,
    width=128,
    height=128,
)
TOKEN_SAMPLING = SamplingDefaults(
    steps=12,
    cfg_scale=3.0,
    sampler="maskgit",
    schedule="cosine",
    choice_temperature=4.5,
    style=STYLE,
    width=128,
    height=128,
)
LICENCE = "Apache-2.0 (weights); artwork: Apache-2.0, MIT and CC-BY-4.0, see ATTRIBUTION.md"


def stored(name: str, tensor: torch.Tensor) -> Any:
    """Eight bits a weight, with a scale a row; sixteen where pixels enter and leave."""
    exact = name.startswith(("enter.", "head.", "keep.", "join.", "position", "style.", "code."))
    return "float16" if exact or tensor.ndim < 2 else "int8"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["default", "vqgan"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--upsampler", type=Path, help="run of recipes/upsampler.toml (default)")
    parser.add_argument("--tokenizer", type=Path, help="run of recipes/tokenizer.toml (vqgan)")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--data", type=Path, help="the built emoji set, for its hash and attribution")
    arguments = parser.parse_args()
    part = arguments.upsampler if arguments.model == "default" else arguments.tokenizer
    if part is None:
        parser.error("default needs --upsampler, vqgan needs --tokenizer")

    target = SHIPPED / arguments.model
    staged = target.with_name(f"{arguments.model}.new")
    if staged.exists():
        shutil.rmtree(staged)
    figures: dict[str, Any] = json.loads(arguments.report.read_text()) if arguments.report else {}
    card = Path(__file__).with_name(f"card_{arguments.model}.md").read_text(encoding="utf-8")
    extra: dict[str, Any] = {name: target / name for name in TEXT_FILES if (target / name).is_file()}
    if arguments.data:
        extra["ATTRIBUTION.md"] = (arguments.data / "ATTRIBUTION.md").read_text(encoding="utf-8")
    extra["styles.json"] = json.dumps(list(STYLES))
    extra["recipe.toml"] = dump_recipe(published(load_recipe(arguments.run / "recipe.toml")))
    extra["card.md"] = card.format_map(Figures(figures, arguments.run))
    if arguments.model == "vqgan":
        save(part, staged.with_name("tokenizer.new"), "float16")
        extra["tokenizer"] = staged.with_name("tokenizer.new")
    save(
        arguments.run,
        staged,
        stored,
        sampling=SAMPLING if arguments.model == "default" else TOKEN_SAMPLING,
        extra_files=extra,
        metrics=metrics(figures),
        data_manifest_sha256=sha256_of(arguments.data / "manifest.json") if arguments.data else None,
    )
    if arguments.model == "vqgan":
        shutil.rmtree(extra["tokenizer"])
    else:
        save(part, staged / "upsampler", "float16")
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    total = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {total / 1e6:.1f} MB")


def save(run: Path, target: Path, storage: Storage, **more: Any) -> None:
    """Write the averaged weights of ``run`` as the model folder ``target``."""
    recipe = load_recipe(run / "recipe.toml")
    artifacts.save(
        target,
        kind=recipe.model.kind,
        name=target.name.removesuffix(".new"),
        config=recipe.model.model_dump(mode="json", exclude={"kind"}),
        tensors=weights(run),
        licence=LICENCE,
        storage=storage,
        **more,
    )


def published(recipe: Any) -> Any:
    """The recipe without the folders of the machine it ran on; the card tells what it started from."""
    changes: dict[str, Any] = {"run": recipe.run.model_copy(update={"warm_start": None})}
    if hasattr(recipe, "tokenizer"):
        changes["tokenizer"] = recipe.tokenizer.model_copy(update={"source": "tokenizer"})
    return recipe.model_copy(update=changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of ``run``: of its exported model where it is finished (a tokenizer's comes with
    the counts of its codes, which compression needs), else of the newest checkpoint."""
    exported = run / "model"
    return artifacts.load(exported).tensors if exported.is_dir() else warm.read_weights(str(run))


def metrics(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The report's headline figures in the manifest's form."""
    names = [
        key.removesuffix("_n") for key in figures if key.endswith("_n") and key.removesuffix("_n") in figures
    ]
    return {
        name: {"value": figures[name], "n": figures[f"{name}_n"], "ci95": figures.get(f"{name}_ci95")}
        for name in names
        if isinstance(figures[name], float | int)
    }


class Figures(dict[str, Any]):
    """The card's fields: figures of the report, and what the run's own log says."""

    def __init__(self, figures: dict[str, Any], run: Path) -> None:
        last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        super().__init__(figures, pictures_seen=f"{last['images']:,}", minutes=f"{last['seconds'] / 60:.0f}")

    def __missing__(self, key: str) -> str:
        return "not measured"


if __name__ == "__main__":
    main()
