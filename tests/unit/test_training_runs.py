"""Whole runs of a tiny network: finish, resume, refuse, warm start, samples, held-out loss, own folders."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.errors import CheckpointError, DataError, InputError
from vitrail.models import registry
from vitrail.models.shell_dit import ShellDiT
from vitrail.recipe import TextToImageRecipe, dump_recipe, load_recipe, parse_recipe
from vitrail.store import artifacts
from vitrail.training import checkpoint, sources, warm
from vitrail.training.objectives import held_out_flow_loss
from vitrail.training.runs import train
from vitrail.training.suggest import suggest_recipe

SHAPE: dict[str, Any] = {
    "image_size": 16, "patch": 2, "shell_width": 8, "shell_blocks": 1, "width": 16, "depth": 1, "heads": 2,
    "text_width": 8, "word_width": 4, "styles": 2,
}  # fmt: skip


def make_recipe(*overrides: str) -> Any:
    return parse_recipe(
        {
            "kind": "text_to_image",
            "name": "tiny",
            "data": {"size": 16, "batch_size": 4},
            "model": SHAPE,
            "optim": {"until_images": 16, "warmup_images": 4, "precision": "float32"},
            "run": {"checkpoint_every_seconds": 0, "log_every_seconds": 0, "tensorboard": "off"},
        },
        overrides,
    )


class Encoder:
    """A text encoder of eight numbers a word."""

    config = SimpleNamespace(vocabulary=12)

    def __call__(self, prompts: list[str]) -> Any:
        states = torch.stack([torch.full((3, 8), len(prompt) / 10.0) for prompt in prompts])
        return SimpleNamespace(
            states=states,
            mask=torch.ones(len(prompts), 3, dtype=torch.bool),
            ids=torch.full((len(prompts), 3), 5),
        )


def batch_at(seen: int) -> Batch:
    generator = torch.Generator().manual_seed(seen)
    pixels = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    return Batch(pixels, ["a", "cat", "", "red"], torch.tensor([0, 1, 2, 1]))


def batches(seen: int) -> Iterator[Batch]:
    while True:
        yield batch_at(seen)
        seen += 4


DATA = sources.Data(
    batches, lambda count: [batch_at(10**6 + n) for n in range(0, count, 4)], "0" * 64, ("noto",)
)


def go(folder: Path, *overrides: str, **options: Any) -> Any:
    return train(
        make_recipe(*overrides),
        folder,
        data=DATA,
        encoder=options.pop("encoder", Encoder()),
        quiet=True,
        device="cpu",
        **options,
    )


def weights(folder: Path, part: str = "weights") -> dict[str, Tensor]:
    loaded = checkpoint.load_latest(folder / "checkpoints")
    assert loaded is not None
    return loaded.tensors[part]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def test_a_run_ends_with_a_model_that_loads(tmp_path: Path) -> None:
    outcome = go(tmp_path / "run")
    assert (outcome.status, outcome.images_seen, outcome.exit_code) == ("finished", 16, 0)
    assert outcome.model == tmp_path / "run" / "model"
    artifact = artifacts.load(outcome.model)
    network = registry.build(artifact.kind, artifact.config)
    artifact.fill(network)
    average = weights(tmp_path / "run", "average")
    for name, value in network.named_parameters():
        assert torch.equal(value, average[f"model/{name}"]), name
    assert artifact.config["vocabulary"] == 12  # the recipe said 0: as many as the encoder has
    assert artifact.manifest.data_manifest_sha256 == "0" * 64
    recipe = load_recipe(outcome.model / "recipe.toml")
    assert isinstance(recipe, TextToImageRecipe)
    assert recipe.model.vocabulary == 12
    assert json.loads(artifact.file("styles.json").read_text()) == ["noto", "style-2"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [4, 8, 12, 16]
    assert len(checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")) == 2


def test_a_finished_run_says_so_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "run.lock"}
    outcome = train(make_recipe(), tmp_path / "run", data=DATA, encoder=Encoder(), device="cpu")
    assert (outcome.status, outcome.exit_code) == ("already finished", 0)
    assert "is finished: 16 pictures; nothing to do" in capsys.readouterr().err
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "run.lock"
    } == before


def test_an_export_that_was_lost_is_made_again(tmp_path: Path) -> None:
    go(tmp_path / "run")
    wanted = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model" / "artifact.json").unlink()
    assert go(tmp_path / "run").status == "finished"
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == wanted


def test_a_longer_run_goes_on_and_equals_one_in_one_go(tmp_path: Path) -> None:
    constant = "optim.decay=none"
    assert go(tmp_path / "run", constant, "optim.until_images=8").status == "finished"
    assert go(tmp_path / "run", constant).images_seen == 16
    go(tmp_path / "whole", constant)
    for part in ("weights", "average", "optimizer", "random"):
        assert same(weights(tmp_path / "run", part), weights(tmp_path / "whole", part)), part


@pytest.mark.parametrize(
    "change", ["optim.lr=0.1", "model.depth=2", "run.seed=5", "data.batch_size=8", "objective.weight_clip=3"]
)
def test_another_recipe_on_the_same_folder_is_refused(tmp_path: Path, change: str) -> None:
    go(tmp_path / "run", "optim.until_images=8")
    key = change.partition("=")[0]
    with pytest.raises(InputError, match=f"begun with another recipe: {key} differ"):
        go(tmp_path / "run", change)
    assert go(tmp_path / "run", "optim.until_images=8").status == "already finished"


def test_what_only_shows_may_change(tmp_path: Path) -> None:
    go(tmp_path / "run", "optim.until_images=8")
    changes = ["run.keep=1", "run.checkpoint_every_seconds=5", "run.sample_prompts=['x']", "data.prefetch=0"]
    assert go(tmp_path / "run", *changes).status == "finished"
    with pytest.raises(InputError, match="is a run of kind text_to_image, not upsampler"):
        train(parse_recipe({"kind": "upsampler", "optim": {"until_images": 8}}), tmp_path / "run", quiet=True)


def test_samples_and_held_out_losses_do_not_change_the_run(tmp_path: Path) -> None:
    drawn: list[tuple[Path, tuple[str, ...], bool]] = []

    def sample(model: nn.Module, prompts: Any, path: Path) -> None:
        torch.rand(7), random.random()
        assert isinstance(model, ShellDiT)
        drawn.append((path, tuple(prompts), model.training))

    extra = ["run.sample_every_images=8", "run.sample_prompts=['a cat']", "run.held_out_every_images=8"]
    go(tmp_path / "run", *extra, "run.held_out_images=8", sample=sample)
    go(tmp_path / "plain")
    for part in ("weights", "average", "optimizer", "random"):
        assert same(weights(tmp_path / "run", part), weights(tmp_path / "plain", part)), part
    folder = tmp_path / "run" / "samples"
    assert drawn == [(folder / f"images-{n:012d}.png", ("a cat",), False) for n in (8, 16)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held = [(line["images"], line["held_out/mse"]) for line in lines if "held_out/mse" in line]
    assert [images for images, _ in held] == [8, 16]
    artifact = artifacts.load(tmp_path / "run" / "model")  # the last one is of what was exported: the average
    network = registry.build(artifact.kind, artifact.config).eval()
    artifact.fill(network)
    batches_held = [batch_at(10**6), batch_at(10**6 + 4)]
    measure = held_out_flow_loss(Encoder(), list(batches_held), torch.device("cpu"))
    assert held[1][1] == pytest.approx(measure(network)["held_out/mse"], rel=1e-6)
    assert held[0][1] != held[1][1]


def test_the_prefetched_run_equals_the_plain_one(tmp_path: Path) -> None:
    go(tmp_path / "ahead", "data.prefetch=3")
    go(tmp_path / "plain", "data.prefetch=0")
    assert same(weights(tmp_path / "ahead"), weights(tmp_path / "plain"))


def test_errors_of_the_data_thread_are_raised_in_the_run(tmp_path: Path) -> None:
    def broken(seen: int) -> Iterator[Batch]:
        yield batch_at(0)
        raise DataError("picture 5 is gone")

    with pytest.raises(DataError, match="picture 5 is gone"):
        train(
            make_recipe(),
            tmp_path / "run",
            data=sources.Data(broken),
            encoder=Encoder(),
            quiet=True,
            device="cpu",
        )
    loaded = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert loaded is not None
    assert loaded.state["images_seen"] == 4


@pytest.mark.parametrize("source", ["run", "model"])
def test_warm_start_takes_the_averaged_weights(tmp_path: Path, source: str) -> None:
    go(tmp_path / "first")
    start = tmp_path / "first" if source == "run" else tmp_path / "first" / "model"
    read = warm.read_weights(str(start))
    average = weights(tmp_path / "first", "average")
    assert {f"model/{name}" for name in read} == average.keys()
    assert all(torch.equal(value, average[f"model/{name}"]) for name, value in read.items())
    # With a rate of almost nothing the new run ends where it began.
    go(tmp_path / "second", f"run.warm_start={start}", "optim.lr=1e-12", "optim.weight_decay=0")
    for name, value in weights(tmp_path / "second").items():
        assert torch.allclose(value, average[name], atol=1e-9), name


def test_warm_start_into_a_deeper_network_computes_the_same(tmp_path: Path) -> None:
    go(tmp_path / "first", "optim.lr=0.01")
    read = warm.read_weights(str(tmp_path / "first"))
    networks = []
    for depth in (1, 3):
        torch.manual_seed(depth)
        network = registry.build("shell_dit", {**SHAPE, "vocabulary": 12, "depth": depth})
        line = warm.start_from(network, read)
        networks.append(network.eval())
    assert "blocks from 1 on begin as the identity" in line
    text = Encoder()(["cat"])
    inputs = (
        torch.randn(1, 3, 16, 16),
        torch.tensor([0.5]),
        text.states,
        text.mask,
        text.ids,
        torch.tensor([1]),
    )
    with torch.no_grad():
        assert torch.allclose(networks[0](*inputs), networks[1](*inputs), atol=1e-6)
        assert networks[0](*inputs).abs().max() > 0.01


def test_warm_start_of_a_quantizer_with_more_channels_computes_the_same() -> None:
    network = {"architecture": "lean", "downsample": 4, "patch": 4, "widths": [16], "z_channels": 8}
    made = []
    for levels in ([4, 3], [4, 3, 5]):
        torch.manual_seed(len(levels))
        quantizer = {"kind": "fsq", "levels": levels}
        shape = {"network": network, "embed_dim": 8, "quantizer": quantizer}
        made.append(registry.build("vq_autoencoder", shape).eval())
    line = warm.start_from(made[1], made[0].state_dict())
    assert "project" not in line
    pictures = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before, after = made[0](pictures), made[1](pictures)
    assert torch.allclose(before.x, after.x, atol=1e-6)
    assert torch.equal(before.latent.codes, after.latent.codes % 12)
    assert int(after.latent.codes.max()) >= 12


def test_warm_start_from_what_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none of the 1 tensors has a name and shape of this model"):
        warm.start_from(nn.Linear(2, 2), {"other": torch.zeros(3)})
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        warm.read_weights(str(tmp_path))


def make_pictures(folder: Path, count: int, captions: bool, side: int = 70) -> None:
    chance = random.Random(count)
    folder.mkdir()
    for number in range(count):
        colour = tuple(chance.randrange(256) for _ in range(3))
        Image.new("RGB", (side, side + number % 3), colour).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(
                "一只红色的猫" if number == 0 else f"a thing, number {number}"
            )


def test_a_recipe_for_a_folder_is_explained_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path / "my pictures", 12, captions=True)
    (tmp_path / "my pictures" / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr("vitrail.training.suggest._shipped", lambda: None)
    recipe, lines = suggest_recipe(tmp_path / "my pictures", ["optim.precision=float32"])
    assert "12 pictures can be used, 1 files cannot, 12 have a caption" in lines
    assert recipe.name == "my-pictures"
    assert recipe.data.flip == 0.0  # so few are learnt as they are
    assert recipe.run.sample_prompts[0] == "a red cat"
    assert recipe.run.warm_start is None
    assert parse_recipe(__import__("tomllib").loads(dump_recipe(recipe))) == recipe
    assert all("\n" not in line for line in lines)
    small = {
        "image_size": 16,
        "patch": 2,
        "shell_width": 8,
        "shell_blocks": 1,
        "width": 16,
        "depth": 1,
        "heads": 2,
    }
    tables = recipe.model_dump(mode="json", exclude_none=True)
    tables["model"] |= {**small, "text_width": 8, "styles": 0}
    tables["data"] |= {"size": 16}
    tables["optim"] |= {"until_images": 32}
    tables["run"] |= {"tensorboard": "off"}
    outcome = train(parse_recipe(tables), tmp_path / "run", encoder=Encoder(), quiet=True, device="cpu")
    assert outcome.status == "finished"


def test_the_suggestion_follows_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {**SHAPE, "image_size": 64, "vocabulary": 30522}
    monkeypatch.setattr("vitrail.training.suggest._shipped", lambda: shipped)
    make_pictures(tmp_path / "captioned", 60, captions=True)
    make_pictures(tmp_path / "bare", 60, captions=False, side=40)
    captioned, reasons = suggest_recipe(tmp_path / "captioned")
    assert captioned.run.warm_start == "default"
    assert isinstance(captioned, TextToImageRecipe)
    assert captioned.model.vocabulary == 30522
    assert captioned.data.flip == 0.5
    assert any("begins from the shipped model" in reason for reason in reasons)
    bare, reasons = suggest_recipe(tmp_path / "bare")
    assert bare.run.warm_start is None
    assert bare.data.size == 32
    assert bare.data.caption_drop == 0.0
    assert any("words will not steer" in reason for reason in reasons)
    assert bare.optim.until_images is not None
    assert captioned.optim.until_images is not None
    assert 4_000 <= captioned.optim.until_images < bare.optim.until_images
    assert suggest_recipe(tmp_path / "bare", ["optim.until_images=7"])[0].optim.until_images == 7
    short, reasons = suggest_recipe(tmp_path / "bare", ["optim.until_images=4_00"])
    assert (short.optim.until_images, short.optim.warmup_images) == (400, 20)  # what hangs on it follows
    assert short.run.sample_every_images == 40
    assert any(reason.startswith("400 pictures long") for reason in reasons)
    with pytest.raises(InputError, match="did you mean"):
        suggest_recipe(tmp_path / "bare", ["optim.until_image=7"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no usable picture"):
        suggest_recipe(tmp_path / "empty")
    with pytest.raises(InputError):
        suggest_recipe(tmp_path / "missing")
