"""A ControlNet's settings, told from the names and shapes of its weights: single files bring no others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["config_of"]

Shapes = Mapping[str, tuple[int, ...]]

_HEAD_CHANNELS = 64  # of Stable Diffusion 2 and XL, which have linear projections; SD1 has 8 heads throughout


@dataclass
class _Block:
    """A level of the network: channels, residual blocks, transformer layers in each attention (0: none)."""

    channels: int
    layers: int = 0
    depth: int = 0


def config_of(shapes: Shapes) -> dict[str, Any]:
    """Return the settings for diffusers' ``ControlNetModel``, for weights by its names or by LDM's.

    Raises :class:`~vitrail.errors.ArtifactError` where the weights are not those of a whole ControlNet.
    """
    ldm = "input_hint_block.0.weight" in shapes
    try:
        return _config(shapes, _ldm_blocks(shapes) if ldm else _blocks(shapes), ldm)
    except (KeyError, IndexError) as error:
        raise ArtifactError(f"the ControlNet is not whole: {shown(error, 80)} is missing") from None


def _config(shapes: Shapes, blocks: list[_Block], ldm: bool) -> dict[str, Any]:
    if len({block.layers for block in blocks}) != 1:
        raise ArtifactError(
            "the ControlNet's levels have different numbers of layers, which is not known here"
        )
    middle = "middle_block.1" if ldm else "mid_block.attentions.0"
    depth = _depth(shapes, middle)
    text = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)
    projections = [shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    linear = bool(projections) and len(projections[0]) == 2
    hints = _hints(shapes, ldm)
    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight" if ldm else "conv_in.weight"][1],
        "conditioning_channels": hints[0],
        "conditioning_embedding_out_channels": hints[1:],
        "block_out_channels": [block.channels for block in blocks],
        "down_block_types": ["CrossAttnDownBlock2D" if block.depth else "DownBlock2D" for block in blocks],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if depth else "UNetMidBlock2D",
        "layers_per_block": blocks[0].layers,
        # the middle has the depth of the last level
        "transformer_layers_per_block": [
            *(block.depth or 1 for block in blocks[:-1]),
            depth or blocks[-1].depth or 1,
        ],
        "attention_head_dim": [max(block.channels // _HEAD_CHANNELS, 1) for block in blocks] if linear else 8,
        "use_linear_projection": linear,
    }
    if text is not None:
        config["cross_attention_dim"] = text
    added = shapes.get("label_emb.0.0.weight" if ldm else "add_embedding.linear_1.weight")
    if added is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": added[1],
        }
    return config


def _hints(shapes: Shapes, ldm: bool) -> list[int]:
    """Return channels of the picture, then of each size of its encoder."""
    if ldm:
        places = sorted(
            int(name.split(".")[1])
            for name in shapes
            if re.fullmatch(r"input_hint_block\.\d{1,3}\.weight", name)
        )
        convolutions = [shapes[f"input_hint_block.{place}.weight"] for place in places[:-1]]
    else:
        convolutions = [shapes["controlnet_cond_embedding.conv_in.weight"]]
        while (name := f"controlnet_cond_embedding.blocks.{len(convolutions) - 1}.weight") in shapes:
            convolutions.append(shapes[name])
    return [convolutions[0][1], convolutions[0][0], *(shape[0] for shape in convolutions[2::2])]


def _blocks(shapes: Shapes) -> list[_Block]:
    blocks: list[_Block] = []
    while (name := f"down_blocks.{len(blocks)}.resnets.0.conv1.weight") in shapes:
        place = f"down_blocks.{len(blocks)}"
        block = _Block(shapes[name][0], depth=_depth(shapes, f"{place}.attentions.0"))
        while f"{place}.resnets.{block.layers}.conv1.weight" in shapes:
            block.layers += 1
        blocks.append(block)
    if not blocks:
        raise KeyError("down_blocks.0.resnets.0.conv1.weight")
    return blocks


def _ldm_blocks(shapes: Shapes) -> list[_Block]:
    blocks: list[_Block] = []
    number, fresh = 1, True
    while True:
        place = f"input_blocks.{number}"
        if f"{place}.0.op.weight" in shapes:
            fresh = True
        elif (name := f"{place}.0.in_layers.2.weight") in shapes:
            if fresh:
                blocks.append(_Block(shapes[name][0], depth=_depth(shapes, f"{place}.1")))
                fresh = False
            blocks[-1].layers += 1
        elif blocks:
            return blocks
        else:
            raise KeyError(name)
        number += 1


def _depth(shapes: Shapes, attention: str) -> int:
    depth = 0
    while f"{attention}.transformer_blocks.{depth}.attn1.to_q.weight" in shapes:
        depth += 1
    return depth
