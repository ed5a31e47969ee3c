"""The canvas: a first sketch of a whole prompt, drawn once a picture and not once a token.

Where things lie and what colour they have follows from the words before any pixel can be seen. A transformer
learns that slowly, since each of its parameters is paid for at every token and every noise level; a plain
regression from the sentence to the average picture (the minimum of the mean square error) is a hundred
times cheaper a picture. So the canvas is trained by itself, in minutes, and then shown to the generator,
which keeps the work of turning an average into one of the many pictures that it is an average of.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.layers import FeedForward

__all__ = ["Canvas", "Sketch"]


class Sketch(NamedTuple):
    """What the canvas hands out.

    hidden: (B, width), the prompt as a whole. places: (B, P, channels), non-negative-ish features of each
    place. values: (B, P, values), what each place holds on average.
    """

    hidden: Tensor
    places: Tensor
    values: Tensor


class Canvas(nn.Module):
    """From a sentence and a style to the average picture.

    Parameters
    ----------
    text_width: width of the text encoder's states. styles: named styles, number 0 beside them is none.
    places: P, the generator's picture tokens. width, depth: of the residual blocks. channels, values: numbers
    a place, see :class:`Sketch`.
    """

    def __init__(
        self, text_width: int, styles: int, places: int, width: int, depth: int, channels: int, values: int
    ) -> None:
        super().__init__()
        self.count = places
        self.enter = nn.Linear(text_width, width)
        self.style = nn.Embedding(styles + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width, eps=1e-6), FeedForward(width, 2.0)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.sketch = nn.Linear(width, places * channels)
        self.values = nn.Linear(channels, values)
        nn.init.normal_(self.style.weight, std=0.5)

    def forward(self, states: Tensor, mask: Tensor, styles: Tensor) -> Sketch:
        """states: (B, T, text_width), mask: (B, T) bool, styles: (B,) int64, 0 for none."""
        weights = mask[:, :, None].to(states.dtype)
        sentence = (states * weights).sum(1) / weights.sum(1).clamp_min(1)
        # The mean of a sentence encoder's states has about unit length in all; layers want unit entries.
        hidden = self.enter(functional.layer_norm(sentence, sentence.shape[-1:])) + self.style(styles)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        hidden = self.norm(hidden)
        places = functional.gelu(self.sketch(hidden)).view(len(hidden), self.count, -1)
        return Sketch(hidden, places, self.values(places))
