"""Single files: the same networks as the folder, and the same names as diffusers' own conversion gives."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sd_tiny import (
    FAMILIES,
    components,
    ldm_unet,
    ldm_vae,
    make_folder,
    make_single,
    make_vocabulary,
    single_tensors,
    unet_config,
)
from torch import Tensor

from vitrail.backends.sd import ldm_shapes
from vitrail.backends.sd.families import defaults_of, noise_path
from vitrail.backends.sd.networks import UNET_SETTINGS, build_unet, made
from vitrail.backends.sd.open import open_autoencoder, open_stable_diffusion
from vitrail.backends.sd.single_file import openclip_names, vae_names

pytestmark = pytest.mark.filterwarnings("ignore")


#: Layers that keep their weights as the files do. Packed ones, the default on processors without fast
#: bfloat16, are compared in tests/reference/test_sd_running.py.
plain = partial(open_stable_diffusion, accelerated=False)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vocabulary(tmp_path_factory.mktemp("words"))


def same(ours: Any, theirs: Any, *, half: bool = False) -> None:
    """Two modules with equal weights under equal names."""
    mine, wanted = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(mine[name], value.half().float() if half else value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path, words: Path) -> None:
    file = make_single(tmp_path / "model.safetensors", family, ema=family == "sd1")
    model = plain(file, tokenizer=words)
    parts = components(family)
    same(model.networks["unet"], parts["unet"])
    same(model.autoencoder.network, parts["vae"])
    assert set(model.networks) == set(parts) - {"vae"}
    for name in set(parts) - {"unet", "vae"}:
        same(model.networks[name], parts[name])
        for key in (
            "hidden_act",
            "num_attention_heads",
            "eos_token_id",
            "num_hidden_layers",
            "projection_dim",
        ):
            assert getattr(model.networks[name].config, key) == getattr(parts[name].config, key)
    assert model.autoencoder.latent.scale == parts["vae"].config.scaling_factor
    for key in UNET_SETTINGS - {"sample_size", "transformer_layers_per_block", "attention_head_dim"}:
        assert _plain(model.networks["unet"].config[key]) == _plain(parts["unet"].config[key]), key
    x, states = torch.randn(1, parts["unet"].config.in_channels, 8, 8), torch.randn(1, 77, 128)
    if not family.startswith("sdxl"):  # heads are in no shape: they are seen in what is computed
        more = {"timestep_cond": torch.zeros(1, 16)} if family == "lcm" else {}
        with torch.no_grad():
            got, wanted = (
                net(x, 7, encoder_hidden_states=states, **more).sample
                for net in (model.networks["unet"], parts["unet"])
            )
        assert torch.equal(got, wanted)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("family", "half"), [("sd1", True), ("sdxl", False)])
def test_torch_files(family: str, half: bool, tmp_path: Path, words: Path) -> None:
    model = plain(make_single(tmp_path / "m.ckpt", family, half=half), tokenizer=words)
    parts = components(family)
    for name, network in model.networks.items():
        same(network, parts[name], half=half)
    assert model.parts.family.name == family
    assert model.name == "m"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_other_types_and_dialects(kind: torch.dtype, tmp_path: Path, words: Path) -> None:
    """Weights of fewer bits; a text encoder without ``text_model``, as some mergers write it."""
    from safetensors.torch import save_file

    tensors = {
        name.replace(".transformer.text_model.", ".transformer."): value.to(kind)
        for name, value in single_tensors("sd1").items()
    }
    save_file(tensors, tmp_path / "m.safetensors")
    model = plain(tmp_path / "m.safetensors", tokenizer=words)
    for name, value in components("sd1")["text_encoder"].state_dict().items():
        assert torch.equal(model.networks["text_encoder"].state_dict()[name], value.to(kind).float())


def test_a_tokenizer_beside_the_file(tmp_path: Path) -> None:
    file = make_single(tmp_path / "m.safetensors")
    make_vocabulary(tmp_path / "m.tokenizer")
    assert plain(file).parts.text.towers[0].words.pad == 546
    (tmp_path / "m.tokenizer").rename(tmp_path / "tokenizer")
    plain(file)


def test_the_same_picture_as_the_folder(tmp_path: Path) -> None:
    """The vocabulary may come from any folder of diffusers; the name of the file, from the file."""
    folder = plain(make_folder(tmp_path / "folder", "sdxl"))
    file = make_single(tmp_path / "x.safetensors", "sdxl")
    single = plain(file, tokenizer=tmp_path / "folder")
    x, sigma = torch.randn(1, 4, 8, 8), torch.tensor([2.0])
    with torch.no_grad():
        one, other = (m.bind(m.read("a (red:1.3) cat", "dog"), 64, 64, "float32") for m in (folder, single))
        for got, wanted in zip(one.pair(x, sigma), other.pair(x, sigma), strict=True):
            assert torch.equal(got, wanted)


# --- names, against diffusers' own conversion ---------------------------------------------------------------


def test_names_as_diffusers_converts_them() -> None:
    from diffusers.loaders import single_file_utils as oracle

    for family in ("sd1", "sdxl"):
        parts, tensors = components(family), single_tensors(family)
        theirs = oracle.convert_ldm_unet_checkpoint(dict(tensors), dict(parts["unet"].config))
        plain = {
            name.removeprefix("model.diffusion_model."): value
            for name, value in tensors.items()
            if name.startswith("model.diffusion_model.")
        }
        shapes = {name: tuple(value.shape) for name, value in plain.items()}
        ours = build_unet(ldm_shapes.unet_config(shapes), plain, ldm=True).state_dict()
        _equal(ours, theirs)
        theirs = oracle.convert_ldm_vae_checkpoint(dict(tensors), dict(parts["vae"].config))
        inner = {
            n.removeprefix("first_stage_model."): v for n, v in tensors.items() if n.startswith("first_")
        }
        _equal(vae_names(inner), theirs)
    prefix = "conditioner.embedders.1.model."
    theirs = oracle.convert_open_clip_checkpoint(parts["text_encoder_2"], dict(tensors), prefix=prefix)
    inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    _equal(openclip_names(inner), {_without(name): value for name, value in theirs.items()})


def _without(name: str) -> str:
    return name.removeprefix("text_model.")


def _equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


REAL: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "transformer_layers_per_block": [1, 1, 1, 1],
        "use_linear_projection": False,
    },
    "sd2": {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "transformer_layers_per_block": [1, 1, 1, 1],
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl-refiner": {
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": [1, 4, 4, 4],
        "use_linear_projection": True,
        "cross_attention_dim": 1280,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
COUNTS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}  # as published


@pytest.mark.parametrize("family", list(REAL))
def test_real_sizes_are_read_off_the_shapes(family: str) -> None:
    """The published networks, without memory for their weights; their numbers of parameters are known."""
    from diffusers import UNet2DConditionModel

    wanted = REAL[family] | {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    network: Any = made("U-Net", lambda: UNet2DConditionModel(**wanted))
    count = sum(value.numel() for value in network.parameters())
    assert count == COUNTS.get(family, count)
    shapes = {name: tuple(value.shape) for name, value in ldm_unet(network).items()}
    assert ldm_shapes.unet_config(shapes) == wanted


def test_real_autoencoders_and_text_encoders() -> None:
    """As above for the other parts; 8 channels of moments, 77 places, the published numbers of weights."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    wanted: dict[str, Any] = {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "scaling_factor": 0.18215,
    }
    vae: Any = made("autoencoder", lambda: AutoencoderKL(**wanted))
    assert sum(value.numel() for value in vae.parameters()) == 83_653_863
    shapes = {name: tuple(value.shape) for name, value in vae_names(ldm_vae(vae)).items()}
    found = ldm_shapes.vae_config(shapes, xl=False)
    assert {key: found[key] for key in wanted} == wanted
    assert found["use_quant_conv"]
    assert found["mid_block_add_attention"]
    for width, layers, heads, projection, act, count in (
        (768, 12, 12, None, "quick_gelu", 123_060_480),
        (1024, 23, 16, None, "gelu", 340_387_840),
        (1280, 32, 20, 1280, "gelu", 694_659_840),
    ):
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=act,
            projection_dim=projection or width,
        )
        kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
        text: Any = made("text encoder", lambda kind=kind, config=config: kind(config))
        assert sum(value.numel() for value in text.parameters()) == count
        shapes = {name: tuple(value.shape) for name, value in text.state_dict().items()}
        read = ldm_shapes.clip_config(shapes, openclip=act == "gelu", start=49406, end=49407)
        assert all(getattr(config, key) == value for key, value in read.items() if key != "pad_token_id")


