"""A transformer over the codes of a picture: causal (VQGAN's prior) or masked (MaskGIT's).

Causal: Esser et al., "Taming transformers" (arXiv:2012.09841, section 3.2): p(s) = prod p(s_i | s_<i, c) over
codes in raster order. Masked: Chang et al., "MaskGIT" (arXiv:2202.04200, section 3.1): any subset of codes
from the rest. The condition stands before the codes in the same stream::

    [words | condition codes | start]  c_0 c_1 ... c_(n-2)      causal: the output at "start" tells c_0
    [words | condition codes]          c_0 [?] ... c_(n-1)      masked: the output at [?] tells that code

Words are refined as in :mod:`vitrail.models.shell_dit`, their mean and the style move and scale the norms.
With ``canvas_width`` a sketch of the prompt as a whole (:mod:`vitrail.models.canvas`) is added to the places
of the codes, to the condition and, by a share that each place decides, to the logits (masked models only).
The prefix is read in both directions; only codes are causal. ``block = "gpt"`` is causal throughout (but for
the first ``unmasked`` codes), as taming-transformers' network, whose weights
:func:`vitrail.models.token_readers.from_mingpt` renames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.models.canvas import Canvas, Sketch
from vitrail.models.layers import modulate
from vitrail.models.shell_dit import WordRefiner
from vitrail.models.token_blocks import Cache, TokenBlock
from vitrail.recipe.diffusion import ShellDiTConfig
from vitrail.recipe.priors import TokenTransformerConfig

__all__ = ["Conditions", "TokenTransformer"]


class Conditions(NamedTuple):
    """What B pictures are drawn for; None where a model has no such condition.

    ``states`` (B, T, text_width), ``mask`` (B, T) bool and ``ids`` (B, T) int64 as the text encoder gives
    them; ``styles`` (B,) int64, 0 for none; ``prefix`` (B, P) int64 codes of another picture.
    """

    states: Tensor | None = None
    mask: Tensor | None = None
    ids: Tensor | None = None
    styles: Tensor | None = None
    prefix: Tensor | None = None

    def rows(self, rows: slice | Tensor) -> Conditions:
        """The conditions of some of the pictures."""
        return Conditions(*(None if part is None else part[rows] for part in self))

    def repeat(self, times: int) -> Conditions:
        """Every picture ``times`` times in a row."""
        return Conditions(*(None if part is None else part.repeat_interleave(times, dim=0) for part in self))


class TokenTransformer(nn.Module):
    """See the module's text. ``forward(codes, conditions)`` returns logits (B, n, K) of the codes (B, n).

    Causal: ``logits[:, i]`` is the distribution of code i given the codes before it; ``codes`` may be the
    first n of a picture. Masked: ``codes`` is a whole picture in raster order, :attr:`unknown` at every place
    to be told. K is ``config.codes``, or ``config.table`` if that is larger (codes beyond the tokenizer's
    never occur).
    """

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.blocks = nn.ModuleList(TokenBlock(config) for _ in range(config.depth))
        modern = config.block == "modern"
        self.canvas: Canvas | None = None
        if not modern:
            classes = config.styles if config.prefix == 1 else 0
            self.outputs = config.table or max(config.codes, config.prefix_codes, classes)
            self.code = nn.Embedding(self.outputs, width)
            length = config.positions or config.prefix + config.count - 1
            self.position = nn.Parameter(torch.zeros(1, length, width))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, self.outputs, bias=False)
            self.apply(_init_gpt)
            return
        self.outputs = config.codes
        # One row more: the unknown code of masked models, the start of causal ones.
        self.code = nn.Embedding(config.codes + 1, width)
        nn.init.normal_(self.code.weight, std=0.02)
        self.position = nn.Parameter(torch.randn(1, config.count, width) * 0.02)
        self.style = nn.Embedding(config.styles + 1, width)
        nn.init.normal_(self.style.weight, std=0.02)
        if config.text:
            if config.vocabulary < 1:
                raise InputError("model.vocabulary is 0; a model that reads text needs the number of words")
            self.words = WordRefiner(
                ShellDiTConfig(
                    width=width,
                    heads=config.heads,
                    text_width=config.text_width,
                    vocabulary=config.vocabulary,
                    word_width=config.word_width,
                    refiner_depth=config.refiner_depth,
                )
            )
            self.summary = nn.Linear(width, width)
        if config.canvas_width:
            self.canvas = Canvas(
                config.text_width,
                config.styles,
                places=config.count,
                width=config.canvas_width,
                depth=config.canvas_depth,
                channels=config.canvas_channels,
                values=config.codes,
            )
            self.canvas_tokens = nn.Linear(config.canvas_channels, width)
            self.canvas_condition = nn.Linear(config.canvas_width, width)
            self.canvas_share = nn.Linear(width, 1)
            for start in (self.canvas_tokens, self.canvas_condition, self.canvas_share):
                nn.init.zeros_(start.weight)
                nn.init.zeros_(start.bias)
        if config.prefix:
            self.prefix = nn.Embedding(config.prefix_codes or config.codes, width)
            self.prefix_position = nn.Parameter(torch.randn(1, config.prefix, width) * 0.02)
            nn.init.normal_(self.prefix.weight, std=0.02)
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.codes)
        for layer in (self.modulation, self.final, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Gates open from the start: a block that adds nothing learns nothing in its first steps.
        with torch.no_grad():
            self.modulation.bias.view(6, width)[[2, 5]] = 1.0
        for block in self.blocks:
            assert isinstance(block, TokenBlock)
            for last in (block.attention.out, block.mlp[2]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / (2 * config.depth) ** 0.5)
                nn.init.zeros_(last.bias)

    @property
    def unknown(self) -> int:
        """The number that stands for a code not known yet (masked models)."""
        return self.config.codes

    def forward(self, codes: Tensor, conditions: Conditions, sketch: Sketch | None = None) -> Tensor:
        causal = self.config.mode == "causal"
        if sketch is None:
            sketch = self.sketch(conditions)
        tokens, seen, modulation, final = self._prefix(conditions, len(codes), codes.device, sketch)
        before = tokens.shape[1]
        embedded = self.embed(codes[:, :-1] if causal else codes, 0)
        if sketch is not None:
            embedded = embedded + self.canvas_tokens(sketch.places)
        tokens = torch.cat([tokens, embedded.to(tokens.dtype)], dim=1)
        blocked = self._blocked(seen, before, tokens.shape[1])
        for block in self.blocks:
            vectors = None if modulation is None else block.modulation(modulation)  # type: ignore[operator]
            tokens = block(tokens, blocked, vectors)
        return self._logits(tokens[:, before - 1 if causal else before :], final, sketch)

    def sketch(self, conditions: Conditions) -> Sketch | None:
        """Return the canvas's sketch of B prompts, without a gradient; None for a network without one.

        It may be given to every pass for the same conditions, in place of being drawn anew.
        """
        if self.canvas is None:
            return None
        with torch.no_grad():
            return self.draw_canvas(conditions)

    def draw_canvas(self, conditions: Conditions) -> Sketch:
        """Return the canvas's sketch of B prompts; its values are logits (B, n, K) of every code by itself.

        Raises :class:`InputError` for conditions without text, and
        :class:`ValueError` for a network without a canvas.
        """
        if self.canvas is None:
            raise ValueError("this network has no canvas; set model.canvas_width")
        states, mask, styles = conditions.states, conditions.mask, conditions.styles
        if states is None or mask is None:
            raise InputError("this model reads text; give the conditions states, mask and ids")
        if styles is None:
            styles = torch.zeros(len(states), dtype=torch.long, device=states.device)
        result: Sketch = self.canvas(states, mask, styles)
        return result

    def begin(
        self, past: Tensor, conditions: Conditions, capacity: int | None = None
    ) -> tuple[Cache, Tensor]:
        """Read the condition and the codes ``past`` (B, m) of a causal model.

        Returns the cache, with room for ``capacity`` codes (all of the picture's by default), and the logits
        (B, K) of the code that follows.
        """
        if self.config.mode != "causal":
            raise InputError("a masked model is not read code after code; use it with maskgit")
        tokens, seen, modulation, final = self._prefix(conditions, len(past), past.device)
        before = tokens.shape[1]
        tokens = torch.cat([tokens, self.embed(past, 0).to(tokens.dtype)], dim=1)
        room = before + (self.config.count if capacity is None else capacity)
        heads, width = self.config.heads, self.config.width // self.config.heads
        shape = (len(past), heads, room, width)
        blocks: list[TokenBlock] = list(self.blocks)  # type: ignore[arg-type]
        hidden = None
        if seen is not None and not bool(seen.all()):
            hidden = torch.zeros(len(past), room, dtype=torch.bool, device=past.device)
            hidden[:, :before] = ~seen
        cache = Cache(
            keys=[tokens.new_zeros(shape) for _ in blocks],
            values=[tokens.new_zeros(shape) for _ in blocks],
            hidden=hidden,
            modulations=None if modulation is None else [block.modulation(modulation) for block in blocks],
        )
        if final is not None:
            assert cache.modulations is not None
            cache.modulations.append(final)
        blocked = self._blocked(seen, before, tokens.shape[1])
        return cache, self._run(tokens, blocked, cache)

    def advance(self, code: Tensor, cache: Cache, index: int) -> Tensor:
        """Read ``code`` (B,), the picture's code number ``index``; returns the logits (B, K) of the next."""
        token = self.embed(code[:, None], index).to(cache.keys[0].dtype)
        hidden = None if cache.hidden is None else cache.hidden[:, None, None, : cache.length + 1]
        return self._run(token, hidden, cache)

    def _run(self, tokens: Tensor, blocked: Tensor | None, cache: Cache) -> Tensor:
        vectors = cache.modulations
        for number, block in enumerate(self.blocks):
            modulation = None if vectors is None else vectors[number]
            tokens = block(
                tokens, blocked, modulation, cache.keys[number], cache.values[number], cache.length
            )
        cache.length += tokens.shape[1]
        return self._logits(tokens[:, -1:], None if vectors is None else vectors[-1])[:, 0]

    def embed(self, codes: Tensor, index: int) -> Tensor:
        """Embed codes (B, n) that begin at the picture's code number ``index``."""
        if self.config.block == "gpt":
            index += self.config.prefix
        result: Tensor = self.code(codes) + self.position[:, index : index + codes.shape[1]]
        return result

    def _prefix(
        self, conditions: Conditions, batch: int, device: torch.device, sketch: Sketch | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What stands before the codes (B, P, W), which of it is real (B, P), and the condition's vectors:
        those of the blocks (B, 6, W) and of the last norm (B, 2, W).
        """
        config = self.config
        if config.block == "gpt":
            tokens = self.code(self._gpt_prefix(conditions, batch, device))
            return tokens + self.position[:, : tokens.shape[1]], None, None, None
        parts: list[Tensor] = []
        seen: Tensor | None = None
        styles = conditions.styles
        condition = self.style(
            torch.zeros(batch, dtype=torch.long, device=device) if styles is None else styles
        )
        if config.text:
            states, mask, ids = conditions.states, conditions.mask, conditions.ids
            if states is None or mask is None or ids is None:
                raise InputError("this model reads text; give the conditions states, mask and ids")
            words = self.words(states, ids, mask)
            weights = mask[:, :, None].to(words.dtype)
            condition = condition + self.summary((words * weights).sum(1) / weights.sum(1).clamp_min(1))
            parts, seen = [words], mask
        if sketch is not None:
            condition = condition + self.canvas_condition(sketch.hidden)
        if config.prefix:
            if conditions.prefix is None or conditions.prefix.shape[1] != config.prefix:
                raise InputError(f"this model reads {config.prefix} codes of another picture; give them")
            parts.append(self.prefix(conditions.prefix) + self.prefix_position)
        if config.mode == "causal":
            parts.append(self.code.weight[config.codes].expand(batch, 1, -1))
        condition = functional.silu(condition)
        modulation = self.modulation(condition).view(batch, 6, config.width)
        final = self.final(condition).view(batch, 2, config.width)
        if not parts:
            return condition.new_zeros(batch, 0, config.width), None, modulation, final
        tokens = torch.cat([part.to(parts[0].dtype) for part in parts], dim=1)
        if seen is not None:
            seen = functional.pad(seen, (0, tokens.shape[1] - seen.shape[1]), value=True)
        return tokens, seen, modulation, final

    def _gpt_prefix(self, conditions: Conditions, batch: int, device: torch.device) -> Tensor:
        """The condition codes (B, P): those given, else the class counted from 0, else the start code."""
        config = self.config
        if conditions.prefix is not None:
            if conditions.prefix.shape[1] != config.prefix:
                raise InputError(
                    f"this model reads {config.prefix} condition codes, not {conditions.prefix.shape[1]}"
                )
            return conditions.prefix
        if config.prefix != 1:
            raise InputError(f"this model reads {config.prefix} codes of another picture; give them")
        if config.styles:
            if conditions.styles is None or bool((conditions.styles < 1).any()):
                raise InputError("this model draws one of its classes; name one")
            return conditions.styles[:, None] - 1
        return torch.full((batch, 1), config.start, dtype=torch.long, device=device)

    def _blocked(self, seen: Tensor | None, before: int, length: int) -> Tensor | None:
        """Where attention must not look: (B or 1, 1, length, length), None where it may look everywhere."""
        hidden = None
        if seen is not None and not bool(seen.all()):
            hidden = functional.pad(~seen, (0, length - before))[:, None, None, :]
        if self.config.mode == "masked":
            return hidden
        device = self.position.device
        future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        both_ways = before if self.config.block == "modern" else self.config.unmasked
        future[:both_ways, :both_ways] = False
        return future if hidden is None else future | hidden

    def _logits(self, tokens: Tensor, final: Tensor | None, sketch: Sketch | None = None) -> Tensor:
        hidden = self.norm(tokens)
        if final is not None:
            shift, scale = final.to(hidden.dtype).unbind(1)
            hidden = modulate(hidden, shift, scale)
        result: Tensor = self.head(hidden).float()
        if sketch is not None:
            result = result + self.canvas_share(hidden).float() * sketch.values.float()
        return result


def _init_gpt(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
