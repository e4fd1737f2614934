"""COCO files: written for anyone's tools, read with every field checked before anything is decoded.

One numbering serves the whole run: ``image["id"]`` is the position of the image in ``records.csv`` plus one. A file from
elsewhere keeps its own ids, from 0 on or texts, and a results list that belongs to it is written with them. Extra keys of an
image (``image_id``, ``cell_type``, ``group``, ``split``) bring the record back; other tools ignore them. So they do with
``labels``, who made the cells of an image: "corrected" (a person), or "proposed" (a model: no truth to score against).
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.conventions import WRITTEN, checked, crowd_of, from_plain, key_of, segmentations, to_plain
from cellkit.dataset import MAKERS, MARKED, CellDataset
from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.instances import Instances, pixel_boxes, refuse_boxes
from cellkit.names import image_id_of
from cellkit.records import ImageRecord

EXTRA = ("image_id", "channels", "cell_type", "group", "split", "flags", "source")
UNKNOWN = "unknown"
LONGEST_SIDE_PX = 2**18
FARTHEST_PX = 1e9


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
) -> Path:
    """Write images, categories and annotations, atomically.

    Parameters
    ----------
    ids : sequence of int, optional
        The images' ids in the file, each at least 1; default 1, 2, ...
    with_scores : bool
        Give each annotation its ``score`` (a prediction as a file of its own).
    convention : {"plain", "cvat", "fiftyone"}
        Whose importer reads the file; see `cellkit.conventions`.
    as_polygons : bool
        Polygons instead of RLE, for tools that have nothing else: holes are lost (`cellkit.outlines.polygons` counts them).
    made_by : sequence of str, optional
        Who made the cells of each image; "corrected" and "proposed" are written beside the image as its ``labels``.
    marks : sequence of mapping, optional
        More keys for each image.

    Raises
    ------
    UserError
        A class id with no name; classes of one name or of the name "unknown"; ids below 1 or given twice; records and
        instances of different number or shape.
    """
    checked(convention, WRITTEN)
    if len(records) != len(instances):
        raise UserError(f"{len(records)} records but {len(instances)} sets of instances", "give one per image")
    if UNKNOWN in classes or len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        raise UserError(f"the classes are {', '.join(classes)}", f"name each once, and none '{UNKNOWN}'")
    for name in classes:
        _refuse_unwritable(name, "the class name")
    ids = list(range(1, len(records) + 1)) if ids is None else _plain_ids(ids)
    _check_ids(ids, len(records))
    images, annotations = [], []
    unknown = any((x.class_ids == 0).any() for x in instances)
    names = [*classes, *([UNKNOWN] if unknown else [])]
    for number, record, found in zip(ids, records, instances, strict=True):
        _check_pair(record, found, len(classes))
        k = len(images)
        told = {"labels": made_by[k]} if made_by and made_by[k] in MARKED else {}
        images.append(_image(number, record) | told | dict(marks[k] if marks else {}))
        class_ids = np.where(found.class_ids == 0, len(names), found.class_ids).tolist()
        shapes = None if found.boxes_only else segmentations(found, convention, as_polygons)
        for k, entry in enumerate(_annotations(found, number, class_ids, with_scores)):
            shape = {} if shapes is None else {"segmentation": shapes[k]}
            annotations.append({"id": len(annotations) + 1, **entry, **shape})
    categories = [{"id": k, "name": name, "supercategory": "cell"} for k, name in enumerate(names, 1)]
    data = {"info": {"description": "cellkit"}, "images": images, "categories": categories, "annotations": annotations}
    return write_json(path, from_plain(data, convention))


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
        _refuse_unwritable(entry[key], f"{record.path!r}: {key}")
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


# ---- reading -------------------------------------------------------------------------------------------------------
def read_coco(
    path: str | Path, root: str | Path = "", boxes: bool = False, convention: str | None = None
) -> CellDataset:
    """Read a COCO file: images, classes by name, masks as RLE or polygons; crowd regions are kept apart.

    Parameters
    ----------
    root : path, optional
        The folder that its file names start from: the run folder, for a file of a run.
    boxes : bool
        Also read a file whose annotations have boxes and no masks; its instances are then ``boxes_only``.
    convention : {"plain", "cvat", "fiftyone", "labelstudio"}, optional
        Whose file it is; see `cellkit.conventions`. By default plain, but crowds in a file of CVAT's are refused: there
        they are single objects.

    Raises
    ------
    UserError
        Naming the file, the entry and the reason: not COCO, a duplicate id, an annotation of an image or a category that is
        not there, a box without a mask, a run length that does not fit, a point that is not finite.
    """
    return replace(parse_coco(_opened(path), path, boxes, convention), root=Path(root))


def parse_coco(
    data: Any, path: str | Path, boxes: bool = False, convention: str | None = None, one_image: bool = False
) -> CellDataset:
    """Check and decode what a COCO file holds; `path` is what messages call it. See `read_coco`.

    With `one_image` it is an excerpt of a file, and the notes are about its masks alone, not about the whole file.
    """
    data, notes = to_plain(data, convention, path)
    if not isinstance(data, dict) or not all(
        isinstance(data.get(k), list) for k in ("images", "annotations", "categories")
    ):
        what = "a list, as COCO results are" if isinstance(data, list) else "no COCO file"
        raise UserError(
            f"{path} is {what}: it lacks images, annotations or categories",
            "give the COCO file that the results belong to" if isinstance(data, list) else "give a whole COCO file",
        )
    used = {key_of(row.get("category_id")) for row in data["annotations"] if isinstance(row, dict)}
    categories, classes, more = _categories(data["categories"], used, path)
    records, ids = [], []
    for position, entry in enumerate(data["images"]):
        records.append(_record(entry, f"{path}: image {position + 1}"))
        _checked_key(entry.get("id"), f"{path}: image {position + 1}: id")
        ids.append(entry["id"] if isinstance(entry["id"], str) else int(entry["id"]))
    _refuse_duplicates([key_of(number) for number in ids], f"{path}: image ids")
    records = _distinct(records)
    grouped, crowd = _grouped(data["annotations"], ids, path)
    decode = _boxes if boxes and _only_boxes(data["annotations"]) else _masks
    instances = [
        _instances(rows, r, categories, f"{path}: {r.image_id}", decode)
        for rows, r in zip(grouped, records, strict=True)
    ]
    crowds = [
        _instances(rows, r, categories, f"{path}: {r.image_id}", decode) for rows, r in zip(crowd, records, strict=True)
    ]
    made_by = [entry["labels"] if entry.get("labels") in MAKERS else "" for entry in data["images"]]
    told = [] if decode is _boxes else contradictions(grouped, records, instances)
    if decode is not _boxes:
        instances, without = _with_pixels(grouped, records, instances)
        told += without
    notes = told if one_image else [*notes, *more, *told]
    return CellDataset(
        records,
        instances,
        classes,
        ids=ids,
        made_by=made_by,
        crowd=crowds,
        categories=categories,
        path=Path(path),
        notes=tuple(notes),
    )


def read_results(
    path: str | Path, truth: CellDataset | Mapping[int | str, tuple[int, int]], common: bool = False
) -> list[Instances]:
    """Read a COCO results list for the images of `truth`, in its order; an image without entries has no cell.

    Parameters
    ----------
    truth : CellDataset or mapping
        The file the results belong to, whose category ids they use (0 is no class where the file has no category 0); or
        image id -> (H, W), and category ids are class ids.
    common : bool
        Leave out the entries of other images, instead of refusing the file.

    Raises
    ------
    UserError
        An entry of an unknown image or category, a score that is no number in [0, 1], or masks as `read_coco` refuses them.
    """
    rows = _opened(path)
    if isinstance(rows, dict) and isinstance(rows.get("annotations"), list):
        rows = rows["annotations"]
    if not isinstance(rows, list):
        raise UserError(
            f"{path} is no COCO results list", "it is a JSON list of {image_id, category_id, segmentation, score}"
        )
    shapes, categories = truth, None
    if isinstance(truth, CellDataset):
        shapes = {number: x.shape for number, x in zip(truth.ids, truth.instances, strict=True)}
        categories = {0: 0} | truth.categories
    grouped, _ = _grouped(rows, list(shapes), path, common)
    found = []
    for (number, shape), entries in zip(shapes.items(), grouped, strict=True):
        where = f"{path}: image {number}"
        keys = [_checked_key(e.get("category_id", 0), f"{where}: category_id") for e in entries]
        unknown = next((key for key in keys if not (key in categories if categories else isinstance(key, int))), None)
        if unknown is not None:
            there = f", the file's are {list(truth.categories)}" if categories else ""
            raise UserError(
                f"{where} has category_id {unknown}{there}",
                "results use the category ids of the COCO file they belong to",
            )
        scores = [_score(e.get("score"), where) for e in entries]
        class_ids = [categories[key] for key in keys] if categories else keys
        found.append(_masks(entries, shape, where).with_classes(class_ids).with_scores(scores))
    return found


def _opened(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise UserError(f"no file at {path}", "give a COCO JSON file")
    try:
        return read_json(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {str(error)[:100]}", "write the file again; it is damaged") from error


def _categories(entries: list, used: set, path) -> tuple[dict[int | str, int], tuple[str, ...], list[str]]:
    """Return category id -> class id, the class names in order of category id, and notes; "unknown" is class 0.

    Parameters
    ----------
    used : set
        The category ids that annotations have. Roboflow adds a root, a category without annotation of which the others are
        a kind, often of the same name: it is no class.
    """
    named: dict[int | str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise UserError(f"{path}: a category has no name", "a category is {id, name}")
        _refuse_unwritable(entry["name"], f"{path}: category name")
        number = _checked_key(entry.get("id"), f"{path}: category {entry['name']}")
        if number in named:
            raise UserError(f"{path}: category id {number} is there twice", "give every category an id of its own")
        named[number] = entry["name"]
    notes = []
    for number in _roots(entries, used):
        notes.append(f"category {number} '{named[number]}' has no annotation and heads the others: it is no class")
        del named[number]
    names = Counter(named.values())
    for number in [n for n in named if names[named[n]] > 1 and n not in used]:
        name = named[number]
        if names[name] > 1:
            names[name] -= 1
            notes.append(f"category {number} has no annotation and the name of another, '{name}': it is left out")
            del named[number]
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        which = " and ".join(str(n) for n in named if named[n] == twice)
        raise UserError(
            f"{path}: two categories have the same name: {which} are '{twice}', and both have annotations",
            "give one of them another name, or its annotations the id of the other",
        )
    order = [n for n in sorted(named, key=lambda n: (isinstance(n, str), n)) if named[n] != UNKNOWN]
    ids = {number: k for k, number in enumerate(order, 1)}
    return ids | {n: 0 for n, name in named.items() if name == UNKNOWN}, tuple(named[n] for n in order), notes


def _roots(entries: list[dict], used: set) -> list[int | str]:
    """Return the ids of categories that only head others: no annotation, no supercategory, and that of another one."""
    roots = []
    for entry in entries:
        headed = any(other is not entry and other.get("supercategory") == entry["name"] for other in entries)
        if headed and key_of(entry["id"]) not in used and entry.get("supercategory") in (None, "", "none"):
            roots.append(key_of(entry["id"]))
    return roots


def _record(entry: Any, where: str) -> ImageRecord:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise UserError(f"{where} has no file_name", "an image is {id, file_name, height, width}")
    height, width = (_id(entry.get(k), f"{where} {k}") for k in ("height", "width"))
    if max(height, width) > LONGEST_SIDE_PX:
        raise UserError(f"{where} claims {height} x {width} px", "height and width are those of the picture")
    record = ImageRecord(Path(entry["file_name"]).stem, entry["file_name"], height, width)
    extra = {key: str(entry[key]) for key in EXTRA if isinstance(entry.get(key), str)}
    for key, text in {"file_name": record.path, **extra}.items():
        _refuse_unwritable(text, f"{where}: {key}")
    um = entry.get("um_per_px")
    known = isinstance(um, (int, float)) and not isinstance(um, bool) and 0 < um < math.inf
    return replace(record, **extra, um_per_px=float(um) if known and um < FARTHEST_PX else math.nan)


def _refuse_unwritable(text: str, where: str) -> None:
    """Refuse control characters and halves of characters: no table, no file name and no terminal takes them."""
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise UserError(f"{where} {text[:40]!r} holds a control character", "write names in plain letters")


def _id(value: Any, where: str, least: int = 1) -> int:
    """Return a whole number >= `least`, e.g. a size; texts of digits count, because some tools write them."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise UserError(f"{where}: {str(value)[:40]!r} is no whole number from {least} on", f"number from {least} on")
    return value


