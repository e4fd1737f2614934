"""How bright: the values of one channel in every cell, and between the cells.

A channel is read once, in stretches of rows, so that it may be larger than the memory: an array, a memory map, a Zarr array,
anything of two dimensions that gives an array for a slice of rows. The numbers do not depend on how it is cut. Values of up to
16 bits are summed as whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import ranges
from cellkit.errors import StopAll, UserError
from cellkit.measure.rows import sums_of_each

BLOCK_PX = 2**20  # of cells at once: what the processor's cache holds
WINDOW_PX = 2**24  # of the channel at once, but for a cell that is taller
MEASURES = ("mean", "median", "max", "sd", "integrated")
NUMBERS_FIRST = "replace them by a number, or give the file without that channel"
IN_CELL = "a cell has pixels that are no numbers (nan or infinite)", NUMBERS_FIRST
OUTSIDE = "pixels outside the cells are no numbers (nan or infinite)", NUMBERS_FIRST
MOST_CELLS = 2**15  # at once: their number and a value of 16 bits share 32 bits


class Plane(Protocol):
    """One channel: `shape` is (H, W), and a slice of its rows gives an array."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: Any) -> Any:
        """Return the rows of a slice, (h, W)."""


@dataclass(frozen=True, eq=False)
class Brightness:
    """What one channel holds.

    Attributes
    ----------
    cells : dict of name -> (N,) float64
        mean, median, max, sd and integrated value of each cell; nan for a cell without pixels.
    parts : dict of name -> (N,) float64, optional
        The same of a part of each cell, where parts were given.
    background : float
        Median of the pixels that are annotated and belong to no cell; nan where there is none.
    """

    cells: dict[str, np.ndarray]
    parts: dict[str, np.ndarray] | None
    background: float


@contextmanager
def of_channel(name: str) -> Iterator[None]:
    """Name the channel in what is said of its values.

    Raises
    ------
    UserError
        What the block raised, with the channel before it.

    Examples
    --------
    >>> with of_channel("GFP"):
    ...     raise UserError(*OUTSIDE)
    Traceback (most recent call last):
    cellkit.errors.UserError: channel GFP: pixels outside the cells are no numbers (nan or infinite)
    replace them by a number, or give the file without that channel
    """
    try:
        yield
    except StopAll:
        raise
    except UserError as error:
        raise UserError(f"channel {name}: {error.problem}", error.remedy) from error


def brightness(cells: Instances, plane: Plane, parts: Instances | None = None) -> Brightness:
    """Measure one channel in cells and between them, in one pass from the top of the image down.

    Parameters
    ----------
    cells : Instances
        They may overlap: a pixel counts in every cell that has it.
    plane : (H, W)
        Of the same size.
    parts : Instances, optional
        A part of each cell, such as its nucleus.

    Raises
    ------
    UserError
        Values that are no numbers (nan or infinite).

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 1, 2], [1, 0, 2]]))
    >>> found = brightness(cells, np.array([[1, 2, 500], [6, 9, 700]], np.uint16))
    >>> {name: values.tolist() for name, values in found.cells.items() if name != "sd"}, found.background
    ({'mean': [3.0, 600.0], 'median': [2.0, 600.0], 'max': [6.0, 700.0], 'integrated': [9.0, 1200.0]}, 9.0)
    """
    sets = [cells] if parts is None else [cells, parts]
    found = [{name: np.full(len(cells), np.nan) for name in MEASURES} for _ in sets]
    outside, width = _Outside(cells), cells.shape[1]
    for chosen, first, last in _blocks(cells):
        outside.read_to(plane, first)
        window = np.ascontiguousarray(plane[first:last])
        outside.take(window[max(outside.done - first, 0) :])
        flat = window.reshape(-1)
        for own, objects in zip(found, sets, strict=True):
            some = chosen[objects.areas_px[chosen] > 0]
            block = objects[some]
            values = flat[ranges(block.starts - first * width, block.lengths)]
            for name, value in _of_each(values, np.r_[0, np.cumsum(block.areas_px)]).items():
                own[name][some] = value
    outside.read_to(plane, cells.shape[0])
    return Brightness(found[0], found[1] if len(found) > 1 else None, outside.median())


