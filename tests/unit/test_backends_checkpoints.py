"""Checkpoints of all shapes, read inertly: the numbers are those that torch itself reads."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.backends.checkpoints import read_checkpoint
from vitrail.errors import ArtifactError, StorageError


def every_kind() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10, 12, generator=generator)
    return {
        "float32": base,
        "view": base[2:5, 1:],  # the same storage, another offset and stride
        "column": base[:, 3],
        "transposed": base.t(),
        "every third": base[::3, ::2],
        "channels last": torch.randn(4, 5, 3, 2, generator=generator).contiguous(
            memory_format=torch.channels_last
        ),
        "permuted": torch.randn(2, 3, 4, 5, generator=generator).permute(3, 1, 0, 2),
        "expanded": torch.randn(1, 3, generator=generator).expand(4, 3),
        "one, expanded": torch.randn(1, generator=generator).expand(3, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "float64": torch.randn(3, generator=generator).double(),
        "float16": torch.randn(3, 2, generator=generator).half().t(),
        "bfloat16": torch.randn(3, 4, generator=generator).bfloat16()[:, 1:],
        "int64": torch.arange(7).flip(0),
        "int32": torch.arange(7, dtype=torch.int32),
        "int16": torch.arange(7, dtype=torch.int16),
        "int8": torch.arange(-3, 3, dtype=torch.int8),
        "uint8": torch.arange(9, dtype=torch.uint8)[::4],
        "uint16": torch.arange(5).to(torch.uint16),
        "bool": torch.tensor([True, False, True]),
        "parameter": nn.Parameter(torch.randn(3, generator=generator)),
    }


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_kind_of_tensor_comes_back(tmp_path: Path, stream: bool, protocol: int) -> None:
    state = every_kind()
    if stream:
        del state["uint16"]  # the old format has no name for it
    content = {
        "state_dict": OrderedDict(state),
        "epoch": 3,
        "numbers": {"a": np.float64(0.25), "b": np.int32(4), "c": np.arange(3)},
        "factory": defaultdict(list, {"x": [1]}),
        "sets": {1, 2, frozenset((3,))},
        "paths": [Path("/a/b"), torch.float16, torch.Size([2]), torch.device("cpu"), slice(1, 2)],
        "big": 2**200,
        "generator": torch.Generator().get_state(),
    }
    path = tmp_path / "all.pt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not stream)
    found = read_checkpoint(path)
    assert (found.container, found.place) == ("stream" if stream else "zip", "state_dict")
    assert set(found.tensors) == set(state)
    for name, value in state.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value.detach()), name
    assert any("PosixPath" in name for name in found.foreign)


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state}, "state_dict"),
        (lambda state: {"model": state, "optimizer": {"lr": 0.1}}, "model"),
        (lambda state: {"epoch": 1, "model_state_dict": state}, "model_state_dict"),
        (lambda state: nn.Linear(2, 2).state_dict() | state, ""),
        (lambda state: {**state, "step": 7, "note": "x"}, ""),
    ],
)
def test_the_weights_are_found_where_people_put_them(tmp_path: Path, wrap: Any, place: str) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(wrap(dict(state)), tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert found.place == place
    assert all(torch.equal(found.tensors[name], value) for name, value in state.items())
    assert found.dropped in ((), ("step", "note"))


def test_whatever_the_name_a_safetensors_file_is_one(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt")
    assert found.container == "safetensors"
    assert torch.equal(found.tensors["a"], torch.arange(3.0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nn.Linear(2, 2), "a whole object (torch.nn.modules.linear.Linear)"),
        ({"state_dict": nn.Linear(2, 2)}, "its state_dict is an object (torch.nn.modules.linear.Linear)"),
        ({"state_dict": {"a": [torch.ones(1)]}}, "its a is a list and not a tensor"),
        ({"state_dict": {"a": torch.ones(2).to_sparse()}}, "_rebuild_sparse_tensor) and not a tensor"),
        ({"state_dict": {"a": torch.ones(2, dtype=torch.complex64)}}, "a tensor"),
        ({"state_dict": {"a": np.arange(3)}}, "numpy"),
        ({"state_dict": {3: torch.ones(2)}}, "no plain text"),
        ([torch.ones(2)], "holds a list and not named weights"),
        (torch.ones(2), "not named weights"),
    ],
    ids=lambda value: str(value)[:30].replace("\n", " "),
)
def test_what_holds_no_named_weights_says_so(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ArtifactError) as caught:
        read_checkpoint(tmp_path / "x.pt")
    assert words in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    from vitrail.backends import checkpoints

    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    answer = {"storage": "No space left on device"}
    monkeypatch.setattr(checkpoints, "_run_child", lambda *_: answer)
    with pytest.raises(StorageError, match="No space left on device"):
        read_checkpoint(tmp_path / "x.pt")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_child_needs_neither_torch_nor_numpy() -> None:
    import subprocess
    import sys

    program = (
        "import sys; import vitrail.backends.unpacking; "
        "print(sorted({'torch', 'numpy', 'pickle', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
