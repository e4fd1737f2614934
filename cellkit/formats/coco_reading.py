"""COCO files, read with every field checked before anything is decoded."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import IGNORE, IGNORED, Instances
from cellkit.cells.names import image_id_of, plain, repeated
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted
from cellkit.files import read_json
from cellkit.formats.coco_cells import (
    FARTHEST_PX,
    LONGEST_SIDE_PX,
    cells_of_boxes,
    cells_of_masks,
    cells_of_rows,
    checked_id,
    checked_key,
    checked_score,
    contradictions,
    region_of_rows,
    with_pixels,
)
from cellkit.formats.coco_dialects import crowd_of, key_of, to_plain
from cellkit.formats.coco_maker import maker_in

EXTRA = ("image_id", "channels", "cell_type", "group", "split", "flags", "source")


UNKNOWN = "unknown"


# ---- reading -------------------------------------------------------------------------------------------------------
def read_coco(
    path: str | Path, root: str | Path = "", boxes: bool = False, convention: str | None = None
) -> CellDataset:
    """Read a COCO file: images, classes by name, masks as RLE or polygons.

    Regions marked ``iscrowd`` hold objects that nobody outlined one by one: they are not annotated (`Instances.unknown`), and so
    are objects of a category "ignore".

    Parameters
    ----------
    root : path, optional
        The folder that its file names start from: the run folder, for a file of a run.
    boxes : bool
        Also read a file whose annotations have boxes and no masks; its instances are then ``boxes_only``.
    convention : {"plain", "cvat", "fiftyone", "labelstudio"}, optional
        Whose file it is; see `cellkit.formats.coco_dialects`. By default plain, but crowds in a file of CVAT's are refused: there
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

    Raises
    ------
    UserError
        As `read_coco`.
    """
    data, notes = to_plain(data, convention, path)
    if not isinstance(data, dict) or not all(
        isinstance(data.get(k), list) for k in ("images", "annotations", "categories")
    ):
        if isinstance(data, dict) and data.get("type") in ("FeatureCollection", "Feature"):
            raise UserError(f"{path} is GeoJSON, no COCO file", "end its name with .geojson")
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
        checked_key(entry.get("id"), f"{path}: image {position + 1}: id")
        ids.append(entry["id"] if isinstance(entry["id"], str) else int(entry["id"]))
    if twice := repeated(key_of(number) for number in ids):
        raise UserError(f"{path}: image ids: {twice[0]} is there twice", "give every entry an id of its own")
    records = _distinct(records)
    grouped, regions = _grouped(
        data["annotations"], ids, path, ignored={n for n in categories if categories[n] == IGNORED}
    )
    rows = [row for of_image in grouped for row in of_image]
    with_masks = any(row.get("segmentation") for row in rows)
    decode = cells_of_boxes if boxes and rows and not with_masks else cells_of_masks
    instances = [
        cells_of_rows(rows, r, categories, f"{path}: {r.image_id}", decode)
        for rows, r in zip(grouped, records, strict=True)
    ]
    instances = [
        cells.with_unknown(region_of_rows(rows, cells.shape, f"{path}: {r.image_id}")) if rows else cells
        for rows, r, cells in zip(regions, records, instances, strict=True)
    ]
    made_by = [
        maker_in(entry, [*cells, *others], data["categories"])
        for entry, cells, others in zip(data["images"], grouped, regions, strict=True)
    ]
    doubts = [] if decode is cells_of_boxes else contradictions(grouped, records, instances)
    if decode is not cells_of_boxes:
        instances, without = with_pixels(grouped, records, instances)
        doubts += without
    notes = doubts if one_image else [*notes, *more, *doubts]
    return CellDataset(
        records,
        instances,
        classes,
        ids=ids,
        made_by=made_by,
        categories={number: k for number, k in categories.items() if k != IGNORED},
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
        keys = [checked_key(e.get("category_id", 0), f"{where}: category_id") for e in entries]
        unknown = next((key for key in keys if not (key in categories if categories else isinstance(key, int))), None)
        if unknown is not None:
            known = f", the file's are {list(truth.categories)}" if categories else ""
            raise UserError(
                f"{where} has category_id {unknown}{known}",
                "results use the category ids of the COCO file they belong to",
            )
        scores = [checked_score(e.get("score"), where) for e in entries]
        class_ids = [categories[key] for key in keys] if categories else keys
        found.append(cells_of_masks(entries, shape, where).with_classes(class_ids).with_scores(scores))
    return found


def _opened(path: str | Path) -> Any:
    if not Path(path).is_file():
        problem = f"{path} is a folder" if Path(path).is_dir() else f"no file at {path}"
        raise UserError(problem, "give a COCO JSON file; label images become one with: cellkit coco FOLDER -o FILE")
    try:
        return read_json(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {str(error)[:100]}", "write the file again; it is damaged") from error


def _categories(entries: list, used: set, path) -> tuple[dict[int | str, int], tuple[str, ...], list[str]]:
    """Return category id -> class id, the class names in order of category id, and notes; "unknown" is class 0, "ignore" -1.

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
        refuse_unwritable(entry["name"], f"{path}: category name")
        number = checked_key(entry.get("id"), f"{path}: category {entry['name']}")
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
    other = {n: 0 for n, name in named.items() if name == UNKNOWN}
    other |= {n: IGNORED for n, name in named.items() if plain(name) == IGNORE}
    order = [n for n in sorted(named, key=lambda n: (isinstance(n, str), n)) if n not in other]
    return {number: k for k, number in enumerate(order, 1)} | other, tuple(named[n] for n in order), notes


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
    height, width = (checked_id(entry.get(k), f"{where} {k}") for k in ("height", "width"))
    if max(height, width) > LONGEST_SIDE_PX:
        raise UserError(f"{where} claims {height} x {width} px", "height and width are those of the picture")
    record = ImageRecord(Path(entry["file_name"]).stem, entry["file_name"], height, width)
    extra = {key: str(entry[key]) for key in EXTRA if isinstance(entry.get(key), str)}
    for key, text in {"file_name": record.path, **extra}.items():
        refuse_unwritable(text, f"{where}: {key}")
    um = entry.get("um_per_px")
    known = isinstance(um, (int, float)) and not isinstance(um, bool) and 0 < um < math.inf
    return replace(record, **extra, um_per_px=float(um) if known and um < FARTHEST_PX else math.nan)


