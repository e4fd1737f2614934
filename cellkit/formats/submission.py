"""Submissions: Kaggle's two cell competitions, written, checked and read; and the resolver that makes objects disjoint.

Sartorius is row-major although its page says column-major (a column-major file scored 0.000); DSB2018 is column-major.
Both count pixels from 1 and refuse overlapping objects. An image without a prediction has one row with an empty second
column.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import repeated
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.files import atomic_path
from cellkit.formats.competitions import Profile, get_profile, profiles
from cellkit.formats.submission_check import (
    NUMBERS,
    by_image,
    id_fault,
    id_problems,
    numbers_fault,
    order_problems,
    overlap_problems,
    problems_of,
    read_rows,
    refuse_problems,
    text_fault,
)
from cellkit.modules import by_key


# ---- write ---------------------------------------------------------------------------------------------------------
def write_submission(
    path: str | Path, image_ids: Sequence[str], instances: Sequence[Instances], profile: str | Profile
) -> Path:
    """Write a submission, atomically, and check what was written before it takes its place.

    Every image has at least one row, in the order given; an image without objects one with an empty second column.

    Raises
    ------
    UserError
        Objects overlap or have no pixel (see `resolve_overlaps`), an id occurs twice, is empty, would be read as a
        formula by a spreadsheet, or holds a control character.
    """
    profile = get_profile(profile)
    ids = [str(image_id) for image_id in image_ids]
    if len(ids) != len(instances):
        raise UserError(f"{len(ids)} image ids, {len(instances)} predictions", "give one Instances per image, in order")
    lines = [",".join(profile.columns)]
    for image_id, objects in zip(ids, instances, strict=True):
        if fault := id_fault(image_id):
            raise UserError(f"image id {image_id!r} {fault}", "rename the image")
        if objects.overlapping or not np.all(objects.areas_px):
            what = "overlap" if objects.overlapping else "have no pixel"
            raise UserError(f"objects of image '{image_id}' {what}", "pass them through resolve_overlaps first")
        cell = '"' + image_id.replace('"', '""') + '"' if set(image_id) & set(',"') else image_id
        lines += [f"{cell},{text}" for text in objects.to_kaggle_rle(profile.order) or [""]]
    if twice := repeated(ids):
        raise UserError(f"image id '{twice[0]}' is given twice", "give every image once")
    shapes = {image_id: objects.shape for image_id, objects in zip(ids, instances, strict=True)}
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        refuse_problems(problems_of(temporary, profile, shapes, shapes), path)
    return Path(path)


# ---- read ----------------------------------------------------------------------------------------------------------
def read_submission(
    path: str | Path, profile: str | Profile, shapes: Mapping[str, tuple[int, int]], allow_overlaps: bool = False
) -> dict[str, Instances]:
    """Read a submission; everything is checked before anything is decoded.

    Parameters
    ----------
    shapes : dict of image_id -> (H, W)
        The images of the test set.
    allow_overlaps : bool
        For a truth in the same form: true cells do overlap.

    Returns
    -------
    dict of image_id -> Instances
        In the order of `shapes`; scores are 1, classes unknown.

    Raises
    ------
    UserError
        The first problems of `check_submission`.
    """
    profile = get_profile(profile)
    problems, rows, named = read_rows(path, profile, shapes)
    problems += id_problems(rows, named, shapes) + order_problems(rows, profile, shapes)
    problems += [] if allow_overlaps else overlap_problems(rows)
    refuse_problems(sorted(problems, key=lambda problem: problem.line), path)
    images = by_image(rows)
    texts = {image_id: [row.text for row in images[image_id] if row.text] for image_id in shapes}
    return {k: Instances.from_kaggle_rle(texts[k], shape, profile.order) for k, shape in shapes.items()}


IGNORED = "ignored"  # the Usage of rows that DSB2018 does not score


# ---- tables of truth -----------------------------------------------------------------------------------------------
def _pixel_columns() -> dict[str, str]:
    """Return {column of a table of truth: how its pixels are counted}."""
    modules = by_key("competition", lambda module: module.TRUTH_COLUMNS)
    return {column: module.PIXEL_ORDER for column, module in modules.items()}


def _id_columns() -> list[str]:
    return [profile.columns[0].lower() for profile in profiles().values()]


def is_truth_table(path: str | Path) -> bool:
    """Tell whether a CSV is a competition's own truth: a cell a row, with the size of its image (Sartorius' train.csv)."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        names = {name.strip().strip('"').lower() for name in file.readline().split(",")}
    return {"height", "width"} <= names and bool(names & set(_pixel_columns())) and bool(names & set(_id_columns()))


def read_truth_table(
    path: str | Path,
) -> tuple[list[ImageRecord], list[Instances], tuple[str, ...], dict[str, tuple[int, int]]]:
    """Read Sartorius' train.csv (id, annotation, width, height, cell_type, ...), or a solution of DSB2018.

    Images whose Usage is Ignored, in stage2_solution_final.csv, are not scored by the competition and are left out.

    Returns
    -------
    records : list of ImageRecord
        In the order of the table.
    instances : list of Instances
        Overlaps are kept.
    classes : tuple of str
        The cell types, sorted; empty where the table has none.
    unscored : dict of str -> (H, W)
        What is left out.

    Raises
    ------
    UserError
        No CSV in UTF-8; a row without size, with two sizes of an image, or with pairs that are no runs of its image.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [{str(k).strip().lower(): v or "" for k, v in row.items()} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV in UTF-8: {error}", "use the table as it came") from error
    if not rows:
        raise UserError(f"{path} has no row", "use the table as it came")
    orders, ids = _pixel_columns(), _id_columns()
    column = next(name for name in orders if name in rows[0])
    sizes: dict[str, tuple[int, int]] = {}
    images: dict[str, list[tuple[str, str]]] = {}
    unscored: dict[str, tuple[int, int]] = {}
    for line, row in enumerate(rows, 2):
        name, text = next(filter(None, map(row.get, ids)), ""), row[column].strip(" ")
        size = row["height"].removesuffix(".0"), row["width"].removesuffix(".0")
        if not name or not all(part.isascii() and part.isdigit() and 0 < len(part) < 7 for part in size):
            raise UserError(f"{path} line {line} has no id, height or width", "use the table as it came")
        shape = int(size[0]), int(size[1])
        if sizes.setdefault(name, shape) != shape:
            raise UserError(f"{path} line {line}: image '{name}' has two sizes", "use the table as it came")
        if row.get("usage", "").strip().lower() == IGNORED:
            unscored[name] = shape
            continue
        cells = images.setdefault(name, [])
        if not text:
            continue
        fault = text_fault(text) if not NUMBERS.match(text) else numbers_fault(np.fromstring(text, int, sep=" "), shape)
        if fault:
            raise UserError(f"{path} line {line}: {fault}", "use the table as it came")
        cells.append((text, row.get("cell_type", "").strip()))
    if not images:
        raise UserError(f"{path} has no image that is scored: the Usage of all is Ignored", "use the table as it came")
    classes = tuple(sorted({kind for cells in images.values() for _, kind in cells if kind}))
    number = {kind: k for k, kind in enumerate(("", *classes))}
    records, instances = [], []
    for name, cells in images.items():
        kinds = {kind for _, kind in cells}
        records.append(ImageRecord(name, name, *sizes[name], cell_type=kinds.pop() if len(kinds) == 1 else ""))
        found = Instances.from_kaggle_rle([text for text, _ in cells], sizes[name], orders[column])
        instances.append(found.with_classes([number[kind] for _, kind in cells]))
    return records, instances, classes, {name: shape for name, shape in unscored.items() if name not in images}
