"""Brightness, spots and fibres of cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.models import cell_texture
from cellkit.models.cell_texture import OF_CHANNEL, texture_of_cells

CELL = int(cell_texture.CELL_PX)


def a_cell(spot: int = 0, stripes: bool = False, gain: float = 1.0, offset: int = 20) -> tuple[np.ndarray, Instances]:
    """Return an image whose blue channel shows spots or stripes in a square cell, and the cell."""
    plane = np.zeros((120, 120))
    plane[:, 8:] = 100  # as bright around the cell as in it: no edge, which would be told as well
    if spot:
        for y, x in ((50, 50), (50, 68), (66, 60)):
            plane[y : y + 4, x : x + 4] += spot
    if stripes:
        plane[40:80, 40:80] += 30 * np.sin(np.arange(40) * 2 * np.pi / 8)
    image = np.zeros((120, 120, 3), np.uint8)
    image[..., 2] = np.round(offset + gain * plane)
    cell = np.zeros((120, 120), int)
    cell[40:80, 40:80] = 1
    return image, Instances.from_labels(cell)


def told(*args, **more) -> np.ndarray:
    found = texture_of_cells(*a_cell(*args, **more), CELL)
    assert found.shape == (1, cell_texture.FEATURES) and np.isfinite(found).all()
    assert not found[0, : 2 * OF_CHANNEL].any(), "the other channels are empty"
    return found[0, 2 * OF_CHANNEL :]


def test_dark_and_bright_spots_are_told_apart_and_from_none():
    first = len(cell_texture.LEVELS) + 1
    dark, none, bright = (told(spot)[first : first + 9].reshape(3, 3) for spot in (-60, 0, 60))
    assert (bright[2, :2] > none[2, :2] + 0.1).all() and (dark[0, :2] < none[0, :2] - 0.1).all()


def test_fibres_have_a_direction_and_spots_none():
    first = len(cell_texture.LEVELS) + 1 + 9
    striped, spotted = (told(**one)[first : first + 9].reshape(3, 3)[1] for one in ({"stripes": True}, {"spot": 60}))
    assert striped[1] > 0.9 and spotted[1] < 0.5 and striped[0] > told()[first + 3] + 1


def test_brightness_against_the_cell_does_not_depend_on_exposure():
    one, other = told(60, gain=0.5), told(60, gain=1.2, offset=30)
    relative = len(cell_texture.LEVELS) + 1 + 9
    assert np.allclose(one[:relative], other[:relative], atol=0.02)
    assert not np.allclose(one[-5], other[-5], atol=0.3), "one number does: how bright the cell is"


def test_an_order_of_cells_and_tiles_change_nothing(drawn, monkeypatch):
    image, cells = drawn[0]
    found = texture_of_cells(image, cells, 30.0)
    assert np.isfinite(found).all() and np.array_equal(found, texture_of_cells(image, cells[::-1], 30.0)[::-1])
    assert texture_of_cells(image, cells[:0], 30.0).shape == (0, cell_texture.FEATURES)
    from cellkit.models import cell_features

    monkeypatch.setattr(cell_features, "TILE_PX", 96)
    tiled = texture_of_cells(image, cells, 30.0)
    assert np.mean(np.isclose(found, tiled, atol=1e-2)) > 0.95, "what reaches beyond the margin alone may differ"


def test_a_cell_without_a_pixel_and_a_channel_that_repeats_another():
    labels = np.zeros((160, 200), int)
    labels[5, 5], labels[4:60, 20:70] = 1, 2
    image = np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)
    image[..., 1] = image[..., 0]
    found = texture_of_cells(image, Instances.from_labels(labels), 300.0)
    assert found.shape[0] == 2 and np.isfinite(found).all()
    assert not found[:, OF_CHANNEL : 2 * OF_CHANNEL].any() and found[:, :OF_CHANNEL].any()


@pytest.mark.parametrize("value", [0, 90])
def test_of_an_image_of_one_brightness_nothing_is_told(value):
    cells = Instances.from_labels(np.eye(20, dtype=int))
    assert not texture_of_cells(np.full((20, 20, 3), value, np.uint8), cells, 30.0).any()


def test_a_detector_learns_the_texture_of_labelled_cells_and_its_vote_counts(drawn):
    from cellkit.models.cell_classifier import TextureVote, texture_votes

    train = drawn.select("train")
    vote, alone = texture_votes(train, 30.0, range(len(train)))
    for image, cells in (train[k] for k in range(len(train))):
        texture = texture_of_cells(image, cells, 30.0)
        votes = vote.votes(texture)
        assert votes.shape == (len(cells), 2) and np.allclose(np.exp(votes).sum(axis=1), 1, atol=1e-3)
        assert (votes.argmax(axis=1) + 1 == cells.class_ids).all(), "these taught it"
    again = TextureVote(2)
    again.load_state_dict(vote.state_dict())
    assert np.array_equal(again.votes(texture), votes)
    around = texture.copy()
    around[:, np.setdiff1d(np.arange(texture.shape[1]), cell_texture.ALONE)] = 0.5
    assert np.array_equal(alone.votes(around), alone.votes(texture)), "surroundings say nothing of a cell alone"
    assert texture_votes(train.select(cell_type="HEK"), 30.0, [0]) == [], "one class is nothing to tell apart"


def test_what_lies_around_a_cell_says_nothing_of_the_cell_alone():
    rng = np.random.default_rng(0)
    image, labels = rng.integers(40, 200, (120, 120, 3)).astype(np.uint8), np.zeros((120, 120), int)
    labels[50:70, 50:70] = 1
    image[:3] = 0  # the darkest
    brighter = image.copy()
    brighter[3:36], brighter[84:] = image[3:36] // 2 + 120, image[84:] // 2 + 120  # further than the widest filter
    cells = Instances.from_labels(labels)
    one, other = (texture_of_cells(picture, cells, 20.0)[0] for picture in (image, brighter))
    elsewhere = np.setdiff1d(np.arange(len(one)), cell_texture.ALONE)
    assert np.allclose(one[cell_texture.ALONE], other[cell_texture.ALONE], atol=0.01)
    assert not np.allclose(one[elsewhere], other[elsewhere], atol=0.05)


def test_without_a_cell_of_known_class_texture_has_no_vote(drawn):
    from cellkit.models.cell_classes import images_that_teach
    from cellkit.models.cell_classifier import texture_votes

    nameless = replace(drawn, instances=[cells.with_classes(0 * cells.class_ids) for cells in drawn.instances])
    places = images_that_teach(nameless.instances, 2)
    assert places == [] and texture_votes(nameless, 30.0, places) == []


def test_percentiles_are_those_of_numpy():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 50, 1001):
        values = np.sort(rng.normal(size=(3, count)), axis=1)
        ours = cell_texture._percentiles(values, cell_texture.LEVELS)
        assert np.allclose(ours, np.percentile(values, cell_texture.LEVELS, axis=1).T, rtol=1e-12, atol=1e-12)


def test_rings_are_what_lies_no_farther_from_the_cell():
    labels = np.zeros((90, 90), np.int32)
    labels[40:44, 50:53] = 1
    ((window, (cell, near, far)),) = cell_texture._regions(labels, np.array([0]), np.array([[41, 51]]))
    rows, columns = np.mgrid[window]
    away = np.hypot(rows - np.clip(rows, 40, 43), columns - np.clip(columns, 50, 52))
    assert np.array_equal(cell, away == 0)
    assert np.array_equal(near, (away > 0) & (away <= 8)) and np.array_equal(far, (away > 0) & (away <= 32))
