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

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from vitrail.errors import InputError

__all__ = [
    "DataSection",
    "FlowObjective",
    "ModelConfig",
    "OptimSection",
    "Recipe",
    "RunSection",
    "ShellDiTConfig",
    "TextToImageRecipe",
    "UpsamplerConfig",
    "UpsamplerObjective",
    "UpsamplerRecipe",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_differences",
]

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of every table of a recipe: unknown keys and non-finite numbers are refused; it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ShellDiTConfig(Section):
    """Shape of :class:`vitrail.models.shell_dit.ShellDiT`, the text-to-image network on pixels."""

    kind: Literal["shell_dit"] = "shell_dit"
    image_size: int = Field(64, ge=16, le=512, description="pixels a side")
    patch: int = Field(4, ge=1, le=16, description="pixels a side that the shell sees as one position")
    shell_width: int = Field(
        128, ge=8, le=1024, multiple_of=8, description="channels of the convolutional shell"
    )
    shell_blocks: int = Field(2, ge=0, le=16, description="residual blocks on each side of the transformer")
    width: int = Field(384, ge=8, le=4096, description="width of the transformer")
    depth: int = Field(6, ge=1, le=64, description="transformer blocks")
    heads: int = Field(6, ge=1, le=64, description="attention heads; must divide width")
    mlp_ratio: float = Field(
        4.0, ge=0.5, le=8.0, description="hidden width of the feed-forward layers over width"
    )
    text_width: int = Field(384, ge=8, le=4096, description="width of the text encoder's states")
    vocabulary: int = Field(0, ge=0, le=1_000_000, description="words; 0 takes the text encoder's own number")
    word_width: int = Field(64, ge=1, le=1024, description="width of the small trainable word table")
    refiner_depth: int = Field(1, ge=0, le=16, description="transformer blocks over the words alone")
    styles: int = Field(7, ge=0, le=10_000, description="named styles; number 0 beside them means no style")

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
    width: int = Field(48, ge=8, le=512, description="channels")
    blocks: int = Field(6, ge=1, le=64, description="residual blocks")


ModelConfig = Annotated[ShellDiTConfig | UpsamplerConfig, Field(discriminator="kind")]


class DataSection(Section):
    """Where the pictures come from and how they are varied."""

    source: str = Field(
        "emoji", min_length=1, max_length=4096, description="'emoji', or a folder of pictures"
    )
    size: int = Field(64, ge=8, le=2048, description="pixels a side")
    batch_size: int = Field(64, ge=1, le=8192, description="pictures a step")
    synthetic_share: float = Field(0.4, ge=0.0, le=0.5, description="share of composed pictures (emoji)")
    caption_drop: Share = Field(0.1, description="share of captions left out, for guidance")
    style_drop: Share = Field(0.1, description="share of styles left out")
    flip: Share = Field(0.0, description="share of pictures mirrored left to right, where that is harmless")
    jitter: Share = Field(0.0, description="share of pictures made a little smaller and moved (emoji only)")
    crop: Share = Field(0.0, description="largest share of the shorter side cut off at random (folders only)")
    buckets: bool = Field(
        False, description="batches of one aspect ratio each instead of square crops (folders)"
    )
    prefetch: int = Field(
        2, ge=0, le=64, description="batches prepared ahead by a background thread; 0: none"
    )


class FlowObjective(Section):
    """Rectified flow with prediction of the clean picture; see :mod:`vitrail.training.objectives`."""

    kind: Literal["flow_x0"] = "flow_x0"
    logit_mean: float = Field(
        0.0, ge=-5.0, le=5.0, description="mean of logit(t); above 0 trains more on noise"
    )
    logit_std: float = Field(1.0, gt=0.0, le=5.0, description="standard deviation of logit(t)")
    uniform_share: Share = Field(0.15, description="share of noise levels drawn evenly from [0, 1]")
    weight_clip: float = Field(
        10.0, ge=1.0, le=1e6, description="largest weight min(1/t^2, clip) of a picture"
    )


class UpsamplerObjective(Section):
    """L1 on pixels and on their differences; see :mod:`vitrail.training.objectives`."""

    kind: Literal["upsample_l1"] = "upsample_l1"
    edge_weight: float = Field(1.0, ge=0.0, le=100.0, description="weight of the loss on pixel differences")
    noise: float = Field(
        0.02, ge=0.0, le=0.5, description="largest standard deviation of noise on the small picture"
    )


