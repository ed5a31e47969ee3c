"""LoRA files as others write them: which layers they change, and by what.

A layer's change is a product of small factors (Hu et al., arXiv:2106.09685), in one of the forms that
trainers write: LoRA and LoCon (with ``lora_mid``: a Tucker decomposition), LoHa and LoKr (LyCORIS,
arXiv:2309.14859), or the whole difference; with DoRA (arXiv:2402.09353) the changed weight is brought to a
given length as well. Names are those of kohya's trainer (``lora_unet_..._to_q
.lora_down.weight``), of PEFT (``unet....to_q.lora_A.weight``) and of older diffusers
(``....processor.to_q_lora.down.weight``, ``....lora_linear_layer.down.weight``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vitrail.backends.checkpoints import read_checkpoint
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["WIDTHS", "Layer", "LoraFile", "context_width", "family_of", "layers_of", "read_lora"]


@dataclass(frozen=True)
class Layer:
    """The change of one layer: ``scale`` times a product of ``factors``, by the names of their form.

    ``dora`` among them is the length of each row (or column) of the changed weight.
    """

    factors: Mapping[str, Tensor] = field(repr=False)
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the change: (out, in) or (out, in, k, k); found without computing it.

        Raises :class:`ValueError` where the factors do not fit one another.
        """
        f = self.factors
        if "diff" in f:
            return tuple(f["diff"].shape)
        if "up" in f:
            up, down, mid = f["up"], f["down"], f.get("mid")
            _fit(up.numel() == up.shape[0] * up.shape[1])
            if mid is None:
                _fit(up.shape[1] == down.shape[0])
                return (up.shape[0], *down.shape[1:])
            _fit(mid.ndim == 4 and down.numel() == down.shape[0] * down.shape[1])
            _fit(mid.shape[0] == up.shape[1] and mid.shape[1] == down.shape[0])
            return (up.shape[0], down.shape[1], *mid.shape[2:])
        if "w1_a" in f and "w2_a" in f and not self.kronecker:
            first, second = _product_shape(f, "1"), _product_shape(f, "2")
            _fit(first == second)
            return first
        first, second = _product_shape(f, "1"), _product_shape(f, "2")
        _fit(len(first) == 2)
        return (first[0] * second[0], first[1] * second[1], *second[2:])

    @property
    def kronecker(self) -> bool:
        """Whether this is LoKr."""
        return "kronecker" in self.factors

    def fits(self, weight: tuple[int, ...]) -> bool:
        """Whether the change has a weight's shape; (out, in) and (out, in, 1, 1) are the same."""
        own, length = self.shape, self.factors.get("dora")
        if length is not None and length.numel() != weight[_axis(length, weight)]:
            return False
        return bool(own) and own[0] == weight[0] and math.prod(own) == math.prod(weight)

    def delta(self, weight: Tensor) -> Tensor:
        """Return the change of a layer's weight: float32, of its shape and where it is; in use at 1."""
        f = {name: value.to(weight.device, torch.float32) for name, value in self.factors.items()}
        if "diff" in f:
            change = f["diff"]
        elif "up" in f:
            up = f["up"].flatten(1)
            if "mid" in f:
                change = torch.einsum("nmkl,in,mj->ijkl", f["mid"], up, f["down"].flatten(1))
            else:
                change = up @ f["down"].flatten(1)
        elif self.kronecker:
            first, second = _product(f, "1"), _product(f, "2")
            change = torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)
        else:
            change = _product(f, "1") * _product(f, "2")
        change = change.reshape(weight.shape) * self.scale
        return change if "dora" not in f else _lengthened(weight.float(), change, f["dora"])


