"""What can be asked for, what is told while it is made, and what is remembered: one pydantic model each.

The same models serve the command line, the HTTP body and the studio's form; a field's description is its help
text, in English and (``json_schema_extra["zh"]``) in Chinese. Nothing here imports torch.

A setting of ``None`` means "the model's own"; :meth:`TextToImageRequest.resolve` fills it in, and only
resolved requests are recorded in pictures.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    Strict,
    StringConstraints,
    model_validator,
)

from vitrail.codes_schema import MAX_FRAMES, CodesRequest, ResolvedCodesRequest
from vitrail.errors import InputError
from vitrail.request_fields import (
    MAX_PROMPT,
    MAX_SEED,
    Name,
    Scale,
    Seed,
    Sha256,
    Side,
    Steps,
    Text,
    Unit,
    Word,
    new_seed,
)
from vitrail.request_fields import Model as _Model
from vitrail.request_fields import zh as _zh
from vitrail.validation import FieldHelp, describe, input_error, parse

__all__ = [
    "MAX_SEED",
    "SAMPLER_LABELS",
    "SCHEDULE_LABELS",
    "Done",
    "Event",
    "FieldHelp",
    "ImageRecord",
    "PictureDone",
    "Preview",
    "Progress",
    "Request",
    "ResolvedRequest",
    "ResolvedTextToImage",
    "SamplerName",
    "SamplingDefaults",
    "ScheduleName",
    "TextToImageRequest",
    "describe",
    "input_error",
    "new_seed",
    "parse",
]

SAMPLER_LABELS: dict[str, str] = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "ddim": "DDIM",
    "lcm": "LCM",
    "maskgit": "MaskGIT",
    "autoregressive": "Autoregressive",
}
"""Sampler names and what other programs call them; the last two are for models that draw codes."""

SCHEDULE_LABELS: dict[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
    "cosine": "Cosine",
    "raster": "Raster",
}
"""Noise schedule names and what other programs call them; the last two are orders in which codes are drawn:
MaskGIT's, and row by row."""

SamplerName = Literal[
    "euler",
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
    "ddim",
    "lcm",
    "maskgit",
    "autoregressive",
]
ScheduleName = Literal["karras", "exponential", "simple", "sgm_uniform", "cosine", "raster"]


def _known_spelling(labels: dict[str, str]) -> BeforeValidator:
    """Accept ``DPM++ 2M`` and ``dpmpp-2m`` for ``dpmpp_2m``."""
    known = {_key(spelling): name for name, label in labels.items() for spelling in (name, label)}
    return BeforeValidator(lambda value: known.get(_key(value), value) if isinstance(value, str) else value)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:64].lower().replace("++", "pp"))


def _looks_like_a_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.startswith(("~", "."))


