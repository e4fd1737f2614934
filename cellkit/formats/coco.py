"""COCO files as a format: written here, read by `cellkit.formats.coco_reading`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import IGNORE, Instances
from cellkit.cells.names import plain
from cellkit.cells.outlines import refuse_boxes
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.files import write_json
from cellkit.formats.any import Reading
from cellkit.formats.coco_dialects import WRITTEN, checked, from_plain, key_of, segmentations
from cellkit.formats.coco_maker import maker_keys
from cellkit.formats.coco_reading import EXTRA, UNKNOWN, read_coco, refuse_unwritable
from cellkit.formats.results import is_list
from cellkit.microscope.folders import run_of


# ---- writing -------------------------------------------------------------------------------------------------------
def write_coco(
    path: str | Path,
    records: Sequence[ImageRecord],
    instances: Sequence[Instances],
    classes: Sequence[str],
    ids: Sequence[int] | None = None,
    with_scores: bool = False,
    convention: str = "plain",
    as_polygons: bool = False,
    made_by: Sequence[str] = (),
    marks: Sequence[Mapping[str, str]] = (),
    quarantined: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write images, categories and annotations, atomically.

    What is not annotated of an image is a region of the category "ignore", marked iscrowd (which CVAT would take for an object,
    so not for CVAT): no detection in it is an error, and no detector is trained on it.

    Parameters
    ----------
    ids : sequence of int, optional
        The images' ids in the file, each at least 1; default 1, 2, ...
    with_scores : bool
        Give each annotation its ``score`` (a prediction as a file of its own).
    convention : {"plain", "cvat", "fiftyone"}
        Whose importer reads the file; see `cellkit.formats.coco_dialects`.
    as_polygons : bool
        Polygons instead of RLE, for tools that have nothing else: holes are lost (`cellkit.cells.outlines.polygons` counts them).
    made_by : sequence of str, optional
        Who made the cells of each image; "corrected" and "proposed" are written beside the image as its ``labels``, which counts
        for as long as nobody changes its cells.
    marks : sequence of mapping, optional
        More keys for each image.
    quarantined : sequence of mapping, optional
        What could not be predicted: ``item`` and ``reason`` of each.

    Raises
    ------
    UserError
        A class id with no name; classes of one name or of the names "unknown" and "ignore"; ids below 1 or given twice; records
        and instances of different number or shape.
    """
    checked(convention, WRITTEN)
    if len(records) != len(instances):
        raise UserError(f"{len(records)} records but {len(instances)} sets of instances", "give one per image")
    reserved = UNKNOWN in classes or IGNORE in map(plain, classes)
    if reserved or len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        raise UserError(f"the classes are {', '.join(classes)}", f"name each once, and none '{UNKNOWN}' or '{IGNORE}'")
    for name in classes:
        refuse_unwritable(name, "the class name")
    ids = list(range(1, len(records) + 1)) if ids is None else _plain_ids(ids)
    _check_ids(ids, len(records))
    images, annotations = [], []
    unknown = any((x.class_ids == 0).any() for x in instances)
    names = [*classes, *([UNKNOWN] if unknown else []), *([IGNORE] if any(x.unknown_px for x in instances) else [])]
    categories = [{"id": k, "name": name, "supercategory": "cell"} for k, name in enumerate(names, 1)]
    unknown_id, ignored_id = (names.index(name) + 1 if name in names else 0 for name in (UNKNOWN, IGNORE))
    for number, record, found in zip(ids, records, instances, strict=True):
        _check_pair(record, found, len(classes))
        first = len(annotations)
        class_ids = np.where(found.class_ids == 0, unknown_id, found.class_ids).tolist()
        shapes = None if found.boxes_only else segmentations(found, convention, as_polygons)
        for k, entry in enumerate(_annotations(found, number, class_ids, with_scores)):
            shape = {} if shapes is None else {"segmentation": shapes[k]}
            annotations.append({"id": len(annotations) + 1, **entry, **shape})
        region = found.region()
        for entry in _annotations(region, number, [ignored_id], with_scores):
            entry |= {"segmentation": (segmentations(region, convention, False) or [entry["segmentation"]])[0]}
            annotations.append({"id": len(annotations) + 1, **entry, "iscrowd": int(convention != "cvat")})
        k = len(images)
        maker = maker_keys(made_by[k] if made_by else "", annotations[first:], categories)
        images.append(_image(number, record) | maker | dict(marks[k] if marks else {}))
    info = {"description": "cellkit"} | ({"quarantined": list(map(dict, quarantined))} if quarantined else {})
    data = {"info": info, "images": images, "categories": categories, "annotations": annotations}
    return write_json(path, from_plain(data, convention))


def write_dataset(path: str | Path, images: CellDataset) -> Path:
    """Write images with their cells as `write_coco` does: under their ids, with a mark where a model proposed the cells."""
    return write_coco(path, images.records, images.instances, images.classes, images.ids, made_by=images.made_by)


