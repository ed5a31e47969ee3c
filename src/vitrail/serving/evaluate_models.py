"""What a model makes, as a set of pictures: reconstructions of an autoencoder, pictures of words.

The only part of an evaluation that knows models; :mod:`vitrail.evaluation` is given the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrail import schema
from vitrail.errors import InputError, NonFiniteError
from vitrail.evaluation.efficiency import measure_cost
from vitrail.evaluation.image_sets import ImageSet, Pixels, Shot
from vitrail.evaluation.metrics import codes_used
from vitrail.evaluation.results import MetricResult
from vitrail.files import shown
from vitrail.images import to_pil
from vitrail.models.registry import build
from vitrail.runtime import pick_device
from vitrail.schema import PictureDone, TextToImageRequest
from vitrail.serving.engine import Engine
from vitrail.serving.save import Destination
from vitrail.store import artifacts
from vitrail.tasks.class_prompts import class_names
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS
from vitrail.tasks.loading import Loader
from vitrail.tasks.tokenizers import TokenizerModel, decode_codes, encode_pixels, load_tokenizer

__all__ = ["AUTOENCODERS", "Made", "class_prompts", "generate", "kind_of", "read_prompts", "reconstruct"]

AUTOENCODERS = ("vq_autoencoder", "kl_autoencoder", "vae")
"""Kinds of model that are given pictures."""

MAX_PROMPTS = 10_000

_AT_ONCE = 64  # most pictures of one request

Progress = Callable[[str, int, int], None]


@dataclass
class Made:
    """Pictures that a model made, what making them cost, and what it was."""

    pictures: ImageSet
    results: dict[str, MetricResult] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def kind_of(model: str) -> str:
    """Return the kind of the model called ``model``; :class:`ArtifactError` if there is none."""
    return artifacts.read_manifest(artifacts.find(model), verify=False).kind


def _nothing(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def reconstruct(
    model: str, originals: ImageSet, *, device: str = "auto", progress: Progress = _nothing
) -> Made:
    """Encode and decode every picture; of a codebook the use is measured as well.

    Raises :class:`InputError` where a picture does not fit the network, :class:`NonFiniteError` where it
    gives no numbers.
    """
    manifest = artifacts.read_manifest(artifacts.find(model), verify=False)
    chosen = pick_device(device)
    codes: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    tokenizer: TokenizerModel | None = None
    if manifest.kind == "vq_autoencoder":
        tokenizer = load_tokenizer(Loader(chosen), model)
        again = _discrete(tokenizer, chosen, codes.append)
    else:
        again = _continuous(model, chosen)
    arrays: list[Pixels] = []
    for i in range(len(originals)):
        progress(f"reconstruct {originals.name}", i, len(originals))
        arrays.append(np.asarray(to_pil(again(originals.tensor(i)))[0]))
    results = _codebook(tokenizer, codes) if tokenizer is not None else {}  # before the clock adds more codes
    first = originals.tensor(0)
    with torch.inference_mode():
        results |= measure_cost(lambda: again(first), repeats=5, device=str(chosen))
    pictures = ImageSet.from_arrays(manifest.name, arrays, keys=originals.keys)
    return Made(pictures, results, _about(model, chosen))


def _discrete(
    tokenizer: TokenizerModel,
    device: torch.device,
    note: Callable[[np.ndarray[Any, np.dtype[np.int64]]], None],
) -> Callable[[Tensor], Tensor]:
    """Return pictures (1, 3, H, W) -> reconstruction through codes, each of which is told to ``note``."""
    context = Context(device=device, precision="float32")

    def again(x: Tensor) -> Tensor:
        found = encode_pixels(tokenizer, x[0], context)
        note(found.numpy())
        return decode_codes(tokenizer, found, context, (x.shape[3], x.shape[2]))[None]

    return again


def _codebook(
    tokenizer: TokenizerModel, codes: list[np.ndarray[Any, np.dtype[np.int64]]]
) -> dict[str, MetricResult]:
    """How much of the codebook the pictures use; of several stages, the first."""
    first = [found if found.ndim == 2 else found[..., 0] for found in codes]
    if len({found.shape for found in first}) > 1:  # pictures of several sizes: each counts by its first codes
        least = min(found.size for found in first)
        first = [found.reshape(-1)[:least] for found in first]
    return codes_used(np.stack(first), tokenizer.codes)


def _continuous(model: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return pictures (1, 3, H, W) -> reconstruction for a model with Gaussian latents."""
    artifact = artifacts.load(artifacts.find(model))
    network: Any = build(artifact.kind, artifact.config)
    artifact.fill(network)
    network.eval().requires_grad_(False).to(device)
    settings = getattr(network.config, "network", network.config)
    channels = int(getattr(settings, "in_channels", getattr(settings, "channels", 3)))
    # A VAE reads one size only; the others are padded to whole latents and cut again.
    multiple = 1 if artifact.kind == "vae" else int(network.latent.downsample)

    def again(x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = x if channels == 3 else x.mean(1, keepdim=True)
        padding = (0, -width % multiple, 0, -height % multiple)
        if any(padding):
            y = functional.pad(y, padding, mode="replicate")
        with torch.inference_mode():
            y = network(y.to(device)).x[:, :, :height, :width].float().cpu()
        pictures: Tensor = y.expand(-1, 3, -1, -1)
        return pictures

    return again


def generate(
    model: str,
    lines: Sequence[str],
    folder: Path,
    *,
    seeds: int,
    seed: int,
    settings: dict[str, str | int | float | None],
    device: str = "auto",
    progress: Progress = _nothing,
    keep: bool = True,
) -> Made:
    """Draw ``seeds`` pictures of every prompt of ``lines``, and keep them in ``folder``.

    A picture that comes out as NaN is counted, not drawn. With ``keep`` False nothing is written. Raises
    :class:`InputError` for a folder that holds pictures already.
    """
    requests = [
        schema.parse(
            TextToImageRequest,
            {
                "prompt": line,
                "n": min(_AT_ONCE, seeds - start),
                "seed": seed + start,
                "model": model,
                **{name: value for name, value in settings.items() if value is not None},
            },
        )
        for line in lines
        for start in range(0, seeds, _AT_ONCE)
    ]
    if keep and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{shown(folder)} holds pictures of an earlier evaluation; remove it, or give another -o"
        )
    arrays: list[Pixels] = []
    keys: list[str] = []
    shots: list[Shot] = []
    failed = 0
    with Engine(device=device) as engine:
        for done, request in enumerate(requests):
            progress("generate", done, len(requests))
            job = engine.submit(request, Destination(folder) if keep else None)
            made = 0
            try:
                for event in engine.events(job):
                    if isinstance(event, PictureDone):
                        made += 1
                        arrays.append(np.asarray(event.picture))
                        name = Path(event.path).name if event.path else f"{done + 1:04d}-{event.record.seed}"
                        keys.append(f"{name} · {request.prompt[:60]}")
                        shots.append(Shot(request.prompt, event.record.seed))
            except NonFiniteError:
                failed += request.n - made
    if len(arrays) < 2:
        raise InputError(f"{len(arrays)} pictures came out ({failed} were not finite); at least 2 are needed")
    chosen = pick_device(device)
    loader, context = Loader(chosen), Context(device=chosen)
    one = requests[0].model_copy(update={"n": 1})

    def draw() -> None:
        for _ in TASKS[one.kind](one, loader, context):
            pass

    draw()  # loads the model, which is not part of the cost of a picture
    results = measure_cost(draw, repeats=5, device=str(chosen))
    about = _about(model, chosen) | {
        "seeds": f"{seed} to {seed + seeds - 1}",
        "settings": {name: value for name, value in settings.items() if value is not None},
    }
    pictures = ImageSet.from_arrays(str(about["model"]), arrays, keys=keys, shots=shots, failed=failed)
    return Made(pictures, results, about)


def class_prompts(model: str) -> list[str]:
    """Return the English names of the classes that ``model`` draws; none for a model that reads words."""
    folder = artifacts.find(model)
    return [name.en for name in class_names(folder, artifacts.read_manifest(folder, verify=False))]


def read_prompts(path: Path) -> list[str]:
    """Return the different lines of a text file; :class:`InputError` for none, or more than 10,000."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read {shown(path)}: {reason}; give a text file of prompts") from error
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 1 <= len(lines) <= MAX_PROMPTS:
        raise InputError(f"{shown(path)} holds {len(lines)} different prompts; allowed 1 to {MAX_PROMPTS}")
    return lines


def _about(model: str, device: torch.device) -> dict[str, Any]:
    manifest = artifacts.read_manifest(artifacts.find(model), verify=False)
    return {
        "model": artifacts.public_name(model, manifest.name),
        "kind": manifest.kind,
        "sha256": manifest.files[artifacts.WEIGHTS_NAME].sha256,
        "device": str(device),
    }
