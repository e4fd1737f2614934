"""Charts and tables of measurements: how large, how round and how bright the cells of each line and class are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cellkit.show.counts import spans
from cellkit.show.style import class_colour, class_stripes, figure_or_new, styled, words_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas
    from matplotlib.figure import Figure

    from cellkit.cells.dataset import CellDataset

ONE_CLASS = "cell"  # what cells are called that are told apart in no classes
POINTS = (0, 5, 25, 50, 75, 95, 100)  # percentiles that a row of the chart shows
MOST_CHANNELS = 4


def of_unflagged(cells: pandas.DataFrame, images: CellDataset) -> pandas.DataFrame:
    """Return the rows of cells.csv without those of flagged images: there size and brightness are those of the fault."""
    return cells[~cells["image"].isin([record.image_id for record in images.records if record.flags])]


def groups_of(cells: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """Return the rows of cells.csv by line of the image, and by class of the cell where a model names it.

    Cells at the border are left out: it may have cut them. Without lines and classes all are one group.
    """
    whole = cells[~cells["at_border"].astype(bool)]
    groups = {}
    for column, word in (("line", "images"), ("class", "cells")):
        names = sorted(set(whole[column].fillna("")) - {""})
        groups |= {_title(name, word): whole[whole[column] == name] for name in names}
    return groups or {_title(ONE_CLASS, "cells"): whole}


def _title(name: str, word: str) -> str:
    return word if (name, word) == (ONE_CLASS, "cells") else f"{name} {word}"


def measures_of(cells: pandas.DataFrame) -> dict[str, str]:
    """Return the columns of cells.csv that are shown, and what they are called: size, shape, brightness of each channel."""
    sized = cells["um_per_px"].notna().all() and len(cells) > 0
    shown = {"diameter_um" if sized else "diameter_px": f"diameter ({'µm' if sized else 'px'})"}
    shown |= {"eccentricity": "eccentricity", "solidity": "solidity"}
    channels = [name.removeprefix("mean_corrected_") for name in cells if name.startswith("mean_corrected_")]
    return shown | {f"mean_corrected_{name}": f"{name}, mean less background" for name in channels[:MOST_CHANNELS]}


def table_of_measures(cells: pandas.DataFrame) -> pandas.DataFrame:
    """Return median and middle half of each measure, a row for each line and class; nothing is rounded.

    Returns
    -------
    DataFrame
        Index: the groups of `groups_of`; columns: ``cells``, and (measure, 25 | 50 | 75).
    """
    import pandas as pd

    measures, groups = measures_of(cells), groups_of(cells)
    rows = {
        name: {"cells": len(group)}
        | {
            (title, part): _percentiles(group[column], (part,))[0]
            for column, title in measures.items()
            for part in (25, 50, 75)
        }
        for name, group in groups.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _percentiles(values: pandas.Series, points: tuple[int, ...]) -> list[float]:
    known = values.dropna().to_numpy(float)
    return np.percentile(known, points).tolist() if len(known) else [np.nan] * len(points)


@styled
def show_measures(
    cells: pandas.DataFrame,
    figure: Figure | None = None,
    classes: Sequence[str] = (),
    images: CellDataset | None = None,
) -> np.ndarray:
    """Show how size, shape and brightness are distributed, a row for each line and class.

    A thin line spans all cells, a thick one 5 to 95 %, a bar the middle half; the dot is the median. Cells at the border are
    left out.

    Parameters
    ----------
    cells : DataFrame
        cells.csv.
    classes : sequence of str
        In order: each has the colour that it has in other pictures; names that are none of them come after.
    images : CellDataset, optional
        Those of the run: cells of flagged ones are left out.

    Returns
    -------
    (M,) Axes
        One for each measure; one with a sentence where there is no cell.
    """
    cells = cells if images is None else of_unflagged(cells, images)
    measures, groups = measures_of(cells), groups_of(cells)
    if not any(map(len, groups.values())):
        return np.array(
            [words_only("there is no whole cell to measure", None if figure is None else figure.subplots())]
        )
    names = [ONE_CLASS if title == "cells" else title.rsplit(" ", 1)[0] for title in groups]
    places = list(dict.fromkeys([*classes, *names]))  # a line and a class of one name have one colour
    ids = [places.index(name) + 1 for name in names]
    rows = -(-len(measures) // 3)
    figure = figure_or_new(figure, (9.6, rows * (1.3 + 0.36 * len(groups))))
    axes = np.atleast_1d(figure.subplots(rows, 3)).ravel()
    for ax, (column, title) in zip(axes, measures.items(), strict=False):
        points = {f"{name} ({len(group)})": _percentiles(group[column], POINTS) for name, group in groups.items()}
        looks = {
            row: {"color": class_colour(k), "edgecolor": "#666C75"} | class_stripes(k)
            for row, k in zip(points, ids, strict=True)
        }
        spans(ax, {name: own if np.isfinite(own[0]) else [] for name, own in points.items()}, looks)
        ax.set(xlabel=title)
    for ax in axes[len(measures) :]:
        ax.set_axis_off()
    return axes[: len(measures)]
