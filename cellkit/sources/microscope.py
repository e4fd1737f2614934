"""Microscope files in folders called after their cell line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from cellkit.config.sections import ConvertConfig
from cellkit.sources.folder import read_pictures
from cellkit.sources.label_files import classes_drawn
from cellkit.sources.listing import SourceImage

ORDER = 110


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return (root / "truth").is_dir()


def classes(root: Path) -> set[str]:
    """Return the names of the folders, and the classes in the table of classes."""
    names = {child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")}
    names -= {"truth", "mixed"}
    names |= classes_drawn(root)
    table = root / "truth" / "classes.csv"
    if table.is_file():
        with open(table, newline="", encoding="utf-8-sig") as file:
            names |= {row["class"] for row in csv.DictReader(file) if row.get("class")}
    return names


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """Microscope files in folders called after their cell line; several lines in one image lie in ``mixed/``.

    ``<root>/HEK/a.ome.tif`` has its truth, where there is one, in ``<root>/truth/HEK/a.tif`` (a label image; other places
    and names as for `folder.read`), and the classes of mixed cells in ``<root>/truth/classes.csv`` (file, label, class).
    Each scene and time point is an image. Mixed images are test images: their line is not known without truth. This is what
    `drawn.files.write_fields` writes.
    """
    yield from read_pictures(Path(root), config, folders_are_classes=True)
