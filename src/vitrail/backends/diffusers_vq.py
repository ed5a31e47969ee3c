"""Folders of diffusers' ``VQModel`` and ``AutoencoderKL``: ``config.json`` and the weights beside it.

The networks are LDM's, so ours compute the same; names differ by place (``down_blocks.0.resnets.1`` for
``down.0.block.1``; levels of the decoder counted from the other end), and attention has linear layers where
ours has 1x1 convolutions. Names before diffusers 0.17 (``query``, ``proj_attn``) are read too.
Source: https://github.com/huggingface/diffusers, src/diffusers/models/autoencoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.backends.conversion import Converted, fitted, validated, without_attention
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.recipe.autoencoders import KLAutoencoderConfig, VQAutoencoderConfig

__all__ = ["CLASSES", "autoencoder"]

CLASSES = ("VQModel", "AutoencoderKL")

_FIXED: dict[str, tuple[Any, Any]] = {  # setting: (its default there, the value that ours computes)
    "act_fn": ("silu", "silu"),
    "norm_num_groups": (32, 32),
    "norm_type": ("group", "group"),
    "lookup_from_codebook": (False, False),
    "latents_mean": (None, None),
    "latents_std": (None, None),
}
_READ = {
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "latent_channels", "sample_size", "num_vq_embeddings", "vq_embed_dim",
    "scaling_factor", "shift_factor", "force_upcast", "use_quant_conv", "use_post_quant_conv",
    "mid_block_add_attention",
}  # fmt: skip

_MIDDLE = (
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
)
_PLACES = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2."),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.", r"down.\1.attn.\2."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.", r"down.\1.downsample.conv."),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", r"up.\1.block.\2."),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.", r"up.\1.attn.\2."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.", r"up.\1.upsample.conv."),
    *_MIDDLE,
    (r"conv_norm_out\.", "norm_out."),
)
_LEAVES = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip


def autoencoder(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Convert the weights and the ``config.json`` of a VQModel or an AutoencoderKL.

    Raises :class:`ArtifactError` for another class, a setting that ours does not compute, and weights that
    are missing, left over or of another shape.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ArtifactError(f"config.json is for {shown(name, 60)}; known are {', '.join(CLASSES)}")
    _check(config)
    channels = _channels(config.get("block_out_channels", [64]))
    levels = len(channels)
    sample = config.get("sample_size", 32)
    network: dict[str, Any] = {
        "architecture": "classic",
        "ch": channels[0],
        "ch_mult": tuple(width // channels[0] for width in channels),
        "num_res_blocks": config.get("layers_per_block", 1),
        "in_channels": config.get("in_channels", 3),
        "out_ch": config.get("out_channels", 3),
        "double_z": name == "AutoencoderKL",
        # Attention is named by level there and by side here: the sides are counted from a nominal resolution.
        "resolution": max(sample if type(sample) is int else 0, 2 ** (levels - 1), 8),
    }
    network["attn_resolutions"] = _attention(config, network["resolution"], levels)
    latent = config.get("latent_channels", 4 if name == "AutoencoderKL" else 3)
    network["z_channels"] = latent
    shape = {
        "network": network,
        "latent_scale": config.get("scaling_factor", 0.18215),
        "latent_shift": config.get("shift_factor") or 0.0,
    }
    weights = _renamed(tensors, levels)
    if config.get("mid_block_add_attention", True) is False:
        without_attention(weights, channels[-1])
    if name == "AutoencoderKL":
        kl = validated(KLAutoencoderConfig, {**shape, "embed_dim": latent}, "config.json")
        for place, width in (("quant_conv", 2 * kl.embed_dim), ("post_quant_conv", kl.embed_dim)):
            if config.get(f"use_{place}", True) is False:  # none there: ours is then the identity
                weights[f"{place}.weight"] = torch.eye(width)[:, :, None, None]
                weights[f"{place}.bias"] = torch.zeros(width)
        fit = fitted("kl_autoencoder", kl, weights, {})
        what = f"diffusers AutoencoderKL, f{2 ** (levels - 1)}, {latent} channels"
        return Converted(what, "kl_autoencoder", kl, fit)
    codes = config.get("num_vq_embeddings", 256)
    embed = config.get("vq_embed_dim") or latent
    quantizer = {"kind": "nearest", "codes": codes, "legacy_beta": True}
    vq = validated(VQAutoencoderConfig, {**shape, "embed_dim": embed, "quantizer": quantizer}, "config.json")
    fit = fitted("vq_autoencoder", vq, weights, {"quantize.usage": torch.zeros(codes)})
    what = f"diffusers VQModel, f{2 ** (levels - 1)}, {codes} codes of {embed} channels"
    return Converted(what, "vq_autoencoder", vq, fit)


def _check(config: Mapping[str, Any]) -> None:
    for name, (default, ours) in _FIXED.items():
        if (given := config.get(name, default)) != ours:
            raise ArtifactError(
                f"config.json sets {name} to {shown(given, 40)}; only {ours} can be computed here"
            )
    unknown = [key for key in config if key not in _FIXED and key not in _READ and not key.startswith("_")]
    if unknown:
        raise ArtifactError(
            f"config.json has settings that are not known ({', '.join(map(shown, unknown[:3]))})"
        )


def _channels(given: object) -> list[int]:
    if (
        not isinstance(given, list)
        or not 0 < len(given) <= 7
        or not all(type(width) is int and width > 0 for width in given)
        or any(width % given[0] for width in given)
    ):
        raise ArtifactError(
            f"config.json: block_out_channels {shown(given, 60)} are no 1 to 7 multiples of the first"
        )
    return given


def _attention(config: Mapping[str, Any], resolution: int, levels: int) -> tuple[int, ...]:
    """The sides at which attention is used; encoder and decoder must agree, for ours has one list."""
    kinds = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
    }
    found: list[list[bool]] = []
    for name, (plain, attentive) in kinds.items():
        given = config.get(name, [plain])
        if not isinstance(given, list) or len(given) != levels or set(map(str, given)) - {plain, attentive}:
            raise ArtifactError(f"config.json: {name} {shown(given, 80)} cannot be computed here")
        found.append([kind == attentive for kind in given])
    if found[0] != found[1][::-1]:
        raise ArtifactError("config.json: encoder and decoder have attention at different levels")
    return tuple(resolution >> level for level, there in enumerate(found[0]) if there)


def _renamed(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        ours, value = _name(name, levels), value
        if ".attn" in ours and value.ndim == 2:  # a linear layer there, a 1x1 convolution here
            value = value[:, :, None, None]
        if ours in renamed:
            raise ArtifactError(f"two of its weights are {shown(ours, 80)} here; the file is damaged")
        renamed[ours] = value
    return renamed


def _name(name: str, levels: int) -> str:
    part, dot, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        return name
    for pattern, place in _PLACES:
        if re.match(pattern, rest):
            rest = re.sub("^" + pattern, place, rest)
            break
    if found := re.match(r"up\.(\d+)\.", rest):
        rest = f"up.{levels - 1 - int(found[1])}.{rest[found.end() :]}"
    for theirs, leaf in _LEAVES.items():
        rest = re.sub(rf"\.{re.escape(theirs)}\.(weight|bias)$", rf".{leaf}.\1", rest)
    return part + dot + rest
