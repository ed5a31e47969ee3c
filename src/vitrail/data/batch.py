"""What a training stream yields."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Pictures with what is known about them.

    pixels: float32 (B, 3, H, W) in [-1, 1].  captions: B strings, "" where the caption was dropped.
    styles: int64 (B,), index of the house style, 0 where there is none or it was dropped.
    labels: int64 (B,), number of the class from 0, where the data have classes.
    """

    pixels: torch.Tensor
    captions: list[str]
    styles: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)
