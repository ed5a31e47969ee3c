"""Checkpoints of a run that survive kill -9, a full disk, a flipped bit and a second run on the same folder.

Layout::

    RUN/run.lock                              held (fcntl) while the run is going on
    RUN/checkpoints/images-000000012800/
        manifest.json                         {"body": {format, images_seen, files: {name: {bytes,
        sha256}}}, "sha256"} weights.safetensors  average.safetensors  optimizer.safetensors
        random.safetensors  state.json

A checkpoint is staged beside its place, every file flushed to the disk, the folder renamed in one step, and
the parent folder flushed; no path that could be loaded is ever written to. Only safetensors and JSON are
written: nothing in a checkpoint can run code. Loading verifies every byte against the manifest, takes the
newest checkpoint that is whole, and says which ones it left out and why.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from vitrail.errors import CheckpointError, NonFiniteError
from vitrail.files import atomic_folder, ensure_folder, fsync_folder, shown, storage_errors
from vitrail.training.loop import TrainState
from vitrail.training.tensor_files import Part, tensor_part, write_part

__all__ = [
    "Loaded",
    "RunLock",
    "list_checkpoints",
    "load_latest",
    "prune",
    "restore",
    "save",
    "sweep",
    "verify",
]

FORMAT = 1
MANIFEST = "manifest.json"
FILES = frozenset(
    {
        MANIFEST,
        "state.json",
        *(f"{name}.safetensors" for name in ("weights", "average", "optimizer", "random")),
    }
)
_NAME = re.compile(r"^images-[0-9]{12}$")
_STAGED = re.compile(
    r"^\.(images-[0-9]{12}|model|recipe\.toml|metrics\.jsonl)\.vitrail-[0-9]+-[0-9a-f]+\.part$"
)
_DOOMED = re.compile(r"^\.images-[0-9]{12}\.deleted$")


class Loaded(NamedTuple):
    """A verified checkpoint in memory, and one line for every newer one that was left out."""

    folder: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    rejected: list[str]


class RunLock:
    """The lock of a run folder: a second run on it is refused. Freed by the kernel when the process ends.

    Raises :class:`CheckpointError` if another process holds it. Use as a context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = ensure_folder(folder)
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        path = self.folder / "run.lock"
        with storage_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise CheckpointError(
                f"{shown(self.folder)} is in use by another run (process {holder or 'unknown'}); "
                "wait for it, stop it, or give another run folder"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def save(folder: Path, state: TrainState, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Publish ``state`` as a checkpoint in ``folder`` (``RUN/checkpoints``) and return its path.

    ``extra`` is JSON kept beside the counters. A checkpoint of the same number of pictures that verifies is
    left as it is. Raises :class:`StorageError` (one line with the bytes needed and free; nothing is left
    behind), :class:`NonFiniteError` if a weight is not finite: such a state is never published.
    """
    name = f"images-{state.images_seen:012d}"
    target = folder / name
    if target.exists() and not verify(target):
        return target
    _refuse_non_finite(state)
    parts = _parts(state, extra or {})
    entries = {part.name: part.size for part in parts}
    needed = sum(entries.values()) + 4096 * (len(parts) + 2)
    with atomic_folder(target, overwrite=True, needed=needed) as staged:
        files = {
            part.name: {"bytes": part.size, "sha256": write_part(staged / part.name, part)} for part in parts
        }
        body = {"format": FORMAT, "images_seen": state.images_seen, "step": state.step, "files": files}
        write_part(staged / MANIFEST, Part(MANIFEST, _manifest_bytes(body)))
    return target


def verify(checkpoint: Path) -> str:
    """Return "" if every byte of a checkpoint is as it was written, else what is wrong with it, in a few
    words.
    """
    try:
        raw = (checkpoint / MANIFEST).read_bytes()
    except OSError as error:
        return f"{MANIFEST}: {error.strerror}"
    try:
        body = json.loads(raw)["body"]
        # Byte for byte, so that a flip in white space or in a key is found as well.
        if _manifest_bytes(body) != raw:
            return f"{MANIFEST}: its own hash does not match"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{MANIFEST}: not readable"
    if body["format"] != FORMAT:
        return f"{MANIFEST}: format {body['format']}, this version reads {FORMAT}"
    for name, entry in body["files"].items():
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{name}: {size} bytes instead of {entry['bytes']}"
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name}: its hash does not match"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return ""


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the published checkpoints of ``RUN/checkpoints``, newest first, unverified."""
    if not folder.is_dir():
        return []
    return sorted(
        (entry for entry in folder.iterdir() if _NAME.match(entry.name) and entry.is_dir()), reverse=True
    )


def load_latest(folder: Path) -> Loaded | None:
    """Load the newest checkpoint in ``folder`` that verifies; None if there is none at all.

    Raises :class:`CheckpointError` naming every checkpoint and its fault if there are some and none is
    whole: a run must not start again from nothing without a word.
    """
    rejected: list[str] = []
    for checkpoint in list_checkpoints(folder):
        fault = verify(checkpoint)
        if fault:
            rejected.append(f"{checkpoint.name} is damaged ({fault})")
            continue
        state = json.loads((checkpoint / "state.json").read_bytes())
        names = ("weights", "average", "optimizer", "random")
        tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
        return Loaded(checkpoint, state, tensors, rejected)
    if rejected:
        raise CheckpointError(
            f"no checkpoint in {shown(folder)} is whole: {'; '.join(rejected)}; "
            "put back a copy, or give another run folder to start afresh"
        )
    return None


def restore(loaded: Loaded, state: TrainState) -> None:
    """Put a loaded checkpoint into ``state``, in place: weights, averages, optimizers, counters, random
    numbers.

    Raises :class:`CheckpointError` if the checkpoint belongs to another network or optimizer; ``state`` may
    then be half filled and must not be used.
    """
    try:
        for name, module in state.modules.items():
            module.load_state_dict(_below(loaded.tensors["weights"], name), strict=True)
        for name, ema in state.ema.items():
            average = _below(loaded.tensors["average"], name)
            if average.keys() != ema.shadow.keys():
                raise KeyError(f"averaged weights of {name}")
            for key, value in average.items():
                ema.shadow[key].copy_(value)
        for name, optimizer in state.optimizers.items():
            described = loaded.state["optimizers"][name]
            held = _below(loaded.tensors["optimizer"], name)
            slots: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in described["state"].items()}
            for key, value in held.items():
                index, _, slot = key.partition(".")
                slots.setdefault(int(index), {})[slot] = value
            groups = [
                {key: tuple(v) if isinstance(v, list) and key != "params" else v for key, v in group.items()}
                for group in described["param_groups"]
            ]
            optimizer.load_state_dict({"state": slots, "param_groups": groups})
            _lay_out(optimizer)
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {loaded.folder.name} does not fit this recipe's model: {shown(first)}; "
            "give the recipe it was made with, or another run folder"
        ) from error
    state.seed = loaded.state["seed"]
    state.images_seen = loaded.state["images_seen"]
    state.step = loaded.state["step"]
    state.seconds = loaded.state["seconds"]
    TrainState.set_random_state(loaded.tensors["random"] | loaded.state["random"])


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's tensors the order in memory that their parameters have, as a straight run's have.

    Files hold them in plain order; a fused optimizer goes through both side by side as if they were alike.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest ``keep`` checkpoints; returns what was removed.

    Only checkpoints that verify count towards ``keep``, so at least one of them always stays; with none that
    verifies nothing is removed. One that holds a file of somebody else stays as well.
    """
    removed: list[Path] = []
    kept = 0
    for checkpoint in list_checkpoints(folder):
        if kept < max(1, keep):
            kept += not verify(checkpoint)
            continue
        if any(entry.name not in FILES for entry in checkpoint.iterdir()):
            continue
        # Renamed first: a kill in the middle leaves rubbish under a name that is never loaded.
        doomed = checkpoint.with_name(f".{checkpoint.name}.deleted")
        with storage_errors(checkpoint):
            os.rename(checkpoint, doomed)
            shutil.rmtree(doomed)
        removed.append(checkpoint)
    return removed


def sweep(folder: Path) -> list[Path]:
    """Remove what killed sessions left staged or half deleted in ``folder``, a run's or its checkpoints'.

    Call it only while holding the run's lock: then no other process is writing there. Returns what was
    removed.
    """
    if not folder.is_dir():
        return []
    left = [entry for entry in folder.iterdir() if _STAGED.match(entry.name) or _DOOMED.match(entry.name)]
    for entry in left:
        with storage_errors(entry):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return left


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint so that its name is free again; nothing of it is deleted. Returns the new
    path.
    """
    number = 0
    while (aside := checkpoint.with_name(f"damaged-{checkpoint.name}-{number}")).exists():
        number += 1
    with storage_errors(checkpoint):
        os.rename(checkpoint, aside)
        fsync_folder(checkpoint.parent)
    return aside


