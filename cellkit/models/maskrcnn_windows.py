"""Mask R-CNN on an image larger than the memory: in the tiles that it sees of a whole image, whose detections are kept on disk.

The cells of a window are read of the tiles that meet it, as those of an image are of all its tiles.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.resampling import resampled, source_of, weights
from cellkit.cells.windows import Window
from cellkit.files import atomic_path, read_json, write_json
from cellkit.log import LOG
from cellkit.models.maskrcnn_detect import (
    OVERLAP_PX,
    TILE_PX,
    SeenByDetector,
    bytes_by,
    capped_in,
    detect_image,
    forward,
    line_of,
    loosened,
)
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.in_windows import AGAIN, WholeImage, halo_of, inner, own_cells
from cellkit.models.shared.inputs import CELL_PX, network_shape, planes_of
from cellkit.models.shared.tiles import LARGEST_PX, Boxes, join_tiles, owned_tiles, paste
from cellkit.models.shared.whole_light import in_light_of


def segmenter(model, used: dict, bytes_per_px: int) -> Segmenter:
    """Return a function from a stream of (H, W, 3) uint8 images to their cells, by a network read with these settings."""

    def in_windows(whole: WholeImage) -> DetectorInWindows:
        if not used.get("by_line"):
            return DetectorInWindows(model, used, whole)
        kept = whole.folder / "line.json"
        if not kept.is_file():
            cells = own_cells(DetectorInWindows(model, used | {"line": ""}, whole), whole.shape)
            write_json(kept, {"line": line_of(np.concatenate([own.class_ids for own in cells]))})
        return DetectorInWindows(model, used | {"line": read_json(kept)["line"]}, whole)

    find = lambda image, left_out: detect_image(model, image, used, left_out)  # noqa: E731
    return Segmenter(find, used, bytes_by(used, bytes_per_px), in_windows)


class DetectorInWindows:
    """A detector on one image that is read window by window, see `InWindows`.

    Parameters
    ----------
    settings : dict
        As for `cellkit.models.maskrcnn_detect.detect_image`.
    """

    min_area_px = 0  # small cells are dropped where detections are read

    def __init__(self, model: Any, settings: dict, whole: WholeImage):
        self.model, self.settings, self.whole, self.left_out = model, settings, whole, Counter()
        self.size = network_shape(whole.shape, settings["diameter_px"], 16)
        self.tiles = owned_tiles(self.size, TILE_PX, OVERLAP_PX)
        self.halo_px = halo_of(settings["diameter_px"])
        loosened(model, settings)

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which do not reach a side of it, (N,) bool."""
        sides = zip(window.slices, self.whole.shape, self.size, strict=True)
        (top, bottom), (left, right) = (source_of(one.start, one.stop, length, size) for one, length, size in sides)
        seen, counts = Window(top, left, bottom, right), Counter()
        near = [(tile, own) for tile, own in self.tiles if tile.meets(seen).area_px]
        tiles = {tile for tile, _ in near}

        def detect(place: Window) -> Boxes:
            found = self._detect(place)
            return (
                found[_meets(found.boxes, seen)] if place in tiles else found
            )  # what lies elsewhere is another window's

        found, pieces = join_tiles(detect, self._pixels, near, self.size)
        if pieces:
            counts[f"cut: too long for a window of {LARGEST_PX} px at network scale; raise diameter_px"] += pieces
        found = found[_meets(found.boxes, seen)]
        ratio = np.array([self.whole.shape[1] / self.size[1], self.whole.shape[0] / self.size[0]] * 2)
        corner = np.array([window.left, window.top] * 2)
        found = replace(found, boxes=found.boxes * ratio - corner)
        shift = corner / ratio - np.array([left, top] * 2)
        with in_light_of(self.whole.light):
            read = SeenByDetector.of(self.model, self.whole.part(window), found, self._planes(seen), 1 / ratio, shift)
            cells = read.cells(self.settings, counts)
        self.left_out = Counter({f"{why}{AGAIN}": count for why, count in counts.items()})
        return cells, inner(cells, window, self.whole.shape)

    def _detect(self, window: Window) -> Boxes:
        """Return what is found in a tile, in px of the image at network scale; what was seen before is read."""
        path = self.whole.folder / f"tile_{window.top}_{window.left}_{window.bottom}_{window.right}.npz"
        margin = self.settings.get("mask_box_margin", 0.0)
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return Boxes(kept["boxes"], kept["scores"], kept["masks"], kept.get("votes"), margin)
        found = Boxes(*forward(self.model, self._planes(window)), margin=margin)
        for why, cells in capped_in(self.model, len(found)).items():
            LOG.warning(f"{cells} cells {why}")
        found = replace(found, boxes=found.boxes + np.array([window.left, window.top] * 2))
        _keep(path, found)
        return found

    def _pixels(self, found: Boxes) -> Instances:
        return paste(found.masks, found.mask_boxes, self.size, self.settings["mask_threshold"])

    def _planes(self, window: Window) -> np.ndarray:
        """Return what the network is shown in a window of the image at network scale, (3, h, w) float32."""
        if self.size == self.whole.shape:
            with in_light_of(self.whole.light):
                return planes_of(self.whole.part(window))
        sides = list(zip(window.slices, self.size, self.whole.shape, strict=True))
        (y0, y1), (x0, x1) = (source_of(one.start, one.stop, size, length) for one, size, length in sides)
        with in_light_of(self.whole.light):
            planes = planes_of(self.whole.part(Window(y0, x0, y1, x1)))
        smaller = self.settings["diameter_px"] > CELL_PX
        shares = [weights(one.start, one.stop, size, length, smaller)[0] for one, size, length in sides]
        return np.stack([resampled(plane, *shares) for plane in planes])


def _meets(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Return which boxes (N, 4) have something in a window, (N,) bool."""
    x0, y0, x1, y1 = boxes.T
    return (x1 > window.left) & (x0 < window.right) & (y1 > window.top) & (y0 < window.bottom)


def _keep(path: Path, found: Boxes) -> None:
    votes = {} if found.votes is None else {"votes": found.votes}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, boxes=found.boxes, scores=found.scores, masks=found.masks, **votes)
