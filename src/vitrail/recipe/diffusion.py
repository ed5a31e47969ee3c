"""Recipes of the text-to-image network on pixels and of the upsampler: shapes, objectives, recipes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vitrail.recipe.sections import CommonRecipe, Section, Share

__all__ = [
    "FlowObjective",
    "ShellDiTConfig",
    "TextToImageRecipe",
    "UpsamplerConfig",
    "UpsamplerObjective",
    "UpsamplerRecipe",
]


class ShellDiTConfig(Section):
    """Shape of :class:`vitrail.models.shell_dit.ShellDiT`, the text-to-image network on pixels."""

    kind: Literal["shell_dit"] = "shell_dit"
    image_size: int = Field(default=64, ge=16, le=512, description="pixels a side")
    patch: int = Field(
        default=4, ge=1, le=16, description="pixels a side that the shell sees as one position"
    )
    shell_width: int = Field(
        default=128, ge=8, le=1024, multiple_of=8, description="channels of the convolutional shell"
    )
    shell_blocks: int = Field(
        default=2, ge=0, le=16, description="residual blocks on each side of the transformer"
    )
    width: int = Field(default=384, ge=8, le=4096, description="width of the transformer")
    depth: int = Field(default=6, ge=1, le=64, description="transformer blocks")
    heads: int = Field(default=6, ge=1, le=64, description="attention heads; must divide width")
    mlp_ratio: float = Field(
        default=4.0, ge=0.5, le=8.0, description="hidden width of the feed-forward layers over width"
    )
    text_width: int = Field(default=384, ge=8, le=4096, description="width of the text encoder's states")
    vocabulary: int = Field(
        default=0, ge=0, le=1_000_000, description="words; 0 takes the text encoder's own number"
    )
    word_width: int = Field(default=64, ge=1, le=1024, description="width of the small trainable word table")
    refiner_depth: int = Field(default=1, ge=0, le=16, description="transformer blocks over the words alone")
    styles: int = Field(
        default=7, ge=0, le=10_000, description="named styles; number 0 beside them means no style"
    )
    canvas_width: int = Field(
        default=0,
        ge=0,
        le=8192,
        description="width of the canvas, which sees the prompt as a whole; 0 for none",
    )
    canvas_depth: int = Field(default=3, ge=0, le=16, description="residual blocks of the canvas")
    canvas_channels: int = Field(
        default=32, ge=1, le=1024, description="values that the canvas gives to each picture token"
    )

    @model_validator(mode="after")
    def _divisible(self) -> ShellDiTConfig:
        if self.image_size % (2 * self.patch):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {2 * self.patch} (twice the patch)"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class UpsamplerConfig(Section):
    """Shape of :class:`vitrail.models.upsampler.Upsampler`, which makes pictures two or four times larger."""

    kind: Literal["upsampler"] = "upsampler"
    scale: Literal[2, 4] = 2
    width: int = Field(default=48, ge=8, le=512, description="channels")
    blocks: int = Field(default=6, ge=1, le=64, description="residual blocks")


class FlowObjective(Section):
    """Rectified flow with prediction of the clean picture; see :mod:`vitrail.training.objectives`."""

    kind: Literal["flow_x0"] = "flow_x0"
    logit_mean: float = Field(
        default=0.0, ge=-5.0, le=5.0, description="mean of logit(t); above 0 trains more on noise"
    )
    logit_std: float = Field(default=1.0, gt=0.0, le=5.0, description="standard deviation of logit(t)")
    trains: Literal["network", "canvas"] = Field(
        default="network",
        description="network: the denoiser, with its canvas fixed; canvas: the canvas alone, by mean square "
        "error, which comes first",
    )
    uniform_share: Share = Field(default=0.15, description="share of noise levels drawn evenly from [0, 1]")
    weight_clip: float = Field(
        default=10.0, ge=1.0, le=1e6, description="largest weight min(1/t^2, clip) of a picture"
    )


class UpsamplerObjective(Section):
    """L1 on pixels and on their differences; see :mod:`vitrail.training.objectives`."""

    kind: Literal["upsample_l1"] = "upsample_l1"
    edge_weight: float = Field(
        default=1.0, ge=0.0, le=100.0, description="weight of the loss on pixel differences"
    )
    noise: float = Field(
        default=0.02, ge=0.0, le=0.5, description="largest standard deviation of noise on the small picture"
    )
    passes: int = Field(
        default=1, ge=1, le=4, description="how often the network enlarges in a row, each size compared"
    )


class TextToImageRecipe(CommonRecipe):
    """A network that draws a picture for a caption."""

    reads_text: ClassVar[bool] = True

    kind: Literal["text_to_image"] = "text_to_image"
    model: ShellDiTConfig = ShellDiTConfig()
    objective: FlowObjective = FlowObjective()

    @model_validator(mode="after")
    def _sizes(self) -> TextToImageRecipe:
        if self.data.size != self.model.image_size:
            raise ValueError(
                f"data.size {self.data.size} must equal model.image_size {self.model.image_size}"
            )
        if self.objective.trains == "canvas" and not self.model.canvas_width:
            raise ValueError(
                'objective.trains "canvas" needs one: set model.canvas_width, for instance to 1024'
            )
        if self.data.buckets:
            raise ValueError(
                "data.buckets needs a model of free size; shell_dit draws squares: set it to false"
            )
        return self


class UpsamplerRecipe(CommonRecipe):
    """A network that makes small pictures larger; ``data.size`` is the size of the large ones."""

    kind: Literal["upsampler"] = "upsampler"
    model: UpsamplerConfig = UpsamplerConfig()
    objective: UpsamplerObjective = UpsamplerObjective()

    @model_validator(mode="after")
    def _sizes(self) -> UpsamplerRecipe:
        factor = self.model.scale**self.objective.passes
        if self.data.size % factor:
            raise ValueError(
                f"data.size {self.data.size} must be a multiple of {factor} (model.scale over all passes)"
            )
        return self
