"""What a browser is sent of a picture and of its cells: a part of it, at a scale that fits a screen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cellkit.errors import UserError

MOST_SIDE_PX = 1600  # of what is sent at once, longer side


class View(NamedTuple):
    """A part of a picture, in its px; every `step`-th row and column of it is sent."""

    left: int
    top: int
    width: int
    height: int
    step: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that are sent."""
        return -(-self.height // self.step), -(-self.width // self.step)

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def view_of(shape: tuple[int, int], asked: Mapping[str, Any] | None = None, most_px: int = MOST_SIDE_PX) -> View:
    """Return the part of a picture (H, W) that is asked for, the whole where nothing is; as fine as `most_px` allows.

    Raises
    ------
    UserError
        What is asked for is no part of the picture.

    Examples
    --------
    >>> view_of((3000, 5000)), view_of((3000, 5000), {"left": 100, "top": 0, "width": 800, "height": 600})
    (View(left=0, top=0, width=5000, height=3000, step=4), View(left=100, top=0, width=800, height=600, step=1))
    >>> view_of((3000, 5000), {"left": -30, "top": 2900, "width": 900, "height": 900})
    View(left=0, top=2900, width=870, height=100, step=1)
    """
    try:
        sides = [int((asked or {}).get(name, whole)) for name, whole in
                 (("left", 0), ("top", 0), ("width", shape[1]), ("height", shape[0]))]  # fmt: skip
    except (TypeError, ValueError, OverflowError):
        raise UserError("the part of the picture is given without numbers", "reload the page") from None
    left, top = (min(max(value, 0), side) for value, side in zip(sides[:2], shape[::-1], strict=True))
    right, bottom = (
        min(max(at + long, 0), side) for at, long, side in zip(sides[:2], sides[2:], shape[::-1], strict=True)
    )
    if right <= left or bottom <= top:
        raise UserError(f"no part of a picture of {shape[0]} x {shape[1]} px is asked for", "reload the page")
    width, height = right - left, bottom - top
    return View(left, top, width, height, max(1, -(-max(width, height) // most_px)))


def picture_png(image: np.ndarray, view: View) -> bytes:
    """Return a part of a picture, (H, W, 3) uint8, as PNG; where it is sent smaller, pixels are averaged."""
    import cv2

    part = image[view.part]
    if view.step > 1:
        part = cv2.resize(part, view.shape[::-1], interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", np.ascontiguousarray(part[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def cells_bytes(head: Mapping[str, Any], per_cell: Mapping[str, np.ndarray], labels: np.ndarray, view: View) -> bytes:
    """Return cells for a browser: the length of a JSON text, the text, and arrays of 4 bytes a number, little endian.

    Parameters
    ----------
    head : mapping
        Goes into the text, with ``arrays``, the name, type and length of each array, and ``view``.
    per_cell : mapping
        Name -> (N,) numbers.
    labels : (H, W) int32
        0 = background; the numbers of cells, from 1. Sent are its runs in the view, row after row: ``start``, ``length``,
        ``cell``.
    view : View
    """
    arrays = {name: values.astype("<f4" if values.dtype.kind == "f" else "<u4") for name, values in per_cell.items()}
    flat = labels[view.part][:: view.step, :: view.step].ravel()
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    own = flat[bounds[:-1]] > 0
    runs = {"start": bounds[:-1][own], "length": np.diff(bounds)[own], "cell": flat[bounds[:-1]][own]}
    arrays |= {name: values.astype("<u4") for name, values in runs.items()}
    listed = [[name, "f" if values.dtype.kind == "f" else "u", len(values)] for name, values in arrays.items()]
    text = json.dumps({**head, "arrays": listed, "view": view._asdict()}, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)  # arrays begin at a multiple of 4
    return b"".join([np.uint32(len(text)).astype("<u4").tobytes(), text, *(a.tobytes() for a in arrays.values())])
