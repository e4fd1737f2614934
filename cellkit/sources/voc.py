"""Pascal VOC boxes, kept as boxes: no outline is invented.

The objects are `Instances` with ``boxes_only``: they are counted, drawn, give a segmented cell its class, and are scored
against boxes (``voc``, ``coco``). MAP IoU of masks on them, and learning outlines from them, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of, plain
from cellkit.cells.outlines import pixel_boxes
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.microscope.folders import IMAGE_FOLDERS, by_stem, check_inside, find_picture, list_files
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import (
    UNUSED,
    Convert,
    Loaded,
    SourceImage,
    class_id_of,
    failing,
    known_class,
    loader_of_several,
    only_class,
)
from cellkit.sources.loading import about_annotated, load_picture
from cellkit.sources.own_split import read_split_lists, split_lists

ORDER = 30

BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")


MOST_XML_BYTES = 10_000_000


class Box(NamedTuple):
    """One box of a source: the label there, and left, top, right, bottom edges as they are written."""

    label: str
    edges: tuple[float, float, float, float]


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any((root / "Annotations").glob("*.xml"))


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """Pascal VOC: ``Annotations/*.xml`` and ``JPEGImages/``; boxes are 1-based and include both ends.

    ``train.txt``, ``val.txt`` and ``test.txt`` (in the folder or in ``ImageSets/Main``) are the split; an image in none of
    them is left out of it; ``trainval.txt`` is the training images that ``val.txt`` does not name. Where there is no list of
    validation or of test images, their share of ``config.split`` is taken from the training images. Without a folder
    ``Annotations`` the files lie beside their pictures (``train/a.xml``, ``train/a.jpg``), whose folders tell the split and,
    by group, the group.
    """
    root = Path(root)
    folder = _voc_folder(root)
    files = {paths[0].stem: paths for paths in by_stem(folder, (".xml",)).values()}
    split_of = read_split_lists(split_lists(root), root)
    items = []
    for stem in sorted({*files, *split_of}):
        found = files.get(stem, [])
        path = next(iter(found), None)
        folders = path.relative_to(root).parts[:-1] if path else ()
        about = about_annotated([part for part in folders if plain(part) != "annotations"], config)
        split = split_of.get(stem, UNUSED) if split_of else about["split"]
        boxes = _read_voc_safely(root, path) if len(found) == 1 else None
        for box in boxes or ():
            known_class(box.label, config)
        problem = f"{stem} is listed but has no Annotations/{stem}.xml"
        missing = failing(problem, "add the file, or take the name off the list")
        loader = loader_of_several(root, found) or (partial(_load_voc, root, path, config) if path else missing)
        source = path.relative_to(root).as_posix() if path else f"JPEGImages/{stem}"
        picture = _voc_picture(root, stem, path)
        image_id, used = image_id_of(f"{stem}.jpg"), tuple(file for file in (picture, *found) if file)
        line = only_class(config) or MIXED
        items.append(SourceImage(image_id, line, about["group"], split, source, loader, stem, files=used))
    yield from assign_splits(items, config, fill_split=True, left=list(leftovers(root, items)))


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
        return None  # reported where the image is loaded


def _read_voc_safely(root: Path, path: Path) -> list[Box] | None:
    """Return the boxes, or None where the file is damaged: reported where the image is loaded."""
    try:
        return _read_voc_file(root, path)[1]
    except UserError:
        return None


def classes(root: Path) -> set[str]:
    """Return the labels that the files of a Pascal VOC set name."""
    found = [_read_voc_safely(root, path) or [] for path in list_files(_voc_folder(root), (".xml",), keep_labels=True)]
    return {box.label for boxes in found for box in boxes}


def _read_voc_file(root: Path, path: Path) -> tuple[tuple[int, int] | None, list[Box]]:
    """Return (height, width) as stated, and the boxes as written."""
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


def _load_voc(root: Path, path: Path, config: ConvertConfig, convert: Convert) -> Loaded:
    stated, boxes = _read_voc_file(root, path)
    picture = _find_voc_picture(root, path.stem, path)
    if picture is None:
        where = "JPEGImages" if (root / "JPEGImages").is_dir() else path.parent.relative_to(root).as_posix()
        raise UserError(f"{path.name} has no picture {where}/{path.stem}.*", "add the picture, or remove the file")
    made = load_picture(root, picture, config, convert)
    shape = made.image.shape[:2]
    if stated not in (None, (0, 0), shape):
        raise UserError(
            f"{path.name} says {stated[0]} x {stated[1]} px, {picture.name} is {shape[0]} x {shape[1]}",
            "use the picture the boxes were drawn on",
        )
    edges = np.array([box.edges for box in boxes], float).reshape(-1, 4) - (1, 1, 0, 0)
    return _with_boxes(made, boxes, edges, config, path.name)


def _with_boxes(made: Loaded, boxes: list[Box], edges: np.ndarray, config: ConvertConfig, where: str) -> Loaded:
    shape = made.image.shape[:2]
    ids = [class_id_of(box.label, config) for box in boxes]
    return made._replace(instances=Instances.from_boxes(pixel_boxes(edges, shape, where), shape, ids))
