"""A run: joins a recipe's data, network, objective, checkpoints and logs, and exports a model at its end.

The folder of a run::

    recipe.toml       the resolved recipe          metrics.jsonl   the log, a JSON object a line
    checkpoints/      see training.checkpoint      samples/        what the sample callback draws
    tensorboard/      where it is installed        model/          the model folder, once the run has finished

Running the same command again resumes the run; a finished run says so and does nothing.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn

from vitrail.errors import CheckpointError, InputError
from vitrail.files import atomic_write, ensure_folder, shown
from vitrail.images import grid, to_pil
from vitrail.provenance.metadata import encode
from vitrail.recipe import Recipe, dump_recipe, load_recipe, recipe_differences
from vitrail.runtime import pick_device
from vitrail.store import artifacts
from vitrail.training import checkpoint, sources, warm
from vitrail.training.hooks import (
    Checkpointer,
    MetricsLog,
    ProgressLine,
    StopOnSignal,
    every_images,
    preserved_randomness,
    seed_everything,
    tensorboard_writer,
)
from vitrail.training.loop import Hook, Settings, TrainState, fit
from vitrail.training.objectives import TextEncoder
from vitrail.training.optim import Ema, learning_rate
from vitrail.training.plan import Plan, Setting
from vitrail.training.plans import make_plan

__all__ = ["Outcome", "Sampler", "train"]

#: Draws a grid for the prompts with the averaged network and writes it to the path.
Sampler: TypeAlias = Callable[[nn.Module, Sequence[str], Path], object]

#: What may change between two sessions of one run: its length and what it shows, never what it computes.
_FREE = frozenset({"name", "optim.until_images", "optim.time_budget_minutes", "data.prefetch", "data.cache"})


@dataclass(frozen=True)
class Outcome:
    """How a session of a run ended.

    ``status``: "finished" (the model folder is at ``model``), "already finished" (nothing was done), or
    "stopped" by a signal (run the same command to go on). ``exit_code``: 0, or 128 + the signal's number
    when stopped (143 for SIGTERM, 130 for SIGINT).
    """

    status: Literal["finished", "already finished", "stopped"]
    folder: Path
    images_seen: int
    model: Path | None
    exit_code: int


@dataclass
class _Session:
    """What one session of a run works with."""

    recipe: Recipe
    folder: Path
    device: torch.device
    plan: Plan
    state: TrainState
    progress: ProgressLine
    data: sources.Data | None
    _averaged: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The network that is averaged, shown and exported."""
        return self.plan.modules["model"]

    def averaged(self) -> nn.Module:
        """A second network with the averaged weights: drawing samples never touches the trained one."""
        if self._averaged is None:
            self._averaged = copy.deepcopy(self.model).eval()
        self.state.ema["model"].copy_to(self._averaged)
        for mine, other in zip(self._averaged.buffers(), self.model.buffers(), strict=True):
            mine.copy_(other)
        self.plan.settle(self._averaged)
        return self._averaged

    def share(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        optim = self.recipe.optim
        if optim.until_images is not None:
            return min(1.0, self.state.images_seen / optim.until_images)
        return min(1.0, self.state.seconds / (60.0 * (optim.time_budget_minutes or 1.0)))


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "auto",
    data: sources.Data | None = None,
    encoder: TextEncoder | None = None,
    sample: Sampler | None = None,
    quiet: bool = False,
    told: Callable[[str], None] | None = None,
    licence: str | None = None,
    card: str | None = None,
    hooks: Sequence[Hook] = (),
    clock: Callable[[], float] = time.monotonic,
    stopped_model: Path | None = None,
) -> Outcome:
    """Train what ``recipe`` says in ``folder``, going on from its newest whole checkpoint if it has one.

    Parameters
    ----------
    device: see :func:`vitrail.runtime.pick_device`.
    data: the batches; by default those of ``recipe.data``.
    encoder: the frozen text encoder; by default the shipped one. Only recipes with captions use it.
    sample: draws a grid every ``run.sample_every_images`` with the averaged weights, for kinds whose plan
        does not draw one itself.
    quiet: nothing on the screen. told: hears every line that is told of the run, quiet or not.
    licence, card: of the exported model; by default made from the recipe.
    hooks: called after the run's own measuring and before its checkpoints.
    clock: seconds that a time budget counts; ``time.process_time`` on a machine that others use too.
    stopped_model: where a run that a hook stops leaves its model as it is then. A signal is in a hurry and
        leaves the checkpoint alone.

    Raises :class:`CheckpointError` (the folder is in use, or no checkpoint is whole), :class:`InputError`
    (the recipe computes something else than the run in this folder), :class:`NonFiniteError`,
    :class:`StorageError`, :class:`DataError`. After any of them the last checkpoint is whole.
    """
    folder = Path(folder)
    with checkpoint.RunLock(folder), preserved_randomness(), contextlib.ExitStack() as stack:
        # Words that are rarely seen leave denormal numbers in AdamW's state and the average, on which a CPU
        # computes many times slower; they are zero for every purpose.
        torch.set_flush_denormal(True)
        stack.callback(torch.set_flush_denormal, False)
        session = _open(recipe, folder, device, encoder, data, quiet, told)
        images, share = session.state.images_seen, session.share()
        model_folder = folder / "model"
        if share >= 1.0 and (model_folder / "artifact.json").is_file():
            session.progress.tell(f"{shown(folder)} is finished: {images:,} pictures; nothing to do")
            return Outcome("already finished", folder, images, model_folder, 0)
        session.progress = stack.enter_context(ProgressLine(share, quiet=quiet, told=told))
        session.progress.shown = session.plan.shown
        tell = session.progress.tell
        run = session.recipe.run
        saver = Checkpointer(folder / "checkpoints", run.checkpoint_every_seconds, run.keep, tell)
        stop = StopOnSignal(session.state, saver.save_as_it_was, tell)
        session.data = session.data or sources.open_data(session.recipe, tell)
        if share < 1.0:
            atomic_write(folder / "recipe.toml", dump_recipe(session.recipe))
            stack.enter_context(stop)  # until here there is nothing to save: a signal just ends the process
            with contextlib.ExitStack() as logs:
                _steps(session, logs, sample, [*hooks, saver, stop], clock)
            saver.save(session.state)
        images = session.state.images_seen
        if session.share() < 1.0:
            if stopped_model is not None and not stop.exit_code:
                _export(session, stopped_model, licence, card)
            tell(f"stopped at {images:,} pictures, checkpoint saved; the same command goes on")
            return Outcome("stopped", folder, images, None, stop.exit_code)
        _export(session, model_folder, licence, card)
        tell(f"finished after {images:,} pictures; the model is in {shown(model_folder)}")
        return Outcome("finished", folder, images, model_folder, 0)


