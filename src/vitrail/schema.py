"""What can be asked for, what is told while it is made, and what is remembered: one pydantic model each.

The same models serve the command line, the HTTP body and the studio's form; a field's description is its help
text, in English and (``json_schema_extra["zh"]``) in Chinese. Nothing here imports torch.

A setting of ``None`` means "the model's own"; :meth:`TextToImageRequest.resolve` fills it in, and only
resolved requests are recorded in pictures.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    model_validator,
)

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

MAX_SEED = 2**53 - 1
"""Largest seed: the largest integer that JSON keeps exact in every reader, a browser included."""

MAX_PROMPT = 2000
"""Longest prompt, in characters."""

SAMPLER_LABELS: dict[str, str] = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "ddim": "DDIM",
    "lcm": "LCM",
}
"""Sampler names and what other programs call them."""

SCHEDULE_LABELS: dict[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
}
"""Noise schedule names and what other programs call them."""

SamplerName = Literal["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "ddim", "lcm"]
ScheduleName = Literal["karras", "exponential", "simple", "sgm_uniform"]


def _plain_text(text: str) -> str:
    """Strip; refuse control characters (but newline and tab) and lone surrogates, which no file can hold."""
    text = text.replace("\r\n", "\n").strip()
    for character in text:
        category = unicodedata.category(character)
        if (category == "Cc" and character not in "\n\t") or category == "Cs":
            raise ValueError(
                f"holds the character U+{ord(character):04X}; control characters are not allowed"
            )
    return text


def _known_spelling(labels: dict[str, str]) -> BeforeValidator:
    """Accept ``DPM++ 2M`` and ``dpmpp-2m`` for ``dpmpp_2m``."""
    known = {_key(spelling): name for name, label in labels.items() for spelling in (name, label)}
    return BeforeValidator(lambda value: known.get(_key(value), value) if isinstance(value, str) else value)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name[:64].lower().replace("++", "pp"))


def _zh(text: str) -> Any:
    return {"zh": text}


Text = Annotated[str, AfterValidator(_plain_text)]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=400)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Steps = Annotated[int, Strict(), Field(ge=1, le=200)]
Scale = Annotated[float, Strict(), Field(ge=0.0, le=30.0, allow_inf_nan=False)]
Unit = Annotated[float, Strict(), Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Shift = Annotated[float, Strict(), Field(ge=0.1, le=20.0, allow_inf_nan=False)]
Side = Annotated[int, Strict(), Field(ge=16, le=4096)]
Seed = Annotated[int, Strict(), Field(ge=0, le=MAX_SEED)]
Sampler = Annotated[SamplerName, _known_spelling(SAMPLER_LABELS)]
Schedule = Annotated[ScheduleName, _known_spelling(SCHEDULE_LABELS)]


def _interval(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("needs a start below its end, such as 0.1 0.8")
    return value


Interval = Annotated[tuple[Unit, Unit], AfterValidator(_interval)]


class _Model(BaseModel):
    """Frozen, no unknown fields, no NaN or infinity; what is refused is never echoed at length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


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
        "",
        description="What the picture should not show.",
        json_schema_extra=_zh("不希望出现的内容。"),
    )
    style: Word | None = Field(
        None,
        description="House style of the drawing; which there are depends on the model.",
        json_schema_extra=_zh("绘画风格，可选项取决于模型。"),
    )
    n: Annotated[int, Strict(), Field(ge=1, le=64)] = Field(
        1,
        description="How many pictures to make; picture i uses seed + i.",
        json_schema_extra=_zh("生成张数，第 i 张使用 seed + i。"),
    )
    seed: Seed | None = Field(
        None,
        description="Number that fixes the noise: same seed and settings, same picture. Default: random.",
        json_schema_extra=_zh("随机种子；相同种子与设置得到相同图片。默认随机。"),
    )
    steps: Steps | None = Field(
        None,
        description="Denoising steps: more is slower and finer. Default: the model's.",
        json_schema_extra=_zh("去噪步数：越多越慢越精细。默认由模型决定。"),
    )
    cfg_scale: Scale | None = Field(
        None,
        description="How strictly to follow the prompt; 1 switches guidance off. Default: the model's.",
        json_schema_extra=_zh("提示词引导强度；1 为关闭引导。默认由模型决定。"),
    )
    cfg_rescale: Unit | None = Field(
        None,
        description="Tame over-saturation from strong guidance: 0 none, 1 full. Default: the model's.",
        json_schema_extra=_zh("抑制强引导造成的过饱和：0 关闭，1 最强。默认由模型决定。"),
    )
    guidance_interval: Interval | None = Field(
        None,
        description="Part of the schedule where guidance acts: start and end, 0 to 1. Default: the model's.",
        json_schema_extra=_zh("引导起作用的区间：起点和终点，0 到 1。默认由模型决定。"),
    )
    sampler: Sampler | None = Field(
        None,
        description="Method that walks from noise to picture. Default: the model's.",
        json_schema_extra=_zh("采样方法。默认由模型决定。"),
    )
    schedule: Schedule | None = Field(
        None,
        description="How the noise levels are spaced. Default: the model's.",
        json_schema_extra=_zh("噪声调度。默认由模型决定。"),
    )
    shift: Shift | None = Field(
        None,
        description="Shift of the noise levels of a flow model; above 1 spends more steps on layout. "
        "Default: the model's.",
        json_schema_extra=_zh("流模型的噪声偏移；大于 1 时更多步数用于构图。默认由模型决定。"),
    )
    width: Side | None = Field(
        None,
        description="Width in pixels, where the model allows a choice. Default: the model's.",
        json_schema_extra=_zh("宽度（像素），取决于模型。默认由模型决定。"),
    )
    height: Side | None = Field(
        None,
        description="Height in pixels, where the model allows a choice. Default: the model's.",
        json_schema_extra=_zh("高度（像素），取决于模型。默认由模型决定。"),
    )
    model: Name = Field(
        "default",
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
    width: Side
    height: Side


Request = TextToImageRequest
"""Everything that can be asked for (a union on ``kind`` once there is a second task)."""


class ImageRecord(_Model):
    """What is stored in a picture: enough to make the same pixels again."""

    format: Literal[1] = 1
    request: ResolvedTextToImage
    index: Annotated[int, Strict(), Field(ge=0, le=63)] = Field(
        0, description="Which picture of the request it is."
    )
    seed: Seed = Field(description="Seed of this picture: request.seed + index.")
    model_name: Name
    model_sha256: Sha256
    versions: dict[Word, Word] = Field(default_factory=dict, max_length=16, description="vitrail, torch, ...")
    device: Word = "cpu"
    precision: Word = "float32"
    created: AwareDatetime
    understood_as: Annotated[Text, StringConstraints(max_length=2 * MAX_PROMPT)] | None = Field(
        None, description="The words the model was given, where they differ from the prompt (a translation)."
    )
    hints: tuple[Hint, ...] = Field((), max_length=16, description="What the model could not serve well.")

    @model_validator(mode="after")
    def _one_of_the_request(self) -> ImageRecord:
        if self.index >= self.request.n or self.seed != self.request.seed + self.index:
            raise ValueError("index and seed do not belong to the request")
        return self

    def again(self) -> ResolvedTextToImage:
        """The request that makes this one picture again: same settings, its own seed, n = 1.

        A picture depends on its own seed alone, not on its place in the request.
        """
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
    eta: float | None = Field(None, ge=0, description="Seconds left, once it can be told.")


class Preview(_Model):
    """A picture as it stands, rough and small."""

    type: Literal["preview"] = "preview"
    index: int = Field(ge=0, description="Which picture of the request.")
    step: int = Field(ge=0)
    picture: Any = Field(None, exclude=True, repr=False, description="PIL.Image, in-process only.")


class PictureDone(_Model):
    """A picture is finished; the engine adds where it was saved."""

    type: Literal["picture_done"] = "picture_done"
    index: int = Field(ge=0, description="Which picture of the request.")
    record: ImageRecord
    path: str | None = None
    picture: Any = Field(None, exclude=True, repr=False, description="PIL.Image, in-process only.")


class Done(_Model):
    """The request is finished."""

    type: Literal["done"] = "done"
    seconds: float = Field(ge=0)
    paths: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


Event = Progress | Preview | PictureDone | Done
"""What a task tells while it works, in this order; told apart by ``type``."""


def new_seed() -> int:
    """A fresh random seed, short enough to be typed (below 2**32)."""
    return secrets.randbelow(2**32)
