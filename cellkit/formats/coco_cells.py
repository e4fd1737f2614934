"""The cells of a COCO file: boxes, polygons and run lengths become instances, each checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.outlines import pixel_boxes
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted
from cellkit.formats.coco_dialects import key_of

LONGEST_SIDE_PX = 2**18


FARTHEST_PX = 1e9


def checked_id(value: Any, where: str, least: int = 1) -> int:
    """Return a whole number >= `least`, e.g. a size; texts of digits count, because some tools write them.

    Raises
    ------
    UserError
        No whole number, or one below `least`.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise UserError(f"{where}: {str(value)[:40]!r} is no whole number from {least} on", f"number from {least} on")
    return value


def checked_key(value: Any, where: str) -> int | str:
    """Return an id of an image or a category; see `cellkit.formats.coco_dialects.key_of`.

    Raises
    ------
    UserError
        Neither a whole number from 0 on nor a text.
    """
    key = key_of(value)
    if key is None:
        raise UserError(f"{where}: {str(value)[:40]!r} is no whole number from 0 on, and no text", "give it an id")
    return key


def checked_score(value: Any, where: str) -> float:
    """Return a score from 0 to 1, or refuse it.

    Raises
    ------
    UserError
        No number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{where}: score is {str(value)[:40]}", "a score is a number from 0 to 1")
    return float(value)


def cells_of_boxes(rows: list[dict], shape: tuple[int, int], where: str) -> Instances:
    """Return the boxes of one image; x and y count from 0, width and height reach the last pixel's far edge.

    Raises
    ------
    UserError
        An annotation without a box, or a box that leaves the image.
    """
    edges = []
    for row in rows:
        box = row.get("bbox")
        if not _is_box(box):
            raise UserError(f"{where}: an annotation has neither mask nor box", "a box is [x, y, width, height] in px")
        edges.append([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    return Instances.from_boxes(pixel_boxes(np.array(edges, float), shape, where), shape)


def cells_of_rows(
    rows: list[dict],
    record: ImageRecord,
    categories: dict[int | str, int],
    where: str,
    decode: Callable | None = None,
) -> Instances:
    """Return the cells of one image from its annotations, by masks or by boxes where there are only boxes.

    Raises
    ------
    UserError
        Naming the annotation: a category, box, mask or score that is none.
    """
    class_ids = []
    for row in rows:
        number = checked_key(row.get("category_id"), f"{where}: category_id")
        if number not in categories:
            raise UserError(
                f"{where}: category_id {number} is not among the categories", "add the category or correct the id"
            )
        class_ids.append(categories[number])
    found = (decode or cells_of_masks)(rows, (record.height_px, record.width_px), where).with_classes(class_ids)
    if any("score" in row for row in rows):  # a cell that somebody drew among those of a model has none
        found = found.with_scores([checked_score(row.get("score", 1.0), where) for row in rows])
    return found


def region_of_rows(rows: list[dict], shape: tuple[int, int], where: str) -> np.ndarray:
    """Return where an image is not annotated, (H, W) bool: what its regions of no single object cover, masks or boxes.

    Raises
    ------
    UserError
        As `cells_of_rows`.
    """
    masks = [row for row in rows if row.get("segmentation")]
    boxes = [row for row in rows if not row.get("segmentation")]
    for row in rows:
        checked_key(row.get("category_id"), f"{where}: category_id")
    return (cells_of_masks(masks, shape, where).paint() > 0) | (cells_of_boxes(boxes, shape, where).paint() > 0)


def with_pixels(
    grouped: list[list[dict]], records: list[ImageRecord], instances: list[Instances]
) -> tuple[list[Instances], list[str]]:
    """Leave out true cells that cover no pixel, which nobody could find, and say how many; predictions stay as they are."""
    kept, count, example = [], 0, ""
    for rows, record, found in zip(grouped, records, instances, strict=True):
        empty = found.areas_px == 0
        if not empty.any() or all("score" in row for row in rows):
            kept.append(found)
            continue
        kept.append(found[~empty])
        count += int(empty.sum())
        example = example or record.image_id
    which = f", e.g. of {example}" if len(records) > 1 else ""
    note = f"left out: {counted(count, 'annotation')} without a pixel in the image{which}"
    return kept, [note] if count else []


SLACK_PX, SLACK = 2, 0.05  # what rounding, another rasteriser or a resized export does to a box


def contradictions(grouped: list[list[dict]], records: list[ImageRecord], instances: list[Instances]) -> list[str]:
    """Say, once, how many annotations have a box that is not that of their mask; the masks count."""
    count, wrong, corners, example = 0, 0, 0, ""
    for rows, record, found in zip(grouped, records, instances, strict=True):
        places = [k for k, row in enumerate(rows) if _is_box(row.get("bbox")) and found.areas_px[k]]
        if not places:
            continue
        most = np.array([record.width_px, record.height_px] * 2)
        x, y, width, height = found.boxes_xywh[places].T
        mask = np.stack([x, y, x + width, y + height], axis=1)
        box = np.array([rows[k]["bbox"] for k in places], float)
        slack = SLACK_PX + SLACK * np.stack([width, height, width, height], axis=1)
        with np.errstate(all="ignore"):
            edges = np.clip(np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1), 0, most)
        off = np.flatnonzero(~(np.abs(edges - mask) <= slack).all(axis=1))
        count += len(places)
        wrong += len(off)
        corners += int((np.abs(box - mask) <= slack).all(axis=1)[off].sum())
        if len(off) and not example:
            shown = ", ".join(f"{value:g}" for value in box[off[0]])
            its = ", ".join(str(int(v)) for v in (x[off[0]], y[off[0]], width[off[0]], height[off[0]]))
            example = f"{record.image_id}: box {shown}, mask {its}"
    if not wrong:
        return []
    why = "; they are corners x, y, x, y where x, y, width, height is meant" if 2 * corners > wrong else ""
    return [f"{wrong} of {count} boxes contradict their masks, e.g. {example}{why}; the masks count"]


def _is_box(box: Any) -> bool:
    """Tell whether something is four numbers, none larger than a float."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, float) or (type(v) is int and abs(v) < FARTHEST_PX) for v in box)
    )


