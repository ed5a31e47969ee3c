"""Shapes of the autoencoders: quantizers, networks, discriminators. No torch is imported here.

An autoencoder is a network (``classic`` or ``lean``) around a quantizer (or a Gaussian)::

    [model]
    kind = "vq_autoencoder"
    embed_dim = 16
    [model.network]
    architecture = "lean"
    downsample = 8
    [model.quantizer]
    kind = "nearest"
    codes = 16_384

:data:`PRESETS` holds complete configurations by name.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from vitrail.recipe.sections import Section

__all__ = [
    "PRESETS",
    "ClassicNetworkConfig",
    "CosineQuantizerConfig",
    "DiscriminatorConfig",
    "FSQConfig",
    "FeatureDiscriminatorConfig",
    "GumbelQuantizerConfig",
    "KLAutoencoderConfig",
    "LFQConfig",
    "LeanNetworkConfig",
    "NearestQuantizerConfig",
    "NetworkConfig",
    "PatchDiscriminatorConfig",
    "QuantizerConfig",
    "ResidualQuantizerConfig",
    "SimVQConfig",
    "VAEConfig",
    "VQAutoencoderConfig",
    "classic_preset",
    "lean_preset",
]

MAX_CODES = 2**20

Codes = Annotated[int, Field(ge=2, le=MAX_CODES, description="entries of the codebook")]
CodeWidth = Annotated[int, Field(ge=0, le=4096, description="channels of a code; 0: those of the latent")]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
Width = Annotated[int, Field(ge=8, le=4096)]


class _Codebook(Section):
    """What a codebook that is searched for the nearest entry has."""

    codes: Codes = 1024
    commitment: Weight = Field(default=0.25, description="weight of the pull of the encoder towards its code")
    codebook: Literal["learned", "ema"] = Field(
        default="learned",
        description="codes follow a loss (taming) or are moving averages of what they stand for",
    )
    decay: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="moving averages of codes and of their use, a step"
    )
    epsilon: float = Field(default=1e-5, gt=0.0, le=1.0, description="Laplace smoothing of the counts (ema)")
    kmeans_init: bool = Field(
        default=False, description="the first training batches' clusters become the codes"
    )
    kmeans_iterations: int = Field(default=10, ge=1, le=1000, description="Lloyd's iterations of it")
    restart_below: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="a code used less than this share of 1/codes starts anew; 0: never",
    )
    gradient: Literal["straight_through", "rotation"] = Field(
        default="straight_through", description="how the decoder's gradient reaches the encoder"
    )
    entropy: Weight = Field(
        default=0.0,
        description="weight of a loss that asks for sure codes at each position and equal use of all",
    )
    entropy_temperature: float = Field(
        default=0.01, gt=0.0, le=100.0, description="squared distance over which an assignment fades in it"
    )
    entropy_positions: int = Field(
        default=256, ge=2, le=65_536, description="positions of a batch, drawn at random, that it looks at"
    )


class NearestQuantizerConfig(_Codebook):
    """Nearest code by Euclidean distance: VQ-VAE and VQGAN."""

    kind: Literal["nearest"] = "nearest"
    code_dim: CodeWidth = 0
    legacy_beta: bool = Field(
        default=False,
        description="commitment weighs the codebook's term instead, as taming's files were trained",
    )


class CosineQuantizerConfig(_Codebook):
    """Nearest code by angle among unit vectors of few channels: ViT-VQGAN."""

    kind: Literal["cosine"] = "cosine"
    code_dim: CodeWidth = 8


class FSQConfig(Section):
    """Finite scalar quantization: every channel is rounded to a few levels; the codebook is their product."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3, le=256)], ...] = Field(
        default=(8, 8, 8, 5, 5), min_length=1, max_length=32, description="levels of each channel"
    )
    entropy: Weight = Field(
        default=0.0, description="weight of a loss that asks for equal use of all codes; 0: none"
    )
    entropy_temperature: float = Field(
        default=0.5, gt=0.0, le=100.0, description="squared distance in levels over which a code fades in it"
    )
    decay: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="moving average of the use of codes, a step"
    )

    @model_validator(mode="after")
    def _size(self) -> FSQConfig:
        if math.prod(self.levels) > MAX_CODES:
            raise ValueError(f"levels {self.levels} make {math.prod(self.levels)} codes; at most {MAX_CODES}")
        return self


