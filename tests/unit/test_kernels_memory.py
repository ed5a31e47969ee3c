"""Working memory and what was freed go back to the system before a picture's largest need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vitrail.backends.sd.autoencoder import KLAutoencoder
from vitrail.kernels import give_back
from vitrail.kernels.library import library, scratch


def test_working_memory_is_made_anew() -> None:
    found = library()
    if found is None:
        give_back()  # nothing to give, and no error
        return
    held = scratch(found, 1000)
    assert scratch(found, 10).data_ptr() == held.data_ptr()
    give_back()
    del held
    assert scratch(found, 10).numel() == 10


def _resident() -> int:
    """Bytes of memory that this process has in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_forgotten_memory_is_given_back() -> None:
    found = library()
    if found is None:
        pytest.skip("no C compiler here")
    block = torch.ones(16 << 20)
    before = _resident()
    found.forget(block[1 << 20 :])
    assert before - _resident() > 48 << 20
    assert block[: 1 << 20].eq(1).all()
    block[1 << 20 :] = 2  # and may be used again
    assert block[-1] == 2


def test_a_large_decoder_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    made = diffusers.AutoencoderKL(
        block_out_channels=(32,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=8,
    )
    calls: list[None] = []
    monkeypatch.setattr("vitrail.backends.sd.autoencoder.give_back", lambda: calls.append(None))
    model = KLAutoencoder(made.eval().requires_grad_(False))
    with torch.no_grad():
        model.decode(torch.zeros(1, 4, 8, 8))
        assert not calls
        model.decode(torch.zeros(1, 4, 48, 48))
    assert len(calls) == 1
