"""Training of the judge: InfoNCE over pictures and captions, with pictures made as soft as a generator's.

Loss: the symmetric cross-entropy of CLIP (Radford et al., arXiv:2103.00020, figure 3), except that several
pictures of a batch may show the same thing (the same concept drawn by two houses): all captions with a
picture's label are right for it, as in supervised contrastive learning (Khosla et al., arXiv:2004.11362,
equation 2).

A small generator's pictures are softer and noisier than the artwork. A judge that has seen only crisp artwork
would measure crispness. So every training picture is moved, scaled, softened, made noisy and block-quantised
at random (:func:`soften`); the figures it then gives say "the right thing is recognisable", not "the picture
is sharp".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError, NonFiniteError
from vitrail.evaluation.matcher import Matcher, MatcherNetwork, MatcherSettings, Vocabulary
from vitrail.runtime import Precision, autocast, cpu_generator

__all__ = ["MatcherBatch", "contrastive_loss", "soften", "train_matcher"]


@dataclass(frozen=True)
class MatcherBatch:
    """Pictures with what they show.

    pixels: (B, 3, S, S) float32 in [-1, 1]. captions: one for each picture. labels: what each picture shows;
    two rows with the same label are right answers for each other. wrong: further (caption, label) pairs
    without a picture, to be told from the others; a pair whose label some picture carries counts as right for
    it.
    """

    pixels: Tensor
    captions: Sequence[str]
    labels: Sequence[str]
    wrong: Sequence[tuple[str, str]] = field(default=())


def _block_transform() -> Tensor:
    """Return the orthonormal 8-point DCT-II matrix (8, 8), the transform of JPEG (ITU-T T.81, A.3.3)."""
    k = torch.arange(8, dtype=torch.float32)
    matrix = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def _quantise_blocks(x: Tensor, steps: Tensor) -> Tensor:
    """Round the 8 x 8 DCT coefficients of ``x`` (B, 3, S, S) to multiples of a step that grows with
    frequency.

    ``steps`` (B,) is the step of the mean coefficient; the highest frequency's is 9 times that.
    """
    transform = _block_transform().to(x.device)
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    frequency = torch.arange(8, device=x.device)
    growth = 1 + (frequency[:, None] + frequency[None, :]) * (8 / 14)
    step = steps[:, None, None, None, None, None] * growth
    coefficients = transform @ blocks @ transform.T
    blocks = transform.T @ (torch.round(coefficients / step) * step) @ transform
    return blocks.transpose(3, 4).reshape(batch, channels, height, width)


def soften(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return randomly moved and degraded copies of ``pixels`` (B, 3, S, S) in [-1, 1], S a multiple of 8.

    Shift up to 6 %, scale 0.85 to 1.15, sides up to 1.15 apart, turned up to 5 degrees, contrast 0.8 to 1.15,
    brightness +-0.1; then for about half of the pictures a loss of resolution down to 0.3 of the side, and
    for half of them white noise up to 0.12 and coarse DCT blocks. Never mirrored and never turned in hue:
    "left of" and "red" must stay true.
    """
    count, _, size, _ = pixels.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    zoom, ratio, angle = uniform(-0.14, 0.16), uniform(-0.07, 0.07), uniform(-0.09, 0.09)
    across, down = (zoom + ratio).exp(), (zoom - ratio).exp()
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = across * angle.cos(), -across * angle.sin()
    affine[:, 1, 0], affine[:, 1, 1] = down * angle.sin(), down * angle.cos()
    affine[:, :, 2] = torch.stack([uniform(-0.12, 0.12), uniform(-0.12, 0.12)], dim=1)
    grid = functional.affine_grid(affine, [count, 3, size, size], align_corners=False)
    x = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    x = x * uniform(0.8, 1.15)[:, None, None, None] + uniform(-0.1, 0.1)[:, None, None, None]
    # One resolution for a slice of the batch: resampling each picture alone would cost more than the network.
    order = torch.randperm(count, generator=generator)
    parts = list(x[order].chunk(6))
    for number in range(len(parts) // 2):
        low = int(size * (0.3 + 0.6 * float(torch.rand((), generator=generator))))
        small = functional.interpolate(
            parts[number], (low, low), mode="bilinear", antialias=True, align_corners=False
        )
        parts[number] = functional.interpolate(small, (size, size), mode="bicubic", align_corners=False)
    x = torch.cat(parts)[torch.argsort(order)]
    noisy = (torch.rand(count, generator=generator) < 0.5).float() * uniform(0.0, 0.12)
    x = x + noisy[:, None, None, None] * torch.randn(x.shape, generator=generator)
    coarse = torch.rand(count, generator=generator) < 0.5
    if bool(coarse.any()):
        x[coarse] = _quantise_blocks(x[coarse], uniform(0.02, 0.2)[coarse])
    return x.clamp(-1, 1)


def contrastive_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of ``scores`` (B, C) where ``right`` (B, C) bool marks the true
    pairs.

    For each picture ``-log(sum of softmax over its right captions)``, and the same for each caption over
    pictures, averaged. A caption that no picture shows takes part in the first half only. With one right
    caption a row this is CLIP's loss. Raises :class:`InputError` where a picture
    has no right caption.
    """
    if not bool(right.any(dim=1).all()):
        raise InputError("a picture of the batch has no right caption; give each picture its own")
    masked = scores.masked_fill(~right, float("-inf"))
    over_captions = (scores.logsumexp(1) - masked.logsumexp(1)).mean()
    shown = right.any(dim=0)
    over_pictures = (scores[:, shown].logsumexp(0) - masked[:, shown].logsumexp(0)).mean()
    return (over_captions + over_pictures) / 2


def _labels_match(rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    numbers: dict[str, int] = {}
    a = torch.tensor([numbers.setdefault(label, len(numbers)) for label in rows])
    b = torch.tensor([numbers.setdefault(label, len(numbers)) for label in columns])
    return a[:, None] == b[None, :]


def train_matcher(
    settings: MatcherSettings,
    captions: Sequence[str],
    batches: Callable[[int], Iterator[MatcherBatch]],
    *,
    data_hash: str,
    common: Sequence[str] = (),
    precision: Precision = "auto",
    report: Callable[[int, float, float], None] | None = None,
) -> Matcher:
    """Train a judge from nothing and return it.

    ``captions`` is every caption whose words it should know; ``batches(seed)`` an endless stream of training
    batches, a pure function of the seed; ``common`` distinct labels that every picture which carries one is
    told apart by, besides its batch; ``report(pictures seen, running loss, pictures per second)`` is called
    about every two hundred steps. The result depends only on settings, captions and stream (to float rounding
    on other machines). AdamW with warm-up over the first 5 % and a cosine to zero. Raises
    :class:`NonFiniteError` when the loss is not finite.
    """
    vocabulary = Vocabulary.of(captions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = MatcherNetwork(settings, len(vocabulary))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _fit(settings, vocabulary, network, batches(settings.seed), common, precision, report)
    return Matcher(settings, vocabulary, network, data_hash)


def _fit(
    settings: MatcherSettings,
    vocabulary: Vocabulary,
    network: MatcherNetwork,
    stream: Iterator[MatcherBatch],
    common: Sequence[str],
    precision: Precision,
    report: Callable[[int, float, float], None] | None,
) -> None:
    # One free vector a common label (proxies, Movshovitz-Attias et al., arXiv:1703.07464): a picture learns
    # against all of them at every step, long before the text tower has words for them. They are dropped in
    # the end.
    place = {label: number for number, label in enumerate(common)}
    proxies = nn.Parameter(torch.randn(max(1, len(place)), settings.embedding) * 0.1)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [*(p for p in network.parameters() if p.ndim <= 1), proxies]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    generator = cpu_generator(settings.seed)
    device = torch.device("cpu")

    network.train()
    seen, step, running, started = 0, 0, float("nan"), time.monotonic()
    while seen < settings.pictures:
        batch = next(stream)
        share = seen / settings.pictures
        rate = settings.peak_rate * min(1.0, share / 0.05 + 0.01) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        # One row a caption: equal captions are encoded once, and never pushed apart.
        pairs = list(dict.fromkeys([*zip(batch.captions, batch.labels, strict=True), *batch.wrong]))
        numbers = vocabulary.encode([caption for caption, _ in pairs], settings.max_words)
        right = _labels_match(batch.labels, [label for _, label in pairs])
        pixels = soften(
            batch.pixels, generator
        )  # outside: autocast would take its matrix products to bfloat16
        with autocast(device, precision):
            pictures, _ = network.pictures(pixels)
            words = network.captions(numbers)

        loss = contrastive_loss(network.scale * pictures @ words.T, right)
        named = [(row, place[label]) for row, label in enumerate(batch.labels) if label in place]
        if named:
            rows, targets = (torch.tensor(column) for column in zip(*named, strict=True))
            scores = network.scale * pictures[rows] @ functional.normalize(proxies).T
            loss = loss + functional.cross_entropy(scores, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteError(f"the judge's loss became {value} after {seen} pictures; lower peak_rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        seen += len(batch.captions)
        step += 1
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        if report is not None and step % 200 == 0:
            report(seen, running, seen / (time.monotonic() - started))
    network.eval()
