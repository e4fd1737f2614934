"""A table of boxes (image, xmin, ymin, xmax, ymax, label), in px or fractions; see `cellkit.sources.voc` for what boxes are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.cells.names import image_id_of, plain, stem_of
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.microscope.file_info import PICTURE_SUFFIXES, TIFF_SUFFIXES
from cellkit.microscope.folders import list_files, listed_ends, may_be_named
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import (
    Convert,
    Loaded,
    SourceImage,
    failing,
    known_class,
    only_class,
)
from cellkit.sources.loading import about_annotated, load_picture
from cellkit.sources.own_split import split_word
from cellkit.sources.source_tables import header_of, read_table
from cellkit.sources.unlabelled import apart_from_bare, has_own_split
from cellkit.sources.voc import BOX_COLUMNS, Box, _with_boxes

ORDER = 50

NAME_COLUMNS, LABEL_COLUMNS = ("image", "filename", "image_name"), ("label", "class")


LARGEST_FRACTION, SMALLEST_PIXELS = 1.0, 2.0


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any(set(BOX_COLUMNS) <= set(header_of(path)) for path in root.glob("*.csv"))


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """One CSV table of boxes (image, xmin, ymin, xmax, ymax, label) and the pictures it names.

    The numbers are edges from the upper left corner of the image: fractions of its width and height, or px. Which of the
    two, ``config.box_units`` says; else `units_of` tells it from all numbers of the table, or refuses. A column ``split``
    is the split of its images, before the folder of a picture; by group, its other folders are the group.
    """
    root = Path(root)
    path = find_table(root)
    pictures = _pictures_by_name(root)
    boxes_of, units, split_of, named = _boxes_by_image(path, config.box_units, pictures, root)
    for label in sorted({box.label for boxes in boxes_of.values() for box in boxes}):
        known_class(label, config)
    items = []
    for key in sorted({*named, *pictures}, key=lambda key: named.get(key) or pictures[key].name):
        picture = pictures.get(key)
        boxes = boxes_of.get(key)
        name = picture.name if picture else named[key]
        if picture is None:
            loader = failing(f"{name} is in {path.name} but not below {root}", "add the picture")
        else:
            loader = partial(_load_boxed, root, picture, boxes, units, config)
        source = picture.relative_to(root).as_posix() if picture else name
        source += f", boxes in {units}" if boxes is not None else ""
        about = about_annotated(picture.relative_to(root).parts[:-1] if picture else (), config)
        split = split_of.get(key, "") or about["split"]
        used = (picture,) if picture else ()
        line = only_class(config) or MIXED
        own_id, bare = stem_of(Path(name)), boxes is None
        items.append(
            SourceImage(image_id_of(name), line, about["group"], split, source, loader, own_id, files=used, bare=bare)
        )
    left = list(leftovers(root, items))
    items, bare = apart_from_bare(items, config)
    yield from assign_splits(items, config, fill_split=has_own_split(items, config), left=[*left, *bare])


def _keys_of(names: Iterable[str], pictures: dict[str, Path], root: Path) -> dict[str, str]:
    """Return {name in a table: key of its picture}, with folders or without, in any spelling; a path where it is not there."""
    keys, listed = {}, listed_ends(names := set(names))
    for name in names:
        bare = plain(name).rpartition("/")[2]
        there = pictures[bare].relative_to(root).as_posix() if bare in pictures else ""
        keys[name] = bare if there and may_be_named(name, there, listed) else plain(name)
    return keys


def find_table(root: Path) -> Path:
    """Return the one CSV file of a folder that has the columns of boxes.

    Raises
    ------
    UserError
        Several tables have those columns.
    """
    found = [path for path in sorted(Path(root).glob("*.csv")) if set(BOX_COLUMNS) <= set(header_of(path))]
    if len(found) != 1:
        raise UserError(
            f"{root} has {len(found)} tables with the columns {', '.join(BOX_COLUMNS)}", "keep one table of boxes there"
        )
    return found[0]


def classes(root: Path) -> set[str]:
    """Return the labels that a table of boxes names."""
    rows = read_table(find_table(root), BOX_COLUMNS, Path(root))
    return {row[_column(rows[0], LABEL_COLUMNS, "label")] for row in rows} if rows else set()


def _column(row: dict, choices: tuple[str, ...], what: str) -> str:
    name = next((name for name in choices if name in row), None)
    if name is None:
        raise UserError(f"the table of boxes has no column for the {what}", f"call it {' or '.join(choices)}")
    return name


class _Boxed(NamedTuple):
    """What a table says of its pictures, by their keys."""

    boxes: dict[str, list[Box]]
    units: str
    splits: dict[str, str]
    names: dict[str, str]


def _boxes_by_image(path: Path, units: str | None, pictures: dict[str, Path], root: Path) -> _Boxed:
    """Return boxes and splits of the pictures of a table, all rows of one picture together however they spell its name."""
    rows = read_table(path, BOX_COLUMNS, path.parent)
    if not rows:
        raise UserError(f"{path} has no rows", "use the table as it came")
    image, label = _column(rows[0], NAME_COLUMNS, "image"), _column(rows[0], LABEL_COLUMNS, "label")
    keys = _keys_of((row[image] for row in rows), pictures, root)
    boxes: dict[str, list[Box]] = defaultdict(list)
    split_of: dict[str, str] = {}
    names: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        if not plain(row[image]).rpartition("/")[2]:
            raise UserError(f"{path} line {line} names no image", "write the name of its picture there")
        key = keys[row[image]]
        names.setdefault(key, row[image])
        split = split_word(row, f"{path} line {line}")
        if split_of.setdefault(key, split) != split:
            raise UserError(f"{path} line {line}: {row[image]} has another split above", "give each image one split")
        try:
            edges = tuple(float(row[column]) for column in BOX_COLUMNS)
        except ValueError as error:
            raise UserError(f"{path} line {line}: {error}", f"{', '.join(BOX_COLUMNS)} are numbers") from error
        boxes[key].append(Box(row[label], edges))
    edges = np.array([box.edges for some in boxes.values() for box in some])
    return _Boxed(boxes, units or units_of(edges, path), split_of, names)


def units_of(edges: np.ndarray, path: Path | str = "the table") -> str:
    """Tell whether box edges are fractions of the image or px, by all numbers of a table.

    Fractions: every number is within 0 to 1, and not all are 0 or 1. Pixels: some number is 2 or more, and no box lies
    within 0 to 1 as a whole. Anything else could be either, or is both, and is refused.

    Raises
    ------
    UserError
        Negative or missing numbers, or numbers that may be either.

    Examples
    --------
    >>> units_of(np.array([[0.1, 0.2, 0.5, 1.0]])), units_of(np.array([[10, 20, 50, 60], [0, 0, 4, 4]]))
    ('fractions', 'pixels')
    """
    edges = np.asarray(edges, float).reshape(-1, 4)
    if not np.isfinite(edges).all() or (edges < 0).any():
        raise UserError(f"{path} has boxes with numbers below 0 or none at all", "correct them, or leave them out")
    within = (edges <= LARGEST_FRACTION).all(axis=1)
    if within.all() and ((edges > 0) & (edges < 1)).any():
        return "fractions"
    if (edges >= SMALLEST_PIXELS).any() and not within.any():
        return "pixels"
    raise UserError(
        f"{path}: {int(within.sum())} of {len(edges)} boxes lie within 0 to 1, the largest number is {edges.max():g}: "
        "fractions of the image or px?",
        "set convert.box_units: fractions or pixels, after a look at one image",
    )


def _pictures_by_name(root: Path) -> dict[str, Path]:
    pictures: dict[str, Path] = {}
    for path in list_files(root, (*PICTURE_SUFFIXES, *TIFF_SUFFIXES)):
        key = plain(path.name)
        if key in pictures:
            raise UserError(
                f"two pictures are called {path.name}: {pictures[key]} and {path}", "the table knows them by name"
            )
        pictures[key] = path
    return pictures


def _load_boxed(
    root: Path, picture: Path, boxes: list[Box] | None, units: str, config: ConvertConfig, convert: Convert
) -> Loaded:
    made = load_picture(root, picture, config, convert)
    if boxes is None:
        return made
    height, width = made.image.shape[:2]
    edges = np.array([box.edges for box in boxes], float)
    if units == "fractions":
        edges = edges * (width, height, width, height)
    return _with_boxes(made, boxes, edges, config, picture.name)
