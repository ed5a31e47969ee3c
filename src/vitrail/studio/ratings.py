"""Which of two is better, from blind votes: Bradley-Terry strengths with bootstrap intervals.

P(i beats j) = exp(s_i) / (exp(s_i) + exp(s_j)), fitted by the minorisation-maximisation of Hunter (2004),
"MM algorithms for generalized Bradley-Terry models", Ann. Statist. 32(1), eq. 3. A tie counts as half a win
for each. So that somebody who won or lost every vote has a finite strength, each pair that met is given
``PRIOR`` further votes for each side; with many votes that vanishes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import InputError

__all__ = ["PRIOR", "Score", "Vote", "as_csv", "fit", "scores"]

PRIOR = 0.5
"""Votes added to each side of every pair that met (Jeffreys' prior of a pair's probability)."""

_Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Vote:
    """One answer: ``left`` and ``right`` are names; ``winner`` is "left", "right" or "tie"."""

    left: str
    right: str
    winner: str


@dataclass(frozen=True)
class Score:
    """A name's strength (natural log odds, mean 0 over all names) with its 95 % interval."""

    name: str
    strength: float
    low: float
    high: float
    wins: float
    votes: int


def fit(wins: _Matrix, *, tolerance: float = 1e-10, rounds: int = 20_000) -> _Matrix:
    """Return the strengths, shape (k,), that make ``wins`` (k, k; row beat column so often) likeliest.

    Their mean is 0. Raises :class:`InputError` where no finite answer exists: a name without a win.
    """
    met = wins + wins.T
    won = wins.sum(1)
    if (won <= 0).any():
        raise InputError("a name has no win at all; its strength has no finite value")
    odds = np.ones(len(wins))
    for _ in range(rounds):
        fresh = won / (met / (odds[:, None] + odds[None, :])).sum(1)
        fresh /= np.exp(np.log(fresh).mean())
        done = bool(np.abs(np.log(fresh / odds)).max() < tolerance)
        odds = fresh
        if done:
            break
    return np.asarray(np.log(odds))


def scores(votes: Sequence[Vote], *, resamples: int = 500, seed: int = 0) -> list[Score]:
    """Return everybody's score, the best first; intervals are percentiles over resampled votes.

    Raises :class:`InputError` for a vote of one name against itself or an unknown winner, and where some
    names were never compared with the others, not even through a third: their order would be made up.
    """
    for vote in votes:
        if vote.left == vote.right or vote.winner not in ("left", "right", "tie"):
            raise InputError("a vote needs two different names and left, right or tie as its winner")
    names = sorted({name for vote in votes for name in (vote.left, vote.right)})
    if not names:
        return []
    place = {name: index for index, name in enumerate(names)}
    pairs = np.array([(place[vote.left], place[vote.right]) for vote in votes])
    share = np.array([{"left": 1.0, "tie": 0.5, "right": 0.0}[vote.winner] for vote in votes])
    wins = _wins(pairs, share, len(names))
    met = (wins + wins.T) > 0
    if not _connected(met):
        raise InputError("the votes fall into groups that never met; collect votes between them first")
    prior = PRIOR * met
    best = fit(wins + prior)
    random = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(names)))
    for row in drawn:
        chosen = random.integers(0, len(votes), len(votes))
        row[:] = fit(_wins(pairs[chosen], share[chosen], len(names)) + prior, tolerance=1e-6)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if resamples else (best, best)
    counts = np.bincount(pairs.ravel(), minlength=len(names))
    return sorted(
        (
            Score(name, float(best[i]), float(low[i]), float(high[i]), float(wins[i].sum()), int(counts[i]))
            for i, name in enumerate(names)
        ),
        key=lambda score: -score.strength,
    )


def as_csv(found: Sequence[Score]) -> str:
    """The scores as CSV; a name that a spreadsheet would take for a formula is put behind an apostrophe."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["name", "strength", "low95", "high95", "wins", "votes"])
    for one in found:
        name = f"'{one.name}" if one.name[:1] in "=+-@\t\r" else one.name
        figures = [f"{value:.6f}" for value in (one.strength, one.low, one.high)]
        table.writerow([name, *figures, f"{one.wins:g}", one.votes])
    return out.getvalue()


def _wins(pairs: NDArray[np.int64], share: _Matrix, k: int) -> _Matrix:
    wins = np.zeros((k, k))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), share)
    np.add.at(wins, (pairs[:, 1], pairs[:, 0]), 1.0 - share)
    return wins


def _connected(met: NDArray[np.bool_]) -> bool:
    seen = np.zeros(len(met), dtype=bool)
    seen[0] = True
    for _ in range(len(met)):
        seen |= met[seen].any(0)
    return bool(seen.all())
