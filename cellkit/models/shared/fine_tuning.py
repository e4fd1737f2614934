"""What every training has in common: its beginning, its validation images, the search of thresholds, its end.

Thresholds are searched on training images, since validation images are to judge by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import evenly_spaced
from cellkit.cells.instances import Instances
from cellkit.cells.leftout import warn_small
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted
from cellkit.log import LOG
from cellkit.machine import arithmetic
from cellkit.models import weights
from cellkit.models.gate import choosers
from cellkit.models.training_state import History
from cellkit.scores.iou import overlaps, scorable
from cellkit.scores.kaggle import kaggle
from cellkit.scores.table import score_table, summary

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

SEARCHED_ON = 6  # training images
ONE_IMAGE = 0.02  # of MAP IoU: a smaller gain on a single image is taken for noise


def refuse_untrainable(train: CellDataset, key: str) -> None:
    """Refuse a training without a labelled cell; `key` is the setting of the least area.

    Raises
    ------
    UserError
        There is none.
    """
    if not train.cells:
        raise UserError(
            "there is no labelled cell to train on, in no training image",
            f"label training images first (02), give some to training (convert.split), or lower {key}",
        )


def refuse_small(labelled: CellDataset, least_px: int, key: str) -> None:
    """Say how many labelled cells are below the least area and can never be found; refuse where all are.

    Parameters
    ----------
    key : str
        The setting, e.g. "finetune.min_area_px".

    Raises
    ------
    UserError
        All labelled cells are smaller.
    """
    small, cells, largest = warn_small(labelled.records, labelled.instances, least_px, key, "can never be found")
    if cells and small == cells:
        raise UserError(
            f"{key} is {least_px}, and the largest of {cells} labelled cells has {largest} px", f"lower {key}"
        )


def scored_along(val: CellDataset, most: int = 0) -> tuple[list[int], bool]:
    """Return which validation images are scored during a training, at most `most` (0 = all), and whether they choose.

    Images without any cell choose nothing, which is said: their score is 1 for a network that finds nothing. Without a
    validation image nothing is scored.
    """
    if not len(val):
        return [], False
    names = set(choosers(val.records))
    places = [k for k, record in enumerate(val.records) if not names or record.image_id in names]
    scored = [places[k] for k in evenly_spaced(len(places), most or len(places))]
    empty = not any(len(val.instances[k]) for k in scored)
    if empty:
        LOG.info(
            f"{counted(len(scored), 'validation image')} without any labelled cell: the score is 1 while nothing is found, and "
            "chooses no weights. Label cells in some of them"
        )
    return scored, bool(names) and not empty


def chosen_by(
    pairs: Sequence[tuple[np.ndarray, Instances]], choosing: bool
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return what the choice of the weights depends on, for a training's fingerprint: pictures, labels and classes that choose.

    Parameters
    ----------
    pairs : list of (image, truth)
        The images that are scored along the way, see `scored_along`.
    choosing : bool
        Whether they choose; what is only watched changes no weights.

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 0]]))
    >>> [[part.tolist() for part in one] for one in chosen_by([(np.zeros((1, 2)), truth)], True)]
    [[[[0.0, 0.0]], [[1, 0]], [0]]]
    """
    return [(image, truth.paint(unknown=-1), truth.class_ids) for image, truth in pairs if choosing]


def map_iou(pairs: Iterable[tuple[Instances, Instances]]) -> float:
    """Return MAP IoU (kaggle, mean of images) of (truth, found) pairs, one of each image; nan of none."""
    images = [overlaps(truth, scorable(truth, found)) for truth, found in pairs]
    return kaggle(images, bootstrap=0)["score"] if images else np.nan


def class_score(truths: Sequence[Instances], founds: Sequence[Instances], classes: Sequence[str]) -> float:
    """Return the mean over classes of MAP IoU (kaggle, images that hold the class or a prediction of it).

    A class that is neither in the truth nor found does not count; nan without an image.
    """
    if not truths:
        return np.nan
    records = [ImageRecord(str(k), "", *truth.shape) for k, truth in enumerate(truths)]
    table = summary(score_table(truths, founds, records, classes=classes), by="class_name", n=0).set_index("class_name")
    scores = [table["score"].get(name, np.nan) for name in classes]
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