def test_an_autoencoder_of_its_own(tmp_path: Path, words: Path) -> None:
    from safetensors.torch import save_file

    other = components("sd1", seed=7)["vae"]
    bare = {name: value.contiguous() for name, value in ldm_vae(other).items()}
    save_file(bare, tmp_path / "bare.vae.safetensors")
    torch.save({"state_dict": bare | {"loss.logvar": torch.zeros(())}}, tmp_path / "bare.vae.pt")
    other.save_pretrained(tmp_path / "folder")
    save_file(other.state_dict(), tmp_path / "named.safetensors")
    file = make_single(tmp_path / "m.safetensors")
    for name in ("bare.vae.safetensors", "bare.vae.pt", "folder", "named.safetensors"):
        same(plain(file, tokenizer=words, vae=tmp_path / name).autoencoder.network, other)
    assert open_autoencoder(tmp_path / "bare.vae.pt", xl=True).latent.scale == 0.13025
    model = plain(file, tokenizer=words)
    view = model.adding(autoencoder=open_autoencoder(tmp_path / "bare.vae.pt"), clip_skip=2)
    same(view.autoencoder.network, other)
    same(model.autoencoder.network, components("sd1")["vae"])
    assert view.networks["unet"] is model.networks["unet"]


# --- what the network predicts ------------------------------------------------------------------------------


