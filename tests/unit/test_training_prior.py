"""Priors in training: the losses in closed form, a toy that is learned and drawn, whole runs, resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.errors import ArtifactError, InputError, TrainingError
from vitrail.models.latent import Quantized
from vitrail.models.token_readers import CachedReader, MaskedReader
from vitrail.models.token_transformer import Conditions, TokenTransformer
from vitrail.recipe import load_recipe, parse_recipe
from vitrail.recipe.priors import PriorRecipe, TokenObjective, TokenTransformerConfig
from vitrail.runtime import cpu_generator
from vitrail.samplers.tokens import UNKNOWN, sample_autoregressive, sample_maskgit
from vitrail.schema import PictureDone, TextToImageRequest
from vitrail.store import artifacts
from vitrail.tasks.context import Context
from vitrail.tasks.core import TASKS, Loader
from vitrail.training import checkpoint, sources
from vitrail.training.runs import train
from vitrail.training.token_objectives import draw_masks, held_out_likelihood, token_loss, tokenize

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


class Blocks:
    """A tokenizer whose codes are the grey levels 0..7 of pictures (B, 3, h, w): one code a pixel."""

    codebook_size = 8

    def encode(self, x: Tensor) -> Quantized:
        codes = ((x[:, 0] + 1) * 3.5).round().long()
        return Quantized(x, codes, x.new_zeros(()), torch.ones(()))

    def decode_codes(self, codes: Tensor) -> Tensor:
        return (codes / 3.5 - 1)[:, None].expand(-1, 3, -1, -1)


def picture_of(codes: Tensor) -> Tensor:
    return Blocks().decode_codes(codes)


class Encoder:
    """A text encoder: one word, told by its number of letters."""

    config = SimpleNamespace(vocabulary=12)

    def __call__(self, prompts: list[str]) -> Any:
        ids = torch.tensor([[len(prompt)] for prompt in prompts])
        return SimpleNamespace(
            states=nn.functional.one_hot(ids, 8).float(), mask=torch.ones_like(ids).bool(), ids=ids
        )


def network(mode: str, **changes: Any) -> TokenTransformer:
    torch.manual_seed(0)
    shape = {"mode": mode, "codes": 8, "rows": 2, "columns": 3, "width": 32, "depth": 2, "heads": 2}
    return TokenTransformer(TokenTransformerConfig.model_validate(shape | changes))


def toy(count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Pictures of 2 x 3 codes: all the same for the caption "a", every second one 4 more for "bb"."""
    start = torch.randint(0, 8, (count, 1), generator=generator)
    plain = torch.rand(count, generator=generator) < 0.5
    steps = torch.arange(6) % 2 * torch.where(plain, 0, 4)[:, None]
    return ((start + steps) % 8).view(count, 2, 3), ["a" if one else "bb" for one in plain.tolist()]


