"""What Cellpose's U-Net sees of each cell and of its surroundings: its features, averaged; with brightness and shape.

The network was trained to outline cells, not to tell lines apart; what it notices of texture, size and crowding does so all
the same, for the cells of any model that has masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.inputs import NORMALISE, labels_at, resized, three_channels
from cellkit.models.unet_maps import at_network_scale

TILE_PX, MARGIN_PX = 512, 64  # at network scale; a cell is read in the tile that holds its centre
DECODER_LEVELS = 2  # the finest ones


@dataclass(frozen=True)
class Region:
    """Pixels of many cells, each with the row of its cell.

    Parameters
    ----------
    row, y, x : (P,) int64
    """

    row: np.ndarray
    y: np.ndarray
    x: np.ndarray

    def pooled(self, maps: np.ndarray, cells: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of maps (C, h, w) in the region of each cell, (cells, C) float64 each.

        Parameters
        ----------
        stride : int
            Pixels that one pixel of the maps is wide.

        Examples
        --------
        >>> region = Region(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 1, 1]))
        >>> mean, sd = region.pooled(np.array([[[2.0, 4.0], [0.0, 7.0]]]), 3)
        >>> mean.ravel().tolist(), sd.ravel().tolist()
        ([3.0, 7.0, 0.0], [1.0, 0.0, 0.0])
        """
        from scipy.sparse import csr_matrix

        height, width = maps.shape[1:]
        place = np.minimum(self.y // stride, height - 1) * width + np.minimum(self.x // stride, width - 1)
        holds = csr_matrix((np.ones(len(place)), (self.row, place)), (cells, height * width))
        pixels = np.maximum(np.asarray(holds.sum(axis=1)), 1)
        flat = maps.reshape(len(maps), -1).T.astype(np.float64)
        mean = holds @ flat / pixels
        return mean, np.sqrt(np.maximum(holds @ flat**2 / pixels - mean**2, 0))


def features_of_cells(
    network: Any, image: np.ndarray, cells: Instances, diameter_px: float, channels: str, ring_px: int
) -> np.ndarray:
    """Describe each cell of an image.

    Parameters
    ----------
    network : CellposeUNet
        In evaluation mode.
    image : (H, W, 3) uint8
    cells : Instances
    diameter_px : float
        Typical diameter of cells (px of the image); they become as wide as the network knows them.
    channels : {"both", "nuclei", "cytoplasm"}
        What the network is shown.
    ring_px : int
        Width of the ring around a cell that stands for its surroundings (px at network scale).

    Returns
    -------
    (N, F) float32
        Means and spreads of brightness, of brightness after scaling, and of the network's features, in the cell and in the
        ring; and its shape. Without a cell (0, 0).
    """
    planes = at_network_scale(network, image, diameter_px, channels, NORMALISE)
    shape = planes.shape[1:]
    smaller = float(network.diam_mean.item()) < diameter_px
    seen = np.concatenate([image.transpose(2, 0, 1).astype(np.float32) / 255, three_channels(image)])
    seen = resized(seen, shape, smaller)
    labels, centres = labels_at(cells, shape), centres_at(cells, shape)
    found = np.zeros((len(cells), 0))
    for rows, (top, bottom, left, right) in tiles_of(centres, shape):
        part = slice(top, bottom), slice(left, right)
        ids = np.zeros(len(cells) + 1, np.int64)
        ids[rows + 1] = np.arange(1, len(rows) + 1)
        own, middles = ids[np.maximum(labels[part], 0)], centres[rows] - (top, left)
        told = _of_tile(network, planes[:, *part], seen[:, *part], own, labels[part] > 0, middles, ring_px)
        found = np.zeros((len(cells), told.shape[1])) if not found.size else found
        found[rows] = told
    if len(cells):
        found[:, 0] = np.log(cells.areas_px / diameter_px**2)
    return found.astype(np.float32)


def _of_tile(
    network: Any,
    planes: np.ndarray,
    seen: np.ndarray,
    ids: np.ndarray,
    taken: np.ndarray,
    middles: np.ndarray,
    ring_px: int,
) -> np.ndarray:
    """Describe the cells of a tile, which `ids` numbers from 1; `taken` is true in all cells, those of other tiles too."""
    import torch

    cells = len(middles)
    inside, ring, shapes = _regions(ids, taken, middles, ring_px)
    height, width = planes.shape[1:]
    padded = np.pad(planes, ((0, 0), (0, -height % 8), (0, -width % 8)))
    with torch.no_grad(), network.arithmetic.autocast():
        encoder, decoder = network.features(network.arithmetic.placed(torch.from_numpy(padded)[None]))
    levels = [level[0].float().cpu().numpy() for level in (*encoder, *decoder[:DECODER_LEVELS])]
    strides = [2**k for k in (*range(len(encoder)), *range(DECODER_LEVELS))]
    blocks = [shapes, *inside.pooled(seen, cells), *ring.pooled(seen, cells)]
    for maps, stride in zip(levels, strides, strict=True):
        blocks += inside.pooled(maps, cells, stride)
    for maps, stride in zip(levels[: len(encoder)], strides, strict=False):
        blocks.append(ring.pooled(maps, cells, stride)[0])
    return np.concatenate(blocks, axis=1)


def _regions(
    ids: np.ndarray, taken: np.ndarray, middles: np.ndarray, ring_px: int
) -> tuple[Region, Region, np.ndarray]:
    """Return the pixels of each cell, those of the ring around it, and its shape, (cells, 5) float64; the first is left 0.

    Of a cell that has no pixel here, too small or hidden by others, its middle (y, x) stands for it.
    """
    import cv2
    from scipy import ndimage

    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * ring_px + 1,) * 2)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    pixels: tuple[list, list] = ([], [])
    shapes = np.zeros((len(middles), 5))
    for row, (box, middle) in enumerate(zip(ndimage.find_objects(ids, len(middles)), middles.tolist(), strict=True)):
        hidden = box is None
        box = tuple(slice(at, at + 1) for at in middle) if hidden else box
        top, left = (max(0, side.start - ring_px) for side in box)
        window = slice(top, box[0].stop + ring_px), slice(left, box[1].stop + ring_px)
        mask = (ids[window] == row + 1).astype(np.uint8)
        if hidden:
            mask[middle[0] - top, middle[1] - left] = 1
        around = cv2.dilate(mask, disc) - mask
        for kept, region in zip(pixels, (mask, around), strict=True):
            y, x = np.nonzero(region)
            kept.append((np.full(len(y), row), y + top, x + left))
        edge = int((mask - cv2.erode(mask, cross, borderValue=0)).sum())
        shapes[row, 1:] = *_shape(np.stack(np.nonzero(mask)), edge), _share(taken[window], around > 0)
    inside, ring = (Region(*map(np.concatenate, zip(*kept, strict=True))) for kept in pixels)
    return inside, ring, shapes


