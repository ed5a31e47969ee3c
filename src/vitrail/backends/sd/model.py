"""A Stable Diffusion checkpoint ready to run: what the editing tasks call.

The state is that of :class:`vitrail.samplers.paths.VP`, latents in k-diffusion's scale. LoRAs and textual
inversions are found by the names that stand in the prompt; what a request adds beside it (more of them, a
layer of the text encoder, another autoencoder) makes a view of the model, :meth:`StableDiffusion.adding`,
which shares its networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vitrail.backends.model import Conditioning, Control, KnownPicture
from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.backends.sd.conditioning import Embedding
from vitrail.backends.sd.controlnet import ControlNet, Controls, open_controlnet
from vitrail.backends.sd.denoiser import BoundStableDiffusion, Payload
from vitrail.backends.sd.fast import REUSE, DeepReuse, LinearPreview, fit_preview
from vitrail.backends.sd.lora import LoraStack, Wanted
from vitrail.backends.sd.lora_files import LoraFile, read_lora
from vitrail.backends.sd.parts import Parts
from vitrail.backends.sd.prompt_grammar import parse
from vitrail.backends.sd.textual_inversion import named_in, read_embedding
from vitrail.backends.sd.words import chinese_hint
from vitrail.errors import ArtifactError, InputError
from vitrail.files import shown
from vitrail.kernels import accelerate
from vitrail.runtime import Precision
from vitrail.samplers.paths import VP
from vitrail.schema import SamplingDefaults
from vitrail.store import model_folders
from vitrail.store.model_folders import Kind

__all__ = ["Additions", "FindFile", "StableDiffusion"]


class FindFile(Protocol):
    """``(kind, name) -> path``: :func:`vitrail.store.model_folders.find`, or ``resolve`` where a user at the
    machine itself may also give paths. Raises :class:`InputError` for what is not there."""

    def __call__(self, kind: Kind, name: str, /) -> Path: ...


@dataclass(frozen=True)
class Additions:
    """What a request adds to a model beside what its prompt names.

    clip_skip: the layer of the text encoder that is read, counted from its end (with SDXL 1 and 2 are the
    same).
    """

    loras: tuple[Wanted, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    clip_skip: int = 1


@dataclass
class _Shared:
    """What all views of a model share: files that were read, and the LoRAs at work in the networks."""

    loras: LoraStack
    lora_files: dict[Path, LoraFile] = field(default_factory=dict)
    embeddings: dict[Path, Embedding] = field(default_factory=dict)
    controls: dict[Path, ControlNet] = field(default_factory=dict)
    preview: tuple[KLAutoencoder, LinearPreview] | None = None


class StableDiffusion:
    """A :class:`vitrail.backends.model.DiffusionModel`.

    Parameters
    ----------
    name: what records call it. parts: its networks. defaults: its settings.
    digest: gives the SHA-256 of its weights; called when it is first asked for.
    find: finds files of LoRAs, textual inversions and ControlNets by name.
    accelerated: its networks run on :mod:`vitrail.kernels`, and so shall its ControlNets.

    ``networks``: "unet", "text_encoder", "text_encoder_2", as far as it has them. ``embedded_guidance``: the
    guidance scale that a network with ``takes_guidance`` is told where the bound denoiser says no other.
    """

    styles: tuple[str, ...] = ()
    embedded_guidance: float = 8.0

    def __init__(
        self,
        name: str,
        parts: Parts,
        defaults: SamplingDefaults,
        digest: Callable[[], str],
        find: FindFile = model_folders.find,
        accelerated: bool = False,
    ) -> None:
        self.name, self.parts, self.defaults = name, parts, defaults
        self.autoencoder = parts.autoencoder
        self.additions = Additions()
        self._digest, self._find, self._accelerated = digest, find, accelerated
        places = ["text_encoder", "text_encoder_2"]
        if parts.family.name == "sdxl-refiner":
            places = ["text_encoder_2"]
        self.networks: dict[str, nn.Module] = {"unet": parts.unet}
        self.networks |= {
            place: tower.encoder for place, tower in zip(places, parts.text.towers, strict=False)
        }
        self._shared = _Shared(LoraStack(self.networks))

    # --- what it is -----------------------------------------------------------------------------------------

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file; over those of all weight files for a folder."""
        return self._digest()

    @property
    def path(self) -> VP:
        """The noise path that the network was trained on."""
        return self.parts.path

    @property
    def latent_channels(self) -> int:
        """Channels of the state."""
        return self.autoencoder.latent.channels

    @property
    def needs_known(self) -> bool:
        """Whether the network was trained to inpaint and takes a :class:`KnownPicture`."""
        return self.parts.family.inpaint

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network (LCM), which then needs no second pass."""
        config: Any = self.parts.unet.config
        return config.time_cond_proj_dim is not None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parts.unet.parameters()).device

    @property
    def loras(self) -> LoraStack:
        """The LoRAs at work in the networks."""
        return self._shared.loras

    def to(self, device: torch.device) -> StableDiffusion:
        """Bring the networks to a device; returns itself."""
        self.autoencoder.to(device)
        for network in self.networks.values():
            network.to(device)
        return self

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (h, w) of the latent; :class:`InputError` for sides that are no multiples of its pixel."""
        each = self.autoencoder.latent.downsample
        for name, side in (("width", width), ("height", height)):
            if side % each or side < each:
                near = max(each, round(side / each) * each)
                raise InputError(
                    f"{name} is {side}; {self.name} draws multiples of {each} pixels, for instance {near}"
                )
        return height // each, width // each

    # --- what is added --------------------------------------------------------------------------------------

    def adding(
        self,
        *,
        loras: Sequence[tuple[str, float]] = (),
        embeddings: Sequence[str] = (),
        clip_skip: int | None = None,
        autoencoder: KLAutoencoder | None = None,
    ) -> StableDiffusion:
        """Return a view of this model with additions; the networks are shared.

        loras: names and weights. embeddings: names; each is then a word of the prompt. autoencoder: in place
        of its own. Raises :class:`InputError` for what is not there, :class:`ArtifactError` for what is
        damaged or of another family.
        """
        view = copy.copy(self)
        if autoencoder is not None:
            if autoencoder.latent.channels != self.latent_channels:
                raise ArtifactError(
                    f"the autoencoder has latents of {autoencoder.latent.channels} channels, {self.name} "
                    f"draws {self.latent_channels}; choose one of the same family"
                )
            view.autoencoder = autoencoder
        wanted = tuple(Wanted(self._lora(name), weight, weight) for name, weight in loras)
        words = tuple(self._embedding(self._find("embedding", name)) for name in embeddings)
        view.additions = Additions(
            (*self.additions.loras, *wanted),
            (*self.additions.embeddings, *words),
            self.additions.clip_skip if clip_skip is None else clip_skip,
        )
        return view

    def _lora(self, name: str) -> LoraFile:
        path = self._find("lora", name)
        if path not in self._shared.lora_files:
            self._shared.lora_files[path] = read_lora(path)
        return self._shared.lora_files[path]

    def _embedding(self, path: Path) -> Embedding:
        if path not in self._shared.embeddings:
            widths = [tower.width for tower in self.parts.text.towers]
            self._shared.embeddings[path] = read_embedding(path, widths)
        return self._shared.embeddings[path]

    def _embeddings_in(self, text: str) -> tuple[list[Embedding], list[str]]:
        """Textual inversions of the folders that a text names, and hints about those that do not fit."""
        known = {item.short: item for item in model_folders.listing("embedding")}
        found, hints = [], []
        for name in named_in(text, known):
            try:
                found.append(self._embedding(known[name].path))
            except ArtifactError as error:  # the word may mean nothing of the kind: it stays a word
                hints.append(f"{shown(name, 60)} is read as a word: {error}")
        return found, hints

    # --- what the tasks call --------------------------------------------------------------------------------

    def read(self, prompt: str, negative_prompt: str = "", style: str | None = None) -> Conditioning:
        """Read a prompt in A1111's grammar; its LoRAs are looked up now, and at work when it is bound.

        Raises :class:`InputError` for a style, a prompt that cannot be read, or a LoRA that is not there;
        :class:`ArtifactError` for a LoRA that cannot be used.
        """
        if style is not None:
            raise InputError(f"{self.name} has no styles; say {shown(style, 60)!r} in the prompt instead")
        given, negative = parse(prompt), parse(negative_prompt, compose=False)
        loras = [
            Wanted(self._lora(tag.name), text_encoder=tag.text_encoder, unet=tag.unet)
            for tag in (*given.loras, *negative.loras)
        ]
        embeddings, more = self._embeddings_in(f"{prompt}\n{negative_prompt}")
        hints = [*self.parts.hints, *more]
        if (hint := chinese_hint(prompt)) is not None:
            hints.append(hint)
        if given.hypernetworks or negative.hypernetworks:
            hints.append("hypernetworks are not supported; their tags were left out")
        payload = Payload(
            given,
            negative,
            self.additions.clip_skip,
            (*self.additions.loras, *loras),
            (*self.additions.embeddings, *embeddings),
        )
        hints += self.loras.apply(payload.loras)
        # Encoded now, so that a layer that is not there or a text too long is an error before any work.
        for part in (given.subprompts[0], negative.subprompts[0]):
            self.parts.text.check(part.at(0, 1), payload.clip_skip, payload.embeddings)
        return Conditioning(payload, hints=tuple(hints))

    def bind(
        self,
        conditioning: Conditioning,
        width: int,
        height: int,
        precision: Precision = "auto",
        *,
        known: KnownPicture | None = None,
        controls: Sequence[Control] = (),
    ) -> BoundStableDiffusion:
        """Return the denoiser for a prompt and a size in pixels.

        Raises :class:`InputError` where an inpainting network is given no :class:`KnownPicture`, or another
        one is, and for a ControlNet that is not there; :class:`ArtifactError` for one that cannot be used.
        """
        if known is None and self.needs_known:
            raise InputError(f"{self.name} is an inpainting model; it needs a picture and a mask")
        if known is not None and not self.needs_known:
            raise InputError(f"{self.name} takes no masked picture; use an inpainting model for that")
        bound_controls = None
        if controls:
            items = [(self._control(control.name), control) for control in controls]
            bound_controls = Controls(items, self.parts.unet)
        return BoundStableDiffusion(
            self.parts,
            self.loras,
            conditioning.payload,
            (height, width),
            precision,
            known=known,
            controls=bound_controls,
            guidance=self.embedded_guidance if self.takes_guidance else None,
        )

    # --- what the tasks call for a fast picture -------------------------------------------------------------

    def reusing(self) -> DeepReuse:
        """Let the U-Net use its deep features for several passes, for one walk (a context manager)."""
        return DeepReuse(self.parts.unet, REUSE)

    def preview(self) -> LinearPreview:
        """Return what makes rough pictures of latents: fitted to the autoencoder when first asked for."""
        held = self._shared.preview
        if held is None or held[0] is not self.autoencoder:
            decode = self.autoencoder.decode
            device = self.device
            fitted = fit_preview(lambda z: decode(z.to(device)).cpu(), self.latent_channels)
            held = (self.autoencoder, fitted)
            self._shared.preview = held
        return held[1]

    def _control(self, name: str) -> ControlNet:
        path = self._find("controlnet", name)
        if path not in self._shared.controls:
            network = open_controlnet(path)
            network.network.to(self.device)
            if self._accelerated:
                accelerate(network.network)
            self._shared.controls[path] = network
        return self._shared.controls[path]
