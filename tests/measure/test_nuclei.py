"""Which nuclei a cell has, and what of them lies in it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.measure.nuclei import nuclear_parts
from cellkit.measure.table import measure


def test_a_cell_of_two_nuclei_has_the_pixels_of_both():
    cells = Instances.from_labels(np.array([[1, 1, 1, 1, 1, 2, 2, 2]]))
    nuclei = Instances.from_labels(np.array([[1, 0, 2, 2, 0, 3, 0, 0]]))
    counts, parts = nuclear_parts(cells, nuclei)
    assert counts.tolist() == [2, 1] and parts.areas_px.tolist() == [3, 1]
    table = measure(cells, {"a": np.arange(8, dtype=np.uint8)[None]}, nuclei=nuclei)
    assert table["nucleus_mean_a"].tolist() == [(0 + 2 + 3) / 3, 5] and table["cytoplasm_mean_a"].tolist() == [2.5, 6.5]


def test_a_nucleus_half_in_and_half_out_is_nobodys():
    cells = Instances.from_labels(np.array([[1, 1, 2, 2, 0]]))
    for nucleus, owner in (([0, 1, 1, 0, 0], None), ([1, 1, 1, 0, 0], 0), ([0, 1, 1, 1, 0], 1)):
        counts, parts = nuclear_parts(cells, Instances.from_labels(np.array([nucleus])))
        assert np.flatnonzero(counts).tolist() == ([] if owner is None else [owner])
        assert parts.areas_px.sum() == (0 if owner is None else 2)


@given(st.integers(0, 2**31))
def test_nuclei_are_those_found_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    labels, other = (rng.integers(0, 4, (6, 9)) * (rng.random((6, 9)) < 0.8) for _ in range(2))
    cells = Instances.concatenate([Instances.from_labels(labels), Instances.from_labels(np.roll(labels, 3, 1))])
    nuclei = Instances.concatenate([Instances.from_labels(other), Instances.from_labels(np.roll(other, 1, 0))])
    wanted = [np.zeros((6, 9), bool) for _ in range(len(cells))]
    numbers = [0] * len(cells)
    for k in range(len(nuclei)):
        shared = [int((cells.mask(c) & nuclei.mask(k)).sum()) for c in range(len(cells))]
        best = int(np.argmax(shared)) if shared else 0
        if shared and 2 * shared[best] > nuclei.areas_px[k]:
            wanted[best] |= cells.mask(best) & nuclei.mask(k)
            numbers[best] += 1
    counts, parts = nuclear_parts(cells, nuclei)
    assert counts.tolist() == numbers
    assert all(np.array_equal(parts.mask(c), wanted[c]) for c in range(len(cells)))
