"""Is a picture worth using: focus, saturation, contrast, even light, debris, copies; measured alone, flagged in a batch.

`measure` looks at one converted picture, `flag_records` at all of them: limits are learned from the training images by
median and median absolute deviation, within fixed bounds, and returned, so that what was flagged can be explained
(`explain`). An image without cells is not at fault: it is measured as empty and keeps no flag. `find_duplicates` finds pictures
of one and the same field, whatever they are called, and `exclude_duplicates` keeps them from standing on two sides of a split.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math

import numpy as np

from cellkit.microscope.duplicates import fingerprint_of

TILE_PX = 256
MAX_TILES = 2  # per channel; of a picture that needs more, the busiest
NOISE_FROM = 0.42  # cycles per px; above this a microscope's optics pass nothing: what is left is noise
EDGES = np.geomspace(0.02, NOISE_FROM, 17)  # bands of detail, from 50 px down to 2.4 px a cycle
COARSE, FINE = range(5), range(7, 12)  # of the bands: whole cells, of 19 to 50 px; edges and texture, of 5 to 13 px
MOST_SAMPLES = (1024,) * 16 + (4096,)  # of the 16 bands and the noise
FADING = 2.0  # power of the frequency with which a sharp picture's detail fades
UNSURE = 0.5  # relative error from which a band is not clear
EMPTY_BELOW = 0.7  # structure: log10 of signal over noise power
MOSTLY_GROUND = 0.7  # share of lit pixels below which the ground tells about the light
ZONES = 8  # the ground is followed over 8 x 8 zones
# Of what is lit: an object's brightness steps by more of its contrast within 4 px; that of light does not.
SHARP_EDGE = 0.15
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
        Share of pixels at the camera's limit in the original (`conversion.Level`); default: the share of 255 here.

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
        fingerprint : 64 hexadecimal digits that hardly change with brightness, noise or a shift (see `fingerprint_of`).
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
        "fingerprint": fingerprint_of(small),
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
    window, order, begins, noise, bands = _bands(height, width)
    coarse, fine = np.isin(bands, COARSE), np.isin(bands, FINE)
    if not (coarse.any() and fine.any() and len(noise)):
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
    structure = max(float(signal[coarse].mean()), float(signal[fine].mean()), 1e-9 * floor) / floor
    error = seen * np.sqrt(2 / (counts * len(tiles))) / np.maximum(signal, 1e-12)
    told = 2 / (counts * len(tiles)) < UNSURE**2  # a band of so few waves that none could be clear ends no row
    clear = (signal > 0.3 * floor) & (error < UNSURE)
    blur = _fading(np.sqrt(EDGES[1:] * EDGES[:-1])[bands][told], signal[told], error[told], clear[told])
    return blur, math.log10(structure)


def _fading(middle: np.ndarray, signal: np.ndarray, error: np.ndarray, clear: np.ndarray) -> float:
    """Return the sigma (px) of a weighted line through the first unbroken row of clear bands; nan with fewer than 3."""
    if not clear.any():
        return math.nan
    first = int(np.argmax(clear))
    last = first + int(np.argmin(np.r_[clear[first:], False]))
    if last - first < 3:
        return math.nan
    middle = middle[first:last]
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
    order, begins : places of all bands one after the other, and where each band begins
    noise : places of noise
    bands : numbers of the bands; those in which a small tile has no wave are left out

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
    *some, noise = (place[:: len(place) // most + 1] for place, most in zip(places, MOST_SAMPLES, strict=True))
    bands = np.array([k for k, place in enumerate(some) if len(place)], int)
    return window, np.concatenate(some), np.cumsum([0, *(len(some[k]) for k in bands)])[:-1], noise, bands


def _tiles(channel: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the corners of tiles that cover the picture; of a large one the `MAX_TILES` with the widest spread."""
    ys, xs = (np.linspace(0, n - m, math.ceil(n / m)).astype(int) for n, m in zip(channel.shape, size, strict=True))
    corners = [(int(y), int(x)) for y in ys for x in xs]
    if len(corners) <= MAX_TILES:
        return corners
    import cv2

    sampled, (high, wide) = np.ascontiguousarray(channel[::8, ::8]), (math.ceil(n / 8) for n in size)
    parts = [sampled[y // 8 : y // 8 + high, x // 8 : x // 8 + wide] for y, x in corners]
    deviations = [-float(cv2.meanStdDev(part)[1][0, 0]) for part in parts]
    return [corners[k] for k in sorted(np.argsort(deviations, kind="stable")[:MAX_TILES])]


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
    count, pieces, statistics, middles = cv2.connectedComponentsWithStats(lit.view(np.uint8), connectivity=4)
    areas = statistics[:, cv2.CC_STAT_AREA]
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
    count, pieces, statistics, _ = cv2.connectedComponentsWithStats(lit.view(np.uint8), connectivity=4)
    found = np.zeros(small.shape, np.uint8)
    ground = _middle(smooth[~lit]) if not lit.all() else 0.0
    for k in range(1, count):
        if statistics[k, cv2.CC_STAT_AREA] * ZONES * ZONES < small.size:
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
    variance = float(weights @ (values - weights @ values) ** 2)
    rest = float(weights @ (values - bowl) ** 2)
    if variance <= 1e-9:
        return bowl, 0.0
    sure = max(0.0, 1 - rest / variance * (len(x) - 1) / (len(x) - 4))
    return bowl, max(0.0, sure - 2 * math.sqrt(4 * sure / len(x)) * (1 - sure))
