"""Models side by side as finders of cells: are they found, is their class right, how good are the outlines, how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import predict_all
from cellkit.cells.instances import Instances
from cellkit.evaluate.evaluation import of_images
from cellkit.models import model_name, order_models
from cellkit.scores.intervals import BOOTSTRAP, Units, interval
from cellkit.scores.iou import overlap_images, scorable
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import ratio
from cellkit.scores.point import centre_points, point_counts

if TYPE_CHECKING:
    import pandas

    from cellkit.cells.dataset import CellDataset
    from cellkit.models.shared.contract import Segmenter

SHARES = {"recall": (0, 2), "precision": (0, 1), "class_right": (3, 4)}  # of the counts of `point_counts`
TIMED = 5  # images behind a time
NAMED = {
    "coordinates": "crops_coordinates",
    "cellpose_tuned": "crops_cellpose",
}  # whose cells the cut-outs name, and then
COLUMNS = ["model", "split", "images", "cells"]


def score_points(
    predictions: Mapping[str, Mapping[str, Instances]],
    truths: Mapping[str, CellDataset],
    seconds: Mapping[str, float] | None = None,
    n: int = BOOTSTRAP,
    seed: int = 0,
) -> pandas.DataFrame:
    """Score models as DKFZ does (`cellkit.scores.point`), with MAP IoU beside it: a row per model and split.

    Parameters
    ----------
    predictions : mapping
        Model name -> image_id -> cells.
    truths : mapping
        Split -> its labelled images.
    seconds : mapping, optional
        Model name -> seconds that an image takes.
    n, seed : int
        Draws of images (groups) behind the 95 % intervals, and their seed.

    Returns
    -------
    DataFrame
        model, split, images, cells; recall, precision, class_right (of found cells of known class) and map_iou, each with
        ``_low`` and ``_high``; seconds. nan where there is nothing to tell: no class, no time.
    """
    import pandas as pd

    rows = []
    for name in order_models(predictions):
        for split, truth in truths.items():
            if not len(truth):
                continue
            found = of_images(predictions[name], truth)
            row = {"model": name, "split": split, "images": len(truth), "cells": truth.cells}
            row |= _shares(truth, found, n, seed)
            row["seconds"] = (seconds or {}).get(name, np.nan)
            rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=COLUMNS)


def _shares(truth: CellDataset, found: Sequence[Instances], n: int, seed: int) -> dict[str, float]:
    """Return the four shares of one model in one split, with their intervals."""
    found = [scorable(*pair) for pair in zip(truth.instances, found, strict=True)]
    found = [cells[cells.areas_px > 0] for cells in found]
    named = any(cells.class_ids.any() for cells in found)
    pairs = zip(truth.instances, found, strict=True)
    each = [point_counts(true, centre_points(x), x.scores, x.class_ids if named else None) for true, x in pairs]
    counts = np.array(each, float).reshape(-1, 5)
    groups = [record.group for record in truth.records]
    units = Units.of(groups, len(truth))
    row = {}
    for share, (part, whole) in SHARES.items():
        of = lambda weights, p=part, w=whole: ratio(weights @ counts[:, p], weights @ counts[:, w], 1)  # noqa: E731
        value = float(ratio(counts[:, part].sum(), counts[:, whole].sum()))
        low, high = interval(of, value, units, n, seed) if np.isfinite(value) else (np.nan, np.nan)
        row |= {share: value, f"{share}_low": low, f"{share}_high": high}
    whole = kaggle(overlap_images(truth.instances, found), bootstrap=n, seed=seed, groups=groups)
    low, high = whole["interval"]
    return row | {"map_iou": whole["score"], "map_iou_low": low, "map_iou_high": high}


def points_table(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Return what `score_points` tells as a table to read: shares in percent, each with its interval.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"model": "mine", "split": "val", "images": 9, "cells": 80, "seconds": 0.25}
    >>> row |= {f"{k}{e}": v for k in (*SHARES, "map_iou") for e, v in (("", 0.98), ("_low", 0.96), ("_high", 1.0))}
    >>> points_table(pd.DataFrame([row])).iloc[0].tolist()[4:]
    ['98.0 [96.0, 100.0]', '98.0 [96.0, 100.0]', '98.0 [96.0, 100.0]', '0.980 [0.960, 1.000]', '0.25']
    """
    table = scores[COLUMNS].copy()
    if scores.empty:
        return table
    table["model"] = [model_name(name) for name in table["model"]]
    for name, percent in {"recall": 1, "precision": 1, "class_right": 1, "map_iou": 0}.items():
        factor, digits = (100, 1) if percent else (1, 3)
        rows = zip(*(scores[f"{name}{end}"].astype(float) * factor for end in ("", "_low", "_high")), strict=True)
        table[name] = [_with_interval(*row, digits) for row in rows]
    table["seconds per image"] = ["" if np.isnan(value) else f"{value:.2f}" for value in scores["seconds"]]
    return table


