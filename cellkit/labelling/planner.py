"""The plan: which images a person should label next, by a rule, spread over cell types and groups, and what that takes.

A rule ranks training images only; validation and test images are chosen at random. While few images are labelled, training
images judge too (`cellkit.models.gate`), and a gain is then that on images which the rule likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import CellDataset, predict_all, read_image
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.finding import Finder, processes_for
from cellkit.labelling.rules import RULES, Features, rule_of
from cellkit.parallel import map_all

if TYPE_CHECKING:
    import pandas

# "The image with most cells" is the plainest rule, and it is better than chance in 14 of 15 tables of one-image models that were
# published (CellSeg1, arXiv 2412.01410, figure 3: three methods, five sets; at budget 1, true counts); uncertainty, where it was
# compared with a fair chance, was not (nnActive, TMLR 2025). It stands until benchmarks/bench_planner.py shows a better one.
DEFAULT_RULE = "densest"
SECONDS_PER_CELL = 5.0  # assumed, of correcting a proposal; a person's own rate is told with --seconds-per-cell
SECONDS_PER_IMAGE = 60.0  # assumed: to open it, look it over and save it
HELD_OUT = ("val", "test")


# ---- the order of a set -------------------------------------------------------------------------------------------------
def spread(order: Sequence[int], records: Sequence[ImageRecord], labelled: Sequence[ImageRecord] = ()) -> list[int]:
    """Let cell types take turns, and within a type the groups (wells, slides); within a group the given order stays.

    Parameters
    ----------
    order : sequence of int
        Places in `records`.
    labelled : sequence of ImageRecord
        Images that are labelled already: their types and groups have had that many turns.

    Examples
    --------
    >>> images = [ImageRecord(n, "", 8, 8, cell_type=t) for n, t in zip("abcd", ("HEK", "HEK", "N2a", "N2a"))]
    >>> spread([0, 1, 2, 3], images), spread([0, 1, 2, 3], images, images[:1])
    ([0, 2, 1, 3], [2, 1, 3, 0])
    """
    turns = Counter(key for record in labelled for key in _keys(record))
    waiting: dict[tuple, list[int]] = {}  # (cell type, group) -> positions in `order`, the last one first
    for position in reversed(range(len(order))):
        waiting.setdefault(_keys(records[order[position]]), []).append(position)
    chosen = []
    while waiting:
        keys = min(waiting, key=lambda keys: (turns[keys[0]], turns[keys[1]], waiting[keys][-1]))
        chosen.append(order[waiting[keys].pop()])
        turns.update(keys)
        if not waiting[keys]:
            del waiting[keys]
    return chosen


def _keys(record: ImageRecord) -> tuple[tuple, tuple]:
    """Return what tells the cell type of an image and what tells its group; an image of no group is one by itself."""
    own = ("group", record.group) if record.group else ("image", record.image_id)
    return ("type", record.cell_type), ("type", record.cell_type, *own)


def ranked(
    records: Sequence[ImageRecord],
    features: Features,
    rule: str = DEFAULT_RULE,
    count: int = 10,
    labelled: Sequence[ImageRecord] = (),
) -> list[int]:
    """Return the places of all images, the one to label first on top: by a rule, spread over cell types and groups.

    Parameters
    ----------
    records : sequence of ImageRecord
        Of the images in `features`.
    count : int
        How many are wanted; some rules choose them together.
    labelled : sequence of ImageRecord
    """
    return spread(rule_of(rule).order(features, count), records, labelled)


def in_random_order(images: CellDataset, labelled: Sequence[ImageRecord] = ()) -> list[ImageRecord]:
    """Return the records in random order, spread over cell types and groups: how images that judge are taken."""
    features = features_of_proposals(images, [Instances.empty((r.height_px, r.width_px)) for r in images.records])
    return [images.records[k] for k in ranked(images.records, features, "random", labelled=labelled)]


def to_rank(images: CellDataset, by_person: Container[str]) -> tuple[CellDataset, CellDataset]:
    """Return the images that nobody has labelled and that are not flagged: those to train on, and validation and test images.

    Parameters
    ----------
    by_person : set of str
        The image_id of those labelled by a person.
    """
    offered = [not record.flags and record.image_id not in by_person for record in images.records]
    held_out = [record.split in HELD_OUT for record in images.records]
    parts = [[yes and held == wanted for yes, held in zip(offered, held_out, strict=True)] for wanted in (False, True)]
    return images.subset(np.array(parts[0], bool)), images.subset(np.array(parts[1], bool))


# ---- features -----------------------------------------------------------------------------------------------------------
def features_of_proposals(images: CellDataset, proposals: Sequence[Instances], **more: Any) -> Features:
    """Return the features that the proposals alone tell; `more` are others."""
    confidence = [float(cells.scores.mean()) if len(cells) else np.nan for cells in proposals]
    names = [record.image_id for record in images.records]
    return Features(names, np.array([*map(len, proposals)], float), np.array(confidence, float), **more)


def features_of(
    images: CellDataset,
    proposals: Sequence[Instances],
    model: tuple[Any, Any, Any],
    needs: Sequence[str] = (),
    labelled: CellDataset | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Features:
    """Measure the features that a rule needs, with the model that made the proposals.

    Parameters
    ----------
    images : CellDataset
    proposals : list of Instances
        One per image.
    model : (module, Path or None, Settings)
        Backend of `cellkit.models`, checkpoint and settings.
    needs : sequence of str
        Of `Rule.needs`: "style" (backends that have one), "disagreement" (the image mirrored; and read with a stricter
        threshold, backends that have one).
    labelled : CellDataset, optional
        Images that are labelled already.
    workers : int
        Processes that share the images, each with a model of its own.

    Raises
    ------
    UserError
        A style is needed, and the backend has none.
    """
    from cellkit.models import if_able, title_of

    backend, checkpoint, settings = model
    more: dict[str, Any] = {"seed": seed}
    if "style" in needs:
        more["style"] = if_able(backend, "style", checkpoint, images.images(), settings)
        if more["style"] is None:
            free = ", ".join(name for name, rule in RULES.items() if "style" not in rule.needs)
            raise UserError(f"the rule looks at styles, and {title_of(backend.NAME)} has none", f"choose from {free}")
        if labelled is not None and len(labelled):
            more["labelled"] = if_able(backend, "style", checkpoint, labelled.images(), settings)
    if "disagreement" in needs:
        segment = backend.load(checkpoint, settings)
        more["disagreements"] = {"flips": differences(proposals, _mirrored(segment, images, workers))}
        stricter = if_able(backend, "stricter", settings, segment.settings)
        if stricter is not None:
            other = predict_all(backend.load(checkpoint, stricter), images, "stricter threshold", workers)
            more["disagreements"]["thresholds"] = differences(proposals, other)
    return features_of_proposals(images, proposals, **more)


def differences(a: Sequence[Instances], b: Sequence[Instances]) -> np.ndarray:
    """Return `disagreement` image by image, (n,) float64."""
    return np.array([disagreement(one, other) for one, other in zip(a, b, strict=True)], float)


def disagreement(a: Instances, b: Instances) -> float:
    """Return the share of the cells of two answers that have no partner in the other (IoU > 0.5); 0 where both are empty.

    Examples
    --------
    >>> one = Instances.from_labels(np.array([[1, 1, 0, 2]]))
    >>> disagreement(one, one[:1]), disagreement(one, one), disagreement(one[:0], one[:0])
    (0.3333333333333333, 0.0, 0.0)
    """
    from cellkit.scores.matching import match_pairs

    cells = len(a) + len(b)
    return (cells - 2 * len(match_pairs(a, b)[0])) / cells if cells else 0.0


def _mirrored(segment: Callable, images: CellDataset, workers: int) -> list[Instances]:
    """Find the cells of the mirrored images, and mirror them back."""
    desc = "mirrored images"
    processes = processes_for(segment, workers, desc)
    find = Finder(segment, partial(_read_mirrored, root=images.root), images.records, processes)
    found = map_all(find, images.records, desc, processes, lambda record: record.image_id)
    return [Instances.from_labels(np.ascontiguousarray(one.cells.paint()[:, ::-1])) for one in found]


def _read_mirrored(record: ImageRecord, root: Path) -> tuple[np.ndarray, None]:
    return np.ascontiguousarray(read_image(record, root)[:, ::-1]), None


# ---- what a person reads ------------------------------------------------------------------------------------------------
def plan_table(
    images: CellDataset,
    features: Features,
    rule: str = DEFAULT_RULE,
    count: int = 10,
    labelled: Sequence[ImageRecord] = (),
    seconds_per_cell: float = SECONDS_PER_CELL,
) -> pandas.DataFrame:
    """Rank the images of `features`, and say of each why, and what labelling it takes.

    Returns
    -------
    DataFrame
        rank (from 1), image_id, split, cell_type, group, rule, cells (expected), minutes (expected, at the rate given plus
        `SECONDS_PER_IMAGE`), confidence, disagreement_... of what was compared, distance (of styles, to what is labelled;
        empty where nothing is), why.
    """
    import pandas as pd

    order = ranked(images.records, features, rule, count, labelled)
    records = [images.records[k] for k in order]
    distance = features.distance() if features.style is not None else np.full(len(order), np.inf)
    kinds = len({record.cell_type for record in images.records}) > 1, any(record.group for record in images.records)
    columns: dict[str, Any] = {
        "rank": range(1, len(order) + 1),
        "image_id": [record.image_id for record in records],
        "split": [record.split for record in records],
        "cell_type": [record.cell_type for record in records],
        "group": [record.group for record in records],
        "rule": rule,
        "cells": features.cells[order].astype(int),
        "minutes": minutes_for(features.cells[order], seconds_per_cell).round(1),
        "confidence": features.confidence[order],
    }
    columns |= {f"disagreement_{name}": values[order] for name, values in features.disagreements.items()}
    columns["distance"] = np.where(np.isfinite(distance), distance, np.nan)[order]
    columns["why"] = [_why(rule, features.cells[k], record, kinds) for k, record in zip(order, records, strict=True)]
    return pd.DataFrame(columns)


def minutes_for(cells: np.ndarray, seconds_per_cell: float = SECONDS_PER_CELL) -> np.ndarray:
    """Return how long correcting the proposals of images takes at a stated rate, in minutes.

    Examples
    --------
    >>> minutes_for(np.array([0, 12]), 5.0)
    array([1., 2.])
    """
    return (SECONDS_PER_IMAGE + np.asarray(cells, float) * seconds_per_cell) / 60


def _why(rule: str, cells: float, record: ImageRecord, kinds: tuple[bool, bool]) -> str:
    names = [name for name, told in zip((record.cell_type, record.group), kinds, strict=True) if told and name]
    of = f", next of {' '.join(names)}" if names else ""
    return f"{rule_of(rule).why}{of}; {cells:.0f} {'cell' if cells == 1 else 'cells'} expected"
