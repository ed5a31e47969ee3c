"""Runs a long work by the library's own functions, tells how it goes, and stops it in good order."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

from vitrail.errors import CancelledError, DataError, InputError
from vitrail.files import atomic_write, ensure_folder, shown, storage_errors
from vitrail.provenance.metadata import encode
from vitrail.serving.long_train import run_training
from vitrail.serving.long_work import (
    BuildDataRequest,
    CodebookRequest,
    EvaluateRequest,
    InspectRequest,
    LogLine,
    LongProgress,
    LongRequest,
    LongResult,
    PullModelRequest,
    Report,
    SamplePicture,
    TrainRequest,
    run_name,
)

__all__ = ["run_long_work"]

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}

Tell = Callable[[str, int, int], None]


def run_long_work(
    request: LongRequest, report: Report, cancelled: threading.Event, folder: Path
) -> LongResult:
    """Do what ``request`` asks for and return how it ended.

    Parameters
    ----------
    report: told of progress, log lines, figures and sample pictures, from the thread that calls this.
    cancelled: set it, from any thread, and the work stops: a training within one step, with a checkpoint
        from which the same request goes on; any other work before its next piece.
    folder: where trainings and reports go; see :mod:`vitrail.serving.long_work`.

    Raises :class:`~vitrail.errors.CancelledError` after a stop, and every
    :class:`~vitrail.errors.VitrailError` of the work itself.
    """

    def check() -> None:
        if cancelled.is_set():
            raise CancelledError("stopped; the same request goes on where it can")

    def tell(what: str, done: int, total: int) -> None:
        check()
        report(LongProgress(done=max(0, done), total=max(0, total), what=what))

    check()
    match request:
        case TrainRequest():
            return run_training(request, report, cancelled, folder)
        case BuildDataRequest():
            return _build(request, tell)
        case EvaluateRequest():
            return _evaluate(request, tell, report, folder)
        case InspectRequest():
            return _inspect(request, tell, report, cancelled, folder)
        case CodebookRequest():
            return _codebook(request, tell, report, cancelled, folder)
        case PullModelRequest():
            return _pull(request, tell, report)


def _build(request: BuildDataRequest, tell: Tell) -> LongResult:
    match request.what:
        case "emoji":
            from vitrail.data.emoji import build_emoji

            paths = [build_emoji(size=request.size, progress=tell)]
        case "fashion-mnist":
            from vitrail.data.fashion_mnist import build_fashion_mnist

            paths = [build_fashion_mnist(progress=tell)]
        case "networks":
            from vitrail.data.feature_weights import build_networks

            paths = build_networks(progress=tell)
        case "font":
            from vitrail.data.font_source import build_font

            paths = [build_font(progress=tell)]
    return LongResult(summary=f"{request.what} is built", paths=tuple(str(path) for path in paths))


def _evaluate(request: EvaluateRequest, tell: Tell, report: Report, folder: Path) -> LongResult:
    from vitrail.evaluation.catalogue import CATALOGUE
    from vitrail.evaluation.report import formatted, write_report
    from vitrail.evaluation.verdict import verdict
    from vitrail.serving.evaluate_work import evaluate

    judged = request.model or Path(request.pictures or "").name
    name = request.name or run_name(Path(judged).name)
    with _own(folder / "reports", f"evaluate-{name}") as place:
        evaluation = evaluate(request, place, tell)
        if request.name is not None:
            evaluation.about["name"] = request.name  # an uploaded folder is called by a number
        index = 1 if request.language == "zh" else 0
        for sentence in verdict(evaluation):
            report(LogLine(line=shown(sentence.words[index], 400)))
        for metric, reason in evaluation.skipped.items():
            report(LogLine(line=f"{metric}: {shown(reason, 300)}"))
        paths = write_report(evaluation, place, language=request.language)
    values = {metric: float(result.value) for metric, result in evaluation.results.items()}
    summary = ", ".join(
        f"{metric} {formatted(result.value, CATALOGUE[metric])}"
        for metric, result in list(evaluation.results.items())[:4]
    )
    page = sorted(paths, key=lambda path: path.name != "report.html")
    return LongResult(summary=summary or "nothing measured", paths=_texts(page), values=_finite(values))


def _inspect(
    request: InspectRequest, tell: Tell, report: Report, cancelled: threading.Event, folder: Path
) -> LongResult:
    from vitrail.data.inspect import inspect
    from vitrail.data.inspect_report import write_report

    def progress(done: int, total: int, what: str) -> None:
        tell(what, done, total)

    found = inspect(request.pictures, size=request.size, progress=progress, cancelled=cancelled.is_set)
    lines = found.summary(request.language)
    for line in lines:
        report(LogLine(line=shown(line, 400)))
    place = folder / "reports" / f"inspect-{run_name(Path(request.pictures).name)}"
    paths = write_report(found, place, language=request.language)
    for path in paths:
        if path.name == "contact_sheet.png":
            report(SamplePicture(name="contact sheet", data=path.read_bytes()))
    page = sorted(paths, key=lambda path: path.name != "report.html")
    values = {"pictures": float(found.pictures), "problems": float(len(found.problems))}
    return LongResult(summary=shown(lines[0], 400) if lines else "", paths=_texts(page), values=values)


def _codebook(
    request: CodebookRequest, tell: Tell, report: Report, cancelled: threading.Event, folder: Path
) -> LongResult:
    from vitrail.runtime import pick_device
    from vitrail.tasks.codebook import codebook_sheet
    from vitrail.tasks.context import Context
    from vitrail.tasks.loading import Loader

    device = pick_device(request.device)
    context = Context(device, cancelled=cancelled)
    pictures = None if request.pictures is None else _opened(Path(request.pictures), tell, report)
    made = codebook_sheet(request.model, Loader(device), context, count=request.count, pictures=pictures)
    data = encode(made.sheet, "png")
    report(SamplePicture(name="codebook", data=data))
    place = ensure_folder(folder / "reports") / f"codebook-{run_name(Path(request.model).name)}.png"
    path = atomic_write(place, data)
    values = {"codes": float(made.codes), "used": float(made.used), "perplexity": made.perplexity}
    return LongResult(
        summary=f"{made.used} of {made.codes} codes used, perplexity {made.perplexity:.0f}, on {made.source}",
        paths=(str(path),),
        values=_finite(values),
    )


def _opened(folder: Path, tell: Tell, report: Report) -> Iterator[Image.Image]:
    """The pictures of ``folder``; what cannot be read is told and left out."""
    from vitrail.images import open_image

    if not folder.is_dir():
        raise InputError(f"the folder {shown(folder)} does not exist; give a folder with pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES and path.is_file())
    for done, path in enumerate(paths):
        tell("count codes", done, len(paths))
        try:
            yield open_image(path)
        except DataError as error:
            report(LogLine(line=f"left out: {error}"))


def _pull(request: PullModelRequest, tell: Tell, report: Report) -> LongResult:
    from vitrail.backends.pull import pull
    from vitrail.store.catalogue import wanted

    entry = wanted(request.name)
    report(LogLine(line=f"{entry.name}: {entry.size / 1e6:.0f} MB, licence {entry.licence}"))

    def progress(done: int, total: int) -> None:
        tell("fetch", done, total)

    place = pull(entry, overwrite=request.overwrite, progress=progress)
    return LongResult(summary=f"{entry.name} is here, licence {entry.licence}", paths=(str(place),))


@contextlib.contextmanager
def _own(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder of this work's own: ``name``, else ``name-2`` and so on; gone again if it stays empty.

    Other workers may begin the same work at the same moment, so it is locked; the kernel frees it of a
    process that was killed.
    """
    ensure_folder(folder)
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    places = (folder / name for name in names)
    place, handle = next((place, handle) for place in places if (handle := _locked(place)) is not None)
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()
        os.close(handle)


def _locked(place: Path) -> int | None:
    """Lock an empty folder, made where it is not there; None where it is another's, a file or not empty."""
    with storage_errors(place):
        try:
            place.mkdir(exist_ok=True)
        except FileExistsError:  # a file
            return None
        try:
            handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # another's, gone again
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not any(place.iterdir()) and os.path.samestat(os.fstat(handle), place.stat()):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
        return None


def _texts(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
