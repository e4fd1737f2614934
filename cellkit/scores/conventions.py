"""The published conventions, side by side: what each makes of the same objects, and why its number differs.

A convention is a module ``cellkit/scores/NAME.py``; it is found by its file alone. It has

- ``WHY``: one sentence on what makes its number differ from the others';
- ``ON_BOXES``: whether it is also defined on boxes;
- ``score(images)``: `cellkit.scores.matching.ScoredImages` -> a dict for JSON with ``score`` (None where undefined);
- ``RANKED``, where its number depends on the order of the scores of the cells; ``ORDER``, its place in a table;
- ``details(images)``, where there is more to tell that needs no interval.

"mAP" never stands alone: the name of the convention goes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.outlines import refuse_boxes
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, nearest
from cellkit.modules import load_all
from cellkit.scores.intervals import BOOTSTRAP, Units, jackknife
from cellkit.scores.iou import overlap_images, scorable
from cellkit.scores.matching import ScoredImages, classes_of_truth, json_number
from cellkit.scores.table import score_table, summary

UNRANKED = "; here all cells have the same score (label images tell none): the number depends on the order of the list"


def find_conventions() -> dict[str, ModuleType]:
    """Return the conventions of the package by name, in the order of a table: the modules that have a ``WHY``."""
    return load_all("convention")


def unranked(founds: Sequence[Instances]) -> bool:
    """Tell whether there are cells to rank and no score ranks them: the AP of label images depends on their numbering."""
    scores = np.concatenate([np.zeros(0), *(found.scores for found in founds)])
    return len(scores) > 1 and bool((scores == scores[0]).all())


def compare_conventions(
    truths: Sequence[Instances],
    founds: Sequence[Instances],
    records: Sequence[ImageRecord] | None = None,
    by: str | None = None,
    classes: Sequence[str] = (),
    conventions: Sequence[str] | None = None,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Score the same objects under every convention, side by side, and say in a line why the numbers differ.

    Found objects that lie mostly where the truth is not annotated do not count (`cellkit.scores.iou.scorable`); `coco` has a
    rule of its own for them.

    Parameters
    ----------
    records, by : optional
        Also the MAP IoU of each part: cell_type, group, split, class_name or size; needs the records.
    conventions : list of str, optional
        Default all. Where the truth is boxes only, the boxes of the predictions are scored, by the conventions `ON_BOXES`.
    workers : int
        Processes that share the images where a convention takes long over each; the same numbers for any.

    Returns
    -------
    dict
        ``{"images": n, "conventions": {name: {"score": ..., "by_threshold": {...}, ..., "why": ...}}, "by": {...}}``,
        ready for JSON.

    Raises
    ------
    UserError
        No such convention, or sides that do not fit each other.
    """
    known = find_conventions()
    chosen = list(known if conventions is None else conventions)
    for name in chosen:
        if name not in known:
            raise UserError(f"no convention '{name}'{nearest(name, known)}", f"choose from {', '.join(known)}")
    what = "of boxes: " if any(truth.boxes_only for truth in truths) else ""
    if what:
        if conventions is None:
            chosen = [name for name in known if known[name].ON_BOXES]
        masks = [name for name in chosen if not known[name].ON_BOXES]
        if masks or by is not None:  # the parts of `by` are scored by MAP IoU
            refuse_boxes(truths, f"the convention {masks[0]}" if masks else f"MAP IoU by {by}")
        truths, founds = [x.as_boxes() for x in truths], [x.as_boxes() for x in founds]
    pairs = overlap_images(truths, founds)
    with_class = any(image.found_classes.any() for image in pairs) and bool(classes_of_truth(pairs))
    groups = None if records is None else [record.group for record in records]
    counted = [scorable(*pair) for pair in zip(truths, founds, strict=True)]
    images = ScoredImages(pairs, truths, counted, classes, with_class, groups, bootstrap, seed, founds, workers)
    scored = {name: _scored(known[name], images, what) for name in chosen}
    result: dict[str, Any] = {"images": len(pairs), "conventions": scored, "by": {}}
    if by is not None:
        result["by"] = {by: _by_part(truths, founds, records, by, classes, bootstrap, seed)}
    return result


def _scored(convention: ModuleType, images: ScoredImages, what: str) -> dict[str, Any]:
    """Return what a convention says, with an interval where it has none of its own, and why its number differs."""
    result = convention.score(images)
    if images.bootstrap and "interval" not in result:
        units = Units.of(images.groups, len(images.pairs))
        ends = jackknife(lambda kept: convention.score(images.subset(kept))["score"], units)
        result |= {"interval": [json_number(end) for end in ends], "interval_of": str(units)}
    tied = getattr(convention, "RANKED", False) and unranked(images.founds)
    result["why"] = what + convention.WHY + (UNRANKED if tied else "")
    return result | (convention.details(images) if hasattr(convention, "details") else {})


def _by_part(truths, founds, records, by: str, classes, bootstrap: int, seed: int) -> dict[str, Any]:
    if records is None:
        raise UserError(f"cannot score by {by} without records", "give the records of the images (records.csv)")
    table = score_table(truths, founds, records, classes=classes if by == "class_name" else (), sizes=by == "size")
    if by == "size" and not (table["size"] != "").any():
        raise UserError(
            f"the {sum(map(len, truths))} true cells are all equally large: none is small or large",
            "leave out --by size",
        )
    lines = summary(table, by, n=bootstrap, seed=seed).to_dict("records")
    names = ("images", "truth_cells", "found_cells")
    return {
        line[by]: {
            "score": json_number(line["score"]),
            "interval": [json_number(line["low"]), json_number(line["high"])],
        }
        | {name: int(line[name]) for name in names}
        for line in lines
    }
