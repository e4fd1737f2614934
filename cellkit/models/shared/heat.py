"""Heat that spreads in each mask from its middle: the steps by which Cellpose makes flows of labels.

In each step the middle pixel of every mask is warmed by 1, then each pixel gets the mean of the nine around it, of which those of
other masks count 0 (cellpose, dynamics.py, 4.2). On a processor the masks are laid apart on sheets of its cache's size, so that
a step is a sum of 3 x 3 pixels, whoever is next to whom in the image. On a GPU the nine are looked up where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Box = tuple[slice, slice]
SHEET_PX = (256, 512)  # 1 MB: larger masks have larger sheets


def spread(labels: np.ndarray, device: Any = "cpu") -> np.ndarray:
    """Return the heat of each pixel after twice as many steps as the longest way through a mask's box, (h, w) float64.

    Parameters
    ----------
    labels : (h, w) int32
        Masks, with a frame of 0.
    """
    from scipy import ndimage
    from torch import device as device_of

    boxes = {k: box for k, box in enumerate(ndimage.find_objects(labels), 1) if box is not None}
    middles = middles_of(labels, boxes)
    times = 2 * max(sum(side.stop - side.start for side in box) + 2 for box in boxes.values())
    heat = np.zeros(labels.shape)
    if device_of(device).type == "cpu":
        for sheet in sheets_of(boxes):
            spread_on(sheet, labels, middles, times, heat)
    else:
        places = np.flatnonzero(labels)
        heat.ravel()[places] = looked_up(labels, places, np.array(list(middles.values())), times, device)
    return heat


def middles_of(labels: np.ndarray, boxes: dict[int, Box]) -> dict[int, int]:
    """Return the flat index of the pixel of each mask that is nearest to its centre of mass.

    The centre is rounded to whole pixels of the mask's box, and of pixels as near the first is taken.

    Examples
    --------
    >>> middles_of(np.array([[1, 1, 1, 0], [0, 0, 0, 3]]), {1: np.s_[:1, :3], 3: np.s_[1:2, 3:4]})
    {1: 1, 3: 7}
    """
    corner = np.zeros((2, labels.max() + 1), int)
    for k, box in boxes.items():
        corner[:, k] = [side.start or 0 for side in box]
    places = np.flatnonzero(labels)
    mask = labels.ravel()[places]
    at = np.stack(np.divmod(places, labels.shape[1])) - corner[:, mask]
    count = np.maximum(np.bincount(mask), 1)
    centre = np.stack([np.bincount(mask, one) / count for one in at]).round()
    away = np.square(at - centre[:, mask]).sum(axis=0).astype(np.int64)
    nearest = np.full(len(count), np.iinfo(np.int64).max)
    np.minimum.at(nearest, mask, away * labels.size + places)
    return {k: int(nearest[k] % labels.size) for k in boxes}


# ---- on a processor ------------------------------------------------------------------------------------------------
Sheet = list[tuple[int, Box, int, int]]  # mask, its box in the image, and row and column where that begins on the sheet


def sheets_of(boxes: dict[int, Box], size_px: tuple[int, int] = SHEET_PX) -> Iterator[Sheet]:
    """Yield the boxes side by side, a pixel between them, the highest first, in rows on sheets.

    Examples
    --------
    >>> boxes = {1: np.s_[0:2, 0:3], 2: np.s_[0:4, 3:6], 3: np.s_[4:5, 0:2]}
    >>> [[(k, row, column) for k, _, row, column in sheet] for sheet in sheets_of(boxes, (6, 9))]
    [[(2, 1, 1), (1, 1, 5)], [(3, 1, 1)]]
    """
    sheet: Sheet = []
    row = column = 1
    height = 0  # of this row of boxes: that of its first
    for k, (tall, wide) in sorted(boxes.items(), key=lambda one: (one[1][0].start - one[1][0].stop, one[0])):
        if sheet and column + wide.stop - wide.start >= size_px[1]:
            row, column = row + height + 1, 1
            if row + tall.stop - tall.start >= size_px[0]:
                yield sheet
                sheet, row = [], 1
        if column == 1:
            height = tall.stop - tall.start
        sheet.append((k, (tall, wide), row, column))
        column += wide.stop - wide.start + 1
    yield sheet


def spread_on(sheet: Sheet, labels: np.ndarray, middles: dict[int, int], times: int, heat: np.ndarray) -> None:
    """Write the heat (h, w) of the masks of a sheet; other pixels stay as they are."""
    import cv2

    on = [np.s_[y : y + box[0].stop - box[0].start, x : x + box[1].stop - box[1].start] for _, box, y, x in sheet]
    shape = tuple(max(box[axis].stop for box in on) + 1 for axis in (0, 1))
    own, warm = np.zeros(shape), []
    for (k, box, y, x), place in zip(sheet, on, strict=True):
        own[place] = labels[box] == k
        at = np.divmod(middles[k], labels.shape[1])
        warm.append((at[0] - box[0].start + y, at[1] - box[1].start + x))
    share, warm, ones = own / 9, tuple(np.array(warm).T), np.ones(3)
    now, then = np.zeros(shape), np.empty(shape)
    for _ in range(times):
        now[warm] += 1
        cv2.sepFilter2D(now, cv2.CV_64F, ones, ones, dst=then, borderType=cv2.BORDER_CONSTANT)
        np.multiply(then, share, out=now)
    for (_, box, *_), place in zip(sheet, on, strict=True):
        heat[box] += now[place]


# ---- on a GPU ------------------------------------------------------------------------------------------------------
def looked_up(labels: np.ndarray, places: np.ndarray, middles: np.ndarray, times: int, device: Any) -> np.ndarray:
    """Return the heat of the pixels of all masks, `places`; a pixel of another mask counts as one that stays cold."""
    import torch

    tensor = lambda values: torch.from_numpy(np.ascontiguousarray(values)).to(device)  # noqa: E731
    around = np.add.outer((-labels.shape[1], 0, labels.shape[1]), (-1, 0, 1)).ravel()
    row, cold = np.zeros(labels.size, np.int32), len(places)
    row[places] = np.arange(cold)
    flat, row_of, at = tensor(labels.ravel()), tensor(row), tensor(places)
    near = at[None] + tensor(around)[:, None]
    near = torch.where(flat[near] == flat[at], row_of[near].long(), cold)
    now = torch.zeros(cold + 1, dtype=torch.float64, device=near.device)
    source = torch.zeros_like(now)
    source[row_of[tensor(middles)].long()] = 1
    for _ in range(times):
        now[:cold] = (now + source)[near].sum(dim=0) / 9
    return now[:cold].cpu().numpy()
