"""Tiny real Stable Diffusion checkpoints: every family, as diffusers writes folders and as LDM wrote files.

The networks are diffusers' and transformers' own classes with random weights; a pass takes milliseconds. The
single files hold the same weights under the names of the original programs, made here from diffusers' names
(the opposite direction of what the product does, written separately).

    folder = make_folder(tmp_path / "m", "sd1")          # model_index.json, unet/, vae/, text_encoder/, ...
    file = make_single(tmp_path / "m.safetensors", "sd1")  # .ckpt likewise; same weights for the same seed
    vocabulary = make_vocabulary(tmp_path / "words")       # for single files, which have none inside

Pictures have 8 pixels a latent; 64 x 64 is the native size. ``FAMILIES`` lists what there is.
"""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = (
    "sd1", "sd1-inpaint", "sd2", "sd2-v", "sd2-inpaint", "sdxl", "sdxl-inpaint", "sdxl-refiner", "lcm",
)  # fmt: skip
SIZE = 64
WORDS = (
    "a",
    "cat",
    "dog",
    "red",
    "blue",
    "house",
    "of",
    "the",
    "photo",
    "garden",
    "night",
    "sky",
    "in",
    "on",
)
START, END = "<|startoftext|>", "<|endoftext|>"


# --- words --------------------------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """The 256 letters that CLIP's byte-level BPE writes bytes with, in the order of its vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    return [chr(value) for value in plain] + [chr(256 + place) for place in range(len(others))]


@cache
def merges() -> tuple[str, ...]:
    """The merges that spell :data:`WORDS`, each a pair of pieces."""
    found: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = f"{pieces[0]} {pieces[1]}"
            if pair not in found:
                found.append(pair)
            pieces[:2] = [pieces[0] + pieces[1]]
    return tuple(found)


@cache
def vocabulary() -> dict[str, int]:
    """Pieces to numbers, laid out as CLIP's: bytes, bytes that end a word, merges, start, end."""
    letters = byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [pair.replace(" ", "") for pair in merges()]
    return {piece: number for number, piece in enumerate([*pieces, START, END])}


def make_vocabulary(folder: Path, *, pad: str = END, style: str = "old") -> Path:
    """Write a tokenizer folder: ``vocab.json`` and ``merges.txt`` (old) or ``tokenizer.json`` (new)."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_max_length": 77, "pad_token": pad, "bos_token": START, "eos_token": END,
                "unk_token": END, "tokenizer_class": "CLIPTokenizer"}  # fmt: skip
    if style == "new":
        from transformers import CLIPTokenizer

        CLIPTokenizer(
            vocab=vocabulary(), merges=[tuple(pair.split(" ")) for pair in merges()], pad_token=pad
        ).save_pretrained(folder)
    else:
        (folder / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges()]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def make_bpe_file(path: Path) -> Path:
    """Write the merges in OpenAI's own form, ``bpe_simple_vocab_16e6.txt.gz``."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(['"bpe_simple_vocab" #version: 0.2', *merges()]) + "\n")
    return path


# --- networks -----------------------------------------------------------------------------------------------


def _spoken(network: nn.Module, by: float = 0.03) -> nn.Module:
    """Disturb every weight: norms begin at 1 and 0, which would hide a mix-up."""
    with torch.no_grad():
        for value in network.parameters():
            value += by * torch.randn(value.shape)
    return network.eval().requires_grad_(False)


def unet_config(family: str) -> dict[str, Any]:
    """The settings of a family's tiny U-Net, as in ``unet/config.json``."""
    config: dict[str, Any] = {
        "sample_size": SIZE // 8,
        "in_channels": 9 if family.endswith("inpaint") else 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 128,
        "attention_head_dim": 8,
    }
    if family.startswith("sd2"):
        config |= {
            "block_out_channels": [64, 128, 128],
            "attention_head_dim": [1, 2, 2],
            "use_linear_projection": True,
        }
    if family in ("sdxl", "sdxl-inpaint"):
        config |= {
            "block_out_channels": [64, 128, 128],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [1, 2, 2],
            "transformer_layers_per_block": [1, 1, 2],
            "use_linear_projection": True,
            "cross_attention_dim": 256,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 32 + 6 * 256,
        }
    if family == "sdxl-refiner":
        config |= {
            "block_out_channels": [64, 128, 128],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [1, 2, 2],
            "transformer_layers_per_block": 2,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 32 + 5 * 256,
        }
    if family == "lcm":
        config |= {"time_cond_proj_dim": 16}
    return config


def make_unet(family: str) -> Any:
    """A family's tiny U-Net, from the current state of torch's random numbers."""
    from diffusers import UNet2DConditionModel

    return _spoken(UNet2DConditionModel(**unet_config(family)))


