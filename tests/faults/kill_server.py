"""A fork server for the fault tests: torch is imported once, every training session is a fork of it (~0.05
s).

Run as a script it reads one JSON request a line and answers one JSON line. A request names a run folder and
what is to happen to the session: a kill -9, SIGTERM or nothing after some seconds; a kill, or a failed
call, at the n-th file system call; a defence taken out (the negative controls).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 12
BATCH = 4
TRACED = ("open", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink")


class KillServer:
    """The client: ``ask(folder=..., ...)`` runs one session and returns how it ended."""

    def __enter__(self) -> KillServer:
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**request, "folder": str(request["folder"])}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the fork server died"
        return json.loads(answer)


def digest_of(run: Path) -> str:
    """One hash over weights, averages, optimizer, random state and counters of a run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("images-*"))
    digest = hashlib.sha256(newest.name.encode())
    for path in sorted(newest.glob("*.safetensors")):
        digest.update(path.name.encode() + path.read_bytes())
    state = json.loads((newest / "state.json").read_text())
    del state["seconds"]  # the one thing that the clock decides
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


#: What is trained: a plain network, or an autoencoder whose codebook and discriminator change in a step too.
TABLES: dict[str, dict[str, Any]] = {
    "upsampler": {"kind": "upsampler", "model": {"width": 8, "blocks": 1}},
    "autoencoder": {
        "kind": "autoencoder",
        "model": {
            "kind": "vq_autoencoder",
            "embed_dim": 4,
            "network": {
                "architecture": "lean",
                "downsample": 4,
                "patch": 4,
                "widths": [8],
                "decoder_blocks": 1,
                "z_channels": 4,
            },
            "quantizer": {
                "kind": "cosine",
                "codes": 8,
                "code_dim": 4,
                "codebook": "ema",
                "kmeans_init": True,
                "restart_below": 0.5,
            },
        },
        "objective": {"perceptual": "none", "edge": 0.5},
        "adversary": {
            "discriminator": {"kind": "patch", "width": 8, "layers": 1},
            "loss": "relativistic",
            "penalty_every": 2,
            "gap": [0.1, 0.2],
            "start_images": 16,
            "lead_images": 8,
            "ramp_images": 16,
            "guard_every_images": 8,
            "guard_images": 4,
        },
    },
}


def common_tables(request: dict[str, Any]) -> dict[str, Any]:
    """Data, optimizer and run of every recipe of the tests."""
    return {
        "data": {"size": 8, "batch_size": BATCH, "prefetch": request.get("prefetch", 2)},
        "optim": {
            "until_images": BATCH * request.get("steps", STEPS),
            "warmup_images": 8,
            "precision": "float32",
        },
        "run": {
            "checkpoint_every_seconds": 3600.0 if request.get("rare_checkpoints") else 0.0,
            "log_every_seconds": 0.0,
            "tensorboard": "off",
        },
    }


@dataclass(frozen=True)
class Pictures:
    pixels: Any


def session(request: dict[str, Any]) -> int:
    """Train the tiny network of the tests in the request's folder; the exit code of the session."""
    import numpy as np
    import torch

    from vitrail.errors import VitrailError
    from vitrail.recipe import parse_recipe
    from vitrail.training import sources
    from vitrail.training.runs import train

    recipe = parse_recipe({**TABLES[request.get("kind", "upsampler")], **common_tables(request)})

    def batches(seen: int) -> Iterator[Pictures]:
        while True:
            generator = torch.Generator().manual_seed(seen)
            pixels = torch.rand(BATCH, 3, 8, 8, generator=generator) * 2 - 1
            if seen == request.get("nan_at"):
                pixels[0, 0, 0, 0] = float("nan")
            if seen == request.get("slow_at"):
                Path(request["folder"], "slow").touch()
                time.sleep(60)
            yield Pictures(pixels)
            seen += BATCH

    def restless(state: Any, report: Any) -> None:
        """Use every global generator, so that a lost random state shows; and say how far the run is."""
        if state.images_seen == request.get("slow_hook_at"):
            torch.rand(1)
            Path(request["folder"], "slow").touch()
            time.sleep(60)
        torch.rand(1), np.random.rand(), random.random()
        with open(Path(request["folder"], "steps.txt"), "a") as file:
            file.write(f"{state.images_seen}\n")

    try:
        outcome = train(
            recipe,
            request["folder"],
            device="cpu",
            data=sources.Data(batches),
            quiet=not request.get("tell", False),
            hooks=[restless],
        )
    except VitrailError as error:
        Path(request["folder"], "error.txt").write_text(f"{type(error).__name__}: {error}")
        return error.exit_code
    return outcome.exit_code


