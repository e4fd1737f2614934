"""The chapter of the report on how large, how round and how bright the cells are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cellkit.errors import UserError, counted
from cellkit.models import model_name
from cellkit.pages.results import RunFiles, Table, Words, drawn
from cellkit.show.measurements import (
    MOST_CHANNELS,
    groups_of,
    measures_of,
    of_unflagged,
    show_measures,
    table_of_measures,
)

if TYPE_CHECKING:
    import pandas


def shown_cells(files: RunFiles) -> pandas.DataFrame:
    """Return the rows of cells.csv without those of flagged images.

    Raises
    ------
    UserError
        No cell was measured, or none outside flagged images.
    """
    cells = files.cells
    if cells.empty:
        raise UserError("cells.csv has no rows: no cell was found")
    cells = cells if files.path("records.csv") is None else of_unflagged(cells, files.images)
    if cells.empty:
        raise UserError("all cells of cells.csv are of flagged images")
    return cells


def measured_words(files: RunFiles) -> str:
    """Say whose cells are measured, in how many images, how many the border may have cut, and how many are of flagged images."""
    cells, shown = files.cells, shown_cells(files)
    cut, flagged = int(shown["at_border"].astype(bool).sum()), cells.drop(shown.index)
    who = model_name(str(files.summary.get("measured", ""))) or "the model"
    where = counted(cells["image"].nunique(), "image")
    left = f" The {cut} at a border {'is' if cut == 1 else 'are'} left out here: it may have cut them." if cut else ""
    if len(flagged):
        few, of = counted(len(flagged), "cell"), counted(flagged["image"].nunique(), "flagged image")
        left += f" {few} of {of} {'is' if len(flagged) == 1 else 'are'} left out {'too' if cut else 'here'}."
    return f"{counted(len(cells), 'cell')} that {who} found in {where}, each a row of cells.csv.{left}"


def brightness_words(cells: pandas.DataFrame) -> str:
    """Say what brightness is, with a blank before it; "" where none was measured."""
    known = any(name.startswith("mean_corrected_") for name in cells)
    return " Brightness is that of the microscope's file, less the median between the cells." if known else ""


def measurements_chapter(files: RunFiles) -> list:
    """How large, how round and how bright the cells of each line and class are.

    Raises
    ------
    UserError
        No cell was measured, or none outside flagged images.
    """
    cells = shown_cells(files)
    table, measures = table_of_measures(cells), measures_of(cells)
    rows = [
        [str(name), str(int(row["cells"])), *(_range(row, title) for title in measures.values())]
        for name, row in table.iterrows()
    ]
    caption = "Median and middle half of the whole cells, by line of the image and by class of the cell"
    height = -(-len(measures) // 3) * (1.3 + 0.36 * len(groups_of(cells)))
    text = "Thin line: all cells; thick line: 5 to 95 %; bar: the middle half; dot: the median."
    text += brightness_words(cells)
    channels = sum(name.startswith("background_") for name in cells)
    if channels > MOST_CHANNELS:
        text += f" Of {channels} channels the first {MOST_CHANNELS} are shown; cells.csv has all."
    picture = drawn(lambda f: show_measures(cells, f, files.classes), 9.6, height, text)
    return [Words(measured_words(files)), Table(("", "cells", *measures.values()), rows, caption), picture]


def _range(row, title: str) -> str:
    """Return "14.2 (12.1 to 16.8)" of a measure; a dash where it is not known."""
    low, middle, high = (float(row[(title, part)]) for part in (25, 50, 75))
    return "–" if math.isnan(middle) else f"{middle:.3g} ({low:.3g} to {high:.3g})"
