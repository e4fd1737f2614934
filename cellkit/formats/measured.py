"""A table of measured cells, as CSV or Parquet, brought to the cells of each image."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.errors import UserError, counted
from cellkit.files import from_cell

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("image", "label")  # which cell a row is of: the image's id, and the cell's number in files, from 1
NOT_MEASURED = (*KEYS, "score")
MOST_COLUMNS = 10_000
PACKED = (".gz", ".bz2", ".zip", ".xz", ".zst", ".tar")  # which pandas opens
TEXTS = ("image", "line", "group", "class")  # columns of text, also where all of it are digits


def read_cells_table(path: str | Path) -> pd.DataFrame:
    """Read a table of cells as it was before it was written: an image may be called 001 or NA, a class None.

    Raises
    ------
    ValueError, OSError, ImportError
        It is neither CSV nor Parquet, or Parquet without pyarrow.
    """
    import pandas as pd

    if Path(path).suffix.lower() == ".parquet":
        return pd.read_parquet(path)
    _check_width(Path(path))
    names = pd.read_csv(path, encoding="utf-8-sig", nrows=0).columns
    texts = [name for name in TEXTS if name in names]
    empty = {name: ["", "nan", "NaN"] for name in names if name not in texts}
    how = {"dtype": dict.fromkeys(texts, str), "na_values": empty, "keep_default_na": False}
    table = pd.read_csv(path, encoding="utf-8-sig", **how)
    for name in texts:
        table[name] = table[name].fillna("").map(from_cell).astype(object)
    return table


def _check_width(path: Path) -> None:
    """Refuse a table whose first row is longer than its header, or with very many columns: pandas shifts, or takes minutes."""
    if path.suffix.lower() in PACKED:
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = (row for row in csv.reader(file) if any(field.strip() for field in row))
            names, first = (len(next(rows, [])) for _ in range(2))
    except csv.Error:  # pandas takes it, or says what is wrong
        return
    if first > names:
        raise ValueError(f"the header has {counted(names, 'column')}, the row after it {counted(first, 'field')}")
    if names > MOST_COLUMNS:
        raise ValueError(f"it has {counted(names, 'column')}, a table of cells {MOST_COLUMNS} at most")


def read_measured(path: str | Path, images: CellDataset) -> list[Mapping[str, np.ndarray]]:
    """Read a table with one row for each cell, for the given images.

    Parameters
    ----------
    path : path
        CSV or Parquet with the columns ``image`` (image_id) and ``label`` (1 to N); all columns of numbers are read.
    images : CellDataset

    Returns
    -------
    list of {column: (N,) float64}
        One per image; NaN where a cell has no row or a field is empty.

    Raises
    ------
    UserError
        No such table, without those columns, a row of a cell that the images do not have, or an ``area_px`` of another cell.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no table at {path}", "measure the cells first: cellkit measure")
    try:
        table = read_cells_table(path)
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"{path} is no CSV or Parquet: {str(error).strip()[:80]}", "measure the cells again") from error
    missing = [name for name in KEYS if name not in table]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}", f"a row says which cell it is of: {', '.join(KEYS)}")
    numbers = [name for name in table if name not in NOT_MEASURED and table[name].dtype.kind in "iufb"]
    rows = dict(list(table.groupby("image")))
    known = {record.image_id for record in images.records}
    strange = sorted(set(rows) - known)
    if strange:
        raise UserError(
            f"{path} has cells of {strange[0]}, and {images.path} has no such image", "measure these very cells"
        )
    measured = []
    for record, cells in zip(images.records, images.instances, strict=True):
        own = rows.get(record.image_id, table.iloc[:0])
        labels = _numbers(own["label"])
        if (
            not ((labels >= 1) & (labels <= len(cells)) & (labels == np.rint(labels))).all()
            or own["label"].duplicated().any()
        ):
            raise UserError(
                f"{path}: {record.image_id} has {counted(len(cells), 'cell')}, and a row of another, or two of one",
                "measure these very cells",
            )
        areas = cells.areas_px[labels.astype(int) - 1]
        if "area_px" in numbers and not (own["area_px"].isna() | (own["area_px"] == areas)).all():
            raise UserError(
                f"{path}: cells of {record.image_id} have other areas than those of {images.path}",
                "measure these very cells",
            )
        values = {str(name): np.full(len(cells), np.nan) for name in numbers}
        for name in numbers:
            values[str(name)][labels.astype(int) - 1] = own[name].to_numpy(float)
        measured.append(values)
    return measured


def _numbers(column: pd.Series) -> np.ndarray:
    """Return a column as float64, NaN where it holds no number, or one that no float64 holds."""
    import pandas as pd

    try:
        return pd.to_numeric(column, errors="coerce").to_numpy(float)
    except OverflowError:  # whole numbers of more than 308 digits
        return pd.to_numeric(column.astype(str), errors="coerce").to_numpy(float)
