"""Cells that the tests of labelling tools' files share."""

import numpy as np
import pytest
from conftest import write_png
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError

CLASSES = ("HEK", "N2a, é")

TWO = np.array([[1, 1, 0, 0, 2], [1, 1, 0, 2, 0], [0, 0, 0, 2, 2]])


def two(**kwargs):
    return Instances.from_labels(TWO, **{"class_ids": [2, 1], **kwargs})


@st.composite
def cells(draw, overlapping=True):
    """Some objects with class and score: scattered pixels, so holes, pieces, corners and single pixels abound."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    if overlapping:
        masks = draw(hnp.arrays(bool, (draw(st.integers(0, 4)), *shape)))
        found = Instances.from_masks(masks, shape)
    else:
        found = Instances.from_labels(draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 4))))
    found = found[found.areas_px > 0]
    count = len(found)
    ids = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    scores = draw(st.lists(st.sampled_from([1.0, 0.5, 0.123456789]), min_size=count, max_size=count))
    return found.with_classes(ids).with_scores(scores)


def refused(read, *arguments, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        read(*arguments, **kwargs)
    assert str(arguments[0]) in str(error.value), "the file is named"
    return str(error.value)


# ---- label pictures and folders ------------------------------------------------------------------------------------


def records(*names):
    return [ImageRecord(name, f"images/{name}.png", 3, 5) for name in names]


@pytest.fixture
def pictures(tmp_path):
    for name in ("a", "b"):
        write_png(tmp_path / f"pictures/{name}.png", np.full((3, 5, 3), 9, np.uint8))
    return tmp_path / "pictures"