def _shape(places: np.ndarray, edge_px: int) -> tuple[float, float, float]:
    """Return the logarithms of length over width, roundness, and area over that of the ellipse of the same spread."""
    area = places.shape[1]
    spread = np.cov(places) if area > 2 else np.eye(2)
    short, long = np.sqrt(np.maximum(np.linalg.eigvalsh(spread), 1 / 12))
    return (
        np.log(long / short),
        np.log(4 * np.pi * area / max(edge_px, 1) ** 2),
        np.log(4 * np.pi * short * long / area),
    )


def _share(taken: np.ndarray, ring: np.ndarray) -> float:
    """Return how much of a ring other cells take."""
    return float(taken[ring].mean()) if ring.any() else 0.0


def centres_at(cells: Instances, shape: tuple[int, int]) -> np.ndarray:
    """Return the middle of each cell's box at another height and width, (N, 2) int64, y before x."""
    boxes = cells.boxes_xywh.astype(np.float64).reshape(-1, 4)
    middle = (boxes[:, :2] + boxes[:, 2:] / 2)[:, ::-1] * np.divide(shape, cells.shape)
    return np.clip(middle.astype(np.int64), 0, np.subtract(shape, 1))


def tiles_of(centres: np.ndarray, shape: tuple[int, int]) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Yield the rows of the cells of each tile that has any, and the tile with its margin: top, bottom, left, right."""
    tile = centres // TILE_PX
    for y, x in np.unique(tile, axis=0):
        top, left = max(0, y * TILE_PX - MARGIN_PX), max(0, x * TILE_PX - MARGIN_PX)
        bottom, right = ((k + 1) * TILE_PX + MARGIN_PX for k in (y, x))
        yield np.flatnonzero((tile == (y, x)).all(axis=1)), (top, min(bottom, shape[0]), left, min(right, shape[1]))
