"""From a prompt that was read to what the U-Net is shown: chunks of 75 tokens, weights, layers, pooled text.

What A1111's web page does, so that its prompts mean the same here: a long prompt is cut into chunks of 75
tokens (at a comma, if one of the last 20 tokens is one), each encoded on its own and laid side by side; a
weight multiplies the states of its tokens, and the chunk's mean is then restored. Without weights, and within
75 tokens, this is what diffusers' pipelines compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.backends.sd.prompt_grammar import Variant
from vitrail.backends.sd.words import MAX_TOKENS, ClipWords
from vitrail.errors import ArtifactError, InputError

__all__ = ["Chunk", "Embedding", "TextEncoders", "TextStates", "Tower"]

_BACK_TO_COMMA = 20
_MOST_CHUNKS = 32


@dataclass(frozen=True)
class Embedding:
    """A textual inversion: vectors (n, width) for each text encoder, in the place of one name."""

    name: str
    vectors: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        """How many tokens it takes."""
        return len(self.vectors[0])


@dataclass(frozen=True)
class Chunk:
    """77 tokens, from start to end, with the weight of each; ``fixes``: (place, embedding) of inversions.

    ``end``: the place of the first end token; what follows it is padding.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    fixes: tuple[tuple[int, Embedding], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether no token has a weight."""
        return all(weight == 1.0 for weight in self.weights)


@dataclass(frozen=True)
class TextStates:
    """What a prompt became: states (1, 77 n, width) and, for SDXL, pooled text (1, width)."""

    states: Tensor
    pooled: Tensor | None = None

    def zeros(self) -> TextStates:
        """The same shape, empty: what SDXL was trained to take for no prompt."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return TextStates(torch.zeros_like(self.states), pooled)


@dataclass(frozen=True)
class Tower:
    """One text encoder and its vocabulary."""

    encoder: nn.Module
    words: ClipWords

    @property
    def width(self) -> int:
        """Channels of its states."""
        config: Any = self.encoder.config
        return int(config.hidden_size)


@dataclass
class _Row:
    """A chunk that is being filled."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    fixes: list[tuple[int, Embedding]] = field(default_factory=list)
    comma: int = -1

    def add(self, token: int, weight: float) -> None:
        self.ids.append(token)
        self.weights.append(weight)


class TextEncoders:
    """The text encoders of a checkpoint: one, or the two of SDXL side by side.

    towers: in the order in which their states are laid. penultimate: SDXL's way, states of the last layer but
    one without the last norm, and pooled text from the last tower; else those of the last layer, normed.

    Raises :class:`ArtifactError` for a vocabulary larger than its encoder's.
    """

    def __init__(self, towers: Sequence[Tower], *, penultimate: bool) -> None:
        self.towers = tuple(towers)
        self.penultimate = penultimate
        for tower in self.towers:
            config: Any = tower.encoder.config
            if len(tower.words) > config.vocab_size or config.max_position_embeddings < MAX_TOKENS + 2:
                raise ArtifactError(
                    f"the tokenizer has {len(tower.words)} pieces and the text encoder {config.vocab_size}, "
                    f"for {config.max_position_embeddings} places; they do not belong together"
                )

    # --- chunks ---------------------------------------------------------------------------------------------

    def chunks(self, variant: Variant, embeddings: Sequence[Embedding] = ()) -> tuple[Chunk, ...]:
        """Cut what a prompt says at one step into chunks; ``embeddings`` stand where their names do.

        Raises :class:`InputError` for more text than :data:`_MOST_CHUNKS` chunks hold.
        """
        words = self.towers[0].words
        names = _spelled(embeddings, words)
        rows: list[_Row] = []
        row = _Row()
        for number, group in enumerate(variant):
            if number > 0:  # BREAK
                rows.append(row)
                row = _Row()
            for text, weight in group:
                row = _fill(words, names, words.ids(text), weight, row, rows)
                if len(rows) >= _MOST_CHUNKS:
                    raise InputError(
                        f"the prompt is longer than {_MOST_CHUNKS * MAX_TOKENS} tokens; shorten it"
                    )
        if row.ids or not rows:
            rows.append(row)
        return tuple(_framed(row, words) for row in rows)

    # --- states ---------------------------------------------------------------------------------------------

    def encode(
        self, variant: Variant, clip_skip: int = 1, embeddings: Sequence[Embedding] = ()
    ) -> TextStates:
        """Encode what a prompt says at one step.

        clip_skip: which layer from the end is taken, A1111's "clip skip": 1 is the last (with SDXL 1 and 2
        are the same, its own last but one). Raises :class:`InputError` for more layers than there are.
        """
        chunks = self.check(variant, clip_skip, embeddings)
        layer = max(clip_skip, 2) if self.penultimate else clip_skip
        states, pooled = [], None
        for number, tower in enumerate(self.towers):
            hidden, pooled = self._run(tower, number, chunks, layer)
            states.append(_weighed(hidden, chunks))
        joined = torch.cat(states, dim=-1)
        return TextStates(joined.reshape(1, -1, joined.shape[-1]), None if pooled is None else pooled[:1])

    def check(
        self, variant: Variant, clip_skip: int = 1, embeddings: Sequence[Embedding] = ()
    ) -> tuple[Chunk, ...]:
        """Raise what :meth:`encode` would, without its work; returns the chunks."""
        for tower in self.towers:
            config: Any = tower.encoder.config
            if not 1 <= clip_skip <= config.num_hidden_layers:
                raise InputError(
                    f"clip skip is {clip_skip}; the text encoder has {config.num_hidden_layers} layers"
                )
        return self.chunks(variant, embeddings)

    def _run(
        self, tower: Tower, number: int, chunks: Sequence[Chunk], layer: int
    ) -> tuple[Tensor, Tensor | None]:
        encoder: Any = tower.encoder
        inside = getattr(encoder, "text_model", encoder)
        table = inside.embeddings.token_embedding
        rows = [_padded(chunk, self.towers[0].words, tower.words) for chunk in chunks]
        ids = torch.tensor(rows, device=table.weight.device)
        plain = layer == 1 and not self.penultimate
        with torch.autocast(ids.device.type, enabled=False), _inverted(table, number, chunks):
            answer = encoder(input_ids=ids, output_hidden_states=not plain)
        if plain:
            return answer.last_hidden_state.float(), None
        hidden = answer.hidden_states[-layer]
        if self.penultimate:
            return hidden.float(), getattr(answer, "text_embeds", None)
        return inside.final_layer_norm(hidden).float(), None


def _fill(
    words: ClipWords,
    names: Mapping[int, list[tuple[tuple[int, ...], Embedding]]],
    tokens: list[int],
    weight: float,
    row: _Row,
    rows: list[_Row],
) -> _Row:
    """Lay tokens into ``row``; full rows go to ``rows``. Returns the row that is open then."""
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if token == words.comma:
            row.comma = len(row.ids)
        elif len(row.ids) == MAX_TOKENS and row.comma >= 0 and len(row.ids) - row.comma <= _BACK_TO_COMMA:
            row = _cut(row, rows)
        if len(row.ids) == MAX_TOKENS:
            rows.append(row)
            row = _Row()
        found = next(
            (item for item in names.get(token, ()) if tuple(tokens[place:][: len(item[0])]) == item[0]), None
        )
        if found is None:
            row.add(token, weight)
            place += 1
            continue
        spelled, embedding = found
        if len(row.ids) + embedding.count > MAX_TOKENS:
            rows.append(row)
            row = _Row()
        row.fixes.append((len(row.ids), embedding))
        for _ in range(embedding.count):
            row.add(0, weight)
        place += len(spelled)
    return row


def _cut(row: _Row, rows: list[_Row]) -> _Row:
    """End a full row after its last comma; what follows it begins the next one."""
    cut = row.comma + 1
    rows.append(_Row(row.ids[:cut], row.weights[:cut], [fix for fix in row.fixes if fix[0] < cut]))
    moved = [(place - cut, embedding) for place, embedding in row.fixes if place >= cut]
    return _Row(row.ids[cut:], row.weights[cut:], moved)


def _spelled(
    embeddings: Sequence[Embedding], words: ClipWords
) -> Mapping[int, list[tuple[tuple[int, ...], Embedding]]]:
    """Inversions by the first token of their name, the longest names first."""
    found: dict[int, list[tuple[tuple[int, ...], Embedding]]] = {}
    for embedding in embeddings:
        if spelled := tuple(words.ids(embedding.name)):
            found.setdefault(spelled[0], []).append((spelled, embedding))
    for items in found.values():
        items.sort(key=lambda item: -len(item[0]))
    return found


def _framed(row: _Row, words: ClipWords) -> Chunk:
    """Put start and end around a row and fill it up with ends."""
    left = MAX_TOKENS - len(row.ids)
    return Chunk(
        (words.start, *row.ids, *[words.end] * (left + 1)),
        (1.0, *row.weights, *[1.0] * (left + 1)),
        tuple((place + 1, embedding) for place, embedding in row.fixes),
    )


def _padded(chunk: Chunk, first: ClipWords, words: ClipWords) -> list[int]:
    """The chunk's tokens with the padding of one encoder after the first end."""
    ids = list(chunk.ids)
    end = ids.index(first.end)
    return [*ids[:end], words.end, *[words.pad] * (len(ids) - end - 1)]


def _weighed(hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Multiply the states (n, 77, C) of each token by its weight, and restore each chunk's mean."""
    if all(chunk.plain for chunk in chunks):
        return hidden
    rows = []
    for states, chunk in zip(hidden, chunks, strict=True):
        weighed = states * torch.tensor(chunk.weights, device=states.device, dtype=states.dtype)[:, None]
        mean = weighed.mean()
        # Weights that cancel leave no mean to restore.
        rows.append(weighed * (states.mean() / mean) if bool(mean.abs() > 1e-9) else weighed)
    return torch.stack(rows)


@contextlib.contextmanager
def _inverted(table: nn.Module, number: int, chunks: Sequence[Chunk]) -> Iterator[None]:
    """Put the vectors of textual inversions where their names stood, as long as the block runs."""
    if not any(chunk.fixes for chunk in chunks):
        yield
        return

    def fix(module: nn.Module, arguments: Any, found: Tensor) -> Tensor:
        changed = found.clone()
        for row, chunk in enumerate(chunks):
            for place, embedding in chunk.fixes:
                changed[row, place : place + embedding.count] = embedding.vectors[number].to(changed)
        return changed

    hook = table.register_forward_hook(fix)
    try:
        yield
    finally:
        hook.remove()
