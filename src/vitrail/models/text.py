"""The text encoder: MiniLM-L6 (a BERT of 6 layers x 384) in plain torch, frozen, from a file of int8 weights.

The network is the one of Wang et al., "MiniLM" (arXiv:2002.10957), as fine-tuned for sentence similarity
under the name all-MiniLM-L6-v2 (Apache-2.0); the architecture is BERT's (Devlin et al., arXiv:1810.04805:
post-norm, learned positions, exact GELU). It reads English only: Chinese prompts are turned into English
first by :mod:`vitrail.models.lexicon`.

Files in the model folder:

- ``text.safetensors``: every matrix as int8 ``NAME.weight`` with one float16 ``NAME.scale`` a row (symmetric:
  ``weight = int8 * scale``), biases and norms as float32, and the :class:`TextConfig` as JSON in
  the header;
- ``tokenizer.json``: the WordPiece vocabulary, read by the ``tokenizers`` library.

:func:`vitrail.data.text_sources.convert_encoder` writes both.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import ArtifactError, InputError

__all__ = ["TextConfig", "TextEncoder", "TextStates"]

WEIGHTS_FILE = "text.safetensors"
TOKENIZER_FILE = "tokenizer.json"
HEADER_KEY = "text_encoder"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a BERT encoder; the defaults are MiniLM-L6."""

    vocabulary: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        numbers = (self.vocabulary, self.width, self.layers, self.heads, self.hidden, self.positions)
        if min(numbers) < 1 or self.width % self.heads:
            raise ArtifactError(
                f"text encoder of width {self.width} and {self.heads} heads: "
                "all sizes must be positive and the width a multiple of the heads"
            )


class TextStates(NamedTuple):
    """What the encoder says about B prompts, T tokens each (T is the longest prompt of the batch).

    ``states`` float32 (B, T, width), ``mask`` bool (B, T) True at real tokens, ``ids`` int64 (B, T) numbers
    of word pieces (0 = padding). Position 0 is ``[CLS]`` and the last real one ``[SEP]``: both are real
    tokens (their mask is True), so the empty prompt has T = 2. ``truncated[i]`` says that prompt i was longer
    than ``max_tokens`` and that its end was not read.
    """

    states: Tensor
    mask: Tensor
    ids: Tensor
    truncated: tuple[bool, ...]

    def pooled(self) -> Tensor:
        """Return unit-length sentence vectors (B, width): means over real tokens, as the model was tuned."""
        weight = self.mask[..., None].to(self.states.dtype)
        return functional.normalize((self.states * weight).sum(1) / weight.sum(1), dim=-1)


