"""Faster and slightly different: deep features used again, guided for part of the steps, a small preview.

*Deep features* (Ma, Fang, Wang, "DeepCache", arXiv:2312.00858): what the inner blocks of a U-Net make changes
little from step to step, so it is computed every few steps; in between only the first convolution, the last
layer of the last block and the output run. *Guidance interval* (Kynkäänniemi et al., arXiv:2404.07724):
guidance in the last steps changes little and costs half of them. *Preview*: a linear map from latents to
pixels, fitted once to the decoder itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import InputError
from vitrail.runtime import cpu_generator

__all__ = ["REUSE", "DeepReuse", "LinearPreview", "fit_preview"]

REUSE = 5
"""Passes that deep features serve in a picture made with ``fast``."""
SLOTS = 4
"""Kinds of pass whose deep features are kept at a time."""


@dataclass
class _Slot:
    """What one kind of pass (a batch, a size, a text) left behind."""

    shape: tuple[int, ...]
    text: Tensor | None
    since: int = 0
    deep: Tensor | None = None
    skips: list[tuple[Tensor, ...]] = field(default_factory=list)

    def serves(self, shape: tuple[int, ...], text: Tensor | None) -> bool:
        """Tell whether a pass over ``shape`` with ``text`` is of this kind."""
        if shape != self.shape or (text is None) != (self.text is None):
            return False
        if text is None or self.text is None or text is self.text:
            return True
        return text.shape == self.text.shape and torch.equal(text, self.text)


class DeepReuse:
    """Lets a diffusers ``UNet2DConditionModel`` compute its deep features on every ``interval``-th pass only.

    A context manager, one for each picture. Features are kept for each batch, size and text of their own
    (at most :data:`SLOTS`, the oldest goes), so that a prompt and its negative that are asked one after the
    other do not mix; the first pass of each is whole. ``passes``, ``whole``: how many there were so far. The
    network is as before afterwards. Not for tiles: all tiles of a picture look alike to it.

    >>> with DeepReuse(unet, 3):
    ...     latents = sampler(...)

    Raises :class:`InputError` for an interval below 1 or a network of another kind.
    """

    def __init__(self, unet: nn.Module, interval: int) -> None:
        if interval < 1:
            raise InputError(
                f"deep features cannot be used for {interval} passes; give 1 (always new) or more"
            )
        blocks: Any = unet
        if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks", "conv_in")):
            raise InputError(
                f"deep features are reused in U-Nets of Stable Diffusion, not in {type(unet).__name__}"
            )
        self.interval, self.passes, self.whole = interval, 0, 0
        self._full = True
        self._outer = int(blocks.conv_in.out_channels)  # channels of the skip that the last layer is given
        self._slots: list[_Slot] = []
        self._changed: list[nn.Module] = []
        self._hooks: list[Any] = []
        if interval == 1:
            return
        for number, block in enumerate(blocks.down_blocks):
            self._replace(block, self._down(block, number))
        if blocks.mid_block is not None:
            self._replace(blocks.mid_block, self._middle(blocks.mid_block))
        for block in blocks.up_blocks[:-1]:
            self._replace(block, self._middle(block))
        last: Any = blocks.up_blocks[-1]
        self._replace(last, self._outermost(last))
        self._hooks = [
            unet.register_forward_pre_hook(self._begin, with_kwargs=True),
            last.resnets[-1].register_forward_pre_hook(self._keep),
        ]

    def __enter__(self) -> DeepReuse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the network its own ways back."""
        for module in self._changed:
            module.__dict__.pop("forward", None)
        self._changed.clear()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._slots = [], []

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.__dict__["forward"] = forward
        self._changed.append(module)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = kwargs["sample"] if "sample" in kwargs else args[0]
        text: Tensor | None = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        shape = tuple(x.shape)
        self.passes += 1
        slot = next((slot for slot in self._slots if slot.serves(shape, text)), None)
        self._full = slot is None or slot.deep is None or slot.since >= self.interval - 1
        if self._full:
            # made anew: a pass that is broken off leaves no half of it behind
            self._slots = [other for other in self._slots if other is not slot][-(SLOTS - 1) :]
            slot = _Slot(shape, text)
            self.whole += 1
        else:
            assert slot is not None
            slot.since += 1
            self._slots.remove(slot)
        self._slots.append(slot)  # the last is the one at work

    def _down(self, block: nn.Module, number: int) -> Callable[..., Any]:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._full:
                x: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                return x, self._slots[-1].skips[number]
            made, skips = plain(*args, **kwargs)
            # In the passes between only their number matters: nothing reads them. A ControlNet adds to them.
            self._slots[-1].skips.append(tuple(skip.new_zeros(1, 1, 1, 1) for skip in skips))
            return made, skips

        return forward

    def _middle(self, block: nn.Module) -> Callable[..., Any]:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._full:
                return plain(*args, **kwargs)
            # nothing reads it; a ControlNet adds to what the middle block gives, of the middle's size
            x: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            return x.new_zeros(1, 1, 1, 1)

        return forward

    def _outermost(self, block: Any) -> Callable[..., Any]:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._full:
                return plain(*args, **kwargs)
            deep = self._slots[-1].deep
            assert deep is not None
            skip = kwargs["res_hidden_states_tuple"][0]  # what the first convolution made in this pass
            hidden = block.resnets[-1](torch.cat([deep, skip], 1), kwargs["temb"])
            attentions = getattr(block, "attentions", None)
            if attentions is not None:
                hidden = attentions[-1](
                    hidden,
                    encoder_hidden_states=kwargs.get("encoder_hidden_states"),
                    cross_attention_kwargs=kwargs.get("cross_attention_kwargs"),
                    attention_mask=kwargs.get("attention_mask"),
                    encoder_attention_mask=kwargs.get("encoder_attention_mask"),
                    return_dict=False,
                )[0]
            return hidden

        return forward

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Remember the deep half of what the last layer of a whole pass was given."""
        if self._full:
            self._slots[-1].deep = inputs[0][:, : inputs[0].shape[1] - self._outer].clone()


class LinearPreview(nn.Module):
    """Latents (B, C, h, w) -> small pictures (B, 3, h, w) in [-1, 1], a pixel for each place."""

    matrix: Tensor
    offset: Tensor

    def __init__(self, matrix: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("offset", offset)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the preview; as fast as one 1x1 convolution of three filters."""
        return functional.conv2d(latents.float(), self.matrix[:, :, None, None], self.offset).clamp(-1, 1)


