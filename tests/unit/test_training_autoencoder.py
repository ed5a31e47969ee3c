"""The autoencoder's plan: gradients against taming's step written out, phases, measuring, resume, health."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.models import registry
from vitrail.recipe import AutoencoderRecipe, dump_recipe, load_recipe, parse_recipe
from vitrail.store import artifacts
from vitrail.training import checkpoint, sources
from vitrail.training.adversarial import Balance
from vitrail.training.loop import Phase, TrainState
from vitrail.training.optim import trainable
from vitrail.training.plan_autoencoder import HeldOutQuality, Players, make_discriminator
from vitrail.training.reconstruction import sobel_error
from vitrail.training.runs import train

CPU = torch.device("cpu")
SIDE, COUNT = 16, 4


def recipe_of(*overrides: str, adversary: dict[str, Any] | None = None, **tables: Any) -> Any:
    data: dict[str, Any] = {
        "kind": "autoencoder",
        "name": "tiny",
        "data": {"size": SIDE, "batch_size": COUNT},
        "model": {
            "kind": "vq_autoencoder",
            "embed_dim": 4,
            "network": {
                "architecture": "lean", "downsample": 4, "patch": 4, "widths": [16], "decoder_blocks": 1,
                "z_channels": 4,
            },
            "quantizer": {
                "kind": "cosine", "codes": 16, "code_dim": 4, "codebook": "ema", "kmeans_init": True,
                "restart_below": 0.1,
            },
        },
        "objective": {"perceptual": "none", "edge": 0.5},
        "optim": {"until_images": 32, "warmup_images": 4, "precision": "float32"},
        "run": {"checkpoint_every_seconds": 0, "log_every_seconds": 0, "tensorboard": "off"},
    }  # fmt: skip
    if adversary is not None:
        small = {"discriminator": {"kind": "patch", "width": 8, "layers": 2}}
        data["adversary"] = {**small, "start_images": 8, "ramp_images": 16, "lead_images": 4, **adversary}
    for name, table in tables.items():
        data[name] = table if name == "model" else {**data.get(name, {}), **table}
    return parse_recipe(data, overrides)


def batch_at(seen: int) -> Batch:
    generator = torch.Generator().manual_seed(seen + 1)
    coarse = torch.rand(COUNT, 3, 4, 4, generator=generator) * 2 - 1
    pixels = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear")
    return Batch(pixels, [""] * COUNT, torch.zeros(COUNT, dtype=torch.int64))


def batches(seen: int) -> Iterator[Batch]:
    while True:
        yield batch_at(seen)
        seen += COUNT


DATA = sources.Data(batches, lambda count: [batch_at(10**6 + n) for n in range(0, count, COUNT)], "0" * 64)


def players_of(recipe: AutoencoderRecipe, seen: int) -> tuple[Players, torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    model = registry.build(recipe.model.kind, recipe.model).train()
    for parameter in model.parameters():  # layers that begin at zero would hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    assert recipe.adversary is not None
    judge = make_discriminator(recipe.adversary, CPU).train()
    balance = Balance(CPU)
    balance.images.fill_(seen)
    return Players(recipe, model, model, judge, balance, None, CPU), model, judge


@pytest.mark.parametrize("loss", ["hinge", "vanilla", "relativistic"])
def test_one_pass_gives_the_gradients_of_tamings_step(loss: str) -> None:
    """Against the step as taming writes it: two forward passes, lambda from gradients at the last layer."""
    recipe = recipe_of(
        adversary={"loss": loss, "weight": 0.7, "ramp_images": 0, "augment": [], "penalty": "none"},
        model={
            "kind": "vq_autoencoder",
            "embed_dim": 4,
            "network": {
                "architecture": "lean", "downsample": 4, "patch": 4, "widths": [16], "z_channels": 4,
            },
            "quantizer": {"kind": "nearest", "codes": 16},
        },
    )  # fmt: skip
    players, model, judge = players_of(recipe, seen=100)
    other, other_judge = copy.deepcopy(model), copy.deepcopy(judge)
    batch = batch_at(0)

    output = players.model_loss(batch, torch.Generator().manual_seed(0))
    ours = torch.autograd.grad(output.loss, trainable(model), allow_unused=True)
    players.balance.turns.fill_(0)  # no LeCAM in the first turn
    word = players.discriminator_loss(batch, torch.Generator().manual_seed(0))
    assert word is not None
    ours_judge = torch.autograd.grad(word.loss, trainable(judge))

    x = batch.pixels
    made = other(x)
    nll = (made.x - x).abs().mean() + 0.5 * sobel_error(made.x - x).mean()
    fake = other_judge(made.x)
    if loss == "hinge":
        g = -fake.mean()
    elif loss == "vanilla":
        g = torch.nn.functional.softplus(-fake).mean()
    else:
        g = torch.nn.functional.softplus(other_judge(x) - fake).mean()
    last = other.last_layer
    (nll_slope,) = torch.autograd.grad(nll, last, retain_graph=True)
    (g_slope,) = torch.autograd.grad(g, last, retain_graph=True)
    weight = (nll_slope.norm() / (g_slope.norm() + 1e-4)).clamp(0, 1e4).detach() * 0.7
    total = nll + weight * g + made.loss
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)
    wanted = torch.autograd.grad(total, trainable(other), allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), ours, wanted, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)

    real, fake = other_judge(x), other_judge(other(x).x.detach())
    relu, softplus = torch.nn.functional.relu, torch.nn.functional.softplus
    d = {
        "hinge": 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean()),
        "vanilla": 0.5 * (softplus(-real).mean() + softplus(fake).mean()),
        "relativistic": softplus(fake - real).mean(),
    }[loss]
    assert word.loss.item() == pytest.approx(d.item(), rel=1e-5)
    for a, b in zip(ours_judge, torch.autograd.grad(d, trainable(other_judge)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_discriminator_learns_before_it_counts_and_not_before_that() -> None:
    recipe = recipe_of(adversary={"start_images": 100, "lead_images": 40, "ramp_images": 100})
    seen_figures = []
    for seen in (59, 60, 100, 101, 200):
        players, model, _ = players_of(recipe, seen)
        batch = batch_at(0)
        output = players.model_loss(batch, torch.Generator().manual_seed(0))
        word = players.discriminator_loss(batch, torch.Generator().manual_seed(0))
        torch.autograd.grad(output.loss, trainable(model), allow_unused=True)
        weight = output.figures.get("disc/weight")
        seen_figures.append((word is not None, weight is not None and float(weight.total) > 0))
    assert seen_figures == [(False, False), (True, False), (True, False), (True, True), (True, True)]


@pytest.mark.parametrize("loss", ["hinge", "relativistic", "wgan_gp"])
def test_penalties_are_lazy_and_weigh_as_many_times_more(loss: str) -> None:
    recipe = recipe_of(
        adversary={"loss": loss, "penalty": "auto" if loss != "hinge" else "r1", "penalty_every": 3}
    )
    players, _, _ = players_of(recipe, seen=100)
    present = []
    for _ in range(6):
        batch = batch_at(0)
        players.model_loss(batch, torch.Generator().manual_seed(0))
        word = players.discriminator_loss(batch, torch.Generator().manual_seed(0))
        assert word is not None
        present.append("disc/penalty" in word.figures)
        if present[-1]:
            plain = float(word.figures["disc/loss"].total)
            pull = float(word.figures["disc/lecam"].total) if "disc/lecam" in word.figures else 0.0
            penalty = float(word.figures["disc/penalty"].total)
            assert word.loss.item() == pytest.approx(plain + 0.001 * pull + 3 * penalty, rel=1e-4)
    assert present == [True, False, False, True, False, False]


def test_a_batch_out_of_turn_is_noticed() -> None:
    players, _, _ = players_of(recipe_of(adversary={}), seen=100)
    players.model_loss(batch_at(0), torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="same batch"):
        players.discriminator_loss(batch_at(4), torch.Generator().manual_seed(0))


def newest(folder: Path, part: str) -> dict[str, Tensor]:
    loaded = checkpoint.load_latest(folder / "checkpoints")
    assert loaded is not None
    return loaded.tensors[part]


def test_a_run_with_an_adversary_resumes_bit_identically(tmp_path: Path) -> None:
    """Stopped before the discriminator learns, while it learns, while its weight rises: no difference."""
    adversary = {
        "loss": "relativistic", "penalty_every": 2, "gap": [0.1, 0.2], "guard_every_images": 8,
        "guard_images": 4, "augment": ["colour", "translation", "cutout"],
    }  # fmt: skip
    recipe = recipe_of("optim.decay=none", "run.held_out_every_images=8", adversary=adversary)
    whole = train(recipe, tmp_path / "whole", data=DATA, device="cpu", quiet=True)
    assert whole.status == "finished"
    for end in (4, 12, 20, 32):
        part = recipe_of(
            "optim.decay=none",
            "run.held_out_every_images=8",
            f"optim.until_images={end}",
            adversary=adversary,
        )
        assert train(part, tmp_path / "parts", data=DATA, device="cpu", quiet=True).images_seen == end
    for name in ("weights", "average", "optimizer", "random"):
        one, other = newest(tmp_path / "whole", name), newest(tmp_path / "parts", name)
        assert one.keys() == other.keys()
        assert not [key for key in one if not torch.equal(one[key], other[key])], name
    weights = newest(tmp_path / "whole", "weights")
    assert int(weights["balance/images"]) == 32
    assert int(weights["balance/turns"]) == 7  # every step but the first
    assert any(key.startswith("discriminator/main") for key in weights)


def test_the_model_folder_holds_the_autoencoder_alone(tmp_path: Path) -> None:
    recipe = recipe_of("run.sample_every_images=16", "run.held_out_every_images=16", adversary={})
    outcome = train(recipe, tmp_path / "run", data=DATA, device="cpu", quiet=True)
    assert outcome.model is not None
    artifact = artifacts.load(outcome.model)
    network = registry.build(artifact.kind, artifact.config)
    artifact.fill(network)
    assert artifact.kind == "vq_autoencoder"
    assert load_recipe(outcome.model / "recipe.toml") == recipe
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "held_out/psnr" in line]
    assert [line["images"] for line in measured] == [16, 32]
    assert {"held_out/l1", "held_out/codes_used", "held_out/perplexity"} <= measured[0].keys()
    trained = lines[-1] if "disc/real" in lines[-1] else lines[-2]
    for name in ("codes/used", "codes/perplexity", "disc/real", "disc/made", "disc/adaptive_weight",
                 "gradient_norm/discriminator", "gradient_norm/model", "loss/discriminator"):  # fmt: skip
        assert name in trained, name
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "vae", "image_size": 16, "widths": [8, 16], "hidden": 16, "embed_dim": 4},
        {
            "kind": "kl_autoencoder", "embed_dim": 2,
            "network": {"architecture": "lean", "downsample": 4, "patch": 4, "widths": [16], "z_channels": 4,
                        "double_z": True},
        },
    ],
)  # fmt: skip
def test_autoencoders_with_a_gaussian_train_too(tmp_path: Path, model: dict[str, Any]) -> None:
    recipe = recipe_of(
        "run.held_out_every_images=32", model=model, adversary={}, objective={"kl_weight": 0.1}
    )
    outcome = train(recipe, tmp_path / "run", data=DATA, device="cpu", quiet=True)
    assert outcome.status == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("held_out/kl" in line for line in lines)
    assert "kl" in lines[0]


def test_the_divergence_rises_with_its_warm_up_and_is_counted_per_value() -> None:
    recipe = recipe_of(
        model={"kind": "vae", "image_size": 16, "widths": [8, 16], "hidden": 16, "embed_dim": 4},
        objective={"perceptual": "none", "l1": 0.0, "edge": 0.0, "kl_weight": 2.0, "kl_warmup_images": 100},
        adversary={"start_images": 10**6},
    )
    for seen, share in ((0, 0.0), (25, 0.25), (1000, 1.0)):
        players, _, _ = players_of(recipe, seen)
        output = players.model_loss(batch_at(0), torch.Generator().manual_seed(0))
        nats = float(output.figures["kl"].total) / COUNT
        assert output.loss.item() == pytest.approx(share * 2.0 * nats / (3 * 16 * 16), rel=1e-5, abs=1e-9)


def test_held_out_figures_are_those_of_the_pictures() -> None:
    recipe = recipe_of()
    torch.manual_seed(0)
    model = registry.build(recipe.model.kind, recipe.model).eval()
    pixels = torch.cat([batch_at(n).pixels for n in range(0, 80, 4)])
    figures = HeldOutQuality(pixels, None, CPU, recipe)(model)
    with torch.no_grad():
        made = model(pixels)
    error = (made.x.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3))
    assert figures["held_out/psnr"] == pytest.approx((10 * torch.log10(4 / error)).mean().item(), rel=1e-5)
    assert figures["held_out/l1"] == pytest.approx((made.x - pixels).abs().mean().item(), rel=1e-5)
    assert figures["held_out/codes_used"] == pytest.approx(made.latent.codes.unique().numel() / 16)


def test_the_recipe_survives_toml(tmp_path: Path) -> None:
    recipe = recipe_of(adversary={"loss": "relativistic", "gap": [0.2, 0.9]})
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert "[adversary.discriminator]" in dump_recipe(recipe)
    assert recipe_of().adversary is None
    assert load_recipe(tmp_path / "recipe.toml", ["adversary.weight=0.3"]).adversary.weight == 0.3


def test_a_checkpoint_within_a_step_holds_the_state_before_it(tmp_path: Path) -> None:
    """A codebook changes in the forward pass: what a signal saves in the middle is from before the pass."""
    recipe = recipe_of()
    torch.manual_seed(0)
    model = registry.build(recipe.model.kind, recipe.model).train()
    state = TrainState({"model": model}, {"model": torch.optim.SGD(model.parameters(), 0.1)}, {})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saved: dict[str, Tensor] = {}

    def loss(batch: Batch, generator: torch.Generator) -> Any:
        from vitrail.training.loop import LossOutput

        made = model(batch.pixels, generator)
        assert not torch.equal(model.state_dict()["quantize.usage"], before["quantize.usage"])
        saved.update({name: value.clone() for name, value in state.tensors("model").items()})
        return LossOutput((made.x - batch.pixels).abs().mean(), {})

    from vitrail.training.loop import fit

    fit([Phase("model", trainable(model), loss)], batches, state, until_images=COUNT)
    assert saved.keys() == before.keys()
    assert not [name for name in before if not torch.equal(before[name], saved[name])]
    after = state.tensors("model")
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
