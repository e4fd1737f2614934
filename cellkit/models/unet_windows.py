"""The U-Net on an image larger than the memory: its maps are written to disk, and cells are made of them window by window.

The tiles that the network sees are those of the whole image, and so are the maps: bit by bit where cells are as large as the
network knows them, else to the rounding of a resized image. Pixels follow the flows to where they go in the whole image, to
the rounding of their places: where two cells touch, single pixels of them may differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.windows import Window, taken
from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.log import LOG
from cellkit.machine import check_space
from cellkit.models.shared.contract import WholeImage
from cellkit.models.shared.flows import Place, flow_errors, follow, outline, without
from cellkit.models.shared.inputs import CHANNELS, network_shape
from cellkit.models.shared.resampling import nearest_of, resampled, source_of, weights
from cellkit.models.shared.tiles import tile_starts, tile_weight
from cellkit.parallel import progress

TILE_PX, OVERLAP_PX, FRAME_PX, LARGEST = 1024, 128, 16, 6e4  # as in cellkit.models.unet_maps
HALO = 3  # diameters that are seen around a window
CHUNK_PX = 512


class UnetInWindows:
    """`cellkit.models.cellpose_unet` on one image that is read window by window, see `InWindows`."""

    def __init__(
        self,
        network: Any,
        whole: WholeImage,
        diameter_px: float,
        flow_threshold: float,
        cellprob_threshold: float,
        min_area_px: int,
        channels: str,
        normalise: tuple[float, float],
        diameter_of: str,
    ):
        if diameter_of == "image":
            raise UserError(
                "an image that is read window by window has one diameter, and diameter_of is 'image'",
                "set diameter_of=batch, and give the diameter: --diameter PX",
            )
        self.network, self.whole, self.min_area_px = network, whole, min_area_px
        self.flow_threshold, self.cellprob_threshold = flow_threshold, cellprob_threshold
        cell_px = float(network.diam_mean.item())
        self.smaller = cell_px < diameter_px
        self.size = network_shape(whole.shape, diameter_px, 8, cell_px)
        self.contrast = {k: contrast_of(whole.light[k], normalise) for k in CHANNELS[channels]}
        self.halo_px = math.ceil(HALO * diameter_px) + 8
        self.maps = self._maps()

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which do not reach a side of it, (N,) bool."""
        (top, bottom), (left, right) = (
            source_of(one.start, one.stop, length, size) if self.size != self.whole.shape else (one.start, one.stop)
            for one, length, size in zip(window.slices, self.whole.shape, self.size, strict=True)
        )
        maps = self.maps[:, top:bottom, left:right].astype(np.float32)
        labels = follow(maps, self.cellprob_threshold, place=Place((top, left), self.size))
        if self.flow_threshold:
            labels = without(labels, flow_errors(labels, maps) > self.flow_threshold)
        logit = maps[2]
        if self.size != self.whole.shape:
            labels, logit = self._at_image_scale(window, labels, logit, (top, left))
        found = outline(labels, logit, window.shape, self.cellprob_threshold)
        x, y, width, height = found.boxes_xywh.T
        x, y = x + window.left, y + window.top
        return found, ~window.cuts(np.stack([x, y, x + width, y + height], axis=1), self.whole.shape).any(axis=1)

    def _at_image_scale(
        self, window: Window, labels: np.ndarray, logit: np.ndarray, corner: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and cell probability of a window at the image's scale, as `outline` makes them of a whole image."""
        from skimage.segmentation import expand_labels

        sides = list(zip(window.slices, self.whole.shape, self.size, corner, strict=True))
        places = [nearest_of(one.start, one.stop, length, size) - at for one, length, size, at in sides]
        between = [weights(one.start, one.stop, length, size, False)[0] for one, length, size, _ in sides]
        logit = resampled(logit, *between)
        labels = expand_labels(labels, distance=2)[np.ix_(*places)]
        labels[logit <= self.cellprob_threshold] = 0
        return labels, logit

    # ---- maps ------------------------------------------------------------------------------------------------------
    def _maps(self) -> Any:
        """Return the maps (3, h, w) float16 on disk; those that a call before wrote are kept, row of tiles by row of tiles."""
        import zarr

        path, noted = self.whole.folder / "maps.zarr", self.whole.folder / "maps.json"
        done = read_json(noted)["rows"] if noted.is_file() and path.is_dir() else 0
        height, width = self.size
        if not done:
            check_space(self.whole.folder, 6 * height * width, "the network's maps")
            chunks = (3, min(CHUNK_PX, height), min(CHUNK_PX, width))
            maps = zarr.create_array(
                store=str(path), shape=(3, *self.size), chunks=chunks, dtype=np.float16, overwrite=True
            )
        else:
            maps = zarr.open_array(str(path), mode="r+")
        framed = height + 2 * FRAME_PX
        at_once = max(framed, width + 2 * FRAME_PX) <= TILE_PX + OVERLAP_PX
        rows = [0] if at_once else tile_starts(framed, TILE_PX, OVERLAP_PX)
        if done < len(rows):
            LOG.info(f"the network's maps: {len(rows)} rows of tiles of {TILE_PX} px, {done} done before")
        for k, top, band in progress(self._bands(rows, done), "maps", len(rows) - done):
            first, last = max(top - FRAME_PX, 0), min(top + band.shape[1] - FRAME_PX, height)
            own = band[:, first + FRAME_PX - top : last + FRAME_PX - top, FRAME_PX:-FRAME_PX]
            if last > first:
                maps[:, first:last] = np.clip(own, -LARGEST, LARGEST).astype(np.float16)
            write_json(noted, {"rows": k + 1})
        return maps

    def _bands(self, rows: list[int], done: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield the rows of maps that no further row of tiles adds to: number, first row of the framed image, (3, h, W)."""
        height, width = (side + 2 * FRAME_PX for side in self.size)
        if done >= len(rows):
            return
        if len(rows) == 1 and width <= TILE_PX + OVERLAP_PX:
            yield 0, 0, self._forward(0, 0, height, width)
            return
        columns, deep = tile_starts(width, TILE_PX, OVERLAP_PX), min(TILE_PX, height)
        begin = next((k for k in range(done) if rows[k] + deep > rows[done]), done)
        out = np.zeros((3, deep, width), np.float32)
        total = np.zeros((deep, width), np.float32)
        for k in range(begin, len(rows)):
            for left in columns:
                found = self._forward(rows[k], left, deep, min(TILE_PX, width - left))
                weight = tile_weight(found.shape[1:], OVERLAP_PX)
                out[:, :, left : left + found.shape[2]] += found * weight
                total[:, left : left + found.shape[2]] += weight
            step = (rows[k + 1] if k + 1 < len(rows) else rows[k] + deep) - rows[k]
            if k >= done:
                yield k, rows[k], out[:, :step] / total[:step]
            for kept in (*out, total):
                kept[: deep - step] = kept[step:].copy()
                kept[deep - step :] = 0

    def _forward(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return the maps of a tile of the framed image, (3, h, w) float32."""
        from cellkit.models.unet_maps import forward

        planes = np.zeros((2, height, width), np.float32)
        rows = max(top - FRAME_PX, 0), min(top + height - FRAME_PX, self.size[0])
        columns = max(left - FRAME_PX, 0), min(left + width - FRAME_PX, self.size[1])
        inside = (slice(rows[0] + FRAME_PX - top, rows[1] + FRAME_PX - top),
                  slice(columns[0] + FRAME_PX - left, columns[1] + FRAME_PX - left))  # fmt: skip
        planes[:, *inside] = self._planes(*rows, *columns)
        return forward(self.network, planes)

    def _planes(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return what the network is shown in a window of the image at network scale, (2, h, w) float32."""
        (y0, y1), (x0, x1) = (
            source_of(begin, end, size, length)
            for begin, end, size, length in zip((top, left), (bottom, right), self.size, self.whole.shape, strict=True)
        )
        resized = self.size != self.whole.shape
        image = taken(self.whole.image, Window(y0, x0, y1, x1) if resized else Window(top, left, bottom, right))
        planes = np.zeros((3, *image.shape[:2]), np.float32)
        for channel, limits in self.contrast.items():
            if limits is not None:
                low, high = limits
                planes[channel] = (image[..., channel] - np.float32(low)) / np.float32(high - low)
        planes = planes[1:]
        if not resized:
            return planes
        shares = [
            weights(begin, end, size, length, self.smaller)[0]
            for begin, end, size, length in zip((top, left), (bottom, right), self.size, self.whole.shape, strict=True)
        ]
        return np.stack([resampled(plane, *shares) for plane in planes])


def contrast_of(
    light: tuple[np.ndarray, np.ndarray] | None, normalise: tuple[float, float]
) -> tuple[float, float] | None:
    """Return which values of a channel become 0 and 1, as `cellkit.models.shared.inputs.three_channels`; None: it is empty."""
    if light is None:
        return None
    values, counts = light
    below = np.cumsum(counts)
    low, high = (_percentile(values, below, q) for q in normalise)
    if high - low < 1:
        low, high = float(values[0]), float(values[-1])
    return (low, high) if high > low else None


def _percentile(values: np.ndarray, below: np.ndarray, q: float) -> float:
    """Return a percentile of values that occur so often, linear between ranks as numpy; `below` are the counts, summed."""
    rank = (int(below[-1]) - 1) * q / 100
    low, high = values[np.searchsorted(below, [math.floor(rank), math.ceil(rank)], side="right")].tolist()
    return low + (high - low) * (rank - math.floor(rank))
