"""A model for each kind of image: who votes which kind an image is, and a segmenter that hands it on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellkit.cells.dataset import class_numbers
from cellkit.cells.instances import Instances
from cellkit.cells.leftout import of_images
from cellkit.cells.windows import BLOCK_PX, windows_of
from cellkit.errors import UserError
from cellkit.files import read_json, write_json
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.in_windows import Changed, InWindows, WholeImage, own_cells
from cellkit.models.shared.whole_light import in_light_of


@dataclass(frozen=True)
class Vote:
    """Which kind an image is, "" where it cannot be told: of an image (H, W, 3) uint8, and of one larger than the memory."""

    of_image: Callable[[np.ndarray], str]
    of_whole: Callable[[WholeImage], str]

    def __call__(self, image: np.ndarray) -> str:
        """Return the kind of an image (H, W, 3) uint8."""
        return self.of_image(image)


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

    def vote_of_whole(whole: WholeImage) -> str:
        own = list(own_cells(router.in_windows(whole.for_model("router")), whole.shape))
        ids, scores = (np.concatenate([getattr(one, name) for one in own]) for name in ("class_ids", "scores"))
        return _most_frequent(ids, scores, classes)

    return Vote(vote, vote_of_whole)


def most_frequent(found: Instances, classes: Sequence[str]) -> str:
    """Return the class that most cells have; "" where none has a class.

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 2, 3]]), class_ids=[2, 1, 2])
    >>> most_frequent(cells, ("HEK", "N2a")), most_frequent(cells[:0], ("HEK", "N2a"))
    ('N2a', '')
    """
    return _most_frequent(found.class_ids, found.scores, classes)


def _most_frequent(class_ids: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> str:
    counts = np.bincount(class_ids, minlength=len(classes) + 1)[1:]
    if not counts.any():
        return ""
    sums = np.bincount(class_ids, scores, len(classes) + 1)[1:]
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

    def vote_of_whole(whole: WholeImage) -> str:
        total = np.zeros(means.shape[1])
        with in_light_of(whole.light):
            for block in windows_of(whole.shape, BLOCK_PX):
                total += block.area_px * style([whole.part(block)])[0]
        return names[int(np.argmax(means @ total))]

    return Vote(lambda image: names[int(np.argmax(means @ style([image])[0]))], vote_of_whole)


def routed(
    vote: Vote,
    segmenters: Mapping[str, Segmenter],
    otherwise: str,
    classes: Sequence[str] = (),
    classless: Collection[str] = (),
) -> Segmenter:
    """Return a segmenter that hands each image to the model of its kind.

    Parameters
    ----------
    vote : callable
        Image -> its kind.
    segmenters : mapping
        Kind -> the model of it. All give their cells the same classes.
    otherwise : str
        The kind whose model takes images of no kind that is listed; which those are is noted among what is left out.
    classes : sequence of str, optional
        What the classes of the cells are called.
    classless : collection of str, optional
        Kinds whose model knows no classes: its cells get the kind of their image, also where it takes an image of another; none
        where that is no class.

    Raises
    ------
    UserError
        `otherwise` has no model.
    """
    if otherwise not in segmenters:
        raise UserError(f"no model for '{otherwise}'", f"choose from {', '.join(segmenters) or 'none'}")

    def note_of(kind: str) -> Counter[str]:
        what = f"of the kind {kind}, which has no model," if kind else "of no kind that could be told,"
        return Counter() if kind in segmenters else Counter({of_images(f"{what} left to the model of {otherwise}"): 1})

    def named(kind: str, found: Instances) -> Instances:
        if (kind if kind in segmenters else otherwise) not in classless:
            return found
        return found.with_classes(np.full(len(found), list(classes).index(kind) + 1 if kind in classes else 0))

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        kind = vote(image)
        model = segmenters[kind if kind in segmenters else otherwise]
        (found,) = model([image])
        left_out.update(model.left_out + note_of(kind))
        model.left_out.clear()
        return named(kind, found)

    def in_windows(whole: WholeImage) -> InWindows:
        kept = whole.folder / "kind.json"
        kind = read_json(kept)["kind"] if kept.is_file() else vote.of_whole(whole)
        write_json(kept, {"kind": kind})
        model = segmenters[kind if kind in segmenters else otherwise]
        own = model.in_windows(whole.for_model("routed"))
        return Changed(own, lambda window, found: named(kind, found), note_of(kind))

    told = {"otherwise": otherwise, "kinds": sorted(segmenters)}
    reason = next((one.whole_only for one in segmenters.values() if one.whole_only), "")
    size = lambda shape: max(one.bytes_for(shape) for one in segmenters.values())  # noqa: E731
    return Segmenter(find, told, size, in_windows, reason)


def with_classes_of(segmenter: Segmenter, own: Sequence[str], wanted: Sequence[str]) -> Segmenter:
    """Return a segmenter whose cells have the class numbers of another list of names.

    Parameters
    ----------
    own : sequence of str
        Its own names; none where it knows no class.
    wanted : sequence of str
        Class k becomes the place of its name here.

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
    place = class_numbers(own, wanted)
    if list(place) == list(range(len(place))):
        return segmenter

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        (found,) = segmenter([image])
        left_out.update(segmenter.left_out)
        segmenter.left_out.clear()
        return renamed(found)

    def renamed(found: Instances) -> Instances:
        return found.with_classes(place[found.class_ids])

    def in_windows(whole: WholeImage) -> InWindows:
        return Changed(segmenter.in_windows(whole), lambda window, found: renamed(found))

    return Segmenter(find, segmenter.settings, segmenter.bytes_for, in_windows, segmenter.whole_only)
