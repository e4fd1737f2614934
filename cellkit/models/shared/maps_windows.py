"""A network of flows on an image larger than the memory: its maps are written to disk, and cells are made of them by windows.

The tiles that the network sees are those of the whole image, and so are the maps: bit by bit where cells are as large as the
network knows them, else to the rounding of a resized image. Pixels follow the flows to where they go in the whole image, to
the rounding of their places: where two cells touch, single pixels of them may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.resampling import nearest_of, resampled, source_of, weights
from cellkit.cells.windows import Window, taken
from cellkit.files import read_json, write_json
from cellkit.log import LOG
from cellkit.machine import check_space
from cellkit.models.shared.flows import Place, flow_errors, follow, outline, without
from cellkit.models.shared.in_windows import WholeImage, halo_of, inner
from cellkit.models.shared.inputs import CHANNELS
from cellkit.models.shared.whole_light import contrast_of
from cellkit.parallel import progress

CHUNK_PX = 512


@dataclass(frozen=True, eq=False)
class Tiling:
    """Which tiles a network sees of an image at network scale with zeros around it, and how much each of their pixels counts.

    Attributes
    ----------
    pads : (int, int, int, int)
        Rows above and below, columns left and right, that are added.
    rows, columns : sequence of int
        Where tiles begin, rising, in the padded image.
    weight : (h, w) float32
        Of each pixel of a tile.
    """

    pads: tuple[int, int, int, int]
    rows: Sequence[int]
    columns: Sequence[int]
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Network:
    """What a network of flows is on an image that it sees in tiles.

    Attributes
    ----------
    forward : callable
        Tiles, each (C, h, w) float32 -> their maps, each (3, h, w) float32, in order.
    size : (int, int)
        Height and width of the image at network scale.
    smaller : bool
        Whether it is brought there by area; else between the nearest pixels.
    tiling : Tiling
    channels : tuple of int
        Of red, green and blue, which planes it is shown.
    dtype : type
        In which its maps are kept.
    largest : float
        What is larger is kept as this.
    device : torch.device or str
        Where flows are followed.
    """

    forward: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]
    size: tuple[int, int]
    smaller: bool
    tiling: Tiling
    channels: tuple[int, ...] = (0, 1, 2)
    dtype: type = np.float32
    largest: float = np.inf
    device: Any = "cpu"


class MapsInWindows:
    """A network of flows on one image that is read window by window, see `InWindows`.

    Parameters
    ----------
    halo_diameter_px : float or None
        Diameter of the cells (px of the image).
    """

    def __init__(
        self,
        network: Network,
        whole: WholeImage,
        halo_diameter_px: float | None,
        flow_threshold: float,
        cellprob_threshold: float,
        min_area_px: int,
        channels: str,
        normalise: tuple[float, float],
    ):
        self.network, self.whole, self.min_area_px = network, whole, min_area_px
        self.flow_threshold, self.cellprob_threshold = flow_threshold, cellprob_threshold
        self.size = network.size
        self.contrast = {k: contrast_of(whole.light[k], normalise) for k in CHANNELS[channels]}
        self.halo_px = halo_of(halo_diameter_px)
        self.maps = self._maps()

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which do not reach a side of it, (N,) bool."""
        (top, bottom), (left, right) = (
            source_of(one.start, one.stop, length, size) if self.size != self.whole.shape else (one.start, one.stop)
            for one, length, size in zip(window.slices, self.whole.shape, self.size, strict=True)
        )
        maps, device = self.maps[:, top:bottom, left:right].astype(np.float32), self.network.device
        labels = follow(maps, self.cellprob_threshold, device, Place((top, left), self.size))
        if self.flow_threshold:
            labels = without(labels, flow_errors(labels, maps, device) > self.flow_threshold)
        logit = maps[2]
        if self.size != self.whole.shape:
            labels, logit = self._at_image_scale(window, labels, logit, (top, left))
        found = outline(labels, logit, window.shape, self.cellprob_threshold)
        return found, inner(found, window, self.whole.shape)

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
        """Return the maps (3, h, w) on disk; those that a call before wrote are kept, row of tiles by row of tiles."""
        import zarr

        path, noted = self.whole.folder / "maps.zarr", self.whole.folder / "maps.json"
        done = read_json(noted)["rows"] if noted.is_file() and path.is_dir() else 0
        height, width = self.size
        if not done:
            bytes_of = 3 * np.dtype(self.network.dtype).itemsize * height * width
            check_space(self.whole.folder, bytes_of, "the network's maps")
            chunks = (3, min(CHUNK_PX, height), min(CHUNK_PX, width))
            maps = zarr.create_array(
                store=str(path), shape=(3, *self.size), chunks=chunks, dtype=self.network.dtype, overwrite=True
            )
        else:
            maps = zarr.open_array(str(path), mode="r+")
        above, _, before, _ = self.network.tiling.pads
        rows, largest = self.network.tiling.rows, self.network.largest
        if done < len(rows):
            tile_px = len(self.network.tiling.weight)
            LOG.info(f"the network's maps: {len(rows)} rows of tiles of {tile_px} px, {done} done before")
        for k, top, band in progress(self._bands(done), "maps", len(rows) - done):
            first, last = max(top - above, 0), min(top + band.shape[1] - above, height)
            if last > first:
                own = band[:, first + above - top : last + above - top, before : before + width]
                maps[:, first:last] = np.clip(own, -largest, largest).astype(self.network.dtype)
            write_json(noted, {"rows": k + 1})
        return maps

    def _bands(self, done: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield the rows of maps that no further row of tiles adds to: number, first row of the padded image, (3, h, W)."""
        tiling = self.network.tiling
        rows, weight, width = tiling.rows, tiling.weight, self.size[1] + sum(tiling.pads[2:])
        deep, wide = weight.shape
        if done >= len(rows):
            return
        begin = next((k for k in range(done) if rows[k] + deep > rows[done]), done)
        out = np.zeros((3, deep, width), np.float32)
        total = np.zeros((deep, width), np.float32)
        for k in range(begin, len(rows)):
            for left, found in zip(tiling.columns, self._row(rows[k]), strict=True):
                out[:, :, left : left + wide] += found * weight
                total[:, left : left + wide] += weight
            step = (rows[k + 1] if k + 1 < len(rows) else rows[k] + deep) - rows[k]
            if k >= done:
                yield k, rows[k], out[:, :step] / total[:step]
            for kept in (*out, total):
                kept[: deep - step] = kept[step:].copy()
                kept[deep - step :] = 0

    def _row(self, top: int) -> Iterable[np.ndarray]:
        """Return the maps of the tiles of a row, each (3, h, w) float32."""
        columns, size = self.network.tiling.columns, self.network.tiling.weight.shape
        return self.network.forward(self._tile(top, left, *size) for left in columns)

    def _tile(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Return what the network is shown in a tile of the padded image, (C, h, w) float32."""
        above, _, before, _ = self.network.tiling.pads
        planes = np.zeros((len(self.network.channels), height, width), np.float32)
        rows = max(top - above, 0), min(top + height - above, self.size[0])
        columns = max(left - before, 0), min(left + width - before, self.size[1])
        inside = (slice(rows[0] + above - top, rows[1] + above - top),
                  slice(columns[0] + before - left, columns[1] + before - left))  # fmt: skip
        planes[:, *inside] = self._planes(*rows, *columns)
        return planes

    def _planes(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return what the network is shown in a window of the image at network scale, (C, h, w) float32."""
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
        planes = planes[list(self.network.channels)]
        if not resized:
            return planes
        shares = [
            weights(begin, end, size, length, self.network.smaller)[0]
            for begin, end, size, length in zip((top, left), (bottom, right), self.size, self.whole.shape, strict=True)
        ]
        return np.stack([resampled(plane, *shares) for plane in planes])
