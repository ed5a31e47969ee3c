"""Net2NetTransformer checkpoints of taming-transformers: a transformer over codes, and its tokenizer inside.

One file holds both: ``transformer.*`` (minGPT), ``first_stage_model.*`` (a VQGAN) and, where the condition
is a picture, ``cond_stage_model.*`` (another). The condition stands before the codes and shares their
table:

=====================  =====================================================================================
cond_stage_config      what stands before the codes
=====================  =====================================================================================
``Labelator``          the number of a class, from 0; ours is ``styles``, counted from 1
``SOSProvider``        its ``sos_token`` (also ``__is_unconditional__``, and ``unconditional: true``)
``CoordStage``         where in the picture each code lies; ours is ``places``
``VQModel``, ...       codes of another picture; its autoencoder becomes the subfolder ``condition``
``__is_first_stage__`` codes of another picture, by the tokenizer itself
=====================  =====================================================================================

Sources: taming/models/cond_transformer.py, taming/modules/transformer/mingpt.py, taming/modules/util.py and
taming/modules/misc/coord.py of https://github.com/CompVis/taming-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from vitrail.backends.conversion import Converted, fitted, renamed, validated
from vitrail.backends.taming import AUTOENCODERS, LEFT_BEHIND, autoencoder, class_of
from vitrail.errors import ArtifactError, CheckpointError
from vitrail.files import shown
from vitrail.models.token_readers import from_mingpt
from vitrail.recipe.autoencoders import ClassicNetworkConfig, VQAutoencoderConfig
from vitrail.recipe.priors import TokenTransformerConfig

__all__ = ["PRIORS", "is_prior", "prior"]

PRIORS = ("Net2NetTransformer",)

TRANSFORMER, FIRST, CONDITION = "transformer.", "first_stage_model.", "cond_stage_model."


class _Transformer(BaseModel):
    """``transformer_config.params``: minGPT's arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vocab_size: int
    block_size: int
    n_layer: int = 12
    n_head: int = 8
    n_embd: int = 256
    embd_pdrop: float | int = 0.0
    resid_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0
    n_unmasked: int = 0


@dataclass(frozen=True)
class _Condition:
    """What stands before the codes: how many, of how many, of how many classes, the code that begins, whether
    it is the places of the codes; and its autoencoder."""

    prefix: int
    prefix_codes: int = 0
    styles: int = 0
    start: int = 0
    places: bool = False
    what: str = "unconditional"
    part: Converted | None = None


