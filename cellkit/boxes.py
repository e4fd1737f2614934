"""Box sets: Pascal VOC and tables of boxes. Boxes are boxes: nothing here pretends to know an outline.

The objects are `Instances` with ``boxes_only``: they are counted, drawn, give a segmented cell its class, and are scored
against boxes (``voc``, ``coco``). MAP IoU of masks on them, and learning outlines from them, is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.errors import UserError
from cellkit.file_info import PICTURE_SUFFIXES, TIFF_SUFFIXES
from cellkit.files import decoded
from cellkit.folders import IMAGE_FOLDERS, by_stem, check_inside, find_picture, list_files
from cellkit.instances import Instances, pixel_boxes
from cellkit.leftovers import leftovers
from cellkit.listing import (
    MIXED,
    UNUSED,
    Loaded,
    SourceImage,
    apart_from_bare,
    class_id_of,
    finished,
    known_class,
    load_picture,
    only_class,
    read_table,
    refuse,
    refuse_several,
)
from cellkit.names import image_id_of, plain, split_of_folders, stem_of
from cellkit.ownsplit import read_own_lists, split_word

BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
NAME_COLUMNS, LABEL_COLUMNS = ("image", "filename", "image_name"), ("label", "class")
LARGEST_FRACTION, SMALLEST_PIXELS = 1.0, 2.0
MOST_XML_BYTES = 10_000_000


class Box(NamedTuple):
    """One box of a source: the label there, and left, top, right, bottom edges as they are written."""

    label: str
    edges: tuple[float, float, float, float]


# ---- Pascal VOC ----------------------------------------------------------------------------------------------------
def read_voc(root: Path, config) -> Iterator[SourceImage]:
    """Pascal VOC: ``Annotations/*.xml`` and ``JPEGImages/``; boxes are 1-based and include both ends.

    ``train.txt``, ``val.txt`` and ``test.txt`` (in the folder or in ``ImageSets/Main``) are the split; an image in none of
    them is left out of it; ``trainval.txt`` is the training images that ``val.txt`` does not name. Where there is no list of
    validation or of test images, their share of ``config.split`` is taken from the training images. Without a folder
    ``Annotations`` the files lie beside their pictures (``train/a.xml``, ``train/a.jpg``), whose folders tell the split.
    """
    root = Path(root)
    folder = _voc_folder(root)
    files = {paths[0].stem: paths for paths in by_stem(folder, (".xml",)).values()}
    split_of = read_own_lists(root)
    items = []
    for stem in sorted({*files, *split_of}):
        found = files.get(stem, [])
        path = next(iter(found), None)
        folders = path.relative_to(root).parts[:-1] if path else ()
        split = split_of.get(stem, UNUSED) if split_of else split_of_folders(folders)
        boxes = _read_voc_safely(root, path) if len(found) == 1 else None
        for box in boxes or ():
            known_class(box.label, config)
        loader = partial(_load_voc, root, path, config) if path else partial(_no_annotation, stem)
        loader = refuse_several(root, found) or loader
        source = path.relative_to(root).as_posix() if path else f"JPEGImages/{stem}"
        picture = _voc_picture(root, stem, path)
        image_id, used = image_id_of(f"{stem}.jpg"), tuple(file for file in (picture, *found) if file)
        line = only_class(config) or MIXED
        items.append(SourceImage(image_id, line, "", split, source, loader, stem, files=used))
    yield from finished(items, config, fill_split=True, left=list(leftovers(root, items)))


def _voc_folder(root: Path) -> Path:
    """Return the folder of the annotations, in any spelling; without one, the data folder."""
    folders = sorted(child for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
    return next((child for child in folders if plain(child.name) == "annotations"), root)


def _find_voc_picture(root: Path, stem: str, path: Path | None) -> Path | None:
    """Return the picture in ``JPEGImages``; without such a folder beside its annotations, or in ``images`` beside theirs."""
    places = [root / "JPEGImages"]
    if path is not None and not places[0].is_dir():
        places = [path.parent, *(path.parent.parent / name for name in IMAGE_FOLDERS)]
    return next((found for place in places if (found := find_picture(place, stem))), None)


def _voc_picture(root: Path, stem: str, path: Path | None) -> Path | None:
    try:
        return _find_voc_picture(root, stem, path)
    except UserError:
        return None  # said where the image is loaded


def _no_annotation(stem: str) -> Loaded:
    return refuse(f"{stem} is listed but has no Annotations/{stem}.xml", "add the file, or take the name off the list")


def _read_voc_safely(root: Path, path: Path) -> list[Box] | None:
    """Return the boxes, or None where the file is damaged: that is said where the image is loaded."""
    try:
        return _read_voc_file(root, path)[1]
    except UserError:
        return None


def voc_labels(root: Path) -> set[str]:
    """Return the labels that the files of a Pascal VOC set name."""
    found = [_read_voc_safely(root, path) or [] for path in list_files(_voc_folder(root), (".xml",), keep_labels=True)]
    return {box.label for boxes in found for box in boxes}


def _read_voc_file(root: Path, path: Path) -> tuple[tuple[int, int] | None, list[Box]]:
    """Return (height, width) as stated, and the boxes as written."""
    from xml.etree import ElementTree

    check_inside(path, root)
    if path.stat().st_size > MOST_XML_BYTES:
        raise UserError(f"{path.name} has {path.stat().st_size} bytes", "a VOC file of one image is far smaller")
    text = path.read_bytes()
    if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
        raise UserError(f"{path.name} declares entities", "a VOC file needs none: write it again")
    try:
        tree = ElementTree.fromstring(text)
        size = tree.find("size")
        shape = None if size is None else (int(size.findtext("height")), int(size.findtext("width")))
        boxes = [_voc_box(item) for item in tree.iter("object")]
    except (ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path.name} is no Pascal VOC file: {error}", "write it again") from error
    return shape, boxes


def _voc_box(item) -> Box:
    name, box = item.findtext("name"), item.find("bndbox")
    if not name:
        raise ValueError("an object has no name")
    return Box(name, tuple(float(box.findtext(key)) for key in BOX_COLUMNS))


def _load_voc(root: Path, path: Path, config) -> Loaded:
    stated, boxes = _read_voc_file(root, path)
    picture = _find_voc_picture(root, path.stem, path)
    if picture is None:
        where = "JPEGImages" if (root / "JPEGImages").is_dir() else path.parent.relative_to(root).as_posix()
        raise UserError(f"{path.name} has no picture {where}/{path.stem}.*", "add the picture, or remove the file")
    made = load_picture(root, picture, config)
    shape = made.image.shape[:2]
    if stated not in (None, (0, 0), shape):
        raise UserError(
            f"{path.name} says {stated[0]} x {stated[1]} px, {picture.name} is {shape[0]} x {shape[1]}",
            "use the picture the boxes were drawn on",
        )
    edges = np.array([box.edges for box in boxes], float).reshape(-1, 4) - (1, 1, 0, 0)
    return _with_boxes(made, boxes, edges, config, path.name)


# ---- tables of boxes -----------------------------------------------------------------------------------------------
def read_box_csv(root: Path, config) -> Iterator[SourceImage]:
    """One CSV table of boxes (image, xmin, ymin, xmax, ymax, label) and the pictures it names.

    The numbers are edges from the upper left corner of the image: fractions of its width and height, or px. Which of the
    two, ``config.box_units`` says; else `units_of` tells it from all numbers of the table, or refuses. A column ``split``
    is the split of its images, before the folder of a picture.
    """
    root = Path(root)
    path = find_table(root)
    boxes_of, units, split_of = _boxes_by_image(path, config.box_units)
    for label in sorted({box.label for boxes in boxes_of.values() for box in boxes}):
        known_class(label, config)
    pictures = _pictures_by_name(root)
    items = []
    named = {_name_key(name, pictures): name for name in boxes_of}
    for key in sorted({*named, *pictures}, key=lambda key: named.get(key) or pictures[key].name):
        picture = pictures.get(key)
        boxes = boxes_of.get(named.get(key))
        name = picture.name if picture else named[key]
        if picture is None:
            loader = partial(refuse, f"{name} is in {path.name} but not below {root}", "add the picture")
        else:
            loader = partial(_load_boxed, root, picture, boxes, units, config)
        source = picture.relative_to(root).as_posix() if picture else name
        source += f", boxes in {units}" if boxes is not None else ""
        split = split_of_folders(picture.relative_to(root).parts[:-1]) if picture else ""
        split = split_of.get(named.get(key), "") or split
        used = (picture,) if picture else ()
        line = only_class(config) or MIXED
        own_id, bare = stem_of(Path(name)), boxes is None
        items.append(SourceImage(image_id_of(name), line, "", split, source, loader, own_id, files=used, bare=bare))
    left = list(leftovers(root, items))
    items, bare = apart_from_bare(items)
    yield from finished(items, config, fill_split=all(item.split for item in items), left=[*left, *bare])


def _name_key(name: str, pictures: dict[str, Path]) -> str:
    """Return the key of a picture that a table names, with folders or without."""
    return key if (key := plain(name)) in pictures else key.rpartition("/")[2]


def find_table(root: Path) -> Path:
    """Return the one CSV file of a folder that has the columns of boxes."""
    found = [path for path in sorted(Path(root).glob("*.csv")) if set(BOX_COLUMNS) <= set(header_of(path))]
    if len(found) != 1:
        raise UserError(
            f"{root} has {len(found)} tables with the columns {', '.join(BOX_COLUMNS)}", "keep one table of boxes there"
        )
    return found[0]


def header_of(path: Path) -> list[str]:
    """Return the column names of a CSV file, none where there is no such file or no text in it."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        lines = decoded(file.read(10_000), "ignore").splitlines()
    text = lines[0].strip() if lines else ""
    return [name.strip().strip('"') for name in text.split(max(",;\t", key=text.count))]


def box_labels(root: Path) -> set[str]:
    """Return the labels that a table of boxes names."""
    rows = read_table(find_table(root), BOX_COLUMNS, Path(root))
    return {row[_column(rows[0], LABEL_COLUMNS, "label")] for row in rows} if rows else set()


def _column(row: dict, choices: tuple[str, ...], what: str) -> str:
    name = next((name for name in choices if name in row), None)
    if name is None:
        raise UserError(f"the table of boxes has no column for the {what}", f"call it {' or '.join(choices)}")
    return name


def _boxes_by_image(path: Path, units: str | None) -> tuple[dict[str, list[Box]], str, dict[str, str]]:
    """Return {picture name: boxes}, the units, and {picture name: split} where a column tells it."""
    rows = read_table(path, BOX_COLUMNS, path.parent)
    if not rows:
        raise UserError(f"{path} has no rows", "use the table as it came")
    image, label = _column(rows[0], NAME_COLUMNS, "image"), _column(rows[0], LABEL_COLUMNS, "label")
    boxes: dict[str, list[Box]] = defaultdict(list)
    split_of: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        split = split_word(row, f"{path} line {line}")
        if split_of.setdefault(row[image], split) != split:
            raise UserError(f"{path} line {line}: {row[image]} has another split above", "give each image one split")
        try:
            edges = tuple(float(row[key]) for key in BOX_COLUMNS)
        except ValueError as error:
            raise UserError(f"{path} line {line}: {error}", f"{', '.join(BOX_COLUMNS)} are numbers") from error
        boxes[row[image]].append(Box(row[label], edges))
    edges = np.array([box.edges for some in boxes.values() for box in some])
    return boxes, units or units_of(edges, path), split_of


def units_of(edges: np.ndarray, path: Path | str = "the table") -> str:
    """Tell whether box edges are fractions of the image or px, by all numbers of a table.

    Fractions: every number is within 0 to 1, and not all are 0 or 1. Pixels: some number is 2 or more, and no box lies
    within 0 to 1 as a whole. Anything else could be either, or is both, and is refused.

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
                f"two pictures are called {path.name}: {pictures[key]} and {path}", "the table tells them by name"
            )
        pictures[key] = path
    return pictures


def _load_boxed(root: Path, picture: Path, boxes: list[Box] | None, units: str, config) -> Loaded:
    made = load_picture(root, picture, config)
    if boxes is None:
        return made
    height, width = made.image.shape[:2]
    edges = np.array([box.edges for box in boxes], float)
    if units == "fractions":
        edges = edges * (width, height, width, height)
    return _with_boxes(made, boxes, edges, config, picture.name)


# ---- boxes to instances --------------------------------------------------------------------------------------------
def _with_boxes(made: Loaded, boxes: list[Box], edges: np.ndarray, config, where: str) -> Loaded:
    shape = made.image.shape[:2]
    ids = [class_id_of(box.label, config) for box in boxes]
    return made._replace(instances=Instances.from_boxes(pixel_boxes(edges, shape, where), shape, ids))
