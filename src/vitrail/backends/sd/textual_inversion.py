"""Textual inversions: a few learned vectors that stand for a word (Gal et al., arXiv:2208.01618).

Read from what A1111's web page writes (``.pt`` with ``string_to_param``, safetensors with ``emb_params``),
what diffusers writes (``{"<token>": vectors}``), and the files for SDXL with vectors for both encoders
(``clip_l`` and ``clip_g``). A ``.pt`` is read without being run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitrail.backends.checkpoints import read_checkpoint
from vitrail.backends.sd.conditioning import Embedding
from vitrail.errors import ArtifactError
from vitrail.files import shown

__all__ = ["MAX_VECTORS", "named_in", "read_embedding"]

MAX_VECTORS = 75
"""Vectors that fit between the start and the end of one chunk of text."""

_MAX_WIDTH = 1 << 14
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
_NAMELESS = ("*", "emb_params", "string_to_param.*")
_WIDTHS = {(768,): "Stable Diffusion 1.x", (1024,): "Stable Diffusion 2.x", (768, 1280): "SDXL"}


def read_embedding(path: Path | str, widths: Sequence[int], name: str | None = None) -> Embedding:
    """Read an embedding for a model whose text encoders have these widths.

    name: the word that it stands for in prompts; by default the file's name without its ending, as A1111 has
    it (for diffusers' ``learned_embeds`` the token in the file).

    Raises :class:`~vitrail.errors.ArtifactError` for a file that is damaged or no embedding, and for one of
    another family of models.
    """
    path = Path(path)
    tensors = read_checkpoint(path).tensors
    try:
        found = _vectors(tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{shown(path)}: {error}") from None
    given, wanted = tuple(item.shape[1] for item in found), tuple(widths)
    if wanted == (1280,) and given == (768, 1280):
        found, given = found[1:], given[1:]  # SDXL's refiner has the second encoder alone
    if given != wanted:
        raise ArtifactError(
            f"the embedding {shown(path.name, 80)} is for {_family(given)}; this model is {_family(wanted)}: "
            "choose an embedding of the same family"
        )
    return Embedding(name or _name(path, tensors), found)


def named_in(text: str, names: Iterable[str]) -> list[str]:
    """Return those names that stand in a text as words, in any case: only their files need reading."""
    folded = text.casefold()
    found = []
    for name in names:
        word = name.casefold()
        if word and word in folded and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", folded):
            found.append(name)
    return found


def _vectors(tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the vectors (n, width) for each encoder, float32."""
    chosen: list[Tensor] | None = None
    for pair in _PAIRS:
        if all(key in tensors for key in pair):
            chosen = [tensors[key] for key in pair]
    if chosen is None:
        if len(tensors) != 1:
            raise ArtifactError(
                f"it holds {len(tensors)} tensors (for example {shown(next(iter(tensors), 'none'), 60)}); "
                "an embedding has one, or clip_l and clip_g"
            )
        chosen = list(tensors.values())
    vectors = tuple(item[None] if item.ndim == 1 else item for item in chosen)
    for item in vectors:
        if item.ndim != 2 or not item.is_floating_point() or not 0 < item.shape[1] <= _MAX_WIDTH:
            raise ArtifactError(
                f"it holds a tensor of shape {tuple(item.shape)}, which is no list of vectors"
            )
        if not 1 <= item.shape[0] <= MAX_VECTORS:
            raise ArtifactError(f"it has {item.shape[0]} vectors; between 1 and {MAX_VECTORS} can be used")
        if not bool(torch.isfinite(item.float()).all()):
            raise ArtifactError("it holds NaN or infinite values; the file is damaged")
    if len({item.shape[0] for item in vectors}) != 1:
        counts = " and ".join(str(item.shape[0]) for item in vectors)
        raise ArtifactError(f"it has {counts} vectors for the two encoders; their number must be equal")
    return tuple(item.float() for item in vectors)


def _family(widths: tuple[int, ...]) -> str:
    return _WIDTHS.get(widths, f"text encoders of {' and '.join(str(width) for width in widths)} channels")


def _name(path: Path, tensors: Mapping[str, Tensor]) -> str:
    key = next(iter(tensors))
    if path.stem.startswith("learned_embeds") and len(tensors) == 1 and key not in _NAMELESS:
        return key
    return path.stem
