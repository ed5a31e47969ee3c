"""Where and how numbers are computed: device, precision, random numbers."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from vitrail.errors import InputError

__all__ = ["Precision", "autocast", "cpu_generator", "fast_bfloat16", "pick_device"]

Precision = Literal["auto", "float32", "bfloat16"]


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on.

    ``auto`` takes CUDA where there is one, then Apple's MPS, then the CPU. Raises :class:`InputError` for a
    name that torch does not know or a device that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:0 or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise InputError(f"device {name!r} is not available on this machine; use auto or cpu")
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 products are faster than float32 ones on ``device``.

    On a CPU that takes the AVX-512 BF16 or AMX instructions; without them bfloat16 is emulated and slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(
    device: torch.device, precision: Precision = "auto"
) -> contextlib.AbstractContextManager[object]:
    """Return the mixed-precision context for ``precision``; ``auto`` means bfloat16 where it is fast."""
    if precision == "float32" or (precision == "auto" and not fast_bfloat16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def cpu_generator(seed: int) -> torch.Generator:
    """Return a fresh CPU generator; noise is always drawn on the CPU so that no device changes a picture."""
    return torch.Generator("cpu").manual_seed(seed % 2**63)
