"""Images read in stretches of rows, cells that overlap, and cells on another grid: the same numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from measure_cases import blobs, drawn

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.measure import intensity, shape
from cellkit.measure.neighbours import touching
from cellkit.measure.rows import Rows
from cellkit.measure.table import measure


class Rowwise:
    """A channel that gives slices of rows only, and remembers how many it gave."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape, self.given = values, values.shape, []

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return rows, and note how many."""
        self.given.append(rows.stop - rows.start)
        return self.values[rows]


@pytest.fixture(params=["uint16", "float32"])
def scene(request) -> tuple[Instances, np.ndarray]:
    labels, _, image = drawn(3, 200)
    image = image[..., 1] if request.param == "uint16" else image[..., 1].astype(np.float32) / 3
    return Instances.from_labels(labels), image


def test_small_windows_give_the_same_numbers_bit_by_bit(scene, monkeypatch):
    cells, image = scene
    whole = measure(cells, {"a": image}, nuclei=cells)
    monkeypatch.setattr(intensity, "BLOCK_PX", 900)
    monkeypatch.setattr(intensity, "WINDOW_PX", 50 * image.shape[1])
    monkeypatch.setattr(shape, "CANVAS_PX", 2000)
    plane = Rowwise(image)
    pd.testing.assert_frame_equal(measure(cells, {"a": plane}, nuclei=cells), whole, check_exact=True)
    assert max(plane.given) <= max(50, cells.boxes_xywh[:, 3].max()) < image.shape[0]


def test_every_row_of_a_channel_is_read_once(scene):
    cells, image = scene
    plane = Rowwise(image)
    measure(cells, {"a": plane}, nuclei=cells)
    assert sum(plane.given) == image.shape[0]
    plane = Rowwise(image)
    measure(Instances.empty(image.shape), {"a": plane})
    assert sum(plane.given) == image.shape[0]


def test_a_memory_map_and_a_zarr_array_are_read_as_they_are(scene, tmp_path):
    cells, image = scene
    whole = measure(cells, {"a": image})
    mapped = np.memmap(tmp_path / "a.raw", image.dtype, "w+", shape=image.shape)
    mapped[:] = image
    chunked = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=image.shape, chunks=(32, 64), dtype=image.dtype)
    chunked[:] = image
    for plane in (
        mapped,
        chunked,
        lambda: image,
        np.asfortranarray(image),
        image.astype(image.dtype.newbyteorder(">")),
    ):
        pd.testing.assert_frame_equal(measure(cells, {"a": plane}), whole, check_exact=True)


def test_cells_in_any_order_are_measured_alike(scene):
    cells, image = scene
    order = np.random.default_rng(0).permutation(len(cells))
    shuffled = measure(cells[order], {"a": image}, labels=order + 1)
    pd.testing.assert_frame_equal(
        shuffled.sort_values("label", ignore_index=True), measure(cells, {"a": image}), check_exact=True
    )


@pytest.mark.parametrize("seed", range(4))
def test_overlapping_cells_are_each_measured_as_if_alone(seed):
    labels = blobs(seed, (60, 70))
    parts = [Instances.from_labels(np.roll(labels, shift, (0, 1))) for shift in ((0, 0), (3, -2), (1, 9))]
    cells = Instances.concatenate(parts)
    image = np.random.default_rng(seed).integers(0, 4000, labels.shape, np.uint16)
    found = measure(cells, {"a": image}, 0.2)
    for place in (0, len(parts[0]), len(cells) - 1):
        alone = measure(cells[[place]], {"a": image}, 0.2)
        kept = [n for n in alone if n not in ("label", "neighbours", "nearest_px", "nearest_um") and "back" not in n]
        kept = [name for name in kept if "corrected" not in name]
        assert found.loc[place, kept].tolist() == alone.loc[0, kept].tolist()
    covered = np.any([part.paint() > 0 for part in parts], axis=0)
    assert found["background_a"].iloc[0] == np.median(image[~covered])


@given(st.integers(0, 2**31))
def test_neighbours_are_those_that_touch(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (7, 8)) * (rng.random((7, 8)) < 0.6)
    cells = Instances.concatenate([Instances.from_labels(labels), Instances.from_labels(np.roll(labels, 2, 0))])
    masks = [np.pad(cells.mask(k), 1) for k in range(len(cells))]
    near = [
        np.any([np.roll(mask, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0) for mask in masks
    ]
    wanted = [sum(bool((near[k] & masks[j]).any()) for j in range(len(cells)) if j != k) for k in range(len(cells))]
    assert touching(Rows.of(cells), 8).tolist() == wanted


def test_cells_of_a_smaller_picture_are_measured_on_the_pixels_of_the_file():
    labels, _, image = drawn(2, 120)
    labels, image = labels[:120, :128], image[:120, :128, 0]
    small = Instances.from_labels(labels[::2, ::2])
    found = measure(small, {"a": image})
    large = np.kron(small.paint(), np.ones((2, 2), int))
    wanted = [image[large == k].mean() for k in found["label"]]
    np.testing.assert_allclose(found["mean_a"], wanted, rtol=1e-12)
    assert found["area_px"].tolist() == small.areas_px.tolist()
    np.testing.assert_allclose(found["integrated_corrected_a"], 4 * found["area_px"] * found["mean_corrected_a"])


def test_what_is_not_annotated_is_no_background():
    labels = np.array([[1, 1, 0, 0], [-1, -1, -1, 0]])
    image = np.array([[9, 9, 2, 4], [77, 88, 99, 3]], np.uint16)
    assert measure(Instances.from_labels(labels), {"a": image})["background_a"].tolist() == [3.0]
    full = measure(Instances.from_labels(np.ones((2, 4), int)), {"a": image})
    assert full[["background_a", "mean_corrected_a"]].isna().all(axis=None) and full["mean_a"].notna().all()


def test_a_cell_without_pixels_has_a_row_and_nothing_in_it():
    cells = Instances.from_runs((4, 5), [6], [2], [0, 0, 1])
    table = measure(cells, {"a": np.arange(20, dtype=np.uint8).reshape(4, 5)}, 1.0)
    assert table["area_px"].tolist() == [0, 2] and table["mean_a"].tolist()[1] == 6.5
    assert table.loc[0, ["mean_a", "centroid_x_px", "eccentricity", "solidity", "nearest_px", "sd_a"]].isna().all()


def test_classes_without_a_name_are_told_by_number():
    cells = Instances.from_labels(np.array([[1, 2, 3, 4]]), [0, 1, 2, -1])
    assert measure(cells, classes=["HEK"])["class"].tolist() == ["", "HEK", "2", "-1"]


def test_boxes_and_wrong_scales_are_refused():
    with pytest.raises(UserError, match="only boxes are known"):
        measure(Instances.from_boxes([[0, 0, 2, 2]], (4, 4)))
    for scale in (0.0, -1.0, np.inf):
        with pytest.raises(UserError, match="above 0"):
            measure(Instances.empty((4, 4)), um_per_px=scale)
    with pytest.raises(UserError, match="very same image"):
        measure(Instances.empty((4, 4)), nuclei=Instances.empty((4, 5)))


def test_the_result_does_not_change_from_run_to_run(scene):
    cells, image = scene
    tables = [measure(cells, {"a": image}, 0.3) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
