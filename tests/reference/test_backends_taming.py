"""taming-transformers' files: our networks against a plain re-implementation of theirs, number by number."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import taming_reference as reference
import torch
from torch import Tensor

from vitrail.backends.convert import Source, convert, write
from vitrail.errors import ArtifactError
from vitrail.models.registry import build
from vitrail.store import artifacts

SHAPE: dict[str, Any] = {
    "ch": 32,
    "ch_mult": (1, 1, 2),
    "blocks": 1,
    "attn": (2,),
    "z": 8,
    "embed": 8,
    "codes": 96,
}
TOLERANCE = 1e-5  # relative to the largest value: float32 sums in another order


class Callback:
    """Stands for what Lightning keeps in a checkpoint beside tensors."""

    def __init__(self) -> None:
        self.best = {"path": Path("/somewhere/else"), "score": torch.tensor(0.5)}


def ddconfig(**changes: Any) -> dict[str, Any]:
    return {
        "double_z": False, "z_channels": 8, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0,
    } | changes  # fmt: skip


def section(target: str = "taming.models.vqgan.VQModel", **changes: Any) -> dict[str, Any]:
    loss = {
        "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
        "params": {"disc_start": 1},
    }
    params = {"embed_dim": 8, "n_embed": 96, "ddconfig": ddconfig(), "lossconfig": loss}
    return {"base_learning_rate": 4.5e-6, "target": target, "params": params | changes}


def lightning(path: Path, weights: Mapping[str, Tensor], model: Mapping[str, Any] | None, **how: Any) -> Path:
    """Write a checkpoint as pytorch-lightning does, with objects that nobody here can build, and its YAML."""
    state = OrderedDict(weights)
    state["loss.discriminator.main.0.weight"] = torch.randn(4, 3, 4, 4)
    state["loss.perceptual_loss.lin0.model.1.weight"] = torch.randn(1, 4, 1, 1)
    content = {
        "epoch": 3,
        "global_step": 1234,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {Callback: Callback()},
        "optimizer_states": [
            {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        ],
        "lr_schedulers": [],
        "state_dict": state,
    }
    torch.save(content, path, **how)
    if model is not None:
        # JSON is YAML: the test needs no YAML writer
        path.with_suffix(".yaml").write_text(
            json.dumps({"model": model, "data": {"params": {"batch_size": 2}}})
        )
    return path


def loaded(source: Source, folder: Path, part: str | None = None) -> Any:
    """The network, after a round trip through a model folder."""
    write(source, folder)
    artifact = artifacts.load(folder if part is None else folder / part, verify=True)
    network = build(artifact.kind, artifact.config)
    artifact.fill(network)
    return network.eval().requires_grad_(False)


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pictures(size: Sequence[int] = (2, 3, 32, 48)) -> Tensor:
    return torch.rand(tuple(size), generator=torch.Generator().manual_seed(7)) * 2 - 1


@pytest.mark.parametrize("yaml", [True, False], ids=["yaml", "shapes"])
@pytest.mark.parametrize("stream", [False, True], ids=["zip", "old"])
def test_a_vqmodel_computes_what_taming_computes(tmp_path: Path, yaml: bool, stream: bool) -> None:
    weights = reference.random_vqgan(**SHAPE)
    path = lightning(
        tmp_path / "last.ckpt",
        weights,
        section() if yaml else None,
        _use_new_zipfile_serialization=not stream,
    )
    source = convert(path)
    assert source.model.what == "VQModel, f4, 96 codes of 8 channels"
    assert source.checkpoint.container == ("stream" if stream else "zip")
    assert any("Callback" in name for name in source.checkpoint.foreign)
    assert source.model.left == ("2 of loss.* (losses and discriminator, of training alone)",)
    network = loaded(source, tmp_path / "out")
    picture, codes = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    made = network(pictures())
    assert torch.equal(made.latent.codes, codes)
    assert len(codes.unique()) > 10
    assert far(made.x, picture) < TOLERANCE
    assert far(network.decode_codes(codes), picture) < TOLERANCE
    # The other way round: every weight of theirs is in the folder, bit for bit.
    kept = network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in weights.items())
    assert set(kept) - set(weights) == {"quantize.usage"}


def test_the_comparison_would_see_a_wrong_weight(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE)
    network = loaded(convert(lightning(tmp_path / "a.ckpt", weights, section())), tmp_path / "out")
    weights["decoder.up.2.attn.0.norm.weight"] = weights["decoder.up.2.attn.0.norm.weight"] * 1.001
    picture, _ = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    assert far(network(pictures()).x, picture) > TOLERANCE


def test_a_gumbelvq_takes_the_most_likely_code(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE, middle_of="gumbel")
    model = section("taming.models.vqgan.GumbelVQ", kl_weight=1e-8, temperature_scheduler_config={})
    network = loaded(convert(lightning(tmp_path / "g.ckpt", weights, model)), tmp_path / "out")
    picture, codes = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    made = network(pictures())
    assert torch.equal(made.latent.codes, codes)
    assert far(made.x, picture) < TOLERANCE
    inferred = convert(lightning(tmp_path / "h.ckpt", weights, None))
    assert inferred.model.what == "GumbelVQ, f4, 96 codes of 8 channels"


def test_a_codebook_of_moving_averages_keeps_them(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE, middle_of="ema")
    network = loaded(
        convert(lightning(tmp_path / "e.ckpt", weights, section("taming.models.vqgan.EMAVQ"))),
        tmp_path / "out",
    )
    picture, codes = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    made = network(pictures())
    assert torch.equal(made.latent.codes, codes)
    assert far(made.x, picture) < TOLERANCE
    assert torch.equal(network.quantize.sizes, weights["quantize.embedding.cluster_size"])
    assert torch.equal(network.quantize.sums, weights["quantize.embedding.embed_avg"])


@pytest.mark.parametrize("yaml", [True, False], ids=["yaml", "shapes"])
def test_a_first_stage_of_latent_diffusion(tmp_path: Path, yaml: bool) -> None:
    shape = SHAPE | {"embed": 4, "z": 4, "attn": ()}
    weights = reference.random_vqgan(**shape, middle_of="kl")
    network = ddconfig(double_z=True, z_channels=4, attn_resolutions=[])
    model = section("ldm.models.autoencoder.AutoencoderKL", embed_dim=4, ddconfig=network, n_embed=None)
    source = convert(lightning(tmp_path / "kl.ckpt", weights, model if yaml else None))
    assert source.model.kind == "kl_autoencoder"
    ours = loaded(source, tmp_path / "out")
    picture, mean = reference.kl(weights, pictures(), SHAPE["ch_mult"], 1)
    assert far(ours.encode(pictures()).z, mean) < TOLERANCE
    assert far(ours(pictures()).x, picture) < TOLERANCE


@pytest.mark.parametrize(
    ("target", "levels", "attn", "blocks"),
    [
        ("taming.models.vqgan.VQModel", (1, 1, 2, 2, 4), (4,), 2),
        ("ldm.models.autoencoder.VQModelInterface", (1, 2, 2, 4), (3,), 2),
        ("ldm.models.autoencoder.VQModelInterface", (1, 2, 4), (), 2),
    ],
    ids=["f16", "f8", "f4"],
)
def test_the_published_shapes(
    tmp_path: Path, target: str, levels: tuple[int, ...], attn: tuple[int, ...], blocks: int
) -> None:
    shape = {"ch": 32, "ch_mult": levels, "blocks": blocks, "attn": attn, "z": 4, "embed": 4, "codes": 64}
    weights = reference.random_vqgan(**shape)  # type: ignore[arg-type]
    network = ddconfig(
        ch_mult=list(levels), attn_resolutions=[64 >> n for n in attn], num_res_blocks=blocks, z_channels=4,
        resolution=64,
    )  # fmt: skip
    model = section(target, embed_dim=4, n_embed=64, ddconfig=network)
    ours = loaded(convert(lightning(tmp_path / "m.ckpt", weights, model)), tmp_path / "out")
    picture, codes = reference.vqgan(weights, pictures((1, 3, 64, 64)), levels, blocks)
    made = ours(pictures((1, 3, 64, 64)))
    assert torch.equal(made.latent.codes, codes)
    assert far(made.x, picture) < TOLERANCE


@pytest.mark.parametrize("yaml", [True, False], ids=["yaml", "shapes"])
def test_a_network_without_attention(tmp_path: Path, yaml: bool) -> None:
    weights = reference.random_vqgan(**(SHAPE | {"attn": ()}))
    weights = {name: value for name, value in weights.items() if ".attn_1." not in name}
    model = section(ddconfig=ddconfig(attn_type="none", attn_resolutions=[8]))
    ours = loaded(convert(lightning(tmp_path / "m.ckpt", weights, model if yaml else None)), tmp_path / "out")
    picture, codes = reference.vqgan(weights, pictures(), SHAPE["ch_mult"], 1)
    assert torch.equal(ours(pictures()).latent.codes, codes)
    assert far(ours(pictures()).x, picture) < TOLERANCE


# -- the transformer -----------------------------------------------------------------------------------------

CONDITIONS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    # name: cond_stage_config, how many codes stand before, further params
    "class": ({"target": "taming.modules.util.Labelator", "params": {"n_classes": 10}}, 1, {}),
    "start": ({"target": "taming.modules.util.SOSProvider", "params": {"sos_token": 0}}, 1, {}),
    "unconditional": ("__is_unconditional__", 1, {}),
    "coordinates": (
        {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 96, "down_factor": 4}},
        64,
        {},
    ),
    "picture": (section(n_embed=50), 64, {}),
    "itself": ("__is_first_stage__", 64, {}),
}


def net2net(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    condition, prefix, more = CONDITIONS[name]
    transformer = {"vocab_size": 96, "block_size": prefix + 63, "n_layer": 2, "n_head": 4, "n_embd": 32}
    params = {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": transformer},
        "first_stage_config": section(),
        "cond_stage_config": condition,
    }
    gpt = reference.random_gpt(vocabulary=96, block_size=prefix + 63, layers=2, width=32)
    weights = {f"transformer.{key}": value for key, value in gpt.items()}
    first = reference.random_vqgan(**SHAPE)
    weights |= {f"first_stage_model.{key}": value for key, value in first.items()}
    if name == "picture":
        other = reference.random_vqgan(**(SHAPE | {"codes": 50}), seed=5)
        weights |= {f"cond_stage_model.{key}": value for key, value in other.items()}
    elif name == "itself":
        weights |= {f"cond_stage_model.{key}": value for key, value in first.items()}
    target = "taming.models.cond_transformer.Net2NetTransformer"
    return {"target": target, "params": params | more | changes}, weights, prefix


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_transformer_gives_mingpts_logits(tmp_path: Path, name: str) -> None:
    from vitrail.models.token_transformer import Conditions

    model, weights, prefix = net2net(name)
    source = convert(lightning(tmp_path / "net.ckpt", weights, model))
    assert set(source.model.parts) == {"tokenizer"} | ({"condition"} if name == "picture" else set())
    network = loaded(source, tmp_path / "out")
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(96, (2, 64), generator=generator)
    if name == "class":
        before, conditions = torch.tensor([[0], [9]]), Conditions(styles=torch.tensor([1, 10]))
    elif prefix == 1:
        before, conditions = torch.zeros(2, 1, dtype=torch.long), Conditions()
    else:
        before = torch.randint(50, (2, prefix), generator=generator)
        conditions = Conditions(prefix=before)
    gpt = {key.removeprefix("transformer."): value for key, value in weights.items()}
    logits = reference.gpt(gpt, torch.cat([before, codes], 1)[:, :-1], 2, 4)[:, prefix - 1 :]
    assert far(network(codes, conditions), logits) < TOLERANCE
    names = tmp_path / "out" / "styles.json"
    assert (json.loads(names.read_text()) if names.exists() else []) == [
        str(number) for number in range(10 if name == "class" else 0)
    ]
    # The tokenizer came along, and is the one of the file.
    first = {k.removeprefix("first_stage_model."): v for k, v in weights.items() if k.startswith("first")}
    tokenizer = loaded(source, tmp_path / "again", "tokenizer")
    picture, found = reference.vqgan(first, pictures((1, 3, 32, 32)), SHAPE["ch_mult"], 1)
    made = tokenizer(pictures((1, 3, 32, 32)))
    assert torch.equal(made.latent.codes, found)
    assert far(made.x, picture) < TOLERANCE


# -- what is refused -----------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        convert(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 500
    return message


def test_missing_left_over_and_other_shapes_are_counted_and_named(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias", "encoder.mid.attn_1.q.bias"):
        del weights[name]
    weights["encoder.mid.attn_2.q.bias"] = torch.zeros(3)
    weights["quant_conv.bias"] = torch.zeros(9)
    message = refused(lightning(tmp_path / "a.ckpt", weights, section()))
    assert "3 missing (decoder.conv_out.bias, decoder.conv_out.weight, encoder.mid.attn_1.q.bias)" in message
    assert "1 not known (encoder.mid.attn_2.q.bias)" in message
    assert "1 of another shape (quant_conv.bias: (9,) for (8,))" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ddconfig": ddconfig(attn_type="linear")}, "attn_type is linear; only vanilla"),
        ({"ddconfig": ddconfig(tanh_out=True)}, "tanh_out is True"),
        ({"ddconfig": ddconfig(mystery=1)}, "mystery"),
        ({"ddconfig": ddconfig(ch="wide")}, "ch cannot be used here"),
        ({"ddconfig": ddconfig(ch=10**9)}, "ch"),
        ({"ddconfig": ddconfig(num_res_blocks=10**9)}, "num_res_blocks"),
        ({"ddconfig": None}, "no params.ddconfig"),
        ({"n_embed": "${data.n}"}, "n_embed"),
        ({"n_embed": 97}, "of another shape"),
        ({"n_embed": 10**12}, "codes"),
        ({"embed_dim": 2**70}, "embed_dim"),
        ({"remap": "used.npy"}, "remap"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_configuration_that_does_not_fit_is_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = lightning(tmp_path / "a.ckpt", reference.random_vqgan(**SHAPE), section(**changes))
    assert words in refused(path)


def test_classes_are_names_and_never_imported(tmp_path: Path) -> None:
    weights = reference.random_vqgan(**SHAPE)
    for target in ("os.system", "taming.models.vqgan.Other", "antigravity.VQModel2"):
        assert "is not known" in refused(lightning(tmp_path / "a.ckpt", weights, section(target)))
    assert "names no target" in refused(lightning(tmp_path / "a.ckpt", weights, {"params": {}}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"permuter_config": {"target": "taming.modules.transformer.permuter.ZCurve"}}, "permuter"),
        ({"cond_stage_config": {"target": "x.SOSProvider", "params": {"sos_token": 7}}}, "the code 7"),
        (
            {"cond_stage_config": {"target": "taming.models.dummy_cond_stage.DummyCondStage"}},
            "DummyCondStage",
        ),
        ({"first_stage_config": None}, "first_stage_config"),
        ({"transformer_config": {"target": "other.Performer", "params": {}}}, "only GPT"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_transformer_that_cannot_be_converted_is_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    model, weights, _ = net2net("start", **changes)
    assert words in refused(lightning(tmp_path / "n.ckpt", weights, model))


def test_a_transformer_needs_its_yaml_and_a_causal_mask(tmp_path: Path) -> None:
    model, weights, _ = net2net("start")
    path = lightning(tmp_path / "n.ckpt", weights, None)
    assert "give its YAML file with --config" in refused(path)
    weights["transformer.blocks.0.attn.mask"] = torch.ones(1, 1, 64, 64)
    assert "n_unmasked" in refused(lightning(path, weights, model))
    weights["mystery.weight"] = torch.ones(1)
    assert "1 weights that are not known (mystery.weight)" in refused(lightning(path, weights, model))
