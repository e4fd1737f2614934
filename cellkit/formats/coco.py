"""COCO files as a format: what `cellkit.formats.coco_files` reads and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cellkit.cells.dataset import CellDataset
from cellkit.formats.any import Reading
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.coco_writing import write_coco
from cellkit.formats.results import is_list
from cellkit.microscope.folders import run_of

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