def trip(request: dict[str, Any]) -> None:
    """Count file system calls; at the ``at_call``-th one kill this process, or fail the call, as the request
    says.
    """
    at, act = request["at_call"], request["act"]
    count = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if act == "kill":
                    if name == "write":
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])  # half of it reaches the file
                    os.kill(os.getpid(), signal.SIGKILL)
                Path(request["folder"], "failed.txt").write_text(name)
                raise OSError(getattr(errno, act), os.strerror(getattr(errno, act)), "injected")
            return real(*args, **kwargs)

        setattr(os, name, called)

    for name in TRACED if act == "kill" else ("write", "fsync", "rename", "replace"):
        wrap(name)


def take_out(defence: str) -> None:
    """Remove one defence: what the negative controls run with."""
    from vitrail.training import checkpoint, hooks, loop, runs

    @contextlib.contextmanager
    def in_place(path: Path, **_: Any) -> Iterator[Path]:
        path.mkdir(parents=True, exist_ok=True)
        for old in path.iterdir():
            old.unlink()
        yield path

    if defence == "staging":
        checkpoint.atomic_folder = in_place  # type: ignore[assignment]
        checkpoint.verify = lambda path: ""
    elif defence == "random state":
        loop.TrainState.set_random_state = staticmethod(lambda state: None)  # type: ignore[method-assign]
    elif defence == "finite":
        loop._check_finite = lambda *_: None
        checkpoint._refuse_non_finite = lambda *_: None
    elif defence == "signals":
        hooks.StopOnSignal.__enter__ = lambda self: self  # type: ignore[method-assign]
    elif defence == "lock":
        checkpoint.fcntl.flock = lambda *_: None  # type: ignore[assignment]
    elif defence == "averages":
        real = checkpoint.restore

        def without(loaded: Any, state: Any) -> None:
            fresh = {name: value.clone() for name, value in state.ema["model"].shadow.items()}
            real(loaded, state)
            state.ema["model"].shadow = fresh

        checkpoint.restore = without
    else:
        raise ValueError(defence)
    assert runs.checkpoint is checkpoint


def child(request: dict[str, Any]) -> int:
    warnings.simplefilter("error")
    Path(request["folder"]).mkdir(parents=True, exist_ok=True)
    if "limit_file_bytes" in request:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit_file_bytes"], resource.RLIM_INFINITY))
    if "without" in request:
        take_out(request["without"])
    if request.get("tell"):
        sys.stderr = open(Path(request["folder"], "told.txt"), "w")  # noqa: SIM115 - closed with the process
    if "at_call" in request:
        trip(request)
    return session(request)


def serve() -> None:
    import torch

    import vitrail.training.runs  # noqa: F401 - imported before the forks

    # The first optimizer imports much of torch; no backward pass here, its threads would not survive a fork.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict()

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = child(request)
            except BaseException:
                import traceback

                text = traceback.format_exc()
                with contextlib.suppress(OSError):
                    Path(request["folder"], "traceback.txt").write_text(text)
            finally:
                os._exit(code)
        handle = os.pidfd_open(pid)
        if "signal_when" in request:  # as soon as this file exists
            while not Path(request["folder"], request["signal_when"]).exists():
                time.sleep(0.005)
            began = time.monotonic()
            os.kill(pid, request["signal"])
        elif "signal_after" in request and not select.select([handle], [], [], request["signal_after"])[0]:
            began = time.monotonic()
            os.kill(pid, request["signal"])
        _, status = os.waitpid(pid, 0)
        os.close(handle)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    serve()
