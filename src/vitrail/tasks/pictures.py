"""From the pictures that were asked for to finished ones, some at a time, whatever draws them.

A :class:`Piece` is one picture of one request. The pieces of a batch go through the network together; they
may belong to several requests (:mod:`vitrail.tasks.batching`), each of which listens and stops by its own
context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from vitrail.errors import NonFiniteError
from vitrail.images import to_pil
from vitrail.runtime import Precision
from vitrail.schema import PictureDone, Preview, ResolvedRequest
from vitrail.tasks.context import Context
from vitrail.tasks.progress import StepCounter
from vitrail.tasks.records import record_of, seed_at

__all__ = ["Order", "Piece", "Told", "batch_size", "drawn", "in_numbers", "pieces_of", "told"]

Draw = Callable[[Sequence["Piece"], Precision], Tensor]
Finish = Callable[[Tensor, Precision], Sequence[Image.Image]]
Told = Callable[[int, int, Tensor], None]


class Drawer(Protocol):
    """What records say of a model."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Order:
    """A request at work: with nothing left open, who listens, and what was understood of it."""

    request: ResolvedRequest
    context: Context
    progress: StepCounter
    model: Drawer
    understood_as: str | None = None
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Picture ``index`` of an order."""

    order: Order
    index: int

    @property
    def seed(self) -> int:
        """Its own seed."""
        return seed_at(self.order.request, self.index)


def pieces_of(order: Order) -> list[Piece]:
    """Return all pictures of an order."""
    return [Piece(order, index) for index in range(order.request.n)]


def batch_size(context: Context) -> int:
    """Return how many pictures of one request go through the network at once."""
    return context.batch_size or (1 if context.device.type == "cpu" else 16)


def drawn(
    pieces: Sequence[Piece], size: int, precision: Precision, draw: Draw, finish: Finish
) -> Iterator[tuple[Piece, PictureDone]]:
    """Make ``pieces``, ``size`` at once, and yield each with its picture and record.

    ``draw(pieces, precision)`` makes their states, ``finish(state, precision)`` the pictures. Raises
    :class:`NonFiniteError` where float32 too gives no numbers, and whatever the two raise.
    """
    for start in range(0, len(pieces), size):
        batch = pieces[start : start + size]
        orders = list(dict.fromkeys(piece.order for piece in batch))
        with _timed(orders, "denoise"):
            state, used = in_numbers(partial(draw, batch), precision, batch)
        for order in orders:
            order.progress.keep()
        with _timed(orders, "decode"):
            pictures = finish(state, used)
        for piece, picture in zip(batch, pictures, strict=True):
            order = piece.order
            record = record_of(
                order.request,
                piece.index,
                order.context,
                model_name=order.model.name,
                model_sha256=order.model.sha256,
                precision=used,
                understood_as=order.understood_as,
                hints=order.hints,
            )
            yield piece, PictureDone(index=piece.index, record=record, picture=picture)


def in_numbers(
    make: Callable[[Precision], Tensor], precision: Precision, pieces: Sequence[Piece]
) -> tuple[Tensor, Precision]:
    """Return what ``make`` gives and the precision that it was made in: float32 where less gave no numbers.

    Raises :class:`NonFiniteError` where float32 gives none either.
    """
    try:
        return make(precision), precision
    except NonFiniteError as error:
        if precision == "float32":
            raise _no_numbers(pieces[0]) from error
        for piece in pieces:
            piece.order.progress.rewind()
        try:
            return make("float32"), "float32"
        except NonFiniteError as again:
            raise _no_numbers(pieces[0]) from again


def told(pieces: Sequence[Piece], look: Callable[[Tensor], Tensor], before: int = 0) -> Told:
    """Return what counts the steps of a batch, ``before`` of them already made, and sends previews.

    ``look`` makes pictures (B, 3, H, W) of the states that a step predicts.
    """
    rows: dict[Order, list[int]] = {}
    for row, piece in enumerate(pieces):
        rows.setdefault(piece.order, []).append(row)

    def after(step: int, steps: int, x0: Tensor) -> None:
        for order, places in rows.items():
            if order.context.cancelled.is_set():
                continue
            order.progress.step(len(places), before + step, before + steps)
            if order.context.previews(step):
                for row, picture in zip(places, to_pil(look(x0[places])), strict=True):
                    index = pieces[row].index
                    order.context.report(Preview(index=index, step=before + step, picture=picture))

    return after


@contextlib.contextmanager
def _timed(orders: Sequence[Order], part: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for order in orders:
            stack.enter_context(order.context.timed(part))
        yield


def _no_numbers(piece: Piece) -> NonFiniteError:
    settings: Any = piece.order.request
    return NonFiniteError(
        f"the model gave no finite picture for seed {piece.seed}, in float32 too; "
        f"try a cfg_scale below {settings.cfg_scale:g}, more steps than {settings.steps} or another sampler"
    )
