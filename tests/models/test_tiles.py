"""Every cell once and whole, wherever the seams of tiles lie; what a limit leaves out or cuts is said."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.models import maskrcnn_detect
from cellkit.models.shared import tiles
from cellkit.models.shared.detections import Reading, read_detections
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.scores.iou import overlaps


def perfect(model, planes):
    """A detector without fault: the boxes and shapes of the label image it is given; a cell cut by the tile is cut."""
    cells = Instances.from_labels(planes[0].astype(int))
    boxes = cells.boxes_xywh.astype(float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.full(len(cells), 0.9), np.ones((len(cells), 28, 28), np.float32)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 96 px that overlap by 16, so that images may be small."""
    monkeypatch.setattr(maskrcnn_detect, "forward", perfect)
    monkeypatch.setattr(maskrcnn_detect, "TILE_PX", 96)
    monkeypatch.setattr(maskrcnn_detect, "OVERLAP_PX", 16)
    monkeypatch.setattr(tiles, "MARGIN_PX", 8)
    monkeypatch.setattr(tiles, "LARGEST_PX", 192)


def seen(labels, left=None, **settings):
    planes = np.stack([labels] * 3).astype(float)
    settings = {**DEFAULTS, "mask_box_margin": 0.0, **settings}
    found = maskrcnn_detect._tiled(None, planes, settings, left)
    cells = read_detections(found, labels.shape, Reading.of(settings))
    return maskrcnn_detect._at_most(settings["max_detections"], *cells, left)[0]


def same(found, labels):
    """Whether the cells are those of the label image, each once, pixel by pixel."""
    truth = Instances.from_labels(labels)
    return len(found) == len(truth) and (overlaps(truth, found).iou == 1).sum() == len(truth)


@pytest.mark.parametrize("length", [12, 40, 90, 130])
def test_a_cell_on_a_seam_is_one_cell(length):
    for start in range(30, 250 - length, 7):
        for labels in (np.zeros((60, 257), int), np.zeros((257, 60), int)):
            along = labels if labels.shape[1] > 60 else labels.T
            along[20:30, start : start + length] = 1
            assert same(seen(labels), labels), (length, start, labels.shape)


@pytest.mark.parametrize("size", [97, 113, 177, 192, 250])
def test_a_crowd_is_found_once_each_at_any_size(size):
    labels = np.zeros((size, size), int)
    corners = [(y, x) for y in range(1, size - 10, 11) for x in range(1, size - 10, 11)]
    for k, (y, x) in enumerate(corners, 1):
        labels[y : y + 10, x : x + 10] = k
    assert same(seen(labels), labels)


def test_a_long_cell_leaves_its_neighbours_alone():
    labels = np.zeros((200, 250), int)
    labels[90:98, 20:230] = 1  # on two seams across, beside one along
    for k, x in enumerate(range(20, 230, 14), 2):
        labels[99:110, x : x + 12], labels[76:89, x : x + 12] = k, k + 100
    assert same(seen(labels), labels)


def test_a_cell_that_fits_no_window_is_cut_and_that_is_said():
    labels = np.zeros((210, 600), int)
    labels[3:206, 3:596] = 1
    left = Counter()
    assert len(seen(labels, left)) > 1
    ((why, pieces),) = left.items()
    assert why.startswith("cut: too long for a window of ") and pieces > 1


def test_ids_of_a_picture_larger_than_a_tile_are_those_of_its_rows_and_each_is_one_cell(tmp_path, monkeypatch):
    import json

    from conftest import write_png
    from scipy.ndimage import label

    from cellkit.formats.label_images import read_labels
    from cellkit.models import threshold
    from cellkit.predict.files import predict_files
    from cellkit.predict.model import find_model

    labels = np.zeros((250, 270), int)
    for k, (y, x) in enumerate([(y, x) for y in range(3, 230, 17) for x in range(2, 255, 17)], 1):
        labels[y : y + 11, x : x + 9] = k
    write_png(tmp_path / "in/a.png", np.dstack([labels, labels * 0, labels * 0]).astype(np.uint8))

    def load(checkpoint=None, config=None):
        return lambda images: (seen(image[..., 0].astype(int)) for image in images)

    monkeypatch.setattr(threshold, "load", load)
    predict_files(
        find_model("threshold", {"diameter_px": 10}), [tmp_path / "in"], tmp_path / "out.json", tmp_path / "labels"
    )
    written, rows = read_labels(tmp_path / "labels/a.tif"), json.loads((tmp_path / "out.json").read_text())
    assert np.unique(written).tolist() == list(range(labels.max() + 1))
    assert len(rows["annotations"]) == labels.max() and same(Instances.from_labels(written), labels)
    assert all(label(written == k)[1] == 1 for k in range(1, labels.max() + 1))


def test_a_limit_that_bites_is_counted():
    labels = np.kron(np.arange(1, 26).reshape(5, 5), np.pad(np.ones((8, 8), int), 2))
    left = Counter()
    assert len(seen(labels, left)) == 25 and not left, "no limit unless one is set"
    assert len(seen(labels, left, max_detections=20)) == 20
    assert left == {"left out: more than max_detections = 20 in an image; raise it": 5}


@given(st.integers(1, 6000), st.integers(10, 64), st.integers(1, 8))
def test_tiles_are_as_few_and_as_small_as_cover_the_image(size, side_16, overlap_16):
    tile_px, overlap_px = 16 * side_16, 16 * overlap_16
    spans = tiles.tile_spans(size, tile_px, overlap_px)
    starts, stops = zip(*spans, strict=True)
    side = stops[0]
    assert starts[0] == 0 and stops[-1] == size and {b - a for a, b in spans} == {side} and side <= tile_px
    assert all(stop - start >= overlap_px - 1 for start, stop in zip(starts[1:], stops, strict=False))  # of whole px
    assert len(spans) == 1 or len(spans) * (side - 16) < size + (len(spans) - 1) * overlap_px
