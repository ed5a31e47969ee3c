"""``vitrail doctor``: what a bug report should say about this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from vitrail.commands.language import Language, Text
from vitrail.commands.options import parse

__all__ = ["run"]

ABOUT = Text("Show versions, devices and folders of this machine.", "显示本机的版本、设备与目录。")
PACKAGES = ("torch", "numpy", "pillow", "safetensors", "tokenizers", "pydantic", "tyro", "rich")
EXTRAS = {
    "data": ("resvg_py", "matplotlib"),
    "train": ("tensorboard",),
    "sd": ("diffusers", "transformers"),
    "studio": ("dbos", "fastapi", "uvicorn", "multipart", "prometheus_client", "psycopg", "fsspec", "httpx"),
}
"""Modules that each extra brings. "server" and "studio" are the same ones."""


@dataclass(frozen=True)
class Options:
    """No flags but ``--help``."""


def _have(extra: str, modules: Sequence[str]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{extra} no (pip install 'vitrail[{extra}]')" if missing else f"{extra} yes"


def run(arguments: Sequence[str], language: Language) -> int:
    """Print one line a fact and return 0."""
    parse(Options, arguments, command="doctor", about=ABOUT, language=language)
    import torch

    import vitrail
    from vitrail.runtime import fast_bfloat16, pick_device

    device = pick_device("auto")
    lines = {
        "vitrail": vitrail.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
        "extras": ", ".join(_have(extra, modules) for extra, modules in EXTRAS.items()),
        "device": f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{'fast' if fast_bfloat16(device) else 'no fast'} bfloat16",
    }
    for name, value in lines.items():
        print(f"{name:<10}{value}")
    return 0
