"""The pixels of an ImageJ ROI: rectangles, ovals, ellipses, polygons and composite paths."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from cellkit.cells.outlines import FARTHEST_PX, fill
from cellkit.cells.runs import merge_adjacent
from cellkit.errors import UserError

CURVE_STEPS = 32  # points on each piece of a Bezier curve
DRAW_AREA = "draw it as a polygon, freehand, oval or rectangle selection, or delete it"


def pixels_of_roi(roi: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels of one area ROI."""
    if roi.composite:
        return fill(_composite(roi.multi_coordinates), shape)
    if roi.roitype.name == "OVAL":
        return _oval(*_box(roi), shape)
    if roi.roitype.name == "RECT":
        return fill([_rectangle(*_box(roi), roi.rounded_rect_arc_size)], shape)
    special = {"ELLIPSE": _ellipse, "ROTATED_RECT": _rotated}.get(roi.subtype.name)
    if special is not None:
        return fill([special(roi)], shape)
    return fill([roi.coordinates()], shape)


def _composite(numbers: np.ndarray | None) -> list[np.ndarray]:
    """Return the outlines of Java's path: move, line, quadratic and cubic curve, close."""
    if numbers is None:
        raise UserError("its composite path is missing", "save it again, or delete it")
    values, rings, place = numbers.astype(np.float64).tolist(), [], 0
    sizes = {0: 2, 1: 2, 2: 4, 3: 6, 4: 0}
    while place < len(values):
        step = values[place]
        if step not in sizes or place + sizes[step] >= len(values) or (step != 0 and not rings):
            raise UserError("its composite path is damaged", "save it again, or delete it")
        points = np.array(values[place + 1 : place + 1 + sizes[step]]).reshape(-1, 2)
        place += 1 + sizes[step]
        if step == 0:
            rings.append([points])
        elif step != 4:
            rings[-1].append(_curve(np.vstack([rings[-1][-1][-1:], points])))
    return [np.vstack(ring) for ring in rings]


def _curve(control: np.ndarray) -> np.ndarray:
    """Return points on a Bezier curve of any degree, the first left out (de Casteljau)."""
    if len(control) == 2:
        return control[1:]
    t = np.linspace(0, 1, CURVE_STEPS + 1)[1:, None, None]
    points = np.repeat(control[None], CURVE_STEPS, axis=0)
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - t) + points[:, 1:] * t
    return points[:, 0]


def _box(roi: Any) -> tuple[float, float, float, float]:
    """Return x, y, width, height of a rectangle or oval."""
    if roi.subpixelrect:
        return roi.xd, roi.yd, roi.widthd, roi.heightd
    return roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top


def _oval(x: float, y: float, width: float, height: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels whose centres lie in an ellipse with upright axes."""
    if not (all(abs(value) <= FARTHEST_PX for value in (x, y, width, height)) and width > 0 and height > 0):
        raise UserError("its box is empty, not finite or far away", DRAW_AREA)
    row = np.arange(max(0, math.floor(y)), min(shape[0], math.ceil(y + height)))
    off = (row + 0.5 - y - height / 2) / (height / 2)
    half = np.sqrt(np.maximum(1 - off**2, 0)) * (width / 2)
    begin = np.clip(np.ceil(x + width / 2 - half - 0.5), 0, shape[1]).astype(np.int64)
    end = np.clip(np.floor(x + width / 2 + half - 0.5) + 1, 0, shape[1]).astype(np.int64)
    some = (np.abs(off) <= 1) & (end > begin)
    return merge_adjacent(row[some] * shape[1] + begin[some], (end - begin)[some])


def _rectangle(x: float, y: float, width: float, height: float, arc: float = 0) -> np.ndarray:
    """Return the outline of a rectangle, its corners rounded by quarters of a circle `arc` px across."""
    radius = min(arc, width, height) / 2
    if not radius > 0:
        return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64)
    angle = np.linspace(0, np.pi / 2, 256)
    right, left, top, bottom = x + width - radius, x + radius, y + radius, y + height - radius
    turns = [(right, bottom), (left, bottom), (left, top), (right, top)]
    angles = [angle + quarter * np.pi / 2 for quarter in range(4)]
    quarters = [np.column_stack([cx + radius * np.cos(a), cy + radius * np.sin(a)])
                for (cx, cy), a in zip(turns, angles, strict=True)]  # fmt: skip
    return np.vstack(quarters)


def _float_at_52(roi: Any) -> float:
    """Return the number that ellipses (aspect ratio) and rotated rectangles (width) keep where arrows keep their style."""
    order = roi.byteorder
    parts = roi.arrow_style_or_aspect_ratio, roi.arrow_head_size, roi.rounded_rect_arc_size
    return struct.unpack(f"{order}f", struct.pack(f"{order}BBh", *parts))[0]


def _ellipse(roi: Any) -> np.ndarray:
    """Return the 72 corners that ImageJ gives an ellipse: its major axis from (x1, y1) to (x2, y2), and the ratio."""
    centre = np.array([(roi.x1 + roi.x2) / 2, (roi.y1 + roi.y2) / 2])
    half = np.array([roi.x2 - roi.x1, roi.y2 - roi.y1]) / 2
    ratio = min(max(_float_at_52(roi), 0.0), 1.0)
    angle = np.arange(72)[:, None] * (2 * np.pi / 72)
    return centre + np.cos(angle) * half + np.sin(angle) * ratio * np.array([-half[1], half[0]])


def _rotated(roi: Any) -> np.ndarray:
    """Return the corners of a rotated rectangle: its middle line from (x1, y1) to (x2, y2), and its width."""
    a, b = np.array([roi.x1, roi.y1]), np.array([roi.x2, roi.y2])
    length = float(np.hypot(*(b - a)))
    if not length > 0:
        raise UserError("it is a rotated rectangle without length", DRAW_AREA)
    side = np.array([a[1] - b[1], b[0] - a[0]]) / length * (_float_at_52(roi) / 2)
    return np.array([a + side, b + side, b - side, a - side])