def _parts(state: TrainState, extra: Mapping[str, Any]) -> list[Part]:
    weights = {f"{name}/{key}": value for name in state.modules for key, value in state.tensors(name).items()}
    average = {f"{name}/{key}": value for name, ema in state.ema.items() for key, value in ema.shadow.items()}
    slots: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for name, optimizer in state.optimizers.items():
        held = optimizer.state_dict()
        rest: dict[str, dict[str, Any]] = {}
        for index, values in held["state"].items():
            rest[str(index)] = {}
            for key, value in values.items():
                if isinstance(value, Tensor):
                    slots[f"{name}/{index}.{key}"] = value
                else:
                    rest[str(index)][key] = value
        described[name] = {"state": rest, "param_groups": held["param_groups"]}
    chance = state.random_before if state.random_before is not None else TrainState.random_state()
    counters = {
        "seed": state.seed,
        "images_seen": state.images_seen,
        "step": state.step,
        "seconds": state.seconds,
        "optimizers": described,
        "random": {key: value for key, value in chance.items() if not isinstance(value, Tensor)},
        "extra": dict(extra),
    }
    return [
        tensor_part("weights", weights),
        tensor_part("average", average),
        tensor_part("optimizer", slots),
        tensor_part("random", {key: value for key, value in chance.items() if isinstance(value, Tensor)}),
        Part("state.json", json.dumps(counters, sort_keys=True, allow_nan=False).encode()),
    ]


def _manifest_bytes(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"body": body, "sha256": digest}, sort_keys=True, indent=1).encode() + b"\n"


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{prefix}/")}


def _refuse_non_finite(state: TrainState) -> None:
    for name, module in state.modules.items():
        for key, value in module.named_parameters():
            if not torch.isfinite(value).all():
                raise NonFiniteError(
                    f"weight {name}.{key} is not finite after {state.images_seen} pictures; not saved, "
                    "the last one is whole: lower optim.lr, or set optim.precision to float32"
                )