class _Int8Embedding(nn.Module):
    """A table of rows kept in int8 (a quarter of the memory), scaled to float32 when a row is looked up."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(rows, dtype=torch.float16))

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scale[ids].float()[..., None]


class _Layer(nn.Module):
    """One post-norm BERT layer over tokens (B, T, C)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_attention = nn.LayerNorm(width, eps=config.norm_eps)
        self.up = nn.Linear(width, config.hidden)
        self.down = nn.Linear(config.hidden, width)
        self.norm_hidden = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the tokens after attention (over places where ``mask`` (B, T) is True) and hidden layer."""
        batch, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)), attn_mask=mask[:, None, None, :]
        )
        x = self.norm_attention(x + self.out(attended.transpose(1, 2).reshape(batch, length, width)))
        y: Tensor = self.norm_hidden(x + self.down(functional.gelu(self.up(x))))
        return y


class TextEncoder(nn.Module):
    """Prompts to token states. Frozen: no parameter asks for a gradient and dropout does not exist.

    Make one with :meth:`load`. It can be moved to a device like any module; states come out on that device.
    """

    def __init__(self, config: TextConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.words = _Int8Embedding(config.vocabulary, config.width)
        self.positions = _Int8Embedding(config.positions, config.width)
        self.segment = nn.Parameter(torch.zeros(config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TextEncoder:
        """Read ``text.safetensors`` and ``tokenizer.json`` from ``folder``.

        Raises ArtifactError when a file is missing, damaged or does not hold exactly this network.
        """
        root = Path(folder)
        config, tensors = _read_weights(root / WEIGHTS_FILE)
        tokenizer = _read_tokenizer(root / TOKENIZER_FILE, config.vocabulary)
        with torch.device("meta"):  # no time spent on initialising weights that are replaced below
            encoder = cls(config, tokenizer)
        wanted = encoder.state_dict()
        wrong = sorted(
            {name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape}
            | (tensors.keys() - wanted.keys())
        )
        if wrong:
            raise ArtifactError(
                f"{root / WEIGHTS_FILE} is not this text encoder: {len(wrong)} tensors missing, extra or "
                f"of another shape, first {wrong[0]!r}; build it again with `vitrail data build text`"
            )
        encoder.load_state_dict(tensors, strict=True, assign=True)
        return encoder.requires_grad_(False).eval()

    def tokenize(
        self, prompts: Sequence[str], max_tokens: int = 20
    ) -> tuple[Tensor, Tensor, tuple[bool, ...]]:
        """Return ids int64 (B, T), mask bool (B, T) on the CPU, and for each prompt whether its end was cut.

        ``max_tokens`` counts ``[CLS]`` and ``[SEP]``. A cut prompt keeps its first ``max_tokens - 2`` word
        pieces and its ``[SEP]``. Raises InputError for an empty list or ``max_tokens`` outside 3..positions.
        """
        if not prompts:
            raise InputError("no prompts given; give at least one (it may be empty)")
        if not 3 <= max_tokens <= self.config.positions:
            raise InputError(f"max_tokens is {max_tokens}; allowed are 3 to {self.config.positions}")
        # A lone surrogate has no UTF-8 form and the tokenizer's Rust side refuses it: read it as unknown.
        clean = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]
        # One by one: what comes together is cut up by threads of the library, which want the drawing's cores.
        rows: list[list[int]] = [self.tokenizer.encode(words).ids for words in clean]
        truncated = tuple(len(row) > max_tokens for row in rows)
        rows = [row if len(row) <= max_tokens else [*row[: max_tokens - 1], row[-1]] for row in rows]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask, truncated

    @torch.no_grad()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return states float32 (B, T, width) for ids int64 (B, T); zero where ``mask`` is False."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places) + self.segment)
        for layer in self.layers:
            x = layer(x, mask)
        states: Tensor = x * mask[..., None]
        return states

    def forward(self, prompts: Sequence[str], max_tokens: int = 20) -> TextStates:
        """Encode English prompts; see :class:`TextStates` and :meth:`tokenize` for shapes and errors."""
        ids, mask, truncated = self.tokenize(prompts, max_tokens)
        device = self.segment.device
        ids, mask = ids.to(device), mask.to(device)
        return TextStates(self.encode_ids(ids, mask), mask, ids, truncated)


def _read_weights(path: Path) -> tuple[TextConfig, dict[str, Tensor]]:
    """Return the configuration and the tensors of a file, linear layers scaled to float32."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            stored: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = TextConfig(**json.loads(header[HEADER_KEY])["config"])
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; build it with `vitrail data build text`") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a text encoder ({error}); "
            "build it again with `vitrail data build text`"
        ) from error
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.startswith(("words.", "positions.")):
            tensors[name] = tensor
        elif tensor.dtype == torch.int8:
            scale = stored.get(name.removesuffix("weight") + "scale")
            if scale is None or scale.shape != tensor.shape[:1]:
                raise ArtifactError(f"{path}: {name} has no row scales; build the file again")
            tensors[name] = tensor.float() * scale.float()[:, None]
        elif not name.endswith(".scale"):
            tensors[name] = tensor.float()
    return config, tensors


def _read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; build it with `vitrail data build text`")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception for every kind of damage
        raise ArtifactError(f"{path} is not a tokenizer file ({error}); build it again") from error
    if tokenizer.get_vocab_size() != vocabulary:
        raise ArtifactError(
            f"{path} has {tokenizer.get_vocab_size()} word pieces, the encoder {vocabulary}; "
            "they must be a pair"
        )
    return tokenizer
