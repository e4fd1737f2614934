"""Small label images as two sides, for the tests of comparisons."""

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.commands.comparison import score_sides
from cellkit.formats.coco import write_coco
from cellkit.formats.label_images import write_labels
from cellkit.formats.sides import match_sides

CLASSES = ("HEK", "N2a")


def cells(*rows: str, class_ids=None, scores=None) -> Instances:
    """Objects drawn as digits: cells("1102", "1102")."""
    return Instances.from_labels(np.array([[int(c) for c in row] for row in rows]), class_ids, scores)


A = cells("11022", "11022", "00000", class_ids=[1, 2])

B = cells("00111", "00111", class_ids=[2])

RECORDS = [
    ImageRecord("a", "images/a.png", 3, 5, cell_type="mixed", split="test"),
    ImageRecord("b", "images/b.png", 2, 5, cell_type="N2a", split="test"),
]


@pytest.fixture
def truth(tmp_path):
    """A COCO file of two images, numbered 7 and 9."""
    return write_coco(tmp_path / "truth.json", RECORDS, [A, B], CLASSES, ids=[7, 9])


def labels_at(folder, **images):
    for name, found in images.items():
        write_labels(folder / f"{name}.tif", found.paint())
    return folder


def kaggle_of(truth, found, **how) -> float:
    sides = match_sides(truth, found, **how)
    return score_sides(*sides, conventions=["kaggle"], bootstrap=0)["conventions"]["kaggle"]["score"]
