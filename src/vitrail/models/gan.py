"""Generators and discriminators: DCGAN (arXiv:1511.06434) and BigGAN's kind (arXiv:1809.11096).

A generator draws (B, 3, S, S) in [-1, 1] from :class:`~vitrail.models.gan_noise.Latents` and classes. A
class is a number (B,) or a mixture (B, classes) of weights, which is how one class turns into another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.models.gan_layers import (
    AffineBatchNorm,
    ConditionalBatchNorm,
    SelfAttention,
    batch_spread,
    convolve_doubled,
    convolve_halved,
    halve,
    orthogonal_init,
    spectral,
)
from vitrail.models.gan_noise import Latents, NoiseInjection, draw_latents, shaped
from vitrail.recipe.gan import BigGANConfig, DCGANConfig, Distribution, GANDiscriminatorConfig

__all__ = [
    "BigGANDiscriminator",
    "BigGANGenerator",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Discriminator",
    "Generator",
    "build_discriminator",
]

BOTTOM = 4  # pixels a side where a generator begins and a discriminator ends


class Generator(nn.Module):
    """What both generators share: latents, truncation, layer noise, classes. Subclasses draw."""

    def __init__(self, config: DCGANConfig | BigGANConfig) -> None:
        super().__init__()
        self.config = config
        self.noise = nn.ModuleList(NoiseInjection(config.noise_init) for _ in config.noise_sizes)
        self.embedding = nn.Embedding(config.classes, config.class_width) if config.classes else None

    @property
    def noise_sizes(self) -> tuple[int, ...]:
        """Side in pixels of each layer's noise, in the order of :class:`Latents`."""
        return self.config.noise_sizes

    def draw_latents(self, count: int, generator: torch.Generator) -> Latents:
        """Draw what ``count`` pictures come from, standard normal, on the generator's device."""
        return draw_latents(count, self.config.latent, self.noise_sizes, generator)

    def forward(
        self,
        latents: Latents,
        classes: Tensor | None = None,
        *,
        truncation: float | None = None,
        noise_strength: float | Sequence[float] = 1.0,
        noise_distribution: Distribution | None = None,
    ) -> Tensor:
        """Return pictures (B, 3, S, S) in [-1, 1].

        Parameters
        ----------
        classes: (B,) int64, or (B, classes) weights; None only for a generator without classes.
        truncation: largest size of a latent's numbers; smaller is more typical and less varied.
        noise_strength: factor on every layer's learned noise, or one for each layer; 0 switches it off.
        noise_distribution: of the layer noise, if another than the generator was trained with.

        Raises :class:`InputError` for values that do not fit the generator.
        """
        config = self.config
        strengths = (
            [float(noise_strength)] * len(self.noise)
            if isinstance(noise_strength, int | float)
            else [float(value) for value in noise_strength]
        )
        if len(strengths) != len(self.noise) or len(latents.noise) != len(self.noise):
            raise InputError(
                f"noise for {len(latents.noise)} layers at {len(strengths)} strengths; the generator has "
                f"{len(self.noise)} layers with noise"
            )
        z = shaped(latents.z, config.latent_distribution, truncation)
        kind = noise_distribution or config.noise_distribution
        noise = [
            shaped(layer, kind) * strength for layer, strength in zip(latents.noise, strengths, strict=True)
        ]
        drawn = torch.tanh(self.draw(z, self._class_vector(classes, len(z)), noise).float())
        return drawn.expand(-1, 3, -1, -1) if config.channels == 1 else drawn

    def draw(self, z: Tensor, classes: Tensor | None, noise: Sequence[Tensor]) -> Tensor:
        """Return the picture before its last squashing, (B, channels, S, S)."""
        raise NotImplementedError

    def _class_vector(self, classes: Tensor | None, count: int) -> Tensor | None:
        if (classes is None) != (self.embedding is None):
            have = f"{self.config.classes} classes" if self.config.classes else "no classes"
            raise InputError(
                f"the generator has {have}; {'give them' if self.config.classes else 'give none'}"
            )
        if classes is None or self.embedding is None:
            return None
        if len(classes) != count:
            raise InputError(f"{len(classes)} classes were given for {count} latents")
        if classes.ndim == 1:
            vector: Tensor = self.embedding(classes)
            return vector
        return classes.to(self.embedding.weight) @ self.embedding.weight

    def _with_noise(self, block: int, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return self.noise[block](x, noise[block]) if block < len(self.noise) else x


class DCGANGenerator(Generator):
    """Transposed convolutions with batch normalisation; a class's vector is put beside the latent."""

    config: DCGANConfig

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__(config)
        first = config.latent + (config.class_width if config.classes else 0)
        widths = [config.width_at(BOTTOM), *(config.width_at(size) for size in config.sizes[:-1])]
        self.start = nn.ConvTranspose2d(first, widths[0], BOTTOM, bias=False)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=False)
            for inner, outer in pairwise(widths)
        )
        self.last = nn.ConvTranspose2d(widths[-1], config.channels, 4, stride=2, padding=1)
        self.norms = nn.ModuleList(AffineBatchNorm(width) for width in widths)
        _dcgan_init(self)

    def draw(self, z: Tensor, classes: Tensor | None, noise: Sequence[Tensor]) -> Tensor:
        z = z if classes is None else torch.cat((z, classes), dim=1)
        x = functional.relu(self.norms[0](self.start(z[:, :, None, None])))
        for block, up in enumerate(self.ups):
            x = functional.relu(self.norms[block + 1](self._with_noise(block, up(x), noise)))
        result: Tensor = self.last(x)
        return result