class OptimSection(Section):
    """AdamW, its schedule, the moving average of the weights, and the length of the run.

    Exactly one of ``until_images`` and ``time_budget_minutes`` is set. Under a time budget the learning rate
    follows the elapsed share of the budget (time spent before an interruption included).
    """

    lr: float = Field(5e-4, gt=0.0, le=1.0, description="learning rate after the warm-up")
    betas: tuple[Share, Share] = Field((0.9, 0.98), description="AdamW's averaging constants")
    weight_decay: float = Field(0.01, ge=0.0, le=10.0, description="AdamW's weight decay, on matrices only")
    warmup_images: int = Field(
        10_000, ge=0, le=10**10, description="pictures over which the rate rises from 0"
    )
    decay: Literal["none", "cosine", "linear"] = Field(
        "cosine", description="how the rate falls to final_share"
    )
    final_share: Share = Field(0.02, description="learning rate at the end, as a share of lr")
    ema_half_life_images: int = Field(
        50_000, ge=1, le=10**10, description="half-life of the averaged weights"
    )
    ema_ramp: float = Field(
        0.1, gt=0.0, le=1.0, description="half-life never above this share of the pictures seen"
    )
    grad_clip: float = Field(1.0, gt=0.0, le=1e6, description="largest norm of the gradient")
    until_images: int | None = Field(None, ge=1, le=10**12, description="stop after this many pictures")
    time_budget_minutes: float | None = Field(None, gt=0.0, le=10**6, description="stop after this much time")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = Field(False, description="torch.compile the network; slow to start, faster afterwards")

    @model_validator(mode="after")
    def _one_length(self) -> OptimSection:
        if (self.until_images is None) == (self.time_budget_minutes is None):
            raise ValueError("set exactly one of until_images and time_budget_minutes")
        if max(self.betas) >= 1.0:
            raise ValueError(f"betas {self.betas} must be below 1")
        return self


class RunSection(Section):
    """Seed, checkpoints, logs and samples of a run."""

    seed: int = Field(0, ge=0, lt=2**63)
    checkpoint_every_seconds: float = Field(
        90.0, ge=0.0, le=86_400.0, description="0 checkpoints after every step"
    )
    keep: int = Field(
        2, ge=1, le=1000, description="checkpoints kept; at least one that verifies always stays"
    )
    log_every_seconds: float = Field(10.0, ge=0.0, le=86_400.0, description="0 logs every step")
    sample_every_images: int = Field(0, ge=0, le=10**10, description="pictures between sample grids; 0: none")
    sample_prompts: tuple[str, ...] = Field((), max_length=256)
    held_out_every_images: int = Field(
        0, ge=0, le=10**10, description="pictures between held-out losses; 0: none"
    )
    held_out_images: int = Field(256, ge=1, le=100_000, description="held-out pictures used for it")
    warm_start: str | None = Field(
        None, description="model folder or run folder to take the first weights from"
    )
    tensorboard: Literal["auto", "on", "off"] = Field("auto", description="auto: where it is installed")


