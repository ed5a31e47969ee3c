"""From the name of a model to networks that are ready to run; the last one stays in memory.

A text-to-image model is a folder of :mod:`vitrail.store.artifacts` of kind ``shell_dit`` (diffusion on
pixels) or ``token_transformer`` (codes of a tokenizer). What it does not bring itself is taken from the
shipped model, so that a model trained on somebody's own pictures is small::

    text.safetensors, tokenizer.json   the text encoder it was trained with
    styles.json                        the names of its styles, in order from number 1
    upsampler/                         a model folder of kind "upsampler", for sizes above the native one
    tokenizer/                         of a token_transformer, always its own: a vq_autoencoder
    condition/                         a vq_autoencoder of the pictures that a token_transformer follows
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.models.autoencoders import VQAutoencoder
from vitrail.models.half_weights import in_bfloat16
from vitrail.models.registry import build
from vitrail.models.shell_dit import ShellDiT
from vitrail.models.text import TextEncoder
from vitrail.models.token_transformer import TokenTransformer
from vitrail.models.upsampler import Upsampler
from vitrail.recipe.diffusion import ShellDiTConfig
from vitrail.recipe.priors import TokenTransformerConfig
from vitrail.samplers.paths import Flow, NoisePath
from vitrail.schema import SamplerName, SamplingDefaults
from vitrail.store import artifacts, model_folders

__all__ = [
    "STABLE_DIFFUSION",
    "Loader",
    "TextToImageModel",
    "TokenModel",
    "checkpoint_place",
    "open_network",
    "style_names",
    "text_home",
    "token_defaults",
]

#: Folder of the model that comes with vitrail; its text encoder is there even where its network is not.
SHIPPED = Path(str(importlib.resources.files("vitrail"))) / "shipped" / "default"

STABLE_DIFFUSION = "stable_diffusion"
"""Kind of a model that another program's file or folder holds."""

CHECKPOINT_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

M = TypeVar("M")

#: Largest enlargement of a native picture: further doublings invent nothing.
MAX_ENLARGEMENT = 4


