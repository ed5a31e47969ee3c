"""What can be asked for, what is told while it is made, and what is remembered: one pydantic model each.

The same models serve the command line, the HTTP body and the studio's form; a field's description is its help
text, in English and (``json_schema_extra["zh"]``) in Chinese. Nothing here imports torch.

A setting of ``None`` means "the model's own"; :meth:`TextToImageRequest.resolve` fills it in, and only
resolved requests are recorded in pictures.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, Strict, StringConstraints, model_validator

from vitrail.codes_schema import MAX_FRAMES, CodesRequest, ResolvedCodesRequest
from vitrail.diffusion_fields import Addons, SamplingFields, SurfaceFields, WordFields, hastened, said
from vitrail.edit_schema import EditRequest, ResolvedEdit
from vitrail.errors import InputError
from vitrail.photo_schema import PhotoRequest
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
from vitrail.sampling_fields import (
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    Choice,
    Interval,
    NoiseName,
    Sampler,
    SamplerName,
    SamplingDefaults,
    Schedule,
    ScheduleName,
    Shift,
    Strength,
    Temperature,
    TopK,
    TopP,
    Truncation,
)
from vitrail.validation import FieldHelp, describe, input_error, parse

__all__ = [
    "MAX_SEED",
    "SAMPLER_LABELS",
    "SCHEDULE_LABELS",
    "Done",
    "EditRequest",
    "Event",
    "FieldHelp",
    "ImageRecord",
    "PictureDone",
    "Preview",
    "Progress",
    "Request",
    "ResolvedEdit",
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


def _looks_like_a_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.startswith(("~", "."))


Hint = Annotated[
    Text,
    StringConstraints(max_length=200),
    BeforeValidator(lambda text: text[:199] + "…" if isinstance(text, str) and len(text) > 200 else text),
]


HiresScale = Annotated[float, Strict(), Field(ge=1.0, le=4.0, allow_inf_nan=False)]


class TextToImageRequest(SurfaceFields, Addons, SamplingFields, WordFields):
    """Make pictures from words."""

    kind: Literal["text_to_image"] = "text_to_image"
    temperature: Temperature | None = said(
        "Models that draw codes: 0 takes the likeliest code, more than 1 the unlikely ones more "
        "often. Default: the model's.",
        "编码模型：0 取最可能的编码，大于 1 更多取少见的编码。默认由模型决定。",
        default=None,
    )
    top_k: TopK | None = said(
        "Models that draw codes: only from the so many likeliest; 0 for all. Default: the model's.",
        "编码模型：只在最可能的若干个编码中抽取；0 为不限。默认由模型决定。",
        default=None,
    )
    top_p: TopP | None = said(
        "Models that draw codes: only from the likeliest that together reach this probability. "
        "Default: the model's.",
        "编码模型：只在累计概率达到此值的最可能编码中抽取。默认由模型决定。",
        default=None,
    )
    choice_temperature: Choice | None = said(
        "MaskGIT: chance in the order in which codes are settled; more is more varied. Default: the model's.",
        "MaskGIT：确定编码先后次序的随机程度，越大越多样。默认由模型决定。",
        default=None,
    )
    truncation: Truncation | None = said(
        "GANs: no number of the latent beyond this; smaller is more typical and less varied. "
        "Default: the model's, mostly none.",
        "GAN：潜变量的截断值，越小越典型、越少变化。默认由模型决定，通常不截断。",
        default=None,
    )
    noise_strength: Strength | None = said(
        "GANs: factor on the noise in the layers; 0 switches it off. Default: the model's.",
        "GAN：各层噪声的强度系数，0 为关闭。默认由模型决定。",
        default=None,
    )
    noise: NoiseName | None = said(
        "GANs: distribution of the noise in the layers. Default: the model's.",
        "GAN：各层噪声的分布。默认由模型决定。",
        default=None,
    )
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
    subseed: Seed | None = said(
        "Second seed that the noise is turned towards, for variations; picture i then uses subseed + i and "
        "the same seed. Default: random, where subseed_strength is given.",
        "变体种子：噪声向它靠近；此时第 i 张使用 subseed + i，种子不变。给出 subseed_strength 时默认随机。",
        default=None,
    )
    subseed_strength: Unit = said(
        "How far the noise is turned towards that of the subseed: 0 not at all, 1 all the way.",
        "噪声向变体种子靠近的程度：0 不变，1 完全采用。",
        default=0.0,
    )
    hires_scale: HiresScale = said(
        "Draw the picture, enlarge it so many times and draw over it once more.",
        "先生成，再放大若干倍并重绘一遍细节。",
        default=1.0,
    )
    hires_strength: Unit = said(
        "How much of the enlarged picture the second pass may change.",
        "第二遍可以改动放大图的程度。",
        default=0.5,
    )
    hires_steps: Steps | None = said(
        "Steps of the second pass, before its strength. Default: as the first.",
        "第二遍的步数（按强度折算之前）。默认与第一遍相同。",
        default=None,
    )
    hires_upscaler: Name | None = said(
        "Model that enlarges between the two passes, such as realesrgan-x4. Default: bicubic interpolation.",
        "两遍之间用来放大的模型，例如 realesrgan-x4。默认双三次插值。",
        default=None,
    )
    panorama: bool = said(
        "A full circle: left and right edges meet, twice as wide as high, drawn in tiles.",
        "环形全景：左右边缘衔接，宽为高的两倍，分块绘制。",
        default=False,
    )
    model: Name = said("Name, folder or file of the model.", "模型名称、文件夹或文件。", default="default")

    def resolve(self, defaults: SamplingDefaults, seed: int | None = None) -> ResolvedTextToImage:
        """Fill every open setting: from ``defaults``, and the seed from ``seed`` or a fresh random one."""
        given = self.model_dump(exclude_none=True)
        filled = defaults.model_dump() | hastened(self) | given
        if self.panorama:
            filled |= {"tile": True, "seamless": "xy" if "y" in self.seamless else "x"}
            filled["width"] = self.width or min(4096, 2 * filled["height"])
        if self.seed is None:
            filled["seed"] = new_seed() if seed is None else seed
        if self.subseed is None and self.subseed_strength > 0:
            filled["subseed"] = new_seed()
        return parse(ResolvedTextToImage, filled)

    @model_validator(mode="after")
    def _last_seed(self) -> Self:
        varied = self.subseed_strength > 0
        first, name = (self.subseed, "subseed") if varied else (self.seed, "seed")
        if first is not None and first + self.n - 1 > MAX_SEED:
            raise ValueError(f"cannot be served: {name} {first} + {self.n - 1} is above {MAX_SEED}")
        return self

    def seed_of(self, index: int) -> int:
        """Seed of picture ``index``; all variations of one seed share it. Needs a seed."""
        return (self.seed or 0) + (0 if self.subseed_strength > 0 else index)


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


Request = TextToImageRequest | EditRequest | CodesRequest | PhotoRequest
"""Everything that can be asked for, told apart by ``kind``."""

ResolvedRequest = Annotated[
    ResolvedTextToImage | ResolvedEdit | ResolvedCodesRequest | PhotoRequest, Field(discriminator="kind")
]
"""What a record holds: a request with nothing left open."""


class ImageRecord(_Model):
    """What is stored in a picture: enough to make the same pixels again."""

    format: Literal[1] = 1
    request: ResolvedRequest
    index: Annotated[int, Strict(), Field(ge=0, lt=MAX_FRAMES)] = Field(
        default=0, description="Which picture of the request it is."
    )
    seed: Seed = Field(description="Seed of this picture: request.seed + index, of variations request.seed.")
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
        own = getattr(self.request, "seed_of", None)
        seed = self.request.seed + self.index if own is None else own(self.index)
        if self.index >= self.request.n or self.seed != seed:
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
        one: dict[str, int] = {"n": 1, "seed": self.seed}
        if self.request.subseed is not None:
            one["subseed"] = self.request.subseed + self.index
        return self.request.model_copy(update=one)

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
