"""LoRAs against diffusers' own `load_lora_weights` (with peft), on tiny real pipelines: the same outputs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import sd_tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitrail.backends.sd.lora import LoraStack, Wanted
from vitrail.backends.sd.lora_files import read_lora

pytest.importorskip("peft", reason="the reference for LoRAs is diffusers with peft")

RANK = 3


def _targets(network: nn.Module, *, convolutions: bool) -> list[tuple[str, nn.Module]]:
    found = []
    for name, module in network.named_modules():
        attention = any(
            name.endswith(end) for end in ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj", "fc1")
        )
        inside = any(part in name for part in ("proj_in", "proj_out", "net.0.proj", "net.2"))
        conv = isinstance(module, nn.Conv2d) and any(
            part in name for part in ("resnets", "samplers", "conv_in")
        )
        if attention or inside or (convolutions and conv):
            found.append((name, module))
    return found


def _factors(module: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = module.weight.shape
    down = torch.randn(RANK, *shape[1:], generator=generator) * 0.2
    up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator) * 0.2
    return down, up


def kohya(parts: dict[str, Any], *, ldm: bool, convolutions: bool, seed: int) -> dict[str, Tensor]:
    """A LoRA as kohya's trainer writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    unet = parts["unet"]
    attentive = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    for name, module in _targets(unet, convolutions=convolutions):
        if ldm:
            name = sd_tiny._unet_name(f"{name}.weight", unet.config.layers_per_block, attentive)
            name = name.removesuffix(".weight")
        _put(tensors, f"lora_unet_{name.replace('.', '_')}", _factors(module, generator))
    for component, prefix in (
        ("text_encoder", "lora_te1" if ldm else "lora_te"),
        ("text_encoder_2", "lora_te2"),
    ):
        for name, module in _targets(parts[component], convolutions=False) if component in parts else ():
            name = "text_model." + name.removeprefix("text_model.")
            _put(tensors, f"{prefix}_{name.replace('.', '_')}", _factors(module, generator))
    return tensors


def _put(tensors: dict[str, Tensor], name: str, factors: tuple[Tensor, Tensor]) -> None:
    tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = factors
    tensors[f"{name}.alpha"] = torch.tensor(2.0)


