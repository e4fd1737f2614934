"""Cellpose-SAM on an image larger than the memory: in the squares that it sees of a whole image, see `shared.maps_windows`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from cellkit.models.sam_maps import AT_ONCE, Squares, followed_on, network_size, squares_seen, taper
from cellkit.models.shared.in_windows import WholeImage
from cellkit.models.shared.maps_windows import MapsInWindows, Network, Tiling


def sam_in_windows(
    network: Any, whole: WholeImage, diameter_px: float | None, at_once: int | None = None, **how: Any
) -> MapsInWindows:
    """Return `cellkit.models.cellpose_sam` on one image that is read window by window.

    Parameters
    ----------
    at_once : int, optional
        Squares that the network is shown together; None = 1 on a processor, 32 on a GPU.
    how : Any
        The other settings, as for `MapsInWindows`.
    """
    size = network_size(whole.shape, diameter_px)
    squares, count = Squares(size, network.shape.tile_px), at_once or AT_ONCE.get(network.arithmetic.device.type, 1)
    rows, columns = (sorted({corner[axis] for corner in squares.corners}) for axis in (0, 1))

    def forward(tiles: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        tiles = iter(tiles)
        while some := list(islice(tiles, count)):
            yield from (maps.cpu().numpy() for maps in squares_seen(network, some))

    tiling = Tiling(squares.pads, rows, columns, taper(network.shape.tile_px))
    seen = Network(forward, size, smaller=False, tiling=tiling, device=followed_on(network))
    return MapsInWindows(seen, whole, diameter_px, **how)
