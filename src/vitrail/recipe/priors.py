"""Recipes of priors: transformers over the codes of a frozen tokenizer, causal or masked."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vitrail.recipe.sections import CommonRecipe, Section

__all__ = ["PriorRecipe", "TokenObjective", "TokenTransformerConfig", "TokenizerSection"]


class TokenTransformerConfig(Section):
    """Shape of :class:`vitrail.models.token_transformer.TokenTransformer`.

    ``block = "gpt"`` is the network of taming-transformers' Net2NetTransformer (minGPT): affine norms, no
    query-key norm, exact GELU, learned positions over condition and codes together, one table for both, a
    head without bias. Such networks read a class or ``prefix`` condition codes, never words.
    """

    kind: Literal["token_transformer"] = "token_transformer"
    mode: Literal["causal", "masked"] = Field(
        default="masked",
        description="causal: code after code; masked: all at once, the surest first (MaskGIT)",
    )
    block: Literal["modern", "gpt"] = Field(
        default="modern", description="gpt: as taming-transformers' checkpoints"
    )
    codes: int = Field(default=1024, ge=2, le=2**18, description="codes of the tokenizer")
    rows: int = Field(default=8, ge=1, le=128, description="codes from top to bottom")
    columns: int = Field(default=8, ge=1, le=128, description="codes from left to right")
    width: int = Field(default=384, ge=8, le=4096, description="width of the transformer")
    depth: int = Field(default=8, ge=1, le=96, description="transformer blocks")
    heads: int = Field(default=6, ge=1, le=64, description="attention heads; must divide width")
    mlp_ratio: float = Field(
        default=4.0, ge=0.5, le=8.0, description="hidden width of the feed-forward layers over width"
    )
    dropout: float = Field(
        default=0.0, ge=0.0, le=0.9, description="share of each block's output left out in training"
    )
    text: bool = Field(default=False, description="reads captions through the frozen text encoder")
    text_width: int = Field(default=384, ge=8, le=4096, description="width of the text encoder's states")
    vocabulary: int = Field(
        default=0, ge=0, le=1_000_000, description="words; 0 takes the text encoder's own number"
    )
    word_width: int = Field(default=64, ge=1, le=1024, description="width of the small trainable word table")
    refiner_depth: int = Field(default=1, ge=0, le=16, description="transformer blocks over the words alone")
    styles: int = Field(
        default=0, ge=0, le=100_000, description="named styles or classes; number 0 beside them means none"
    )
    canvas_width: int = Field(
        default=0, ge=0, le=8192, description="masked: width of the canvas over the whole prompt; 0 for none"
    )
    canvas_depth: int = Field(default=3, ge=0, le=16, description="residual blocks of the canvas")
    canvas_channels: int = Field(
        default=64, ge=1, le=1024, description="values that the canvas gives to each code"
    )
    prefix: int = Field(
        default=0, ge=0, le=16_384, description="codes of another picture (or a class) that stand before"
    )
    prefix_codes: int = Field(
        default=0, ge=0, le=2**18, description="how many codes those are drawn from; 0: as many as codes"
    )
    table: int = Field(
        default=0, ge=0, le=2**18, description="gpt: rows of the shared table and the head; 0: as few as fit"
    )
    positions: int = Field(
        default=0, ge=0, le=2**18, description="gpt: learned positions (block_size); 0: as few as fit"
    )
    start: int = Field(
        default=0, ge=0, lt=2**18, description="gpt: the code that stands before where there is no condition"
    )
    unmasked: int = Field(
        default=0, ge=0, le=16_384, description="gpt: condition codes that see one another both ways"
    )
    places: bool = Field(
        default=False, description="gpt: the condition codes tell where in the picture each code lies"
    )

    @property
    def count(self) -> int:
        """Codes of a picture."""
        return self.rows * self.columns

    @model_validator(mode="after")
    def _fits(self) -> TokenTransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.canvas_width and not (self.text and self.mode == "masked" and self.block == "modern"):
            raise ValueError("a canvas is for masked models that read text; set canvas_width to 0")
        if self.block == "modern":
            if self.table or self.positions or self.start or self.unmasked or self.places:
                raise ValueError(
                    "table, positions, start, unmasked and places are for block gpt; leave them out"
                )
            return self
        if self.mode != "causal" or self.text:
            raise ValueError("block gpt is causal and reads no text; set mode = causal and text = false")
        if self.prefix < 1:
            raise ValueError("block gpt begins with at least one condition code; set prefix = 1 or more")
        need = max(self.codes, self.prefix_codes, self.styles if self.prefix == 1 else 0)
        if self.table and self.table < need:
            raise ValueError(f"table {self.table} is smaller than the {need} codes it has to hold")
        if self.start >= (self.table or need):
            raise ValueError(f"start {self.start} is no code of the {self.table or need} that there are")
        if self.unmasked > self.prefix:
            raise ValueError(f"unmasked {self.unmasked} is more than the {self.prefix} codes of prefix")
        if self.positions and self.positions < self.prefix + self.count - 1:
            raise ValueError(
                f"positions {self.positions} are fewer than prefix {self.prefix} + {self.count} codes - 1"
            )
        return self


class TokenizerSection(Section):
    """The frozen autoencoder whose codes are learned."""

    source: str = Field(
        default="tokenizer", min_length=1, max_length=4096, description="model folder or model name"
    )


class TokenObjective(Section):
    """Cross-entropy of codes; see :mod:`vitrail.training.token_objectives`."""

    kind: Literal["codes"] = "codes"
    trains: Literal["network", "canvas"] = Field(
        default="network",
        description="network: the transformer, with its canvas fixed; canvas: the canvas alone, first",
    )
    label_smoothing: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="share of the target spread over all codes"
    )
    corrupt: float = Field(
        default=0.1,
        ge=0.0,
        lt=1.0,
        description="share of the visible codes replaced by random ones (1 - pkeep)",
    )


class PriorRecipe(CommonRecipe):
    """A transformer over the codes of a frozen tokenizer: pictures from words, a class, or nothing."""

    reads_text: ClassVar[bool] = True

    kind: Literal["token_prior"] = "token_prior"
    model: TokenTransformerConfig = TokenTransformerConfig()
    tokenizer: TokenizerSection = TokenizerSection()
    objective: TokenObjective = TokenObjective()

    @model_validator(mode="after")
    def _sizes(self) -> PriorRecipe:
        if self.data.buckets:
            raise ValueError("data.buckets needs a model of free size; a prior draws one: set it to false")
        if self.data.size % self.model.rows or self.model.rows != self.model.columns:
            raise ValueError(
                f"data.size {self.data.size} must be a multiple of model.rows {self.model.rows}, "
                f"and model.columns {self.model.columns} the same as the rows: training pictures are square"
            )
        if self.objective.trains == "canvas" and not self.model.canvas_width:
            raise ValueError('objective.trains "canvas" needs one: set model.canvas_width, such as to 1024')
        if self.model.prefix:
            raise ValueError("model.prefix is for models that were trained elsewhere; set it to 0")
        return self
