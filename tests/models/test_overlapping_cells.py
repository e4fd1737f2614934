"""Labelled cells that cover one another: each whole, in crops and targets, as it was labelled."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backend_cases import config_of
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.models.maskrcnn_network import build, target
from cellkit.models.shared import detector_training
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.overlapping_cells import NOBODY, cells_in, numbered


def discs(count: int, seed: int, side: int = 40) -> Instances:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    places = rng.uniform(0, side, (count, 2))
    masks = [np.hypot(y - a, x - b) < r for (a, b), r in zip(places, rng.uniform(3, 9, count), strict=True)]
    return Instances.from_masks(masks, (side, side), class_ids=rng.integers(0, 3, count))


@given(st.integers(0, 9), st.integers(0, 10**6), st.booleans())
def test_what_is_numbered_is_read_back(count, seed, partly):
    cells = discs(count, seed)
    unknown = np.zeros(cells.shape, bool)
    unknown[:, 30:] = partly
    cells = cells.with_unknown(unknown) if partly else cells
    labels, shared = numbered(cells)
    found = cells_in(labels, np.r_[0, cells.class_ids], shared)
    assert [(found.mask(k).tolist(), found.class_ids[k]) for k in range(len(found))] == [
        (cells.mask(k).tolist(), cells.class_ids[k]) for k in range(len(cells)) if cells.areas_px[k]
    ]
    assert found.unknown_px == (labels < 0).sum() and found.unknown_px == cells.unknown_px
    if not cells.overlapping:
        assert shared is NOBODY and np.array_equal(labels, cells.paint(unknown=-1))


def pair() -> Instances:
    masks = np.zeros((2, 96, 96), bool)
    masks[0, 20:60, 20:60], masks[1, 40:80, 30:70] = True, True
    return Instances.from_masks(masks, (96, 96), class_ids=[1, 2])


@pytest.mark.parametrize("keep, areas", [(True, [1600, 1600]), (False, [1600, 1000])])
def test_a_target_holds_each_cell_whole_or_a_pixel_once(keep, areas):
    image = np.full((96, 96, 3), 50, np.uint8)
    _, labels, class_of, *shared = detector_training.scaled(image, pair(), 30.0, keep)
    made = target(labels, class_of, True, *shared)
    assert made["masks"].sum(dim=(1, 2)).tolist() == areas and made["classes"].tolist() == [1, 2]
    part = target(labels[45:, 50:], class_of, True, *shared)
    assert part["masks"].sum(dim=(1, 2)).tolist() == ([150, 700] if keep else [150, 550]), "in a crop, too"


def test_a_detector_learns_from_cells_that_overlap():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (96, 96, 3), np.uint8)
    item = detector_training.scaled(image, pair(), 30.0, True)
    assert len(item) == 4 and item[1].max() == 3
    torch.manual_seed(0)
    settings = {**DEFAULTS, "fpn_channels": 8, "widths": (4, 8, 12, 16)}
    for frozen in (False, True):
        model = build(settings | {"freeze_backbone": frozen}, classes=2).train()
        config = config_of("maskrcnn_torchvision", crop_px=96, freeze_backbone=frozen, cells_per_step=4)
        loss = detector_training.DetectorLoss(model, [item, item], config)(0)
        loss.backward()
        assert torch.isfinite(loss)
    assert detector_training.say_untrainable([item], [SimpleNamespace(image_id="a")]) == 0


def test_a_crowd_that_overlaps_takes_little_memory():
    """Masks of the size of the image would be 400 MB."""
    import tracemalloc

    corners = [(x, y) for y in range(0, 1000, 50) for x in range(0, 1000, 50)]
    cells = Instances.from_boxed_masks([np.ones((60, 60), bool)] * len(corners), corners, (1000, 1000))
    labels, shared = numbered(cells)
    tracemalloc.start()
    found = cells_in(labels, np.zeros(len(cells) + 1, int), shared)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert np.array_equal(found.areas_px, cells.areas_px)
