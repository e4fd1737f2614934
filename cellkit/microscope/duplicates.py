"""Pictures of one and the same field, whatever they are called, and what becomes of them in two splits."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fastcore.basics import groupby

from cellkit.cells.dataset import read_image
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError, counted

COPY = "copy"  # set by `exclude_duplicates`, not by `flag_records`
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
# Of copies; different fields stay below 0.65 on the sets of ``benchmarks/bench_quality.py``, which measures both.
LEAST_LIKENESS = 0.75
# Small pictures hold little: crops of one round cell each reach 0.975, of 250 crops of other pictures of DSB2018 at 64, 80, 96
# and 112 px the likest 0.90, 0.86, 0.84 and 0.72. Their copies are found where they are turned or mirrored and nothing else.
SMALL_PX, SMALL_LIKENESS = 112, 0.985
REACH = 0.08  # of the longer side, by which two pictures may be shifted against each other
LEAST_PX = 8  # rows and columns that are compared
FROM_LAST = ("test", "val", "train", "")


@dataclass(frozen=True)
class Duplicate:
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


def find_duplicates(records: Sequence[ImageRecord], quality: Sequence[Mapping], root: str | Path) -> list[Duplicate]:
    """Find images that show one and the same field, whatever they are called and wherever they came from.

    Found are equal pictures; pictures that differ in brightness, contrast or noise; that are shifted against each other by
    up to 3 % of their longer side; that are mirrored or turned by quarters; and all of this together. Not found are zoomed
    pictures, other angles, large shifts, and, unless their pixels are equal, fields without cells or of less than 32 x 32 px.
    Fingerprints name the pairs to look at, then the pictures themselves are compared: neighbouring fields of one slide are no
    copies. Of pictures of less than 112 x 112 px only those are copies that are turned or mirrored and nothing else. Of the
    frames of one scene in one split only each and the next are compared: they are never divided, and show one field.

    Parameters
    ----------
    records : sequence of ImageRecord
    quality : sequence of mapping
        Of each record, with content, fingerprint and empty, as `measure` returns them.
    root : path
        The folder that the records' paths count from.

    Returns
    -------
    list of Duplicate
        In the order of the records.

    Raises
    ------
    UserError
        A picture is damaged, or not what its record says.

    References
    ----------
    The fingerprint: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, with the signs of
    the cosine waves; the comparison: J. P. Lewis, Fast Normalized Cross-Correlation, 1995. How many altered copies
    are found, and how alike different fields are at most: ``benchmarks/bench_quality.py``.
    """
    read = lambda k: read_image(records[k], root)  # noqa: E731
    series = [(r.file, r.scene, r.split) if r.file else k for k, r in enumerate(records)]
    return [
        Duplicate(records[i].image_id, records[j].image_id, how, round(likeness, 3))
        for i, j, how, likeness in similar_pairs(quality, read, series=series)
    ]


def similar_pairs(
    quality: Sequence[Mapping],
    read: Callable[[int], np.ndarray],
    least: float = LEAST_LIKENESS,
    series: Sequence[Hashable] | None = None,
) -> Iterator[tuple[int, int, str, float]]:
    """Yield (i, j, how, likeness) of the pictures that are at least so alike; `read(k)` returns picture k.

    Of the pictures of one of `series`, each is compared with the one before and the one after it.
    """
    cached = functools.lru_cache(64)(read)
    for (i, j), positions in sorted(_suspects(quality, _places(series or range(len(quality)))).items()):
        if quality[i]["content"] == quality[j]["content"]:
            yield i, j, "the same pixels", 1.0
            continue
        first, second = cached(i), cached(j)
        tried = [(*_likeness(first, _position(second, position)), position) for position in positions]
        likeness, shift_px, position = max(tried, key=lambda found: found[0])
        if likeness >= _least_likeness(min(math.prod(one.shape[:2]) for one in (first, second)), least):
            shift = f"shifted by about {shift_px:.0f} px" if shift_px >= 1.5 else ""
            yield i, j, ", ".join(filter(None, (POSITIONS[position], shift))) or "the same field", likeness


def _least_likeness(area_px: int, least: float) -> float:
    """Return the least likeness of copies of so many px: of small pictures more is asked."""
    return max(least, SMALL_LIKENESS) if area_px < SMALL_PX**2 else least


def _places(series: Sequence[Hashable]) -> np.ndarray:
    """Return (N, 2): the number of each picture's series, and its place there."""
    numbers: dict[Hashable, int] = {}
    count: Counter[Hashable] = Counter()
    places = np.empty((len(series), 2), int)
    for k, key in enumerate(series):
        places[k] = numbers.setdefault(key, len(numbers)), count[key]
        count[key] += 1
    return places


