"""A loaded model in two halves: what takes long is done once for an image; what a setting changes is read from it again.

A backend offers it with ``live(checkpoint, settings)``, an optional function of the contract (`cellkit.models`). What its
`read` gives without ``quick`` is what its `Segmenter` finds with the same settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.flows import FollowedMaps


class Range(NamedTuple):
    """From where to where a setting is moved, and by what step."""

    low: float
    high: float
    step: float


AREA = Range(0, 2000, 5)  # px
OF_MAPS = {"cellprob_threshold": Range(-6, 6, 0.1), "flow_threshold": Range(0, 3, 0.05), "min_area_px": AREA}


class Reading(NamedTuple):
    """Cells of an image; `exact` where they are what the model finds with these settings, and no quick look ahead."""

    cells: Instances
    exact: bool = True


Read = Callable[[Mapping[str, Any], Counter[str], bool], Reading]


@dataclass(frozen=True)
class Live:
    """A loaded model that reads an image again and again.

    Attributes
    ----------
    look : callable
        Image (H, W, 3) uint8 -> its `Read`: (settings that are changed, Counter of what is left out, quick) -> `Reading`. It
        keeps what it needs of the image, and no network runs in it. With `quick` it may answer by something that is nearly
        right and comes at once; then the reading is not `exact`.
    settings : mapping
        What the model is read with where nothing is changed.
    ranges : mapping of setting -> Range
        The settings that may be changed.
    bytes_for : callable
        (height, width) -> bytes of memory that a look takes.
    """

    look: Callable[[np.ndarray], Read]
    settings: Mapping[str, Any]
    ranges: Mapping[str, Range]
    bytes_for: Callable[[tuple[int, int]], int] = lambda shape: 0


def fixed(segmenter: Segmenter) -> Live:
    """Return a model of which no setting can be moved: the cells are found once."""

    def look(image: np.ndarray) -> Read:
        (found,) = segmenter([image])
        counts = Counter(getattr(segmenter, "left_out", ()))
        segmenter.left_out.clear()

        def read(changed: Mapping[str, Any], left_out: Counter[str], quick: bool) -> Reading:
            left_out.update(counts)
            return Reading(found)

        return read

    return Live(look, segmenter.settings, {}, segmenter.bytes_for)


def of_maps(
    maps_of: Callable[[np.ndarray], np.ndarray],
    used: Mapping[str, Any],
    bytes_for: Callable[[tuple[int, int]], int],
    note: Callable[[np.ndarray, Instances, Counter[str]], object],
    device: Any = "cpu",
) -> Live:
    """Return a model whose network gives maps of flows, which are followed again for each threshold of the cell probability.

    Parameters
    ----------
    maps_of : callable
        Image -> flow y, flow x and cell probability (logit) at network scale, (3, h, w) float32.
    used, bytes_for
        As for `Segmenter`.
    note : callable
        (image, cells, Counter): takes what is doubtful.
    device : torch.device or str
        Where flows are followed.
    """

    def look(image: np.ndarray) -> Read:
        followed = FollowedMaps(maps_of(image), image.shape[:2], device)

        def read(changed: Mapping[str, Any], left_out: Counter[str], quick: bool) -> Reading:
            now = {name: changed.get(name, used[name]) for name in OF_MAPS}
            if quick and not followed.has(now["cellprob_threshold"]):
                nearly = followed.nearly(**now)
                if nearly is not None:
                    return Reading(nearly, False)
            found = followed.cells(**now, left_out=left_out)
            note(image, found, left_out)
            return Reading(found)

        return read

    return Live(look, used, OF_MAPS, bytes_for)


def classified(live: Live, name_cells: Callable[[np.ndarray, Instances], Instances]) -> Live:
    """Return a model whose cells get a class; in a quick reading that of the cell of the last exact one which they cover most.

    Parameters
    ----------
    name_cells : callable
        (image, cells) -> the cells with their classes.
    """

    def look(image: np.ndarray) -> Read:
        read, known = live.look(image), []

        def named(changed: Mapping[str, Any], left_out: Counter[str], quick: bool) -> Reading:
            found = read(changed, left_out, quick)
            if quick and known:
                return Reading(found.cells.with_classes(classes_beneath(found.cells, known[0])), False)
            known[:] = [name_cells(image, found.cells)]
            return Reading(known[0], found.exact)

        return named

    return Live(look, live.settings, live.ranges, live.bytes_for)


def classes_beneath(cells: Instances, known: Instances) -> np.ndarray:
    """Return for each cell the class of the known cell that shares most pixels with it, (N,) int64; 0 where none does.

    Examples
    --------
    >>> known = Instances.from_labels(np.array([[1, 1, 2, 0]]), class_ids=[5, 7])
    >>> classes_beneath(Instances.from_labels(np.array([[0, 1, 1, 2]])), known)
    array([5, 0])
    """
    from cellkit.scores.iou import overlaps

    pairs, classes = overlaps(known, cells), np.zeros(len(cells), np.int64)
    order = np.lexsort(
        (-pairs.truth, pairs.shared_px)
    )  # the largest share is written last; of equal ones the first cell's
    classes[pairs.found[order]] = known.class_ids[pairs.truth[order]]
    return classes
