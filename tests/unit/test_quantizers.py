"""Quantizers: what they promise, their state and losses, and what keeps codes alive."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from vitrail.models.quantizers import Quantizer, build_quantizer, codebook_statistics
from vitrail.models.quantizers_vector import VectorQuantizer
from vitrail.recipe.autoencoders import QuantizerConfig

DIM = 6
ALL: dict[str, dict[str, Any]] = {
    "learned": {"kind": "nearest", "codes": 32},
    "learned with all": {
        "kind": "nearest", "codes": 32, "kmeans_init": True, "restart_below": 0.9, "decay": 0.5,
        "gradient": "rotation",
    },
    "ema": {"kind": "nearest", "codes": 32, "codebook": "ema", "restart_below": 0.5, "decay": 0.5},
    "ema k-means": {"kind": "nearest", "codes": 32, "codebook": "ema", "kmeans_init": True},
    "projected": {"kind": "nearest", "codes": 32, "code_dim": 3},
    "cosine": {"kind": "cosine", "codes": 128, "code_dim": 4, "restart_below": 0.5, "decay": 0.5},
    "cosine ema": {"kind": "cosine", "codes": 32, "codebook": "ema", "gradient": "rotation"},
    "fsq": {"kind": "fsq", "levels": (4, 3, 5)},
    "fsq direct": {"kind": "fsq", "levels": (4, 3, 5, 3, 3, 3)},
    "fsq entropy": {"kind": "fsq", "levels": (4, 3, 5), "entropy": 0.5},
    "lfq": {"kind": "lfq", "bits": 5},
    "entropy": {"kind": "nearest", "codes": 32, "entropy": 0.1, "entropy_positions": 20, "codebook": "ema"},
    "simvq": {"kind": "simvq", "codes": 32},
    "gumbel": {"kind": "gumbel", "codes": 32},
    "gumbel soft": {"kind": "gumbel", "codes": 32, "straight_through": False},
    "residual": {"kind": "residual", "stages": 3, "stage": {"codes": 16, "kmeans_init": True}},
    "residual projected": {
        "kind": "residual", "stages": 2, "stage": {"codes": 16, "codebook": "ema", "code_dim": 3},
        "gradient": "rotation",
    },
}  # fmt: skip


def make(settings: dict[str, Any], dim: int = DIM) -> Quantizer:
    torch.manual_seed(0)
    return build_quantizer(TypeAdapter(QuantizerConfig).validate_python(settings), dim)


def latents(seed: int = 1, batch: int = 4, dim: int = DIM) -> Tensor:
    return torch.randn(batch, dim, 6, 5, generator=torch.Generator().manual_seed(seed))


def train(quantizer: Quantizer, steps: int = 3, first: int = 0) -> list[Tensor]:
    """A few training steps with plain gradient descent; returns the codes of each."""
    found = []
    for step in range(first, first + steps):
        z = latents(step).requires_grad_()
        result = quantizer(z, torch.Generator().manual_seed(step))
        loss = (result.z - 1).square().mean() + result.loss
        parameters = [p for p in quantizer.parameters() if p.requires_grad]
        _, *gradients = torch.autograd.grad(loss, [z, *parameters], allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= 0.1 * gradient
        found.append(result.codes)
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_quantizer_keeps_the_same_promises(name: str) -> None:
    quantizer = make(ALL[name])
    quantizer.train()
    z = latents().requires_grad_()
    result = quantizer(z, torch.Generator().manual_seed(0))
    shape = (4, 6, 5) + ((quantizer.stages,) if quantizer.stages > 1 else ())
    assert result.codes.shape == shape
    assert result.codes.dtype == torch.int64
    assert result.z.shape == z.shape
    assert result.z.dtype == torch.float32
    assert result.loss.shape == ()
    first = result.codes[..., 0] if quantizer.stages > 1 else result.codes
    assert int(result.used) == len(first.unique())
    (gradient,) = torch.autograd.grad(result.z.square().sum() + result.loss, z)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0
    share = torch.bincount(first.flatten(), minlength=quantizer.codebook_size) / first.numel()
    usage = quantizer.usage[: quantizer.codebook_size]
    assert torch.allclose(usage * quantizer.stages, share * (1 - quantizer.decay), atol=1e-7)

    train(quantizer)
    quantizer.eval()
    before = copy.deepcopy(quantizer.state_dict())
    evaluated = quantizer(latents(9))
    looked_up = quantizer.lookup(evaluated.codes)
    assert torch.allclose(looked_up, evaluated.z, atol=1e-6)
    again = quantizer(latents(9))
    assert torch.equal(again.codes, evaluated.codes), "nothing is drawn outside training"
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed outside training"


@pytest.mark.parametrize("name", ALL)
def test_passes_without_gradients_leave_the_state(name: str) -> None:
    quantizer = make(ALL[name]).train()
    before = copy.deepcopy(quantizer.state_dict())
    with torch.no_grad():
        quantizer(latents(), torch.Generator().manual_seed(0))
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_from_a_saved_state_exactly(name: str) -> None:
    straight = make(ALL[name]).train()
    train(straight, 3)
    resumed = make(ALL[name]).train()
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for mine, other in zip(train(straight, 3, 3), train(resumed, 3, 3), strict=True):
        assert torch.equal(mine, other)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", ALL)
def test_a_step_that_was_interrupted_can_be_run_again(name: str) -> None:
    """A stopped run restores the buffers of before the step, but not parameters: see training.loop."""
    once, twice = make(ALL[name]).train(), make(ALL[name]).train()
    for step in range(6):
        kept = {key: value.clone() for key, value in twice.named_buffers()}
        twice(latents(step).requires_grad_(), torch.Generator().manual_seed(step))
        for key, value in twice.named_buffers():
            value.copy_(kept[key])
        assert torch.equal(train(once, 1, step)[0], train(twice, 1, step)[0])
    for key, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[key]), key


@pytest.mark.parametrize("name", ["learned", "cosine", "fsq", "lfq", "simvq", "gumbel", "residual"])
def test_autocast_changes_nothing(name: str) -> None:
    quantizer = make(ALL[name]).eval()
    z = latents().bfloat16()
    plain = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(z)
        looked_up = quantizer.lookup(mixed.codes)
    assert torch.equal(plain.codes, mixed.codes)
    assert torch.equal(plain.z, mixed.z)
    assert torch.equal(looked_up, quantizer.lookup(plain.codes))


def test_errors_name_shapes_and_ranges() -> None:
    quantizer = make(ALL["learned"])
    with pytest.raises(ValueError, match=r"expected \(B, 6, h, w\)"):
        quantizer(torch.zeros(1, 5, 2, 2))
    with pytest.raises(ValueError, match="0 to 31"):
        quantizer.lookup(torch.full((1, 2, 2), 32))
    with pytest.raises(ValueError, match=r"expected \(B, h, w\)"):
        quantizer.lookup(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected \(B, h, w, 3\)"):
        make(ALL["residual"]).lookup(torch.zeros(1, 2, 2, dtype=torch.int64))


def test_residual_passes_the_gradient_once() -> None:
    quantizer = make({"kind": "residual", "stages": 4, "stage": {"codes": 16}})
    z = latents().requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer(z).z.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


# -- closed forms --------------------------------------------------------------------------------------------


def test_vq_loss_and_its_legacy_form() -> None:
    z = latents().requires_grad_()
    for legacy in (False, True):
        quantizer = make({"kind": "nearest", "codes": 32, "commitment": 0.25, "legacy_beta": legacy})
        assert isinstance(quantizer, VectorQuantizer)
        loss = quantizer(z).loss
        book = quantizer.embedding.weight
        vectors = z.permute(0, 2, 3, 1).reshape(-1, DIM)
        chosen = book[torch.cdist(vectors, book).argmin(1)]
        assert loss.item() == pytest.approx(1.25 * (chosen - vectors).square().mean().item(), rel=1e-6)
        to_z, to_book = torch.autograd.grad(loss, [z, book])
        expected_z, expected_book = torch.autograd.grad((chosen - vectors).square().mean(), [z, book])
        weights = (1.0, 0.25) if legacy else (0.25, 1.0)
        assert torch.allclose(to_z, weights[0] * expected_z, atol=1e-8)
        assert torch.allclose(to_book, weights[1] * expected_book, atol=1e-8)


def test_moving_averages_follow_the_paper() -> None:
    quantizer = make({"kind": "nearest", "codes": 8, "codebook": "ema", "decay": 0.9, "epsilon": 1e-3})
    assert isinstance(quantizer, VectorQuantizer)
    assert not list(quantizer.parameters()), "the codebook is a buffer and takes no gradient"
    sizes, sums, book = torch.ones(8), quantizer.embedding.weight.clone(), quantizer.embedding.weight.clone()
    for step in range(3):
        z = latents(step).requires_grad_()
        result = quantizer(z)
        vectors = z.detach().permute(0, 2, 3, 1).reshape(-1, DIM)
        codes = torch.cdist(vectors, book).argmin(1)
        assert torch.equal(result.codes.flatten(), codes)
        commit = 0.25 * (vectors - book[codes]).square().mean()
        assert result.loss.item() == pytest.approx(float(commit), rel=1e-5)
        onehot = functional.one_hot(codes, 8).float()
        sizes = 0.9 * sizes + 0.1 * onehot.sum(0)
        sums = 0.9 * sums + 0.1 * onehot.T @ vectors
        smoothed = (sizes + 1e-3) / (sizes.sum() + 8e-3) * sizes.sum()
        book = sums / smoothed[:, None]
        assert torch.allclose(quantizer.embedding.weight, book, atol=1e-5)


def test_fsq_reaches_each_code_and_counts_in_mixed_radix() -> None:
    quantizer = make({"kind": "fsq", "levels": (4, 3, 5)}, dim=3).eval()
    every = torch.arange(60).view(1, 6, 10)
    vectors = quantizer.lookup(every)
    # Whole levels are -2..1, -1..1, -2..2; the first channel counts lowest.
    assert torch.allclose(vectors[0, :, 0, 0], torch.tensor([-1.0, -1.0, -1.0]))
    assert torch.allclose(vectors[0, :, 0, 1], torch.tensor([-0.5, -1.0, -1.0]))
    assert torch.allclose(vectors[0, :, 0, 4], torch.tensor([-1.0, 0.0, -1.0]))
    # The inverse of the squashing brings every code back to itself.
    half = torch.tensor([3.0, 2.0, 4.0]) * 1.001 / 2
    offset = torch.tensor([0.5, 0.0, 0.0])
    whole = vectors * torch.tensor([2.0, 1.0, 2.0])[:, None, None]
    z = (
        torch.atanh((whole + offset[:, None, None]) / half[:, None, None])
        - torch.atanh(offset / half)[:, None, None]
    )
    assert torch.equal(quantizer(z).codes, every)


def test_lfq_entropies_equal_the_sum_over_all_codes() -> None:
    quantizer = make({"kind": "lfq", "bits": 5, "temperature": 0.7, "diversity": 1.3}, dim=5)
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 0.5
    book = quantizer.lookup(torch.arange(32).view(1, 4, 8)).flatten(2)[0].T
    shares = (-torch.cdist(vectors, book).square() / 0.7).softmax(1)
    sure = -torch.xlogy(shares, shares).sum(1).mean()
    spread = -torch.xlogy(shares.mean(0), shares.mean(0)).sum()
    assert float(quantizer.entropy_loss(vectors)) == pytest.approx(float(sure - 1.3 * spread), rel=1e-4)


@pytest.mark.parametrize("levels", [(4, 3, 5), (7,), (4, 4)])
def test_fsq_crowding_equals_the_sum_over_all_codes(levels: tuple[int, ...]) -> None:
    settings = {"kind": "fsq", "levels": levels, "entropy": 1.0, "entropy_temperature": 0.7}
    quantizer = make(settings, dim=len(levels)).train()
    size = quantizer.codebook_size
    bounded = quantizer.bound(torch.randn(50, len(levels), generator=torch.Generator().manual_seed(0)))
    book = quantizer.vectors_of(torch.arange(size)) * (quantizer.levels // 2)  # the levels of each code
    distances = torch.cdist(bounded, book, compute_mode="donot_use_mm_for_euclid_dist").square()
    codes = distances.argmin(1)
    near = (-distances / 0.7).softmax(1).mean(0)
    counts = torch.bincount(codes, minlength=size) / 50
    kept = torch.rand(size, generator=torch.Generator().manual_seed(1))
    for use, before in ((counts, 0 * kept), (0.9 * kept / kept.sum() + 0.1 * counts, kept)):
        quantizer.usage.copy_(before)
        expected = (near * (size * use + 0.05).log()).sum()
        assert float(quantizer.crowding(bounded, codes)) == pytest.approx(float(expected), rel=1e-4)


def test_fsq_entropy_spreads_what_lies_in_a_heap() -> None:
    used = {}
    for entropy in (0.0, 1.0):
        settings = {"kind": "fsq", "levels": (8, 8, 4), "entropy": entropy, "decay": 0.9}
        quantizer = make(settings, dim=3).train()
        heap = 0.1 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        heap.requires_grad_()
        optimizer = torch.optim.Adam([heap], 0.03)
        for _ in range(150):
            optimizer.zero_grad()
            (quantizer(heap).loss + 0.0 * heap.sum()).backward()
            optimizer.step()
        counts = torch.bincount(quantizer.eval()(heap).codes.flatten(), minlength=256)
        used[entropy] = codebook_statistics(counts)
    assert used[0.0].perplexity < 20
    assert used[1.0].used > 0.95
    assert used[1.0].perplexity > 0.7 * 256


def test_gumbel_draws_codes_with_their_probabilities_and_cools() -> None:
    settings = {"kind": "gumbel", "codes": 4, "kl_weight": 2.0, "anneal_images": 100}
    quantizer = make(settings, dim=2).train()
    z = torch.tensor([1.0, -0.5]).view(1, 2, 1, 1).expand(1, 2, 100, 100)
    shares = (quantizer.proj.weight[:, :, 0, 0] @ z[0, :, 0, 0] + quantizer.proj.bias).softmax(0)
    result = quantizer(z, torch.Generator().manual_seed(0))
    drawn = torch.bincount(result.codes.flatten(), minlength=4) / 10_000
    assert torch.allclose(drawn, shares, atol=5 * 0.005)  # standard deviation at most 0.5 / 100
    assert result.loss.item() == pytest.approx(2.0 * (shares * (shares * 4).log()).sum().item(), rel=1e-3)
    for images, temperature in ((0, 1.0), (50, 0.25), (100, 0.0625), (1000, 0.0625)):
        quantizer.set_progress(images)
        assert float(quantizer.temperature) == pytest.approx(temperature, rel=1e-5)


# -- what keeps codes alive ----------------------------------------------------------------------------------


def crowd(step: int) -> Tensor:
    """Latents of which 60 % are one background vector, the rest spread over a plane: (8, 6, 8, 8)."""
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(8 * 64, DIM, generator=generator) * torch.tensor([3.0, 3.0, 0.1, 0.1, 0.1, 0.1]) + 5.0
    z[torch.rand(len(z), generator=generator) < 0.6] = 1.0
    return z.view(8, 8, 8, DIM).permute(0, 3, 1, 2)


@pytest.mark.parametrize("codebook", ["learned", "ema"])
def test_restarts_and_kmeans_keep_a_codebook_in_use_that_otherwise_dies(codebook: str) -> None:
    used = {}
    for name, extra in (
        ("plain", {}),
        ("restart", {"restart_below": 0.1, "decay": 0.9}),
        ("kmeans", {"kmeans_init": True}),
        ("both", {"kmeans_init": True, "restart_below": 0.1, "decay": 0.9}),
    ):
        quantizer = make({"kind": "nearest", "codes": 128, "codebook": codebook} | extra).train()
        for step in range(60):
            quantizer(crowd(step).requires_grad_(), torch.Generator().manual_seed(step))
        counts = torch.zeros(128)
        quantizer.eval()
        for step in range(100, 110):
            counts += torch.bincount(quantizer(crowd(step)).codes.flatten(), minlength=128)
        used[name] = codebook_statistics(counts).used
    assert used["plain"] < 0.25
    assert used["restart"] > 0.9
    assert used["kmeans"] > 0.7
    assert used["both"] > 0.9


@pytest.mark.parametrize("kind", ["nearest", "cosine"])
def test_the_entropy_loss_spreads_positions_over_the_codes(kind: str) -> None:
    found = {}
    for weight in (0.0, 1.0):
        settings = {"kind": kind, "codes": 16, "code_dim": 4, "entropy": weight, "entropy_temperature": 1.0}
        quantizer = make(settings, dim=4).train()
        assert isinstance(quantizer, VectorQuantizer)
        book = functional.normalize(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), dim=1)
        quantizer.embedding.weight.data.copy_(book)
        z = 0.5 + 0.05 * torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        z.requires_grad_()
        optimizer = torch.optim.Adam([z], 0.05)
        for step in range(100):
            optimizer.zero_grad()
            quantizer(z, torch.Generator().manual_seed(step)).loss.backward()
            optimizer.step()
        counts = torch.bincount(quantizer.eval()(z).codes.flatten(), minlength=16)
        found[weight] = codebook_statistics(counts).perplexity
    assert found[0.0] < 3
    assert found[1.0] > 6


def test_a_codebook_larger_than_a_batch_fills_over_several_batches() -> None:
    quantizer = make({"kind": "nearest", "codes": 500, "kmeans_init": True, "kmeans_iterations": 3}).train()
    filled = []
    for step in range(6):
        codes = quantizer(crowd(step).requires_grad_(), torch.Generator().manual_seed(step)).codes
        filled.append(int(quantizer.filled))
        assert int(codes.max()) < filled[-1], "rows that nothing has filled are never chosen"
    assert filled == [128, 256, 384, 500, 500, 500]
