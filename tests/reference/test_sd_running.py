"""A Stable Diffusion at work: our kernels, LoRAs that come and go, ControlNets, precision, devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sd_compare import SIZE, noise, relative
from sd_tiny import make_folder
from torch import Tensor

from vitrail.backends.model import Control
from vitrail.backends.sd.open import open_stable_diffusion
from vitrail.errors import ArtifactError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")
SIGMA = torch.tensor([2.5])


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd")
    for family in ("sd1", "sdxl"):
        make_folder(place / family, family)
    generator = torch.Generator().manual_seed(8)
    for number in (1, 2):
        layers: dict[str, Tensor] = {}
        for name, width, context in (
            ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 32, 128),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 64, 64),
            ("lora_te_text_model_encoder_layers_1_self_attn_q_proj", 128, 128),
        ):
            layers[f"{name}.lora_down.weight"] = torch.randn(4, context, generator=generator) * 0.5
            layers[f"{name}.lora_up.weight"] = torch.randn(width, 4, generator=generator) * 0.5
        save_file(layers, place / f"lora{number}.safetensors")
    return place


def find(home: Path) -> Any:
    def look(kind: str, name: str) -> Path:
        path = home / (name if kind == "controlnet" else f"{name}.safetensors")
        if not path.exists():
            raise InputError(f"there is no {kind} {name}")
        return path

    return look


def opened(home: Path, family: str = "sd1", **more: Any) -> Any:
    return open_stable_diffusion(home / family, find=find(home), **more)


def pair(model: Any, prompt: str, negative: str = "dog") -> Tensor:
    bound = model.bind(model.read(prompt, negative), SIZE, SIZE, "float32")
    return torch.cat(bound.pair(noise() * 3, SIGMA))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_our_kernels(family: str, home: Path) -> None:
    plain, fast = opened(home, family, accelerated=False), opened(home, family, accelerated=True)
    assert relative(pair(fast, "a (red:1.2) cat"), pair(plain, "a (red:1.2) cat")) <= 1e-4
    z = noise(4)
    assert relative(fast.autoencoder.decode(z), plain.autoencoder.decode(z)) <= 1e-4
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert relative(fast.autoencoder.encode(x).z, plain.autoencoder.encode(x).z) <= 1e-4


@pytest.mark.parametrize("accelerated", [False, True])
def test_loras_come_and_go(accelerated: bool, home: Path) -> None:
    """Two prompts with different LoRAs at work by turns: each has its own, and one without has none."""
    model = opened(home, accelerated=accelerated)
    before = pair(model, "a cat")
    bound = {
        tags: model.bind(model.read(f"a cat {tags}", "dog"), SIZE, SIZE, "float32")
        for tags in ("", "<lora:lora1:0.8>", "<lora:lora1:0.8> <lora:lora2:0.3:1.1>")
    }
    first = {tags: torch.cat(one.pair(noise() * 3, SIGMA)) for tags, one in bound.items()}
    again = {tags: torch.cat(one.pair(noise() * 3, SIGMA)) for tags, one in reversed(bound.items())}
    assert torch.equal(first[""], before)
    for tags, answer in first.items():
        assert torch.equal(answer, again[tags])
        fresh = opened(home, accelerated=False)
        assert relative(answer, pair(fresh, f"a cat {tags}")) <= 1e-4
        if tags:
            assert relative(answer, before) > 1e-3


def test_loras_beside_the_prompt(home: Path) -> None:
    model = opened(home)
    view = model.adding(loras=[("lora1", 0.8)])
    assert torch.equal(pair(view, "a cat"), pair(model, "a cat <lora:lora1:0.8>"))
    assert relative(pair(model, "a cat"), pair(view, "a cat")) > 1e-3
    with pytest.raises(InputError, match="there is no lora nothing"):
        model.read("a cat <lora:nothing:1>")


def test_a_lora_of_another_family(home: Path) -> None:
    model = opened(home, "sdxl")
    before = pair(model, "a cat")
    with pytest.raises(ArtifactError, match="lora1"):
        model.read("a cat <lora:lora1:1>")
    assert torch.equal(pair(model, "a cat"), before)


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_controlnet(accelerated: bool, home: Path) -> None:
    """Its residuals reach the U-Net, at the steps that it is for."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(1)
    network = ControlNetModel.from_unet(
        UNet2DConditionModel.from_pretrained(home / "sd1" / "unet"),
        conditioning_embedding_out_channels=(16, 16, 32, 32),
    )
    for value in network.parameters():
        value.data += 0.05 * torch.randn(value.shape)
    network.eval().save_pretrained(home / "edges")
    model, plain = opened(home, accelerated=accelerated), opened(home, accelerated=False)
    picture = torch.rand(1, 3, SIZE, SIZE)
    words = model.read("a cat", "dog")
    control = Control("edges", picture, 0.7, (0.0, 0.5))
    bound = model.bind(words, SIZE, SIZE, "float32", controls=[control])
    bound.steps = 4
    x = noise() * 3
    with_control = torch.cat(bound.pair(x, SIGMA))
    bound.step = 3
    assert torch.equal(torch.cat(bound.pair(x, SIGMA)), pair(model, "a cat"))
    payload = words.payload
    spoken = (payload.prompt.subprompts[0].at(0, 1), payload.negative.subprompts[0].at(0, 1))
    states = torch.cat([model.parts.text.encode(variant).states for variant in spoken])
    seen = model.path.network_input(x, SIGMA).repeat(2, 1, 1, 1)
    time = model.path.time(SIGMA).repeat(2)
    down, mid = network(seen, time, states, picture, 0.7, return_dict=False)
    eps = plain.networks["unet"](
        seen,
        time,
        states,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    assert relative(with_control, x - SIGMA * eps) <= 1e-4
    with pytest.raises(InputError, match="there is no controlnet depth"):
        model.bind(words, SIZE, SIZE, controls=[Control("depth", picture)])


def test_half_the_numbers(home: Path) -> None:
    """In bfloat16 the answer is near, and the autoencoder stays in float32."""
    model = opened(home, accelerated=False)
    words = model.read("a cat", "dog")
    exact, rough = (
        torch.cat(model.bind(words, SIZE, SIZE, precision).pair(noise() * 3, SIGMA))
        for precision in ("float32", "bfloat16")
    )
    assert exact.dtype == rough.dtype == torch.float32
    assert 1e-5 < relative(rough, exact) < 5e-2
    stored = opened(home, accelerated=False, dtype=torch.bfloat16)
    small = torch.cat(
        stored.bind(stored.read("a cat", "dog"), SIZE, SIZE, "float32").pair(noise() * 3, SIGMA)
    )
    assert small.dtype == torch.float32
    assert 1e-5 < relative(small, exact) < 5e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.autoencoder.decode(noise())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, model.autoencoder.decode(noise()))


def test_loading_warns_of_nothing(home: Path, recwarn: pytest.WarningsRecorder) -> None:
    opened(home)
    assert [str(warning.message) for warning in recwarn] == []
