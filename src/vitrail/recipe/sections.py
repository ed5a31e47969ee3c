"""The tables that every recipe has: data, optimizer, run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["MAX_CROP", "CommonRecipe", "DataSection", "OptimSection", "RunSection", "Section", "Share"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]

MAX_CROP = 0.5
"""Largest share of each side that a random crop may cut off; beyond it a caption no longer fits."""


class Section(BaseModel):
    """Base of every table of a recipe: unknown keys and non-finite numbers are refused; it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class DataSection(Section):
    """Where the pictures come from and how they are varied."""

    source: str = Field(
        default="emoji", min_length=1, max_length=4096, description="'emoji', or a folder of pictures"
    )
    size: int = Field(default=64, ge=8, le=2048, description="pixels a side")
    batch_size: int = Field(default=64, ge=1, le=8192, description="pictures a step")
    synthetic_share: float = Field(
        default=0.4, ge=0.0, le=0.5, description="share of composed pictures (emoji)"
    )
    caption_drop: Share = Field(default=0.1, description="share of captions left out, for guidance")
    style_drop: Share = Field(default=0.1, description="share of styles left out")
    flip: Share = Field(
        default=0.0, description="share of pictures mirrored left to right, where that is harmless"
    )
    jitter: Share = Field(
        default=0.0, description="share of pictures made a little smaller and moved (emoji only)"
    )
    crop: float = Field(
        default=0.0,
        ge=0.0,
        le=MAX_CROP,
        description="largest share of each side cut off at random (folders only)",
    )
    buckets: bool = Field(
        default=False, description="batches of one aspect ratio each instead of square crops (folders)"
    )
    cache: bool = Field(
        default=True, description="keep checked and resized pictures of a folder on disk for the next start"
    )
    prefetch: int = Field(
        default=2, ge=0, le=64, description="batches prepared ahead by a background thread; 0: none"
    )


class OptimSection(Section):
    """AdamW, its schedule, the moving average of the weights, and the length of the run.

    Exactly one of ``until_images`` and ``time_budget_minutes`` is set. Under a time budget the learning rate
    follows the elapsed share of the budget (time spent before an interruption included).
    """

    lr: float = Field(default=5e-4, gt=0.0, le=1.0, description="learning rate after the warm-up")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.98), description="AdamW's averaging constants")
    weight_decay: float = Field(
        default=0.01, ge=0.0, le=10.0, description="AdamW's weight decay, on matrices only"
    )
    warmup_images: int = Field(
        default=10_000, ge=0, le=10**10, description="pictures over which the rate rises from 0"
    )
    decay: Literal["none", "cosine", "linear"] = Field(
        default="cosine", description="how the rate falls to final_share"
    )
    final_share: Share = Field(default=0.02, description="learning rate at the end, as a share of lr")
    ema_half_life_images: int = Field(
        default=50_000, ge=1, le=10**10, description="half-life of the averaged weights"
    )
    ema_ramp: float = Field(
        default=0.1, gt=0.0, le=1.0, description="half-life never above this share of the pictures seen"
    )
    grad_clip: float = Field(default=1.0, gt=0.0, le=1e6, description="largest norm of the gradient")
    until_images: int | None = Field(
        default=None, ge=1, le=10**12, description="stop after this many pictures"
    )
    time_budget_minutes: float | None = Field(
        default=None, gt=0.0, le=10**6, description="stop after this much time"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = Field(
        default=False, description="torch.compile the network; slow to start, faster afterwards"
    )

    @model_validator(mode="after")
    def _one_length(self) -> OptimSection:
        if (self.until_images is None) == (self.time_budget_minutes is None):
            raise ValueError("set exactly one of until_images and time_budget_minutes")
        if max(self.betas) >= 1.0:
            raise ValueError(f"betas {self.betas} must be below 1")
        return self


class RunSection(Section):
    """Seed, checkpoints, logs and samples of a run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_every_seconds: float = Field(
        default=90.0, ge=0.0, le=86_400.0, description="0 checkpoints after every step"
    )
    keep: int = Field(
        default=2, ge=1, le=1000, description="checkpoints kept; at least one that verifies always stays"
    )
    log_every_seconds: float = Field(default=10.0, ge=0.0, le=86_400.0, description="0 logs every step")
    sample_every_images: int = Field(
        default=0, ge=0, le=10**10, description="pictures between sample grids; 0: none"
    )
    sample_prompts: tuple[str, ...] = Field(default=(), max_length=256)
    held_out_every_images: int = Field(
        default=0, ge=0, le=10**10, description="pictures between held-out losses; 0: none"
    )
    held_out_images: int = Field(default=256, ge=1, le=100_000, description="held-out pictures used for it")
    warm_start: str | None = Field(
        default=None, description="model folder or run folder to take the first weights from"
    )
    tensorboard: Literal["auto", "on", "off"] = Field(
        default="auto", description="auto: where it is installed"
    )


class CommonRecipe(Section):
    """What every recipe has: a name, data, an optimizer, a run, and the scores that it reached.

    A kind adds ``kind``, ``model`` and what its training needs.
    """

    #: Whether its networks read captions through the frozen text encoder.
    reads_text: ClassVar[bool] = False

    name: str = Field(default="run", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataSection = DataSection()
    optim: OptimSection
    run: RunSection = RunSection()
    expected: dict[str, float] = Field(default_factory=dict, description="scores that this preset reached")
