"""Models that stay loaded between jobs: the ones used last, as many as fit into a budget."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from vitrail.errors import VitrailError
from vitrail.serving.failures import OUT_OF_MEMORY, code_of
from vitrail.store import artifacts
from vitrail.tasks.loading import Loader, TextToImageModel, TokenModel

__all__ = ["WarmLoader"]

M = TypeVar("M")
_MIB = 1 << 20


class WarmLoader(Loader):
    """A :class:`~vitrail.tasks.loading.Loader` that keeps several models; the least recently used goes first.

    Parameters
    ----------
    budget: MiB that the weights of kept models may take together; None takes a quarter of the memory of the
        device. One model is always kept, however large.
    """

    def __init__(self, device: torch.device | None = None, budget: int | None = None) -> None:
        super().__init__(device)
        self._lock = threading.RLock()  # a batch is drawn by several threads; a model may load another
        self._budget = _memory(self.device) // 4 if budget is None else budget * _MIB
        self._kept: OrderedDict[Hashable, object] = OrderedDict()

    def text_to_image(self, name: str) -> TextToImageModel | TokenModel:
        """As the loader's; the model's folder is looked at again each time."""
        folder = artifacts.find(name)
        key = ("text_to_image", *artifacts.stamp(folder))
        return self._get(key, lambda: self._load(folder), _weights_in(folder))

    def kept(self, key: Hashable, load: Callable[[], M]) -> M:
        """As the loader's."""
        # How large it will be is not known; no larger than the largest so far is a guess that mostly holds.
        return self._get(("kept", key), load, max(map(_size, self._kept.values()), default=0))

    def preload(self, name: str) -> None:
        """Load a model before it is asked for; one that cannot be is left to whoever asks for it."""
        with contextlib.suppress(VitrailError):
            self.text_to_image(name)

    def after(self, error: BaseException) -> None:
        """Make room if ``error`` says that memory ran out."""
        if code_of(error)[0] == OUT_OF_MEMORY:
            with self._lock:
                self._make_room(self._budget)

    @property
    def held(self) -> int:
        """Bytes of weights that are kept, those included that a model made of them since it was loaded."""
        return sum(map(_size, self._kept.values()))

    def _get(self, key: Hashable, load: Callable[[], M], expected: int) -> M:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(M, self._kept[key])
            self._make_room(expected)  # before the new one comes, so that both are never there
            value = load()
            self._kept[key] = value
            if self.held > self._budget:  # it was larger than expected
                self._make_room(0, keep=1)
            return value

    def _make_room(self, needed: int, keep: int = 0) -> None:
        dropped = False
        while len(self._kept) > keep and self.held + needed > self._budget:
            self._kept.popitem(last=False)
            dropped = True
        if dropped:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            elif sys.platform == "linux":
                with contextlib.suppress(OSError, AttributeError):
                    ctypes.CDLL(None).malloc_trim(0)  # else the C library keeps what was freed


def _weights_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _size(value: object) -> int:
    """Bytes of all tensors in a model, each counted once."""
    seen: dict[int, int] = {}
    _count(value, seen, 0)
    return sum(seen.values())


def _count(value: Any, seen: dict[int, int], depth: int) -> None:
    if isinstance(value, torch.Tensor):
        seen[value.data_ptr()] = value.numel() * value.element_size()
    elif isinstance(value, nn.Module):
        for tensor in [*value.parameters(), *value.buffers()]:
            _count(tensor, seen, depth)
    elif depth > 4:
        return
    elif is_dataclass(value) and not isinstance(value, type):
        found = {item.name: getattr(value, item.name) for item in fields(value)}
        for part in {**found, **getattr(value, "__dict__", {})}.values():
            _count(part, seen, depth + 1)
    elif isinstance(value, tuple | list):
        for item in value:
            _count(item, seen, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            _count(item, seen, depth + 1)
    elif hasattr(value, "__dict__"):
        for item in vars(value).values():
            _count(item, seen, depth + 1)


def _memory(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
