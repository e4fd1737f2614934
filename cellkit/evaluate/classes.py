"""Which line a cell belongs to: how often a model is right about it, and how many cells of each it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import MIXED, OVERALL
from cellkit.errors import counted
from cellkit.evaluate.evaluation import of_images, without_proposals
from cellkit.models import order_models
from cellkit.scores.matching import class_accuracy, class_errors

if TYPE_CHECKING:
    import pandas


def describe_accuracy(accuracy: float, cells: int, truth: CellDataset | None = None) -> str:
    """Say how often the class of a matched cell is right, or why that cannot be told.

    Parameters
    ----------
    accuracy : float
        From `class_accuracy`.
    cells : int
        That were matched.
    truth : CellDataset, optional
        The validation images that judge: where there are none, or where they know one class alone, that is said.

    Examples
    --------
    >>> describe_accuracy(0.975, 40)
    'class of 40 matched cells (IoU > 0.5, validation images): 97.5% right'
    >>> describe_accuracy(float("nan"), 0)
    'class: no cell of known class is matched (IoU > 0.5, validation images), so nothing is known yet'
    """
    if truth is not None and len(truth.classes) < 2:
        return f"class: {counted(len(truth.classes), 'class', 'classes')}, nothing to tell apart"
    if truth is not None and not len(truth):
        return "class: there is no labelled validation image, so nothing is known yet"
    if not cells:
        return "class: no cell of known class is matched (IoU > 0.5, validation images), so nothing is known yet"
    return f"class of {cells} matched cells (IoU > 0.5, validation images): {accuracy:.1%} right"


def classes_found(
    predictions: Mapping[str, Mapping[str, Instances]], truths: Mapping[str, CellDataset]
) -> dict[str, dict[str, Any]]:
    """Return, for models that know classes, how often a matched cell (IoU > 0.5) has the right one, per split.

    Returns
    -------
    dict
        model -> split -> {"accuracy", "cells", "confusion" (rows truth, columns found), "errors" (likewise, with the cells that
        were missed, and those invented, see `class_errors`)}; a model that names classes is there even where no image can
        judge it.
    """
    result: dict[str, dict[str, Any]] = {}
    for model, found in predictions.items():
        if any(x.class_ids.any() for x in found.values()):
            result[model] = {}
        for split, truth in without_proposals(truths).items():
            cells = of_images(found, truth)
            if any(x.class_ids.any() for x in cells):
                accuracy, n, confusion = class_accuracy(truth.instances, cells, classes=truth.classes)
                known = {"accuracy": None if np.isnan(accuracy) else round(accuracy, 4), "cells": n}
                errors = class_errors(truth.instances, cells, truth.classes)
                tables = {"confusion": confusion.to_dict("split"), "errors": errors.to_dict("split")}
                result.setdefault(model, {})[split] = known | tables
    return result


def accuracy_table(right: Mapping[str, Mapping[str, Any]]) -> pandas.DataFrame:
    """Return what `classes_found` found as a table: model, split, cells (matched ones), right (the share of them).

    Examples
    --------
    >>> accuracy_table({"maskrcnn": {"val": {"accuracy": 0.9, "cells": 40}}}).to_dict("list")
    {'model': ['maskrcnn'], 'split': ['val'], 'cells': [40], 'right': [0.9]}
    """
    import pandas as pd

    rows = [
        (model, split, of_split["cells"], of_split["accuracy"])
        for model, splits in right.items()
        for split, of_split in splits.items()
    ]
    return pd.DataFrame(rows, columns=["model", "split", "cells", "right"])


def errors_table(right: Mapping[str, Mapping[str, Any]], split: str) -> pandas.DataFrame:
    """Return which line the cells of a split are taken for, by every model that knows classes.

    Returns
    -------
    DataFrame
        model and truth as its index, "invented" last of each model; a column for each class found, and "missed". Empty where
        no image of the split can judge.
    """
    import pandas as pd

    told = {model: of_model[split]["errors"] for model, of_model in right.items() if split in of_model}
    return (
        pd.concat({m: pd.DataFrame(**one).fillna(0) for m, one in told.items()}, names=["model", "truth"])
        if told
        else pd.DataFrame()
    )


def class_model(right: Mapping[str, Mapping[str, Any]], split: str = "val") -> str:
    """Return the model that names classes best: by the share of right classes on the deciding split, "" where none does.

    Of equal ones, and where no image of that split can judge, the last in the order of the tables.

    Parameters
    ----------
    right : mapping
        From `classes_found`.

    Examples
    --------
    >>> class_model({"unet": {"val": {"accuracy": 0.7}}, "maskrcnn": {"val": {"accuracy": 0.9}}, "x": {}})
    'maskrcnn'
    """
    accuracy = {model: (right[model].get(split) or {}).get("accuracy") for model in order_models(right)}
    ranked = sorted(accuracy, key=lambda model: -1.0 if accuracy[model] is None else accuracy[model])
    return ranked[-1] if ranked else ""


def count_by_class(
    found: Mapping[str, Instances], images: CellDataset, truth: CellDataset | None = None, classes: Sequence[str] = ()
) -> pandas.DataFrame:
    """Count the cells of each line, image by image.

    Parameters
    ----------
    found : mapping
        One model's cells by image_id.
    images : CellDataset
        The images whose cells are counted.
    truth : CellDataset, optional
        Where it is known. Images it lacks (mixed ones that only proposals could label) and images that are annotated in part
        leave the true counts out for all.
    classes : sequence of str, optional
        Default: those of `truth`, or of `images`.

    Returns
    -------
    DataFrame
        image_id, class_name, found, share (of the image's found cells), and truth, true_share where known; the rows over all
        images come last, called "all", or "all images" where an image is called "all".
    """
    import pandas as pd

    classes = classes or (images if truth is None else truth).classes
    if truth is not None:
        whole = [r.image_id for r, cells in zip(truth.records, truth.instances, strict=True) if not cells.unknown_px]
        truth = None if {r.image_id for r in images.records} - set(whole) else truth
    known = {} if truth is None else dict(zip([r.image_id for r in truth.records], truth.instances, strict=True))
    rows = []
    for record in images.records:
        rows += _counted(
            record.image_id, [found[record.image_id]], None if truth is None else [known[record.image_id]], classes
        )
    cells = of_images(found, images)
    overall = OVERALL[any(record.image_id == OVERALL[0] for record in images.records)]
    rows += _counted(overall, cells, None if truth is None else of_images(known, images), classes)
    return pd.DataFrame(rows, columns=None if rows else ["image_id", "class_name", "found", "share"])


def rows_over_all(counts: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows over all images of `count_by_class`: the last, one for each class."""
    return counts.tail(counts["class_name"].nunique())


def images_to_count(images: CellDataset, split: str) -> CellDataset:
    """Return the images of a split that hold several lines; where none does, all of the split. Flagged ones are left out."""
    scored = images.scored(split)
    return scored.select(cell_type=MIXED) or scored


def totals_by_class(
    predictions: Mapping[str, Mapping[str, Instances]],
    images: CellDataset,
    truth: CellDataset,
    judges: CellDataset | None = None,
) -> pandas.DataFrame:
    """Count the cells of each line over all images, for every model that knows classes.

    Parameters
    ----------
    predictions : mapping
        Model -> its cells by image_id.
    images, truth : CellDataset
        As for `count_by_class`.
    judges : CellDataset, optional
        Labelled images, others than those counted, on which each model makes its errors of class, misses and inventions: then
        its counts are corrected for them, see `corrected_counts`.

    Returns
    -------
    DataFrame
        model, class_name, found, share, and truth, true_share where known; with judges also corrected, low, high.
    """
    import pandas as pd

    tables = []
    for model, found in predictions.items():
        if any(cells.class_ids.any() for cells in found.values()):
            table = count_by_class(found, images, truth)
            table = rows_over_all(table).drop(columns="image_id").assign(model=model)
            if judges is not None and len(judges := judges.without_proposed()):
                pairs = zip(judges.instances, of_images(found, judges), strict=True)
                errors = np.array([_errors_of(true, seen, judges.classes) for true, seen in pairs])
                table[["corrected", "low", "high"]] = corrected_counts(table["found"].to_numpy(), errors)
            tables.append(table)
    return pd.concat(tables, ignore_index=True).set_index("model") if tables else pd.DataFrame()


def _errors_of(true: Instances, seen: Instances, classes: Sequence[str]) -> np.ndarray:
    """Return the errors of one image as `corrected_counts` wants them: what is found without a class is missed to its class."""
    table = class_errors([true], [seen], classes)
    if "unknown" in table:
        table["missed"] += table.pop("unknown")
    return table.to_numpy()


def corrected_counts(found: np.ndarray, errors: np.ndarray, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Correct counts of each class for errors of class, misses and inventions, as they are on images that are labelled.

    Adjusted counting: what is found is solved for what was there. It holds as far as the errors are the same in both sets of
    images. Source: Forman, "Quantifying counts and costs via classification", Data Mining and Knowledge Discovery 2008.

    Parameters
    ----------
    found : (K,) int
        Cells found of each class.
    errors : (M, K + 1, K + 1) int
        Of each labelled image, as `class_errors` gives them: rows the true class and "invented", columns the class found and
        "missed".
    draws : int
        Of the interval: labelled images are drawn anew, and what would be found of the corrected counts.

    Returns
    -------
    (K, 3) float64
        Corrected count, and a 95 % interval; NaN where a class has no labelled cell, or classes are confused throughout; the
        interval alone, where that is so in most draws.

    Examples
    --------
    >>> errors = np.array([[[8, 0, 2], [2, 8, 0], [0, 0, 0]]] * 20)  # a fifth missed; a fifth of the others taken for them
    >>> corrected_counts(np.array([100, 80]), errors)[:, 0].tolist()
    [100.0, 100.0]
    """
    best, rng = _solved(found, errors.sum(axis=0)), np.random.default_rng(seed)
    if np.isnan(best).any():
        return np.full((len(found), 3), np.nan)
    total = errors.sum(axis=0).astype(float)
    share = total[:-1] / total[:-1].sum(axis=1, keepdims=True)
    invented = found * total[-1, :-1] / np.maximum(total[:, :-1].sum(axis=0), 1)
    drawn = []
    for _ in range(draws):
        again = rng.poisson(invented)
        for count, of_class in zip(best, share, strict=True):
            again = again + rng.multinomial(round(count), of_class)[:-1]
        drawn.append(_solved(again, errors[rng.integers(len(errors), size=len(errors))].sum(axis=0)))
    known = [one for one in drawn if not np.isnan(one).any()]
    low, high = (
        np.percentile(known, (2.5, 97.5), axis=0) if 2 * len(known) >= draws else np.full((2, len(best)), np.nan)
    )
    return np.column_stack([best, np.minimum(low, best), np.maximum(high, best)]).round(1)


def _solved(found: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return how many cells of each class there were, (K,) float64, if these errors (K + 1, K + 1) led to `found`; else NaN."""
    true, seen = errors[:-1].sum(axis=1), errors[:, :-1].sum(axis=0)
    share = errors[:-1, :-1] / np.maximum(true, 1)[:, None]
    if not true.all() or np.linalg.cond(share) > 20:
        return np.full(len(found), np.nan)
    real = found * (1 - errors[-1, :-1] / np.maximum(seen, 1))
    return np.maximum(np.linalg.solve(share.T, real), 0)


def _counted(name: str, found: list[Instances], truth: list[Instances] | None, classes: Sequence[str]) -> list[dict]:
    rows = []
    for k, class_name in enumerate(classes, 1):
        row: dict[str, Any] = {"image_id": name, "class_name": class_name}
        for column, share, side in (("found", "share", found), ("truth", "true_share", truth)):
            if side is not None:
                ids = np.concatenate([x.class_ids for x in side]) if side else np.zeros(0, np.int64)
                row[column] = int((ids == k).sum())
                row[share] = round(row[column] / max(int((ids > 0).sum()), 1), 4)
        rows.append(row)
    return rows
