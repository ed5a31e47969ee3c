"""LoRAs at work in a model's networks: several at once, each with its weights, merged or live.

*Merged*: the change is added into the weights, so that a pass costs what it always does; the weights as they
were are kept, and put back bit for bit. *Live*: the weights stay as they are and each changed layer adds the
product of the small factors to its output; nothing is kept, and a pass costs a little more.

    stack = LoraStack({"unet": unet, "text_encoder": clip})
    hints = stack.apply([Wanted(read_lora(path), text_encoder=0.8, unet=0.8)])
    ...
    stack.clear()
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.backends.sd.ldm_names import ldm_modules
from vitrail.backends.sd.lora_files import WIDTHS, Layer, LoraFile, context_width
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["LoraStack", "Match", "Place", "Wanted", "match_lora"]

Mode = Literal["merged", "live"]

Component = Literal["unet", "text_encoder", "text_encoder_2"]


class Place(NamedTuple):
    """A weight of a model: the network, the layer's name in it, "weight" or "bias"."""

    component: str
    layer: str
    kind: str


@dataclass(frozen=True)
class Wanted:
    """A LoRA and its weights in the text encoders and in the U-Net."""

    file: LoraFile
    text_encoder: float = 1.0
    unet: float = 1.0


@dataclass(frozen=True)
class Match:
    """Where the layers of a LoRA belong. ``hint``: what did not fit, in a line for the user."""

    layers: Mapping[Place, Layer]
    hint: str | None = None


