"""Logistic regression on numbers about cells."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit.models import cell_regression


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_each_class_counts_the_same_however_many_cells_it_has(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 2)), np.r_[np.ones(20, int), np.full(10, 2)]
    x[20:] += 2
    doubled = np.r_[np.arange(30), np.arange(20)]  # the first class twice
    plain, more = (cell_regression.fit(x[k], y[k], 2, 0.1) for k in (np.arange(30), doubled))
    assert np.allclose(plain[0], more[0], atol=1e-4) and np.allclose(plain[1], more[1], atol=1e-4)


def test_the_penalty_is_chosen_by_images_left_out_and_is_fixed_where_none_can_be():
    rng = np.random.default_rng(1)
    y, groups = np.tile([1, 2], 40), np.repeat(np.arange(10), 8)
    noise = rng.normal(size=(80, 60))
    noise[:, 0] += y
    strength, left_out = cell_regression.choose_strength(noise, y, groups, 2)
    right = cell_regression.right_share(left_out, y)
    assert strength in cell_regression.STRENGTHS[:4] and 0.4 < right <= 1, "sixty numbers of noise ask for a strong one"
    assert cell_regression.choose_strength(noise, y, y, 2) == (cell_regression.DEFAULT_STRENGTH, None)


def test_what_is_left_out_did_not_teach_it_and_a_saved_one_says_the_same():
    rng = np.random.default_rng(2)
    y, groups = rng.integers(1, 3, 60), np.repeat(np.arange(12), 5)
    x = rng.normal(size=(60, 200)) * 5 + 100
    learned = cell_regression.learn(x, y, groups, 2)
    assert cell_regression.right_share(learned.left_out, y) < 0.75, "there is nothing to learn in noise"
    assert cell_regression.right_share(learned.regression.chances(x), y) > 0.75, "although what taught it looks learned"
    again = cell_regression.Regression.of(learned.regression.tensors("a."), "a.")
    assert np.allclose(again.chances(x), learned.regression.chances(x), atol=1e-4)
    assert np.allclose(learned.regression.chances(x).sum(axis=1), 1)
