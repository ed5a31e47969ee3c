"""The loop, the optimizer's schedule and the moving average, against plain torch and closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.errors import TrainingError
from vitrail.recipe import OptimSection
from vitrail.training.loop import (
    LossOutput,
    Mean,
    Phase,
    Settings,
    StepReport,
    TrainState,
    fit,
    step_seed,
)
from vitrail.training.optim import Ema, adamw, learning_rate


@dataclass(frozen=True)
class Batch:
    pixels: Tensor


def batches(seen: int, size: int = 4) -> Iterator[Batch]:
    """Pictures by number alone, so that the stream goes on from anywhere."""
    while True:
        rows = [
            torch.randn(3, generator=torch.Generator().manual_seed(number))
            for number in range(seen, seen + size)
        ]
        yield Batch(torch.stack(rows))
        seen += size


def network() -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_of(model: nn.Module) -> Callable[[Batch, torch.Generator], LossOutput]:
    """Denoising by the step's generator: the loss depends on the random numbers of the step."""

    def loss(batch: Batch, generator: torch.Generator) -> LossOutput:
        noise = torch.randn(batch.pixels.shape, generator=generator)
        errors = (model(batch.pixels + noise) - batch.pixels).square().mean(1)
        return LossOutput(
            errors.mean(), {"error": Mean(errors.detach().sum(), torch.tensor(float(len(errors))))}
        )

    return loss


def options(**changes: Any) -> OptimSection:
    return OptimSection(**{"until_images": 1000, "precision": "float32", **changes})


def make(model: nn.Module, optim: OptimSection, seed: int = 5) -> TrainState:
    parameters = list(model.parameters())
    return TrainState(
        {"model": model}, {"model": adamw(parameters, optim)}, {"model": Ema(model, 20.0)}, seed
    )


def run(state: TrainState, until: int, optim: OptimSection, hooks: tuple[Any, ...] = ()) -> TrainState:
    model = state.modules["model"]
    phase = Phase("model", list(model.parameters()), loss_of(model))
    settings = Settings(learning_rate=learning_rate(optim), grad_clip=optim.grad_clip)
    return fit([phase], batches, state, until_images=until, settings=settings, hooks=hooks)


def test_fit_equals_the_plainest_loop() -> None:
    """The same steps written out with torch alone: same weights, same average, bit for bit."""
    optim = options(
        lr=0.05, warmup_images=12, decay="cosine", grad_clip=0.5, weight_decay=0.1, until_images=80
    )
    state = run(make(network(), optim), 80, optim)

    model = network()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    plain = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.05, betas=optim.betas, fused=True,
    )  # fmt: skip
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    stream = batches(0)
    for seen in range(0, 80, 4):
        generator = torch.Generator().manual_seed(step_seed(5, seen))
        rise = min(1.0, (seen + 1) / 13)
        rate = 0.05 * rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * seen / 80)))
        for group in plain.param_groups:
            group["lr"] = rate
        plain.zero_grad()
        loss_of(model)(next(stream), generator).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        plain.step()
        half_life = min(20.0, 0.1 * (seen + 4))
        for name, value in model.named_parameters():
            average[name].lerp_(value.detach(), 1 - 0.5 ** (4 / half_life))
    for name, value in state.modules["model"].named_parameters():
        assert torch.equal(value, dict(model.named_parameters())[name]), name
        assert torch.allclose(state.ema["model"].shadow[name], average[name], atol=1e-7), name
    assert (state.images_seen, state.step) == (80, 20)


@pytest.mark.parametrize("stop", [4, 36, 76])
def test_two_halves_are_one_whole(stop: int) -> None:
    optim = options(lr=0.05, warmup_images=12, decay="none")
    straight = run(make(network(), optim), 80, optim)
    halves = run(copy_of(run(make(network(), optim), stop, optim), optim), 80, optim)
    for (name, first), second in zip(
        straight.modules["model"].state_dict().items(),
        halves.modules["model"].state_dict().values(),
        strict=True,
    ):
        assert torch.equal(first, second), name
    assert straight.images_seen == halves.images_seen


