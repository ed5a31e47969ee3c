"""A tiny real model for tests: every part of a shipped one, small enough to run in milliseconds."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch
from postgres import postgres_server, postgres_url  # noqa: F401  (fixtures for every test)
from safetensors.torch import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from turns import (  # noqa: F401  (hooks)
    pytest_configure,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_unconfigure,
)

from vitrail.data.text_sources import quantize_rows
from vitrail.models.registry import build
from vitrail.models.text import HEADER_KEY, TOKENIZER_FILE, WEIGHTS_FILE, TextConfig, TextEncoder
from vitrail.recipe import ShellDiTConfig, UpsamplerConfig
from vitrail.recipe.autoencoders import VQAutoencoderConfig
from vitrail.recipe.priors import TokenTransformerConfig
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


@pytest.fixture(autouse=True)
def _the_same_numbers_each_run() -> None:
    """A test that draws at random draws the same each time, whatever ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_trace_in_the_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches that the tests fill lie in a folder of the test run, unless the caller named another."""
    with pytest.MonkeyPatch.context() as patch:
        if "VITRAIL_DATA" not in os.environ:
            patch.setenv("VITRAIL_DATA", str(tmp_path_factory.mktemp("vitrail-data")))
        yield


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


def make_tiny_tokenizer(folder: Path, *, seed: int = 0, stages: int = 1) -> Path:
    """Write a tokenizer with random weights: 64 codes, 8 pixels a side each, used unevenly in training."""
    torch.manual_seed(seed)
    stage = {"kind": "nearest", "codes": 64}
    quantizer = stage if stages == 1 else {"kind": "residual", "stages": stages, "stage": stage}
    config = VQAutoencoderConfig.model_validate(
        {
            "network": {"architecture": "lean", "downsample": 8, "widths": (16, 16), "z_channels": 8},
            "embed_dim": 8,
            "quantizer": quantizer,
        }
    )
    network = build("vq_autoencoder", config)
    for parameter in network.parameters():  # layers that begin at zero must speak
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    network.quantize.usage.copy_((3 * torch.rand(64 * stages)).softmax(0))  # type: ignore[operator, union-attr]
    artifacts.save(
        folder,
        kind="vq_autoencoder",
        name="tiny-tokenizer",
        config=config.model_dump(mode="json", exclude={"kind"}),
        tensors=network.state_dict(),
        licence="Apache-2.0",
    )
    return folder


def make_tiny_prior(folder: Path, *, mode: str = "masked", text: bool = False, seed: int = 0) -> Path:
    """Write a prior of 6 x 6 codes with random weights, and the tiny tokenizer inside it."""
    torch.manual_seed(seed)
    extra: dict[str, bytes | str | Path] = {}
    if text:
        words = make_tiny_model(folder.with_name(f"{folder.name}-text"), upsampler=False)
        extra = {name: (words / name).read_bytes() for name in (WEIGHTS_FILE, TOKENIZER_FILE)}
    config = TokenTransformerConfig.model_validate(
        {"mode": mode, "codes": 64, "rows": 6, "columns": 6, "width": 32, "depth": 2, "heads": 2}
        | ({"text": True, "text_width": 16, "vocabulary": 63, "word_width": 4} if text else {})
    )
    network = build("token_transformer", config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    artifacts.save(
        folder,
        kind="token_transformer",
        name=f"tiny-{mode}",
        config=config.model_dump(mode="json", exclude={"kind"}),
        tensors=network.state_dict(),
        licence="Apache-2.0",
        extra_files=extra,
    )
    make_tiny_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny tokenizer; read only."""
    return make_tiny_tokenizer(tmp_path_factory.mktemp("models") / "tokenizer")


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny masked prior that reads words; read only."""
    return make_tiny_prior(tmp_path_factory.mktemp("models") / "prior", text=True)


@pytest.fixture(scope="session")
def tiny_causal_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny causal prior that reads no words; read only."""
    return make_tiny_prior(tmp_path_factory.mktemp("models") / "causal", mode="causal")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Path]:
    """The function that writes tiny tokenizers, for tests that need one of their own."""
    return make_tiny_tokenizer
