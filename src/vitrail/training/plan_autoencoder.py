"""What autoencoder recipes train: the autoencoder, and from some picture on the discriminator beside it.

One forward pass of the autoencoder serves both players, and one of the discriminator on each batch of
pictures: the discriminator's phase goes on from what the autoencoder's phase left. The gradients of the two
sides are taken at the reconstruction, weighed there, and sent through the decoder once. The numbers are
those of taming's step (arXiv:2012.09841, eq. 6-7), which goes through the networks several times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.kernels.training import train_fast
from vitrail.models import registry
from vitrail.models.autoencoders import VQAutoencoder
from vitrail.models.discriminators import build_discriminator
from vitrail.models.latent import Posterior, Reconstruction
from vitrail.models.perceptual import load_efficientnet
from vitrail.models.quantizers import codebook_statistics
from vitrail.recipe.adversarial import AdversarialObjective, AutoencoderRecipe
from vitrail.recipe.autoencoders import FeatureDiscriminatorConfig
from vitrail.training.adversarial import (
    LOSSES,
    Balance,
    adaptive_weight,
    gradient_penalty,
    lecam,
    ramp,
    zero_centred_penalty,
)
from vitrail.training.augment import draw_augmentation
from vitrail.training.health import Guard, HealthWatch
from vitrail.training.loop import Hook, LossOutput, Mean, Phase
from vitrail.training.objectives import Pictures
from vitrail.training.optim import adamw, trainable
from vitrail.training.plan import Measure, Plan, Setting
from vitrail.training.reconstruction import (
    Perceptual,
    coloured,
    load_perceptual,
    psnr,
    reconstruction_loss,
)
from vitrail.training.sources import Data

__all__ = ["HeldOutQuality", "Players", "make_discriminator", "plan_autoencoder"]

#: Pictures of a sample grid: originals above their reconstructions.
SHOWN = 16


def plan_autoencoder(setting: Setting[AutoencoderRecipe]) -> Plan:
    """Return the plan of an autoencoder.

    Raises :class:`DataError` if the perceptual network is not on this machine.
    """
    recipe, device = setting.recipe, setting.device
    model = registry.build(recipe.model.kind, recipe.model).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu" and not recipe.optim.compile:
        train_fast(model)
    balance = Balance(device)
    modules: dict[str, nn.Module] = {"model": model, "balance": balance}
    optimizers: dict[str, torch.optim.Optimizer] = {"model": adamw(trainable(model), recipe.optim)}
    adversary, discriminator = recipe.adversary, None
    if adversary is not None:
        discriminator = modules["discriminator"] = make_discriminator(adversary, device)
        optimizer = adamw(trainable(discriminator), recipe.optim)
        for group in optimizer.param_groups:
            group["rate_share"] = adversary.lr_share
        optimizers["discriminator"] = optimizer
    perceptual = load_perceptual(recipe.objective, device)
    called: Any = torch.compile(model) if recipe.optim.compile else model
    players = Players(recipe, called, model, discriminator, balance, perceptual, device)
    watched: list[Hook] = [HealthWatch(recipe, setting.tell)]
    guard = None
    if adversary is not None and adversary.guard:
        guard = Guard(adversary, balance, model, setting.tell)
        watched.append(guard)

    def phases(data: Data) -> Sequence[Phase[Any]]:
        if guard is not None and adversary is not None:
            pictures = held_out_pictures(data, adversary.guard_images)
            guard.distance = HeldOutQuality(pictures, perceptual, device, recipe).distance
        both: list[Phase[Any]] = [Phase("model", trainable(model), players.model_loss)]
        if adversary is not None:
            critics = trainable(modules["discriminator"])
            both.append(Phase("discriminator", critics, players.discriminator_loss))
        return both

    def measure(data: Data) -> Measure | None:
        if data.held_out is None:
            return None
        pictures = held_out_pictures(data, recipe.run.held_out_images)
        return HeldOutQuality(pictures, perceptual, device, recipe)

    def pictures(data: Data) -> Callable[[nn.Module], Tensor]:
        originals = held_out_pictures(data, SHOWN)[:SHOWN]

        def draw(network: nn.Module) -> Tensor:
            made = network(originals.to(device)).x.float().cpu().clamp(-1.0, 1.0)
            pairs = zip(torch.split(originals, 8), torch.split(made, 8), strict=True)
            rows = torch.cat([part for pair in pairs for part in pair])
            return rows.expand(-1, 3, -1, -1)

        return draw

    shown = {"l1": "L1", "codes/used": "codes used", "disc/real": "D real", "disc/made": "D made"}
    return Plan(
        modules=modules,
        optimizers=optimizers,
        phases=phases,
        measure=measure,
        pictures=pictures,
        hooks=watched,
        shown=shown,
    )


def make_discriminator(settings: AdversarialObjective, device: torch.device) -> nn.Module:
    """Return the discriminator of a recipe, pictures (B, C, H, W) to logits.

    The frozen network under a projected one is no part of its state. Raises :class:`DataError` if that is
    not on this machine.
    """
    config = settings.discriminator
    if not isinstance(config, FeatureDiscriminatorConfig):
        patches: nn.Module = build_discriminator(config).to(device)
        patches = patches.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return patches
    network = load_efficientnet().to(device)
    levels = len(config.feature_channels)
    return build_discriminator(config, lambda x: network.features(coloured(x))[-levels:]).to(device)


@dataclass
class _Shared:
    """What the autoencoder's phase leaves to the discriminator's, which follows on the same batch."""

    batch: object
    real: Tensor  # changed by the augmentation, without a gradient
    made: Tensor  # the same, with the graph down to the reconstruction
    logits_real: Tensor | None
    logits_made: Tensor


class Players:
    """The losses of both phases.

    Parameters
    ----------
    recipe: of the run. called: the autoencoder as it is called (perhaps compiled). model: the autoencoder.
    discriminator: pictures -> logits, None without an adversary.
    balance: what must survive a checkpoint. perceptual: see :func:`load_perceptual`.
    """

    def __init__(
        self,
        recipe: AutoencoderRecipe,
        called: Callable[..., Reconstruction],
        model: nn.Module,
        discriminator: Callable[[Tensor], Tensor] | None,
        balance: Balance,
        perceptual: Perceptual | None,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.called = called
        self.model: Any = model
        self.discriminator = discriminator
        self.balance = balance
        self.perceptual = perceptual
        self.device = device
        self._shared: _Shared | None = None
        self._seen = 0  # pictures before the step in progress

    def model_loss(self, batch: Pictures, generator: torch.Generator) -> LossOutput:
        """Return the autoencoder's loss: reconstruction, latent, and the discriminator's word if it counts.

        Its value is the whole loss; its gradient goes through the reconstruction once.
        """
        objective, adversary = self.recipe.objective, self.recipe.adversary
        pixels = batch.pixels.to(self.device, torch.float32, non_blocking=True)
        self._seen = int(self.balance.images)
        self.balance.images += len(pixels)
        self._shared = None
        if isinstance(self.model, VQAutoencoder):
            self.model.set_progress(self._seen)
        made = self.called(pixels, generator)
        # Everything after the decoder hangs on this leaf, so that its gradient can be weighed part by part.
        leaf = made.x.detach().requires_grad_(True)
        errors, terms = reconstruction_loss(objective, self.perceptual, leaf, pixels)
        number = errors.new_tensor(float(len(pixels)))
        figures = {
            name: Mean(term.detach().sum(), term.new_tensor(float(len(term)))) for name, term in terms.items()
        }
        value = errors.mean()
        (direction,) = torch.autograd.grad(value, leaf)
        value = value.detach()
        latent = self._latent_loss(made, figures, number)
        if adversary is not None and self._seen >= adversary.first_image:
            weight, slope, adversarial = self._adversarial(
                adversary, batch, pixels, leaf, made.x, direction, generator, figures
            )
            direction = direction + weight * slope
            value = value + weight * adversarial
        # The scalar product has the gradient that is wanted, and is taken off again from the value.
        through = (made.x * direction).sum()
        total = value + latent + (through - through.detach())
        figures["loss"] = Mean(total.detach() * number, number)
        return LossOutput(total, figures)

    def discriminator_loss(self, batch: Pictures, generator: torch.Generator) -> LossOutput | None:
        """Return the discriminator's loss on what the autoencoder's phase made of the same batch; None
        before its first picture.
        """
        settings, shared, judge = self.recipe.adversary, self._shared, self.discriminator
        if settings is None or shared is None or judge is None:
            return None
        if shared.batch is not batch:
            raise AssertionError("the discriminator's phase must follow the model's on the same batch")
        self._shared = None
        balance = self.balance
        loss = LOSSES[settings.loss]
        real = judge(shared.real).float() if shared.logits_real is None else shared.logits_real
        made = shared.logits_made
        value = loss.discriminator(real, made)
        one = value.new_ones(())
        figures = {
            "disc/real": Mean(real.detach().mean(), one),
            "disc/made": Mean(made.detach().mean(), one),
            "disc/loss": Mean(value.detach(), one),
            # Share of pairs that it tells apart: a picture's logit above that of its reconstruction; a tie
            # is half right.
            "disc/right": Mean(0.5 + 0.5 * (real - made).detach().sign().mean(), one),
        }
        turn = int(balance.turns)
        if settings.lecam_weight > 0 and turn > 0:
            pull = lecam(real, made, balance.mean_real, balance.mean_made)
            value = value + settings.lecam_weight * pull
            figures["disc/lecam"] = Mean(pull.detach(), one)
        if settings.penalised != "none" and turn % settings.penalty_every == 0:
            penalty = self._penalty(settings, judge, shared, generator)
            weight = settings.penalty_weight * settings.penalty_every * balance.penalty_share
            value = value + weight * penalty
            figures["disc/penalty"] = Mean(penalty.detach(), one)
            figures["disc/penalty_weight"] = Mean(settings.penalty_weight * balance.penalty_share, one)
        balance.follow(real, made, len(shared.real), settings.lecam_half_life_images)
        if settings.gap is not None:
            balance.steer_penalty(settings.gap)
        return LossOutput(value, figures)

    def _latent_loss(self, made: Reconstruction, figures: dict[str, Mean], number: Tensor) -> Tensor:
        """Weighed loss of the latent, with its figures."""
        objective, latent = self.recipe.objective, made.latent
        if not isinstance(latent, Posterior):
            statistics = self.model.quantize.statistics
            one = torch.ones((), device=self.device)
            figures["codebook"] = Mean(latent.loss.detach(), one)
            figures["codes/used"] = Mean(torch.tensor(statistics.used), one)
            figures["codes/perplexity"] = Mean(torch.tensor(statistics.perplexity), one)
            return objective.codebook_weight * latent.loss
        nats = latent.kl()
        figures["kl"] = Mean(nats.detach().sum(), number)
        warm = objective.kl_warmup_images
        weight = objective.kl_weight * (min(1.0, self._seen / warm) if warm else 1.0)
        return weight * nats.mean() / made.x[0].numel()

    def _adversarial(
        self,
        settings: AdversarialObjective,
        batch: object,
        pixels: Tensor,
        leaf: Tensor,
        made: Tensor,
        direction: Tensor,
        generator: torch.Generator,
        figures: dict[str, Mean],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight, gradient at the reconstruction and value of the adversarial loss; leaves the pass
        through the discriminator to its own phase.
        """
        judge = self.discriminator
        assert judge is not None
        loss = LOSSES[settings.loss]
        height, width = pixels.shape[2:]
        change = draw_augmentation(settings.augment, len(pixels), (height, width), generator, self.device)
        real, changed = change(pixels), change(leaf)
        logits_made = judge(changed).float()
        logits_real = judge(real).float() if loss.paired else None
        self._shared = _Shared(batch, real, changed, logits_real, logits_made)
        counts = settings.weight * ramp(self._seen, settings.start_images, settings.ramp_images)
        if counts == 0.0:
            zero = torch.zeros((), device=self.device)
            return zero, torch.zeros_like(leaf), zero
        value = loss.maker(logits_made if logits_real is None else logits_real, logits_made)
        (slope,) = torch.autograd.grad(value, leaf, retain_graph=True)
        one = torch.ones((), device=self.device)
        weight = counts * self.balance.guard
        if settings.adaptive:
            last = self.model.last_layer
            (ours,) = torch.autograd.grad(made, last, direction, retain_graph=True)
            (theirs,) = torch.autograd.grad(made, last, slope, retain_graph=True)
            ratio = adaptive_weight(ours, theirs, settings.adaptive_max)
            figures["disc/adaptive_weight"] = Mean(ratio, one)
            weight = weight * ratio
        figures["disc/weight"] = Mean(weight, one)
        figures["disc/guard"] = Mean(self.balance.guard, one)
        figures["adversarial"] = Mean(value.detach(), one)
        return weight, slope, value.detach()

    def _penalty(
        self,
        settings: AdversarialObjective,
        judge: Callable[[Tensor], Tensor],
        shared: _Shared,
        generator: torch.Generator,
    ) -> Tensor:
        if settings.penalised == "wgan_gp":
            return gradient_penalty(judge, shared.real, shared.made, generator)
        penalty = zero_centred_penalty(judge, shared.real, generator)
        if settings.penalised == "r1_r2":
            penalty = penalty + zero_centred_penalty(judge, shared.made, generator)
        return penalty


