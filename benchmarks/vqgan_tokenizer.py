"""Tokenizers trained on the spot: use of a large codebook, and ours beside taming's in the same time.

``python benchmarks/vqgan_tokenizer.py codebook_use --minutes 10``, and the same with ``tokenizer_vs_taming``:
one JSON object as the last line of each. ``benchmarks/vqgan.py`` calls the functions. Both need the emoji
set. Minutes are of the processor, so that other work on the machine takes nothing from anybody.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.emoji_bank import default_emoji_folder, load_emoji
from vitrail.evaluation.judge_data import pictures_of
from vitrail.models.autoencoders import VQAutoencoder
from vitrail.models.perceptual import load_lpips
from vitrail.models.quantizers import codebook_statistics
from vitrail.models.registry import build
from vitrail.recipe import load_recipe, parse_recipe
from vitrail.store import artifacts
from vitrail.training.reconstruction import psnr
from vitrail.training.runs import train

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SIZE = 64
QUIET = {"sample_every_images": 0, "held_out_every_images": 0, "tensorboard": "off"}

#: taming's own settings for an f8 network (its published f8 configurations), at the size of the comparison:
#: base rate 4.5e-6 a picture, Adam (0.5, 0.9), LPIPS weight 1, codebook 1, and a discriminator of weight 0.8
#: that starts at full strength. Its plain nearest-neighbour codebook has no k-means start and no restart.
TAMING: dict[str, Any] = {
    "kind": "autoencoder",
    "name": "taming-f8",
    "data": {"source": "emoji", "size": SIZE, "batch_size": 12, "synthetic_share": 0.35, "jitter": 0.2},
    "model": {
        "kind": "vq_autoencoder",
        "embed_dim": 256,
        "network": {
            "architecture": "classic",
            "ch": 128,
            "ch_mult": [1, 1, 2, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [8],
            "resolution": SIZE,
            "z_channels": 256,
        },
        "quantizer": {"kind": "nearest", "codes": 2048, "kmeans_init": False, "restart_below": 0.0},
    },
    "objective": {"l1": 1.0, "perceptual": "lpips", "perceptual_weight": 1.0},
    "adversary": {
        "loss": "hinge",
        "weight": 0.8,
        "start_images": 10_000,
        "lead_images": 0,
        "ramp_images": 0,
        "lecam_weight": 0.0,
        "augment": [],
        "guard": False,
    },
    "optim": {
        "lr": 5.4e-5,
        "betas": [0.5, 0.9],
        "weight_decay": 0.0,
        "warmup_images": 0,
        "decay": "none",
        "precision": "float32",
    },
}


def held_out(count: int) -> Tensor:
    """Return ``count`` pictures (N, 3, SIZE, SIZE) of the split "cell", which no training sees."""
    bank = load_emoji()
    rows = bank.indices("cell")
    return pictures_of(bank, rows[:: max(1, len(rows) // count)][:count], SIZE)


def finished(recipe: Any, folder: Path) -> tuple[VQAutoencoder, dict[str, Any]]:
    """Train ``recipe`` in ``folder``; return the exported network, and pictures seen."""
    outcome = train(recipe, folder, quiet=True, clock=time.process_time)
    if outcome.model is None:
        raise SystemExit(outcome.exit_code)
    artifact = artifacts.load(outcome.model)
    network = build(artifact.kind, artifact.config)
    artifact.fill(network)
    assert isinstance(network, VQAutoencoder)
    return network.eval(), {"pictures_seen": outcome.images_seen}


@torch.inference_mode()
def usage(network: nn.Module, pictures: Tensor) -> dict[str, float]:
    """Share of codes used and perplexity over ``pictures``."""
    counts = torch.zeros(int(network.codebook_size), dtype=torch.int64)  # type: ignore[arg-type]
    for part in pictures.split(64):
        codes = network.encode(part).codes  # type: ignore[operator]
        counts += torch.bincount(codes.flatten(), minlength=len(counts))
    statistics = codebook_statistics(counts)
    return {"used": round(statistics.used, 4), "perplexity": round(statistics.perplexity, 1)}


@torch.inference_mode()
def quality(network: nn.Module, pictures: Tensor) -> dict[str, float]:
    """Mean PSNR in dB and LPIPS of the reconstructions of ``pictures``."""
    judge = load_lpips()
    totals = {"psnr": 0.0, "lpips": 0.0}
    for part in pictures.split(32):
        made = network(part).x.float().clamp(-1.0, 1.0)
        totals["psnr"] += float(psnr(made, part).sum())
        totals["lpips"] += float(judge(made, part).sum())
    return {name: round(total / len(pictures), 4) for name, total in totals.items()}


def codebook_use(
    minutes: float = 10.0, folder: Path | None = None, *, scratch: bool = False
) -> dict[str, Any]:
    """Train a tokenizer of 16,384 codes and count which of them the whole set uses.

    Its encoder and decoder begin with the weights of the shipped tokenizer (2,048 codes) unless ``scratch``.
    Goals: 95 % of the codes, perplexity of half of them. ``training`` counts the pictures of the split
    "train", ``held_out`` those of the split "cell" (fewer positions than codes: it cannot use them all).
    """
    changes = [
        f"optim.time_budget_minutes={minutes}",
        *(f"run.{key}={json.dumps(value)}" for key, value in QUIET.items()),
    ]
    if not scratch:
        changes.append(f"run.warm_start={json.dumps(str(artifacts.find('vqgan') / 'tokenizer'))}")
    recipe = load_recipe(RECIPES / "tokenizer-16384.toml", changes)
    with tempfile.TemporaryDirectory() as temporary:
        network, seen = finished(recipe, folder or Path(temporary) / "run")
    bank = load_emoji()
    training = pictures_of(bank, bank.indices("train"), recipe.data.size)
    found = usage(network, training)
    codes = int(network.codebook_size)
    return {
        "codebook_use": found["used"],
        "perplexity": found["perplexity"],
        "perplexity_share": round(found["perplexity"] / codes, 4),
        "codes": codes,
        "positions": len(training) * (recipe.data.size // 8) ** 2,
        "held_out": usage(network, pictures_of(bank, bank.indices("cell"), recipe.data.size)),
        "quality": quality(network, held_out(256)),
        "minutes": minutes,
        "from": "nothing" if scratch else "the shipped tokenizer",
        **seen,
    }


def tokenizer_vs_taming(minutes: float = 8.0, seed: int = 0) -> dict[str, Any]:
    """Train our f8 tokenizer and taming's f8 network with taming's settings, ``minutes`` each; held-out
    PSNR (dB, higher is better) and LPIPS (lower is better) of both, on the same 256 pictures.
    """
    extra = {**QUIET, "seed": seed}
    changes = [
        f"optim.time_budget_minutes={minutes}",
        *(f"run.{key}={json.dumps(value)}" for key, value in extra.items()),
    ]
    ours = load_recipe(RECIPES / "tokenizer.toml", changes)
    theirs = parse_recipe(
        {**TAMING, "optim": {**TAMING["optim"], "time_budget_minutes": minutes}, "run": extra}
    )
    pictures = held_out(256)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, recipe in (("ours", ours), ("taming", theirs)):
            network, seen = finished(recipe, Path(scratch) / name)
            result[name] = {**quality(network, pictures), "use": usage(network, pictures), **seen}
    better = result["ours"]["psnr"] > result["taming"]["psnr"]
    better = better and result["ours"]["lpips"] < result["taming"]["lpips"]
    return {
        "tokenizer_vs_taming": {**result, "better_in_both": better, "minutes": minutes, "n": len(pictures)}
    }


def main() -> None:
    """Measure one of the two and print it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["codebook_use", "tokenizer_vs_taming"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--run", type=Path, help="keep the training here (codebook_use)")
    parser.add_argument("--scratch", action="store_true", help="from random weights (codebook_use)")
    given = parser.parse_args()
    if not default_emoji_folder().is_dir():
        raise SystemExit("the emoji set is not built: vitrail data build emoji")
    if given.what == "codebook_use":
        print(json.dumps(codebook_use(given.minutes, given.run, scratch=given.scratch)))
    else:
        print(json.dumps(tokenizer_vs_taming(given.minutes)))


if __name__ == "__main__":
    main()
