"""The classic networks against diffusers' VQModel and AutoencoderKL with the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.autoencoder_blocks import AttnBlock
from vitrail.models.autoencoders import KLAutoencoder, VQAutoencoder
from vitrail.models.quantizers import build_quantizer
from vitrail.recipe.autoencoders import KLAutoencoderConfig, NearestQuantizerConfig, VQAutoencoderConfig

#: Float32 sums of the same terms in another order: some tens of roundings of 6e-8.
TOLERANCE = 1e-5

CH, MULT, BLOCKS = 32, (1, 2, 4), 2
NETWORK: dict[str, Any] = {
    "architecture": "classic", "ch": CH, "ch_mult": MULT, "num_res_blocks": BLOCKS,
    "attn_resolutions": (16,), "resolution": 32, "z_channels": 6,
}  # fmt: skip
SIDE = 24  # no power of two: attention must still be where the configuration says, not where the picture does


def diffusers_name(name: str) -> str:
    """taming's name of a weight -> diffusers' name."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    level = re.match(r"(down|up)\.(\d)\.", rest)
    if level:
        number = int(level[2]) if level[1] == "down" else len(MULT) - 1 - int(level[2])
        rest = f"{level[1]}_blocks.{number}." + rest[level.end() :]
    for old, new in (
        (r"\bblock\.(\d)", r"resnets.\1"),
        (r"\battn\.(\d)", r"attentions.\1"),
        (r"mid\.block_1", "mid_block.resnets.0"),
        (r"mid\.block_2", "mid_block.resnets.1"),
        (r"mid\.attn_1", "mid_block.attentions.0"),
        (r"nin_shortcut", "conv_shortcut"),
        (r"downsample\.conv", "downsamplers.0.conv"),
        (r"upsample\.conv", "upsamplers.0.conv"),
        (r"norm_out", "conv_norm_out"),
        (r"(attentions\.\d)\.norm\.", r"\1.group_norm."),
        (r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2."),
        (r"(attentions\.\d)\.proj_out\.", r"\1.to_out.0."),
    ):
        rest = re.sub(old, new, rest)
    return f"{side}.{rest}"


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give both the same random weights; every weight of theirs must be named once."""
    torch.manual_seed(0)
    target = theirs.state_dict()
    filled = {}
    for name, value in ours.named_parameters():
        value.data = torch.randn_like(value) * (0.3 if value.ndim < 2 else value[0].numel() ** -0.5)
        if value.ndim == 1 and name.endswith("weight"):
            value.data += 1.0
        filled[diffusers_name(name)] = value.detach().reshape(target[diffusers_name(name)].shape)
    assert set(filled) == set(target)
    theirs.load_state_dict(filled)
    ours.eval()
    theirs.eval()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def pictures() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_vq_autoencoder_equals_diffusers() -> None:
    torch.manual_seed(0)
    config = VQAutoencoderConfig.model_validate(
        {"network": NETWORK, "embed_dim": 5, "quantizer": {"kind": "nearest", "codes": 64}}
    )
    ours = VQAutoencoder(config)
    theirs = VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=tuple(CH * factor for factor in MULT),
        layers_per_block=BLOCKS, latent_channels=6, num_vq_embeddings=64, vq_embed_dim=5,
    )  # fmt: skip
    copy_weights(ours, theirs)
    x = pictures()
    before = theirs.encode(x).latents
    ours_before = ours.quant_conv(ours.encoder(x))
    assert relative(ours_before, before) <= TOLERANCE

    quantized, their_loss, (_, _, their_codes) = theirs.quantize(before)
    result = ours(x)
    assert torch.equal(result.latent.codes.flatten(), their_codes)
    assert relative(result.latent.z, quantized) <= TOLERANCE
    assert relative(result.x, theirs.decode(before).sample) <= TOLERANCE
    assert relative(ours.decode(result.latent.z), result.x) <= TOLERANCE
    assert relative(ours.decode_codes(result.latent.codes), result.x) <= TOLERANCE

    # diffusers has taming's legacy loss built in: beta on the codebook's term.
    legacy = VQAutoencoder(
        config.model_copy(update={"quantizer": config.quantizer.model_copy(update={"legacy_beta": True})})
    ).eval()
    legacy.load_state_dict(ours.state_dict())
    assert float(legacy(x).loss) == pytest.approx(float(their_loss), rel=1e-5)


def test_gradients_of_the_legacy_loss_equal_diffusers() -> None:
    torch.manual_seed(0)
    theirs = VQModel(latent_channels=5, num_vq_embeddings=16, block_out_channels=(32,)).quantize
    theirs.embedding.weight.data.normal_()
    ours = build_quantizer(NearestQuantizerConfig(codes=16, legacy_beta=True), 5)  # type: ignore[call-arg]
    ours.get_parameter("embedding.weight").data.copy_(theirs.embedding.weight)
    first = torch.randn(2, 5, 4, 4, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    mine, (quantized, loss, _) = ours(first), theirs(second)
    (mine.z.pow(3).sum() + 7.0 * mine.loss).backward()
    (quantized.pow(3).sum() + 7.0 * loss).backward()
    for one, other in (
        (first.grad, second.grad),
        (ours.get_parameter("embedding.weight").grad, theirs.embedding.weight.grad),
    ):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_kl_autoencoder_equals_diffusers() -> None:
    torch.manual_seed(0)
    config = KLAutoencoderConfig.model_validate(
        {
            "network": NETWORK | {"attn_resolutions": (), "z_channels": 4, "double_z": True},
            "embed_dim": 4,
            "latent_scale": 0.18215,
        }
    )
    ours = KLAutoencoder(config)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=tuple(CH * factor for factor in MULT),
        layers_per_block=BLOCKS, latent_channels=4,
    )  # fmt: skip
    copy_weights(ours, theirs)
    x = pictures()
    mine, other = ours.encode(x), theirs.encode(x).latent_dist
    assert relative(mine.mean, other.mean) <= TOLERANCE
    assert relative(mine.logvar, other.logvar) <= TOLERANCE
    assert torch.allclose(mine.kl(), other.kl(), rtol=1e-5)
    # What is handed out is scaled, and decode takes it back: callers of diffusers must do both themselves.
    assert relative(mine.z, other.mode() * 0.18215) <= TOLERANCE
    assert relative(ours.decode(mine.z), theirs.decode(other.mode()).sample) <= TOLERANCE
    noise = torch.randn(mine.mean.shape, generator=torch.Generator().manual_seed(9))
    drawn = mine.sample(torch.Generator().manual_seed(9))
    assert torch.allclose(drawn, (other.mean + other.std * noise) * 0.18215, rtol=1e-5, atol=1e-6)


def test_names_of_the_classic_network_are_those_of_taming() -> None:
    """Names as the f16 files have them, written down by hand and not made by this code."""
    config = VQAutoencoderConfig.model_validate(
        {
            "network": {"architecture": "classic", "ch": 32, "z_channels": 32},
            "embed_dim": 32,
            "quantizer": {"kind": "nearest", "codes": 8},
        }
    )
    names = set(VQAutoencoder(config).state_dict())
    expected = {
        "encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight", "encoder.down.4.block.1.conv2.bias",
        "encoder.down.2.block.0.nin_shortcut.weight", "encoder.down.4.attn.1.proj_out.weight",
        "encoder.down.4.attn.0.norm.bias", "encoder.down.3.downsample.conv.weight",
        "encoder.mid.block_1.conv1.weight", "encoder.mid.attn_1.q.weight", "encoder.mid.block_2.norm2.bias",
        "encoder.norm_out.weight", "encoder.conv_out.bias", "decoder.conv_in.weight",
        "decoder.up.0.block.2.conv2.weight", "decoder.up.4.attn.2.k.bias",
        "decoder.up.4.upsample.conv.weight", "decoder.up.1.upsample.conv.bias",
        "decoder.norm_out.bias", "decoder.conv_out.weight",
        "quantize.embedding.weight", "quant_conv.weight", "post_quant_conv.bias",
    }  # fmt: skip
    assert expected <= names
    for absent in ("encoder.down.4.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"):
        assert absent not in names
    assert {name for name in names if name.startswith("quantize.")} == {
        "quantize.embedding.weight",
        "quantize.usage",
    }


def test_attention_equals_its_formula() -> None:
    """softmax(q k' / sqrt(C)) v over all positions, with one head, written out."""
    torch.manual_seed(0)
    block = AttnBlock(32)
    x = torch.randn(2, 32, 3, 5)
    hidden = functional.group_norm(x, 32, eps=1e-6)
    q, k, v = (layer(hidden).flatten(2) for layer in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 32**0.5, dim=2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view(2, 32, 3, 5)
    assert torch.allclose(block(x), x + block.proj_out(mixed), atol=1e-5)
