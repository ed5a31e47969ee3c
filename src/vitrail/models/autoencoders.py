"""Autoencoders: with a codebook (VQGAN), with a Gaussian at each position (KL), with one Gaussian (VAE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.models.autoencoder_blocks import ClassicDecoder, ClassicEncoder
from vitrail.models.autoencoder_lean import LeanDecoder, LeanEncoder
from vitrail.models.latent import LatentSpec, Posterior, Quantized, Reconstruction
from vitrail.models.quantizers import build_quantizer
from vitrail.recipe.autoencoders import (
    ClassicNetworkConfig,
    KLAutoencoderConfig,
    NetworkConfig,
    VAEConfig,
    VQAutoencoderConfig,
)

__all__ = ["VAE", "KLAutoencoder", "VQAutoencoder"]


def _coders(config: NetworkConfig) -> tuple[ClassicEncoder | LeanEncoder, ClassicDecoder | LeanDecoder]:
    if isinstance(config, ClassicNetworkConfig):
        return ClassicEncoder(config), ClassicDecoder(config)
    return LeanEncoder(config), LeanDecoder(config)


def _check_pictures(x: Tensor, channels: int, multiple: int) -> None:
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        raise InputError(
            f"pictures of shape {tuple(x.shape)} do not fit; "
            f"expected (B, {channels}, H, W) with H and W multiples of {multiple}"
        )


class VQAutoencoder(nn.Module):
    """Encoder, quantizer, decoder: VQGAN's generator (Esser et al., arXiv:2012.09841, section 3.1).

    Weights of the ``classic`` network have the names of taming's checkpoints: ``encoder.*``, ``decoder.*``,
    ``quant_conv``, ``post_quant_conv``, ``quantize.embedding.weight``. Beside those the state dict holds
    ``quantize.usage`` (and what else the quantizer keeps), which such files lack.

    Attributes
    ----------
    latent: shape and scale of the latents.
    codebook_size: different codes at a position.
    config: what it was built from.
    """

    def __init__(self, config: VQAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        network = config.network
        self.encoder, self.decoder = _coders(network)
        self.quant_conv = nn.Conv2d(network.z_channels, config.embed_dim, 1)
        self.quantize = build_quantizer(config.quantizer, config.embed_dim)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, network.z_channels, 1)
        self.latent = LatentSpec(
            config.embed_dim, network.downsample, config.latent_scale, config.latent_shift
        )
        self.codebook_size = self.quantize.codebook_size

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which the adversarial loss is weighed."""
        return self.decoder.last_layer

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Encode, quantize and decode pictures (B, c, H, W) in [-1, 1].

        ``generator`` draws what the quantizer draws in training. Raises :class:`InputError` for a shape that
        does not fit.
        """
        quantized = self._quantized(x, generator)
        return Reconstruction(
            self._decoded(quantized.z), quantized._replace(z=self.latent.outward(quantized.z))
        )

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """Return latents (B, embed_dim, h, w) and codes (B, h, w[, q]) of pictures (B, c, H, W)."""
        quantized = self._quantized(x, generator)
        return quantized._replace(z=self.latent.outward(quantized.z))

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures (B, c, H, W) float32, not clamped, of latents (B, embed_dim, h, w) near codes."""
        return self._decoded(self.latent.inward(z))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return pictures (B, c, H, W) of codes (B, h, w[, q]); :class:`ValueError` for others."""
        return self._decoded(self.quantize.lookup(codes))

    def snap(self, z: Tensor) -> Quantized:
        """Quantize latents (B, embed_dim, h, w), scaled as ``encode`` gives them: the nearest codes."""
        quantized: Quantized = self.quantize(self.latent.inward(z))
        return quantized._replace(z=self.latent.outward(quantized.z))

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the latents (B, embed_dim, h, w), scaled, of codes (B, h, w[, q])."""
        return self.latent.outward(self.quantize.lookup(codes))

    def set_progress(self, images_seen: int) -> None:
        """Tell how many pictures training has seen (a Gumbel temperature follows it)."""
        self.quantize.set_progress(images_seen)

    def _quantized(self, x: Tensor, generator: torch.Generator | None) -> Quantized:
        _check_pictures(x, self.config.network.in_channels, self.latent.downsample)
        quantized: Quantized = self.quantize(self.quant_conv(self.encoder(x)), generator)
        return quantized

    def _decoded(self, z: Tensor) -> Tensor:
        result: Tensor = self.decoder(self.post_quant_conv(z)).float()
        return result