@pytest.mark.parametrize("mode", ["causal", "masked"])
def test_a_tiny_prior_learns_a_rule_and_draws_by_it(mode: str) -> None:
    """The rule has 8 equally likely pictures a caption: log(8)/6 nats a code, and every draw obeys."""
    model = network(mode, text=True, text_width=8, vocabulary=12, word_width=4)
    settings = TokenObjective(label_smoothing=0.0, corrupt=0.0)
    loss = token_loss(model, model, Blocks(), Encoder(), settings, CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    generator = cpu_generator(0)
    model.train()
    length = 200 if mode == "causal" else 450
    for step in range(length):
        codes, captions = toy(32, generator)
        batch = Batch(picture_of(codes), captions, torch.zeros(32, dtype=torch.long))
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * (1.0 if step < 0.7 * length else 0.2)
        optimizer.zero_grad()
        loss(batch, generator).loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    codes, captions = toy(256, cpu_generator(9))
    held_out = [Batch(picture_of(codes), captions, torch.zeros(256, dtype=torch.long))]
    nats = held_out_likelihood(model, Blocks(), Encoder(), held_out, CPU)(model)
    # Causal: the first code is one of 8 and tells the others. Masked: any known code tells the rest, so
    # only a wholly unknown picture costs, a sixth of the masks, and each of its codes is one of 8.
    assert nats["held_out/nats"] == pytest.approx(math.log(8) / 6, abs=0.03)
    assert nats["held_out/best"] == nats["held_out/nats"]
    text = Encoder()(["a"] * 40 + ["bb"] * 40)
    conditions = Conditions(text.states, text.mask, text.ids)
    known = torch.full((80, 2, 3), UNKNOWN)
    generators = [cpu_generator(seed) for seed in range(80)]
    with torch.inference_mode():
        if mode == "causal":
            drawn = sample_autoregressive(CachedReader(model, conditions), known, generators)
        else:
            drawn = sample_maskgit(
                MaskedReader(model, conditions), known, generators, steps=6, choice_temperature=1.0
            )
    steps = drawn.flatten(1).diff(dim=1) % 8
    assert (steps[:40] == 0).float().mean() > 0.97
    assert (steps[40:] == 4).float().mean() > 0.97
    assert len(set(drawn[:, 0, 0].tolist())) == 8  # and every start is drawn


def test_the_loss_in_closed_form() -> None:
    """At the start all logits are 0: log(8) nats, whatever the smoothing; and against torch's own."""
    generator = cpu_generator(0)
    codes, captions = toy(16, generator)
    batch = Batch(picture_of(codes), captions, torch.zeros(16, dtype=torch.long))
    model = network("causal")
    output = token_loss(model, model, Blocks(), None, TokenObjective(), CPU)(batch, generator)
    assert float(output.loss.detach()) == pytest.approx(math.log(8), abs=1e-6)
    nn.init.normal_(model.head.weight)
    settings = TokenObjective(label_smoothing=0.2, corrupt=0.0)
    output = token_loss(model, model, Blocks(), None, settings, CPU)(batch, generator)
    logits = model(codes.flatten(1), Conditions(styles=batch.styles)).transpose(1, 2)
    wanted = nn.functional.cross_entropy(logits, codes.flatten(1), label_smoothing=0.2)
    assert float(output.loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)
    plain = nn.functional.cross_entropy(logits, codes.flatten(1))
    total, number = output.figures["nats"]
    assert float(total / number) == pytest.approx(float(plain.detach()), abs=1e-6)


def test_only_masked_codes_are_asked_and_corruption_touches_only_what_is_seen() -> None:
    seen: list[Tensor] = []
    model = network("masked")

    def watched(codes: Tensor, conditions: Conditions) -> Tensor:
        seen.append(codes)
        told: Tensor = model(codes, conditions)
        return told

    codes, captions = toy(400, cpu_generator(1))
    batch = Batch(picture_of(codes), captions, torch.zeros(400, dtype=torch.long))
    settings = TokenObjective(label_smoothing=0.0, corrupt=0.5)
    output = token_loss(watched, model, Blocks(), None, settings, CPU)(batch, cpu_generator(2))
    unknown = seen[0] == model.unknown
    assert float(output.figures["nats"].number) == float(unknown.sum())
    changed = (seen[0] != codes.flatten(1)) & ~unknown
    # Half of the seen codes are drawn anew, and an eighth of those falls on the same code again.
    assert float(changed.sum() / (~unknown).sum()) == pytest.approx(0.5 * 7 / 8, abs=0.04)


def test_masks_have_the_asked_number_of_places_evenly_spread() -> None:
    shares = torch.tensor([0.0, 0.01, 0.5, 0.51, 1.0])
    masks = draw_masks(shares, 8, cpu_generator(0))
    assert masks.sum(1).tolist() == [1, 1, 4, 5, 8]
    many = draw_masks(torch.full((4000,), 0.25), 8, cpu_generator(1)).float().mean(0)
    assert ((many - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / 4000)).all()


def test_several_codes_a_position_are_refused() -> None:
    class Residual(Blocks):
        def encode(self, x: Tensor) -> Quantized:
            first = super().encode(x)
            return first._replace(codes=torch.stack([first.codes] * 2, dim=-1))

    with pytest.raises(InputError, match="2 codes a position"):
        tokenize(Residual(), torch.zeros(1, 3, 2, 3))


# -- whole runs ----------------------------------------------------------------------------------------------


def make_recipe(tokenizer: Path, *overrides: str) -> Any:
    return parse_recipe(
        {
            "kind": "token_prior",
            "name": "tiny-prior",
            "data": {"size": 16, "batch_size": 4},
            "tokenizer": {"source": str(tokenizer)},
            "model": {
                "codes": 64, "rows": 2, "columns": 2, "width": 16, "depth": 1, "heads": 2, "styles": 2,
                "dropout": 0.1,
            },
            "optim": {"until_images": 16, "warmup_images": 4, "precision": "float32"},
            "run": {"checkpoint_every_seconds": 0, "log_every_seconds": 0, "tensorboard": "off"},
        },
        overrides,
    )  # fmt: skip


def batch_at(seen: int) -> Batch:
    pixels = torch.rand(4, 3, 16, 16, generator=cpu_generator(seen)) * 2 - 1
    return Batch(pixels, ["a", "cat", "", "red"], torch.tensor([0, 1, 2, 1]))


def batches(seen: int) -> Iterator[Batch]:
    while True:
        yield batch_at(seen)
        seen += 4


DATA = sources.Data(
    batches, lambda count: [batch_at(10**6 + n) for n in range(0, count, 4)], "0" * 64, ("noto", "twemoji")
)


def go(folder: Path, tokenizer: Path, *overrides: str, **options: Any) -> Any:
    recipe = make_recipe(tokenizer, *overrides)
    encoder = options.pop("encoder", Encoder())
    return train(recipe, folder, data=DATA, encoder=encoder, quiet=True, device="cpu", **options)


@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_a_run_ends_with_a_model_that_generates(
    tmp_path: Path, tiny_tokenizer_model: Path, mode: str
) -> None:
    outcome = go(
        tmp_path / "run",
        tiny_tokenizer_model,
        f"model.mode={mode}",
        "run.sample_every_images=8",
        "run.held_out_every_images=8",
        "run.held_out_images=8",
    )
    assert (outcome.status, outcome.images_seen) == ("finished", 16)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [line["held_out/nats"] for line in lines if "held_out/nats" in line]
    assert len(measured) == 2
    assert measured[0] == pytest.approx(math.log(64), abs=0.3)
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    manifest = artifacts.read_manifest(outcome.model, verify=True)
    assert manifest.kind == "token_transformer"
    assert "tokenizer" not in manifest.files
    inner = artifacts.load(outcome.model / "tokenizer")
    assert inner.sha256 == artifacts.load(tiny_tokenizer_model).sha256
    request = TextToImageRequest(prompt="x", style="twemoji", seed=1, model=str(outcome.model))
    events = list(TASKS["text_to_image"](request, Loader(), Context(precision="float32")))
    assert isinstance(events[0], PictureDone)
    assert events[0].picture.size == (16, 16)
    # The exported network is the averaged one, tensor by tensor.
    loaded = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert loaded is not None
    tensors = artifacts.load(outcome.model).tensors
    for name, value in loaded.tensors["average"].items():
        assert torch.equal(tensors[name.partition("/")[2]], value)


@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_a_resumed_run_is_the_straight_run_to_the_bit(
    tmp_path: Path, tiny_tokenizer_model: Path, mode: str
) -> None:
    changes = (f"model.mode={mode}", "model.text=true", "model.text_width=8")
    go(tmp_path / "straight", tiny_tokenizer_model, *changes)
    go(tmp_path / "broken", tiny_tokenizer_model, *changes, hooks=[lambda state, report: state.step == 2])
    go(tmp_path / "broken", tiny_tokenizer_model, *changes)
    first, second = (artifacts.load(tmp_path / name / "model").tensors for name in ("straight", "broken"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.codes=32", "the tokenizer has 64 codes, the recipe 32; set model.codes=64"),
        ("data.size=32", r"pictures of 32 px are 4 x 4 codes of this tokenizer.*set model.rows=4"),
    ],
)
def test_a_recipe_that_does_not_fit_its_tokenizer_says_what_to_set(
    tmp_path: Path, tiny_tokenizer_model: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        go(tmp_path / "run", tiny_tokenizer_model, override)


def test_another_kind_of_model_is_no_tokenizer(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ArtifactError, match="of kind shell_dit; a prior needs a vq_autoencoder"):
        go(tmp_path / "run", tiny_model)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.buckets=true", "a prior draws one"),
        ("model.columns=4", "model.columns 4 the same as the rows"),
        ("model.prefix=2", "model.prefix is for models"),
        ("data.size=17", "data.size 17 must be a multiple"),
    ],
)
def test_recipes_that_cannot_be_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(tmp_path, override)


@pytest.mark.parametrize("name", ["prior-masked", "prior-causal"])
def test_the_recipes_that_ship_load(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert isinstance(recipe, PriorRecipe)
    assert recipe.model.mode == name.partition("-")[2]


def test_figures_of_training_do_not_hide_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises((ArtifactError, TrainingError), match="no model"):
        go(tmp_path / "run", tmp_path / "nowhere")
