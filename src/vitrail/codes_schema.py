"""Requests to models that see a picture as codes: reconstruct, decode, vary, inpaint, walk.

Built as those of :mod:`vitrail.schema`, which joins them to its union. A picture is given by its content
(:class:`~vitrail.request_fields.FileRef`); the record keeps its name and SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Strict, StringConstraints, model_validator

from vitrail.diffusion_fields import Addons, GuidanceFields, SamplingFields, hastened
from vitrail.request_fields import (
    MAX_PROMPT,
    MAX_SEED,
    FileRef,
    Model,
    Name,
    Scale,
    Seed,
    Steps,
    Text,
    Unit,
    Word,
    new_seed,
    zh,
)
from vitrail.sampling_fields import SamplingDefaults
from vitrail.validation import parse

__all__ = [
    "MAX_FRAMES",
    "TOKEN_MODEL",
    "CodesRequest",
    "DecodeRequest",
    "InpaintRequest",
    "Margins",
    "ReconstructRequest",
    "ResolvedCodesRequest",
    "ResolvedInpaint",
    "ResolvedVary",
    "ResolvedWalk",
    "TokenDefaults",
    "VaryRequest",
    "WalkRequest",
    "WalkStop",
]

TOKEN_MODEL = "vqgan"
"""Name of the model that is taken where none is given: tokenizer and prior that come with vitrail."""

MAX_FRAMES = 240
"""Most pictures of a walk."""

Count = Annotated[int, Strict(), Field(ge=1, le=64)]
Prompt = Annotated[Text, StringConstraints(max_length=MAX_PROMPT)]
Temperature = Annotated[float, Strict(), Field(ge=0.0, le=10.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)]
Margin = Annotated[int, Strict(), Field(ge=0, le=2048)]


def _said(english: str, chinese: str, **more: Any) -> Any:
    """A field with its description in both languages; ``more`` goes to pydantic (``default``)."""
    return Field(description=english, json_schema_extra=zh(chinese), **more)


def _picture() -> Any:
    return _said("The picture to work on.", "要处理的图片。")


def _seed() -> Any:
    return _said(
        "Number that fixes what is drawn: same seed and settings, same picture. Default: random.",
        "随机种子；相同种子与设置得到相同图片。默认随机。",
        default=None,
    )


def _style() -> Any:
    return _said(
        "House style of the drawing; which there are depends on the model.",
        "绘画风格，可选项取决于模型。",
        default=None,
    )


def _model() -> Any:
    return _said(
        "Name or folder of a model with a tokenizer.",
        "带编码器（tokenizer）的模型名称或文件夹。",
        default=TOKEN_MODEL,
    )


class TokenDefaults(Model):
    """What fills the open settings of a request to a token model."""

    steps: Steps = 12
    cfg_scale: Scale = 3.0
    temperature: Temperature = 1.0


class _Fixed(Model):
    """A request whose picture is one and does not depend on chance."""

    n: ClassVar[int] = 1
    seed: ClassVar[int] = 0
    prompt: ClassVar[str] = ""

    model: Name = _model()


class ReconstructRequest(_Fixed):
    """Encode a picture to codes and decode it again."""

    kind: Literal["reconstruct"] = "reconstruct"
    picture: FileRef = _picture()
    compare: bool = _said(
        "Put the picture, its reconstruction and their difference side by side.",
        "把原图、重建图与差异并排放在一张图中。",
        default=False,
    )


class DecodeRequest(_Fixed):
    """Decode a file of codes, .vtl or .npz, to a picture."""

    kind: Literal["decode"] = "decode"
    picture: FileRef = _said("The file of codes.", "编码文件。")


class _Drawn(Model):
    """A request that draws codes from a prior."""

    n: Count = _said(
        "How many pictures to make; picture i uses seed + i.", "生成张数，第 i 张使用 seed + i。", default=1
    )
    seed: Seed | None = _seed()
    prompt: Prompt = _said(
        "What the new parts show, in English or Chinese; needs a model that reads words.",
        "新内容的描述，中文或英文均可；需要能读文字的模型。",
        default="",
    )
    style: Word | None = _style()
    steps: Steps | None = _said(
        "Passes of the network over the codes: more is slower and finer. Default: the model's.",
        "网络遍历编码的次数：越多越慢越精细。默认由模型决定。",
        default=None,
    )
    cfg_scale: Scale | None = _said(
        "How strictly to follow the prompt; 1 switches guidance off. Default: the model's.",
        "提示词引导强度；1 为关闭引导。默认由模型决定。",
        default=None,
    )
    temperature: Temperature | None = _said(
        "How freely codes are drawn: 0 takes the likeliest, 1 as learned. Default: the model's.",
        "取样自由度：0 取最可能的编码，1 与训练一致。默认由模型决定。",
        default=None,
    )
    model: Name = _model()

    @model_validator(mode="after")
    def _last_seed(self) -> Self:
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise ValueError(f"cannot be served: seed {self.seed} + {self.n - 1} is above {MAX_SEED}")
        return self

    def filled(self, defaults: TokenDefaults, more: Mapping[str, object] | None = None) -> dict[str, object]:
        """The settings with nothing left open; the seed is drawn if there is none."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        given = {name: value for name, value in given.items() if value is not None}
        return {"seed": new_seed()} | defaults.model_dump() | dict(more or {}) | given


