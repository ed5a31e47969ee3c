"""The one training loop: :func:`fit` over phases, for whatever is trained.

A phase is a set of parameters with a loss. A diffusion model or an autoencoder has one phase, a VQGAN or
GAN has two. The loop knows nothing of recipes, folders or screens: those are hooks, plain functions called
after every step.

**Resume is exact** because nothing hidden decides a step: the batches are a function of the pictures seen
so far, the random numbers of a step come from a generator seeded with (seed, pictures seen), and
:class:`TrainState` holds the rest. Only a run under a time budget depends on the clock, and only through
its learning rate and its length.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.errors import NonFiniteError, TrainingError
from vitrail.runtime import Precision, autocast
from vitrail.training.optim import Ema

__all__ = [
    "Hook",
    "LossOutput",
    "Mean",
    "Phase",
    "Settings",
    "StepReport",
    "TrainState",
    "fit",
    "step_seed",
]


class HasPixels(Protocol):
    """What the loop asks of a batch: its pictures, counted along the first axis."""

    @property
    def pixels(self) -> Tensor: ...


Batch = TypeVar("Batch", bound=HasPixels)


class Mean(NamedTuple):
    """A mean that can be added up over steps: sum and number of terms, both scalars."""

    total: Tensor
    number: Tensor


class LossOutput(NamedTuple):
    """What a phase's loss returns: the scalar to be lowered, and figures for the log by name."""

    loss: Tensor
    figures: Mapping[str, Mean]


