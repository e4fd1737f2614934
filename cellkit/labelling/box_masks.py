"""Masks made from boxes: what a network of outlines learns from where only boxes were drawn.

They are made, not seen: such masks teach, and nothing is scored against them (their images are marked "proposed"). Truth
stays the boxes. Three ways, of which none adds what the box does not say, but for the last:

- ``box``: the filled box;
- ``ellipse``: the ellipse that touches the box's sides. Of a cell that the image's border cuts off, it is that of the box as
  long as it is wide (`whole_boxes`), and what lies outside of the image is left out;
- ``watershed``: from the middle of the ellipse outward, from the pixels in no box inward, up to where the picture's gradient is
  largest (Beucher and Meyer 1993, The morphological approach to segmentation: the watershed transformation). A gradient near
  the ellipse counts most (`NEAR`). Where this gives less than `LEAST_SHARE` or more than `MOST_SHARE` of the ellipse, or the
  gradient is 0 around it, the picture tells nothing, and the ellipse is taken.

A pixel in several boxes is that of one whose ellipse it lies in; of several such, or of none, that of the nearest middle, in
px; of equally near ones that of the smaller box, then of the earlier. Every cell keeps a pixel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted
from cellkit.formats.coco_reading import read_coco
from cellkit.models import unet_border
from cellkit.models.shared.contract import SMALLEST, Area, Share
from cellkit.models.shared.cost import Course
from cellkit.models.shared.inputs import CHANNELS
from cellkit.models.unet_border import TrainSettings
from cellkit.settings import Number

Way = Literal["box", "ellipse", "watershed"]
BOX_WAYS = ("box", "ellipse", "watershed")
CORE = 0.5  # of the ellipse's diameters: the marker of a cell in the watershed
LEAST_SHARE, MOST_SHARE = 0.5, 1.2  # of the ellipse's pixels: what a watershed may give
NEAR = 0.3  # of a radius: so far from the ellipse a gradient counts exp(-1/2) of what it counts on it
BLUR_PX = 1.0  # of the picture before its gradient is taken


class BoxTrainSettings(TrainSettings):
    """What a U-Net that learns from boxes may be told: how they become masks, and all that it may be told else."""

    masks: Way = Field(
        "ellipse", description="what teaches in place of a box: the box filled, its ellipse, or a watershed inside it"
    )
    parts: int = Field(
        3,
        ge=2,
        le=20,
        description="networks, each taught by all training images but its part: how cells are read and counted is chosen on "
        "images that their network has not seen, and the mean of all networks answers for others",
    )
    steps: int = Field(300, ge=1, description="most optimiser steps of each network")
    border_weight: Number = Field(
        1.0,
        ge=0,
        le=10,
        description="times the border's probability taken from the interior's; chosen anew for each class",
    )
    seed_threshold: Share = Field(0.5, description="interior minus weighted border above which a pixel is a seed's")
    cell_threshold: Share = Field(0.5, description="probability above which a pixel belongs to a cell")
    min_area_px: Area = Field(15, description=SMALLEST)
    channels: Literal[tuple(CHANNELS)] = Field("all", description="what the network is shown; all = red too")


# ---- what it costs: as a backend tells it, see `cellkit.models` ------------------------------------------------------
cost, BYTES_PER_PX, CELL_PX = unet_border.cost, unet_border.BYTES_PER_PX, unet_border.CELL_PX


def parts_of(config: BoxTrainSettings, images: int) -> int:
    """Return how many networks are trained."""
    return max(min(config.parts, images), 1)


def steps_of(config: BoxTrainSettings, images: int) -> int:
    """Return the steps of all networks together."""
    return config.steps * parts_of(config, images)


def course_of(config: BoxTrainSettings, images: int) -> Course:
    """Return what recipe 31 does: a network without each part, which looks at that part; no validation image is scored."""
    parts = parts_of(config, images)
    return Course(parts, answers=parts, prepared=max(parts - 1, 1), unseen=1.0, scored=False)


class BoxMasks(NamedTuple):
    """Masks of one image: one for each box, in order; and how many took another way than was asked for, by reason."""

    cells: Instances
    notes: Counter[str]


def masks_of_boxes(image: np.ndarray, boxes: Instances, way: Way = "ellipse") -> BoxMasks:
    """Return a mask for every box of an image; none shares a pixel with another.

    Parameters
    ----------
    image : (H, W, 3) uint8
        Looked at by the watershed alone.
    boxes : Instances
        Their boxes count; classes, scores and what is not annotated are kept.
    way : {"box", "ellipse", "watershed"}

    Raises
    ------
    UserError
        No such way, or an image of another size.

    Examples
    --------
    >>> boxes = Instances.from_boxes([[0, 1, 5, 3], [4, 0, 3, 3]], (5, 8))
    >>> masks_of_boxes(np.zeros((5, 8, 3), np.uint8), boxes, "box").cells.paint().tolist()[1]
    [1, 1, 1, 1, 2, 2, 2, 0]
    """
    if way not in BOX_WAYS:
        raise UserError(f"masks are to be made the way '{way}'", f"choose {', '.join(BOX_WAYS)}")
    if image.shape[:2] != boxes.shape:
        raise UserError(
            f"the image is {image.shape[0]} x {image.shape[1]} px, its boxes are of {boxes.shape[0]} x {boxes.shape[1]} px",
            "give the boxes of this very image",
        )
    owner = nearest_box(boxes)
    labels, notes = owner, Counter()
    if way != "box":
        radii = _radii(owner, boxes)
        labels = np.where(radii <= 1, owner, 0)
    if way == "watershed" and len(boxes):
        flooded = _flooded(image, owner, radii, boxes)
        labels, poor = _where_told(flooded, labels, len(boxes))
        notes["the picture shows no outline in the box: ellipse"] += poor
    labels, hidden = with_a_pixel_each(labels, boxes)
    notes["hidden by other boxes: one pixel"] += hidden
    made = Instances.from_labels(labels, boxes.class_ids, boxes.scores)
    return BoxMasks(made.with_unknown(boxes.unknown_mask) if boxes.unknown_px else made, +notes)


def with_masks(data: CellDataset, way: Way = "ellipse") -> tuple[CellDataset, str]:
    """Return images with masks in place of boxes, marked as proposed: they teach and judge nothing. And what to know of them.

    Returns
    -------
    CellDataset
        The same images and classes.
    str
        How many masks were made and how; how many otherwise, and why.

    Raises
    ------
    UserError
        As `masks_of_boxes`.
    """
    notes, cells = Counter(), []
    for k in range(len(data)):
        made = masks_of_boxes(data.image(k), data.instances[k], way)
        cells.append(made.cells)
        notes.update(made.notes)
    told = [f"{counted(sum(map(len, cells)), 'mask')} made from boxes, the way {way}"]
    told += [f"{count} {reason}" for reason, count in sorted(notes.items())]
    return replace(data, instances=cells, made_by=["proposed"] * len(data)), "; ".join(told)


def read_boxes(path: str | Path, root: str | Path) -> CellDataset:
    """Read the images of a run whose truth is boxes.

    Parameters
    ----------
    path : path
        ``run.find("truth")``.
    root : path
        The run folder.

    Raises
    ------
    UserError
        The truth is outlines.
    """
    boxes = read_coco(path, root, boxes=True)
    if not boxes.boxes_only:
        raise UserError(
            "this recipe makes masks of boxes, and the cells of this set have outlines",
            "train on the outlines: notebooks 03 and 05, or the recipe unet_border",
        )
    return boxes


def whole_boxes(boxes: Instances) -> np.ndarray:
    """Return boxes (N, 4) float64, left, top, width, height in px: those cut off by the image's border as if they went on.

    A cell that is cut off at one side is taken to be as long as it is wide, if that makes it longer. In a corner, where both
    are cut, the longer of the two is taken for both.

    Examples
    --------
    >>> whole_boxes(Instances.from_boxes([[0, 4, 3, 8], [4, 4, 3, 8], [14, 0, 2, 5]], (20, 16))).tolist()
    [[-5.0, 4.0, 8.0, 8.0], [4.0, 4.0, 3.0, 8.0], [14.0, 0.0, 5.0, 5.0]]
    """
    x, y, width, height = boxes.boxes_xywh.astype(float).T
    rows, columns = boxes.shape
    sides = []
    for start, length, other, most in ((x, width, height, columns), (y, height, width, rows)):
        low, high = start <= 0, start + length >= most
        whole = np.where((low ^ high) & (other > length), other, length)
        sides.append((np.where(low & ~high, start + length - whole, start), whole))
    (left, across), (top, down) = sides
    return np.stack([left, top, across, down], axis=1)


def nearest_box(boxes: Instances) -> np.ndarray:
    """Return which box each pixel belongs to, (H, W) int32, 1 to N, 0 in none: the one whose ellipse it lies in.

    Of several such, or of none, it is the one whose middle is nearest, then the smaller, then the earlier.
    """
    owner, best = np.zeros(boxes.shape, np.int32), np.full(boxes.shape, np.inf)
    whole, outside = whole_boxes(boxes), 4.0 * sum(boxes.shape) ** 2
    for k in np.argsort(boxes.areas_px, kind="stable").tolist():
        rows, columns, y, x = _grid(boxes, k)
        left, top, width, height = whole[k]
        dy, dx = y - top - height / 2, x - left - width / 2
        apart = dy**2 + dx**2 + outside * ((dy / height) ** 2 + (dx / width) ** 2 > 0.25)
        nearer = apart < best[rows, columns]
        owner[rows, columns][nearer] = k + 1
        best[rows, columns][nearer] = apart[nearer]
    return owner


def with_a_pixel_each(labels: np.ndarray, boxes: Instances) -> tuple[np.ndarray, int]:
    """Return labels (H, W) int in which every box has a pixel at least, and how many had none.

    Such a box takes, in itself, the pixel nearest to its middle that is not the last of another; where there is none, two boxes
    of one pixel lie in the same place.

    Raises
    ------
    UserError
        There is no pixel left.
    """
    labels = labels.copy()
    areas = np.bincount(labels.ravel(), minlength=len(boxes) + 1)
    areas[0] = np.iinfo(areas.dtype).max
    lacking = (np.flatnonzero(areas[1:] == 0) + 1).tolist()
    for k in sorted(lacking, key=lambda k: boxes.areas_px[k - 1]):
        rows, columns, y, x = _grid(boxes, k - 1)
        left, top, width, height = boxes.boxes_xywh[k - 1]
        part = labels[rows, columns]
        apart = (y - top - height / 2) ** 2 + (x - left - width / 2) ** 2
        apart = np.where(areas[part] > 1, apart, np.inf)
        place = np.unravel_index(np.argmin(apart), apart.shape)
        if not np.isfinite(apart[place]):
            raise UserError(f"{len(boxes)} boxes share fewer pixels than they are", "remove boxes that are drawn twice")
        areas[part[place]] -= 1
        part[place], areas[k] = k, 1
    return labels, len(lacking)


def _grid(boxes: Instances, k: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Return rows and columns of a box, and the middles of its pixels: (h, 1) and (1, w) float64."""
    left, top, width, height = boxes.boxes_xywh[k].tolist()
    rows, columns = slice(top, top + height), slice(left, left + width)
    return rows, columns, np.arange(top, top + height)[:, None] + 0.5, np.arange(left, left + width)[None] + 0.5


