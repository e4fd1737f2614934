"""Draws from the scores of a few runs: which step lies where, and what the gate keeps of runs that are no better, or are."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gate_null

from cellkit.models.interpolation import STEPS

IMAGES, RUNS = 24, 8


def table_of(better: float, spread: float) -> gate_null.Table:
    """Runs whose scores differ by chance; the steps between two are `better` than both."""
    rng = np.random.default_rng(0)
    own, rows = 0.7 + rng.normal(0, spread, (RUNS, IMAGES)), []
    for one in range(RUNS):
        rows.append((one, one, 0.0, own[one]))
    for one, other in combinations(range(RUNS), 2):
        rows += [(one, other, s, (1 - s) * own[one] + s * own[other] + better) for s in STEPS[1:-1]]
    names = ("one", "other", "step", "scores")
    told = [dict(zip(names, (*map(str, row[:3]), " ".join(map(str, row[3]))), strict=True)) for row in rows]
    return gate_null.Table(told)


def test_steps_between_two_runs_are_told_from_either_side():
    table = table_of(0.0, 0.05)
    there, back = table.between(1, 4), table.between(4, 1)
    np.testing.assert_array_equal(there, back[:, ::-1])
    np.testing.assert_allclose(there[:, 1], 0.75 * there[:, 0] + 0.25 * there[:, 4])


@pytest.mark.parametrize("images", gate_null.JUDGES)
def test_runs_that_differ_by_chance_are_not_kept_and_a_gain_that_all_share_is(images):
    null, gain = table_of(0.0, 0.02), table_of(0.3, 0.02)
    kept = [gate_null.trial(null, images, np.random.default_rng([images, k])).kept for k in range(100)]
    assert np.mean(kept) <= 0.05
    found = [gate_null.trial(gain, images, np.random.default_rng([images, k])) for k in range(20)]
    assert all(one.kept for one in found) and min(one.gain for one in found) > 0.25


def test_the_table_has_a_line_for_each_number_of_judges():
    table = table_of(0.0, 0.02)
    rows = [
        {"set": "dkfz", "one": one, "other": other, "step": step, "scores": " ".join(map(str, scores))}
        for (one, other, step), scores in table.of.items()
    ]
    lines = list(gate_null.summary(rows, 20))
    assert len(lines) == 2 + len(gate_null.JUDGES) and lines[2].startswith("| dkfz | 8 | 24 | 2 | 20 | ")