@dataclass(frozen=True)
class Phase(Generic[Batch]):
    """One optimisation within a step.

    Parameters
    ----------
    name: the key of its optimizer in :attr:`TrainState.optimizers`.
    parameters: what its optimizer moves; gradients are taken for these alone.
    loss: (batch, generator) -> :class:`LossOutput`; all its random numbers come from the generator. None
        means that this phase has nothing to do in this step.
    every: the phase runs in steps whose number is a multiple of this.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Batch, torch.Generator], LossOutput | None]
    every: int = 1


@dataclass
class TrainState:
    """Everything that a checkpoint holds.

    ``modules``, ``optimizers`` (by phase) and ``ema`` (by module) are changed in place by :func:`fit`;
    ``seconds`` is the time spent training, earlier sessions of the same run included.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    ema: dict[str, Ema]
    seed: int = 0
    images_seen: int = 0
    step: int = 0
    seconds: float = 0.0
    #: Held while a step changes anything above: whoever holds it sees the state as between steps.
    updating: threading.RLock = field(default_factory=threading.RLock, repr=False)
    #: The global random state that belongs to the rest of the state: that before the step in progress, or
    #: after the last one while hooks run (they may draw samples). None where the generators are right.
    random_before: dict[str, Any] | None = field(default=None, repr=False)
    #: What a forward pass may change (running means, a codebook and its counts) as it was before the step in
    #: progress, which has changed nothing else yet. None between steps.
    kept_before: dict[str, dict[str, Tensor]] | None = field(default=None, repr=False)

    def changing(self) -> dict[str, dict[str, Tensor]]:
        """Return copies of the buffers of all modules, and of the parameters of whatever holds buffers: a
        codebook that starts dead codes anew changes its codes in the forward pass.
        """
        copies: dict[str, dict[str, Tensor]] = {}
        for name, module in self.modules.items():
            held = module.state_dict()
            parameters = {key for key, _ in module.named_parameters()}
            owners = {key.rpartition(".")[0] for key in held if key not in parameters}
            copies[name] = {
                key: value.detach().clone()
                for key, value in held.items()
                if any(not owner or key.startswith(f"{owner}.") for owner in owners)
            }
        return copies

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return parameters and buffers of a module as they are, or were, between two steps."""
        before = self.kept_before
        return {**self.modules[name].state_dict(), **({} if before is None else before[name])}

    @staticmethod
    def random_state() -> dict[str, Any]:
        """Return the state of every global generator: torch (CPU and CUDA), numpy and Python."""
        name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        version, words, gauss_next = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "numpy_rest": [name, int(position), int(has_gauss), float(gauss)],
            "python": torch.tensor(words, dtype=torch.int64),
            "python_rest": [version, gauss_next],
        }
        # Not is_available: asking for a state would start CUDA, in a run on the CPU too.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for index, value in enumerate(torch.cuda.get_rng_state_all()):
                state[f"cuda.{index}"] = value
        return state

    @staticmethod
    def set_random_state(state: Mapping[str, Any]) -> None:
        """Put back what :meth:`random_state` returned; CUDA devices that are gone are left out."""
        torch.set_rng_state(state["torch"].to(torch.uint8))
        kind, position, has_gauss, gauss = state["numpy_rest"]
        np.random.set_state((kind, state["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
        version, gauss_next = state["python_rest"]
        random.setstate((version, tuple(state["python"].tolist()), gauss_next))
        for name, value in state.items():
            if name.startswith("cuda.") and int(name[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(value.to(torch.uint8), int(name[5:]))


@dataclass(frozen=True)
class StepReport:
    """What a hook learns of the step that just ended."""

    step: int
    images_seen: int
    batch: int
    seconds: float  # of this step, waiting for data included
    share: float  # of the run done, in [0, 1]
    learning_rate: float
    losses: dict[str, float]  # by phase
    gradient_norms: dict[str, float]  # by phase, before clipping
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> (sum, count)


class Hook(Protocol):
    """A function called after every step; returning True ends the run after this step, in good order."""

    def __call__(self, state: TrainState, report: StepReport, /) -> bool | None: ...


@dataclass(frozen=True)
class Settings:
    """How :func:`fit` steps.

    Parameters
    ----------
    learning_rate: (pictures seen, share of the run done) -> rate; None leaves the optimizers' own.
    grad_clip: largest norm of a phase's gradient; infinity does not clip.
    precision: see :func:`vitrail.runtime.autocast`.
    device: where the step's generator lives; the losses move batches there.
    clock: seconds, for tests.
    """

    learning_rate: Callable[[int, float], float] | None = None
    grad_clip: float = math.inf
    precision: Precision = "float32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock: Callable[[], float] = time.monotonic


def step_seed(seed: int, images_seen: int) -> int:
    """Return the seed of the step that begins after ``images_seen`` pictures: a hash, so that runs do not
    overlap.
    """
    digest = hashlib.blake2b(f"{seed}:{images_seen}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fit(
    phases: Sequence[Phase[Batch]],
    batches: Callable[[int], Iterator[Batch]],
    state: TrainState,
    *,
    until_images: int | None = None,
    until_seconds: float | None = None,
    settings: Settings | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainState:
    """Train until ``until_images`` pictures were seen, ``until_seconds`` were spent, or a hook asks to stop.

    Parameters
    ----------
    phases: run in order within a step; see :class:`Phase`.
    batches: pictures seen so far -> the batches that follow; called once.
    state: changed in place and returned. Between steps it is always consistent.
    until_images, until_seconds: at least one is given; the first one reached ends the run.

    Raises :class:`NonFiniteError` within the step whose loss or gradient is not finite, before its
    optimizer moves anything, and :class:`TrainingError` where the batches end too early.
    """
    if until_images is None and until_seconds is None:
        raise TrainingError("a run needs an end: give until_images, until_seconds, or both")
    settings = settings or Settings()
    _check_phases(phases, state)
    for module in state.modules.values():
        module.train()
    began, spent = settings.clock(), state.seconds

    def share() -> float:
        shares = [state.images_seen / until_images] if until_images else []
        if until_seconds:
            shares.append(state.seconds / until_seconds)
        return min(1.0, max(shares))

    stream: Iterator[Batch] | None = None
    try:
        while share() < 1.0:
            state.random_before = TrainState.random_state()
            if stream is None:
                stream = iter(batches(state.images_seen))
            batch = next(stream, None)
            if batch is None:
                raise TrainingError(
                    f"the data ended after {state.images_seen} pictures; a stream must repeat without end"
                )
            fields = _step(phases, batch, state, share(), settings)
            before = state.seconds
            state.seconds = spent + settings.clock() - began
            report = StepReport(**fields, seconds=state.seconds - before, share=share())
            # Every hook runs even if an earlier one asks to stop: the checkpoint may be the last of them.
            if any([hook(state, report) is True for hook in hooks]):
                break
    finally:
        state.random_before = None
        state.kept_before = None
        close = getattr(stream, "close", None)
        if close is not None:
            close()
    return state


def _step(
    phases: Sequence[Phase[Batch]], batch: Batch, state: TrainState, share: float, settings: Settings
) -> dict[str, Any]:
    """One step of every phase whose turn it is; returns the fields of a :class:`StepReport`."""
    count = len(batch.pixels)
    generator = torch.Generator(settings.device).manual_seed(step_seed(state.seed, state.images_seen))
    rate = settings.learning_rate(state.images_seen, share) if settings.learning_rate else None
    losses: dict[str, float] = {}
    norms: dict[str, float] = {}
    figures: dict[str, tuple[float, float]] = {}
    state.kept_before = state.changing()
    with contextlib.ExitStack() as update:
        for phase in phases:
            if state.step % phase.every:
                continue
            with autocast(settings.device, settings.precision):
                output = phase.loss(batch, generator)
            if output is None:
                continue
            norm, numbers = _gradients(phase, output, settings)
            _check_finite(phase.name, numbers[0], norm, state)
            if not losses:
                update.enter_context(state.updating)  # from the first change to the last, once a step
            optimizer = state.optimizers[phase.name]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] if rate is None else rate * group.get("rate_share", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses[phase.name], norms[phase.name] = numbers[0], norm
            for index, name in enumerate(output.figures):
                total, number = figures.get(name, (0.0, 0.0))
                figures[name] = (total + numbers[1 + 2 * index], number + numbers[2 + 2 * index])
        update.enter_context(state.updating)  # for a step in which no phase had anything to do
        state.images_seen += count
        state.step += 1
        for name, ema in state.ema.items():
            ema.update(state.modules[name], count, state.images_seen)
        state.random_before = TrainState.random_state()
        state.kept_before = None
    return {
        "step": state.step,
        "images_seen": state.images_seen,
        "batch": count,
        "learning_rate": rate if rate is not None else 0.0,
        "losses": losses,
        "gradient_norms": norms,
        "figures": figures,
    }


def _gradients(phase: Phase[Batch], output: LossOutput, settings: Settings) -> tuple[float, list[float]]:
    """Fill in ``grad``, clipped; returns the norm before clipping, and loss and figures as floats."""
    gradients = torch.autograd.grad(output.loss, phase.parameters, allow_unused=True)
    for parameter, gradient in zip(phase.parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(phase.parameters, settings.grad_clip)
    # One transfer for all numbers of the phase: on a GPU each would wait for the device.
    flat = [norm, output.loss, *(part for mean in output.figures.values() for part in mean)]
    numbers = torch.stack([value.detach().to(settings.device, torch.float64) for value in flat]).tolist()
    return numbers[0], numbers[1:]


def _check_phases(phases: Sequence[Phase[Batch]], state: TrainState) -> None:
    if not phases:
        raise TrainingError("nothing to train: give at least one phase")
    for phase in phases:
        if phase.name not in state.optimizers:
            raise TrainingError(f"phase {phase.name!r} has no optimizer in the state")
        if phase.every < 1:
            raise TrainingError(f"phase {phase.name!r} runs every {phase.every} steps; give 1 or more")


def _check_finite(phase: str, loss: float, norm: float, state: TrainState) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = (
        f"the loss of {phase} is {loss}" if not math.isfinite(loss) else f"the gradient of {phase} is {norm}"
    )
    where = f"after {state.images_seen} pictures (step {state.step})"
    raise NonFiniteError(
        f"{what} {where}; this update was not made and the last checkpoint is whole: lower optim.lr (to a "
        "third), lengthen optim.warmup_images, or set optim.precision to float32"
    )
