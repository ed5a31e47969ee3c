"""The adapter that every quantizer fits into."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitrail.models.latent import Quantized
from vitrail.models.quantizers_search import CodebookStatistics, codebook_statistics

__all__ = ["Quantizer", "to_maps", "to_vectors"]


def to_vectors(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_maps(vectors: Tensor, z: Tensor) -> Tensor:
    """(B * h * w, C) -> (B, C, h, w), with B, h and w of ``z``; channels are last in memory."""
    batch, _, height, width = z.shape
    return vectors.view(batch, height, width, -1).permute(0, 3, 1, 2)


class Quantizer(nn.Module):
    """Base of all quantizers: latents (B, dim, h, w) to codes and quantized latents of the same shape.

    Everything is computed in float32, under autocast too. What changes in training beside parameters
    (moving averages, use of codes) are buffers of the state dict and changes only in training mode with
    gradients on, so that a discriminator's pass under ``no_grad`` counts nothing twice.

    Attributes
    ----------
    dim: channels of the latents.
    codebook_size: different codes at a position (of each stage).
    stages: codes a position; codes have shape (B, h, w), and (B, h, w, stages) where stages > 1.
    usage: (stages * codebook_size,) moving average of each code's share of the training positions.
    """

    usage: Tensor

    def __init__(self, dim: int, codebook_size: int, decay: float, stages: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_size = codebook_size
        self.stages = stages
        self.decay = decay
        self.register_buffer("usage", torch.zeros(stages * codebook_size))

    @property
    def updating(self) -> bool:
        """Whether this pass is one of training and may change the state."""
        return self.training and torch.is_grad_enabled()

    @property
    def statistics(self) -> CodebookStatistics:
        """Use of the codebook in recent training; a code counts as used above 1 % of an equal share."""
        usage = self.usage / self.usage.sum().clamp_min(1e-30)
        return codebook_statistics(torch.where(usage * len(usage) > 0.01, usage, 0.0))

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Quantize ``z`` (B, dim, h, w). ``generator`` draws what training draws (default: the global one).

        Raises :class:`ValueError` for another number of channels.
        """
        if z.ndim != 4 or z.shape[1] != self.dim:
            raise ValueError(f"latents of shape {tuple(z.shape)} do not fit; expected (B, {self.dim}, h, w)")
        with torch.autocast(z.device.type, enabled=False):
            return self.quantize(z.float(), generator)

    def quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        """Do the work of :meth:`forward` on float32 latents, outside autocast."""
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the quantized latents (B, dim, h, w) of ``codes`` (B, h, w) or (B, h, w, stages).

        Raises :class:`ValueError` for a wrong shape or a code outside the codebook.
        """
        if codes.ndim != 3 + (self.stages > 1) or (self.stages > 1 and codes.shape[-1] != self.stages):
            wanted = "(B, h, w)" if self.stages == 1 else f"(B, h, w, {self.stages})"
            raise ValueError(f"codes of shape {tuple(codes.shape)} do not fit; expected {wanted}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes from {int(codes.min())} to {int(codes.max())} do not fit; "
                f"the codebook has 0 to {self.codebook_size - 1}"
            )
        with torch.autocast(codes.device.type, enabled=False):
            vectors = self.vectors_of(codes.reshape(-1, self.stages) if self.stages > 1 else codes.flatten())
        batch, height, width = codes.shape[:3]
        return vectors.view(batch, height, width, self.dim).permute(0, 3, 1, 2)

    def vectors_of(self, codes: Tensor) -> Tensor:
        """Return the vectors (N, dim) of codes (N,), or (N, stages)."""
        raise NotImplementedError

    def set_progress(self, images_seen: int) -> None:
        """Tell how many pictures training has seen; what follows a schedule follows it from here."""

    def tally(self, codes: Tensor) -> Tensor:
        """Count ``codes`` (N,) or (N, stages) into :attr:`usage` where updating; return the number in use."""
        if self.stages > 1:
            codes = codes + torch.arange(self.stages, device=codes.device) * self.codebook_size
        counts = torch.bincount(codes.flatten(), minlength=len(self.usage))
        if self.updating and codes.numel():
            with torch.no_grad():
                self.usage.lerp_(counts.to(self.usage.dtype) / codes.numel(), 1.0 - self.decay)
        return (counts[: self.codebook_size] > 0).sum()
