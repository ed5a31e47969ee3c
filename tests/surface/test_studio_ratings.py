"""Bradley-Terry against a closed form, and against a logistic regression solved by Newton's method."""

import numpy as np
import pytest

from vitrail.errors import InputError
from vitrail.studio.ratings import PRIOR, Vote, as_csv, fit, scores


def test_two_names_have_the_closed_form() -> None:
    # Log odds of 30 to 10 are ln 3; the mean is 0, so each has half of it.
    assert fit(np.array([[0.0, 30.0], [10.0, 0.0]])) == pytest.approx([np.log(3) / 2, -np.log(3) / 2])


def test_many_names_agree_with_newtons_method() -> None:
    random = np.random.default_rng(3)
    wins = random.integers(1, 20, (6, 6)).astype(float)
    np.fill_diagonal(wins, 0)
    rows = [(i, j) for i in range(6) for j in range(6) if i != j]
    x = np.zeros((len(rows), 6))
    for row, (i, j) in enumerate(rows):
        x[row, i], x[row, j] = 1, -1
    weight, beta = np.array([wins[i, j] for i, j in rows]), np.zeros(6)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (weight * (1 - p))
        hessian = x.T @ (x * (weight * p * (1 - p))[:, None])
        beta += np.linalg.pinv(hessian) @ gradient
    assert fit(wins) == pytest.approx(beta - beta.mean(), abs=1e-7)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random, truth, held = np.random.default_rng(0), np.array([0.6, 0.0, -0.6]), 0
    for trial in range(60):
        votes = []
        for _ in range(120):
            i, j = random.choice(3, 2, replace=False)
            won = random.random() < 1 / (1 + np.exp(truth[j] - truth[i]))
            votes.append(Vote(f"m{i}", f"m{j}", "left" if won else "right"))
        found = {score.name: score for score in scores(votes, resamples=100, seed=trial)}
        held += sum(found[f"m{i}"].low <= truth[i] <= found[f"m{i}"].high for i in range(3))
    assert 0.86 <= held / 180 <= 1.0


def test_a_name_that_won_every_vote_has_a_finite_strength() -> None:
    found = scores([Vote("a", "b", "left")] * 9, resamples=0)
    assert found[0].name == "a"
    assert found[0].strength - found[1].strength == pytest.approx(np.log((9 + PRIOR) / PRIOR))


def test_ties_are_half_a_win_for_each() -> None:
    found = scores([Vote("a", "b", "tie")] * 4, resamples=10)
    assert [score.strength for score in found] == pytest.approx([0, 0])


def test_groups_that_never_met_are_refused() -> None:
    with pytest.raises(InputError, match="never met"):
        scores([Vote("a", "b", "left"), Vote("c", "d", "left")])


def test_csv_runs_no_formula() -> None:
    text = as_csv(scores([Vote("=1+1", "b", "left"), Vote("=1+1", "b", "right")], resamples=10))
    assert text.splitlines()[0] == "name,strength,low95,high95,wins,votes"
    assert any(line.startswith("'=1+1,") for line in text.splitlines())
