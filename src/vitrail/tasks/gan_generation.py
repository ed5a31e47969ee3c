"""Pictures from a GAN or a plain VAE in one pass: words choose classes, seeds choose latents.

Picture ``i`` draws its latent from its own generator, seeded ``seed + i``, and its class by that seed too, so
it does not depend on how many others are made beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vitrail.codes_schema import WalkRequest
from vitrail.data.classes import ClassName
from vitrail.errors import ArtifactError, InputError, NonFiniteError
from vitrail.images import to_pil
from vitrail.models.autoencoders import VAE
from vitrail.models.gan import Generator
from vitrail.models.gan_noise import Latents, draw_latents, shaped, slerp
from vitrail.recipe.gan import Distribution
from vitrail.runtime import cpu_generator
from vitrail.schema import (
    Done,
    Event,
    PictureDone,
    Progress,
    ResolvedTextToImage,
    SamplingDefaults,
    TextToImageRequest,
)
from vitrail.store import artifacts
from vitrail.tasks.class_prompts import class_names, read_classes
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, open_network
from vitrail.tasks.records import record_of

__all__ = [
    "KINDS",
    "GANModel",
    "gan_generation",
    "gan_walk",
    "generate_from_latents",
    "latents",
    "load_gan",
    "slerp",
]

KINDS = frozenset({"dcgan", "biggan", "vae"})
"""Kinds of model that draw a picture from a latent in one pass."""

BATCH = 16

_FOR_OTHERS = (
    "negative_prompt",
    "style",
    "steps",
    "cfg_scale",
    "cfg_rescale",
    "guidance_interval",
    "sampler",
    "schedule",
    "shift",
    "temperature",
    "top_k",
    "top_p",
    "choice_temperature",
)


@dataclass(frozen=True)
class GANModel:
    """A generator, or a VAE's decoder, on a device; ``classes`` name what it draws, () for no classes."""

    name: str
    sha256: str
    network: Generator | VAE
    classes: tuple[ClassName, ...]
    defaults: SamplingDefaults

    @property
    def side(self) -> int:
        """Side in pixels of its pictures."""
        return self.network.config.image_size


_LOADED: WeakKeyDictionary[Loader, tuple[tuple[Path, int], GANModel]] = WeakKeyDictionary()


def load_gan(loader: Loader, name: str) -> GANModel:
    """Return the model called ``name``; the last one stays in memory.

    Raises :class:`ArtifactError` for a model that is not there, damaged, or of another kind than
    :data:`KINDS` (:meth:`Loader.kind` tells which it is).
    """
    folder = artifacts.find(name)
    key = artifacts.stamp(folder)
    kept = _LOADED.get(loader)
    if kept is not None and kept[0] == key:
        return kept[1]
    artifact = artifacts.load(folder)
    if artifact.kind not in KINDS:
        raise ArtifactError(f"model {artifact.name} is of kind {artifact.kind}; it has no latents of a GAN")
    network = open_network(artifact)
    assert isinstance(network, Generator | VAE)
    side = network.config.image_size
    model = GANModel(
        name=artifact.name,
        sha256=artifact.sha256,
        network=network.to(loader.device),
        classes=class_names(folder, artifact.manifest),
        defaults=artifact.manifest.sampling
        or SamplingDefaults(width=side, height=side, steps=1, cfg_scale=1.0),
    )
    _LOADED[loader] = (key, model)
    return model


def latents(model: GANModel, seeds: Sequence[int]) -> Latents:
    """Draw the latent of each picture from its own CPU generator; standard normal whatever the model's own
    distribution is, so that :func:`slerp` and sums are right.
    """
    network = model.network
    drawn = []
    for seed in seeds:
        source = cpu_generator(seed)
        if isinstance(network, Generator):
            drawn.append(network.draw_latents(1, source))
        else:
            drawn.append(draw_latents(1, network.config.embed_dim, (), source))
    return Latents.stack(drawn)


