"""Figures of the priors: the static cache against recomputing, MaskGIT against code after code.

``benchmarks/vqgan.py`` calls :func:`ar_cache` and :func:`maskgit_vs_ar`; run alone::

    python benchmarks/vqgan_prior.py ar_cache
    python benchmarks/vqgan_prior.py maskgit_vs_ar --masked MODEL --causal MODEL
    python benchmarks/vqgan_prior.py maskgit_vs_ar --tokenizer MODEL --minutes 10
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.models.token_readers import CachedReader, MaskedReader, RecomputingReader
from vitrail.models.token_transformer import Conditions, TokenTransformer
from vitrail.recipe.priors import TokenTransformerConfig
from vitrail.runtime import autocast, cpu_generator
from vitrail.samplers.tokens import UNKNOWN, sample_autoregressive, sample_maskgit
from vitrail.tasks.loading import Loader, TokenModel


def network(mode: str, side: int = 16, codes: int = 1024, **changes: Any) -> TokenTransformer:
    """Return a prior of the benchmark's size (384 x 8) with random weights that tell codes apart."""
    config = {
        "mode": mode,
        "codes": codes,
        "rows": side,
        "columns": side,
        "width": 384,
        "depth": 8,
        "heads": 6,
    }
    torch.manual_seed(0)
    made = TokenTransformer(TokenTransformerConfig.model_validate(config | changes))
    with torch.no_grad():
        torch.nn.init.normal_(made.head.weight, std=0.1)
    return made.eval().requires_grad_(False)


def ar_cache(
    batches: Sequence[int] = (1, 8), side: int = 16, repeats: int = 3, guidance: float = 1.0
) -> dict[str, Any]:
    """Draw side x side codes with the static cache and by recomputing everything for each code.

    The best of ``repeats`` for the cache, one run of the plain way for larger batches (minutes) and two
    for a batch of 1. "ar_cache_ratio" is the smallest ratio of all batches; codes must be identical.
    """
    model = network("causal", side)
    figures: dict[str, Any] = {"codes": side * side, "guidance": guidance, "threads": torch.get_num_threads()}
    ratios: list[float] = []
    same = True
    with torch.inference_mode():
        for batch in batches:
            rows = batch * (1 if guidance == 1.0 else 2)
            conditions = Conditions(styles=torch.zeros(rows, dtype=torch.long))

            def drawn(reader: CachedReader | RecomputingReader, batch: int = batch) -> tuple[float, Tensor]:
                known = torch.full((batch, side, side), UNKNOWN)
                generators = [cpu_generator(seed) for seed in range(batch)]
                start = time.perf_counter()
                codes = sample_autoregressive(reader, known, generators, guidance=guidance)
                return time.perf_counter() - start, codes

            drawn(CachedReader(model, conditions))
            fast = [drawn(CachedReader(model, conditions)) for _ in range(repeats)]
            slow = [drawn(RecomputingReader(model, conditions)) for _ in range(2 if batch == 1 else 1)]
            same = same and all(torch.equal(codes, slow[0][1]) for _, codes in fast)
            seconds, plain = min(t for t, _ in fast), min(t for t, _ in slow)
            ratios.append(plain / seconds)
            figures[f"batch_{batch}"] = {
                "cached_s": round(seconds, 3),
                "recomputed_s": round(plain, 3),
                "ratio": round(plain / seconds, 2),
            }
    return {"ar_cache_ratio": round(min(ratios), 2), "ar_cache_identical": same, "ar_cache": figures}


def train_pair(
    tokenizer: str, folder: Path, minutes: float, recipes: Path, start: str | None = None
) -> tuple[str, str]:
    """Train a masked and a causal prior on one tokenizer's codes, ``minutes`` each; return their folders.

    start: a prior whose weights both begin with, as far as they fit; a masked one has an easier start then.
    """
    from vitrail.recipe import load_recipe
    from vitrail.training.runs import train

    made: list[str] = []
    for name in ("masked", "causal"):
        changes = [
            f"tokenizer.source={json.dumps(tokenizer)}",
            f"optim.time_budget_minutes={minutes}",
            "run.sample_every_images=0",
            *([] if start is None else [f"run.warm_start={json.dumps(str(start))}"]),
        ]
        recipe = load_recipe(recipes / f"prior-{name}.toml", changes)
        outcome = train(recipe, folder / name, clock=time.process_time)
        if outcome.model is None:
            raise SystemExit(outcome.exit_code)
        made.append(str(outcome.model))
    return made[0], made[1]


