"""Fields that every request to a diffusion model shares: its words, how it samples, what is added.

Classes to inherit from, each one idea: :mod:`vitrail.schema`, :mod:`vitrail.edit_schema` and
:mod:`vitrail.codes_schema` put their requests together from them. A setting of ``None`` means "the model's
own". Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, StringConstraints

from vitrail.request_fields import (
    MAX_PROMPT,
    FileRef,
    Model,
    Name,
    Scale,
    Seed,
    Side,
    Steps,
    Text,
    Unit,
    Word,
    zh,
)
from vitrail.sampling_fields import Interval, Sampler, Schedule, Shift

__all__ = [
    "FAST_GUIDANCE",
    "MAX_ADDONS",
    "Addons",
    "ControlUse",
    "GuidanceFields",
    "LoraUse",
    "SamplingFields",
    "SizeFields",
    "SurfaceFields",
    "WordFields",
    "Wrap",
    "hastened",
    "public_file",
    "said",
]

FAST_GUIDANCE = (0.5, 1.0)
"""The guidance interval of a ``fast`` request that gives none: as long as there is more noise than picture,
which of 20 even steps of Stable Diffusion are the first 12 (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
MAX_ADDONS = 16
"""Most LoRAs, embeddings or controls of one request."""

Weight = Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)]
Wrap = Literal["none", "x", "y", "xy"]


def said(english: str, chinese: str, **more: Any) -> Any:
    """A field with its description in both languages; ``more`` goes to pydantic (``default``)."""
    return Field(description=english, json_schema_extra=zh(chinese), **more)


class WordFields(Model):
    """What is wanted, how often, and by which chance."""

    prompt: Annotated[Text, StringConstraints(min_length=1, max_length=MAX_PROMPT)] = said(
        "What the picture shows, in English or Chinese.", "画面内容，中文或英文均可。"
    )
    negative_prompt: Annotated[Text, StringConstraints(max_length=MAX_PROMPT)] = said(
        "What the picture should not show.", "不希望出现的内容。", default=""
    )
    style: Word | None = said(
        "House style of the drawing; which there are depends on the model; none mixes them. "
        "Default: the model's, for new pictures.",
        "绘画风格，可选项取决于模型；none 为混合风格。生成新图时默认由模型决定。",
        default=None,
    )
    n: Annotated[int, Strict(), Field(ge=1, le=64)] = said(
        "How many pictures to make; picture i uses seed + i.",
        "生成张数，第 i 张使用 seed + i。",
        default=1,
    )
    seed: Seed | None = said(
        "Number that fixes the noise: same seed and settings, same picture. Default: random.",
        "随机种子；相同种子与设置得到相同图片。默认随机。",
        default=None,
    )


class GuidanceFields(Model):
    """Settings of the sampler that every diffusion model has, beside steps and the guidance scale."""

    cfg_rescale: Unit | None = said(
        "Tame over-saturation from strong guidance: 0 none, 1 full. Default: the model's.",
        "抑制强引导造成的过饱和：0 关闭，1 最强。默认由模型决定。",
        default=None,
    )
    guidance_interval: Interval | None = said(
        "Part of the schedule where guidance acts: start and end, 0 to 1. Default: the model's.",
        "引导起作用的区间：起点和终点，0 到 1。默认由模型决定。",
        default=None,
    )
    sampler: Sampler | None = said(
        "Method that walks from noise to picture. Default: the model's.",
        "采样方法。默认由模型决定。",
        default=None,
    )
    schedule: Schedule | None = said(
        "How the noise levels are spaced. Default: the model's.", "噪声调度。默认由模型决定。", default=None
    )
    shift: Shift | None = said(
        "Shift of the noise levels of a flow model; above 1 spends more steps on layout. "
        "Default: the model's.",
        "流模型的噪声偏移；大于 1 时更多步数用于构图。默认由模型决定。",
        default=None,
    )


class StepFields(Model):
    """How long, and how strictly by the words."""

    steps: Steps | None = said(
        "Denoising steps: more is slower and finer. Default: the model's.",
        "去噪步数：越多越慢越精细。默认由模型决定。",
        default=None,
    )
    cfg_scale: Scale | None = said(
        "How strictly to follow the prompt; 1 switches guidance off. Default: the model's.",
        "提示词引导强度；1 为关闭引导。默认由模型决定。",
        default=None,
    )