def generate_from_latents(
    model: GANModel,
    where: Latents,
    weights: Tensor | None = None,
    *,
    truncation: float | None = None,
    noise_strength: float | Sequence[float] = 1.0,
    noise_distribution: Distribution | None = None,
) -> Tensor:
    """Return pictures (B, 3, S, S) in [-1, 1] on the CPU.

    ``weights`` (B, classes): how much of each class; None only for a model without classes. The rest as for
    :meth:`vitrail.models.gan.Generator.forward`; a VAE has no layer noise.

    Raises :class:`NonFiniteError` where the network gives no numbers, :class:`InputError` for what does not
    fit the model.
    """
    network = model.network
    device = next(network.parameters()).device
    where = where.to(device)
    pictures: Tensor
    with torch.inference_mode():
        if isinstance(network, Generator):
            pictures = network(
                where,
                None if weights is None else weights.to(device),
                truncation=truncation,
                noise_strength=noise_strength,
                noise_distribution=noise_distribution,
            )
        else:
            z = shaped(where.z, "gaussian", truncation)
            made = network.decode(network.latent.outward(z[:, :, None, None]))
            pictures = made.clamp(-1.0, 1.0).expand(-1, 3, -1, -1)
    pictures = pictures.float().cpu()
    if not bool(torch.isfinite(pictures).all()):
        raise NonFiniteError(f"model {model.name} gave no finite picture; its training may have diverged")
    return pictures


