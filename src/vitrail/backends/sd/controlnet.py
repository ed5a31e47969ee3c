"""ControlNets: a copy of the U-Net's first half that is shown a picture (Zhang et al., arXiv:2302.05543).

Read from a folder of diffusers, or from one file with diffusers' names or those of the original program
(``control_model.*``). What it computes is added to the U-Net's skip connections::

    controls = Controls([(open_controlnet(path), Control("canny", picture))])
    found = controls.residuals(x, times, states, step=3, steps=20)
    if found is not None:
        unet(..., down_block_additional_residuals=found.down, mid_block_additional_residual=found.mid)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.backends.checkpoints import read_checkpoint
from vitrail.backends.model import Control
from vitrail.backends.sd.controlnet_shapes import config_of
from vitrail.backends.sd.ldm_names import ldm_modules
from vitrail.backends.sd.networks import UNET_SETTINGS, filled, library, made, settings_of
from vitrail.errors import ArtifactError, InputError
from vitrail.files import shown

__all__ = ["ControlNet", "Controls", "Residuals", "open_controlnet"]

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.bin", "model.safetensors")  # fmt: skip
_MAX_CONFIG = 1 << 20
_ALSO_READ = {
    "conditioning_channels", "conditioning_embedding_out_channels", "controlnet_conditioning_channel_order",
    "global_pool_conditions",
}  # fmt: skip


class Residuals(NamedTuple):
    """What is added to the U-Net: ``down`` to each skip connection, ``mid`` to its middle; (B, C, h, w)."""

    down: tuple[Tensor, ...]
    mid: Tensor


@dataclass
class ControlNet:
    """A ControlNet ready to run: diffusers' ``ControlNetModel``, frozen."""

    name: str
    network: nn.Module

    def __post_init__(self) -> None:
        network: Any = self.network
        network.controlnet_cond_embedding = _Remembered(network.controlnet_cond_embedding)

    @property
    def config(self) -> Any:
        """The settings of the network."""
        return self.network.config

    def check(self, unet: nn.Module) -> None:
        """Raise :class:`~vitrail.errors.ArtifactError` unless this is for a U-Net of that shape."""
        theirs: Any = unet.config
        for key, what in (
            ("cross_attention_dim", "attends to text of {} channels"),
            ("block_out_channels", "has blocks of {} channels"),
            ("layers_per_block", "has {} layers in a block"),
        ):
            own, other = _plain(getattr(self.config, key)), _plain(getattr(theirs, key))
            if own != other:
                raise ArtifactError(
                    f"the ControlNet {shown(self.name, 80)} {what.format(own)}, this model "
                    f"{what.format(other)}: choose a ControlNet of the same family"
                )

    def residuals(
        self,
        x: Tensor,
        times: Tensor,
        states: Tensor,
        picture: Tensor,
        strength: float = 1.0,
        added: Mapping[str, Tensor] | None = None,
    ) -> Residuals:
        """Run the network.

        x: (B, 4, h, w), scaled as the U-Net is shown it. times: (B,) training times. states: (B, T, C).
        picture: (1 or B, 3, 8 h, 8 w) in [0, 1]. added: SDXL's ``text_embeds`` and ``time_ids``.
        """
        down, mid = self.network(
            x,
            times,
            encoder_hidden_states=states,
            controlnet_cond=picture,
            conditioning_scale=strength,
            added_cond_kwargs=dict(added) if added is not None else None,
            return_dict=False,
        )
        return Residuals(tuple(down), mid)


