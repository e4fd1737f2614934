"""Brightness, spots and fibres of each cell, measured against the cell itself: no network, and little that the exposure changes.

What a microscopist tells lines apart by: dark nucleoli or bright chromocentres, smooth or grainy cytoplasm, stress fibres. Spots
are scale-normalised Laplacians (Lindeberg, "Feature detection with automatic scale selection", 1998), fibres the structure tensor
of the logarithm of the brightness (Bigun, Granlund, "Optimal orientation detection of linear symmetry", 1987).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.models.cell_features import centres_at, tiles_of
from cellkit.models.shared.inputs import labels_at, network_shape, resized
from cellkit.models.shared.whole_light import light_of_whole, percentiles_of, varies

CELL_PX = 40.0  # width of a cell where it is measured: spots and fibres are finer than outlines
SIGMAS_PX = (1.0, 2.0, 4.0)
RINGS_PX = (8, 32)  # around a cell: where it ends, and its surroundings
LEVELS = (5, 25, 50, 75, 95)  # percentiles of brightness
ENDS = (2, 50, 98)  # percentiles of spots: dark ones, none, bright ones
DARK = 0.02  # brightness (white = 1) below which logarithms tell noise
LEAST_LIGHT = 0.005  # brightness of a cell over the image's darkest, at least
MAPS = 1 + 5 * len(SIGMAS_PX)
OF_REGION = len(LEVELS) + 1 + len(ENDS) * len(SIGMAS_PX) + 3 * len(SIGMAS_PX)
OF_CHANNEL = (2 + len(RINGS_PX)) * OF_REGION + 5
FEATURES = 3 * OF_CHANNEL
ALONE = np.concatenate(
    [k * OF_CHANNEL + np.arange(2 * OF_REGION) for k in range(3)]
)  # of the cell itself and its brighter part


def texture_of_cells(image: np.ndarray, cells: Instances, diameter_px: float) -> np.ndarray:
    """Describe brightness, spots and fibres of each cell, of its brighter part (a nucleus) and of two rings around it.

    Parameters
    ----------
    image : (H, W, 3) uint8
    cells : Instances
    diameter_px : float
        Typical diameter of cells (px of the image).

    Returns
    -------
    (N, FEATURES) float32
        A third for each channel; 0 for one that is constant, or the same as an earlier one.
    """
    shape = network_shape(image.shape[:2], diameter_px, 8, CELL_PX)
    seen = resized(image.transpose(2, 0, 1).astype(np.float32) / 255, shape, diameter_px > CELL_PX)
    labels, centres = np.maximum(labels_at(cells, shape), 0), centres_at(cells, shape)
    told, darkest = _that_tell(seen), _darkest(seen)
    found = np.zeros((len(cells), 3, OF_CHANNEL), np.float32)
    for rows, (top, bottom, left, right) in tiles_of(centres, shape) if told else ():
        part = slice(top, bottom), slice(left, right)
        maps = np.stack([_maps(np.ascontiguousarray(seen[k][part])) for k in told])
        for row, masks in zip(rows, _regions(labels[part], rows, centres[rows] - (top, left)), strict=True):
            found[row, told] = _of_cell(maps, *masks, darkest[told])
    return found.reshape(len(cells), FEATURES)


def _darkest(planes: np.ndarray) -> np.ndarray:
    """Return the 1st percentile of each of planes (3, h, w), or of the whole image that they are part of."""
    light = light_of_whole()
    if light is None:
        return np.percentile(planes, 1, axis=(1, 2))
    return np.concatenate([percentiles_of(one, (1,)) for one in light]) / 255


def _that_tell(planes: np.ndarray) -> list[int]:
    """Return which of planes (C, h, w) are neither constant nor the same as an earlier one."""
    told: list[int] = []
    for k, plane in enumerate(planes):
        if (np.ptp(plane) > 0 or varies(k)) and not any(np.array_equal(plane, planes[j]) for j in told):
            told.append(k)
    return told


def _maps(plane: np.ndarray) -> np.ndarray:
    """Return, of a plane (h, w), itself, its spots, and its fibres at each scale, (MAPS, h, w).

    Of fibres there are four maps a scale: the energy of the gradient, the two parts of its direction, and how much of it around a
    pixel lies in one direction.
    """
    import cv2

    spots, fibres = [], []
    logarithm = np.log(plane + DARK)
    for sigma in SIGMAS_PX:
        spots.append(-(sigma**2) * cv2.Laplacian(cv2.GaussianBlur(plane, (0, 0), sigma), cv2.CV_32F))
        smooth = cv2.GaussianBlur(logarithm, (0, 0), sigma)
        right, down = (sigma * cv2.Sobel(smooth, cv2.CV_32F, x, 1 - x, scale=1 / 8) for x in (1, 0))
        tensor = right**2 + down**2, right**2 - down**2, 2 * right * down
        energy, along, across = (cv2.GaussianBlur(one, (0, 0), 2 * sigma) for one in tensor)
        fibres += [*tensor, np.hypot(along, across) / (energy + 1e-6)]
    return np.stack([plane, *spots, *fibres])


def _regions(
    labels: np.ndarray, rows: np.ndarray, middles: np.ndarray
) -> Iterator[tuple[tuple[slice, slice], list[np.ndarray]]]:
    """Yield, for each cell, a window of a tile and the masks of the cell and of its rings in it, the narrow ring first.

    Of a cell that has no pixel here, its middle (y, x) stands for it.
    """
    import cv2
    from scipy import ndimage

    boxes = ndimage.find_objects(labels)
    for row, middle in zip(rows.tolist(), middles.tolist(), strict=True):
        box = boxes[row] if row < len(boxes) else None
        hidden = box is None
        box = tuple(slice(at, at + 1) for at in middle) if hidden else box
        top, left = (max(0, side.start - max(RINGS_PX)) for side in box)
        window = slice(top, box[0].stop + max(RINGS_PX)), slice(left, box[1].stop + max(RINGS_PX))
        mask = labels[window] == row + 1
        if hidden:
            mask[middle[0] - top, middle[1] - left] = True
        away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        yield window, [mask, *((away <= px) & ~mask for px in RINGS_PX)]


def _of_cell(
    maps: np.ndarray, window: tuple[slice, slice], masks: Sequence[np.ndarray], darkest: np.ndarray
) -> np.ndarray:
    """Return what is told of a cell in each channel, (C, OF_CHANNEL); which part of it is brighter, the last one says."""
    own = maps[:, :, *window]
    cell, *rings = masks
    middle = _percentiles(np.sort(own[-1, 0][cell])[None], (5, 95)).mean()
    regions = [cell, cell & (own[-1, 0] >= middle), *(ring if ring.any() else cell for ring in rings)]
    places = [np.flatnonzero(region) for region in regions]
    flat = own.reshape(*own.shape[:2], -1)
    shares = np.stack([region.ravel() / np.float32(len(at)) for region, at in zip(regions, places, strict=True)], 1)
    means = flat @ shares  # (C, MAPS, regions)
    told = []
    for channel, mean, dark in zip(flat, means, darkest, strict=True):
        numbers, light = [], []
        for at, (level, *others) in zip(places, mean.T, strict=True):
            values = channel[: 1 + len(SIGMAS_PX)].take(at, axis=1)
            base, spread = max(float(level) - dark, LEAST_LIGHT), values[0].std()
            values.sort(axis=1)
            numbers += [(_percentiles(values[:1], LEVELS)[0] - level) / base, [spread / base]]
            numbers.append(_percentiles(values[1:], ENDS).T.ravel() / base)
            energy, along, across, local = np.reshape(others[len(SIGMAS_PX) :], (-1, 4)).T
            numbers.append(
                np.stack([np.log(energy + 1e-5), np.hypot(along, across) / (energy + 1e-6), local], 1).ravel()
            )
            light.append(np.log(base))
        whole, bright, near, far = light
        numbers.append([whole, bright - whole, whole - near, whole - far, near - far])
        told.append(np.concatenate(numbers))
    return np.stack(told)


def _percentiles(values: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """Return percentiles of rows of sorted values (M, n), between two of them by their distance, as numpy's: (M, P) float64.

    Examples
    --------
    >>> _percentiles(np.array([[0.0, 1.0, 5.0]]), (0, 25, 100))
    array([[0. , 0.5, 5. ]])
    """
    place = np.asarray(wanted) / 100 * (values.shape[1] - 1)
    low = place.astype(int)
    part = place - low
    return values[:, low] * (1 - part) + values[:, np.minimum(low + 1, values.shape[1] - 1)] * part