def _open(
    recipe: Recipe,
    folder: Path,
    device: str,
    encoder: TextEncoder | None,
    data: sources.Data | None,
    quiet: bool,
    told: Callable[[str], None] | None,
) -> _Session:
    """Build the state and bring it to where the run was, or to its warm start."""
    if encoder is None and recipe.reads_text:
        encoder = sources.shipped_encoder()
    if isinstance(encoder, nn.Module):
        encoder.to(pick_device(device))
    recipe = _resolved(recipe, encoder)
    _same_run(recipe, folder / "recipe.toml")
    checkpoints = ensure_folder(folder / "checkpoints")
    for place in (folder, checkpoints):
        checkpoint.sweep(place)
    seed_everything(recipe.run.seed)
    progress = ProgressLine(0.0, quiet=quiet, told=told)
    # The line that is on the screen now, not the one of this moment: a run has another than its opening.
    plan = make_plan(Setting(recipe, pick_device(device), encoder, lambda line: session.progress.tell(line)))
    model = plan.modules["model"]
    state = TrainState(
        modules=plan.modules,
        optimizers=plan.optimizers,
        ema={"model": Ema(model, recipe.optim.ema_half_life_images, recipe.optim.ema_ramp)},
        seed=recipe.run.seed,
    )
    session = _Session(recipe, folder, pick_device(device), plan, state, progress, data)
    loaded = checkpoint.load_latest(checkpoints)
    if loaded is not None:
        checkpoint.restore(loaded, state)
        for line in loaded.rejected:
            progress.tell(f"{line}; going on from {loaded.folder.name}")
        for newer in checkpoint.list_checkpoints(checkpoints):
            if newer.name > loaded.folder.name:
                checkpoint.set_aside(newer)
    elif recipe.run.warm_start:
        progress.tell(warm.start_from(model, warm.read_weights(recipe.run.warm_start)))
        average = state.ema["model"]
        state.ema["model"] = Ema(model, average.half_life_images, average.ramp)
    return session


