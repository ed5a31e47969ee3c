"""Training as a long work: what a run writes down is told as it happens, and a stop leaves a checkpoint."""

from __future__ import annotations

import json
import shutil
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch import nn

from vitrail.errors import CancelledError, InputError
from vitrail.files import atomic_write, shown
from vitrail.images import grid
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.text import TextEncoder
from vitrail.provenance.metadata import encode
from vitrail.recipe import Recipe, parse_recipe
from vitrail.runtime import Precision
from vitrail.schema import PictureDone, SamplingDefaults, TextToImageRequest
from vitrail.schema import parse as parse_request
from vitrail.serving.long_work import (
    STOPPED_MODEL,
    Figure,
    LogLine,
    LongProgress,
    LongResult,
    Report,
    SamplePicture,
    TrainRequest,
    run_name,
)
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS
from vitrail.tasks.loading import Loader, TextToImageModel
from vitrail.training.loop import StepReport, TrainState
from vitrail.training.runs import Sampler, train
from vitrail.training.sources import shipped_encoder
from vitrail.training.suggest import suggest_recipe

__all__ = ["prompt_sampler", "recipe_of", "run_training"]

_SEEN = 96
"""Least longer side of a sample in pixels."""

_EVERY = 0.5
"""Seconds between two words about progress."""


def run_training(
    request: TrainRequest, report: Report, cancelled: threading.Event, folder: Path
) -> LongResult:
    """Train what ``request`` says; see :func:`vitrail.serving.long_work_run.run_long_work`."""
    recipe, reasons = recipe_of(request)
    for line in reasons:
        report(LogLine(line=shown(line, 400)))
    place = folder / "runs" / run_name(request.run or recipe.name)
    watch = _Watch(recipe, place, report, cancelled)
    encoder = shipped_encoder() if recipe.kind == "text_to_image" else None
    outcome = train(
        recipe,
        place,
        device=request.device,
        encoder=encoder,
        sample=None if encoder is None else prompt_sampler(encoder, recipe.optim.precision),
        quiet=True,
        told=lambda line: report(LogLine(line=shown(line, 400))),
        hooks=[watch],
        stopped_model=place / STOPPED_MODEL,
    )
    watch.tell_news(outcome.images_seen)
    if outcome.status == "stopped":
        raise CancelledError(
            f"stopped at {outcome.images_seen:,} pictures, checkpoint saved; the same request goes on"
        )
    shutil.rmtree(place / STOPPED_MODEL, ignore_errors=True)
    return LongResult(
        summary=f"{outcome.images_seen:,} pictures seen; the model is ready",
        paths=(str(outcome.model), str(place)),
        values=watch.latest,
    )


def recipe_of(request: TrainRequest) -> tuple[Recipe, list[str]]:
    """Return the recipe that ``request`` asks for, and the reasons where it was suggested.

    Raises :class:`InputError` for a recipe or a setting that is not allowed.
    """
    changes = list(request.changes)
    if request.recipe is None:
        return suggest_recipe(str(request.data), changes)
    try:
        tables = tomllib.loads(request.recipe)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe is not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError("the recipe is nested too deeply") from error
    if tables.get("kind") == "staged":
        raise InputError(
            "a staged recipe names other files; train its stages one by one, or use vitrail train"
        )
    if request.data is not None:
        changes.insert(0, f"data.source={json.dumps(request.data, ensure_ascii=False)}")
    return parse_recipe(tables, changes, origin="the recipe"), []


class _Watch:
    """A hook that tells of progress, figures and samples, and ends the run when it is cancelled."""

    def __init__(self, recipe: Recipe, place: Path, report: Report, cancelled: threading.Event) -> None:
        self.latest: dict[str, float] = {}
        self._optim = recipe.optim
        self._log, self._samples = place / "metrics.jsonl", place / "samples"
        self._report, self._cancelled = report, cancelled
        self._began: tuple[float, float] | None = None
        self._seen: int | None = None
        self._last = 0.0
        self._offset = 0
        self._known = set(_grids(self._samples))

    def __call__(self, state: TrainState, report: StepReport) -> bool:
        now = time.monotonic()
        if self._began is None:
            self._began, self._seen = (now, report.share), report.images_seen - report.batch
        if now - self._last >= _EVERY or report.share >= 1.0:
            self._last = now
            self._tell_progress(state, report, now)
            self.tell_news(report.images_seen)
        return self._cancelled.is_set()

    def _tell_progress(self, state: TrainState, report: StepReport, now: float) -> None:
        began, share = self._began or (now, 0.0)
        gained = report.share - share
        eta = (now - began) / gained * (1.0 - report.share) if gained > 0 and now > began else None
        if self._optim.until_images is not None:
            done, total = report.images_seen, self._optim.until_images
        else:
            done, total = round(state.seconds), round(60 * (self._optim.time_budget_minutes or 0))
        self._report(LongProgress(done=min(done, total), total=total, what="train", eta=eta))

    def tell_news(self, images: int) -> None:
        """Tell what the run's log and its folder of samples have got since the last time."""
        if self._seen is None:
            return
        for line in self._new_lines():
            step = int(line.pop("images"))
            for name, value in line.items():
                # What is there from before this session has been told by the one that wrote it.
                if name not in ("step", "seconds") and step > self._seen:
                    self.latest[name] = value
                    self._report(Figure(name=name, step=step, value=value))
        for path in sorted(set(_grids(self._samples)) - self._known):
            self._known.add(path)
            self._report(SamplePicture(name=path.stem, step=_images_of(path, images), data=path.read_bytes()))

    def _new_lines(self) -> Iterator[dict[str, float]]:
        if not self._log.exists():
            return
        with open(self._log, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            yield {
                name: value
                for name, value in json.loads(text).items()
                if isinstance(value, int | float) and abs(value) < float("inf")
            }


def _grids(folder: Path) -> Iterator[Path]:
    return folder.glob("images-*.png")


def _images_of(path: Path, images: int) -> int:
    number = path.stem.removeprefix("images-")
    return int(number) if number.isdecimal() else images


def _large(picture: Image.Image) -> Image.Image:
    """A picture of few pixels as squares that people see, so that its label fits below it."""
    factor = -(-_SEEN // max(picture.size))
    return picture if factor <= 1 else picture.resize((factor * picture.width, factor * picture.height), 0)


def prompt_sampler(encoder: TextEncoder, precision: Precision) -> Sampler:
    """Return what draws a grid for the recipe's prompts with a network as it stands that draws pixels."""

    def draw(network: nn.Module, prompts: Sequence[str], path: Path) -> None:
        if not isinstance(network, ShellDiT):
            return
        device = next(network.parameters()).device
        side = network.config.image_size
        model = TextToImageModel(
            name="in-training",
            sha256="0" * 64,
            network=network,
            text=encoder,
            upsampler=None,
            styles=(),
            defaults=SamplingDefaults(width=side, height=side),
        )
        loader, context = Loader.holding(model, device), Context(device, precision)
        pictures, read = [], []
        for index, prompt in enumerate(prompts):
            seed = prompts[:index].count(prompt)  # the same words again: another picture of them
            request = parse_request(TextToImageRequest, {"prompt": prompt, "seed": seed})
            for event in TASKS[request.kind](request, loader, context):
                if isinstance(event, PictureDone):
                    pictures.append(_large(event.picture))
                    read.append(event.record.understood_as or prompt)
        sheet = grid(pictures, labels=list(prompts), substitutes=read)
        atomic_write(path, encode(sheet, "png"))

    return draw
