"""Names of a U-Net's layers: those of diffusers' classes to those of the original program (LDM, sgm).

LoRAs for SDXL and single-file ControlNets use the latter. The map is read off the network itself: the
original counts blocks through, one number for each residual block, downsampler and upsampler.
https://github.com/CompVis/latent-diffusion/blob/main/ldm/modules/diffusionmodules/openaimodel.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["ldm_modules"]

_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    # ControlNet
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def ldm_modules(network: nn.Module) -> dict[str, str]:
    """Return the LDM name of every layer with weights, by its name in diffusers' class.

    ``network``: a ``UNet2DConditionModel`` or a ``ControlNetModel``.
    """
    prefixes = dict(_prefixes(network))
    names: dict[str, str] = {}
    for name, module in network.named_modules():
        layer = isinstance(module, nn.Conv2d | nn.Linear)  # those of our kernels have no parameter
        if not layer and not any(True for _ in module.parameters(recurse=False)):
            continue
        if name in _OUTSIDE:
            names[name] = _OUTSIDE[name]
            continue
        pieces = name.split(".")
        for length in range(len(pieces), 0, -1):
            prefix, rest = ".".join(pieces[:length]), ".".join(pieces[length:])
            if prefix in prefixes:
                if ".resnets." in prefix:
                    rest = _RESNET.get(rest, rest)
                names[name] = f"{prefixes[prefix]}.{rest}" if rest else prefixes[prefix]
                break
    return names


def _prefixes(network: Any) -> Iterator[tuple[str, str]]:
    """Give each block's name in both worlds."""
    number = 1
    for i, block in enumerate(network.down_blocks):
        place = f"down_blocks.{i}"
        for j in range(len(block.resnets)):
            yield f"{place}.resnets.{j}", f"input_blocks.{number}.0"
            yield f"{place}.attentions.{j}", f"input_blocks.{number}.1"
            number += 1
        if getattr(block, "downsamplers", None):
            yield f"{place}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    for j, ldm in enumerate((0, 2)):
        yield f"mid_block.resnets.{j}", f"middle_block.{ldm}"
    yield "mid_block.attentions.0", "middle_block.1"
    number = 0
    for i, block in enumerate(getattr(network, "up_blocks", ())):
        place = f"up_blocks.{i}"
        for j in range(len(block.resnets)):
            yield f"{place}.resnets.{j}", f"output_blocks.{number}.0"
            yield f"{place}.attentions.{j}", f"output_blocks.{number}.1"
            number += 1
        if getattr(block, "upsamplers", None):
            inner = 2 if getattr(block, "attentions", None) else 1
            yield f"{place}.upsamplers.0.conv", f"output_blocks.{number - 1}.{inner}.conv"
    embedding = getattr(network, "controlnet_cond_embedding", None)
    if embedding is not None:
        for i in range(len(embedding.blocks)):
            yield f"controlnet_cond_embedding.blocks.{i}", f"input_hint_block.{2 * i + 2}"
        last = 2 * len(embedding.blocks) + 2
        yield "controlnet_cond_embedding.conv_out", f"input_hint_block.{last}"
        for i in range(len(network.controlnet_down_blocks)):
            yield f"controlnet_down_blocks.{i}", f"zero_convs.{i}.0"
