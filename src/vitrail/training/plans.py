"""Every plan by the kind of its recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitrail.errors import InputError
from vitrail.training.plan import Plan, Setting
from vitrail.training.plan_autoencoder import plan_autoencoder
from vitrail.training.plan_diffusion import plan_text_to_image, plan_upsampler
from vitrail.training.plan_gan import plan_gan
from vitrail.training.plan_prior import plan_prior

__all__ = ["PLANS", "make_plan"]

PLANS: dict[str, Callable[[Setting[Any]], Plan]] = {
    "text_to_image": plan_text_to_image,
    "upsampler": plan_upsampler,
    "autoencoder": plan_autoencoder,
    "gan": plan_gan,
    "token_prior": plan_prior,
}


def make_plan(setting: Setting[Any]) -> Plan:
    """Return what ``setting.recipe`` trains; :class:`InputError` for a kind without a plan."""
    kind = setting.recipe.kind
    if kind not in PLANS:
        raise InputError(f"recipes of kind {kind} cannot be trained by a run; allowed: {', '.join(PLANS)}")
    return PLANS[kind](setting)
