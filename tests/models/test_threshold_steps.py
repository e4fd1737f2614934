"""The threshold's peaks are scikit-image's, piece by piece and in its order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.feature import peak_local_max

from cellkit.models.threshold_steps import peaks_of


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(0, 3), st.floats(0.3, 0.9))
def test_peaks_are_those_of_scikit_image(seed, distance_px, blur_px, share):
    rng = np.random.default_rng(seed)
    cells = ndimage.gaussian_filter(rng.random((60, 70)), 2) > np.quantile(rng.random(100), share) * 0.2 + 0.4
    cells |= rng.random(cells.shape) > 0.995  # single pixels, which have no peak or are one
    pieces = ndimage.label(cells)[0]
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(cells), blur_px)
    wanted = peak_local_max(depth, min_distance=distance_px, labels=pieces, exclude_border=False)
    assert np.array_equal(peaks_of(depth, pieces, distance_px), wanted)


def test_without_a_piece_there_is_no_peak():
    assert peaks_of(np.zeros((4, 5)), np.zeros((4, 5), int), 3).shape == (0, 2)