def _steps(
    session: _Session,
    logs: contextlib.ExitStack,
    sample: Sampler | None,
    last: Sequence[Hook],
    clock: Callable[[], float],
) -> None:
    """Run :func:`fit` with the run's hooks; ``last`` come after the measuring ones."""
    recipe, folder, state = session.recipe, session.folder, session.state
    optim, run = recipe.optim, recipe.run
    if session.data is None:
        raise InputError("a run needs data")
    board = logs.enter_context(tensorboard_writer(folder / "tensorboard", run.tensorboard, state.images_seen))
    writers = () if board is None else (board,)
    log = logs.enter_context(
        MetricsLog(folder / "metrics.jsonl", run.log_every_seconds, state.images_seen, writers)
    )
    plan, data = session.plan, session.data
    phases = plan.phases(data)
    measure = plan.measure(data) if run.held_out_every_images else None
    hooks: list[Hook] = [session.progress, log, *plan.hooks]
    if measure is not None:
        held_out = measure

        def measured(state: TrainState) -> None:
            with preserved_randomness():
                log.write(state, held_out(session.averaged()))

        hooks.append(every_images(run.held_out_every_images, measured))
    draw = _pictures(plan, data) or sample
    if draw is not None and run.sample_every_images:
        drawn = draw

        def show(state: TrainState) -> None:
            path = ensure_folder(folder / "samples") / f"images-{state.images_seen:012d}.png"
            with preserved_randomness():
                drawn(session.averaged(), run.sample_prompts, path)

        hooks.append(every_images(run.sample_every_images, show))
    minutes = optim.time_budget_minutes
    fit(
        phases,
        sources.prefetched(data.batches, recipe.data.prefetch),
        state,
        until_images=optim.until_images,
        until_seconds=None if minutes is None else 60.0 * minutes,
        settings=Settings(
            learning_rate=learning_rate(optim),
            grad_clip=optim.grad_clip,
            precision=optim.precision,
            device=session.device,
            clock=clock,
        ),
        hooks=[*hooks, *last],
    )


def _pictures(plan: Plan, data: sources.Data) -> Sampler | None:
    """Return how the plan's own pictures become a grid on disk; None if it draws none."""
    if plan.pictures is None:
        return None
    pictures = plan.pictures(data)

    def draw(network: nn.Module, prompts: Sequence[str], path: Path) -> None:
        with torch.inference_mode():
            made = to_pil(pictures(network))
        atomic_write(path, encode(grid(made, columns=8), "png"))

    return draw


def _resolved(recipe: Recipe, encoder: TextEncoder | None) -> Recipe:
    """Fill in what depends on the text encoder: the number of words where the recipe says 0."""
    if recipe.reads_text and getattr(recipe.model, "vocabulary", None) == 0:
        config = getattr(encoder, "config", None)
        if config is None:
            raise InputError("model.vocabulary is 0 and the text encoder names no number of words; set it")
        network = recipe.model.model_copy(update={"vocabulary": int(config.vocabulary)})
        return recipe.model_copy(update={"model": network})
    return recipe


def _same_run(recipe: Recipe, path: Path) -> None:
    """Refuse a recipe that computes something else than the run that is in the folder already."""
    if not path.exists():
        return
    try:
        old = load_recipe(path)
    except InputError as error:
        raise CheckpointError(f"{error}; put the run's recipe back or give another run folder") from error
    place = shown(path.parent)
    if old.kind != recipe.kind:
        raise InputError(f"{place} is a run of kind {old.kind}, not {recipe.kind}; give another folder")
    free = [key for key in recipe_differences(old, recipe) if key in _FREE or key.startswith("expected.")]
    shows = [key for key in recipe_differences(old, recipe) if key.startswith("run.") and key != "run.seed"]
    changed = [key for key in recipe_differences(old, recipe) if key not in free + shows]
    if changed:
        raise InputError(
            f"{place} was begun with another recipe: {', '.join(changed[:5])} differ; "
            "give the same recipe, or another run folder (run.warm_start takes over the weights)"
        )


def _export(session: _Session, target: Path, licence: str | None, card: str | None) -> None:
    """Write the averaged weights as a model folder."""
    recipe, state, model = session.recipe, session.state, session.model
    with state.ema["model"].applied(model):
        session.plan.settle(model)  # changes buffers that no checkpoint will see: the run is over
        tensors = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    parameters = sum(value.numel() for value in tensors.values())
    made = (
        f"# {recipe.name}\n\n"
        f"A {recipe.model.kind} network of {parameters:,} numbers for {recipe.data.size} px, trained by "
        f"`recipe.toml` on {recipe.data.source!r}: {state.images_seen:,} pictures seen in {state.step:,} "
        f"steps, {state.seconds / 60:.1f} minutes.\n"
    )
    files: dict[str, str | bytes | Path] = {"recipe.toml": dump_recipe(recipe), "card.md": card or made}
    files |= session.plan.files(session.data)
    artifacts.save(
        target,
        kind=recipe.model.kind,
        name=recipe.name,
        config=recipe.model.model_dump(mode="json", exclude={"kind"}),
        tensors=tensors,
        licence=licence or "not stated; the pictures it was trained on decide",
        data_manifest_sha256=None if session.data is None else session.data.manifest_sha256,
        extra_files=files,
        overwrite=True,
    )
