"""Label images of one row and cells that may overlap, for the tests of scores."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peers import coco_curves, coco_data, mean_defined

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.scores.iou import overlaps_of_labels

quick = settings(max_examples=100, deadline=None)


def strip(*ids):
    """A label image of one row."""
    return np.array([ids])


def spans(width, *ranges_, classes=None, scores=None):
    """Instances in a 1 x width image, each a (start, stop) span; they may overlap."""
    masks = []
    for start, stop in ranges_:
        mask = np.zeros((1, width), bool)
        mask[0, start:stop] = True
        masks.append(mask)
    return Instances.from_masks(masks, (1, width), classes, scores)


def one(truth, found):
    return [overlaps_of_labels(np.asarray(truth), np.asarray(found))]


def ap_of(package, truth, found, most=100, first_id=1):
    """Mean AP of one image in pycocotools or faster-coco-eval."""
    return mean_defined(coco_curves(package, *coco_data([truth], [found], first_id=first_id), most)[0])


# ---- strategies ----------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 7), st.integers(1, 9))


@st.composite
def label_pairs(draw, high=5):
    shape = draw(shapes)
    truth = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, high), fill=st.just(0)))
    if draw(st.booleans()):
        found = np.where(draw(hnp.arrays(bool, shape)), truth, 0)
    else:
        found = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, high)))
    return truth, found


@st.composite
def boxes(draw, shape, most=7, classes=1):
    """Instances made of rectangles that may overlap; scores in tenths, so that they tie."""
    masks = []
    for _ in range(draw(st.integers(0, most))):
        y, x = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        mask = np.zeros(shape, bool)
        mask[y : y + draw(st.integers(1, 4)), x : x + draw(st.integers(1, 5))] = True
        masks.append(mask)
    n = len(masks)
    ids = draw(st.lists(st.integers(1, classes), min_size=n, max_size=n))
    tenths = draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
    return Instances.from_masks(masks, shape, ids, np.array(tenths) / 10)


@st.composite
def overlapping_pairs(draw, classes=1):
    shape = draw(st.tuples(st.integers(2, 7), st.integers(2, 9)))
    truth = draw(boxes(shape, classes=classes))
    found = draw(boxes(shape, classes=classes))
    if len(truth) and draw(st.booleans()):  # make hits likely: some predictions are truths
        copied = truth[draw(st.lists(st.integers(0, len(truth) - 1), max_size=5))]
        found = Instances.concatenate([found, copied])
    return truth, found


# ---- the table -----------------------------------------------------------------------------------------------------


def a_record(image_id, cell_type="HEK", group="a", split="val"):
    return ImageRecord(image_id, f"images/{image_id}.png", 1, 40, cell_type=cell_type, group=group, split=split)


def a_set():
    """Three images: all found, one of two found, nothing in it."""
    truths = [spans(40, (0, 5), classes=[1]), spans(40, (0, 5), (10, 30), classes=[1, 2]), Instances.empty((1, 40))]
    founds = [truths[0], spans(40, (10, 30), (31, 33), classes=[2, 1]), Instances.empty((1, 40))]
    records = [a_record("a"), a_record("b", "N2a", "b"), a_record("c", "N2a", "b")]
    return truths, founds, records
