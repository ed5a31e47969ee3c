"""ControlNets against diffusers' own class, on tiny real checkpoints in each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sd_tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.backends.model import Control
from vitrail.backends.sd.controlnet import Controls, open_controlnet
from vitrail.backends.sd.ldm_names import ldm_modules
from vitrail.errors import ArtifactError, InputError

FAMILIES = ["sd1", "sd2", "sdxl"]


def make_controlnet(family: str, seed: int = 1) -> Any:
    """A tiny ControlNet for a family's tiny U-Net, its zero convolutions disturbed."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    unet = sd_tiny.make_unet(family)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 24, 32))
    return sd_tiny._spoken(network)


def ldm_tensors(network: Any) -> dict[str, Tensor]:
    """diffusers' names to those of the original ControlNet, written apart from the product's map."""
    config = network.config
    renamed: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        part, _, leaf = name.rpartition(".")
        pieces = part.split(".")
        if pieces[0] == "controlnet_cond_embedding":
            place = {"conv_in": 0, "conv_out": 2 * len(network.controlnet_cond_embedding.blocks) + 2}.get(
                pieces[1]
            )
            new = f"input_hint_block.{2 * int(pieces[2]) + 2 if place is None else place}.{leaf}"
        elif pieces[0] == "controlnet_down_blocks":
            new = f"zero_convs.{pieces[1]}.0.{leaf}"
        elif pieces[0] == "controlnet_mid_block":
            new = f"middle_block_out.0.{leaf}"
        else:
            new = sd_tiny._unet_name(name, config.layers_per_block, [])
        renamed[f"control_model.{new}"] = value.clone()
    return renamed


