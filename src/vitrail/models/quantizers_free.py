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

BATCH_SHARE = 0.1  #: of the batch's own counts in what FSQ takes for the use of codes
FAINT_USE = 0.05  #: added to each code's use, in equal shares, before the logarithm


class FSQ(Quantizer):
    """Finite scalar quantization (Mentzer et al., arXiv:2309.15505, section 3.1): no codebook.

    Channel i is squashed to ``levels[i]`` values and rounded; a code is the mixed-radix number of the levels,
    the first channel lowest. All codes can be reached; that all are used equally is up to the encoder, and
    only ``entropy`` asks for it.
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
        loss = bounded.new_zeros(())
        if self.config.entropy and self.updating:
            loss = self.config.entropy * self.crowding(bounded, codes)
        used = self.tally(codes)
        result = to_maps(self.project_out(through), z)
        return Quantized(result, codes.view(z.shape[0], *z.shape[2:]), loss, used)

    def crowding(self, bounded: Tensor, codes: Tensor) -> Tensor:
        """How crowded the codes around ``bounded`` (N, width) are: a scalar in nats, 0 at equal use.

        The mean over positions of sum_k p(k | position) ln(K u_k), with p a softmax of squared distances (so
        that a neighbour is known to be emptier) and u the use of codes, counted as it is. A batch has fewer
        positions than a large codebook has codes and cannot tell a code that is rare from one that is merely
        absent, so u is mostly the running mean; the batch's own counts damp the swing that its lag causes.
        Channels are independent in p: its mean over positions is a product of two small matrices.
        """
        tables = [
            (-(column[:, None] - torch.arange(levels, device=column.device) + levels // 2).square())
            .div(self.config.entropy_temperature)
            .softmax(1)
            for column, levels in zip(bounded.unbind(1), self.config.levels, strict=True)
        ]
        half = (len(tables) + 1) // 2
        low, high = _together(tables[:half], bounded), _together(tables[half:], bounded)
        near = (high.t() @ low / len(bounded)).flatten()
        use = torch.bincount(codes, minlength=self.codebook_size).to(near.dtype) / len(codes)
        known = float(self.usage.sum())
        if known > 0.0:
            use = torch.lerp(self.usage / known, use, BATCH_SHARE)
        return (near * (self.codebook_size * use + FAINT_USE).log()).sum()

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
        bits = [torch.stack([1 - column, column], dim=1) for column in high.unbind(1)]
        left, right = (_together(part, high) for part in (bits[: len(bits) // 2], bits[len(bits) // 2 :]))
        together = left.t() @ right / len(vectors)
        spread = -torch.xlogy(together, together.clamp_min(1e-30)).sum()
        return sure - self.config.diversity * spread

    def vectors_of(self, codes: Tensor) -> Tensor:
        signs = torch.where(codes[:, None] // self.basis % 2 == 1, 1.0, -1.0)
        result: Tensor = self.project_out(signs)
        return result


def _together(tables: list[Tensor], like: Tensor) -> Tensor:
    """Joint probabilities (N, product of L_i) of independent choices (N, L_i), the first changing fastest;
    N, device and type are those of ``like``.
    """
    joint = like.new_ones(len(like), 1)
    for table in tables:
        joint = (table[:, :, None] * joint[:, None, :]).flatten(1)
    return joint


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
