"""taming-transformers' networks, written again from their description, for comparison alone.

Plain functions over a state dict with that project's names (vqgan.py, model.py, quantize.py, mingpt.py,
cond_transformer.py). Nothing here is shared with the product: attention is a written-out softmax, the
nearest code is found by a full matrix of distances in float64, the transformer has separate query, key and
value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def conv(w: Weights, name: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def resnet(w: Weights, name: str, x: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", swish(norm(w, f"{name}.norm1", x)), padding=1)
    h = conv(w, f"{name}.conv2", swish(norm(w, f"{name}.norm2", h)), padding=1)
    if f"{name}.nin_shortcut.weight" in w:
        x = conv(w, f"{name}.nin_shortcut", x)
    return x + h


def attention(w: Weights, name: str, x: Tensor) -> Tensor:
    b, c, height, width = x.shape
    h = norm(w, f"{name}.norm", x)
    q, k, v = (conv(w, f"{name}.{part}", h).reshape(b, c, height * width) for part in "qkv")
    scores = torch.bmm(q.permute(0, 2, 1), k) * c**-0.5
    weights = torch.softmax(scores, dim=2)
    h = torch.bmm(v, weights.permute(0, 2, 1)).reshape(b, c, height, width)
    return x + conv(w, f"{name}.proj_out", h)


def middle(w: Weights, name: str, x: Tensor) -> Tensor:
    x = resnet(w, f"{name}.block_1", x)
    if f"{name}.attn_1.q.weight" in w:  # latent-diffusion's attn_type "none" has none
        x = attention(w, f"{name}.attn_1", x)
    return resnet(w, f"{name}.block_2", x)


def encoder(w: Weights, x: Tensor, ch_mult: Sequence[int], blocks: int, prefix: str = "encoder") -> Tensor:
    h = conv(w, f"{prefix}.conv_in", x, padding=1)
    for level in range(len(ch_mult)):
        for block in range(blocks):
            h = resnet(w, f"{prefix}.down.{level}.block.{block}", h)
            if f"{prefix}.down.{level}.attn.{block}.q.weight" in w:
                h = attention(w, f"{prefix}.down.{level}.attn.{block}", h)
        if level != len(ch_mult) - 1:
            h = conv(w, f"{prefix}.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = middle(w, f"{prefix}.mid", h)
    return conv(w, f"{prefix}.conv_out", swish(norm(w, f"{prefix}.norm_out", h)), padding=1)


def decoder(w: Weights, z: Tensor, ch_mult: Sequence[int], blocks: int, prefix: str = "decoder") -> Tensor:
    h = middle(w, f"{prefix}.mid", conv(w, f"{prefix}.conv_in", z, padding=1))
    for level in reversed(range(len(ch_mult))):
        for block in range(blocks + 1):
            h = resnet(w, f"{prefix}.up.{level}.block.{block}", h)
            if f"{prefix}.up.{level}.attn.{block}.q.weight" in w:
                h = attention(w, f"{prefix}.up.{level}.attn.{block}", h)
        if level != 0:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(w, f"{prefix}.up.{level}.upsample.conv", h, padding=1)
    return conv(w, f"{prefix}.conv_out", swish(norm(w, f"{prefix}.norm_out", h)), padding=1)


def nearest(w: Weights, z: Tensor) -> tuple[Tensor, Tensor]:
    book = w["quantize.embedding.weight"]
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    codes = torch.cdist(flat.double(), book.double()).argmin(1)
    shape = (z.shape[0], z.shape[2], z.shape[3])
    return book[codes].reshape(*shape, -1).permute(0, 3, 1, 2), codes.reshape(shape)


def gumbel(w: Weights, z: Tensor) -> tuple[Tensor, Tensor]:
    codes = conv(w, "quantize.proj", z).argmax(1)
    return w["quantize.embed.weight"][codes].permute(0, 3, 1, 2), codes


def vqgan(w: Weights, x: Tensor, ch_mult: Sequence[int], blocks: int) -> tuple[Tensor, Tensor]:
    """Reconstruction and codes of VQModel, or of GumbelVQ without its noise."""
    z = conv(w, "quant_conv", encoder(w, x, ch_mult, blocks))
    quantized, codes = (gumbel if "quantize.proj.weight" in w else nearest)(w, z)
    return decoder(w, conv(w, "post_quant_conv", quantized), ch_mult, blocks), codes


def kl(w: Weights, x: Tensor, ch_mult: Sequence[int], blocks: int) -> tuple[Tensor, Tensor]:
    """Reconstruction from the mean, and the mean, of LDM's AutoencoderKL."""
    mean, _ = conv(w, "quant_conv", encoder(w, x, ch_mult, blocks)).chunk(2, dim=1)
    return decoder(w, conv(w, "post_quant_conv", mean), ch_mult, blocks), mean


