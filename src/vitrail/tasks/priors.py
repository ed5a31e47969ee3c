"""A prior at work on codes that are partly known: words to conditions, and the drawing of what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vitrail.codes_schema import TokenDefaults
from vitrail.errors import ArtifactError, InputError
from vitrail.models.lexicon import translate
from vitrail.models.prompt_hints import hint
from vitrail.models.token_readers import CachedReader, MaskedReader
from vitrail.runtime import cpu_generator
from vitrail.samplers.tokens import UNKNOWN, sample_autoregressive, sample_maskgit, windowed, windows_read
from vitrail.store import artifacts
from vitrail.tasks.codes_before import codes_before
from vitrail.tasks.context import Context
from vitrail.tasks.loading import Loader, TokenModel
from vitrail.tasks.reading import MAX_UNDERSTOOD, Reading, style_number
from vitrail.tasks.token_generation import MAX_DRAWN_CODES, conditions_of
from vitrail.tasks.tokenizers import TokenizerModel, load_tokenizer

__all__ = ["PriorModel", "draw_codes", "find_prior", "load_prior", "read_words", "room", "shrunk_hint"]

MAX_WINDOWS = 16
"""Most windows that a pass over a picture reads. A model that sees a few dozen codes at once would take
minutes over a photograph, and its windows know nothing of each other: a smaller picture is drawn sooner and
better."""


@dataclass(frozen=True)
class PriorModel:
    """A token model, and its tokenizer as the tasks on pictures use it."""

    model: TokenModel
    tokenizer: TokenizerModel

    @property
    def name(self) -> str:
        """The model's name, as pictures record it."""
        return self.model.name

    @property
    def sha256(self) -> str:
        """SHA-256 of the prior's weights."""
        return self.model.sha256

    @property
    def defaults(self) -> TokenDefaults:
        """What fills the open settings of a request."""
        own = self.model.defaults
        return TokenDefaults(steps=own.steps, cfg_scale=own.cfg_scale, temperature=own.temperature)


def find_prior(loader: Loader, name: str) -> PriorModel | None:
    """Return the prior of the model called ``name``, None if it is a tokenizer alone.

    Raises :class:`ArtifactError` for a model that is not there, damaged, or without a tokenizer.
    """
    folder = artifacts.find(name)
    if artifacts.read_manifest(folder, verify=False).kind != "token_transformer":
        load_tokenizer(loader, name)  # says what is wrong with a model of yet another kind
        return None
    model = loader.text_to_image(name)
    assert isinstance(model, TokenModel)
    own = artifacts.read_manifest(folder / "tokenizer", verify=False)
    sha256 = own.files[artifacts.WEIGHTS_NAME].sha256
    return PriorModel(model, TokenizerModel(own.name, sha256, model.tokenizer))


def load_prior(loader: Loader, name: str) -> PriorModel:
    """As :func:`find_prior`; :class:`ArtifactError` where the model has no prior that can be used here."""
    prior = find_prior(loader, name)
    if prior is None:
        own = load_tokenizer(loader, name).name
        raise ArtifactError(f"model {own} is a tokenizer alone and draws nothing; give a model with a prior")
    if prior.model.condition is not None:
        raise ArtifactError(f"model {prior.name} needs the codes of another picture; it cannot be used here")
    return prior


def read_words(prior: PriorModel, prompt: str, style: str | None) -> Reading:
    """Read ``prompt`` (may be empty) and ``style`` for the prior.

    A model of classes, which reads no words, takes the name of one as its prompt. Raises :class:`InputError`
    for words that the model cannot read or a style it does not have.
    """
    model = prior.model
    if model.text is None:
        if prompt and (not model.styles or style is not None):
            raise InputError(f"model {model.name} reads no words; leave the prompt out")
        number = style_number(prompt or style, model.name, model.styles)
        empty = torch.zeros(2, 0)
        return Reading(empty[:, :, None], empty.bool(), empty.long(), number, None, ())
    number = style_number(style, model.name, model.styles)
    wanted = translate(prompt)
    states = model.text([wanted.english, ""])
    found = hint(prompt, translation=wanted, truncated=states.truncated[0]) if prompt else []
    hints = [item.chinese if wanted.chinese else item.english for item in found]
    return Reading(
        states=states.states,
        mask=states.mask,
        ids=states.ids,
        style=number,
        understood_as=None if wanted.english.split() == prompt.split() else wanted.english[:MAX_UNDERSTOOD],
        hints=tuple(line[:200] for line in hints[:8]),
    )