def copy_of(state: TrainState, optim: OptimSection) -> TrainState:
    """A state of fresh objects with the same content, as a new process would build it."""
    fresh = make(network(), optim)
    fresh.modules["model"].load_state_dict(state.modules["model"].state_dict())
    fresh.optimizers["model"].load_state_dict(copy.deepcopy(state.optimizers["model"].state_dict()))
    fresh.ema["model"].shadow = {name: value.clone() for name, value in state.ema["model"].shadow.items()}
    fresh.images_seen, fresh.step = state.images_seen, state.step
    return fresh


def test_another_seed_is_another_run() -> None:
    optim = options()
    first = run(make(network(), optim, seed=5), 8, optim).modules["model"][0].weight
    second = run(make(network(), optim, seed=6), 8, optim).modules["model"][0].weight
    assert not torch.equal(first, second)
    assert len({step_seed(seed, seen) for seed in range(50) for seen in range(50)}) == 2500
    assert all(0 <= step_seed(seed, 3) < 2**63 for seed in range(100))


def test_reports_say_what_happened() -> None:
    optim = options(lr=0.01, warmup_images=0, decay="none")
    reports: list[StepReport] = []
    state = run(make(network(), optim), 12, optim, (lambda state, report: reports.append(report),))
    assert [report.images_seen for report in reports] == [4, 8, 12]
    assert [report.step for report in reports] == [1, 2, 3]
    assert [round(report.share, 6) for report in reports] == [round(n / 3, 6) for n in (1, 2, 3)]
    for report in reports:
        total, number = report.figures["error"]
        assert number == 4
        assert report.losses["model"] == pytest.approx(total / number, rel=1e-5)
        assert report.gradient_norms["model"] > 0
        assert report.learning_rate == 0.01
    assert sum(report.seconds for report in reports) == pytest.approx(state.seconds, abs=0.05)


def test_gradients_are_clipped_to_the_norm_and_reported_before() -> None:
    weight = nn.Parameter(torch.zeros(2))
    state = TrainState({"m": nn.ParameterList([weight])}, {"m": torch.optim.SGD([weight], lr=1.0)}, {})
    phase = Phase[Batch](
        "m", [weight], lambda batch, generator: LossOutput((weight * torch.tensor([3.0, 4.0])).sum(), {})
    )
    reports: list[StepReport] = []
    fit(
        [phase], batches, state, until_images=4, settings=Settings(grad_clip=1.0),
        hooks=[lambda state, report: reports.append(report)],
    )  # fmt: skip
    assert reports[0].gradient_norms["m"] == pytest.approx(5.0)
    assert torch.allclose(weight.detach(), torch.tensor([-0.6, -0.8]), atol=1e-6)


def test_phases_take_turns_and_touch_only_their_own() -> None:
    """A generator every step and a critic every third: the shape of a VQGAN's training."""
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    state = TrainState(
        {"m": nn.ParameterList([first, second])},
        {"a": torch.optim.SGD([first], lr=1.0), "b": torch.optim.SGD([second], lr=1.0)},
        {},
    )
    phases = [
        Phase[Batch]("a", [first], lambda batch, generator: LossOutput(first.sum() + second.sum(), {})),
        Phase[Batch](
            "b", [second], lambda batch, generator: LossOutput(first.sum() + second.sum(), {}), every=3
        ),
    ]
    reports: list[StepReport] = []
    fit(phases, batches, state, until_images=28, hooks=[lambda state, report: reports.append(report)])
    assert first.item() == -7
    assert second.item() == -3
    assert [sorted(report.losses) for report in reports] == [
        ["a", "b"], ["a"], ["a"], ["a", "b"], ["a"], ["a"], ["a", "b"],
    ]  # fmt: skip


