"""What making a picture costs: seconds, memory, floating-point operations.

Measured around a plain function, so that nothing here knows what is measured.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail.errors import InputError
from vitrail.evaluation.results import MetricResult
from vitrail.evaluation.stats import mean_interval

__all__ = ["count_flops", "measure_cost", "peak_memory"]


def measure_cost(
    run: Callable[[], object], *, repeats: int = 5, pictures: int = 1, device: str = "cpu"
) -> dict[str, MetricResult]:
    """Call ``run`` once to warm up and count operations, then ``repeats`` times against the clock.

    pictures: how many one call makes; everything but memory is given per picture.

    Returns ``latency_s``, ``peak_memory_mib`` and, where operations could be counted, ``gflops``. ``run``
    must work in the calling thread. Raises :class:`InputError` for fewer than 1 repeat or picture.
    """
    if repeats < 1 or pictures < 1:
        raise InputError(f"repeats {repeats}, pictures {pictures}: both must be 1 or more")
    flops = count_flops(run)
    seconds: list[float] = []
    with peak_memory(device) as peak:
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / pictures)
    settings = {
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "pictures_a_call": pictures,
    }
    estimate = mean_interval(seconds)
    results = {
        "latency_s": MetricResult(
            "latency_s",
            estimate.value,
            estimate.n,
            (estimate.low, estimate.high) if repeats > 1 else None,
            "percentile bootstrap over calls, after one warm-up",
            settings,
        )
    }
    if peak:
        what = "allocated on the device" if device.startswith("cuda") else "resident, the whole process"
        results["peak_memory_mib"] = MetricResult(
            "peak_memory_mib", peak[0] / 2**20, repeats, None, "largest seen", {**settings, "of": what}
        )
    if flops > 0:
        note = {"counted": "matrix products, convolutions, attention; a multiply-add is 2"}
        results["gflops"] = MetricResult("gflops", flops / pictures / 1e9, 1, None, "exact count", note)
    return results


def count_flops(run: Callable[[], object]) -> int:
    """Return the floating-point operations of one call, as torch.utils.flop_counter counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@contextlib.contextmanager
def peak_memory(device: str = "cpu") -> Iterator[list[float]]:
    """Yield a list that holds the peak of the block in bytes once it ends; empty where none can be had.

    On a CUDA device what PyTorch allocated there; else the process's resident memory, whose high-water mark
    Linux lets a process set back. Elsewhere the mark of the whole process is given.
    """
    found: list[float] = []
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(float(torch.cuda.max_memory_allocated()))
        return
    with contextlib.suppress(OSError):  # not Linux, or a system that forbids it: the mark stays as it is
        Path("/proc/self/clear_refs").write_text("5")
    yield found
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                found.append(float(line.split()[1]) * 1024)
    except OSError:
        if sys.platform == "win32":
            return
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found.append(float(peak) * (1 if sys.platform == "darwin" else 1024))
