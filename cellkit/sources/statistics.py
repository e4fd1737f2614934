"""Statistics of a data set: what is in a set of labelled images, in numbers, and what is odd about it.

`measure_image` measures one image and its cells; `describe` all images of a set, and returns a dictionary that JSON can hold:
counts, sizes, areas, brightness, the balance of classes, and label faults. `cellkit.show.counts.show_data` draws it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import CellDataset, known_in_part
from cellkit.cells.instances import Instances
from cellkit.cells.labels import check_labels
from cellkit.cells.records import SPLIT_TITLES, common_channels
from cellkit.errors import UserError, counted
from cellkit.parallel import map_items
from cellkit.scores.iou import overlaps

if TYPE_CHECKING:
    import pandas

FAULTS = ("tiny", "pieces", "holes", "touching", "border", "overlapping", "twice")
FAULT_WORDS = {
    "tiny": "smaller than the least area",
    "pieces": "in several pieces",
    "holes": "with a hole",
    "touching": "touching another",
    "border": "cut by the border",
    "overlapping": "sharing pixels with another",
    "twice": "labelled twice (IoU 0.8 or more)",
}
SAME_IOU = 0.8
COLOURS = ("red", "green", "blue")
POINTS = (0.0, 5.0, 25.0, 50.0, 75.0, 95.0, 100.0)
SHEET_VERSION = 1


# ---- one image -----------------------------------------------------------------------------------------------------
def measure_image(image: np.ndarray, cells: Instances, tiny_px: int = 15) -> dict[str, Any]:
    """Measure one image and its cells.

    Parameters
    ----------
    image : (H, W, 3) uint8
    cells : Instances
        Of this image.
    tiny_px : int
        Cells with fewer pixels are tiny.

    Returns
    -------
    dict
        class_ids, areas_px : of every cell. light : (N, 3) mean grey level of every cell, per colour. ground : (3,) median
        grey level of the annotated pixels outside every cell, nan where there are none. faults : how many cells are, by `FAULTS`.
        Pieces and holes are those of the painted label image, where of two cells that overlap the one of higher score, or
        else the first, has the pixel.
    """
    painted = cells.paint()
    inside = np.flatnonzero(painted)
    owner, pixels = painted.ravel()[inside], image.reshape(-1, 3)[inside]
    counts = np.maximum(np.bincount(owner, minlength=len(cells) + 1)[1:], 1)
    light = [np.bincount(owner, pixels[:, k], len(cells) + 1)[1:] / counts for k in range(3)]
    ground = _ground(image, (painted == 0) & ~cells.unknown_mask if cells.unknown_px else painted == 0)
    shared = _sharing(cells)
    return {
        "class_ids": cells.class_ids,
        "areas_px": cells.areas_px,
        "light": np.stack(light, axis=1),
        "ground": ground,
        "faults": {name: int(n) for name, n in (check_labels(painted, tiny_px) | shared).items() if name in FAULTS},
    }


def _ground(image: np.ndarray, outside: np.ndarray) -> list[float]:
    """Return the (lower) median grey level of each colour where `outside` is true; nan where it is nowhere."""
    import cv2

    count, mask = np.count_nonzero(outside), np.ascontiguousarray(outside).view(np.uint8)
    if not count:
        return [math.nan] * 3
    levels = [cv2.calcHist([np.ascontiguousarray(image)], [k], mask, [256], [0, 256]).ravel() for k in range(3)]
    return [float(np.searchsorted(np.cumsum(share, dtype=np.float64), count / 2)) for share in levels]


def _sharing(cells: Instances) -> dict[str, int]:
    """Return how many cells share pixels with another, and how many are another one again."""
    if not cells.overlapping:
        return {"overlapping": 0, "twice": 0}
    pairs = overlaps(cells, cells)
    other = pairs.truth != pairs.found
    again = pairs.found[(pairs.truth < pairs.found) & (pairs.iou >= SAME_IOU)]
    return {"overlapping": len(np.unique(pairs.truth[other])), "twice": len(np.unique(again))}


# ---- all of them ---------------------------------------------------------------------------------------------------
def describe(dataset: CellDataset, tiny_px: int = 15, workers: int = 1) -> dict[str, Any]:
    """Describe a set of labelled images in numbers.

    Parameters
    ----------
    dataset : CellDataset
    tiny_px : int
        Cells with fewer pixels count as tiny.
    workers : int
        Processes that share the images; the same result for any number.

    Returns
    -------
    dict
        Plain numbers, lists and text only: fit for `files.write_json`.

        images, cells, classes; set_aside (images without a split); flags {flag: images}
        groups : number of groups, and of images without one
        by_split : a row per cell type and split: images, empty (without a cell), cells, cells_per_image [least, median, most]
        classes_by_split : {split: {class: cells}}; "unknown" where a cell has none
        balance : smallest over largest class of the training images (of all images where none is for training), 0 to 1
        height_px, width_px, um_per_px : [least, median, most] of the images; um_per_px [] when unknown
        area_px : {class: [least, 5 %, 25 %, median, 75 %, 95 %, most]}; diameter_px : {class: of the median area}
        area_um2 : as area_px; {} unless the pixel size of every image is known
        light : {class: {colour: the same seven points of the cells' mean grey level}}, ground : {colour: of the images' ground}
        in_part : how many images are annotated in part, and how much of them, in words; "" where none is
        faults : {kind: cells}, see `FAULT_WORDS`; faults_by_image : the 20 images with the largest share of faulty cells
        channels : what is in the colours; tiny_px

        An image without cells counts as empty; a set without cells has no areas.

    Raises
    ------
    UserError
        An image cannot be read.
    """
    seen, failed = map_items(
        partial(_describe_image, dataset, tiny_px),
        range(len(dataset)),
        "describe",
        workers,
        name=lambda k: dataset.records[k].path,
    )
    if failed:
        raise UserError(f"{failed[0].item}: {failed[0].reason}", "run 01_convert again; it writes the images")
    records, classes = dataset.records, (*dataset.classes, "unknown")
    ids = _joined([one["class_ids"] for one in seen], (0,))
    of_image = np.repeat(np.arange(len(seen)), [len(one["areas_px"]) for one in seen])
    areas, light = _joined([one["areas_px"] for one in seen], (0,)), _joined([one["light"] for one in seen], (0, 3))
    ids = np.where((ids > 0) & (ids < len(classes)), ids, len(classes)).astype(int)
    splits = np.array([record.split for record in records], object)[of_image] if len(of_image) else np.zeros(0, object)
    used = [name for k, name in enumerate(classes, 1) if k < len(classes) or (ids == k).any()]
    of_class = {name: ids == classes.index(name) + 1 for name in used}
    scale = np.array([record.um_per_px for record in records], float)[of_image] if len(of_image) else np.zeros(0)
    known = bool(records) and all(math.isfinite(record.um_per_px) for record in records)
    by_split = {
        split: {name: int((mine & (splits == split)).sum()) for name, mine in of_class.items()}
        for split in _splits(records)
    }
    shown = [k for k in range(3) if light.size and light[:, k].any()]
    faults = {name: sum(one["faults"][name] for one in seen) for name in FAULTS}
    return {
        "version": SHEET_VERSION,
        "images": len(records),
        "cells": len(ids),
        "classes": list(dataset.classes),
        "set_aside": sum(not record.split for record in records),
        "flags": dict(sorted(Counter(flag for r in records for flag in r.flags.split(";") if flag).items())),
        "groups": {"groups": len({r.group for r in records} - {""}), "images_without": sum(not r.group for r in records)},
        "by_split": _by_split(records, seen),
        "classes_by_split": by_split,
        "balance": _balance(by_split, dataset.classes),
        "height_px": three_numbers([record.height_px for record in records]),
        "width_px": three_numbers([record.width_px for record in records]),
        "um_per_px": three_numbers([record.um_per_px for record in records if math.isfinite(record.um_per_px)]),
        "area_px": {name: _seven(areas[mine]) for name, mine in of_class.items()},
        "area_um2": {name: _seven((areas * scale**2)[mine]) for name, mine in of_class.items()} if known else {},
        "diameter_px": {
            name: round(2 * math.sqrt(float(np.median(areas[mine])) / math.pi), 1) if mine.any() else None
            for name, mine in of_class.items()
        },
        "light": {
            name: {COLOURS[k]: _seven(light[mine, k]) for k in shown} for name, mine in of_class.items()
        },
        "ground": {COLOURS[k]: _seven([one["ground"][k] for one in seen]) for k in shown},
        "in_part": known_in_part(dataset.instances),
        "faults": faults,
        "faults_by_image": _worst(records, seen),
        "channels": sorted({record.channels for record in records if record.channels}),
        "tiny_px": tiny_px,
    }  # fmt: skip


def _describe_image(dataset: CellDataset, tiny_px: int, position: int) -> dict[str, Any]:
    return measure_image(dataset.image(position), dataset.instances[position], tiny_px)


def _joined(arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(shape), *arrays])


def _splits(records: Sequence) -> list[str]:
    present = {record.split for record in records}
    return [split for split in ("train", "val", "test", "") if split in present]


def _by_split(records: Sequence, seen: Sequence[Mapping]) -> list[dict[str, Any]]:
    rows = []
    for kind in sorted({record.cell_type for record in records}):
        for split in _splits(records):
            here = zip(records, seen, strict=True)
            cells = [len(one["areas_px"]) for r, one in here if (r.cell_type, r.split) == (kind, split)]
            if cells:
                row = {
                    "images": len(cells),
                    "empty": cells.count(0),
                    "cells": sum(cells),
                    "cells_per_image": three_numbers(cells),
                }
                rows.append({"cell_type": kind, "split": split, **row})
    return rows


def _balance(by_split: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> float | None:
    counted = [by_split["train"]] if "train" in by_split else list(by_split.values())
    cells = [sum(split[name] for split in counted) for name in classes]
    return round(min(cells) / max(cells), 4) if cells and max(cells) else None


def _worst(records: Sequence, seen: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Return the images with the largest share of cells that are tiny, in pieces, with holes, or labelled twice."""
    rows = []
    for record, one in zip(records, seen, strict=True):
        wrong = {name: one["faults"][name] for name in ("tiny", "pieces", "holes", "twice") if one["faults"][name]}
        if wrong:
            cells = len(one["areas_px"])
            rows.append(
                {"image_id": record.image_id, "cells": cells, **wrong, "share": round(sum(wrong.values()) / cells, 3)}
            )
    return sorted(rows, key=lambda row: (-row["share"], row["image_id"]))[:20]


def three_numbers(values: Sequence | np.ndarray) -> list[float]:
    """Return [least, median, most]; [] of nothing."""
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))] if len(values) else []