def refuse_unwritable(text: str, where: str) -> None:
    """Refuse control characters and lone surrogates: no table, no file name and no terminal takes them.

    Raises
    ------
    UserError
        With the text and where it stands.
    """
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise UserError(f"{where} {text[:40]!r} holds a control character", "write names in plain letters")


def _grouped(
    rows: list, ids: list, path, common: bool = False, ignored: Container = ()
) -> tuple[list[list[dict]], list[list[dict]]]:
    """Return the annotations of each image, and its regions of no single object: crowds, and what is of an `ignored` category.

    With `common` those of other images are left out.
    """
    place = {key_of(number): k for k, number in enumerate(ids)}
    objects, regions, orphans = [[] for _ in ids], [[] for _ in ids], []
    seen: set[int] = set()
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: annotation {position + 1} is {str(row)[:40]!r}", "an annotation is a JSON object")
        number = checked_key(row.get("image_id"), f"{path}: annotation {position + 1}: image_id")
        if "id" in row and not isinstance(row["id"], str):
            own = checked_id(row["id"], f"{path}: annotation {position + 1}: id", least=0)
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
        is_region = marked or key_of(row.get("category_id")) in ignored
        (regions if is_region else objects)[place[number]].append(row)
    if orphans and not common:
        raise UserError(
            f"{path}: {counted(len(orphans), 'annotation')} of images that are not there, e.g. image_id {orphans[0]}",
            "give the file the images it was made for, or compare what both have: cellkit score --common",
        )
    return objects, regions


def _distinct(records: list[ImageRecord]) -> list[ImageRecord]:
    """Tell images of one name apart by their folders: ``a/1.png`` and ``b/1.png`` become a_1 and b_1."""
    count = Counter(record.image_id for record in records)
    return [replace(r, image_id=image_id_of(r.path)) if count[r.image_id] > 1 else r for r in records]
