"""Deep features used again, and the fitted preview."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.backends.sd.fast import DeepReuse, fit_preview
from vitrail.errors import InputError
from vitrail.kernels import accelerate

diffusers = pytest.importorskip("diffusers")


def unet(last: str = "CrossAttnUpBlock2D") -> nn.Module:
    torch.manual_seed(0)
    made = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", last),
        cross_attention_dim=32,
        attention_head_dim=4,
        layers_per_block=2,
        norm_num_groups=8,
        sample_size=16,
    )
    assert isinstance(made, nn.Module)
    return made.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def passed(network: nn.Module, x: Tensor, time: int = 501) -> Tensor:
    with torch.no_grad():
        made = network(x, torch.tensor(time), noise(1, 9, 32, seed=1).expand(len(x), -1, -1)).sample
    assert isinstance(made, Tensor)
    return made


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("last", ["CrossAttnUpBlock2D", "UpBlock2D"])
def test_same_input_gives_the_same_pass(fast: bool, last: str) -> None:
    # nothing changed between two passes: the kept features are what a whole pass would make
    network = accelerate(unet(last)) if fast else unet(last)
    x = noise(2, 4, 10, 12)
    wanted = passed(network, x)
    with DeepReuse(network, 3) as reuse:
        for number in range(7):
            assert torch.allclose(passed(network, x), wanted, atol=1e-6)
            assert reuse.passes == number + 1
        assert reuse.whole == 3
        # a shallow pass sees the new input, through the outermost layer alone
        moved = passed(network, x + 0.1)
        assert reuse.whole == 3
        assert not torch.allclose(moved, wanted, atol=1e-4)
    assert torch.equal(passed(network, x), wanted)
    assert all("forward" not in vars(module) for module in network.modules())


def test_near_steps_are_near() -> None:
    network, x = unet(), noise(1, 4, 16, 16)
    wanted = passed(network, x + 0.01, 500)
    with DeepReuse(network, 2):
        first = passed(network, x, 510)
        near = passed(network, x + 0.01, 500)
    # nearer than the pass before it, though only the outermost layer was computed
    assert (near - wanted).norm() < 0.95 * (first - wanted).norm()


def test_another_batch_is_a_whole_pass() -> None:
    network, x = unet(), noise(2, 4, 8, 8)
    with DeepReuse(network, 10) as reuse:
        passed(network, x)
        passed(network, x)
        assert torch.allclose(passed(network, x[1:]), passed(unet(), x[1:]), atol=1e-6)
        assert (reuse.passes, reuse.whole) == (3, 2)


def test_texts_that_take_turns_do_not_mix() -> None:
    network, x = unet(), noise(1, 4, 8, 8)
    texts = [noise(1, 9, 32, seed=1), noise(1, 9, 32, seed=2)]

    def answer(text: Tensor) -> Tensor:
        with torch.no_grad():
            made: Tensor = network(x, torch.tensor(501), encoder_hidden_states=text.clone()).sample
        return made

    wanted = [answer(text) for text in texts]
    with DeepReuse(network, 3) as reuse:
        for _ in range(3):
            for text, one in zip(texts, wanted, strict=True):
                assert torch.allclose(answer(text), one, atol=1e-6)
        assert (reuse.passes, reuse.whole) == (6, 2)
        for seed in range(10, 16):  # more texts than are kept
            answer(noise(1, 9, 32, seed=seed))
        answer(texts[0])
        assert reuse.whole == 9


def test_features_of_a_pass_with_control_are_reused() -> None:
    network, x = unet(), noise(1, 4, 8, 8)
    text = noise(1, 9, 32, seed=1)
    sides = [(32, 8), (32, 8), (32, 8), (32, 4), (64, 4), (64, 4)]
    down = [noise(1, width, side, side, seed=place) for place, (width, side) in enumerate(sides)]
    middle = noise(1, 64, 4, 4, seed=9)

    def answer() -> Tensor:
        with torch.no_grad():
            made: Tensor = network(
                x,
                torch.tensor(501),
                text,
                down_block_additional_residuals=tuple(down),
                mid_block_additional_residual=middle,
            ).sample
        return made

    wanted = answer()
    with DeepReuse(network, 2):
        assert torch.allclose(answer(), wanted, atol=1e-5)
        assert torch.allclose(answer(), wanted, atol=1e-5)


def test_interval_one_changes_nothing_and_zero_is_refused() -> None:
    network, x = unet(), noise(1, 4, 8, 8)
    wanted = passed(network, x)
    with DeepReuse(network, 1):
        assert torch.equal(passed(network, x), wanted)
    with pytest.raises(InputError, match="1 "):
        DeepReuse(network, 0)
    with pytest.raises(InputError, match="Linear"):
        DeepReuse(nn.Linear(2, 2), 3)


def test_preview_is_fitted_to_the_decoder() -> None:
    matrix, offset = noise(3, 4) * 0.2, torch.tensor([0.1, -0.2, 0.0])

    def decode(latents: Tensor) -> Tensor:
        small = torch.einsum("oc,bchw->bohw", matrix, latents) + offset[:, None, None]
        return functional.interpolate(small, scale_factor=8.0)

    preview = fit_preview(decode, 4)
    # the decoder is linear, so the fit is exact but for the ridge
    assert torch.allclose(preview.matrix, matrix, atol=1e-4)
    assert torch.allclose(preview.offset, offset, atol=1e-4)
    latents = noise(1, 4, 6, 5, seed=3)
    assert torch.allclose(preview(latents), functional.avg_pool2d(decode(latents), 8).clamp(-1, 1), atol=1e-3)
