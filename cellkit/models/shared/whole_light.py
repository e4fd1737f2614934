"""The light of a whole image, for a model that is shown a part of it: contrast is that of the whole, not of the part.

Models ask here for the percentiles of a channel. Within `in_light_of` the answer is the whole image's, whatever part is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

Counts = tuple[np.ndarray, np.ndarray]  # values that occur, rising, and how often each
Channels = tuple[Counts | None, ...]  # of red, green, blue; None = empty
_LIGHT: ContextVar[Channels | None] = ContextVar("light of the whole image", default=None)


@contextmanager
def in_light_of(light: Channels) -> Iterator[None]:
    """Let pictures that are shown to a model here be parts of an image of this light."""
    token = _LIGHT.set(light)
    try:
        yield
    finally:
        _LIGHT.reset(token)


def light_of_whole() -> Channels | None:
    """Return the light of the whole image that pictures are part of; None where they are whole."""
    return _LIGHT.get()


def varies(channel: int) -> bool:
    """Tell whether pictures are part of an image whose channel is not constant; False where they are whole."""
    light = _LIGHT.get()
    return light is not None and light[channel] is not None and len(light[channel][0]) > 1


def percentiles(plane: np.ndarray, channel: int, at: Sequence[float]) -> np.ndarray:
    """Return percentiles of a channel, as `numpy.percentile`: of the whole image that a picture is part of, else of the picture.

    Parameters
    ----------
    plane : (H, W) uint8
        The channel in the picture.
    channel : int
        0 = red, 1 = green, 2 = blue.

    Examples
    --------
    >>> part = np.array([[7, 9]], np.uint8)
    >>> with in_light_of((None, None, (np.array([0.0, 7.0, 9.0]), np.array([98, 1, 1])))):
    ...     percentiles(part, 2, (1, 100)).tolist()
    [0.0, 9.0]
    >>> percentiles(part, 2, (0, 100)).tolist()
    [7.0, 9.0]
    """
    light = _LIGHT.get()
    if light is None:
        return np.percentile(plane, tuple(at))
    return percentiles_of(light[channel], at)


def ends(plane: np.ndarray, channel: int) -> tuple[float, float]:
    """Return the darkest and the brightest value of a channel; see `percentiles`."""
    light = _LIGHT.get()
    if light is None:
        return float(plane.min()), float(plane.max())
    return (0.0, 0.0) if light[channel] is None else (float(light[channel][0][0]), float(light[channel][0][-1]))


def percentiles_of(counts: Counts | None, at: Sequence[float]) -> np.ndarray:
    """Return percentiles of values that occur so often, linear between ranks as numpy; 0 of an empty channel.

    Examples
    --------
    >>> percentiles_of((np.array([2.0, 4.0]), np.array([1, 1])), (25, 50)).tolist()
    [2.5, 3.0]
    """
    if counts is None:
        return np.zeros(len(at))
    values, below = counts[0], np.cumsum(counts[1])
    found = []
    for q in at:
        rank = (int(below[-1]) - 1) * q / 100
        low, high = values[np.searchsorted(below, [math.floor(rank), math.ceil(rank)], side="right")].tolist()
        found.append(low + (high - low) * (rank - math.floor(rank)))
    return np.array(found)


def contrast_of(counts: Counts | None, normalise: Sequence[float]) -> tuple[float, float] | None:
    """Return which values of a channel become 0 and 1, as `cellkit.models.shared.inputs.three_channels`; None: it is empty."""
    if counts is None:
        return None
    low, high = percentiles_of(counts, normalise).tolist()
    if high - low < 1:
        low, high = float(counts[0][0]), float(counts[0][-1])
    return (low, high) if high > low else None