class Controls:
    """Several ControlNets at work in one picture; each with its picture, strength and share of the steps.

    unet: the model's; a ControlNet of another family is refused.
    Raises :class:`~vitrail.errors.ArtifactError` for that, :class:`~vitrail.errors.InputError` for a picture
    or an interval that cannot be.
    """

    def __init__(self, items: Sequence[tuple[ControlNet, Control]], unet: nn.Module | None = None) -> None:
        for network, control in items:
            if unet is not None:
                network.check(unet)
            shape, (start, end) = tuple(control.picture.shape), control.interval
            if len(shape) != 4 or shape[1] != network.config.conditioning_channels or min(shape) < 1:
                raise InputError(
                    f"the picture for the ControlNet {shown(network.name, 80)} has shape {shape}; "
                    f"it needs (1, {network.config.conditioning_channels}, height, width)"
                )
            if not 0.0 <= start <= end <= 1.0:
                raise InputError(
                    f"a ControlNet works from {start} to {end} of the steps; give 0 <= start <= end <= 1"
                )
        self.items = tuple(items)
        self._fitted: dict[int, Tensor] = {}

    def residuals(
        self,
        x: Tensor,
        times: Tensor,
        states: Tensor,
        *,
        step: int = 0,
        steps: int = 1,
        added: Mapping[str, Tensor] | None = None,
    ) -> Residuals | None:
        """Return the sum of all that are at work at ``step`` (from 0) of ``steps``; None where none is."""
        total: Residuals | None = None
        for number, (network, control) in enumerate(self.items):
            start, end = control.interval
            if control.strength == 0.0 or step / steps < start or (step + 1) / steps > end:
                continue
            found = network.residuals(x, times, states, self._picture(number, x), control.strength, added)
            if total is not None:
                found = Residuals(
                    tuple(a + b for a, b in zip(total.down, found.down, strict=True)), total.mid + found.mid
                )
            total = found
        return total

    def _picture(self, number: int, x: Tensor) -> Tensor:
        """The picture in the size, type and place that ``x`` asks for; made once."""
        size = (8 * x.shape[-2], 8 * x.shape[-1])
        fitted = self._fitted.get(number)
        if (
            fitted is None
            or tuple(fitted.shape[-2:]) != size
            or fitted.device != x.device
            or fitted.dtype != x.dtype
        ):
            fitted = self.items[number][1].picture.to(x, copy=True)
            if tuple(fitted.shape[-2:]) != size:
                fitted = functional.interpolate(fitted.float(), size, mode="bicubic", antialias=True).clamp(
                    0, 1
                )
            self._fitted[number] = fitted = fitted.to(x)
        if len(fitted) not in (1, len(x)):
            return fitted.repeat(-(-len(x) // len(fitted)), 1, 1, 1)[: len(x)]
        return fitted


class _Remembered(nn.Module):
    """The encoder of the picture, which is the same at every step: computed once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, picture: Tensor) -> Tensor:
        """Return the encoding (1 or B, C, h, w)."""
        if self._last is None or self._last[0] is not picture or torch.is_grad_enabled():
            encoded: Tensor = self.inner(picture)
            self._last = (picture, encoded)
        return self._last[1]


def open_controlnet(path: Path | str, *, dtype: torch.dtype = torch.float32) -> ControlNet:
    """Open a ControlNet: a folder of diffusers, or one file.

    Raises :class:`~vitrail.errors.ArtifactError` for what is damaged, no ControlNet, or of a kind that is not
    known here (T2I adapters, control-LoRAs, ControlNet++ union models).
    """
    path = Path(path)
    config: Mapping[str, Any] | None = None
    file = path
    if path.is_dir():
        found = [path / name for name in _WEIGHTS if (path / name).is_file()]
        if not found or not (path / "config.json").is_file():
            raise ArtifactError(
                f"{shown(path)} is no ControlNet: it needs config.json and {_WEIGHTS[0]}; "
                "give such a folder or a file"
            )
        file, config = found[0], _config(path / "config.json")
    tensors = dict(read_checkpoint(file).tensors)
    try:
        network = _network(tensors, config, dtype)
    except ArtifactError as error:
        raise ArtifactError(f"{shown(path)}: {error}") from None
    return ControlNet(path.name if path.is_dir() else path.stem, network)


def _network(tensors: dict[str, Tensor], config: Mapping[str, Any] | None, dtype: torch.dtype) -> nn.Module:
    for prefix in ("control_model.", "module.control_model.", "module."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }
            break
    _refuse(tensors)
    if config is None:
        config = config_of({name: tuple(value.shape) for name, value in tensors.items()})
    kind = library("diffusers").ControlNetModel
    settings = settings_of("ControlNet", kind, config, UNET_SETTINGS | _ALSO_READ)

    def make() -> nn.Module:
        network: nn.Module = kind(**settings)
        return network

    if "input_hint_block.0.weight" in tensors:
        names = {ldm: name for name, ldm in ldm_modules(made("ControlNet", make)).items()}
        tensors = {_renamed(name, names): value for name, value in tensors.items()}
    return filled("ControlNet", make, tensors, dtype)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{names[layer]}.{kind}" if layer in names else name


def _refuse(tensors: Mapping[str, Tensor]) -> None:
    """Raise for what is sold under the same name and is something else."""
    if "lora_controlnet" in tensors or any(name.endswith(".up") for name in tensors):
        raise ArtifactError("it is a control-LoRA; only whole ControlNets are known here")
    if any(name.startswith(("task_embedding", "control_add_embedding")) for name in tensors):
        raise ArtifactError(
            "it is a union ControlNet (ControlNet++); only those for one kind of picture are known"
        )
    if any(name.startswith(("body.", "adapter.", "lllite_")) for name in tensors):
        raise ArtifactError("it is a T2I adapter or a ControlNet-LLLite; only ControlNets are known here")
    if not any(name.startswith(("input_hint_block.", "controlnet_cond_embedding.")) for name in tensors):
        raise ArtifactError(
            "it holds no ControlNet: neither input_hint_block nor controlnet_cond_embedding is there"
        )


def _config(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > _MAX_CONFIG:
        raise ArtifactError(f"{shown(path)} is too large for settings")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{shown(path)} is not valid JSON: {shown(error, 80)}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{shown(path)} holds no settings")
    return value


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else value
