"""Arithmetic of quantizers: search, clusters, gradients through a jump, use of codes."""

from __future__ import annotations

import math

import pytest
import torch

from vitrail.models.quantizers_search import (
    assignment_entropy,
    codebook_statistics,
    draw_far,
    kmeans,
    nearest_codes,
    rotate,
    straight_through,
)


@pytest.mark.parametrize("block", [1, 100, 7 * 50, 10**9])
def test_nearest_codes_are_those_of_the_whole_matrix_in_float64(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(203, 8, generator=generator)
    book = torch.randn(50, 8, generator=generator)
    whole = (vectors.double()[:, None] - book.double()[None]).square().sum(2)
    assert torch.equal(nearest_codes(vectors, book, block), whole.argmin(1))


@pytest.mark.parametrize("width", [4, 65])
def test_large_codebooks_are_searched_as_small_ones(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, width, generator=generator)
    book = torch.randn(2048, width, generator=generator)
    book[1500:1600] = book[100:200]  # ties: the first must win
    whole = (vectors.double()[:, None] - book.double()[None]).square().sum(2)
    assert torch.equal(nearest_codes(vectors, book), whole.argmin(1))


def test_of_equal_codes_the_first_is_chosen() -> None:
    book = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert nearest_codes(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), book).tolist() == [0, 1]


def test_kmeans_finds_separate_clusters_and_gives_no_more_centres_than_there_are_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = centres.repeat(50, 1) + torch.randn(200, 2, generator=generator) * 0.1
    for seed in range(20):  # whatever the seeds, no cluster is missed: a lost centre moves to a far point
        found = kmeans(points, 8, 20, torch.Generator().manual_seed(seed))
        gaps = (centres[:, None] - found[None]).norm(dim=2).amin(1)
        assert float(gaps.max()) < 0.3
    assert len(kmeans(torch.ones(30, 2), 5, 3, generator)) == 1
    assert len(kmeans(torch.eye(3).repeat(4, 1), 50, 3, generator)) <= 12


def test_far_vectors_are_drawn_in_proportion_and_represented_ones_never() -> None:
    generator = torch.Generator().manual_seed(0)
    gaps = torch.tensor([0.0, 1.0, 3.0, 0.0])
    draws = torch.cat([draw_far(gaps, 1, generator) for _ in range(4000)])
    counts = torch.bincount(draws, minlength=4)
    assert counts[0] == counts[3] == 0
    # binomial(4000, 3/4): standard deviation 27
    assert abs(int(counts[2]) - 3000) < 5 * 27
    assert sorted(draw_far(gaps, 9, generator).tolist()) == [1, 2]
    assert len(draw_far(torch.zeros(5), 3, generator)) == 0


# -- gradients -----------------------------------------------------------------------------------------------


def test_straight_through_gives_the_code_exactly_and_the_gradient_unchanged() -> None:
    z = torch.randn(5, 3, requires_grad=True)
    code = torch.randn(5, 3)
    result = straight_through(z, code)
    assert torch.equal(result, code)
    (gradient,) = torch.autograd.grad((result * torch.arange(3.0)).sum(), z)
    assert torch.equal(gradient, torch.arange(3.0).expand(5, 3))


def test_rotation_equals_an_explicit_rotation_matrix() -> None:
    """Against the turn in the plane of z and its code by Rodrigues' formula, times the lengths."""
    torch.manual_seed(0)
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    code = torch.randn(7, 5, dtype=torch.float64)
    upstream = torch.randn(7, 5, dtype=torch.float64)
    result = rotate(z, code)
    assert torch.equal(result, code)
    (gradient,) = torch.autograd.grad((result * upstream).sum(), z)
    for row in range(7):
        a, b = z[row].detach(), code[row]
        u = a / a.norm()
        v = b - (b @ u) * u
        v = v / v.norm()
        cosine = float(b @ u / b.norm())
        sine = math.sqrt(1 - cosine**2)
        plane = torch.outer(u, u) + torch.outer(v, v)
        turn = torch.eye(5) + sine * (torch.outer(v, u) - torch.outer(u, v)) + (cosine - 1) * plane
        matrix = turn * (b.norm() / a.norm())
        assert torch.allclose(matrix @ a, b)
        assert torch.allclose(gradient[row], matrix.T @ upstream[row])


def test_rotation_of_impossible_pairs_is_the_identity() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    code = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    result = rotate(z, code)
    assert torch.equal(result, code)
    (gradient,) = torch.autograd.grad(result.sum(), z)
    assert torch.equal(gradient, torch.ones(2, 2))


def test_assignment_entropy_is_minus_the_mutual_information() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, book = torch.randn(30, 5, generator=generator), torch.randn(12, 5, generator=generator)
    shares = (-torch.cdist(vectors, book).square() / 0.8).softmax(1)
    joint = shares / 30
    independent = joint.sum(0) * joint.sum(1, keepdim=True)
    information = (joint * (joint / independent).log()).sum()
    assert float(assignment_entropy(vectors, book, 0.8)) == pytest.approx(-float(information), rel=1e-4)


def test_statistics_of_known_histograms() -> None:
    even = codebook_statistics(torch.full((64,), 3))
    assert (even.used, even.total) == (1.0, 192.0)
    assert even.perplexity == pytest.approx(64)
    half = codebook_statistics(torch.tensor([5, 5, 0, 0]))
    assert half.used == 0.5
    assert half.perplexity == pytest.approx(2)
    assert codebook_statistics(torch.zeros(3)).perplexity == 0.0
