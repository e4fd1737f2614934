"""Pictures and helpers that the tests of figures share."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cellkit.cells.instances import Instances


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def squares(*boxes, shape=(40, 60), class_ids=None) -> Instances:
    """Objects that are rectangles (top, left, bottom, right)."""
    labels = np.zeros(shape, np.int32)
    for k, (top, left, bottom, right) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = k
    return Instances.from_labels(labels, class_ids)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def painted(ax, k: int) -> np.ndarray:
    """The k-th picture that lies on the Axes, (H, W, ...) uint8."""
    return np.asarray(ax.images[k].get_array())


GREY, COLOUR = np.full((40, 60), 90, np.uint8), np.full((40, 60, 3), 90, np.uint8)
