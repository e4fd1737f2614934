"""Where a network says that cells are: its answer for every coordinate, and the points that are taken from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.scores.point import centre_points
from cellkit.show.overlays import checked_image, draw_picture
from cellkit.show.style import figure_or_new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def show_answers(image: np.ndarray, inside: np.ndarray, found: Instances, figure: Figure | None = None) -> np.ndarray:
    """Show an image, what a network answers for each of its coordinates, and the middle of each cell found, in both.

    Parameters
    ----------
    image : (H, W, 3) uint8
    inside : (S, S) float32
        Probability that a cell is there, of the square that the image was brought to.
    found : Instances

    Returns
    -------
    (2,) Axes
    """
    import cv2

    height, width = checked_image(image).shape[:2]
    figure = figure_or_new(figure, (9.6, 4.8 * min(max(height / width, 0.3), 2.0) + 0.4))
    axes = figure.subplots(1, 2)
    answers = cv2.resize(inside, (width, height), interpolation=cv2.INTER_LINEAR)
    draw_picture(axes[0], image, "image")
    draw_picture(axes[1], answers, "is a cell there? black: no, white: yes", vmin=0, vmax=1)
    y, x = centre_points(found[found.areas_px > 0]).reshape(-1, 2).T
    for ax in axes:
        ax.plot(x, y, "+", color="#E8590C", markersize=7)
    return axes