def _lengthened(weight: Tensor, change: Tensor, length: Tensor) -> Tensor:
    """DoRA, equation 5: the changed weight with its rows (or columns) brought to the given lengths, as a
    change. ``length``: (out,), (out, 1, ...) or, as LyCORIS has it by default, (1, in, ...)."""
    merged = weight + change
    axis = _axis(length, tuple(weight.shape))
    others = [i for i in range(merged.ndim) if i != axis]
    own: Tensor = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    wanted = length.reshape([-1 if i == axis else 1 for i in range(merged.ndim)])
    lengthened: Tensor = merged * (wanted / own.clamp_min(1e-12))
    return lengthened - weight


def _axis(length: Tensor, weight: tuple[int, ...]) -> int:
    """Which axis of a weight DoRA's lengths belong to."""
    return 0 if length.ndim <= 1 or len(weight) < 2 or length.shape[0] == weight[0] else 1


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that was read: ``layers`` by the name that the file gives them."""

    name: str
    path: Path
    layers: Mapping[str, Layer] = field(repr=False)
    unread: tuple[str, ...] = ()  # tensors of no form known here

    @property
    def family(self) -> str:
        """What kind of model the names and widths are of, in words."""
        return family_of(self.layers)


def read_lora(path: Path | str, name: str | None = None) -> LoraFile:
    """Read a LoRA file (.safetensors, or .pt, .ckpt and .bin without running them).

    Raises :class:`~vitrail.errors.ArtifactError` for a file that is damaged, holds no LoRA, or one of a kind
    that is not known here (OFT, IA3).
    """
    path = Path(path)
    tensors = read_checkpoint(path).tensors
    try:
        layers, unread = layers_of(tensors, _settings(path))
    except ArtifactError as error:
        raise ArtifactError(f"{shown(path)}: {error}") from None
    return LoraFile(name or path.stem, path, layers, unread)


# Endings, to the factor that they are. The first group of each is the layer's name.
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), factor)
    for pattern, factor in (
        (r"(.+)\.(?:lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.[\w-]+)?)\.weight", "down"),
        (r"(.+)\.(?:lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.[\w-]+)?)\.weight", "up"),
        (r"(.+)\.lora_mid\.weight", "mid"),
        (r"(.+)_lora\.down\.weight", "down"),
        (r"(.+)_lora\.up\.weight", "up"),
        (r"(.+)\.alpha", "alpha"),
        (r"(.+)\.scalar", "scalar"),
        (r"(.+)\.hada_(w[12]_[ab]|t[12])", ""),
        (r"(.+)\.lokr_(w[12](?:_[ab])?|t[12])", "kronecker"),
        (r"(.+)\.diff(?:\.weight)?", "diff"),
        (r"(.+)\.diff_b", "bias"),
        (r"(.+)\.w_norm", "diff"),
        (r"(.+)\.b_norm", "bias"),
        (r"(.+)\.(?:dora_scale|lora_magnitude_vector(?:\.[\w-]+)*)", "dora"),
    )
)
_OTHERS = {
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "on_input": "IA3",
    ".a1.weight": "GLoRA",
}


def layers_of(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None
) -> tuple[dict[str, Layer], tuple[str, ...]]:
    """Sort a file's tensors into layers; the rest is the second value.

    ``settings``: PEFT's, where the file has them (``lora_alpha``, ``alpha_pattern``, ``use_rslora``).
    Raises :class:`~vitrail.errors.ArtifactError`.
    """
    found: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    scalars: dict[str, float] = {}
    unread: list[str] = []
    for key, value in tensors.items():
        for ending, kind in _OTHERS.items():
            if ending in key:
                raise ArtifactError(f"it is a file of {kind}; LoRA, LoCon, LoHa and LoKr are known here")
        layer, factor = _place(key)
        if factor in ("alpha", "scalar"):
            if value.numel() == 1 and math.isfinite(float(value)):
                (alphas if factor == "alpha" else scalars)[layer] = float(value)
                continue
            raise ArtifactError(f"the scale {shown(key, 60)} is not one finite number; the file is damaged")
        if not factor:
            unread.append(key)
            continue
        if not value.is_floating_point() or not bool(torch.isfinite(value.float()).all()):
            raise ArtifactError(f"{shown(key, 60)} holds NaN, infinity or integers; the file is damaged")
        if ".lokr_" in key:
            found.setdefault(layer, {})["kronecker"] = torch.ones(())
        found.setdefault(layer, {})[factor] = value
    if not found:
        raise ArtifactError("it holds no LoRA: no names as lora_down, lora_A, hada_w1_a or lokr_w1")
    layers = {
        name: _layer(name, factors, alphas, scalars.get(name, 1.0), settings or {})
        for name, factors in found.items()
    }
    return layers, tuple(unread)


def _place(key: str) -> tuple[str, str]:
    """Return the layer's name and the factor ("" for a tensor of no known form)."""
    for pattern, factor in _FORMS:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        layer = match[1]
        if "_lora." in key and pattern.pattern.startswith("(.+)_lora"):
            layer = layer.replace(".processor.", ".")
            layer += ".0" if layer.endswith("to_out") else ""
        if factor == "bias":
            return f"{layer}::bias", "diff"
        return layer, match[2] if factor in ("", "kronecker") else factor
    return key, ""


