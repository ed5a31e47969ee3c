"""What a transformer over codes is trained to do, and how well it does on held-out pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.models.latent import Quantized
from vitrail.models.token_transformer import Conditions, TokenTransformer
from vitrail.recipe.priors import TokenObjective
from vitrail.runtime import Precision, autocast
from vitrail.training.loop import LossOutput, Mean
from vitrail.training.objectives import TextBatch, TextEncoder

__all__ = [
    "Tokenizer",
    "draw_masks",
    "held_out_canvas_likelihood",
    "held_out_likelihood",
    "read_conditions",
    "token_canvas_loss",
    "token_loss",
    "tokenize",
]

#: Strata of the share of unknown codes in which a masked model is measured.
STRATA = 4


class Tokenizer(Protocol):
    """A frozen autoencoder with a codebook, :class:`vitrail.models.autoencoders.VQAutoencoder` for one."""

    codebook_size: int

    def encode(self, x: Tensor, /) -> Quantized: ...
    def decode_codes(self, codes: Tensor, /) -> Tensor: ...


def tokenize(tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """Return the codes (B, N) in raster order of pictures (B, 3, H, W).

    Raises :class:`InputError` for a tokenizer with several codes a position.
    """
    # In float32 whatever the run computes in: these are the codes that encoding gives anywhere else.
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        codes = tokenizer.encode(pixels).codes
    if codes.ndim == 4 and codes.shape[3] == 1:
        codes = codes[..., 0]
    if codes.ndim != 3:
        raise InputError(
            f"the tokenizer gives {codes.shape[-1]} codes a position; a prior needs one; take another"
        )
    return codes.flatten(1)


def read_conditions(
    model: TokenTransformer,
    encoder: TextEncoder | None,
    captions: list[str],
    styles: Tensor,
    device: torch.device,
) -> Conditions:
    """Return what ``model`` is told of B pictures: captions ("" for none) and styles (B,), as far as it reads
    them.
    """
    numbers = styles.to(device).clamp_max(model.config.styles)
    if not model.config.text or encoder is None:
        return Conditions(styles=numbers)
    with torch.no_grad():
        text = encoder(captions)
    return Conditions(text.states.to(device), text.mask.to(device), text.ids.to(device), numbers)


def draw_masks(shares: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return masks (B, count), True at ceil(share * count) places of each row, drawn evenly; at least one."""
    numbers = (shares * count).ceil().long().clamp(1, count)
    order = torch.rand(len(shares), count, generator=generator, device=generator.device).argsort(dim=1)
    rank = order.argsort(dim=1)
    return rank < numbers[:, None]


def token_loss(
    model: nn.Module | Callable[..., Tensor],
    network: TokenTransformer,
    tokenizer: Tokenizer,
    encoder: TextEncoder | None,
    settings: TokenObjective,
    device: torch.device,
) -> Callable[[TextBatch, torch.Generator], LossOutput]:
    """Cross-entropy of codes with label smoothing.

    Masked (MaskGIT, arXiv:2202.04200, section 3.1): a share cos(pi/2 u), u even in [0, 1], of the codes is
    unknown and told from the others. Causal (arXiv:2012.09841, section 3.2): every code from those before it.
    In both, ``settings.corrupt`` of the codes that the model sees are replaced by even ones, so that it can
    go on from its own mistakes; what it must tell are the true ones. ``model`` is what is called, ``network``
    (the same, not compiled) what is asked for its shape. Figures: "loss", "nats" (without smoothing, a code)
    and "right", the share of codes told right.
    """
    config = network.config

    def loss(batch: TextBatch, generator: torch.Generator) -> LossOutput:
        pixels = batch.pixels.to(device, torch.float32, non_blocking=True)
        codes = tokenize(tokenizer, pixels)
        conditions = read_conditions(network, encoder, list(batch.captions), batch.styles, device)
        home = generator.device
        wrong = torch.rand(codes.shape, generator=generator, device=home) < settings.corrupt
        random = torch.randint(config.codes, codes.shape, generator=generator, device=home)
        seen = torch.where(wrong.to(device), random.to(device), codes)
        asked: Tensor | None = None
        if config.mode == "masked":
            even = torch.rand(len(codes), generator=generator, device=home)
            asked = draw_masks(torch.cos(even * (math.pi / 2)), codes.shape[1], generator).to(device)
            seen = torch.where(asked, network.unknown, seen)
        logits = model(seen, conditions)
        return _output(logits, codes, asked, settings.label_smoothing)

    return loss