def _radii(owner: np.ndarray, boxes: Instances) -> np.ndarray:
    """Return how far each pixel lies from the middle of its own box, (H, W) float64: 1 on the ellipse, infinite in no box."""
    left, top, width, height = np.vstack([np.ones(4), whole_boxes(boxes)]).T[:, owner]
    y, x = np.indices(owner.shape, sparse=True)
    radii = 2 * np.hypot((y + 0.5 - top - height / 2) / height, (x + 0.5 - left - width / 2) / width)
    return np.where(owner > 0, radii, np.inf)


def _flooded(image: np.ndarray, owner: np.ndarray, radii: np.ndarray, boxes: Instances) -> np.ndarray:
    """Return what the watershed gives each box, (H, W) int32: of its own pixels; none where its gradient is 0."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    markers, _ = with_a_pixel_each(np.where(radii <= CORE, owner, 0), boxes)
    markers[owner == 0] = len(boxes) + 1
    weighted = gradient_of(image) * np.exp(-(((radii - 1) / NEAR) ** 2) / 2)
    flooded = watershed(weighted, markers)
    steepest = ndimage.maximum(weighted, owner, np.arange(len(boxes) + 1))
    return np.where((flooded == owner) & (steepest > 0)[owner], flooded, 0)


def gradient_of(image: np.ndarray) -> np.ndarray:
    """Return how steep a picture is, (H, W) float32: of its three colours the steepest, by Sobel, after a blur."""
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(image.astype(np.float32), (BLUR_PX, BLUR_PX, 0))
    steep = np.hypot(ndimage.sobel(blurred, axis=0), ndimage.sobel(blurred, axis=1))
    return steep.max(axis=2)


def _where_told(flooded: np.ndarray, ellipses: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Return the watershed's cells, but the ellipse of those it gives too little or too much; and how many those are."""
    areas, usual = (np.bincount(labels.ravel(), minlength=count + 1)[1:] for labels in (flooded, ellipses))
    poor = (areas < LEAST_SHARE * usual) | (areas > MOST_SHARE * usual)
    is_poor = np.r_[False, poor]
    labels = np.where(is_poor[flooded], 0, flooded)
    return np.where(is_poor[ellipses], ellipses, labels), int(poor.sum())
