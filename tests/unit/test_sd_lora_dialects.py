"""LoRA files as other trainers name and store them: each changes the layer that it means, by its product."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import sd_tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.backends.sd.lora import LoraStack, Wanted, match_lora
from vitrail.backends.sd.lora_files import read_lora
from vitrail.errors import ArtifactError

SD1 = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
XL = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
XL_LDM = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
PAIRS = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B"), "dots": ("lora.down", "lora.up")}


@cache
def networks(family: str) -> dict[str, nn.Module]:
    """The networks of a tiny checkpoint; every test leaves them as they were."""
    return {name: part for name, part in sd_tiny.components(family).items() if name != "vae"}


def flat(name: str) -> str:
    return name.replace(".", "_")


def layer(family: str, component: str, name: str) -> nn.Module:
    plain = {
        known.removeprefix("text_model."): part for known, part in networks(family)[component].named_modules()
    }
    return plain[name.removeprefix("text_model.")]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


CASES = [
    # family, network, the layer there, its name in the file, the form of the pair
    ("sd1", "unet", SD1, f"lora_unet_{flat(SD1)}", "kohya"),
    ("sd2", "unet", SD1, f"lora_unet_{flat(SD1)}", "kohya"),
    ("sdxl", "unet", XL, f"lora_unet_{flat(XL)}", "kohya"),
    ("sdxl", "unet", XL, f"lora_unet_{flat(XL_LDM)}", "kohya"),
    ("sdxl", "unet", XL, f"diffusion_model.{XL_LDM}", "peft"),
    ("sdxl", "unet", XL, f"unet.unet.{XL}", "dots"),  # B-LoRA and others whose prefix was saved twice
    ("sdxl", "unet", XL, f"unet.{XL.replace('to_q', 'processor.to_q_lora')}", "old"),
    ("sd1", "text_encoder", TEXT, f"lora_te_{flat(TEXT)}", "kohya"),
    ("sd2", "text_encoder", TEXT, f"lora_te_{flat(TEXT)}", "kohya"),
    ("sdxl", "text_encoder", TEXT, f"lora_te1_{flat(TEXT)}", "kohya"),
    ("sdxl", "text_encoder_2", TEXT, f"lora_te2_{flat(TEXT)}", "kohya"),
    ("sdxl", "text_encoder_2", "text_projection", "lora_te2_text_projection", "kohya"),
    ("sdxl", "text_encoder", TEXT, f"clip_l.{TEXT}", "kohya"),  # OneTrainer
    ("sdxl", "text_encoder_2", TEXT, f"clip_g.{TEXT}", "kohya"),
    ("sdxl", "text_encoder_2", TEXT, f"text_encoders.clip_g.transformer.{TEXT}", "peft"),  # ComfyUI
    ("sdxl", "text_encoder_2", TEXT, f"text_encoder_2.base_model.model.{TEXT}", "peft"),
]


@pytest.mark.parametrize(
    ("family", "component", "name", "given", "form"), CASES, ids=lambda value: str(value)[-40:]
)
def test_every_name_means_its_layer(
    family: str, component: str, name: str, given: str, form: str, tmp_path: Path
) -> None:
    module = layer(family, component, name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    down, up = rand(2, weight.shape[1]), rand(weight.shape[0], 2)
    first, second = PAIRS.get(form, ("down", "up"))
    tensors = {f"{given}.{first}.weight": down, f"{given}.{second}.weight": up}
    if form == "kohya":
        tensors[f"{given}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "l.safetensors")
    original = weight.clone()
    stack = LoraStack(networks(family))
    assert stack.apply([Wanted(read_lora(tmp_path / "l.safetensors"))]) == ()
    scale = 0.5 if form == "kohya" else 1.0
    assert torch.allclose(weight, original + scale * up @ down, atol=1e-6)
    stack.clear()
    assert torch.equal(weight, original)


@pytest.mark.parametrize(
    "alpha",
    [torch.tensor(3), torch.tensor([3.0]), torch.tensor(3.0).half(), torch.tensor([[3.0]]).bfloat16(), None],
    ids=["integer", "list", "half", "matrix", "none"],
)
@pytest.mark.parametrize("kinds", ["half", "bfloat16", "mixed", "float8"])
def test_numbers_of_every_type(alpha: Tensor | None, kinds: str, tmp_path: Path) -> None:
    types = {
        "half": (torch.float16,) * 2,
        "bfloat16": (torch.bfloat16,) * 2,
        "mixed": (torch.float16, torch.bfloat16),
        "float8": (torch.float8_e4m3fn, torch.float8_e5m2),
    }[kinds]
    down, up = rand(2, 32).to(types[0]), rand(32, 2).to(types[1])
    tensors = {f"unet.{SD1}.lora_down.weight": down, f"unet.{SD1}.lora_up.weight": up}
    if alpha is not None:
        tensors[f"unet.{SD1}.alpha"] = alpha
    save_file(tensors, tmp_path / "l.safetensors")
    match = match_lora(read_lora(tmp_path / "l.safetensors"), networks("sd1"))
    [found] = match.layers.values()
    scale = 1.0 if alpha is None else 1.5
    assert torch.allclose(found.delta(torch.zeros(32, 32)), scale * up.float() @ down.float(), atol=1e-6)


FORMS: dict[str, tuple[dict[str, tuple[int, ...]], float]] = {
    # the factors of a 32 x 32 weight, and what alpha 3 is divided by
    "LoCon": ({"lora_down.weight": (2, 32), "lora_up.weight": (32, 2)}, 2),
    "LoHa": ({f"hada_w{n}_{x}": (32, 2) if x == "a" else (2, 32) for n in "12" for x in "ab"}, 2),
    "LoKr": ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}, 2),
    "LoKr, whole": ({"lokr_w1": (4, 4), "lokr_w2": (8, 8)}, 3),  # without a rank alpha means nothing
}


def product(form: str, f: dict[str, Tensor]) -> Tensor:
    """The change of a layer, as LyCORIS's papers and modules have it."""
    if form == "LoCon":
        return f["lora_up.weight"] @ f["lora_down.weight"]
    if form == "LoHa":
        return (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
    second = f["lokr_w2"] if "lokr_w2" in f else f["lokr_w2_a"] @ f["lokr_w2_b"]
    return torch.kron(f["lokr_w1"], second)


@pytest.mark.parametrize("scalar", [torch.tensor(-0.4), torch.tensor([0.0]), None], ids=str)
@pytest.mark.parametrize("form", list(FORMS))
def test_the_learned_number_of_lycoris_is_multiplied_in(
    form: str, scalar: Tensor | None, tmp_path: Path
) -> None:
    shapes, rank = FORMS[form]
    factors = {name: rand(*shape) for name, shape in shapes.items()}
    tensors = {f"lora_unet_{flat(SD1)}.{name}": value for name, value in factors.items()}
    tensors[f"lora_unet_{flat(SD1)}.alpha"] = torch.tensor(3.0)
    if scalar is not None:
        tensors[f"lora_unet_{flat(SD1)}.scalar"] = scalar
    save_file(tensors, tmp_path / "l.safetensors")
    match = match_lora(read_lora(tmp_path / "l.safetensors"), networks("sd1"))
    assert match.hint is None
    [found] = match.layers.values()
    wanted = product(form, factors) * (3 / rank) * (1.0 if scalar is None else float(scalar))
    assert torch.allclose(found.delta(torch.zeros(32, 32)), wanted, atol=1e-6)


@pytest.mark.parametrize("value", [torch.tensor(float("nan")), torch.ones(2)], ids=["nan", "two"])
def test_a_learned_number_that_is_none_is_told(value: Tensor, tmp_path: Path) -> None:
    name = f"lora_unet_{flat(SD1)}"
    tensors = {f"{name}.lora_down.weight": rand(2, 32), f"{name}.lora_up.weight": rand(32, 2)}
    save_file({**tensors, f"{name}.scalar": value}, tmp_path / "l.safetensors")
    with pytest.raises(ArtifactError, match=r"\.scalar is not one finite number"):
        read_lora(tmp_path / "l.safetensors")


def test_an_embedding_in_the_bundle_is_said_not_to_be_used(tmp_path: Path) -> None:
    tensors = {
        f"unet.{SD1}.lora_A.weight": rand(2, 32),
        f"unet.{SD1}.lora_B.weight": rand(32, 2),
        "bundle_emb.cat.string_to_param.*": rand(2, 768),
    }
    save_file(tensors, tmp_path / "l.safetensors")
    hint = match_lora(read_lora(tmp_path / "l.safetensors"), networks("sd1")).hint
    assert hint is not None
    assert "bundle_emb.cat" in hint


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (
            ("double_blocks.0.img_attn.proj.lora_A.weight", "double_blocks.0.img_attn.proj.lora_B.weight"),
            "FLUX",
        ),
        (("lora_unet_x.a1.weight", "lora_unet_x.b1.weight"), "GLoRA"),
        (("lora_unet_x.oft_blocks", "lora_unet_x.rescale"), "OFT"),
        (("768.0.linear.0.weight", "768.0.linear.0.bias"), "holds no LoRA"),  # a hypernetwork
    ],
)
def test_what_cannot_be_used_is_named(names: tuple[str, str], word: str, tmp_path: Path) -> None:
    save_file({names[0]: rand(2, 4), names[1]: rand(4, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(ArtifactError, match=word) as caught:
        match_lora(read_lora(tmp_path / "l.safetensors"), networks("sd1"))
    assert "\n" not in str(caught.value)