def inputs(family: str, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    width = sd_tiny.unet_config(family)["cross_attention_dim"]
    added = None
    if family == "sdxl":
        added = {"text_embeds": torch.randn(batch, 32, generator=generator), "time_ids": torch.ones(batch, 6)}
    return {
        "x": torch.randn(batch, 4, 8, 8, generator=generator),
        "times": torch.tensor([500] * batch),
        "states": torch.randn(batch, 7, width, generator=generator),
        "added": added,
    }


def reference(network: Any, family: str, picture: Tensor, strength: float) -> tuple[list[Tensor], Tensor]:
    given = inputs(family)
    down, mid = network(
        given["x"],
        given["times"],
        given["states"],
        picture.expand(2, -1, -1, -1),
        conditioning_scale=strength,
        added_cond_kwargs=given["added"],
        return_dict=False,
    )
    return list(down), mid


def write(network: Any, form: str, path: Path) -> Path:
    if form == "folder":
        network.save_pretrained(path)
        return path
    if form == "diffusers-file":
        save_file(
            {name: value.clone() for name, value in network.state_dict().items()},
            path.with_suffix(".safetensors"),
        )
        return path.with_suffix(".safetensors")
    if form == "ldm":
        save_file(ldm_tensors(network), path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    torch.save(ldm_tensors(network), path.with_suffix(".pth"))
    return path.with_suffix(".pth")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["folder", "diffusers-file", "ldm", "pth"])
def test_residuals(tmp_path: Path, family: str, form: str) -> None:
    network = make_controlnet(family)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    opened = open_controlnet(write(network, form, tmp_path / "control"))
    assert opened.name == "control"
    controls = Controls([(opened, Control("control", picture, 0.7))], sd_tiny.make_unet(family))
    with torch.no_grad():
        down, mid = reference(network, family, picture, 0.7)
        for _ in range(2):  # the second time from the remembered picture
            found = controls.residuals(**inputs(family))
            assert found is not None
            for theirs, ours in zip([*down, mid], [*found.down, found.mid], strict=True):
                assert theirs.abs().max() > 0
                # Roundings of 1e-7 add up over the layers; how far depends on the number of threads.
                assert (theirs - ours).abs().max() <= 1e-5 * theirs.abs().max()


def test_names_are_those_of_the_original() -> None:
    """The product's map and the one in this file are the same, for every layer of every family."""
    for family in FAMILIES:
        network = make_controlnet(family)
        expected = {name.removeprefix("control_model.").rpartition(".")[0] for name in ldm_tensors(network)}
        assert set(ldm_modules(network).values()) == expected
    for family in sd_tiny.FAMILIES:
        unet = sd_tiny.make_unet(family)
        assert set(ldm_modules(unet).values()) == {name.rpartition(".")[0] for name in sd_tiny.ldm_unet(unet)}


def test_several_with_intervals(tmp_path: Path) -> None:
    """Residuals add up; each ControlNet works in its own steps, as diffusers' pipelines count them."""
    networks = [make_controlnet("sd1", seed) for seed in (1, 2)]
    opened = [open_controlnet(write(net, "ldm", tmp_path / f"c{i}")) for i, net in enumerate(networks)]
    pictures = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    controls = Controls(
        [
            (opened[0], Control("a", pictures[0], 0.5, (0.0, 0.5))),
            (opened[1], Control("b", pictures[1], 1.5, (0.25, 1.0))),
        ]
    )
    with torch.no_grad():
        first = reference(networks[0], "sd1", pictures[0], 0.5)[1]
        second = reference(networks[1], "sd1", pictures[1], 1.5)[1]
        for step, expected in enumerate([first, first + second, second, second]):
            found = controls.residuals(**inputs("sd1"), step=step, steps=4)
            assert found is not None
            assert (found.mid - expected).abs().max() <= 3e-6 * expected.abs().max()
        off = Controls([(opened[0], Control("a", pictures[0], 1.0, (0.0, 0.3)))])
        assert off.residuals(**inputs("sd1"), step=9, steps=10) is None
        assert Controls([(opened[0], Control("a", pictures[0], 0.0))]).residuals(**inputs("sd1")) is None


def test_a_picture_of_another_size_is_fitted(tmp_path: Path) -> None:
    opened = open_controlnet(write(make_controlnet("sd1"), "ldm", tmp_path / "c"))
    flat = torch.full((1, 3, 100, 40), 0.25)
    with torch.no_grad():
        found = Controls([(opened, Control("c", flat))]).residuals(**inputs("sd1"))
        same = Controls([(opened, Control("c", torch.full((1, 3, 64, 64), 0.25)))]).residuals(**inputs("sd1"))
    assert found is not None
    assert same is not None
    assert torch.allclose(found.mid, same.mid, atol=1e-6)


def test_of_another_family(tmp_path: Path) -> None:
    opened = open_controlnet(write(make_controlnet("sd1"), "ldm", tmp_path / "c"))
    with pytest.raises(ArtifactError, match="choose a ControlNet of the same family"):
        Controls([(opened, Control("c", torch.zeros(1, 3, 64, 64)))], sd_tiny.make_unet("sdxl"))


@pytest.mark.parametrize(
    ("picture", "interval"),
    [
        ((1, 4, 64, 64), (0.0, 1.0)),
        ((3, 64, 64), (0.0, 1.0)),
        ((1, 3, 64, 64), (0.5, 0.2)),
        ((1, 3, 64, 64), (0.0, 2.0)),
    ],
)
def test_bad_pictures_and_intervals(
    tmp_path: Path, picture: tuple[int, ...], interval: tuple[float, float]
) -> None:
    opened = open_controlnet(write(make_controlnet("sd1"), "ldm", tmp_path / "c"))
    with pytest.raises(InputError):
        Controls([(opened, Control("c", torch.zeros(picture), 1.0, interval))])


def _damaged(kind: str, path: Path) -> Path:
    network = make_controlnet("sd1")
    tensors = ldm_tensors(network)
    if kind == "missing":
        del tensors["control_model.input_blocks.2.1.transformer_blocks.0.attn1.to_k.weight"]
    elif kind == "no hint":
        tensors = {name: value for name, value in tensors.items() if "input_hint_block" not in name}
    elif kind == "half":
        tensors = {name: value for name, value in tensors.items() if "input_blocks" not in name}
    elif kind == "control-lora":
        tensors = {"lora_controlnet": torch.zeros(()), "input_hint_block.0.weight": torch.zeros(8, 3, 3, 3)}
    elif kind == "adapter":
        tensors = {"body.0.block1.weight": torch.zeros(8, 8, 3, 3)}
    elif kind == "union":
        tensors = {
            "task_embedding": torch.zeros(6, 320),
            "controlnet_cond_embedding.conv_in.weight": torch.zeros(8, 3, 3, 3),
        }
    save_file(tensors, path / "c.safetensors")
    return path / "c.safetensors"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("missing", "missing"),
        ("no hint", "no ControlNet"),
        ("half", "not whole"),
        ("control-lora", "control-LoRA"),
        ("adapter", "T2I adapter"),
        ("union", "union"),
    ],
)
def test_what_is_no_controlnet(tmp_path: Path, kind: str, word: str) -> None:
    with pytest.raises(ArtifactError, match=word) as caught:
        open_controlnet(_damaged(kind, tmp_path))
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json"):
        open_controlnet(tmp_path)
    folder = write(make_controlnet("sd1"), "folder", tmp_path / "c")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"class_embed_type": "timestep"}))
    with pytest.raises(ArtifactError, match="class_embed_type"):
        open_controlnet(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="JSON"):
        open_controlnet(folder)
