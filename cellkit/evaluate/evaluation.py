"""The evaluation of a run: every predictions file against the truth, one table, one winner, one submission."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import NO_ACCURACY, CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError, nearest
from cellkit.files import write_json
from cellkit.log import LOG

if TYPE_CHECKING:
    import pandas


CONVENTION = "MAP IoU (kaggle: IoU > 0.50:0.05:0.95, mean of images)"
KEY = "predictions_"


def predictions_of(paths: Mapping[str, Path], images: CellDataset) -> dict[str, dict[str, Instances]]:
    """Read every predictions file of a run.

    Parameters
    ----------
    paths : mapping
        ``run.find_all("predictions_*")``.
    images : CellDataset
        ``CellDataset.from_records``: all images of the run.

    Returns
    -------
    dict
        Model name -> image_id -> Instances; an image a model was not asked about has no cell there.
    """
    from cellkit.formats.coco_reading import read_results

    shapes = {k: (r.height_px, r.width_px) for k, r in zip(images.ids, images.records, strict=True)}
    named = [r.image_id for r in images.records]
    return {
        key.removeprefix(KEY): dict(zip(named, read_results(path, shapes), strict=True)) for key, path in paths.items()
    }


def judged(labelled: Sequence[CellDataset]) -> list[CellDataset]:
    """Return the images that something may be scored against, and say which are not: a proposal is no truth.

    Parameters
    ----------
    labelled : list of CellDataset
        E.g. validation and test, with proposals marked (`CellDataset.made_by`).

    Returns
    -------
    list of CellDataset
        Those that have an image left; [] where no image was labelled by a person.
    """
    kept = [data.without_proposed() for data in labelled]
    left = [r.image_id for data in labelled for r, m in zip(data.records, data.made_by, strict=True) if m == "proposed"]
    if left:
        LOG.info(f"not scored, because a model proposed their labels: {', '.join(left)}")
    if left and not any(map(len, kept)):
        LOG.info(NO_ACCURACY)
    return [data for data in kept if len(data)]


def score_judged(data: CellDataset, found: Sequence[Instances]) -> pandas.DataFrame:
    """Return `score_table` of the images whose labels no model proposed.

    Parameters
    ----------
    found : list of Instances
        One per image of `data`.
    """
    from cellkit.scores.table import score_table

    kept = [k for k, maker in enumerate(data.made_by) if maker != "proposed"]
    part = data.subset(kept)
    return score_table(part.instances, [found[k] for k in kept], part.records)


def unjudged(models: Iterable[str], wanted: str) -> str:
    """Return the model that is handed in where nothing can decide: the one named, else Cellpose as it came, else the first.

    Raises
    ------
    UserError
        The one named was not run.
    """
    from cellkit.models import order_models

    names = order_models(models)
    if wanted == "best":
        return "cellpose_base" if "cellpose_base" in names else names[0]
    return check_submit(wanted, names)


def check_submit(wanted: str, names: Sequence[str]) -> str:
    """Return the model named in ``evaluate.submit``; refuse one that is none of those that are run."""
    if wanted not in names:
        problem = f"evaluate.submit is '{wanted}'{nearest(wanted, names)}"
        raise UserError(problem, f"use best, or one of {', '.join(names)}")
    return wanted


def tell_classes(accuracy: float, cells: int) -> str:
    """Say how often the class of a matched cell is right.

    Examples
    --------
    >>> tell_classes(0.975, 40)
    'class of 40 matched cells (IoU > 0.5, validation images): 97.5% right'
    >>> tell_classes(float("nan"), 0)
    'class: no cell of known class is matched (IoU > 0.5, validation images), so nothing can be told yet'
    """
    if not cells:
        return "class: no cell of known class is matched (IoU > 0.5, validation images), so nothing can be told yet"
    return f"class of {cells} matched cells (IoU > 0.5, validation images): {accuracy:.1%} right"


def tell_found(found: Sequence[Instances], who: str, key: str) -> str:
    """Say how many cells a model finds in the validation images; that it finds none, where a training was too short.

    Parameters
    ----------
    found : list of Instances
        One per image.
    who : str
        The model in words.
    key : str
        The setting that says how long it is trained.

    Examples
    --------
    >>> print(tell_found([Instances.empty((4, 4))], "the detector", "maskrcnn.steps"))
    WARNING: the detector finds NO CELL in the validation images; its score there is 0.000, and the run goes on.
    Train longer (maskrcnn.steps); if that does not help, look at the labels and at the pictures of notebook 01.
    """
    count = sum(map(len, found))
    if count:
        return f"{who} finds {count} cells in {len(found)} validation images"
    return (
        f"WARNING: {who} finds NO CELL in the validation images; its score there is 0.000, and the run goes on.\n"
        f"Train longer ({key}); if that does not help, look at the labels and at the pictures of notebook 01."
    )


def of_images(predictions: Mapping[str, Instances], images: CellDataset) -> list[Instances]:
    """Return one model's cells of the given images, in their order."""
    return [predictions[record.image_id] for record in images.records]