class LoraStack:
    """The LoRAs of one model.

    Parameters
    ----------
    networks: "unet", "text_encoder", "text_encoder_2", as far as the model has them.
    mode: "merged" or "live", see above.

    ``version`` grows with every change of the networks: whatever was computed with an older one (text states,
    keys and values) is stale.
    """

    def __init__(self, networks: Mapping[str, nn.Module], mode: Mode = "merged") -> None:
        self.networks = dict(networks)
        self.mode: Mode = mode
        self.version = 0
        self._names = layer_names(self.networks)
        self._active: tuple[tuple[int, float, float], ...] = ()
        self._files: tuple[LoraFile, ...] = ()  # keeps the identities in _active alive
        self._hints: tuple[str, ...] = ()
        self._undo: list[Callable[[], None]] = []

    @property
    def active(self) -> tuple[LoraFile, ...]:
        """The LoRAs in use."""
        return self._files

    def apply(self, wanted: Sequence[Wanted]) -> tuple[str, ...]:
        """Bring the networks to exactly these LoRAs; return hints about what did not fit.

        A LoRA that is named twice works twice. What is in use already costs nothing.
        Raises :class:`~vitrail.errors.ArtifactError` for a LoRA of another family and for one of which no
        layer is found; then the networks are as they were before the call.
        """
        key = tuple((id(item.file), item.text_encoder, item.unet) for item in wanted)
        if key == self._active:
            return self._hints
        matches = [(item, match_lora(item.file, self.networks, self._names)) for item in wanted]
        changes: dict[Place, list[tuple[Layer, float]]] = {}
        for item, match in matches:
            for place, layer in match.layers.items():
                weight = item.unet if place.component == "unet" else item.text_encoder
                if weight != 0.0:
                    changes.setdefault(place, []).append((layer, weight))
        self.clear()
        if self.mode == "merged":
            self._merge(changes)
        else:
            self._hook(changes)
        self._active, self._files = key, tuple(item.file for item in wanted)
        self._hints = tuple(match.hint for _, match in matches if match.hint is not None)
        self.version += 1
        return self._hints

    def clear(self) -> None:
        """Take all LoRAs out: the weights are bit for bit what they were."""
        if not self._active:
            return
        with torch.inference_mode(False), torch.no_grad():
            for undo in self._undo:
                undo()
        self._undo.clear()
        self._active, self._files, self._hints = (), (), ()
        self.version += 1

    def _layer(self, place: Place) -> nn.Module:
        return self.networks[place.component].get_submodule(place.layer)

    def _merge(self, changes: Mapping[Place, Sequence[tuple[Layer, float]]]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for place, layers in changes.items():
                self._undo.append(_merged(self._layer(place), place.kind, layers))

    def _hook(self, changes: Mapping[Place, Sequence[tuple[Layer, float]]]) -> None:
        by_layer: dict[tuple[str, str], list[tuple[str, Layer, float]]] = {}
        for place, layers in changes.items():
            for layer, weight in layers:
                by_layer.setdefault((place.component, place.layer), []).append((place.kind, layer, weight))
        for (component, name), items in by_layer.items():
            module = self.networks[component].get_submodule(name)
            self._undo.append(module.register_forward_hook(_live(module, items)).remove)


def _merged(module: Any, kind: str, layers: Sequence[tuple[Layer, float]]) -> Callable[[], None]:
    """Add changes into a weight; return what puts it back as it was."""
    parameter: Tensor = getattr(module, kind)
    total = torch.zeros(parameter.shape, device=parameter.device)
    for layer, weight in layers:
        total += layer.delta(parameter) * weight
    total += parameter.float()
    if kind == "weight" and hasattr(module, "load_weight"):  # packed for our kernels
        packed = module.packed
        module.load_weight(total)
        return lambda: setattr(module, "packed", packed)
    original = parameter.detach().to("cpu", copy=True)
    parameter.copy_(total)

    def restore() -> None:
        getattr(module, kind).copy_(original)

    return restore


# --- live ---------------------------------------------------------------------------------------------------


def _live(module: nn.Module, items: Sequence[tuple[str, Layer, float]]) -> Callable[..., Tensor]:
    """Return a forward hook that adds the changes to a layer's output."""
    steps: list[Callable[[Tensor], Tensor]] = []
    for kind, layer, weight in items:
        parameter: Tensor = getattr(module, kind)
        if kind == "bias":
            steps.append(_bias(module, layer.delta(parameter) * weight))
        elif isinstance(module, nn.Linear):
            steps.append(_linear(layer, weight, parameter))
        elif isinstance(module, nn.Conv2d):
            steps.append(_convolution(module, layer, weight, parameter))
        else:
            raise ArtifactError(
                f"a LoRA changes a {type(module).__name__}, which cannot be done live; use merged LoRAs"
            )

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for step in steps:
            output = output + step(inputs[0]).to(output.dtype)
        return output

    return hook


def _bias(module: nn.Module, change: Tensor) -> Callable[[Tensor], Tensor]:
    shape = (-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,)
    return lambda x: change.reshape(shape)


def _linear(layer: Layer, weight: float, parameter: Tensor) -> Callable[[Tensor], Tensor]:
    factor = layer.scale * weight
    if layer.factors.keys() == {"up", "down"}:
        up = layer.factors["up"].flatten(1).to(parameter) * factor
        down = layer.factors["down"].flatten(1).to(parameter)
        return lambda x: functional.linear(functional.linear(x, down), up)
    whole = (layer.delta(parameter) * weight).to(parameter)
    return lambda x: functional.linear(x, whole)


def _convolution(
    module: nn.Conv2d, layer: Layer, weight: float, parameter: Tensor
) -> Callable[[Tensor], Tensor]:
    factor, shape = layer.scale * weight, tuple(parameter.shape)

    def convolve(x: Tensor, kernel: Tensor) -> Tensor:
        # with the layer's own padding, which seamless textures set to circular
        output: Tensor = module._conv_forward(x, kernel, None)
        return output

    if layer.factors.keys() == {"up", "down"} and module.groups == 1:
        up = (layer.factors["up"] * factor).reshape(shape[0], -1, 1, 1).to(parameter)
        down = layer.factors["down"].reshape(-1, *shape[1:]).to(parameter)
        return lambda x: functional.conv2d(convolve(x, down), up)
    whole = (layer.delta(parameter) * weight).to(parameter)
    return lambda x: convolve(x, whole)


# --- names --------------------------------------------------------------------------------------------------


_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out.0"}
"""What older diffusers called the layers of a text encoder's attention."""


_OTHER_TEXTS = {
    "text_encoder": ("clip_l", "text_encoders.clip_l.transformer"),
    "text_encoder_2": ("clip_g", "text_encoders.clip_g.transformer"),
}
"""What OneTrainer and ComfyUI call the text encoders."""


def layer_names(networks: Mapping[str, nn.Module]) -> dict[str, tuple[str, str]]:
    """Return every name under which a LoRA may know a layer: (network, the layer's name in it)."""
    names: dict[str, tuple[str, str]] = {}
    for component, network in networks.items():
        layers = [name for name, module in network.named_modules() if _shape(module, "weight") is not None]
        if component == "unet":
            ldm = ldm_modules(network)
            for layer in layers:
                for known in dict.fromkeys((layer, ldm.get(layer, layer))):
                    flat = known.replace(".", "_")
                    for name in (f"lora_unet_{flat}", f"lycoris_{flat}", f"unet.{known}", known):
                        names.setdefault(name, (component, layer))
                    names.setdefault(f"diffusion_model.{known}", (component, layer))
            continue
        prefixes = {"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}[component]
        others = _OTHER_TEXTS[component]
        for layer in layers:
            plain = layer.removeprefix("text_model.")  # transformers 5 leaves it out of some classes
            old = _OLD_TEXT.get(plain.rpartition(".")[2])
            aliases = [plain] if old is None else [plain, f"{plain.rpartition('.')[0]}.{old}"]
            for known in [f"{prefix}{alias}" for alias in aliases for prefix in ("text_model.", "")]:
                for prefix in (component, *others):
                    names.setdefault(f"{prefix}.{known}", (component, layer))
                for prefix in prefixes:
                    names.setdefault(f"{prefix}_{known.replace('.', '_')}", (component, layer))
    return names


def _shape(module: nn.Module, kind: str) -> tuple[int, ...] | None:
    """Return the shape of a layer's weight or bias; None where it has none. Nothing is unpacked for it."""
    if kind == "weight" and isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    if kind == "weight" and isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    found = module._parameters.get(kind)
    return None if found is None else tuple(found.shape)


def match_lora(
    file: LoraFile,
    networks: Mapping[str, nn.Module],
    names: Mapping[str, tuple[str, str]] | None = None,
) -> Match:
    """Find the weights that a LoRA changes.

    Raises :class:`~vitrail.errors.ArtifactError` where no layer fits, or where the LoRA is for a model that
    attends to text of another width (another family).
    """
    names = layer_names(networks) if names is None else names
    model_width = _width_of(networks)
    width = context_width(file.layers)
    if width is not None and model_width is not None and width != model_width:
        raise ArtifactError(
            f"the LoRA {shown(file.name, 80)} seems to be for {file.family}; this model is "
            f"{WIDTHS.get(model_width, f'one that attends to text of {model_width} channels')}: "
            "choose a LoRA of the same family"
        )
    found: dict[Place, Layer] = {}
    foreign: list[str] = []
    misfits: list[str] = []
    for raw, layer in file.layers.items():
        name, _, kind = raw.replace("base_model.model.", "").partition("::")
        plain = re.sub(r"^(?:model\.|unet\.(?=unet\.))", "", name)  # some trainers saved their prefix twice
        place = names.get(name) or names.get(plain)
        if place is None:
            foreign.append(raw)
            continue
        kind = kind or "weight"
        shape = _shape(networks[place[0]].get_submodule(place[1]), kind)
        if shape is not None and layer.fits(shape):
            found[Place(place[0], place[1], kind)] = layer
        else:
            misfits.append(raw)
    total = len(file.layers)
    if not found:
        raise ArtifactError(
            f"none of the {total} layers of the LoRA {shown(file.name, 80)} is in this model"
            + (f" ({len(misfits)} are, with other sizes)" if misfits else "")
            + f"; it seems to be for {file.family}"
        )
    return Match(found, _hint(file, len(found), foreign, misfits))


def _hint(file: LoraFile, fitting: int, foreign: list[str], misfits: list[str]) -> str | None:
    """Say what of a LoRA is left out."""
    parts = [
        f"{len(items)} {what} (for example {shown(items[0], 80)})"
        for items, what in (
            (foreign, "are not in this model"),
            (misfits, "have another size in it"),
            (file.unread, "are tensors of no form known here"),
        )
        if items
    ]
    if not parts:
        return None
    return f"LoRA {shown(file.name, 80)}: {fitting} of {len(file.layers)} layers fit; {'; '.join(parts)}"


def _width_of(networks: Mapping[str, Any]) -> int | None:
    unet = networks.get("unet")
    for name, module in unet.named_modules() if unet is not None else ():
        if name.endswith("attn2.to_k") and (shape := _shape(module, "weight")) is not None:
            return shape[1]
    return None