class VaryRequest(_Drawn):
    """Draw a part of a picture's codes again."""

    kind: Literal["vary"] = "vary"
    picture: FileRef = _picture()
    amount: Unit = _said(
        "How far to go from the picture: the share of its codes, or of its noise, that is drawn again.",
        "与原图的差异程度：重新生成的编码或噪声的比例。",
        default=0.3,
    )

    def resolve(self, defaults: TokenDefaults) -> ResolvedVary:
        """Fill every open setting from ``defaults``."""
        return parse(ResolvedVary, self.filled(defaults))


class ResolvedVary(VaryRequest):
    """A variation with nothing left open: the one that is run and recorded."""

    seed: Seed
    steps: Steps
    cfg_scale: Scale
    temperature: Temperature


class Margins(Model):
    """Pixels to add at each side of a picture."""

    left: Margin = 0
    right: Margin = 0
    top: Margin = 0
    bottom: Margin = 0

    def __bool__(self) -> bool:
        return bool(self.left or self.right or self.top or self.bottom)


class InpaintRequest(Addons, GuidanceFields, _Drawn):
    """Paint a masked part of a picture anew, or paint beyond its edges.

    The model's kind decides how: one that draws codes, or a diffusion model.
    """

    kind: Literal["inpaint"] = "inpaint"
    picture: FileRef = _picture()
    mask: FileRef | None = _said(
        "Picture that is white where the picture is to be painted anew, black elsewhere.",
        "蒙版：白色区域重画，黑色区域保留。",
        default=None,
    )
    expand: Margins = _said(
        "Pixels to paint beyond each edge.", "在每条边外侧扩画的像素数。", default=Margins()
    )
    feather: Annotated[int, Strict(), Field(ge=0, le=64)] = _said(
        "Width in pixels of the soft seam between old and new.",
        "新旧内容之间柔和过渡的宽度（像素）。",
        default=4,
    )
    negative_prompt: Prompt = _said(
        "What the picture should not show; diffusion models.", "不希望出现的内容（扩散模型）。", default=""
    )
    strength: Unit = _said(
        "How much of what is under the mask may change, 1 for all; grey parts of the mask change less. "
        "Diffusion models.",
        "蒙版下的内容可以改动的程度，1 为全部；蒙版灰色处按比例减少。扩散模型。",
        default=1.0,
    )
    content: Literal["original", "fill", "noise"] = _said(
        "What the walk under the mask begins with, at a strength below 1: the picture, its surroundings' "
        "colours, or noise. Diffusion models.",
        "强度低于 1 时蒙版下的起点：原图、周围的颜色或噪声。扩散模型。",
        default="original",
    )
    repeats: Annotated[int, Strict(), Field(ge=1, le=20)] | None = _said(
        "How often each step is walked, so that what is made fits what is known. Default: 1, or 4 with "
        "models that draw pixels. Diffusion models.",
        "每一步重复的次数，使新内容与保留部分更协调。默认 1，像素模型默认 4。扩散模型。",
        default=None,
    )
    only_masked: bool = _said(
        "Work on the masked area alone, at the model's full size; for small parts of large pictures. "
        "Diffusion models.",
        "只按模型的完整尺寸处理蒙版区域，适合大图中的小块。扩散模型。",
        default=False,
    )
    padding: Annotated[int, Strict(), Field(ge=0, le=1024)] = _said(
        "Pixels around the masked area that are shown to the model with it.",
        "只处理蒙版区域时，一并交给模型的周围像素数。",
        default=32,
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.mask is None and not self.expand:
            raise ValueError("has nothing to paint: give a mask, or expand for an edge")
        return self

    def resolve(self, defaults: TokenDefaults | SamplingDefaults) -> ResolvedInpaint:
        """Fill every open setting from ``defaults``, a token model's or a diffusion model's."""
        if isinstance(defaults, TokenDefaults):
            return parse(ResolvedInpaint, self.filled(defaults))
        own = {name: getattr(defaults, name) for name in SamplingFields.model_fields}
        return parse(ResolvedInpaint, self.filled(TokenDefaults(temperature=1.0), own | hastened(self)))


class ResolvedInpaint(InpaintRequest):
    """An inpainting with nothing left open: the one that is run and recorded."""

    seed: Seed
    steps: Steps
    cfg_scale: Scale
    temperature: Temperature


class WalkStop(Model):
    """A place that a walk passes: a picture, or words and a seed that one is drawn from."""

    picture: FileRef | None = None
    prompt: Prompt = ""
    seed: Seed | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if self.picture is not None and self.prompt:
            raise ValueError("is a picture and words; give one of them")
        return self


class WalkRequest(Model):
    """Pictures that change step by step from one stop to the next."""

    prompt: ClassVar[str] = ""

    kind: Literal["walk"] = "walk"
    stops: tuple[WalkStop, ...] = Field(
        min_length=2,
        max_length=32,
        description="Pictures, or words, that the walk passes, in order.",
        json_schema_extra=zh("依次经过的图片或提示词。"),
    )
    frames: Annotated[int, Strict(), Field(ge=2, le=MAX_FRAMES)] = _said(
        "Pictures in all.", "总帧数。", default=24
    )
    loop: bool = _said(
        "Walk back from the last stop to the first.",
        "从最后一站走回第一站。",
        default=False,
    )
    curve: Literal["linear", "slerp"] = _said(
        "Straight lines between latents, or arcs that keep their length.",
        "潜变量之间走直线，或走保持长度的弧线。",
        default="linear",
    )
    fps: Annotated[float, Strict(), Field(ge=1.0, le=60.0, allow_inf_nan=False)] = _said(
        "Pictures a second of the animation.", "动画每秒帧数。", default=12.0
    )
    weights: tuple[Weight, ...] | None = _said(
        "Make one picture of all stops instead: their latents times these numbers, added up.",
        "不做动画，而是把各站潜变量乘以这些权重后相加，得到一张图。",
        default=None,
        max_length=32,
    )
    seed: Seed | None = _seed()
    style: Word | None = _style()
    model: Name = _model()

    @property
    def n(self) -> int:
        """How many pictures are made."""
        return self.frames if self.weights is None else 1

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.seed is not None and self.seed + self.frames - 1 > MAX_SEED:
            raise ValueError(f"cannot be served: seed {self.seed} + {self.frames - 1} is above {MAX_SEED}")
        if self.weights is None and self.frames < len(self.stops):
            raise ValueError(f"has {len(self.stops)} stops and {self.frames} frames; give a frame for each")
        if self.weights is not None and len(self.weights) != len(self.stops):
            raise ValueError(
                f"has {len(self.stops)} stops and {len(self.weights)} weights; give one for each"
            )
        return self

    def resolve(self) -> ResolvedWalk:
        """Draw the seed, and give stop i that is words without a seed of its own seed + i."""
        seed = new_seed() if self.seed is None else self.seed
        stops = [
            stop
            if stop.picture is not None or stop.seed is not None
            else stop.model_copy(update={"seed": seed + index})
            for index, stop in enumerate(self.stops)
        ]
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return parse(ResolvedWalk, given | {"seed": seed, "stops": tuple(stops)})


class ResolvedWalk(WalkRequest):
    """A walk with nothing left open: the one that is run and recorded."""

    seed: Seed


CodesRequest = ReconstructRequest | DecodeRequest | VaryRequest | InpaintRequest | WalkRequest
"""Everything that can be asked of a token model beside pictures from words."""

ResolvedCodesRequest = ReconstructRequest | DecodeRequest | ResolvedVary | ResolvedInpaint | ResolvedWalk
"""What a record may hold of them."""