class SamplingFields(GuidanceFields, StepFields):
    """Everything that a sampler is told."""


class SizeFields(Model):
    """The picture's size."""

    width: Side | None = said(
        "Width in pixels, where the model allows a choice. Default: the model's.",
        "宽度（像素），取决于模型。默认由模型决定。",
        default=None,
    )
    height: Side | None = said(
        "Height in pixels, where the model allows a choice. Default: the model's.",
        "高度（像素），取决于模型。默认由模型决定。",
        default=None,
    )


class LoraUse(Model):
    """A LoRA by its name or file, and how much of it."""

    name: Name
    weight: Weight = 1.0


class ControlUse(Model):
    """A ControlNet by name or file, the picture that it follows, how much, and in which part of the steps."""

    name: Name
    picture: FileRef
    strength: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = 1.0
    start: Unit = 0.0
    end: Unit = 1.0


def _lora(value: Any) -> Any:
    """Read ``name:0.8`` as a LoRA; what is no text is left to the model's own checks."""
    if not isinstance(value, str):
        return value
    name, colon, weight = value.rpartition(":")
    try:
        return {"name": name, "weight": float(weight)} if colon and name else {"name": value}
    except ValueError:  # a colon of the path itself
        return {"name": value}


class Addons(Model):
    """What is added to a model that takes it, or asked of it (Stable Diffusion)."""

    lora: tuple[Annotated[LoraUse, BeforeValidator(_lora)], ...] = said(
        "LoRA to add, as NAME or NAME:WEIGHT, where NAME may be a file; may be given several times.",
        "要叠加的 LoRA，写法为 名称 或 名称:权重，名称也可以是文件路径；可给出多个。",
        default=(),
        max_length=MAX_ADDONS,
    )
    control: tuple[ControlUse, ...] = said(
        "ControlNet and its picture, as NAME=PICTURE or NAME=PICTURE:STRENGTH; may be given several times.",
        "ControlNet 及其参考图，写法为 名称=图片 或 名称=图片:强度；可给出多个。",
        default=(),
        max_length=MAX_ADDONS,
    )
    vae: Name | None = said(
        "Autoencoder (VAE) to use in place of the model's own: a name or a file.",
        "替换模型自带的自编码器（VAE）：名称或文件。",
        default=None,
    )
    embedding: tuple[Name, ...] = said(
        "Textual inversion to load: a name or a file; its file name is its word in the prompt. "
        "May be given several times.",
        "要加载的文本反演（embedding）：名称或文件，文件名即提示词中的词；可给出多个。",
        default=(),
        max_length=MAX_ADDONS,
    )
    clip_skip: Annotated[int, Strict(), Field(ge=1, le=12)] | None = said(
        "Which layer of the text encoder is read, counted from its end; 1 is the last. Default: the model's.",
        "读取文本编码器倒数第几层；1 为最后一层。默认由模型决定。",
        default=None,
    )
    fast: bool = said(
        "About a third of the time for a slightly different picture: deep features of the network are used "
        "for several steps, guidance acts in the first part of them, previews are rough.",
        "约三分之一的用时，画面略有差异：网络深层特征在数步间复用，引导只在前段起作用，预览较粗略。",
        default=False,
    )


class SurfaceFields(Model):
    """How a picture is laid out: in tiles, or so that its edges meet."""

    tile: bool = said(
        "Draw in overlapping tiles of the size that the model was trained on; for sizes beyond it.",
        "按模型训练尺寸分块绘制并融合重叠部分；用于更大的画面。",
        default=False,
    )
    seamless: Wrap = said(
        "Make edges meet, for textures: x left and right, y top and bottom, xy both.",
        "让边缘无缝衔接（纹理）：x 左右，y 上下，xy 四边。",
        default="none",
    )


def hastened(request: Addons) -> dict[str, Any]:
    """Settings that ``fast`` puts in place of the model's own."""
    return {"guidance_interval": FAST_GUIDANCE} if request.fast else {}


def public_file(name: str) -> str:
    """A file's name without its folder and ending, as a record may know it; a plain name stays as it is."""
    if "/" not in name and "\\" not in name and not name.startswith(("~", ".")):
        return name
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem, dot, ending = last.rpartition(".")
    return (stem if dot and ending.isalnum() and len(ending) <= 11 else last) or "file"
