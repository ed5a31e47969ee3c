"""ShellDiT: convolutions outside, a diffusion transformer inside, straight on pixels.

The network predicts the clean picture from a noisy one on the flow path (x-prediction, "JiT", Li & He,
arXiv:2511.13720). Flat artwork is simple and noise is not; docs/architecture.md has what EDM's
preconditioning (arXiv:2206.00364) did instead.

A pure transformer over large patches has to learn from nothing that neighbouring patches agree; on a few
thousand pictures that takes longer than everything else. So a thin convolutional shell works at a quarter of
the resolution, and the transformer (DiT, arXiv:2212.09748) sees an eighth of it, with the words of the prompt
in the same stream::

    (B,3,S,S) -> unshuffle 4 -> shell (S/4) -> unshuffle 2 -> [words | S/8 x S/8 tokens] x depth
              <- shuffle 4   <- shell (S/4) <- shuffle 2   <-

With ``canvas_width`` a sketch of the prompt as a whole (:mod:`vitrail.models.canvas`) is added to the picture
tokens, to the condition, and, by a share that depends on the noise, to the picture itself.

Modulation is adaLN-single (PixArt-alpha, arXiv:2310.00426, section 2.3): one projection of the condition for
all blocks plus a learned offset per block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.canvas import Canvas, Sketch
from vitrail.models.layers import Attention, FeedForward, modulate, timestep_features
from vitrail.recipe import ShellDiTConfig

__all__ = ["ShellDiT"]


class ShellBlock(nn.Module):
    """Two 3x3 convolutions added to their input (B, C, H, W), scaled and shifted by a condition (B, W)."""

    def __init__(self, channels: int, condition_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels, eps=1e-6)
        self.condition = nn.Linear(condition_width, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        result: Tensor = x + self.conv2(functional.silu(hidden))
        return result


class Block(nn.Module):
    """Transformer block over words and picture tokens (B, N, W), modulated by six vectors (B, 6, W)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = FeedForward(width, mlp_ratio)
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, mask: Tensor, modulation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.offset).to(x.dtype).unbind(1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1), mask)
        result: Tensor = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return result


