"""Puts a trained run into the package as the model that vitrail ships.

    python tools/ship_default.py RUN --upsampler RUN2 [--report report.json]

``RUN`` is the folder of a run of recipes/default*.toml, ``RUN2`` of recipes/upsampler.toml; the averaged
weights of their newest whole checkpoints are taken. ``--report`` is what
benchmarks/default_model.py wrote, for the card.
The text encoder, tokenizer and lexicon that are in the shipped folder already stay as they are.
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

SHIPPED = Path(__file__).parents[1] / "src" / "vitrail" / "shipped" / "default"
CARD = Path(__file__).with_name("card.md")
TEXT_FILES = ("text.safetensors", "tokenizer.json", "lexicon.tsv.gz", "ATTRIBUTION.md")
SAMPLING = SamplingDefaults(
    steps=20, cfg_scale=3.0, sampler="dpmpp_2m", schedule="simple", shift=4.0, width=128, height=128
)
LICENCE = "Apache-2.0 (weights); artwork: Apache-2.0, MIT and CC-BY-4.0, see ATTRIBUTION.md"


def stored(name: str, tensor: torch.Tensor) -> Any:
    """Sixteen bits for what computes; eight for the table of words, of which most rows were never trained."""
    return "int8" if name == "words.words.weight" else "float16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--upsampler", type=Path, required=True)
    parser.add_argument("--report", type=Path)
    parser.add_argument(
        "--data", type=Path, help="the built emoji set, for its manifest's hash and attribution"
    )
    arguments = parser.parse_args()

    staged = SHIPPED.with_name("default.new")
    if staged.exists():
        shutil.rmtree(staged)
    figures: dict[str, Any] = json.loads(arguments.report.read_text()) if arguments.report else {}
    storage: Storage = stored
    extra: dict[str, Any] = {name: SHIPPED / name for name in TEXT_FILES if (SHIPPED / name).is_file()}
    if arguments.data:
        extra["ATTRIBUTION.md"] = (arguments.data / "ATTRIBUTION.md").read_text(encoding="utf-8")
    extra["styles.json"] = json.dumps(list(STYLES))
    extra["recipe.toml"] = dump_recipe(load_recipe(arguments.run / "recipe.toml"))
    extra["card.md"] = CARD.read_text(encoding="utf-8").format_map(Figures(figures, arguments.run))
    save(
        arguments.run,
        staged,
        storage,
        sampling=SAMPLING,
        extra_files=extra,
        metrics=metrics(figures),
        data_manifest_sha256=sha256_of(arguments.data / "manifest.json") if arguments.data else None,
    )
    save(arguments.upsampler, staged / "upsampler", "float16")
    shutil.rmtree(SHIPPED)
    staged.rename(SHIPPED)
    total = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    print(f"{SHIPPED}: {total / 1e6:.1f} MB")


def save(run: Path, target: Path, storage: Storage, **more: Any) -> None:
    """Write the averaged weights of ``run`` as the model folder ``target``."""
    recipe = load_recipe(run / "recipe.toml")
    artifacts.save(
        target,
        kind=recipe.model.kind,
        name=target.name.removesuffix(".new"),
        config=recipe.model.model_dump(mode="json", exclude={"kind"}),
        tensors=warm.read_weights(str(run)),
        licence=LICENCE,
        storage=storage,
        **more,
    )


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
