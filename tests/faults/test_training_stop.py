"""T7-T9: a NaN, corrupt pictures, SIGTERM, and a second run on the same folder."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_server import BATCH, STEPS, KillServer, digest_of
from PIL import Image

from vitrail.errors import CheckpointError, NonFiniteError
from vitrail.recipe import parse_recipe
from vitrail.training import checkpoint
from vitrail.training.loop import LossOutput, Phase, TrainState, fit
from vitrail.training.runs import train


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", [0, 1, 7, STEPS - 1])
def test_nan_stops_within_its_step(server: KillServer, fast_folder: Path, step: int) -> None:
    run = fast_folder / "run"
    answer = server.ask(folder=run, nan_at=step * BATCH)
    assert answer["code"] == 3
    message = (run / "error.txt").read_text()
    assert message.startswith("NonFiniteError: the loss of model is nan")
    assert f"after {step * BATCH} pictures" in message
    assert "optim.lr" in message
    assert "\n" not in message
    # Not one step more, and the checkpoint of the step before is whole and the newest.
    steps = run / "steps.txt"
    assert (steps.read_text().split() if step else []) == [str(BATCH * (n + 1)) for n in range(step)]
    loaded = checkpoint.load_latest(run / "checkpoints")
    if step == 0:
        assert loaded is None
    else:
        assert loaded is not None
        assert loaded.rejected == []
        assert loaded.state["images_seen"] == step * BATCH
        assert all(bool(torch.isfinite(value).all()) for value in loaded.tensors["weights"].values())
    before = contents(run / "checkpoints")
    assert server.ask(folder=run, nan_at=step * BATCH)["code"] == 3  # again: the same, and nothing is touched
    assert contents(run / "checkpoints") == before
    # Without the NaN the run ends where an uninterrupted one does.
    assert server.ask(folder=run)["code"] == 0
    assert server.ask(folder=fast_folder / "straight")["code"] == 0
    assert digest_of(run) == digest_of(fast_folder / "straight")


def test_the_nan_is_in_the_weights_without_the_check(server: KillServer, fast_folder: Path) -> None:
    run = fast_folder / "run"
    assert server.ask(folder=run, nan_at=BATCH, without="finite")["code"] != 3
    loaded = checkpoint.load_latest(run / "checkpoints")
    assert loaded is not None
    assert not all(bool(torch.isfinite(value).all()) for value in loaded.tensors["weights"].values())


def test_infinite_gradient_of_a_finite_loss_stops() -> None:
    """The root has slope infinity at 0: the loss is 0, its gradient is not finite."""
    weight = torch.nn.Parameter(torch.zeros(1))
    module = torch.nn.ParameterList([weight])

    class Batch:
        pixels = torch.zeros(2, 1)

    state = TrainState({"m": module}, {"m": torch.optim.SGD([weight], lr=1.0)}, {})
    phase = Phase[Any]("m", [weight], lambda batch, generator: LossOutput(weight.sqrt().sum(), {}))
    with pytest.raises(NonFiniteError, match=r"the gradient of m is (inf|nan) after 0 pictures"):
        fit([phase], lambda seen: iter([Batch()] * 3), state, until_images=6)
    assert weight.item() == 0.0
    assert state.step == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_ends_within_10_seconds(server: KillServer, fast_folder: Path, number: int) -> None:
    assert server.ask(folder=fast_folder / "straight")["code"] == 0
    chance = random.Random(int(number))
    stopped = 0
    for attempt in range(6):
        run = fast_folder / f"run-{attempt}"
        answer = server.ask(folder=run, signal=int(number), signal_when="steps.txt", rare_checkpoints=True)
        if answer["code"] == 0:
            continue  # the run was over before the signal came
        stopped += 1
        assert answer["code"] == 128 + number
        assert answer["seconds"] < 10
        loaded = checkpoint.load_latest(run / "checkpoints")
        assert loaded is not None  # no periodic checkpoint was due: the signal made this one
        assert str(loaded.state["images_seen"]) == (run / "steps.txt").read_text().split()[-1]
        assert not (run / "model").exists()
        assert server.ask(folder=run, rare_checkpoints=chance.random() < 0.5)["code"] == 0
        assert digest_of(run) == digest_of(fast_folder / "straight")
    assert stopped >= 2


def test_sigterm_while_a_hook_takes_a_minute(server: KillServer, fast_folder: Path) -> None:
    """A grid of samples, say, with random numbers of its own: the state of the step before is saved."""
    run = fast_folder / "run"
    answer = server.ask(
        folder=run,
        signal=int(signal.SIGTERM),
        signal_when="slow",
        slow_hook_at=5 * BATCH,
        rare_checkpoints=True,
    )
    assert answer["code"] == 128 + signal.SIGTERM
    assert answer["seconds"] < 10
    loaded = checkpoint.load_latest(run / "checkpoints")
    assert loaded is not None
    assert loaded.state["images_seen"] == 5 * BATCH
    assert server.ask(folder=run)["code"] == 0
    assert server.ask(folder=fast_folder / "straight")["code"] == 0
    for part in ("weights", "average", "optimizer"):  # the hook's own draws are lost with the hook
        ends = [max((place / "checkpoints").glob("images-*")) for place in (run, fast_folder / "straight")]
        assert len({(end / f"{part}.safetensors").read_bytes() for end in ends}) == 1, part


@pytest.mark.parametrize("prefetch", [0, 2])
def test_sigterm_while_a_batch_takes_a_minute(server: KillServer, fast_folder: Path, prefetch: int) -> None:
    """The step itself is slow, or only the thread that prepares a batch."""
    run = fast_folder / "run"
    answer = server.ask(
        folder=run, signal=int(signal.SIGTERM), signal_when="slow", slow_at=5 * BATCH, rare_checkpoints=True,
        prefetch=prefetch,
    )  # fmt: skip
    assert answer["code"] == 128 + signal.SIGTERM
    assert answer["seconds"] < 10
    loaded = checkpoint.load_latest(run / "checkpoints")
    assert loaded is not None
    if prefetch == 0:
        assert loaded.state["images_seen"] == 5 * BATCH  # the state as the slow step found it
    assert server.ask(folder=run)["code"] == 0
    assert server.ask(folder=fast_folder / "straight")["code"] == 0
    assert digest_of(run) == digest_of(fast_folder / "straight")


def test_sigterm_loses_the_steps_without_the_handler(server: KillServer, fast_folder: Path) -> None:
    run = fast_folder / "run"
    answer = server.ask(
        folder=run, signal=int(signal.SIGTERM), signal_when="slow", slow_at=5 * BATCH, rare_checkpoints=True,
        without="signals",
    )  # fmt: skip
    assert answer["code"] == -signal.SIGTERM
    assert checkpoint.load_latest(run / "checkpoints") is None


def tiny_recipe(**data: Any) -> Any:
    return parse_recipe(
        {
            "kind": "upsampler",
            "data": {"size": 16, "batch_size": 4, **data},
            "model": {"width": 8, "blocks": 1},
            "optim": {"until_images": 64, "warmup_images": 8, "precision": "float32"},
            "run": {"tensorboard": "off"},
        }
    )


def test_second_run_on_the_folder_is_refused(server: KillServer, fast_folder: Path) -> None:
    """While a run waits in a slow step others are turned away; its lock ends with it."""
    run = fast_folder / "run"
    answers: list[dict[str, Any]] = []

    def first() -> None:
        answers.append(
            server.ask(folder=run, slow_at=2 * BATCH, signal=int(signal.SIGKILL), signal_when="finish.txt")
        )

    thread = threading.Thread(target=first)
    thread.start()
    while not (run / "slow").exists():
        assert thread.is_alive()
    before = contents(run / "checkpoints")
    holder = (run / "run.lock").read_text().strip()
    assert os.path.exists(f"/proc/{holder}")
    for _ in range(3):
        with pytest.raises(CheckpointError, match=rf"in use by another run \(process {holder}\)"):
            train(tiny_recipe(), run, quiet=True, device="cpu")
    assert contents(run / "checkpoints") == before
    (run / "finish.txt").touch()
    thread.join()
    assert answers[0]["code"] == -signal.SIGKILL
    assert server.ask(folder=run)["code"] == 0  # the lock died with its process


def test_the_second_run_gets_in_without_the_lock(fast_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with checkpoint.RunLock(fast_folder):
        with pytest.raises(CheckpointError), checkpoint.RunLock(fast_folder):
            pass
        monkeypatch.setattr(checkpoint.fcntl, "flock", lambda *_: None)
        with checkpoint.RunLock(fast_folder):
            pass


def make_pictures(folder: Path, count: int) -> None:
    chance = random.Random(7)
    folder.mkdir()
    for number in range(count):
        colour = tuple(chance.randrange(256) for _ in range(3))
        picture = Image.new("RGB", (20, 20), colour)
        picture.putpixel((number % 20, 3), (255, 255, 255))
        picture.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"picture {number}")


def test_corrupt_pictures_are_listed_and_change_nothing(
    fast_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(fast_folder / "clean", 40)
    make_pictures(fast_folder / "dirty", 40)
    chance = random.Random(8)
    broken = []
    for number in range(40, 46):
        path = fast_folder / "dirty" / f"{number - 20:03}x.png"
        path.write_bytes((fast_folder / "clean" / "001.png").read_bytes()[: chance.randrange(1, 60)])
        broken.append(path.name)
    digests = []
    for name in ("clean", "dirty"):
        recipe = tiny_recipe(source=str(fast_folder / name), flip=0.5, crop=0.1)
        outcome = train(recipe, fast_folder / f"run-{name}", device="cpu")
        assert outcome.status == "finished"
        digests.append(digest_of(fast_folder / f"run-{name}"))
        told = [
            line for line in capsys.readouterr().err.replace("\n", " ").split("left out: ") if ".png" in line
        ]
        assert sorted(line.split(":")[0] for line in told) == (sorted(broken) if name == "dirty" else [])
    assert digests[0] == digests[1]
    # The control: one good picture less is another run.
    (fast_folder / "clean" / "001.png").unlink()
    train(
        tiny_recipe(source=str(fast_folder / "clean"), flip=0.5, crop=0.1),
        fast_folder / "run-less",
        quiet=True,
        device="cpu",
    )
    assert digest_of(fast_folder / "run-less") != digests[0]
    assert json.loads((fast_folder / "run-less" / "model" / "artifact.json").read_text())[
        "data_manifest_sha256"
    ]
