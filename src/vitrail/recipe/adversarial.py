"""Recipes of autoencoders: how well they must reconstruct, and the adversary that sharpens them.

Staged training is one recipe: an autoencoder alone, then a discriminator that learns beside it, then one
whose word counts more and more. All points in time are counted in pictures::

    kind = "autoencoder"
    [model]
    kind = "vq_autoencoder"
    [objective]
    perceptual = "lpips"
    [adversary]                 # without this table there is none
    start_images = 100_000
    [adversary.discriminator]
    kind = "patch"
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from vitrail.recipe.autoencoders import (
    DiscriminatorConfig,
    KLAutoencoderConfig,
    PatchDiscriminatorConfig,
    VAEConfig,
    VQAutoencoderConfig,
)
from vitrail.recipe.sections import CommonRecipe, Section

__all__ = [
    "AdversarialObjective",
    "AutoencoderConfig",
    "AutoencoderRecipe",
    "HealthSection",
    "ReconstructionObjective",
]

AutoencoderConfig: TypeAlias = Annotated[
    VQAutoencoderConfig | KLAutoencoderConfig | VAEConfig, Field(discriminator="kind")
]
Weight = Annotated[float, Field(ge=0.0, le=1e4)]
Images = Annotated[int, Field(ge=0, le=10**12)]


class ReconstructionObjective(Section):
    """What makes a reconstruction good; each term is a mean over its values, see
    :mod:`vitrail.training.reconstruction`.
    """

    l1: Weight = Field(default=1.0, description="weight of the absolute error of pixels in [-1, 1]")
    l2: Weight = Field(default=0.0, description="weight of their squared error")
    edge: Weight = Field(default=0.0, description="weight of the absolute error of Sobel edges")
    perceptual: Literal["lpips", "efficientnet", "none"] = Field(
        default="lpips",
        description="network that compares pictures; lpips: VGG16, efficientnet: faster, weaker",
    )
    perceptual_weight: Weight = Field(default=1.0, description="weight of its distance")
    perceptual_share: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="share of each batch's pictures that it compares, to save time",
    )
    codebook_weight: Weight = Field(default=1.0, description="weight of the quantizer's own loss")
    kl_weight: Weight = Field(
        default=1e-6,
        description="weight of the divergence in nats per value of the picture: 1 is a VAE's bound with "
        "pixels of unit scale, 1e-6 a latent space for diffusion",
    )
    kl_warmup_images: Images = Field(
        default=0, description="pictures over which kl_weight rises from 0, against a collapse"
    )


class AdversarialObjective(Section):
    """A discriminator beside the autoencoder, see :mod:`vitrail.training.adversarial`.

    The discriminator begins to learn ``lead_images`` before ``start_images``; from there its weight in the
    autoencoder's loss rises smoothly over ``ramp_images``. taming's way is ``lead_images = 0``,
    ``ramp_images = 0``, ``weight = 0.8``, ``lecam_weight = 0``, ``augment = []``, ``guard = false``.
    """

    discriminator: DiscriminatorConfig = PatchDiscriminatorConfig()
    loss: Literal["hinge", "vanilla", "wgan_gp", "relativistic"] = "hinge"
    weight: Weight = Field(
        default=0.2, description="of the adversarial loss; if adaptive, of its gradient over the other's"
    )
    adaptive: bool = Field(
        default=True, description="weigh by the two gradients' lengths at the decoder's last layer (taming)"
    )
    adaptive_max: float = Field(
        default=1e4, gt=0.0, le=1e6, description="largest ratio of these lengths that is used"
    )
    start_images: Images = Field(default=100_000, description="pictures before the discriminator counts")
    ramp_images: Images = Field(default=100_000, description="pictures over which its weight rises")
    lead_images: Images = Field(
        default=20_000, description="pictures before start_images from which it learns, not counting yet"
    )
    lr_share: float = Field(default=1.0, gt=0.0, le=100.0, description="its learning rate over optim.lr")
    penalty: Literal["auto", "none", "r1", "r1_r2", "wgan_gp"] = Field(
        default="auto",
        description="on the discriminator's gradient; auto: r1_r2 for relativistic, wgan_gp for wgan_gp, "
        "none otherwise",
    )
    penalty_weight: Weight = Field(default=1.0, description="of the penalty; WGAN-GP's own is 10")
    penalty_every: int = Field(
        default=4, ge=1, le=1000, description="steps between penalties, which then weigh as many times more"
    )
    gap: tuple[float, float] | None = Field(
        default=None,
        description="keep the discriminator's mean logit of real minus reconstructed pictures in this band "
        "by changing the penalty's weight",
    )
    lecam_weight: Weight = Field(default=0.001, description="of LeCAM's pull of logits to the other kind's")
    lecam_half_life_images: int = Field(
        default=5000, ge=1, le=10**9, description="half-life of the mean logits that LeCAM uses"
    )
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = Field(
        default=("colour", "translation"),
        description="what the discriminator's pictures go through, differentiably (DiffAugment)",
    )
    guard: bool = Field(
        default=True, description="halve the weight while held-out quality is worse than before the start"
    )
    guard_tolerance: float = Field(
        default=0.01, gt=0.0, le=1.0, description="how much worse, as a share, before the guard steps in"
    )
    guard_every_images: int = Field(
        default=5000, ge=1, le=10**9, description="pictures between the guard's measurements"
    )
    guard_images: int = Field(default=64, ge=1, le=10_000, description="held-out pictures that it measures")

    @property
    def penalised(self) -> Literal["none", "r1", "r1_r2", "wgan_gp"]:
        """The penalty that is used."""
        if self.penalty != "auto":
            return self.penalty
        return {"relativistic": "r1_r2", "wgan_gp": "wgan_gp"}.get(self.loss, "none")  # type: ignore[return-value]

    @property
    def first_image(self) -> int:
        """Pictures seen when the discriminator begins to learn."""
        return max(0, self.start_images - self.lead_images)

    @model_validator(mode="after")
    def _fits(self) -> AdversarialObjective:
        if self.loss == "wgan_gp" and self.penalised == "none":
            raise ValueError("loss wgan_gp has no meaning without a penalty; set penalty to auto")
        if self.gap is not None and not self.gap[0] < self.gap[1]:
            raise ValueError(f"gap {list(self.gap)} must be a lower and an upper end")
        if self.gap is not None and self.penalised == "none":
            raise ValueError("gap is kept through the penalty's weight; set penalty to r1 or r1_r2")
        return self


class HealthSection(Section):
    """When a run says that something is going wrong, see :mod:`vitrail.training.health`."""

    after_images: Images = Field(default=20_000, description="pictures before the first alarm")
    window_images: int = Field(
        default=8192, ge=1, le=10**9, description="pictures over which figures are averaged and codes counted"
    )
    codes_used: float = Field(
        default=0.25, ge=0.0, le=1.0, description="alarm below this share of codes in use; 0: never"
    )


class AutoencoderRecipe(CommonRecipe):
    """An autoencoder: VQGAN, KL-VAE or VAE, with or without an adversary."""

    kind: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderConfig = VQAutoencoderConfig()
    objective: ReconstructionObjective = ReconstructionObjective()
    adversary: AdversarialObjective | None = None
    health: HealthSection = HealthSection()

    @model_validator(mode="after")
    def _sizes(self) -> AutoencoderRecipe:
        if isinstance(self.model, VAEConfig):
            if self.data.size != self.model.image_size:
                raise ValueError(
                    f"data.size {self.data.size} must equal model.image_size {self.model.image_size}"
                )
        elif self.data.size % self.model.network.downsample:
            raise ValueError(
                f"data.size {self.data.size} must be a multiple of the network's downsample "
                f"{self.model.network.downsample}"
            )
        if self.objective.perceptual == "lpips" and self.data.size < 16:
            raise ValueError(f"data.size {self.data.size} is too small for LPIPS, which needs 16 pixels")
        return self