class LFQConfig(Section):
    """Lookup-free quantization: a code is the signs of its channels, kept in use by an entropy loss."""

    kind: Literal["lfq"] = "lfq"
    bits: int = Field(default=10, ge=1, le=20, description="channels; there are 2**bits codes")
    commitment: Weight = Field(default=0.25, description="weight of the pull of the encoder towards its code")
    entropy: Weight = Field(default=0.1, description="weight of the entropy loss")
    diversity: Weight = Field(default=1.0, description="weight in it of the entropy over the batch")
    temperature: float = Field(
        default=0.01, gt=0.0, le=100.0, description="of the soft assignment in the entropy loss"
    )
    decay: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="moving average of the use of codes, a step"
    )


class SimVQConfig(Section):
    """SimVQ: a frozen random codebook seen through one trained linear map: all codes move together."""

    kind: Literal["simvq"] = "simvq"
    codes: Codes = 1024
    code_dim: CodeWidth = 0
    commitment: Weight = Field(default=0.25, description="weight of the pull of the encoder towards its code")
    gradient: Literal["straight_through", "rotation"] = Field(
        default="rotation", description="how the decoder's gradient reaches the encoder"
    )
    decay: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="moving average of the use of codes, a step"
    )


class GumbelQuantizerConfig(Section):
    """Gumbel-softmax over the codes, as in DALL-E and taming's GumbelVQ."""

    kind: Literal["gumbel"] = "gumbel"
    codes: Codes = 1024
    straight_through: bool = Field(default=True, description="one-hot codes in training, not mixtures")
    kl_weight: Weight = Field(default=5e-4, description="weight of the divergence from equal use")
    temperature: float = Field(default=1.0, gt=0.0, le=100.0, description="at the start")
    final_temperature: float = Field(default=0.0625, gt=0.0, le=100.0, description="at the end")
    anneal_images: int = Field(
        default=0, ge=0, le=10**12, description="pictures over which the temperature moves; 0: it stays"
    )
    decay: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="moving average of the use of codes, a step"
    )


class ResidualQuantizerConfig(Section):
    """Several quantizers in a row, each for what the ones before left over."""

    kind: Literal["residual"] = "residual"
    stages: int = Field(default=4, ge=2, le=64, description="codes for each position")
    stage: NearestQuantizerConfig = NearestQuantizerConfig()
    gradient: Literal["straight_through", "rotation"] = Field(
        default="straight_through", description="how the decoder's gradient reaches the encoder"
    )


QuantizerConfig: TypeAlias = Annotated[
    NearestQuantizerConfig
    | CosineQuantizerConfig
    | FSQConfig
    | LFQConfig
    | SimVQConfig
    | GumbelQuantizerConfig
    | ResidualQuantizerConfig,
    Field(discriminator="kind"),
]


class ClassicNetworkConfig(Section):
    """Encoder and decoder of taming-transformers and LDM, in the names of their ``ddconfig``."""

    architecture: Literal["classic"] = "classic"
    ch: int = Field(
        default=128, ge=32, le=1024, multiple_of=32, description="channels at the full resolution"
    )
    ch_mult: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(
        default=(1, 1, 2, 2, 4), min_length=1, max_length=7, description="channels of each level over ch"
    )
    num_res_blocks: int = Field(default=2, ge=1, le=16, description="residual blocks of each level")
    attn_resolutions: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        default=(16,),
        max_length=8,
        description="sides in pixels, counted from resolution, at which attention is used",
    )
    resolution: int = Field(
        default=256, ge=8, le=4096, description="side that attn_resolutions is counted from"
    )
    in_channels: int = Field(default=3, ge=1, le=64, description="channels of the pictures that come in")
    out_ch: int = Field(default=3, ge=1, le=64, description="channels of the pictures that go out")
    z_channels: int = Field(default=256, ge=1, le=4096, description="channels between encoder and quant_conv")
    dropout: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="share of activations dropped in each block"
    )
    double_z: bool = Field(
        default=False, description="the encoder gives 2 * z_channels: a mean and a log-variance"
    )

    @property
    def downsample(self) -> int:
        """Pixels a side of one latent position."""
        return int(2 ** (len(self.ch_mult) - 1))


