"""How much memory finding cells and training take: most of it is at network scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cellkit.models.shared.inputs import CELL_PX

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

BYTES_PER_FILE_PX = 50  # measured, 1024 and 2048 px: 42 bytes more a pixel


def bytes_for(shape: tuple[int, int], diameter_px: float, bytes_per_px: int, cell_px: float | None = CELL_PX) -> int:
    """Return about how much memory finding the cells of an image takes, in bytes.

    Parameters
    ----------
    bytes_per_px : int
        Of a pixel at network scale.
    cell_px : float or None
        Diameter of a cell there; None = images are not scaled.

    Examples
    --------
    >>> bytes_for((1000, 1000), 30.0, 110), bytes_for((1000, 1000), 5.0, 110)
    (110000000, 4010000000)
    """
    pixels, scale = shape[0] * shape[1], cell_px / diameter_px if cell_px else 1
    return round(pixels * (bytes_per_px * scale**2 + (scale != 1) * BYTES_PER_FILE_PX))


def ask_for_memory(train: CellDataset, shown: CellDataset, diameter_px: float, kept: int, bytes_per_px: int) -> None:
    """Refuse a training whose images, brought to network scale, do not fit into the free memory; before any is read.

    Parameters
    ----------
    kept : int
        Bytes that are kept of each pixel of a training image at network scale.
    bytes_per_px : int
        As for `bytes_for`: what finding the cells of one image takes on top.
    """
    from cellkit.machine import check_memory

    shapes = [[(r.height_px, r.width_px) for r in part.records] for part in (train, shown)]
    total = sum(h * w for h, w in shapes[0]) * (CELL_PX / diameter_px) ** 2 * kept
    total += max(bytes_for(shape, diameter_px, bytes_per_px) for shape in shapes[0] + shapes[1])
    check_memory(Path(f"{len(train)} images at a diameter of {diameter_px:.3g} px"), round(total), "training on")
