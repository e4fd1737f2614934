"""Is a picture worth using: focus, saturation, contrast, debris; measured per image, judged against the batch.

`measure` looks at one converted picture, `flag_records` at all of them: limits are learned from the batch by median and
median absolute deviation, within fixed bounds, and returned, so that what was set aside can be explained. An image
without cells is not at fault: it is measured as empty and keeps no flag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cellkit.records import ImageRecord

FLAGS = ("out_of_focus", "saturated", "low_contrast", "debris")
TILE_PX = 256
MAX_TILES = 16
COARSE = (0.015, 0.05)  # cycles per px: whole cells, of 20 to 67 px
FINE = (0.08, 0.2)  # edges and texture, of 5 to 12 px
NOISE_FROM = 0.42  # above this a microscope's optics pass nothing: what is left is noise
EMPTY_BELOW = 0.7  # structure: log10 of signal over noise power at the size of cells
LOW_CONTRAST_BELOW = 1.2
LEVELS_BELOW = 10
CLIPPED_ABOVE = 0.03
FOCUS_LIMITS = (-3.4, -3.0)  # always out of focus below the first, never above the second
DEBRIS_LIMITS = (2.7, 3.3)  # never debris below the first, always above the second
DEVIATIONS = 4.0
SMALLEST_BATCH = 8


def measure(image: np.ndarray, clipped_fraction: float | None = None) -> dict[str, float | bool]:
    """Measure one picture.

    Parameters
    ----------
    image : (H, W, 3) uint8
        Channels that are constant are left out.
    clipped_fraction : float, optional
        Share of pixels at the camera's limit in the original (`convert.Level`); default: the share of 255 here.

    Returns
    -------
    dict
        focus : log10 of fine over coarse detail, noise taken off both, of the sharper channel: about -2 to -3 in focus,
        below -3.4 out of focus; nan without structure.
        structure : log10 of signal over noise at the size of cells, of the clearer channel.
        empty : no structure at the size of cells.
        saturated_fraction : as `clipped_fraction`.
        contrast : grey levels between percentiles 1 and 99.5 of the better channel.
        debris : brightness over that of ordinary cells which two channels share; cells have below 2, dirt above 3; nan
        with one channel.
    """
    channels = [image[..., k] for k in range(3) if image[..., k].min() < image[..., k].max()]
    detail = [_detail(channel) for channel in channels]
    structure = max((s for _, s in detail), default=-math.inf)
    focus = max((f for f, s in detail if s >= EMPTY_BELOW), default=math.nan)
    shares = [np.bincount(channel.ravel(), minlength=256) / channel.size for channel in channels]
    contrast = max((_grey_levels(share) for share in shares), default=0)
    if clipped_fraction is None:
        clipped_fraction = max((share[255] for share in shares), default=0.0)
    return {
        "focus": focus,
        "structure": max(structure, -9.0),
        "empty": structure < EMPTY_BELOW,
        "saturated_fraction": float(clipped_fraction),
        "contrast": float(contrast),
        "debris": _shared_glare(channels) if structure >= EMPTY_BELOW else math.nan,
    }


def _grey_levels(share: np.ndarray) -> int:
    """Return the grey levels between percentiles 1 and 99.5 of a histogram that sums to 1."""
    low, high = np.searchsorted(np.cumsum(share), (0.01, 0.995))
    return int(high - low)


def _detail(channel: np.ndarray) -> tuple[float, float]:
    """Return (log10 fine over coarse, log10 coarse over noise) of one channel's power spectrum.

    The spectrum is averaged over Hann-windowed tiles (Welch's method); noise is white, its level read from the highest
    frequencies. Fine detail that the noise drowns counts as a twentieth of the noise: such a picture is not called
    blurred when its noise would hide sharp edges as well.
    """
    from scipy.fft import rfft2

    height, width = (min(TILE_PX, n) for n in channel.shape)
    window = (np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]).astype(np.float32)
    power = np.zeros((height, width // 2 + 1))
    for y, x in _tiles(channel.shape, (height, width)):
        tile = channel[y : y + height, x : x + width].astype(np.float32)
        tile = (tile - float((tile * window).sum() / window.sum())) * window
        power += np.abs(rfft2(tile)) ** 2
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    band = lambda low, high: power[(frequency >= low) & (frequency < high)]  # noqa: E731
    noise, coarse, fine = band(NOISE_FROM, 1.0), band(*COARSE), band(*FINE)
    if not (noise.size and coarse.size and fine.size):
        return math.nan, -math.inf  # a few pixels wide
    floor = max(float(np.median(noise)) / math.log(2), 1e-6 * float(power.mean()), 1e-12)  # median of an exponential
    coarse_power = max(float(coarse.mean()) - floor, 1e-3 * floor)
    fine_power = max(float(fine.mean()) - floor, 0.05 * floor)
    return math.log10(fine_power / coarse_power), math.log10(coarse_power / floor)


def _tiles(shape: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the corners of tiles that cover the picture; of a large one, `MAX_TILES` evenly spaced."""
    ys, xs = (np.linspace(0, n - m, math.ceil(n / m)).astype(int) for n, m in zip(shape, size, strict=True))
    corners = [(int(y), int(x)) for y in ys for x in xs]
    chosen = np.linspace(0, len(corners) - 1, min(MAX_TILES, len(corners)))
    return [corners[round(k)] for k in chosen]


def _shared_glare(channels: list[np.ndarray]) -> float:
    """Return how far the light that two channels share outshines ordinary cells; 0 where the channels differ.

    Stains differ: nuclei and cytoplasm shine in places of their own, so that the correlation of two channels over the
    lit pixels is about 0.5. Dirt glows in every channel at once (0.9), and several times brighter than cells do. The
    brightness counts in full from a correlation of 0.9 on, not at all below 0.6. A channel shown twice is one channel.
    """
    if len(channels) < 2:
        return math.nan
    scaled = [_over_typical(channel) for channel in channels]
    lit = np.logical_or.reduce([mask for _, mask in scaled])
    values = np.stack([relative[lit] for relative, _ in scaled])
    if not values.std(axis=1).all():
        return 0.0
    alike = float(np.corrcoef(values)[np.triu_indices(len(channels), 1)].max())
    if alike > 0.999:
        return math.nan
    relatives = [relative for relative, _ in scaled]
    shared = np.minimum(*relatives) if len(relatives) == 2 else np.median(relatives, axis=0)  # bright in two or more
    return float(np.quantile(shared, 0.998)) * min(max((alike - 0.6) / 0.3, 0.0), 1.0)


def _over_typical(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return brightness over that of the median lit pixel, and which pixels are lit (Otsu, on the logarithm)."""
    import cv2

    scale = min(1.0, 512 / max(channel.shape))
    size = [max(1, round(n * scale)) for n in channel.shape[::-1]]
    small = cv2.resize(channel, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    smooth = cv2.GaussianBlur(small, (0, 0), 2.0)
    bright = np.maximum(smooth - np.percentile(smooth, 10), 2.0)
    code = np.rint(np.log(bright / 2) * (255 / math.log(128))).clip(0, 255).astype(np.uint8)
    limit, _ = cv2.threshold(code, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    lit = code > min(limit, int(code.max()) - 1)
    return bright / np.median(bright[lit]), lit


def flag_records(measurements: Sequence[dict], deviations: float = DEVIATIONS) -> tuple[list[str], dict[str, float]]:
    """Judge each image against its batch.

    Parameters
    ----------
    measurements : sequence of dict
        As `measure` returns them.
    deviations : float
        How many (scaled median absolute) deviations from the batch's median count as odd.

    Returns
    -------
    flags : list of str
        Out of `FLAGS`, joined by ";"; "" for a good image and for one without cells.
    thresholds : dict
        focus_min, debris_max (learned within `FOCUS_LIMITS` and `DEBRIS_LIMITS`; their middle for a batch of fewer than
        8 images), saturated_fraction_max, structure_min, contrast_min, and batch, the number of images learned from.

    Examples
    --------
    >>> good = {"focus": -2.4, "structure": 3.0, "empty": False, "saturated_fraction": 0, "contrast": 240, "debris": 1}
    >>> flags, thresholds = flag_records([good, good | {"focus": -4.2}, good | {"saturated_fraction": 0.3}])
    >>> flags, thresholds["focus_min"]
    (['', 'out_of_focus', 'saturated'], -3.2)
    """
    focus_min, learned = _limit([m["focus"] for m in measurements], -deviations, FOCUS_LIMITS)
    debris_max, _ = _limit([m["debris"] for m in measurements], deviations, DEBRIS_LIMITS)
    thresholds = {
        "focus_min": focus_min,
        "debris_max": debris_max,
        "saturated_fraction_max": CLIPPED_ABOVE,
        "structure_min": LOW_CONTRAST_BELOW,
        "contrast_min": float(LEVELS_BELOW),
        "batch": float(learned),
    }
    return [_flags(m, thresholds) for m in measurements], thresholds


def _limit(values: Sequence[float], deviations: float, bounds: tuple[float, float]) -> tuple[float, int]:
    """Return median + deviations * 1.4826 * MAD of the finite values, within bounds, and how many there are."""
    known = np.array([v for v in values if math.isfinite(v)])
    if len(known) < SMALLEST_BATCH:
        return round(sum(bounds) / 2, 3), len(known)
    middle = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - middle)))
    return round(float(np.clip(middle + deviations * spread, *bounds)), 3), len(known)


def _flags(m: dict, limits: dict[str, float]) -> str:
    dim = not m["empty"] and m["structure"] < limits["structure_min"]
    found = {
        "out_of_focus": m["focus"] < limits["focus_min"],
        "saturated": m["saturated_fraction"] > limits["saturated_fraction_max"],
        "low_contrast": dim or m["contrast"] < limits["contrast_min"],
        "debris": m["debris"] > limits["debris_max"],
    }
    return ";".join(name for name in FLAGS if found[name])


def set_aside(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Take the flagged images out of their splits: split becomes "", everything else stays.

    Examples
    --------
    >>> good = ImageRecord("a", "a.png", 1, 1, split="val")
    >>> [record.split for record in set_aside([good, replace(good, flags="debris")])]
    ['val', '']
    """
    return [replace(record, split="") if record.flags else record for record in records]
