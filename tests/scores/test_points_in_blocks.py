"""Centres of objects are the same, however many are looked at together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.scores import point


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_blocks_change_no_centre(seed, block_px):
    rng = np.random.default_rng(seed)
    objects = Instances.from_labels(rng.integers(0, 9, (12, 11)) * (rng.random((12, 11)) < 0.7))
    whole, before = point.centre_points(objects), point._BLOCK_PX
    try:
        point._BLOCK_PX = block_px
        assert np.array_equal(point.centre_points(objects), whole)
        assert point.centre_points(objects[:0]).shape == (0, 2)
    finally:
        point._BLOCK_PX = before