class BigGANGenerator(Generator):
    """Residual blocks under a shared class vector, each with a part of the latent of its own."""

    config: BigGANConfig

    def __init__(self, config: BigGANConfig) -> None:
        super().__init__(config)
        # The first part feeds the linear layer; without a hierarchy it is all there is.
        parts = len(config.sizes) + 1 if config.hierarchical else 1
        share, rest = divmod(config.latent, parts)
        self.parts = [share + rest, *([share] * (parts - 1))]
        condition = (config.class_width if config.classes else 0) + (share if parts > 1 else 0)
        widths = [config.width_at(BOTTOM), *(config.width_at(size) for size in config.sizes)]
        self.start = nn.Linear(self.parts[0], widths[0] * BOTTOM**2)
        self.blocks = nn.ModuleList(UpBlock(inner, outer, condition) for inner, outer in pairwise(widths))
        self.attention = SelfAttention(config.width_at(config.attention)) if config.attention else None
        self.norm = AffineBatchNorm(widths[-1])
        self.last = nn.Conv2d(widths[-1], config.channels, 3, padding=1)
        orthogonal_init(self)
        if config.spectral_norm:
            _bound(self, nn.Conv2d, nn.Linear)

    def draw(self, z: Tensor, classes: Tensor | None, noise: Sequence[Tensor]) -> Tensor:
        first, *chunks = torch.split(z, self.parts, dim=1)
        x = self.start(first).view(len(z), -1, BOTTOM, BOTTOM)
        for index, block in enumerate(self.blocks):
            own = [chunks[index]] if chunks else []
            known = [*own, *([classes] if classes is not None else [])]
            x = block(x, torch.cat(known, dim=1) if known else None)
            x = self._with_noise(index, x, noise)
            if self.attention is not None and x.shape[-1] == self.config.attention:
                x = self.attention(x)
        result: Tensor = self.last(functional.relu(self.norm(x)))
        return result


