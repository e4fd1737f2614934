"""Anchor sizes of a detector from the cells that teach it: the boxes that its proposals begin from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.inputs import CELL_PX

ENDS = (0.02, 0.98)  # quantiles of the cells' sides that the sizes reach
ZOOM = (0.75, 1.25)  # of a crop, see `inputs.random_warp`
STEP = 1.5  # between the sizes of a level that no cell needs

Sizes = tuple[tuple[float, ...], ...]


def anchor_sizes(
    instances: Sequence[Instances], diameter_px: float, strides: Sequence[int], count: int, least: float
) -> Sizes:
    """Return anchor sizes at network scale for each level of a feature pyramid, from the boxes of labelled cells.

    They lie between the quantiles 0.02 and 0.98 of the square roots of the boxes' areas, widened by the zoom of a crop, evenly on
    a logarithmic scale. A level serves the sizes from `least` times its stride on, so that anchors are not further apart than a
    third or a fifth of a cell; below that the level before it does. A level that no cell reaches keeps sizes of its own.

    Parameters
    ----------
    instances : sequence of Instances
        Of the training images.
    diameter_px : float
        What is brought to `CELL_PX`.
    strides : sequence of int
        Of the levels that have anchors, the finest first (px).
    count : int
        Sizes of a level.
    least : float
        Strides that the smallest size of a level has, of all but the finest.

    Returns
    -------
    tuple of tuples of float
        In px; as many as levels, each of `count`.

    Raises
    ------
    ValueError
        There is no cell.

    Examples
    --------
    >>> cells = Instances.from_labels(np.kron(np.arange(1, 10).reshape(3, 3), np.ones((30, 30), int)))
    >>> anchor_sizes([cells], 30.0, (4, 8), 3, least=5.0)
    ((22.2, 27.4, 33.8), (40.0, 60.0, 90.0))
    """
    boxes = np.concatenate([cells.boxes_xywh for cells in instances])
    if not len(boxes):
        raise ValueError("there is no cell whose box could be measured")
    sides = np.sqrt(boxes[:, 2] * boxes[:, 3]) * CELL_PX / diameter_px
    low, high = np.quantile(sides, ENDS) * ZOOM
    starts = [least * stride for stride in strides[1:]]
    low = min(low, starts[0] / 2) if starts else low
    sizes = []
    for begin, end in zip([low, *starts], [*starts, np.inf], strict=True):
        top = min(high, end)
        if top > begin:
            step = (top / begin) ** (1 / count)
            level = begin * step ** (np.arange(count) + 0.5)
        else:
            level = begin * STEP ** np.arange(count)
        sizes.append(tuple(round(float(size), 1) for size in level))
    return tuple(sizes)