def _suspects(quality: Sequence[Mapping], places: np.ndarray) -> dict[tuple[int, int], list[tuple[bool, bool, bool]]]:
    """Return the pairs whose contents are equal or whose fingerprints are near, and in which positions.

    Those of one series are left out unless they follow each other.
    """
    found: dict[tuple[int, int], list] = {}
    for members in groupby(range(len(quality)), lambda k: quality[k]["content"]).values():
        pairs = itertools.combinations(members, 2)
        found |= {(i, j): [(False, False, False)] for i, j in pairs if _are_compared(places[i], places[j])}
    known = np.array([k for k, row in enumerate(quality) if not row["empty"] and int(row["fingerprint"], 16)], int)
    if len(known) < 2:
        return found
    signs = np.stack([_signs(quality[k]["fingerprint"]) for k in known])
    least = signs.shape[1] - 1 - 2 * MOST_SIGNS
    places = places[known]
    for position in POSITIONS:
        turned = _turned(signs, position)
        for begin in range(0, len(known), 1024):
            close = signs[begin : begin + 1024] @ turned.T >= least  # whole numbers, exact in float32
            close &= _are_compared(places[begin : begin + 1024, None], places)
            for a, b in zip(*np.nonzero(close), strict=True):
                if begin + a < b:
                    found.setdefault((int(known[begin + a]), int(known[b])), []).append(position)
    return found


