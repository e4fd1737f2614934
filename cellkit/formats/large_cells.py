"""Label images larger than the memory, read in stretches of rows: what is kept is the cells' runs, and no pixel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.labels import LARGEST_ID
from cellkit.cells.runs import merge_adjacent, merge_adjacent_of_each, runs_of, stable_order
from cellkit.errors import UserError
from cellkit.formats.label_images import LOSSLESS_TIFF, is_zarr_labels
from cellkit.formats.zarr_labels import ome_of

ROWS, LARGE_PX = 512, 2**26  # read at once; from this size on


@dataclass(frozen=True, eq=False)
class LargeCells:
    """The cells of a label image in ascending order of their numbers, as `Instances.from_labels` has them.

    Attributes
    ----------
    cells : Instances
    numbers : (N,) int64
    differing, background : float
        Share of neighbours in a row that differ, and of pixels that are background: see `cellkit.formats.labels.is_noise`.
    """

    cells: Instances
    numbers: np.ndarray
    differing: float
    background: float


def read_large_cells(path: Path) -> LargeCells | None:
    """Read the cells of a large label image (TIFF, or the labels of an OME-Zarr) in stretches of rows.

    Returns
    -------
    LargeCells or None
        None of one that is small, or that has to be looked at as a whole: with one number only, which may be a mask of where
        cells are; with the largest number of its type, which may be a border; of several planes; inverted or turned.

    Raises
    ------
    UserError
        A number that is no id.
    """
    with _opened(path) as labels:
        return None if labels is None else _cells_of(labels, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield a label image (H, W) of integers as a Zarr array; None where it has to be read as a whole, damaged ones too."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about extensions of the format that are not used here
        try:
            array = _array_in(path, stack)
        except Exception:  # whoever reads it as a whole says what is wrong with it
            array = None
        yield array if array is not None and _is_plain(array) else None


def _array_in(path: Path, stack: ExitStack) -> Any:
    """Return the array of a file, which stays open until `stack` ends; None of another kind of file."""
    import tifffile
    import zarr

    from cellkit.microscope.zarr_chunks import open_zarr_group

    if is_zarr_labels(path):
        group = open_zarr_group(path)
        return group[str(ome_of(group)["multiscales"][0]["datasets"][0]["path"])]
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return None
    file = stack.enter_context(tifffile.TiffFile(path))
    return zarr.open_array(file.aszarr(level=0), mode="r") if _is_plain_tiff(file) else None


def _is_plain_tiff(file: Any) -> bool:
    page, orientation = file.pages[0], file.pages[0].tags.get("Orientation")
    alone = len(file.series) == 1 and len(file.series[0].pages) == 1 and not file.series[0].is_multifile
    upright = orientation is None or int(orientation.value) == 1
    return alone and upright and int(page.compression) in LOSSLESS_TIFF and int(page.photometric) == 1


def _is_plain(array: Any) -> bool:
    return array.ndim == 2 and array.dtype.kind in "iu" and math.prod(array.shape) >= LARGE_PX


def _cells_of(labels: Any, path: Path) -> LargeCells | None:
    height, width = labels.shape
    starts, lengths, values, unknown = [], [], [], []
    differing = background = 0
    most = 0
    for top in range(0, height, ROWS):
        rows = np.asarray(labels[top : top + ROWS])
        least, most = int(rows.min()), max(most, int(rows.max()))
        if least < -1 or most > LARGEST_ID:
            raise UserError(
                f"{path} holds ids from {least} to {most}",
                f"ids are 0 (background) to {LARGEST_ID}, or -1 (not annotated)",
            )
        differing += int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))
        background += int(np.count_nonzero(rows == 0))
        begin, length, value = runs_of(rows)
        begin += top * width
        if least < 0:
            unknown.append(np.stack([begin, length], axis=1)[value < 0])
            begin, length, value = (part[value > 0] for part in (begin, length, value))
        for column, part in zip((starts, lengths, values), (begin, length, value), strict=True):
            column.append(part)
    begin, length, value = (np.concatenate(column) for column in (starts, lengths, values))
    order = stable_order(value)
    begin, length, value = begin[order], length[order], value[order]
    firsts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]]) if len(value) else np.zeros(0, np.int64)
    whole_type = labels.dtype.itemsize < 4 and labels.dtype.kind == "u" and most == np.iinfo(labels.dtype).max
    if len(firsts) == 1 or whole_type:
        return None
    runs = merge_adjacent_of_each(begin, length, np.r_[firsts, len(value)])
    cells = Instances.from_runs((height, width), *runs)
    if unknown:
        cells = replace(cells, unknown=np.stack(merge_adjacent(*np.concatenate(unknown).T), axis=1))
    shares = differing / max(height * (width - 1), 1), background / (height * width)
    return LargeCells(cells, value[firsts], *shares)
