"""Quantizers against the library vector-quantize-pytorch, with the same codes and inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from vitrail.models.quantizers import Quantizer, build_quantizer
from vitrail.models.quantizers_search import rotate
from vitrail.recipe.autoencoders import QuantizerConfig

library = pytest.importorskip("vector_quantize_pytorch")

#: Float32 sums of a few hundred terms in another order.
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}


def make(**settings: Any) -> Quantizer:
    dim = settings.pop("dim")
    return build_quantizer(TypeAdapter(QuantizerConfig).validate_python(settings), dim)


def latents(dim: int, seed: int = 0) -> Tensor:
    return torch.randn(3, dim, 5, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(quantized: Tensor, loss: Tensor, z: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, quantized.numel()).view_as(quantized)
    (gradient,) = torch.autograd.grad((quantized * weights).sum() + 5.0 * loss, z)
    return gradient


def test_fsq() -> None:
    levels = (8, 5, 4, 3)
    ours, theirs = make(kind="fsq", levels=levels, dim=4), library.FSQ(list(levels), channel_first=True)
    z, other = latents(4), latents(4)
    mine = ours(z)
    their_z, their_codes = theirs(other)
    assert torch.equal(mine.codes, their_codes.long())
    assert torch.equal(mine.z, their_z)
    assert torch.allclose(gradients(mine.z, mine.loss, z), gradients(their_z, mine.loss * 0, other), **CLOSE)
    assert torch.equal(ours.lookup(mine.codes), theirs.indices_to_codes(their_codes))


def test_lfq_with_its_entropy_loss() -> None:
    ours = make(kind="lfq", bits=7, commitment=0.5, entropy=0.2, diversity=1.5, temperature=0.1, dim=7)
    theirs = library.LFQ(
        dim=7, entropy_loss_weight=0.2, commitment_loss_weight=0.5, diversity_gamma=1.5
    ).train()
    # Small values, or every bit is certain and the entropies are all zero.
    z, other = ((latents(7) * 0.1).detach().requires_grad_() for _ in range(2))
    mine = ours.train()(z)
    their_z, their_codes, their_loss = theirs(other, inv_temperature=10.0)
    assert torch.equal(mine.codes, their_codes.long())
    assert torch.equal(mine.z, their_z)
    # They clamp probabilities at 1e-5 in the logarithm; the terms below that are lost to them.
    assert mine.loss.item() == pytest.approx(their_loss.item(), rel=1e-3)
    assert torch.allclose(
        gradients(mine.z, mine.loss, z), gradients(their_z, their_loss, other), rtol=1e-2, atol=2e-4
    )


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_simvq(gradient: str) -> None:
    ours = make(kind="simvq", codes=40, gradient=gradient, dim=6)
    theirs = library.SimVQ(6, 40, channel_first=True, rotation_trick=gradient == "rotation")
    state = {"frozen": theirs.frozen_codebook, "transform.weight": theirs.code_transform.weight}
    ours.load_state_dict(ours.state_dict() | state)
    z, other = latents(6), latents(6)
    mine = ours(z)
    their_z, their_codes, their_loss = theirs(other)
    assert torch.equal(mine.codes, their_codes)
    assert torch.allclose(mine.z, their_z, **CLOSE)
    assert mine.loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    assert torch.allclose(
        gradients(mine.z, mine.loss, z), gradients(their_z, their_loss, other), rtol=1e-4, atol=1e-5
    )


def test_rotation_trick() -> None:
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    torch.manual_seed(0)
    source, target = torch.randn(20, 6), torch.randn(20, 6)
    results = []
    for function in (rotate, rotate_to):
        z = source.clone().requires_grad_()
        out = function(z, target)
        results.append((out, torch.autograd.grad((out * torch.linspace(-1, 1, 6)).sum(), z)[0]))
    assert torch.allclose(results[0][0], results[1][0], **CLOSE)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


def test_moving_averages_over_several_steps() -> None:
    ours = make(kind="nearest", codes=16, codebook="ema", decay=0.9, epsilon=1e-5, dim=6).train()
    theirs = library.VectorQuantize(
        6, 16, decay=0.9, eps=1e-5, commitment_weight=0.25, accept_image_fmap=True, rotation_trick=False
    ).train()
    book = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))
    inner = theirs._codebook
    inner.embed.data.copy_(book[None])
    inner.embed_avg.data.copy_(book[None])
    inner.cluster_size.data.fill_(1.0)
    ours.load_state_dict(ours.state_dict() | {"embedding.weight": book.clone(), "sums": book.clone()})
    for step in range(4):
        z, other = latents(6, step), latents(6, step)
        mine = ours(z)
        their_z, their_codes, their_loss = theirs(other)
        assert torch.equal(mine.codes, their_codes)
        assert torch.allclose(mine.z, their_z, rtol=1e-4, atol=1e-5)
        assert mine.loss.item() == pytest.approx(their_loss.item(), rel=1e-4)
        assert torch.allclose(ours.get_buffer("embedding.weight"), inner.embed[0], rtol=1e-4, atol=1e-5)


def test_cosine_codes_and_loss() -> None:
    ours = make(kind="cosine", codes=16, code_dim=0, commitment=0.25, dim=6).eval()
    theirs = library.VectorQuantize(
        6, 16, use_cosine_sim=True, accept_image_fmap=True, rotation_trick=False
    ).eval()
    book = functional.normalize(torch.randn(16, 6, generator=torch.Generator().manual_seed(5)), dim=1)
    theirs._codebook.embed.data.copy_(book[None])
    ours.load_state_dict(ours.state_dict() | {"embedding.weight": book})
    mine, (their_z, their_codes, _) = ours(latents(6)), theirs(latents(6))
    assert torch.equal(mine.codes, their_codes)
    assert torch.allclose(mine.z, their_z, **CLOSE)
    vectors = functional.normalize(latents(6), dim=1).permute(0, 2, 3, 1).reshape(-1, 6)
    expected = 1.25 * (vectors - book[mine.codes.flatten()]).square().mean()
    assert mine.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_residual_codes() -> None:
    ours = make(kind="residual", stages=3, stage={"codes": 16}, dim=6).eval()
    theirs = library.ResidualVQ(dim=6, num_quantizers=3, codebook_size=16, rotation_trick=False).eval()
    torch.manual_seed(7)
    state = dict(ours.state_dict())
    for stage in range(3):
        book = torch.randn(16, 6) * 0.5**stage
        theirs.layers[stage]._codebook.embed.data.copy_(book[None])
        state[f"layers.{stage}.embedding.weight"] = book
    ours.load_state_dict(state)
    z = latents(6)
    mine = ours(z)
    their_z, their_codes, _ = theirs(z.permute(0, 2, 3, 1).reshape(1, -1, 6))  # its maps fail in 1.32
    assert torch.equal(mine.codes.view(-1, 3), their_codes[0])
    assert torch.allclose(mine.z.permute(0, 2, 3, 1).reshape(-1, 6), their_z[0], rtol=1e-4, atol=1e-5)
