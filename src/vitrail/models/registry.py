"""Builds a network from the ``model`` section of a recipe or an artifact."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from torch import nn

from vitrail.errors import ArtifactError
from vitrail.models.autoencoders import VAE, KLAutoencoder, VQAutoencoder
from vitrail.models.gan import BigGANGenerator, DCGANGenerator
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.token_transformer import TokenTransformer
from vitrail.models.upsampler import Upsampler
from vitrail.recipe import ShellDiTConfig, UpsamplerConfig
from vitrail.recipe.autoencoders import KLAutoencoderConfig, VAEConfig, VQAutoencoderConfig
from vitrail.recipe.gan import BigGANConfig, DCGANConfig
from vitrail.recipe.priors import TokenTransformerConfig

__all__ = ["KINDS", "build"]

#: kind -> (configuration, network)
KINDS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "shell_dit": (ShellDiTConfig, ShellDiT),
    "upsampler": (UpsamplerConfig, Upsampler),
    "vq_autoencoder": (VQAutoencoderConfig, VQAutoencoder),
    "kl_autoencoder": (KLAutoencoderConfig, KLAutoencoder),
    "vae": (VAEConfig, VAE),
    "dcgan": (DCGANConfig, DCGANGenerator),
    "biggan": (BigGANConfig, BigGANGenerator),
    "token_transformer": (TokenTransformerConfig, TokenTransformer),
}


def build(kind: str, config: Any) -> nn.Module:
    """Return the network ``kind`` with random weights.

    ``config`` is the kind's configuration model or a mapping of its fields. Raises :class:`ArtifactError`
    for an unknown kind or a configuration that does not fit it.
    """
    if kind not in KINDS:
        raise ArtifactError(f"model kind {kind!r} is unknown; allowed: {', '.join(sorted(KINDS))}")
    config_class, network = KINDS[kind]
    if not isinstance(config, config_class):
        try:
            config = config_class.model_validate(config)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"configuration of {kind} does not fit: {where}: {first['msg']}") from error
    return network(config)
