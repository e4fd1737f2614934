"""The score table: hits per image and threshold, from which every MAP IoU is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted, nearest
from cellkit.scores.intervals import BOOTSTRAP, Difference, Units, reach, standard_error
from cellkit.scores.iou import Overlaps, overlap_images
from cellkit.scores.kaggle import pooled_interval, pooled_score
from cellkit.scores.matching import THRESHOLDS, Counts, count, hits, match_pairs, ratio

if TYPE_CHECKING:
    import pandas


TABLE_COLUMNS = ("image_id", "cell_type", "group", "split", "class_name", "size", "threshold", "tp", "fp", "fn")


def score_table(
    truths: Sequence[Instances],
    founds: Sequence[Instances],
    records: Sequence[ImageRecord],
    classes: Sequence[str] = (),
    sizes: bool = False,
) -> pandas.DataFrame:
    """Count hits per image and threshold: a tidy table from which every MAP IoU is read.

    Parameters
    ----------
    classes : list of str
        Also count each class by itself (truth of the class against found of the class). A prediction of the class that
        hits a truth of unknown class counts neither way.
    sizes : bool
        Also count terciles of the areas of all truths: a hit or a miss belongs to its truth, an invention to its own
        area. Nothing is counted where there are none (`size_terciles`).

    Returns
    -------
    DataFrame
        image_id, cell_type, group, split, class_name ("" = all objects, whatever their class), size ("" = all, or
        small, medium, large), threshold, tp, fp, fn.

    Raises
    ------
    UserError
        Not as many records, truths and predictions.
    """
    import pandas as pd

    if len(records) != len(truths):
        raise UserError(f"{len(records)} records, {len(truths)} truths", "give one record per image, in order")
    pairs = overlap_images(truths, founds)
    fractions = THRESHOLDS
    edges = size_terciles(truths) if sizes else None
    blocks = []
    for record, image in zip(records, pairs, strict=True):
        rows = [("", "", count(image, fractions))]
        rows += [(name, "", _class_counts(image, k, fractions)) for k, name in enumerate(classes, 1)]
        if edges is not None:
            rows += [("", name, counts) for name, counts in _size_counts(image, edges, fractions).items()]
        about = (record.image_id, record.cell_type, record.group, record.split)
        blocks += [(*about, name, size, *counts) for name, size, counts in rows]
    repeated = len(fractions)
    columns = enumerate(TABLE_COLUMNS[:6])
    text = {name: np.repeat(np.array([block[k] for block in blocks], object), repeated) for k, name in columns}
    numbers = [np.concatenate([b[k] for b in blocks]) if blocks else np.zeros(0, np.int64) for k in (6, 7, 8)]
    values = np.tile(np.array([float(t) for t in fractions]), len(blocks))
    return pd.DataFrame({**text, "threshold": values, "tp": numbers[0], "fp": numbers[1], "fn": numbers[2]})


def _class_counts(image: Overlaps, class_id: int, thresholds) -> Counts:
    """Count one class; an unmatched prediction on a truth of unknown class is left out."""
    of_class = image.found_classes == class_id
    counts = count(image.select(image.truth_classes == class_id, of_class), thresholds)
    if not (image.truth_classes == 0).any():
        return counts
    unknown = image.select(image.truth_classes == 0, of_class)
    own = image.select(image.truth_classes == class_id, of_class)
    fp = []
    for t in thresholds:
        unmatched = np.ones(own.n_found, bool)
        unmatched[match_pairs(own, threshold=t)[1]] = False
        unmatched[unknown.found[hits(unknown, [t])[0]]] = False
        fp.append(unmatched.sum())
    return Counts(counts.tp, np.array(fp, np.int64), counts.fn)


def size_terciles(truths: Sequence[Instances]) -> tuple[float, float] | None:
    """Return the areas (px) that cut all true objects of a data set into three equal parts.

    None where there are none: no objects, or all of one area.
    """
    areas = np.concatenate([np.zeros(0)] + [truth.areas_px for truth in truths])
    return tuple(np.quantile(areas, [1 / 3, 2 / 3]).tolist()) if len(set(areas.tolist())) > 1 else None


def _size_counts(image: Overlaps, edges: tuple[float, float], thresholds) -> dict[str, Counts]:
    """Count each tercile of area."""
    of_truth, of_found = (np.searchsorted(edges, areas) for areas in (image.truth_areas_px, image.found_areas_px))
    rows = []
    for t in thresholds:
        i, j = match_pairs(image, threshold=t)
        missed, invented = np.ones(image.n_truth, bool), np.ones(image.n_found, bool)
        missed[i] = invented[j] = False
        rows.append([np.bincount(part, minlength=3) for part in (of_truth[i], of_found[invented], of_truth[missed])])
    table = np.array(rows).reshape(-1, 3, 3)
    return {name: Counts(*table[:, :, k].T) for k, name in enumerate(("small", "medium", "large"))}


def _checked(table: pandas.DataFrame, by: str | None = None) -> pandas.DataFrame:
    """Return the rows a question is about: all objects, each class, or each size. A table read from CSV serves too."""
    missing = [name for name in TABLE_COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"the score table lacks {', '.join(missing)}", "make it with score_table")
    text = table[["cell_type", "group", "split", "class_name", "size"]].astype(object).fillna("")
    table = table.assign(**{name: text[name].astype(str) for name in text})
    rows = (table["class_name"] != "") if by == "class_name" else (table["class_name"] == "")
    rows &= (table["size"] != "") if by == "size" else (table["size"] == "")
    return table[rows]


def _wide(table: pandas.DataFrame) -> tuple[pandas.DataFrame, Counts]:
    """Return one row per image (what it is) and its counts as three (images, T) arrays, thresholds ascending."""
    thresholds = np.sort(table["threshold"].unique())
    about = table.drop_duplicates(["image_id", "class_name", "size"]).reset_index(drop=True)
    if len(table) != len(about) * max(len(thresholds), 1):
        raise UserError(
            f"{len(table)} rows for {len(about)} images and {len(thresholds)} thresholds",
            "each image has each threshold once",
        )
    keys = [zip(part["image_id"], part["class_name"], part["size"], strict=True) for part in (about, table)]
    place = {key: row for row, key in enumerate(keys[0])}
    row = np.array([place[key] for key in keys[1]], np.int64)
    column = np.searchsorted(thresholds, table["threshold"])
    counts = np.zeros((3, len(about), len(thresholds)), np.int64)
    for k, name in enumerate(("tp", "fp", "fn")):
        counts[k, row, column] = table[name]
    return about, Counts(*counts)


def per_image(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row per image: its MAP IoU, how many cells are true and found, hits at 0.5; in the order of the table."""
    about, counts = _wide(_checked(table))
    about = about[["image_id", "cell_type", "group", "split"]].copy()
    about["score"] = ratio(counts.tp, sum(counts), 1).mean(axis=1) if len(about) else np.zeros(0)
    lowest = [part[:, 0] if part.size else np.zeros(len(about), np.int64) for part in counts]
    about["truth_cells"], about["found_cells"] = lowest[0] + lowest[2], lowest[0] + lowest[1]
    about["tp"], about["fp"], about["fn"] = lowest
    return about


