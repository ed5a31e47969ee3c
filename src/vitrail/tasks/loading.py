"""From the name of a model to networks that are ready to run; the last one stays in memory.

A text-to-image model is a folder of :mod:`vitrail.store.artifacts` of kind ``shell_dit``. What it does not
bring itself is taken from the shipped model, so that a model trained on somebody's own pictures is small::

    text.safetensors, tokenizer.json   the text encoder it was trained with
    styles.json                        the names of its styles, in order from number 1
    upsampler/                         a model folder of kind "upsampler", for sizes above the native one
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vitrail.errors import ArtifactError
from vitrail.models.registry import build
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.text import TextEncoder
from vitrail.models.upsampler import Upsampler
from vitrail.samplers.paths import Flow, NoisePath
from vitrail.schema import SamplingDefaults
from vitrail.store import artifacts

__all__ = ["Loader", "TextToImageModel", "style_names"]

#: Folder of the model that comes with vitrail; its text encoder is there even where its network is not.
SHIPPED = Path(str(importlib.resources.files("vitrail"))) / "shipped" / "default"

#: Largest enlargement of a native picture: further doublings invent nothing.
MAX_ENLARGEMENT = 4


@dataclass(frozen=True)
class TextToImageModel:
    """A text-to-image model on a device, with what belongs to it.

    ``native`` is the side in pixels of what the network draws; ``styles`` are names, number 1 first;
    ``defaults`` fill what a request leaves open.
    """

    name: str
    sha256: str
    network: ShellDiT
    text: TextEncoder
    upsampler: Upsampler | None
    styles: tuple[str, ...]
    defaults: SamplingDefaults
    path: NoisePath = field(default_factory=Flow)

    @property
    def native(self) -> int:
        """Side in pixels of the network's own pictures."""
        return self.network.config.image_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every side in pixels that can be asked for: the native one, then what the upsampler reaches."""
        sizes = [self.native]
        while (
            self.upsampler is not None
            and sizes[-1] * self.upsampler.config.scale <= self.native * MAX_ENLARGEMENT
        ):
            sizes.append(sizes[-1] * self.upsampler.config.scale)
        return tuple(sizes)


class Loader:
    """Loads models on ``device`` and keeps the last one, so that a second request starts at once.

    Only one is kept: memory never holds more than the largest model. Not for use from two threads at once.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._fixed: TextToImageModel | None = None
        self._key: tuple[Path, int] | None = None
        self._model: TextToImageModel | None = None

    @classmethod
    def holding(cls, model: TextToImageModel, device: torch.device | None = None) -> Loader:
        """Return a loader that gives ``model`` whatever name is asked for, such as one still in training."""
        loader = cls(device)
        loader._fixed = model
        return loader

    def text_to_image(self, name: str) -> TextToImageModel:
        """Return the model called ``name`` (or the folder ``name``).

        Raises :class:`ArtifactError` for a model that is not there, damaged, or of another kind.
        """
        if self._fixed is not None:
            return self._fixed
        folder = artifacts.find(name)
        try:
            key = (folder.resolve(), (folder / artifacts.MANIFEST_NAME).stat().st_mtime_ns)
        except OSError as error:
            raise ArtifactError(f"{folder} is not a model folder: it has no artifact.json") from error
        if self._model is None or key != self._key:
            self._key = self._model = None  # the old one's memory is free before the new one comes
            self._model = self._load(folder)
            self._key = key
        return self._model

    def _load(self, folder: Path) -> TextToImageModel:
        artifact = artifacts.load(folder)
        if artifact.kind != "shell_dit":
            raise ArtifactError(
                f"model {artifact.name} is of kind {artifact.kind}; one that makes pictures is a shell_dit"
            )
        network = _network(artifact)
        assert isinstance(network, ShellDiT)
        home = _with_text(folder)
        text = TextEncoder.load(home)
        if (
            text.config.width != network.config.text_width
            or text.config.vocabulary > network.config.vocabulary
        ):
            raise ArtifactError(
                f"model {artifact.name} was trained with another text encoder than that in {home}"
            )
        upsampler = _upsampler(folder) or _upsampler(SHIPPED)
        side = network.config.image_size
        return TextToImageModel(
            name=artifact.name,
            sha256=artifact.sha256,
            network=network.to(self.device),
            text=text.to(self.device),
            upsampler=upsampler.to(self.device) if upsampler else None,
            styles=style_names(folder, artifact.manifest),
            defaults=artifact.manifest.sampling or SamplingDefaults(width=side, height=side),
        )


class _Unfilled(TorchFunctionMode):
    """Leaves out random numbers for weights that are replaced at once.

    Not ``torch.device("meta")``: random numbers there are decomposed in Python, which imports torch._dynamo
    and so costs more than a second at every start.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _network(artifact: artifacts.Artifact) -> nn.Module:
    with _Unfilled():
        network = build(artifact.kind, artifact.config)
    artifact.fill(network)
    return network.eval().requires_grad_(False)


def _with_text(folder: Path) -> Path:
    """Return the folder whose text encoder the model in ``folder`` uses: its own, else the shipped one."""
    for home in (folder, SHIPPED):
        if (home / "text.safetensors").is_file():
            return home
    raise ArtifactError(f"{folder} has no text.safetensors and this installation ships no text encoder")


def _upsampler(folder: Path) -> Upsampler | None:
    if not (folder / "upsampler" / artifacts.MANIFEST_NAME).is_file():
        return None
    artifact = artifacts.load(folder / "upsampler")
    network = _network(artifact)
    if not isinstance(network, Upsampler):
        raise ArtifactError(f"{folder / 'upsampler'} is of kind {artifact.kind}; an upsampler is needed")
    return network


def style_names(folder: Path, manifest: artifacts.Manifest) -> tuple[str, ...]:
    """Return the names of a text-to-image model's styles, number 1 first; () if they have none.

    A model without ``styles.json`` but with as many styles as the emoji set was trained on that set.
    """
    from vitrail.data.emoji_bank import STYLES

    count = manifest.config.get("styles")
    if "styles.json" not in manifest.files:
        return STYLES if count == len(STYLES) else ()
    try:
        names = json.loads((folder / "styles.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"styles.json of model {manifest.name} cannot be read: {error}") from error
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"styles.json of model {manifest.name} must list {count} names")
    return tuple(names)
