"""`measure`: one row per cell of an image, with its size, shape, place and brightness in every channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.resize import instances_on
from cellkit.errors import UserError, counted
from cellkit.measure.intensity import Plane, brightness, corrected, of_channel
from cellkit.measure.neighbours import nearest_px, touching
from cellkit.measure.nuclei import nuclear_parts, nucleus_and_cytoplasm
from cellkit.measure.rows import Rows
from cellkit.measure.shape import shapes

if TYPE_CHECKING:
    import pandas as pd

# px -> the column with the same in um, and the power of the scale
IN_UM = {
    "area_px": ("area_um2", 2),
    "diameter_px": ("diameter_um", 1),
    "perimeter_px": ("perimeter_um", 1),
    "major_axis_px": ("major_axis_um", 1),
    "minor_axis_px": ("minor_axis_um", 1),
    "nearest_px": ("nearest_um", 1),
    "nucleus_area_px": ("nucleus_area_um2", 2),
}


def measure(
    cells: Instances,
    channels: Mapping[str, Plane | Callable[[], Plane]] | None = None,
    um_per_px: float = math.nan,
    *,
    classes: Sequence[str] = (),
    labels: Sequence[int] | np.ndarray | None = None,
    nuclei: Instances | None = None,
) -> pd.DataFrame:
    """Measure all cells of one image; the columns are those of `cellkit.measure.dictionary`.

    Parameters
    ----------
    cells : Instances
        They may overlap: each is measured as if it were alone.
    channels : mapping of name -> (H, W), optional
        The channels of the raw file, in its own values. A callable is called when its channel's turn comes, so that one is in
        memory at a time; see `cellkit.measure.intensity` for images beyond memory. Where a channel is of another size than
        the image of the cells, the cells are resized to it, object by object.
    um_per_px : float
        Side of a pixel of the image of the cells. nan: not known, and columns in um are nan.
    classes : sequence of str
        Class k is ``classes[k - 1]``; class 0 is "", one without a name its number.
    labels : (N,) int, optional
        The number of each cell in its label image; default 1, 2, ..., as `Instances.paint` writes them.
    nuclei : Instances, optional
        The nuclei of the same image: adds the columns that set nucleus against cytoplasm.

    Returns
    -------
    pandas.DataFrame
        One row per cell, in order; no row for an image without cells.

    Raises
    ------
    UserError
        Cells that are no Instances or of which only the box is known, another number of labels, a scale that is not above 0,
        nuclei of another size, a channel that is not (H, W) numbers, or channels whose columns would have one name.

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 1, 0], [1, 1, 2]]))
    >>> table = measure(cells, {"DAPI": np.array([[10, 20, 3], [30, 40, 99]], np.uint16)}, um_per_px=0.5)
    >>> table[["label", "area_px", "area_um2", "neighbours", "mean_DAPI", "mean_corrected_DAPI"]].values.tolist()
    [[1.0, 4.0, 1.0, 1.0, 25.0, 22.0], [2.0, 1.0, 0.25, 1.0, 99.0, 96.0]]
    """
    import pandas as pd

    if not isinstance(cells, Instances):
        raise UserError(
            f"cells are {type(cells).__name__}", "give Instances, of a label image: Instances.from_labels(labels)"
        )
    if labels is not None and len(labels) != len(cells):
        raise UserError(
            f"there are {counted(len(labels), 'label')} of {counted(len(cells), 'cell')}", "give one for each"
        )
    if cells.boxes_only:
        raise UserError("of these cells only boxes are known, which have no size or shape", "give masks of the cells")
    if not (math.isnan(um_per_px) or 0 < um_per_px < math.inf):
        raise UserError(
            f"um_per_px is {um_per_px}", "give the side of a pixel in um, above 0; nan where it is not known"
        )
    rows = Rows.of(cells)
    found = {
        "label": np.arange(1, len(cells) + 1) if labels is None else np.asarray(labels, np.int64),
        "class": [class_name(number, classes) for number in cells.class_ids.tolist()],
        "score": cells.scores,
        **shapes(cells, rows),
        "neighbours": touching(rows, cells.shape[1]),
    }
    found["nearest_px"] = nearest_px(found["centroid_x_px"], found["centroid_y_px"])
    parts = None
    if nuclei is not None:
        found["nuclei"], parts = nuclear_parts(cells, nuclei)
        found["nucleus_area_px"] = parts.areas_px
    found = with_um(found, um_per_px) | {"um_per_px": np.full(len(cells), um_per_px)}
    for name, plane in (channels or {}).items():
        with of_channel(name):
            measured = _of_channel(cells, parts, plane)
        own = {f"{column}_{name}": values for column, values in measured.items()}
        if twice := sorted(own.keys() & found.keys()):
            raise UserError(f"two channels have a column {twice[0]}: '{name}' and another", "rename one of the two")
        found |= own
    return pd.DataFrame(found)


def class_name(number: int, classes: Sequence[str]) -> str:
    """Return the name of a class: "" for 0, and the number of one that has no name."""
    return classes[number - 1] if 0 < number <= len(classes) else str(number) if number else ""


def with_um(found: Mapping[str, np.ndarray], um_per_px: float) -> dict[str, np.ndarray]:
    """Return the columns with those in um after the same in px."""
    columns = {}
    for name, values in found.items():
        columns[name] = values
        if name in IN_UM:
            column, power = IN_UM[name]
            columns[column] = values * um_per_px**power
    return columns


def _of_channel(cells: Instances, parts: Instances | None, plane: Plane | Callable[[], Plane]) -> dict[str, np.ndarray]:
    """Return what one channel says of each cell."""
    plane = plane() if callable(plane) else plane
    if len(plane.shape) != 2 or 0 in plane.shape:
        raise UserError(f"a channel is of shape {tuple(plane.shape)}", "give (H, W) values for each channel")
    cells = instances_on(cells, plane.shape)
    parts = None if parts is None else instances_on(parts, plane.shape)
    found = brightness(cells, plane, parts)
    compared = {} if parts is None else nucleus_and_cytoplasm(found, cells, parts)
    return {**found.cells, **corrected(found.cells, cells.areas_px, found.background), **compared}