def token_canvas_loss(
    network: TokenTransformer, tokenizer: Tokenizer, encoder: TextEncoder | None, device: torch.device
) -> Callable[[TextBatch, torch.Generator], LossOutput]:
    """Cross-entropy of every code by itself, as the canvas tells it from the prompt alone."""

    def loss(batch: TextBatch, generator: torch.Generator) -> LossOutput:
        codes = tokenize(tokenizer, batch.pixels.to(device, torch.float32, non_blocking=True))
        told = read_conditions(network, encoder, list(batch.captions), batch.styles, device)
        return _output(network.draw_canvas(told).values.float(), codes, None, 0.0)

    return loss


def held_out_canvas_likelihood(
    network: TokenTransformer,
    tokenizer: Tokenizer,
    encoder: TextEncoder | None,
    batches: Sequence[TextBatch],
    device: torch.device,
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Return a function of a network that measures its canvas on fixed pictures: "held_out/nats" a code."""

    @torch.no_grad()
    def measure(model: nn.Module) -> Mapping[str, float]:
        assert isinstance(model, TokenTransformer)
        nats = []
        for batch in batches:
            codes = tokenize(tokenizer, batch.pixels.to(device, torch.float32))
            told = read_conditions(network, encoder, list(batch.captions), batch.styles, device)
            nats.append(_nats(model.draw_canvas(told).values.float(), codes).double().mean(1))
        return {"held_out/nats": float(torch.cat(nats).mean())}

    return measure


def held_out_likelihood(
    network: TokenTransformer,
    tokenizer: Tokenizer,
    encoder: TextEncoder | None,
    batches: Sequence[TextBatch],
    device: torch.device,
    seed: int = 0,
    precision: Precision = "float32",
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Return a function of a network that measures nats a code on fixed pictures.

    Causal: the negative log-likelihood itself. Masked: an upper bound of it, the mean over even shares of
    unknown codes of the cross-entropy of those (Hoogeboom et al., arXiv:2110.02037, equation 3), with the
    same masks every time. "held_out/nats", and "held_out/best": the lowest so far in this session.
    """
    config = network.config
    best = math.inf
    prepared: list[tuple[Tensor, Conditions]] = []

    @torch.no_grad()
    def measure(model: nn.Module) -> Mapping[str, float]:
        nonlocal best
        if not prepared:
            for batch in batches:
                codes = tokenize(tokenizer, batch.pixels.to(device, torch.float32))
                told = read_conditions(network, encoder, list(batch.captions), batch.styles, device)
                prepared.append((codes, told))
        generator = torch.Generator("cpu").manual_seed(seed)
        total, count = 0.0, 0
        for codes, conditions in prepared:
            if config.mode == "causal":
                with autocast(device, precision):
                    logits = model(codes, conditions)
                total += float(_nats(logits, codes).double().mean(1).sum())
                count += len(codes)
                continue
            for stratum in range(STRATA):
                even = (stratum + torch.rand(len(codes), generator=generator)) / STRATA
                asked = draw_masks(even, codes.shape[1], generator).to(device)
                with autocast(device, precision):
                    logits = model(torch.where(asked, network.unknown, codes), conditions)
                nats = _nats(logits, codes)
                total += float(((nats * asked).double().sum(1) / asked.sum(1)).sum())
                count += len(codes)
        value = total / max(1, count)
        best = min(best, value)
        return {"held_out/nats": value, "held_out/best": best}

    return measure


def _nats(logits: Tensor, codes: Tensor) -> Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


def _output(logits: Tensor, codes: Tensor, asked: Tensor | None, smoothing: float) -> LossOutput:
    if asked is not None:
        logits, codes = logits[asked], codes[asked]
    else:
        logits, codes = logits.flatten(0, 1), codes.flatten()
    told = logits.log_softmax(-1)
    nats = -told.gather(-1, codes[:, None])[:, 0]
    # The target is (1 - smoothing) at the true code plus smoothing / K everywhere (arXiv:1512.00567, sec. 7).
    losses = (1.0 - smoothing) * nats - smoothing * told.mean(-1)
    number = nats.new_tensor(float(len(codes)))
    right = (logits.detach().argmax(-1) == codes).sum().to(nats.dtype)
    figures = {
        "loss": Mean(losses.detach().sum(), number),
        "nats": Mean(nats.detach().sum(), number),
        "right": Mean(right, number),
    }
    return LossOutput(losses.mean(), figures)
