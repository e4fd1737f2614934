"""Coordinates on an image larger than the memory: the square that the network sees is that of the whole image, asked once.

An answer depends on the whole image. So the image is brought to the square block by block, as it is in one piece, and its
points are those of the whole image; masks grow from them window by window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.resampling import resampled, source_of, to_square, weights
from cellkit.cells.windows import BLOCK_PX, Window, windows_of
from cellkit.files import atomic_path
from cellkit.log import LOG
from cellkit.models.coordinate_cells import PEAKS, grown, in_image, peaks
from cellkit.models.shared.in_windows import WholeImage, halo_of
from cellkit.models.shared.inputs import two_channels
from cellkit.models.shared.whole_light import in_light_of
from cellkit.parallel import progress


class CoordinatesInWindows:
    """`cellkit.models.coordinate` on one image that is read window by window, see `InWindows`.

    Parameters
    ----------
    ask : callable
        Square (2, S, S) float32 -> the probability that a cell is there, (S, S) float32.
    settings : mapping
        As for `coordinate.cells_of`; and channels, square_px, min_area_px.
    """

    def __init__(self, ask: Callable[[np.ndarray], np.ndarray], settings: Mapping[str, Any], whole: WholeImage):
        self.settings, self.whole, self.min_area_px = settings, whole, settings["min_area_px"]
        self.halo_px = halo_of(settings["diameter_px"])
        kept = whole.folder / "inside.npy"
        if not kept.is_file():
            self._say_small()
            inside = ask(squared_in_blocks(whole, settings["channels"], settings["square_px"]))
            with atomic_path(kept) as temporary, open(temporary, "wb") as file:
                np.save(file, inside)
        self.inside = np.load(kept, allow_pickle=False)
        places, self.heights = peaks(self.inside, *(settings[name] for name in PEAKS))
        self.points = in_image(places, len(self.inside), whole.shape)

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and of which all that is dealt out to them lies within, (N,) bool."""
        points = self.points - (window.top, window.left)
        here = ((points >= 0) & (points < window.shape)).all(axis=1)
        outline = self.settings["outline"]
        if not here.any():
            return Instances.empty(window.shape), np.zeros(0, bool)
        light = self._probability(window) if outline == "probability" else self._brightness(window)
        found, boxes = grown(light, points[here], self.settings["diameter_px"], outline, self.heights[here])
        boxes = boxes + np.array([window.left, window.top] * 2)
        return found, ~window.cuts(boxes, self.whole.shape).any(axis=1)

    def _probability(self, window: Window) -> np.ndarray:
        """Return the map in a window of the image, as it is when all of it is brought to the image's size."""
        sides = [
            (one.start, one.stop, length, len(self.inside))
            for one, length in zip(window.slices, self.whole.shape, strict=True)
        ]
        (y0, y1), (x0, x1) = (source_of(*side) for side in sides)
        return resampled(self.inside[y0:y1, x0:x1], *(weights(*side, False)[0] for side in sides))

    def _brightness(self, window: Window) -> np.ndarray:
        with in_light_of(self.whole.light):
            return two_channels(self.whole.part(window), self.settings["outline"]).max(axis=0)

    def _say_small(self) -> None:
        """Say where two cells that touch cannot have a peak each: the square is too small for so large an image."""
        size, diameter_px = self.settings["square_px"], self.settings["diameter_px"]
        wide = diameter_px * size / max(self.whole.shape)
        if wide < self.settings["peak_distance_px"]:
            LOG.warning(
                f"cells of {diameter_px:g} px are {wide:.2g} px wide in the square of {size} px that this model brings the whole "
                "image to, and peaks nearer than peak_distance_px = "
                f"{self.settings['peak_distance_px']} are one: cells will be missed; cut the image into pictures as large as "
                "those that the model was trained on"
            )


def squared_in_blocks(whole: WholeImage, channels: str, size: int) -> np.ndarray:
    """Return cytoplasm and nuclei of an image brought to a square, (2, size, size) float32, as `coordinate_network.squared`.

    Pixels are read block by block, once.
    """
    rows, columns = to_square(whole.shape, size)
    square = np.zeros((2, size, size), np.float32)
    for block in progress(windows_of(whole.shape, BLOCK_PX), "square"):
        with in_light_of(whole.light):
            planes = two_channels(whole.part(block), channels)
        down, right = rows[:, block.top : block.bottom], columns[:, block.left : block.right]
        square += np.stack([resampled(plane, down, right) for plane in planes])
    return square
