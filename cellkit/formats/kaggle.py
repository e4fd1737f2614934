"""Kaggle CSVs: submissions, and the competitions' own tables of truth."""

from __future__ import annotations

from pathlib import Path

from cellkit.cells.dataset import CellDataset
from cellkit.cells.names import plain_stem
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted
from cellkit.formats.any import Reading
from cellkit.formats.competitions import get_profile, profiles
from cellkit.formats.submission import is_truth_table, read_submission, read_truth_table
from cellkit.formats.submission_check import read_rows

TITLE = "a Kaggle CSV"


def is_this(path: Path) -> bool:
    """Tell whether a file is a CSV."""
    return path.suffix.lower() == ".csv"


def read(path: Path, how: Reading) -> CellDataset:
    """Read a submission, or a competition's own table of truth.

    The sizes of its images come from `how.shapes` or from the other side, or the table has them.

    Raises
    ------
    UserError
        Nothing tells how it counts pixels, or how large its images are.
    """
    if is_truth_table(path):
        records, cells, classes, unscored = read_truth_table(path)
        what = f"{counted(len(unscored), 'image')} of {path} left out: the competition does not score them (Usage: Ignored)"
        return CellDataset(records, cells, classes, path=path, notes=(what,) if unscored else (), unscored=unscored)
    if how.profile is None:
        raise UserError(
            f"{path} is a CSV, and no profile says how it counts pixels", f"add --profile {' or '.join(profiles())}"
        )
    shapes = how.shapes
    if shapes is None and how.of is not None:
        shapes = {plain_stem(r.path): (r.height_px, r.width_px) for r in how.of.records}
        if how.of.unscored:
            _, _, named = read_rows(path, get_profile(how.profile), None)
            shapes |= {name: shape for name, shape in how.of.unscored.items() if name in named}
    if shapes is None:
        raise UserError(f"{path} does not tell how large its images are", "give the folder of the images: --images DIR")
    found = read_submission(path, how.profile, shapes, allow_overlaps=True)
    records = [ImageRecord(name, name, *shapes[name]) for name in found]
    return CellDataset(records, list(found.values()), path=path)
