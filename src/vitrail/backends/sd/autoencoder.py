"""Stable Diffusion's autoencoder behind vitrail's protocol: the scale inside, float32 always.

Its decoder overflows in float16 (SDXL's by design, see ``force_upcast``), so it never runs in less than
float32 here, whatever the denoiser runs in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.kernels import give_back
from vitrail.models.latent import LatentSpec, Posterior

__all__ = ["KLAutoencoder"]

_LARGE = 4 * 48 * 48  # numbers of a latent whose decoder takes hundreds of megabytes


class KLAutoencoder(nn.Module):
    """A diffusers ``AutoencoderKL`` as a :class:`vitrail.models.latent.Autoencoder`.

    network: the ``AutoencoderKL``. Latents that callers see are scaled (SD1 and 2 by 0.18215, SDXL by
    0.13025). Raises :class:`ArtifactError` for a scale that is no scale.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        config: Any = network.config
        scale, shift = config.scaling_factor, config.shift_factor
        if type(scale) not in (int, float) or not 1e-6 < scale < 1e6:
            raise ArtifactError(
                f"the autoencoder's scaling_factor is {shown(scale, 40)}; it must be a number above 0"
            )
        if shift is not None and (type(shift) not in (int, float) or not -1e6 < shift < 1e6):
            raise ArtifactError(f"the autoencoder's shift_factor is {shown(shift, 40)}; it must be a number")
        self.latent = LatentSpec(
            channels=int(config.latent_channels),
            downsample=2 ** (len(config.block_out_channels) - 1),
            scale=float(scale),
            shift=float(shift or 0.0),
        )

    def encode(self, x: Tensor) -> Posterior:
        """Encode pictures (B, 3, H, W) in [-1, 1]; sides must be multiples of ``latent.downsample``."""
        with torch.autocast(x.device.type, enabled=False):
            network: Any = self.network
            moments = network.encoder(x.float())
            if network.quant_conv is not None:
                moments = network.quant_conv(moments)
        return Posterior(moments, self.latent)

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to pictures (B, 3, H, W) float32, not clamped."""
        if z.device.type == "cpu" and z.numel() >= _LARGE:
            give_back()  # the peak of a picture is here: what the denoiser has freed is needed now
        with torch.autocast(z.device.type, enabled=False):
            network: Any = self.network
            inner = self.latent.inward(z.float())
            if network.post_quant_conv is not None:
                inner = network.post_quant_conv(inner)
            picture: Tensor = network.decoder(inner)
        return picture.float()