class WordRefiner(nn.Module):
    """Makes the generator's word tokens (B, T, W) of a frozen encoder's states (B, T, text_width) and ids.

    The frozen states carry meaning (a kitten is near a cat); the small trainable table of words, zero at the
    start, is what lets attributes bind: it is free to push "red" and "blue" apart as far as pictures need.
    """

    def __init__(self, config: ShellDiTConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.word_width)
        nn.init.zeros_(self.words.weight)
        self.join = nn.Linear(config.text_width + config.word_width, config.width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(config.width, eps=1e-6),
                    "attention": Attention(config.width, config.heads),
                    "norm2": nn.LayerNorm(config.width, eps=1e-6),
                    "mlp": FeedForward(config.width, 2.0),
                }
            )
            for _ in range(config.refiner_depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.join(torch.cat([states, self.words(ids).to(states.dtype)], dim=-1))
        for block in self.blocks:
            x = x + block["attention"](block["norm1"](x), mask)  # type: ignore[index]
            x = x + block["mlp"](block["norm2"](x))  # type: ignore[index]
        result: Tensor = self.norm(x)
        return result


class ShellDiT(nn.Module):
    """Text-to-image denoiser on pixels; see the module's text for the design.

    ``forward(x, t, states, mask, ids, styles)`` returns the predicted clean picture x0 (B, 3, S, S) for

    - x: noisy pictures (B, 3, S, S), x = (1 - t) x0 + t noise,
    - t: noise level (B,) in [0, 1],
    - states, mask, ids: what the text encoder returns, (B, T, text_width), (B, T) bool, (B, T) int64,
    - styles: (B,) int64, 0 for no style, else 1..config.styles,
    - sketch: what :meth:`sketch` gave for the same words and styles, so that a walk down the noise levels
      draws it once; drawn here where it is left out.
    """

    def __init__(self, config: ShellDiTConfig) -> None:
        super().__init__()
        self.config = config
        shell, width = config.shell_width, config.width
        pixels = 3 * config.patch**2
        self.grid = config.image_size // config.patch // 2
        self.words = WordRefiner(config)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.style = nn.Embedding(config.styles + 1, width)
        self.summary = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.enter = nn.Conv2d(pixels, shell, 3, padding=1)
        self.shell_in = nn.ModuleList(ShellBlock(shell, width) for _ in range(config.shell_blocks))
        self.down = nn.Linear(4 * shell, width)
        self.position = nn.Parameter(torch.randn(1, self.grid**2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.canvas: Canvas | None = None
        if config.canvas_width:
            self.canvas = Canvas(
                config.text_width,
                config.styles,
                places=self.grid**2,
                width=config.canvas_width,
                depth=config.canvas_depth,
                channels=config.canvas_channels,
                values=4 * pixels,
            )
            self.canvas_tokens = nn.Linear(config.canvas_channels, width)
            self.canvas_condition = nn.Linear(config.canvas_width, width)
            self.canvas_share = nn.Linear(width, 1)
            for start in (self.canvas_tokens, self.canvas_condition, self.canvas_share):
                nn.init.zeros_(start.weight)
                nn.init.zeros_(start.bias)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 4 * shell)
        self.join = nn.Conv2d(2 * shell, shell, 1)
        self.shell_out = nn.ModuleList(ShellBlock(shell, width) for _ in range(config.shell_blocks))
        self.leave_norm = nn.GroupNorm(8, shell, eps=1e-6)
        self.head = nn.Conv2d(shell, pixels, 3, padding=1)
        self.keep = nn.Linear(width, pixels)
        nn.init.normal_(self.style.weight, std=0.02)
        for layer in (self.modulation, self.final, self.head, self.keep):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        states: Tensor,
        mask: Tensor,
        ids: Tensor,
        styles: Tensor,
        sketch: Sketch | None = None,
    ) -> Tensor:
        config = self.config
        words = self.words(states, ids, mask)
        weights = mask[:, :, None].to(words.dtype)
        pooled = (words * weights).sum(1) / weights.sum(1).clamp_min(1)
        given = self.time(timestep_features(t, 256)) + self.style(styles) + self.summary(pooled)
        if sketch is None:
            sketch = self.sketch(states, mask, styles)
        if sketch is not None:
            given = given + self.canvas_condition(sketch.hidden)
        condition = functional.silu(given)

        pixels = functional.pixel_unshuffle(x, config.patch)
        shell = self.enter(pixels.to(memory_format=torch.channels_last))
        for block in self.shell_in:
            shell = block(shell, condition)
        tokens = functional.pixel_unshuffle(shell, 2).flatten(2).transpose(1, 2)
        tokens = self.down(tokens) + self.position.to(shell.dtype)
        if sketch is not None:
            tokens = tokens + self.canvas_tokens(sketch.places)

        stream = torch.cat([words.to(tokens.dtype), tokens], dim=1)
        seen = torch.cat([mask, mask.new_ones(len(mask), tokens.shape[1])], dim=1)
        modulation = self.modulation(condition).view(len(x), 6, config.width)
        for block in self.blocks:
            stream = block(stream, seen, modulation)
        shift, scale = self.final(condition).chunk(2, dim=1)
        tokens = self.up(modulate(self.norm(stream[:, words.shape[1] :]), shift, scale))

        inner = tokens.transpose(1, 2).reshape(len(x), -1, self.grid, self.grid)
        inner = functional.pixel_shuffle(inner, 2).to(memory_format=torch.channels_last)
        shell = self.join(torch.cat([shell, inner], dim=1))
        for block in self.shell_out:
            shell = block(shell, condition)
        # Linear, and with a share of the input that depends on the noise: through a non-linearity, copying 48
        # values a position would take most of the shell's channels.
        pixels = self.head(self.leave_norm(shell)) + self.keep(condition)[:, :, None, None] * pixels
        drawn = functional.pixel_shuffle(pixels, config.patch).float()
        if sketch is None:
            return drawn
        share = self.canvas_share(condition).float()[:, :, None, None]
        result: Tensor = drawn + share * self._picture(sketch.values)
        return result

    def sketch(self, states: Tensor, mask: Tensor, styles: Tensor) -> Sketch | None:
        """Return the canvas's sketch of B prompts, without a gradient; None for a network without one."""
        if self.canvas is None:
            return None
        with torch.no_grad():
            result: Sketch = self.canvas(states, mask, styles)
        return result

    def draw_canvas(self, states: Tensor, mask: Tensor, styles: Tensor) -> Tensor:
        """Return the canvas's own picture (B, 3, S, S) of a prompt; what its training compares.

        Raises :class:`ValueError` for a network without one.
        """
        if self.canvas is None:
            raise ValueError("this network has no canvas; set model.canvas_width")
        return self._picture(self.canvas(states, mask, styles).values)

    def _picture(self, values: Tensor) -> Tensor:
        """Bring what the canvas says of each place (B, grid^2, values) to a picture (B, 3, S, S)."""
        grid = values.float().transpose(1, 2).unflatten(2, (self.grid, self.grid))  # type: ignore[no-untyped-call]
        return functional.pixel_shuffle(grid, 2 * self.config.patch)
