"""taming-transformers' files: our networks against a plain re-implementation of theirs, number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import taming_reference as reference
import torch
from taming_files import (
    CONDITIONS,
    FOLLOWING,
    SHAPE,
    SOS,
    TOLERANCE,
    ddconfig,
    far,
    lightning,
    loaded,
    net2net,
    pictures,
    refused,
    section,
)

from vitrail.backends.convert import convert
from vitrail.models.token_readers import CachedReader
from vitrail.models.token_transformer import Conditions


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


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_transformer_gives_mingpts_logits(tmp_path: Path, name: str) -> None:
    model, weights, prefix = net2net(name)
    source = convert(lightning(tmp_path / "net.ckpt", weights, model))
    assert set(source.model.parts) == {"tokenizer"} | ({"condition"} if name in FOLLOWING else set())
    network = loaded(source, tmp_path / "out")
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(96, (2, 64), generator=generator)
    if name == "class":
        before, conditions = torch.tensor([[0], [9]]), Conditions(styles=torch.tensor([1, 10]))
    elif prefix == 1:
        before, conditions = torch.full((2, 1), SOS.get(name, 0)), Conditions()
    else:
        before = torch.randint(50, (2, prefix), generator=generator)
        conditions = Conditions(prefix=before)
    gpt = {key.removeprefix("transformer."): value for key, value in weights.items()}
    unmasked = CONDITIONS[name][2].get("n_unmasked", 0)
    seen = torch.cat([before, codes], 1)[:, :-1]
    logits = reference.gpt(gpt, seen, 2, 4, unmasked)[:, prefix - 1 :]
    assert far(network(codes, conditions), logits) < TOLERANCE
    if unmasked:  # and the comparison sees the difference
        assert far(logits, reference.gpt(gpt, seen, 2, 4)[:, prefix - 1 :]) > 100 * TOLERANCE
    # Code after code, with a cache, they are the same.
    reader = CachedReader(network, conditions)
    step = reader.begin(codes[:, :3])
    assert far(step, logits[:, 3]) < TOLERANCE
    for index in range(3, 6):
        assert far(reader.advance(codes[:, index]), logits[:, index + 1]) < TOLERANCE
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
        ({"remap": "used.npy"}, "sets remap, but the file has no quantize.used"),
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
        ({"cond_stage_config": {"target": "x.SOSProvider", "params": {"sos_token": "x"}}}, "begins with x"),
        ({"cond_stage_config": {"target": "x.SOSProvider", "params": {"sos_token": 96}}}, "start 96"),
        (
            {"cond_stage_config": {"target": "x.CoordStage", "params": {"n_embed": 9, "down_factor": 8}}},
            "down_factor 8",
        ),
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
    assert "mask of its own in blocks.1" in refused(lightning(path, weights, model))
    weights["transformer.blocks.1.attn.mask"] = torch.ones(1, 1, 64, 64)
    assert "unmasked 64 is more than the 1 codes" in refused(lightning(path, weights, model))
    del weights["transformer.blocks.0.attn.mask"], weights["transformer.blocks.1.attn.mask"]
    convert(lightning(path, weights, model))  # a file without masks: as its configuration says
    weights["mystery.weight"] = torch.ones(1)
    assert "1 weights that are not known (mystery.weight)" in refused(lightning(path, weights, model))
