"""LoRA files of every form against their definition, put in and taken out of small networks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import sd_tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.backends.sd.lora import LoraStack, Wanted
from vitrail.backends.sd.lora_files import Layer, family_of, layers_of, read_lora
from vitrail.errors import ArtifactError
from vitrail.kernels import accelerate

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONTEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"


@pytest.fixture(scope="module")
def parts() -> dict[str, nn.Module]:
    """The networks of a tiny SD1 checkpoint; every test leaves them as they were."""
    found = sd_tiny.components("sd1")
    return {name: found[name] for name in ("unet", "text_encoder")}


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata=metadata or None)
    return path


def weight(parts: dict[str, nn.Module], layer: str, component: str = "unet") -> Tensor:
    found = parts[component].get_submodule(layer).weight
    assert isinstance(found, Tensor)
    return found


def states(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{n}.{k}": v.clone() for n, net in parts.items() for k, v in net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


# --- forms: each change written out in indices --------------------------------------------------------------


def test_forms_against_their_definition() -> None:
    up, down = rand(6, 2), rand(2, 5)
    assert torch.allclose(Layer({"up": up, "down": down}, 0.5).delta(torch.zeros(6, 5)), 0.5 * up @ down)

    up, down = rand(6, 2, 1, 1), rand(2, 5, 3, 3)
    expected = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    assert torch.allclose(Layer({"up": up, "down": down}).delta(torch.zeros(6, 5, 3, 3)), expected, atol=1e-6)

    mid, down = rand(2, 3, 3, 3), rand(3, 5, 1, 1)
    expected = torch.zeros(6, 5, 3, 3)
    for o in range(6):
        for i in range(5):
            for r in range(2):
                for s in range(3):
                    expected[o, i] += up[o, r, 0, 0] * mid[r, s] * down[s, i, 0, 0]
    assert torch.allclose(
        Layer({"up": up, "down": down, "mid": mid}).delta(torch.zeros(6, 5, 3, 3)), expected, atol=1e-6
    )

    f = {"w1_a": rand(6, 2), "w1_b": rand(2, 5), "w2_a": rand(6, 3), "w2_b": rand(3, 5)}
    expected = (f["w1_a"] @ f["w1_b"]) * (f["w2_a"] @ f["w2_b"])
    assert torch.allclose(Layer(f, 2.0).delta(torch.zeros(6, 5)), 2 * expected, atol=1e-6)

    # LoHa of a convolution with Tucker cores: each factor is core x a x b
    f = {f"w{n}_{x}": rand(2, size) for n in "12" for x, size in (("a", 6), ("b", 5))}
    f |= {"t1": rand(2, 2, 3, 3), "t2": rand(2, 2, 3, 3) + 0.1}
    halves = []
    for n in "12":
        half = torch.zeros(6, 5, 3, 3)
        for p in range(2):
            for q in range(2):
                half += (
                    f[f"w{n}_a"][p][:, None, None, None]
                    * f[f"w{n}_b"][q][None, :, None, None]
                    * f[f"t{n}"][p, q]
                )
        halves.append(half)
    assert torch.allclose(Layer(f).delta(torch.zeros(6, 5, 3, 3)), halves[0] * halves[1], atol=1e-6)

    for size, axis in (((6,), 0), ((6, 1), 0), ((1, 5), 1)):  # DoRA: rows or columns of a given length
        up, down, original, length = rand(6, 2), rand(2, 5), rand(6, 5), rand(*size).abs() + 1
        layer = Layer({"up": up, "down": down, "dora": length}, 0.5)
        assert layer.fits((6, 5))
        assert not layer.fits((6, 7))
        merged = original + layer.delta(original)
        assert torch.allclose(merged.norm(dim=1 - axis), length.flatten(), atol=1e-5)
        ratio = merged / (original + 0.5 * up @ down)
        assert torch.allclose(ratio, ratio.mean(1 - axis, keepdim=True).expand(6, 5), atol=1e-3)
        assert not Layer({"up": up, "down": down, "dora": rand(7)}).fits((6, 5))

    mark = {"kronecker": torch.ones(())}
    w1, w2 = rand(2, 3), rand(4, 5)
    expected = torch.stack([torch.cat([w1[i // 4, j] * w2[i % 4] for j in range(3)]) for i in range(8)])
    assert torch.allclose(Layer({"w1": w1, "w2": w2} | mark).delta(torch.zeros(8, 15)), expected)
    f = {"w1": w1, "w2_a": rand(4, 2), "w2_b": rand(2, 5, 3, 3)} | mark
    second = torch.einsum("or,rikl->oikl", f["w2_a"], f["w2_b"])
    layer = Layer(f, 3.0)
    assert layer.shape == (8, 15, 3, 3)
    for k in range(3):
        assert torch.allclose(
            layer.delta(torch.zeros(8, 15, 3, 3))[..., k, 1], 3 * torch.kron(w1, second[..., k, 1]), atol=1e-6
        )


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_forms_in_a_network(parts: dict[str, nn.Module], tmp_path: Path, mode: Any) -> None:
    """Every form gives the layer's output that the changed weight gives, and is gone without a trace."""
    linear, conv = weight(parts, LINEAR).shape, weight(parts, CONV).shape
    flat = {name: f"lora_unet_{name.replace('.', '_')}" for name in (LINEAR, CONV)}
    out, into = linear
    forms: list[dict[str, Tensor]] = [
        {f"{flat[LINEAR]}.lora_down.weight": rand(2, into), f"{flat[LINEAR]}.lora_up.weight": rand(out, 2)},
        {
            f"{flat[LINEAR]}.hada_w{n}_{x}": rand(out, 2) if x == "a" else rand(2, into)
            for n in "12"
            for x in "ab"
        },
        {f"{flat[LINEAR]}.lokr_w1": rand(2, 4), f"{flat[LINEAR]}.lokr_w2": rand(out // 2, into // 4)},
        {f"{flat[LINEAR]}.diff": rand(out, into)},
        {
            f"{flat[CONV]}.lora_down.weight": rand(2, *conv[1:]),
            f"{flat[CONV]}.lora_up.weight": rand(conv[0], 2, 1, 1),
            f"{flat[CONV]}.alpha": torch.tensor(1.0),
        },
        {
            f"{flat[CONV]}.lora_down.weight": rand(2, conv[1], 1, 1),
            f"{flat[CONV]}.lora_mid.weight": rand(2, 2, 3, 3),
            f"{flat[CONV]}.lora_up.weight": rand(conv[0], 2, 1, 1),
        },
        {f"{flat[CONV]}.diff": rand(*conv), f"{flat[CONV]}.diff_b": rand(conv[0])},
        {
            f"{flat[CONV]}.lora_down.weight": rand(2, *conv[1:]),
            f"{flat[CONV]}.lora_up.weight": rand(conv[0], 2, 1, 1),
            f"{flat[CONV]}.dora_scale": rand(1, conv[1], 1, 1).abs() + 0.5,
        },
    ]
    before = states(parts)
    for number, tensors in enumerate(forms):
        file = read_lora(write(tmp_path / f"{number}.safetensors", tensors))
        name = LINEAR if flat[LINEAR] in next(iter(tensors)) else CONV
        module: Any = parts["unet"].get_submodule(name)
        x = rand(1, 4, into) if name == LINEAR else rand(1, conv[1], 6, 6)
        changed = copy.deepcopy(module)
        with torch.no_grad():
            layer = next(layer for key, layer in file.layers.items() if not key.endswith("::bias"))
            changed.weight += 0.7 * layer.delta(changed.weight)
            if bias := [value for key, value in tensors.items() if key.endswith(("diff_b", "b_norm"))]:
                changed.bias += 0.7 * bias[0]
            stack = LoraStack(parts, mode)
            assert stack.apply([Wanted(file, 0.0, 0.7)]) == ()
            got = module(x)
            stack.clear()
            expected = changed(x)
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
            assert (got - module(x)).abs().max() > 1e-3
        assert same(before, states(parts))


def _simple(
    layer: str = LINEAR, size: tuple[int, int] = (32, 32), value: float | None = None
) -> dict[str, Tensor]:
    down, up = rand(2, size[1]), rand(size[0], 2)
    if value is not None:
        down, up = torch.full_like(down, value), torch.full_like(up, value)
    return {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}


def test_several_and_twice(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    one = read_lora(write(tmp_path / "one.safetensors", _simple()))
    two = read_lora(write(tmp_path / "two.safetensors", _simple(value=0.2)))
    before = states(parts)
    original = weight(parts, LINEAR).clone()
    first, second = (next(iter(f.layers.values())).delta(torch.zeros(32, 32)) for f in (one, two))
    stack = LoraStack(parts)
    stack.apply([Wanted(one, 1.0, 0.5), Wanted(two, 1.0, -1.0), Wanted(one, 1.0, 0.25)])
    assert torch.allclose(weight(parts, LINEAR), original + 0.75 * first - second, atol=1e-6)
    version = stack.version
    stack.apply([Wanted(one, 1.0, 0.5), Wanted(two, 1.0, -1.0), Wanted(one, 1.0, 0.25)])
    assert stack.version == version
    stack.apply([Wanted(two, 1.0, 1.0)])
    assert stack.version > version
    assert torch.allclose(weight(parts, LINEAR), original + second, atol=1e-6)
    assert stack.active == (two,)
    stack.apply([])
    assert stack.active == ()
    assert same(before, states(parts))


def test_bit_exact_in_half_precision(tmp_path: Path) -> None:
    """In bfloat16 adding and subtracting would not come back; the kept weights do."""
    net = {"unet": sd_tiny.components("sd1")["unet"].bfloat16()}
    before = states(net)
    stack = LoraStack(net)
    stack.apply([Wanted(read_lora(write(tmp_path / "l.safetensors", _simple(value=9.0))))])
    assert not same(before, states(net))
    stack.clear()
    assert same(before, states(net))


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_in_a_network_of_our_kernels(tmp_path: Path, mode: Any) -> None:
    """Packed weights are changed and come back bit for bit; the network says what the plain one does."""
    plain = {"unet": sd_tiny.components("sd1")["unet"]}
    fast = {"unet": accelerate(copy.deepcopy(plain["unet"]))}
    conv = weight(plain, CONV).shape
    tensors = _simple(value=0.3) | _simple(CONTEXT, (32, 128))
    tensors |= {
        f"unet.{CONV}.lora_A.weight": rand(2, *conv[1:]),
        f"unet.{CONV}.lora_B.weight": rand(conv[0], 2, 1, 1),
    }
    wanted = [Wanted(read_lora(write(tmp_path / "l.safetensors", tensors)), unet=0.8)]
    x, text = rand(1, 4, 8, 8), rand(1, 5, 128)

    def passes(parts: dict[str, Any]) -> Tensor:
        with torch.inference_mode():
            answer: Tensor = parts["unet"](x, torch.tensor([10]), text).sample
        return answer

    before = passes(fast)
    LoraStack(plain).apply(wanted)
    expected = passes(plain)
    stack = LoraStack(fast, mode)
    assert stack.apply(wanted) == ()
    assert (passes(fast) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-2 * expected.abs().max()
    stack.clear()
    assert torch.equal(passes(fast), before)


def test_weights_of_both_networks(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    tensors = {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": rand(2, 128),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": rand(128, 2),
    } | {key.replace("unet.", "lora_unet_", 1): value for key, value in _simple().items()}
    tensors = {_kohya(key): value for key, value in tensors.items()}
    file = read_lora(write(tmp_path / "l.safetensors", tensors))
    before = states(parts)
    stack = LoraStack(parts)
    stack.apply([Wanted(file, text_encoder=0.0, unet=1.0)])
    changed = {name for name, value in states(parts).items() if not torch.equal(value, before[name])}
    assert changed == {f"unet.{LINEAR}.weight"}
    stack.apply([Wanted(file, text_encoder=1.0, unet=0.0)])
    changed = {name for name, value in states(parts).items() if not torch.equal(value, before[name])}
    assert len(changed) == 1
    assert next(iter(changed)).endswith("layers.0.self_attn.q_proj.weight")
    stack.clear()
    assert same(before, states(parts))


def _kohya(key: str) -> str:
    if not key.startswith("lora_unet_"):
        return key
    layer, _, rest = key.partition(".lora_")
    return layer.replace(".", "_") + {"A.weight": ".lora_down.weight", "B.weight": ".lora_up.weight"}[rest]


@pytest.mark.parametrize(
    "name",
    [
        f"unet.{LINEAR}.lora_A.weight",
        f"unet.base_model.model.{LINEAR}.lora_A.default.weight",
        f"base_model.model.{LINEAR}.lora_A.weight",
        f"{LINEAR}.lora_A.weight",
        f"unet.{LINEAR}.lora.down.weight",
        f"unet.{LINEAR.replace('attn1.', 'attn1.processor.')}_lora.down.weight",
        f"{LINEAR.replace('attn1.', 'attn1.processor.')}_lora.down.weight",
        f"lora_unet_{LINEAR.replace('.', '_')}.lora_down.weight",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        f"lycoris_{LINEAR.replace('.', '_')}.lora_down.weight",
    ],
)
def test_dialects(parts: dict[str, nn.Module], tmp_path: Path, name: str) -> None:
    partner = name.replace("lora_A", "lora_B").replace("lora_down", "lora_up").replace("lora.down", "lora.up")
    down, up = rand(2, 32), rand(32, 2)
    file = read_lora(write(tmp_path / "l.safetensors", {name: down, partner: up}))
    original = weight(parts, LINEAR).clone()
    stack = LoraStack(parts)
    assert stack.apply([Wanted(file)]) == ()
    assert torch.allclose(weight(parts, LINEAR), original + up @ down, atol=1e-6)
    stack.clear()


def test_old_diffusers_names_of_out_and_text(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    layer = LINEAR.removesuffix("to_q")
    tensors = {
        f"unet.{layer}processor.to_out_lora.down.weight": rand(2, 32),
        f"unet.{layer}processor.to_out_lora.up.weight": rand(32, 2),
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.down.weight": rand(
            2, 128
        ),
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.up.weight": rand(128, 2),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight": rand(2, 128),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight": rand(128, 2),
    }
    before = states(parts)
    stack = LoraStack(parts)
    assert stack.apply([Wanted(read_lora(write(tmp_path / "l.safetensors", tensors)))]) == ()
    changed = {name for name, value in states(parts).items() if not torch.equal(value, before[name])}
    assert f"unet.{layer}to_out.0.weight" in changed
    assert any(name.endswith("layers.0.self_attn.out_proj.weight") for name in changed)
    assert len(changed) == 3
    stack.clear()


def test_torch_files_are_read_without_running_them(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    torch.save(_simple(), tmp_path / "l.pt")
    assert LoraStack(parts).apply([]) == ()
    assert read_lora(tmp_path / "l.pt").layers.keys() == {f"unet.{LINEAR}"}


def test_scales() -> None:
    """Alpha over rank; PEFT's settings where the file has no alpha of its own."""
    pair = {"unet.a.b.lora_A.weight": rand(4, 5), "unet.a.b.lora_B.weight": rand(6, 4)}

    def scale(settings: dict[str, Any] | None = None, more: dict[str, Tensor] | None = None) -> float:
        layers, _ = layers_of(pair | (more or {}), settings)
        return layers["unet.a.b"].scale

    assert scale() == 1.0
    assert scale(more={"unet.a.b.alpha": torch.tensor(2.0)}) == 0.5
    assert scale({"unet.lora_alpha": 8, "unet.r": 4}) == 2.0
    assert scale({"lora_alpha": 8}) == 2.0
    assert scale({"unet.lora_alpha": 8, "unet.use_rslora": True}) == 4.0
    assert scale({"unet.lora_alpha": 8, "unet.alpha_pattern": {"a.b": 12}}) == 3.0
    assert scale({"unet.lora_alpha": 8, "unet.alpha_pattern": {"b": 16}}) == 4.0
    assert scale({"unet.lora_alpha": 8, "unet.alpha_pattern": {"x.b": 16}}) == 2.0
    assert scale({"unet.lora_alpha": "much"}) == 1.0
    assert scale({"unet.lora_alpha": 8}, {"unet.a.b.alpha": torch.tensor(2.0)}) == 0.5


def test_peft_settings_from_header_and_folder(tmp_path: Path) -> None:
    text = json.dumps({"unet.lora_alpha": 6, "unet.r": 2})
    file = read_lora(write(tmp_path / "l.safetensors", _simple(), lora_adapter_metadata=text))
    assert file.layers[f"unet.{LINEAR}"].scale == 3.0
    write(tmp_path / "adapter_model.safetensors", _simple())
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1, "r": 2}')
    assert read_lora(tmp_path / "adapter_model.safetensors").layers[f"unet.{LINEAR}"].scale == 0.5
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="not JSON"):
        read_lora(tmp_path / "adapter_model.safetensors")


# --- what does not fit --------------------------------------------------------------------------------------


def test_no_layer_fits(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    before = states(parts)
    stack = LoraStack(parts)
    good = Wanted(read_lora(write(tmp_path / "good.safetensors", _simple())))
    stack.apply([good])
    merged = states(parts)
    for number, (tensors, word) in enumerate(
        [
            ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": rand(2, 8),
              "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": rand(8, 2)}, "FLUX"),
            ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": rand(2, 8),
              "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": rand(8, 2)}, "FLUX"),
            (_simple(CONTEXT, (32, 2048)), "SDXL"),
            (_simple(CONTEXT, (32, 1024)), r"Stable Diffusion 2\.x"),
            (_simple(CONTEXT, (32, 768)), r"Stable Diffusion 1\.x"),
            (_simple() | _simple(CONTEXT, (32, 1024)), r"Stable Diffusion 2\.x"),  # where a part would fit
            (_simple("nowhere.to_q"), "unknown kind"),
            (_simple(LINEAR, (64, 64)), "1 are, with other sizes"),
        ]
    ):  # fmt: skip
        file = read_lora(write(tmp_path / f"{number}.safetensors", tensors))
        with pytest.raises(ArtifactError, match=word) as caught:
            stack.apply([good, Wanted(file)])
        assert "\n" not in str(caught.value)
        assert same(merged, states(parts))  # the call changed nothing
    stack.clear()
    assert same(before, states(parts))


def test_a_part_fits(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    tensors = _simple() | _simple("nowhere.to_q") | _simple(LINEAR.replace("to_q", "to_k"), (64, 64))
    tensors["strange.tensor"] = rand(3)
    stack = LoraStack(parts)
    (hint,) = stack.apply([Wanted(read_lora(write(tmp_path / "part.safetensors", tensors)))])
    assert "1 of 3 layers fit" in hint
    assert "1 are not in this model (for example unet.nowhere.to_q)" in hint
    assert "1 have another size" in hint
    assert "strange.tensor" in hint
    stack.clear()


def test_family_of() -> None:
    def family(name: str, width: int = 8) -> str:
        return family_of({name: Layer({"up": rand(4, 2), "down": rand(2, width)})})

    assert family("lora_te2_text_model_encoder_layers_0_mlp_fc1") == "SDXL"
    assert family("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768) == "Stable Diffusion 1.x"
    assert family("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024) == "Stable Diffusion 2.x"
    assert family("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048) == "SDXL"
    assert "Stable Diffusion 3" in family("lora_unet_joint_blocks_0_x_block_attn_qkv")
    assert "language" in family("base_model.model.model.layers.0.mlp.up_proj")
    assert "AnimateDiff" in family("down_blocks.0.motion_modules.0.to_q")


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"a.weight": rand(3)}, "holds no LoRA"),
        ({"a.lora_down.weight": rand(2, 3)}, "alone"),
        ({"a.lora_down.weight": rand(2, 3), "a.lora_up.weight": rand(4, 3)}, "do not fit"),
        ({"a.lora_down.weight": rand(2), "a.lora_up.weight": rand(4, 2)}, "do not fit"),
        ({"a.lora_down.weight": rand(0, 3), "a.lora_up.weight": rand(4, 0)}, "do not fit"),
        ({"a.lora_down.weight": rand(2, 3), "a.lora_up.weight": torch.full((4, 2), float("inf"))}, "NaN"),
        (
            {"a.lora_down.weight": torch.ones(2, 3, dtype=torch.int8), "a.lora_up.weight": rand(4, 2)},
            "integers",
        ),
        (
            {"a.lora_down.weight": rand(2, 3), "a.lora_up.weight": rand(4, 2), "a.alpha": rand(2)},
            "one finite",
        ),
        (
            {
                "a.lora_down.weight": rand(2, 3),
                "a.lora_up.weight": rand(4, 2),
                "a.alpha": torch.tensor(float("nan")),
            },
            "one finite",
        ),
        ({"a.dora_scale": rand(4, 1)}, "alone"),
        ({"a.oft_blocks": rand(2, 3)}, "OFT"),
        ({f"a.hada_w{n}_{x}": rand(2, 3) for n in "12" for x in "ab"}, "do not fit"),
        ({"a.lokr_w1": rand(2, 3, 1, 1), "a.lokr_w2": rand(2, 3)}, "do not fit"),
        (
            {
                "a.lora_down.weight": rand(2, 3),
                "a.lora_up.weight": rand(4, 2),
                "a.lora_mid.weight": rand(2, 2),
            },
            "do not fit",
        ),
    ],
)
def test_damaged(tmp_path: Path, tensors: dict[str, Tensor], word: str) -> None:
    with pytest.raises(ArtifactError, match=word) as caught:
        read_lora(write(tmp_path / "l.safetensors", tensors))
    assert "\n" not in str(caught.value)


def test_a_small_file_cannot_ask_for_much_memory(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    """A Kronecker product of two long rows would be 40 GB; its shape is compared before it is made."""
    tensors = {
        f"unet.{LINEAR}.lokr_w1": torch.ones(100_000, 1),
        f"unet.{LINEAR}.lokr_w2": torch.ones(1, 100_000),
    }
    file = read_lora(write(tmp_path / "l.safetensors", tensors))
    with pytest.raises(ArtifactError, match="other sizes"):
        LoraStack(parts).apply([Wanted(file)])


def test_live_keeps_the_padding_of_the_layer(parts: dict[str, nn.Module], tmp_path: Path) -> None:
    """Seamless textures turn a convolution's padding circular; the change follows."""
    shape = weight(parts, CONV).shape
    tensors = {
        f"unet.{CONV}.lora_A.weight": rand(2, *shape[1:]),
        f"unet.{CONV}.lora_B.weight": rand(shape[0], 2, 1, 1),
    }
    file = read_lora(write(tmp_path / "l.safetensors", tensors))
    module = copy.deepcopy(parts["unet"].get_submodule(CONV))
    assert isinstance(module, nn.Conv2d)
    module.padding_mode = "circular"
    holder: Any = copy.deepcopy(parts["unet"])
    holder.down_blocks[0].resnets[0].conv1 = module
    module._reversed_padding_repeated_twice = [1, 1, 1, 1]
    x = rand(1, shape[1], 5, 5)
    with torch.no_grad():
        live, merged = LoraStack({"unet": holder}, "live"), LoraStack({"unet": holder})
        live.apply([Wanted(file)])
        first = module(x)
        live.clear()
        merged.apply([Wanted(file)])
        second = module(x)
    assert (first - second).abs().max() <= 1e-5 * second.abs().max()