class KLAutoencoder(nn.Module):
    """A Gaussian at each latent position: LDM's first stage (arXiv:2112.10752, section 3.1, "KL-reg").

    ``encode`` returns a :class:`~vitrail.models.latent.Posterior`; ``forward`` decodes a sample of it in
    training and its mean otherwise. Names of weights are LDM's.
    """

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        network = config.network
        self.encoder, self.decoder = _coders(network)
        self.quant_conv = nn.Conv2d(2 * network.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, network.z_channels, 1)
        self.latent = LatentSpec(
            config.embed_dim, network.downsample, config.latent_scale, config.latent_shift
        )

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which the adversarial loss is weighed."""
        return self.decoder.last_layer

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Encode and decode pictures (B, c, H, W) in [-1, 1]; :class:`InputError` for another shape."""
        posterior = self.encode(x)
        z = posterior.sample(generator) if self.training else posterior.z
        return Reconstruction(self.decode(z), posterior)

    def encode(self, x: Tensor) -> Posterior:
        """Return the Gaussian (B, embed_dim, h, w) of pictures (B, c, H, W) in [-1, 1]."""
        _check_pictures(x, self.config.network.in_channels, self.latent.downsample)
        return Posterior(self.quant_conv(self.encoder(x)), self.latent)

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures (B, c, H, W) float32, not clamped, of latents (B, embed_dim, h, w)."""
        result: Tensor = self.decoder(self.post_quant_conv(self.latent.inward(z))).float()
        return result


class VAE(nn.Module):
    """One Gaussian vector for a whole small picture (Kingma & Welling, arXiv:1312.6114).

    The latent has shape (B, embed_dim, 1, 1), so that it fits wherever a map of latents does.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        sides = [config.image_size]
        for _ in widths:
            sides.append((sides[-1] + 1) // 2)
        self.sides = tuple(sides)
        flat = widths[-1] * sides[-1] ** 2
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip((config.channels, *widths), widths, strict=False)
        )
        self.down_norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        self.moments = nn.Sequential(
            nn.Linear(flat, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 2 * config.embed_dim)
        )
        self.expand = nn.Sequential(
            nn.Linear(config.embed_dim, config.hidden), nn.SiLU(), nn.Linear(config.hidden, flat)
        )
        self.up_norms = nn.ModuleList(nn.GroupNorm(8, width) for width in reversed(widths))
        self.up = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(widths[::-1], (*widths[-2::-1], config.channels), strict=True)
        )
        self.latent = LatentSpec(
            config.embed_dim, config.image_size, config.latent_scale, config.latent_shift
        )

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which the adversarial loss is weighed."""
        weight = self.up[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Encode and decode pictures (B, c, S, S) in [-1, 1]; :class:`InputError` for another shape."""
        posterior = self.encode(x)
        z = posterior.sample(generator) if self.training else posterior.z
        return Reconstruction(self.decode(z), posterior)

    def encode(self, x: Tensor) -> Posterior:
        """Return the Gaussian (B, embed_dim, 1, 1) of pictures (B, c, S, S) in [-1, 1]."""
        channels, side = self.config.channels, self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (channels, side, side):
            raise InputError(
                f"pictures of shape {tuple(x.shape)} do not fit; expected (B, {channels}, {side}, {side})"
            )
        for convolve, norm in zip(self.down, self.down_norms, strict=True):
            x = functional.silu(norm(convolve(x)))
        return Posterior(self.moments(x.flatten(1))[:, :, None, None], self.latent)

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures (B, c, S, S) float32, not clamped, of latents (B, embed_dim, 1, 1)."""
        side = self.sides[-1]
        x = self.expand(self.latent.inward(z).flatten(1))
        x = x.view(len(z), self.config.widths[-1], side, side)
        for convolve, norm, size in zip(self.up, self.up_norms, self.sides[-2::-1], strict=True):
            x = convolve(functional.interpolate(functional.silu(norm(x)), size=size, mode="nearest"))
        pictures: Tensor = x.float()
        return pictures