def _checked_key(value: Any, where: str) -> int | str:
    """Return an id of an image or a category; see `cellkit.conventions.key_of`."""
    key = key_of(value)
    if key is None:
        raise UserError(f"{where}: {str(value)[:40]!r} is no whole number from 0 on, and no text", "give it an id")
    return key


def _score(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{where}: score is {str(value)[:40]}", "a score is a number from 0 to 1")
    return float(value)


def _refuse_duplicates(values: list, where: str) -> None:
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise UserError(f"{where}: {twice} is there twice", "give every entry an id of its own")


def _grouped(rows: list, ids: list, path, common: bool = False) -> tuple[list[list[dict]], list[list[dict]]]:
    """Return the annotations of each image, and its crowd regions; with `common` those of other images are left out."""
    place = {key_of(number): k for k, number in enumerate(ids)}
    plain, crowd, orphans = [[] for _ in ids], [[] for _ in ids], []
    seen: set[int] = set()
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: annotation {position + 1} is {str(row)[:40]!r}", "an annotation is a JSON object")
        number = _checked_key(row.get("image_id"), f"{path}: annotation {position + 1}: image_id")
        if "id" in row and not isinstance(row["id"], str):
            own = _id(row["id"], f"{path}: annotation {position + 1}: id", least=0)
            if own in seen:
                raise UserError(f"{path}: annotation id {own} is there twice", "give every annotation an id of its own")
            seen.add(own)
        if number not in place:
            orphans.append(number)
            continue
        marked = crowd_of(row)
        if marked is None:
            what = f"{path}: annotation {position + 1}: iscrowd is {str(row['iscrowd'])[:40]!r}"
            raise UserError(what, "iscrowd is 1 for a region that is no single object, else 0")
        (crowd if marked else plain)[place[number]].append(row)
    if orphans and not common:
        raise UserError(
            f"{path}: {len(orphans)} annotation(s) of images that are not there, e.g. image_id {orphans[0]}",
            "give the file the images it was made for, or compare what both have: cellkit score --common",
        )
    return plain, crowd


def _distinct(records: list[ImageRecord]) -> list[ImageRecord]:
    """Tell images of one name apart by their folders: ``a/1.png`` and ``b/1.png`` become a_1 and b_1."""
    count = Counter(record.image_id for record in records)
    return [replace(r, image_id=image_id_of(r.path)) if count[r.image_id] > 1 else r for r in records]


def _only_boxes(rows: list) -> bool:
    """Tell whether there are annotations, and none of them has a mask."""
    return bool(rows) and not any(isinstance(row, dict) and row.get("segmentation") for row in rows)


def _boxes(rows: list[dict], shape: tuple[int, int], where: str) -> Instances:
    """Return the boxes of one image; x and y count from 0, width and height reach the last pixel's far edge."""
    edges = []
    for row in rows:
        box = row.get("bbox")
        if not _is_box(box):
            raise UserError(f"{where}: an annotation has neither mask nor box", "a box is [x, y, width, height] in px")
        edges.append([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    return Instances.from_boxes(pixel_boxes(np.array(edges, float), shape, where), shape)


def _instances(
    rows: list[dict], record: ImageRecord, categories: dict[int | str, int], where: str, decode=None
) -> Instances:
    class_ids = []
    for row in rows:
        number = _checked_key(row.get("category_id"), f"{where}: category_id")
        if number not in categories:
            raise UserError(
                f"{where}: category_id {number} is not among the categories", "add the category or correct the id"
            )
        class_ids.append(categories[number])
    found = (decode or _masks)(rows, (record.height_px, record.width_px), where).with_classes(class_ids)
    if rows and all("score" in row for row in rows):
        found = found.with_scores([_score(row["score"], where) for row in rows])
    return found


def _with_pixels(
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
    told = f"{count} annotation(s) cover no pixel of their image{which}: no cells, left out"
    return kept, [told] if count else []


SLACK_PX, SLACK = 2, 0.05  # what rounding, another rasteriser or a resized export does to a box


def contradictions(grouped: list[list[dict]], records: list[ImageRecord], instances: list[Instances]) -> list[str]:
    """Say, once, how many annotations have a box that is not that of their mask; the masks count."""
    told, wrong, corners, example = 0, 0, 0, ""
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
        told += len(places)
        wrong += len(off)
        corners += int((np.abs(box - mask) <= slack).all(axis=1)[off].sum())
        if len(off) and not example:
            shown = ", ".join(f"{value:g}" for value in box[off[0]])
            its = ", ".join(str(int(v)) for v in (x[off[0]], y[off[0]], width[off[0]], height[off[0]]))
            example = f"{record.image_id}: box {shown}, mask {its}"
    if not wrong:
        return []
    why = "; they are corners x, y, x, y where x, y, width, height is meant" if 2 * corners > wrong else ""
    return [f"{wrong} of {told} boxes contradict their masks, e.g. {example}{why}; the masks count"]


def _is_box(box: Any) -> bool:
    """Tell whether something is four numbers, none larger than a float."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, float) or (type(v) is int and abs(v) < FARTHEST_PX) for v in box)
    )


def _masks(rows: list[dict], shape: tuple[int, int], where: str) -> Instances:
    """Decode the masks of one image: RLE as it is, polygons rasterised."""
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