def summary(table: pandas.DataFrame, by: str | None = None, n: int = BOOTSTRAP, seed: int = 0) -> pandas.DataFrame:
    """Score a table as a whole, or each part of it, with 95 % intervals over the groups of its images.

    Parameters
    ----------
    by : {None, "cell_type", "group", "split", "class_name", "size"}
        For a class or a size, images that have nothing of it on either side are left out.
    n, seed : int
        Draws behind the intervals (see `cellkit.scores.intervals`; 0 = none), and their seed.

    Returns
    -------
    DataFrame
        One row per part: its name (column `by`), images, empty_images, truth_cells, found_cells, score, low, high,
        interval_of ("40 images", "4 groups (few)"), score_without_empty, and the score at the thresholds 0.5, 0.75 and 0.9
        (ap50, ap75, ap90) where they are there.

    Raises
    ------
    UserError
        A table that lacks columns or rows, or another word for `by`.
    """
    import pandas as pd

    if by not in (None, "cell_type", "group", "split", "class_name", "size"):
        choices = ("cell_type", "group", "split", "class_name", "size")
        raise UserError(f"by is {by!r}{nearest(str(by), choices)}", f"by is one of {', '.join(choices)}")
    rows = _checked(table, by)
    parts = [("all", rows)] if by is None else [(name, rows[rows[by] == name]) for name in sorted(rows[by].unique())]
    thresholds = np.sort(rows["threshold"].unique())
    lines = []
    for name, part in parts:
        about, counts = _wide(part)
        empty = sum(counts)[:, 0] == 0 if counts.tp.size else np.zeros(counts.tp.shape[0], bool)
        if by in ("class_name", "size"):
            about, counts, empty = about[~empty], Counts(*(x[~empty] for x in counts)), empty[~empty]
        units = Units.of(list(about["group"]), len(about))
        lines.append({by or "part": name, **_summary_line(counts, empty, thresholds, units, n, seed)})
    if by == "size":
        lines.sort(key=lambda line: ("small", "medium", "large").index(line["size"]))
    return pd.DataFrame(lines)