_FREE = ("diff", "kronecker", "dora")  # factors of any number of axes
_NEEDS: tuple[frozenset[str], ...] = tuple(
    frozenset(names)
    for names in (
        ("up", "down"),
        ("diff",),
        ("w1_a", "w1_b", "w2_a", "w2_b"),
        ("kronecker", "w1", "w2"),
        ("kronecker", "w1", "w2_a", "w2_b"),
        ("kronecker", "w1_a", "w1_b", "w2"),
        ("kronecker", "w1_a", "w1_b", "w2_a", "w2_b"),
    )
)


def _layer(
    name: str,
    factors: dict[str, Tensor],
    alphas: Mapping[str, float],
    scalar: float,
    settings: Mapping[str, Any],
) -> Layer:
    names = frozenset(factors) - {"mid", "t1", "t2", "dora"}
    if names not in _NEEDS:
        raise ArtifactError(
            f"the layer {shown(name, 80)} has {', '.join(sorted(names))} alone; the file is damaged"
        )
    flat = any(value.ndim < 2 for key, value in factors.items() if key not in _FREE)
    rank = 0 if flat else _rank(factors)
    scale = 1.0
    if rank:
        alpha, root = alphas.get(name), False
        if alpha is None and "down" in factors:
            alpha, root = _peft_alpha(name, settings)
        scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if root else rank)
    # LyCORIS trained with use_scalar multiplies its product by a number that it learned
    layer = Layer(factors, scale * scalar)
    try:
        _fit(rank != 0)
        _ = layer.shape
    except (ValueError, IndexError):
        raise ArtifactError(
            f"the factors of the layer {shown(name, 80)} do not fit one another; the file is damaged"
        ) from None
    return layer


def _rank(factors: Mapping[str, Tensor]) -> int | None:
    """Return what alpha is divided by; None where the form has no rank."""
    if "down" in factors:
        return factors["down"].shape[0]
    for name in ("w2_b", "w1_b") if "kronecker" in factors else ("w1_b",):
        if name in factors:
            return factors[name].shape[0]
    return None


def _product_shape(f: Mapping[str, Tensor], n: str) -> tuple[int, ...]:
    if f"w{n}" in f:
        return tuple(f[f"w{n}"].shape)
    a, b, core = f[f"w{n}_a"], f[f"w{n}_b"], f.get(f"t{n}")
    if core is None:
        _fit(a.shape[1] == b.shape[0])
        return (a.shape[0], *b.shape[1:])
    _fit(core.ndim == 4 and core.shape[0] == a.shape[0] and core.shape[1] == b.shape[0])
    return (a.shape[1], b.shape[1], *core.shape[2:])


