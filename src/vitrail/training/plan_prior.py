"""What token prior recipes train: one transformer over the codes of a frozen tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.data.emoji_bank import STYLES
from vitrail.errors import ArtifactError, InputError
from vitrail.models import registry
from vitrail.models.autoencoders import VQAutoencoder
from vitrail.models.token_readers import CachedReader, MaskedReader
from vitrail.models.token_transformer import TokenTransformer
from vitrail.recipe.priors import PriorRecipe
from vitrail.runtime import autocast, cpu_generator
from vitrail.samplers.tokens import UNKNOWN, sample_autoregressive, sample_maskgit
from vitrail.store import artifacts
from vitrail.training.loop import Phase
from vitrail.training.objectives import TextEncoder
from vitrail.training.optim import adamw, trainable
from vitrail.training.plan import Measure, Plan, Setting
from vitrail.training.plan_diffusion import called, style_names
from vitrail.training.sources import Data
from vitrail.training.token_objectives import (
    held_out_canvas_likelihood,
    held_out_likelihood,
    read_conditions,
    token_canvas_loss,
    token_loss,
)

__all__ = ["load_tokenizer", "plan_prior"]

#: How sample grids are drawn while a prior is trained.
GRID_STEPS, GRID_GUIDANCE, GRID_CHOICE = 12, 3.0, 4.5
GRID_COUNT = 16


def load_tokenizer(source: str) -> tuple[VQAutoencoder, Path]:
    """Return the frozen tokenizer called ``source`` (a model folder, or a name) and its folder.

    Raises :class:`ArtifactError` if there is none, or it is a model of another kind.
    """
    folder = artifacts.find(source)
    artifact = artifacts.load(folder)
    if artifact.kind != "vq_autoencoder":
        raise ArtifactError(
            f"tokenizer {artifact.name} is of kind {artifact.kind}; a prior needs a vq_autoencoder"
        )
    network = registry.build(artifact.kind, artifact.config)
    artifact.fill(network)
    assert isinstance(network, VQAutoencoder)
    return network.eval().requires_grad_(False), folder


def plan_prior(setting: Setting[PriorRecipe]) -> Plan:
    """Return the plan of a prior: cross-entropy of codes that the frozen tokenizer makes on the way.

    Raises :class:`InputError` if tokenizer and recipe do not fit, or a text encoder is missing.
    """
    recipe, device = setting.recipe, setting.device
    config = recipe.model
    if config.text and setting.encoder is None:
        raise InputError("a prior that reads text needs a text encoder")
    encoder = setting.encoder if config.text else None
    tokenizer, folder = load_tokenizer(recipe.tokenizer.source)
    tokenizer.to(device)
    if tokenizer.codebook_size != config.codes:
        raise InputError(
            f"the tokenizer has {tokenizer.codebook_size} codes, the recipe {config.codes}; "
            f"set model.codes={tokenizer.codebook_size}"
        )
    side = recipe.data.size // tokenizer.latent.downsample
    if side != config.rows or recipe.data.size % tokenizer.latent.downsample:
        raise InputError(
            f"pictures of {recipe.data.size} px are {side} x {side} codes of this tokenizer, each for "
            f"{tokenizer.latent.downsample} px; set model.rows={side} and model.columns={side}"
        )
    model = registry.build(config.kind, config).to(device)
    assert isinstance(model, TokenTransformer)
    canvas = model.canvas if recipe.objective.trains == "canvas" else None
    if canvas is not None:
        loss = token_canvas_loss(model, tokenizer, encoder, device)
    else:
        if model.canvas is not None:
            model.canvas.requires_grad_(False)
        loss = token_loss(called(model, recipe.optim), model, tokenizer, encoder, recipe.objective, device)
    trained = trainable(model if canvas is None else canvas)

    def measure(data: Data) -> Measure | None:
        if data.held_out is None:
            return None
        batches = list(data.held_out(recipe.run.held_out_images))
        if canvas is not None:
            return held_out_canvas_likelihood(model, tokenizer, encoder, batches, device)
        return held_out_likelihood(
            model, tokenizer, encoder, batches, device, recipe.run.seed, recipe.optim.precision
        )

    def pictures(data: Data) -> Callable[[nn.Module], Tensor]:
        prompts = list(recipe.run.sample_prompts) or [""] * GRID_COUNT

        def draw(network: nn.Module) -> Tensor:
            with autocast(device, recipe.optim.precision):
                return _drawn(network, tokenizer, encoder, prompts, device)

        return draw

    def files(data: Data | None) -> Mapping[str, str | bytes | Path]:
        found: dict[str, str | bytes | Path] = {"tokenizer": folder}
        if config.styles and data is not None:
            emoji = config.styles == len(STYLES) or not config.styles < len(data.styles)
            names = style_names(data.styles if emoji else data.styles[: config.styles], config.styles)
            found["styles.json"] = json.dumps(names)
        return found

    return Plan(
        modules={"model": model},
        optimizers={"model": adamw(trained, recipe.optim)},
        phases=lambda data: [Phase("model", trained, loss)],
        measure=measure,
        pictures=pictures,
        shown={"nats": "nats"},
        files=files,
    )


def _drawn(
    network: nn.Module,
    tokenizer: VQAutoencoder,
    encoder: TextEncoder | None,
    prompts: list[str],
    device: torch.device,
) -> Tensor:
    """Draw one picture a prompt with seeds from 0; without prompts, styles take turns."""
    assert isinstance(network, TokenTransformer)
    config, count = network.config, len(prompts)
    numbers = torch.arange(count)
    styles = torch.zeros(count, dtype=torch.long) if any(prompts) else 1 + numbers % max(1, config.styles)
    wanted = read_conditions(network, encoder, prompts, styles, device)
    # One call for both sides: their words must be padded to one length.
    both = read_conditions(network, encoder, [*prompts, *[""] * count], styles.repeat(2), device)
    known = torch.full((count, config.rows, config.columns), UNKNOWN, device=device)
    generators = [cpu_generator(seed) for seed in range(count)]
    guidance = GRID_GUIDANCE if encoder is not None and any(prompts) else 1.0
    conditions = both if guidance != 1.0 else wanted
    if config.mode == "masked":
        codes = sample_maskgit(
            MaskedReader(network, conditions),
            known,
            generators,
            steps=GRID_STEPS,
            choice_temperature=GRID_CHOICE,
            guidance=guidance,
        )
    else:
        codes = sample_autoregressive(CachedReader(network, conditions), known, generators, guidance=guidance)
    return tokenizer.decode_codes(codes)
