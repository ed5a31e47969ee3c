"""Parts of the GANs: normalisation with standing statistics, class conditions, spectral norm, attention.

Nothing here changes a buffer in a forward pass: a step that is stopped in its middle leaves the networks as
they were, and the discriminator gives the same answer however often it is asked. Spectral norms are moved on
by :func:`advance_spectral` after an optimizer step, batch statistics are gathered by
:func:`standing_statistics` when an averaged generator is to be used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from vitrail.errors import NonFiniteError

__all__ = [
    "AffineBatchNorm",
    "BatchNorm",
    "ConditionalBatchNorm",
    "SelfAttention",
    "SpectralNorm",
    "advance_spectral",
    "batch_spread",
    "convolve_doubled",
    "convolve_halved",
    "halve",
    "orthogonal_init",
    "orthogonal_penalty",
    "spectral",
    "standing_statistics",
]

EPS = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation of x (B, C, H, W) without gain and bias; they are the caller's.

    Training mode uses the batch's own mean and variance and keeps nothing. Evaluation mode uses ``mean`` and
    ``variance`` (C,), the standing statistics (Brock et al., arXiv:1809.11096, appendix C), which
    :func:`standing_statistics` fills.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.sums: Tensor | None = None  # (3, C) float64 while statistics are gathered: count, sum, squares

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.batch_norm(x, self.mean, self.variance, training=False, eps=EPS)
        if self.sums is not None:
            values = x.detach().double()
            count = torch.full_like(self.sums[0], values.numel() / values.shape[1])
            self.sums += torch.stack((count, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))))
        return functional.batch_norm(x, None, None, training=True, eps=EPS)


@torch.no_grad()
def standing_statistics(network: nn.Module, batches: int, run: Callable[[int], object]) -> None:
    """Fill every :class:`BatchNorm` of ``network`` with the statistics of what passes it.

    ``run(i)``, for i below ``batches``, sends a batch through the network; earlier layers normalise by the
    batch meanwhile, as in training. Mean and variance are those of all values together. The network is left
    in evaluation mode. Raises :class:`NonFiniteError` where they are not finite.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    network.train()
    try:
        for norm in norms:
            norm.sums = torch.zeros(3, len(norm.mean), dtype=torch.float64, device=norm.mean.device)
        for index in range(batches if norms else 0):
            run(index)
        for norm in norms:
            assert norm.sums is not None
            count, total, squares = norm.sums
            mean = total / count
            variance = (squares / count - mean.square()).clamp_min(0.0)
            if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
                raise NonFiniteError(
                    "the generator's statistics are not finite; lower optim.lr (to a third) or use float32"
                )
            norm.mean.copy_(mean)
            norm.variance.copy_(variance)
    finally:
        for norm in norms:
            norm.sums = None
        network.eval()


class AffineBatchNorm(nn.Module):
    """Batch normalisation with a learned gain and bias for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x) * self.gain[:, None, None] + self.bias[:, None, None]
        return result


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose gain and bias come from a condition (B, W) by linear maps.

    y = x_hat * (1 + G c) + H c (de Vries et al., arXiv:1707.00683, eq. 5-6, as in BigGAN, appendix B).
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels)
        self.gain = nn.Linear(condition, channels, bias=False)
        self.bias = nn.Linear(condition, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.gain(condition)[:, :, None, None], self.bias(condition)[:, :, None, None]
        result: Tensor = self.norm(x) * (1.0 + gain) + bias
        return result


class SpectralNorm(nn.Module):
    """Divides a weight, seen as a matrix (outputs, rest), by its largest singular value.

    Miyato et al., arXiv:1802.05957, algorithm 1: left and right vectors u, v follow the weight by power
    iteration. Here a forward pass only reads them: sigma = u^T W v, its gradient flowing through W alone;
    :meth:`advance` moves them.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, iterations: int = 15) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("u", functional.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", functional.normalize(torch.randn(columns), dim=0))
        self.advance(weight, iterations)

    @torch.no_grad()
    def advance(self, weight: Tensor, iterations: int = 1) -> None:
        """Take power iterations towards the largest singular value of ``weight``."""
        matrix = weight.detach().flatten(1).to(self.u)
        for _ in range(iterations):
            self.u.copy_(functional.normalize(matrix @ self.v, dim=0, eps=1e-12))
            self.v.copy_(functional.normalize(self.u @ matrix, dim=0, eps=1e-12))

    def forward(self, weight: Tensor) -> Tensor:
        # Not torch.dot: under autocast the scale must stay float32.
        sigma = (self.u[:, None] * (weight.flatten(1).float() * self.v)).sum()
        return weight / sigma.clamp_min(1e-12)


def spectral(layer: nn.Module) -> nn.Module:
    """Put a :class:`SpectralNorm` on the weight of ``layer`` and return the layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return parametrize.register_parametrization(layer, "weight", SpectralNorm(weight.detach()))


def advance_spectral(network: nn.Module, iterations: int = 1) -> None:
    """Let every spectral norm of ``network`` follow its weight, which an optimizer has just moved."""
    for module in network.modules():
        if not parametrize.is_parametrized(module):
            continue
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        for chain in chains.values():
            assert isinstance(chain, parametrize.ParametrizationList)
            original = chain.original
            assert isinstance(original, Tensor)
            for step in chain:
                if isinstance(step, SpectralNorm):
                    step.advance(original, iterations)


class SelfAttention(nn.Module):
    """Positions of x (B, C, H, W) attend to each other: x + gamma * o, gamma 0 at first.

    SAGAN (Zhang et al., arXiv:1805.08318, section 3), keys and values at half the size.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, half = max(1, channels // 8), max(1, channels // 2)
        self.query = nn.Conv2d(channels, inner, 1, bias=False)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)
        self.value = nn.Conv2d(channels, half, 1, bias=False)
        self.out = nn.Conv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, HW, inner)
        key = functional.max_pool2d(self.key(x), 2).flatten(2)  # (B, inner, HW/4)
        value = functional.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)
        attended = torch.softmax((query @ key).float(), dim=-1).to(value.dtype) @ value
        drawn = self.out(attended.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))
        result: Tensor = x + self.gamma * drawn
        return result


