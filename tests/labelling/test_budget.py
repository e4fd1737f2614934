"""How many more images are worth it, against a published learning curve and against curves that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.errors import UserError
from cellkit.labelling.budget import FLOOR, MOST_AHEAD, fit_budget, read_curve, tell_budget

# AP@.5 of 1 to 7 labelled images, seven test images, mean of three seeds: Fong et al., BMC Med Inform Decis Mak 2024,
# s12911-024-02502-6, APresults/**/csi_*.txt; nine networks and settings.
PUBLISHED = {
    "cyto": (0.595, 0.634, 0.653, 0.668, 0.675, 0.694, 0.701),
    "cyto, 224 px": (0.453, 0.607, 0.633, 0.657, 0.668, 0.691, 0.694),
    "cyto2": (0.619, 0.635, 0.642, 0.661, 0.671, 0.696, 0.701),
    "livecell": (0.539, 0.625, 0.621, 0.648, 0.659, 0.671, 0.684),
    "tissuenet": (0.556, 0.615, 0.638, 0.646, 0.660, 0.681, 0.679),
    "scratch": (0.446, 0.567, 0.560, 0.600, 0.620, 0.642, 0.645),
    "scratch, 1-99": (0.293, 0.510, 0.510, 0.576, 0.589, 0.616, 0.615),
    "Mask R-CNN": (0.530, 0.542, 0.519, 0.548, 0.558, 0.576, 0.576),
    "DeepCell": (0.332, 0.364, 0.349, 0.356, 0.392, 0.428, 0.456),
}


def rows(scores) -> list[tuple[int, float]]:
    return list(enumerate(scores, 1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_curve_is_followed(name):
    scores = PUBLISHED[name]
    curve = fit_budget(rows(scores))
    assert max(abs(curve.at(n) - score) for n, score in rows(scores)) < 0.06
    told = fit_budget(rows(scores[:5]))
    assert abs(told.at(7) - scores[6]) < 0.08


def test_published_gains_are_found_where_they_are_told():
    held = []
    for scores in PUBLISHED.values():
        for now in (3, 4, 5, 6):
            curve = fit_budget(rows(scores[:now]))
            for more in range(1, min(7 - now, curve.told(now)) + 1):
                gain = curve.gain(now, more)
                held.append(gain.low <= scores[now + more - 1] - scores[now - 1] <= gain.high)
    assert (sum(held), len(held)) == (78, 81), "as the docstring says"


@given(st.floats(0.5, 0.95), st.floats(0.05, 0.4), st.sampled_from([0.3, 0.5, 1.0, 1.5]))
def test_a_curve_without_scatter_is_found_again(a, b, c):
    curve = fit_budget([(n, a - b * n**-c) for n in (1, 2, 3, 5, 8)])
    np.testing.assert_allclose([curve.a, curve.b, curve.c], [a, b, c], atol=1e-6)
    gain = curve.gain(8, 8)
    assert gain.low <= gain.gain <= gain.high and gain.gain >= 0


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=3, max_size=12))
def test_whatever_was_measured_a_curve_never_falls_and_stays_below_one(measured):
    if len({n for n, _ in measured}) < 3:
        with pytest.raises(UserError, match="a curve needs 3"):
            fit_budget(measured)
        return
    curve = fit_budget(measured)
    assert curve.a <= 1 + 1e-9 and curve.b >= 0 and curve.at(9) >= curve.at(1)
    assert (curve.draws[:, 0] <= 1 + 1e-9).all() and (curve.draws[:, 1] >= 0).all()
    again = fit_budget(measured[::-1])
    assert (curve.a, curve.b, curve.c) == (again.a, again.b, again.c), "in any order"


def test_repeated_scores_say_how_sure_it_is():
    rng = np.random.default_rng(0)
    quiet, loud = (
        [(n, 0.7 - 0.2 / n + s * rng.standard_normal()) for n in (1, 2, 3, 5) for _ in range(4)] for s in (0.005, 0.05)
    )
    widths = [np.ptp(fit_budget(one).gain(5, 5)[1:]) for one in (quiet, loud)]
    assert widths[0] < 0.04 < widths[1]
    assert fit_budget(rows(PUBLISHED["cyto"])).floor == FLOOR, "too few scores to believe a smaller spread"


@pytest.mark.parametrize(
    "measured", [[], [(1, 0.5), (2, 0.6)], [(1, 0.5), (1, 0.6), (2, 0.6)], [(0, 0.1), (1, 0.5), (2, 0.6)]]
)
def test_too_few_numbers_of_images_tell_nothing_and_what_to_do_is_said(measured):
    with pytest.raises(UserError, match="a curve needs 3") as refused:
        fit_budget(measured)
    assert "1, 2, 3 and 5" in str(refused.value)
    told = tell_budget(measured, 3, 30)
    assert told.startswith("what more images would gain cannot be told yet") and "--curve" in told
    assert "train on 1, 2 and 3 of the labelled" in told and "1, 2, 3 and 5 of the" in tell_budget(measured, 9, 30)
    assert "different number(s)" not in told


@pytest.mark.parametrize("labelled", [0, 1, 2])
def test_on_more_images_than_are_labelled_none_is_to_train(labelled):
    told = tell_budget([(n, 0.5) for n in range(1, labelled + 1)], labelled, 30)
    assert told.endswith("\nlabel 3 images first: a curve needs the scores of models trained on 1, 2 and 3 of them")


def test_beyond_twice_what_was_measured_nothing_is_told():
    curve = fit_budget(rows(PUBLISHED["cyto"][:4]))
    assert curve.told(4) == MOST_AHEAD * 4 - 4
    with pytest.raises(UserError, match="tells no further than 8"):
        curve.gain(4, 5)
    assert "cannot be told" in tell_budget(rows(PUBLISHED["cyto"][:4]), 20, 30)


def test_the_advice_follows_the_interval():
    assert tell_budget([(1, 0.3), (2, 0.45), (3, 0.55)], 3, 30).startswith("3 more images: +0.")
    steep = tell_budget([(n, 0.9 - 0.8 * n**-0.5) for n in (1, 2, 3, 4, 5) for _ in range(3)], 5, 30)
    assert "5 more images: +0.10" in steep and "label more: it is worth it (about 150 cells, 18 minutes)" in steep
    flat = tell_budget([(n, 0.8) for n in (1, 2, 3, 4, 5) for _ in range(3)], 5, 30)
    assert "hardly change the score" in flat or "only if" in flat
    assert "not one more image gains 0.002" in flat
    unsure = tell_budget(rows(PUBLISHED["cyto"]), 7, 30, seconds_per_cell=10)
    assert "label more only if the chance of that is worth about 150 cells, 30 minutes to you" in unsure


def test_without_cells_to_go_by_no_cost_is_told():
    steep = [(n, 0.9 - 0.8 * n**-0.5) for n in (1, 2, 3, 4, 5) for _ in range(3)]
    for measured, words in ((steep, "it is worth it\n"), (rows(PUBLISHED["cyto"]), "is worth the work to you\n")):
        told = tell_budget(measured, 5, None)
        assert words in told and "minutes" not in told and "cells" not in told


def test_a_curve_is_read_from_a_table(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("images,score,seed\n1,0.5,0\n2,0.6,1\n")
    assert read_curve(path) == [(1, 0.5), (2, 0.6)]
    path.write_text("images,score\n1,high\n")
    with pytest.raises(UserError, match=r"line 2: images is '1', score 'high'"):
        read_curve(path)
    for images, score in (
        ("1", "nan"),
        ("1", "inf"),
        ("2", "1.5"),
        ("2", "-0.1"),
        ("-1", "0.5"),
        ("nan", "0.5"),
        ("2", "0,5"),
    ):
        path.write_text(f'images,score\n1,0.5\n{images},"{score}"\n')
        with pytest.raises(UserError, match=rf"line 3: images is '{images}', score '{score}'"):
            read_curve(path)
    with pytest.raises(UserError, match="no file at"):
        read_curve(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"1 images, score 7"):
        fit_budget([(1, 7.0)])
