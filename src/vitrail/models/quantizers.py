"""All quantizers behind one adapter: :func:`build_quantizer`.

=========  =============================================================  =========================
kind       what it is                                                     where
=========  =============================================================  =========================
nearest    a codebook searched by distance (VQ-VAE, VQGAN)                :mod:`.quantizers_vector`
cosine     unit vectors of few channels, searched by angle (ViT-VQGAN)    :mod:`.quantizers_vector`
simvq      a frozen codebook through one linear map                       :mod:`.quantizers_vector`
residual   several codebooks, each for what is left                       :mod:`.quantizers_vector`
fsq        channels rounded to a few levels                               :mod:`.quantizers_free`
lfq        signs of channels                                              :mod:`.quantizers_free`
gumbel     Gumbel-softmax over all codes (DALL-E)                         :mod:`.quantizers_free`
=========  =============================================================  =========================
"""

from __future__ import annotations

from vitrail.models.latent import Quantized
from vitrail.models.quantizers_base import Quantizer
from vitrail.models.quantizers_free import FSQ, LFQ, GumbelQuantizer
from vitrail.models.quantizers_search import CodebookStatistics, codebook_statistics, nearest_codes
from vitrail.models.quantizers_vector import ResidualQuantizer, SimVQ, VectorQuantizer
from vitrail.recipe.autoencoders import (
    FSQConfig,
    GumbelQuantizerConfig,
    LFQConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
)

__all__ = [
    "CodebookStatistics",
    "Quantized",
    "Quantizer",
    "build_quantizer",
    "codebook_statistics",
    "nearest_codes",
]


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """Return the quantizer of ``config`` for latents (B, dim, h, w), with random codes."""
    if isinstance(config, FSQConfig):
        return FSQ(config, dim)
    if isinstance(config, LFQConfig):
        return LFQ(config, dim)
    if isinstance(config, GumbelQuantizerConfig):
        return GumbelQuantizer(config, dim)
    if isinstance(config, SimVQConfig):
        return SimVQ(config, dim)
    if isinstance(config, ResidualQuantizerConfig):
        return ResidualQuantizer(config, dim)
    return VectorQuantizer(config, dim)
