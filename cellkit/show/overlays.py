"""Cells drawn on their image, and which of them were found, missed or invented."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.scores.iou import overlaps, scorable
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import match_pairs
from cellkit.show.style import (
    INK,
    UNKNOWN_COLOUR,
    axes_or_new,
    class_colour,
    class_dashes,
    class_line,
    class_name,
    draw_bar,
    legend_below,
    styled,
    words_only,
)

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

VERDICTS = {"hit": "#56B4E9", "missed": "#F0E442", "invented": "#E8590C", "wrong class": "#CC79A7"}
DRAWN_PX = 900  # outlines are drawn on a picture whose longer side is about this


# ---- images --------------------------------------------------------------------------------------------------------
def checked_image(image: np.ndarray) -> np.ndarray:
    """Return an image that can be drawn; refuse others.

    Raises
    ------
    ValueError
        With the shape and type that came.
    """
    good = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not good or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3) or 0 in image.shape:
        came = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image is (H, W) or (H, W, 3) uint8, this is {came}")
    return image


def checked_pair(image: np.ndarray, *objects: Instances | None) -> None:
    """Refuse objects of another shape than the image.

    Raises
    ------
    UserError
        With both sizes.
    """
    shape = checked_image(image).shape[:2]
    for one in objects:
        if one is not None and one.shape != shape:
            raise UserError(
                f"the image is {shape[0]} x {shape[1]} px, its objects are of {one.shape[0]} x {one.shape[1]} px",
                "give the objects of this very image",
            )


def draw_picture(ax: Axes, image: np.ndarray, title: str = "", **how) -> Axes:
    """Show pixels without ticks; grey values from 0 to 255."""
    how = {"cmap": "gray", "vmin": 0, "vmax": 255} | how if image.ndim == 2 else how
    ax.imshow(image, **how)
    ax.set_axis_off()
    if title:
        ax.set_title(title)
    return ax


def grey_of(image: np.ndarray) -> np.ndarray:
    """Return the brightest channel of each pixel, (H, W) uint8."""
    return image if image.ndim == 2 else image.max(axis=2)


@styled
def show_image(image: np.ndarray, ax: Axes | None = None, title: str = "", um_per_px: float = math.nan) -> Axes:
    """Show one image; with a scale bar where its pixel size is known."""
    return draw_bar(draw_picture(axes_or_new(ax, shape=checked_image(image).shape), image, title), um_per_px)


# ---- outlines ------------------------------------------------------------------------------------------------------
def _at_drawing_scale(labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the label image enlarged (or thinned out) by a whole number to about `DRAWN_PX`, and the factor."""
    longest = max(labels.shape)
    if longest >= 2 * DRAWN_PX:
        step = longest // DRAWN_PX
        return labels[::step, ::step], 1 / step
    times = max(1, round(DRAWN_PX / longest))
    return np.repeat(np.repeat(labels, times, axis=0), times, axis=1), float(times)


def outline_of(labels: np.ndarray, width_px: int = 1) -> np.ndarray:
    """Return the pixels of each object within `width_px` of another object or the background: (H, W) bool, one pass.

    Examples
    --------
    >>> outline_of(np.array([[0, 0, 0, 0], [0, 1, 1, 2], [0, 0, 0, 0]])).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    """
    edge = np.zeros(labels.shape, bool)
    for step in range(1, min(width_px, *(n - 1 for n in labels.shape)) + 1):
        down, right = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        edge[step:] |= down
        edge[:-step] |= down
        edge[:, step:] |= right
        edge[:, :-step] |= right
    return edge & (labels > 0)


def _rgb(colours: Sequence[str]) -> np.ndarray:
    """Return hexadecimal colours as (N + 1, 3) uint8; row 0 is the background."""
    from matplotlib.colors import to_rgb

    table = np.array([(0.0, 0.0, 0.0), *(to_rgb(colour) for colour in colours)])
    return (255 * table).round().astype(np.uint8)


