"""What is searched, and when it is taken; that every combination scores what its masks score; and what is set stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cellkit.cells.instances import Instances
from cellkit.cells.labels import relabel
from cellkit.models import cellpose_unet as unet
from cellkit.models import unet_maps, unet_search, weights
from cellkit.models.map_cache import FOLDER
from cellkit.models.shared import flows, heat
from cellkit.models.shared.diameter import diameter_of, own_diameter
from cellkit.models.shared.fine_tuning import ONE_IMAGE, map_iou, nearest_to_default
from cellkit.models.unet_network import CellposeUNet
from cellkit.predict.model import find_model

DIAMETER_PX = 30.0


def maps_with_specks(truth: Instances, specks: int = 12, side_px: int = 7) -> np.ndarray:
    """The maps of a network that knows the cells, and takes bright specks for cells besides."""
    labels = truth.paint()
    rng = np.random.default_rng(0)
    free = np.argwhere(labels == 0)
    for y, x in free[rng.permutation(len(free))[:specks]]:
        speck = labels[y : y + side_px, x : x + side_px]
        if not speck.any():
            speck[:] = labels.max() + 1
    maps = flows.target_of(labels).copy()
    maps[:2] += rng.normal(0, 0.3, maps[:2].shape)
    maps[2] = np.where(maps[2] > 0, 6, -6)
    return maps.astype(np.float16).astype(np.float32)


@pytest.fixture
def specked(drawn, monkeypatch):
    """Images of a network that finds every cell, and specks."""
    pairs = [drawn[k] for k in range(3)]
    maps = {image.tobytes(): maps_with_specks(truth) for image, truth in pairs}
    monkeypatch.setattr(unet_search, "predict_maps", lambda network, image, *_: maps[image.tobytes()])
    monkeypatch.setattr(unet_maps, "predict_maps", lambda network, image, *_: maps[image.tobytes()])
    return pairs


def test_every_combination_scores_what_its_masks_score(specked):
    image, truth = specked[0]
    maps = unet_search.predict_maps(None, image)
    grid = ((0.4, 0.05, 0.0), (0.0, -1.0), (15, 0, 60, 200))
    scores = unet_search.score_maps(maps, truth, *grid)
    for place in np.ndindex(scores.shape):
        flow, cellprob, least = (values[k] for values, k in zip(grid, place, strict=True))
        assert scores[place] == map_iou([(truth, flows.masks_of(maps, truth.shape, flow, cellprob, least))])
    assert len(np.unique(scores)) > 3, "else the case is none"


def test_flows_are_cellposes(drawn):
    import torch
    from cellpose import dynamics

    labels = drawn.instances[0].paint()
    labels[10:14, 10:40] = labels[10:40, 10:14] = labels.max() + 1  # an angle: its middle lies outside
    labels = relabel(labels)[0]
    theirs = dynamics.masks_to_flows_gpu(labels.astype(int), device=torch.device("cpu"))[0]
    np.testing.assert_allclose(flows.flows_of(labels), theirs, atol=1e-9)
    assert not flows.flows_of(0 * labels).any()


def test_heat_looked_up_as_on_a_gpu_is_that_of_the_sheets(drawn):
    labels = np.pad(relabel(drawn.instances[0].paint())[0], 1)
    labels[labels == 3] = 0  # numbers need not be without a gap
    places, on_sheets = np.flatnonzero(labels), heat.spread(labels)
    boxes = {k: box for k, box in enumerate(ndimage.find_objects(labels), 1) if box is not None}
    middles = np.array(list(heat.middles_of(labels, boxes).values()))
    times = 2 * max(sum(side.stop - side.start for side in box) + 2 for box in boxes.values())
    theirs = heat.looked_up(labels, places, middles, times, "cpu")
    np.testing.assert_allclose(on_sheets.ravel()[places], theirs, rtol=1e-10)
    assert len(boxes) > 5 and not on_sheets[labels == 0].any()


@pytest.mark.parametrize("size_px", [(3, 3), (40, 60), (1000, 1000)])
def test_masks_on_sheets_do_not_touch_and_all_are_there(drawn, size_px):
    labels = relabel(drawn.instances[0].paint())[0]
    boxes = dict(enumerate(ndimage.find_objects(labels), 1))
    sheets = list(heat.sheets_of(boxes, size_px))
    assert sorted(k for sheet in sheets for k, *_ in sheet) == list(boxes)
    for sheet in sheets:
        seen = np.zeros((300, 1200), int)
        for _, (tall, wide), row, column in sheet:
            seen[row - 1 : row + tall.stop - tall.start, column - 1 : column + wide.stop - wide.start] += 1
        assert seen.max() == 1, "a pixel lies between any two"


def test_flow_errors_are_cellposes(drawn):
    """But in the very middle of a mask that is its own mirror image, whose flow has no direction but that of rounding."""
    import torch
    from cellpose import dynamics

    labels = drawn.instances[0].paint()
    maps = flows.target_of(labels) + np.random.default_rng(0).normal(0, 0.5, (3, *labels.shape)).astype(np.float32)
    theirs = dynamics.flow_error(labels, maps[:2], torch.device("cpu"))[0]
    assert len(theirs) == labels.max() > 5
    np.testing.assert_allclose(flows.flow_errors(labels, maps), theirs, rtol=1e-9)
    assert flows.flow_errors(0 * labels, maps).size == 0


def test_the_least_area_is_found_said_and_written_down(specked, capsys):
    settings = {**unet.DEFAULTS, "diameter_px": DIAMETER_PX}
    found = unet_search.search_settings(None, specked, settings)
    assert found.settings["min_area_px"] > 49 and found.settings["cellprob_threshold"] == 0.0
    assert found.settings["flow_threshold"] == 0.4 and "diameter_of" not in found.settings
    assert found.card["score"] > found.card["score_at_defaults"] + 0.05
    assert found.card["images"] == 3 and found.card["cells"] == sum(len(truth) for _, truth in specked)
    assert found.card["settings"]["min_area_px"]["gain"] == pytest.approx(
        found.card["score"] - found.card["score_at_defaults"], abs=2e-4
    )
    told = capsys.readouterr().err
    assert "on 3 training images" in told and f"min_area_px {found.settings['min_area_px']}, not 15: +0." in told
    assert "cellprob_threshold 0, the default" in told
    only = unet_search.search_settings(None, specked, settings | {"min_area_px": 3}, ["flow_threshold"])
    assert list(only.settings) == ["flow_threshold"], "what is set stays"
    assert unet_search.search_settings(None, specked, settings, []) == ({}, {})


def test_the_same_whether_maps_are_kept_or_not(drawn, tmp_path):
    import torch

    from cellkit.models.map_cache import MapCache

    torch.manual_seed(0)
    network = CellposeUNet(widths=(4, 8, 12, 16)).eval()
    settings = {**unet.DEFAULTS, "diameter_px": DIAMETER_PX}
    grid = unet_search.grid_of(settings, ["diameter_of", "min_area_px"], [drawn.instances[0]], unet_search.GRID)
    without = unet_search.score_image(network, *drawn[0], settings, grid)
    for _ in range(2):
        cache = MapCache(network, tmp_path / FOLDER, 1.0)
        assert np.array_equal(unet_search.score_image(network, *drawn[0], settings, grid, cache), without)


# ---- the rule ------------------------------------------------------------------------------------------------------
def test_a_gain_that_images_share_is_taken_and_one_among_noise_is_not():
    shared = np.array([[0.5, 0.54], [0.7, 0.74], [0.2, 0.23]])
    noise = np.array([[0.5, 0.6], [0.7, 0.62], [0.2, 0.23]])
    assert nearest_to_default(shared) == (1,) and nearest_to_default(noise) == (0,)
    assert nearest_to_default(noise[:1]) == (1,), "a single image, and a large gain"
    assert nearest_to_default(np.array([[0.5, 0.5 + ONE_IMAGE]])) == (0,)


def test_the_fewest_settings_change():
    scores = np.full((3, 2, 3), 0.5)
    scores[:, 0, 1] = 0.6
    scores[:, 0, 2] = 0.62 + np.array([0.02, -0.02, 0.01])
    scores[:, 1, 1] = 0.62
    assert nearest_to_default(scores) in ((0, 1), (0, 2))
    scores[:, 0] = 0.5
    assert nearest_to_default(scores) == (1, 1)


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_the_rule_never_takes_what_is_worse_than_the_defaults(images, seed):
    scores = np.random.default_rng(seed).random((images, 2, 3, 4))
    place = nearest_to_default(scores)
    mean = scores.mean(axis=0)
    assert mean[place] >= mean[0, 0, 0]
    assert nearest_to_default(scores[:, :1, :1, :1]) == (0, 0, 0)
    order = np.random.default_rng(seed).permutation(images)
    assert nearest_to_default(scores[order]) == place, "the order of images changes nothing"


# ---- the diameter of an image ----------------------------------------------------------------------------------------
def test_an_image_has_a_diameter_of_its_own_where_it_differs_clearly(drawn):
    cells = drawn.instances[0]
    true_px = diameter_of([cells])
    assert own_diameter(cells, true_px * 1.05) == true_px * 1.05
    assert own_diameter(cells, true_px * 1.5) == pytest.approx(true_px)
    assert own_diameter(cells, true_px * 9) == true_px * 4.5, "not farther than half"
    assert own_diameter(cells[:4], true_px * 1.5) == true_px * 1.5, "four cells are few"


@pytest.fixture
def card(tmp_path):
    network = CellposeUNet(widths=(4, 8, 12, 16))
    config = {"diameter_px": 40.0, "min_area_px": 77, "normalise": [0.0, 100.0], "diameter_of": "image"}
    path = tmp_path / "mine.safetensors"
    return weights.save_checkpoint(path, network.state_dict(), unet.NAME, config=config | network.config)


def test_what_the_card_names_is_used_and_what_is_set_stays(card):
    used = unet.load(card).settings
    assert (used["min_area_px"], used["diameter_px"], used["diameter_of"]) == (77, 40.0, "image")
    assert tuple(used["normalise"]) == (0.0, 100.0)
    set_ = unet.load(card, unet.Settings(min_area_px=5, diameter_px=20.0, normalise=[1, 99])).settings
    assert (set_["min_area_px"], set_["diameter_px"], set_["diameter_of"]) == (5, 20.0, "batch")
    assert tuple(set_["normalise"]) == (1.0, 99.0)
    assert find_model(card).load().settings["diameter_of"] == "image"
    assert find_model(card, {"diameter_px": 25}).load().settings["diameter_of"] == "batch"
    assert find_model(card, {"diameter_px": 25, "diameter_of": "image"}).load().settings["diameter_of"] == "image"


def test_memory_is_asked_for_at_the_smallest_diameter_an_image_may_have(card):
    asked = [unet.load(card, settings).bytes_for((500, 500)) for settings in (None, unet.Settings(diameter_of="batch"))]
    assert asked[0] > 2 * asked[1]


def test_what_is_set_is_not_searched():
    alike, own = {"diameter_of": "batch"}, {"diameter_of": "image"}
    assert unet._searched(unet.TrainSettings(), alike) == list(unet_search.SEARCHED)
    assert unet._searched(unet.TrainSettings(), own) == ["diameter_of", *unet_search.SEARCHED]
    given = unet.TrainSettings(min_area_px=0, flow_threshold=0.0, diameter_of="image")
    assert unet._searched(given, own) == ["cellprob_threshold"]
    for wrong in ([99, 1], [0, 101], [1]):
        with pytest.raises(ValueError, match="normalise"):
            unet.TrainSettings(normalise=wrong)
