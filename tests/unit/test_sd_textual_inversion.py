"""Textual inversions in each form that programs write, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.backends.sd.textual_inversion import named_in, read_embedding
from vitrail.backends.unpacking import STATE_NAMES
from vitrail.errors import ArtifactError

a1111 = pytest.mark.skipif(
    "string_to_param" not in STATE_NAMES, reason="the reader of .pt files knows no such key"
)


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@a1111
def test_a1111_pt(tmp_path: Path) -> None:
    saved = vectors(3, 768)
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": saved.requires_grad_()},
            "name": "other",
            "step": 1000,
            "sd_checkpoint": "6ce0161689",
            "sd_checkpoint_name": None,
        },
        tmp_path / "my style.pt",
    )
    read = read_embedding(tmp_path / "my style.pt", [768])
    assert read.name == "my style"
    assert read.count == 3
    assert torch.equal(read.vectors[0], saved.detach())


@pytest.mark.parametrize("key", ["emb_params", "<cat-toy>", "string_to_param.*"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_one_tensor(tmp_path: Path, key: str, ending: str) -> None:
    saved = vectors(2, 768)
    path = tmp_path / f"thing.{ending}"
    if ending == "bin":
        torch.save({key: saved}, path)
    else:
        save_file({key: saved}, path)
    read = read_embedding(path, [768])
    assert read.name == "thing"
    assert torch.equal(read.vectors[0], saved)
    assert read_embedding(path, [768], name="word").name == "word"


def test_the_token_of_diffusers_default_file(tmp_path: Path) -> None:
    save_file({"<cat-toy>": vectors(768).half()}, tmp_path / "learned_embeds.safetensors")
    read = read_embedding(tmp_path / "learned_embeds.safetensors", [768])
    assert (read.name, read.count) == ("<cat-toy>", 1)
    assert read.vectors[0].dtype == torch.float32


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_sdxl(tmp_path: Path, names: tuple[str, str]) -> None:
    first, second = vectors(4, 768), vectors(4, 1280)
    save_file({names[1]: second, names[0]: first}, tmp_path / "xl.safetensors")
    read = read_embedding(tmp_path / "xl.safetensors", [768, 1280])
    assert torch.equal(read.vectors[0], first)
    assert torch.equal(read.vectors[1], second)
    refiner = read_embedding(tmp_path / "xl.safetensors", [1280])
    assert torch.equal(refiner.vectors[0], second)
    with pytest.raises(ArtifactError, match=r"is for SDXL; this model is Stable Diffusion 1"):
        read_embedding(tmp_path / "xl.safetensors", [768])


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"emb_params": vectors(2, 1024)}, "Stable Diffusion 2"),
        ({"emb_params": vectors(2, 100)}, "100 channels"),
        ({"a": vectors(1, 768), "b": vectors(1, 768)}, "2 tensors"),
        ({"emb_params": vectors(1, 2, 768)}, "list of vectors"),
        ({"emb_params": torch.ones(2, 768, dtype=torch.int64)}, "list of vectors"),
        ({"emb_params": vectors(76, 768)}, "76 vectors"),
        ({"emb_params": vectors(0, 768)}, "0 vectors"),
        ({"emb_params": torch.full((1, 768), float("nan"))}, "NaN"),
        ({"clip_l": vectors(2, 768), "clip_g": vectors(3, 1280)}, "must be equal"),
    ],
)
def test_refused(tmp_path: Path, tensors: dict[str, Tensor], word: str) -> None:
    save_file(tensors, tmp_path / "e.safetensors")
    with pytest.raises(ArtifactError, match=word) as caught:
        read_embedding(tmp_path / "e.safetensors", [768])
    assert "\n" not in str(caught.value)


def test_names_in_a_text() -> None:
    names = ["bad-hands-5", "cat", "<toy>", "Ink", "x", ""]
    assert named_in("a CAT with ink, (bad-hands-5:1.2)", names) == ["bad-hands-5", "cat", "Ink"]
    assert named_in("concatenate <toy>s inky", names) == []
    assert named_in("a <toy>.", names) == ["<toy>"]
