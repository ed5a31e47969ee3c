"""Autoencoders: shapes, scales, errors, presets, and that each can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitrail.errors import InputError
from vitrail.models.autoencoders import VAE, KLAutoencoder, VQAutoencoder
from vitrail.models.latent import Autoencoder, LatentSpec, Posterior, Quantized
from vitrail.models.registry import build
from vitrail.recipe.autoencoders import PRESETS, KLAutoencoderConfig, VAEConfig, VQAutoencoderConfig
from vitrail.store import artifacts

LEAN: dict[str, Any] = {"architecture": "lean", "widths": (16, 24), "decoder_blocks": 1, "attention": True}
CLASSIC: dict[str, Any] = {
    "architecture": "classic", "ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1,
    "attn_resolutions": (), "resolution": 32, "z_channels": 8,
}  # fmt: skip


def vq(network: dict[str, Any] = LEAN, **fields: Any) -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(VQAutoencoderConfig.model_validate({"network": network, "embed_dim": 8} | fields))


def pictures(batch: int = 2, height: int = 32, width: int = 24, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


@pytest.mark.parametrize("network", [LEAN, CLASSIC], ids=["lean", "classic"])
@torch.no_grad()
def test_vq_autoencoder_round_trips(network: dict[str, Any]) -> None:
    model = vq(network, latent_scale=3.0, latent_shift=0.5).eval()
    x = pictures()
    result = model(x)
    assert isinstance(result.latent, Quantized)
    assert result.x.shape == x.shape
    assert result.x.dtype == torch.float32
    encoded = model.encode(x)
    assert encoded.codes.shape == (2, 4, 3)
    assert encoded.z.shape == (2, model.latent.channels, 4, 3)
    assert torch.equal(encoded.codes, result.latent.codes)
    assert torch.allclose(encoded.z, (model.quantize.lookup(encoded.codes) - 0.5) * 3.0, atol=1e-6)
    assert torch.allclose(model.lookup(encoded.codes), encoded.z, atol=1e-6)
    for back in (model.decode(encoded.z), model.decode_codes(encoded.codes)):
        assert torch.allclose(back, result.x, atol=1e-5)
    # A latent near a code snaps back to it.
    snapped = model.snap(encoded.z + 1e-7)
    assert torch.equal(snapped.codes, encoded.codes)
    assert torch.allclose(snapped.z, encoded.z, atol=1e-6)


@pytest.mark.parametrize("network", [LEAN, CLASSIC], ids=["lean", "classic"])
def test_kl_autoencoder_samples_in_training_and_hands_out_scaled_latents(network: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = KLAutoencoderConfig.model_validate(
        {"network": network | {"double_z": True}, "embed_dim": 4, "latent_scale": 2.0, "latent_shift": -1.0}
    )
    model = KLAutoencoder(config).train()
    x = pictures()
    first = model(x, torch.Generator().manual_seed(1)).x
    assert torch.equal(first, model(x, torch.Generator().manual_seed(1)).x)
    assert not torch.equal(first, model(x, torch.Generator().manual_seed(2)).x)
    model.eval()
    result = model(x)
    assert isinstance(result.latent, Posterior)
    assert torch.equal(result.x, model(x).x)
    assert torch.allclose(result.latent.z, (result.latent.mean + 1.0) * 2.0)
    assert torch.allclose(model.decode(model.encode(x).z), result.x, atol=1e-5)
    assert torch.allclose(result.loss, result.latent.kl().mean())


def test_posterior_against_torch_distributions() -> None:
    moments = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    posterior = Posterior(moments, LatentSpec(4, 8))
    normal = torch.distributions.Normal(moments[:, :4], (0.5 * moments[:, 4:]).exp())
    standard = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(normal, standard).flatten(1).sum(1)
    assert torch.allclose(posterior.kl(), expected, rtol=1e-5)
    extreme = Posterior(torch.tensor([0.0, 1e9]).view(1, 2, 1, 1), LatentSpec(1, 8))
    assert float(extreme.logvar) == 20.0
    assert bool(extreme.sample(torch.Generator().manual_seed(0)).isfinite().all())


@pytest.mark.parametrize(("side", "widths"), [(28, (16, 32)), (32, (16, 32, 32)), (64, (8, 16, 32, 32))])
def test_vae_keeps_the_size_of_small_pictures(side: int, widths: tuple[int, ...]) -> None:
    model = VAE(VAEConfig(image_size=side, channels=1, widths=widths, embed_dim=5, latent_scale=0.5)).eval()  # type: ignore[call-arg]
    x = pictures(3, side, side, channels=1)
    result = model(x)
    assert result.x.shape == x.shape
    assert model.encode(x).z.shape == (3, 5, 1, 1)
    assert torch.allclose(model.decode(model.encode(x).z), result.x, atol=1e-6)


def test_latent_spec_inverts_itself() -> None:
    spec = LatentSpec(4, 8, scale=0.18215, shift=0.1)
    z = torch.randn(2, 4, 3, 3)
    assert torch.allclose(spec.inward(spec.outward(z)), z, atol=1e-6)
    assert spec.outward(torch.tensor(1.1)).item() == pytest.approx(0.18215)


def models() -> list[tuple[Any, Tensor]]:
    torch.manual_seed(0)
    kl = KLAutoencoder(KLAutoencoderConfig.model_validate({"network": LEAN | {"double_z": True}}))
    vae = VAE(VAEConfig(image_size=16, widths=(16, 32)))  # type: ignore[call-arg]
    return [
        (vq(quantizer={"kind": "nearest", "codes": 64, "kmeans_init": True}), pictures(4, 16, 16)),
        (vq(CLASSIC, quantizer={"kind": "fsq", "levels": (8, 8, 8)}), pictures(4, 16, 16)),
        (kl, pictures(4, 16, 16)),
        (vae, pictures(4, 16, 16)),
    ]


@pytest.mark.parametrize("index", [0, 2, 3], ids=["vq lean", "kl", "vae"])
def test_each_learns_four_pictures(index: int) -> None:
    model, _ = models()[index]
    x = torch.nn.functional.interpolate(pictures(4, 2, 2), scale_factor=8, mode="bilinear")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(35):
        result = model(x, torch.Generator().manual_seed(step))
        error = (result.x - x).square().mean()
        weight = 1.0 if isinstance(result.latent, Quantized) else 1e-5
        optimizer.zero_grad()
        (error + weight * result.loss).backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("index", range(4), ids=["vq lean", "vq classic", "kl", "vae"])
def test_each_is_an_autoencoder_and_keeps_its_promises_under_autocast(index: int) -> None:
    model, x = models()[index]
    usable: Autoencoder = model
    assert isinstance(model.last_layer, nn.Parameter)
    assert any(parameter is model.last_layer for parameter in model.parameters())
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        latent = usable.encode(x).z
        back = usable.decode(latent)
    assert latent.dtype == back.dtype == torch.float32
    assert latent.shape[1] == usable.latent.channels


def test_shapes_that_do_not_fit_are_named() -> None:
    model = vq()
    with pytest.raises(InputError, match="multiples of 8"):
        model(pictures(1, 30, 32))
    with pytest.raises(InputError, match="expected"):
        model.encode(pictures(1, 32, 32, channels=1))
    vae = VAE(VAEConfig(image_size=16, widths=(16,)))  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"\(B, 3, 16, 16\)"):
        vae(pictures(1, 32, 32))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("vq_autoencoder", {"network": LEAN | {"downsample": 16}}, "give 3 widths, not 2"),
        ("vq_autoencoder", {"network": LEAN | {"widths": (16, 20)}}, "multiples of 8"),
        ("vq_autoencoder", {"network": LEAN | {"downsample": 2}}, "must not be above"),
        ("vq_autoencoder", {"network": LEAN | {"double_z": True}}, "kl_autoencoder"),
        ("kl_autoencoder", {"network": LEAN}, "double_z = true"),
        ("vq_autoencoder", {"quantizer": {"kind": "fsq", "levels": (256, 256, 256)}}, "at most"),
        ("vae", {"image_size": 30}, "multiple of 4"),
        ("vae", {"image_size": 16, "widths": (8,) * 5}, "halved"),
    ],
)
def test_configurations_that_cannot_be(kind: str, fields: dict[str, Any], message: str) -> None:
    classes = {"vq_autoencoder": VQAutoencoderConfig, "kl_autoencoder": KLAutoencoderConfig, "vae": VAEConfig}
    with pytest.raises(ValidationError, match=message):
        classes[kind].model_validate(fields)


def test_presets_have_the_published_factors_and_codebooks() -> None:
    for name, downsample, codes in (
        ("classic-f4", 4, 8192), ("classic-f8", 8, 16_384), ("classic-f16", 16, 1024),
    ):  # fmt: skip
        config = PRESETS[name]
        assert config.network.downsample == downsample
        assert config.quantizer.model_dump()["codes"] == codes
    with torch.device("meta"):
        for name, config in PRESETS.items():
            model = VQAutoencoder(config)
            assert model.latent.downsample == int(name.rpartition("f")[2])
            assert VQAutoencoderConfig.model_validate(config.model_dump(mode="json")) == config


def test_artifacts_bring_back_the_same_network(tmp_path: Path) -> None:
    model = vq(
        quantizer={
            "kind": "cosine", "codes": 32, "codebook": "ema", "kmeans_init": True, "restart_below": 0.1,
        }
    ).train()  # fmt: skip
    model(pictures(), torch.Generator().manual_seed(0))
    artifacts.save(
        tmp_path / "m",
        kind="vq_autoencoder",
        name="m",
        config=model.config.model_dump(mode="json", exclude={"kind"}),
        tensors=model.state_dict(),
        licence="Apache-2.0",
    )
    loaded = artifacts.load(tmp_path / "m")
    other = build(loaded.kind, loaded.config)
    loaded.fill(other)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
