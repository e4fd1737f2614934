"""The U-Net on an image larger than the memory: in the tiles that it sees of a whole image, see `shared.maps_windows`.

Where each image has a diameter of its own, passes over all windows tell it, as in `unet_maps.further_passes`.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from cellkit.files import read_json, write_json
from cellkit.log import LOG
from cellkit.models.shared.diameter import LOOKS, own_diameter_of
from cellkit.models.shared.in_windows import WholeImage, own_cells
from cellkit.models.shared.inputs import network_shape
from cellkit.models.shared.maps_windows import MapsInWindows, Network, Tiling
from cellkit.models.shared.thresholds import AS_CELLPOSE
from cellkit.models.shared.tiles import tile_spans, tile_weight

TILE_PX, OVERLAP_PX, FRAME_PX, LARGEST = 1024, 128, 16, 6e4  # as in cellkit.models.unet_maps


def unet_in_windows(network: Any, whole: WholeImage, diameter_of: str, **used: Any) -> MapsInWindows:
    """Return `cellkit.models.cellpose_unet` on one image that is read window by window.

    Parameters
    ----------
    diameter_of : {"batch", "image"}
        Of image: `diameter_px` is assumed in a first pass over the image, and what is found tells its own; once again with that.
    used : Any
        The other settings, as for `MapsInWindows`.
    """
    if diameter_of != "image":
        return _at(network, whole, **used)
    part, first_px = whole, used["diameter_px"]
    at_px = first_px
    for look in range(LOOKS):
        kept = whole.folder / f"diameter_{look}.json"
        if not kept.is_file():
            found = _at(network, part, **used | AS_CELLPOSE | {"diameter_px": at_px})
            areas = np.concatenate([cells.areas_px for cells in own_cells(found, whole.shape)])
            write_json(kept, {"diameter_px": own_diameter_of(areas, at_px, first_px)})
        own_px = read_json(kept)["diameter_px"]
        if own_px == at_px:
            break
        LOG.info(f"the image's own diameter is {own_px:.1f} px, {at_px:.3g} px was assumed: another pass")
        shutil.rmtree(part.folder / "maps.zarr", ignore_errors=True)
        at_px, part = own_px, whole.for_model(f"own_diameter_{look}")
    return _at(network, part, **used | {"diameter_px": at_px})


def _at(network: Any, whole: WholeImage, diameter_px: float, **how: Any) -> MapsInWindows:
    """Return the network on an image whose cells have that diameter."""
    from cellkit.models.unet_maps import forward

    cell_px = float(network.diam_mean.item())
    size = network_shape(whole.shape, diameter_px, 8, cell_px)
    look = lambda tiles: (forward(network, tile) for tile in tiles)  # noqa: E731
    seen = Network(look, size, cell_px < diameter_px, _tiling(size), (1, 2), np.float16, LARGEST)
    return MapsInWindows(seen, whole, diameter_px, **how)


def _tiling(size: tuple[int, int]) -> Tiling:
    """Return the tiles of an image at network scale, as `cellkit.models.unet_maps.predict_maps` cuts it."""
    height, width = (side + 2 * FRAME_PX for side in size)
    pads = (FRAME_PX,) * 4
    if max(height, width) <= TILE_PX + OVERLAP_PX:
        return Tiling(pads, [0], [0], np.ones((height, width), np.float32))
    spans = [tile_spans(side, TILE_PX, OVERLAP_PX) for side in (height, width)]
    weight = tile_weight(tuple(of[0][1] for of in spans), OVERLAP_PX)
    return Tiling(pads, *([start for start, _ in of] for of in spans), weight)
