"""A model for each kind of image: who votes which kind an image is, and a segmenter that hands it on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.models.shared.contract import Segmenter

Vote = Callable[[np.ndarray], str]  # (H, W, 3) uint8 -> kind of the image, "" where it cannot tell


def class_vote(router: Segmenter, classes: Sequence[str]) -> Vote:
    """Return a vote by detections: the class that most cells of the image have.

    Of classes with as many cells the one with the larger sum of scores wins, then the first.

    Parameters
    ----------
    router : Segmenter
        A model that tells classes apart.
    classes : sequence of str
        Class k of its cells is ``classes[k - 1]``.
    """

    def vote(image: np.ndarray) -> str:
        (found,) = router([image])
        router.left_out.clear()  # its cells go nowhere
        return most_frequent(found, classes)

    return vote


def most_frequent(found: Instances, classes: Sequence[str]) -> str:
    """Return the class that most cells have; "" where none has a class.

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 2, 3]]), class_ids=[2, 1, 2])
    >>> most_frequent(cells, ("HEK", "N2a")), most_frequent(cells[:0], ("HEK", "N2a"))
    ('N2a', '')
    """
    counts = np.bincount(found.class_ids, minlength=len(classes) + 1)[1:]
    if not counts.any():
        return ""
    sums = np.bincount(found.class_ids, found.scores, len(classes) + 1)[1:]
    return classes[max(range(len(counts)), key=lambda k: (counts[k], round(float(sums[k]), 9), -k))]


def style_vote(style: Callable[[Sequence[np.ndarray]], np.ndarray], examples: np.ndarray, kinds: Sequence[str]) -> Vote:
    """Return a vote by style: the kind whose examples an image looks most like, on average.

    Parameters
    ----------
    style : callable
        Images -> (n, d) float, of length 1 each.
    examples : (n, d) float
        Styles of images whose kind is known.
    kinds : sequence of str
        One per example.

    Raises
    ------
    UserError
        There is no example.
    """
    names = sorted(set(kinds))
    if not names:
        raise UserError("no image whose kind is known", "name a finished run with training images")
    means = np.stack(
        [np.mean([e for e, kind in zip(examples, kinds, strict=True) if kind == name], 0) for name in names]
    )
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return lambda image: names[int(np.argmax(means @ style([image])[0]))]


def routed(vote: Vote, segmenters: Mapping[str, Segmenter], otherwise: str) -> Segmenter:
    """Return a segmenter that hands each image to the model of its kind.

    Parameters
    ----------
    vote : callable
        Image -> its kind.
    segmenters : mapping
        Kind -> the model of it. All give their cells the same classes.
    otherwise : str
        The kind whose model takes images of no kind that is listed; which those are is logged.

    Raises
    ------
    UserError
        `otherwise` has no model.
    """
    if otherwise not in segmenters:
        raise UserError(f"no model for '{otherwise}'", f"choose from {', '.join(segmenters) or 'none'}")
    numbers: Counter[str] = Counter()

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        kind = vote(image)
        numbers["images"] += 1
        if kind not in segmenters:
            what = f"is of the kind {kind}, which has no model" if kind else "shows no kind"
            LOG.warning(f"image {numbers['images']} {what}: the model of {otherwise} takes it")
            kind = otherwise
        (found,) = segmenters[kind]([image])
        left_out.update(segmenters[kind].left_out)
        segmenters[kind].left_out.clear()
        return found

    told = {"otherwise": otherwise, "kinds": sorted(segmenters)}
    return Segmenter(find, told, lambda shape: max(one.bytes_for(shape) for one in segmenters.values()))


def with_classes_of(segmenter: Segmenter, own: Sequence[str], wanted: Sequence[str], all_are: str = "") -> Segmenter:
    """Return a segmenter whose cells have the class numbers of another list of names.

    Parameters
    ----------
    own : sequence of str
        Its own names; none where it knows no class.
    wanted : sequence of str
        Class k becomes the place of its name here.
    all_are : str, optional
        The class of every cell of a model that knows none.

    Raises
    ------
    UserError
        A name of its own is not wanted.
    """
    if strange := [name for name in own if name not in wanted]:
        raise UserError(
            f"a model has the class {strange[0]}, the others have {', '.join(wanted) or 'none'}",
            "join models of the same classes",
        )
    place = np.array([0, *(list(wanted).index(name) + 1 for name in own)])
    fixed = list(wanted).index(all_are) + 1 if not own and all_are in wanted else 0
    if not fixed and list(place) == list(range(len(place))):
        return segmenter

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        (found,) = segmenter([image])
        left_out.update(segmenter.left_out)
        segmenter.left_out.clear()
        return found.with_classes(np.full(len(found), fixed) if fixed else place[found.class_ids])

    return Segmenter(find, segmenter.settings, segmenter.bytes_for)
