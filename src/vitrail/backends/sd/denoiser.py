"""The denoiser of one prompt: x and sigma in, the latent that the network believes in out.

What a network predicts (noise, v, the latent) is turned into the latent here and nowhere else; so is what a
family is told beside the text (masked picture, sizes, score, guidance).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.backends.model import KnownPicture
from vitrail.backends.sd.conditioning import Embedding, TextStates
from vitrail.backends.sd.controlnet import Controls
from vitrail.backends.sd.lora import LoraStack, Wanted
from vitrail.backends.sd.parts import Parts
from vitrail.backends.sd.prompt_grammar import Prompt, Variant
from vitrail.errors import ArtifactError
from vitrail.runtime import Precision, autocast

__all__ = ["BoundStableDiffusion", "Payload"]

_AESTHETIC = (6.0, 2.5)  # what SDXL's refiner is told that a good and a bad picture score


@dataclass(frozen=True)
class Payload:
    """A prompt that was read: what a :class:`~vitrail.backends.model.Conditioning` of this model carries."""

    prompt: Prompt
    negative: Prompt
    clip_skip: int = 1
    loras: tuple[Wanted, ...] = ()
    embeddings: tuple[Embedding, ...] = ()


class BoundStableDiffusion:
    """The denoiser of a prompt; see :class:`vitrail.backends.model.Bound`.

    ``step`` and ``steps`` are the caller's to set. ``guidance``: the scale that a network with that input
    (LCM) is told; None for others. ``hints``: what of the LoRAs did not fit.
    """

    def __init__(
        self,
        parts: Parts,
        loras: LoraStack,
        payload: Payload,
        size: tuple[int, int],
        precision: Precision,
        *,
        known: KnownPicture | None = None,
        controls: Controls | None = None,
        guidance: float | None = None,
    ) -> None:
        self.step, self.steps = 0, 1
        self.guidance = guidance
        self.parts, self.loras, self.payload = parts, loras, payload
        self.size, self.known, self.controls = size, known, controls
        self.precision: Precision = precision
        self.hints = loras.apply(payload.loras)
        self._version = loras.version
        self._encoded: dict[tuple[Variant, bool], TextStates] = {}
        self._batched: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return x0 (B, C, h, w) for the prompt. Prompts joined by AND cost a pass for the negative one."""
        return self._both(x, sigma, negative=False)[0]

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x0 for the prompt and for the negative prompt, from one batch where lengths allow it.

        A network that is told the guidance has been taught to answer guided: the same x0 twice, from one
        pass, so that no scale changes it.
        """
        if self.guidance is not None:
            guided = self.cond(x, sigma)
            return guided, guided
        cond, uncond = self._both(x, sigma, negative=True)
        assert uncond is not None
        return cond, uncond

    def _both(self, x: Tensor, sigma: Tensor, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        self._same_loras()
        parts = self.payload.prompt.subprompts
        step, steps = min(self.step, self.steps - 1), max(self.steps, 1)
        texts = [self._states(part.at(step, steps), negative=False) for part in parts]
        # Prompts joined by AND are each guided away from the negative one, by their weights (Liu et al. 2022,
        # arXiv:2206.01714, equation 11).
        composed = len(parts) > 1
        if negative or composed:
            texts.append(self._states(self.payload.negative.subprompts[0].at(step, steps), negative=True))
        answers = self._answers(x, sigma, texts, negatives=int(negative or composed))
        uncond = answers.pop() if negative or composed else None
        if not composed:
            return answers[0], uncond
        assert uncond is not None
        cond = uncond
        for part, answer in zip(parts, answers, strict=True):
            cond = cond + part.weight * (answer - uncond)
        return cond, uncond

    # --- text -----------------------------------------------------------------------------------------------

    def _same_loras(self) -> None:
        """Another prompt may have been bound since, with other LoRAs."""
        self.loras.apply(self.payload.loras)
        if self._version != self.loras.version:
            self._encoded.clear()
            self._batched.clear()
            self._version = self.loras.version

    def _states(self, variant: Variant, *, negative: bool) -> TextStates:
        key = (variant, negative)
        if key not in self._encoded:
            states = self.parts.text.encode(variant, self.payload.clip_skip, self.payload.embeddings)
            if negative and self.parts.zero_negative and _says_nothing(variant):
                states = states.zeros()
            self._encoded[key] = states
        return self._encoded[key]

    def _batch(
        self, texts: Sequence[TextStates], batch: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """States and pooled text of all texts, each ``batch`` times; the same objects at every step, so that
        keys and values made of them can be kept."""
        key = (batch, *(id(text) for text in texts))
        if key not in self._batched:
            states = torch.cat([text.states.expand(batch, -1, -1) for text in texts]).to(dtype)
            pooled = [text.pooled.expand(batch, -1) for text in texts if text.pooled is not None]
            self._batched[key] = (states, torch.cat(pooled).to(dtype) if pooled else None)
        return self._batched[key]

    # --- the network ----------------------------------------------------------------------------------------

    def _answers(
        self, x: Tensor, sigma: Tensor, texts: Sequence[TextStates], *, negatives: int
    ) -> list[Tensor]:
        """Ask the network once for all texts of one length; x0 for each text."""
        lengths: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            lengths.setdefault(text.states.shape[1], []).append(number)
        answers: dict[int, Tensor] = {}
        for numbers in lengths.values():
            count = len(numbers)
            x0 = self._network(
                x.repeat(count, 1, 1, 1),
                sigma.repeat(count),
                [texts[number] for number in numbers],
                [number >= len(texts) - negatives for number in numbers],
            )
            answers |= dict(zip(numbers, x0.chunk(count), strict=True))
        return [answers[number] for number in range(len(texts))]

    def _network(self, x: Tensor, sigma: Tensor, texts: Sequence[TextStates], bad: Sequence[bool]) -> Tensor:
        """One pass over a batch that holds every picture once for each text; returns x0."""
        batch = len(x) // len(texts)
        path, unet = self.parts.path, self.parts.unet
        config: Any = unet.config
        times = _whole(path.time(sigma))
        weight = next(unet.parameters())
        seen = path.network_input(x, sigma).to(weight.dtype)
        states, pooled = self._batch(texts, batch, weight.dtype)
        more: dict[str, Any] = {}
        added = None
        if self.parts.family.xl:
            if pooled is None:
                raise ArtifactError("SDXL needs pooled text, which its text encoder does not give")
            added = {"text_embeds": pooled, "time_ids": self._sizes(bad, batch, x.device)}
            more["added_cond_kwargs"] = added
        if self.guidance is not None and config.time_cond_proj_dim is not None:
            told = _guidance_embedding(self.guidance, config.time_cond_proj_dim, len(x))
            more["timestep_cond"] = told.to(seen)
        with autocast(x.device, self.precision):
            if self.controls is not None:
                residuals = self.controls.residuals(
                    seen, times, states, step=self.step, steps=max(self.steps, 1), added=added
                )
                if residuals is not None:
                    more["down_block_additional_residuals"] = residuals.down
                    more["mid_block_additional_residual"] = residuals.mid
            if self.known is not None:
                seen = torch.cat(
                    [seen, *(_like(part, seen) for part in (self.known.mask, self.known.latent))], 1
                )
            output = unet(seen, times, encoder_hidden_states=states, return_dict=False, **more)[0]
        return path.to_x0(output.to(x.dtype), x, sigma, self.parts.predicts)

    def _sizes(self, bad: Sequence[bool], batch: int, device: torch.device) -> Tensor:
        """SDXL is told the size of the picture, where it was cut and the size wanted; its refiner a score in
        place of the last. Returns (B, 6 or 5)."""
        height, width = (float(side) for side in self.size)
        rows = []
        for negative in bad:
            last = [_AESTHETIC[negative]] if self.parts.family.size_numbers == 5 else [height, width]
            rows += [[height, width, 0.0, 0.0, *last]] * batch
        return torch.tensor(rows, device=device)


def _says_nothing(variant: Variant) -> bool:
    return not any(span.text.strip() for group in variant for span in group)


def _like(part: Tensor, x: Tensor) -> Tensor:
    """Bring (1 or B, C, h, w) to the batch of ``x``, which holds B a whole number of times."""
    part = part.to(x)
    return part.repeat(len(x) // len(part), 1, 1, 1)


def _whole(times: Tensor) -> Tensor:
    """Remove the rounding of float32 sigmas from times that are meant to be whole."""
    near = times.round()
    return torch.where((times - near).abs() < 1e-3, near, times)


def _guidance_embedding(scale: float, width: int, batch: int) -> Tensor:
    """Sines and cosines of 1000 (scale - 1), (batch, width): the guidance input of Meng et al. 2023,
    arXiv:2210.03142, in the form of latent consistency models (arXiv:2310.04378)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32)
    rates = torch.exp(steps * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.full((batch, 1), 1000.0 * (scale - 1.0)) * rates
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
