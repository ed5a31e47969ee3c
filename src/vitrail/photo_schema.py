"""Requests that work on photographs: repair what a mask covers, enlarge.

Built as those of :mod:`vitrail.codes_schema`; :mod:`vitrail.schema` joins them to its union. A picture is
given by its content (:class:`~vitrail.request_fields.FileRef`); the record keeps its name and SHA-256.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Strict

from vitrail.request_fields import FileRef, Model, Name, Unit, zh

__all__ = ["REPAIR_MODEL", "UPSCALE_MODEL", "PhotoRequest", "RepairRequest", "UpscaleRequest"]

REPAIR_MODEL = "migan"
"""Model that repairs photographs where none is named; ``vitrail models pull migan`` fetches it."""

UPSCALE_MODEL = "realesrgan-x4"
"""Model that enlarges photographs where none is named; ``vitrail models pull realesrgan-x4`` fetches it."""


def _said(english: str, chinese: str, **more: Any) -> Any:
    return Field(description=english, json_schema_extra=zh(chinese), **more)


class _Photo(Model):
    """A request whose result is one picture and does not depend on chance."""

    n: ClassVar[int] = 1
    seed: ClassVar[int] = 0
    prompt: ClassVar[str] = ""


class RepairRequest(_Photo):
    """Draw anew what a mask covers in a photograph."""

    kind: Literal["repair"] = "repair"
    picture: FileRef = _said("The photograph to repair.", "要修复的照片。")
    mask: FileRef = _said(
        "Picture of the photograph's shape: white what is to be drawn anew, black what stays; grey mixes.",
        "与照片形状相同的蒙版：白色重画，黑色保留，灰色混合。",
    )
    grow: Annotated[int, Strict(), Field(ge=0, le=256)] = _said(
        "Pixels by which the mask is widened first, where it was painted too tight.",
        "先把蒙版向外扩大的像素数，用于蒙版画得太紧时。",
        default=0,
    )
    model: Name = _said(
        "Name or folder of a model that repairs, or of a Stable Diffusion.",
        "修复模型或 Stable Diffusion 的名称或文件夹。",
        default=REPAIR_MODEL,
    )


class UpscaleRequest(_Photo):
    """Enlarge a photograph."""

    kind: Literal["upscale"] = "upscale"
    picture: FileRef = _said("The picture to enlarge.", "要放大的图片。")
    scale: Literal[2, 4] = _said("How many times larger each side becomes.", "每边放大的倍数。", default=4)
    tile: Annotated[int, Strict(), Field(ge=64, le=1024)] = _said(
        "Side in pixels of the pieces that are worked on one after the other; smaller needs less memory.",
        "逐块处理时每块的边长（像素）；越小占用内存越少。",
        default=256,
    )
    fidelity: Unit | None = _said(
        "How closely the result follows the picture: 0 is what the network draws, 1 keeps noise as well. "
        "Default: 0 at four times the size, 0.5 at twice.",
        "结果贴近原图的程度：0 完全由网络绘制，1 连噪点也保留。放大四倍时默认 0，两倍时默认 0.5。",
        default=None,
    )
    model: Name = _said(
        "Name or folder of a model that enlarges.", "放大模型的名称或文件夹。", default=UPSCALE_MODEL
    )


PhotoRequest = RepairRequest | UpscaleRequest
"""Everything that can be asked for a photograph; also what a record holds of it: nothing is left open."""
