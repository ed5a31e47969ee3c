"""Folders of diffusers: our networks against diffusers' own, with its random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.backends.convert import convert, write
from vitrail.errors import ArtifactError, InputError
from vitrail.models.registry import build
from vitrail.store import artifacts

TOLERANCE = 1e-5  # relative to the largest value; the bar of the issue
SHAPE: dict[str, Any] = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    "sample_size": 32,
    "latent_channels": 4,
}


def theirs(name: str, **more: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    network = getattr(diffusers, name)(**(SHAPE | more)).eval().requires_grad_(False)
    for value in network.parameters():  # norms begin at 1 and 0, which would hide a mix-up
        value += 0.05 * torch.randn(value.shape)
    return network


def ours(folder: Path, out: Path) -> Any:
    write(convert(folder), out)
    artifact = artifacts.load(out, verify=True)
    network = build(artifact.kind, artifact.config)
    artifact.fill(network)
    return network.eval().requires_grad_(False)


def far(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_vqmodel(tmp_path: Path, safe: bool) -> None:
    network = theirs("VQModel", num_vq_embeddings=200, vq_embed_dim=6)
    network.quantize.embedding.weight.copy_(torch.randn(200, 6))  # spread, so that many codes are met
    network.save_pretrained(tmp_path / "vq", safe_serialization=safe)
    mine = ours(tmp_path / "vq", tmp_path / "out")
    with torch.no_grad():
        picture = network(pictures()).sample
        codes = network.quantize(network.encode(pictures()).latents)[2][2]
        made = mine(pictures())
        assert torch.equal(made.latent.codes.flatten(), codes)
        assert len(codes.unique()) > 10
        assert far(made.x, picture) <= TOLERANCE
        # Latents handed out are scaled as diffusers' pipelines scale them.
        quantized = network.quantize(network.encode(pictures()).latents)[0]
        assert far(mine.encode(pictures()).z, quantized * network.config.scaling_factor) <= TOLERANCE
        assert far(mine.decode(mine.encode(pictures()).z), picture) <= TOLERANCE


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1, "scaling_factor": 0.36},
    ],
    ids=["sd", "without quant_conv"],
)
def test_an_autoencoderkl(tmp_path: Path, more: dict[str, Any]) -> None:
    network = theirs("AutoencoderKL", **more)
    network.save_pretrained(tmp_path / "vae")
    mine = ours(tmp_path / "vae", tmp_path / "out")
    with torch.no_grad():
        gaussian = network.encode(pictures()).latent_dist
        scaled = (gaussian.mean - more.get("shift_factor", 0.0)) * network.config.scaling_factor
        assert far(mine.encode(pictures()).z, scaled) <= TOLERANCE
        assert far(mine.encode(pictures()).logvar, gaussian.logvar) <= TOLERANCE
        assert far(mine(pictures()).x, network.decode(gaussian.mean).sample) <= TOLERANCE


def test_old_names_and_half_precision(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    network = theirs("AutoencoderKL").half()
    network.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        weights[name] = value
    assert any(".query." in name for name in weights)
    save_file(weights, path)
    source = convert(tmp_path / "vae")
    write(source, tmp_path / "out")
    with open(tmp_path / "out" / "model.safetensors", "rb") as file:
        assert b'"F16"' in file.read(4000)
    artifact = artifacts.load(tmp_path / "out")
    mine = build(artifact.kind, artifact.config)
    artifact.fill(mine)
    mean = network.float().encode(pictures()).latent_dist.mean
    with torch.no_grad():
        assert far(mine.eval().encode(pictures()).mean, mean) <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "UNet2DModel"}, "config.json is for UNet2DModel"),
        ({"norm_type": "spatial"}, "norm_type to spatial"),
        ({"act_fn": "relu"}, "act_fn to relu"),
        ({"norm_num_groups": 16}, "norm_num_groups to 16"),
        ({"a_new_setting": 1}, "not known (a_new_setting)"),
        ({"block_out_channels": [32, 48, 64]}, "block_out_channels"),
        ({"block_out_channels": [32, 64]}, "down_block_types"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 3}, "down_block_types"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "attention at different levels"),
        ({"num_vq_embeddings": 7}, "of another shape (quantize.embedding.weight: (200, 6) for (7, 6))"),
        ({"layers_per_block": 1}, "not known"),
        ({"num_vq_embeddings": 10**15}, "codes"),
        ({"scaling_factor": "x"}, "latent_scale"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    network = theirs("VQModel", num_vq_embeddings=200, vq_embed_dim=6)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as caught:
        convert(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    network = theirs("AutoencoderKL")
    network.save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match="leave --config"):
        convert(tmp_path / "vae", tmp_path / "some.yaml")
    # The file alone finds the config.json beside it.
    assert convert(tmp_path / "vae" / "diffusion_pytorch_model.safetensors").model.kind == "kl_autoencoder"
    (tmp_path / "vae" / "config.json").rename(tmp_path / "other.json")
    renamed = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ArtifactError, match=r"give its config\.json with --config"):
        convert(renamed)
    assert convert(renamed, tmp_path / "other.json").model.kind == "kl_autoencoder"
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ArtifactError, match="whole pipeline of diffusers"):
        convert(tmp_path)