def _summary_line(counts: Counts, empty, thresholds, units: Units, n: int, seed: int) -> dict[str, Any]:
    score, low, high = pooled_interval(counts, "images", units, n, seed)
    line = {
        "images": len(empty),
        "empty_images": int(empty.sum()),
        "truth_cells": int((counts.tp + counts.fn)[:, :1].sum()),
        "found_cells": int((counts.tp + counts.fp)[:, :1].sum()),
        "score": score,
        "low": low,
        "high": high,
        "interval_of": str(units),
        "score_without_empty": pooled_score(Counts(*(part[~empty] for part in counts)), "images"),
    }
    for value, name in ((0.5, "ap50"), (0.75, "ap75"), (0.9, "ap90")):
        column = np.flatnonzero(np.isclose(thresholds, value))
        if column.size:
            line[name] = pooled_score(Counts(*(part[:, column] for part in counts)), "images")
    return line


def paired_bootstrap(
    table_a: pandas.DataFrame, table_b: pandas.DataFrame, n: int = BOOTSTRAP, seed: int = 0
) -> Difference:
    """Compare two models on the same images: MAP IoU of B minus that of A, drawing whole groups of images.

    Returns
    -------
    Difference
        With its 95 % interval (nan for fewer than two images or groups), and whether B is better beyond doubt.

    Raises
    ------
    UserError
        The tables are not of the same images.
    """
    gain, units = _paired(table_a, table_b)
    error = standard_error(lambda weights: weights @ gain / weights.sum(axis=1), units, n, seed)
    value, half = float(gain.mean()) if len(gain) else np.nan, reach(error, units.count)
    low, high, alone = max(value - half, -1.0), min(value + half, 1.0), units.kind == "image of one group"
    return Difference(value, low, high, len(gain), units.count, error, alone)


def bootstrap_draws(
    table_a: pandas.DataFrame, table_b: pandas.DataFrame, n: int = BOOTSTRAP, seed: int = 0
) -> np.ndarray:
    """Return what `paired_bootstrap` draws: (n,) mean differences of as many images, drawn again; (0,) below two."""
    gain, units = _paired(table_a, table_b)
    if units.count < 2:
        return np.zeros(0)
    weights = units.weights(n, seed)
    return weights @ gain / weights.sum(axis=1)


def _paired(table_a: pandas.DataFrame, table_b: pandas.DataFrame) -> tuple[np.ndarray, Units]:
    """Return by how much each image scores higher in B than in A, and what is drawn as one."""
    tables = [per_image(table).set_index("image_id") for table in (table_a, table_b)]
    a, b = (table["score"] for table in tables)
    if set(a.index) != set(b.index):
        only = sorted(set(a.index) ^ set(b.index))
        raise UserError(
            f"{counted(len(only), 'image is', 'images are')} in one table only, e.g. '{only[0]}'",
            "score both models on the same images",
        )
    gain = (b.loc[a.index] - a).to_numpy(float)
    return gain, Units.of(list(tables[0]["group"]), len(gain))
