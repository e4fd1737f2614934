"""Grey values: planes of any type to 8 bits, by percentiles of their own pixels, or of the pixels of many planes together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cellkit.errors import UserError

Limits = Mapping[str, tuple[float, float]]  # colour -> the values that become 0 and 255


def to_8bit(
    plane: np.ndarray,
    percentiles: tuple[float, float] | None,
    where: str = "the plane",
    limits: tuple[float, float] | None = None,
) -> tuple:
    """Scale one plane to 0..255 between two percentiles of its own pixels, or between given values.

    Parameters
    ----------
    plane : (H, W) integer, float or bool
    percentiles : (low, high) in [0, 100], or None
        None keeps uint8 values as they are.
    where : str
        What the error calls the plane.
    limits : (low, high), optional
        The values that become 0 and 255, in place of the plane's own percentiles.

    Returns
    -------
    image : (H, W) uint8
        A constant plane becomes 0 (by its own percentiles). Where both limits meet in one value, larger values become 255.
    low, high : float
        The values that became 0 and 255.
    clipped_fraction : float
        Share of pixels that hold the largest value; 0 for a constant plane.

    Raises
    ------
    UserError
        NaN or infinite values, complex numbers, or None for a plane that is not uint8.

    Examples
    --------
    >>> to_8bit(np.array([[0, 20_000], [40_000, 65_535]], np.uint16), (0, 100))[0]
    array([[  0,  78],
           [156, 255]], dtype=uint8)
    """
    plane = _measurable(plane, where)
    if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UserError(
            f"percentiles are {list(percentiles)}", "give two rising numbers from 0 to 100, e.g. [0.3, 99.8]"
        )
    if percentiles is None and plane.dtype != np.uint8:
        raise UserError(
            f"{where} is {plane.dtype} and percentiles is null",
            "only 8-bit values can be kept as they are: give percentiles",
        )
    if plane.dtype in (np.uint8, np.uint16):
        return _to_8bit_by_table(plane, percentiles, limits)
    values = plane.astype(np.float64)
    low, high = limits or (float(value) for value in np.percentile(values, percentiles))
    top = plane.max()
    clipped = float(np.mean(plane == top)) if top > plane.min() else 0.0
    return _ramp(values, low, high), low, high, clipped


def _measurable(plane: np.ndarray, where: str) -> np.ndarray:
    """Return the plane, bool as 0 and 1; refuse what is no number, NaN and infinite values."""
    if plane.dtype == bool:
        plane = plane.astype(np.uint8)
    if plane.dtype.kind not in "iuf" or plane.size == 0:
        raise UserError(
            f"{where} holds {plane.dtype} of shape {plane.shape}", "store the image as integers or real numbers"
        )
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        bad = int(np.count_nonzero(~np.isfinite(plane)))
        raise UserError(f"{where} holds {bad} pixels that are NaN or infinite", "replace them by a number first")
    return plane


def _to_8bit_by_table(plane: np.ndarray, percentiles, limits=None) -> tuple[np.ndarray, float, float, float]:
    """As `to_8bit`, for uint8 and uint16: percentiles equal to numpy's, values from a table."""
    top = int(plane.max())
    at_top = np.count_nonzero(plane == top)
    clipped = float(at_top / plane.size) if at_top < plane.size else 0.0
    if percentiles is None:
        return plane.copy(), 0.0, 255.0, clipped
    if limits is None:
        limits = tuple(percentiles_of(plane, percentiles))
    return _by_table(_table(*limits, plane.dtype), plane), *limits, clipped


