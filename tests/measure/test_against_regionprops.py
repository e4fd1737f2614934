"""Every measure that scikit-image knows is the same as scikit-image's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from measure_cases import assert_as_regionprops, blobs, drawn
from scipy import ndimage

from cellkit.cells.instances import Instances
from cellkit.measure.hull import hull_areas_px
from cellkit.measure.rows import Rows
from cellkit.measure.table import measure


def measured(labels: np.ndarray, channels: dict[str, np.ndarray]):
    return measure(Instances.from_labels(labels), channels, labels=np.unique(labels[labels > 0]))


@pytest.mark.parametrize("seed", range(3))
def test_drawn_cells(seed):
    labels, _, image = drawn(seed)
    channels = {"DAPI": image[..., 0], "GFP": image[..., 1]}
    table = measured(labels, channels)
    assert len(table) > 8
    assert_as_regionprops(table, labels, channels)


@pytest.mark.parametrize("seed", range(12))
def test_ragged_regions_with_holes_and_in_pieces(seed):
    labels = blobs(seed)
    assert_as_regionprops(measured(labels, {"a": labels.astype(float)}), labels, {"a": labels.astype(float)})


@pytest.mark.filterwarnings("default:Failed to get convex hull")
@given(arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_any_few_pixels(labels):
    if labels.any():
        channels = {"a": np.arange(labels.size, dtype=np.uint8).reshape(labels.shape)}
        assert_as_regionprops(measured(labels, channels), labels, channels)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32", "float64", "bool"])
def test_any_type_of_values(dtype):
    labels, _, image = drawn(4)
    values = {
        "bool": image[..., 0] > 900,
        "int8": (image[..., 0] % 256 - 128),
        "int16": image[..., 0].astype(int) - 32768,
    }
    image = np.asarray(values.get(dtype, image[..., 0] % 256 if dtype == "uint8" else image[..., 0])).astype(dtype)
    table = measured(labels, {"a": image})
    assert_as_regionprops(table, labels, {"a": image.astype(np.float64)})
    assert table["background_a"].iloc[0] == np.median(image[labels == 0])
    assert table["integrated_a"].tolist() == [float(image[labels == k].sum(dtype=float)) for k in table["label"]]


@pytest.mark.realdata
def test_real_nuclei(data_folder):
    from skimage.io import imread

    folder = data_folder / "small_pairs" / "stardist"
    labels, image = imread(folder / "mask2d.tif").astype(np.int32), imread(folder / "img2d.tif")
    table = measured(labels, {"nuclei": image})
    assert len(table) > 50
    assert_as_regionprops(table, labels, {"nuclei": image})


def test_the_sd_of_a_bright_and_even_cell_is_exact():
    image = np.full((50, 50), 65_000, np.uint16)
    image[::7] += 1
    (sd,) = measure(Instances.from_labels(np.ones((50, 50), int)), {"a": image})["sd_a"]
    assert sd == pytest.approx(np.std(image.astype(np.longdouble)), rel=1e-12)


def test_a_hull_that_takes_a_turn_for_every_row():
    rows = np.arange(60)
    bent = np.abs(rows[:, None] ** 2 / 60 - rows[None] + 20) < 1  # convex, but for its last rows
    bent[-3:] = rows < 5
    from skimage.morphology import convex_hull_image

    (area,) = hull_areas_px(Rows.of(Instances.from_masks([bent], bent.shape)))
    assert area == convex_hull_image(bent).sum()


def test_scattered_pixels_have_the_hull_of_scikit_image():
    from skimage.morphology import convex_hull_image

    rng = np.random.default_rng(0)
    masks = [rng.random((31, 17)) < 0.01 + 0.02 * (k % 5) for k in range(60)]
    masks = [mask for mask in masks if mask.any()]
    found = hull_areas_px(Rows.of(Instances.from_masks(masks, (31, 17))))
    assert found.tolist() == [int(convex_hull_image(mask).sum()) for mask in masks]


def test_a_cell_in_a_crop_and_alone_is_the_same_cell():
    labels = blobs(5)
    whole = measured(labels, {})
    k = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
    (box,) = ndimage.find_objects((labels == k).astype(int))
    alone = measured(np.pad(np.where(labels[box] == k, 9, 0), 2), {})
    kept = ["area_px", "perimeter_px", "eccentricity", "solidity", "major_axis_px", "minor_axis_px", "orientation_deg"]
    assert whole.loc[whole["label"] == k, kept].values.tolist() == alone[kept].values.tolist()
