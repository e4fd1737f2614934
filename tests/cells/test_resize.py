"""Cells go from one scale to another: no cell in a wrong place, none without its class and score."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.cells.resize import fit_to


class TestFitTo:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 99), by=st.integers(1, 4))
    def test_whole_factors_multiply_areas(self, seed, by):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, (5, 7))
        count = len(np.unique(labels[labels > 0]))
        found = Instances.from_labels(labels, rng.integers(0, 3, count), rng.random(count))
        large = fit_to(found, (5 * by, 7 * by))
        assert np.array_equal(large.areas_px, found.areas_px * by * by)
        assert np.array_equal(large.class_ids, found.class_ids)
        assert np.array_equal(large.scores, found.scores)
        assert fit_to(large, (5, 7)) == found

    def test_a_cell_smaller_than_a_pixel_goes_with_its_class_and_score(self):
        found = Instances.from_labels(np.array([[1, 2, 2, 3]]), [5, 6, 7], [0.1, 0.2, 0.3])
        small = fit_to(found, (1, 2))
        assert small.paint().tolist() == [[1, 2]]
        assert (small.class_ids.tolist(), small.scores.tolist()) == ([6, 7], [0.2, 0.3])
