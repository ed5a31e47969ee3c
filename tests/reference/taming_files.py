"""Files as taming-transformers' trainer leaves them, and our networks from such files."""

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


CONDITIONS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    # name: cond_stage_config, how many codes stand before, further params
    "class": ({"target": "taming.modules.util.Labelator", "params": {"n_classes": 10}}, 1, {}),
    "start": ({"target": "taming.modules.util.SOSProvider", "params": {"sos_token": 7}}, 1, {}),
    "unconditional": ("__is_unconditional__", 1, {}),
    "unconditional-by-flag": ({"target": "other.Stage"}, 1, {"unconditional": True, "sos_token": 95}),
    "coordinates": (
        {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 96, "down_factor": 4}},
        64,
        {},
    ),
    "picture": (section(n_embed=50), 64, {}),
    "itself": ("__is_first_stage__", 64, {}),
    "both-ways": (section(n_embed=50), 64, {"n_unmasked": 64}),
    "partly-both-ways": ("__is_first_stage__", 64, {"n_unmasked": 5}),
    "smaller": (section(n_embed=50), 16, {"downsample_cond_size": 16}),
}


FOLLOWING = ("picture", "both-ways", "smaller")  # those with a condition stage of their own
SOS = {"start": 7, "unconditional-by-flag": 95}


def net2net(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    condition, prefix, more = CONDITIONS[name]
    more = dict(more)
    unmasked = more.pop("n_unmasked", 0)
    transformer = {"vocab_size": 96, "block_size": prefix + 63, "n_layer": 2, "n_head": 4, "n_embd": 32}
    transformer["n_unmasked"] = unmasked
    params = {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": transformer},
        "first_stage_config": section(),
        "cond_stage_config": condition,
        "permuter_config": {"target": "taming.modules.transformer.permuter.Identity"},
    }
    shape = {"vocabulary": 96, "block_size": prefix + 63, "layers": 2, "width": 32, "unmasked": unmasked}
    gpt = reference.random_gpt(**shape)
    weights = {f"transformer.{key}": value for key, value in gpt.items()}
    first = reference.random_vqgan(**SHAPE)
    weights |= {f"first_stage_model.{key}": value for key, value in first.items()}
    if name in FOLLOWING:
        other = reference.random_vqgan(**(SHAPE | {"codes": 50}), seed=5)
        weights |= {f"cond_stage_model.{key}": value for key, value in other.items()}
    elif name == "itself":
        weights |= {f"cond_stage_model.{key}": value for key, value in first.items()}
    target = "taming.models.cond_transformer.Net2NetTransformer"
    return {"target": target, "params": params | more | changes}, weights, prefix


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        convert(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 500
    return message
