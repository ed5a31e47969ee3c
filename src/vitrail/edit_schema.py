"""Requests that begin with a picture and are served by a diffusion model: image to image.

Built as those of :mod:`vitrail.schema`, which joins them to its union. A picture is given by its content
(:class:`~vitrail.request_fields.FileRef`); the record keeps its name and SHA-256.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import StringConstraints, model_validator

from vitrail.diffusion_fields import (
    Addons,
    SamplingFields,
    SizeFields,
    SurfaceFields,
    WordFields,
    hastened,
    said,
)
from vitrail.request_fields import (
    MAX_PROMPT,
    MAX_SEED,
    FileRef,
    Name,
    Scale,
    Seed,
    Steps,
    Text,
    Unit,
    new_seed,
)
from vitrail.sampling_fields import Interval, Sampler, SamplingDefaults, Schedule, Shift
from vitrail.validation import parse

__all__ = ["EditRequest", "Fit", "ResolvedEdit", "sampling_of"]

Fit = Literal["crop", "pad", "stretch"]


class EditRequest(SizeFields, SurfaceFields, Addons, SamplingFields, WordFields):
    """Draw over a picture: it is noised, and denoised with other words."""

    kind: Literal["edit"] = "edit"
    prompt: Annotated[Text, StringConstraints(max_length=MAX_PROMPT)] = said(
        "What the picture is to show, in English or Chinese.",
        "修改后的画面内容，中文或英文均可。",
        default="",
    )
    picture: FileRef = said("The picture to work on.", "要处理的图片。")
    strength: Unit = said(
        "How much of the picture may change: 0 nothing, 1 everything.",
        "可以改动的程度：0 不变，1 全部重画。",
        default=0.6,
    )
    mask: FileRef | None = said(
        "Picture that says how much may change where: white all of the strength, grey a part, black nothing.",
        "蒙版：白色处按全部强度改动，灰色处按比例，黑色处保留。",
        default=None,
    )
    fit: Fit = said(
        "Where width and height have another shape than the picture: cut its edges, pad them, or stretch it.",
        "宽高比与原图不同时：裁切边缘、补边，或拉伸。",
        default="crop",
    )
    model: Name = said("Name or folder of a diffusion model.", "扩散模型的名称或文件夹。", default="default")

    @model_validator(mode="after")
    def _last_seed(self) -> Self:
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise ValueError(f"cannot be served: seed {self.seed} + {self.n - 1} is above {MAX_SEED}")
        return self

    def resolve(self, defaults: SamplingDefaults) -> ResolvedEdit:
        """Fill every open setting from ``defaults``; the seed is drawn if there is none."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        given = {name: value for name, value in given.items() if value is not None}
        return parse(ResolvedEdit, {"seed": new_seed()} | sampling_of(defaults) | hastened(self) | given)


class ResolvedEdit(EditRequest):
    """An edit with nothing left open: the one that is run and recorded."""

    seed: Seed
    steps: Steps
    cfg_scale: Scale
    cfg_rescale: Unit
    guidance_interval: Interval
    sampler: Sampler
    schedule: Schedule
    shift: Shift


def sampling_of(defaults: SamplingDefaults) -> dict[str, object]:
    """Return those of a model's defaults that fill the open settings of an edit."""
    return {name: getattr(defaults, name) for name in SamplingFields.model_fields}
