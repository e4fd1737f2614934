"""How large a cell is: of labels, and estimated where there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.models.shared.inputs import CELL_PX
from cellkit.models.weights import read_card
from cellkit.parallel import progress

ASSUMED_PX = tuple(4 * 1.6**k for k in range(13))  # diameters at which the network is tried, to find the cells' own
PART_CELLS = 8  # cells across the part of an image that is tried
CLEARLY, ENOUGH = (
    1.1,
    5,
)  # times the diameter assumed, and cells found: from there on an image has a diameter of its own
FARTHEST = 2.0  # times the diameter assumed: no image's own is more, or less than its inverse
MEASURED = 8  # images on which a diameter is estimated, at most: of four it cannot be told whether a set's differ
LOOKS = 2  # at an image again, at most, each at the diameter of what was found before
SURE = 0.35  # share of the runs that have to agree on a diameter
SPECKS = 2.0  # times the median object: where objects wider than that hold half of the area, the others are specks
DIFFER = 1.5  # times percentile 5 of the labelled images' diameters percentile 95: from there on each has its own
LEAST_DIAMETER_PX, LEAST_AREA_PX = 4.5, 4  # below: noise of single pixels


def diameter_of(instances: Sequence[Instances]) -> float:
    """Return the diameter in px of the circle whose area has the median square root: Cellpose's definition (utils.diameters).

    Raises
    ------
    UserError
        There is no cell.
    """
    areas = np.concatenate([x.areas_px for x in instances]) if instances else np.zeros(0)
    if not areas.size:
        raise UserError("there is no cell to take a diameter from", "set diameter_px")
    return _typical(areas)


def _typical(areas_px: np.ndarray) -> float:
    return float(np.median(np.sqrt(areas_px)) * 2 / np.sqrt(np.pi))


def typical_of_image(areas_px: np.ndarray) -> float:
    """Return the diameter in px of one image's cells, as `diameter_of`; of the large ones where most objects are specks.

    So it is where half of the area lies in objects more than twice as wide as the median object: the diameter, then, at which
    half of the area is reached.

    Parameters
    ----------
    areas_px : (N,) int64

    Examples
    --------
    >>> cells, specks = np.full(3, 5000), np.full(12, 80)
    >>> round(typical_of_image(cells), 1), round(typical_of_image(np.append(cells, specks)), 1)
    (79.8, 79.8)
    >>> round(typical_of_image(np.array([100, 200, 300])), 1)
    16.0
    """
    sorted_px = np.sort(areas_px)
    half_px = sorted_px[np.searchsorted(np.cumsum(sorted_px), sorted_px.sum() / 2)]
    middle_px, of_area_px = _typical(areas_px), _typical(half_px)
    return of_area_px if of_area_px > SPECKS * middle_px else middle_px


def own_diameter(found: Instances, assumed_px: float, first_px: float | None = None) -> float:
    """Return the diameter in px of an image's cells, from what was found with one assumed diameter.

    It is that of `typical_of_image`; the one assumed where fewer than five cells were found, or cells of hardly another diameter.

    Parameters
    ----------
    first_px : float, optional
        The diameter that was assumed first, where the image is looked at again: its own is from half to twice that one.

    Examples
    --------
    >>> own_diameter(Instances.empty((8, 8)), 30.0)
    30.0
    """
    return own_diameter_of(found.areas_px, assumed_px, first_px)


def own_diameter_of(areas_px: np.ndarray, assumed_px: float, first_px: float | None = None) -> float:
    """Return the same from the areas of the cells that were found, (N,)."""
    if len(areas_px) < ENOUGH:
        return assumed_px
    first_px = first_px or assumed_px
    own_px = min(max(typical_of_image(areas_px), first_px / FARTHEST), first_px * FARTHEST)
    return own_px if max(own_px / assumed_px, assumed_px / own_px) > CLEARLY else assumed_px


def middle_of(areas_px: Iterable[np.ndarray | None]) -> float | None:
    """Return the diameter in px to look at images with first whose cells differ so much that each is looked at by its own.

    So it is where of the images' diameters percentile 95 is half as much again as percentile 5, and more; it is their median, as
    of all cells together the small ones would decide, which are many. None where they are more alike.

    Parameters
    ----------
    areas_px : iterable of (N,) int64 or None
        Of the labelled cells of each image; images with fewer than five, or None, do not count.

    Examples
    --------
    >>> small, large = np.full(9, 100), np.full(9, 400)
    >>> round(middle_of([small, large]), 1), middle_of([small, small, large[:2], None]), middle_of([])
    (16.9, None, None)
    """
    return _middle([typical_of_image(areas) for areas in areas_px if areas is not None and len(areas) >= ENOUGH])


def _middle(each_px: Sequence[float]) -> float | None:
    smallest, middle, largest = np.percentile(each_px, (5, 50, 95)) if len(each_px) else (1.0, 1.0, 1.0)
    return float(middle) if largest >= DIFFER * smallest else None


class First(float):
    """A diameter in px that images are looked at with first; each has its own, which what is found then tells."""


def one_or_first(each_px: Sequence[float], together_px: float) -> float:
    """Return the diameter of all images together, or a `First` where those of each differ as `middle_of` says.

    Examples
    --------
    >>> one_or_first([28.0, 31.0], 30.0), one_or_first([10.0, 12.0, 50.0], 11.0), type(one_or_first([10.0, 50.0], 11.0))
    (30.0, 12.0, <class 'cellkit.models.shared.diameter.First'>)
    """
    middle_px = _middle(each_px)
    return together_px if middle_px is None else First(middle_px)


def as_settings(px: float, settings: Any, checkpoint: Path | None = None) -> dict[str, Any]:
    """Return what to set for a diameter that was estimated: whose it is too, where that is not set and images differ.

    So do they for a model whose card says that each image has its own, whatever these few are like.
    """
    if getattr(settings, "diameter_of", "") is not None:
        return {"diameter_px": float(px)}
    card = {} if checkpoint is None or checkpoint.suffix != ".safetensors" else read_card(checkpoint).config
    each = isinstance(px, First) or card.get("diameter_of") == "image"
    return {"diameter_px": float(px)} | ({"diameter_of": "image"} if each else {})


def estimate(find: Callable[[np.ndarray, float], Instances], images: Sequence[np.ndarray]) -> float:
    """Estimate the cell diameter in px of images without labels, a `First` where they differ; say so where it is doubtful.

    The network is run on each image as if its cells were 4, 6, 10, 16 ... px across, on a crop of about eight such cells at
    the image's brightest place. A real cell is found, always of the same size, when its own diameter is assumed and up to
    four times that; the size of what is found inside cells or in noise changes with the diameter assumed. So the size on
    which most of these runs agree is the estimate.

    Parameters
    ----------
    find : callable
        (image, diameter in px) -> the cells that are found when that diameter is assumed.
    images : sequence of (H, W, 3) uint8
        A few of them are enough.
    """
    largest = max(max(image.shape[:2]) for image in images)
    sizes = np.exp(np.arange(np.log(LEAST_DIAMETER_PX), np.log(1.1 * max(largest, 8)), 0.05))
    tasks = [(image, assumed_px) for image in images for assumed_px in assumed_of(image.shape[:2])]
    each = {id(image): np.zeros(len(sizes)) for image in images}
    for image, assumed_px in progress(tasks, "cell diameter"):
        part = bright_part(image, round(PART_CELLS * assumed_px))
        each[id(image)] += _agreement(find(part, assumed_px), assumed_px, sizes)
    own_px = one_or_first([float(sizes[one.argmax()]) for one in each.values() if one.max() >= SURE], 0.0)
    if isinstance(own_px, First):
        return own_px
    agreement = sum(each.values()) / max(len(images), 1)
    best = int(agreement.argmax())
    other = agreement[np.abs(np.log(sizes / sizes[best])) > 0.5]
    rival = sizes[agreement == other.max()][0] if other.size and other.max() > 0.85 * agreement[best] else None
    if agreement[best] == 0:
        LOG.info(
            f"no cell is found at any diameter; {CELL_PX:g} px is taken. Set the diameter if cells are of another size"
        )
        return CELL_PX
    if agreement[best] < SURE or rival is not None:
        LOG.info(doubtful(sizes[best], f"; {rival:.0f} px fits nearly as well" if rival is not None else ""))
    return float(sizes[best])


def doubtful(px: float, why: str = "") -> str:
    """Say that an estimated diameter is one to look at."""
    return f"the cell diameter of about {px:.0f} px is doubtful{why}: look at the proposals, or set the diameter"


def assumed_of(shape: tuple[int, int]) -> list[float]:
    """Return the diameters at which an image (height, width) is tried."""
    return [assumed_px for assumed_px in ASSUMED_PX if assumed_px <= 2 * max(shape)]


def tried_mpx(shape: tuple[int, int]) -> float:
    """Return the megapixels, at network scale, that `estimate` looks at of an image (height, width).

    Examples
    --------
    >>> round(tried_mpx((2048, 2048)), 2), round(tried_mpx((256, 256)), 2)
    (0.6, 0.34)
    """
    sides = ((px, [min(round(PART_CELLS * px), side) for side in shape]) for px in assumed_of(shape))
    return sum(height * width * (CELL_PX / px) ** 2 for px, (height, width) in sides) / 1e6


def bright_part(image: np.ndarray, side_px: int) -> np.ndarray:
    """Return the brightest part of an image (H, W, 3) uint8, a square of `side_px` or what fits; not a copy."""
    import cv2

    step = max(1, max(image.shape[:2]) // 1000)  # every pixel of a large image would only take longer
    light = image[::step, ::step].max(axis=2)
    height, width = (min(max(side_px, 1), side) for side in image.shape[:2])
    rows, columns = (min(-(-side // step), most) for side, most in zip((height, width), light.shape, strict=True))
    total = cv2.integral(light)
    light = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
    top, left = (int(k) * step for k in np.unravel_index(light.argmax(), light.shape))
    top, left = min(top, image.shape[0] - height), min(left, image.shape[1] - width)
    return image[top : top + height, left : left + width]


def _agreement(found: Instances, assumed_px: float, sizes_px: np.ndarray) -> np.ndarray:
    """Return how well the cells found with one assumed diameter agree with each size: (N,), up to 1 over all runs."""
    if not len(found):
        return np.zeros(len(sizes_px))
    height, width = found.shape
    x, y, w, h = found.boxes_xywh.T
    inside = (x > 0) & (y > 0) & (x + w < width) & (y + h < height)
    diameters = 2 * np.sqrt(found.areas_px / np.pi)
    weight = diameters * np.where(inside, 1, 0.3)  # cells cut by the crop count less
    sure = weight * np.clip(2 * found.scores - 1, 0, 1)
    near = np.exp(-0.5 * (np.log(diameters[:, None] / sizes_px) / 0.18) ** 2)
    several = near.sum(axis=0) / (near.sum(axis=0) + 0.5)  # a single object is weak evidence
    prior = (
        np.exp(-0.5 * (np.log(assumed_px / sizes_px / 1.3) / 0.5) ** 2) * np.log(ASSUMED_PX[1] / ASSUMED_PX[0]) / 1.2533
    )
    return prior * several * (sure[:, None] * near).sum(axis=0) / weight.sum()
