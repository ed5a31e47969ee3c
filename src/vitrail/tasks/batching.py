"""Several requests in shared network passes: four pictures at once cost less than four one by one.

Every picture is what its own request alone would give, up to float rounding: it draws its random numbers from
its own generator, sees its own words, and shares passes with prompts of about its length only. Requests fit
together when they differ in words, style, seed and number only; models that draw pixels take such requests at
once, all others one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vitrail.backends.model import Conditioning
from vitrail.errors import CancelledError, InputError, NonFiniteError
from vitrail.schema import Done, Event, TextToImageRequest
from vitrail.tasks import gan_generation
from vitrail.tasks.context import Context
from vitrail.tasks.diffusion import precision_of
from vitrail.tasks.loading import Loader
from vitrail.tasks.opening import open_model
from vitrail.tasks.pictures import Order, Piece, drawn, pieces_of
from vitrail.tasks.pixel_model import PixelModel, room
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.text_to_image import Job, plan_job, text_to_image

__all__ = ["compatible", "text_to_image_many"]

AT_ONCE = 16
"""Pictures of a network pass, where the context does not say."""

_OWN = frozenset({"prompt", "negative_prompt", "style", "seed", "subseed", "n"})

Ended = Callable[[int, BaseException], None]


def compatible(a: TextToImageRequest, b: TextToImageRequest) -> bool:
    """Whether two requests may share network passes: nothing but words, style, seed and number differs."""
    if not (isinstance(a, TextToImageRequest) and isinstance(b, TextToImageRequest)):
        return False
    return a.model_dump(exclude=set(_OWN)) == b.model_dump(exclude=set(_OWN))


def text_to_image_many(
    requests: Sequence[TextToImageRequest], loader: Loader, contexts: Sequence[Context], ended: Ended
) -> Iterator[tuple[int, Event]]:
    """Make the pictures of several compatible requests; yields (number of the request, event).

    Parameters
    ----------
    contexts: one for each request, all on one device and in one precision. Each is told of its own request,
        and cancels it alone: the others go on.
    ended: told (number of the request, error) at once, in this thread, of a request that ends without its
        :class:`Done`: a :class:`CancelledError` within one step of a cancel, or what was wrong with it.

    The events of one request come in the order of
    :func:`~vitrail.tasks.text_to_image.text_to_image`. Raises :class:`InputError` for requests that do not
    fit together, and what concerns all of them, such as :class:`ArtifactError` for the model.
    """
    if len(requests) != len(contexts) or not requests:
        raise InputError(f"{len(requests)} requests and {len(contexts)} contexts; give one for each request")
    if not all(compatible(requests[0], other) for other in requests[1:]):
        raise InputError("these requests do not fit together; they may differ in words, style, seed and n")
    crew = _Crew(contexts, ended)
    model: object = None
    if loader.kind(requests[0].model) not in gan_generation.KINDS:
        with contexts[0].timed("load"):
            model = open_model(loader, requests[0], contexts[0])
    if isinstance(model, PixelModel) and len(requests) > 1 and not requests[0].control:
        yield from _together(requests, model, crew)
    else:
        for number in range(len(requests)):
            yield from _alone(requests, number, loader, crew)


@dataclass
class _Crew:
    """Who is still at work."""

    contexts: Sequence[Context]
    ended: Ended
    gone: set[int] = field(default_factory=set)

    def leave(self, number: int, error: BaseException) -> None:
        if number not in self.gone:
            self.gone.add(number)
            self.ended(number, error)

    def look(self) -> None:
        """Let those go that were cancelled; :class:`CancelledError` where nobody is left."""
        for number, context in enumerate(self.contexts):
            if context.cancelled.is_set() and number not in self.gone:
                self.leave(number, CancelledError("stopped; nothing more was made"))
        if len(self.gone) == len(self.contexts):
            raise CancelledError("stopped; nothing more was made")


class _Shared(Context):
    """The context of a pass that several requests share: it stops when nobody is left."""

    def __init__(self, crew: _Crew) -> None:
        first = crew.contexts[0]
        super().__init__(first.device, first.precision, first.batch_size)
        self._crew = crew

    def check(self) -> None:
        """Let those go that were cancelled."""
        self._crew.look()


def _alone(
    requests: Sequence[TextToImageRequest], number: int, loader: Loader, crew: _Crew
) -> Iterator[tuple[int, Event]]:
    try:
        for event in text_to_image(requests[number], loader, crew.contexts[number]):
            yield number, event
    except GeneratorExit:
        raise
    except Exception as error:
        crew.leave(number, error)


def _together(
    requests: Sequence[TextToImageRequest], model: PixelModel, crew: _Crew
) -> Iterator[tuple[int, Event]]:
    started = time.monotonic()
    shared = _Shared(crew)
    orders: dict[Order, int] = {}
    words: dict[Order, Conditioning] = {}
    job: Job | None = None

    def told(pieces: Sequence[Piece]) -> Conditioning:
        numbers = [orders[piece.order] for piece in pieces]

        def present() -> list[int] | None:
            return [row for row, number in enumerate(numbers) if number not in crew.gone]

        return model.together([words[piece.order] for piece in pieces], present)

    with torch.inference_mode():
        for number, (request, context) in enumerate(zip(requests, crew.contexts, strict=True)):
            try:
                context.check()
                resolved, canvas, larger, enlarge = plan_job(request, model, shared)
                with context.timed("text"):
                    read = model.read(resolved.prompt, resolved.negative_prompt, resolved.style)
            except Exception as error:  # what is wrong with this one is no matter of the others
                crew.leave(number, error)
                continue
            job = job or Job(resolved, request, model, canvas, larger, enlarge, told, shared)
            progress = StepCounter(job.steps * resolved.n, context)
            order = Order(resolved, context, progress, model, read.understood_as, read.hints)
            orders[order], words[order] = number, read
        if job is None:
            return
        left = {order: order.request.n for order in orders}
        for piece, event in _made(orders, words, job, crew):
            number = orders[piece.order]
            if number in crew.gone:
                continue
            yield number, event
            left[piece.order] -= 1
            if not left[piece.order]:
                yield number, Done(seconds=time.monotonic() - started, hints=piece.order.hints)


def _made(
    orders: dict[Order, int], words: dict[Order, Conditioning], job: Job, crew: _Crew
) -> Iterator[tuple[Piece, Any]]:
    """Make the pieces of all orders; after a failure of numbers, the pieces of that batch one by one.

    Those of a batch have prompts of about one length, see :class:`~vitrail.tasks.pixel_model.Words`.
    """
    precision, size = precision_of(job.context), job.context.batch_size or AT_ONCE
    groups: dict[int, list[Piece]] = {}
    for order in orders:
        groups.setdefault(room(words[order].payload), []).extend(pieces_of(order))
    batches = [
        pieces[start : start + size] for pieces in groups.values() for start in range(0, len(pieces), size)
    ]
    while batches:
        batch = [piece for piece in batches.pop(0) if orders[piece.order] not in crew.gone]
        if not batch:
            continue
        try:
            crew.look()
            yield from drawn(batch, size, precision, job.draw, job.finish)
        except CancelledError:
            return
        except NonFiniteError as error:
            if len(batch) == 1:
                crew.leave(orders[batch[0].order], error)
                continue
            for piece in batch:
                piece.order.progress.rewind()
            batches[:0] = [[piece] for piece in batch]
