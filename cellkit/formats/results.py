"""COCO results lists: what a model found, by the ids of another file's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.names import plain
from cellkit.cells.records import read_records
from cellkit.errors import UserError
from cellkit.files import read_json
from cellkit.formats.any import Reading
from cellkit.formats.coco_reading import IGNORE, UNKNOWN, read_results
from cellkit.microscope.folders import run_of

TITLE = "a COCO results list"


def is_this(path: str | Path) -> bool:
    """Tell whether a file is a COCO results list."""
    return Path(path).suffix.lower() == ".json" and is_list(path)


def read(path: Path, how: Reading) -> CellDataset:
    """Read a results list: of a run's images by its table of them, else of those of another COCO file."""
    run = run_of(path)
    return _read_results_of_run(path, run) if run is not None else _read_results(path, how.of, how.common)


def is_list(path: str | Path) -> bool:
    """Tell whether a JSON file is a list: COCO results, rather than a COCO file."""
    with open(path, "rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _read_results(path: Path, of: CellDataset | None, common: bool) -> CellDataset:
    """Read a results list for the images and categories of a COCO file."""
    if of is None or not of.ids:
        raise UserError(
            f"{path} is a COCO results list: it tells its images by the ids they have in a COCO file",
            "give that COCO file too: as TRUTH of cellkit score, as --coco of cellkit submit and labels",
        )
    found = read_results(path, of, common)
    without = sum(not len(cells) for cells in found)
    notes = (f"{path} has no entry for {without} of {len(found)} images: nothing was found there",) if without else ()
    notes += _of_category_0(path, found, of)
    return CellDataset(of.records, found, of.classes, ids=of.ids, categories=of.categories, path=path, notes=notes)


def _of_category_0(path: Path, found: Sequence[Instances], of: CellDataset) -> tuple[str, ...]:
    """Return what to say of entries of category 0 where the COCO file has none: are its categories counted from 0?"""
    used = np.concatenate([np.zeros(0, int), *(cells.class_ids for cells in found)])
    unknown = int((used == 0).sum())
    if not unknown or 0 in of.categories or 0 in of.categories.values():
        return ()
    ids = ", ".join(map(str, of.categories))
    note = f"{unknown} of {len(used)} entries of {path} have category_id 0 or none, {of.path} has {ids}: cells of unknown class"
    counted = used.any() and max(of.categories.values(), default=0) not in used
    wrong = "; the list seems to count categories from 0: if so, all its classes are wrong; add 1 to each category_id"
    return (note + (wrong if counted else ""),)


def _read_results_of_run(path: Path, run: Path) -> CellDataset:
    """Read predictions of a run: ids are rows of its table of images, and all of validation and test were predicted."""
    records = read_records(run / "records.csv")
    found = read_results(path, {k: (r.height_px, r.width_px) for k, r in enumerate(records, 1)})
    # predictions/*.json are of all these images; proposals.json of some, those with an entry
    complete = path.absolute().parent != run
    positions = [k for k, r in enumerate(records) if len(found[k]) or (complete and r.split in ("val", "test"))]
    files = [file for file in (run / "coco/train.json", run / "truth.json") if file.is_file()]
    named = [entry["name"] for entry in read_json(files[0])["categories"]] if files else []
    named = [name for name in named if name != UNKNOWN and plain(name) != IGNORE]
    most = max((int(cells.class_ids.max()) for cells in found if len(cells)), default=0)
    if most > len(named):
        raise UserError(f"{path} has a cell of class {most}, {run} names {len(named)}", "run the notebooks again")
    return CellDataset(
        [records[k] for k in positions],
        [found[k] for k in positions],
        tuple(named),
        ids=[k + 1 for k in positions],
        made_by=["proposed"] * len(positions),  # by a model, every one
        path=path,
        run=run,
        of_model=True,
    )
