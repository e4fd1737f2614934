"""Nuclei of HepG2 and Huh7 cells (Koyuncu et al.)."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.microscope.file_info import only_headers
from cellkit.microscope.folders import IMAGE_SUFFIXES, by_stem, check_inside
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import (
    UNUSED,
    Convert,
    Loaded,
    SourceImage,
    class_id_of,
    class_of_line,
    loader_of_several,
)
from cellkit.sources.loading import check_same_way, check_shape, load_picture, perhaps

ORDER = 40

HEPG2_LAST = 25  # images 1 to 25 are HepG2, the others Huh7


HEPG2_TRAIN = {1, 3, 7, 15, 23, 27, 28, 33, 35, 39}


HEPG2_UNUSED = {8, 9, 10, 22}  # in no list of the authors


MOST_TEXT_BYTES = 200_000_000


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any((root / "annotations").glob("*.gz")) and (root / "images").is_dir()


def classes(root: Path) -> set[str]:
    """Return the two lines."""
    return {"HepG2", "Huh7"}


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """Koyuncu's nuclei of two lines: ``images/N.jpg``, ``annotations/N.gz`` with the label image as text.

    The number tells the line (1 to 25 HepG2, from 26 on Huh7) and the published split. That has no validation images:
    ``config.split.val`` of its training images become them.
    """
    root = Path(root)
    pictures = by_stem(root / "images", IMAGE_SUFFIXES)
    items = []
    for stem, (path, *others) in sorted(pictures.items(), key=lambda item: (len(item[0]), item[0])):
        number = int(stem) if stem.isascii() and stem.isdigit() else 0
        cell_type = class_of_line("HepG2" if number <= HEPG2_LAST else "Huh7", config) if number else ""
        split = "train" if number in HEPG2_TRAIN else UNUSED if number in HEPG2_UNUSED or not number else "test"
        labels = root / "annotations" / f"{stem}.gz"
        loader = partial(_load_text_labels, root, path, labels, cell_type, config)
        loader = loader_of_several(root, [path, *others]) or loader
        source, files = path.relative_to(root).as_posix(), (path, *others, labels)
        items.append(SourceImage(image_id_of(path.name), cell_type, "", split, source, loader, stem, files=files))
    yield from assign_splits(items, config, fill_split=True, left=list(leftovers(root, items)))


def _load_text_labels(
    root: Path, path: Path, labels_path: Path, cell_type: str, config: ConvertConfig, convert: Convert
) -> Loaded:
    made = load_picture(root, path, config, convert)
    if not labels_path.is_file():
        raise UserError(f"{path.name} has no {labels_path.name} in annotations/", "add it, or remove the image")
    check_inside(labels_path, root)
    check_same_way(made, path, labels_path)
    class_id = class_id_of(cell_type, config) if cell_type else 0
    if only_headers():
        return perhaps(made, [class_id])
    labels = read_text_labels(labels_path)
    check_shape(labels.shape, made.image.shape[:2], labels_path, path)
    return made._replace(instances=Instances.from_labels(labels).with_classes(class_id))


def read_text_labels(path: Path) -> np.ndarray:
    """Read a gzipped text of whole numbers, one image row per line: (H, W) int32, 0 = background.

    Raises
    ------
    UserError
        Damaged, too large unpacked, rows of different length, or not whole numbers >= 0.
    """
    try:
        with gzip.open(path) as file:
            text = file.read(MOST_TEXT_BYTES + 1)
        if len(text) > MOST_TEXT_BYTES or not text.strip():
            raise ValueError(f"{len(text)} bytes unpacked")
        labels = np.loadtxt(io.BytesIO(text), dtype=np.int64, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {str(error)[:100]}", "it is a gzipped text of label numbers"
        ) from error
    if not labels.size or labels.min() < 0 or labels.max() > 2**31 - 1:
        raise UserError(
            f"{path} holds numbers from {labels.min(initial=0)} to {labels.max(initial=0)}", "labels are 0, 1, 2 ..."
        )
    return labels.astype(np.int32)
