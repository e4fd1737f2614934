"""Objects that share no pixel, as the competitions and most models want them: the higher score keeps a contested one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import LeftOut
from cellkit.errors import UserError


@dataclass(frozen=True)
class Change:
    """What the resolver did to one object (its index in the input), and how many pixels it gained or lost."""

    index: int
    what: str
    pixels: int


def resolve_overlaps(instances: Instances, min_area_px: int = 0) -> tuple[Instances, list[Change]]:
    """Make the objects of an image disjoint: the higher score keeps a contested pixel, the earlier object a tie.

    Parameters
    ----------
    min_area_px : int
        Smaller objects are dropped: before (so that they win no pixel) and after.

    Returns
    -------
    objects : Instances
        The survivors, in their order, with class and score; every one has a pixel.
    log : list of Change
        By object: "dropped: smaller than N px", "dropped: covered by higher scores", "lost to higher scores".

    Raises
    ------
    UserError
        A score that is not a number.

    Examples
    --------
    >>> masks = [np.array([[1, 1, 1, 0]], bool), np.array([[0, 0, 1, 1]], bool)]
    >>> objects, log = resolve_overlaps(Instances.from_masks(masks, (1, 4), scores=[0.5, 0.9]))
    >>> objects.paint()
    array([[1, 1, 2, 2]], dtype=int32)
    >>> log
    [Change(index=0, what='lost to higher scores', pixels=1)]
    """
    if np.isnan(instances.scores).any():
        raise UserError("an object has the score nan", "scores are numbers from 0 to 1; they decide who keeps a pixel")
    log: list[Change] = []
    least = max(int(min_area_px), 1)
    small = instances.areas_px < least
    dropped = np.flatnonzero(small).tolist()
    log += [Change(k, f"dropped: smaller than {least} px", int(instances.areas_px[k])) for k in dropped]
    names = np.flatnonzero(~small)
    labels = instances[names].paint(names + 1)
    areas = np.bincount(labels.ravel(), minlength=len(instances) + 1)[1:]
    lost = instances.areas_px * ~small - areas
    log += [Change(k, "lost to higher scores", int(lost[k])) for k in np.flatnonzero(lost).tolist()]
    for index in np.flatnonzero(~small & (areas < least)).tolist():
        why = f"dropped: smaller than {least} px" if areas[index] else "dropped: covered by higher scores"
        log.append(Change(index, why, int(areas[index])))
    kept = np.flatnonzero(areas >= least)
    labels = np.where(np.isin(labels, kept + 1), labels, 0)
    objects = Instances.from_labels(labels, instances.class_ids[kept], instances.scores[kept])
    return objects, sorted(log, key=lambda change: change.index)


def note_changes(left: LeftOut, image_id: str, log: Iterable[Change]) -> None:
    """Count what `resolve_overlaps` dropped or cut of an image, to be reported.

    Examples
    --------
    >>> left = LeftOut()
    >>> note_changes(left, "a", [Change(0, "lost to higher scores", 3), Change(4, "dropped: smaller than 30 px", 7)])
    >>> left.sentences()
    ['1 cell of 1 image left out: smaller than 30 px (a)', '1 cell of 1 image lost pixels to higher scores (a)']
    """
    log = list(log)
    dropped = {change.index: change.what for change in log if change.what.startswith("dropped: ")}
    for what in dropped.values():
        left.add(what.replace("dropped", "left out", 1), image_id, 1)
    cut = {change.index for change in log if change.what == "lost to higher scores"} - set(dropped)
    left.add("lost pixels to higher scores", image_id, len(cut))


def lost_pixels(found: Instances) -> tuple[int, int]:
    """Return how many cells lose pixels to higher scores in a label image, and how many keep none.

    Examples
    --------
    >>> lost_pixels(Instances.from_masks([np.ones((1, 2), bool), np.array([[True, False]])], (1, 2), scores=[0.5, 0.9]))
    (1, 0)
    """
    kept = np.bincount(found.paint().ravel(), minlength=len(found) + 1)[1:]
    return int(np.count_nonzero((kept < found.areas_px) & (kept > 0))), int(np.count_nonzero(kept == 0))
