"""The threshold on an image larger than the memory: one limit for all windows, and cells that no window's edge changes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.windows import BLOCK_PX, Window, taken, windows_of
from cellkit.files import read_json, write_json
from cellkit.models.shared.in_windows import WholeImage
from cellkit.models.threshold_steps import (
    SMOOTHED_PX,
    brighter,
    depth_of,
    parted,
    pieces_of,
    smoothed,
    typical_diameter,
)

BINS = 256  # of the histogram whose best cut is Otsu's, as in skimage.filters.threshold_otsu
AROUND_PX = 512  # seen around a block where the diameter is measured
HALO = 4  # diameters that are seen around a window: clumps of touching cells are whole


class ThresholdInWindows:
    """`cellkit.models.threshold` on one image that is read window by window, see `InWindows`.

    The limit is Otsu's of the whole image, bit by bit. A cell is that of the whole image where its connected part of the
    brighter pixels lies within the window. An area that cells enclose and that no window holds is not filled.

    Parameters
    ----------
    diameter_px : float or None
        None = the median of the objects that lie whole in blocks of 2,048 px and 512 px around them.
    """

    def __init__(self, whole: WholeImage, diameter_px: float | None, min_area_px: int):
        self.whole, self.min_area_px = whole, min_area_px
        kept = whole.folder / "threshold.json"
        known = read_json(kept) if kept.is_file() else {}
        if "limit" not in known:
            known["limit"] = self._limit()
        self.limit: float | None = known["limit"]
        if diameter_px is None and self.limit is not None:
            known["diameter_px"] = known.get("diameter_px") or self._diameter_px()
        write_json(kept, known)
        self.diameter_px = diameter_px or known.get("diameter_px") or 1.0
        self.margin_px = (
            math.ceil(8 * self.diameter_px / 15) + SMOOTHED_PX + 4
        )  # what the smoothed distances see, twice
        self.halo_px = math.ceil(HALO * self.diameter_px) + self.margin_px

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which are those of the whole image, (N,) bool."""
        if self.limit is None:
            return Instances.empty(window.shape), np.zeros(0, bool)
        grey = self._grey(window)
        cells = brighter(grey, self.limit)
        pieces = pieces_of(cells)
        found = parted(grey, pieces, depth_of(cells), self.limit, self.diameter_px)
        return found, ~self._reaches_edge(found, pieces, window, self.margin_px)

    def _grey(self, window: Window) -> np.ndarray:
        """Return the smoothed image in a window, as it is in the whole image."""
        seen = window.grown(SMOOTHED_PX, self.whole.shape)
        top, left = window.top - seen.top, window.left - seen.left
        grey = smoothed(taken(self.whole.image, seen))
        return np.ascontiguousarray(grey[top : top + window.shape[0], left : left + window.shape[1]])

    def _blocks(self) -> Iterator[tuple[Window, np.ndarray]]:
        for block in windows_of(self.whole.shape, BLOCK_PX):
            yield block, self._grey(block)

    def _limit(self) -> float | None:
        """Return Otsu's limit; None where nothing differs."""
        from skimage.filters import threshold_otsu

        ends = np.array([(grey.min(), grey.max()) for _, grey in self._blocks()])
        low, high = ends[:, 0].min(), ends[:, 1].max()
        if high - low < 1:
            return None
        counts, edges = 0, None
        for _, grey in self._blocks():
            own, edges = np.histogram(grey, BINS, range=(low, high))
            counts = counts + own
        return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))

    def _diameter_px(self) -> float:
        """Return the typical diameter of the objects that lie whole in a block and what is around it."""
        areas = [np.zeros(0, int)]
        for block in windows_of(self.whole.shape, BLOCK_PX):
            seen = block.grown(AROUND_PX, self.whole.shape)
            pieces = pieces_of(brighter(self._grey(seen), self.limit))
            parts = Instances.from_labels(pieces)
            first = parts.starts[parts.offsets[:-1]]
            y, x = first // seen.shape[1] + seen.top, first % seen.shape[1] + seen.left
            own = (block.top <= y) & (y < block.bottom) & (block.left <= x) & (x < block.right)
            areas.append(parts.areas_px[own & ~self._reaches_edge(parts, pieces, seen, 1)])
        return typical_diameter(np.concatenate(areas), self.min_area_px)

    def _reaches_edge(self, found: Instances, pieces: np.ndarray, window: Window, margin_px: int) -> np.ndarray:
        """Return whose connected part comes nearer than a margin to a side of the window within the image, (N,) bool."""
        inner = np.ones(pieces.shape, bool)
        sides = (
            (window.top > 0, window.bottom < self.whole.shape[0]),
            (window.left > 0, window.right < self.whole.shape[1]),
        )
        for axis, (before, after) in enumerate(sides):
            line = np.moveaxis(inner, axis, 0)
            line[: margin_px * before] = False
            line[len(line) - margin_px * after :] = False
        reaching = np.zeros(pieces.max(initial=0) + 1, bool)
        reaching[pieces[~inner]] = True
        return reaching[pieces.ravel()[found.starts[found.offsets[:-1]]]]