@dataclass(frozen=True)
class TextToImageModel:
    """A text-to-image model on a device, with what belongs to it; its weights stay as they are.

    ``native`` is the side in pixels of what the network draws; ``styles`` are names, number 1 first;
    ``defaults`` fill what a request leaves open. ``half_network`` and ``half_upsampler`` are for passes that
    autocast computes in bfloat16.
    """

    name: str
    sha256: str
    network: ShellDiT
    text: TextEncoder
    upsampler: Upsampler | None
    styles: tuple[str, ...]
    defaults: SamplingDefaults
    path: NoisePath = field(default_factory=Flow)

    @cached_property
    def half_network(self) -> ShellDiT:
        """The network with weights that need no conversion, made when it is first asked for."""
        return in_bfloat16(self.network)

    @cached_property
    def half_upsampler(self) -> Upsampler | None:
        """The upsampler likewise."""
        return None if self.upsampler is None else in_bfloat16(self.upsampler)

    @property
    def native(self) -> int:
        """Side in pixels of the network's own pictures."""
        return self.network.config.image_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every side in pixels that can be asked for: the native one, then what the upsampler reaches."""
        return _reached(self.native, self.upsampler)


@dataclass(frozen=True)
class TokenModel:
    """A model that draws codes, with its tokenizer and what else belongs to it, on a device.

    ``text`` is None for a model that reads no words; its ``styles`` are then its classes, if it has any.
    ``condition`` reads the picture that the drawn one follows, None for a model that follows none.
    """

    name: str
    sha256: str
    network: TokenTransformer
    tokenizer: VQAutoencoder
    text: TextEncoder | None
    upsampler: Upsampler | None
    styles: tuple[str, ...]
    defaults: SamplingDefaults
    condition: VQAutoencoder | None = None

    @property
    def patch(self) -> int:
        """Pixels a side that one code stands for."""
        return self.tokenizer.latent.downsample

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the pictures that it was trained on."""
        return self.network.config.columns * self.patch, self.network.config.rows * self.patch

    @property
    def sampler(self) -> SamplerName:
        """The one sampler that fits the network."""
        return "maskgit" if self.network.config.mode == "masked" else "autoregressive"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of squares: the native one, then what the upsampler reaches; () if not square.

        Beyond these, any larger size in whole codes is drawn through a sliding window.
        """
        width, height = self.size
        return _reached(width, self.upsampler) if width == height else ()


def _reached(native: int, upsampler: Upsampler | None) -> tuple[int, ...]:
    sizes = [native]
    while upsampler is not None and sizes[-1] * upsampler.config.scale <= native * MAX_ENLARGEMENT:
        sizes.append(sizes[-1] * upsampler.config.scale)
    return tuple(sizes)


class Loader:
    """Loads models on ``device`` and keeps the last one, so that a second request starts at once.

    Only one is kept: memory never holds more than the largest model. Not for use from two threads at once.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._fixed: TextToImageModel | TokenModel | None = None
        self._key: tuple[Path, int] | None = None
        self._model: TextToImageModel | TokenModel | None = None
        self._other: tuple[Hashable, object] | None = None

    @classmethod
    def holding(cls, model: TextToImageModel | TokenModel, device: torch.device | None = None) -> Loader:
        """Return a loader that gives ``model`` whatever name is asked for, such as one still in training."""
        loader = cls(device)
        loader._fixed = model
        return loader

    def kind(self, name: str) -> str | None:
        """Return the kind of the model called ``name``; None where this loader gives the one it holds.

        A Stable Diffusion, by its path or by its name in the folders of
        :mod:`vitrail.store.model_folders`, is of kind :data:`STABLE_DIFFUSION`. Raises
        :class:`ArtifactError` for a model that is not there or whose manifest is damaged; its files are read
        and compared when it is loaded, not at every question.
        """
        if self._fixed is not None:
            return None
        if checkpoint_place(name) is not None:
            return STABLE_DIFFUSION
        return artifacts.read_manifest(find_folder(name), verify=False).kind

    def text_to_image(self, name: str) -> TextToImageModel | TokenModel:
        """Return the model called ``name`` (or the folder ``name``).

        Raises :class:`ArtifactError` for a model that is not there, damaged, or of another kind.
        """
        if self._fixed is not None:
            return self._fixed
        folder = artifacts.find(name)
        key = artifacts.stamp(folder)
        if self._model is None or key != self._key:
            self._key = self._model = self._other = None  # its memory is free before the new one comes
            self._model = self._load(folder)
            self._key = key
        return self._model

    def kept(self, key: Hashable, load: Callable[[], M]) -> M:
        """Return what ``load`` gives, kept under ``key`` in place of whatever model was loaded before."""
        if self._other is None or self._other[0] != key:
            self._key = self._model = self._other = (
                None  # the old one's memory is free before the new one comes
            )
            self._other = (key, load())
        return cast(M, self._other[1])

    def _load(self, folder: Path) -> TextToImageModel | TokenModel:
        artifact = artifacts.load(folder)
        if artifact.kind == "token_transformer":
            return self._load_tokens(folder, artifact)
        if artifact.kind != "shell_dit":
            raise ArtifactError(
                f"model {artifact.name} is of kind {artifact.kind}; one that makes pictures of words is a "
                "shell_dit or a token_transformer"
            )
        network = open_network(artifact)
        assert isinstance(network, ShellDiT)
        text = _text(folder, artifact, network.config)
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

    def _load_tokens(self, folder: Path, artifact: artifacts.Artifact) -> TokenModel:
        network = open_network(artifact)
        assert isinstance(network, TokenTransformer)
        config = network.config
        tokenizer = _codes_of(folder / "tokenizer", artifact, config.codes)
        condition = None
        if config.prefix > 1 and not config.places:
            own = (folder / "condition" / artifacts.MANIFEST_NAME).is_file()
            condition = tokenizer  # whose codes stand twice, where there is no other
            if own:
                condition = _codes_of(folder / "condition", artifact, config.prefix_codes or config.codes)
        text = _text(folder, artifact, network.config) if network.config.text else None
        # The shipped upsampler knows small drawings; a model of other pictures brings its own.
        upsampler = _upsampler(folder) or (_upsampler(SHIPPED) if text is not None else None)
        return TokenModel(
            name=artifact.name,
            sha256=artifact.sha256,
            network=network.to(self.device),
            tokenizer=tokenizer.to(self.device),
            text=text.to(self.device) if text else None,
            upsampler=upsampler.to(self.device) if upsampler else None,
            styles=style_names(folder, artifact.manifest),
            defaults=artifact.manifest.sampling
            or token_defaults(network.config, tokenizer.latent.downsample),
            condition=condition.to(self.device) if condition else None,
        )