def save_base(
    base: Path, to: Path, backend: str, network: Any, settings: Mapping[str, Any], searched: Mapping[str, Any]
) -> Path:
    """Write the weights that a training starts from, with a card of how they are best read on these cells.

    Parameters
    ----------
    base : Path
        Where the weights are from, or "scratch": what its card says of scores and licence is kept.
    to : Path
        Of the copy, without suffix.
    network : torch.nn.Module
        With these weights.
    searched : mapping
        What the card is to say of the search.

    Returns
    -------
    Path
        ``<to>.safetensors``.
    """
    card = weights.read_card(base) if base.suffix == ".safetensors" else None
    metrics = (card.metrics if card else {}) | {"searched": searched}
    licence = card.licence if card else ""
    path = Path(f"{to}.safetensors")
    return weights.save_checkpoint(
        path, network.state_dict(), backend, config=settings, metrics=metrics, licence=licence
    )


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
    licence: str = "of your images",
    **more: Any,
) -> Path:
    """Write a trained model and its card: how it is read, how it scored, and which images chose it.

    Parameters
    ----------
    chosen_by : sequence of int
        Places in `val` of the images that chose the weights; empty where none did.
    metric, convention : str
        Name and definition of the score along the way.
    licence : str
        Of what it learned from.
    more
        What else the card is to say of the training.

    Returns
    -------
    Path
        Of the weights.
    """
    metrics = {
        **({val.compared_by(metric): round(history.best_score, 4)} if np.isfinite(history.best_score) else {}),
        "chosen_by": weights.hashed(val.records[i].image_id for i in chosen_by),
        "step": history.best_step,
        "stopped": history.stopped,
        "convention": convention,
        **more,
        "arithmetic": str(arithmetic(settings.get("precision", "auto"))),
    }
    return weights.save_checkpoint(
        path,
        model.state_dict(),
        backend,
        classes=classes,
        config=dict(settings),
        metrics=metrics,
        licence=licence,
    )


def images_to_search(
    train: CellDataset, kind_of: Callable[[Instances], str] = lambda truth: "", most: int = SEARCHED_ON
) -> tuple[list[tuple[np.ndarray, Instances]], str]:
    """Return the training images to search thresholds on, each with its truth, and what a score of them is called.

    At most `most` of each kind. Images whose labels a model proposed serve only where a person labelled none.

    Parameters
    ----------
    kind_of : callable, optional
        Truth of an image -> its kind; without it all images are of one.
    """
    known = train.without_proposed() or train
    places: dict[str, list[int]] = {}
    for place, truth in enumerate(known.instances):
        places.setdefault(kind_of(truth), []).append(place)
    chosen = [own[k] for own in places.values() for k in evenly_spaced(len(own), most)]
    some = known.subset(sorted(chosen))
    return [some[i] for i in range(len(some))], known.compared_by("MAP IoU")


def nearest_to_default(scores: np.ndarray) -> tuple[int, ...]:
    """Return the combination of settings to take: of those not clearly worse than the best, the one nearest to the defaults.

    Not clearly worse is a mean difference, image by image, of up to half a standard error; of a single image, up to
    `ONE_IMAGE`. Nearest is what leaves most settings at their defaults, then what scores best. So noise among a few images
    changes nothing, and a gain that they share is taken. It is the rule of one standard error (Breiman et al., Classification
    and Regression Trees, 1984) on paired differences; a whole one gives away 0.01 to 0.02 of MAP IoU with two or three images.

    Parameters
    ----------
    scores : (images, ...) float64
        Of each image at each combination; each further axis is a setting, its default first.

    Returns
    -------
    tuple of int
        A place on each axis after the first.

    Examples
    --------
    >>> nearest_to_default(np.array([[0.5, 0.6], [0.7, 0.8]])), nearest_to_default(np.array([[0.5, 0.6], [0.7, 0.65]]))
    ((1,), (0,))
    """
    flat = scores.reshape(len(scores), -1)
    mean = flat.mean(axis=0)
    behind = flat[:, [int(mean.argmax())]] - flat
    error = 0.5 * behind.std(axis=0, ddof=1) / np.sqrt(len(flat)) if len(flat) > 1 else ONE_IMAGE
    near = np.flatnonzero((behind.mean(axis=0) <= error + 1e-12) & (mean >= mean[0]))
    changed = (np.array(np.unravel_index(near, scores.shape[1:])) > 0).sum(axis=0)
    best = near[np.lexsort((-mean[near], changed))[0]]
    return tuple(int(k) for k in np.unravel_index(best, scores.shape[1:]))
