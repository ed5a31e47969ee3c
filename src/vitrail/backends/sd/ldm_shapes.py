"""What a single file's networks are, read off the names and shapes of its weights.

A file of the original programs (LDM, sgm) has no configuration inside; its names say how many blocks there
are, its shapes how wide they are. Only the number of heads is in neither: 8 with SD1's convolutions around
attention, one for every 64 channels with the linear layers of SD2 and SDXL, one for every 64 in CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["Shapes", "clip_config", "unet_config", "vae_config"]

Shapes = Mapping[str, tuple[int, ...]]

_MOST_BLOCKS = 64
_HEAD = 64


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Settings for ``UNet2DConditionModel`` from LDM's names (without ``model.diffusion_model.``).

    Raises :class:`ArtifactError` where they are no U-Net that diffusers' class can compute.
    """
    first = _shape(shapes, "input_blocks.0.0.weight", 4)
    channels: list[int] = []
    depths: list[int] = []
    layers: list[int] = []
    here: list[int] = []  # depth of the attention of each residual block of this level
    width = 0
    for number in range(1, _MOST_BLOCKS):
        place = f"input_blocks.{number}"
        down = f"{place}.0.op.weight" in shapes
        block = f"{place}.0.in_layers.2.weight"
        if block in shapes:
            width = _shape(shapes, block, 4)[0]
            here.append(_depth(shapes, f"{place}.1"))
        if here and (down or block not in shapes):
            if len(set(here)) != 1:
                raise ArtifactError("its U-Net has attention of several depths at one level; it is not known")
            channels.append(width)
            depths.append(here[0])
            layers.append(len(here))
            here = []
        if not down and block not in shapes:
            break
    if not channels or len(set(layers)) != 1:
        raise ArtifactError(
            "its U-Net has no blocks that are known here; the file is damaged or another model"
        )
    middle = _depth(shapes, "middle_block.1")
    if middle == 0 or depths[-1] not in (0, middle):
        raise ArtifactError("the middle of its U-Net is not that of any Stable Diffusion")
    attention = next(
        (name for name in shapes if name.endswith("transformer_blocks.0.attn2.to_k.weight")), None
    )
    if attention is None:
        raise ArtifactError("its U-Net attends to no text; it is not a Stable Diffusion")
    linear = len(shapes.get("middle_block.1.proj_in.weight", ())) == 2
    kinds = [depth > 0 for depth in depths]
    config: dict[str, Any] = {
        "in_channels": first[1],
        "out_channels": _shape(shapes, "out.2.weight", 4)[0],
        "block_out_channels": channels,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if kind else "DownBlock2D" for kind in kinds],
        "up_block_types": ["CrossAttnUpBlock2D" if kind else "UpBlock2D" for kind in reversed(kinds)],
        "transformer_layers_per_block": [*(max(depth, 1) for depth in depths[:-1]), middle],
        "cross_attention_dim": _shape(shapes, attention, 2)[1],
        "attention_head_dim": [max(1, width // _HEAD) for width in channels] if linear else 8,
        "use_linear_projection": linear,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": _shape(shapes, "label_emb.0.0.weight", 2)[1],
        }
    if "time_embed.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = _shape(shapes, "time_embed.cond_proj.weight", 2)[1]
    return config


def vae_config(shapes: Shapes, *, xl: bool) -> dict[str, Any]:
    """Settings for ``AutoencoderKL`` from diffusers' names; the scale of the family, which no file holds."""
    levels = 1 + max(
        (int(m[1]) for n in shapes if (m := re.match(r"encoder\.down_blocks\.(\d{1,2})\.", n))), default=-1
    )
    if not 1 <= levels <= 8:
        raise ArtifactError("its autoencoder has no blocks that are known here; the file is damaged")
    channels = [
        _shape(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels)
    ]
    layers = sum(f"encoder.down_blocks.0.resnets.{place}.conv1.weight" in shapes for place in range(9))
    return {
        "in_channels": _shape(shapes, "encoder.conv_in.weight", 4)[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight", 4)[0],
        "latent_channels": _shape(shapes, "decoder.conv_in.weight", 4)[1],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": 0.13025 if xl else 0.18215,
    }


def clip_config(shapes: Shapes, *, openclip: bool, start: int, end: int) -> dict[str, Any]:
    """Settings for ``CLIPTextConfig`` from transformers' names; start, end: the tokens of those names.

    openclip: trained by OpenCLIP, whose activation is the exact GELU.
    """
    plain = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    rows, width = _shape(plain, "embeddings.token_embedding.weight", 2)
    layers = 1 + max(
        (int(m[1]) for n in plain if (m := re.match(r"encoder\.layers\.(\d{1,3})\.", n))), default=-1
    )
    if not 1 <= layers <= 80:
        raise ArtifactError("its text encoder has no layers; the file is damaged")
    projection = plain.get("text_projection.weight")
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": _shape(plain, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": _shape(plain, "embeddings.position_embedding.weight", 2)[0],
        "hidden_act": "gelu" if openclip else "quick_gelu",
        "projection_dim": projection[0] if projection is not None and len(projection) == 2 else width,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _depth(shapes: Shapes, place: str) -> int:
    """How many layers an attention has; 0 where there is none."""
    return next(
        depth
        for depth in range(_MOST_BLOCKS)
        if f"{place}.transformer_blocks.{depth}.attn1.to_q.weight" not in shapes or depth == _MOST_BLOCKS - 1
    )


def _shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise ArtifactError(f"its weights lack {shown(name, 80)}; the file is damaged or another model")
    if len(shape) != axes or 0 in shape:
        raise ArtifactError(f"its {shown(name, 80)} has the shape {shape}; the file is damaged")
    return shape