def fit_preview(
    decode: Callable[[Tensor], Tensor], channels: int, *, places: int = 12, pictures: int = 2, seed: int = 0
) -> LinearPreview:
    """Fit a :class:`LinearPreview` to a decoder by least squares.

    decode: scaled latents (B, channels, h, w) -> pictures. It is asked for ``pictures`` of places^2 latents
    of smooth noise, the scale of real ones: 0.1 s of a Stable Diffusion decoder's full picture.
    """
    generator = cpu_generator(seed)
    coarse = torch.randn(pictures, channels, places // 2, places // 2, generator=generator)
    fine = torch.randn(pictures, channels, places, places, generator=generator)
    latents = functional.interpolate(coarse, size=(places, places), mode="bilinear") + 0.4 * fine
    with torch.no_grad():
        made = functional.adaptive_avg_pool2d(decode(latents).float(), (places, places))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the edge knows of the padding
    rows = latents[inner].movedim(1, -1).reshape(-1, channels).double()
    wanted = made[inner].movedim(1, -1).reshape(-1, 3).double()
    table = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    # a little ridge: a decoder that ignores a channel must not give it a weight
    square = table.T @ table + 1e-3 * torch.eye(channels + 1, dtype=torch.float64)
    found = torch.linalg.solve(square, table.T @ wanted).float()
    return LinearPreview(found[:-1].T.contiguous(), found[-1].contiguous())