def test_a_time_budget_ends_the_run_and_drives_the_rate() -> None:
    now = [100.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    optim = options(
        until_images=None, time_budget_minutes=0.5, warmup_images=0, decay="linear", final_share=0.0
    )
    model = network()
    state = make(model, optim)
    state.seconds = 10.0  # spent before an interruption
    reports: list[StepReport] = []
    fit(
        [Phase("model", list(model.parameters()), loss_of(model))], batches, state, until_seconds=30.0,
        settings=Settings(learning_rate=learning_rate(optim), clock=clock),
        hooks=[lambda state, report: reports.append(report)],
    )  # fmt: skip
    assert len(reports) == 20
    assert state.seconds == 30.0
    for number, report in enumerate(reports):
        assert report.learning_rate == pytest.approx(optim.lr * (1 - (10 + number) / 30))


def test_a_hook_ends_the_run_after_every_hook_ran() -> None:
    optim = options()
    ran: list[str] = []

    def stop(state: TrainState, report: StepReport) -> bool:
        ran.append("stop")
        return report.step == 2

    state = run(make(network(), optim), 80, optim, (stop, lambda state, report: ran.append("after")))
    assert state.step == 2
    assert ran == ["stop", "after"] * 2


def test_errors_of_the_caller_are_told() -> None:
    optim = options()
    state = make(network(), optim)
    model = state.modules["model"]
    phase = Phase("model", list(model.parameters()), loss_of(model))
    with pytest.raises(TrainingError, match="needs an end"):
        fit([phase], batches, state)
    with pytest.raises(TrainingError, match="nothing to train"):
        fit([], batches, state, until_images=4)
    with pytest.raises(TrainingError, match="'other' has no optimizer"):
        fit([Phase("other", [], loss_of(model))], batches, state, until_images=4)
    with pytest.raises(TrainingError, match="data ended after 8 pictures"):
        fit([phase], lambda seen: iter([next(batches(0)), next(batches(4))]), state, until_images=80)
    assert state.images_seen == 8


def test_ema_follows_the_closed_form() -> None:
    """A weight that is 0 and then 1 forever: after n pictures the average is 1 - 2^(-n / half-life)."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, half_life_images=100.0, ramp=1.0)
    nn.init.ones_(module.weight)
    for step in range(1, 51):
        ema.update(module, 8, images_seen=10_000 + 8 * step)
        assert ema.shadow["weight"].item() == pytest.approx(1 - 0.5 ** (8 * step / 100), abs=1e-5)
    batch_of_another_size = Ema(nn.Linear(1, 1, bias=False), 100.0, 1.0)
    batch_of_another_size.shadow["weight"].zero_()
    for step in range(1, 5):
        batch_of_another_size.update(module, 100, images_seen=10_000 + 100 * step)
    assert batch_of_another_size.shadow["weight"].item() == pytest.approx(
        ema.shadow["weight"].item(), abs=1e-5
    )


def test_ema_forgets_the_random_start() -> None:
    ema = Ema(nn.Linear(1, 1), half_life_images=1e9, ramp=0.1)
    assert ema.decay(8, images_seen=8) == pytest.approx(0.5**10)
    assert ema.decay(8, images_seen=8000) == pytest.approx(0.5 ** (8 / 800))
    assert Ema(nn.Linear(1, 1), 50.0).decay(8, 10**6) == pytest.approx(0.5 ** (8 / 50))


def test_ema_is_lent_and_given_back() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).to(torch.bfloat16)
    ema = Ema(module, 100.0)
    assert all(value.dtype == torch.float32 for value in ema.shadow.values())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ema.shadow["0.weight"].fill_(7.0)
    with ema.applied(module):
        assert not module.training
        assert (module[0].weight == 7.0).all()
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("decay", "share", "expected"),
    [
        ("none", 1.0, 1.0),
        ("linear", 0.5, 0.5),
        ("cosine", 0.5, 0.5),
        ("linear", 1.0, 0.0),
        ("cosine", 1.0, 0.0),
    ],
)
def test_learning_rate_shapes(decay: str, share: float, expected: float) -> None:
    rate = learning_rate(options(lr=0.5, warmup_images=99, decay=decay, final_share=0.0))
    assert rate(10**6, share) == pytest.approx(0.5 * expected, abs=1e-12)
    assert rate(0, 0.0) == pytest.approx(0.5 / 100)
    assert rate(49, 0.0) == pytest.approx(0.25)
    floor = learning_rate(options(lr=0.5, warmup_images=0, decay=decay, final_share=0.1))
    assert floor(10**6, 1.0) == pytest.approx(0.5 if decay == "none" else 0.05)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.LayerNorm(2))
    groups = adamw(model.parameters(), options(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [
        (0.3, [4]),
        (0.0, [1, 1, 1]),
    ]