def maskgit_vs_ar(
    masked: str,
    causal: str,
    *,
    n: int = 384,
    steps: Sequence[int] = (2, 3, 4, 6, 8, 12, 16),
    guidance: float = 3.0,
    resamples: int = 200,
) -> dict[str, Any]:
    """Seconds a picture of MaskGIT against code after code (with the static cache), at the same quality.

    Both models draw ``n`` pictures for the captions and styles of ``n`` pictures of the emoji set, as the
    product draws them (MaskGIT in bfloat16 where that is fast, codes one by one in float32). Quality is the
    Frechet distance to those pictures in EfficientNet-Lite0's features, with a percentile bootstrap interval
    over the drawn pictures. MaskGIT takes the fewest steps whose distance is not above the interval of code
    after code. Seconds are medians of single pictures, batch 1, without decoding.
    """
    from vitrail.evaluation.distribution import frechet_distance
    from vitrail.evaluation.features import EfficientNetSpace
    from vitrail.evaluation.image_sets import ImageSet

    loader = Loader()
    real, captions, styles = reference(n)
    space = EfficientNetSpace()
    wanted = space(ImageSet.from_tensor("real", real))
    draw = np.random.default_rng(0)
    picks = [draw.integers(0, n, n) for _ in range(resamples)]

    def quality(drawn: Tensor) -> dict[str, Any]:
        told = space(ImageSet.from_tensor("drawn", drawn))
        # A resample repeats pictures and so has less spread than a fresh set of n would: its distances sit
        # above the value, by about as much as the distance itself is biased. The interval keeps their width.
        values = np.array([frechet_distance(told[pick], wanted, exact=False) for pick in picks])
        value = frechet_distance(told, wanted)
        low, high = np.quantile(values - np.median(values), [0.025, 0.975]) + value
        return {"frechet": round(value, 4), "ci95": [round(float(low), 4), round(float(high), 4)]}

    def run(model: TokenModel, count: int, rows: slice) -> tuple[float, Tensor]:
        config, part = model.network.config, captions[rows]
        conditions = conditions_for(model, part, styles[rows])
        known = torch.full((len(part), config.rows, config.columns), UNKNOWN)
        generators = [cpu_generator(seed) for seed in range(n)[rows]]
        start = time.perf_counter()
        if config.mode == "causal":
            codes = sample_autoregressive(
                CachedReader(model.network, conditions), known, generators, guidance=guidance
            )
        else:
            read = MaskedReader(model.network, conditions)

            def network(codes: Tensor) -> Tensor:
                with autocast(torch.device("cpu"), "auto"):
                    return read(codes)

            codes = sample_maskgit(
                network, known, generators, steps=count, choice_temperature=4.5, guidance=guidance
            )
        return time.perf_counter() - start, codes

    def measured(model: TokenModel, count: int) -> dict[str, Any]:
        with torch.inference_mode():
            drawn = [
                model.tokenizer.decode_codes(run(model, count, slice(first, min(n, first + 32)))[1])
                for first in range(0, n, 32)
            ]
            run(model, count, slice(0, 1))
            seconds = [run(model, count, slice(index, index + 1))[0] for index in range(9)]
        return {"seconds": round(statistics.median(seconds), 4), **quality(torch.cat(drawn))}

    # One model at a time: the loader keeps the last.
    first = loader.text_to_image(causal)
    assert isinstance(first, TokenModel)
    assert first.sampler == "autoregressive"
    plain = measured(first, 0)
    second = loader.text_to_image(masked)
    assert isinstance(second, TokenModel)
    assert second.sampler == "maskgit"
    tried: dict[str, Any] = {}
    ratio: float | None = None
    for count in steps:
        tried[str(count)] = told = measured(second, count)
        if told["frechet"] <= plain["ci95"][1]:
            ratio = round(plain["seconds"] / told["seconds"], 2)
            break
    return {
        "maskgit_vs_ar_ratio": ratio,
        "maskgit_vs_ar": {
            "n": n,
            "guidance": guidance,
            "threads": torch.get_num_threads(),
            "autoregressive": plain,
            "maskgit_by_steps": tried,
        },
    }


def reference(n: int) -> tuple[Tensor, list[str], list[int]]:
    """Return n drawn pictures of the emoji set (n, 3, 64, 64), with captions and styles."""
    from vitrail.data.emoji_bank import default_emoji_folder, load_emoji
    from vitrail.data.stream import EmojiStream

    stream = EmojiStream(
        load_emoji(default_emoji_folder()),
        n,
        7,
        size=64,
        synthetic_share=0.0,
        caption_drop=0.0,
        style_drop=0.0,
    )
    batch = next(iter(stream(0)))
    return batch.pixels, list(batch.captions), batch.styles.tolist()


def conditions_for(model: TokenModel, captions: list[str], styles: list[int]) -> Conditions:
    """Return the conditions of pictures and, after them, of the same styles without words."""
    assert model.text is not None
    told = model.text([*captions, *[""] * len(captions)])
    return Conditions(told.states, told.mask, told.ids, torch.tensor([*styles, *styles]))


def main() -> None:
    """Print the figures as one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["ar_cache", "maskgit_vs_ar"])
    parser.add_argument("--masked", help="model folder of a masked prior")
    parser.add_argument("--causal", help="model folder of a causal prior with the same tokenizer")
    parser.add_argument("--tokenizer", help="train both on this tokenizer's codes first")
    parser.add_argument("--start", help="prior whose weights both begin with")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each")
    parser.add_argument("--runs", type=Path, default=Path("runs/priors"))
    parser.add_argument("-n", type=int, default=384)
    options = parser.parse_args()
    if options.part == "ar_cache":
        print(json.dumps(ar_cache()))
        return
    masked, causal = options.masked, options.causal
    if options.tokenizer:
        home = Path(__file__).parents[1] / "recipes"
        masked, causal = train_pair(options.tokenizer, options.runs, options.minutes, home, options.start)
    if not masked or not causal:
        parser.error("maskgit_vs_ar needs --masked and --causal, or --tokenizer")
    print(json.dumps(maskgit_vs_ar(masked, causal, n=options.n)))


if __name__ == "__main__":
    main()
