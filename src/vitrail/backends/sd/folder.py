"""A Stable Diffusion in a folder of diffusers: ``model_index.json`` and a subfolder for each part.

Nothing of the folder runs: settings are read as data, weights as safetensors (``.bin`` through the restricted
reader), and a folder that carries code is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.backends.checkpoints import about, read_checkpoint
from vitrail.backends.configs import read_json
from vitrail.backends.hostile_names import refuse_code
from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.backends.sd.conditioning import TextEncoders, Tower
from vitrail.backends.sd.families import family_of, noise_path, predicted
from vitrail.backends.sd.networks import build_autoencoder, build_text_encoder, build_unet
from vitrail.backends.sd.parts import OtherVae, Parts
from vitrail.backends.sd.words import ClipWords, standard_words
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.samplers.paths import Predicts
from vitrail.store.model_hashes import file_sha256

__all__ = ["INDEX", "folder_digest", "read_folder", "read_vae_folder"]

INDEX = "model_index.json"
_CODE = {".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".js"}
_MAX_ENTRIES = 2000
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp32", ".fp16", ".bf16")


def read_folder(
    folder: Path,
    *,
    vae: OtherVae | None = None,
    tokenizer: Path | None = None,
    predicts: Predicts | None = None,
    dtype: torch.dtype = torch.float32,
    packed: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> Parts:
    """Read a folder of diffusers.

    vae: gives another autoencoder instead of its own. tokenizer: as for
    :func:`vitrail.backends.sd.words.standard_words`, where the folder's own is missing. predicts: what the
    network predicts, where the folder is wrong about it. packed: called with the U-Net before anything else
    is read, so that its weights, the largest, are never there beside all others in two forms.
    Raises :class:`ArtifactError` with one line that names the part which is missing or does not fit.
    """
    refuse_code(folder, _CODE, _MAX_ENTRIES, "the model's own")
    index = read_json(folder / INDEX)
    _refuse_other(folder, index)
    scheduler = _settings(folder / "scheduler" / "scheduler_config.json")
    names = [name for name in ("text_encoder", "text_encoder_2") if (folder / name / "config.json").is_file()]
    if not names:
        raise ArtifactError(f"{shown(folder)} has no text_encoder/; the folder is incomplete: get it again")
    unet_config, text_config = (_settings(folder / name / "config.json") for name in ("unet", names[-1]))
    with _naming(folder):
        family = family_of(unet_config, text_config)
        path, found = noise_path(scheduler), predicted(scheduler)
    unet_weights = _part(folder / "unet")[1]
    with _naming(folder / "unet"):
        unet = packed(build_unet(unet_config, unet_weights, dtype))
    towers = []
    for name in names:
        text_config, weights = _part(folder / name)
        with _naming(folder / name):
            encoder = build_text_encoder(text_config, weights, dtype=torch.float32)
        towers.append(Tower(encoder, _words(folder, name.replace("text_encoder", "tokenizer"), tokenizer)))
    with _naming(folder):
        text = TextEncoders(towers, penultimate=family.xl)
    autoencoder = read_vae_folder(folder / "vae") if vae is None else vae(family.xl)
    latent = autoencoder.latent
    if latent.channels != unet_config.get("out_channels", 4):
        raise ArtifactError(
            f"{shown(folder)}: its U-Net draws latents of {unet_config.get('out_channels', 4)} channels, the "
            f"autoencoder has {latent.channels}; they do not belong together"
        )
    sample = unet_config.get("sample_size")
    side = (sample if type(sample) is int and 0 < sample <= 512 else 64) * latent.downsample
    zero = index.get("force_zeros_for_empty_prompt", family.name == "sdxl") is True
    return Parts(
        family,
        unet,
        autoencoder,
        text,
        path,
        predicts or found,
        side,
        zero_negative=zero and family.xl,
        scheduler=shown(scheduler.get("_class_name", ""), 60),
    )


def read_vae_folder(folder: Path) -> KLAutoencoder:
    """Read a folder with the ``config.json`` and the weights of an AutoencoderKL."""
    config, weights = _part(folder)
    with _naming(folder):
        return KLAutoencoder(build_autoencoder(config, weights))


def folder_digest(folder: Path) -> str:
    """SHA-256 over the SHA-256 of every weight file of the folder, in the order of their names."""
    files = sorted(path for path in folder.glob("*/*") if path.suffix in (".safetensors", ".bin"))
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.parent.name}/{path.name} {file_sha256(path)}\n".encode())
    return whole.hexdigest()


class _naming:
    """Puts the folder's name before the errors of a block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ArtifactError):
            raise about(self.folder, error) from None


def _part(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the weights of one part."""
    config = _settings(folder / "config.json")
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        for name, value in read_checkpoint(path).tensors.items():
            if name in weights:
                raise ArtifactError(f"{shown(path)}: {shown(name, 80)} is in another of its files too")
            weights[name] = value
    return config, weights


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"{shown(path)} is missing; the folder is incomplete: get it again")
    return read_json(path)


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a part's weights: whole or in numbered pieces, full precision before half."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for stem, suffix, variant in itertools.product(_STEMS, (".safetensors", ".bin"), _VARIANTS):
        if f"{stem}{variant}{suffix}" in names:
            return [folder / f"{stem}{variant}{suffix}"]
        for begin, end in ((stem + variant, suffix), (stem, variant + suffix)):
            pattern = re.compile(re.escape(begin) + r"-(\d{5})-of-(\d{5})" + re.escape(end))
            found = {int(match[1]): match for name in names if (match := pattern.fullmatch(name))}
            if not found:
                continue
            count = int(next(iter(found.values()))[2])
            if sorted(found) != list(range(1, count + 1)):
                raise ArtifactError(
                    f"{shown(folder)} has {len(found)} of {count} pieces of its weights; get it again"
                )
            return [folder / found[number][0] for number in sorted(found)]
    raise ArtifactError(f"{shown(folder)} has no weights (*.safetensors or *.bin); get it again")


def _words(folder: Path, name: str, given: Path | None) -> ClipWords:
    pad = "!" if name == "tokenizer_2" else "<|endoftext|>"
    if given is not None or not (folder / name).is_dir():
        return standard_words(given, pad=pad)
    return ClipWords.from_folder(folder / name)


def _refuse_other(folder: Path, index: Mapping[str, Any]) -> None:
    """Other pipelines have parts of the same names; say which one it is."""
    name = index.get("_class_name")
    known = isinstance(name, str) and name.startswith(("StableDiffusion", "LatentConsistency"))
    if not known or str(name).startswith("StableDiffusion3") or not (folder / "unet").is_dir():
        raise ArtifactError(f"{shown(folder)} is a {shown(name, 60)}; known are Stable Diffusion 1, 2 and XL")
