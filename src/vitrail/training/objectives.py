"""What a network is trained to do: the losses of the phases of :func:`vitrail.training.loop.fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.shell_dit import ShellDiT
from vitrail.recipe import FlowObjective, UpsamplerObjective
from vitrail.training.loop import LossOutput, Mean

__all__ = [
    "TextBatch",
    "TextEncoder",
    "TextStates",
    "canvas_loss",
    "draw_levels",
    "flow_loss",
    "held_out_canvas_loss",
    "held_out_flow_loss",
    "upsampler_loss",
]

#: Edges of the bins in which the loss is logged by noise level.
LEVEL_BINS = 4


class TextStates(Protocol):
    """What a text encoder returns: states (B, T, W) float, mask (B, T) bool, ids (B, T) int64."""

    @property
    def states(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor: ...


class TextEncoder(Protocol):
    """A frozen text encoder, :class:`vitrail.models.text.TextEncoder` for instance."""

    def __call__(self, prompts: list[str], /) -> TextStates: ...


class TextBatch(Protocol):
    """Pictures (B, 3, H, W) in [-1, 1] with captions ("" = none) and styles (B,) (0 = none)."""

    @property
    def pixels(self) -> Tensor: ...
    @property
    def captions(self) -> list[str]: ...
    @property
    def styles(self) -> Tensor: ...


class Pictures(Protocol):
    """Pictures (B, 3, H, W) in [-1, 1]."""

    @property
    def pixels(self) -> Tensor: ...


def draw_levels(count: int, settings: FlowObjective, generator: torch.Generator) -> Tensor:
    """Draw ``count`` noise levels t in [0, 1] on the generator's device.

    Logit-normal (SD3, Esser et al., arXiv:2403.03206, section 3.1) with a share drawn evenly, so that the
    ends, where the logit-normal density vanishes, are trained as well.
    """
    device = generator.device
    normal = torch.randn(count, generator=generator, device=device)
    levels = torch.sigmoid(settings.logit_mean + settings.logit_std * normal)
    even = torch.rand(count, generator=generator, device=device)
    choice = torch.rand(count, generator=generator, device=device)
    return torch.where(choice < settings.uniform_share, even, levels)


def flow_loss(
    model: nn.Module | Callable[..., Tensor],
    encoder: TextEncoder,
    settings: FlowObjective,
    device: torch.device,
) -> Callable[[TextBatch, torch.Generator], LossOutput]:
    """Rectified flow with prediction of the clean picture.

    x_t = (1 - t) x0 + t noise (Liu et al., arXiv:2209.03003, eq. 1); the network predicts x0 (Li & He,
    arXiv:2511.13720). An error of x0 is an error of the velocity (x_t - x0) / t times t, so the velocity
    loss of the paper is the mean square of x0's error times 1/t^2, which is clipped because it has no bound
    at t = 0::

        loss = mean over pictures of  mean((x0_hat - x0)^2) * min(1 / t^2, clip)

    ``model(x_t, t, states, mask, ids, styles)`` returns x0_hat. The encoder is never trained. Figures: the
    unweighted error in four bins of t, "mse/t0" (little noise) to "mse/t3".
    """

    def loss(batch: TextBatch, generator: torch.Generator) -> LossOutput:
        clean = batch.pixels.to(device, torch.float32, non_blocking=True)
        levels = draw_levels(len(clean), settings, generator)
        noise = torch.randn(clean.shape, generator=generator, device=generator.device)
        errors = _errors(model, encoder, batch, clean, levels.to(device), noise.to(device))
        weights = levels.to(device).square().clamp_min(1.0 / settings.weight_clip).reciprocal()
        figures = {"loss": Mean((errors * weights).detach().sum(), weights.new_tensor(len(clean)))}
        figures.update(_by_level(errors.detach(), levels.to(device)))
        return LossOutput((errors * weights).mean(), figures)

    return loss


def canvas_loss(
    model: ShellDiT, encoder: TextEncoder, device: torch.device
) -> Callable[[TextBatch, torch.Generator], LossOutput]:
    """Mean square error of the canvas's picture (:mod:`vitrail.models.canvas`); nothing else is trained."""

    def loss(batch: TextBatch, generator: torch.Generator) -> LossOutput:
        errors = _canvas_errors(model, encoder, batch, device)
        total = Mean(errors.detach().sum(), errors.new_tensor(len(errors)))
        return LossOutput(errors.mean(), {"loss": total})

    return loss


