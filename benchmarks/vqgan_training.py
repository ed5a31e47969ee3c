"""Adversarial training of autoencoders, measured: the classic wound, and the speed of a step.

``python benchmarks/vqgan_training.py wound --minutes 4`` and ``... train_ratio``: one JSON object as the
last line of each. ``benchmarks/vqgan.py`` calls the functions.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from vqgan_plain import PlainDiscriminator, PlainVQGAN, plain_step

from vitrail.data.batch import Batch
from vitrail.models.perceptual import load_lpips
from vitrail.recipe import AutoencoderRecipe, parse_recipe
from vitrail.recipe.autoencoders import classic_preset
from vitrail.training import sources
from vitrail.training.loop import Settings, StepReport, TrainState, fit
from vitrail.training.optim import Ema
from vitrail.training.plan import Setting
from vitrail.training.plan_autoencoder import (
    HeldOutQuality,
    held_out_pictures,
    plan_autoencoder,
)
from vitrail.training.reconstruction import load_perceptual

CPU = torch.device("cpu")

#: Pictures a second of the small training on one core of a 2026 server, all parts of it together: what turns
#: minutes into a number of pictures, so that the training itself never depends on the clock.
WOUND_SPEED = 75

#: taming's trainer: the discriminator starts at full weight at one step, untrained, and nothing else is done.
TAMING = {
    "weight": 0.8,
    "lead_images": 0,
    "ramp_images": 0,
    "lecam_weight": 0.0,
    "augment": [],
    "guard": False,
}


def wound(minutes: float = 4.0, seed: int = 0) -> dict[str, Any]:
    """Train one autoencoder without an adversary, then go on from that very state in two ways: with taming's
    settings, and with vitrail's defaults. Held-out LPIPS of both, against the best before the start.

    taming's arm is measured as taming hands its network out (the weights of the last step), vitrail's as
    vitrail does (their moving average); the other figure is given beside it. 32 pixel emoji, f4, FSQ.
    """
    third = int(minutes * 60 * WOUND_SPEED / 3) // 64 * 64
    lead, every = third // 4, third // 16
    plain = _small_recipe(third, seed, None)
    data = sources.open_data(plain, lambda line: None)
    perceptual = load_perceptual(plain.objective, CPU)
    measure = HeldOutQuality(held_out_pictures(data, 64), perceptual, CPU, plain)
    began = time.monotonic()
    state, history = _train(plain, data, measure, third, every, None)
    ours = {"lead_images": lead, "ramp_images": third // 2, "guard_every_images": every}
    arms: dict[str, Any] = {}
    for name, own, other, start, settings in (
        ("taming", "live", "average", third, TAMING),
        ("vitrail", "average", "live", third + lead, ours),
    ):
        arm = _small_recipe(start, seed, settings)
        _, points = _train(arm, data, measure, 2 * third + lead, every, state)
        points = history + points
        before = {kind: min(p[kind] for p in points if p["images"] <= start) for kind in (own, other)}
        after = {kind: max(p[kind] for p in points if p["images"] > start) for kind in (own, other)}
        arms[name] = {
            "measured_as": own,
            "start_images": start,
            "before": round(before[own], 4),
            "worst_after": round(after[own], 4),
            "last": round(points[-1][own], 4),
            "worst_over_before": round(after[own] / before[own], 4),
            f"worst_over_before_{other}": round(after[other] / before[other], 4),
            "curve": [[p["images"], round(p[own], 4)] for p in points],
        }
    return {
        "lpips_worst_over_before": arms["vitrail"]["worst_over_before"],
        "taming_worst_over_before": arms["taming"]["worst_over_before"],
        "held_out_pictures": 64,
        "seconds": round(time.monotonic() - began, 1),
        "arms": arms,
    }


def _small_recipe(start: int, seed: int, adversary: dict[str, Any] | None) -> Any:
    tables: dict[str, Any] = {
        "kind": "autoencoder",
        "data": {"source": "emoji", "size": 32, "batch_size": 16, "synthetic_share": 0.3, "prefetch": 0},
        "model": {
            "kind": "vq_autoencoder",
            "embed_dim": 8,
            "network": {
                "architecture": "lean",
                "downsample": 4,
                "patch": 2,
                "widths": [48, 96],
                "z_channels": 8,
            },
            "quantizer": {"kind": "fsq", "levels": [8, 8, 8]},
        },
        "objective": {"edge": 0.5, "perceptual_share": 0.5},
        "optim": {"until_images": 1, "lr": 1e-3, "warmup_images": 320, "decay": "none",
                  "ema_half_life_images": 1000},
        "run": {"seed": seed},
    }  # fmt: skip
    if adversary is not None:
        tables["adversary"] = {
            **adversary, "start_images": start,
            "discriminator": {"kind": "patch", "width": 32, "layers": 2},
        }  # fmt: skip
    return parse_recipe(tables)


def _train(
    recipe: AutoencoderRecipe,
    data: sources.Data,
    measure: HeldOutQuality,
    until: int,
    every: int,
    begin: TrainState | None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Train up to ``until`` pictures, from the state ``begin`` if given; returns state and measurements."""
    torch.manual_seed(recipe.run.seed)
    plan = plan_autoencoder(Setting(recipe, CPU, None, lambda line: print(line, file=sys.stderr)))
    model = plan.modules["model"]
    optim = recipe.optim
    state = TrainState(
        plan.modules, plan.optimizers, {"model": Ema(model, optim.ema_half_life_images)}, recipe.run.seed
    )
    if begin is not None:
        model.load_state_dict(begin.modules["model"].state_dict())
        plan.modules["balance"].load_state_dict(begin.modules["balance"].state_dict())
        state.ema["model"] = copy.deepcopy(begin.ema["model"])
        state.optimizers["model"].load_state_dict(copy.deepcopy(begin.optimizers["model"].state_dict()))
        state.images_seen, state.step = begin.images_seen, begin.step
    points: list[dict[str, float]] = []
    twin = copy.deepcopy(model).eval()

    def look(state: TrainState, report: StepReport) -> None:
        # Before the start only the last third counts; afterwards every turn.
        if state.images_seen % every or (begin is None and state.images_seen < 2 * until // 3):
            return
        twin.load_state_dict(model.state_dict())
        live = measure.distance(twin)
        state.ema["model"].copy_to(twin)
        points.append({"images": state.images_seen, "live": live, "average": measure.distance(twin)})

    phases = plan.phases(data)
    rate = lambda images, share: optim.lr * min(1.0, (images + 1) / (optim.warmup_images + 1))  # noqa: E731
    fit(
        phases,
        data.batches,
        state,
        until_images=until,
        settings=Settings(learning_rate=rate, grad_clip=optim.grad_clip, precision="bfloat16"),
        hooks=[*plan.hooks, look],
    )
    return state, points


#: taming's f16 preset; the size of pictures is a parameter: one core takes minutes for one step at 256.
F16 = {"ch": 128, "mult": (1, 1, 2, 2, 4), "blocks": 2, "attn": (16,), "side": 256, "z": 256, "codes": 1024}


class _Step:
    """vitrail's training step of the f16 preset on fixed pictures, through :func:`fit`."""

    def __init__(self, pictures: Tensor, precision: str, weight: float) -> None:
        recipe = parse_recipe(
            {
                "kind": "autoencoder",
                "data": {"size": pictures.shape[-1], "batch_size": len(pictures)},
                "model": classic_preset(16).model_dump(),
                "adversary": {**TAMING, "weight": weight, "start_images": 0},
                "optim": {"until_images": 1, "lr": 1e-5, "betas": [0.5, 0.9], "weight_decay": 0.0},
            }
        )
        torch.manual_seed(0)
        self.pictures = pictures
        self.plan = plan_autoencoder(Setting(recipe, CPU, None, lambda line: None))
        self.model, self.judge = self.plan.modules["model"], self.plan.modules["discriminator"]
        self.state = TrainState(self.plan.modules, self.plan.optimizers, {"model": Ema(self.model, 1e4)})
        self.phases = self.plan.phases(sources.Data(self._batches))
        self.settings = Settings(precision=precision)  # type: ignore[arg-type]
        self.losses: list[tuple[float, float]] = []

    def _batches(self, seen: int) -> Iterator[Batch]:
        while True:
            count = len(self.pictures)
            yield Batch(self.pictures, [""] * count, torch.zeros(count, dtype=torch.int64))

    def __call__(self) -> tuple[float, float]:
        def note(state: TrainState, report: StepReport) -> None:
            self.losses.append((report.losses["model"], report.losses["discriminator"]))

        fit(
            self.phases,
            self._batches,
            self.state,
            until_images=self.state.images_seen + len(self.pictures),
            settings=self.settings,
            hooks=[note],
        )
        return self.losses[-1]


class _PlainStep:
    """The same on plain PyTorch, from the same weights."""

    def __init__(self, step: _Step, weight: float, *, twice: bool) -> None:
        self.model, self.judge = PlainVQGAN(**F16), PlainDiscriminator()  # type: ignore[arg-type]
        names = self.model.state_dict().keys()
        self.model.load_state_dict({k: v for k, v in step.model.state_dict().items() if k in names})
        self.judge.load_state_dict(step.judge.state_dict())
        self.optimizers = (
            torch.optim.Adam(self.model.parameters(), 1e-5, (0.5, 0.9)),
            torch.optim.Adam(self.judge.parameters(), 1e-5, (0.5, 0.9)),
        )
        self.lpips = load_lpips()
        self.pictures, self.weight, self.twice = step.pictures.contiguous(), weight, twice

    def __call__(self) -> tuple[float, float]:
        return plain_step(
            self.model, self.judge, self.lpips, self.optimizers, self.pictures, self.weight, twice=self.twice
        )


def train_ratio(rounds: int = 5, size: int = 64, batch: int = 4, weight: float = 0.8) -> dict[str, Any]:
    """Time of a training step of the classic f16 preset (both players, LPIPS, adaptive weight) on plain
    PyTorch over that of vitrail: same weights, pictures and losses, the steps of all taking turns.

    Plain PyTorch runs in float32, once as carefully as its losses allow (one forward pass of the autoencoder
    a step) and once as taming's trainer does (two). vitrail runs in float32, the headline, whose losses are
    the same but for rounding, and in bfloat16, whose losses are rounded to 8 bits.
    Times are of the processor, so that other work on the machine does not count. Losses are compared in the
    first step, from equal weights; later ones drift apart as any two orders of addition do under Adam.
    """
    pictures = _smooth_pictures(batch, size)
    ours = {precision: _Step(pictures, precision, weight) for precision in ("float32", "bfloat16")}
    steps: dict[str, Callable[[], tuple[float, float]]] = {
        "plain": _PlainStep(ours["float32"], weight, twice=False),
        "taming": _PlainStep(ours["float32"], weight, twice=True),
        **ours,
    }
    losses: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            losses[name].append(step())
            if turn:  # the first one allocates
                seconds[name].append(time.process_time() - began)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        precision: [a / b for a, b in zip(seconds["plain"], seconds[precision], strict=True)]
        for precision in ours
    }

    def apart(name: str) -> float:
        pairs = zip(losses[name][0], losses["plain"][0], strict=True)
        return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)

    return {
        "train_ratio": round(statistics.median(ratios["float32"]), 3),
        "train_ratio_rounds": [round(value, 3) for value in ratios["float32"]],
        "train_ratio_bfloat16": round(statistics.median(ratios["bfloat16"]), 3),
        "train_ratio_over_taming": round(times["taming"] / times["float32"], 3),
        "seconds_a_step": {name: round(value, 3) for name, value in times.items()},
        "first_losses": {name: [round(v, 6) for v in values[0]] for name, values in losses.items()},
        "loss_difference_float32": apart("float32"),
        "loss_difference_bfloat16": apart("bfloat16"),
        "size": size,
        "batch": batch,
        "threads": torch.get_num_threads(),
    }


def _smooth_pictures(count: int, size: int) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return functional.interpolate(coarse, size=size, mode="bilinear").contiguous()


def main() -> None:
    """Run one part and print its JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["wound", "train_ratio"])
    parser.add_argument("--minutes", type=float, default=4.0)
    options = parser.parse_args()
    parts: dict[str, Callable[[float], dict[str, Any]]] = {
        "wound": wound,
        "train_ratio": lambda minutes: train_ratio(),
    }
    print(json.dumps(parts[options.part](options.minutes)))


if __name__ == "__main__":
    main()
