"""A tiny real model for tests: every part of a shipped one, small enough to run in milliseconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Protocol

import pytest
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vitrail.data.text_sources import quantize_rows
from vitrail.models.registry import build
from vitrail.models.text import HEADER_KEY, TOKENIZER_FILE, WEIGHTS_FILE, TextConfig, TextEncoder
from vitrail.recipe import ShellDiTConfig, UpsamplerConfig
from vitrail.schema import SamplingDefaults
from vitrail.store import artifacts

SIZE = 16
STYLES = ("noto", "twemoji", "fluent-3d")


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece of single letters and a few words, with BERT's frame around a text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "red", "sitting", "in", "garden", "night"]
    letters = [chr(code) for code in range(ord("b"), ord("z") + 1)]
    pieces = [*words, *letters, *(f"##{letter}" for letter in ["a", *letters])]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def make_tiny_model(folder: Path, *, upsampler: bool = True, seed: int = 0) -> Path:
    """Write a text-to-image model of 16 px with random weights (and an upsampler to 32 and 64 px)."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = TextConfig(
        vocabulary=tokenizer.get_vocab_size(), width=16, layers=1, heads=2, hidden=32, positions=32
    )
    encoder = TextEncoder(text, tokenizer)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in encoder.state_dict().items():
        if name.endswith("scale"):
            continue
        random = torch.randn(value.shape) * 0.3
        if name.startswith(("words.", "positions.")) or value.ndim == 2:
            tensors[name], tensors[name.removesuffix("weight") + "scale"] = quantize_rows(random)
        else:
            tensors[name] = torch.ones(value.shape) if "norm" in name and "weight" in name else random
    header = {HEADER_KEY: json.dumps({"config": dataclasses.asdict(text)})}
    config = ShellDiTConfig(
        image_size=SIZE,
        patch=2,
        shell_width=8,
        shell_blocks=1,
        width=24,
        depth=2,
        heads=2,
        text_width=16,
        vocabulary=text.vocabulary,
        word_width=4,
        styles=len(STYLES),
    )
    network = build("shell_dit", config)
    for (
        parameter
    ) in network.parameters():  # the layers that begin at zero must speak, or all pictures are grey
        torch.nn.init.normal_(parameter, std=0.2)
    artifacts.save(
        folder,
        kind="shell_dit",
        name="tiny",
        config=config.model_dump(mode="json", exclude={"kind"}),
        tensors=network.state_dict(),
        licence="Apache-2.0",
        sampling=SamplingDefaults(steps=4, cfg_scale=2.0, width=SIZE, height=SIZE),
        extra_files={
            WEIGHTS_FILE: save(tensors, metadata=header),
            TOKENIZER_FILE: tokenizer.to_str(),
            "styles.json": json.dumps(STYLES),
        },
    )
    if upsampler:
        shape = UpsamplerConfig(scale=2, width=8, blocks=1)
        artifacts.save(
            folder / "upsampler",
            kind="upsampler",
            name="tiny-upsampler",
            config=shape.model_dump(mode="json", exclude={"kind"}),
            tensors=build("upsampler", shape).state_dict(),
            licence="Apache-2.0",
        )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny text-to-image model; read only."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


class MakeModel(Protocol):
    """``make_model(folder, seed=0)`` writes a tiny text-to-image model and returns its folder."""

    def __call__(self, folder: Path, *, upsampler: bool = True, seed: int = 0) -> Path: ...


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """The function that writes tiny models, for tests that need one of their own."""
    return make_tiny_model