def test_what_it_predicts(tmp_path: Path, words: Path) -> None:
    from safetensors.torch import save_file

    tensors = single_tensors("sd2-v")
    attention = max(
        n for n in tensors if n.endswith(".1.transformer_blocks.0.norm1.bias") and "output_blocks" in n
    )
    spread = tensors | {attention: torch.randn(tensors[attention].shape) * 0.2}
    files = {
        "plain": (tensors, None),
        "spread": (spread, None),
        "marked": (tensors | {"v_pred": torch.tensor([])}, None),
        "zero": (tensors | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, None),
        "metadata": (tensors, {"modelspec.prediction_type": "v"}),
        "eps": (spread, {"modelspec.prediction_type": "epsilon"}),
        "yaml": (tensors, None),
    }
    (tmp_path / "yaml.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    found = {}
    for name, (given, metadata) in files.items():
        save_file(given, tmp_path / f"{name}.safetensors", metadata=metadata)
        found[name] = plain(tmp_path / f"{name}.safetensors", tokenizer=words)
    predicted = {name: model.parts.predicts for name, model in found.items()}
    assert predicted == {
        "plain": "eps", "spread": "v", "marked": "v", "zero": "v", "metadata": "v", "eps": "eps", "yaml": "v",
    }  # fmt: skip
    assert "does not say" in found["plain"].read("a cat").hints[0]
    assert found["eps"].read("a cat").hints == ()
    assert found["zero"].path.sigma_max == pytest.approx(4096, rel=1e-3)
    given = plain(tmp_path / "spread.safetensors", tokenizer=words, predicts="eps")
    assert given.parts.predicts == "eps"


@pytest.mark.parametrize(
    ("name", "options", "sampler", "steps", "scale"),
    [
        ("dreamshaper_8", {}, "dpmpp_2m", 25, 7.0),
        ("sd_xl_turbo_1.0_fp16", {}, "euler_ancestral", 4, 1.0),
        ("sdxl_lightning_2step", {}, "euler", 2, 1.0),
        ("Hyper-SD15-8steps", {}, "euler", 8, 1.0),
        ("hyperreal_v2", {}, "dpmpp_2m", 25, 7.0),
        ("my-LCM-mix", {}, "lcm", 4, 1.0),
        ("dream", {"scheduler": "LCMScheduler"}, "lcm", 4, 1.0),
        ("dream", {"guided": True}, "lcm", 4, 8.0),
    ],
)
def test_settings_that_suit(
    name: str, options: dict[str, Any], sampler: str, steps: int, scale: float
) -> None:
    found = defaults_of(name, 512, **options)
    assert (found.sampler, found.steps, found.cfg_scale) == (sampler, steps, scale)
    assert (found.width, found.height) == (512, 512)


def test_zero_terminal_noise_as_diffusers_rescales_it() -> None:
    import diffusers

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = diffusers.EulerDiscreteScheduler(**config, rescale_betas_zero_snr=True)
    ours = noise_path(config | {"rescale_betas_zero_snr": True})
    wanted = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
    # in float32 theirs loses digits where hardly any signal is left
    assert torch.allclose(torch.tensor(ours.table).float()[:-1], wanted[:-1], rtol=2e-3)
    assert ours.table[-1] == pytest.approx(float(wanted[-1]), rel=1e-3)
    assert unet_config("sd1")["in_channels"] == 4
