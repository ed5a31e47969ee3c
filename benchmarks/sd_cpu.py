"""Stable Diffusion 1.5 on a CPU in float32: vitrail beside diffusers, OpenVINO and stable-diffusion.cpp.

    python benchmarks/sd_cpu.py [--only unet|vae|exact|fast|memory|upscale] [--quick] [--rounds 3]
                                [--threads 2] [--openvino PYTHON] [--no-compile] [--clock wall|cpu]

Real dimensions, random weights, the same in every process. Each contestant is a process of its own; rounds
are interleaved and each prints its median. Ratios are vitrail's median over the best peer's. --quick: 32 x 32
latents, 4 steps, one round. --openvino: a Python that has both openvino and this project's packages:

    python -m venv /tmp/ov && /tmp/ov/bin/pip install openvino
    echo $PWD/.venv/lib/python3.11/site-packages > /tmp/ov/lib/python3.11/site-packages/vitrail.pth

--clock cpu counts the processor time of a contestant (all its threads) instead of the wall's: for a machine
that others use as well, with --threads 1.

The last line printed is JSON: unet_ratio, vae_ratio, exact_ratio, fast_ratio, memory_ratio (peak of vitrail
over diffusers' eager), upscale_ratio (over plain PyTorch), rel_err of the U-Net pass, psnr_db of the exact
picture against diffusers', fast_psnr_db of the fast one against the exact one, ``peers`` with everybody's
seconds, ``skipped`` with reasons.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = {
    "unet": "unet",
    "vae": "vae",
    "exact": "sample",
    "fast": "sample",
    "memory": "sample",
    "upscale": "upscale",
}
PEERS = ("eager", "channels_last", "compiled", "openvino")
WORKER = Path(__file__).with_name("sd_cpu_worker.py")


class Contestant:
    """A worker process and its answers."""

    def __init__(self, kind: str, python: str, threads: int, clock: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.kind = kind
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(WORKER), kind, "--threads", str(threads), "--clock", clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": "the process died (out of memory?)"}
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def race(
    kinds: dict[str, str], what: str, settings: argparse.Namespace, folder: Path, skipped: dict[str, str]
) -> tuple[dict[str, float], dict[str, float], dict[str, np.ndarray]]:
    """Return median seconds, peak MB and result of each contestant; who failed goes into ``skipped``."""
    steps, latents = (4, 32) if settings.quick else (20, 64)
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    results: dict[str, np.ndarray] = {}
    field = {
        kind: Contestant(kind, python, settings.threads, settings.clock) for kind, python in kinds.items()
    }
    rounds = 1 if what == "sample" else settings.rounds
    try:
        for number in range(rounds):
            for kind, contestant in list(field.items()):
                save = folder / f"{what}-{kind}.npy"
                warm = number == 0 and what != "sample"
                got = contestant.ask(what=what, latents=latents, steps=steps, save=str(save), warm=warm)
                if "failed" in got:
                    skipped[f"{kind}/{what}"] = got["failed"]
                    field.pop(kind).close()
                    continue
                seconds.setdefault(kind, []).append(got["seconds"])
                peaks[kind] = got["peak_mb"]
                results[kind] = np.load(save)
                print(
                    f"{what:8} round {number + 1} {kind:14} {got['seconds']:8.2f} s {got['peak_mb']:7.0f} MB",
                    flush=True,
                )
    finally:
        for contestant in field.values():
            contestant.close()
    return {kind: statistics.median(times) for kind, times in seconds.items()}, peaks, results


def relative(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(made.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


def psnr(made: np.ndarray, wanted: np.ndarray) -> float:
    """PSNR (dB) of pictures brought to [0, 1] by the range of ``wanted``."""
    low, high = np.quantile(wanted, [0.001, 0.999])
    error = (np.clip(made, low, high) - np.clip(wanted, low, high)).astype(np.float64) / (high - low)
    return float(min(200.0, -10 * np.log10(max(float((error**2).mean()), 1e-20))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(FIGURES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--openvino", default=os.environ.get("OPENVINO_PYTHON", ""))
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out (minutes of compiling)"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    settings = parser.parse_args()
    settings.rounds = 1 if settings.quick else settings.rounds
    skipped: dict[str, str] = {}
    peers = {"eager": sys.executable, "channels_last": sys.executable}
    if settings.no_compile:
        skipped["compiled"] = "left out by --no-compile"
    else:
        peers["compiled"] = sys.executable
    if settings.openvino or importlib.util.find_spec("openvino"):
        peers["openvino"] = settings.openvino or sys.executable
    else:
        skipped["openvino"] = "not installed; see --openvino"
    skipped["stable-diffusion.cpp"] = (
        "not timed: the registry has stable-diffusion-cpp-python 0.4.7 as source only, and its build had not "
        "finished on the busy core where this was written"
    )
    wanted = [settings.only] if settings.only else list(FIGURES)
    out: dict[str, Any] = {
        "peers": {},
        "skipped": skipped,
        "threads": settings.threads,
        "clock": settings.clock,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for figure in ("unet", "vae", "upscale"):
            if figure not in wanted:
                continue
            field = (
                {"eager": sys.executable, "channels_last": sys.executable} if figure == "upscale" else peers
            )
            times, _, results = race({**field, "ours": sys.executable}, figure, settings, folder, skipped)
            out["peers"][figure] = times
            rivals = {kind: value for kind, value in times.items() if kind != "ours"}
            if figure == "upscale":  # against plain PyTorch; channels_last is shown beside it
                rivals = {kind: value for kind, value in rivals.items() if kind == "eager"}
            best = min(rivals.values(), default=float("nan"))
            out[f"{figure}_ratio"] = times.get("ours", float("nan")) / best
            if "ours" in results and "eager" in results:
                key = {"unet": "rel_err", "vae": "vae_psnr_db", "upscale": "upscale_rel_err"}[figure]
                measure = psnr if figure == "vae" else relative
                out[key] = measure(results["ours"], results["eager"])
        if {"exact", "fast", "memory"} & set(wanted):
            field = {"eager": sys.executable} if settings.only == "memory" else peers
            field = {**field, "ours": sys.executable}
            if "fast" in wanted:
                field["fast"] = sys.executable
            times, peaks, results = {}, {}, {}
            for kind, python in field.items():  # one at a time: each needs 4 to 8 GB
                a, b, c = race({kind: python}, "sample", settings, folder, skipped)
                times.update(a)
                peaks.update(b)
                results.update(c)
            out["peers"]["sample"], out["peak_mb"] = times, peaks
            best = min(
                (value for kind, value in times.items() if kind not in ("ours", "fast")), default=float("nan")
            )
            out["exact_ratio"] = times.get("ours", float("nan")) / best
            if "fast" in times:
                out["fast_ratio"] = times["fast"] / best
                out["fast_psnr_db"] = psnr(results["fast"], results["ours"])
            if "eager" in peaks and "ours" in peaks:
                out["memory_ratio"] = peaks["ours"] / peaks["eager"]
                out["psnr_db"] = psnr(results["ours"], results["eager"])
    print(json.dumps(out))


if __name__ == "__main__":
    main()