def make_vae(family: str) -> Any:
    """A tiny AutoencoderKL: f8, 4 channels."""
    from diffusers import AutoencoderKL

    return _spoken(
        AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            sample_size=SIZE,
            scaling_factor=0.13025 if family.startswith("sdxl") else 0.18215,
        )
    )


def make_text_encoder(act: str = "quick_gelu", *, projection: int | None = None, layers: int = 3) -> Any:
    """A tiny CLIP text model of 128 channels and 2 heads; with ``projection`` one with pooled text."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    end = vocabulary()[END]
    config = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=projection or 128,
        bos_token_id=vocabulary()[START],
        eos_token_id=end,
        pad_token_id=end,
    )
    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return _spoken(kind(config), 0.05)


def scheduler_settings(family: str) -> dict[str, Any]:
    """The settings of the scheduler that such checkpoints come with."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if family == "sd2-v" else "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }


def components(family: str, seed: int = 0) -> dict[str, Any]:
    """The networks of a tiny checkpoint by the names of diffusers' folders."""
    if family not in FAMILIES:
        raise ValueError(f"{family} is no tiny family; there are {', '.join(FAMILIES)}")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        parts: dict[str, Any] = {"unet": make_unet(family), "vae": make_vae(family)}
        if family.startswith("sdxl"):
            if family != "sdxl-refiner":
                parts["text_encoder"] = make_text_encoder()
            parts["text_encoder_2"] = make_text_encoder("gelu", projection=32)
        elif family.startswith("sd2"):
            parts["text_encoder"] = make_text_encoder("gelu")
        else:
            parts["text_encoder"] = make_text_encoder()
    finally:
        torch.random.set_rng_state(state)
    return parts


# --- folders ------------------------------------------------------------------------------------------------


def make_folder(
    folder: Path, family: str = "sd1", *, seed: int = 0, safe: bool = True, variant: str | None = None
) -> Path:
    """Write a folder of diffusers. ``safe=False``: ``.bin`` weights; ``variant``: ``fp16`` names, in half."""
    parts = components(family, seed)
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": _pipeline_name(family), "_diffusers_version": "0.30.0"}
    for name, network in parts.items():
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(network).__name__]
        if variant == "fp16":
            network = network.half()
        network.save_pretrained(folder / name)
        written = next((folder / name).glob("*.safetensors"))
        if variant is not None:
            written.rename(written.with_name(f"{written.stem}.{variant}.safetensors"))
        elif not safe:
            stem = "pytorch_model" if library == "transformers" else "diffusion_pytorch_model"
            torch.save(network.state_dict(), folder / name / f"{stem}.bin")
            written.unlink()
    for name in parts:
        if name.startswith("text"):
            words = name.replace("text_encoder", "tokenizer")
            pad = "!" if family.startswith("sd2") or name == "text_encoder_2" else END
            make_vocabulary(folder / words, pad=pad)
            index[words] = ["transformers", "CLIPTokenizer"]
    _scheduler(family).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(_scheduler(family)).__name__]
    if not family.startswith("sdxl"):
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    if family == "sdxl-refiner":
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        index["requires_aesthetics_score"] = True
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def _scheduler(family: str) -> Any:
    import diffusers

    if family == "lcm":
        settings = scheduler_settings(family) | {"original_inference_steps": 50}
        return diffusers.LCMScheduler(**settings)
    return diffusers.EulerDiscreteScheduler(**scheduler_settings(family))


def _pipeline_name(family: str) -> str:
    if family == "lcm":
        return "LatentConsistencyModelPipeline"
    xl = "XL" if family.startswith("sdxl") else ""
    task = "Inpaint" if family.endswith("inpaint") else "Img2Img" if family == "sdxl-refiner" else ""
    return f"StableDiffusion{xl}{task}Pipeline"


# --- single files -------------------------------------------------------------------------------------------