def _product(f: Mapping[str, Tensor], n: str) -> Tensor:
    if f"w{n}" in f:
        return f[f"w{n}"]
    a, b, core = f[f"w{n}_a"], f[f"w{n}_b"], f.get(f"t{n}")
    if core is None:
        return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])
    return torch.einsum("pqkl,po,qi->oikl", core, a, b)


def _fit(condition: bool) -> None:
    if not condition:
        raise ValueError("factors do not fit")


# --- PEFT's settings ----------------------------------------------------------------------------------------


def _settings(path: Path) -> Mapping[str, Any]:
    """PEFT's settings: in the header of the file, or in ``adapter_config.json`` beside it."""
    text: str | None = None
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt", device="cpu") as file:  # its header has been checked
            text = (file.metadata() or {}).get("lora_adapter_metadata")
    beside = path.with_name("adapter_config.json")
    if text is None and path.stem.startswith("adapter_model") and beside.is_file():
        if beside.stat().st_size > 1 << 20:
            raise ArtifactError(f"{shown(beside)} is too large for settings")
        text = beside.read_text(encoding="utf-8", errors="replace")
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ArtifactError(f"the PEFT settings of {shown(path)} are not JSON; the file is damaged") from None
    return value if isinstance(value, dict) else {}


def _peft_alpha(name: str, settings: Mapping[str, Any]) -> tuple[float | None, bool]:
    """Return PEFT's alpha for a layer, and whether it is divided by the root of the rank."""
    component, dot, rest = name.partition(".")
    prefix = f"{component}." if dot and f"{component}.lora_alpha" in settings else ""
    alpha = settings.get(f"{prefix}lora_alpha")
    patterns = settings.get(f"{prefix}alpha_pattern")
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        layer = rest if prefix else name
        if layer == key or layer.endswith(f".{str(key).removeprefix('^')}"):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        return None, False
    return float(alpha), settings.get(f"{prefix}use_rslora") is True


# --- families -----------------------------------------------------------------------------------------------

WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the SDXL refiner",
    2048: "SDXL",
}
"""Width of the text that a U-Net attends to, by family."""

_HINTS = (
    (r"double_blocks|single_blocks|single_transformer_blocks", "FLUX"),
    (r"joint_blocks|context_block|joint_transformer", "Stable Diffusion 3"),
    (r"motion_modules|temporal_transformer", "AnimateDiff (video)"),
    (r"text_encoder_3|lora_te3", "Stable Diffusion 3 or FLUX"),
    (
        r"self_attn\.o|blocks[._]\d+[._](?:cross_attn|self_attn)",
        "a video or image transformer (Wan, Lumina or alike)",
    ),
    (r"(?:^|[._])transformer\.|lora_transformer_", "a diffusion transformer (SD3, FLUX or alike)"),
    (r"model\.layers\.\d+", "a language model"),
    (r"lora_te2_|text_encoder_2\.", "SDXL"),
)
_CONTEXT = re.compile(r"attn2[._](?:processor[._])?to_[kv]$")


def context_width(layers: Mapping[str, Layer]) -> int | None:
    """Return the width of the text that the layers attend to; None where no such layer is changed."""
    for name, layer in layers.items():
        if _CONTEXT.search(name) and len(layer.shape) > 1:
            return layer.shape[1]
    return None


def family_of(layers: Mapping[str, Layer]) -> str:
    """Say what kind of model a LoRA is for, as well as names and widths tell."""
    width = context_width(layers)
    if width is not None and any("transformer_blocks" in name for name in layers):
        return WIDTHS.get(width, f"a U-Net that attends to text of {width} channels")
    for pattern, family in _HINTS:
        if any(re.search(pattern, name) for name in layers):
            return family
    for name, layer in layers.items():
        if re.search(r"(?:lora_te_|text_encoder\.).*(?:q_proj|k_proj)$", name) and len(layer.shape) > 1:
            return WIDTHS.get(layer.shape[1], "a model with another text encoder")
    return "a model of an unknown kind"
