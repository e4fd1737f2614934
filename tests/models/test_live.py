"""A setting moved on an image that the network has seen: what a new prediction finds, at once."""

from collections import Counter

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.models import cellpose_unet
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.live import Live, Range, Reading, classes_beneath, classified, fixed
from cellkit.predict.joined import fuse_models
from cellkit.predict.model import find_model

TWO = Instances.from_labels(np.array([[1, 1, 1, 2, 2, 0]]), class_ids=[2, 1])


@pytest.fixture(scope="module")
def starter(drawn):
    """The light starter: the image, its function from changes to a reading, and how often the network ran."""
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        whole = cellpose_unet.maps_to_read
        patch.setattr(cellpose_unet, "maps_to_read", lambda *a, **k: runs.append(1) or whole(*a, **k))
        image = drawn.image(0)
        read = find_model("starter_light").live().look(image)
        yield image, read, runs


@pytest.mark.parametrize("changed", [{}, {"cellprob_threshold": -1.5}, {"flow_threshold": 0.1}, {"min_area_px": 500}])
def test_thresholds_are_moved_without_the_network(starter, changed):
    image, read, runs = starter
    moved = read(changed, Counter(), False)
    (found,) = find_model("starter_light", changed).load()([image])
    assert moved == Reading(found) and len(found) > 3
    assert len(runs) == 1


def test_a_quick_look_is_nearly_right_and_says_that_it_is_not_exact(starter):
    image, read, _ = starter
    changed = {"cellprob_threshold": 0.7}
    first, quick = read({}, Counter(), False), read(changed, Counter(), True)
    exact = read(changed, Counter(), False)
    assert (quick.exact, exact.exact) == (False, True)
    inside = lambda cells: cells.paint() > 0  # noqa: E731
    assert (inside(quick.cells) ^ inside(exact.cells)).sum() < 0.02 * inside(exact.cells).sum()
    assert inside(quick.cells).sum() < inside(first.cells).sum()
    assert read(changed, Counter(), True).exact, "what was followed is kept"


def test_a_model_of_which_nothing_can_be_moved_finds_its_cells_once():
    asked = []

    def find(image, left_out):
        asked.append(image.shape)
        left_out["too small"] += 3
        return TWO

    live = fixed(Segmenter(find, {"min_area_px": 5}))
    read, told = live.look(np.zeros((1, 6, 3), np.uint8)), Counter()
    assert [read({}, told, quick) for quick in (False, True)] == [(TWO, True)] * 2
    assert (len(asked), live.ranges, told) == (1, {}, {"too small": 6})


def test_a_model_of_models_finds_what_it_finds_elsewhere(drawn):
    fused, image = fuse_models(["threshold", "threshold"]), drawn.image(0)
    live = fused.live()
    (found,) = fused.load()([image])
    assert live.look(image)({}, Counter(), True) == (found, True) and len(found) and not live.ranges


def test_a_quick_look_takes_the_classes_of_the_cells_beneath():
    halves = Instances.from_labels(np.array([[0, 1, 1, 1, 2, 3]]))
    cells = {False: TWO.with_classes(0), True: halves}
    live = Live(lambda image: lambda changed, left_out, quick: Reading(cells[quick]), {}, {"s": Range(0, 1, 0.1)})
    asked = []
    read = classified(live, lambda image, found: asked.append(1) or found.with_classes([2, 1]))
    read = read.look(np.zeros((1, 6, 3), np.uint8))
    assert read({}, Counter(), False) == (TWO, True)
    quick = read({}, Counter(), True)
    assert quick == (halves.with_classes([2, 1, 0]), False) and len(asked) == 1
    assert classes_beneath(Instances.empty((1, 6)), TWO).tolist() == []