def found_in(part: CellDataset, images: CellDataset, found: Sequence[Instances]) -> list[Instances]:
    """Return what a model found in some of the images it predicted, in the order of `part`.

    Parameters
    ----------
    part : CellDataset
    images : CellDataset
        All that were predicted.
    found : list of Instances
        One per image of `images`.
    """
    return of_images(dict(zip([record.image_id for record in images.records], found, strict=True)), part)


def score_models(predictions: Mapping[str, Mapping[str, Instances]], truths: Sequence[CellDataset]) -> pandas.DataFrame:
    """Score every model on every truth: `score_table` with the model's name first.

    Parameters
    ----------
    truths : list of CellDataset
        E.g. validation and test; their records say which is which. Images whose labels a model proposed are left out;
        where no other is left, the table is empty.

    Returns
    -------
    DataFrame
        model, image_id, cell_type, group, split, class_name, size, threshold, tp, fp, fn. Classes are counted for models
        that know any.

    Raises
    ------
    UserError
        Nothing was predicted, or nothing was labelled.
    """
    import pandas as pd

    from cellkit.scores.table import score_table

    if not predictions or not truths:
        what = "prediction" if not predictions else "truth"
        raise UserError(f"there is no {what} to score", "run the stages before this one; they write the files")
    truths = [data for truth in truths if len(data := truth.without_proposed())]
    blocks = []
    for model, found in predictions.items():
        for truth in truths:
            cells = of_images(found, truth)
            knows = any(x.class_ids.any() for x in cells)
            table = score_table(
                truth.instances, cells, truth.records, classes=truth.classes if knows else (), sizes=True
            )
            table.insert(0, "model", model)
            blocks.append(table)
    if not blocks:
        nothing = score_table([], [], [])
        nothing.insert(0, "model", "")
        return nothing
    return pd.concat(blocks, ignore_index=True)


def summarise(scores: pandas.DataFrame, by: str | None = None, n: int = 1000, seed: int = 0) -> pandas.DataFrame:
    """Return one row per model and split (and part): MAP IoU with its 95 % interval over images.

    Parameters
    ----------
    by : {None, "cell_type", "class_name", "size", "group"}
    """
    import pandas as pd

    from cellkit.scores.table import summary

    numbers = ("images", "score", "low", "high", "ap50", "ap75", "ap90")
    rows = []
    for (model, split), table in scores.groupby(["model", "split"], sort=False):
        part = summary(table, by=by, n=n, seed=seed)
        part.insert(0, "model", model)
        part.insert(1, "split", split)
        rows.append(part.drop(columns="part", errors="ignore"))
    if not rows:
        names = [
            "model",
            "split",
            *([by] if by else []),
            *summary(scores, n=0).columns.drop("part"),
            "ap50",
            "ap75",
            "ap90",
        ]
        return pd.DataFrame({name: pd.Series(dtype=float if name in numbers else object) for name in names})
    return pd.concat(rows, ignore_index=True)


def rejected(checkpoints: Mapping[str, Path]) -> list[str]:
    """Return the names of the models that 03 did not keep: of base and tuned the one that is not ``cellpose_checkpoint``.

    Parameters
    ----------
    checkpoints : mapping
        ``run.find_all("cellpose_*checkpoint")``.

    Examples
    --------
    >>> base, tuned = Path("base.safetensors"), Path("tuned.safetensors")
    >>> rejected({"cellpose_checkpoint": base, "cellpose_base_checkpoint": base, "cellpose_tuned_checkpoint": tuned})
    ['cellpose_tuned']
    """
    kept = checkpoints.get("cellpose_checkpoint")
    names = {key.removesuffix("_checkpoint"): path for key, path in sorted(checkpoints.items()) if path != kept}
    return [name for name in names if kept is not None]


