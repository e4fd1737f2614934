"""What the tests of measurements share: scenes, and the same numbers by scikit-image."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage

from cellkit.cells.drawn.field import draw_field
from cellkit.cells.drawn.style import FieldStyle

# ours -> the property of regionprops
SHAPE = {
    "area_px": "area",
    "diameter_px": "equivalent_diameter_area",
    "centroid_y_px": "centroid-0",
    "centroid_x_px": "centroid-1",
    "box_y_px": "bbox-0",
    "box_x_px": "bbox-1",
    "perimeter_px": "perimeter",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
    "major_axis_px": "axis_major_length",
    "minor_axis_px": "axis_minor_length",
}
BRIGHTNESS = {
    "mean": "intensity_mean",
    "median": "intensity_median",
    "max": "intensity_max",
    "sd": "intensity_std",
}
PROPERTIES = sorted({name.split("-")[0] for name in [*SHAPE.values(), *BRIGHTNESS.values()]} | {"label", "orientation"})


def drawn(seed: int, size: int = 160) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (H, W), nuclei (H, W) and two channels (H, W, 2) uint16 of a drawn field."""
    field = draw_field(("HEK", "N2a"), FieldStyle(size_px=(size, size + 9), diameter_px=24, density=0.6), seed)
    light = np.stack([field.nuclei, field.cytoplasm], axis=2)
    noise = np.random.default_rng(seed).poisson(ndimage.gaussian_filter(light, (1, 1, 0)) + 30)
    return field.labels, field.nuclei_labels, (noise * 11).astype(np.uint16)


def blobs(seed: int, size: tuple[int, int] = (90, 110)) -> np.ndarray:
    """Return labels (H, W) of ragged regions with holes, some of them in several pieces."""
    rng = np.random.default_rng(seed)
    cloud = ndimage.gaussian_filter(rng.standard_normal(size), rng.uniform(0.5, 5))
    labels, _ = ndimage.label(cloud > np.quantile(cloud, rng.uniform(0.3, 0.8)), np.ones((3, 3)))
    return (labels * (1 + (rng.random(size) < 0.2 * (seed % 3 == 0)))).astype(np.int32)


def assert_as_regionprops(table: pd.DataFrame, labels: np.ndarray, channels: dict[str, np.ndarray], atol: float = 1e-6):
    """Assert that every number that both know is the same, to `atol`."""
    from skimage.measure import regionprops_table

    stack = np.stack(list(channels.values()), axis=2)
    theirs = regionprops_table(labels, stack, properties=PROPERTIES)
    assert table["label"].tolist() == theirs["label"].tolist()
    for ours, name in SHAPE.items():
        np.testing.assert_allclose(table[ours], theirs[name], rtol=0, atol=atol, err_msg=ours)
    np.testing.assert_array_equal(table["box_x_px"] + table["box_width_px"], theirs["bbox-3"])
    np.testing.assert_array_equal(table["box_y_px"] + table["box_height_px"], theirs["bbox-2"])
    for place, channel in enumerate(channels):
        for ours, name in BRIGHTNESS.items():
            np.testing.assert_allclose(table[f"{ours}_{channel}"], theirs[f"{name}-{place}"], rtol=1e-12, atol=atol)
    directed = table["major_axis_px"] - table["minor_axis_px"] > 1e-4  # else a rounding error decides
    turn = (table["orientation_deg"] - np.degrees(theirs["orientation"]) + 90) % 180 - 90
    np.testing.assert_allclose(turn[directed], 0, atol=1e-6)
