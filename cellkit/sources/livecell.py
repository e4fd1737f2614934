"""LIVECell (Edlund et al., Nature Methods 2021): COCO files of eight cell lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cellkit.config.sections import ConvertConfig
from cellkit.microscope.folders import IMAGE_SUFFIXES, list_files
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.coco import _coco_image, _Listed, _once_each, _Pictures, _warn_unread, read_sheets
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import SourceImage, class_of_line, failing

ORDER = 60

LIVECELL_NAME = re.compile(r"(?P<line>[^_/]+)_Phase_(?P<well>[A-Z]\d{1,2})_")


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any(root.rglob("livecell*.json"))


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """LIVECell: ``livecell_coco_{train,val,test}.json`` and pictures called ``<line>_Phase_<well>_...tif``.

    The name tells the cell line and the well, which is the group. Some images are listed twice, with two annotations and
    partly in two splits (github.com/sartorius-research/LIVECell issues 14 and 26): the one in test stays before the one in
    val before the one in train, of two in the same list the one with more cells, and the other is skipped and named.
    """
    root = Path(root)
    listed: list[_Listed] = []
    sheets = read_sheets(root)
    pictures = _Pictures(root, sheets)
    _warn_unread(root)
    for sheet in sheets:
        for entry in sheet.images:
            name = LIVECELL_NAME.match(Path(str(entry.get("file_name", ""))).name)
            line = (class_of_line(name["line"], config), f"{name['line']} {name['well']}") if name else ("", "")
            one = _coco_image(root, sheet, entry, pictures, config, line)
            listed.append(one if name else _nameless(one))
    items = _once_each(listed)
    yield from assign_splits(items, config, fill_split=True, left=list(leftovers(root, items)))


def _nameless(one: _Listed) -> _Listed:
    problem = f"{one.item.source} does not tell its cell line and well"
    refusal = failing(problem, "LIVECell calls its pictures LINE_Phase_WELL_...; other sets are source: coco")
    return one._replace(item=replace(one.item, loader=refusal))


def classes(root: Path) -> set[str]:
    """Return the cell lines in the names of the pictures."""
    names = [LIVECELL_NAME.match(path.name) for path in list_files(root, IMAGE_SUFFIXES)]
    return {name["line"] for name in names if name}