def cells_of_masks(rows: list[dict], shape: tuple[int, int], where: str) -> Instances:
    """Decode the masks of one image: RLE as it is, polygons rasterised.

    Raises
    ------
    UserError
        An annotation without a mask, or one that does not fit the image.
    """
    if not rows:
        return Instances.empty(shape)
    rles = []
    for row in rows:
        segmentation = row.get("segmentation")
        if isinstance(segmentation, dict):
            rles.append(segmentation)
        elif isinstance(segmentation, list) and segmentation:
            rles.append(_rasterised(segmentation, shape, where))
        else:
            raise UserError(
                f"{where}: an annotation has a box but no mask, and boxes are not masks",
                "give a segmentation; where there is none, score boxes (voc, coco) or label masks (label.use)",
            )
    try:
        return Instances.from_coco_rle(rles, shape)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _rasterised(polygons: list, shape: tuple[int, int], where: str) -> dict:
    """Return the RLE of polygons, every point checked and far ones cut off (pycocotools hangs or crashes on wild ones).

    Points are corners of pixels, as pycocotools takes them: a square of 10 x 10 px ends at 10. A tool that draws through the
    centres of pixels (0 to 9) means a row and a column more than come back, 81 px of 100; a file does not say which it is.
    """
    from pycocotools import mask as coco_mask

    height, width = shape
    clean = []
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in polygon
        )
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(
                f"{where}: a polygon has fewer than three points or no numbers",
                "a polygon is [x1, y1, x2, y2, x3, y3, ...]",
            )
        if not all(-FARTHEST_PX <= v <= FARTHEST_PX for v in polygon):
            raise UserError(f"{where}: a polygon has a point that is not finite or far away", "points are in px")
        clean.append(_near(np.array(polygon, np.float64).reshape(-1, 2), width, height).ravel().tolist())
    merged = coco_mask.merge(coco_mask.frPyObjects(clean, height, width))
    return {"size": [height, width], "counts": merged["counts"]}


def _near(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cut off what of a polygon lies more than one image away; what is nearer is left to the rasteriser as it is.

    Parameters
    ----------
    points : (P, 2) float64
        x, y in px.

    Returns
    -------
    (Q, 2) float64
        After Sutherland and Hodgman 1974, one side of the enlarged image after the other; at least three points.
    """
    for axis, size in ((0, width), (1, height)):
        for sign, limit in ((1, 2 * size), (-1, size)):
            over = sign * points[:, axis] - limit
            if not (over > 0).any():
                continue
            before, over_before = np.roll(points, 1, 0), np.roll(over, 1)
            kept = []
            for a, b, over_a, over_b in zip(before, points, over_before, over, strict=True):
                if (over_a > 0) != (over_b > 0):
                    kept.append(a + (b - a) * (over_a / (over_a - over_b)))
                if over_b <= 0:
                    kept.append(b)
            points = np.array(kept).reshape(-1, 2)
    return points if len(points) > 2 else np.full((3, 2), -1.0)
