"""GAN networks: shapes, classes, latents, noise; their recipes and what those refuse."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from vitrail.errors import InputError
from vitrail.models import registry
from vitrail.models.gan import Generator, build_discriminator
from vitrail.recipe import dump_recipe, load_recipe, parse_recipe
from vitrail.recipe.gan import BigGANConfig, DCGANConfig, GANDiscriminatorConfig, GANRecipe

RECIPES = Path(__file__).parents[2] / "recipes"


def make(kind: str = "biggan", **given: Any) -> Generator:
    torch.manual_seed(0)
    config = {"image_size": 16, "latent": 12, "width": 4, "class_width": 6, **given}
    network = registry.build(kind, config)
    assert isinstance(network, Generator)
    return network


def seeded(network: Generator, count: int, seed: int = 0) -> Any:
    return network.draw_latents(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "size", "classes", "channels", "noise"),
    [
        (kind, *rest)
        for kind, rest in itertools.product(
            ("dcgan", "biggan"), ((16, 0, 3, 0), (32, 5, 1, -1), (64, 3, 3, 2))
        )
    ],
)
def test_shapes(kind: str, size: int, classes: int, channels: int, noise: int) -> None:
    network = make(kind, image_size=size, classes=classes, channels=channels, noise_layers=noise)
    labels = torch.arange(3) % classes if classes else None
    pictures = network(seeded(network, 3), labels).detach()
    assert pictures.shape == (3, 3, size, size)
    assert float(pictures.abs().max()) <= 1.0
    assert float(pictures.std()) > 0.01
    if channels == 1:
        assert torch.equal(pictures[:, 0], pictures[:, 2])
    for normalisation in ("spectral", "batch", "none"):
        settings = GANDiscriminatorConfig(width=4, normalisation=normalisation, spread=classes > 0)
        judge = build_discriminator(network.config, settings)
        assert judge(pictures, labels).shape == (3,)


@pytest.mark.parametrize("options", [{"hierarchical": False}, {"attention": 8}, {"spectral_norm": False}])
def test_biggan_options(options: dict[str, Any]) -> None:
    network = make(classes=2, **options)
    pictures = network(seeded(network, 2), torch.tensor([0, 1]))
    assert pictures.shape == (2, 3, 16, 16)
    assert any("SpectralNorm" in type(m).__name__ for m in network.modules()) == options.get(
        "spectral_norm", True
    )
    twin = copy.deepcopy(network)
    assert torch.equal(twin(seeded(network, 2), torch.tensor([0, 1])), pictures)


def test_every_block_sees_its_own_part_of_the_latent() -> None:
    network = make(classes=2).eval()
    assert network.parts == [4, 4, 4]  # one for the start, one for each of two blocks
    latents = seeded(network, 1)
    seen: list[torch.Tensor] = []
    handles = [
        block.norm1.register_forward_hook(lambda module, given, out: seen.append(given[1]))
        for block in network.blocks  # type: ignore[union-attr]
    ]
    network(latents, torch.tensor([1]))
    for handle in handles:
        handle.remove()
    assert network.embedding is not None
    for index, condition in enumerate(seen):
        assert torch.equal(condition[:, :4], latents.z[:, 4 * (index + 1) : 4 * (index + 2)])
        assert torch.equal(condition[:, 4:], network.embedding.weight[1:2])


@pytest.mark.parametrize("kind", ["dcgan", "biggan"])
def test_a_class_may_be_a_mixture(kind: str) -> None:
    network = make(kind, classes=3).eval()
    latents = seeded(network, 2)
    plain = network(latents, torch.tensor([2, 0]))
    sharp = network(latents, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(plain, sharp)
    half = network(latents, torch.tensor([[0.5, 0.0, 0.5]] * 2))
    assert not torch.allclose(half, plain)


@pytest.mark.parametrize("kind", ["dcgan", "biggan"])
def test_layer_noise_obeys_strength_and_distribution(kind: str) -> None:
    # Two layers each: a DCGAN's last one, which puts out the picture, has none.
    network = make(kind, image_size=32 if kind == "dcgan" else 16, noise_layers=-1, noise_init=0.5).eval()
    assert network.noise_sizes == (8, 16)
    one, other = seeded(network, 1, seed=1), seeded(network, 1, seed=2)
    other = other._replace(z=one.z)
    assert not torch.allclose(network(one), network(other))
    torch.testing.assert_close(network(one, noise_strength=0.0), network(other, noise_strength=0.0))
    still = network(one, noise_strength=0.0)
    weak, strong = (
        float((network(one, noise_strength=strength) - still).detach().abs().mean())
        for strength in (0.1, 1.0)
    )
    assert 0 < weak < strong
    first_only = network(one, noise_strength=[1.0, 0.0])
    assert not torch.allclose(first_only, still)
    assert not torch.allclose(first_only, network(one, noise_strength=[0.0, 1.0]))
    assert not torch.allclose(network(one, noise_distribution="student_t"), network(one))
    torch.testing.assert_close(network(one, noise_distribution="gaussian"), network(one))
    with pytest.raises(InputError, match="2 layers with noise"):
        network(one, noise_strength=[1.0])
    with pytest.raises(InputError, match="2 layers with noise"):
        network(one._replace(noise=()))


def test_truncation_narrows_the_pictures() -> None:
    network = make().eval()
    latents = seeded(network, 16)
    spread = [
        float(network(latents, truncation=truncation).detach().std(0).mean())
        for truncation in (0.2, 1.0, None)
    ]
    assert spread == sorted(spread)
    assert spread[0] < 0.6 * spread[2]


@pytest.mark.parametrize("width", [8, 24, 64])
def test_a_discriminator_without_normalisation_begins_with_something_to_say(width: int) -> None:
    """What it tells the generator does not vanish before training, however narrow it is.

    Weights of deviation 0.02, which are right before a normalisation, leave 0.008 of the slope at width 8,
    0.07 at 24 and 0.5 at 64, where the right size gives 0.7 to 0.9 at all of them.
    """
    torch.manual_seed(0)
    config = DCGANConfig(image_size=32, channels=1, classes=10)
    judge = build_discriminator(config, GANDiscriminatorConfig(width=width, normalisation="none"))
    pictures = torch.randn(64, 1, 32, 32).repeat(1, 3, 1, 1).requires_grad_(True)
    logits = judge(pictures, torch.arange(64) % 10)
    (slope,) = torch.autograd.grad(logits.sum(), pictures)
    assert 0.6 < float(slope.square().sum((1, 2, 3)).mean().sqrt()) < 1.5
    assert 0.5 < float(logits.detach().std()) < 2.0


def test_classes_must_fit() -> None:
    network = make()
    with pytest.raises(InputError, match="no classes"):
        network(seeded(network, 1), torch.tensor([0]))
    network = make(classes=2)
    with pytest.raises(InputError, match="2 classes"):
        network(seeded(network, 1))
    with pytest.raises(InputError, match="3 classes were given for 1 latents"):
        network(seeded(network, 1), torch.tensor([0, 1, 0]))


@pytest.mark.parametrize(
    ("config", "given", "what"),
    [
        (DCGANConfig, {"image_size": 48}, "power of two"),
        (BigGANConfig, {"attention": 7}, "attention 7"),
        (BigGANConfig, {"latent": 2}, "cannot be split"),
        (BigGANConfig, {"width": 64, "max_width": 32}, "below width"),
    ],
)
def test_configurations_that_do_not_fit(config: Any, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        config(**given)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["data.size=64"], "must equal model.image_size"),
        (["data.synthetic_share=0.2"], "synthetic_share"),
        (["discriminator.attention=16"], "for model.kind biggan"),
        (["objective.penalty=r1", "discriminator.normalisation=batch"], "mixes pictures"),
        (["objective.loss=wgan_gp", "objective.penalty=none"], "no meaning without a penalty"),
    ],
)
def test_recipes_that_do_not_fit(overrides: list[str], what: str) -> None:
    base = {"kind": "gan", "data": {"size": 32}, "optim": {"until_images": 10}}
    with pytest.raises(InputError, match=what):
        parse_recipe(base, overrides)


@pytest.mark.parametrize("name", ["dcgan-fashion", "biggan-fashion", "vae-fashion"])
def test_shipped_recipes_load_and_come_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert recipe.name == name
    assert recipe.data.source == "fashion-mnist"
    if name != "vae-fashion":
        assert isinstance(recipe, GANRecipe)
        assert recipe.model.classes == 10
        assert recipe.objective.penalised in ("none", "r1")
    (tmp_path / "again.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_penalties_follow_the_loss() -> None:
    base = {"kind": "gan", "data": {"size": 32}, "optim": {"until_images": 10}}
    found = {
        loss: parse_recipe(base, [f"objective.loss={loss}"]).objective.penalised  # type: ignore[union-attr]
        for loss in ("hinge", "vanilla", "relativistic", "wgan_gp")
    }
    assert found == {"hinge": "none", "vanilla": "none", "relativistic": "r1_r2", "wgan_gp": "wgan_gp"}
