"""The one door: a file or a folder with a Stable Diffusion in it, to a model that is ready to run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.backends.sd.families import ZeroTerminalVP, defaults_of
from vitrail.backends.sd.folder import INDEX, folder_digest, read_folder, read_vae_folder
from vitrail.backends.sd.model import FindFile, StableDiffusion
from vitrail.backends.sd.parts import OtherVae
from vitrail.backends.sd.single_file import read_file, read_vae_file
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.kernels import accelerate
from vitrail.runtime import fast_bfloat16
from vitrail.samplers.paths import Predicts
from vitrail.store import model_folders
from vitrail.store.model_hashes import file_sha256

__all__ = ["is_stable_diffusion", "open_autoencoder", "open_stable_diffusion"]

_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def is_stable_diffusion(path: Path | str) -> bool:
    """Whether ``path`` looks like something to open here: a folder of diffusers, or a single file."""
    place = Path(path)
    if place.is_dir():
        return (place / INDEX).is_file()
    return place.suffix.lower() in _ENDINGS and place.is_file()


def open_stable_diffusion(
    path: Path | str,
    *,
    device: torch.device | None = None,
    vae: Path | str | None = None,
    tokenizer: Path | str | None = None,
    predicts: Predicts | None = None,
    dtype: torch.dtype = torch.float32,
    find: FindFile = model_folders.find,
    name: str | None = None,
    accelerated: bool | None = None,
) -> StableDiffusion:
    """Open a Stable Diffusion 1, 2 or XL: a folder of diffusers, ``.safetensors`` or ``.ckpt``.

    vae: a file or folder with an autoencoder, in place of its own or where it has none. tokenizer: where
    CLIP's vocabulary is, for single files; by default the copy in the cache, fetched once from the Python
    registry. predicts: ``eps`` or ``v`` where the file does not say and the guess is wrong. dtype: of the
    U-Net's weights. find: finds LoRAs, textual inversions and ControlNets by name. name: what records call
    it; by default the file's or folder's own. accelerated: with :mod:`vitrail.kernels`, which compute in
    float32 on a CPU; by default there, unless that CPU is faster in bfloat16.

    Raises :class:`ArtifactError` with one line for what cannot be used,
    :class:`~vitrail.errors.MissingExtraError` where diffusers or transformers are not installed.
    """
    place = Path(path)
    other: OtherVae | None = None
    if vae is not None:
        replacement = Path(vae)

        def other(xl: bool) -> KLAutoencoder:
            return open_autoencoder(replacement, xl=xl)

    words = None if tokenizer is None else Path(tokenizer)
    home = device or torch.device("cpu")
    if accelerated is None:
        accelerated = home.type == "cpu" and not fast_bfloat16(home)
    accelerated = accelerated and home.type == "cpu"
    if place.is_dir():
        if not (place / INDEX).is_file():
            raise ArtifactError(f"{shown(place)} has no {INDEX}; give a folder of diffusers or a single file")
        parts = read_folder(
            place, vae=other, tokenizer=words, predicts=predicts, dtype=dtype,
            packed=accelerate if accelerated else lambda network: network,
        )  # fmt: skip
        own = place.resolve().name
    else:
        parts = read_file(place, vae=other, tokenizer=words, predicts=predicts, dtype=dtype)
        own = place.stem
        if accelerated:
            accelerate(parts.unet)
    if accelerated:
        accelerate(parts.autoencoder.network)
        for tower in parts.text.towers:
            accelerate(tower.encoder)
    called = re.sub(r"[^A-Za-z0-9._ -]+", "-", name or own).strip(" .-")[:100] or "model"

    def digest() -> str:
        return folder_digest(place) if place.is_dir() else file_sha256(place)

    guided = parts.unet.config.time_cond_proj_dim is not None  # type: ignore[union-attr]
    defaults = defaults_of(
        called,
        parts.side,
        guided=guided,
        scheduler=parts.scheduler,
        zero_terminal=isinstance(parts.path, ZeroTerminalVP),
    )
    model = StableDiffusion(called, parts, defaults, digest, find, accelerated)
    return model if device is None else model.to(device)


def open_autoencoder(path: Path | str, *, xl: bool = False) -> KLAutoencoder:
    """Open an autoencoder (VAE) of its own: a file, or a folder of diffusers.

    xl: it is for SDXL; no file says so, and the scale of the latents differs (a folder's settings name it).
    Raises :class:`ArtifactError` with one line for what cannot be used.
    """
    place = Path(path)
    if place.is_dir():
        inside = place / "vae"
        return read_vae_folder(inside if (place / INDEX).is_file() else place)
    return read_vae_file(place, xl=xl)
