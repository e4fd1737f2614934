"""Drawn cells in transmitted light: seeded, half of full scale where nothing lies, a halo of the opposite sign in phase."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle
from cellkit.cells.drawn.transmitted import CONTRASTS, transmit
from cellkit.errors import UserError

STYLE = replace(
    FieldStyle(size_px=(160, 160)), diameter_px=40.0, density=0.2, photons=600.0, texture=0.1, illumination=0.0
)
FIELD = draw_field(("N2a",), STYLE, 3)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_picture_is_a_function_of_its_seed(contrast):
    first, again, other = (transmit(FIELD, STYLE, contrast, seed) for seed in (1, 1, 2))
    assert first.dtype == np.uint16 and first.shape == FIELD.labels.shape
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_background_is_at_half_of_full_scale_and_cells_are_not_flat(contrast):
    far = ~binary_dilation(FIELD.labels > 0, iterations=20)
    for seed in range(4):
        seen = transmit(FIELD, STYLE, contrast, seed).astype(float) / 65535
        assert abs(np.median(seen[far]) - 0.5) < 0.05
        edge = binary_dilation(FIELD.labels > 0, iterations=3)
        assert seen[edge].std() > 1.5 * seen[far].std()


def test_phase_contrast_has_a_halo_of_the_opposite_sign():
    inside, outside = binary_erosion(FIELD.labels > 0, iterations=3), FIELD.labels == 0
    rim = outside & binary_dilation(FIELD.labels > 0, iterations=5)
    far = ~binary_dilation(FIELD.labels > 0, iterations=20)
    signs = set()
    for seed in range(6):
        seen = transmit(FIELD, STYLE, "phase", seed).astype(float)
        body, halo = np.median(seen[inside]) - np.median(seen[far]), np.median(seen[rim]) - np.median(seen[far])
        assert body * halo < 0, seed
        signs.add(np.sign(body))
    assert signs == {-1, 1}, "cells darker than their surroundings and brighter ones are both drawn"


def test_relief_has_a_bright_and_a_dark_side():
    seen = transmit(FIELD, STYLE, "relief", 0).astype(float)
    inside = FIELD.labels > 0
    assert np.percentile(seen[inside], 95) > 1.05 * 32768 and np.percentile(seen[inside], 5) < 0.95 * 32768


def test_an_unknown_contrast_is_refused():
    with pytest.raises(UserError, match="contrast is 'dic'"):
        transmit(FIELD, STYLE, "dic", 0)
