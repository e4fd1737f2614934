"""Successive halving: golden cases and what always holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.errors import UserError
from cellkit.evaluate.halving import Trial, cost_of, rungs_of, successive_halving, trials_of


def test_the_better_half_goes_on_with_twice_the_steps():
    scores = {0: 0.5, 1: 0.1, 2: 0.6, 3: 0.4, 4: 0.7}
    asked = []

    def score_at(trial, rung, share):
        asked.append((trial.number, rung, share))
        return 0.9 if (trial.number, rung) == (0, 3) else scores[trial.number]

    results = successive_halving([Trial(k, {}) for k in range(5)], score_at)
    assert asked == [*((k, 1, 0.25) for k in range(5)), *((k, 2, 0.5) for k in (0, 2, 4)), (2, 3, 1.0), (4, 3, 1.0)]
    assert [(one.trial.number, one.rung, one.goes_on) for one in results][-2:] == [(4, 3, True), (2, 3, False)]


def test_of_equal_scores_the_earlier_trial_goes_on():
    results = successive_halving([Trial(k, {}) for k in range(4)], lambda *asked: 0.5)
    assert [one.trial.number for one in results if one.goes_on] == [0, 1, 0]


def test_what_is_not_trained_step_by_step_is_tried_whole_once():
    results = successive_halving(
        [Trial(k, {}) for k in range(4)], lambda trial, rung, share: trial.number, at_once=True
    )
    assert [(one.trial.number, one.share, one.goes_on) for one in results][:2] == [(3, 1.0, True), (2, 1.0, False)]
    assert len(results) == 4


@given(st.integers(1, 60))
def test_each_rung_costs_about_as_much_and_the_last_is_whole(trials):
    rungs = rungs_of(trials)
    assert rungs[0][0] == trials and rungs[-1] == (min(trials, 2), 1.0)
    assert all(b[1] == 2 * a[1] and b[0] == -(-a[0] // 2) for a, b in zip(rungs, rungs[1:], strict=False))
    assert cost_of(trials) <= 2 * len(rungs) + 1


@given(st.integers(1, 5), st.integers(1, 5), st.floats(2, 12), st.integers(0, 3))
def test_the_budget_is_kept_and_the_configuration_as_it_is_takes_part(a, b, budget, seed):
    over = {"x": list(range(a)), "y": list(range(b))}
    trials = trials_of(over, budget, seed)
    assert trials == trials_of(over, budget, seed)
    assert trials[0] == Trial(0, {}) and len({trial.number for trial in trials}) == len(trials)
    assert cost_of(len(trials)) <= budget
    assert len(trials) == a * b + 1 or cost_of(len(trials) + 1) > budget, "as many as it allows"


def test_what_the_configuration_says_already_is_not_tried_twice():
    trials = trials_of({"x": [1, 2], "y": [3]}, 6, base={"x": 2, "y": 3})
    assert [dict(trial.changes) for trial in trials] == [{}, {"x": 1, "y": 3}]


def test_nothing_to_try_and_no_budget_are_refused():
    with pytest.raises(UserError, match="nothing to search over"):
        trials_of({}, 6)
    with pytest.raises(UserError, match="a budget of 1 whole trainings\ngive 2 or more"):
        trials_of({"x": [1]}, 1)