def is_prior(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a Net2NetTransformer."""
    return f"{TRANSFORMER}tok_emb.weight" in tensors


def prior(tensors: Mapping[str, Tensor], section: Mapping[str, Any] | None) -> Converted:
    """Convert a Net2NetTransformer; its tokenizer is the part ``tokenizer``. Raises
    :class:`ArtifactError`."""
    if section is None:
        raise ArtifactError(
            "holds a transformer, whose number of heads no weight tells; give its YAML file with --config"
        )
    name = class_of(section, "the model's section")
    params = section.get("params")
    if name not in PRIORS or not isinstance(params, Mapping):
        raise ArtifactError(f"holds a transformer, but its configuration is for {shown(name, 60)}")
    permuter = params.get("permuter_config")
    if isinstance(permuter, Mapping) and class_of(permuter, "permuter_config") != "Identity":
        raise ArtifactError("has a permuter of its codes; only the order by rows can be converted")
    weights, left = renamed(tensors, LEFT_BEHIND)
    first = _section(params, "first_stage_config")
    tokenizer = autoencoder(_within(weights, FIRST), first, numbers="used")
    if not isinstance(tokenizer.config, VQAutoencoderConfig):
        raise ArtifactError("its first stage has no codes; a transformer over codes needs a VQModel")
    given = validated(
        _Transformer, _params(_section(params, "transformer_config"), "GPT"), "transformer_config"
    )
    codes = int(getattr(tokenizer.config.quantizer, "codes", 0))
    side = _side(tokenizer.config)
    condition = _condition(params, weights, side, tokenizer.config.network.downsample)
    rest = {n: v for n, v in weights.items() if not n.startswith((TRANSFORMER, FIRST, CONDITION))}
    if rest:
        raise ArtifactError(f"holds {len(rest)} weights that are not known ({shown(next(iter(rest)), 60)})")
    transformer = _within(weights, TRANSFORMER)
    config = validated(
        TokenTransformerConfig,
        {
            "mode": "causal",
            "block": "gpt",
            "codes": codes,
            "rows": side,
            "columns": side,
            "width": given.n_embd,
            "depth": given.n_layer,
            "heads": given.n_head,
            "dropout": float(given.resid_pdrop),
            "styles": condition.styles,
            "prefix": condition.prefix,
            "prefix_codes": condition.prefix_codes,
            "start": condition.start,
            "places": condition.places,
            "unmasked": _unmasked(transformer, given),
            "table": given.vocab_size,
            "positions": given.block_size,
        },
        "the transformer's configuration",
    )
    try:
        ours = from_mingpt(transformer)
    except CheckpointError as error:
        raise ArtifactError(f"holds a transformer that is not minGPT's: {error}") from None
    parts = {"tokenizer": tokenizer}
    if condition.part is not None:
        parts["condition"] = condition.part
    what = f"Net2NetTransformer, {given.n_layer} blocks of width {given.n_embd}, {condition.what}"
    fit = fitted("token_transformer", config, ours, {})
    whole = f"{what}, over {tokenizer.what}"
    names = tuple(str(number) for number in range(condition.styles))  # the file has no names of its classes
    return Converted(whole, "token_transformer", config, fit, left, parts, names)


def _within(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _section(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = params.get(name)
    if not isinstance(section, Mapping):
        raise ArtifactError(f"the configuration has no params.{name}; give the one of the checkpoint")
    return section


def _params(section: Mapping[str, Any], wanted: str) -> Mapping[str, Any]:
    name, params = class_of(section, "the section"), section.get("params", {})
    if name != wanted or not isinstance(params, Mapping):
        raise ArtifactError(f"the configuration asks for {shown(name, 60)}; only {wanted} can be converted")
    return params


def _side(config: VQAutoencoderConfig) -> int:
    network = config.network
    assert isinstance(network, ClassicNetworkConfig)
    return network.resolution // network.downsample


def _condition(params: Mapping[str, Any], weights: Mapping[str, Tensor], side: int, size: int) -> _Condition:
    """What stands before the codes of a picture of ``side * side`` positions of ``size`` pixels each."""
    count = side * side
    given = params.get("cond_stage_config")
    held = _within(weights, CONDITION)
    if given == "__is_first_stage__":
        same = _within(weights, FIRST)  # the same module under a second name, so its weights are there twice
        if any(name not in same or not torch.equal(value, same[name]) for name, value in held.items()):
            raise ArtifactError("its condition stage differs from its first stage, against its configuration")
        return _Condition(count, what="conditioned on another picture")
    if params.get("unconditional") is True or given == "__is_unconditional__":
        return _start(params.get("sos_token", 0), held)
    if not isinstance(given, Mapping):
        raise ArtifactError(
            "the configuration has no params.cond_stage_config; give the one of the checkpoint"
        )
    name, inner = class_of(given, "cond_stage_config"), given.get("params") or {}
    if not isinstance(inner, Mapping):
        raise ArtifactError("the configuration's cond_stage_config.params is no table")
    if name in AUTOENCODERS:
        part = autoencoder(held, given, numbers="used")
        if not isinstance(part.config, VQAutoencoderConfig):
            raise ArtifactError("its condition stage has no codes")
        codes = int(getattr(part.config.quantizer, "codes", 0))
        pixels = params.get("downsample_cond_size", -1)
        inner_side = _side(part.config)
        if type(pixels) is int and pixels > 0:
            inner_side = pixels // part.config.network.downsample
        return _Condition(inner_side**2, codes, what="conditioned on another picture", part=part)
    if held:
        raise ArtifactError(f"its condition stage {shown(name, 60)} has weights that are not known")
    if name == "SOSProvider":
        return _start(inner.get("sos_token", 0), held)
    if name == "Labelator":
        classes = inner.get("n_classes")
        if type(classes) is not int:
            raise ArtifactError("the configuration's cond_stage_config has no n_classes")
        return _Condition(1, styles=classes, what=f"{classes} classes")
    if name == "CoordStage":
        positions = inner.get("n_embed")
        if type(positions) is not int:
            raise ArtifactError("the configuration's cond_stage_config has no n_embed")
        if inner.get("down_factor") != size:
            factor = shown(inner.get("down_factor"), 20)
            raise ArtifactError(
                f"its CoordStage has down_factor {factor}; only {size}, as its first stage, can be converted"
            )
        return _Condition(count, positions, places=True, what="conditioned on positions")
    raise ArtifactError(
        f"its condition stage {shown(name, 60)} is not known; such files cannot be converted yet"
    )


def _start(token: object, held: Mapping[str, Tensor]) -> _Condition:
    if type(token) is not int or held:
        raise ArtifactError(
            f"begins with {shown(token, 20)} and {len(held)} weights; one code and no weights are needed"
        )
    return _Condition(1, start=token)


def _unmasked(transformer: Mapping[str, Tensor], given: _Transformer) -> int:
    """How many codes at the beginning see one another both ways: as the masks that the file holds say, which
    count more than the configuration there; 0 for a network that is causal throughout."""
    count = given.n_unmasked
    for layer in range(given.n_layer):
        mask = transformer.get(f"blocks.{layer}.attn.mask")
        if mask is None or mask.shape != (1, 1, given.block_size, given.block_size):
            continue
        seen = mask[0, 0] != 0
        first = int(seen[0].sum())
        expected = torch.ones_like(seen).tril()
        expected[:first, :first] = True
        if not torch.equal(seen, expected) or (layer and first != count):
            raise ArtifactError(f"has a mask of its own in blocks.{layer}.attn; that cannot be converted")
        count = first
    return count if count > 1 else 0
