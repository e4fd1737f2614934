"""What a network is shown of an image: which channels, how bright, at which scale, how varied; and the memory that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted
from cellkit.log import LOG
from cellkit.machine import check_memory
from cellkit.models.shared.whole_light import ends, percentiles

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

CELL_PX = 30.0  # diameter of a cell at network scale
CHANNELS = {"all": (0, 1, 2), "both": (1, 2), "cytoplasm": (1,), "nuclei": (2,)}  # of red, green, blue
NORMALISE = (1.0, 99.0)  # percentiles of a channel that become 0 and 1: Cellpose's
SHOWN = {
    "all": "red, cytoplasm (green) and nuclei (blue)",
    "both": "cytoplasm (green) and nuclei (blue)",
    "cytoplasm": "cytoplasm (green)",
    "nuclei": "nuclei (blue)",
}
DOUBTFUL = "found in hardly more than noise, whose contrast was stretched: doubtful, look at them"
BYTES_PER_FILE_PX = 50  # measured, 1024 and 2048 px: 42 bytes more a pixel


def two_channels(image: np.ndarray, channels: str = "both", normalise: tuple[float, float] = NORMALISE) -> np.ndarray:
    """Return cytoplasm (green) and nuclei (blue), each scaled so that its 1st and 99th percentile are 0 and 1.

    Parameters
    ----------
    image : (H, W, 3) uint8
    channels : {"both", "nuclei", "cytoplasm"}
        What the network is shown; the other channel is left empty. Nuclei alone: the starter weights outline nuclei.
    normalise : (float, float)
        Other percentiles.

    Returns
    -------
    (2, H, W) float32
        A constant channel is all 0.

    Raises
    ------
    UserError
        `channels` is none of the three.
    """
    return three_channels(image, channels, normalise)[1:]


def three_channels(image: np.ndarray, channels: str = "all", normalise: tuple[float, float] = NORMALISE) -> np.ndarray:
    """Return red, cytoplasm (green) and nuclei (blue), each scaled so that its 1st and 99th percentile are 0 and 1.

    Parameters
    ----------
    image : (H, W, 3) uint8
    channels : {"all", "both", "nuclei", "cytoplasm"}
        What the network is shown; "both" is cytoplasm and nuclei. The others are left empty.
    normalise : (float, float)
        Other percentiles.

    Returns
    -------
    (3, H, W) float32
        A constant channel is all 0.

    Raises
    ------
    UserError
        `channels` is none of the four.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image is (H, W, 3) uint8, this is {image.shape} {image.dtype}")
    if channels not in CHANNELS:
        raise UserError(f"channels is '{channels}'", f"use one of {', '.join(CHANNELS)}")
    out = np.zeros((3, *image.shape[:2]), np.float32)
    for channel in CHANNELS[channels]:
        plane = image[..., channel]
        low, high = percentiles(plane, channel, normalise)
        if high - low < 1:
            low, high = ends(plane, channel)  # a few bright pixels on nothing
        if high > low:
            out[channel] = (plane - np.float32(low)) / np.float32(high - low)
    return out


def planes_of(image: np.ndarray) -> np.ndarray:
    """Return red, cytoplasm and nuclei of an (H, W, 3) uint8 image as (3, H, W) float32, scaled as the U-Net wants them."""
    red = image[..., 0].astype(np.float32) / 255
    return np.concatenate([red[None], two_channels(image)])


def resized(planes: np.ndarray, shape: tuple[int, int], smaller: bool) -> np.ndarray:
    """Return planes (C, H, W) float32 at another height and width: by area where they become `smaller`, else bilinearly."""
    import cv2

    if planes.shape[1:] == tuple(shape):
        return planes
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.stack([cv2.resize(plane, shape[::-1], interpolation=how) for plane in planes])


def network_shape(
    shape: tuple[int, int], diameter_px: float, least_px: int, cell_px: float = CELL_PX
) -> tuple[int, int]:
    """Return height and width at network scale of an image with cells of that diameter, at least `least_px` each.

    Examples
    --------
    >>> network_shape((200, 10), 60.0, 8)
    (100, 8)
    """
    scale = cell_px / diameter_px
    return max(least_px, round(shape[0] * scale)), max(least_px, round(shape[1] * scale))