class _Common(Section):
    name: str = Field("run", min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataSection = DataSection()  # type: ignore[call-arg]
    optim: OptimSection
    run: RunSection = RunSection()  # type: ignore[call-arg]
    expected: dict[str, float] = Field(default_factory=dict, description="scores that this preset reached")


class TextToImageRecipe(_Common):
    """A network that draws a picture for a caption."""

    kind: Literal["text_to_image"] = "text_to_image"
    model: ShellDiTConfig = ShellDiTConfig()  # type: ignore[call-arg]
    objective: FlowObjective = FlowObjective()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _sizes(self) -> TextToImageRecipe:
        if self.data.size != self.model.image_size:
            raise ValueError(
                f"data.size {self.data.size} must equal model.image_size {self.model.image_size}"
            )
        if self.data.buckets:
            raise ValueError(
                "data.buckets needs a model of free size; shell_dit draws squares: set it to false"
            )
        return self


class UpsamplerRecipe(_Common):
    """A network that makes small pictures larger; ``data.size`` is the size of the large ones."""

    kind: Literal["upsampler"] = "upsampler"
    model: UpsamplerConfig = UpsamplerConfig()  # type: ignore[call-arg]
    objective: UpsamplerObjective = UpsamplerObjective()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _sizes(self) -> UpsamplerRecipe:
        if self.data.size % self.model.scale:
            raise ValueError(
                f"data.size {self.data.size} must be a multiple of model.scale {self.model.scale}"
            )
        return self


Recipe = Annotated[TextToImageRecipe | UpsamplerRecipe, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[TextToImageRecipe | UpsamplerRecipe] = TypeAdapter(Recipe)
_KINDS: dict[str, type[TextToImageRecipe] | type[UpsamplerRecipe]] = {
    cls.model_fields["kind"].default: cls for cls in (TextToImageRecipe, UpsamplerRecipe)
}


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> TextToImageRecipe | UpsamplerRecipe:
    """Read a recipe from a TOML file and apply ``overrides``, each ``section.key=value``.

    Raises :class:`InputError` with one line for a missing file, broken TOML, or a key or value not allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"recipe {str(path)!r} cannot be read: {reason}") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {str(path)!r} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"recipe {str(path)!r} is nested too deeply") from error
    return parse_recipe(tables, overrides, origin=str(path))


def parse_recipe(
    tables: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "recipe"
) -> TextToImageRecipe | UpsamplerRecipe:
    """Build a recipe from nested dictionaries; ``origin`` is the name used in error messages."""
    merged: dict[str, Any] = _copy(tables)
    for override in overrides:
        _apply(merged, override)
    kind = merged.get("kind")
    if kind not in _KINDS:
        raise InputError(f"{origin}: kind is {kind!r}; choose {_either(_KINDS)}")
    _check_keys(merged, _KINDS[kind], origin)
    try:
        return _ADAPTER.validate_python(merged)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(error)}") from error


def dump_recipe(recipe: TextToImageRecipe | UpsamplerRecipe) -> str:
    """Return the whole recipe, defaults included, as TOML that :func:`load_recipe` reads back as equal."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    scalars = {key: value for key, value in data.items() if not isinstance(value, dict)}
    lines = [f"{key} = {_toml(scalars[key])}" for key in ("kind", "name")]
    for section, table in data.items():
        if isinstance(table, dict) and (table or section != "expected"):
            lines += ["", f"[{section}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def recipe_differences(
    old: TextToImageRecipe | UpsamplerRecipe, new: TextToImageRecipe | UpsamplerRecipe
) -> list[str]:
    """Return the dotted keys in which two recipes differ, sorted."""
    first, second = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    missing = object()
    return sorted(key for key in first | second if first.get(key, missing) != second.get(key, missing))


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def _copy(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tables.items()}


def _apply(tables: dict[str, Any], override: str) -> None:
    """Write one ``a.b=c`` into nested tables; a value that is no TOML is taken as a plain word or path."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise InputError(f"--set {override!r}: write section.key=value, for instance optim.lr=2e-4")
    text = text.strip()
    try:
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        value = text
    except RecursionError as error:
        raise InputError(f"--set {key}: the value is nested too deeply") from error
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override!r}: {part!r} is a value, not a section")
    if value == "none" and parts[-1] in ("until_images", "time_budget_minutes", "warm_start"):
        table.pop(parts[-1], None)  # TOML has no null
        return
    table[parts[-1]] = value
    # The two lengths exclude each other: giving one on the command line replaces the other.
    twins = {"until_images": "time_budget_minutes", "time_budget_minutes": "until_images"}
    if parts[0] == "optim" and parts[-1] in twins:
        table.pop(twins[parts[-1]], None)


def _check_keys(table: Mapping[str, Any], model: type[BaseModel], origin: str, prefix: str = "") -> None:
    """Refuse unknown keys with the nearest valid one; pydantic alone would not name it."""
    root = model
    pending: list[tuple[Mapping[str, Any], type[BaseModel], str]] = [(table, model, prefix)]
    while pending:
        table, model, prefix = pending.pop()
        for key, value in table.items():
            if key not in model.model_fields:
                near = difflib.get_close_matches(
                    prefix + key, [prefix + name for name in model.model_fields], 1
                )
                leaves = {name.rpartition(".")[2]: name for name in _all_keys(root)}
                near = near or [leaves[name] for name in difflib.get_close_matches(key, leaves, 1)]
                hint = f"did you mean {near[0]!r}?" if near else f"allowed: {_either(model.model_fields)}"
                raise InputError(f"{origin}: key {prefix + key!r} is unknown; {hint}")
            inner = model.model_fields[key].annotation
            if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
                pending.append((value, inner, f"{prefix}{key}."))


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _all_keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] in ("value_error", "missing"):
        return f"{place}: {message}" if place else message
    given = repr(first["input"])
    return f"{place} = {given if len(given) <= 60 else given[:57] + '...'}: {message}"


def _either(names: Iterable[str]) -> str:
    return ", ".join(names)


def _key(name: str) -> str:
    return name if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings take JSON's escapes, except that DEL must be escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"a recipe cannot hold the number {value}")
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise InputError(f"a recipe cannot hold a value of type {type(value).__name__}")