def percentiles_of(plane: np.ndarray, percentiles: tuple[float, float]) -> list[float]:
    """Return two percentiles of a plane of uint8 or uint16, linear between ranks as numpy: exact, without sorting it.

    A sample tells between which values both lie for certain enough; only the pixels outside are sorted. Where the sample
    misled, or they are many, all pixels are counted.

    Examples
    --------
    >>> percentiles_of(np.arange(1001, dtype=np.uint16), (0.25, 99.9))
    [2.5, 999.0]
    """
    values = plane.reshape(-1)
    ranks = [(values.size - 1) * q / 100 for q in percentiles]
    sample = np.sort(values[:: max(1, values.size // 4096)])
    first, last = (len(sample) * q / 100 for q in percentiles)
    margins = [4 * math.sqrt(n * (1 - n / len(sample))) + 4 for n in (first, last)]
    first, last = math.ceil(first + margins[0]), math.floor(last - margins[1])
    if not 0 <= first < last < len(sample) or first + len(sample) - last > len(sample) // 4:
        return Light.of(plane).percentiles(percentiles)
    low, high = sample[first], sample[last]
    outer = np.sort(values[(values <= low) | (values >= high)])
    below = int(np.searchsorted(outer, low, side="right"))
    skipped = values.size - len(outer)
    if low >= high or below <= math.ceil(ranks[0]) or math.floor(ranks[1]) < below + skipped:
        return Light.of(plane).percentiles(percentiles)
    pairs = [
        (outer[math.floor(rank) - gone], outer[math.ceil(rank) - gone])
        for rank, gone in zip(ranks, (0, skipped), strict=True)
    ]
    return [
        float(a) + (float(b) - float(a)) * (rank - math.floor(rank)) for (a, b), rank in zip(pairs, ranks, strict=True)
    ]


def _table(low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """Return what each value of uint8 or uint16 becomes: `_ramp` of all of them, computed only where it rises."""
    table = np.zeros(np.iinfo(dtype).max + 1, np.uint8)
    first, last = (min(max(value, -1), len(table)) for value in (math.floor(low), math.ceil(high)))
    last = max(last, first + 1)
    table[last:] = 255
    table[first + 1 : last] = _ramp(np.arange(first + 1, last, dtype=np.float64), low, high)
    return table


def _by_table(table: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Return ``table[plane]``; OpenCV reads tables of 8 bits, from version 5 also of 16, twice as fast as numpy."""
    import cv2

    if plane.dtype == np.uint8 or int(cv2.__version__.split(".")[0]) >= 5:
        return cv2.LUT(plane, table)
    return np.take(table, plane)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return uint8: 0 up to `low`, 255 from `high` on, linear between; a step where both are equal."""
    if high <= low:
        return (values > low).astype(np.uint8) * np.uint8(255)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


MOST_VALUES = 2**16


@dataclass(frozen=True, eq=False)
class Light:
    """How often each value occurs in the pixels of one colour: rising `values` (N,) float64, `counts` (N,) int64.

    Exact for integers of up to 16 bits; of others at most `MOST_VALUES` values are kept, each standing for those below it
    back to the one before.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, plane: np.ndarray, where: str = "the plane") -> Light:
        """Count the values of one plane; errors as in `to_8bit`."""
        plane = _measurable(plane, where)
        if plane.dtype in (np.uint8, np.uint16):
            counts = np.bincount(plane.ravel())
            values = np.flatnonzero(counts)
            return cls(values.astype(np.float64), counts[values])
        values, counts = np.unique(plane.astype(np.float64), return_counts=True)
        return cls(values, counts)._reduced()

    @classmethod
    def sum(cls, parts: Iterable[Light]) -> Light:
        """Put the pixels of several planes together."""
        parts = list(parts)
        values, where = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([part.counts for part in parts])).astype(np.int64)
        return cls(values, counts)._reduced()

    def _reduced(self) -> Light:
        if len(self.values) <= MOST_VALUES:
            return self
        cumulated = np.cumsum(self.counts)
        ends = np.flatnonzero(np.diff(cumulated * (MOST_VALUES - 1) // cumulated[-1], append=MOST_VALUES))
        return Light(self.values[ends], np.diff(cumulated[ends], prepend=0))

    def percentiles(self, wanted: Iterable[float]) -> list[float]:
        """Return percentiles of the pixels, linear between ranks as numpy.

        Examples
        --------
        >>> Light.of(np.array([[1, 2], [3, 10]], np.uint16)).percentiles((0, 50))
        [1.0, 2.5]
        """
        cumulated = np.cumsum(self.counts)
        found = []
        for q in wanted:
            rank = (int(cumulated[-1]) - 1) * q / 100
            below, above = self.values[
                np.searchsorted(cumulated, [math.floor(rank), math.ceil(rank)], side="right")
            ].tolist()
            found.append(below + (above - below) * (rank - math.floor(rank)))
        return found


def sum_light(frames: Iterable[Mapping[str, Light]]) -> dict[str, Light]:
    """Put the light of many frames together, colour by colour."""
    frames = list(frames)
    colours = sorted({colour for frame in frames for colour in frame})
    return {colour: Light.sum(frame[colour] for frame in frames if colour in frame) for colour in colours}