def peft(parts: dict[str, Any], *, seed: int) -> dict[str, Tensor]:
    """A LoRA as diffusers' trainers write it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for component, network in parts.items():
        for name, module in _targets(network, convolutions=True) if component != "vae" else ():
            down, up = _factors(module, generator)
            tensors[f"{component}.{name}.lora_A.weight"], tensors[f"{component}.{name}.lora_B.weight"] = (
                down,
                up,
            )
    return tensors


def outputs(family: str, parts: dict[str, Any]) -> list[Tensor]:
    """What the networks say to fixed inputs."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 500, (1, 77), generator=generator)
    unet = parts["unet"]
    x = torch.randn(1, unet.config.in_channels, 8, 8, generator=generator)
    states = torch.randn(1, 7, unet.config.cross_attention_dim, generator=generator)
    added = None
    if family == "sdxl":
        added = {"text_embeds": torch.randn(1, 32, generator=generator), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        found = [unet(x, torch.tensor([500]), states, added_cond_kwargs=added).sample]
        found += [
            parts[name](ids).last_hidden_state for name in ("text_encoder", "text_encoder_2") if name in parts
        ]
    return found


def reference(family: str, folder: Path, files: list[tuple[Path, float]]) -> list[Tensor]:
    """The same networks with the LoRAs as diffusers and peft have them.

    diffusers 0.42 with transformers 5 does not find the attention of text encoders (it looks for
    ``text_model.``, which is gone from their names), so those are changed by their definition.
    """
    import diffusers

    kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = kind.from_pretrained(folder)
        for number, (file, _) in enumerate(files):
            tensors = {name: value for name, value in load_file(file).items() if "unet" in name}
            pipe.load_lora_weights(tensors, adapter_name=f"a{number}")
        pipe.set_adapters([f"a{i}" for i in range(len(files))], [weight for _, weight in files])
    names = ("unet", "text_encoder", "text_encoder_2")
    parts = {name: getattr(pipe, name).eval() for name in names if hasattr(pipe, name)}
    for component in set(parts) - {"unet"}:
        for file, weight in files:
            _change(component, parts[component], load_file(file), weight)
    return outputs(family, parts)


@torch.no_grad()
def _change(component: str, network: nn.Module, tensors: dict[str, Tensor], weight: float) -> None:
    for name, module in network.named_modules():
        flat = f"text_model.{name.removeprefix('text_model.')}".replace(".", "_")
        for prefix in {"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}[component]:
            if f"{prefix}_{flat}.alpha" in tensors:
                down, up, alpha = (
                    tensors[f"{prefix}_{flat}.{k}"] for k in ("lora_down.weight", "lora_up.weight", "alpha")
                )
                module.weight += weight * alpha / RANK * (up @ down)
        if f"{component}.{name}.lora_A.weight" in tensors:
            down, up = (tensors[f"{component}.{name}.lora_{letter}.weight"] for letter in "AB")
            module.weight += weight * (up @ down)


FORMS = [(family, form) for family in ("sd1", "sd2", "sdxl") for form in ("kohya", "peft", "both")]


@pytest.mark.parametrize(("family", "form"), [*FORMS, ("sdxl", "kohya-ldm")])
def test_same_as_diffusers(tmp_path: Path, family: str, form: str) -> None:
    folder = sd_tiny.make_folder(tmp_path / "model", family)
    parts = sd_tiny.components(family)
    del parts["vae"]
    plain = outputs(family, parts)
    files: list[tuple[Path, float]] = []
    if form != "peft":
        tensors = kohya(
            parts, ldm=family == "sdxl" and form == "kohya-ldm", convolutions=family != "sdxl", seed=1
        )
        save_file(tensors, tmp_path / "kohya.safetensors")
        files.append((tmp_path / "kohya.safetensors", 0.7))
    if form in ("peft", "both"):
        save_file(peft(parts, seed=2), tmp_path / "peft.safetensors")
        files.append((tmp_path / "peft.safetensors", -0.4))
    expected = reference(family, folder, files)
    wanted = [Wanted(read_lora(path), weight, weight) for path, weight in files]
    for mode in ("merged", "live"):
        stack = LoraStack(parts, mode)  # type: ignore[arg-type]
        assert stack.apply(wanted) == ()
        ours = outputs(family, parts)
        stack.clear()
        for before, theirs, own in zip(plain, expected, ours, strict=True):
            scale = theirs.abs().max()
            assert (theirs - own).abs().max() <= 2e-5 * scale  # float32: sums in another order
            assert (theirs - before).abs().max() > 1e-2 * scale  # and the LoRA does something
    for before, after in zip(plain, outputs(family, parts), strict=True):
        assert torch.equal(before, after)


def test_dora_as_peft_has_it(tmp_path: Path) -> None:
    folder = sd_tiny.make_folder(tmp_path / "model", "sd1")
    parts = {"unet": sd_tiny.components("sd1")["unet"]}
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, module in _targets(parts["unet"], convolutions=False):
        down, up = _factors(module, generator)
        tensors[f"unet.{name}.lora_A.weight"], tensors[f"unet.{name}.lora_B.weight"] = down, up
        length = module.weight.flatten(1).norm(dim=1) * (0.8 + 0.4 * torch.rand(len(up), generator=generator))
        tensors[f"unet.{name}.lora_magnitude_vector"] = length.reshape(
            -1, *[1] * (module.weight.ndim - 1)
        ).squeeze()
    tensors = {name: value for name, value in tensors.items() if "proj_" not in name}  # convolutions in SD1
    save_file(tensors, tmp_path / "dora.safetensors")
    (expected,) = reference("sd1", folder, [(tmp_path / "dora.safetensors", 1.0)])[:1]
    stack = LoraStack(parts)
    assert stack.apply([Wanted(read_lora(tmp_path / "dora.safetensors"))]) == ()
    (ours,) = outputs("sd1", parts)
    assert (expected - ours).abs().max() <= 2e-5 * expected.abs().max()
    del tensors["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_magnitude_vector"]
    save_file(tensors, tmp_path / "dora.safetensors")
    stack.apply([Wanted(read_lora(tmp_path / "dora.safetensors"))])
    assert (expected - outputs("sd1", parts)[0]).abs().max() > 2e-4 * expected.abs().max()
