"""Stable Diffusion 1.5 on a CPU in float32: vitrail beside diffusers, OpenVINO and stable-diffusion.cpp.

    python benchmarks/sd_cpu.py [--only unet|vae|exact|fast|memory|upscale] [--quick] [--rounds 2]
                                [--threads 2] [--openvino PYTHON] [--sd-cpp PYTHON] [--no-compile]
                                [--all-samples] [--model FOLDER] [--clock wall|cpu]

Real dimensions, random weights, the same in every process. Each contestant is a process of its own; rounds
are interleaved and each prints its median. Ratios are vitrail's median over the best peer's. --quick: 32 x 32
latents, 4 steps, one round. --openvino, --sd-cpp: a Python that has openvino, or stable-diffusion-cpp-python,
and this project's packages:

    python -m venv /tmp/ov && /tmp/ov/bin/pip install openvino
    echo $PWD/.venv/lib/python3.11/site-packages > /tmp/ov/lib/python3.11/site-packages/vitrail.pth
    python -m venv /tmp/sdcpp
    CMAKE_ARGS=-DGGML_NATIVE=ON /tmp/sdcpp/bin/pip install stable-diffusion-cpp-python
    echo $PWD/.venv/lib/python3.11/site-packages > /tmp/sdcpp/lib/python3.11/site-packages/vitrail.pth

The whole of 20 steps is run by vitrail, by diffusers' best form and by the best peer of all, as their U-Net
pass and their decoder have just ranked them; --all-samples: by everybody, which takes half an hour more.
--clock cpu counts the processor time of a contestant (all its threads) instead of the wall's: for a machine
that others use as well, with --threads 1. --model: where the model's folder is or shall be (4.3 GB, as much
again for stable-diffusion.cpp); default: /tmp/vitrail-sd15.

The last line printed is JSON: unet_ratio, vae_ratio, exact_ratio, fast_ratio, memory_ratio (highest resident
memory of vitrail over that of diffusers' eager pipeline, both from the model's folder to a picture of 512
pixels), upscale_ratio (over plain PyTorch), rel_err of the U-Net pass, psnr_db of the exact picture against
diffusers', fast_psnr_db of the fast one against the exact one, ``peers`` with everybody's seconds,
``skipped`` with reasons.
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
    "memory": "picture",
    "upscale": "upscale",
}
DIFFUSERS = ("eager", "channels_last", "compiled")
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
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
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
    once = what in ("sample", "picture")
    steps = 1 if what == "picture" else steps
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    results: dict[str, np.ndarray] = {}
    field = {
        kind: Contestant(kind, python, settings.threads, settings.clock) for kind, python in kinds.items()
    }
    try:
        for number in range(1 if once else settings.rounds):
            for kind, contestant in list(field.items()):
                save = folder / f"{what}-{kind}.npy"
                warm = number == 0 and not once
                got = contestant.ask(
                    what=what, latents=latents, steps=steps, save=str(save), warm=warm, model=settings.model
                )
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


def in_steps(settings: argparse.Namespace, skipped: dict[str, str]) -> dict[str, float]:
    """Return what stable-diffusion.cpp takes for a guided step and for the decoder: {"unet": s, "vae": s}."""
    if not settings.sd_cpp:
        skipped["stable-diffusion.cpp"] = "not installed; see --sd-cpp"
        return {}
    if settings.clock == "cpu":
        skipped["stable-diffusion.cpp"] = "tells its steps apart on the wall's clock only"
        return {}
    contestant = Contestant("sd_cpp", settings.sd_cpp, settings.threads, settings.clock)
    try:
        got = contestant.ask(
            what="steps", latents=32 if settings.quick else 64, steps=2, model=settings.model
        )
    finally:
        contestant.close()
    if "failed" in got:
        skipped["stable-diffusion.cpp"] = got["failed"]
        return {}
    print(f"sd.cpp   a guided step {got['seconds']:.2f} s, decoder {got['decoder']:.2f} s", flush=True)
    return {"unet": got["seconds"], "vae": got["decoder"]}


def ranked(peers: dict[str, dict[str, float]], steps: int) -> list[str]:
    """Return the peers by what ``steps`` U-Net passes and a decoder take, as far as both are known."""
    unet, vae = peers.get("unet", {}), peers.get("vae", {})
    known = [kind for kind in unet if kind != "ours" and kind in vae]
    return sorted(known, key=lambda kind: steps * unet[kind] + vae[kind])


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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--openvino", default=os.environ.get("OPENVINO_PYTHON", ""))
    parser.add_argument("--sd-cpp", default=os.environ.get("SD_CPP_PYTHON", ""))
    parser.add_argument("--model", default="/tmp/vitrail-sd15")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out (minutes of compiling)"
    )
    parser.add_argument(
        "--without", nargs="+", choices=(*DIFFUSERS, "openvino"), default=[], metavar="PEER",
        help="leave peers out: together they hold 23 GB in the U-Net's race (compiled, channels_last, ...)",
    )  # fmt: skip
    parser.add_argument("--all-samples", action="store_true", help="20 steps by every peer, not the best")
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
    for kind in settings.without:
        if peers.pop(kind, None):
            skipped[kind] = "left out by --without"
    wanted = [settings.only] if settings.only else list(FIGURES)
    out: dict[str, Any] = {
        "peers": {},
        "skipped": skipped,
        "threads": settings.threads,
        "clock": settings.clock,
    }
    cpp = in_steps(settings, skipped) if {"unet", "vae"} & set(wanted) else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for figure in ("unet", "vae", "upscale"):
            if figure in wanted:
                layers(figure, peers, cpp, settings, folder, out)
        if {"exact", "fast"} & set(wanted):
            samples(peers, wanted, settings, folder, out)
        if "memory" in wanted:
            both = {"eager": sys.executable, "ours": sys.executable}
            peaks: dict[str, float] = {}
            for kind, python in both.items():  # one at a time: each needs 4 to 6 GB
                peaks.update(race({kind: python}, "picture", settings, folder, skipped)[1])
            out["peak_mb"] = peaks
            out["memory_ratio"] = peaks.get("ours", float("nan")) / peaks.get("eager", float("nan"))
    print(json.dumps(out))


def layers(
    figure: str,
    peers: dict[str, str],
    cpp: dict[str, float],
    settings: argparse.Namespace,
    folder: Path,
    out: dict[str, Any],
) -> None:
    """Time one network of everybody."""
    upscale = figure == "upscale"  # against plain PyTorch
    field = {"eager": sys.executable} if upscale else peers
    times, _, results = race({**field, "ours": sys.executable}, figure, settings, folder, out["skipped"])
    if figure in cpp:
        times["sd_cpp"] = cpp[figure]
    out["peers"][figure] = times
    best = min((value for kind, value in times.items() if kind != "ours"), default=float("nan"))
    out[f"{figure}_ratio"] = times.get("ours", float("nan")) / best
    if "ours" in results and "eager" in results:
        key = {"unet": "rel_err", "vae": "vae_psnr_db", "upscale": "upscale_rel_err"}[figure]
        out[key] = (psnr if figure == "vae" else relative)(results["ours"], results["eager"])


def samples(
    peers: dict[str, str], wanted: list[str], settings: argparse.Namespace, folder: Path, out: dict[str, Any]
) -> None:
    """Time 512 pixels in 20 steps with guidance."""
    skipped, order = out["skipped"], ranked(out["peers"], 4 if settings.quick else 20)
    chosen = dict(peers)
    if order and not settings.all_samples:
        quickest = next((kind for kind in order if kind in peers), order[0])
        reference = next((kind for kind in order if kind in DIFFUSERS), "eager")
        chosen = {kind: peers[kind] for kind in (quickest, reference) if kind in peers}
        for kind in peers:
            if kind not in chosen:
                skipped[f"{kind}/sample"] = f"slower than {quickest} in U-Net pass and decoder; --all-samples"
    times: dict[str, float] = {}
    results: dict[str, np.ndarray] = {}
    field = {**chosen, "ours": sys.executable}
    if "fast" in wanted:
        field["fast"] = sys.executable
    for kind, python in field.items():  # one at a time: each needs 4 to 10 GB
        seconds, _, made = race({kind: python}, "sample", settings, folder, skipped)
        times.update(seconds)
        results.update(made)
    out["peers"]["sample"] = times
    if order and order[0] == "sd_cpp":  # it was the best of all: its own steps and decoder stand for it
        steps = 4 if settings.quick else 20
        times["sd_cpp"] = steps * out["peers"]["unet"]["sd_cpp"] + out["peers"]["vae"]["sd_cpp"]
    best = min((value for kind, value in times.items() if kind not in ("ours", "fast")), default=float("nan"))
    out["exact_ratio"] = times.get("ours", float("nan")) / best
    theirs = next((results[kind] for kind in DIFFUSERS if kind in results), None)
    if "ours" in results and theirs is not None:
        out["psnr_db"] = psnr(results["ours"], theirs)
    if "fast" in times:
        out["fast_ratio"] = times["fast"] / best
        if "ours" in results:
            out["fast_psnr_db"] = psnr(results["fast"], results["ours"])


if __name__ == "__main__":
    main()