def gan_generation(request: TextToImageRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Make the pictures of ``request``; see :data:`vitrail.tasks.core.Task`.

    Raises :class:`InputError` for words that name no class (with those there are), a size that the model
    does not draw or a setting that means nothing to it, and what :func:`load_gan` raises.
    """
    started = time.monotonic()
    context.check()
    with context.timed("load"):
        model = load_gan(loader, request.model)
    _check_settings(request, model)
    resolved = request.resolve(model.defaults)
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, model.name)})
    if (resolved.width, resolved.height) != (model.side, model.side):
        raise InputError(
            f"size {resolved.width}x{resolved.height} is not possible; model {model.name} makes "
            f"{model.side}x{model.side}"
        )
    rows, english = read_classes(resolved.prompt, model.classes, model.name) if model.classes else ([], "")
    understood = english if english and english != resolved.prompt.strip().lower() else None
    hints = () if model.classes else (f"model {model.name} reads no words: the seed alone decides",)
    batch = context.batch_size or (1 if context.device.type == "cpu" else BATCH)
    for start in range(0, resolved.n, batch):
        context.check()
        indices = range(start, min(start + batch, resolved.n))
        with context.timed("decode"):
            pictures = to_pil(_draw(resolved, model, rows, [resolved.seed + i for i in indices]))
        context.report(Progress(step=indices.stop, steps=resolved.n))
        for index, picture in zip(indices, pictures, strict=True):
            record = record_of(
                resolved,
                index,
                context,
                model_name=model.name,
                model_sha256=model.sha256,
                understood_as=understood,
                hints=hints,
            )
            yield PictureDone(index=index, record=record, picture=picture)
    yield Done(seconds=time.monotonic() - started, hints=hints)


def gan_walk(request: WalkRequest, loader: Loader, context: Context) -> Iterator[Event]:
    """Walk through the latents and classes of a GAN's or VAE's stops (words and seeds) on great circles.

    Frame k lies evenly on the way; a class fades into the next. With ``weights`` one picture of their sum is
    made, its latent brought back to the length of a typical one. Raises :class:`InputError` for a stop that
    is a picture: this model cannot find the latent of one.
    """
    started = time.monotonic()
    context.check()
    with context.timed("load"):
        model = load_gan(loader, request.model)
    if any(stop.picture is not None for stop in request.stops):
        raise InputError(f"model {model.name} has no encoder: give words and seeds, not pictures, as stops")
    resolved = request.resolve()
    resolved = resolved.model_copy(update={"model": artifacts.public_name(request.model, model.name)})
    stops: list[tuple[Latents, Tensor | None]] = []
    for stop in resolved.stops:
        assert stop.seed is not None
        rows = read_classes(stop.prompt or "", model.classes, model.name)[0] if model.classes else []
        stops.append((latents(model, [stop.seed]), _weights(rows, [stop.seed])))
    frames = _sum(stops, resolved.weights) if resolved.weights is not None else None
    legs = [*stops, stops[0]] if resolved.loop and resolved.weights is None else stops
    for index in range(resolved.n):
        context.check()
        if frames is None:
            way = index * (len(legs) - 1) / (resolved.n if resolved.loop else resolved.n - 1)
            leg = min(int(way), len(legs) - 2)
            where, classes = _between(legs[leg], legs[leg + 1], way - leg)
        else:
            where, classes = frames
        with context.timed("decode"):
            picture = to_pil(generate_from_latents(model, where, classes))[0]
        context.report(Progress(step=index + 1, steps=resolved.n))
        record = record_of(resolved, index, context, model_name=model.name, model_sha256=model.sha256)
        yield PictureDone(index=index, record=record, picture=picture)
    yield Done(seconds=time.monotonic() - started)


def _draw(
    request: ResolvedTextToImage, model: GANModel, rows: Sequence[Sequence[float]], seeds: Sequence[int]
) -> Tensor:
    return generate_from_latents(
        model,
        latents(model, seeds),
        _weights(rows, seeds),
        truncation=request.truncation,
        noise_strength=request.noise_strength,
        noise_distribution=request.noise,
    )


def _weights(rows: Sequence[Sequence[float]], seeds: Sequence[int]) -> Tensor | None:
    """Weights (B, classes) of pictures with these seeds, which take turns in ``rows``."""
    return torch.tensor([rows[seed % len(rows)] for seed in seeds]) if rows else None


def _between(
    first: tuple[Latents, Tensor | None], second: tuple[Latents, Tensor | None], share: float
) -> tuple[Latents, Tensor | None]:
    where = slerp(first[0], second[0], share)
    if first[1] is None or second[1] is None:
        return where, None
    return where, torch.lerp(first[1], second[1], share)


def _sum(
    stops: Sequence[tuple[Latents, Tensor | None]], factors: Sequence[float]
) -> tuple[Latents, Tensor | None]:
    """Weighted sum of stops, each layer at the length of a typical latent; classes add up likewise."""

    def added(parts: Sequence[Tensor]) -> Tensor:
        total = sum((factor * part for factor, part in zip(factors, parts, strict=True)), torch.zeros(()))
        assert isinstance(total, Tensor)
        length = total.flatten(1).norm(dim=1).clamp_min(1e-6)
        wanted = float(total[0].numel()) ** 0.5
        scaled: Tensor = total * (wanted / length).view(-1, *([1] * (total.ndim - 1)))
        return scaled

    noise = tuple(added(layer) for layer in zip(*(where.noise for where, _ in stops), strict=True))
    where = Latents(added([stop[0].z for stop in stops]), noise)
    weights = [stop[1] for stop in stops]
    if any(weight is None for weight in weights):
        return where, None
    mixed = sum(
        (factor * weight for factor, weight in zip(factors, weights, strict=True) if weight is not None),
        torch.zeros(()),
    )
    assert isinstance(mixed, Tensor)
    return where, mixed


def _check_settings(request: TextToImageRequest, model: GANModel) -> None:
    """Raise :class:`InputError` for a setting that was given and means nothing to this kind of model."""
    for name in _FOR_OTHERS:
        if getattr(request, name) not in (None, "", getattr(model.defaults, name, None)):
            raise InputError(f"{name} is not for model {model.name}, which draws in one pass; leave it out")
    if isinstance(model.network, VAE) and (request.noise or request.noise_strength not in (None, 1.0)):
        raise InputError(f"model {model.name} has no noise in its layers; leave noise and its strength out")
