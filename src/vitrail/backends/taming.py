"""Checkpoints of taming-transformers and of latent-diffusion's first stages, as our models.

A file of theirs is Lightning's ``{"state_dict": ...}`` beside a YAML file that names classes and their
arguments. The names of classes are looked up in a table here, never imported. Our ``classic`` network has
the names of their weights, so the map of an autoencoder is the identity, except for the codebook of moving
averages.

Of an autoencoder the YAML may be missing: all that its network depends on can be read off the weights.
Sources: https://github.com/CompVis/taming-transformers (taming/models/vqgan.py,
taming/modules/diffusionmodules/ model.py, taming/modules/vqvae/quantize.py),
https://github.com/CompVis/latent-diffusion (ldm/models/autoencoder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vitrail.backends.conversion import Converted, Leftover, fitted, renamed, validated, without_attention
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.recipe.autoencoders import ClassicNetworkConfig, KLAutoencoderConfig, VQAutoencoderConfig

__all__ = ["AUTOENCODERS", "autoencoder", "class_of", "model_section"]

AUTOENCODERS = {
    "VQModel": "nearest",
    "VQModelInterface": "nearest",
    "VQNoDiscModel": "nearest",
    "VQSegmentationModel": "nearest",
    "EMAVQ": "ema",
    "GumbelVQ": "gumbel",
    "AutoencoderKL": "kl",
}
"""The classes that are autoencoders, by the last part of their name, and what is at their middle."""

LEFT_BEHIND = (
    Leftover("loss.", "losses and discriminator, of training alone"),
    Leftover("model_ema.", "moving averages; the weights themselves are taken"),
    Leftover("colorize", "colours of segmentation maps, for display alone"),
)

_ATTENTIONS = ("vanilla", "vanilla-xformers", "none")
"""Kinds of attention that ours computes; the second is the first, written for a library."""

Sizes = list[int]


class _Given(BaseModel):
    """Base of their sections: unknown settings are refused, for they may change what the network computes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Network(_Given):
    """``ddconfig``; what has one allowed value would change the computation otherwise."""

    ch: int
    out_ch: int
    ch_mult: Sizes = Field(default=[1, 2, 4, 8], max_length=7)
    num_res_blocks: int
    attn_resolutions: Sizes = Field(max_length=8)
    dropout: float | int = 0.0
    resamp_with_conv: bool = True
    in_channels: int
    resolution: int
    z_channels: int
    double_z: bool = True
    give_pre_end: bool = False
    tanh_out: bool = False
    use_linear_attn: bool = False
    attn_type: str = "vanilla"
    use_checkpoint: bool = False

    def network(self) -> dict[str, Any]:
        """Our section of the same shape; :class:`ArtifactError` for a variant that we do not compute."""
        fixed = {
            "resamp_with_conv": True,
            "give_pre_end": False,
            "tanh_out": False,
            "use_linear_attn": False,
            "attn_type": self.attn_type if self.attn_type in _ATTENTIONS else "vanilla",
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ArtifactError(
                    f"ddconfig.{name} is {shown(getattr(self, name), 20)}; only {value} can be computed here"
                )
        return {
            "architecture": "classic",
            "ch": self.ch,
            "ch_mult": tuple(self.ch_mult),
            "num_res_blocks": self.num_res_blocks,
            "attn_resolutions": () if self.attn_type == "none" else tuple(self.attn_resolutions),
            "resolution": self.resolution,
            "in_channels": self.in_channels,
            "out_ch": self.out_ch,
            "z_channels": self.z_channels,
            "dropout": float(self.dropout),
            "double_z": self.double_z,
        }


def class_of(section: Mapping[str, Any], where: str) -> str:
    """The last part of a section's ``target``: the name of a class, as text."""
    target = section.get("target")
    if not isinstance(target, str):
        raise ArtifactError(f"{where} names no target; give the configuration file of the checkpoint")
    return target.rpartition(".")[2]


def model_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``model`` section of a YAML file; :class:`ArtifactError` if it has none."""
    section = config.get("model")
    if not isinstance(section, Mapping):
        raise ArtifactError("the configuration has no section 'model'; give the one of the checkpoint")
    return section


def autoencoder(
    tensors: Mapping[str, Tensor],
    section: Mapping[str, Any] | None,
    *,
    numbers: Literal["whole", "used"] = "whole",
) -> Converted:
    """Convert an autoencoder: its weights, and the section with ``target`` and ``params`` if there is one.

    numbers: how the codes of a remapped codebook (``quantize.used``) are numbered. Pictures are the same as
    there with those of the "whole" codebook; a transformer over codes knows the "used" ones alone.

    Raises :class:`ArtifactError` for a class that is not known, settings that change the computation in a way
    that ours cannot, and weights that are missing, left over or of another shape.
    """
    weights, left = renamed(tensors, LEFT_BEHIND)
    remap = weights.pop("quantize.used", None)
    if section is None:
        middle, config = _inferred(weights)
        name = {"kl": "AutoencoderKL", "gumbel": "GumbelVQ", "ema": "EMAVQ"}.get(middle, "VQModel")
    else:
        name = class_of(section, "the model's section")
        if name not in AUTOENCODERS:
            known = ", ".join(AUTOENCODERS)
            raise ArtifactError(f"model {shown(name, 60)} is not known; known are {known}")
        middle = AUTOENCODERS[name]
        config = _configured(middle, section.get("params"), remap is not None)
    if remap is not None:
        left = (*left, f"the numbers of {remap.numel()} used codes (quantize.used)")
        if numbers == "used":
            config = _only_used(weights, remap, config)
    own: dict[str, Tensor] = {}
    if isinstance(config, VQAutoencoderConfig):
        own["quantize.usage"] = torch.zeros(int(getattr(config.quantizer, "codes", 0)))
        own["quantize.temperature"] = torch.tensor(1.0)
    if middle == "ema":
        moved = {"cluster_size": "sizes", "embed_avg": "sums"}
        for theirs, ours in moved.items():
            if f"quantize.embedding.{theirs}" in weights:
                weights[f"quantize.{ours}"] = weights.pop(f"quantize.embedding.{theirs}")
    if "encoder.conv_in.weight" in weights and not any(".mid.attn_1." in name for name in weights):
        network = config.network
        assert isinstance(network, ClassicNetworkConfig)
        without_attention(weights, network.ch * network.ch_mult[-1])  # attn_type "none"
    kind = "kl_autoencoder" if middle == "kl" else "vq_autoencoder"
    fit = fitted(kind, config, weights, own)
    return Converted(_described(name, config), kind, config, fit, left)


def _described(name: str, config: VQAutoencoderConfig | KLAutoencoderConfig) -> str:
    factor = f"f{config.network.downsample}" if config.network.architecture == "classic" else ""
    if isinstance(config, KLAutoencoderConfig):
        return f"{name}, {factor}, {config.embed_dim} channels"
    return f"{name}, {factor}, {getattr(config.quantizer, 'codes', 0)} codes of {config.embed_dim} channels"


def _only_used(
    weights: dict[str, Tensor], used: Tensor, config: VQAutoencoderConfig | KLAutoencoderConfig
) -> VQAutoencoderConfig:
    """Reduce a codebook to its ``used`` codes, in their order; the rest of the weights stay."""
    count = int(getattr(getattr(config, "quantizer", None), "codes", 0))
    if used.dtype != torch.int64 or used.ndim != 1 or not 2 <= used.numel() <= count:
        raise ArtifactError(f"its list of used codes is damaged: {used.dtype} of shape {tuple(used.shape)}")
    if int(used.min()) < 0 or int(used.max()) >= count:
        raise ArtifactError(f"its list of used codes names code {int(used.max())} of {count}")
    books = ("embedding.weight", "embedding.embed_avg", "embedding.cluster_size", "embed.weight")
    for name in (*books, "proj.weight", "proj.bias"):
        value = weights.get(f"quantize.{name}")
        if value is not None and len(value) == count:
            weights[f"quantize.{name}"] = value[used]
    assert isinstance(config, VQAutoencoderConfig)
    quantizer = config.quantizer.model_copy(update={"codes": used.numel()})
    return config.model_copy(update={"quantizer": quantizer})


def _configured(middle: str, params: object, remapped: bool) -> VQAutoencoderConfig | KLAutoencoderConfig:
    if not isinstance(params, Mapping) or not isinstance(params.get("ddconfig"), Mapping):
        raise ArtifactError("the configuration has no params.ddconfig; give the one of the checkpoint")
    network = validated(_Network, params["ddconfig"], "ddconfig").network()
    if params.get("remap") and not remapped:
        raise ArtifactError("the configuration sets remap, but the file has no quantize.used")
    where = "the configuration's params"
    if middle == "kl":
        return validated(
            KLAutoencoderConfig, {"network": network, "embed_dim": _number(params, "embed_dim")}, where
        )
    return _vq(middle, network, _number(params, "embed_dim"), _number(params, "n_embed"), where, params)


def _vq(
    middle: str,
    network: Mapping[str, Any],
    embed_dim: int,
    codes: int,
    where: str,
    params: Mapping[str, Any] | None = None,
) -> VQAutoencoderConfig:
    quantizer: dict[str, Any] = {"kind": "nearest", "codes": codes, "legacy_beta": True}
    if middle == "ema":
        quantizer = {"kind": "nearest", "codes": codes, "codebook": "ema"}
    elif middle == "gumbel":
        # Of training alone. YAML reads 1e-8 (no point) as text, and pydantic makes a number of it.
        quantizer = {"kind": "gumbel", "codes": codes, "kl_weight": (params or {}).get("kl_weight", 1e-8)}
        if network["z_channels"] != embed_dim:
            raise ArtifactError("a GumbelVQ with z_channels other than embed_dim cannot be converted")
    return validated(
        VQAutoencoderConfig, {"network": network, "embed_dim": embed_dim, "quantizer": quantizer}, where
    )


def _number(params: Mapping[str, Any], name: str) -> int:
    value = params.get(name)
    if type(value) is not int:
        raise ArtifactError(f"the configuration's params.{name} is {shown(value, 40)} and not a whole number")
    return value


# -- without a YAML file -------------------------------------------------------------------------------------


def _inferred(weights: Mapping[str, Tensor]) -> tuple[str, VQAutoencoderConfig | KLAutoencoderConfig]:
    """The configuration that the shapes of the weights allow.

    Resolutions of attention are levels here: counted from a nominal 256 pixels, which changes nothing.
    """
    try:
        ch = weights["encoder.conv_in.weight"].shape[0]
        levels = _count(weights, "encoder.down.{}.block.0.conv1.weight", 7)
        blocks = _count(weights, "encoder.down.0.block.{}.conv1.weight", 16)
        widths = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        z_channels = weights["decoder.conv_in.weight"].shape[1]
        network = {
            "architecture": "classic",
            "ch": ch,
            "ch_mult": tuple(width // ch for width in widths),
            "num_res_blocks": blocks,
            "attn_resolutions": tuple(
                256 >> i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in weights
            ),
            "resolution": 256,
            "in_channels": weights["encoder.conv_in.weight"].shape[1],
            "out_ch": weights["decoder.conv_out.weight"].shape[0],
            "z_channels": z_channels,
            "double_z": weights["encoder.conv_out.weight"].shape[0] == 2 * z_channels,
        }
        embed_dim = weights["post_quant_conv.weight"].shape[1]
        if "quantize.embed.weight" in weights:
            middle, codes = "gumbel", weights["quantize.embed.weight"].shape[0]
        elif "quantize.embedding.weight" in weights:
            middle = "ema" if "quantize.embedding.embed_avg" in weights else "nearest"
            codes = weights["quantize.embedding.weight"].shape[0]
        else:
            middle, codes = "kl", 0
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ArtifactError(
            f"is not an autoencoder of taming-transformers or latent-diffusion (no {shown(error, 60)})"
        ) from None
    where = "the shape of the weights"
    if middle == "kl":
        return middle, validated(KLAutoencoderConfig, {"network": network, "embed_dim": embed_dim}, where)
    return middle, _vq(middle, network, embed_dim, codes, where)


def _count(weights: Mapping[str, Tensor], pattern: str, most: int) -> int:
    return next((i for i in range(most + 1) if pattern.format(i) not in weights), most)
