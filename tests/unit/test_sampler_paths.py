"""Noise paths: the algebra between picture, noise and network output."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.errors import InputError
from vitrail.samplers import VP, Flow, NoisePath, Predicts, from_network

PATHS: list[NoisePath] = [VP(), Flow()]
PREDICTS = get_args(Predicts)


def pictures(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=60)
@given(
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 9),
    index=st.integers(0, 1),
    predicts=st.sampled_from(PREDICTS),
)
def test_what_a_perfect_network_outputs_leads_back_to_the_picture(
    share: float, seed: int, index: int, predicts: Predicts
) -> None:
    path = PATHS[index]
    x0, eps = pictures(seed)
    sigma = torch.tensor([share, share / 2, 1.0 - share], dtype=torch.float64) * path.sigma_max
    x = path.noised(x0, eps, sigma)
    output = path.target(x0, eps, sigma, predicts)
    back = path.to_x0(output, x, sigma, predicts)
    torch.testing.assert_close(back, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predicts", ["x0", "v", "flow"])
def test_flow_at_pure_noise(predicts: Predicts) -> None:
    x0, eps = pictures(0)
    path = Flow()
    x = path.noised(x0, eps, 1.0)
    assert torch.equal(x, eps)
    torch.testing.assert_close(path.to_x0(path.target(x0, eps, 1.0, predicts), x, 1.0, predicts), x0)


def test_noise_prediction_at_pure_noise_is_refused() -> None:
    x0, eps = pictures(0)
    with pytest.raises(InputError, match="sigma 1"):
        Flow().to_x0(eps, eps, torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64), "eps")
    with pytest.raises(InputError, match="unknown"):
        Flow().to_x0(x0, eps, 0.5, "score")  # type: ignore[arg-type]


def test_the_paths_by_hand() -> None:
    x0, eps = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 5.0)
    assert Flow().noised(x0, eps, 0.25).item() == 3 * 0.75 + 5 * 0.25
    assert VP().noised(x0, eps, 2.0).item() == 13.0
    assert Flow().target(x0, eps, 0.25, "flow").item() == 2.0
    # Salimans and Ho: v = alpha eps - sigma x0 with alpha = 1 / sqrt(5), sigma = 2 / sqrt(5)
    assert VP().target(x0, eps, 2.0, "v").item() == pytest.approx((5 - 2 * 3) / math.sqrt(5))
    assert VP().network_input(x0, 2.0).item() == pytest.approx(3 / math.sqrt(5))
    assert VP().log_snr(2.0) == pytest.approx(-math.log(2))
    assert Flow().log_snr(0.25) == pytest.approx(math.log(3))
    assert Flow().log_snr(1.0) == -math.inf
    assert Flow().log_snr(0.0) == VP().log_snr(0.0) == math.inf
    assert VP().start(eps, 2.0).item() == pytest.approx(5 * math.sqrt(5))
    assert Flow().start(eps).item() == 5.0


def test_vp_times_and_sigmas_are_inverse() -> None:
    path = VP()
    times = torch.tensor([0.0, 1.0, 19.0, 500.0, 999.0], dtype=torch.float64)
    sigmas = torch.tensor([path.table[int(time)] for time in times])
    torch.testing.assert_close(path.time(sigmas), times)
    between = torch.tensor([math.sqrt(path.table[7] * path.table[8])])
    assert path.time(between).item() == pytest.approx(7.5)
    assert path.time(torch.tensor([1e-9, 1e9])).tolist() == [0.0, 999.0]
    assert (path.sigma_min, path.sigma_max) == pytest.approx((0.02917, 14.6146), rel=1e-4)


def test_a_network_is_given_what_it_was_trained_on() -> None:
    seen = []

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append((x, time))
        return x

    x = torch.ones(2, 1, 2, 2)
    from_network(network, VP(), "eps")(x, torch.tensor([VP().sigma_max, VP().sigma_min]))
    from_network(network, Flow(), "flow")(x, torch.tensor([0.5, 0.25]))
    (scaled, times), (same, shares) = seen
    expected = [1 / math.hypot(1, 14.6146), 1 / math.hypot(1, 0.02917)]
    assert scaled[:, 0, 0, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert times.tolist() == pytest.approx([999.0, 0.0], abs=1e-3)
    assert torch.equal(same, x)
    assert shares.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(beta_start=0.0),
        lambda: VP(beta_start=0.02, beta_end=0.01),
        lambda: VP(beta_end=math.nan),
        lambda: VP(train_steps=1),
        lambda: VP(beta_schedule="cosine"),  # type: ignore[arg-type]
        lambda: Flow(smallest=0.0),
        lambda: Flow(smallest=math.nan),
    ],
)
def test_impossible_paths_are_refused(make: type[object]) -> None:
    with pytest.raises(InputError):
        make()