def held_out_canvas_loss(
    encoder: TextEncoder, batches: list[TextBatch], device: torch.device
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Return a function of a network that measures the error of its canvas on fixed pictures."""

    @torch.no_grad()
    def measure(model: nn.Module) -> Mapping[str, float]:
        assert isinstance(model, ShellDiT)
        errors = torch.cat([_canvas_errors(model, encoder, batch, device) for batch in batches])
        return {"held_out/canvas": float(errors.double().mean())}

    return measure


def held_out_flow_loss(
    encoder: TextEncoder, batches: list[TextBatch], device: torch.device, seed: int = 0
) -> Callable[[nn.Module | Callable[..., Tensor]], Mapping[str, float]]:
    """Return a function of a network that measures its unweighted error per noise level on fixed pictures
    with fixed noise.

    Every picture is seen once in each of the four bins of t, at the same level and noise every time, so two
    values differ only by the network. Names as in :func:`flow_loss`, after "held_out/"; "held_out/mse" is
    their mean.
    """

    @torch.no_grad()
    def measure(model: nn.Module | Callable[..., Tensor]) -> Mapping[str, float]:
        generator = torch.Generator("cpu").manual_seed(seed)
        totals = torch.zeros(LEVEL_BINS, dtype=torch.float64)
        count = 0
        for batch in batches:
            clean = batch.pixels.to(device, torch.float32)
            count += len(clean)
            for bin_number in range(LEVEL_BINS):
                levels = (bin_number + torch.rand(len(clean), generator=generator)) / LEVEL_BINS
                noise = torch.randn(clean.shape, generator=generator)
                errors = _errors(model, encoder, batch, clean, levels.to(device), noise.to(device))
                totals[bin_number] += errors.double().sum().cpu()
        means = (totals / max(1, count)).tolist()
        return {"held_out/mse": sum(means) / LEVEL_BINS} | {
            f"held_out/mse/t{number}": mean for number, mean in enumerate(means)
        }

    return measure


def upsampler_loss(
    model: nn.Module | Callable[..., Tensor], scale: int, settings: UpsamplerObjective, device: torch.device
) -> Callable[[Pictures, torch.Generator], LossOutput]:
    """L1 on the pixels and on the differences of neighbouring pixels, which keeps edges sharp.

    The small picture is the area average of the large one plus a little noise of random strength, so that
    the network forgives what a generator leaves behind. ``model(small)`` returns pictures ``scale`` times
    larger. With several passes the network enlarges its own output, as it does in use, and every size is
    compared with the picture at that size; the loss is the mean over the passes.
    """

    def loss(batch: Pictures, generator: torch.Generator) -> LossOutput:
        sizes = [batch.pixels.to(device, torch.float32, non_blocking=True)]
        for _ in range(settings.passes):
            sizes.append(functional.avg_pool2d(sizes[-1], scale))
        small = sizes.pop()
        strength = (
            torch.rand((len(small), 1, 1, 1), generator=generator, device=generator.device) * settings.noise
        )
        noise = torch.randn(small.shape, generator=generator, device=generator.device)
        drawn = small + (strength * noise).to(device)
        pixels = edges = small.new_zeros(len(small))
        for wanted in reversed(sizes):
            drawn = model(drawn).float()
            pixels = pixels + (drawn - wanted).abs().mean(dim=(1, 2, 3)) / settings.passes
            edges = edges + _edge_error(drawn, wanted) / settings.passes
        total = pixels + settings.edge_weight * edges
        number = total.new_tensor(len(small))
        figures = {
            "loss": Mean(total.detach().sum(), number),
            "l1": Mean(pixels.detach().sum(), number),
            "edges": Mean(edges.detach().sum(), number),
        }
        return LossOutput(total.mean(), figures)

    return loss


def _canvas_errors(model: ShellDiT, encoder: TextEncoder, batch: TextBatch, device: torch.device) -> Tensor:
    """Mean square error of the canvas's picture, (B,) float32."""
    with torch.no_grad():
        text = encoder(list(batch.captions))
    drawn = model.draw_canvas(text.states.to(device), text.mask.to(device), batch.styles.to(device))
    return (drawn - batch.pixels.to(device, torch.float32)).square().mean(dim=(1, 2, 3))


def _errors(
    model: nn.Module | Callable[..., Tensor],
    encoder: TextEncoder,
    batch: TextBatch,
    clean: Tensor,
    levels: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean square error of the predicted clean picture, (B,) float32."""
    with torch.no_grad():
        text = encoder(list(batch.captions))
    device = clean.device
    t = levels[:, None, None, None]
    noisy = (1.0 - t) * clean + t * noise
    predicted = model(
        noisy,
        levels,
        text.states.to(device),
        text.mask.to(device),
        text.ids.to(device),
        batch.styles.to(device),
    )
    return (predicted.float() - clean).square().mean(dim=(1, 2, 3))


def _by_level(errors: Tensor, levels: Tensor) -> dict[str, Mean]:
    bins = (levels * LEVEL_BINS).long().clamp_max(LEVEL_BINS - 1)
    totals = errors.new_zeros(LEVEL_BINS).index_add_(0, bins, errors)
    counts = errors.new_zeros(LEVEL_BINS).index_add_(0, bins, torch.ones_like(errors))
    return {f"mse/t{number}": Mean(totals[number], counts[number]) for number in range(LEVEL_BINS)}


def _edge_error(drawn: Tensor, large: Tensor) -> Tensor:
    difference = drawn - large
    across = (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean(dim=(1, 2, 3))
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean(dim=(1, 2, 3))
    return across + down
