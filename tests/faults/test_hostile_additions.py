"""LoRA, embedding and ControlNet files that lie: a one-line error or a use; never a crash or a wait."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from vitrail.backends.sd.controlnet import open_controlnet
from vitrail.backends.sd.controlnet_shapes import config_of
from vitrail.backends.sd.lora import LoraStack, Wanted
from vitrail.backends.sd.lora_files import LoraFile, layers_of, read_lora
from vitrail.backends.sd.textual_inversion import read_embedding
from vitrail.errors import ArtifactError

OPENERS: list[Any] = [read_lora, open_controlnet, lambda path: read_embedding(path, [768])]


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """The block goes well or ends in an error of one line."""
    try:
        yield
    except ArtifactError as error:
        if "\n" in str(error) or len(str(error)) > 500:
            raise AssertionError(f"not one line: {error}") from error


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(4, 6, bias=False)
        self.to_k = nn.Linear(8, 6)
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.GroupNorm(1, 6)


class _Network(nn.Module):
    """As much of a U-Net as names need."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList()
        self.attn2 = _Attention()


_LAYERS = [
    "unet.attn2.to_q",
    "unet.attn2.to_k",
    "lora_unet_attn2_conv",
    "unet.attn2.norm",
    "unet.no",
    "lora_te_x",
    "",
]
_ENDINGS = [
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "lora_A.weight",
    "lora_B.weight",
    "alpha",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "dora_scale",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w2",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "oft_blocks",
    "processor.to_q_lora.down.weight",
    "weight",
]
_names = st.builds("{}.{}".format, st.sampled_from(_LAYERS), st.sampled_from(_ENDINGS))
_shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8]), max_size=5)
_dtypes = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool])


@st.composite
def _tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    if draw(st.booleans()):  # a sound pair, and something that does not belong to it
        rank, (out, into) = draw(st.integers(1, 3)), draw(st.sampled_from([(6, 4), (6, 8), (4, 6)]))
        layer = draw(st.sampled_from(_LAYERS))
        found = {
            f"{layer}.lora_down.weight": torch.ones(rank, into),
            f"{layer}.lora_up.weight": torch.ones(out, rank),
        }
    else:
        found = {}
    for name in draw(st.lists(_names, max_size=6)):
        found[name] = torch.ones(draw(_shapes)).to(draw(_dtypes))
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    _tensors(),
    st.dictionaries(st.sampled_from(["lora_alpha", "unet.lora_alpha", "alpha_pattern"]), st.integers()),
)
def test_any_tensors_under_a_loras_names(tensors: dict[str, Tensor], given: dict[str, Any]) -> None:
    network = _Network()
    network.mid_block = nn.Identity()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stack = LoraStack({"unet": network})
    with one_line():
        layers, unread = layers_of(tensors, given)
        stack.apply([Wanted(LoraFile("x", Path("x"), layers, unread), 1.0, 0.5)])
    stack.clear()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


_PARTS = [
    "input_hint_block.0.weight",
    "input_hint_block.2.weight",
    "input_blocks.0.0.weight",
    "conv_in.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.2.0.op.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "down_blocks.0.x.attn2.to_k.weight",
    "controlnet_cond_embedding.conv_in.weight",
    "controlnet_cond_embedding.blocks.0.weight",
    "a.proj_in.weight",
    "label_emb.0.0.weight",
    "add_embedding.linear_1.weight",
    "middle_block.1.x",
    "zero_convs.0.0.weight",
]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_PARTS), st.lists(st.sampled_from([0, 1, 8, 320, 10**9]), max_size=4)))
def test_any_shapes_under_a_controlnets_names(shapes: dict[str, list[int]]) -> None:
    with one_line():
        config_of({name: tuple(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("opener", OPENERS)
def test_flipped_and_cut_files(tmp_path: Path, opener: Any) -> None:
    """A hundred damaged copies of a file that holds a bit of everything; each ends at once, with one line."""
    good = save(
        {
            "unet.a.lora_A.weight": torch.ones(2, 4),
            "unet.a.lora_B.weight": torch.ones(4, 2),
            "control_model.input_hint_block.0.weight": torch.ones(4, 3, 3, 3),
        }
    )
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "x.safetensors"
    for turn in range(100):
        data = bytearray(good)
        place = int(torch.randint(0, len(data), (1,), generator=generator))
        if turn % 2:
            data[min(place, 200)] ^= 1 << (turn % 8)
        else:
            del data[place:]
        path.write_bytes(bytes(data))
        start = time.process_time()
        with one_line():
            opener(path)
        assert time.process_time() - start < 1


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("ending", ["pt", "bin", "ckpt", "pth", "safetensors"])
def test_nothing_is_run(tmp_path: Path, opener: Any, ending: str) -> None:
    canary = tmp_path / "canary"
    pickled = {"string_to_param": {"*": _Canary(canary)}, "a.lora_A.weight": _Canary(canary)}
    path = tmp_path / f"x.{ending}"
    if ending in ("pt", "ckpt"):
        torch.save(pickled, path)
    else:
        path.write_bytes(pickle.dumps(pickled))
    with pytest.raises(ArtifactError) as caught:
        opener(path)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_a_controlnet_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    """Settings that describe a network of terabytes are compared with the weights before anything is made."""
    folder = tmp_path / "c"
    folder.mkdir()
    save_file(
        {"controlnet_cond_embedding.conv_in.weight": torch.ones(4, 3, 3, 3)},
        folder / "diffusion_pytorch_model.safetensors",
    )
    (folder / "config.json").write_text(
        '{"block_out_channels": [65536, 65536, 65536, 65536], "layers_per_block": 8}'
    )
    start = time.process_time()
    with pytest.raises(ArtifactError, match="do not fit"):
        open_controlnet(folder)
    assert time.process_time() - start < 20
