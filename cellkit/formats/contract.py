"""What a format is asked and answers, see `cellkit.formats.any`: how to read, what one file holds, what to write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import Quarantined

SIZE_REMEDY = "give the folder of the images: --images DIR (to measure and view: the image of that name)"


@dataclass(frozen=True)
class Reading:
    """How something is to be read; a format takes what it needs.

    Attributes
    ----------
    of : CellDataset, optional
        The images that a results list or a CSV speaks of.
    profile : str, optional
        Whose competition's a CSV is: how it counts pixels.
    shapes : mapping of image id -> (H, W), optional
        The images of a CSV, ROI zips or GeoJSON, where neither `of` nor the file gives them.
    common : bool
        Leave out the entries of a results list on images that `of` lacks.
    convention : str, optional
        Whose COCO file it is, see `cellkit.formats.coco_dialects`.
    classes : tuple of str
        For ``_seg.npy`` files that the Cellpose GUI saved: the classes in the order in which they were written.
    pieces : {"keep", "largest", "split"}, optional
        What a cell of several pieces in a label image is, see `cellkit.cells.labels.clean_labels`. Without it cells stay as they
        are, but a mask of where cells are is refused.
    nuclei : bool
        Of cells that are drawn with their nuclei, read the nuclei (QuPath's GeoJSON).
    workers : int
        Processes that share the files of a folder; the same for any number.
    """

    of: CellDataset | None = None
    profile: str | None = None
    shapes: Mapping[str, tuple[int, int]] | None = None
    common: bool = False
    convention: str | None = None
    classes: tuple[str, ...] = ()
    pieces: str | None = None
    nuclei: bool = False
    workers: int = 1


class ImageCells(NamedTuple):
    """What one file holds: cells, the names of their classes, who made them ("" unknown), what of it is no cell, what to
    say of how it was read, and the number (N,) that the file calls each cell by (None: 1 to N)."""

    cells: Instances
    classes: tuple[str, ...] = ()
    made_by: str = ""
    quarantined: tuple[Quarantined, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: np.ndarray | None = None


class ImageToWrite(NamedTuple):
    """What is written of one image; `picture` where it is known, `pictures` are all that must not be written over.

    `form` is the key of ``WRITES``; `nuclei` are as many as cells, one without pixels where a cell has none; `measured` has
    numbers for each cell: {name: (N,) float, NaN where there is none}.
    """

    name: str
    cells: Instances
    classes: tuple[str, ...]
    made_by: str = ""
    picture: Path | None = None
    pictures: tuple[Path, ...] = ()
    form: str = ""
    um_per_px: float = math.nan
    nuclei: Instances | None = None
    measured: Mapping[str, np.ndarray] = MappingProxyType({})


def numbers_of_all(known: Iterable[int]) -> np.ndarray:
    """Return a number for each cell: its own, or one above all others where it has none or that of a cell before it.

    Parameters
    ----------
    known : iterable of int
        What the file calls each cell; 0 where it does not.

    Examples
    --------
    >>> numbers_of_all([3, 0, 5, 3])  # of five cells two were deleted and two drawn
    array([3, 6, 5, 7])
    """
    numbers, taken = [], set()
    for number in known:
        own = number if 0 < number < 2**31 and number not in taken else 0
        taken.add(own)
        numbers.append(own)
    found = np.array(numbers, np.int64)
    found[found == 0] = found.max(initial=0) + np.arange(1, np.count_nonzero(found == 0) + 1)
    return found
