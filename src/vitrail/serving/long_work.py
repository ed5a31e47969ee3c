"""Works that take minutes to days, as requests: training, building data, evaluating, and what they tell.

A long work goes through the same queue as a picture. It leaves what it makes in the folder that
:func:`vitrail.serving.long_work_run.run_long_work` is given: trainings in ``runs/NAME`` (as ``vitrail train``
leaves them), reports of evaluations and inspections in ``reports/NAME``. Nothing here imports torch.

``pictures``, ``against`` and ``data`` name folders of the machine that does the work. Whoever takes a request
from a stranger checks first that they may be opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, Strict, StringConstraints, model_validator

from vitrail.request_fields import Model, Name, Scale, Seed, Steps, Text, Word, zh

__all__ = [
    "LONG_KINDS",
    "STOPPED_MODEL",
    "BuildDataRequest",
    "CodebookRequest",
    "EvaluateRequest",
    "Figure",
    "InspectRequest",
    "LogLine",
    "LongEvent",
    "LongProgress",
    "LongRequest",
    "LongResult",
    "PullModelRequest",
    "Report",
    "SamplePicture",
    "TrainRequest",
    "run_name",
]

STOPPED_MODEL = "model-so-far"
"""Folder within a run's that holds its model as it was when the run was stopped, until it has finished."""

MAX_RECIPE = 100_000
"""Longest recipe, in characters."""

Folder = Annotated[Text, StringConstraints(min_length=1, max_length=1000)]
Device = Annotated[Text, StringConstraints(min_length=1, max_length=40)]
Setting = Annotated[Text, StringConstraints(min_length=3, max_length=2000)]
Line = Annotated[Text, StringConstraints(min_length=1, max_length=2000)]
Count = Annotated[int, Strict(), Field(ge=0)]

_DEVICE = Field(
    default="auto",
    description="auto, cpu, cuda, cuda:0 or mps.",
    json_schema_extra=zh("auto、cpu、cuda、cuda:0 或 mps。"),
)


class TrainRequest(Model):
    """Train a model: by a recipe, or by a suggested one on a folder of pictures.

    Submitted again after a stop it goes on from its last checkpoint; after its end it does nothing.
    """

    kind: Literal["train"] = "train"
    recipe: Annotated[Text, StringConstraints(max_length=MAX_RECIPE)] | None = Field(
        default=None,
        description="The recipe as TOML. Default: one that suits the folder of pictures.",
        json_schema_extra=zh("TOML 格式的配方。默认按图片文件夹自动建议。"),
    )
    data: Folder | None = Field(
        default=None,
        description="Folder of pictures to train on. Default: what the recipe says.",
        json_schema_extra=zh("用于训练的图片文件夹。默认按配方。"),
    )
    changes: tuple[Setting, ...] = Field(
        default=(),
        max_length=64,
        description="Settings of the recipe to change, such as optim.until_images=20000.",
        json_schema_extra=zh("要修改的配方设置，例如 optim.until_images=20000。"),
    )
    run: Word | None = Field(
        default=None,
        description="Name of the run. Default: the recipe's name.",
        json_schema_extra=zh("训练名称。默认用配方的名称。"),
    )
    device: Device = _DEVICE

    @model_validator(mode="after")
    def _something_to_train(self) -> TrainRequest:
        if self.recipe is None and self.data is None:
            raise ValueError("has nothing to train: give a recipe, or a folder of pictures")
        return self


class BuildDataRequest(Model):
    """Build a data set, the networks of the metrics, or a font, from the packages that are pinned."""

    kind: Literal["build_data"] = "build_data"
    what: Literal["emoji", "fashion-mnist", "networks", "font"] = Field(
        description="What is built.", json_schema_extra=zh("要构建的内容。")
    )
    size: Annotated[int, Strict(), Field(ge=64, le=256)] = Field(
        default=256,
        description="Side of the drawn emoji in pixels; the other sets have their own.",
        json_schema_extra=zh("表情图片的边长（像素）；其他数据集自带尺寸。"),
    )


