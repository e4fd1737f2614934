"""The cells of an image larger than the memory, measured strip by strip: each cell whole, every number as of the whole image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.windows import BLOCK_PX, Window, blocks, taken
from cellkit.errors import UserError
from cellkit.measure.intensity import OUTSIDE, brightness, corrected, of_channel
from cellkit.measure.neighbours import nearest_px, touching
from cellkit.measure.rows import Rows
from cellkit.measure.shape import shapes
from cellkit.measure.table import class_name, with_um
from cellkit.microscope.light import Light

if TYPE_CHECKING:
    import pandas as pd

Strip = tuple[Window, np.ndarray, np.ndarray]  # of full width; the numbers of its cells; the label image in it


def measure_large(
    strips: Callable[[], Iterable[Strip]],
    labels: Any,
    channels: Mapping[str, Any],
    um_per_px: float,
    scores: np.ndarray,
    class_ids: np.ndarray,
    classes: Sequence[str] = (),
) -> pd.DataFrame:
    """Measure the cells of a label image; the table is that of `cellkit.measure.table.measure`.

    Parameters
    ----------
    strips : callable
        Gives the strips of the label image, see `cellkit.predict.large.strips_of`.
    labels : zarr.Array, (H, W) int
        0 = background.
    channels : mapping of name -> dask.array.Array, (H, W)
        In the values of the file.
    scores, class_ids : (N,)
        Of the cells 1 to N.
    classes : sequence of str
        Class k is ``classes[k - 1]``.

    Returns
    -------
    pandas.DataFrame
        The background of a channel of more than 16 bits is the median of at most 65,536 steps of its values.

    Raises
    ------
    UserError
        A channel with values that are no numbers (nan or infinite).
    """
    import pandas as pd

    shape = tuple(labels.shape)
    parts = [_of_strip(strip, shape, channels) for strip in strips()]
    parts = parts or [_of_strip((Window(0, 0, 1, shape[1]), np.zeros(0, np.int64), labels[:1]), shape, channels)]
    found = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    numbers = found["label"]
    about = {"class": [class_name(k, classes) for k in class_ids[numbers - 1].tolist()], "score": scores[numbers - 1]}
    found = {"label": numbers, **about, **{name: values for name, values in found.items() if name != "label"}}
    found["nearest_px"] = nearest_px(found["centroid_x_px"], found["centroid_y_px"])
    found = with_um(found, um_per_px) | {"um_per_px": np.full(len(numbers), um_per_px)}
    for name, plane in channels.items():
        of_cells = {column: np.concatenate([part[1][name][column] for part in parts]) for column in parts[0][1][name]}
        with of_channel(name):
            level = _background(plane, labels)
        own = of_cells | corrected(of_cells, found["area_px"], level)
        found |= {f"{column}_{name}": values for column, values in own.items()}
    return pd.DataFrame(found)


def _of_strip(
    strip: Strip, shape: tuple[int, int], channels: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Return the columns of shape of the cells of a strip, and those of each channel."""
    window, numbers, values = strip
    every, present = Instances.from_labels(values), np.unique(values[values > 0])
    own = np.searchsorted(present, numbers)
    cells = every[own]
    placed = Instances.from_runs(shape, cells.starts + window.top * shape[1], cells.lengths, cells.offsets)
    found = {"label": numbers, **shapes(placed, Rows.of(placed))}
    found["neighbours"] = touching(Rows.of(every), shape[1])[own]
    lit = {}
    for name, plane in channels.items():
        with of_channel(name):
            lit[name] = brightness(cells, taken(plane, window)).cells
    return found, lit


def _background(plane: Any, labels: Any) -> float:
    """Return the median of the pixels of a channel that belong to no cell; nan where there is none."""
    total: list[Light] = []
    for window, values in blocks(plane, BLOCK_PX):
        outside = values[np.asarray(labels[window.slices]) == 0]
        if outside.dtype.kind == "f" and not np.isfinite(outside).all():
            raise UserError(*OUTSIDE)
        if outside.size:
            total = [Light.sum([*total, Light.of(outside)])]
    return total[0].percentiles((50,))[0] if total else math.nan
