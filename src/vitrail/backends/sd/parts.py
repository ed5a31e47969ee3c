"""What a Stable Diffusion is made of, however it was stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.backends.sd.conditioning import TextEncoders
from vitrail.backends.sd.families import Family
from vitrail.samplers.paths import VP, Predicts

__all__ = ["OtherVae", "Parts"]

OtherVae = Callable[[bool], KLAutoencoder]
"""Gives an autoencoder in place of a checkpoint's own, told whether it is for SDXL."""


@dataclass(frozen=True)
class Parts:
    """The networks of a checkpoint and what is known of them.

    side: of the pictures that it was trained on. zero_negative: an empty negative prompt is all zeros, not
    the encoding of nothing (SDXL's base). evidence: how it is known what the network predicts, in words.
    scheduler: the class of the one that it came with, where that is known.
    hints: what a user should hear.
    """

    family: Family
    unet: nn.Module
    autoencoder: KLAutoencoder
    text: TextEncoders
    path: VP
    predicts: Predicts
    side: int
    zero_negative: bool = False
    evidence: str = "its configuration"
    scheduler: str = ""
    hints: tuple[str, ...] = ()