class EvaluateRequest(Model):
    """Measure a folder of pictures, or what a model makes, and write a report."""

    kind: Literal["evaluate"] = "evaluate"
    pictures: Folder | None = Field(
        default=None,
        description="Folder of pictures to judge, or emoji or fashion-mnist: their held-out pictures.",
        json_schema_extra=zh("要评测的图片文件夹，或 emoji、fashion-mnist：其留出图片。"),
    )
    against: Folder | None = Field(
        default=None,
        description="Folder of real pictures to compare with.",
        json_schema_extra=zh("用于比较的真实图片文件夹。"),
    )
    paired: bool = Field(
        default=False,
        description="Each picture has its original of the same name in the other folder.",
        json_schema_extra=zh("每张图片在另一文件夹中有同名原图。"),
    )
    model: Name | None = Field(
        default=None,
        description="Model to judge: its reconstructions of the pictures, or pictures of its own.",
        json_schema_extra=zh("要评测的模型：对图片的重建，或它自己生成的图片。"),
    )
    prompts: tuple[Line, ...] = Field(
        default=(),
        max_length=10_000,
        description="Prompts for the model.",
        json_schema_extra=zh("给模型的提示词。"),
    )
    metrics: tuple[Annotated[Text, StringConstraints(min_length=1, max_length=64)], ...] = Field(
        default=(),
        max_length=64,
        description="Metrics to measure. Default: all that fit.",
        json_schema_extra=zh("要测量的指标。默认为所有适用的指标。"),
    )
    limit: Annotated[int, Strict(), Field(ge=2, le=1_000_000)] = Field(
        default=2000,
        description="Pictures of each set at most.",
        json_schema_extra=zh("每组图片的最大数量。"),
    )
    seeds: Annotated[int, Strict(), Field(ge=1, le=10_000)] = Field(
        default=1, description="Pictures for each prompt.", json_schema_extra=zh("每条提示词的图片数。")
    )
    seed: Seed = Field(default=0, description="First seed.", json_schema_extra=zh("起始种子。"))
    style: Name | None = Field(default=None, description="Style.", json_schema_extra=zh("风格。"))
    steps: Steps | None = Field(default=None, description="Steps.", json_schema_extra=zh("步数。"))
    cfg_scale: Scale | None = Field(
        default=None, description="Guidance scale.", json_schema_extra=zh("引导强度。")
    )
    name: Word | None = Field(
        default=None,
        description="Name of the report. Default: of what is judged.",
        json_schema_extra=zh("报告名称。默认用评测对象的名称。"),
    )
    language: Literal["en", "zh"] = Field(
        default="en", description="Language of the report.", json_schema_extra=zh("报告语言。")
    )
    device: Device = _DEVICE

    @model_validator(mode="after")
    def _fits_together(self) -> EvaluateRequest:
        if self.pictures is None and self.model is None:
            raise ValueError("has nothing to judge: give pictures, or a model")
        if self.paired and (self.pictures is None or self.against is None):
            raise ValueError("compares with originals when paired: give pictures and against")
        if self.prompts and self.model is None:
            raise ValueError("has prompts and no model to draw them")
        return self


class InspectRequest(Model):
    """Look at every picture of a folder before a training, and write what was found."""

    kind: Literal["inspect"] = "inspect"
    pictures: Folder = Field(description="Folder of pictures.", json_schema_extra=zh("图片文件夹。"))
    size: Annotated[int, Strict(), Field(ge=16, le=2048)] = Field(
        default=256,
        description="Side in pixels that a training would use.",
        json_schema_extra=zh("训练将使用的边长（像素）。"),
    )
    language: Literal["en", "zh"] = Field(
        default="en", description="Language of the report.", json_schema_extra=zh("报告语言。")
    )


class CodebookRequest(Model):
    """Draw what each code of a tokenizer stands for."""

    kind: Literal["codebook"] = "codebook"
    model: Name = Field(description="Name of the tokenizer.", json_schema_extra=zh("编码器的名称。"))
    count: Annotated[int, Strict(), Field(ge=1, le=4096)] = Field(
        default=256,
        description="How many codes to show, the most used first.",
        json_schema_extra=zh("展示多少个编码，按使用频率排列。"),
    )
    pictures: Folder | None = Field(
        default=None,
        description="Count the codes on the pictures of this folder. Default: their use in training.",
        json_schema_extra=zh("用该文件夹中的图片统计编码使用情况。默认用训练时的统计。"),
    )
    device: Device = _DEVICE


class PullModelRequest(Model):
    """Fetch a model of the catalogue."""

    kind: Literal["pull_model"] = "pull_model"
    name: Name = Field(description="Its name in the catalogue.", json_schema_extra=zh("目录中的名称。"))
    overwrite: bool = Field(
        default=False,
        description="Fetch a model again that is here already.",
        json_schema_extra=zh("已有该模型时重新获取。"),
    )


LongRequest = (
    TrainRequest | BuildDataRequest | EvaluateRequest | InspectRequest | CodebookRequest | PullModelRequest
)
"""Every long work that can be asked for, told apart by ``kind``."""

LONG_KINDS: dict[str, type[Model]] = {
    "train": TrainRequest,
    "build_data": BuildDataRequest,
    "evaluate": EvaluateRequest,
    "inspect": InspectRequest,
    "codebook": CodebookRequest,
    "pull_model": PullModelRequest,
}
"""The model of each kind."""


class LongProgress(Model):
    """How far the work is: ``done`` of ``total`` of what it does now, 0 of 0 where that cannot be told.

    A training counts pictures, or, where it has a time instead of a length, seconds.
    """

    type: Literal["progress"] = "progress"
    done: Count
    total: Count
    what: str = ""
    eta: float | None = Field(default=None, description="Seconds left, once it can be told.")


class LogLine(Model):
    """A line for people."""

    type: Literal["log"] = "log"
    line: str


class Figure(Model):
    """A value at a step of the work, for a curve. A training's steps count pictures seen."""

    type: Literal["figure"] = "figure"
    name: str
    step: Count
    value: float


class SamplePicture(Model):
    """A picture that shows how the work stands, such as a grid of samples; ``data`` is a PNG file."""

    type: Literal["sample"] = "sample"
    name: str
    step: Count = 0
    data: bytes = Field(repr=False)


LongEvent = LongProgress | LogLine | Figure | SamplePicture
"""What a long work tells, told apart by ``type``."""

Report = Callable[[LongEvent], None]


class LongResult(Model):
    """How a long work ended. ``paths``: what it left, the most important first; ``values``: its figures."""

    summary: str
    paths: tuple[str, ...] = ()
    values: dict[str, float] = Field(default_factory=dict)


def run_name(text: str) -> str:
    """Return a folder's name made from ``text``: letters, digits and ``._-``, at most 60 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:60].strip("-._") or "work"