def make_single(
    path: Path,
    family: str = "sd1",
    *,
    seed: int = 0,
    half: bool = False,
    ema: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write one file with LDM's names: ``.safetensors``, or a torch file for any other ending.

    ``ema``: with a second copy of the U-Net under ``model_ema``, all zero so that whoever takes it is seen.
    """
    tensors = single_tensors(family, seed)
    if ema:
        names = [name for name in tensors if name.startswith("model.diffusion_model.")]
        for name in names:
            flat = name.removeprefix("model.").replace(".", "")
            tensors[f"model_ema.{flat}"] = torch.zeros_like(tensors[name])
    if half:
        tensors = {
            name: value.half() if value.is_floating_point() else value for name, value in tensors.items()
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path, metadata=metadata)
    else:
        torch.save({"state_dict": tensors, "global_step": 470000, "epoch": 3}, path)
    return path


def single_tensors(family: str, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a family's single file, by LDM's names."""
    parts = components(family, seed)
    tensors: dict[str, Tensor] = {}
    for name, value in ldm_unet(parts["unet"]).items():
        tensors[f"model.diffusion_model.{name}"] = value
    for name, value in ldm_vae(parts["vae"]).items():
        tensors[f"first_stage_model.{name}"] = value
    if family == "sdxl-refiner":
        tensors |= _prefixed("conditioner.embedders.0.model.", open_clip(parts["text_encoder_2"]))
    elif family.startswith("sdxl"):
        tensors |= _prefixed("conditioner.embedders.0.transformer.", _hugging(parts["text_encoder"]))
        tensors |= _prefixed("conditioner.embedders.1.model.", open_clip(parts["text_encoder_2"]))
    elif family.startswith("sd2"):
        tensors |= _prefixed("cond_stage_model.model.", open_clip(parts["text_encoder"], extra=True))
    else:
        tensors |= _prefixed("cond_stage_model.transformer.", _hugging(parts["text_encoder"]))
    if not family.startswith("sdxl"):  # buffers that Lightning stored along
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        tensors["betas"] = betas.float()
        tensors["alphas_cumprod"] = (1 - betas).cumprod(0).float()
        tensors["model_ema.decay"] = torch.tensor(0.9999)
        tensors["model_ema.num_updates"] = torch.tensor(3, dtype=torch.int32)
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
}  # fmt: skip


def ldm_unet(unet: Any) -> dict[str, Tensor]:
    """diffusers' names of a U-Net's weights to LDM's."""
    layers = unet.config.layers_per_block
    attentive = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    return {_unet_name(name, layers, attentive): value for name, value in unet.state_dict().items()}


def _unet_name(name: str, layers: int, attentive: list[bool]) -> str:
    part, _, leaf = name.rpartition(".")
    if part in _OUTSIDE:
        return f"{_OUTSIDE[part]}.{leaf}"
    kind, block, module, place, rest = re.fullmatch(
        r"(down|up|mid)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
    ).groups()  # type: ignore[union-attr]
    if module == "resnets":
        inner, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[inner]}.{leaf}"
    if kind == "mid":
        return f"middle_block.{1 if module == 'attentions' else 2 * int(place)}.{rest}"
    number = int(block) * (layers + 1) + int(place)
    if kind == "down":
        if module == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{number + 1}.{int(module == 'attentions')}.{rest}"
    if module == "upsamplers":
        return (
            f"output_blocks.{int(block) * (layers + 1) + layers}.{2 if attentive[int(block)] else 1}.{rest}"
        )
    return f"output_blocks.{number}.{int(module == 'attentions')}.{rest}"


def ldm_vae(vae: Any) -> dict[str, Tensor]:
    """diffusers' names of an autoencoder's weights to LDM's; linear layers of attention to convolutions."""
    levels = len(vae.config.block_out_channels)
    renamed: dict[str, Tensor] = {}
    for name, value in vae.state_dict().items():
        new = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        if found := re.search(r"up_blocks\.(\d+)\.", new):
            new = new.replace(found[0], f"up.{levels - 1 - int(found[1])}.")
            new = new.replace(".resnets.", ".block.").replace(".upsamplers.0.", ".upsample.")
        new = new.replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in new:
            for theirs, ldm in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
                new = new.replace(theirs, ldm)
            new = new.replace("to_out.0", "proj_out")
            if value.ndim == 2:
                value = value[:, :, None, None]
        renamed[new] = value
    return renamed


def _hugging(encoder: Any) -> dict[str, Tensor]:
    tensors = {}
    for name, value in encoder.state_dict().items():
        tensors[name if name.startswith("text_model.") else f"text_model.{name}"] = value
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors


_OPEN_CLIP = (
    ("encoder.layers.", "transformer.resblocks."), ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"), ("final_layer_norm", "ln_final"),
)  # fmt: skip


def open_clip(encoder: Any, *, extra: bool = False) -> dict[str, Tensor]:
    """transformers' names of a CLIP text model to OpenCLIP's. ``extra``: with one more layer, as the files of
    SD2 have it, which never runs."""
    source = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for name, value in source.items():
        if name == "text_projection.weight":
            tensors["text_projection"] = value.T
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            rows = [source[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensors[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(rows)
        elif ".k_proj." not in name and ".v_proj." not in name:
            for theirs, ours in _OPEN_CLIP:
                name = name.replace(theirs, ours)
            tensors[name] = value
    if extra:
        count = encoder.config.num_hidden_layers
        for name, value in list(tensors.items()):
            if f".resblocks.{count - 1}." in name:
                tensors[name.replace(f".{count - 1}.", f".{count}.")] = torch.full_like(value, 7.0)
        tensors["text_projection"] = torch.full((128, 128), 7.0)
    tensors["logit_scale"] = torch.tensor(4.6)
    return tensors
