"""What every training has in common: its beginning, its validation images, its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import say_small
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.models.shared.thresholds import spread
from cellkit.models.training import History

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset


def refuse_untrainable(train: CellDataset, val: CellDataset, key: str) -> None:
    """Refuse a training without a labelled cell or without a validation image; `key` is the setting of the least area."""
    if not sum(len(cells) for cells in train.instances):
        raise UserError("there is no labelled cell to train on", f"label images first (02), or lower {key}")
    if not len(val):
        raise UserError("there is no validation image", "give convert.split a val fraction above 0")


def refuse_small(labelled: CellDataset, least_px: int, key: str) -> None:
    """Say how many labelled cells are below the least area and can never be found; refuse where all are.

    Parameters
    ----------
    key : str
        The setting, e.g. "finetune.min_area_px".
    """
    small, cells, largest = say_small(labelled.records, labelled.instances, least_px, key, "can never be found")
    if cells and small == cells:
        raise UserError(
            f"{key} is {least_px}, and the largest of {cells} labelled cells has {largest} px", f"lower {key}"
        )


def scored_along(val: CellDataset, most: int = 0) -> tuple[list[int], bool]:
    """Return which validation images are scored during a training, at most `most` (0 = all), and whether they choose.

    Images without any cell choose nothing, which is said: their score is 1 for a network that finds nothing.
    """
    from cellkit.models.judging import choosers

    names = set(choosers(val.records))
    places = [k for k, record in enumerate(val.records) if not names or record.image_id in names]
    scored = [places[k] for k in spread(len(places), most)]
    empty = not any(len(val.instances[k]) for k in scored)
    if empty:
        LOG.info(
            f"no cell is labelled in the {len(scored)} validation images that are scored: the score only tells that nothing "
            "is found there, and chooses no weights. Label cells in some of them"
        )
    return scored, bool(names) and not empty


def class_score(truths: Sequence[Instances], founds: Sequence[Instances], classes: Sequence[str]) -> float:
    """Return the mean over classes of MAP IoU (kaggle, images that hold the class or a prediction of it).

    A class that is neither in the truth nor found does not count.
    """
    from cellkit.cells.records import ImageRecord
    from cellkit.scores.table import score_table, summary

    records = [ImageRecord(str(k), "", *truth.shape) for k, truth in enumerate(truths)]
    table = summary(score_table(truths, founds, records, classes=classes), by="class_name", n=0).set_index("class_name")
    scores = [table["score"].get(name, np.nan) for name in classes]
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


def save_tuned(
    path: Path,
    backend: str,
    model: Any,
    settings: Mapping[str, Any],
    history: History,
    val: CellDataset,
    chosen_by: Sequence[int],
    metric: str,
    convention: str,
    classes: Sequence[str] = (),
    **more: Any,
) -> Path:
    """Write a trained model and its card: how it is read, how it scored, and which images chose it.

    Parameters
    ----------
    chosen_by : sequence of int
        Places in `val` of the images that chose the weights; empty where none did.
    metric, convention : str
        Name and definition of the score along the way.
    more
        What else the card is to say of the training.

    Returns
    -------
    Path
        Of the weights.
    """
    from cellkit.models import weights
    from cellkit.models.training import arithmetic

    metrics = {
        val.compared_by(metric): round(history.best_score, 4),
        "chosen_by": [val.records[i].image_id for i in chosen_by],
        "step": history.best_step,
        "stopped": history.stopped,
        "convention": convention,
        **more,
        "arithmetic": arithmetic(),
    }
    return weights.save_checkpoint(
        path,
        model.state_dict(),
        backend,
        classes=classes,
        config=dict(settings),
        metrics=metrics,
        licence="of your images",
    )
