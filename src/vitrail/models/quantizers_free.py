"""Quantizers without a search: FSQ, LFQ, Gumbel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.latent import Quantized
from vitrail.models.quantizers_base import Quantizer, to_maps, to_vectors
from vitrail.models.quantizers_search import straight_through
from vitrail.recipe.autoencoders import FSQConfig, GumbelQuantizerConfig, LFQConfig

__all__ = ["FSQ", "LFQ", "GumbelQuantizer"]


class FSQ(Quantizer):
    """Finite scalar quantization (Mentzer et al., arXiv:2309.15505, section 3.1): no codebook, no loss.

    Channel i is squashed to ``levels[i]`` values and rounded; a code is the mixed-radix number of the levels,
    the first channel lowest.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig, dim: int) -> None:
        super().__init__(dim, math.prod(config.levels), config.decay)
        self.config = config
        width = len(config.levels)
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        basis = torch.cumprod(torch.tensor([1, *config.levels[:-1]]), 0)
        self.register_buffer("basis", basis, persistent=False)
        self.project_in = nn.Linear(dim, width) if width != dim else nn.Identity()
        self.project_out = nn.Linear(width, dim) if width != dim else nn.Identity()

    def bound(self, vectors: Tensor) -> Tensor:
        """Squash (N, width) so that rounding gives ``levels`` whole numbers, about evenly around zero."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(vectors + torch.atanh(offset / half)) * half - offset

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        bounded = self.bound(self.project_in(to_vectors(z)))
        whole = bounded.round()
        half = self.levels // 2
        codes = ((whole.detach().long() + half) * self.basis).sum(1)
        through = straight_through(bounded, whole) / half
        used = self.tally(codes)
        result = to_maps(self.project_out(through), z)
        return Quantized(result, codes.view(z.shape[0], *z.shape[2:]), result.new_zeros(()), used)

    def vectors_of(self, codes: Tensor) -> Tensor:
        half = self.levels // 2
        whole = codes[:, None] // self.basis % self.levels - half
        result: Tensor = self.project_out(whole / half)
        return result


class LFQ(Quantizer):
    """Lookup-free quantization: the signs of a few channels (MAGVIT-v2, Yu et al., arXiv:2310.05737, 3.1).

    Its entropy loss asks for sure codes at each position and equal use over the batch (equation 4):
    mean entropy of p(code | position) minus ``diversity`` times the entropy of its mean, with p a softmax of
    -|z - code|^2 / temperature. Bits are independent in p, so the first term is a sum over bits, and the mean
    over positions of all 2^bits probabilities is one product of two matrices with 2^(bits/2) columns: exact,
    without the matrix of positions by codes. A code's first channel is its highest bit.
    """

    basis: Tensor

    def __init__(self, config: LFQConfig, dim: int) -> None:
        super().__init__(dim, 2**config.bits, config.decay)
        self.config = config
        self.register_buffer("basis", 2 ** torch.arange(config.bits).flip(0), persistent=False)
        self.project_in = nn.Linear(dim, config.bits) if config.bits != dim else nn.Identity()
        self.project_out = nn.Linear(config.bits, dim) if config.bits != dim else nn.Identity()

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        vectors = self.project_in(to_vectors(z))
        ones = vectors > 0
        signs = torch.where(ones, 1.0, -1.0)
        codes = (ones.long() * self.basis).sum(1)
        loss = self.config.commitment * functional.mse_loss(vectors, signs)
        if self.config.entropy and self.training:
            loss = loss + self.config.entropy * self.entropy_loss(vectors)
        used = self.tally(codes)
        result = to_maps(self.project_out(straight_through(vectors, signs)), z)
        return Quantized(result, codes.view(z.shape[0], *z.shape[2:]), loss, used)

    def entropy_loss(self, vectors: Tensor) -> Tensor:
        """The entropy term (scalar, nats) of ``vectors`` (N, bits)."""
        logits = 4.0 * vectors / self.config.temperature
        high = logits.sigmoid()
        sure = (high * functional.softplus(-logits) + (1 - high) * functional.softplus(logits)).sum(1).mean()
        left, right = (_joint(part) for part in high.tensor_split(2, dim=1))
        together = left.t() @ right / len(vectors)
        spread = -torch.xlogy(together, together.clamp_min(1e-30)).sum()
        return sure - self.config.diversity * spread

    def vectors_of(self, codes: Tensor) -> Tensor:
        signs = torch.where(codes[:, None] // self.basis % 2 == 1, 1.0, -1.0)
        result: Tensor = self.project_out(signs)
        return result


def _joint(high: Tensor) -> Tensor:
    """Probabilities (N, 2^g) of all words of g independent bits, each 1 with probability ``high`` (N, g)."""
    table = high.new_ones(len(high), 1)
    for column in high.unbind(1):
        pair = torch.stack([1 - column, column], dim=1)
        table = (table[:, :, None] * pair[:, None, :]).flatten(1)
    return table


class GumbelQuantizer(Quantizer):
    """Gumbel-softmax over all codes (Jang et al., arXiv:1611.01144; DALL-E, arXiv:2102.12092, section 2.1).

    ``proj`` and ``embed`` have the names of taming's GumbelVQ. Outside training the most likely code is
    taken, without noise. The temperature falls in the logarithm's half cosine over ``anneal_images``.
    """

    temperature: Tensor

    def __init__(self, config: GumbelQuantizerConfig, dim: int) -> None:
        super().__init__(dim, config.codes, config.decay)
        self.config = config
        self.proj = nn.Conv2d(dim, config.codes, 1)
        self.embed = nn.Embedding(config.codes, dim)
        self.register_buffer("temperature", torch.tensor(float(config.temperature)))

    def set_progress(self, images_seen: int) -> None:
        config = self.config
        if config.anneal_images:
            share = min(1.0, images_seen / config.anneal_images)
            weight = 0.5 * (1.0 + math.cos(math.pi * share))
            log = weight * math.log(config.temperature) + (1 - weight) * math.log(config.final_temperature)
            self.temperature.fill_(math.exp(log))

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        logits = to_vectors(self.proj(z))
        shares = logits.softmax(1)
        divergence = (shares * (shares * self.codebook_size + 1e-10).log()).sum(1).mean()
        if self.training:
            device = generator.device if generator is not None else logits.device
            noise = torch.empty(logits.shape, device=device).exponential_(generator=generator).log()
            soft = ((logits - noise.to(logits.device)) / self.temperature).softmax(1)
            codes = soft.detach().argmax(1)
            if self.config.straight_through:
                hard = torch.zeros_like(soft).scatter_(1, codes[:, None], 1.0)
                soft = straight_through(soft, hard)
            vectors = soft @ self.embed.weight
        else:
            codes = logits.argmax(1)
            vectors = self.embed(codes)
        used = self.tally(codes)
        loss = self.config.kl_weight * divergence
        return Quantized(to_maps(vectors, z), codes.view(z.shape[0], *z.shape[2:]), loss, used)

    def vectors_of(self, codes: Tensor) -> Tensor:
        result: Tensor = self.embed(codes)
        return result
