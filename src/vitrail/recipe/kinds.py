"""Every kind of recipe, told apart by the word after ``kind``."""

from __future__ import annotations

from typing import TypeAlias

from vitrail.recipe.adversarial import AutoencoderRecipe
from vitrail.recipe.diffusion import TextToImageRecipe, UpsamplerRecipe
from vitrail.recipe.gan import GANRecipe
from vitrail.recipe.priors import PriorRecipe

__all__ = ["KINDS", "Recipe"]

Recipe: TypeAlias = TextToImageRecipe | UpsamplerRecipe | AutoencoderRecipe | GANRecipe | PriorRecipe

KINDS: dict[str, type[Recipe]] = {
    cls.model_fields["kind"].default: cls
    for cls in (TextToImageRecipe, UpsamplerRecipe, AutoencoderRecipe, GANRecipe, PriorRecipe)
}
