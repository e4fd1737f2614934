"""The diameter of cells: estimated from small to large, and doubted where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.fetch.find import find_weights
from cellkit.models import cellpose_unet as unet
from cellkit.models import unet_maps
from cellkit.models.shared import diameter


def test_diameter_is_cellposes():
    from cellpose.utils import diameters

    labels = np.zeros((50, 50), np.int32)
    labels[5:15, 5:15], labels[20:44, 20:40] = 1, 2
    assert diameter.diameter_of([Instances.from_labels(labels)]) == pytest.approx(diameters(labels)[0])


def discs(diameter_px: int, side_px: int) -> np.ndarray:
    """A picture full of discs, with the noise of a camera in and around them."""
    rng = np.random.default_rng(diameter_px)
    yy, xx = np.mgrid[:side_px, :side_px]
    image = rng.integers(0, 25, (side_px, side_px, 3)).astype(np.uint8)
    step = round(diameter_px * 1.4)
    for y in range(step // 2, side_px, step):
        for x in range(step // 2, side_px, step):
            away = (yy - y) ** 2 + (xx - x) ** 2
            image[away <= (diameter_px / 2) ** 2, 1] = 150 + rng.integers(0, 20, (away <= (diameter_px / 2) ** 2).sum())
            image[away <= (diameter_px / 4) ** 2, 2] = 200
    return image


@pytest.mark.parametrize(("diameter_px", "side_px"), [(6, 64), (90, 256)])
def test_the_diameter_is_estimated_from_small_to_large(diameter_px, side_px, capsys):
    estimate = unet.estimate_diameter(find_weights("starter"), [discs(diameter_px, side_px)])
    assert estimate == pytest.approx(diameter_px, rel=0.2) and "doubtful" not in capsys.readouterr().err


def test_a_diameter_of_nothing_is_doubted(capsys):
    nothing = lambda image, diameter_px: Instances.empty(image.shape[:2])  # noqa: E731
    assert diameter.estimate(nothing, [np.zeros((64, 64, 3), np.uint8)]) == 30.0
    assert "no cell is found at any diameter; 30 px is taken" in capsys.readouterr().err


def test_a_diameter_is_estimated_on_crops(monkeypatch):
    """The largest picture the network sees is eight cells wide and its frame, whatever the image's size."""
    seen = []
    monkeypatch.setattr(
        unet_maps, "forward", lambda network, planes: seen.append(planes.shape) or np.full_like(planes[[0, 0, 0]], -6)
    )
    unet.estimate_diameter(find_weights("starter"), [np.zeros((3000, 2000, 3), np.uint8)])
    assert len(seen) == len(diameter.ASSUMED_PX) and max(max(shape) for shape in seen) <= 8 * 30 + 8 + 2 * 16