def cell_layer(
    objects: Instances,
    colours: Sequence[str],
    width_px: int,
    fill: float = 0.0,
    stripes: bool = False,
    dashes: Sequence = (),
) -> np.ndarray:
    """Return an RGBA picture of outlines with a dark seam, and of areas filled to `fill` (0 to 1), striped or not.

    `dashes` has, for each object, `class_dashes`; without it all outlines are whole.
    """
    from scipy.ndimage import binary_dilation

    labels, scale = _at_drawing_scale(objects.paint())
    table = _rgb(colours)
    layer = np.zeros((*labels.shape, 4), np.uint8)
    if fill:
        inside = labels > 0
        if stripes:
            rows, columns = np.indices(labels.shape, sparse=True)
            inside &= (rows + columns) % 20 < 7
        layer[inside, :3] = table[labels[inside]]
        layer[inside, 3] = round(255 * fill)
    edge = outline_of(labels, width_px)
    seam = binary_dilation(edge, iterations=2) & (labels == 0)
    layer[seam] = (0, 0, 0, 110)
    layer[edge, :3] = table[labels[edge]]
    layer[edge, 3] = 255
    if any(dashes):
        y, x = np.nonzero(edge)
        owner, turned, pairs = _along_outline(objects, labels, scale, y, x)
        for pattern in sorted({one for one in dashes if one}):
            ends = np.cumsum(pattern) / sum(pattern)
            whole = np.maximum(2, np.round(pairs / (len(pattern) / 2)))  # a pattern of two dashes is twice as long
            left_out = np.searchsorted(ends, turned * whole % 1, side="right") % 2 == 1
            of_pattern = np.array([one == pattern for one in dashes])[owner]
            layer[y[of_pattern & left_out], x[of_pattern & left_out]] = (0, 0, 0, 170)
    return layer


def _along_outline(objects: Instances, labels: np.ndarray, scale: float, y: np.ndarray, x: np.ndarray):
    """Return the object of each pixel, how far round it lies (0 to 1), and how many pairs of dashes go round."""
    owner = labels[y, x] - 1
    left, top, width, height = objects.boxes_xywh.T * scale
    angle = np.arctan2(y - (top + height / 2)[owner], x - (left + width / 2)[owner])
    pairs = np.maximum(2, np.round((width + height) * np.pi / 2 / 26)).astype(int)[owner]  # 26 px a pair of dashes
    return owner, angle / (2 * np.pi) + 0.5, pairs


def _dashed_layer(objects: Instances, width_px: int) -> np.ndarray:
    """Return an RGBA picture of dashed outlines, white with a dark seam and dark in turn: visible on any ground and line."""
    from scipy.ndimage import binary_dilation

    labels, scale = _at_drawing_scale(objects.paint())
    layer = np.zeros((*labels.shape, 4), np.uint8)
    y, x = np.nonzero(outline_of(labels, width_px))
    _, turned, pairs = _along_outline(objects, labels, scale, y, x)
    light = np.floor(turned * 2 * pairs) % 2 == 0
    white = np.zeros(labels.shape, bool)
    white[y[light], x[light]] = True
    layer[binary_dilation(white)] = (0, 0, 0, 200)
    layer[y, x] = np.where(light[:, None], (255, 255, 255, 255), (0, 0, 0, 200))
    return layer


def _lay(ax: Axes, layer: np.ndarray, shape: tuple[int, int]) -> None:
    ax.imshow(layer, extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5), interpolation="antialiased")


def draw_unknown(ax: Axes, cells: Instances) -> None:
    """Veil what is not annotated in grey, with light stripes."""
    if not cells.unknown_px:
        return
    mask, _ = _at_drawing_scale(cells.unknown_mask)
    rows, columns = np.indices(mask.shape, sparse=True)
    layer = np.uint8([0, 0, 0, 0]) + np.uint8([128, 128, 128, 110]) * mask[..., None]
    layer[mask & ((rows - columns) % 28 < 4)] = (215, 215, 215, 150)
    _lay(ax, layer, cells.shape)


def unknown_handle(*sides: Instances | None) -> list:
    """Return what a legend says of `draw_unknown`; nothing where all is annotated."""
    from matplotlib.patches import Patch

    patch = Patch(facecolor="#808080", edgecolor="#D7D7D7", hatch="\\\\\\", label="not annotated")
    return [patch] if any(one is not None and one.unknown_px for one in sides) else []