Shift = Annotated[float, Strict(), Field(ge=0.1, le=20.0, allow_inf_nan=False)]
Temperature = Annotated[float, Strict(), Field(ge=0.0, le=10.0, allow_inf_nan=False)]
TopK = Annotated[int, Strict(), Field(ge=0, le=2**20)]
TopP = Annotated[float, Strict(), Field(ge=0.001, le=1.0, allow_inf_nan=False)]
Choice = Annotated[float, Strict(), Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Truncation = Annotated[float, Strict(), Field(ge=0.01, le=10.0, allow_inf_nan=False)]
Strength = Annotated[float, Strict(), Field(ge=0.0, le=10.0, allow_inf_nan=False)]
NoiseName = Literal["gaussian", "uniform", "laplace", "student_t"]
Sampler = Annotated[SamplerName, _known_spelling(SAMPLER_LABELS)]
Schedule = Annotated[ScheduleName, _known_spelling(SCHEDULE_LABELS)]


def _interval(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("needs a start below its end, such as 0.1 0.8")
    return value


Interval = Annotated[tuple[Unit, Unit], AfterValidator(_interval)]


Hint = Annotated[
    Text,
    StringConstraints(max_length=200),
    BeforeValidator(lambda text: text[:199] + "…" if isinstance(text, str) and len(text) > 200 else text),
]


class SamplingDefaults(_Model):
    """A model's own settings, kept in its artifact; they fill what a request leaves open."""

    steps: Steps = 20
    cfg_scale: Scale = 4.0
    cfg_rescale: Unit = 0.0
    guidance_interval: Interval = (0.0, 1.0)
    sampler: Sampler = "euler"
    schedule: Schedule = "simple"
    shift: Shift = 1.0
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    choice_temperature: Choice = 0.0
    truncation: Truncation | None = None
    noise_strength: Strength = 1.0
    noise: NoiseName | None = None
    width: Side = 128
    height: Side = 128


class TextToImageRequest(_Model):
    """Make pictures from words."""

    kind: Literal["text_to_image"] = "text_to_image"
    prompt: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_PROMPT)] = Field(
        description="What the picture shows, in English or Chinese.",
        json_schema_extra=_zh("画面内容，中文或英文均可。"),
    )
    negative_prompt: Annotated[Text, StringConstraints(max_length=MAX_PROMPT)] = Field(
        default="",
        description="What the picture should not show.",
        json_schema_extra=_zh("不希望出现的内容。"),
    )
    style: Word | None = Field(
        default=None,
        description="House style of the drawing; which there are depends on the model.",
        json_schema_extra=_zh("绘画风格，可选项取决于模型。"),
    )
    n: Annotated[int, Strict(), Field(ge=1, le=64)] = Field(
        default=1,
        description="How many pictures to make; picture i uses seed + i.",
        json_schema_extra=_zh("生成张数，第 i 张使用 seed + i。"),
    )
    seed: Seed | None = Field(
        default=None,
        description="Number that fixes the noise: same seed and settings, same picture. Default: random.",
        json_schema_extra=_zh("随机种子；相同种子与设置得到相同图片。默认随机。"),
    )
    steps: Steps | None = Field(
        default=None,
        description="Denoising steps: more is slower and finer. Default: the model's.",
        json_schema_extra=_zh("去噪步数：越多越慢越精细。默认由模型决定。"),
    )
    cfg_scale: Scale | None = Field(
        default=None,
        description="How strictly to follow the prompt; 1 switches guidance off. Default: the model's.",
        json_schema_extra=_zh("提示词引导强度；1 为关闭引导。默认由模型决定。"),
    )
    cfg_rescale: Unit | None = Field(
        default=None,
        description="Tame over-saturation from strong guidance: 0 none, 1 full. Default: the model's.",
        json_schema_extra=_zh("抑制强引导造成的过饱和：0 关闭，1 最强。默认由模型决定。"),
    )
    guidance_interval: Interval | None = Field(
        default=None,
        description="Part of the schedule where guidance acts: start and end, 0 to 1. Default: the model's.",
        json_schema_extra=_zh("引导起作用的区间：起点和终点，0 到 1。默认由模型决定。"),
    )
    sampler: Sampler | None = Field(
        default=None,
        description="Method that walks from noise to picture. Default: the model's.",
        json_schema_extra=_zh("采样方法。默认由模型决定。"),
    )
    schedule: Schedule | None = Field(
        default=None,
        description="How the noise levels are spaced. Default: the model's.",
        json_schema_extra=_zh("噪声调度。默认由模型决定。"),
    )
    shift: Shift | None = Field(
        default=None,
        description="Shift of the noise levels of a flow model; above 1 spends more steps on layout. "
        "Default: the model's.",
        json_schema_extra=_zh("流模型的噪声偏移；大于 1 时更多步数用于构图。默认由模型决定。"),
    )
    temperature: Temperature | None = Field(
        default=None,
        description="Models that draw codes: 0 takes the likeliest code, more than 1 the unlikely ones more "
        "often. Default: the model's.",
        json_schema_extra=_zh("编码模型：0 取最可能的编码，大于 1 更多取少见的编码。默认由模型决定。"),
    )
    top_k: TopK | None = Field(
        default=None,
        description="Models that draw codes: only from the so many likeliest; 0 for all. "
        "Default: the model's.",
        json_schema_extra=_zh("编码模型：只在最可能的若干个编码中抽取；0 为不限。默认由模型决定。"),
    )
    top_p: TopP | None = Field(
        default=None,
        description="Models that draw codes: only from the likeliest that together reach this probability. "
        "Default: the model's.",
        json_schema_extra=_zh("编码模型：只在累计概率达到此值的最可能编码中抽取。默认由模型决定。"),
    )
    choice_temperature: Choice | None = Field(
        default=None,
        description="MaskGIT: chance in the order in which codes are settled; more is more varied. "
        "Default: the model's.",
        json_schema_extra=_zh("MaskGIT：确定编码先后次序的随机程度，越大越多样。默认由模型决定。"),
    )
    truncation: Truncation | None = Field(
        default=None,
        description="GANs: no number of the latent beyond this; smaller is more typical and less varied. "
        "Default: the model's, mostly none.",
        json_schema_extra=_zh("GAN：潜变量的截断值，越小越典型、越少变化。默认由模型决定，通常不截断。"),
    )
    noise_strength: Strength | None = Field(
        default=None,
        description="GANs: factor on the noise in the layers; 0 switches it off. Default: the model's.",
        json_schema_extra=_zh("GAN：各层噪声的强度系数，0 为关闭。默认由模型决定。"),
    )
    noise: NoiseName | None = Field(
        default=None,
        description="GANs: distribution of the noise in the layers. Default: the model's.",
        json_schema_extra=_zh("GAN：各层噪声的分布。默认由模型决定。"),
    )
    width: Side | None = Field(
        default=None,
        description="Width in pixels, where the model allows a choice. Default: the model's.",
        json_schema_extra=_zh("宽度（像素），取决于模型。默认由模型决定。"),
    )
    height: Side | None = Field(
        default=None,
        description="Height in pixels, where the model allows a choice. Default: the model's.",
        json_schema_extra=_zh("高度（像素），取决于模型。默认由模型决定。"),
    )
    model: Name = Field(
        default="default",
        description="Name or folder of the model.",
        json_schema_extra=_zh("模型名称或文件夹。"),
    )

    def resolve(self, defaults: SamplingDefaults, seed: int | None = None) -> ResolvedTextToImage:
        """Fill every open setting: from ``defaults``, and the seed from ``seed`` or a fresh random one."""
        given = self.model_dump(exclude_none=True)
        filled = defaults.model_dump() | given
        if self.seed is None:
            filled["seed"] = new_seed() if seed is None else seed
        return parse(ResolvedTextToImage, filled)

    @model_validator(mode="after")
    def _last_seed(self) -> Self:
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise ValueError(f"cannot be served: seed {self.seed} + {self.n - 1} is above {MAX_SEED}")
        return self


