"""Cellpose-SAM window by window: the maps are those of the whole image, whatever is shown together."""

from __future__ import annotations

import numpy as np
import pytest
from sam_cases import small_checkpoint
from test_in_windows import picture
from window_cases import whole_of

from cellkit.cells.windows import Window
from cellkit.models import cellpose_sam, sam_maps
from cellkit.models.sam_network import applied_only, load_network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return small_checkpoint(tmp_path_factory.mktemp("sam") / "small", flow_threshold=0.0, min_area_px=1)


@pytest.mark.parametrize(("shape", "diameter_px", "at_once"), [((300, 530), None, 3), ((90, 400), 24.0, 1)])
def test_the_maps_are_those_of_the_whole_image(checkpoint, tmp_path, shape, diameter_px, at_once):
    image = picture(2, shape)
    network = applied_only(load_network(checkpoint)[0])
    wanted = next(sam_maps.predict_maps(network, [image], diameter_px, at_once=at_once))
    how = cellpose_sam.Settings(
        diameter_px=diameter_px, squares_at_once=at_once, cellprob_threshold=float(np.median(wanted[2]))
    )
    segment = cellpose_sam.load(checkpoint, how)
    finder = segment.in_windows(whole_of(image, tmp_path))
    assert finder.maps.shape == wanted.shape
    off = np.abs(finder.maps[...] - wanted).max() / np.abs(wanted).max()
    assert off == 0 if diameter_px is None else off < 1e-3
    found, sure = finder.find(Window(0, 0, *shape))
    (truth,) = segment([image])
    assert sure.all() and len(truth) > 0
    if diameter_px is None:
        assert np.array_equal(found.paint() > 0, truth.paint() > 0)
