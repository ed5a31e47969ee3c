"""Stable Diffusion's networks: diffusers' and transformers' classes, built from settings and filled strictly.

A configuration is data that a stranger wrote. Only settings that are known here are passed on, their numbers
bounded, so that a lying one costs neither memory nor time; the network is first built without memory, its
names and shapes compared with the weights, and only then filled, each weight brought to its type in turn.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitrail.backends.sd.ldm_names import ldm_modules
from vitrail.errors import ArtifactError, MissingExtraError
from vitrail.files import shown

__all__ = [
    "UNET_SETTINGS",
    "build_autoencoder",
    "build_text_encoder",
    "build_unet",
    "filled",
    "library",
    "made",
    "settings_of",
]

UNET_SETTINGS = {
    "sample_size", "in_channels", "out_channels", "down_block_types", "mid_block_type", "up_block_types",
    "only_cross_attention", "block_out_channels", "layers_per_block", "cross_attention_dim",
    "transformer_layers_per_block", "reverse_transformer_layers_per_block", "attention_head_dim",
    "num_attention_heads", "use_linear_projection", "upcast_attention", "norm_num_groups", "norm_eps",
    "downsample_padding", "mid_block_scale_factor", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "time_cond_proj_dim", "dropout",
}  # fmt: skip
_VAE_READ = {
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor",
    "force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
}  # fmt: skip
_TEXT_READ = {
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id",
    "eos_token_id", "pad_token_id",
}  # fmt: skip
_CHOICES: dict[str, tuple[object, ...]] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpDecoderBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "addition_embed_type": ("text_time", None),
    "hidden_act": ("quick_gelu", "gelu"),
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}
_MOST: dict[str, int] = {
    "layers_per_block": 8, "transformer_layers_per_block": 40, "reverse_transformer_layers_per_block": 40,
    "num_hidden_layers": 80, "vocab_size": 1 << 20,
}  # fmt: skip
_MOST_BLOCKS = 8
_LARGEST = 1 << 16


class _Unfilled(TorchFunctionMode):
    """Leaves out the random numbers that weights begin with: they are replaced at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Keep what the libraries log about odd settings from the screen: what matters becomes an error here."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def library(name: str) -> Any:
    """Import diffusers or transformers; :class:`MissingExtraError` where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their own deprecations are nothing that a user could act on
            return importlib.import_module(name)
    except ImportError as error:
        if (error.name or name).partition(".")[0] != name:
            raise
        raise MissingExtraError(name, "sd") from None


def build_unet(
    config: Mapping[str, Any],
    tensors: MutableMapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    *,
    ldm: bool = False,
) -> nn.Module:
    """Return diffusers' ``UNet2DConditionModel`` with these weights, frozen, on the CPU.

    config: as in ``unet/config.json``. tensors: by diffusers' names (``ldm``: by those of the original
    program, without their prefix); emptied as they are taken.
    Raises :class:`ArtifactError` for settings that are not known and weights that do not fit them.
    """
    kind = library("diffusers").UNet2DConditionModel
    settings = settings_of("U-Net", kind, config, UNET_SETTINGS)

    def make() -> nn.Module:
        return cast(nn.Module, kind(**settings))

    if ldm:
        for name, original in ldm_modules(made("U-Net", make)).items():
            for leaf in ("weight", "bias"):
                if f"{original}.{leaf}" in tensors:
                    tensors[f"{name}.{leaf}"] = tensors.pop(f"{original}.{leaf}")
    return filled("U-Net", make, tensors, dtype)


def build_autoencoder(
    config: Mapping[str, Any], tensors: MutableMapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return diffusers' ``AutoencoderKL`` with these weights; see :func:`build_unet`.

    Names of before diffusers 0.17 (``query``, ``proj_attn``) are read too.
    """
    kind = library("diffusers").AutoencoderKL
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        for name in [name for name in tensors if f".attentions.0.{old}." in name]:
            tensors[name.replace(f".{old}.", f".{new}.")] = tensors.pop(name)
    settings = settings_of("autoencoder", kind, config, _VAE_READ)
    return filled("autoencoder", lambda: cast(nn.Module, kind(**settings)), tensors, dtype)


