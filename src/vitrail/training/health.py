"""What goes wrong in adversarial training, said in one line with its likely cause and the remedy.

:class:`HealthWatch` reads the figures of every step and never changes what is computed. :class:`Guard`
measures held-out pictures and does: it lowers the adversarial weight while they are worse than before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from vitrail.recipe.adversarial import AdversarialObjective, AutoencoderRecipe
from vitrail.recipe.autoencoders import (
    FSQConfig,
    KLAutoencoderConfig,
    LFQConfig,
    ResidualQuantizerConfig,
    VQAutoencoderConfig,
)
from vitrail.training.adversarial import LOSSES, Balance
from vitrail.training.hooks import preserved_randomness
from vitrail.training.loop import StepReport, TrainState

__all__ = ["Guard", "HealthWatch"]

Tell = Callable[[str], None]

WON_RIGHT = 0.98  #: share of pairs told apart from which the discriminator may have won
WON_LOSS = 0.1  #: and its loss over that of knowing nothing
ASLEEP_GAP = 1e-3  #: difference of mean logits below which it tells nothing apart
DEAD_GRADIENT = 1e-9  #: norm of a player's gradient
WORSE = 0.15  #: training error above that at the discriminator's start
COLLAPSED_NATS = 0.01  #: divergence in nats per number of the latent


class HealthWatch:
    """A hook that tells one line when something goes wrong, once until it is right again.

    Figures are averaged with a half-life of a quarter of ``health.window_images``. ``alarms`` keeps what was
    told.
    """

    def __init__(self, recipe: AutoencoderRecipe, tell: Tell) -> None:
        self.recipe = recipe
        self.tell = tell
        self.alarms: list[str] = []
        self._means: dict[str, tuple[float, float]] = {}  # decayed sums and their weights
        self._raised: set[str] = set()
        self._before: dict[str, float] = {}  # training errors when the discriminator began to count

    def mean(self, name: str) -> float | None:
        """Return the running mean of a figure, None if it was never reported."""
        total, weight = self._means.get(name, (0.0, 0.0))
        return total / weight if weight > 0 else None

    def __call__(self, state: TrainState, report: StepReport) -> None:
        keep = 0.5 ** (report.batch / (0.25 * self.recipe.health.window_images))
        values = {name: total / number for name, (total, number) in report.figures.items() if number > 0}
        values |= {f"gradient_norm/{name}": norm for name, norm in report.gradient_norms.items()}
        for name, value in values.items():
            total, weight = self._means.get(name, (0.0, 0.0))
            self._means[name] = (keep * total + (1.0 - keep) * value, keep * weight + (1.0 - keep))
        if report.images_seen < self.recipe.health.after_images:
            return
        found = dict(self._problems(report.images_seen))
        for name in found.keys() - self._raised:
            line = f"after {report.images_seen:,} pictures: {name}: {found[name]}"
            self.alarms.append(line)
            self.tell(line)
        self._raised = set(found)

    def _problems(self, seen: int) -> Iterator[tuple[str, str]]:
        """Yield (name, what was seen and what to do) for all that is wrong now."""
        yield from self._codes()
        yield from self._divergence()
        yield from self._players(seen)
        yield from self._ruined(seen)
        for player in ("model", "discriminator"):
            norm = self.mean(f"gradient_norm/{player}")
            if norm is not None and norm < DEAD_GRADIENT:
                yield (
                    f"dead gradients ({player})",
                    f"their norm is {norm:.1e}, so it no longer learns: begin again from an earlier "
                    "checkpoint with optim.lr divided by 3",
                )

    def _codes(self) -> Iterator[tuple[str, str]]:
        used, perplexity = self.mean("codes/used"), self.mean("codes/perplexity")
        model, least = self.recipe.model, self.recipe.health.codes_used
        if used is None or perplexity is None or not isinstance(model, VQAutoencoderConfig):
            return
        if used >= least and perplexity >= 0.1 * least * _size(model):
            return
        kind = model.quantizer.kind
        if isinstance(model.quantizer, LFQConfig):
            remedy = "raise model.quantizer.entropy and diversity, or take fewer bits"
        elif isinstance(model.quantizer, FSQConfig):
            remedy = "take fewer model.quantizer.levels, or divide optim.lr by 3"
        elif kind in ("cosine", "nearest"):
            other = "" if kind == "cosine" else 'kind = "cosine", '
            remedy = f"set in model.quantizer {other}kmeans_init = true, restart_below = 0.03"
        else:
            remedy = 'set model.quantizer.kind to "fsq" or "cosine", or take fewer codes'
        yield (
            "codebook collapse",
            f"{100 * used:.1f} % of {_size(model):,} codes in use, perplexity {perplexity:.1f}; likely "
            f"cause: the {kind} quantizer's codes lie where no latent falls; {remedy}, and begin again",
        )

    def _divergence(self) -> Iterator[tuple[str, str]]:
        nats = self.mean("kl")
        if nats is None:
            return
        model, side = self.recipe.model, self.recipe.data.size
        places = 1
        if isinstance(model, KLAutoencoderConfig):
            places = (side // model.network.downsample) ** 2
        if nats < COLLAPSED_NATS * places * model.embed_dim:
            yield (
                "posterior collapse",
                f"the latent holds {nats:.2g} nats a picture, so the decoder does not use it; likely cause: "
                f"the divergence weighs too much; lower objective.kl_weight "
                f"({self.recipe.objective.kl_weight:g}) or give it a rise with objective.kl_warmup_images",
            )

    def _players(self, seen: int) -> Iterator[tuple[str, str]]:
        settings = self.recipe.adversary
        right, loss = self.mean("disc/right"), self.mean("disc/loss")
        if settings is None or right is None or loss is None:
            return
        chance = LOSSES[settings.loss].chance
        ratio = self.mean("disc/adaptive_weight")
        if chance is not None and right > WON_RIGHT and loss < WON_LOSS * chance:
            clamp = ratio is not None and ratio >= 0.5 * settings.adaptive_max
            yield (
                "the discriminator won",
                f"it tells {100 * right:.1f} % of patches apart at a loss of {loss:.2g}"
                f"{', the adaptive weight is at its clamp' if clamp else ''}; likely cause: it learns faster "
                "than the autoencoder or knows the pictures by heart; divide adversary.lr_share by 3, set "
                'adversary.penalty = "r1", or add "cutout" to adversary.augment',
            )
        elif ratio is not None and ratio >= 0.5 * settings.adaptive_max:
            yield (
                "no adversarial gradient",
                f"the adaptive weight is {ratio:.3g}, near its clamp {settings.adaptive_max:g}; likely "
                "cause: the discriminator is saturated and any noise of it is blown up; set "
                'adversary.adaptive_max to 10 and adversary.penalty = "r1"',
            )
        awake = seen - settings.first_image >= self.recipe.health.after_images
        gap = (self.mean("disc/real") or 0.0) - (self.mean("disc/made") or 0.0)
        if awake and abs(gap) < ASLEEP_GAP and chance is not None and loss > 0.99 * chance:
            yield (
                "the discriminator sleeps",
                f"its mean logits of pictures and reconstructions differ by {abs(gap):.1g}; likely cause: "
                "its learning rate or penalty; raise adversary.lr_share, or lower adversary.penalty_weight",
            )

    def _ruined(self, seen: int) -> Iterator[tuple[str, str]]:
        """The training error against what it was when the discriminator began to count."""
        settings = self.recipe.adversary
        if settings is None:
            return
        name = next((name for name in ("lpips", "efficientnet", "l1") if name in self._means), None)
        error = None if name is None else self.mean(name)
        if name is None or error is None:
            return
        if seen <= settings.start_images:
            self._before[name] = error
        before = self._before.get(name)
        if before is not None and error > (1.0 + WORSE) * before:
            yield (
                "reconstruction ruined by the discriminator",
                f"{name} of training pictures is {error:.4g}, {before:.4g} when it began to count; likely "
                "cause: it counts too much too soon; lengthen adversary.ramp_images, lower adversary.weight, "
                "or set adversary.guard = true, and go back to a checkpoint before the start",
            )


class Guard:
    """A hook that measures held-out pictures with the averaged network and lowers the adversarial weight
    while they are worse than before the discriminator counted; see :meth:`Balance.watch`.

    ``distance`` is set before the first step: a network in evaluation mode -> what should be low.
    """

    def __init__(
        self, settings: AdversarialObjective, balance: Balance, model: nn.Module, tell: Tell
    ) -> None:
        self.settings = settings
        self.balance = balance
        self.model = model
        self.tell = tell
        self.distance: Callable[[nn.Module], float] | None = None
        self.measured: list[tuple[int, float]] = []
        self._averaged: nn.Module | None = None

    def __call__(self, state: TrainState, report: StepReport) -> None:
        every, seen = self.settings.guard_every_images, report.images_seen
        if seen // every == (seen - report.batch) // every or self.distance is None:
            return
        if seen < self.settings.start_images - 2 * every:  # only the last values before the start matter
            return
        # Held, so that a signal's checkpoint has what was decided, or is taken before this step's end.
        with state.updating, preserved_randomness(), torch.no_grad():
            if self._averaged is None:
                self._averaged = copy.deepcopy(self.model).eval()
            state.ema["model"].copy_to(self._averaged)
            for mine, other in zip(self._averaged.buffers(), self.model.buffers(), strict=True):
                mine.copy_(other)
            distance = self.distance(self._averaged)
            self.measured.append((seen, distance))
            done = self.balance.watch(distance, self.settings)
        if done:
            self.tell(f"after {seen:,} pictures: {done}")


def _size(model: VQAutoencoderConfig) -> int:
    """Codes of a configuration, of one stage."""
    quantizer = model.quantizer
    if isinstance(quantizer, FSQConfig):
        product = 1
        for levels in quantizer.levels:
            product *= levels
        return product
    if isinstance(quantizer, LFQConfig):
        return int(2**quantizer.bits)
    stage = quantizer.stage if isinstance(quantizer, ResidualQuantizerConfig) else quantizer
    return stage.codes
