"""How long a picture takes, from cold and from warm, and what training costs beside a plain loop.
loop.

    python benchmarks/generate.py [--model NAME] [--repeats 5] [--threads 2]

Every measurement runs in a child process of its own. The last line printed is JSON:

- cold_s: process start to the picture on disk, median; - warm_s: a further picture from an engine whose
model is loaded, median; - text_s, denoise_s, decode_s: its parts (reading the prompt; the sampler;
enlarging and rounding to bytes); - peak_mib: most memory the cold process ever held (VmHWM of
/proc/self/status); - train_ratio: pictures a second of vitrail's fit(), as a recipe runs it, over those of
the plainest PyTorch loop
  for the same network, batches and text encoder in float32; turns interleaved, medians.
  train_ratio_float32: the same with fit() held to float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = "a cat sitting in a garden"

COLD = """
import sys
from vitrail.cli import main
code = main(["generate", {prompt!r}, "--seed", "1", "-q", "--model", {model!r}, "-o", {out!r}])
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(peak)
sys.exit(code)
"""


def run_child(code: str, threads: int) -> str:
    """Run Python ``code`` with ``threads`` cores and return its last line; exit with its complaint."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the child failed")
    return done.stdout.strip().splitlines()[-1]


def measure_cold(model: str, repeats: int, threads: int) -> dict[str, float]:
    """Start the command ``repeats`` times, after one start that fills the file cache."""
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as out:
        for turn in range(repeats + 1):
            began = time.perf_counter()
            peak = run_child(COLD.format(prompt=PROMPT, model=model, out=out), threads)
            if turn:
                seconds.append(time.perf_counter() - began)
                peaks.append(int(peak) / 1024)
    return {"cold_s": statistics.median(seconds), "peak_mib": max(peaks)}


def measure_warm(model: str, repeats: int) -> dict[str, float]:
    """Make ``repeats`` pictures after two that warm the machine up (in the child)."""
    from vitrail.schema import TextToImageRequest, parse
    from vitrail.serving.engine import Engine
    from vitrail.serving.save import Destination

    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as out, Engine() as engine:
        for turn in range(repeats + 2):
            request = parse(TextToImageRequest, {"prompt": PROMPT, "seed": turn, "model": model})
            began = time.perf_counter()
            job = engine.submit(request, Destination(Path(out)))
            for _ in engine.events(job):
                pass
            if turn >= 2:
                rows.append({"warm": time.perf_counter() - began, **engine.seconds(job)})
    return {
        f"{part}_s": statistics.median(row[part] for row in rows)
        for part in ("warm", "text", "denoise", "decode")
    }


def measure_training(model: str, repeats: int, batch_size: int = 32, steps: int = 2) -> dict[str, float]:
    """Let fit() and a plain loop take turns of ``steps`` steps each on the same batches (in the child)."""
    import copy
    import itertools

    import torch
    from torch.nn import functional

    from vitrail.data.batch import Batch
    from vitrail.recipe import FlowObjective, OptimSection
    from vitrail.tasks.loading import Loader
    from vitrail.training.loop import Phase, Settings, TrainState, fit
    from vitrail.training.objectives import flow_loss
    from vitrail.training.optim import Ema, adamw, learning_rate, trainable

    loaded = Loader().text_to_image(model)
    encoder, device = loaded.text, torch.device("cpu")
    side, styles = loaded.native, loaded.network.config.styles
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            torch.rand(batch_size, 3, side, side, generator=generator) * 2 - 1,
            [PROMPT] * batch_size,
            torch.randint(0, styles + 1, (batch_size,), generator=generator),
        )
        for _ in range(4)
    ]
    optim = OptimSection(until_images=1_000_000)

    def ours(precision: str) -> Any:
        network = copy.deepcopy(loaded.network).requires_grad_(True)
        state = TrainState(
            {"model": network}, {"model": adamw(trainable(network), optim)}, {"model": Ema(network, 5e4)}
        )
        loss = flow_loss(network, encoder, FlowObjective(), device)
        phase = Phase("model", trainable(network), loss)
        settings = Settings(learning_rate(optim), optim.grad_clip, precision)  # type: ignore[arg-type]

        def turn() -> None:
            until = state.images_seen + steps * batch_size
            fit([phase], lambda seen: itertools.cycle(batches), state, until_images=until, settings=settings)

        return turn

    def plain() -> Any:
        network = copy.deepcopy(loaded.network).requires_grad_(True).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
        stream = itertools.cycle(batches)

        def turn() -> None:
            for _ in range(steps):
                batch = next(stream)
                text = encoder(batch.captions)
                t = torch.sigmoid(torch.randn(batch_size))
                noise = torch.randn_like(batch.pixels)
                x = (1 - t[:, None, None, None]) * batch.pixels + t[:, None, None, None] * noise
                x0 = network(x, t, text.states, text.mask, text.ids, batch.styles)
                loss = (
                    functional.mse_loss(x0, batch.pixels, reduction="none").mean((1, 2, 3))
                    / t.square().clamp_min(0.1)
                ).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return turn

    turns = {"plain": plain(), "auto": ours("auto"), "float32": ours("float32")}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(repeats + 1):
        for name, turn in turns.items():
            began = time.perf_counter()
            turn()
            if number:
                seconds[name].append(time.perf_counter() - began)
    rate = {name: steps * batch_size / statistics.median(values) for name, values in seconds.items()}
    return {
        "train_ratio": rate["auto"] / rate["plain"],
        "train_ratio_float32": rate["float32"] / rate["plain"],
        "train_pictures_per_s": rate["auto"],
    }


def main() -> None:
    """Measure, print a line a figure, and the JSON."""
    parser = argparse.ArgumentParser(description="Time and memory of a generation.")
    parser.add_argument("--model", default="default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("warm", "training"), help="used by the benchmark itself")
    options = parser.parse_args()
    if options.part == "warm":
        print(json.dumps(measure_warm(options.model, options.repeats)))
        return
    if options.part == "training":
        print(json.dumps(measure_training(options.model, options.repeats)))
        return
    figures = measure_cold(options.model, options.repeats, options.threads)
    for part in ("warm", "training"):
        arguments = [__file__, "--part", part, "--model", options.model, "--repeats", str(options.repeats)]
        code = (
            f"import runpy, sys; sys.argv = {arguments!r}; runpy.run_path({__file__!r}, run_name='__main__')"
        )
        figures |= json.loads(run_child(code, options.threads))
    figures = {name: round(value, 4) for name, value in figures.items()}
    for name, value in figures.items():
        print(f"{name:<22}{value:>10}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