def write_results(path: str | Path, ids: Sequence[int | str] | CellDataset, instances: Sequence[Instances]) -> Path:
    """Write predictions as a COCO results list, atomically; class-agnostic predictions get category 0.

    Parameters
    ----------
    ids : sequence of int or str, or CellDataset
        The id of each image in the truth's COCO file; or that file, as read: then categories have its ids too.

    Raises
    ------
    UserError
        A score that is not in [0, 1]; ids that are none, given twice, or not one per image; a class that the file has not.
    """
    refuse_boxes(instances, "a results list")
    ids, category_of = (ids.ids, _category_of(ids)) if isinstance(ids, CellDataset) else (list(ids), None)
    ids = _plain_ids(ids)
    _check_ids(ids, len(instances), own=True)
    rows = []
    for number, found in zip(ids, instances, strict=True):
        class_ids = found.class_ids.tolist()
        strange = sorted(set(class_ids) - set(category_of)) if category_of is not None else []
        if strange:
            what = f"class {strange[0]}" if strange[0] else "no class, and its category 0 is one"
            raise UserError(
                f"image {number} has a cell of {what}", f"give each cell a class the file has: {category_of}"
            )
        numbers = class_ids if category_of is None else [category_of[k] for k in class_ids]
        for entry in _annotations(found, number, numbers, True):
            rows.append({k: entry[k] for k in ("image_id", "category_id", "segmentation", "bbox", "score")})
    return write_json(path, rows)


def write_truth(path: str | Path, images: CellDataset) -> Path | None:
    """Write the images whose cells came with the source, or as pseudo-labels, to a COCO file; without any nothing: None."""
    truth = images.subset([maker in ("truth", "proposed") for maker in images.made_by])
    return write_dataset(path, truth) if len(truth) else None


def write_predictions(stage: Any, name: str, images: CellDataset, found: Sequence[Instances] | None) -> Path | None:
    """Write what a model of a run found to ``predictions/<name>.json``, by which notebook 06 scores it.

    Parameters
    ----------
    stage : cellkit.run.folder.Stage
    name : str
        The model; list the file as ``predictions_<name>``.
    images : CellDataset
        The images that it predicted.
    found : list of Instances, or None
        One per image. None: there is no such model, and nothing is written.

    Returns
    -------
    Path or None
    """
    return None if found is None else write_results(stage.path(f"predictions/{name}.json"), images.ids, found)


def _category_of(coco: CellDataset) -> dict[int, int | str]:
    """Return class id -> category id of a file."""
    found = {class_id: number for number, class_id in coco.categories.items()}
    return found if 0 in found or 0 in coco.categories else {0: 0} | found


def _plain_ids(ids: Sequence) -> list[int | str]:
    return [number.item() if isinstance(number, np.generic) else number for number in ids]


def _check_ids(ids: list, count: int, own: bool = False) -> None:
    """Refuse ids that are none; those of another's file may be 0 or texts, in a new one some tools lose such images."""
    keys = [key_of(number) for number in ids]
    odd = any(key is None or (not own and (isinstance(key, str) or key < 1)) for key in keys)
    if len(ids) != count or len(set(keys)) < count or odd:
        wanted = "as in the file they belong to" if own else "a number from 1 on"
        raise UserError(f"{count} images have the ids {str(ids)[:60]}", f"give each image one id of its own, {wanted}")


def _check_pair(record: ImageRecord, found: Instances, classes: int) -> None:
    if found.shape != (record.height_px, record.width_px):
        raise UserError(
            f"{record.image_id} is {record.height_px} x {record.width_px} px, its masks are {found.shape[0]} x {found.shape[1]}",
            "give the masks of this very image",
        )
    if len(found) and (found.class_ids.max() > classes or found.class_ids.min() < 0):
        raise UserError(
            f"{record.image_id} has a cell of class {found.class_ids.max()}, there are {classes} classes",
            "name every class",
        )


def _image(number: int, record: ImageRecord) -> dict[str, Any]:
    entry = {"id": number, "file_name": record.path, "height": record.height_px, "width": record.width_px}
    entry |= {key: getattr(record, key) for key in EXTRA}
    for key in ("file_name", *EXTRA):
        refuse_unwritable(entry[key], f"{record.path!r}: {key}")
    if not math.isnan(record.um_per_px):
        entry["um_per_px"] = record.um_per_px
    return entry


def _annotations(found: Instances, number: int | str, class_ids: list[int], with_scores: bool) -> list[dict[str, Any]]:
    rles, boxes, areas, scores = (
        found.to_coco_rle(),
        found.boxes_xywh.tolist(),
        found.areas_px.tolist(),
        found.scores.tolist(),
    )
    wrong = [score for score in scores if not 0 <= score <= 1] if with_scores else []
    if wrong:
        raise UserError(f"image {number} has a cell of score {wrong[0]}", "a score is a number from 0 to 1")
    entries = []
    for k, rle in enumerate(rles):
        mask = {} if found.boxes_only else {"segmentation": rle}
        entry = {
            "image_id": number,
            "category_id": class_ids[k],
            **mask,
            "bbox": boxes[k],
            "area": areas[k],
            "iscrowd": 0,
        }
        entries.append(entry | {"score": round(scores[k], 6)} if with_scores else entry)
    return entries


TITLE = "a COCO file"


def is_this(path: Path) -> bool:
    """Tell whether a file is JSON and no list."""
    return path.suffix.lower() == ".json" and not is_list(path)


def read(path: Path, how: Reading) -> CellDataset:
    """Read a COCO file, with boxes where it has no masks."""
    return replace(read_coco(path, boxes=True, convention=how.convention), run=run_of(path))


def write(path: str | Path, images: CellDataset, convention: str = "plain") -> Path:
    """Write images with their cells as a COCO file."""
    ids, by = images.ids or None, images.made_by
    return write_coco(path, images.records, images.instances, images.classes, ids, convention=convention, made_by=by)