class UpBlock(nn.Module):
    """Residual block (B, C, H, W) -> (B, C', 2H, 2W) (BigGAN, figure 15b); condition (B, W) or None."""

    def __init__(self, inner: int, outer: int, condition: int) -> None:
        super().__init__()
        self.conditional = condition > 0
        self.norm1: nn.Module
        self.norm2: nn.Module
        if self.conditional:
            self.norm1 = ConditionalBatchNorm(inner, condition)
            self.norm2 = ConditionalBatchNorm(outer, condition)
        else:
            self.norm1, self.norm2 = AffineBatchNorm(inner), AffineBatchNorm(outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        known = (condition,) if self.conditional else ()
        hidden = convolve_doubled(self.conv1, functional.relu(self.norm1(x, *known)))
        hidden = self.conv2(functional.relu(self.norm2(hidden, *known)))
        # A 1x1 convolution and repeating pixels commute: the small picture is cheaper.
        result: Tensor = hidden + functional.interpolate(self.skip(x), scale_factor=2.0)
        return result


class Discriminator(nn.Module):
    """Judges pictures (B, 3, S, S) with their classes (B,); real ones score high, (B,).

    score = psi(phi(x)) + <embedding(class), phi(x)> (projection; Miyato & Koyama, arXiv:1802.05637, eq. 3).
    Subclasses say what phi is.
    """

    def __init__(self, config: DCGANConfig | BigGANConfig, settings: GANDiscriminatorConfig) -> None:
        super().__init__()
        self.config, self.settings = config, settings
        self.norm_kind = settings.normalisation
        # Channels as in the generator, which mirrors: width at the full size, doubled at every halving.
        self.widths = [
            min(settings.max_width, settings.width * 2**step) for step in range(len(config.sizes) + 1)
        ]
        self.score = nn.Linear(self.widths[-1], 1)
        self.embedding = nn.Embedding(config.classes, self.widths[-1]) if config.classes else None

    def features(self, x: Tensor) -> Tensor:
        """Return phi, (B, width), of x (B, channels, S, S)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, classes: Tensor | None = None) -> Tensor:
        x = pixels.mean(1, keepdim=True) if self.config.channels == 1 else pixels
        phi = self.features(x)
        score = self.score(phi)[:, 0]
        if self.embedding is not None:
            if classes is None:
                raise InputError(f"the discriminator has {self.config.classes} classes; give them")
            score = score + (self.embedding(classes) * phi).sum(1)
        result: Tensor = score
        return result


class DCGANDiscriminator(Discriminator):
    """Strided convolutions and leaky ReLUs; batch or spectral normalisation."""

    def __init__(self, config: DCGANConfig | BigGANConfig, settings: GANDiscriminatorConfig) -> None:
        super().__init__(config, settings)
        chain = [config.channels, *self.widths[1:]]
        batch = self.norm_kind == "batch"
        self.downs = nn.ModuleList(
            nn.Conv2d(inner, outer, 4, stride=2, padding=1, bias=not (batch and index > 0))
            for index, (inner, outer) in enumerate(pairwise(chain))
        )
        # Not on the first layer, as the paper says.
        self.norms = nn.ModuleList(AffineBatchNorm(width) for width in chain[2:]) if batch else None
        self.last = nn.Conv2d(self.widths[-1] + int(settings.spread), self.widths[-1], BOTTOM)
        if self.norm_kind == "none":
            _scale_kept_init(self)
        else:
            _dcgan_init(self)
        if self.norm_kind == "spectral":
            _bound(self, nn.Conv2d, nn.Linear, nn.Embedding)

    def features(self, x: Tensor) -> Tensor:
        for index, down in enumerate(self.downs):
            x = down(x)
            if self.norms is not None and index > 0:
                x = self.norms[index - 1](x)
            x = functional.leaky_relu(x, 0.2)
        if self.settings.spread:
            x = batch_spread(x)
        return functional.leaky_relu(self.last(x), 0.2).flatten(1)


class BigGANDiscriminator(Discriminator):
    """Residual blocks down to 4 pixels a side, one more, then a sum over places."""

    def __init__(self, config: DCGANConfig | BigGANConfig, settings: GANDiscriminatorConfig) -> None:
        super().__init__(config, settings)
        chain = [config.channels, *self.widths[1:]]
        batch = self.norm_kind == "batch"
        self.blocks = nn.ModuleList(
            DownBlock(inner, outer, first=index == 0, batch=batch)
            for index, (inner, outer) in enumerate(pairwise(chain))
        )
        at = settings.attention
        widths = dict(zip((size // 2 for size in reversed(config.sizes)), self.widths[1:], strict=True))
        self.attention = SelfAttention(widths[at]) if at else None
        self.last = DownBlock(
            self.widths[-1] + int(settings.spread), self.widths[-1], first=False, batch=batch, down=False
        )
        orthogonal_init(self)
        if self.norm_kind == "spectral":
            _bound(self, nn.Conv2d, nn.Linear, nn.Embedding)

    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            if self.attention is not None and x.shape[-1] == self.settings.attention:
                x = self.attention(x)
        if self.settings.spread:
            x = batch_spread(x)
        return functional.relu(self.last(x)).sum((2, 3))


class DownBlock(nn.Module):
    """Residual block (B, C, H, W) -> (B, C', H/2, W/2) (BigGAN, figure 15c); the first one takes pixels."""

    def __init__(self, inner: int, outer: int, *, first: bool, batch: bool, down: bool = True) -> None:
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer or down else None
        self.norm1 = AffineBatchNorm(inner) if batch and not first else None
        self.norm2 = AffineBatchNorm(outer) if batch else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.norm1 is None else self.norm1(x)
        hidden = self.conv1(hidden if self.first else functional.relu(hidden))
        hidden = hidden if self.norm2 is None else self.norm2(hidden)
        hidden = functional.relu(hidden)
        hidden = convolve_halved(self.conv2, hidden) if self.down else self.conv2(hidden)
        # Averaging commutes with the 1x1 convolution; before it, it is cheaper.
        short = halve(x) if self.down else x
        result: Tensor = hidden + (short if self.skip is None else self.skip(short))
        return result


def build_discriminator(
    config: DCGANConfig | BigGANConfig, settings: GANDiscriminatorConfig
) -> Discriminator:
    """Return the discriminator that goes with the generator of ``config``."""
    kinds: dict[str, type[Discriminator]] = {"dcgan": DCGANDiscriminator, "biggan": BigGANDiscriminator}
    return kinds[config.kind](config, settings)


def _dcgan_init(network: nn.Module) -> None:
    """Normal weights of deviation 0.02, gains of 1 (arXiv:1511.06434, section 4); embeddings of unit size."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _scale_kept_init(network: nn.Module) -> None:
    """Normal weights that keep the size of what passes (He et al., arXiv:1502.01852, eq. 15, slope 0.2).

    With DCGAN's own 0.02 and no normalisation, a narrow discriminator's logits begin ten to a hundred times
    smaller than its pictures' contrast, and so does what it tells the generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, 0.2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, module.embedding_dim**-0.5)


def _bound(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Put a spectral norm on every layer of these kinds."""
    for module in list(network.modules()):
        if isinstance(module, kinds):
            spectral(module)