def _seven(values: Sequence | np.ndarray) -> list[float]:
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return [round(float(v), 2) for v in np.percentile(known, POINTS)] if known.size else []


# ---- as tables -----------------------------------------------------------------------------------------------------
def class_table(sheet: Mapping[str, Any]) -> pandas.DataFrame:
    """Return a row per class: cells in each split, diameter, median area, median grey level per channel."""
    import pandas as pd

    rows, named = {}, common_channels(sheet["channels"])
    for name, areas in sheet["area_px"].items():
        cells = {
            SPLIT_TITLES.get(split, "excluded"): counts.get(name, 0)
            for split, counts in sheet["classes_by_split"].items()
        }
        light = {
            f"{named.get(colour, colour)} (median)": points[3]
            for colour, points in sheet["light"].get(name, {}).items()
            if points
        }
        sizes = {"area_px (median)": areas[3] if areas else math.nan, "diameter_px": sheet["diameter_px"][name]}
        um2 = sheet.get("area_um2", {}).get(name)
        if um2:
            sizes |= {"area_um2 (median)": um2[3], "diameter_um": round(2 * math.sqrt(um2[3] / math.pi), 1)}
        rows[name] = {**cells, **sizes, **light}
    return pd.DataFrame(rows).T


def remarks(sheet: Mapping[str, Any]) -> list[str]:
    """Return the sheet's remarkable facts as sentences; what is as it should be is not mentioned.

    Examples
    --------
    >>> faults = dict.fromkeys(FAULTS, 0) | {"holes": 2}
    >>> remarks({"cells": 80, "faults": faults, "balance": 0.2, "by_split": [], "flags": {}, "tiny_px": 15, "groups": {}})
    ['2 of 80 cells (2.5 %): with a hole', 'the smallest class has 0.2 of the cells of the largest']
    """
    lines = []
    for kind, n in sheet["faults"].items():
        if n:
            words = FAULT_WORDS[kind] + (f" ({sheet['tiny_px']} px)" if kind == "tiny" else "")
            lines.append(f"{n} of {counted(sheet['cells'], 'cell')} ({100 * n / sheet['cells']:.1f} %): {words}")
    if sheet["balance"] is not None and sheet["balance"] < 0.5:
        lines.append(f"the smallest class has {sheet['balance']:.2g} of the cells of the largest")
    empty = sum(row["empty"] for row in sheet["by_split"])
    if empty:
        lines.append(f"{empty} of {sheet['images']} images without a cell")
    lines += [f"{counted(n, 'image')} flagged: {flag.replace('_', ' ')}" for flag, n in sheet["flags"].items()]
    return [*lines, sheet["in_part"]] if sheet.get("in_part") else lines
