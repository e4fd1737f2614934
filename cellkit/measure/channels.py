"""The channels of a raw file, in its own values, one in memory at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cellkit.cells.windows import Window, taken
from cellkit.errors import UserError, readable
from cellkit.machine import check_memory
from cellkit.microscope.convert import Conversion, check_projection, chosen_channels, project
from cellkit.microscope.file_info import Opened
from cellkit.microscope.windows import plane_array


def raw_channels(
    opened: Opened, scene: int = 0, time: int = 0, conversion: Conversion | None = None
) -> dict[str, Callable[[], np.ndarray]]:
    """Return what reads each channel of one frame, (H, W) in the file's own type, under the channel's name.

    Where the memory does not hold a channel, it is read in stretches of rows.

    Parameters
    ----------
    conversion : Conversion, optional
        Its `projection` says what becomes of the z planes; "focus" is the plane that is sharpest in the channels that it
        names, where it names none in all. Default the brightest.

    Raises
    ------
    UserError
        A scene of which no picture can be made, a plane it lacks, or too little memory.
    """
    info, series = opened.info, opened.info.series[scene]
    projection = "max" if conversion is None else conversion.projection
    if series.problem:
        raise UserError(series.problem, series.remedy)
    check_projection(projection, series, info.path.name)
    pixels, size = series.size("Y") * series.size("X"), np.dtype(series.dtype).itemsize
    windowed = False
    try:
        check_memory(info.path, pixels * (8 + size if projection == "mean" else 3 * size), "measuring the cells of")
    except UserError:
        if opened.window is None or (projection == "focus" and series.size("Z") > 1):
            raise
        windowed = True
    if projection == "focus":
        named = conversion.names_channels
        chosen = set(chosen_channels(info, scene, conversion).values()) if named else range(len(series.channels))
        projection = projection_of(project(opened, scene, time, sorted(chosen), "focus")[1], 0)
    names = column_names([channel.name for channel in series.channels])
    read = _rows if windowed else _plane
    return {name: partial(read, opened, scene, time, k, projection) for k, name in enumerate(names)}


class Rows:
    """A channel (H, W) larger than the memory: a slice of its rows is read when it is asked for."""

    def __init__(self, array: Any):
        self.array, self.shape = array, array.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return the rows of a slice, (h, W)."""
        first, last, _ = rows.indices(self.shape[0])
        return taken(self.array, Window(first, 0, last, self.shape[1]))


def _rows(opened: Opened, scene: int, time: int, channel: int, projection: str | int) -> Rows:
    return Rows(plane_array(opened, scene, time, channel, projection))


def _plane(opened: Opened, scene: int, time: int, channel: int, projection: str | int) -> np.ndarray:
    return project(opened, scene, time, [channel], projection)[0][channel]


def column_names(names: list[str]) -> list[str]:
    """Return what channels are called in a table: by their names, those without one or with another's by their number too.

    Examples
    --------
    >>> column_names(["DAPI", "", "GFP", "GFP"])
    ['DAPI', 'channel_1', 'GFP_2', 'GFP_3']

    No two are called alike, and "corrected_GFP" not as the corrected mean of GFP is:

    >>> column_names(["GFP_1", "GFP", "GFP"]), column_names(["GFP", "corrected_GFP"])
    (['GFP_1', 'GFP_1_1', 'GFP_2'], ['GFP', 'corrected_GFP_1'])
    """
    plain = [re.sub(r"\s+", " ", readable(name)).strip() for name in names]
    often = Counter(plain)
    own = {name for name in plain if name and often[name] == 1 and _corrected_of(name) not in often}
    found: list[str] = []
    for k, name in enumerate(plain):
        column = name if name in own else f"{name or 'channel'}_{k}"
        while column in found or (column in own and column != name):
            column += f"_{k}"
        found.append(column)
    return found


def _corrected_of(name: str) -> str | None:
    """Return the channel whose corrected mean would be called as the mean of this one, if any."""
    return name.removeprefix("corrected_") if name.startswith("corrected_") else None


def projection_of(planes: str, otherwise: str | int) -> str | int:
    """Return the projection that a record's `planes` tell: the plane in focus is the one that the picture shows.

    Examples
    --------
    >>> projection_of("z max of 5", "focus"), projection_of("z 3 (sharpest of 5)", "focus"), projection_of("", "max")
    ('max', 3, 'max')
    """
    found = re.match(r"z (max|mean|\d+)\b", planes)
    if found is None:
        return otherwise
    return int(found[1]) if found[1].isdigit() else found[1]