def _with_interval(value: float, low: float, high: float, digits: int) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.{digits}f}" + ("" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def seconds_per_image(segment: Callable[[Any], Any], images: CellDataset, most: int = TIMED) -> float:
    """Return how long a loaded model takes for an image, in seconds; the first image is found once before the clock starts.

    On one thread these are the processor's seconds, which no other program disturbs. nan where there is no image.

    Parameters
    ----------
    segment : callable
        A stream of images (H, W, 3) uint8 -> their cells.
    """
    from cellkit.models.shared.cost import seconds_of

    some = list(images.sample(most).images())
    if not some:
        return float("nan")
    list(segment(some[:1]))
    return seconds_of(lambda: list(segment(some))) / len(some)


def open_models(checkpoints: Mapping[str, Path], namer: Callable | None = None) -> dict[str, Segmenter]:
    """Return the models of a run, loaded; with `namer` those that tell no classes once more, with the class it gives.

    Parameters
    ----------
    checkpoints : mapping
        ``<model>_checkpoint`` -> its path; what gives Cellpose's cells a class stands for Cellpose with classes.
    namer : callable, optional
        (image, cells) -> the cells with a class, see `cellkit.models.crop_classifier.crop_namer`.

    Returns
    -------
    dict
        The names given, and those of `NAMED`.
    """
    from cellkit.models import cell_classes, get_backend, weights

    opened = {}
    for key, path in checkpoints.items():
        name, card = key.removesuffix("_checkpoint"), weights.read_card(path)
        if card.backend == cell_classes.NAME:
            cells = cell_classes.segmenter_of(path)
            segmenter = get_backend(weights.read_card(cells).backend).load(cells, None)
            opened[name] = cell_classes.with_cell_classes(segmenter, path)
        else:
            opened[name] = get_backend(card.backend).load(path, None)
            if namer is not None and name in NAMED:
                opened[NAMED[name]] = cell_classes.named_by(opened[name], namer)
    return opened


def name_found(
    namer: Callable[[np.ndarray, Instances], Instances], images: CellDataset, found: Mapping[str, Instances] | None
) -> list[Instances] | None:
    """Return what a model found in some images, each cell with the class that `namer` gives it, one of each image.

    Parameters
    ----------
    found : mapping or None
        image_id -> cells; None = there is no such model, and nothing is done.
    """
    if found is None:
        return None
    cells = of_images(found, images)
    return [namer(image, each) for image, each in zip(images.images(), cells, strict=True)]


def with_named(
    found: Mapping[str, Mapping[str, Instances]], images: CellDataset, **named: Sequence[Instances] | None
) -> dict[str, Mapping[str, Instances]]:
    """Return what several models found, model name -> image_id -> cells, with more of them.

    Parameters
    ----------
    found : mapping
        Model name -> image_id -> cells.
    images : CellDataset
        The images of `named`.
    named
        Model name -> cells of each image; None = there is no such model.
    """
    ids = [record.image_id for record in images.records]
    return {**found, **{name: dict(zip(ids, cells, strict=True)) for name, cells in named.items() if cells is not None}}


def predict_models(models: Mapping[str, Segmenter], images: CellDataset) -> dict[str, dict[str, Instances]]:
    """Return what each of several models finds: model name -> image_id -> cells."""
    names = [record.image_id for record in images.records]
    found = {name: predict_all(segment, images, name) for name, segment in models.items()} if len(images) else {}
    return {name: dict(zip(names, cells, strict=True)) for name, cells in found.items()}
