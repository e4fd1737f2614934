"""Cellpose's U-Net applied to an image: its maps, and the cells in them.

Tiles and images go through the network one by one: on a processor several at once gain nothing. Measured on one thread (AVX2),
processor seconds a megapixel: images of 256 px one by one 9.2, four at once 11.7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.diameter import LOOKS, own_diameter
from cellkit.models.shared.flows import masks_of
from cellkit.models.shared.inputs import NORMALISE, network_shape, resized, two_channels
from cellkit.models.shared.thresholds import AS_CELLPOSE
from cellkit.models.shared.tiles import blend_tiles

if TYPE_CHECKING:
    from cellkit.models.map_cache import MapCache

TILE_PX, OVERLAP_PX = 1024, 128
FRAME_PX = 16  # of zeros around an image: what a crop of a training shows beyond the edge, turned or moved past it
LARGEST = 6e4  # of what a float16 holds


def segment_image(
    network,
    image: np.ndarray,
    diameter_px: float,
    flow_threshold: float,
    cellprob_threshold: float,
    min_area_px: int,
    channels: str = "both",
    normalise: tuple[float, float] = NORMALISE,
    diameter_of: str = "batch",
    left_out: Counter[str] | None = None,
    cache: MapCache | None = None,
) -> Instances:
    """Find the cells of one image.

    Parameters
    ----------
    image : (H, W, 3) uint8
    diameter_px : float
        Of the cells in this image; the image is scaled so that it becomes the 30 px the network knows.
    diameter_of : {"batch", "image"}
        That diameter, or in further passes that of the cells found with it, see `further_passes`.
    left_out : Counter, optional
        Takes the number of masks below `min_area_px`.

    Returns
    -------
    Instances
        Score = mean cell probability inside the mask; class unknown.
    """
    maps = maps_to_read(network, image, diameter_px, channels, normalise, diameter_of, cache)
    return masks_of(maps, image.shape[:2], flow_threshold, cellprob_threshold, min_area_px, left_out)


def maps_to_read(
    network: Any,
    image: np.ndarray,
    diameter_px: float,
    channels: str = "both",
    normalise: tuple[float, float] = NORMALISE,
    diameter_of: str = "batch",
    cache: MapCache | None = None,
) -> np.ndarray:
    """Return the maps, (3, h, w) float32, that cells are read from, those of the last pass where there are several."""
    maps = predict_maps(network, image, diameter_px, channels, normalise, cache)
    if diameter_of == "image":
        return further_passes(network, image, maps, diameter_px, channels, normalise, cache)
    return maps


def further_passes(
    network: Any,
    image: np.ndarray,
    maps: np.ndarray,
    diameter_px: float,
    channels: str = "both",
    normalise: tuple[float, float] = NORMALISE,
    cache: MapCache | None = None,
) -> np.ndarray:
    """Return the maps of an image at the diameter of the cells that a first pass found; those of the first where it is the same.

    What is found then may be of another diameter again: so a third pass is the last. All but the last are read at Cellpose's own
    thresholds, whatever is asked of that.

    Parameters
    ----------
    maps : (3, h, w) float32
        Of the first pass, at `diameter_px`.
    """
    at_px = diameter_px
    for _ in range(LOOKS):
        own_px = own_diameter(masks_of(maps, image.shape[:2], **AS_CELLPOSE), at_px, diameter_px)
        if own_px == at_px:
            break
        at_px, maps = own_px, predict_maps(network, image, own_px, channels, normalise, cache)
    return maps


def predict_maps(
    network: Any,
    image: np.ndarray,
    diameter_px: float,
    channels: str = "both",
    normalise: tuple[float, float] = NORMALISE,
    cache: MapCache | None = None,
) -> np.ndarray:
    """Return flow y, flow x and cell probability (logit) at network scale, (3, h, w) float32.

    The numbers are rounded to float16, kept or not, so that maps read from `cache` are the same.
    """
    settings = (float(diameter_px), channels, tuple(map(float, normalise)), TILE_PX, OVERLAP_PX, FRAME_PX)
    place = cache.place(image, *settings) if cache else None
    if cache and (kept := cache.read(place)) is not None:
        return kept
    planes = at_network_scale(network, image, diameter_px, channels, normalise)
    framed = np.pad(planes, ((0, 0), (FRAME_PX, FRAME_PX), (FRAME_PX, FRAME_PX)))
    maps = blend_tiles(lambda tile: forward(network, tile), framed, TILE_PX, OVERLAP_PX)
    maps = (
        np.clip(maps[:, FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX], -LARGEST, LARGEST)
        .astype(np.float16)
        .astype(np.float32)
    )
    if cache:
        cache.write(place, maps)
    return maps


def at_network_scale(
    network: Any, image: np.ndarray, diameter_px: float, channels: str, normalise: tuple[float, float]
) -> np.ndarray:
    """Return what the network is shown of an image, scaled so that its cells are as large as it knows them, (2, h, w)."""
    cell_px = float(network.diam_mean.item())
    shape = network_shape(image.shape[:2], diameter_px, 8, cell_px)
    return resized(two_channels(image, channels, normalise), shape, cell_px < diameter_px)


def forward(network: Any, planes: np.ndarray) -> np.ndarray:
    """Return the maps (3, h, w) float32 of planes (2, h, w) that go through the network at once."""
    return applied(network, network, planes)[0, :, : planes.shape[1], : planes.shape[2]]


def applied(network: Any, function: Callable, planes: np.ndarray) -> np.ndarray:
    """Apply a function of a network to planes (2, h, w), filled up by zeros to multiples of 8 px; float32, first axis of 1."""
    import torch

    height, width = planes.shape[1:]
    padded = np.pad(planes, ((0, 0), (0, -height % 8), (0, -width % 8)))
    with torch.no_grad(), network.arithmetic.autocast():
        return function(network.arithmetic.placed(torch.from_numpy(padded)[None])).float().cpu().numpy()