@styled
def show_overlay(
    image: np.ndarray,
    found: Instances,
    truth: Instances | None = None,
    ax: Axes | None = None,
    title: str = "",
    classes: Sequence[str] = (),
    fill: float = 0.0,
    legend: bool = True,
    line_px: int = 4,
    names: tuple[str, str] = ("found", "truth"),
    um_per_px: float = math.nan,
) -> Axes:
    """Show found cells as outlines in the colour of their class, true cells as thin dashes, white and dark.

    What is not annotated, on either side, lies under a striped grey veil.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
    found, truth : Instances
        Of this image. Where masks overlap, the one of higher score is drawn.
    classes : sequence of str
        Names for the legend.
    fill : float
        0 = outlines only, up to 1 = areas painted over.
    line_px : int
        Width of an outline where the image is drawn 900 px wide.
    names : (str, str)
        What the legend calls the two sides: dashed outlines that a model proposed are no truth.
    um_per_px : float
        Of the image: a scale bar is drawn where it is known.
    """
    checked_pair(image, found, truth)
    ax = draw_picture(axes_or_new(ax, shape=image.shape), image, title)
    shape = image.shape[:2]
    for side in (found, truth):
        if side is not None:
            draw_unknown(ax, side)
    if len(found):
        colours, dashes = zip(*((class_colour(k), class_dashes(k)) for k in found.class_ids.tolist()), strict=True)
        _lay(ax, cell_layer(found, colours, line_px, fill, dashes=dashes), shape)
    if truth is not None and len(truth):
        _lay(ax, _dashed_layer(truth, max(2, line_px // 2)), shape)
    if legend:
        legend_below(ax, _overlay_handles(found, truth, classes, names) + unknown_handle(found, truth))
    return draw_bar(ax, um_per_px)


def _overlay_handles(
    found: Instances, truth: Instances | None, classes: Sequence[str], names: tuple[str, str] = ("found", "truth")
) -> list:
    from matplotlib.lines import Line2D

    kinds, counts = np.unique(found.class_ids, return_counts=True)
    side = f"{names[0]}: " if truth is not None and any(class_name(k, classes) for k in kinds) else ""
    handles = [
        class_line(k, f"{side}{class_name(k, classes) or names[0]} {n}")
        for k, n in zip(kinds.tolist(), counts.tolist(), strict=True)
    ] or [Line2D([], [], color=UNKNOWN_COLOUR, lw=3, label=f"{names[0]} 0")]
    if truth is not None:
        handles.append(Line2D([], [], color=INK, lw=1.4, ls=(0, (2, 1.4)), label=f"{names[1]} {len(truth)}"))
    return handles


# ---- errors --------------------------------------------------------------------------------------------------------
def verdicts(truth: Instances, found: Instances, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return what became of every true and every found object of one image.

    Returns
    -------
    of_truth : (G,) object
        "hit" or "missed".
    of_found : (P,) object
        "hit", "invented", or "wrong class": matched (IoU above `threshold`), both classes known, and not the same.

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 1, 0, 2, 2]]), class_ids=[1, 1])
    >>> found = Instances.from_labels(np.array([[1, 1, 0, 0, 2]]), class_ids=[2, 1])
    >>> [side.tolist() for side in verdicts(truth, found)]
    [['hit', 'missed'], ['wrong class', 'invented']]
    """
    i, j = match_pairs(truth, found, threshold)
    of_truth, of_found = np.full(len(truth), "missed", object), np.full(len(found), "invented", object)
    of_truth[i] = "hit"
    known = (truth.class_ids[i] > 0) & (found.class_ids[j] > 0)
    of_found[j] = np.where(known & (truth.class_ids[i] != found.class_ids[j]), "wrong class", "hit")
    return of_truth, of_found


@styled
def show_errors(
    image: np.ndarray,
    truth: Instances,
    found: Instances,
    ax: Axes | None = None,
    title: str = "",
    threshold: float = 0.5,
    legend: bool = True,
    um_per_px: float = math.nan,
) -> Axes:
    """Show where an answer is right and wrong: hit, missed (striped), invented, wrong class, with counts.

    A hit is a pair with IoU strictly above `threshold`. The image is shown in grey, with a scale bar where its pixel size
    is known. What is not annotated lies under a veil; found cells that lie mostly there are not judged, and not drawn. Where the
    truth is boxes, what is found is shown and judged as boxes too.
    """
    checked_pair(image, truth, found)
    found = scorable(truth, found.as_boxes() if truth.boxes_only else found)
    of_truth, of_found = verdicts(truth, found, threshold)
    ax = draw_picture(axes_or_new(ax, shape=image.shape), (grey_of(image) * 0.75).astype(np.uint8), title)
    draw_unknown(ax, truth)
    shape, missed = image.shape[:2], truth[of_truth == "missed"]
    if len(missed):
        _lay(ax, cell_layer(missed, [VERDICTS["missed"]] * len(missed), 3, fill=0.55, stripes=True), shape)
    if len(found):
        _lay(ax, cell_layer(found, [VERDICTS[v] for v in of_found], 5, fill=0.28), shape)
    if legend:
        counts = {name: int((of_found == name).sum()) for name in VERDICTS} | {"missed": len(missed)}
        with_class = truth.class_ids.any() and found.class_ids.any()
        legend_below(ax, _verdict_handles(counts, with_class) + unknown_handle(truth))
    return draw_bar(ax, um_per_px)


@styled
def show_worst(data: CellDataset, found: Sequence[Instances], ax: Axes | None = None) -> Axes:
    """Show the errors in the image of lowest MAP IoU; where a model proposed all labels, only where the two differ most.

    Parameters
    ----------
    data : CellDataset
        Images with their labels; proposals are no truth (`CellDataset.made_by`).
    found : list of Instances
        One per image.
    """
    if not len(data):
        return words_only("no image that could show it is labelled", ax)
    own = [k for k, maker in enumerate(data.made_by) if maker != "proposed"]
    score = {}
    for place in own or range(len(data)):
        pairs = overlaps(data.instances[place], scorable(data.instances[place], found[place]))
        score[place] = kaggle([pairs], bootstrap=0)["score"]
    k = min(score, key=lambda place: (score[place], place))
    name, um = data.records[k].image_id, data.records[k].um_per_px
    if own:
        return show_errors(*data[k], found[k], ax, f"{name}: MAP IoU {score[k]:.3f}", um_per_px=um)
    return show_found(data, found, k, ax)


@styled
def show_found(data: CellDataset, found: Sequence[Instances], k: int = 0, ax: Axes | None = None) -> Axes:
    """Show what a model found in the image at position `k` beside its labels; proposals are called that, not truth.

    Parameters
    ----------
    data : CellDataset
        Images with their labels.
    found : list of Instances
        One per image.
    """
    if not len(data):
        return words_only("no image that could show it is labelled", ax)
    names = ("found", "proposed, no truth" if data.made_by[k] == "proposed" else "truth")
    how = {"classes": data.classes, "names": names, "um_per_px": data.records[k].um_per_px}
    return show_overlay(data.image(k), found[k], data.instances[k], ax, data.records[k].image_id, **how)


def show_worst_images(data: CellDataset, found: Mapping[str, Instances], lost: pandas.DataFrame, n: int) -> list[Axes]:
    """Show the errors in the `n` images of lowest MAP IoU, worst first.

    Parameters
    ----------
    data : CellDataset
        Images with true cells.
    found : mapping
        One model's cells by image_id.
    lost : DataFrame
        Of `cellkit.scores.attribution.attribute`: the score of each image.
    """
    from cellkit.scores.attribution import worst_images

    shown = []
    for row in worst_images(lost, n).itertuples():
        k = data.index(row.image_id)
        title, um = f"{row.image_id}: MAP IoU {row.score:.3f}", data.records[k].um_per_px
        shown.append(show_errors(*data[k], found[row.image_id], title=title, um_per_px=um))
    return shown


@styled
def show_proposed_and_used(
    images: CellDataset, proposals: Sequence[Instances], used: CellDataset, ax: Axes | None = None
) -> Axes:
    """Show what a model proposes and the labels that are used, dashed, in the first image that has both.

    Parameters
    ----------
    images : CellDataset
        Those that were proposed for.
    proposals : list of Instances
        One per image.
    used : CellDataset
        Images with the labels that are used; where there is none of `images`, a line says so.
    """
    place = {record.image_id: k for k, record in enumerate(used.records)}
    shown = next((k for k, record in enumerate(images.records) if record.image_id in place), None)
    if shown is None:
        return words_only("no image has a proposal and labels", ax)
    record = images.records[shown]
    k = place[record.image_id]
    names = ("proposed", f"used ({used.made_by[k] or 'maker unknown'})")
    how = {"title": record.image_id, "names": names, "um_per_px": record.um_per_px}
    return show_overlay(images.image(shown), proposals[shown], used.instances[k], ax, **how)


def _verdict_handles(counts: Mapping[str, int] | None = None, with_class: bool = True) -> list:
    from matplotlib.patches import Patch

    handles = []
    for name, colour in VERDICTS.items():
        if name != "wrong class" or with_class:
            text = name if counts is None else f"{name} {counts[name]}"
            stripes = {"hatch": "/////", "facecolor": "white"} if name == "missed" else {"facecolor": colour}
            handles.append(Patch(**stripes, edgecolor="#B5A800" if name == "missed" else colour, label=text))
    return handles