def checkpoint_place(name: str) -> Path | None:
    """Return the file or folder of the Stable Diffusion called ``name``; None where that is something else.

    Models of vitrail's own go first, then paths, then names in the folders of other programs. Raises
    :class:`~vitrail.errors.InputError` for a name that several files have.
    """
    if name in artifacts.available():
        return None
    try:
        path = Path(name).expanduser()
        if _holds_checkpoint(path):
            return path
        if path.exists():
            return None
    except (OSError, ValueError, RuntimeError):
        return None  # no path at all; and what is no path is no file's name
    return model_folders.find("checkpoint", name) if model_folders.knows("checkpoint", name) else None


def _holds_checkpoint(path: Path) -> bool:
    # As open_stable_diffusion asks, without the libraries that it brings: every start would wait for them.
    if path.is_dir():
        return (path / "model_index.json").is_file()
    return path.suffix.lower() in CHECKPOINT_ENDINGS and path.is_file()


def find_folder(name: str) -> Path:
    """As :func:`vitrail.store.artifacts.find`, for models that may lie in other programs' folders too."""
    try:
        return artifacts.find(name)
    except ArtifactError as error:
        there = [item.name for item in model_folders.listing("checkpoint")]
        if not there:
            raise
        raise ArtifactError(
            f"{error}; checkpoints in your folders: {shown(', '.join(there), 300)}"
        ) from error


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


def token_defaults(config: TokenTransformerConfig, patch: int) -> SamplingDefaults:
    """Return the sampling settings of a token model whose artifact has none; ``patch``: pixels a code.

    MaskGIT's 12 steps and choice temperature 4.5 (arXiv:2202.04200, code); top-k 250 for networks of
    taming-transformers, as its samples were drawn. Guidance only where words were left out in training.
    """
    masked = config.mode == "masked"
    return SamplingDefaults(
        steps=12 if masked else 1,
        cfg_scale=3.0 if config.text else 1.0,
        sampler="maskgit" if masked else "autoregressive",
        schedule="cosine" if masked else "raster",
        top_k=min(250, config.codes) if config.block == "gpt" else 0,
        choice_temperature=4.5 if masked else 0.0,
        width=config.columns * patch,
        height=config.rows * patch,
    )


def open_network(artifact: artifacts.Artifact) -> nn.Module:
    """Return the network of a loaded model folder, frozen, in evaluation mode, on the CPU."""
    with _Unfilled():
        network = build(artifact.kind, artifact.config)
    artifact.fill(network)
    return network.eval().requires_grad_(False)


def text_home(folder: Path) -> Path:
    """Return the folder whose text encoder the model in ``folder`` uses: its own, else the shipped one."""
    for home in (folder, SHIPPED):
        if (home / "text.safetensors").is_file():
            return home
    raise ArtifactError(f"{folder} has no text.safetensors and this installation ships no text encoder")


def _text(
    folder: Path, artifact: artifacts.Artifact, config: ShellDiTConfig | TokenTransformerConfig
) -> TextEncoder:
    home = text_home(folder)
    text = TextEncoder.load(home)
    if text.config.width != config.text_width or text.config.vocabulary > config.vocabulary:
        raise ArtifactError(
            f"model {artifact.name} was trained with another text encoder than that in {home}"
        )
    return text


def _codes_of(place: Path, artifact: artifacts.Artifact, codes: int) -> VQAutoencoder:
    """The autoencoder in the subfolder ``place`` of a token model, which knows ``codes`` of it."""
    if not (place / artifacts.MANIFEST_NAME).is_file():
        raise ArtifactError(
            f"model {artifact.name} has no {place.name}/; the folder is incomplete: get it again"
        )
    found = artifacts.load(place)
    network = open_network(found)
    if not isinstance(network, VQAutoencoder):
        raise ArtifactError(f"{shown(place)} is of kind {found.kind}; a vq_autoencoder is needed")
    stages, verb = network.quantize.stages, "draws" if place.name == "tokenizer" else "reads"
    if network.codebook_size != codes or stages != 1:
        raise ArtifactError(
            f"model {artifact.name} {verb} {codes} codes, one at a place; its {place.name} has "
            f"{network.codebook_size}, {stages} at a place: they do not belong together"
        )
    return network


def _upsampler(folder: Path) -> Upsampler | None:
    if not (folder / "upsampler" / artifacts.MANIFEST_NAME).is_file():
        return None
    artifact = artifacts.load(folder / "upsampler")
    network = open_network(artifact)
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
