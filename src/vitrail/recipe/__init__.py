"""Training recipes: what to train, on what, how long. TOML in and out; no torch is imported here.

A recipe is one of the models below, told apart by ``kind``. Lengths are counted in pictures, so a change of
the batch size moves nothing. A recipe reads like this; the classes hold the defaults of what is left out::

    kind = "text_to_image"
    [data]
    source = "emoji"
    batch_size = 64
    [model]
    kind = "shell_dit"
    [optim]
    until_images = 2_000_000

``--set optim.lr=2e-4`` on the command line goes through :func:`load_recipe`'s ``overrides``.
"""

from __future__ import annotations

from vitrail.recipe.adversarial import (
    AdversarialObjective,
    AutoencoderRecipe,
    HealthSection,
    ReconstructionObjective,
)
from vitrail.recipe.diffusion import (
    FlowObjective,
    ShellDiTConfig,
    TextToImageRecipe,
    UpsamplerConfig,
    UpsamplerObjective,
    UpsamplerRecipe,
)
from vitrail.recipe.files import (
    SHIPPED,
    dump_recipe,
    find_recipe,
    load_recipe,
    parse_recipe,
    recipe_differences,
)
from vitrail.recipe.gan import BigGANConfig, DCGANConfig, GANDiscriminatorConfig, GANObjective, GANRecipe
from vitrail.recipe.kinds import KINDS, Recipe
from vitrail.recipe.priors import PriorRecipe, TokenizerSection, TokenObjective, TokenTransformerConfig
from vitrail.recipe.sections import CommonRecipe, DataSection, OptimSection, RunSection, Section

__all__ = [
    "KINDS",
    "SHIPPED",
    "AdversarialObjective",
    "AutoencoderRecipe",
    "BigGANConfig",
    "CommonRecipe",
    "DCGANConfig",
    "DataSection",
    "FlowObjective",
    "GANDiscriminatorConfig",
    "GANObjective",
    "GANRecipe",
    "HealthSection",
    "OptimSection",
    "PriorRecipe",
    "Recipe",
    "ReconstructionObjective",
    "RunSection",
    "Section",
    "ShellDiTConfig",
    "TextToImageRecipe",
    "TokenObjective",
    "TokenTransformerConfig",
    "TokenizerSection",
    "UpsamplerConfig",
    "UpsamplerObjective",
    "UpsamplerRecipe",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_differences",
]
