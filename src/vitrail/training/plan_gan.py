"""What GAN recipes train: a discriminator, then a generator against it, in every step.

The pictures that the discriminator has just judged are the ones the generator is then corrected on, before
the eyes of the discriminator as it is after its own step (the way of DCGAN's authors); each made picture has
the class of the real one beside it. Forward passes change no buffer: spectral norms move on within the
optimizer's step, batch statistics are gathered when the averaged generator is to be used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitrail.models import registry
from vitrail.models.gan import Discriminator, Generator, build_discriminator
from vitrail.models.gan_layers import advance_spectral, orthogonal_penalty, standing_statistics
from vitrail.recipe.gan import GANRecipe
from vitrail.training.adversarial import LOSSES, Balance, gradient_penalty, lecam, zero_centred_penalty
from vitrail.training.augment import draw_augmentation
from vitrail.training.loop import LossOutput, Mean, Phase
from vitrail.training.optim import adamw, trainable
from vitrail.training.plan import Plan, Setting
from vitrail.training.sources import Data

__all__ = ["GANPlayers", "plan_gan", "settle_generator"]

#: Pictures of a sample grid, eight a row.
SHOWN = 64
#: Pictures a batch when statistics are gathered.
STANDING_BATCH = 64
#: Seed of the samples and of the standing statistics: the same ones in every run.
SHOW_SEED = 321


class LabelledBatch(Protocol):
    """Pictures (B, 3, H, W) in [-1, 1] and their classes (B,), None where there are none."""

    @property
    def pixels(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor | None: ...


def plan_gan(setting: Setting[GANRecipe]) -> Plan:
    """Return the plan of a GAN: phases "discriminator" and "model"."""
    recipe, device = setting.recipe, setting.device
    generator = registry.build(recipe.model.kind, recipe.model).to(device)
    assert isinstance(generator, Generator)
    discriminator = build_discriminator(recipe.model, recipe.discriminator).to(device)
    balance = Balance(device)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, network in (("model", generator), ("discriminator", discriminator)):
        optimizers[name] = adamw(trainable(network), recipe.optim)
        _follow_spectral(optimizers[name], network)
    for group in optimizers["discriminator"].param_groups:
        group["rate_share"] = recipe.objective.lr_share
    called: Any = torch.compile(generator) if recipe.optim.compile else generator
    players = GANPlayers(recipe, called, generator, discriminator, balance, device)

    def phases(data: Data) -> Sequence[Phase[Any]]:
        return [
            Phase("discriminator", trainable(discriminator), players.discriminator_loss),
            Phase(
                "model",
                trainable(generator),
                players.generator_loss,
                every=recipe.objective.discriminator_steps,
            ),
        ]

    def pictures(data: Data) -> Callable[[nn.Module], Tensor]:
        def draw(network: nn.Module) -> Tensor:
            assert isinstance(network, Generator)
            latents = network.draw_latents(SHOWN, torch.Generator().manual_seed(SHOW_SEED)).to(device)
            count = recipe.model.classes
            labels = torch.tensor(list(islice(cycle(range(count)), SHOWN)), device=device) if count else None
            made: Tensor = network(latents, labels)
            return made.float().cpu()

        return draw

    def settle(network: nn.Module) -> None:
        assert isinstance(network, Generator)
        settle_generator(network, recipe.objective.standing_batches, device)

    def files(data: Data | None) -> Mapping[str, str | bytes | Path]:
        if data is None or not recipe.model.classes:
            return {}
        names = [{"en": name.en, "zh": name.zh, "also": list(name.also)} for name in data.classes]
        return {"classes.json": json.dumps(names, ensure_ascii=False, indent=1)}

    return Plan(
        modules={"model": generator, "discriminator": discriminator, "balance": balance},
        optimizers=optimizers,
        phases=phases,
        pictures=pictures,
        settle=settle,
        files=files,
        shown={"disc/real": "D real", "disc/made": "D made"},
    )


def settle_generator(generator: Generator, batches: int, device: torch.device) -> None:
    """Give an averaged generator its own batch statistics, over ``batches`` of 64 latents, always the same
    ones; classes are drawn evenly. Leaves it in evaluation mode.

    Raises :class:`NonFiniteError` where the statistics are not finite.
    """
    source = torch.Generator().manual_seed(SHOW_SEED)
    count = generator.config.classes

    def run(index: int) -> None:
        latents = generator.draw_latents(STANDING_BATCH, source).to(device)
        labels = torch.randint(0, count, (STANDING_BATCH,), generator=source) if count else None
        generator(latents, None if labels is None else labels.to(device))

    advance_spectral(generator, 4)  # the averaged weights are other ones than those it followed
    standing_statistics(generator, batches, run)


def _follow_spectral(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    """Move the spectral norms on whenever the optimizer has moved the weights, within its own step."""

    def follow(*_: object) -> None:
        advance_spectral(network)

    optimizer.register_step_post_hook(follow)


class _Shared(NamedTuple):
    """What the discriminator's phase leaves to the generator's, which follows on the same batch."""

    batch: object
    labels: Tensor | None
    made: Tensor


class GANPlayers:
    """The losses of both phases.

    Parameters
    ----------
    called: the generator as it is called (perhaps compiled). generator: the generator itself.
    balance: what must survive a checkpoint (LeCAM's means, steps of the discriminator).
    """

    def __init__(
        self,
        recipe: GANRecipe,
        called: Callable[..., Tensor],
        generator: Generator,
        discriminator: Discriminator,
        balance: Balance,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.called = called
        self.generator = generator
        self.discriminator = discriminator
        self.balance = balance
        self.device = device
        self._shared: _Shared | None = None

    def discriminator_loss(self, batch: LabelledBatch, generator: torch.Generator) -> LossOutput:
        """Return the discriminator's loss on real pictures and as many made ones of the same classes."""
        objective, balance = self.recipe.objective, self.balance
        pixels, labels = self._given(batch)
        # The generator's step needs the graph of these pictures; where it has none, nothing does.
        follows = int(balance.turns) % objective.discriminator_steps == 0
        with torch.set_grad_enabled(follows), parametrize.cached():
            made = self._made(len(pixels), labels, generator)
        self._shared = _Shared(batch, labels, made) if follows else None
        real, fake = self._seen(pixels, generator), self._seen(made.detach(), generator)
        with parametrize.cached():
            logits_real = self.discriminator(real, labels).float()
            logits_made = self.discriminator(fake, labels).float()
        value = LOSSES[objective.loss].discriminator(logits_real, logits_made)
        one = value.new_ones(())
        figures = {
            "disc/real": Mean(logits_real.detach().mean(), one),
            "disc/made": Mean(logits_made.detach().mean(), one),
            # Share of pictures on the right side of the mean of all logits; 0.5 is guessing.
            "disc/right": Mean(_told_apart(logits_real.detach(), logits_made.detach()), one),
        }
        turn = int(balance.turns)
        if objective.lecam_weight > 0 and turn > 0:
            pull = lecam(logits_real, logits_made, balance.mean_real, balance.mean_made)
            value = value + objective.lecam_weight * pull
            figures["disc/lecam"] = Mean(pull.detach(), one)
        if objective.penalised != "none" and turn % objective.penalty_every == 0:
            penalty = self._penalty(real, fake, labels, generator)
            value = value + objective.penalty_weight * objective.penalty_every * penalty
            figures["disc/penalty"] = Mean(penalty.detach(), one)
        balance.follow(logits_real, logits_made, len(pixels), objective.lecam_half_life_images)
        return LossOutput(value, figures)

    def generator_loss(self, batch: LabelledBatch, generator: torch.Generator) -> LossOutput:
        """Return the generator's loss on what it made for the discriminator's phase."""
        objective, shared = self.recipe.objective, self._shared
        self._shared = None
        if shared is None or shared.batch is not batch:
            raise AssertionError("the generator's phase must follow the discriminator's on the same batch")
        loss = LOSSES[objective.loss]
        with parametrize.cached():
            logits = self.discriminator(self._seen(shared.made, generator), shared.labels).float()
            against = logits
            if loss.paired:
                pixels = self._given(batch)[0]
                against = self.discriminator(self._seen(pixels, generator), shared.labels).float()
        value = loss.maker(against, logits)
        one = value.new_ones(())
        figures = {"loss": Mean(value.detach(), one)}
        if objective.orthogonal > 0:
            penalty = orthogonal_penalty(self.generator, objective.orthogonal)
            value = value + penalty
            figures["orthogonal"] = Mean(penalty.detach(), one)
        return LossOutput(value, figures)

    def _given(self, batch: LabelledBatch) -> tuple[Tensor, Tensor | None]:
        pixels = batch.pixels.to(self.device, torch.float32, non_blocking=True)
        if not self.recipe.model.classes:
            return pixels, None
        assert batch.labels is not None, "the data were opened without classes"
        return pixels, batch.labels.to(self.device)

    def _made(self, count: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        made = self.called(self.generator.draw_latents(count, generator).to(self.device), labels)
        return made.float()

    def _seen(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Return pictures as the discriminator gets to see them: augmented, each by itself."""
        augment = self.recipe.objective.augment
        if not augment:
            return pictures
        height, width = pictures.shape[2:]
        return draw_augmentation(augment, len(pictures), (height, width), generator, self.device)(pictures)

    def _penalty(
        self, real: Tensor, made: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        def judge(pictures: Tensor) -> Tensor:
            logits: Tensor = self.discriminator(pictures, labels)
            return logits

        kind = self.recipe.objective.penalised
        if kind == "wgan_gp":
            return gradient_penalty(judge, real, made, generator)
        penalty = zero_centred_penalty(judge, real, generator)
        return penalty + zero_centred_penalty(judge, made, generator) if kind == "r1_r2" else penalty


def _told_apart(real: Tensor, made: Tensor) -> Tensor:
    middle = 0.5 * (real.mean() + made.mean())
    return 0.5 * ((real > middle).float().mean() + (made < middle).float().mean())
