"""Memory of the nearest-code search: 65,536 codes, 4,096 vectors of 256 channels.

The whole matrix of distances would take 1 GiB. :func:`measure` runs the search in a fresh process and reads
the growth of its peak resident memory from the kernel (``VmHWM`` in /proc/self/status, so Linux only).
``python benchmarks/vqgan_quantizer.py`` prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CODES, VECTORS, WIDTH = 65_536, 4096, 256
GOAL_MIB = 200 * 10**6 / 2**20


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024.0
    raise RuntimeError(f"/proc/self/status has no {field}; this measurement needs Linux")


def _child(mode: str) -> dict[str, Any]:
    """Measure here: ``search`` gives memory and codes, ``whole`` the codes of the whole matrix."""
    import torch

    from vitrail.models.quantizers import build_quantizer, nearest_codes
    from vitrail.recipe.autoencoders import NearestQuantizerConfig

    torch.manual_seed(0)
    quantizer = build_quantizer(NearestQuantizerConfig(codes=CODES), WIDTH).eval()  # type: ignore[call-arg]
    book = quantizer.get_parameter("embedding.weight").detach()
    book.normal_()
    z = torch.randn(4, WIDTH, 32, 32)
    nearest_codes(torch.randn(2, 4), torch.randn(3, 4))  # what the first product loads is not the search's
    vectors = z.permute(0, 2, 3, 1).reshape(-1, WIDTH)
    if mode == "whole":
        distances = vectors.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * vectors @ book.t()
        codes = distances.argmin(1)
        return {"codes": codes.tolist(), "peak_mib": _status_mib("VmHWM")}
    before = _status_mib("VmRSS")
    began = time.process_time()
    with torch.no_grad():
        codes = quantizer(z).codes.flatten()
    seconds = time.process_time() - began
    return {"codes": codes.tolist(), "grown": _status_mib("VmHWM") - before, "seconds": seconds}


def _run(mode: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", mode], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure() -> dict[str, Any]:
    """Return ``quantizer_peak_mib`` (growth of the peak while a whole quantizer runs, goal 190 MiB), how
    many of the codes are those of the whole matrix, and the processor seconds it took."""
    search, whole = _run("search"), _run("whole")
    same = sum(a == b for a, b in zip(search["codes"], whole["codes"], strict=True))
    return {
        "quantizer_peak_mib": round(search["grown"], 1),
        "quantizer_goal_mib": round(GOAL_MIB, 1),
        "quantizer_codes_equal": same,
        "quantizer_codes": VECTORS,
        "quantizer_cpu_seconds": round(search["seconds"], 3),
        "whole_matrix_mib": CODES * VECTORS * 4 / 2**20,
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[2]) if sys.argv[1:2] == ["--child"] else measure()))
