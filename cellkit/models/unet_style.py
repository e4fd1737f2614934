"""What Cellpose's U-Net tells of images that nobody has labelled: what they look like."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.models.shared.contract import merged
from cellkit.models.unet_maps import TILE_PX, applied, at_network_scale
from cellkit.models.unet_search import DEFAULTS


def style(checkpoint: Path, images: Iterable[np.ndarray], settings: Any = None) -> np.ndarray:
    """Return the style vector of each image, (n, d) float32 of length 1: images that look alike have like ones.

    d is 256 in a network of the published width.

    Parameters
    ----------
    images : iterable of (H, W, 3) uint8
    settings : Settings, optional
        As for `load`; the diameter, the channels and the percentiles in it count.
    """
    from cellkit.models.unet_network import load_network
    from cellkit.parallel import progress

    network, card = load_network(checkpoint, getattr(settings, "precision", None))
    used = merged(settings, card, DEFAULTS)
    diameter_px = used["diameter_px"] or float(network.diam_labels.item())
    shown = used["channels"], used["normalise"]
    return np.stack([style_of(network, image, diameter_px, *shown) for image in progress(images, "styles")])


def style_of(
    network: Any, image: np.ndarray, diameter_px: float, channels: str, normalise: tuple[float, float]
) -> np.ndarray:
    """Return the style of a whole image at network scale, (d,) float32 of length 1: the mean of its tiles', by their size."""
    planes = at_network_scale(network, image, diameter_px, channels, normalise)
    height, width = planes.shape[1:]
    tiles = [
        planes[:, y : y + TILE_PX, x : x + TILE_PX] for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)
    ]
    total = sum(tile[0].size * applied(network, network.style, tile)[0] for tile in tiles)
    return total / max(float(np.linalg.norm(total)), 1e-12)