def convolve_doubled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return ``layer`` of x (B, C, H, W) with every pixel repeated to 2 x 2, (B, C', 2H, 2W).

    For a 3 x 3 kernel and padding 1. Repeating and convolving are one transposed convolution, whose 4 x 4
    kernel is the layer's, flipped, summed over the places that show it the same pixel: 4 products a value
    in place of 9, and the larger picture is never held.
    """
    kernel = _spread_kernel(layer.weight.flip(2, 3)).transpose(0, 1)
    return functional.conv_transpose2d(x, kernel, layer.bias, stride=2, padding=1)


def convolve_halved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels of ``layer`` of x (B, C, H, W), H and W even: (B, C', H/2, W/2).

    For a 3 x 3 kernel and padding 1: one 4 x 4 convolution of stride 2, as in :func:`convolve_doubled`.
    """
    return functional.conv2d(x, 0.25 * _spread_kernel(layer.weight), layer.bias, stride=2, padding=1)


def halve(x: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels of x (B, C, H, W), H and W even.

    Halfway between two pixels, bilinear resizing is their mean, at half the time of torch's pooling.
    """
    return functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


def _spread_kernel(kernel: Tensor) -> Tensor:
    """Convolve a kernel (..., 3, 3) with a square of 2 x 2 ones: (..., 4, 4)."""
    wide = functional.pad(kernel, (0, 1)) + functional.pad(kernel, (1, 0))
    return functional.pad(wide, (0, 0, 0, 1)) + functional.pad(wide, (0, 0, 1, 0))


def batch_spread(x: Tensor, group: int = 4) -> Tensor:
    """Append a channel to x (B, C, H, W): how much the pictures of its group differ, (B, C + 1, H, W).

    The mean over channels and places of the standard deviation within the group (Karras et al.,
    arXiv:1710.10196, section 3). A batch that does not divide into groups is one group.
    """
    size = group if len(x) % group == 0 else len(x)
    parts = x.float().view(size, -1, *x.shape[1:])  # (group, groups, C, H, W)
    spread = (parts.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (groups,)
    plane = spread.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat((x, plane.to(x.dtype)), dim=1)


def orthogonal_init(network: nn.Module) -> None:
    """Start every convolution, linear map and embedding orthogonal, biases at 0 (BigGAN, appendix C)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            nn.init.orthogonal_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)


def orthogonal_penalty(network: nn.Module, beta: float) -> Tensor:
    """BigGAN's relaxed regulariser (eq. 3): beta * sum over layers of ||W W^T with a zero diagonal||_F^2.

    Rows of W are a layer's outputs; vectors, embeddings and statistics are left out. Lets a generator bear
    the truncation trick.
    """
    total: Tensor | None = None
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            matrix = module.weight.flatten(1)
            product = matrix @ matrix.T
            term = (product - torch.diag(torch.diag(product))).square().sum()
            total = term if total is None else total + term
    assert total is not None, "a network without layers"
    return beta * total
