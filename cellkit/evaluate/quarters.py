"""A single labelled image, cut into quarters that are held back in turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.files import atomic_path
from cellkit.scores.iou import overlaps

SAME = 0.5  # of a cell's pixels in common with another run's cell, or of both together: they are one


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, in px: rows from `top` to below `bottom`, columns from `left` to before `right`."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def quarters(cells: Instances) -> list[Box]:
    """Cut an image into four rectangles that hold about a quarter of the cells each.

    The first cut is a row, each half is then cut at a column of its own. A cut goes through few cells and leaves about as many
    on either side: a cell that it goes through counts as much as two that are on the wrong side.

    Examples
    --------
    >>> quarters(Instances.from_boxes([[0, 0, 2, 2], [6, 0, 2, 2], [2, 6, 2, 2], [6, 6, 2, 2]], (8, 8)))[2]
    Box(top=4, bottom=8, left=0, right=5)
    """
    height, width = cells.shape
    x, y, wide, high = cells.boxes_xywh.T
    row, middles = _cut(y, y + high, height), y + high / 2
    boxes = []
    for top, bottom in ((0, row), (row, height)):
        own = (middles >= top) & (middles < bottom)
        column = _cut(x[own], (x + wide)[own], width)
        boxes += [Box(top, bottom, 0, column), Box(top, bottom, column, width)]
    return boxes


def _cut(starts: np.ndarray, ends: np.ndarray, size: int) -> int:
    """Return where to cut cells that reach from `starts` to before `ends`: the place of least cost nearest to their median.

    Never so that nothing of the image is left on one side.
    """
    if not len(starts) or size < 3:
        return max(size // 2, 1)
    middles, places = (starts + ends) / 2, np.arange(1, size)
    before = {name: np.searchsorted(np.sort(one), places) for name, one in (("starts", starts), ("middles", middles))}
    through = before["starts"] - np.searchsorted(np.sort(ends), places, side="right")
    uneven = np.abs(before["middles"] - len(starts) / 2)
    cost, away = through + uneven / 2, np.abs(places - np.median(middles))
    return int(places[np.lexsort((away, cost))[0]])


def _middles(cells: Instances) -> np.ndarray:
    """Return the middle of each cell's box, (N, 2) float: row, column."""
    x, y, width, height = cells.boxes_xywh.T
    return np.stack([y + height / 2, x + width / 2], axis=1)


def _inside(cells: Instances, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells have their middle in a box, and which lie in it as a whole; (N,) bool each."""
    (y, x), (left, top, width, height) = _middles(cells).T, cells.boxes_xywh.T
    middle = (y >= box.top) & (y < box.bottom) & (x >= box.left) & (x < box.right)
    whole = (top >= box.top) & (top + height <= box.bottom) & (left >= box.left) & (left + width <= box.right)
    return middle, whole


def judged_in(box: Box, truth: Instances, found: Instances) -> tuple[Instances, Instances]:
    """Return the true and the found cells that count for a quarter.

    A true cell that a cut goes through has been seen in part by the training on the other side: it counts nowhere, and
    neither does a found cell that covers such a cell best. A found cell that covers no true cell counts where its middle is.

    Returns
    -------
    truth, found : Instances
        In an image of the same size.
    """
    _, whole = _inside(truth, box)
    own, _ = _inside(found, box)
    if len(truth) and len(found):
        table = overlaps(truth, found)
        best = np.full(len(found), -1)
        most = np.zeros(len(found))
        for t, f, iou in zip(table.truth, table.found, table.iou, strict=True):
            if iou > most[f]:
                best[f], most[f] = t, iou
        own = np.where(best >= 0, whole[best], own)
    return truth[whole], found[own]


def without_quarter(
    image: CellDataset, held: int, boxes: Sequence[Box], others: CellDataset, folder: Path
) -> CellDataset:
    """Return what is left of an image without one quarter: the other half, and the quarter beside it, as images.

    Cells that a cut goes through are left with the part that lies here; a part of the image without cells is left out.

    Parameters
    ----------
    image : CellDataset
        Of one image.
    others : CellDataset
        Images that are added as they are.
    folder : Path
        Where the parts are written.
    """
    beside, other = boxes[held ^ 1], boxes[2 * (1 - held // 2)]
    half = Box(other.top, other.bottom, 0, image.instances[0].shape[1])
    picture, cells, record = *image[0], image.records[0]
    folder = Path(folder).absolute()
    root = Path(os.path.commonpath([folder, others.root.absolute()])) if len(others) else folder
    records = [replace(one, path=_within(others.root / one.path, root)) for one in others.records]
    instances, made_by = list(others.instances), list(others.made_by)
    for name, box in (("half", half), ("quarter", beside)):
        part = cut_out(cells, box)
        if len(part):
            path = _write_png(folder / f"{name}.png", picture[box.window])
            named = f"{record.image_id} without quarter {held + 1}, {name}"
            shape = {"height_px": part.shape[0], "width_px": part.shape[1]}
            records.append(replace(record, image_id=named, path=_within(path, root), **shape))
            instances.append(part)
            made_by.append(image.made_by[0])
    return CellDataset(records, instances, image.classes, root, list(range(1, len(records) + 1)), made_by)


def _within(path: Path, root: Path) -> str:
    """Return a path as it counts from a folder above it."""
    return path.absolute().relative_to(root).as_posix()


def _write_png(path: Path, picture: np.ndarray) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture)).save(temporary, format="PNG")
    return path


def cut_out(cells: Instances, box: Box) -> Instances:
    """Return the parts of the cells that lie in a box, in an image of its size, and what is not annotated of it."""
    labels = cells.paint(unknown=-1)[box.window]
    kept = np.unique(labels[labels > 0])
    return Instances.from_labels(labels, cells.class_ids[kept - 1])


def joined(boxes: Sequence[Box], founds: Sequence[Instances]) -> Instances:
    """Return one set of cells for the whole image, from what was found without each quarter: every cell once.

    A cell is taken from the run without the quarter that its middle lies in. Two runs may see the middle of one cell on
    either side of a cut: of both answers (IoU > 0.5, or half of the smaller one in common) the one of the higher score is
    taken, also where each run sees the middle in the other's quarter. No two cells share a pixel.

    Returns
    -------
    Instances
        Quarter by quarter.
    """
    cells = Instances.concatenate(list(founds))
    run = np.repeat(np.arange(len(boxes)), [len(found) for found in founds])
    lies_in = np.full(len(cells), -1)
    for number, box in enumerate(boxes):
        lies_in[_inside(cells, box)[0]] = number
    own, same = lies_in == run, _same_cells(cells, run)
    seen = {a for a, b in same if run[b] == lies_in[a]}  # by the run whose cell it is, its middle elsewhere
    taken: list[int] = []
    for k in np.lexsort((np.arange(len(cells)), -cells.scores, ~own)).tolist():
        if (own[k] or k in seen) and not any((k, other) in same for other in taken):
            taken.append(k)
    return resolve_overlaps(cells[np.array(sorted(taken), int)])[0]


def _same_cells(cells: Instances, run: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs, both ways round, that are one cell seen by two runs."""
    table = overlaps(cells, cells)
    smaller = np.minimum(cells.areas_px[table.truth], cells.areas_px[table.found])
    same = (run[table.truth] != run[table.found]) & ((table.iou > SAME) | (table.shared_px > SAME * smaller))
    return set(zip(table.truth[same].tolist(), table.found[same].tolist(), strict=True))
