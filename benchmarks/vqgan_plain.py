"""taming's VQGAN and its training step, written out in plain PyTorch: what vitrail's is compared with.

Networks, names of weights and losses are those of taming-transformers (arXiv:2012.09841; PatchGAN of
arXiv:1611.07004), so weights load from one to the other by name. No mixed precision, no channels-last, no
fused optimizer; nothing is shared between the two players.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PlainDiscriminator", "PlainVQGAN", "plain_step"]


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inside), nn.Conv2d(inside, outside, 3, 1, 1)
        self.norm2, self.conv2 = norm(outside), nn.Conv2d(outside, outside, 3, 1, 1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        b, c, height, width = x.shape
        q, k, v = (layer(h).reshape(b, c, -1) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * c**-0.5, dim=2)
        return x + self.proj_out(torch.bmm(v, weights.transpose(1, 2)).reshape(b, c, height, width))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": Block(channels, channels),
            "attn_1": Attention(channels),
            "block_2": Block(channels, channels),
        }
    )


class Encoder(nn.Module):
    def __init__(self, ch: int, mult: Sequence[int], blocks: int, attn: Sequence[int], side: int, z: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, 1, 1)
        self.down, before = nn.ModuleList(), ch
        for level, factor in enumerate(mult):
            widths = [before] + [ch * factor] * blocks
            part = nn.Module()
            part.block = nn.ModuleList(Block(a, b) for a, b in pairwise(widths))
            here = side >> level in attn
            part.attn = nn.ModuleList(Attention(ch * factor) for _ in range(blocks if here else 0))
            if level + 1 < len(mult):
                part.downsample = Down(ch * factor)
            self.down.append(part)
            before = ch * factor
        self.mid, self.norm_out = middle(before), norm(before)
        self.conv_out = nn.Conv2d(before, z, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for part in self.down:
            for index, block in enumerate(part.block):
                h = block(h)
                h = part.attn[index](h) if len(part.attn) else h
            h = part.downsample(h) if hasattr(part, "downsample") else h
        for layer in self.mid.values():
            h = layer(h)
        return self.conv_out(swish(self.norm_out(h)))


class Decoder(nn.Module):
    def __init__(self, ch: int, mult: Sequence[int], blocks: int, attn: Sequence[int], side: int, z: int):
        super().__init__()
        before = ch * mult[-1]
        self.conv_in, self.mid = nn.Conv2d(z, before, 3, 1, 1), middle(before)
        parts: list[nn.Module] = []
        for level in reversed(range(len(mult))):
            widths = [before] + [ch * mult[level]] * (blocks + 1)
            part = nn.Module()
            part.block = nn.ModuleList(Block(a, b) for a, b in pairwise(widths))
            here = side >> level in attn
            part.attn = nn.ModuleList(Attention(ch * mult[level]) for _ in range(blocks + 1 if here else 0))
            if level > 0:
                part.upsample = Up(ch * mult[level])
            parts.insert(0, part)
            before = ch * mult[level]
        self.up, self.norm_out = nn.ModuleList(parts), norm(before)
        self.conv_out = nn.Conv2d(before, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for layer in self.mid.values():
            h = layer(h)
        for part in reversed(self.up):
            for index, block in enumerate(part.block):
                h = block(h)
                h = part.attn[index](h) if len(part.attn) else h
            h = part.upsample(h) if hasattr(part, "upsample") else h
        return self.conv_out(swish(self.norm_out(h)))


class Quantizer(nn.Module):
    """VQ-VAE's (arXiv:1711.00937, eq. 3) as in taming: the whole matrix of distances, ``legacy`` weights."""

    def __init__(self, codes: int, width: int, beta: float = 0.25) -> None:
        super().__init__()
        self.beta, self.embedding = beta, nn.Embedding(codes, width)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        book = self.embedding.weight
        distances = flat.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * flat @ book.t()
        found = self.embedding(distances.argmin(1)).view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        loss = (found.detach() - z).square().mean() + self.beta * (found - z.detach()).square().mean()
        return z + (found - z).detach(), loss


class PlainVQGAN(nn.Module):
    """Pictures (B, 3, H, W) -> (reconstructions, quantizer's loss)."""

    def __init__(
        self, ch: int, mult: Sequence[int], blocks: int, attn: Sequence[int], side: int, z: int, codes: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(ch, mult, blocks, attn, side, z)
        self.decoder = Decoder(ch, mult, blocks, attn, side, z)
        self.quantize = Quantizer(codes, z)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, z, 1), nn.Conv2d(z, z, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, loss = self.quantize(self.quant_conv(self.encoder(x)))
        return self.decoder(self.post_quant_conv(z)), loss


class PlainDiscriminator(nn.Module):
    """PatchGAN with batch normalisation, ``main.{i}`` as in taming."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        main: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for level in range(1, layers + 1):
            after = width * min(2**level, 8)
            main += [
                nn.Conv2d(before, after, 4, 2 if level < layers else 1, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        self.main = nn.Sequential(*main, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def plain_step(
    model: PlainVQGAN,
    judge: PlainDiscriminator,
    lpips: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    x: Tensor,
    weight: float,
    *,
    twice: bool,
) -> tuple[float, float]:
    """One step of both players; returns their losses.

    ``twice``: as taming's trainer does, the discriminator's turn runs the (updated) autoencoder again.
    Otherwise the turn takes the reconstruction of the first pass.
    """
    made, codebook = model(x)
    nll = (made - x).abs().mean() + lpips(made, x).mean()
    g = -judge(made).mean()
    last = model.decoder.conv_out.weight
    (ours,) = torch.autograd.grad(nll, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(g, last, retain_graph=True)
    ratio = (ours.norm() / (theirs.norm() + 1e-4)).clamp(0.0, 1e4).detach()
    loss = nll + weight * ratio * g + codebook
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    fake = (model(x)[0] if twice else made).detach()
    word = 0.5 * (F.relu(1.0 - judge(x)).mean() + F.relu(1.0 + judge(fake)).mean())
    optimizers[1].zero_grad()
    word.backward()
    optimizers[1].step()
    return loss.item(), word.item()