def gpt(w: Weights, tokens: Tensor, layers: int, heads: int, unmasked: int = 0) -> Tensor:
    """minGPT's logits (B, T, vocabulary) of tokens (B, T), of which the first ``unmasked`` see each other."""
    x = w["tok_emb.weight"][tokens] + w["pos_emb"][:, : tokens.shape[1]]
    b, t, c = x.shape
    place = torch.arange(t)
    future = (place[None] > place[:, None]) & (place[None] >= unmasked)

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    def layer_norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, (c,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    for layer in range(layers):
        h = layer_norm(f"blocks.{layer}.ln1", x)
        q, k, v = (
            linear(f"blocks.{layer}.attn.{part}", h).view(b, t, heads, c // heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = (q @ k.transpose(2, 3) / (c // heads) ** 0.5).masked_fill(future, float("-inf"))
        mixed = (scores.softmax(3) @ v).transpose(1, 2).reshape(b, t, c)
        x = x + linear(f"blocks.{layer}.attn.proj", mixed)
        h = linear(f"blocks.{layer}.mlp.0", layer_norm(f"blocks.{layer}.ln2", x))
        x = x + linear(f"blocks.{layer}.mlp.2", F.gelu(h))
    return layer_norm("ln_f", x) @ w["head.weight"].t()


def places(rows: int, columns: int, patch: int, codes: int) -> Tensor:
    """CoordStage's codes (rows, columns), from a picture of every pixel's number over their count."""
    height, width = rows * patch, columns * patch
    coordinates = torch.arange(height * width).view(1, 1, height, width) / (height * width)
    return (codes * F.avg_pool2d(coordinates, patch)).round()[0, 0].long()


# -- random weights with that project's names ----------------------------------------------------------------


def random_vqgan(
    *, ch: int, ch_mult: Sequence[int], blocks: int, attn: Sequence[int], z: int, embed: int, codes: int,
    middle_of: str = "nearest", channels: int = 3, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """State dict of a VQModel, GumbelVQ, EMAVQ or AutoencoderKL; ``attn``: the levels with attention."""
    generator = torch.Generator().manual_seed(seed)
    w: dict[str, Tensor] = {}

    def put(name: str, *shape: int, gain: float = 1.0) -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        w[f"{name}.weight"] = torch.randn(shape, generator=generator) * gain * fan**-0.5
        w[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def put_norm(name: str, width: int) -> None:
        w[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        w[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    def put_block(name: str, inputs: int, outputs: int) -> None:
        put_norm(f"{name}.norm1", inputs)
        put(f"{name}.conv1", outputs, inputs, 3, 3)
        put_norm(f"{name}.norm2", outputs)
        put(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            put(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    def put_attention(name: str, width: int) -> None:
        put_norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            put(f"{name}.{part}", width, width, 1, 1)

    def put_middle(name: str, width: int) -> None:
        put_block(f"{name}.block_1", width, width)
        put_attention(f"{name}.attn_1", width)
        put_block(f"{name}.block_2", width, width)

    double = 2 if middle_of == "kl" else 1
    widths = [ch * factor for factor in ch_mult]
    put("encoder.conv_in", ch, channels, 3, 3)
    before = ch
    for level, width in enumerate(widths):
        for block in range(blocks):
            put_block(f"encoder.down.{level}.block.{block}", before, width)
            before = width
            if level in attn:
                put_attention(f"encoder.down.{level}.attn.{block}", width)
        if level != len(widths) - 1:
            put(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    put_middle("encoder.mid", before)
    put_norm("encoder.norm_out", before)
    put("encoder.conv_out", double * z, before, 3, 3)
    put("decoder.conv_in", before, z, 3, 3)
    put_middle("decoder.mid", before)
    for level in reversed(range(len(widths))):
        for block in range(blocks + 1):
            put_block(f"decoder.up.{level}.block.{block}", before, widths[level])
            before = widths[level]
            if level in attn:
                put_attention(f"decoder.up.{level}.attn.{block}", before)
        if level != 0:
            put(f"decoder.up.{level}.upsample.conv", before, before, 3, 3)
    put_norm("decoder.norm_out", before)
    put("decoder.conv_out", channels, before, 3, 3)
    put("quant_conv", double * embed, double * z, 1, 1)
    put("post_quant_conv", z, embed, 1, 1)
    if middle_of == "gumbel":
        put("quantize.proj", codes, z, 1, 1)
        w["quantize.embed.weight"] = torch.randn(codes, embed, generator=generator)
    elif middle_of != "kl":
        w["quantize.embedding.weight"] = torch.randn(codes, embed, generator=generator)
    if middle_of == "ema":
        w["quantize.embedding.cluster_size"] = torch.rand(codes, generator=generator)
        w["quantize.embedding.embed_avg"] = torch.randn(codes, embed, generator=generator)
    return w


def random_gpt(
    *, vocabulary: int, block_size: int, layers: int, width: int, unmasked: int = 0, seed: int = 1
) -> dict[str, Tensor]:
    """State dict of minGPT, masks included."""
    generator = torch.Generator().manual_seed(seed)
    w: dict[str, Tensor] = {}

    def put(name: str, outputs: int, inputs: int) -> None:
        w[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * 1.5 * inputs**-0.5
        w[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1

    w["tok_emb.weight"] = torch.randn(vocabulary, width, generator=generator)
    w["pos_emb"] = torch.randn(1, block_size, width, generator=generator)
    names = [f"blocks.{layer}.{ln}" for layer in range(layers) for ln in ("ln1", "ln2")] + ["ln_f"]
    for name in names:
        w[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        w[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)
    for layer in range(layers):
        for part in ("key", "query", "value", "proj"):
            put(f"blocks.{layer}.attn.{part}", width, width)
        mask = torch.tril(torch.ones(block_size, block_size))
        mask[:unmasked, :unmasked] = 1
        w[f"blocks.{layer}.attn.mask"] = mask.view(1, 1, block_size, block_size)
        put(f"blocks.{layer}.mlp.0", 4 * width, width)
        put(f"blocks.{layer}.mlp.2", width, 4 * width)
    w["head.weight"] = torch.randn(vocabulary, width, generator=generator) * width**-0.5
    return w
