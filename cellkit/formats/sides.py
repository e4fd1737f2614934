"""The two sides of a score, from whatever they are stored in, brought to the same images in the same order.

A side is a COCO file, a COCO results list, a folder of label images, or a Kaggle CSV. Images are matched by the name that
both sides know them by; an image that only one side has is an error: a score of whichever images both happen to have would
mean little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import NO_ACCURACY, CellDataset, class_numbers
from cellkit.cells.names import (
    best_pairs,
    plain,
    plain_stem,
    repeated,
    same,
    series_of,
    split_of_folder,
    stem_of,
)
from cellkit.cells.records import MIXED, ImageRecord
from cellkit.errors import UserError, nearest, of_place, plain_reason
from cellkit.files import read_json
from cellkit.formats.originals import NOT_PREDICTED, TABLE, asked_for, read_originals
from cellkit.manifest import finished_entries, read_manifest
from cellkit.microscope.folders import IMAGE_SUFFIXES, ids_of, list_files
from cellkit.microscope.frames import reason_of
from cellkit.microscope.open import inspect_file

MARKS: dict[str, Any] = {
    "scale": 1,
    "asked": "",
    "of_run": "",
    "own_id": "",
}  # what `marks_of` tells, and what it is where nothing is to be told


def image_records(folder: str | Path, unread: dict[str, str] | None = None) -> list[ImageRecord]:
    """Return the images below a folder, called as their path below it without suffix, with the sizes in their headers.

    Parameters
    ----------
    unread : dict, optional
        Where the reason goes, by file name without suffix, for an image that cannot be read; it is then 0 x 0 px.

    Raises
    ------
    UserError
        No such folder, no image in it, two of one file name, or, without `unread`, a damaged image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}", "give the folder that holds the images")
    records = []
    for path in list_files(folder, IMAGE_SUFFIXES):
        size = 0, 0
        try:
            series = inspect_file(path).series[0]
            size = series.size("Y"), series.size("X")
        except Exception as error:  # whatever a reader raises
            if unread is None or of_place(error):
                raise
            unread[stem_of(path.name)] = plain_reason(reason_of(error))
        relative = path.relative_to(folder)
        name = (relative.parent / stem_of(path.name)).as_posix()
        records.append(ImageRecord(name, relative.as_posix(), *size))
    if twice := repeated(stem_of(record.path) for record in records):
        raise UserError(f"{folder} has two images called '{twice[0]}'", "give a folder with one of them")
    if not records:
        raise UserError(f"no image in the folder {folder}", f"images end with {', '.join(IMAGE_SUFFIXES)}")
    return records


def image_shapes(folder: str | Path, unread: dict[str, str] | None = None) -> dict[str, tuple[int, int]]:
    """Return {file name without suffix: (H, W)} of the images below a folder that can be read; see `image_records`."""
    sizes = {stem_of(record.path): (record.height_px, record.width_px) for record in image_records(folder, unread)}
    return {name: size for name, size in sizes.items() if name not in (unread or ())}


def marks_of(side: CellDataset) -> dict[str, dict[str, Any]]:
    """Return what is to be known of predictions made in a run to hand them in, by image_id.

    That is ``scale`` (convert.scale, where the cells are not in pixels of the files), ``asked`` ("yes": a competition asks for
    the image, "no": it has asked for others), ``of_run`` ("yes": the image has its split in a run, which predicted it), and
    ``own_id`` (what the source of the run calls the image, where that is not its image_id).
    A run's own predictions have it in its manifest and ``originals.csv``; files that `cellkit fuse` and the folds write have it
    beside each image.
    """
    if side.run:
        config = finished_entries(read_manifest(side.run)).get("01_convert", {}).get("config")
        scale = config.get("scale", 1) if isinstance(config, dict) else 1
        rows = {row["image_id"]: row for row in _originals(side)}
        each = {}
        for record in side.records:
            row, name = rows.get(record.image_id, {}), record.image_id
            own_id = row.get("id", "") if row.get("id") != name else ""
            of_run = "yes" if side.of_model and record.split else ""
            each[name] = {"scale": scale, "asked": row.get("asked", ""), "of_run": of_run, "own_id": own_id}
    else:
        images, _ = _beside(side)
        each = {one["image_id"]: one for one in images if isinstance(one.get("image_id"), str)}
    kept = {
        name: {key: one[key] for key in MARKS if one.get(key, MARKS[key]) != MARKS[key]} for name, one in each.items()
    }
    return {name: marks for name, marks in kept.items() if marks}


def skipped_by(side: CellDataset) -> list[dict[str, str]]:
    """Return ``item`` and ``reason`` of what a prediction skipped, as its file lists it.

    What a run hands in and did not predict has also ``own_id``, what its source calls it: by ``originals.csv`` of the run.
    """
    if side.run and side.of_model:
        there = {record.image_id for record in side.records}
        lacking = [one for one in asked_for(_originals(side)) if one.image_id not in there]
        return [{"item": one.id, "reason": one.note or NOT_PREDICTED, "own_id": one.id} for one in lacking]
    return [
        {key: str(one.get(key, "")) for key in ("item", "reason", "own_id") if key != "own_id" or one.get(key)}
        for one in _beside(side)[1]
    ]


