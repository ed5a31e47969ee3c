"""Every kind of recipe, told apart by the word after ``kind``."""

from __future__ import annotations

from typing import TypeAlias

from vitrail.recipe.diffusion import TextToImageRecipe, UpsamplerRecipe

__all__ = ["KINDS", "Recipe"]

Recipe: TypeAlias = TextToImageRecipe | UpsamplerRecipe

KINDS: dict[str, type[Recipe]] = {
    cls.model_fields["kind"].default: cls for cls in (TextToImageRecipe, UpsamplerRecipe)
}