def _are_compared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tell, of places (..., 2), which are of two series or follow each other in one."""
    return (first[..., 0] != second[..., 0]) | (abs(first[..., 1] - second[..., 1]) == 1)


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
    likeness. Pictures of which one is a fifth larger are not compared. Across strips of one shape, which are narrower than all
    shifts, half of the rows are laid upon each other.
    """
    import cv2

    longest, other = max(first.shape[:2]), max(second.shape[:2])
    narrowest = min(*first.shape[:2], *second.shape[:2])
    one_shape = all(0.8 <= p / q <= 1.25 for p, q in zip(first.shape[:2], second.shape[:2], strict=True))
    enough = min(math.prod(first.shape[:2]), math.prod(second.shape[:2])) >= 32 * 32 if one_shape else narrowest >= 32
    if not 0.8 <= longest / other <= 1.25 or not enough:
        return 0.0, 0.0
    scale = min(1.0, max(256 / longest, 32 / narrowest))
    a, b = (_fine(image, scale) for image in (first, second))
    sides = [min(p, q) for p, q in zip(a.shape, b.shape, strict=True)]
    reach = max(2, round(REACH * max(a.shape)))
    reaches = [side // 4 if one_shape and side - 2 * reach < LEAST_PX else reach for side in sides]
    rows, columns = (side - 2 * most for side, most in zip(sides, reaches, strict=True))
    top, left = (b.shape[0] - rows) // 2, (b.shape[1] - columns) // 2
    if rows < LEAST_PX or columns < LEAST_PX:
        return 0.0, 0.0
    answer = cv2.matchTemplate(a, b[top : top + rows, left : left + columns], cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(answer)
    return float(best), math.hypot(y - top, x - left) / scale


def _fine(image: np.ndarray, scale: float) -> np.ndarray:
    """Return the detail of the sum of a picture's channels, about 256 px wide: (h, w) float32, the root of each value.

    The root gives faint detail more weight: two pictures of one bright round cell each are not alike for that.
    """
    import cv2

    size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).astype(np.float32).sum(axis=2)
    small = cv2.GaussianBlur(small, (0, 0), 1.0)
    detail = small - cv2.GaussianBlur(small, (0, 0), 8.0)
    return np.sign(detail) * np.sqrt(np.abs(detail))


def fingerprint_of(small: list[np.ndarray]) -> str:
    """Return the signs of a picture's lowest 16 x 16 cosine waves as 64 hexadecimal digits; the mean counts 0.

    Gain, offset and noise leave signs alone; a shift by 1 % of the side turns few of them. Mirroring a picture turns the
    signs of its odd waves, and transposing it swaps rows and columns: one fingerprint knows all eight positions. A
    perceptual hash after Zauner (2010).
    """
    import cv2

    if not small:
        return "0" * 64
    sizes = (2 * WAVES, 2 * WAVES)
    for axis in (0, 1):  # made larger as it is, not smoothed: the same from either side
        small = [one.repeat(math.ceil(sizes[axis] / one.shape[axis]), axis) for one in small]
    whole = np.sum([cv2.resize(one, sizes, interpolation=cv2.INTER_AREA) for one in small], axis=0, dtype=np.float32)
    signs = cv2.dct(whole)[:WAVES, :WAVES] > 0
    signs[0, 0] = False
    return np.packbits(signs).tobytes().hex()


def exclude_duplicates(records: Sequence[ImageRecord], copies: Sequence[Duplicate]) -> list[ImageRecord]:
    """Flag images whose copy stands in another split, so that no field is both learned from and scored on.

    Of the images of one field, those in test stay; where there is none, those in val. All others of that field get the flag
    "copy", which `exclude_flagged` takes out of their split. Copies within one split stay: they count twice there, no more.
    So a test image decides about a training image here, and only here: that protects the score from what was learned by
    heart, and every image that gives way is named.

    Examples
    --------
    >>> a, b = (ImageRecord(name, f"{name}.png", 1, 1, split=split) for name, split in (("a", "train"), ("b", "test")))
    >>> [record.flags for record in exclude_duplicates([a, b], [Duplicate("a", "b", "turned by 90°", 0.99)])]
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
        crosses = record.split and not record.flags and record.split != split
        done.append(replace(record, flags=COPY) if crosses else record)
    return done


def handle_duplicates(
    records: Sequence[ImageRecord], copies: Sequence[Duplicate], how: str = "set_aside"
) -> list[ImageRecord]:
    """Do with copies in two splits what ``convert.duplicates`` says.

    Parameters
    ----------
    how : {"set_aside", "refuse", "keep"}
        `exclude_duplicates`, `refuse_duplicates`, or nothing.

    Raises
    ------
    UserError
        Another `how`; or as `refuse_duplicates`.
    """
    if how not in ("set_aside", "refuse", "keep"):
        raise UserError(f"convert.duplicates is '{how}'", "choose set_aside, refuse or keep")
    if how == "refuse":
        refuse_duplicates(records, copies)
    return exclude_duplicates(records, copies) if how == "set_aside" else list(records)


def _fields(copies: Sequence[Duplicate]) -> dict[str, str]:
    """Return image_id -> the first image_id of its field: copies of copies show one field."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for copy in copies:
        root[find(copy.second)] = find(copy.first)
    return {name: find(name) for name in root}


def refuse_duplicates(records: Sequence[ImageRecord], copies: Sequence[Duplicate]) -> None:
    """Refuse copies that stand in two splits.

    Raises
    ------
    UserError
        Naming the first of them.
    """
    split = {record.image_id: record.split for record in records if record.split and not record.flags}
    crossing = [copy for copy in copies if split.get(copy.first, "") != split.get(copy.second, "") != ""]
    crossing = [copy for copy in crossing if copy.first in split]
    if crossing:
        one = crossing[0]
        raise UserError(
            f"{counted(len(crossing), 'pair')} of images of the same field in different splits; the first: {one.first} "
            f"({split[one.first]}) and {one.second} ({split[one.second]}), {one.how}",
            "remove one of each, or set convert.duplicates: set_aside",
        )