def build_text_encoder(
    config: Mapping[str, Any], tensors: MutableMapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return transformers' ``CLIPTextModel``, ``CLIPTextModelWithProjection`` where there is a projection.

    tensors: with or without ``text_model.`` before their names, which depends on who wrote them.
    """
    library("transformers")
    clip = library("transformers.models.clip")
    settings = {key: value for key, value in config.items() if key in _TEXT_READ}
    _check("text encoder", settings)
    for name in [name for name in tensors if name.endswith("position_ids")]:
        del tensors[name]  # the numbers from 0 to 76, which older versions stored
    kind = clip.CLIPTextModelWithProjection if "text_projection.weight" in tensors else clip.CLIPTextModel

    def make() -> nn.Module:
        return cast(nn.Module, kind(clip.CLIPTextConfig(**settings)))

    inside = any(name.startswith("text_model.") for name in made("text encoder", make).state_dict())
    for name in list(tensors):
        plain = name.removeprefix("text_model.")
        wanted = f"text_model.{plain}" if inside and plain != "text_projection.weight" else plain
        if wanted != name:
            tensors[wanted] = tensors.pop(name)
    return filled("text encoder", make, tensors, dtype)


# --- settings -----------------------------------------------------------------------------------------------


def settings_of(what: str, kind: Any, config: Mapping[str, Any], read: set[str]) -> dict[str, Any]:
    """Choose the settings ``read`` of a configuration for the class ``kind``.

    Raises :class:`ArtifactError` for one that is not known and not at its default, and for numbers beyond
    any real network's.
    """
    if (name := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise ArtifactError(f"the {what} is a {shown(name, 60)}; only {kind.__name__} can be used here")
    signature = inspect.signature(kind.__init__).parameters
    chosen: dict[str, Any] = {}
    for key, value in config.items():
        if key in read:
            chosen[key] = tuple(value) if isinstance(value, list) else value
        # What the class does not know it ignores too (leftovers of training); what it knows must be at rest.
        elif key in signature and value not in (None, False, signature[key].default):
            raise ArtifactError(
                f"the {what} sets {shown(key, 60)} to {shown(value, 40)}, which is not known here"
            )
    _check(what, chosen)
    return chosen


def _check(what: str, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        items = value if isinstance(value, tuple) else (value,)
        if len(items) > _MOST_BLOCKS:
            raise ArtifactError(
                f"the {what} has {len(items)} {shown(key, 40)}; at most {_MOST_BLOCKS} can be"
            )
        choices = _CHOICES.get(key)
        for item in items:
            if choices is not None and item not in choices:
                raise ArtifactError(
                    f"the {what} sets {key} to {shown(item, 60)}; known are "
                    f"{', '.join(str(choice) for choice in choices)}"
                )
            if choices is None:
                # a list: the layers of each attention of a block
                for number in item if isinstance(item, list) else [item]:
                    _check_number(what, key, number)


def _check_number(what: str, key: str, value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    most = _MOST.get(key, _LARGEST)
    if not isinstance(value, int | float) or not -most <= value <= most:
        raise ArtifactError(f"the {what} sets {shown(key, 40)} to {shown(value, 40)}; at most {most} can be")


# --- filling ------------------------------------------------------------------------------------------------


def made(what: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network without memory for its weights (on the meta device).

    Raises :class:`ArtifactError` for settings that contradict each other.
    """
    try:
        with _Unfilled(), torch.device("meta"), warnings.catch_warnings(), _unsaid():
            warnings.simplefilter("ignore")
            return make()
    except MissingExtraError:
        raise
    except Exception as error:  # whatever such a class raises for settings that contradict each other
        raise ArtifactError(f"the {what} cannot be built from its settings: {shown(error, 120)}") from None


def filled(
    what: str, make: Callable[[], nn.Module], tensors: MutableMapping[str, Tensor], dtype: torch.dtype
) -> nn.Module:
    """Return the network with these weights as ``dtype``, frozen, in eval mode; ``tensors`` is emptied.

    Raises :class:`ArtifactError` that counts and names weights that are missing, not known or of another
    shape.
    """
    network = made(what, make)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _compare(what, wanted, tensors)
    state: dict[str, Tensor] = {}
    for name in wanted:
        value = tensors.pop(name)
        if not value.is_floating_point():
            raise ArtifactError(
                f"the {what}'s {shown(name, 80)} holds {value.dtype}, not numbers with a point"
            )
        value = value.to(dtype).contiguous()
        # A sum is not finite unless every number is, but may overflow: only then is each one looked at.
        if not bool(torch.isfinite(value.sum(dtype=torch.float32))) and not bool(torch.isfinite(value).all()):
            raise ArtifactError(f"the {what}'s {shown(name, 80)} holds NaN or infinite values; it is damaged")
        state[name] = value
    network.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:
            if not name.endswith("position_ids"):
                raise ArtifactError(f"the {what} has {shown(name, 60)}, which no file holds")
            owner = network.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1]).expand(tuple(buffer.shape))
    return network.eval().requires_grad_(False)


def _compare(what: str, wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    other = [name for name in wanted if name in given and tuple(given[name].shape) != wanted[name]]
    parts = [
        f"{len(names)} {problem} ({', '.join(shown(name, 70) for name in names[:2])}"
        + (", ..." if len(names) > 2 else "")
        + ")"
        for problem, names in (("missing", missing), ("not known", unknown))
        if names
    ]
    if other:
        name = other[0]
        parts.append(
            f"{len(other)} of another shape ({shown(name, 70)}: {tuple(given[name].shape)} for "
            f"{wanted[name]})"
        )
    if parts:
        raise ArtifactError(f"the weights of the {what} do not fit its settings: {'; '.join(parts)}")