class ResolvedTextToImage(TextToImageRequest):
    """A request with nothing left open: the one that is run and recorded."""

    seed: Seed
    steps: Steps
    cfg_scale: Scale
    cfg_rescale: Unit
    guidance_interval: Interval
    sampler: Sampler
    schedule: Schedule
    shift: Shift
    # Neutral where a model does not draw codes, and in records that are older than these settings.
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    choice_temperature: Choice = 0.0
    noise_strength: Strength = 1.0
    width: Side
    height: Side


Request = TextToImageRequest | CodesRequest
"""Everything that can be asked for, told apart by ``kind``."""

ResolvedRequest = Annotated[ResolvedTextToImage | ResolvedCodesRequest, Field(discriminator="kind")]
"""What a record holds: a request with nothing left open."""


class ImageRecord(_Model):
    """What is stored in a picture: enough to make the same pixels again."""

    format: Literal[1] = 1
    request: ResolvedRequest
    index: Annotated[int, Strict(), Field(ge=0, lt=MAX_FRAMES)] = Field(
        default=0, description="Which picture of the request it is."
    )
    seed: Seed = Field(description="Seed of this picture: request.seed + index.")
    model_name: Name
    model_sha256: Sha256
    versions: dict[Word, Word] = Field(default_factory=dict, max_length=16, description="vitrail, torch, ...")
    device: Word = "cpu"
    precision: Word = "float32"
    created: AwareDatetime
    understood_as: Annotated[Text, StringConstraints(max_length=2 * MAX_PROMPT)] | None = Field(
        default=None,
        description="The words the model was given, where they differ from the prompt (a translation).",
    )
    hints: tuple[Hint, ...] = Field(
        default=(), max_length=16, description="What the model could not serve well."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_path(cls, data: Any) -> Any:
        """Name the model where the request has its folder: a record never says where somebody's files lie.

        Tasks record the name themselves; this holds for one that forgets.
        """
        if not isinstance(data, dict):
            return data
        request: Any = data.get("request")
        own = data.get("model_name")
        asked = request.get("model") if isinstance(request, dict) else getattr(request, "model", None)
        if not isinstance(asked, str) or not isinstance(own, str) or not _looks_like_a_path(asked):
            return data  # nothing to hide, or something for the checks of the fields to refuse
        if isinstance(request, dict):
            return {**data, "request": {**request, "model": own}}
        return {**data, "request": request.model_copy(update={"model": own})}

    @model_validator(mode="after")
    def _one_of_the_request(self) -> ImageRecord:
        if self.index >= self.request.n or self.seed != self.request.seed + self.index:
            raise ValueError("index and seed do not belong to the request")
        return self

    def again(self) -> ResolvedTextToImage:
        """The request that makes this one picture again: same settings, its own seed, n = 1.

        A picture depends on its own seed alone, not on its place in the request. Raises :class:`InputError`
        for a picture that was made of another, whose content no record holds.
        """
        if not isinstance(self.request, ResolvedTextToImage):
            raise InputError(
                f"this picture was made by vitrail {self.request.kind} of a file that its record does not "
                "hold; run that command again with the same file and settings"
            )
        return self.request.model_copy(update={"n": 1, "seed": self.seed})

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> ImageRecord:
        """Read :meth:`to_json`; :class:`InputError` if it is anything else."""
        return parse(cls, text)


class Progress(_Model):
    """One denoising step is done."""

    type: Literal["progress"] = "progress"
    step: int = Field(ge=0, description="Steps done.")
    steps: int = Field(ge=1, description="Steps in all, over every picture of the request.")
    eta: float | None = Field(default=None, ge=0, description="Seconds left, once it can be told.")


class Preview(_Model):
    """A picture as it stands, rough and small."""

    type: Literal["preview"] = "preview"
    index: int = Field(ge=0, description="Which picture of the request.")
    step: int = Field(ge=0)
    picture: Any = Field(default=None, exclude=True, repr=False, description="PIL.Image, in-process only.")


class PictureDone(_Model):
    """A picture is finished; the engine adds where it was saved."""

    type: Literal["picture_done"] = "picture_done"
    index: int = Field(ge=0, description="Which picture of the request.")
    record: ImageRecord
    path: str | None = None
    picture: Any = Field(default=None, exclude=True, repr=False, description="PIL.Image, in-process only.")


class Done(_Model):
    """The request is finished."""

    type: Literal["done"] = "done"
    seconds: float = Field(ge=0)
    paths: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


Event = Progress | Preview | PictureDone | Done
"""What a task tells while it works, in this order; told apart by ``type``."""