def room(prior: PriorModel, unknown: Callable[[int, int], Tensor], size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) in pixels at which a picture of ``size`` is drawn in.

    That is ``size`` where a pass reads :data:`MAX_WINDOWS` windows at most, else a smaller one of its shape.
    ``unknown``: of a width and height, which codes (rows, columns) are drawn. Models that draw one code after
    the other, whose window slides, take any size.
    """
    config = prior.model.network.config
    (width, height), scale = size, 1.0
    while config.mode == "masked" and scale > 1 / 256:
        if windows_read(unknown(width, height), config.rows, config.columns) <= MAX_WINDOWS:
            break
        scale *= 0.9
        width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return width, height


def shrunk_hint(prior: PriorModel, size: tuple[int, int], wanted: tuple[int, int]) -> tuple[str, ...]:
    """What a person is told of a picture of ``wanted`` pixels that is drawn at ``size``; () if they agree."""
    if size == wanted:
        return ()
    own, used = prior.model.size, f"{size[0]}x{size[1]}"
    return (f"model {prior.name} draws {own[0]}x{own[1]}; what is new was drawn at {used} and enlarged",)


def draw_codes(
    prior: PriorModel,
    known: Tensor,
    reading: Reading,
    seed: int,
    context: Context,
    *,
    steps: int,
    cfg_scale: float,
    temperature: float,
    guided: bool,
    report: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw the codes that are :data:`~vitrail.samplers.tokens.UNKNOWN` in ``known`` (rows, columns).

    All chance is ``seed``'s. ``guided``: follow the words by ``cfg_scale``, where the model reads words.
    Returns all codes on the CPU. Raises :class:`InputError` for more codes than the model can draw,
    :class:`NonFiniteError` for a network that gives no numbers.
    """
    model, config = prior.model, prior.model.network.config
    rows, columns = known.shape
    if rows * columns > MAX_DRAWN_CODES:
        raise InputError(
            f"a picture of {rows * columns} codes is too large to draw in; allowed are {MAX_DRAWN_CODES}: "
            "make the picture smaller"
        )
    # A picture smaller than those it was trained on becomes the corner of one; the rest is thrown away.
    margins = (0, max(0, config.columns - columns), 0, max(0, config.rows - rows))
    canvas = functional.pad(known[None], margins, value=UNKNOWN).to(context.device)
    guided = guided and model.text is not None and cfg_scale != 1.0
    conditions = conditions_of(model, reading, 1, guided=guided)
    strength = cfg_scale if guided else 1.0
    generators = [cpu_generator(seed)]
    before = codes_before(model, (), (canvas.shape[1], canvas.shape[2]))

    def told(step: int, total: int, _: Tensor) -> None:
        context.check()
        if report is not None:
            report(step, total)

    with torch.inference_mode():
        if config.mode == "masked":
            codes = sample_maskgit(
                windowed(MaskedReader(model.network, conditions), config.rows, config.columns),
                canvas,
                generators,
                steps=steps,
                temperature=temperature,
                top_k=model.defaults.top_k,
                top_p=model.defaults.top_p,
                choice_temperature=model.defaults.choice_temperature,
                guidance=strength,
                interval=model.defaults.guidance_interval,
                callback=told,
            )
        else:
            codes = sample_autoregressive(
                CachedReader(model.network, conditions),
                canvas,
                generators,
                temperature=temperature,
                top_k=model.defaults.top_k,
                top_p=model.defaults.top_p,
                guidance=strength,
                prefix=None if before is None else before[None],
                callback=told,
            )
    return codes[0, :rows, :columns].cpu()
