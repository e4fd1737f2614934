"""Is a picture worth using: focus, saturation, contrast, even light, debris, copies; measured alone, judged in a batch.

`measure` looks at one converted picture, `flag_records` at all of them: limits are learned from the training images by
median and median absolute deviation, within fixed bounds, and returned, so that what was flagged can be explained
(`explain`). An image without cells is not at fault: it is measured as empty and keeps no flag. `find_copies` finds pictures
of one and the same field, whatever they are called, and `set_copies_aside` keeps them from standing on two sides of a split.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.errors import UserError
from cellkit.records import ImageRecord

FLAGS = ("out_of_focus", "saturated", "low_contrast", "uneven_light", "debris")
COPY = "copy"  # set by `set_copies_aside`, not by `flag_records`
TILE_PX = 256
MAX_TILES = 2  # per channel; of a picture that needs more, the busiest
NOISE_FROM = 0.42  # cycles per px; above this a microscope's optics pass nothing: what is left is noise
EDGES = np.geomspace(0.02, NOISE_FROM, 17)  # bands of detail, from 50 px down to 2.4 px a cycle
COARSE, FINE = slice(0, 5), slice(7, 12)  # of the bands: whole cells, of 19 to 50 px; edges and texture, of 5 to 13 px
MOST_SAMPLES = (1024,) * 16 + (4096,)  # of the 16 bands and the noise
FADING = 2.0  # power of the frequency with which a sharp picture's detail fades
EMPTY_BELOW = 0.7  # structure: log10 of signal over noise power
LEVELS_BELOW = 10
CLIPPED_ABOVE = 0.03
BLUR_LIMITS = (2.3, 3.0)  # px; never out of focus below the first, always above the second
STRUCTURE_LIMITS = (EMPTY_BELOW, 1.2)  # always too faint below the first, never above the second
UNEVEN_LIMITS = (0.2, 0.3)  # never uneven below the first, always above the second
DEBRIS_LIMITS = (2.7, 3.3)  # never debris below the first, always above the second
DEVIATIONS = 4.0
SMALLEST_BATCH = 8
MOSTLY_GROUND = 0.7  # share of lit pixels below which the ground tells about the light
ZONES = 8  # the ground is followed over 8 x 8 zones
SHARP_EDGE = (
    0.15  # of what is lit: an object's brightness steps by more of its contrast within 4 px; that of light does not
)
LEAST_ZONES = 16  # of the 64 that must show the ground
LEAST_PIECES, PIECE_PX = 20, 3  # lit pieces that tell about the light, of a picture about 128 px wide
CHI_MEDIAN = {n: v for n, v in enumerate((0.4549, 1.3863, 2.3660, 3.3567), 1)}  # of n squared normal numbers summed


# ---- one picture ---------------------------------------------------------------------------------------------------
def measure(image: np.ndarray, clipped_fraction: float | None = None) -> dict[str, float | bool | str]:
    """Measure one picture; about 4 ms for 512 x 512 px of two channels.

    Parameters
    ----------
    image : (H, W, 3) uint8
        Channels that are constant are left out.
    clipped_fraction : float, optional
        Share of pixels at the camera's limit in the original (`convert.Level`); default: the share of 255 here.

    Returns
    -------
    dict
        blur_px : sigma of the Gaussian that explains how fast detail fades, of the sharper channel (see `_detail`): 0 to
        2 in focus, above 3 out of focus; nan without structure.
        structure : log10 of signal over noise, of the clearer channel, whether the signal is whole cells or fine texture.
        empty : no structure.
        saturated_fraction : as `clipped_fraction`.
        contrast : grey levels between percentiles 1 and 99.5 of the better channel.
        uneven : share of the light lost between the brightest and the darkest place (see `_unevenness`), of the worst
        channel; nan where too little is lit to tell.
        debris : brightness over that of ordinary cells which two channels share; cells have below 2, dirt above 3; nan
        with one channel.
        content : sha256 of size and pixels, 64 hexadecimal digits; equal for equal pictures only.
        fingerprint : 64 hexadecimal digits that hardly change with brightness, noise or a shift (see `_fingerprint`).
    """
    import cv2

    image = np.ascontiguousarray(image)
    every = [cv2.extractChannel(image, k) for k in range(3)]
    used = [k for k, (low, high, *_) in enumerate(map(cv2.minMaxLoc, every)) if low < high]
    channels = [every[k] for k in used]
    detail = [_detail(channel) for channel in channels]
    structure = max((s for _, s in detail), default=-math.inf)
    blurs = [blur for blur, s in detail if s >= EMPTY_BELOW and math.isfinite(blur)]
    levels = [_grey_levels(channel) for channel in channels]
    if clipped_fraction is None:
        clipped_fraction = max((np.count_nonzero(channel == 255) / channel.size for channel in channels), default=0.0)
    cells = structure >= EMPTY_BELOW
    small = [_shrunk(channel) for channel in channels]
    lit = [_over_typical(one) for one in small] if cells else []
    return {
        "blur_px": min(blurs, default=math.nan),
        "structure": max(structure, -9.0),
        "empty": not cells,
        "saturated_fraction": float(clipped_fraction),
        "contrast": float(max(levels, default=0)),
        "uneven": _unevenness(small, lit, levels) if cells else math.nan,
        "debris": _shared_glare(lit) if cells else math.nan,
        "content": _content(every, used),
        "fingerprint": _fingerprint(small),
    }


def _content(channels: list[np.ndarray], used: list[int]) -> str:
    """Return the sha256 of size and pixels; a channel that is constant stands for itself with one pixel."""
    digest = hashlib.sha256(repr((channels[0].shape, used)).encode())
    for k, channel in enumerate(channels):
        digest.update(channel if k in used else channel[:1, :1].copy())
    return digest.hexdigest()


def _grey_levels(channel: np.ndarray) -> int:
    """Return the grey levels between percentiles 1 and 99.5; of a picture of over 256 rows, of every second or so."""
    import cv2

    some = channel[:: (len(channel) - 1) // 256 + 1]
    share = cv2.calcHist([some], [0], None, [256], [0, 256]).ravel() / some.size
    low, high = np.searchsorted(np.cumsum(share), (0.01, 0.995))
    return int(high - low)


def _detail(channel: np.ndarray) -> tuple[float, float]:
    """Return (blur in px, log10 of signal over noise power) of one channel.

    The power spectrum is averaged over Hann-windowed tiles (Welch's method); noise is white, its level read from the
    highest frequencies and taken off. In a sharp picture of things with edges, power falls with the square of the
    frequency f along a line; blur by a Gaussian of sigma s multiplies it by exp(-(2 pi f s)^2). So a straight line through
    log(power f^2) over (2 pi f)^2 falls with slope s^2, whatever the size, number and brightness of the cells. Only bands
    that stand out of the noise count, up to the first that does not: noise hides detail, and that is not blur.
    """
    import cv2

    height, width = (min(TILE_PX, n) for n in channel.shape)
    window, order, begins, noise = _bands(height, width)
    if begins is None:
        return math.nan, -math.inf  # a few pixels wide
    tiles = _tiles(channel, (height, width))
    power = np.zeros((height, width), np.float32)
    for y, x in tiles:
        tile = cv2.multiply(channel[y : y + height, x : x + width], window, dtype=cv2.CV_32F)
        tile = cv2.scaleAdd(window, -cv2.sumElems(tile)[0] / cv2.sumElems(window)[0], tile)
        cv2.accumulateSquare(cv2.dft(tile), power)
    flat = power.ravel()
    floor = _middle(flat[noise]) * len(tiles) / CHI_MEDIAN[len(tiles)]
    floor = max(floor, 1e-6 * float(power.mean()), 1e-12)
    counts = np.diff(np.r_[begins, len(order)])
    seen = np.add.reduceat(flat[order], begins) / counts
    signal = seen - floor
    structure = max(float(signal[COARSE].mean()), float(signal[FINE].mean()), 1e-9 * floor) / floor
    error = seen * np.sqrt(2 / (counts * len(tiles))) / np.maximum(signal, 1e-12)
    return _fading(signal, error, (signal > 0.3 * floor) & (error < 0.5)), math.log10(structure)


def _fading(signal: np.ndarray, error: np.ndarray, clear: np.ndarray) -> float:
    """Return the sigma (px) of a weighted line through the first unbroken row of clear bands; nan with fewer than 3."""
    first = int(np.argmax(clear))
    last = first + int(np.argmin(np.r_[clear[first:], False]))
    if last - first < 3:
        return math.nan
    middle = np.sqrt(EDGES[1:] * EDGES[:-1])[first:last]
    x = (2 * math.pi * middle) ** 2
    y = np.log(signal[first:last]) + FADING * np.log(middle)
    weight = 1 / (error[first:last] ** 2 + 0.09)
    x, y = x - np.average(x, weights=weight), y - np.average(y, weights=weight)
    return math.sqrt(max(0.0, -float((weight * x * y).sum() / (weight * x * x).sum())))


@functools.lru_cache(16)
def _bands(height: int, width: int) -> tuple:
    """Return the Hann window of a tile, and where its packed spectrum holds the bands and the noise.

    Returns
    -------
    window : (height, width) float32
    order, begins : places of all bands one after the other, and where each band begins; None where one would be empty
    noise : places of noise

    `cv2.dft` packs real and imaginary parts side by side; the first column, and the last of an even width, from top to
    bottom. At most `MOST_SAMPLES` of each are looked at.
    """
    window = (np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]).astype(np.float32)
    down, packed = np.abs(np.fft.fftfreq(height)), (np.arange(height) + 1) // 2 / height
    across = (np.arange(width) + 1) // 2 / width
    frequency = np.hypot(down[:, None], across)
    for column in {0, width - 1} if width % 2 == 0 else {0}:
        frequency[:, column] = np.hypot(packed, across[column])
    places = [
        np.flatnonzero((frequency >= low) & (frequency < high)) for low, high in itertools.pairwise((*EDGES, 1.0))
    ]
    if not all(map(len, places)):
        return window, None, None, None
    *bands, noise = (place[:: len(place) // most + 1] for place, most in zip(places, MOST_SAMPLES, strict=True))
    return window, np.concatenate(bands), np.cumsum([0, *map(len, bands[:-1])]), noise


def _tiles(channel: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the corners of tiles that cover the picture; of a large one the `MAX_TILES` with the widest spread."""
    ys, xs = (np.linspace(0, n - m, math.ceil(n / m)).astype(int) for n, m in zip(channel.shape, size, strict=True))
    corners = [(int(y), int(x)) for y in ys for x in xs]
    if len(corners) <= MAX_TILES:
        return corners
    import cv2

    thin, (high, wide) = np.ascontiguousarray(channel[::8, ::8]), (math.ceil(n / 8) for n in size)
    parts = [thin[y // 8 : y // 8 + high, x // 8 : x // 8 + wide] for y, x in corners]
    spread = [-float(cv2.meanStdDev(part)[1][0, 0]) for part in parts]
    return [corners[k] for k in sorted(np.argsort(spread, kind="stable")[:MAX_TILES])]


def _shrunk(channel: np.ndarray) -> np.ndarray:
    """Return the channel with a longer side of about 256 px, at most four times smaller: (h, w) uint8."""
    import cv2

    scale = min(1.0, max(0.25, 256 / max(channel.shape)))
    size = [max(1, round(n * scale)) for n in channel.shape[::-1]]
    return cv2.resize(channel, size, interpolation=cv2.INTER_AREA)


def _middle(values: np.ndarray, share: float = 0.5) -> float:
    """Return the value below which a share of the values lies; of an even number, the upper median."""
    place = min(int(share * len(values)), len(values) - 1)
    return float(np.partition(values, place)[place])


def _over_typical(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return brightness over that of the median lit pixel, and which pixels are lit (Otsu, on the logarithm)."""
    import cv2

    smooth = cv2.GaussianBlur(small.astype(np.float32), (0, 0), 1.0)
    dark = _middle(smooth.ravel()[:: smooth.size // 4096 + 1], 0.1)
    bright = np.maximum(smooth - dark, 2.0)
    code = np.rint(cv2.log(bright / 2) * (255 / math.log(128))).clip(0, 255).astype(np.uint8)
    limit, _ = cv2.threshold(code, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    lit = code > min(limit, int(code.max()) - 1)
    typical = bright[lit]
    return bright / _middle(typical[:: len(typical) // 4096 + 1]), lit


def _shared_glare(scaled: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return how far the light that two channels share outshines ordinary cells; 0 where the channels differ.

    Stains differ: nuclei and cytoplasm shine in places of their own, so that the correlation of two channels over the
    lit pixels is about 0.5. Dirt glows in every channel at once (0.9), and several times brighter than cells do. The
    brightness counts in full from a correlation of 0.9 on, not at all below 0.6. A channel shown twice is one channel.
    """
    if len(scaled) < 2:
        return math.nan
    scaled = [(relative[::2], mask[::2]) for relative, mask in scaled]
    lit = np.logical_or.reduce([mask for _, mask in scaled])
    values = np.stack([relative[lit] for relative, _ in scaled])
    if not values.std(axis=1).all():
        return 0.0
    alike = float(np.corrcoef(values)[np.triu_indices(len(scaled), 1)].max())
    if alike > 0.999:
        return math.nan
    relatives = [relative for relative, _ in scaled]
    shared = np.minimum(*relatives) if len(relatives) == 2 else np.median(relatives, axis=0)  # bright in two or more
    factor = min(max((alike - 0.6) / 0.3, 0.0), 1.0)
    return factor * float(np.quantile(shared, 0.998)) if factor else 0.0


# ---- even light ----------------------------------------------------------------------------------------------------
def _unevenness(small: list, lit: list, levels: list[int]) -> float:
    """Return the share of the light lost between the brightest and the darkest place, times how sure that is.

    The light is a bowl (a plane and a term in x^2 + y^2: a lamp that is off centre), fitted to the brightness of cells,
    and, where little is lit, to the ground, which rises and falls as a whole. How sure: the share of the variance which
    the bowl explains, at its lower limit of confidence: bright cells on one side of a few are chance. One lamp shines on
    all channels: the least of the channels counts, since cells of a kind that sit on one side are bright in one stain.
    The worse of cells and ground is returned; nan when unknown.
    """
    cells, ground = [math.nan], [math.nan]
    for one, (relative, mask), used in zip(small, lit, levels, strict=True):
        if min(one.shape) >= 4 * ZONES:
            cells.append(_lost_over_cells(relative, mask))
            ground.append(
                _lost_in_ground(one, mask, used) if np.count_nonzero(mask) < MOSTLY_GROUND * mask.size else math.nan
            )
    return float(np.fmax(functools.reduce(np.fmin, cells), functools.reduce(np.fmin, ground)))


def _lost_over_cells(relative: np.ndarray, lit: np.ndarray) -> float:
    """Return 1 - darkest / brightest of a bowl through what is lit, piece by piece; nan with fewer than 20 pieces.

    A piece far off the others (a dead cell, a speck) counts as three times brighter or darker than they are.
    """
    import cv2

    relative, lit = (np.ascontiguousarray(whole[::2, ::2]) for whole in (relative, lit))
    count, pieces, told, middles = cv2.connectedComponentsWithStats(lit.view(np.uint8), connectivity=4)
    areas = told[:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= PIECE_PX)[1:]  # without the ground
    if len(kept) < LEAST_PIECES:
        return math.nan
    light = np.bincount(pieces.ravel(), cv2.log(relative).ravel(), minlength=count)[kept] / areas[kept]
    light = np.clip(light - np.median(light), -math.log(3), math.log(3))
    x, y = (middles[kept] / (np.array(lit.shape[::-1]) - 1) * 2 - 1).T
    bowl, sure = _bowl(x, y, light, np.sqrt(np.minimum(areas[kept], np.median(areas[kept]))))
    return sure * (1 - math.exp(-float(np.ptp(bowl))))


def _lost_in_ground(small: np.ndarray, lit: np.ndarray, levels: int) -> float:
    """Return the range of a bowl through the darker quarter of 8 x 8 zones, over the grey levels in use.

    Zones that one object fills show no ground: they are left out. nan where fewer than `LEAST_ZONES` are left.
    """
    import cv2

    size = (8 * ZONES, 8 * ZONES)
    grid = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    within = cv2.resize(_objects(small, lit), size, interpolation=cv2.INTER_NEAREST)
    zones, filled = (
        whole.reshape(ZONES, 8, ZONES, 8).swapaxes(1, 2).reshape(ZONES * ZONES, 64) for whole in (grid, within)
    )
    seen = filled.mean(axis=1) < MOSTLY_GROUND
    if np.count_nonzero(seen) < LEAST_ZONES:
        return math.nan
    ground = np.partition(zones[seen], 15, axis=1)[:, 15].astype(np.float64)
    x, y = _zones()
    bowl, sure = _bowl(x[seen], y[seen], ground, np.ones(len(ground)))
    return sure * min(1.0, float(np.ptp(bowl)) / max(levels, 1))


def _objects(small: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Return where large things lie, (h, w) uint8 0 or 1: what is lit, larger than a zone, and has an edge.

    A giant cell ends within a few pixels; a lamp's glow fades, and its outline is a contour that nothing marks.
    """
    import cv2

    smooth = cv2.GaussianBlur(small, (0, 0), 1.0).astype(np.float32)
    near = np.ones((3, 3), np.uint8)
    count, pieces, told, _ = cv2.connectedComponentsWithStats(lit.view(np.uint8), connectivity=4)
    found = np.zeros(small.shape, np.uint8)
    ground = _middle(smooth[~lit]) if not lit.all() else 0.0
    for k in range(1, count):
        if told[k, cv2.CC_STAT_AREA] * ZONES * ZONES < small.size:
            continue
        one = (pieces == k).view(np.uint8)
        edge = (one > 0) & (cv2.erode(one, near, borderValue=1) == 0)
        if not edge.any():
            continue
        step = cv2.dilate(smooth, near, iterations=2) - cv2.erode(smooth, near, iterations=2)
        contrast = _middle(smooth[one > 0]) - ground
        if contrast > 0 and _middle(step[edge]) > SHARP_EDGE * contrast:
            found |= cv2.dilate(one, near, iterations=2)
    return found


@functools.cache
def _zones() -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the zones' middles, from -1 to 1."""
    y, x = (axis.ravel() / (ZONES - 1) * 2 - 1 for axis in np.indices((ZONES, ZONES)))
    return x, y


def _bowl(x: np.ndarray, y: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit a bowl; return its values at the points, and the share of variance it explains, less two standard errors.

    The share is adjusted for the four numbers fitted; its standard error is that of Olkin and Finn (1995).
    """
    terms, weights = np.stack([np.ones_like(x), x, y, x * x + y * y], axis=1), weights / weights.sum()
    weighted = terms * weights[:, None]
    bowl = terms @ np.linalg.solve(weighted.T @ terms + 1e-6 * np.eye(4), weighted.T @ values)
    spread = float(weights @ (values - weights @ values) ** 2)
    rest = float(weights @ (values - bowl) ** 2)
    if spread <= 1e-9:
        return bowl, 0.0
    sure = max(0.0, 1 - rest / spread * (len(x) - 1) / (len(x) - 4))
    return bowl, max(0.0, sure - 2 * math.sqrt(4 * sure / len(x)) * (1 - sure))


# ---- the batch -----------------------------------------------------------------------------------------------------
def flag_records(
    measurements: Sequence[dict],
    deviations: float = DEVIATIONS,
    learned_from: Sequence[bool] | None = None,
    off: Collection[str] = (),
) -> tuple[list[str], dict[str, float]]:
    """Judge each image by limits learned from its batch.

    Parameters
    ----------
    measurements : sequence of dict
        As `measure` returns them.
    deviations : float
        How many (scaled median absolute) deviations from the batch's median count as odd.
    learned_from : sequence of bool, optional
        Which images the limits are learned from: the training images, so that no test image decides about another; default
        all.
    off : collection of str
        Flags that are not given (``convert.quality.<flag>: false``).

    Returns
    -------
    flags : list of str
        Out of `FLAGS`, joined by ";"; "" for a good image and for one without cells.
    thresholds : dict
        blur_px_max, structure_min, uneven_max, debris_max (learned within `BLUR_LIMITS`, `STRUCTURE_LIMITS`,
        `UNEVEN_LIMITS` and `DEBRIS_LIMITS`; their middle for a batch of fewer than 8 images), saturated_fraction_max,
        contrast_min, and batch, the number of images with cells that were learned from.

    Examples
    --------
    >>> good = {"blur_px": 1.4, "structure": 3.0, "empty": False, "saturated_fraction": 0, "contrast": 240, "debris": 1,
    ...         "uneven": 0.1}
    >>> flags, thresholds = flag_records([good, good | {"blur_px": 6.0}, good | {"saturated_fraction": 0.3}])
    >>> flags, thresholds["blur_px_max"]
    (['', 'out_of_focus', 'saturated'], 2.65)
    >>> flag_records([good | {"blur_px": 6.0}], off=["out_of_focus"])[0]
    ['']
    """
    taught = [m for m, yes in zip(measurements, learned_from or [True] * len(measurements), strict=True) if yes]
    blur_px_max, learned = _limit([m["blur_px"] for m in taught], deviations, BLUR_LIMITS)
    seen = [math.nan if m["empty"] else m["structure"] for m in taught]
    structure_min, _ = _limit(seen, -deviations, STRUCTURE_LIMITS)
    uneven_max, _ = _limit([m["uneven"] for m in taught], deviations, UNEVEN_LIMITS)
    debris_max, _ = _limit([m["debris"] for m in taught], deviations, DEBRIS_LIMITS)
    thresholds = {
        "blur_px_max": blur_px_max,
        "structure_min": structure_min,
        "uneven_max": uneven_max,
        "debris_max": debris_max,
        "saturated_fraction_max": CLIPPED_ABOVE,
        "contrast_min": float(LEVELS_BELOW),
        "batch": float(learned),
    }
    return [_flags(m, thresholds, off) for m in measurements], thresholds


def _limit(values: Sequence[float], deviations: float, bounds: tuple[float, float]) -> tuple[float, int]:
    """Return median + deviations * 1.4826 * MAD of the finite values, within bounds, and how many there are."""
    known = np.array([v for v in values if math.isfinite(v)])
    if len(known) < SMALLEST_BATCH:
        return round(sum(bounds) / 2, 3), len(known)
    middle = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - middle)))
    return round(float(np.clip(middle + deviations * spread, *bounds)), 3), len(known)


def _flags(m: dict, limits: dict[str, float], off: Collection[str] = ()) -> str:
    dim = not m["empty"] and m["structure"] < limits["structure_min"]
    found = {
        "out_of_focus": m["blur_px"] > limits["blur_px_max"],
        "saturated": m["saturated_fraction"] > limits["saturated_fraction_max"],
        "low_contrast": dim or m["contrast"] < limits["contrast_min"],
        "uneven_light": m["uneven"] > limits["uneven_max"],
        "debris": m["debris"] > limits["debris_max"],
    }
    return ";".join(name for name in FLAGS if found[name] and name not in off)


def set_aside(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Take the flagged training and validation images out of their splits: split becomes "", everything else stays.

    A flagged test image stays a test image: it is predicted and handed in, since whoever asked wants an answer for every
    image; what is scored leaves it out (`records.is_scored`).

    Examples
    --------
    >>> good = ImageRecord("a", "a.png", 1, 1, split="val")
    >>> [record.split for record in set_aside([good, replace(good, flags="debris")])]
    ['val', '']
    >>> [record.split for record in set_aside([replace(good, flags="debris", split="test")])]
    ['test']
    """
    return [replace(r, split="") if r.flags and r.split != "test" else r for r in records]


# ---- in words ------------------------------------------------------------------------------------------------------
RULES = {  # flag: what is measured, by which key, in which words, the number's format, its limit's key, sign and bounds
    "out_of_focus": ("blur_px", "blurred by {}", "{:.2g} px", "blur_px_max", ">", BLUR_LIMITS),
    "saturated": ("saturated_fraction", "{} of the pixels saturated", "{:.2g} %", "saturated_fraction_max", ">", None),
    "low_contrast": ("structure", "signal {} times the noise", "{:.2g}", "structure_min", "<", STRUCTURE_LIMITS),
    "uneven_light": ("uneven", "{} of the light lost across the field", "{:.2g} %", "uneven_max", ">", UNEVEN_LIMITS),
    "debris": ("debris", "a glow in both channels {} times as bright as cells", "{:.2g}", "debris_max", ">", DEBRIS_LIMITS),
}  # fmt: skip


def _told(key: str, form: str, number: float) -> str:
    """Return a measured number or a limit as it is said: shares in percent, powers of ten as plain numbers.

    Examples
    --------
    >>> _told("saturated_fraction", "{:.2g} %", 0.089), _told("structure", "{:.2g}", 0.9), _told("structure", "{:.2g}", 3)
    ('8.9 %', '7.9', '1000')
    """
    if key in ("saturated_fraction", "uneven"):
        number *= 100
    elif key == "structure":
        number = 10**number
    return form.format(number) if abs(number) < 100 else form.replace(".2g", ".0f").format(number)


def explain(thresholds: Mapping[str, float], flags: Sequence[str] = (), off: Collection[str] = ()) -> list[str]:
    """Say in words by which limits a batch was judged, how many images they flagged, and which key switches each off.

    Examples
    --------
    >>> _, thresholds = flag_records([])
    >>> said = explain(thresholds, ["debris", "debris;saturated", ""], ["uneven_light"])
    >>> said[1].split(" (")[0], said[3]
    ('saturated: 1 image flagged: more than 3 % of the pixels saturated', 'uneven light: switched off by convert.quality.uneven_light: false')
    """  # noqa: E501
    learned, said = int(thresholds["batch"]), []
    for flag, (key, words, form, limit, sign, bounds) in RULES.items():
        name, switch = flag.replace("_", " "), f"convert.quality.{flag}: false"
        if flag in off:
            said.append(f"{name}: switched off by {switch}")
            continue
        if not bounds:
            origin = "a fixed limit"
        elif learned >= SMALLEST_BATCH:
            origin = f"learned from {learned} training images with cells"
        else:
            origin = f"a fixed limit: {SMALLEST_BATCH} training images with cells or more are needed to learn one"
        count = sum(flag in one.split(";") for one in flags)
        than = "more than " if sign == ">" else "less than "
        what = words.format(than + _told(key, form, thresholds[limit]))
        what = than + words.format(_told(key, form, thresholds[limit])) if words.startswith("{") else what
        said.append(f"{name}: {_images(count)} flagged: {what} ({origin}; {switch} keeps such images)")
    return said


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def reasons(row: Mapping, thresholds: Mapping[str, float], flags: str) -> list[str]:
    """Say why one image is flagged: what was measured, and the limit.

    Examples
    --------
    >>> _, limits = flag_records([])
    >>> reasons({"blur_px": 6.23, "saturated_fraction": 0.089}, limits, "out_of_focus;saturated;copy")
    ['out of focus: blurred by 6.2 px, limit 2.6 px', 'saturated: 8.9 % of the pixels saturated, limit 3 %', 'copy: shows the field of another image']
    """  # noqa: E501
    said = []
    for flag in filter(None, flags.split(";")):
        if flag == COPY:
            said.append("copy: shows the field of another image")
            continue
        key, words, form, limit, _, _ = RULES[flag]
        number, most = float(row[key]), float(thresholds[limit])
        if flag == "low_contrast" and (row.get("empty") or not number < most):
            key, words, form = "contrast", "{} grey levels", "{:.0f}"
            number, most = float(row["contrast"]), float(thresholds["contrast_min"])
        told = words.format(_told(key, form, number))
        said.append(f"{flag.replace('_', ' ')}: {told}, limit {_told(key, form, most)}")
    return said


def name_flagged(
    records: Sequence[ImageRecord], quality: Sequence[Mapping], thresholds: Mapping[str, float], copies: Sequence[Copy]
) -> list[str]:
    """Name every flagged image with its reason, and what becomes of it.

    Parameters
    ----------
    records : sequence of ImageRecord
        After `set_aside`.
    quality : sequence of mapping
        Of each record, in the same order.
    """
    other: dict[str, list[str]] = {}
    for copy in copies:
        other.setdefault(copy.first, []).append(copy.second)
        other.setdefault(copy.second, []).append(copy.first)
    said = []
    for record, row in zip(records, quality, strict=True):
        if record.flags:
            told = "; ".join(reasons(row, thresholds, record.flags))
            if COPY in record.flags.split(";") and record.image_id in other:
                told += f" ({', '.join(other[record.image_id])}; convert.duplicates: keep keeps both)"
            fate = "predicted and handed in, not scored" if record.split == "test" else "not used"
            said.append(f"{record.image_id}: {told}: {fate}")
    return said


def judgement(
    thresholds: Mapping[str, float], flags: Sequence[str], copies: Sequence[Copy] = (), off: Collection[str] = ()
) -> dict[str, object]:
    """Return what is kept of a batch's judgement in quality.json: the limits, in numbers and words, and the copies."""
    return {
        "thresholds": {name: float(value) for name, value in thresholds.items()},
        "words": explain(thresholds, flags, off),
        "copies": [asdict(copy) for copy in copies],
    }


# ---- copies --------------------------------------------------------------------------------------------------------
WAVES = 16  # a fingerprint holds the signs of 16 x 16 cosine waves
POSITIONS = {  # transposed, turned upside down, turned left to right: what was done to the second picture
    (False, False, False): "",
    (True, True, False): "turned by 90°",
    (False, True, True): "turned by 180°",
    (True, False, True): "turned by 270°",
    (False, False, True): "mirrored left to right",
    (False, True, False): "mirrored top to bottom",
    (True, False, False): "mirrored along a diagonal",
    (True, True, True): "mirrored along the other diagonal",
}
MOST_SIGNS = 84  # of 255 that may differ; 127 do by chance, and of many pairs the luckiest still 85 to 90
LEAST_LIKENESS = 0.75
REACH = 0.08  # of the longer side, by which two pictures may be shifted against each other
FROM_LAST = ("test", "val", "train", "")


@dataclass(frozen=True)
class Copy:
    """Two images that show one and the same field.

    Attributes
    ----------
    first, second : str
        Their image_ids, in the order of the records.
    how : str
        What was done to the second: "the same pixels", "turned by 90°", "shifted by about 4 px", "the same field".
    likeness : float
        Correlation of their detail, once laid upon each other: 1 for the same pixels, below 0.65 for different fields.
    """

    first: str
    second: str
    how: str
    likeness: float


def find_copies(
    records: Sequence[ImageRecord], quality: Sequence[Mapping], root: str | Path, least: float = LEAST_LIKENESS
) -> list[Copy]:
    """Find images that show one and the same field, whatever they are called and wherever they came from.

    Found are equal pictures; pictures that differ in brightness, contrast or noise; that are shifted against each other by
    up to 3 % of their longer side; that are mirrored or turned by quarters; and all of this together. Not found are zoomed
    pictures, other angles, large shifts, and fields without cells unless their pixels are equal. Fingerprints name the
    pairs to look at, then the pictures themselves are compared: neighbouring fields of one slide are no copies.

    Parameters
    ----------
    records : sequence of ImageRecord
    quality : sequence of mapping
        Of each record, with content, fingerprint and empty, as `measure` returns them.
    root : path
        The folder that the records' paths count from.
    least : float
        Least likeness of copies.

    Returns
    -------
    list of Copy
        In the order of the records.
    """
    import cv2

    read = lambda k: cv2.imread(str(Path(root) / records[k].path), cv2.IMREAD_COLOR)  # noqa: E731
    return [
        Copy(records[i].image_id, records[j].image_id, how, round(likeness, 3))
        for i, j, how, likeness in _pairs(quality, read, least)
    ]


def _pairs(quality: Sequence[Mapping], read: Callable[[int], np.ndarray], least: float):
    """Yield (i, j, how, likeness) of the pictures that are copies; `read(k)` returns picture k."""
    cached = functools.lru_cache(64)(read)
    for (i, j), positions in sorted(_suspects(quality).items()):
        if quality[i]["content"] == quality[j]["content"]:
            yield i, j, "the same pixels", 1.0
            continue
        first, second = cached(i), cached(j)
        tried = [(*_likeness(first, _position(second, position)), position) for position in positions]
        likeness, shift_px, position = max(tried, key=lambda found: found[0])
        if likeness >= least:
            shift = f"shifted by about {shift_px:.0f} px" if shift_px >= 1.5 else ""
            yield i, j, ", ".join(filter(None, (POSITIONS[position], shift))) or "the same field", likeness


def _suspects(quality: Sequence[Mapping]) -> dict[tuple[int, int], list[tuple[bool, bool, bool]]]:
    """Return the pairs whose contents are equal or whose fingerprints are near, and in which positions."""
    found: dict[tuple[int, int], list] = {}
    same: dict[str, list[int]] = {}
    for k, row in enumerate(quality):
        same.setdefault(row["content"], []).append(k)
    for members in same.values():
        found |= {pair: [(False, False, False)] for pair in itertools.combinations(members, 2)}
    known = np.array([k for k, row in enumerate(quality) if not row["empty"] and int(row["fingerprint"], 16)], int)
    if len(known) < 2:
        return found
    signs = np.stack([_signs(quality[k]["fingerprint"]) for k in known])
    least = signs.shape[1] - 1 - 2 * MOST_SIGNS
    for position in POSITIONS:
        turned = _turned(signs, position)
        for begin in range(0, len(known), 1024):
            close = signs[begin : begin + 1024] @ turned.T >= least  # whole numbers, exact in float32
            for a, b in zip(*np.nonzero(close), strict=True):
                if begin + a < b:
                    found.setdefault((int(known[begin + a]), int(known[b])), []).append(position)
    return found


def _signs(fingerprint: str) -> np.ndarray:
    """Return a fingerprint as 256 numbers 1 and -1 (float32), the first 0."""
    signs = np.unpackbits(np.frombuffer(bytes.fromhex(fingerprint), np.uint8)).astype(np.float32) * 2 - 1
    signs[0] = 0
    return signs


def _turned(signs: np.ndarray, position: tuple[bool, bool, bool]) -> np.ndarray:
    """Return the fingerprints (N, 256) of pictures in another position: odd waves change sign when mirrored."""
    transposed, upside, across = position
    waves = signs.reshape(-1, WAVES, WAVES)
    waves = waves.swapaxes(1, 2) if transposed else waves
    odd = np.where(np.arange(WAVES) % 2, -1, 1).astype(np.float32)
    waves = waves * odd[:, None] if upside else waves
    return (waves * odd if across else waves).reshape(len(signs), -1)


def _position(image: np.ndarray, position: tuple[bool, bool, bool]) -> np.ndarray:
    transposed, upside, across = position
    image = image.swapaxes(0, 1) if transposed else image
    return image[:: -1 if upside else 1, :: -1 if across else 1]


def _likeness(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the correlation of two pictures' detail at the shift where it is highest, and that shift in px.

    Detail is what is left when the light around (a thirtieth of the side) is taken off, so that a shared lamp or haze is no
    likeness. Pictures of which one is a fifth larger are not compared.
    """
    import cv2

    longest, other = max(first.shape[:2]), max(second.shape[:2])
    if not 0.8 <= longest / other <= 1.25 or min(*first.shape[:2], *second.shape[:2]) < 32:
        return 0.0, 0.0
    scale = min(1.0, 256 / longest)
    a, b = (_fine(image, scale) for image in (first, second))
    reach = max(2, round(REACH * max(a.shape)))
    rows, columns = (min(p, q) - 2 * reach for p, q in zip(a.shape, b.shape, strict=True))
    top, left = (b.shape[0] - rows) // 2, (b.shape[1] - columns) // 2
    if rows < 8 or columns < 8:
        return 0.0, 0.0
    answer = cv2.matchTemplate(a, b[top : top + rows, left : left + columns], cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(answer)
    return float(best), math.hypot(y - top, x - left) / scale


def _fine(image: np.ndarray, scale: float) -> np.ndarray:
    """Return the detail of the sum of a picture's channels, about 256 px wide: (h, w) float32, the root of each value.

    The root lets faint detail have a say: two pictures of one bright round cell each are not alike for that.
    """
    import cv2

    size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).astype(np.float32).sum(axis=2)
    small = cv2.GaussianBlur(small, (0, 0), 1.0)
    detail = small - cv2.GaussianBlur(small, (0, 0), 8.0)
    return np.sign(detail) * np.sqrt(np.abs(detail))


def _fingerprint(small: list[np.ndarray]) -> str:
    """Return the signs of a picture's lowest 16 x 16 cosine waves as 64 hexadecimal digits; the mean counts 0.

    Gain, offset and noise leave signs alone; a shift by 1 % of the side turns few of them. Mirroring a picture turns the
    signs of its odd waves, and transposing it swaps rows and columns: one fingerprint knows all eight positions. A
    perceptual hash after Zauner (2010).
    """
    import cv2

    if not small:
        return "0" * 64
    sizes = (2 * WAVES, 2 * WAVES)
    whole = np.sum([cv2.resize(one, sizes, interpolation=cv2.INTER_AREA) for one in small], axis=0, dtype=np.float32)
    signs = cv2.dct(whole)[:WAVES, :WAVES] > 0
    signs[0, 0] = False
    return np.packbits(signs).tobytes().hex()


def set_copies_aside(records: Sequence[ImageRecord], copies: Sequence[Copy]) -> list[ImageRecord]:
    """Flag images whose copy stands in another split, so that no field is both learned from and judged by.

    Of the images of one field, those in test stay; where there is none, those in val. All others of that field get the flag
    "copy", which `set_aside` takes out of their split. Copies within one split stay: they count twice there, no more.
    So a test image decides about a training image here, and only here: that protects the score from what was learned by
    heart, and every image that gives way is named.

    Examples
    --------
    >>> a, b = (ImageRecord(name, f"{name}.png", 1, 1, split=split) for name, split in (("a", "train"), ("b", "test")))
    >>> [record.flags for record in set_copies_aside([a, b], [Copy("a", "b", "turned by 90°", 0.99)])]
    ['copy', '']
    """
    field_of = _fields(copies)
    splits: dict[str, set[str]] = {}
    for record in records:
        if record.image_id in field_of and record.split and not record.flags:
            splits.setdefault(field_of[record.image_id], set()).add(record.split)
    stays = {field: min(names, key=FROM_LAST.index) for field, names in splits.items()}
    done = []
    for record in records:
        split = stays.get(field_of.get(record.image_id, ""), record.split)
        torn = record.split and not record.flags and record.split != split
        done.append(replace(record, flags=COPY) if torn else record)
    return done


def settle_copies(records: Sequence[ImageRecord], copies: Sequence[Copy], how: str = "set_aside") -> list[ImageRecord]:
    """Do with copies in two splits what ``convert.duplicates`` says.

    Parameters
    ----------
    how : {"set_aside", "refuse", "keep"}
        `set_copies_aside`, `check_copies`, or nothing.
    """
    if how not in ("set_aside", "refuse", "keep"):
        raise UserError(f"convert.duplicates is '{how}'", "choose set_aside, refuse or keep")
    if how == "refuse":
        check_copies(records, copies)
    return set_copies_aside(records, copies) if how == "set_aside" else list(records)


def _fields(copies: Sequence[Copy]) -> dict[str, str]:
    """Return image_id -> the first image_id of its field: copies of copies show one field."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for copy in copies:
        root[find(copy.second)] = find(copy.first)
    return {name: find(name) for name in root}


def check_copies(records: Sequence[ImageRecord], copies: Sequence[Copy]) -> None:
    """Refuse copies that stand in two splits.

    Raises
    ------
    UserError
        Naming the first of them.
    """
    split = {record.image_id: record.split for record in records if record.split and not record.flags}
    torn = [copy for copy in copies if split.get(copy.first, "") != split.get(copy.second, "") != ""]
    torn = [copy for copy in torn if copy.first in split]
    if torn:
        one = torn[0]
        raise UserError(
            f"{len(torn)} pair(s) of images show one field on two sides of the split; the first: {one.first} "
            f"({split[one.first]}) and {one.second} ({split[one.second]}), {one.how}",
            "remove one of each, or set convert.duplicates: set_aside",
        )
