"""GAN layers against closed forms, scipy's distributions, singular values and torch's own spectral norm."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from vitrail.errors import InputError, NonFiniteError
from vitrail.models.gan import BigGANDiscriminator, DCGANDiscriminator, Discriminator
from vitrail.models.gan_layers import (
    BatchNorm,
    ConditionalBatchNorm,
    SelfAttention,
    SpectralNorm,
    advance_spectral,
    batch_spread,
    convolve_doubled,
    convolve_halved,
    halve,
    orthogonal_init,
    orthogonal_penalty,
    spectral,
    standing_statistics,
)
from vitrail.models.gan_noise import DISTRIBUTIONS, Latents, draw_latents, shaped, slerp
from vitrail.recipe.gan import BigGANConfig, DCGANConfig, GANDiscriminatorConfig

SCIPY = {
    "gaussian": stats.norm(),
    "uniform": stats.uniform(-math.sqrt(3.0), 2.0 * math.sqrt(3.0)),
    "laplace": stats.laplace(scale=math.sqrt(0.5)),
    "student_t": stats.t(4, scale=math.sqrt(0.5)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- distributions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_agree_with_scipy(name: str) -> None:
    ours, theirs = DISTRIBUTIONS[name], SCIPY[name]
    x = torch.linspace(0.0, 1.7 if name == "uniform" else 30.0, 200, dtype=torch.float64)
    # Closed forms in float64: only rounding is left, also far out in the tail.
    torch.testing.assert_close(ours.tail(x), torch.from_numpy(theirs.sf(x.numpy())), rtol=1e-9, atol=1e-300)
    p = torch.logspace(-12, math.log10(0.499), 100, dtype=torch.float64)
    torch.testing.assert_close(
        ours.quantile(p), torch.from_numpy(theirs.isf(p.numpy())), rtol=1e-7, atol=1e-9
    )
    assert theirs.var() == pytest.approx(1.0)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("truncation", [None, 0.5, 1.5])
def test_shaped_numbers_have_the_wanted_distribution(name: str, truncation: float | None) -> None:
    x = shaped(torch.randn(20_000), name, truncation)  # type: ignore[arg-type]
    wanted = SCIPY[name]
    if truncation is not None:
        assert x.abs().max() <= truncation
        low, high = wanted.cdf(-truncation), wanted.cdf(truncation)
        found = stats.kstest(x.numpy(), lambda v: ((wanted.cdf(v) - low) / (high - low)).clip(0.0, 1.0))
    else:
        found = stats.kstest(x.numpy(), wanted.cdf)
    assert found.pvalue > 1e-3  # fixed seed: a right sampler fails a thousandth of seeds
    assert x.dtype == torch.float32


def test_truncation_is_gentle_and_leaves_a_plain_gaussian_alone() -> None:
    normal = torch.randn(1000)
    assert shaped(normal) is normal
    wide = shaped(normal, "gaussian", 8.0)
    assert (wide - normal).abs().max() < 1e-4
    narrow = shaped(normal, "gaussian", 0.3)
    assert torch.equal(narrow.sign(), normal.sign())
    order = normal.argsort()
    assert bool((narrow[order].diff() >= 0).all())
    assert shaped(torch.zeros(3), "student_t").abs().max() == 0.0
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="truncation"):
            shaped(normal, "gaussian", wrong)
    with pytest.raises(InputError, match="student_t"):
        shaped(normal, "cauchy")  # type: ignore[arg-type]


def test_slerp_is_an_arc_of_even_speed() -> None:
    first = Latents(torch.tensor([[3.0, 0.0]]), (torch.ones(1, 1, 2, 2),))
    second = Latents(torch.tensor([[0.0, 1.0]]), (torch.ones(1, 1, 2, 2),))
    third = slerp(first, second, 1 / 3)
    length = 3.0 * 2 / 3 + 1.0 / 3
    wanted = torch.tensor([[length * math.cos(math.pi / 6), length * math.sin(math.pi / 6)]])
    torch.testing.assert_close(third.z, wanted)
    torch.testing.assert_close(third.noise[0], torch.ones(1, 1, 2, 2))  # parallel ends: nothing moves
    for share, end in ((0.0, first), (1.0, second)):
        torch.testing.assert_close(slerp(first, second, share).z, end.z, atol=1e-6, rtol=0)


# --- spectral norm ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Conv2d(5, 7, 3), nn.Linear(9, 4), nn.Embedding(6, 3)])
def test_spectral_norm_finds_the_largest_singular_value(layer: nn.Module) -> None:
    # The power iteration's error shrinks by (second / first singular value)^2 a step: a weight of chance may
    # have two that are nearly equal, so this one's are given: 4, 3, 2, 1, 1 ...
    weight: torch.Tensor = layer.weight.detach()  # type: ignore[union-attr,assignment]
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    values = torch.arange(4.0, 4.0 - len(values), -1).clamp(min=1)
    weight.copy_((left @ values.diag() @ right).view_as(weight))
    wanted = weight / 4.0
    spectral(layer)
    advance_spectral(layer, 200)
    torch.testing.assert_close(layer.weight, wanted, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_spectral_norm_is_torchs_given_the_same_vectors() -> None:
    ours, theirs = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    theirs.load_state_dict(ours.state_dict())
    spectral(ours)
    parametrizations.spectral_norm(theirs)
    mine: SpectralNorm = ours.parametrizations.weight[0]  # type: ignore[union-attr,index,assignment]
    other = theirs.parametrizations.weight[0]  # type: ignore[union-attr,index]
    mine.u.copy_(other._u)
    mine.v.copy_(other._v)
    x = torch.randn(2, 4, 5, 5)
    # torch takes its step before a training pass, we after an update: the same step, the same numbers.
    mine.advance(ours.parametrizations.weight.original.detach())  # type: ignore[union-attr]
    outputs = [net.train()(x) for net in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    grads = [
        torch.autograd.grad(out.square().sum(), net.parametrizations.weight.original)[0]  # type: ignore[union-attr,arg-type]
        for out, net in zip(outputs, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_a_forward_pass_changes_nothing() -> None:
    config = BigGANConfig(image_size=16, classes=3, width=4, attention=8)
    network = BigGANDiscriminator(config, GANDiscriminatorConfig(width=4, attention=8)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = network(torch.randn(4, 3, 16, 16).tanh(), torch.tensor([0, 1, 2, 0]))
    first.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# --- batch normalisation ---------------------------------------------------------------------------


def test_conditional_batch_norm_is_its_formula() -> None:
    layer = ConditionalBatchNorm(3, 5).train()
    x, condition = torch.randn(6, 3, 4, 4) * 2 + 1, torch.randn(6, 5)
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), keepdim=True, unbiased=False)
    gain = condition @ layer.gain.weight.T
    bias = condition @ layer.bias.weight.T
    wanted = (x - mean) / (variance + 1e-5).sqrt() * (1 + gain)[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(layer(x, condition), wanted, rtol=1e-5, atol=1e-5)
    layer.eval()
    layer.norm.mean.fill_(0.5)
    layer.norm.variance.fill_(4.0)
    wanted = (x - 0.5) / math.sqrt(4.0 + 1e-5) * (1 + gain)[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(layer(x, condition), wanted, rtol=1e-5, atol=1e-5)


def test_standing_statistics_are_those_of_all_values_together() -> None:
    layer = BatchNorm(3)
    batches = [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(5)]
    standing_statistics(layer, 5, lambda i: layer(batches[i]))
    values = torch.cat(batches).double()
    torch.testing.assert_close(layer.mean.double(), values.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        layer.variance.double(), values.var((0, 2, 3), unbiased=False), rtol=1e-6, atol=1e-7
    )
    assert not layer.training
    before = layer.mean.clone()
    layer.train()(batches[0])
    assert torch.equal(layer.mean, before)
    with pytest.raises(NonFiniteError, match="statistics"):
        standing_statistics(layer, 1, lambda i: layer(torch.full((2, 3, 2, 2), math.nan)))
    assert layer.sums is None


# --- projection, attention, spread, orthogonality ----------------------------------------------------


@pytest.mark.parametrize("kind", ["dcgan", "biggan"])
def test_projection_is_its_closed_form(kind: str) -> None:
    config = (
        DCGANConfig(image_size=16, classes=4, width=4)
        if kind == "dcgan"
        else BigGANConfig(image_size=16, classes=4, width=4)
    )
    settings = GANDiscriminatorConfig(width=4, normalisation="none")
    network: Discriminator = (DCGANDiscriminator if kind == "dcgan" else BigGANDiscriminator)(
        config, settings
    )
    x, labels = torch.randn(5, 3, 16, 16), torch.tensor([3, 1, 0, 0, 2])
    phi = network.features(x)
    assert network.embedding is not None
    rows = torch.stack([network.embedding.weight[int(label)] for label in labels])
    wanted = torch.einsum("bw,bw->b", rows, phi) + phi @ network.score.weight[0] + network.score.bias
    torch.testing.assert_close(network(x, labels), wanted)
    # The log-odds of two classes at one picture differ by the projection alone (the paper's eq. 3).
    one, other = network(x, torch.zeros(5, dtype=torch.int64)), network(x, torch.ones(5, dtype=torch.int64))
    table = network.embedding.weight
    torch.testing.assert_close(one - other, phi @ (table[0] - table[1]), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="4 classes"):
        network(x)


def test_attention_is_its_formula_and_begins_as_nothing() -> None:
    layer = SelfAttention(8)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x), x)
    nn.init.ones_(layer.gamma)
    query = torch.einsum("oc,bchw->bohw", layer.query.weight[:, :, 0, 0], x).flatten(2)
    key = nn.functional.max_pool2d(layer.key(x), 2).flatten(2)
    value = nn.functional.max_pool2d(layer.value(x), 2).flatten(2)
    weights = torch.einsum("bcq,bck->bqk", query, key).softmax(-1)
    drawn = torch.einsum("bqk,bck->bcq", weights, value).view(2, 4, 4, 4)
    torch.testing.assert_close(layer(x), x + layer.out(drawn), rtol=1e-5, atol=1e-5)


def test_batch_spread_is_the_mean_deviation_of_a_group() -> None:
    x = torch.randn(8, 2, 3, 3)
    y = batch_spread(x)
    assert torch.equal(y[:, :2], x)
    for first in range(2):
        group = x[first::2]
        wanted = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[first::2, 2], wanted.expand(4, 3, 3))
    assert batch_spread(x[:3]).shape == (3, 3, 3, 3)
    assert float(batch_spread(x[:1].expand(4, -1, -1, -1))[:, 2].max()) < 1e-3


@pytest.mark.parametrize("bound", [False, True])
def test_resizing_and_convolving_at_once_is_one_after_the_other(bound: bool) -> None:
    layer = nn.Conv2d(5, 7, 3, padding=1).double()
    if bound:
        spectral(layer)
    x = torch.randn(3, 5, 8, 6, dtype=torch.float64, requires_grad=True)
    pairs = (
        (convolve_doubled(layer, x), layer(functional.interpolate(x, scale_factor=2.0))),
        (convolve_halved(layer, x), functional.avg_pool2d(layer(x), 2)),
        (halve(x), functional.avg_pool2d(x, 2)),
    )
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted)
        weights = torch.randn_like(got)
        # Through the weights too, unless nothing is convolved.
        leaves = [x, *(layer.parameters() if got is not pairs[2][0] else ())]
        for mine, theirs in zip(
            torch.autograd.grad((got * weights).sum(), leaves, retain_graph=True),
            torch.autograd.grad((wanted * weights).sum(), leaves, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)


def test_orthogonal_start_and_penalty() -> None:
    network = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Linear(10, 4))
    orthogonal_init(network)
    assert float(orthogonal_penalty(network, 1.0).detach()) < 1e-9
    assert float(network[1].bias.detach().abs().max()) == 0.0
    with torch.no_grad():
        network[0].weight.normal_()
    matrix = network[0].weight.detach().flatten(1)
    product = matrix @ matrix.T * (1 - torch.eye(6))
    torch.testing.assert_close(orthogonal_penalty(network, 0.5), 0.5 * product.square().sum())


def test_draws_are_standard_normal_and_in_order() -> None:
    drawn = draw_latents(3, 5, (8, 16), torch.Generator().manual_seed(4))
    again = torch.Generator().manual_seed(4)
    assert torch.equal(drawn.z, torch.randn(3, 5, generator=again))
    assert torch.equal(drawn.noise[0], torch.randn(3, 1, 8, 8, generator=again))
    assert drawn.noise[1].shape == (3, 1, 16, 16)
    joined = Latents.stack([drawn, drawn])
    assert joined.z.shape == (6, 5)
    assert joined.noise[1].shape == (6, 1, 16, 16)


def test_a_parametrised_layer_is_still_found() -> None:
    layer = spectral(nn.Linear(3, 2))
    assert parametrize.is_parametrized(layer)
    assert isinstance(layer, nn.Linear)
