"""Single files as they really lie around: with leftovers, of mixed types, and near misses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sd_tiny import components, make_vocabulary, single_tensors
from torch import Tensor

from vitrail.backends.sd.open import open_stable_diffusion
from vitrail.chinese import in_chinese
from vitrail.errors import ArtifactError

CLIP = "cond_stage_model.transformer.text_model.embeddings."
PROJECTION = "model.diffusion_model.input_blocks.1.1.proj_in."


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vocabulary(tmp_path_factory.mktemp("words"))


LEFTOVERS: dict[str, tuple[str, dict[str, Tensor]]] = {
    "Lightning's buffers": (
        "sd1",
        {name: torch.zeros(1000) for name in ("sqrt_alphas_cumprod", "posterior_variance", "logvar")},
    ),
    "positions as whole numbers": ("sd1", {f"{CLIP}position_ids": torch.arange(77)[None]}),
    "positions with a point": ("sd1", {f"{CLIP}position_ids": torch.arange(77.0)[None]}),
    "a scale of logits": ("sd1", {"cond_stage_model.logit_scale": torch.tensor(4.6)}),
    "the half of CLIP that sees": (
        "sd1",
        {
            "cond_stage_model.transformer.vision_model.embeddings.class_embedding": torch.zeros(3),
            "cond_stage_model.transformer.visual_projection.weight": torch.zeros(3, 3),
            "cond_stage_model.transformer.text_projection.weight": torch.zeros(3, 3),
            "cond_stage_model.transformer.logit_scale": torch.tensor(4.6),
        },
    ),
    "the half of OpenCLIP that sees": (
        "sd2",
        {"cond_stage_model.model.visual.conv1.weight": torch.zeros(3, 3)},
    ),
    "losses of the autoencoder": (
        "sd1",
        {
            "first_stage_model.loss.logvar": torch.zeros(()),
            "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(3),
            "first_stage_model.model_ema.decay": torch.zeros(()),
        },
    ),
    "what sgm keeps": (
        "sdxl",
        {
            "denoiser.sigmas": torch.zeros(1000),
            "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
            "conditioner.embedders.1.model.attn_mask": torch.zeros(77, 77),
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        },
    ),
}


@pytest.mark.parametrize("case", list(LEFTOVERS))
def test_leftovers_change_nothing(case: str, tmp_path: Path, words: Path) -> None:
    family, more = LEFTOVERS[case]
    save_file(single_tensors(family) | more, tmp_path / "m.safetensors")
    model = open_stable_diffusion(tmp_path / "m.safetensors", tokenizer=words)
    parts = components(family)
    for name, network in (model.networks | {"vae": model.autoencoder.network}).items():
        wanted = parts[name].state_dict()
        assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items()), name


@pytest.mark.parametrize("wrapper", ["bare", "state_dict", "module"])
def test_torch_files_however_they_are_wrapped(wrapper: str, tmp_path: Path, words: Path) -> None:
    tensors = single_tensors("sd1")
    torch.save(tensors if wrapper == "bare" else {wrapper: tensors, "epoch": 3}, tmp_path / "m.ckpt")
    model = open_stable_diffusion(tmp_path / "m.ckpt", tokenizer=words)
    assert torch.equal(model.networks["unet"].conv_in.weight, components("sd1")["unet"].conv_in.weight)


def test_parts_of_several_types(tmp_path: Path, words: Path) -> None:
    """A U-Net in bfloat16 with text in float16 and an autoencoder in float32, as mergers leave them."""
    kinds = {"model": torch.bfloat16, "cond_stage_model": torch.float16, "first_stage_model": torch.float32}
    tensors = {
        name: value.to(kinds.get(name.partition(".")[0], value.dtype)) if value.is_floating_point() else value
        for name, value in single_tensors("sd1").items()
    }
    save_file(tensors, tmp_path / "m.safetensors")
    model = open_stable_diffusion(tmp_path / "m.safetensors", tokenizer=words)
    parts = components("sd1")
    for name, kind in (("unet", torch.bfloat16), ("text_encoder", torch.float16)):
        for key, value in model.networks[name].state_dict().items():
            assert torch.equal(value, parts[name].state_dict()[key].to(kind).float())


def _without(*prefixes: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


def _only_averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    unet = "model.diffusion_model."
    flat = {
        name.removeprefix("model.").replace(".", ""): v
        for name, v in tensors.items()
        if name.startswith(unet)
    }
    return _without(unet)(tensors) | {f"model_ema.{name}": value for name, value in flat.items()}


NEAR_MISSES: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "no autoencoder": ("sdxl", _without("first_stage_model."), "has no autoencoder; give one with --vae"),
    "no text": ("sd1", _without("cond_stage_model."), "has no text encoder; give a whole model"),
    "half of SDXL's text": ("sdxl", _without("conditioner.embedders.0."), "has 1 text encoder; .* has 2"),
    "the other half": ("sdxl", _without("conditioner.embedders.1."), "lacks the second text encoder"),
    "a bare U-Net": (
        "sd1",
        lambda tensors: {
            name.removeprefix("model.diffusion_model."): value
            for name, value in tensors.items()
            if name.startswith("model.diffusion_model.")
        },
        "is a U-Net alone; give the whole model",
    ),
    "averages alone": ("sd1", _only_averages, "is a checkpoint of moving averages alone"),
    "scaled float8": (
        "sd1",
        lambda tensors: (
            tensors
            | {f"{PROJECTION}weight": tensors[f"{PROJECTION}weight"].to(torch.float8_e4m3fn)}
            | {f"{PROJECTION}scale_weight": torch.tensor(2.0)}
        ),
        "has weights of 8 bits beside their scales; give the file in 16 or 32 bits",
    ),
    "int8": (
        "sd1",
        lambda tensors: tensors | {f"{PROJECTION}weight": tensors[f"{PROJECTION}weight"].to(torch.int8)},
        "holds torch.int8",
    ),
    "EDM": ("sdxl", lambda tensors: tensors | {"edm_mean": torch.zeros(1)}, "EDM's noise"),
}


@pytest.mark.parametrize("case", list(NEAR_MISSES))
def test_near_misses_are_one_line_that_says_what_to_give(case: str, tmp_path: Path, words: Path) -> None:
    family, change, line = NEAR_MISSES[case]
    path = tmp_path / "m.safetensors"
    save_file({name: value.contiguous() for name, value in change(single_tensors(family)).items()}, path)
    with pytest.raises(ArtifactError, match=line) as caught:
        open_stable_diffusion(path, tokenizer=words)
    assert str(caught.value).startswith(str(path))
    if case in ("no autoencoder", "no text", "a bare U-Net", "scaled float8"):
        assert in_chinese(str(caught.value)) is not None
    assert "\n" not in str(caught.value)
