"""Quantizers with a codebook that is searched: nearest, cosine, SimVQ, residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.latent import Quantized
from vitrail.models.quantizers_base import Quantizer, to_maps, to_vectors
from vitrail.models.quantizers_search import (
    assignment_entropy,
    draw_far,
    kmeans,
    nearest_codes,
    rotate,
    straight_through,
)
from vitrail.recipe.autoencoders import (
    CosineQuantizerConfig,
    NearestQuantizerConfig,
    ResidualQuantizerConfig,
    SimVQConfig,
)

__all__ = ["Codebook", "ResidualQuantizer", "SimVQ", "VectorQuantizer"]

THROUGH = {"straight_through": straight_through, "rotation": rotate}


class Codebook(nn.Module):
    """``weight`` (codes, width): a parameter if it learns by a loss, a buffer if it is a moving average."""

    weight: Tensor

    def __init__(self, weight: Tensor, *, learned: bool) -> None:
        super().__init__()
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)


class VectorQuantizer(Quantizer):
    """The nearest code of a codebook, by Euclidean distance or by angle.

    Euclidean: VQ-VAE (van den Oord et al., arXiv:1711.00937, equation 3) and VQGAN (arXiv:2012.09841,
    equation 4). Angle: unit vectors of few channels (ViT-VQGAN, Yu et al., arXiv:2110.04627, section 3.2).
    A codebook of moving averages follows VQ-VAE, appendix A.1, with Laplace smoothing of the counts.

    Two things keep codes alive. With ``kmeans_init`` the clusters of the first training batches become the
    codes: a batch gives at most a quarter as many codes as it has positions, and until the codebook is full
    only the filled part (``filled``) is searched. With ``restart_below`` a code whose share of the positions
    falls under that part of 1/codes begins again at a position of the batch, drawn in proportion to its
    squared distance from its code. (Drawn evenly, it would mostly be one more copy of the background.)
    ``entropy`` asks the encoder too to use all codes equally, which restarts cannot.

    A step that is interrupted can be run again from the buffers of before: a pass changes a learned codebook
    only in ways that come out the same the second time. So its new rows wait in ``pending`` until then.
    """

    filled: Tensor
    vitality: Tensor
    sizes: Tensor
    sums: Tensor
    pending: Tensor
    fresh: Tensor

    def __init__(self, config: NearestQuantizerConfig | CosineQuantizerConfig, dim: int) -> None:
        super().__init__(dim, config.codes, config.decay)
        self.config = config
        self.cosine = config.kind == "cosine"
        self.learned = config.codebook == "learned"
        width = config.code_dim or dim
        if self.cosine:
            weight = functional.normalize(torch.randn(config.codes, width), dim=1)
        else:
            weight = torch.empty(config.codes, width).uniform_(-1.0 / config.codes, 1.0 / config.codes)
        self.embedding = Codebook(weight, learned=self.learned)
        self.project_in = nn.Linear(dim, width) if width != dim else nn.Identity()
        self.project_out = nn.Linear(width, dim) if width != dim else nn.Identity()
        if not self.learned:
            self.register_buffer("sizes", torch.ones(config.codes))
            self.register_buffer("sums", weight.clone())
        if config.kmeans_init:
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        if config.restart_below:
            self.register_buffer("vitality", torch.full((config.codes,), 1.0 / config.codes))
            if self.learned:
                self.register_buffer("pending", torch.zeros(config.codes, dtype=torch.bool))
                self.register_buffer("fresh", torch.zeros(config.codes, width))

    def codebook(self) -> Tensor:
        """The codes as they are compared (K, width): unit vectors if by angle."""
        weight = self.embedding.weight
        return functional.normalize(weight, dim=1) if self.cosine else weight

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        vectors = self.project_in(to_vectors(z))
        if self.cosine:
            vectors = functional.normalize(vectors, dim=1)
        codes, chosen, loss = self.search(vectors, generator)
        through = THROUGH[self.config.gradient](vectors, chosen)
        used = self.tally(codes)
        return Quantized(
            to_maps(self.project_out(through), z), codes.view(z.shape[0], *z.shape[2:]), loss, used
        )

    def vectors_of(self, codes: Tensor) -> Tensor:
        result: Tensor = self.project_out(functional.embedding(codes, self.codebook()))
        return result

    def search(self, vectors: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (N,), chosen vectors (N, width) and the loss of ``vectors``; update the state.

        The returned vectors carry the gradient of a learned codebook, and none to ``vectors``.
        """
        config = self.config
        if self.updating:
            self._begin_again()
            self._fill(vectors.detach(), generator)
        with torch.no_grad():
            codes = nearest_codes(vectors, self.codebook()[: self._searched()])
        chosen = functional.embedding(codes, self.embedding.weight)
        if self.cosine:  # of the chosen rows alone, so that no gradient hangs on a book that changes below
            chosen = functional.normalize(chosen, dim=1)
        commit = functional.mse_loss(vectors, chosen.detach())
        if self.learned:
            pull = functional.mse_loss(chosen, vectors.detach())
            legacy = isinstance(config, NearestQuantizerConfig) and config.legacy_beta
            loss = commit + config.commitment * pull if legacy else config.commitment * commit + pull
        else:
            loss = config.commitment * commit
        if self.updating:
            if config.entropy:
                loss = loss + config.entropy * self._entropy(vectors, generator)
            self._update(vectors.detach(), codes, chosen.detach(), generator)
        return codes, chosen, loss

    def _entropy(self, vectors: Tensor, generator: torch.Generator | None) -> Tensor:
        """The entropy loss of some positions, drawn at random: of all, it would take the whole matrix."""
        device = generator.device if generator is not None else vectors.device
        order = torch.randperm(len(vectors), generator=generator, device=device)
        chosen = vectors[order[: self.config.entropy_positions].to(vectors.device)]
        # A copy of a moving codebook: the update below must not change what the gradient was promised.
        codebook = self.codebook() if self.learned else self.codebook().clone()
        return assignment_entropy(chosen, codebook[: self._searched()], self.config.entropy_temperature)

    def _searched(self) -> int:
        """How many codes there are to choose from: all, unless the first batches are still filling them."""
        return (int(self.filled) or self.codebook_size) if self.config.kmeans_init else self.codebook_size

    @torch.no_grad()
    def _begin_again(self) -> None:
        """Put the rows that the step before found for dead codes into a learned codebook."""
        if self.learned and self.config.restart_below:
            self.embedding.weight.copy_(torch.where(self.pending[:, None], self.fresh, self.embedding.weight))
            self.pending.zero_()

    @torch.no_grad()
    def _fill(self, vectors: Tensor, generator: torch.Generator | None) -> None:
        """Make clusters of this batch the next codes, until the codebook is full."""
        if not self.config.kmeans_init or int(self.filled) == self.codebook_size:
            return
        filled = int(self.filled)
        room = min(self.codebook_size - filled, max(1, len(vectors) // 4))
        known = self.codebook()[:filled] if filled else None
        centres = kmeans(vectors, room, self.config.kmeans_iterations, generator, known)
        if self.cosine:
            centres = functional.normalize(centres, dim=1)
        self._place(torch.arange(filled, filled + len(centres), device=vectors.device), centres, len(vectors))
        self.filled.add_(len(centres))

    @torch.no_grad()
    def _place(self, rows: Tensor, vectors: Tensor, positions: int) -> None:
        """Put new codes into ``rows``, as if each had an equal share of ``positions`` a step."""
        self.embedding.weight[rows] = vectors
        if not self.learned:
            share = positions / self.codebook_size
            self.sizes[rows] = share
            self.sums[rows] = vectors * share
        if self.config.restart_below:
            self.vitality[rows] = 1.0 / self.codebook_size

    @torch.no_grad()
    def _update(
        self, vectors: Tensor, codes: Tensor, chosen: Tensor, generator: torch.Generator | None
    ) -> None:
        config = self.config
        counts = torch.bincount(codes, minlength=self.codebook_size).float()
        if not self.learned:
            summed = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
            self.sizes.lerp_(counts, 1.0 - config.decay)
            self.sums.lerp_(summed, 1.0 - config.decay)
            total = self.sizes.sum()
            smoothed = (self.sizes + config.epsilon) / (total + self.codebook_size * config.epsilon) * total
            weight = self.sums / smoothed[:, None]
            self.embedding.weight.copy_(functional.normalize(weight, dim=1) if self.cosine else weight)
        if config.restart_below and self._searched() == self.codebook_size:
            self.vitality.lerp_(counts / max(1, len(codes)), 1.0 - config.decay)
            dead = (self.vitality < config.restart_below / self.codebook_size).nonzero()[:, 0]
            if len(dead):
                fresh = draw_far((vectors - chosen).square().sum(1), len(dead), generator)
                if self.learned:
                    self.pending[dead[: len(fresh)]] = True
                    self.fresh[dead[: len(fresh)]] = vectors[fresh]
                    self.vitality[dead[: len(fresh)]] = 1.0 / self.codebook_size
                else:
                    self._place(dead[: len(fresh)], vectors[fresh], len(vectors))


class SimVQ(Quantizer):
    """A frozen random codebook seen through one trained linear map (Zhu et al., arXiv:2411.02038, section 4).

    The gradient of any code in use moves all codes, so none is left behind.
    """

    frozen: Tensor

    def __init__(self, config: SimVQConfig, dim: int) -> None:
        super().__init__(dim, config.codes, config.decay)
        self.config = config
        width = config.code_dim or dim
        self.register_buffer("frozen", torch.randn(config.codes, width) * width**-0.5)
        self.transform = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.transform.weight)
        self.project_in = nn.Linear(dim, width) if width != dim else nn.Identity()
        self.project_out = nn.Linear(width, dim) if width != dim else nn.Identity()

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        vectors = self.project_in(to_vectors(z))
        with torch.no_grad():
            codes = nearest_codes(vectors, self.transform(self.frozen))
        chosen = self.transform(self.frozen[codes])
        commit = functional.mse_loss(vectors, chosen.detach())
        loss = self.config.commitment * commit + functional.mse_loss(chosen, vectors.detach())
        through = THROUGH[self.config.gradient](vectors, chosen)
        used = self.tally(codes)
        return Quantized(
            to_maps(self.project_out(through), z), codes.view(z.shape[0], *z.shape[2:]), loss, used
        )

    def vectors_of(self, codes: Tensor) -> Tensor:
        result: Tensor = self.project_out(self.transform(self.frozen[codes]))
        return result


class ResidualQuantizer(Quantizer):
    """Several quantizers in a row, each for what is left (SoundStream, arXiv:2107.03312, algorithm 1; RQ-VAE,
    arXiv:2203.01941, equation 3). The quantized latent is the sum; so is the loss.

    The gradient passes once, from the sum to the latent: passed at each stage it would count several times.
    """

    def __init__(self, config: ResidualQuantizerConfig, dim: int) -> None:
        super().__init__(dim, config.stage.codes, config.stage.decay, stages=config.stages)
        self.config = config
        width = config.stage.code_dim or dim
        inner = config.stage.model_copy(update={"code_dim": 0})
        self.layers = nn.ModuleList(VectorQuantizer(inner, width) for _ in range(config.stages))
        self.project_in = nn.Linear(dim, width) if width != dim else nn.Identity()
        self.project_out = nn.Linear(width, dim) if width != dim else nn.Identity()

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        vectors = self.project_in(to_vectors(z))
        left, total = vectors, torch.zeros_like(vectors)
        loss = vectors.new_zeros(())
        found = []
        for layer in self.layers:
            assert isinstance(layer, VectorQuantizer)
            codes, chosen, part = layer.search(left, generator)
            left, total, loss = left - chosen.detach(), total + chosen.detach(), loss + part
            layer.tally(codes)
            found.append(codes)
        through = THROUGH[self.config.gradient](vectors, total)
        stacked = torch.stack(found, dim=1)
        used = self.tally(stacked)
        shape = (z.shape[0], *z.shape[2:], self.stages)
        return Quantized(to_maps(self.project_out(through), z), stacked.view(shape), loss, used)

    def vectors_of(self, codes: Tensor) -> Tensor:
        total = torch.zeros((), device=codes.device)
        for layer, column in zip(self.layers, codes.unbind(1), strict=True):
            assert isinstance(layer, VectorQuantizer)
            total = total + layer.vectors_of(column)
        result: Tensor = self.project_out(total)
        return result
