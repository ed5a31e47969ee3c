"""Recipes of generative adversarial networks: DCGAN and a class-conditional network in BigGAN's manner."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from vitrail.recipe.sections import CommonRecipe, DataSection, OptimSection, Section, Share

__all__ = [
    "BigGANConfig",
    "DCGANConfig",
    "Distribution",
    "GANDataSection",
    "GANDiscriminatorConfig",
    "GANObjective",
    "GANRecipe",
    "GeneratorConfig",
]

Distribution: TypeAlias = Literal["gaussian", "uniform", "laplace", "student_t"]
"""Distributions of latents and layer noise, all of mean 0 and variance 1; Student's t has 4 degrees."""

#: Pictures are drawn from this many pixels a side upwards.
BOTTOM = 4


class GeneratorConfig(Section):
    """What the two generators share."""

    image_size: int = Field(default=32, ge=16, le=256, description="pixels a side, a power of two")
    channels: Literal[1, 3] = Field(
        default=3, description="colours the network draws; 1 is grey, shown as three equal channels"
    )
    classes: int = Field(default=0, ge=0, le=10_000, description="classes to choose from; 0: none")
    width: int = Field(default=64, ge=4, le=1024, description="channels at the full size; doubled below it")
    max_width: int = Field(default=512, ge=4, le=4096, description="most channels at any size")
    latent_distribution: Distribution = "gaussian"
    noise_distribution: Distribution = "gaussian"
    noise_layers: int = Field(
        default=0, ge=-1, le=16, description="sizes, from the smallest, that get noise of their own; -1: all"
    )
    noise_init: float = Field(
        default=0.1, ge=0.0, le=2.0, description="strength of the layer noise before training"
    )

    @model_validator(mode="after")
    def _power_of_two(self) -> GeneratorConfig:
        if self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size {self.image_size} must be a power of two")
        if self.max_width < self.width:
            raise ValueError(f"max_width {self.max_width} is below width {self.width}")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of what the blocks put out, smallest first; the last is ``image_size``."""
        sizes = [2 * BOTTOM]
        while sizes[-1] < self.image_size:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)

    @property
    def noise_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the layer noise, smallest first."""
        return self.sizes if self.noise_layers < 0 else self.sizes[: self.noise_layers]

    def width_at(self, size: int) -> int:
        """Return the channels of a picture of ``size`` pixels a side inside the network."""
        return min(self.max_width, self.width * self.image_size // size)


class DCGANConfig(GeneratorConfig):
    """Shape of :class:`vitrail.models.gan.DCGANGenerator` (Radford et al., arXiv:1511.06434)."""

    kind: Literal["dcgan"] = "dcgan"
    latent: int = Field(default=100, ge=2, le=4096, description="numbers that a picture is drawn from")
    class_width: int = Field(default=32, ge=1, le=1024, description="width of a class's vector beside them")

    @property
    def noise_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the layer noise: never the last layer's, where it would be grain on the picture
        that a young discriminator takes for texture.
        """
        return super().noise_sizes[: len(self.sizes) - 1]


class BigGANConfig(GeneratorConfig):
    """Shape of :class:`vitrail.models.gan.BigGANGenerator` (Brock et al., arXiv:1809.11096)."""

    kind: Literal["biggan"] = "biggan"
    latent: int = Field(default=120, ge=2, le=4096, description="numbers that a picture is drawn from")
    hierarchical: bool = Field(
        default=True, description="each block sees a part of the latent of its own, beside the class"
    )
    class_width: int = Field(default=128, ge=1, le=1024, description="width of the shared class vector")
    attention: int = Field(
        default=0, ge=0, le=128, description="size in pixels at which positions attend to each other; 0: none"
    )
    spectral_norm: bool = Field(default=True, description="bound each layer of the generator by 1")

    @model_validator(mode="after")
    def _fits(self) -> BigGANConfig:
        if self.attention and self.attention not in self.sizes:
            allowed = ", ".join(str(size) for size in (0, *self.sizes))
            raise ValueError(f"attention {self.attention} is no size of the network; allowed: {allowed}")
        if self.hierarchical and self.latent < len(self.sizes) + 1:
            raise ValueError(f"latent {self.latent} cannot be split into {len(self.sizes) + 1} parts")
        return self


class GANDiscriminatorConfig(Section):
    """The discriminator: strided convolutions for a DCGAN, residual blocks for a BigGAN.

    Where the generator has classes it judges picture and class together by projection.
    """

    width: int = Field(default=64, ge=4, le=1024, description="channels at the full size; doubled below it")
    max_width: int = Field(default=512, ge=4, le=4096, description="most channels at any size")
    normalisation: Literal["spectral", "batch", "none"] = "spectral"
    attention: int = Field(
        default=0, ge=0, le=128, description="size in pixels with self-attention (biggan only); 0: none"
    )
    spread: bool = Field(
        default=False, description="show it how much the pictures of a batch differ, against collapse"
    )

    @model_validator(mode="after")
    def _widths(self) -> GANDiscriminatorConfig:
        if self.max_width < self.width:
            raise ValueError(f"max_width {self.max_width} is below width {self.width}")
        return self


class GANDataSection(DataSection):
    """Pictures with classes."""

    synthetic_share: float = Field(default=0.0, ge=0.0, le=0.5)
    style_drop: Share = Field(default=0.0, description="0: a class is never left out")
    classes: Literal["auto", "style", "group", "none"] = Field(
        default="auto",
        description="what a class is; auto: the data's labels, styles for emoji and folders",
    )


class GANObjective(Section):
    """What generator and discriminator are trained to do; see :mod:`vitrail.training.plan_gan`."""

    loss: Literal["hinge", "vanilla", "wgan_gp", "relativistic"] = "hinge"
    lr_share: float = Field(
        default=1.0, gt=0.0, le=100.0, description="learning rate of the discriminator over optim.lr"
    )
    discriminator_steps: int = Field(
        default=1, ge=1, le=100, description="steps of the discriminator for one of the generator"
    )
    penalty: Literal["auto", "none", "r1", "r1_r2", "wgan_gp"] = Field(
        default="auto",
        description="on the discriminator's gradient; auto: r1_r2 for relativistic, wgan_gp for wgan_gp, "
        "none otherwise",
    )
    penalty_weight: float = Field(
        default=1.0, ge=0.0, le=1e4, description="of the penalty; WGAN-GP's own is 10"
    )
    penalty_every: int = Field(
        default=4, ge=1, le=1000, description="steps between penalties, which then weigh as many times more"
    )
    lecam_weight: float = Field(
        default=0.0, ge=0.0, le=1e4, description="of LeCAM's pull of logits to the other kind's"
    )
    lecam_half_life_images: int = Field(
        default=5000, ge=1, le=10**9, description="half-life of the mean logits that LeCAM uses"
    )
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = Field(
        default=(),
        max_length=3,
        description="what the discriminator's pictures go through, differentiably (DiffAugment)",
    )
    orthogonal: float = Field(
        default=0.0, ge=0.0, le=1.0, description="weight of BigGAN's orthogonal regulariser on the generator"
    )
    standing_batches: int = Field(
        default=32, ge=1, le=4096, description="batches that the averaged generator's statistics come from"
    )

    @property
    def penalised(self) -> Literal["none", "r1", "r1_r2", "wgan_gp"]:
        """The penalty that is used."""
        if self.penalty != "auto":
            return self.penalty
        if self.loss == "relativistic":
            return "r1_r2"
        return "wgan_gp" if self.loss == "wgan_gp" else "none"


class GANRecipe(CommonRecipe):
    """A generator against a discriminator; no text encoder: words choose classes."""

    kind: Literal["gan"] = "gan"
    data: GANDataSection = GANDataSection(size=32)
    model: DCGANConfig | BigGANConfig = Field(default=DCGANConfig(), discriminator="kind")
    discriminator: GANDiscriminatorConfig = GANDiscriminatorConfig()
    objective: GANObjective = GANObjective()
    optim: OptimSection

    @model_validator(mode="after")
    def _fits(self) -> GANRecipe:
        if self.data.size != self.model.image_size:
            raise ValueError(
                f"data.size {self.data.size} must equal model.image_size {self.model.image_size}"
            )
        if self.data.buckets:
            raise ValueError("data.buckets needs a model of free size; a GAN draws squares: set it to false")
        if self.data.style_drop and self.model.classes:
            raise ValueError("data.style_drop leaves classes out; set it to 0")
        if self.data.synthetic_share:
            raise ValueError("data.synthetic_share composes pictures of several things, which have no class")
        if self.discriminator.attention and self.model.kind != "biggan":
            raise ValueError("discriminator.attention is for model.kind biggan; set it to 0")
        if self.discriminator.attention and self.discriminator.attention not in (
            size // 2 for size in self.model.sizes
        ):
            allowed = ", ".join(str(size // 2) for size in self.model.sizes)
            raise ValueError(
                f"discriminator.attention {self.discriminator.attention} is no size it sees: {allowed}"
            )
        if self.objective.penalised != "none" and self.discriminator.normalisation == "batch":
            raise ValueError(
                "gradient penalties are a picture's own; discriminator.normalisation batch mixes pictures: "
                "use spectral or none"
            )
        if self.objective.loss == "wgan_gp" and self.objective.penalised == "none":
            raise ValueError("objective.loss wgan_gp has no meaning without a penalty; set penalty to auto")
        return self
