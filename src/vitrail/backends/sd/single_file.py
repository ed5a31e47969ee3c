"""A Stable Diffusion in one file, with the names of the original programs: ``.safetensors`` or ``.ckpt``.

What the names say is in :mod:`vitrail.backends.sd.ldm_shapes`; here they are told apart, renamed and handed
to the networks. Weights are taken over one by one, so that memory never holds the file twice.

=======================================  ==================================================================
prefix                                   part
=======================================  ==================================================================
``model.diffusion_model.``               U-Net
``first_stage_model.``                   autoencoder
``cond_stage_model.transformer.``        SD1: CLIP ViT-L, transformers' names
``cond_stage_model.model.``              SD2: OpenCLIP ViT-H, one layer more than is used
``conditioner.embedders.0.transformer.`` SDXL: CLIP ViT-L
``conditioner.embedders.1.model.``       SDXL: OpenCLIP ViT-bigG; ``.0.model.`` in the refiner
=======================================  ==================================================================
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.backends.checkpoints import about, read_checkpoint
from vitrail.backends.configs import read_yaml
from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.backends.sd.conditioning import TextEncoders, Tower
from vitrail.backends.sd.families import Family, ZeroTerminalVP, family_of
from vitrail.backends.sd.ldm_shapes import clip_config, unet_config, vae_config
from vitrail.backends.sd.networks import build_autoencoder, build_text_encoder, build_unet
from vitrail.backends.sd.parts import OtherVae, Parts
from vitrail.backends.sd.words import ClipWords, standard_words, words_beside
from vitrail.errors import ArtifactError
from vitrail.files import shown
from vitrail.samplers.paths import VP, Predicts

__all__ = ["openclip_names", "read_file", "read_vae_file", "vae_names"]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_OPENCLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
_EMA = "model_ema."

_OTHERS = (  # names that begin so are of something else
    (("lora_", "lycoris_", "base_model.model."), "a LoRA; write <lora:NAME:1> in the prompt"),
    (("control_model.", "controlnet_", "input_hint_block."), "a ControlNet; give it as one"),
    (("model.diffusion_model.joint_blocks.",), "Stable Diffusion 3, which is not supported"),
    (("model.diffusion_model.double_blocks.", "double_blocks."), "FLUX, which is not supported"),
    (("down_blocks.", "up_blocks.", "mid_block."), "a U-Net of diffusers alone; give the whole folder"),
    (("input_blocks.", "output_blocks."), "a U-Net alone; give the whole model"),
    ((_EMA + "diffusion_model",), "a checkpoint of moving averages alone; give the whole model"),
    (("encoder.", "decoder.", "first_stage_model."), "an autoencoder alone; give it with --vae"),
    (("text_model.",), "a text encoder alone; give the whole model"),
    (("string_to_param", "emb_params", "clip_l", "clip_g"), "a textual inversion; name it in the prompt"),
)


def read_file(
    path: Path,
    *,
    vae: OtherVae | None = None,
    tokenizer: Path | None = None,
    predicts: Predicts | None = None,
    dtype: torch.dtype = torch.float32,
) -> Parts:
    """Read a single file; arguments as for :func:`vitrail.backends.sd.open.open_stable_diffusion`.

    Raises :class:`ArtifactError` with one line that begins with the file's name.
    """
    tensors = read_checkpoint(path).tensors
    try:
        return _parts(path, tensors, vae, tokenizer, predicts, dtype)
    except ArtifactError as error:
        raise about(path, error) from None


def read_vae_file(path: Path, *, xl: bool = False) -> KLAutoencoder:
    """Read an autoencoder from a file of its own (or from a whole model's).

    xl: it is for SDXL, whose latents have another scale. Raises :class:`ArtifactError` with one line.
    """
    tensors = read_checkpoint(path).tensors
    try:
        found = _taken(tensors, _VAE) or {
            name: value
            for name, value in tensors.items()
            if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
        }
        if not found:
            raise ArtifactError("holds no autoencoder")
        return _autoencoder(found, xl=xl)
    except ArtifactError as error:
        raise about(path, error) from None


def _parts(
    path: Path,
    tensors: dict[str, Tensor],
    vae: OtherVae | None,
    tokenizer: Path | None,
    predicts: Predicts | None,
    dtype: torch.dtype,
) -> Parts:
    averages = _taken(tensors, _EMA)  # a second copy of the U-Net, from training
    unet_weights = _taken(tensors, _UNET)
    if not unet_weights or "input_blocks.0.0.weight" not in unet_weights:
        names = (*(_EMA + name for name in averages), *(_UNET + name for name in unet_weights), *tensors)
        raise ArtifactError(_what_else(names))
    _refuse_variants(tensors, unet_weights)
    config = unet_config(_shapes(unet_weights))
    words = standard_words(tokenizer or words_beside(path))
    towers, text_config = _text(tensors, words, xl="addition_embed_type" in config)
    family = family_of(config, text_config)
    _check_text(family, towers)
    vae_weights = _taken(tensors, _VAE)
    if vae is None and not vae_weights:
        raise ArtifactError("has no autoencoder; give one with --vae")
    autoencoder = _autoencoder(vae_weights, xl=family.xl) if vae is None else vae(family.xl)
    if autoencoder.latent.channels != config["out_channels"]:
        raise ArtifactError("its autoencoder and its U-Net have latents of different channels")
    found, path_of_noise, evidence, hints = _predicted(path, tensors, unet_weights, family.name, predicts)
    sample = {"sd1": 64, "sd2": 96 if found == "v" else 64}.get(family.name, 128)
    native = config["block_out_channels"][0] >= 320  # a full-size network; others tell nothing of their size
    unet = build_unet(config, unet_weights, dtype, ldm=True)
    return Parts(
        family,
        unet,
        autoencoder,
        TextEncoders(towers, penultimate=family.xl),
        path_of_noise,
        found,
        (sample if native else 8) * autoencoder.latent.downsample,
        zero_negative=family.name == "sdxl",
        evidence=evidence,
        hints=hints,
    )


# --- parts --------------------------------------------------------------------------------------------------


def _taken(tensors: MutableMapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take what begins with ``prefix`` out of ``tensors``."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _text(tensors: dict[str, Tensor], words: ClipWords, *, xl: bool) -> tuple[list[Tower], dict[str, Any]]:
    towers: list[Tower] = []
    config: dict[str, Any] = {}
    for prefix in _CLIP:
        if weights := _without_pictures(_taken(tensors, prefix)):
            weights.pop("text_projection.weight", None)
            weights.pop("logit_scale", None)
            config = clip_config(_shapes(weights), openclip=False, start=words.start, end=words.end)
            towers.append(_tower(config, weights, words))
    for prefix in _OPENCLIP:
        if weights := _without_pictures(_taken(tensors, prefix)):
            weights = openclip_names(weights)
            if not xl:  # SD2 takes the last layer but one: the last is not needed
                weights.pop("text_projection.weight", None)
                weights = _without_last_layer(weights)
            config = clip_config(_shapes(weights), openclip=True, start=words.start, end=words.end)
            towers.append(_tower(config, weights, words.padded_with("!")))
    if not towers:
        raise ArtifactError("has no text encoder; give a whole model")
    if xl and config["hidden_act"] != "gelu":
        raise ArtifactError("lacks the second text encoder of Stable Diffusion XL; give a whole model")
    return towers, config


def _check_text(family: Family, towers: Sequence[Tower]) -> None:
    """Raise :class:`ArtifactError` where one of SDXL's two text encoders is missing."""
    wanted = 2 if family.name == "sdxl" else 1
    if len(towers) != wanted:
        raise ArtifactError(
            f"has {len(towers)} text encoder{'s' * (len(towers) > 1)}; {family.label} has {wanted}: "
            "give a whole model"
        )


def _without_pictures(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's half that sees pictures, which some programs store along, is not needed."""
    seeing = ("vision_model.", "visual.", "visual_projection.")
    return {name: value for name, value in weights.items() if not name.startswith(seeing)}


def _tower(config: Mapping[str, Any], weights: dict[str, Tensor], words: ClipWords) -> Tower:
    if len(words) > config["vocab_size"]:
        raise ArtifactError(
            f"its text encoder knows {config['vocab_size']} pieces of words, the tokenizer {len(words)}: "
            "they do not belong together; put the model's own tokenizer/ folder beside the file"
        )
    return Tower(build_text_encoder(config, weights), words)


def _without_last_layer(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    numbers = {int(m[1]) for name in weights if (m := re.match(r"encoder\.layers\.(\d{1,3})\.", name))}
    last = f"encoder.layers.{max(numbers, default=0)}."
    return {name: value for name, value in weights.items() if not name.startswith(last)}


def _autoencoder(weights: dict[str, Tensor], *, xl: bool) -> KLAutoencoder:
    for name in [name for name in weights if name.startswith(("loss.", "model_ema."))]:
        del weights[name]  # of training
    renamed = vae_names(weights)
    return KLAutoencoder(build_autoencoder(vae_config(_shapes(renamed), xl=xl), renamed))


_VAE_PLACES = (
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LDM's names of an autoencoder's weights to diffusers'; its 1x1 convolutions of attention to linear
    layers. Names that are diffusers' already stay."""
    levels = 1 + max(
        (int(m[1]) for n in tensors if (m := re.match(r"decoder\.up\.(\d{1,2})\.", n))), default=-1
    )
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = name
        for pattern, place in _VAE_PLACES:
            new = re.sub("^" + pattern, place, new)
        if up := re.match(r"decoder\.up\.(\d{1,2})\.(block|upsample)\.", new):
            module = "resnets" if up[2] == "block" else "upsamplers.0"
            new = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{module}.{new[up.end() :]}"
        new = new.replace(".nin_shortcut.", ".conv_shortcut.")
        if attention := re.fullmatch(r"(.*\.attentions\.0)\.(norm|q|k|v|proj_out)\.(weight|bias)", new):
            new = f"{attention[1]}.{_VAE_ATTENTION[attention[2]]}.{attention[3]}"
        if ".attentions.0." in new and value.ndim == 4:
            value = value[:, :, 0, 0]
        if new in renamed:
            raise ArtifactError(f"two of its weights are {shown(new, 80)}; the file is damaged")
        renamed[new] = value
    return renamed


_OPENCLIP_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}
_OPENCLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip


def openclip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names of a text encoder's weights to transformers'; the fused q, k, v are split, the
    projection is transposed."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in ("logit_scale", "attn_mask"):
            continue
        layer = re.fullmatch(
            r"transformer\.resblocks\.(\d{1,3})\.(.*?)(?:\.(weight|bias)|_(weight|bias))", name
        )
        if name == "text_projection":
            renamed["text_projection.weight"] = value.T
        elif layer is None:
            renamed[_OPENCLIP_NAMES.get(name, name)] = value
        elif layer[2] == "attn.in_proj":
            if value.shape[0] % 3:
                raise ArtifactError(
                    f"its {shown(name, 80)} has the shape {tuple(value.shape)}; it is damaged"
                )
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"encoder.layers.{layer[1]}.self_attn.{letter}_proj.{layer[4]}"] = rows
        else:
            place = _OPENCLIP_LAYER.get(layer[2], layer[2])
            renamed[f"encoder.layers.{layer[1]}.{place}.{layer[3] or layer[4]}"] = value
    return renamed


# --- what the network predicts ------------------------------------------------------------------------------


def _predicted(
    path: Path,
    rest: Mapping[str, Tensor],
    unet: Mapping[str, Tensor],
    family: str,
    given: Predicts | None,
) -> tuple[Predicts, VP, str, tuple[str, ...]]:
    """What the network predicts, its noise path, how that is known, and a hint where it is a guess.

    In order: what the caller says, a configuration beside the file, marks that trainers leave in the file
    (``v_pred``, ``ztsnr``; ``modelspec.prediction_type``), and for SD2, where both kinds are common, a
    statistic that tells the known ones apart: the spread of a bias of the last attention, above 0.09 in
    networks that predict v.
    """
    noise: VP = ZeroTerminalVP() if "ztsnr" in rest else VP()
    if given is not None:
        return given, noise, "the caller says so", ()
    beside = next((path.with_suffix(s) for s in (".yaml", ".yml") if path.with_suffix(s).is_file()), None)
    if beside is not None:
        model = read_yaml(beside).get("model")
        params = model.get("params") if isinstance(model, dict) else None
        said = params.get("parameterization", "eps") if isinstance(params, dict) else None
        if said in ("eps", "v"):
            return ("v" if said == "v" else "eps"), noise, f"{beside.name} says so", ()
    if "v_pred" in rest:
        return "v", noise, "the file is marked v_pred", ()
    metadata = _metadata(path)
    said = metadata.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction", "epsilon"):
        return ("eps" if said == "epsilon" else "v"), noise, "its metadata says so", ()
    if family != "sd2":
        return "eps", noise, "its family does", ()
    last = 1 + max(
        (int(m[1]) for n in unet if (m := re.match(r"output_blocks\.(\d{1,2})\.1\.", n))), default=0
    )
    bias = unet.get(f"output_blocks.{last - 1}.1.transformer_blocks.0.norm1.bias")
    is_v = bias is not None and float(bias.float().std(correction=0)) > 0.09
    other = "eps" if is_v else "v"
    hint = (
        f"the file does not say what its network predicts; taken as {'v' if is_v else 'eps'}. If pictures "
        f"come out as noise, write 'model: {{params: {{parameterization: {other}}}}}' into "
        f"{shown(path.with_suffix('.yaml').name, 60)} beside it"
    )
    return ("v" if is_v else "eps"), noise, "guessed from its weights", (hint,)


def _metadata(path: Path) -> dict[str, str]:
    """The texts in a safetensors header; {} for other files. The header was checked when it was read."""
    if path.suffix.lower() != ".safetensors":
        return {}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    found = header.get("__metadata__")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _refuse_variants(tensors: Mapping[str, Tensor], unet: Mapping[str, Tensor]) -> None:
    """Raise :class:`ArtifactError` for what has the names of a Stable Diffusion and is computed otherwise."""
    if any(name.endswith((".scale_weight", ".scale_input")) for name in unet):
        raise ArtifactError("has weights of 8 bits beside their scales; give the file in 16 or 32 bits")
    if any(name.startswith("edm_") for name in tensors):
        raise ArtifactError("was trained on EDM's noise, which is not supported")


def _what_else(names: Sequence[str]) -> str:
    """Say what a file is that is no Stable Diffusion."""
    for prefixes, what in _OTHERS:
        if any(name.startswith(prefixes) for name in names):
            return f"is {what}"
    return "holds no Stable Diffusion: no weight is called model.diffusion_model.input_blocks.0.0.weight"