def held_out_pictures(data: Data, count: int) -> Tensor:
    """Return up to ``count`` pictures never trained on (N, C, H, W); of a source without any, the first of
    its stream.
    """
    if data.held_out is not None:
        batches: list[Any] = list(data.held_out(count))
    else:
        batches = []
        stream = data.batches(0)
        for batch in stream:
            batches.append(batch)
            if sum(len(b.pixels) for b in batches) >= count:
                break
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    return torch.cat([batch.pixels for batch in batches])[:count]


class HeldOutQuality:
    """Measures an autoencoder on fixed pictures: a function of a network in evaluation mode -> figures.

    Figures: "held_out/psnr" (dB), "held_out/l1", "held_out/lpips" (or the perceptual network's name),
    "held_out/codes_used" (share) and "held_out/perplexity", or "held_out/kl" (nats a picture).
    """

    def __init__(
        self, pictures: Tensor, perceptual: Perceptual | None, device: torch.device, recipe: AutoencoderRecipe
    ) -> None:
        self.pictures = pictures
        self.perceptual = perceptual
        self.device = device
        self.name = recipe.objective.perceptual

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        totals: dict[str, float] = {}
        counts: Tensor | None = None
        for part in torch.split(self.pictures, 32):
            pixels = part.to(self.device, torch.float32)
            made: Reconstruction = network(pixels)
            terms = {"psnr": psnr(made.x, pixels), "l1": (made.x.float() - pixels).abs().mean(dim=(1, 2, 3))}
            if self.perceptual is not None:
                terms[self.name] = self.perceptual(made.x.float().clamp(-1.0, 1.0), pixels)
            if isinstance(made.latent, Posterior):
                terms["kl"] = made.latent.kl()
            else:
                size = int(network.codebook_size)  # type: ignore[arg-type]
                seen = torch.bincount(made.latent.codes.flatten(), minlength=size)
                counts = seen if counts is None else counts + seen
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + float(term.double().sum())
        figures = {f"held_out/{name}": total / len(self.pictures) for name, total in totals.items()}
        if counts is not None:
            statistics = codebook_statistics(counts)
            figures["held_out/codes_used"] = statistics.used
            figures["held_out/perplexity"] = statistics.perplexity
        return figures

    def distance(self, network: nn.Module) -> float:
        """The perceptual distance, or the mean absolute error where no network compares pictures."""
        figures = self(network)
        return figures[f"held_out/{self.name}" if self.perceptual is not None else "held_out/l1"]
