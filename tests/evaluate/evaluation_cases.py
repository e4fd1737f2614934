"""Images, truth and predictions of two models, for the tests of the evaluation."""

import numpy as np
import pytest

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.evaluate.evaluation import (
    predictions_of,
)
from cellkit.formats.coco import write_results

SHAPE = (12, 16)

CLASSES = ("HEK", "N2a")


def truth_of(k):
    labels = np.zeros(SHAPE, int)
    labels[1:5, 1:7], labels[7:11, 2:8], labels[2:10, 10 : 12 + k] = 1, 2, 3
    return Instances.from_labels(labels, class_ids=[1, 2, 1 + k % 2])


def records(names, split):
    return [ImageRecord(n, f"images/{n}.png", *SHAPE, cell_type="mixed", group=f"g{n}", split=split) for n in names]


@pytest.fixture
def truths(tmp_path):
    made = {}
    for first, names, split in ((1, "ab", "val"), (4, "cd", "test")):
        cells = [truth_of(first + k) for k in range(len(names))]
        ids = [first + k for k in range(len(names))]
        made[split] = CellDataset(records(names, split), cells, CLASSES, tmp_path, ids)
    return made


@pytest.fixture
def images(tmp_path, truths):
    """All images of the run; image 3 is a training image."""
    known = truths["val"].records + records("x", "train") + truths["test"].records
    return CellDataset(known, [Instances.empty(SHAPE)] * 5, (), tmp_path, [1, 2, 3, 4, 5])


@pytest.fixture
def paths(tmp_path, truths):
    """A perfect model with classes, one that misses the third cell and knows no class, one that finds nothing."""
    ids = truths["val"].ids + truths["test"].ids
    cells = [x for truth in truths.values() for x in truth.instances]
    found = {
        "perfect": [x.with_scores([0.9, 0.8, 0.7]) for x in cells],
        "plain": [x[:2].with_classes(0) for x in cells],
        "nothing": [Instances.empty(SHAPE)] * 4,
    }
    return {f"predictions_{name}": write_results(tmp_path / f"{name}.json", ids, x) for name, x in found.items()}


@pytest.fixture
def predictions(paths, images):
    return predictions_of(paths, images)
