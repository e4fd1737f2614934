"""Small pictures that explain a word where a notebook first uses it: IoU, and a feature pyramid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cellkit.show.overlays import checked_image, draw_picture, legend_below
from cellkit.show.style import axes_or_new, figure_or_new, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {"in both": "#56B4E9", "true cell only": "#F0E442", "found cell only": "#E8590C"}


@styled
def show_iou(ax: Axes | None = None, shift_px: int = 10) -> Axes:
    """Show what IoU is: two round cells, the pixels they share over all that either covers, and the number.

    Parameters
    ----------
    shift_px : int
        How far the found cell lies from the true one; both have a diameter of 60 px.
    """
    from matplotlib.patches import Patch

    rows, columns = np.indices((70, 70 + abs(shift_px)))
    true, found = (np.hypot(rows - 34.5, columns - 34.5 - x) < 30 for x in (max(-shift_px, 0), max(shift_px, 0)))
    shared, either = int((true & found).sum()), int((true | found).sum())
    names = np.select([true & found, true, found], list(PARTS), default="")
    picture = np.full((*true.shape, 3), 255, np.uint8)
    for name, colour in PARTS.items():
        picture[names == name] = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    ax = draw_picture(axes_or_new(ax, (4.6, 3.6)), picture)
    ax.set_title(f"IoU = {shared} px in both / {either} px in either = {shared / either:.2f}")
    legend_below(ax, [Patch(color=colour, label=name) for name, colour in PARTS.items()])
    return ax


@styled
def show_pyramid(image: np.ndarray, levels: int = 3, figure: Figure | None = None) -> np.ndarray:
    """Show how a feature pyramid sees an image: level by level at half the size, until a pixel is as large as a cell's part.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
    levels : int
        So many are shown beside the image.

    Returns
    -------
    (1 + levels,) Axes
        The image, then each level: the mean of 2 x 2, 4 x 4, ... pixels.
    """
    checked_image(image)
    figure = figure_or_new(figure, (2.6 * (1 + levels), 3.1))
    axes = figure.subplots(1, 1 + levels)
    draw_picture(axes[0], image, "image")
    for k, ax in enumerate(axes[1:], 1):
        size = min(2**k, *image.shape[:2])
        height, width = (n // size * size for n in image.shape[:2])
        blocks = image[:height, :width].reshape(height // size, size, width // size, size, *image.shape[2:])
        seen = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
        draw_picture(ax, seen, f"level {k}: {seen.shape[0]} x {seen.shape[1]}", interpolation="nearest")
    return axes
