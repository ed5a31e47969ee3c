"""What a checkpoint holds comes back bit for bit, and the library reads what is written here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from vitrail.errors import CheckpointError, NonFiniteError
from vitrail.training import checkpoint
from vitrail.training.loop import TrainState
from vitrail.training.optim import Ema


class Mixed(nn.Module):
    """Parameters and buffers of every kind: shapes (), (0,) and large, all number formats."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.large = nn.Parameter(torch.randn(700, 600, generator=generator))
        self.sixteen = nn.Parameter(torch.randn(5, 3, generator=generator).half())
        self.brain = nn.Parameter(torch.randn(5, 3, generator=generator).bfloat16())
        self.turned = nn.Parameter(torch.randn(4, 6, generator=generator).t())
        self.channels = nn.Parameter(
            torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
        )
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("count", torch.tensor(2**60))
        self.register_buffer("small", torch.arange(256, dtype=torch.uint8))
        self.register_buffer("doubled", torch.tensor([0.1], dtype=torch.float64))


def make(optimizer: str = "AdamW") -> TrainState:
    model = Mixed()
    kinds: dict[str, Any] = {
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
        "plain SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    }
    floats = [p for p in model.parameters() if p.dtype == torch.float32]
    state = TrainState(
        {"model": model, "other": nn.Linear(2, 2)},
        {"a": kinds[optimizer](floats[:2]), "b": torch.optim.AdamW(floats[2:])},
        {"model": Ema(model, 50.0)},
        seed=2**62,
    )
    return state


def train_a_little(state: TrainState) -> None:
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter) * 0.01
        optimizer.step()
        optimizer.zero_grad()
    state.images_seen += 7
    state.step += 1
    state.seconds += 0.1 + 0.2
    state.ema["model"].update(state.modules["model"], 7, state.images_seen)
    torch.rand(3), np.random.rand(3), random.random(), random.gauss(0, 1), np.random.randn()


def flat(state: TrainState) -> dict[str, Any]:
    """Everything in a state, by name."""
    result: dict[str, Any] = {"counters": (state.seed, state.images_seen, state.step, state.seconds)}
    for name, module in state.modules.items():
        result.update({f"{name}/{key}": value for key, value in module.state_dict().items()})
    for name, ema in state.ema.items():
        result.update({f"ema/{name}/{key}": value for key, value in ema.shadow.items()})
    for name, optimizer in state.optimizers.items():
        held = optimizer.state_dict()
        result[f"groups/{name}"] = held["param_groups"]
        for index, slots in held["state"].items():
            result.update({f"slots/{name}/{index}/{key}": value for key, value in slots.items()})
    return result


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype, name
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "RMSprop", "plain SGD"])
def test_everything_comes_back(tmp_path: Path, optimizer: str) -> None:
    before = TrainState.random_state()
    try:
        state = make(optimizer)
        for _ in range(3):
            train_a_little(state)
        folder = checkpoint.save(tmp_path, state, extra={"note": "n"})
        drawn = torch.rand(2).tolist(), np.random.rand(2).tolist(), [random.random(), random.gauss(0, 1)]
        fresh = make(optimizer)
        torch.manual_seed(99), np.random.seed(99), random.seed(99)
        loaded = checkpoint.load_latest(tmp_path)
        assert loaded is not None
        assert loaded.folder == folder
        assert loaded.state["extra"] == {"note": "n"}
        checkpoint.restore(loaded, fresh)
        assert (
            torch.rand(2).tolist(),
            np.random.rand(2).tolist(),
            [random.random(), random.gauss(0, 1)],
        ) == drawn
        assert_equal(flat(state), flat(fresh))
        for each in (state, fresh):  # and they go on alike
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            train_a_little(each)
        assert_equal(flat(state), flat(fresh))
    finally:
        TrainState.set_random_state(before)


def test_the_library_reads_the_files(tmp_path: Path) -> None:
    state = make()
    folder = checkpoint.save(tmp_path, state)
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        names = set(file.keys())
        for name, value in state.modules["model"].state_dict().items():
            assert torch.equal(file.get_tensor(f"model/{name}"), value), name
    assert names == {f"{m}/{k}" for m, module in state.modules.items() for k in module.state_dict()}
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".safetensors", ".json"}  # nothing that could run
    assert json.loads((folder / "state.json").read_text())["images_seen"] == 0


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make())
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    for change in ("modules", "ema", "optimizers"):
        other = make()
        model = nn.Linear(3, 3)
        if change == "modules":
            other.modules["model"] = model
        elif change == "ema":
            other.ema["model"] = Ema(model, 1.0)
        else:
            other.optimizers["c"] = torch.optim.SGD(model.parameters())
        with pytest.raises(CheckpointError, match="does not fit this recipe's model") as caught:
            checkpoint.restore(loaded, other)
        assert "\n" not in str(caught.value)


def test_a_state_that_is_not_finite_is_never_published(tmp_path: Path) -> None:
    state = make()
    with torch.no_grad():
        dict(state.modules["model"].named_parameters())["large"][3, 4] = float("inf")
    with pytest.raises(NonFiniteError, match=r"model\.large is not finite"):
        checkpoint.save(tmp_path, state)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    ours = [".images-000000000004.vitrail-123-abcdef012345.part", ".images-000000000004.deleted"]
    foreign = [".hidden", "images-4", "notes", ".images-4.part", "damaged-images-000000000004-0"]
    for name in ours + foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    assert sorted(path.name for path in checkpoint.sweep(tmp_path)) == sorted(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(foreign)
    assert checkpoint.sweep(tmp_path / "missing") == []