def _blocks(cells: Instances) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield positions of cells and the rows that hold them (first, last + 1), from the top of the image down."""
    top, height = cells.boxes_xywh[:, 1], cells.boxes_xywh[:, 3]
    order = np.lexsort((np.arange(len(cells)), top))
    order = order[cells.areas_px[order] > 0]
    tallest = max(1, WINDOW_PX // max(cells.shape[1], 1))
    while len(order):
        head = order[:MOST_CELLS]
        bottom = np.maximum.accumulate(top[head] + height[head])
        fits = (np.cumsum(cells.areas_px[head]) <= BLOCK_PX) & (bottom - top[head[0]] <= tallest)
        count = max(1, len(head) if fits.all() else int(fits.argmin()))
        chosen = head[:count]
        yield chosen, int(top[chosen[0]]), int(bottom[count - 1])
        order = order[count:]


def _of_each(values: np.ndarray, bounds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the statistics of each part ``bounds[i]:bounds[i + 1]`` of the values; no part is empty."""
    if len(bounds) < 2:
        return {}
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if _is_small(values):
        return _of_small_integers(values, bounds)
    if values.dtype.kind not in "iuf":
        raise UserError(f"the values of a channel are {values.dtype}", "give whole or real numbers")
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UserError(*IN_CELL)
    count = np.diff(bounds)
    total = np.add.reduceat(numbers, bounds[:-1])
    owner = np.repeat(np.arange(len(count)), count)
    off = numbers - (total / count)[owner]
    in_order = numbers[np.lexsort((numbers, owner))]
    return {
        "mean": total / count,
        "median": (in_order[bounds[:-1] + (count - 1) // 2] + in_order[bounds[:-1] + count // 2]) / 2,
        "max": in_order[bounds[1:] - 1],
        "sd": np.sqrt(np.add.reduceat(off * off, bounds[:-1]) / count),
        "integrated": total,
    }


def _of_small_integers(values: np.ndarray, bounds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the same of values of 8 or 16 bits: sums are exact, and all cells are sorted as one array of 32 bits."""
    lowest = int(np.iinfo(values.dtype).min)
    shifted = (values.astype(np.int32) - lowest).astype(np.uint32)
    count = np.diff(bounds)
    total = sums_of_each(shifted, bounds)
    squares = sums_of_each(shifted * shifted, bounds)
    whole = (2 * total + count.astype(np.uint64)) // (2 * count.astype(np.uint64))  # nearest to the mean
    left = (total - count.astype(np.uint64) * whole).astype(np.int64) / count  # wraps to the small number that it is
    about = squares - 2 * whole * total + count.astype(np.uint64) * whole * whole
    keys = np.repeat(np.arange(len(count), dtype=np.uint32) << np.uint32(16), count) | shifted
    keys.sort()
    at = lambda places: (keys[places] & np.uint32(0xFFFF)).astype(np.float64) + lowest  # noqa: E731
    return {
        "mean": whole.astype(np.float64) + left + lowest,
        "median": (at(bounds[:-1] + (count - 1) // 2) + at(bounds[:-1] + count // 2)) / 2,
        "max": at(bounds[1:] - 1),
        "sd": np.sqrt(np.maximum(about / count - left * left, 0)),
        "integrated": total.astype(np.float64) + count * float(lowest),
    }


# ---- between the cells ---------------------------------------------------------------------------------------------
class _Outside:
    """The pixels that belong to no cell, row after row: how often each value occurs, or the values where these are long.

    What is not annotated belongs to nobody: it may hold cells, and is left out.
    """

    def __init__(self, cells: Instances):
        self.starts, lengths = _uncovered(cells)
        self.ends = self.starts + lengths
        self.width, self.done = cells.shape[1], 0
        self.counts: np.ndarray | None = None
        self.lowest = 0
        self.loose: list[np.ndarray] = []

    def read_to(self, plane: Plane, row: int) -> None:
        """Read the rows up to this one that were not read yet."""
        step = max(1, BLOCK_PX // max(self.width, 1))
        while self.done < row:
            self.take(np.ascontiguousarray(plane[self.done : min(self.done + step, row)]))

    def take(self, rows: np.ndarray) -> None:
        """Take the next rows, (h, W)."""
        step = max(1, BLOCK_PX // max(self.width, 1))
        for place in range(0, len(rows), step):
            self._count(rows[place : place + step])

    def _count(self, rows: np.ndarray) -> None:
        low, high = self.done * self.width, (self.done + len(rows)) * self.width
        self.done += len(rows)
        begin, end = (
            np.searchsorted(self.ends, low, "right"),
            np.searchsorted(self.starts, high, "left"),
        )
        if begin == end:
            return
        begins = np.maximum(self.starts[begin:end], low) - low
        ends = np.minimum(self.ends[begin:end], high) - low
        gaps = np.empty(2 * (end - begin) + 1, np.int64)
        gaps[1::2], gaps[::2] = ends - begins, np.r_[begins, high - low] - np.r_[0, ends]
        values = rows.reshape(-1)[np.repeat(np.arange(len(gaps)) % 2 == 1, gaps)]
        if values.dtype == bool:
            values = values.astype(np.uint8)
        if _is_small(values):
            self.lowest = int(np.iinfo(values.dtype).min)
            own = np.bincount(values.astype(np.int32) - self.lowest, minlength=1 << 8 * values.dtype.itemsize)
            self.counts = own if self.counts is None else self.counts + own
        else:
            self.loose.append(values)

    def median(self) -> float:
        """Return the median of what was taken; nan where that is nothing."""
        if self.counts is not None:
            return _median_of(self.counts) + self.lowest
        if not self.loose:
            return np.nan
        values = np.concatenate(self.loose).astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(*OUTSIDE)
        return float(np.median(values))


def _is_small(values: np.ndarray) -> bool:
    """Tell whether values are whole numbers of 8 or 16 bits."""
    return values.dtype.kind in "iu" and values.dtype.itemsize <= 2


def _uncovered(cells: Instances) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and lengths of the runs of pixels that are annotated and belong to no cell."""
    starts = np.concatenate([cells.starts, cells.unknown[:, 0]])
    ends = starts + np.concatenate([cells.lengths, cells.unknown[:, 1]])
    order = np.argsort(starts, kind="stable")
    begins = np.r_[0, np.maximum.accumulate(ends[order])]
    ends = np.r_[starts[order], cells.shape[0] * cells.shape[1]]
    free = ends > begins
    return begins[free], (ends - begins)[free]


def _median_of(counts: np.ndarray) -> float:
    """Return the median of values of which ``counts[v]`` times v occurs."""
    below, total = np.cumsum(counts), int(counts.sum())
    middle = np.searchsorted(below, [(total - 1) // 2, total // 2], "right")
    return float(middle.mean())


def corrected(found: dict[str, np.ndarray], area_px: np.ndarray, level: float) -> dict[str, np.ndarray]:
    """Return the mean and the integrated value less a background `level`, which every pixel of a cell is taken to have."""
    return {
        "background": np.full(len(area_px), level),
        "mean_corrected": found["mean"] - level,
        "integrated_corrected": found["integrated"] - level * area_px,
    }