def to_network_scale(
    planes: np.ndarray, truth: Instances, diameter_px: float, least_px: int, cell_px: float = CELL_PX
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a labelled image to the scale at which its cells are as wide as the network knows them, 30 px unless told.

    Returns
    -------
    planes : (C, h, w) float32
    labels : (h, w) int32
        0 = background, -1 = not annotated.
    """
    size = network_shape(truth.shape, diameter_px, least_px, cell_px)
    return resized(planes, size, diameter_px > cell_px), labels_at(truth, size)


def labels_at(truth: Instances, shape: tuple[int, int]) -> np.ndarray:
    """Return cells as a label image at another height and width, (h, w) int32; each pixel is that of the nearest.

    0 = background, -1 = not annotated.
    """
    return nearest(truth.paint(unknown=-1), shape)


def nearest(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return labels (H, W) int32 at another height and width; each pixel is that of the nearest."""
    import cv2

    return cv2.resize(labels.astype(np.float64), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)


def lies_elsewhere(image: np.ndarray, channels: str) -> bool:
    """Tell whether an (H, W, 3) image is constant in all that the network is shown, and not in its other colours."""
    flat = [np.ptp(ends(image[..., k], k)) == 0 for k in range(3)]
    return all(flat[k] for k in CHANNELS[channels]) and not all(flat)


def only_noise(image: np.ndarray, channels: str = "both") -> bool:
    """Tell whether `two_channels` stretches noise to full contrast: in no channel shown do the percentiles span more.

    The 1st and 99th percentile of white noise are 4.7 of its standard deviations apart. That is estimated from second
    differences along a row, which neither cells nor uneven light reach. So it is in an empty picture, and in one where cells
    cover less than 1 %.

    Parameters
    ----------
    image : (H, W, 3) uint8
    """
    some = image[:: (len(image) - 1) // 256 + 1]
    noisy = []
    for channel in CHANNELS[channels]:
        plane = some[..., channel].astype(np.int16)
        if plane.shape[1] > 2 and plane.min() < plane.max():
            noise = 1.4826 * np.median(np.abs(np.diff(plane, 2, axis=1))) / np.sqrt(6)
            noisy.append(bool(noise > 0 and np.ptp(percentiles(plane, channel, (1, 99))) < 6 * noise))
    return bool(noisy) and all(noisy)


class Doubts:
    """What is to be said of images as a network with these `channels` sees them: empty ones, once; and noise taken for cells.

    Parameters
    ----------
    channels : str
        What it is shown.
    choices : sequence of str
        What it could be shown: the names that its setting ``channels`` allows.
    """

    def __init__(self, channels: str, choices: Sequence[str]):
        self.channels, self.choices, self.said = channels, choices, False

    def note(self, image: np.ndarray, found: Instances, left_out: Counter[str]) -> None:
        """Look at an image (H, W, 3) uint8 and what was found in it; `left_out` takes the number of doubtful cells."""
        if not self.said and lies_elsewhere(image, self.channels):
            self.said = True
            LOG.info(
                f"an image is empty in what the network is shown, {SHOWN[self.channels]}, and not in its other "
                f"colours: nothing can be found there; set channels ({', '.join(self.choices[:-1])} or {self.choices[-1]})"
            )
        if len(found) and only_noise(image, self.channels):
            left_out[DOUBTFUL] += len(found)


def refuse_empty(shown: Sequence[np.ndarray], train: CellDataset, what: str, key: str) -> None:
    """Refuse training images of which the network would be shown nothing; where they are some of many, say which.

    Parameters
    ----------
    shown : sequence of (C, h, w) float32
        The channels that are shown of each image of `train`; a constant one is all 0.
    what : str
        Which channels these are.
    key : str
        The setting that says which are shown.

    Raises
    ------
    UserError
        All of them are empty.
    """
    empty = [record.image_id for record, planes in zip(train.records, shown, strict=True) if not planes.any()]
    if empty and len(empty) == len(shown):
        raise UserError(
            f"{counted(len(shown), 'training image')}, none with anything in what the network is shown: {what}",
            f"show it what the images have ({key}), or convert them with that channel (convert.channels)",
        )
    if empty:
        LOG.info(
            f"empty in {what}: {len(empty)} of {counted(len(shown), 'training image')}, e.g. {empty[0]}; see {key}"
        )


def random_warp(
    cells: np.ndarray, rng: np.random.Generator, size_px: int, rotate: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a place, an angle, a flip and a zoom for a crop; seven in ten are placed near a cell.

    Parameters
    ----------
    cells : (H, W)
        Non-zero inside cells.
    rotate : bool
        If not, the angle is 0; all else is drawn as if it were not.

    Returns
    -------
    warp : (2, 3) float64
        Source (x, y, 1) -> crop (x, y), for cv2.warpAffine.
    turned : (2, 2) float64
        Its rotation and flip alone: what happens to a unit vector (x, y).
    """
    height, width = cells.shape
    angle, zoom, flip = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.25), 1 - 2 * rng.integers(2)
    inside = np.flatnonzero(cells) if rng.random() < 0.7 else np.zeros(0, int)
    if inside.size:
        y, x = np.divmod(inside[rng.integers(inside.size)], width)
        y, x = y + rng.uniform(-0.3, 0.3) * size_px, x + rng.uniform(-0.3, 0.3) * size_px
    else:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
    half = size_px / zoom / 2.8  # keep most of the crop inside the image
    y, x = (np.clip(v, min(half, n / 2), max(n - half, n / 2)) for v, n in ((y, height), (x, width)))
    cos, sin = (np.cos(angle), np.sin(angle)) if rotate else (1.0, 0.0)
    turned = np.array([[cos * flip, -sin], [sin * flip, cos]])
    shift = size_px / 2 - zoom * turned @ np.array([x, y])
    return np.column_stack([zoom * turned, shift]), turned


def vary(planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast, gamma and noise, per channel; an empty channel stays empty."""
    out = planes.copy()
    for plane in out:
        if plane.any():
            gamma, gain, noise = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.8, 1.25), rng.uniform(0, 0.06)
            plane[:] = np.sign(plane) * np.abs(plane) ** gamma * gain
            plane += noise * rng.standard_normal(plane.shape, np.float32) * (rng.random() < 0.5)
    return out


def vary_strongly(planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary gamma, gain, offset and noise more than `vary` does, and blur some channels and invert some, each by itself.

    Parameters
    ----------
    planes : (C, h, w) float32
        The 1st and 99th percentile of the image are 0 and 1. An empty channel stays empty.
    """
    import cv2

    out = planes.copy()
    for plane in out:
        if not plane.any():
            continue
        gamma, gain, offset = np.exp(rng.uniform(-0.7, 0.7)), np.exp(rng.uniform(-0.5, 0.5)), rng.uniform(-0.2, 0.2)
        sigma_px, noise = rng.uniform(0.5, 2.0), rng.uniform(0, 0.12)
        blurred, inverted, noisy = rng.random(3) < (0.25, 0.15, 0.5)
        if blurred:
            plane[:] = cv2.GaussianBlur(plane, (0, 0), sigma_px)
        if inverted:
            plane[:] = 1 - plane
        plane[:] = np.sign(plane) * np.abs(plane) ** gamma * gain + offset
        if noisy:
            plane += noise * rng.standard_normal(plane.shape, np.float32)
    return out


def bytes_for(shape: tuple[int, int], diameter_px: float, bytes_per_px: int, cell_px: float | None = CELL_PX) -> int:
    """Return about how much memory finding the cells of an image takes, in bytes.

    Parameters
    ----------
    bytes_per_px : int
        Of a pixel at network scale.
    cell_px : float or None
        Diameter of a cell there; None = images are not scaled.

    Examples
    --------
    >>> bytes_for((1000, 1000), 30.0, 110), bytes_for((1000, 1000), 5.0, 110)
    (110000000, 4010000000)
    """
    pixels, scale = shape[0] * shape[1], cell_px / diameter_px if cell_px else 1
    return round(pixels * (bytes_per_px * scale**2 + (scale != 1) * BYTES_PER_FILE_PX))


def ask_for_memory(
    train: CellDataset,
    shown: CellDataset,
    diameters_px: Sequence[float],
    kept: int,
    bytes_per_px: int,
    smallest_px: float | None = None,
    cell_px: float = CELL_PX,
) -> None:
    """Refuse a training whose images, brought to network scale, do not fit into the free memory; before any is read.

    Parameters
    ----------
    diameters_px : sequence of float
        That each training image is scaled by; a single one is that of all.
    kept : int
        Bytes that are kept of each pixel of a training image at network scale.
    bytes_per_px : int
        As for `bytes_for`: what finding the cells of one image takes on top.
    smallest_px : float, optional
        Smallest diameter that an image may be scaled by when its cells are found; else that of the training images.
    cell_px : float
        Diameter of a cell at network scale.
    """
    shapes = [[(r.height_px, r.width_px) for r in part.records] for part in (train, shown)]
    each_px = list(diameters_px) * (len(train) if len(diameters_px) == 1 else 1)
    total = sum(h * w * (cell_px / px) ** 2 for (h, w), px in zip(shapes[0], each_px, strict=True)) * kept
    least_px = min(smallest_px or np.inf, *each_px)
    total += max(bytes_for(shape, least_px, bytes_per_px, cell_px) for shape in shapes[0] + shapes[1])
    low, high = min(each_px), max(each_px)
    at = f"a diameter of {low:.3g} px" if low == high else f"diameters of {low:.3g} to {high:.3g} px"
    check_memory(Path(f"{len(train)} images at {at}"), round(total), "training on")


def check_max_detections(config: Any, *labelled: CellDataset) -> None:
    """Say how many cells the fullest labelled image has; refuse a ``max_detections`` that could not find them all.

    Parameters
    ----------
    config : TrainSettings
        Of a backend; one without ``max_detections``, or with none set, has no limit to be checked.

    Raises
    ------
    UserError
        An image has as many labelled cells as may be found, or more.
    """
    most = max((len(cells) for data in labelled for cells in data.instances), default=0)
    limit = getattr(config, "max_detections", None)
    LOG.info(f"the fullest labelled image has {most} cells; max_detections is {limit or 'not set'}")
    if limit is not None and most >= limit:
        raise UserError(f"maskrcnn.max_detections is {limit}, an image has {most} cells", "raise it, or leave it empty")
