"""Cellpose's U-Net applied to an image: its maps, and the cells in them.

Tiles and images go through the network one by one: on a processor several at once gain nothing. Measured on one thread (AVX2),
processor seconds a megapixel: images of 256 px one by one 9.2, four at once 11.7.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.inputs import network_shape, resized, two_channels
from cellkit.models.shared.tiles import blend_tiles

TILE_PX, OVERLAP_PX = 1024, 128


def segment_image(
    network,
    image: np.ndarray,
    diameter_px: float,
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    channels: str = "both",
    left_out: Counter[str] | None = None,
) -> Instances:
    """Find the cells of one image.

    Parameters
    ----------
    image : (H, W, 3) uint8
    diameter_px : float
        Of the cells in this image; the image is scaled so that it becomes the 30 px the network knows.
    left_out : Counter, optional
        Takes the number of masks below `min_area_px`.

    Returns
    -------
    Instances
        Score = mean cell probability inside the mask; class unknown.
    """
    maps = predict_maps(network, image, diameter_px, channels)
    return masks_of(maps, image.shape[:2], flow_threshold, cellprob_threshold, min_area_px, left_out)


def predict_maps(network: Any, image: np.ndarray, diameter_px: float, channels: str = "both") -> np.ndarray:
    """Return flow y, flow x and cell probability (logit) at network scale, (3, h, w) float32."""
    cell_px = float(network.diam_mean.item())
    shape = network_shape(image.shape[:2], diameter_px, 8, cell_px)
    planes = resized(two_channels(image, channels), shape, cell_px < diameter_px)
    return blend_tiles(lambda tile: _forward(network, tile), planes, TILE_PX, OVERLAP_PX)


def _forward(network, planes: np.ndarray) -> np.ndarray:
    import torch

    height, width = planes.shape[1:]
    padded = np.pad(planes, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
    with torch.no_grad(), network.arithmetic.autocast():
        y = network(network.arithmetic.placed(torch.from_numpy(padded)[None]))
    return y[0, :, :height, :width].float().cpu().numpy()