def decide(table: pandas.DataFrame, wanted: str, split: str, rejected: Sequence[str] = ()) -> str:
    """Return the model that is handed in: the one named, or the best by MAP IoU on the deciding split.

    Parameters
    ----------
    table : DataFrame
        From `summarise`.
    wanted : str
        A model's name (one that was rejected too), or "best".
    rejected : sequence of str
        Models that an earlier stage judged and did not keep: none of them is the best.
    """
    names = list(dict.fromkeys(table["model"]))
    if wanted != "best":
        return check_submit(wanted, names)
    candidates = table[(table["split"] == split) & ~table["model"].isin(list(rejected))]
    if candidates.empty:
        raise UserError(
            f"no image of the split '{split}' has truth to decide by", "set evaluate.submit to a model's name"
        )
    return str(candidates.sort_values("score", ascending=False, kind="stable")["model"].iloc[0])


def classes_found(
    predictions: Mapping[str, Mapping[str, Instances]], truths: Sequence[CellDataset]
) -> dict[str, dict[str, Any]]:
    """Return, for models that know classes, how often a matched cell (IoU > 0.5) has the right one, per split.

    Returns
    -------
    dict
        model -> split -> {"accuracy", "cells", "confusion" (rows truth, columns found)}; a model that names classes is there
        even where no image can judge it.
    """
    from cellkit.scores.matching import class_accuracy

    result: dict[str, dict[str, Any]] = {}
    for model, found in predictions.items():
        if any(x.class_ids.any() for x in found.values()):
            result[model] = {}
        for truth in [truth.without_proposed() for truth in truths]:
            cells = of_images(found, truth)
            if len(truth) and any(x.class_ids.any() for x in cells):
                accuracy, n, confusion = class_accuracy(truth.instances, cells, classes=truth.classes)
                split = truth.records[0].split
                right = {"accuracy": None if np.isnan(accuracy) else round(accuracy, 4), "cells": n}
                result.setdefault(model, {})[split] = right | {"confusion": confusion.to_dict("split")}
    return result


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
    from cellkit.models import order_models

    accuracy = {model: (right[model].get(split) or {}).get("accuracy") for model in order_models(right)}
    ranked = sorted(accuracy, key=lambda model: -1.0 if accuracy[model] is None else accuracy[model])
    return ranked[-1] if ranked else ""


def count_lines(
    found: Mapping[str, Instances], images: CellDataset, truth: CellDataset | None = None, classes: Sequence[str] = ()
) -> pandas.DataFrame:
    """Answer "how many of each line", image by image.

    Parameters
    ----------
    found : mapping
        One model's cells by image_id.
    images : CellDataset
        The images asked about.
    truth : CellDataset, optional
        Where it is known. Images it lacks (mixed ones that only proposals could label) leave the true counts out for all.
    classes : sequence of str, optional
        Default: those of `truth`, or of `images`.

    Returns
    -------
    DataFrame
        image_id, class_name, found, share (of the image's found cells), and truth, true_share where known; the image "all"
        comes last.
    """
    import pandas as pd

    classes = classes or (images if truth is None else truth).classes
    if truth is not None and {r.image_id for r in images.records} - {r.image_id for r in truth.records}:
        truth = None
    known = {} if truth is None else dict(zip([r.image_id for r in truth.records], truth.instances, strict=True))
    rows = []
    for record in images.records:
        rows += _counted(
            record.image_id, [found[record.image_id]], None if truth is None else [known[record.image_id]], classes
        )
    cells = of_images(found, images)
    rows += _counted("all", cells, None if truth is None else of_images(known, images), classes)
    return pd.DataFrame(rows)


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


def write_summary(path: str | Path, truths: Sequence[CellDataset], **tables: Any) -> Path:
    """Write what the evaluation found as JSON: which model is best, tables as lists of rows, and why there is no accuracy.

    Parameters
    ----------
    truths : list of CellDataset
        From `judged`; none = no accuracy can be told, and the file says so.
    tables : Any
        "best" (a model's name), "classes" (from `classes_found`), "scores" (from `summarise`), and what else is worth keeping.
    """
    return write_json(path, plain(tables | ({} if truths else {"no_accuracy": NO_ACCURACY})), indent=1)


def plain(value: Any) -> Any:
    """Return tables as lists of rows, and undefined numbers as None: what JSON can hold.

    Examples
    --------
    >>> plain({"score": float("nan"), "names": ("a", "b")})
    {'score': None, 'names': ['a', 'b']}
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict("records"))
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