def _originals(side: CellDataset) -> list[dict[str, str]]:
    """Return the rows of the table of images of a side's run; none where it has no such table."""
    path = Path(side.run) / TABLE
    return read_originals(path) if path.is_file() else []


def _beside(side: CellDataset) -> tuple[list[dict], list[dict]]:
    """Return the entries of images, and of what was skipped, of a COCO file of predictions; nothing of any other side."""
    if side.path is None or not side.path.is_file() or side.path.suffix.lower() != ".json":
        return [], []
    return _entries(side.path, side.path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _entries(path: Path, changed: int) -> tuple[list[dict], list[dict]]:
    """Return the same; a file is read once as long as it is not changed."""
    whole = read_json(path)
    told = whole if isinstance(whole, dict) else {}
    info = told.get("info")
    lists = (told.get("images"), info.get("quarantined") if isinstance(info, dict) else None)
    images, skipped = (
        [one for one in some if isinstance(one, dict)] if isinstance(some, list) else [] for some in lists
    )
    return images, skipped


# ---- bringing two sides together -----------------------------------------------------------------------------------
def match_sides(truth: CellDataset, found: CellDataset, common: bool = False) -> tuple[CellDataset, CellDataset]:
    """Bring two sides to the same images, in the order of the truth, and to the classes of the truth.

    Images are matched by image id, file path, file name without suffix, or the id that such a name or path becomes: by the
    strictest that fits any, the rest by looser ones where no folders contradict (`cellkit.cells.names.best_pairs`).
    Classes are matched by name; where the two sides share no name, or no cell found has a class, classes are dropped. That,
    and classes of cells found that the truth does not have, is noted with the second side.
    Images that a competition's table of truth says it does not score are none of these.
    Images that a run's model did not predict are left out of the truth; where the truth is of the same run, so are
    those that the truth lacks.

    Parameters
    ----------
    common : bool
        Score the images that both sides have, instead of refusing the others.

    Raises
    ------
    UserError
        Images that only one side has (how many, which), or an image of two sizes.
    """
    places = best_pairs(truth.records, found.records, NAMES)
    used = set(places.values())
    unscored = frozenset(map(same, {**truth.unscored, **found.unscored}))
    missing = [r.image_id for k, r in enumerate(truth.records) if k not in places and not _is_one_of(r, unscored)]
    extra = [r.image_id for k, r in enumerate(found.records) if k not in used and not _is_one_of(r, unscored)]
    if not truth.records or not found.records:
        empty = next(side for side in (truth, found) if not side.records)
        raise UserError(f"{empty.path} holds no image", "give a file with the images that the other has")
    if not places:
        raise UserError(
            f"none of the {len(extra)} images of {found.path} ({first_names(extra)}) is in {truth.path} ({first_names(missing)})",
            "images are matched by image id or by file name without suffix: name them alike",
        )
    excused = found.of_model, found.of_model and truth.run == found.run
    if not common and ((missing and not excused[0]) or (extra and not excused[1])):
        sides = ((missing, truth, found), (extra, found, truth))
        problems = [
            f"{len(names)} of the {len(a.records)} images of {a.path} are not in {b.path} ({first_names(names)})"
            for names, a, b in sides
            if names
        ]
        raise UserError("; ".join(problems), "give both sides the same images, or score those that both have: --common")
    truth, found = truth.subset(list(places)), found.subset(list(places.values()))
    for a, b in zip(truth.records, found.records, strict=True):
        if (a.height_px, a.width_px) != (b.height_px, b.width_px):
            raise UserError(
                f"{a.image_id} is {a.height_px} x {a.width_px} px in {truth.path}, {b.height_px} x {b.width_px} in {found.path}",
                "compare cells of the very same images",
            )
    return _same_classes(truth, found)


def _is_one_of(record: ImageRecord, names: frozenset[str]) -> bool:
    """Tell whether an image is called by one of these names, which are as `same` has them."""
    return bool(names) and any(names & of(record) for of in NAMES)


NAMES: tuple[Callable[[ImageRecord], frozenset[str]], ...] = (
    lambda record: frozenset([same(record.image_id)]),
    lambda record: frozenset([same(record.path)]),
    lambda record: frozenset([same(plain_stem(record.path))]),
    lambda record: ids_of(plain_stem(record.path)),
    lambda record: frozenset([same(plain_stem(record.image_id))]),
    lambda record: ids_of(record.image_id),
)


def _same_classes(truth: CellDataset, found: CellDataset) -> tuple[CellDataset, CellDataset]:
    """Number the classes of `found` as those of `truth`; drop classes where the sides share none."""
    classless = found.cells > 0 and not any(objects.class_ids.any() for objects in found.instances)
    found = replace(found, notes=found.notes + _strange_classes(truth, found))
    if classless or not set(truth.classes) & set(found.classes):
        plain = [[objects.with_classes(0) for objects in side.instances] for side in (truth, found)]
        found = replace(found, instances=plain[1], classes=())
        return replace(truth, instances=plain[0], classes=()), found
    names = [*truth.classes, *(name for name in found.classes if name not in truth.classes)]
    number = class_numbers(found.classes, names)
    instances = [objects.with_classes(number[objects.class_ids]) for objects in found.instances]
    return replace(truth, classes=tuple(names)), replace(found, instances=instances, classes=tuple(names))


def _strange_classes(truth: CellDataset, found: CellDataset) -> tuple[str, ...]:
    """Return what to say of the classes of cells found that the truth does not name: another spelling is another class."""
    used = np.unique(np.concatenate([np.zeros(0, int), *(objects.class_ids for objects in found.instances)]))
    strange = [found.classes[k - 1] for k in used.tolist() if 1 <= k <= len(found.classes)]
    strange = [name for name in strange if name not in truth.classes]
    if not strange or not truth.classes:
        return ()
    named = "; ".join(f"'{name}'{_spelt(name, truth.classes)}" for name in strange[:6])
    shared = set(truth.classes) & set(found.classes)
    so = "they match no true class" if shared else "the two sides share no class, so none is scored"
    return (f"{found.path} has cells of classes that {truth.path} does not have: {named}; {so}",)


def _spelt(name: str, names: Sequence[str]) -> str:
    """Return the question whether a name is meant that differs in case, spaces or a few letters.

    Examples
    --------
    >>> _spelt("n2a ", ["HEK", "N2a"]), _spelt("neuron", ["HEK", "N2a"])
    (" (did you mean 'N2a'?)", '')
    """
    alike = [known for known in names if known.strip().casefold() == name.strip().casefold()]
    return f" (did you mean '{alike[0]}'?)" if alike else nearest(name, names)


def first_names(names: Sequence[str]) -> str:
    """Name the first three.

    Examples
    --------
    >>> first_names(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def refuse_proposed(truth: CellDataset) -> None:
    """Refuse a true side all of whose cells a model proposed: agreement with them is no accuracy.

    Raises
    ------
    UserError
        Every image of the true side has proposals for labels.
    """
    if truth.records and truth.made_by and set(truth.made_by) == {"proposed"}:
        raise UserError(
            f"{truth.path} holds proposals, no truth: {NO_ACCURACY}",
            "correct some images and score those (label.use); images corrected in this file itself count too (a mark of "
            'another program, a key "labels" without "labels_stamp", has to go first)',
        )


def without_proposed(truth: CellDataset, found: CellDataset) -> tuple[CellDataset, CellDataset, list[str]]:
    """Leave out the images whose true side a model proposed; return both sides and the ids of what was left out.

    Raises
    ------
    UserError
        No image is left, see `refuse_proposed`.
    """
    refuse_proposed(truth)
    by_model = [maker == "proposed" for maker in truth.made_by]
    kept = [k for k, one in enumerate(by_model) if not one]
    left = [record.image_id for record, one in zip(truth.records, by_model, strict=True) if one]
    return (truth.subset(kept), found.subset(kept), left) if left else (truth, found, [])


def name_groups(side: CellDataset) -> tuple[CellDataset, str]:
    """Group the images of a side that tells no group: by the well or series in their names, else by their folders.

    Images of one well or movie resemble each other: what is drawn for an interval is the whole of it. A group is known only
    where several images share it. Folders called after a split or a class are none, nor those beside a ``classes.csv``, which
    are cell lines.

    Returns
    -------
    side : CellDataset
    note : str
        What the groups were taken from; "" where the images have groups already, or none.
    """
    if any(record.group for record in side.records):
        return side, ""
    lines = (side.path / "classes.csv").is_file()
    no_group = {plain(name) for name in (*side.classes, *(record.cell_type for record in side.records), MIXED)}
    keys = []
    for record in side.records:
        *parts, name = record.path.replace("\\", "/").split("/")
        parts = [part for part in parts if not split_of_folder(part) and plain(part) not in no_group]
        series = series_of(plain_stem(name))
        keys.append(
            ("/".join([*parts, series or "series"]) if series is not None else "", "" if lines else "/".join(parts))
        )
    named, placed = (Counter(filter(None, column)) for column in zip(*keys, strict=True)) if keys else ({}, {})
    if len({folder for _, folder in keys}) < 2:
        placed = Counter()
    groups = [a if named[a] > 1 else b if placed[b] > 1 else "" for a, b in keys]
    if not any(groups):
        return side, ""
    by = " and ".join(
        ["names"] * (max(named.values(), default=0) > 1) + ["folders"] * any(g in placed for g in groups if g)
    )
    group, count = min(Counter(filter(None, groups)).items())
    records = [replace(record, group=group) for record, group in zip(side.records, groups, strict=True)]
    return replace(side, records=records), f"taken from {by} (e.g. {group}: {count} images)"