class LeanNetworkConfig(Section):
    """Encoder and decoder that are fast on a few cores: little is computed at high resolution."""

    architecture: Literal["lean"] = "lean"
    downsample: Literal[2, 4, 8, 16, 32] = Field(
        default=8, description="pixels a side of one latent position"
    )
    patch: Literal[1, 2, 4, 8] = Field(
        default=4, description="pixels a side folded into channels at the entry"
    )
    widths: tuple[Width, ...] = Field(
        default=(96, 192),
        min_length=1,
        max_length=6,
        description="channels of each level, highest resolution first",
    )
    encoder_blocks: int = Field(
        default=1, ge=0, le=16, description="residual blocks of each level of the encoder"
    )
    decoder_blocks: int = Field(
        default=2, ge=0, le=16, description="residual blocks of each level of the decoder"
    )
    attention: bool = Field(
        default=False, description="one attention layer at the latent's resolution, each side"
    )
    in_channels: int = Field(default=3, ge=1, le=64, description="channels of the pictures that come in")
    out_ch: int = Field(default=3, ge=1, le=64, description="channels of the pictures that go out")
    z_channels: int = Field(default=16, ge=1, le=4096, description="channels between encoder and quant_conv")
    double_z: bool = Field(
        default=False, description="the encoder gives 2 * z_channels: a mean and a log-variance"
    )

    @model_validator(mode="after")
    def _levels(self) -> LeanNetworkConfig:
        if self.patch > self.downsample:
            raise ValueError(f"patch {self.patch} must not be above downsample {self.downsample}")
        levels = (self.downsample // self.patch).bit_length()
        if len(self.widths) != levels:
            raise ValueError(
                f"downsample {self.downsample} with patch {self.patch} has {levels} levels: "
                f"give {levels} widths, not {len(self.widths)}"
            )
        if any(width % 8 for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of 8")
        return self


NetworkConfig: TypeAlias = Annotated[
    ClassicNetworkConfig | LeanNetworkConfig, Field(discriminator="architecture")
]


class _Latent(Section):
    latent_scale: float = Field(default=1.0, gt=0.0, le=1e6, description="z handed out = (z - shift) * scale")
    latent_shift: float = Field(default=0.0, ge=-1e6, le=1e6, description="see latent_scale")


class VQAutoencoderConfig(_Latent):
    """Shape of :class:`vitrail.models.autoencoders.VQAutoencoder`."""

    kind: Literal["vq_autoencoder"] = "vq_autoencoder"
    network: NetworkConfig = LeanNetworkConfig()
    embed_dim: int = Field(default=16, ge=1, le=4096, description="channels of the latent that is quantized")
    quantizer: QuantizerConfig = NearestQuantizerConfig()

    @model_validator(mode="after")
    def _single(self) -> VQAutoencoderConfig:
        if self.network.double_z:
            raise ValueError("network.double_z belongs to a kl_autoencoder; set it to false")
        return self


class KLAutoencoderConfig(_Latent):
    """Shape of :class:`vitrail.models.autoencoders.KLAutoencoder`: a Gaussian at each latent position."""

    kind: Literal["kl_autoencoder"] = "kl_autoencoder"
    network: NetworkConfig = LeanNetworkConfig(double_z=True)
    embed_dim: int = Field(default=4, ge=1, le=4096, description="channels of the latent")

    @model_validator(mode="after")
    def _double(self) -> KLAutoencoderConfig:
        if not self.network.double_z:
            raise ValueError("a kl_autoencoder needs network.double_z = true: a mean and a log-variance")
        return self


class VAEConfig(_Latent):
    """Shape of :class:`vitrail.models.autoencoders.VAE`: one Gaussian vector for a whole small picture."""

    kind: Literal["vae"] = "vae"
    image_size: int = Field(default=64, ge=8, le=256, description="pixels a side; a multiple of 4")
    channels: int = Field(default=3, ge=1, le=64, description="channels of a picture")
    widths: tuple[Width, ...] = Field(
        default=(32, 64, 128), min_length=1, max_length=6, description="channels after each halving"
    )
    hidden: int = Field(default=256, ge=8, le=8192, description="width of the layer before the latent")
    embed_dim: int = Field(default=32, ge=1, le=4096, description="length of the latent vector")

    @model_validator(mode="after")
    def _halvings(self) -> VAEConfig:
        if self.image_size % 4:
            raise ValueError(f"image_size {self.image_size} must be a multiple of 4")
        if self.image_size >> len(self.widths) < 2:
            raise ValueError(f"image_size {self.image_size} cannot be halved {len(self.widths)} times")
        return self


class PatchDiscriminatorConfig(Section):
    """Shape of :class:`vitrail.models.discriminators.PatchDiscriminator` (pix2pix)."""

    kind: Literal["patch"] = "patch"
    in_channels: int = Field(default=3, ge=1, le=64, description="channels of a picture")
    width: int = Field(default=64, ge=8, le=1024, description="channels of the first layer")
    layers: int = Field(
        default=3, ge=1, le=8, description="layers that halve the picture; 3 see 70 x 70 pixels"
    )
    norm: Literal["batch", "act", "group", "none"] = Field(
        default="batch", description="normalisation; act: ActNorm, set by the first batch"
    )
    spectral_norm: bool = Field(default=False, description="weights divided by their largest singular value")


class FeatureDiscriminatorConfig(Section):
    """Shape of :class:`vitrail.models.discriminators.FeatureDiscriminator` (projected GAN)."""

    kind: Literal["feature"] = "feature"
    feature_channels: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = Field(
        default=(24, 40, 112, 320),
        min_length=1,
        max_length=8,
        description="channels of each map, largest map first",
    )
    width: int = Field(default=64, ge=8, le=1024, description="channels of the heads")
    mixing: bool = Field(default=True, description="fixed random projections mix channels and scales")
    spectral_norm: bool = Field(default=False, description="weights divided by their largest singular value")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the fixed projections")


DiscriminatorConfig: TypeAlias = Annotated[
    PatchDiscriminatorConfig | FeatureDiscriminatorConfig, Field(discriminator="kind")
]


def classic_preset(downsample: Literal[4, 8, 16]) -> VQAutoencoderConfig:
    """The published networks: LDM's VQ-f4 (8,192 codes) and VQ-f8 (16,384), taming's f16 (1,024)."""
    shape = {
        4: {"ch_mult": (1, 2, 4), "attn_resolutions": (), "z_channels": 3},
        8: {"ch_mult": (1, 2, 2, 4), "attn_resolutions": (32,), "z_channels": 4},
        16: {"ch_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,), "z_channels": 256},
    }[downsample]
    codes = {4: 8192, 8: 16_384, 16: 1024}[downsample]
    return VQAutoencoderConfig.model_validate(
        {
            "network": {"architecture": "classic", **shape},
            "embed_dim": shape["z_channels"],
            "quantizer": {"kind": "nearest", "codes": codes, "legacy_beta": True},
        }
    )


def lean_preset(downsample: Literal[4, 8, 16]) -> VQAutoencoderConfig:
    """Small networks for two cores, with a codebook that does not collapse."""
    shape = {
        4: {"patch": 2, "widths": (64, 128)},
        8: {"patch": 4, "widths": (96, 192)},
        16: {"patch": 4, "widths": (96, 192, 256)},
    }[downsample]
    return VQAutoencoderConfig.model_validate(
        {
            "network": {"architecture": "lean", "downsample": downsample, **shape},
            "quantizer": {
                "kind": "cosine",
                "codes": 16_384 if downsample == 8 else 8192,
                "codebook": "ema",
                "kmeans_init": True,
                "restart_below": 0.03,
                "gradient": "rotation",
            },
        }
    )


#: Complete autoencoders by name. "lean-*" are for two cores, "classic-*" are the published ones.
PRESETS: dict[str, VQAutoencoderConfig] = {
    "classic-f4": classic_preset(4),
    "classic-f8": classic_preset(8),
    "classic-f16": classic_preset(16),
    "lean-f4": lean_preset(4),
    "lean-f8": lean_preset(8),
    "lean-f16": lean_preset(16),
}
