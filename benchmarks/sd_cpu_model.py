"""A Stable Diffusion 1.5 of real dimensions with random weights, as a folder of diffusers on disk.

    python benchmarks/sd_cpu_model.py FOLDER

4.3 GB of float32: U-Net, autoencoder, text encoder, scheduler, and a tokenizer with CLIP's 49,408 pieces, of
which only the single bytes mean anything. The weights repeat one random table, scaled as PyTorch begins them:
neither time nor memory depends on their values.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["UNET", "VAE", "filled", "write_model", "write_single"]

UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}


def filled(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network without drawing 10^9 random numbers: its weights repeat one table."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = make()
    network.to_empty(device="cpu")
    table = torch.rand(1_000_003, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    place = 0
    for name, parameter in network.named_parameters():
        flat = parameter.data.view(-1)
        if parameter.ndim == 1:
            flat.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        scale = (3.0 / parameter[0].numel()) ** 0.5
        for start in range(0, len(flat), len(table)):
            part = flat[start : start + len(table)]
            part.copy_(table.roll(place)[: len(part)] if place else table[: len(part)]).mul_(scale * 0.6)
            place = (place + 7919) % len(table) if start == 0 else place
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return network.eval().requires_grad_(False)


def write_model(folder: Path) -> Path:
    """Write the model into ``folder``, made if it is not there, left alone if complete, and return it."""
    index = folder / "model_index.json"
    if index.is_file():
        return folder
    import diffusers
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    filled(lambda: diffusers.UNet2DConditionModel(**UNET), 1).save_pretrained(folder / "unet")  # type: ignore[attr-defined]
    filled(lambda: diffusers.AutoencoderKL(**VAE), 2).save_pretrained(folder / "vae")  # type: ignore[attr-defined]
    text = filled(lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)), 3)
    text.save_pretrained(folder / "text_encoder")  # type: ignore[operator]
    diffusers.EulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer")
    parts: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **parts}), encoding="utf-8")
    return folder


def write_single(folder: Path) -> Path:
    """Write the model of ``folder`` as one file under the names of the original program; return its path.

    stable-diffusion.cpp takes a folder of this kind for SDXL's and fails.
    """
    path = folder / "single.safetensors"
    if path.is_file():
        return path
    import diffusers
    import transformers
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from sd_tiny import ldm_unet, ldm_vae  # diffusers' names to LDM's, as the tests write single files

    tensors = {
        f"model.diffusion_model.{name}": value
        for name, value in ldm_unet(diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")).items()
    }
    for name, value in ldm_vae(diffusers.AutoencoderKL.from_pretrained(folder / "vae")).items():
        tensors[f"first_stage_model.{name}"] = value
    text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    for name, value in text.state_dict().items():
        plain = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{plain}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def _write_tokenizer(folder: Path) -> None:
    """CLIP's byte-level pieces, then merges that no text holds, up to the usual number of pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(value) for value in plain]
    letters += [chr(256 + place) for place in range(256 - len(letters))]
    rare = letters[188:]
    merges = [f"{a} {b}" for a in rare for b in letters][: 49408 - 2 * 256 - 2]
    merges += [f"{a}{b} {c}" for a in rare for b in rare for c in letters][: 49408 - 514 - len(merges)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [pair.replace(" ", "") for pair in merges]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    settings = {
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    print(write_model(Path(sys.argv[1])))
