"""The training step of a VQGAN against taming's, written out in plain PyTorch (benchmarks/vqgan_plain.py)."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from vitrail.data.batch import Batch
from vitrail.models.autoencoders import VQAutoencoder
from vitrail.models.discriminators import build_discriminator
from vitrail.models.perceptual import LPIPS
from vitrail.recipe import parse_recipe
from vitrail.training.adversarial import Balance
from vitrail.training.loop import Phase, StepReport, TrainState, fit
from vitrail.training.optim import trainable
from vitrail.training.plan_autoencoder import Players

CPU = torch.device("cpu")
SHAPE = {"ch": 32, "mult": (1, 2), "blocks": 1, "attn": (8,), "side": 16, "z": 8, "codes": 16}
WEIGHT, RATE = 0.8, 1e-3


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The benchmark's module, which is no part of the package."""
    path = Path(__file__).parents[2] / "benchmarks" / "vqgan_plain.py"
    spec = importlib.util.spec_from_file_location("vqgan_plain", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_five_steps_of_fit_equal_five_of_tamings_step(plain: ModuleType) -> None:
    """Losses of both players and all weights. SGD, because Adam's first steps turn rounding into signs."""
    recipe = parse_recipe(
        {
            "kind": "autoencoder",
            "data": {"size": 16, "batch_size": 3},
            "model": {
                "kind": "vq_autoencoder",
                "embed_dim": 8,
                "network": {
                    "architecture": "classic", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
                    "attn_resolutions": [8], "resolution": 16, "z_channels": 8,
                },
                "quantizer": {"kind": "nearest", "codes": 16, "legacy_beta": True},
            },
            "adversary": {
                "weight": WEIGHT, "lead_images": 0, "ramp_images": 0, "start_images": 0, "lecam_weight": 0.0,
                "augment": [], "guard": False, "discriminator": {"kind": "patch", "width": 8, "layers": 2},
            },
            "optim": {"until_images": 1},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model = VQAutoencoder(recipe.model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=0.3)
    judge = build_discriminator(recipe.adversary.discriminator)
    lpips = LPIPS()
    for head in lpips.heads:
        torch.nn.init.uniform_(head)
    other, other_judge = plain.PlainVQGAN(**SHAPE), plain.PlainDiscriminator(8, 2)
    names = other.state_dict().keys()
    other.load_state_dict({name: v for name, v in model.state_dict().items() if name in names})
    other_judge.load_state_dict(judge.state_dict())

    generator = torch.Generator().manual_seed(1)
    pictures = [
        functional.interpolate(torch.rand(3, 3, 4, 4, generator=generator) * 2 - 1, size=16, mode="bilinear")
        for _ in range(5)
    ]
    players = Players(recipe, model, model, judge, Balance(CPU), copy.deepcopy(lpips), CPU)
    state = TrainState(
        {"model": model, "discriminator": judge},
        {
            "model": torch.optim.SGD(model.parameters(), RATE),
            "discriminator": torch.optim.SGD(judge.parameters(), RATE),
        },
        {},
    )
    losses: list[tuple[float, float]] = []

    def note(state: TrainState, report: StepReport) -> None:
        losses.append((report.losses["model"], report.losses["discriminator"]))

    fit(
        [
            Phase("model", trainable(model), players.model_loss),
            Phase("discriminator", trainable(judge), players.discriminator_loss),
        ],
        lambda seen: iter([Batch(x, [""] * 3, torch.zeros(3, dtype=torch.int64)) for x in pictures]),
        state,
        until_images=15,
        hooks=[note],
    )
    optimizers = (
        torch.optim.SGD(other.parameters(), RATE),
        torch.optim.SGD(other_judge.parameters(), RATE),
    )
    wanted = [
        plain.plain_step(other, other_judge, lpips, optimizers, x, WEIGHT, twice=False) for x in pictures
    ]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)
    # Running means apart: taming's discriminator sees each reconstruction twice, and trains on neither mean.
    for name, value in other_judge.named_parameters():
        torch.testing.assert_close(judge.state_dict()[name], value.detach(), rtol=1e-3, atol=1e-5, msg=name)
