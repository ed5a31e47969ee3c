"""Measures a folder of pictures or what a model makes, for the command line and for jobs alike."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from vitrail.data import feature_weights
from vitrail.errors import InputError, VitrailError
from vitrail.evaluation.features import EfficientNetSpace
from vitrail.evaluation.image_sets import pair_up
from vitrail.evaluation.suite import NEEDS_FEATURES, Evaluation, choose, evaluate_pairs, evaluate_sets
from vitrail.files import shown
from vitrail.models.perceptual import EFFICIENTNET_FILE, LPIPS, LPIPS_FILE, load_lpips
from vitrail.serving.evaluate_models import AUTOENCODERS, class_prompts, generate, kind_of
from vitrail.serving.evaluate_models import reconstruct as through
from vitrail.serving.evaluate_sets import read_pictures
from vitrail.serving.long_work import EvaluateRequest

__all__ = ["evaluate"]

Bar = Callable[[str, int, int], None]


def evaluate(request: EvaluateRequest, folder: Path, bar: Bar, *, keep: bool = True) -> Evaluation:
    """Measure what ``request`` asks for.

    Parameters
    ----------
    folder: where the pictures that a model makes are kept, in ``pictures``, unless ``keep`` is False.
    bar: told of progress: (stage, done, total).

    Raises :class:`InputError` for what does not go together, :class:`VitrailError` for what cannot be read.
    """
    evaluation = _of_folders(request, bar) if request.model is None else _of_model(request, folder, bar, keep)
    evaluation.about |= {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in ("vitrail", "torch", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}",
    }
    return evaluation


def _of_folders(request: EvaluateRequest, bar: Bar) -> Evaluation:
    assert request.pictures is not None
    names = choose(request.metrics, "pairs" if request.paired else "sets")
    limit = request.limit
    # Pairs are found first and thinned out afterwards: two folders thinned apart would lose their partners.
    most = None if request.paired else limit
    pictures = read_pictures(request.pictures, most)
    reference = read_pictures(request.against, most) if request.against is not None else None
    if not request.paired:
        missing = _fetch(names, bool(request.metrics), bar)
        space, _ = _loaded(names, missing, bar)
        evaluation = evaluate_sets(pictures, reference, names, space=space, progress=bar)
    else:
        assert reference is not None
        pairs = pair_up(pictures, reference)
        rows = [i * len(pairs.pictures) // limit for i in range(limit)]
        if len(pairs.pictures) > limit:
            pairs = pairs._replace(
                pictures=pairs.pictures.subset(rows), originals=pairs.originals.subset(rows)
            )
        missing = _fetch(names, bool(request.metrics), bar)
        space, network = _loaded(names, missing, bar)
        evaluation = evaluate_pairs(
            pairs.pictures, pairs.originals, names, network=network, space=space, progress=bar
        )
        evaluation.unmatched = pairs.unmatched
    _name_missing(evaluation, missing)
    evaluation.about["pictures"] = shown(request.pictures, 400)
    if request.against is not None:
        evaluation.about["against"] = shown(request.against, 400)
    return evaluation


def _of_model(request: EvaluateRequest, folder: Path, bar: Bar, keep: bool) -> Evaluation:
    assert request.model is not None
    kind = kind_of(request.model)
    # A plain VAE is both: with prompts it draws, with pictures it reconstructs them.
    if kind in AUTOENCODERS and not (kind == "vae" and request.prompts):
        if request.pictures is None:
            raise InputError(
                "an autoencoder is judged on pictures; write: vitrail evaluate my_pictures/ --model NAME"
            )
        names = choose(request.metrics, "pairs")
        missing = _fetch(names, bool(request.metrics), bar)  # before the work, in case it fails
        originals = read_pictures(request.pictures, request.limit).read()
        made = through(request.model, originals, device=request.device, progress=bar)
        space, network = _loaded(names, missing, bar)
        evaluation = evaluate_pairs(
            made.pictures, originals, names, network=network, space=space, progress=bar
        )
    else:
        lines = list(request.prompts) or class_prompts(request.model)
        if not lines:
            raise InputError(
                f"model {shown(request.model, 60)} draws from words; give --prompts FILE, one on every line"
            )
        names = choose(request.metrics, "sets")
        reference = None
        if request.against is not None:
            reference = read_pictures(request.against, request.limit).read()
        missing = _fetch(names, bool(request.metrics), bar)
        made = generate(
            request.model,
            lines,
            folder / "pictures",
            seeds=request.seeds,
            seed=request.seed,
            settings={"style": request.style, "steps": request.steps, "cfg_scale": request.cfg_scale},
            device=request.device,
            progress=bar,
            keep=keep,
        )
        space, _ = _loaded(names, missing, bar)  # after the model's memory was measured
        evaluation = evaluate_sets(made.pictures, reference, names, space=space, progress=bar)
        made.about["prompts"] = f"{len(lines)} of {'those given' if request.prompts else 'its classes'}"
    evaluation.results |= made.results
    evaluation.about |= made.about
    _name_missing(evaluation, missing)
    return evaluation


def _needing(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the file of each network -> the metrics that need it."""
    return {
        EFFICIENTNET_FILE: [name for name in names if name in NEEDS_FEATURES],
        LPIPS_FILE: [name for name in names if name == "lpips"],
    }


def _fetch(names: Sequence[str], asked: bool, bar: Bar) -> dict[str, str]:
    """Fetch the networks that the metrics need, once; return the metrics that must do without, and why.

    If the metrics were asked for by name, a network that cannot be had is an error.
    """
    missing: dict[str, str] = {}
    for file, wanting in _needing(names).items():
        try:
            if wanting:
                feature_weights.build_networks(only=file, progress=bar)
        except VitrailError as error:
            if asked:
                raise
            missing.update(dict.fromkeys(wanting, str(error)))
    return missing


def _loaded(
    names: Sequence[str], missing: dict[str, str], bar: Bar
) -> tuple[EfficientNetSpace | None, LPIPS | None]:
    """Return the feature space and LPIPS, each where a metric needs it and it could be had."""
    wanted = {file for file, wanting in _needing(names).items() if set(wanting) - missing.keys()}
    space = EfficientNetSpace(progress=bar) if EFFICIENTNET_FILE in wanted else None
    return space, load_lpips() if LPIPS_FILE in wanted else None


def _name_missing(evaluation: Evaluation, missing: dict[str, str]) -> None:
    for name, reason in missing.items():
        if name in evaluation.skipped:
            evaluation.skipped[name] = reason


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
