"""The text encoder against transformers' BertModel on the same weights, and what its int8 storage costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import vitrail
from vitrail.data.text_sources import key_map, quantize_rows
from vitrail.errors import ArtifactError, InputError
from vitrail.models.text import TextConfig, TextEncoder

SHIPPED = Path(vitrail.__file__).parent / "shipped" / "default"
PROMPTS = [
    "a cat sitting in a garden",
    "",
    "night",
    "two red dogs to the left of a small green tree on a blue background, pixel art, flat style, and more",
    "zxqv \U0001f431 猫 caf\u00e9",
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load(SHIPPED)


@pytest.fixture(scope="module")
def reference(encoder: TextEncoder) -> BertModel:
    """transformers' BertModel with our dequantised weights, filled through the key map."""
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        layer_norm_eps=1e-12,
    )
    model = BertModel(config, add_pooling_layer=False)
    ours = encoder.state_dict()
    state = model.state_dict()
    for name, theirs in key_map(6).items():
        tensor = ours[name].float()
        if name in ("words.weight", "positions.weight"):
            tensor = tensor * ours[name.replace("weight", "scale")].float()[:, None]
        state[theirs] = tensor
    state["embeddings.token_type_embeddings.weight"][0] = ours["segment"]
    model.load_state_dict(state)
    model.train(False)
    return model


def test_states_equal_transformers_bert_on_the_same_weights(
    encoder: TextEncoder, reference: BertModel
) -> None:
    got = encoder(PROMPTS, max_tokens=20)
    with torch.no_grad():
        want = reference(got.ids, attention_mask=got.mask.long()).last_hidden_state * got.mask[..., None]
    # Six layers of float32 sums in another order: a few units of 1e-7 each.
    assert (got.states - want).norm() <= 1e-5 * want.norm()
    assert got.states.dtype == torch.float32
    assert got.mask.dtype == torch.bool
    assert got.ids.dtype == torch.int64


def test_a_prompt_does_not_depend_on_its_neighbours(encoder: TextEncoder) -> None:
    together = encoder(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        length = alone.ids.shape[1]
        assert torch.equal(alone.ids[0], together.ids[i, :length])
        # Another batch shape may pick another matrix kernel; the difference is float32 rounding.
        torch.testing.assert_close(alone.states[0], together.states[i, :length], rtol=0, atol=2e-5)
        assert not together.states[i, length:].any()


def test_cls_and_sep_are_real_tokens_and_length_is_that_of_the_longest(encoder: TextEncoder) -> None:
    got = encoder(["", "cat", "a red cat"], max_tokens=20)
    assert got.ids.shape == (3, 5)
    assert got.mask.sum(1).tolist() == [2, 3, 5]
    assert got.ids[:, 0].tolist() == [101] * 3
    assert got.ids[0, 1] == got.ids[1, 2] == got.ids[2, 4] == 102
    assert got.truncated == (False, False, False)


def test_a_long_prompt_keeps_its_start_and_its_sep_and_says_so(encoder: TextEncoder) -> None:
    got = encoder(["red cat " * 30, "cat"], max_tokens=8)
    assert got.truncated == (True, False)
    assert got.ids.shape == (2, 8)
    assert got.ids[0, 7] == 102
    assert got.ids[0, 1:7].tolist() == encoder(["red cat red cat red cat"]).ids[0, 1:7].tolist()
    exact = encoder(["red cat red"], max_tokens=5)
    assert exact.truncated == (False,)


TOKENIZES = """
import os, sys
from vitrail.models.text import TextEncoder

encoder = TextEncoder.load(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
encoder.tokenize(["a red apple", "a green tree", "night", "a cat"])
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads")
def test_cutting_words_up_starts_no_threads() -> None:
    """Threads of the library's own wake for each prompt, and look to vitrail.cores like another program."""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", TOKENIZES, str(SHIPPED)]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == b"0\n"


def test_lone_surrogates_and_control_characters_are_read(encoder: TextEncoder) -> None:
    got = encoder(["\ud800 cat \x00"])
    assert torch.isfinite(got.states).all()


@pytest.mark.parametrize("tokens", [2, 513])
def test_bad_lengths_are_refused(encoder: TextEncoder, tokens: int) -> None:
    with pytest.raises(InputError, match=f"max_tokens is {tokens}"):
        encoder(["cat"], max_tokens=tokens)
    with pytest.raises(InputError, match="no prompts"):
        encoder([])


def test_it_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_sentence_vectors_know_meaning(encoder: TextEncoder) -> None:
    cat, kitten, truck = encoder(["a cat", "a kitten", "a fire truck"]).pooled()
    assert cat @ kitten > 0.7 > 0.5 > cat @ truck


def test_int8_rows_are_close_and_better_than_plain_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 384, generator=generator) * torch.logspace(-4, 1, 64)[:, None]
    matrix[5] = 0
    weight, scale = quantize_rows(matrix)
    error = (weight.float() * scale.float()[:, None] - matrix).square().sum(1)
    step = matrix.abs().amax(1) / 127
    plain = torch.where(step[:, None] > 0, (matrix / step[:, None]).round() * step[:, None], 0.0)
    assert not weight[5].any()
    # No clipping is one of the choices, so the result is no worse than it; the scale's rounding to float16
    # moves single rows by a few percent either way. Uniform rounding costs step^2 / 12 an entry.
    plain_error = (plain - matrix).square().sum(1)
    assert error.sum() < plain_error.sum()
    assert (error <= plain_error * 1.1 + 1e-12).all()
    assert (error <= 1.2 * 384 * step.square() / 12 + 1e-12).all()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("text.safetensors", "tokenizer.json"):
        shutil.copy(SHIPPED / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["text.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_damaged_files_are_one_clear_error(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "truncated" else b"")
    with pytest.raises(ArtifactError, match=name) as caught:
        TextEncoder.load(copy)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_network_is_refused(copy: Path) -> None:
    with safe_open(SHIPPED / "text.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    del tensors["layers.3.up.bias"]
    save_file(tensors, copy / "text.safetensors", metadata=header)
    with pytest.raises(ArtifactError, match=r"layers\.3\.up\.bias"):
        TextEncoder.load(copy)
    save_file(
        tensors, copy / "text.safetensors", metadata={"text_encoder": json.dumps({"config": {"heads": 7}})}
    )
    with pytest.raises(ArtifactError, match="heads"):
        TextEncoder.load(copy)
    with pytest.raises(ArtifactError):
        TextConfig(width=0)
