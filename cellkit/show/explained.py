"""Small pictures that explain a word where a notebook first uses it: IoU, a pyramid, flows, a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.show.overlays import checked_image, draw_picture, grey_of, outline_of
from cellkit.show.style import INK, axes_or_new, figure_or_new, legend_below, styled, words_only

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


# ---- what a network sees ---------------------------------------------------------------------------------------------
def flow_colours(flow_y: np.ndarray, flow_x: np.ndarray, full: float | None = None) -> np.ndarray:
    """Return flows as colours: hue = direction, brightness = length up to `full` (default the 99th percentile).

    Returns
    -------
    (H, W, 3) uint8
        No flow is black.
    """
    from matplotlib.colors import hsv_to_rgb

    length = np.hypot(flow_y, flow_x)
    if full is None:
        full = float(np.percentile(length[length > 0], 99)) if (length > 0).any() else 1.0
    hue = np.arctan2(flow_y, flow_x) / (2 * np.pi) % 1
    hsv = np.stack([hue, np.full_like(hue, 0.85), np.clip(length / full, 0, 1)], axis=-1)
    return (255 * hsv_to_rgb(hsv)).round().astype(np.uint8)


@styled
def show_flows(image: np.ndarray, maps: np.ndarray, figure: Figure | None = None, title: str = "") -> np.ndarray:
    """Show what Cellpose's network answers: for each pixel the way to the middle of its cell, and whether it is one.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
    maps : (3, H, W) float
        Flow y, flow x and cell probability: a network's output (a logit) or its training target (0 or 1).

    Returns
    -------
    (3,) Axes
        Image; flows (hue = direction, arrows); cell probability.

    Raises
    ------
    ValueError
        The maps are not (3, H, W).
    """
    checked_image(image)
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or len(maps) < 3:
        raise ValueError(f"maps are flow y, flow x, cell probability: (3, H, W), these are {maps.shape}")
    figure = figure_or_new(figure, (10.5, 3.8))
    axes = figure.subplots(1, 3)
    draw_picture(axes[0], image, title or "image")
    draw_flows(axes[1], maps)
    axes[1].set_title("flows: colour and arrow = direction", y=1.0)
    cell = maps[2]
    if cell.min() < 0 or cell.max() > 1:
        cell = 1 / (1 + np.exp(-np.clip(cell, -30, 30)))
    draw_picture(axes[2], cell, "probability of being in a cell", vmin=0, vmax=1, cmap="magma")
    return axes


@styled
def show_label_flows(data: CellDataset, figure: Figure | None = None, side_px: int = 256) -> np.ndarray:
    """Show the flows that a network is to learn from the labels of the first image with a cell, around that cell.

    Parameters
    ----------
    data : CellDataset
        Labelled images.
    side_px : int
        Largest height and width of the part that is shown (px).

    Returns
    -------
    (3,) Axes
        As `show_flows`; (1,) with a sentence where no image has a cell.
    """
    from cellkit.models.shared.flows import target_of

    shown = next((k for k, cells in enumerate(data.instances) if len(cells)), None)
    if shown is None:
        return np.array([words_only("no image has a labelled cell", figure=figure)])
    image, cells = data[shown]
    x, y, width, height = cells.boxes_xywh[0].tolist()
    top, left = (max(0, middle - side_px // 2) for middle in (y + height // 2, x + width // 2))
    part = slice(top, top + side_px), slice(left, left + side_px)
    return show_flows(image[part], target_of(cells.paint()[part]), figure, data.records[shown].image_id)


@styled
def show_border_target(
    data: CellDataset, border_share: float = 0.1, figure: Figure | None = None, side_px: int = 256
) -> np.ndarray:
    """Show the classes of pixels that `unet_border` is to learn, where cells of the first images touch, and what is made of them.

    Parameters
    ----------
    data : CellDataset
        Labelled images.
    border_share : float
        How near to another cell its border begins, as a share of the diameter.
    side_px : int
        Largest height and width of the part that is shown (px).

    Returns
    -------
    (3,) Axes
        Image; target; the cells that the target gives back. (1,) with a sentence where no image has a cell.
    """
    import cv2
    from matplotlib.patches import Patch

    from cellkit.models.border_target import decode, encode, one_hot
    from cellkit.models.shared.diameter import diameter_of

    if not data.cells:
        return np.array([words_only("no image has a labelled cell", figure=figure)])
    width_px = border_share * diameter_of(data.instances)
    shown = next(k for k, cells in enumerate(data.instances) if len(cells))
    targets = {k: encode(data.instances[k].paint(), width_px) == 2 for k in range(shown, min(shown + 4, len(data)))}
    shown = max(targets, key=lambda k: (targets[k].sum(), -k))
    image, cells = data[shown]
    near = cv2.boxFilter(targets[shown].astype(np.float32), -1, (side_px, side_px), borderType=cv2.BORDER_CONSTANT)
    top, left = (max(0, k - side_px // 2) for k in np.unravel_index(int(near.argmax()), near.shape))
    part = slice(top, top + side_px), slice(left, left + side_px)
    target = encode(cells.paint()[part], width_px)
    again = decode(one_hot(target, 1), target.shape)
    axes = figure_or_new(figure, (10.5, 3.8)).subplots(1, 3)
    draw_picture(axes[0], image[part], data.records[shown].image_id)
    colours = {"background": (30, 33, 40), "interior": (86, 180, 233), "touching border": (232, 94, 12)}
    draw_picture(axes[1], np.array(list(colours.values()), np.uint8)[target], "what is to be learned")
    legend_below(axes[1], [Patch(color=[c / 255 for c in rgb], label=name) for name, rgb in colours.items()])
    restored = image[part].copy()
    restored[outline_of(again.paint())] = (255, 194, 10)
    draw_picture(axes[2], restored, f"{len(again)} cells that the target gives back")
    return axes


def draw_flows(ax: Axes, maps: np.ndarray, arrows: int = 34) -> Axes:
    """Draw flows on given Axes, with about `arrows` arrows along the longer side and a wheel of directions."""
    flow_y, flow_x = maps[:2]
    height, width = flow_y.shape
    ax.imshow(flow_colours(flow_y, flow_x), interpolation="nearest")
    step = max(1, max(height, width) // arrows)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    v, u = flow_y[y, x], flow_x[y, x]
    length = np.hypot(u, v)
    some = length > 0.3 * max(float(length.max()), 1e-6)
    u, v = u[some] / length[some], v[some] / length[some]
    reach = 0.8 * step
    ax.quiver(x[some], y[some], u * reach, v * reach, color="white", angles="xy", scale_units="xy", scale=1, pivot="mid",
              width=0.0035, rasterized=True, headwidth=4, headlength=4, headaxislength=3.6)  # fmt: skip
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.set_axis_off()
    wheel = ax.inset_axes((0.91, 1.005, 0.085, 0.085))
    grid = np.linspace(-1, 1, 101)
    dy, dx = np.meshgrid(grid, grid, indexing="ij")
    colours = np.dstack([flow_colours(dy, dx, 1.0), np.where(np.hypot(dy, dx) <= 1, 255, 0).astype(np.uint8)])
    wheel.imshow(colours)
    wheel.set_axis_off()
    return ax


KERNELS = {
    "blur": np.full((3, 3), 1 / 9),
    "left edges": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4,
    "upper edges": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]) / 4,
}


@styled
def show_convolution(
    image: np.ndarray, kernels: Mapping[str, np.ndarray] | None = None, figure: Figure | None = None
) -> np.ndarray:
    """Show what a convolution does: every pixel becomes the weighted sum of its neighbours; the weights decide.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
        Its brightest channel is used.
    kernels : name -> (3, 3) weights, optional
        Default `KERNELS`.

    Returns
    -------
    (2, 1 + kernels) Axes
        The image and nine of its pixels; above the weights, below what they make of the image.
    """
    from scipy.ndimage import correlate

    kernels = KERNELS if kernels is None else kernels
    plane = grey_of(checked_image(image)).astype(float)
    figure = figure_or_new(figure, (2.6 * (1 + len(kernels)), 4.9))
    axes = figure.subplots(2, 1 + len(kernels), gridspec_kw={"height_ratios": [1, 1.9]})
    row, column = _edge_pixel(plane)
    patch = np.pad(plane, 1, mode="edge")[row : row + 3, column : column + 3]
    _number_grid(axes[0, 0], patch, "9 pixels", "{:.0f}", cmap="gray", vmin=0, vmax=255)
    draw_picture(axes[1, 0], plane, "image", vmin=0, vmax=max(plane.max(), 1))
    axes[1, 0].add_patch(_frame(row, column, plane.shape))
    for (top, bottom), (name, kernel) in zip(axes[:, 1:].T, kernels.items(), strict=True):
        answer = correlate(plane, np.asarray(kernel, float), mode="nearest")
        limit = max(abs(kernel).max(), 1e-6)
        _number_grid(
            top, np.asarray(kernel, float), f"weights: {name}", "{:.2g}", cmap="PuOr_r", vmin=-limit, vmax=limit
        )
        signed = answer.min() < -1
        reach = max(float(np.percentile(abs(answer), 99.5)), 1.0)
        how = {"cmap": "PuOr_r", "vmin": -reach, "vmax": reach} if signed else {"vmin": 0, "vmax": max(plane.max(), 1)}
        draw_picture(bottom, answer, f"here: {(patch * kernel).sum():.0f}", **how)
        bottom.add_patch(_frame(row, column, plane.shape))
    return axes


def _edge_pixel(plane: np.ndarray) -> tuple[int, int]:
    """Return a pixel on a strong edge away from the border, where a kernel has something to say."""
    from scipy.ndimage import gaussian_filter, sobel

    smooth = gaussian_filter(plane, 1)
    strength = np.hypot(sobel(smooth, 0), sobel(smooth, 1))
    margin = min(8, (min(plane.shape) - 1) // 2)
    inner = strength[margin : plane.shape[0] - margin, margin : plane.shape[1] - margin]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(row) + margin, int(column) + margin


def _frame(row: int, column: int, shape: tuple[int, int]):
    from matplotlib.patches import Rectangle

    half = max(1.5, max(shape) / 60)
    return Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False, ec="#FFC20A", lw=2)


def _number_grid(ax: Axes, values: np.ndarray, title: str, form: str, **how) -> None:
    """Show a few numbers as coloured squares with the numbers written in them."""
    shown = ax.imshow(values, **how)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = shown.cmap(shown.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(column, row, form.format(value), ha="center", va="center", fontsize=9, color="white" if dark else INK)
    ax.set_xticks(np.arange(values.shape[1] + 1) - 0.5, [])
    ax.set_yticks(np.arange(values.shape[0] + 1) - 0.5, [])
    ax.grid(True, color="white", lw=1)
    ax.set_axisbelow(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
