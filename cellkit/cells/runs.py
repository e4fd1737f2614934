"""Runs: (start, length) pairs over a flattened image, their arithmetic, and the run lengths of COCO and Kaggle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cellkit.errors import UserError

Shape = tuple[int, int]
Values = ArrayLike | None  # one for all objects, or one each
OVERPAINT_PX = 2**15  # painted at once: bounds the memory


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return ``start, start + 1, ..., start + length - 1`` of every pair, joined.

    Examples
    --------
    >>> ranges(np.array([3, 10]), np.array([2, 3]))
    array([ 3,  4, 10, 11, 12])
    """
    lengths = np.asarray(lengths, np.int64)
    total = int(lengths.sum())
    shift = np.asarray(starts, np.int64) - (np.cumsum(lengths) - lengths)
    return np.repeat(shift, lengths) + np.arange(total)


def sums_before(numbers: ArrayLike) -> np.ndarray:
    """Return the sum of the numbers before each and of all, in a third of the time of ``np.r_``.

    Examples
    --------
    >>> sums_before([2, 3])
    array([0, 2, 5])
    """
    numbers = np.asarray(numbers, np.int64)
    sums = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=sums[1:])
    return sums


def runs_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, length and value of the runs of equal non-zero values, row-major."""
    flat = np.ascontiguousarray(labels).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begins = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [flat.size]])
    values = flat[begins]
    kept = np.flatnonzero(values)
    return begins[kept], ends[kept] - begins[kept], values[kept].astype(np.int64)


def stable_order(values: np.ndarray) -> np.ndarray:
    """Return a stable sorting order; 16-bit values sort by radix, several times faster."""
    if values.size and values.min() >= 0 and values.max() < 2**16:
        values = values.astype(np.uint16)
    return np.argsort(values, kind="stable")


def merge_adjacent(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join runs where one ends exactly at the next one's start."""
    if len(starts) < 2:
        return starts, lengths
    new = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1] + lengths[:-1]]))
    return starts[new], np.add.reduceat(lengths, new)


def merge_adjacent_of_each(
    starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join touching runs of the same object; object i has the runs ``offsets[i]:offsets[i + 1]``."""
    if not len(starts):
        return starts, lengths, offsets
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    other = (starts[1:] != starts[:-1] + lengths[:-1]) | (owner[1:] != owner[:-1])
    new = np.flatnonzero(np.concatenate([[True], other]))
    counts = np.bincount(owner[new], minlength=len(offsets) - 1)
    return starts[new], np.add.reduceat(lengths, new), sums_before(counts)


def placed_runs(mask: np.ndarray, x: int, y: int, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and lengths of the runs, in an image of `shape`, of a mask with its first pixel at column x, row y."""
    height, width = shape
    part = mask[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
    padded = np.zeros((part.shape[0], part.shape[1] + 1), bool)  # the extra column keeps runs within a row
    padded[:, :-1] = part
    begin, length, _ = runs_of(padded)
    row, column = np.divmod(begin, padded.shape[1])
    return merge_adjacent((row + max(0, y)) * width + column + max(0, x), length)


def boxes_of(starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, width: int) -> np.ndarray:
    """Return column, row, width, height of each object, (N, 4) int64, in an image of `width`; 0 x 0 where it has no run."""
    boxes = np.zeros((len(offsets) - 1, 4), np.int64)
    some = np.flatnonzero(np.diff(offsets))
    if not some.size:
        return boxes
    first, last = starts, starts + lengths - 1
    top, bottom = first // width, last // width
    left = np.where(top == bottom, first - top * width, 0)  # a run that wraps covers both edges
    right = np.where(top == bottom, last - bottom * width, width - 1)
    begins = offsets[some]
    x0, x1 = np.minimum.reduceat(left, begins), np.maximum.reduceat(right, begins)
    y0, y1 = np.minimum.reduceat(top, begins), np.maximum.reduceat(bottom, begins)
    boxes[some] = np.stack([x0, y0, x1 - x0 + 1, y1 - y0 + 1], axis=1)
    return boxes


def turned(
    starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, line: int, lines: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, lengths, offsets of the same objects' runs over the image flattened along its other axis.

    Along the other axis a pixel begins a run where it is in the object and its neighbour one line back is not, and a run
    has ended where it is the other way round. Both are differences of two sets of runs (the object's, and the same one
    line on), so the work grows with the runs, not with the pixels inside.

    Parameters
    ----------
    starts, lengths, offsets : int64
        Sorted and disjoint within each object; runs that touch are joined in the result.
    line, lines : int
        Pixels of a line of the given flattening, and how many lines there are.
    """
    count, size = len(offsets) - 1, line * lines
    if not len(starts):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(count + 1, np.int64)
    room = size + line  # each object has a stretch of its own, with space for the shift
    begin = 2 * (starts + np.repeat(np.arange(count) * room, np.diff(offsets)))
    end = begin + 2 * lengths
    events = np.concatenate([begin + 1, end, begin + 2 * line, end + 2 * line + 1])  # the last bit: in or out
    events.sort(kind="stable")  # it merges what is sorted in parts, several times faster than the default
    side = np.cumsum(2 * (events & 1).astype(np.int8) - 1, dtype=np.int8)  # 1: object alone, -1: its shift alone
    events >>= 1
    begins, ends = (_crossed(events, side, which, line, lines) for which in (1, -1))
    firsts = np.arange(count + 1) * size
    new = np.concatenate([[True], begins[1:] != ends[:-1]])  # else the run goes on in the next line
    bounds = np.searchsorted(begins, firsts)
    new[bounds[:-1][np.diff(bounds) > 0]] = True
    begins, ends = begins[new], ends[np.concatenate([new[1:], [True]])]
    bounds = np.searchsorted(begins, firsts)
    return begins - np.repeat(firsts[:-1], np.diff(bounds)), ends - begins, bounds


def _crossed(events, side, which: int, line: int, lines: int) -> np.ndarray:
    """Return, in order and along the other axis, the pixels between the events where `side` is `which`."""
    ends = np.flatnonzero(side[:-1] == which)
    owner, pixels = np.divmod(ranges(events[ends], events[ends + 1] - events[ends]), (lines + 1) * line)
    across, along = np.divmod(pixels, line)
    keys = (owner * line + along) * lines + across
    keys.sort(kind="stable")
    return keys


def overpaint(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, values: np.ndarray) -> None:
    """Paint runs one after the other, later over earlier, in blocks that bound the memory."""
    if not len(starts):
        return
    block, long = np.cumsum(lengths) // OVERPAINT_PX, lengths > OVERPAINT_PX
    cuts = np.flatnonzero((block[1:] != block[:-1]) | long[1:] | long[:-1]) + 1
    for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(starts)], strict=True):
        if b - a == 1:
            flat[starts[a] : starts[a] + lengths[a]] = values[a]
        else:  # of repeated indices the last one stays
            flat[ranges(starts[a:b], lengths[a:b])] = np.repeat(values[a:b], lengths[a:b])


def cut_at_rows(starts: np.ndarray, lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut runs where they go on in the next row.

    Returns
    -------
    start, end : (C,) int64
    run : (C,) int64
        Which run each part is of.
    """
    width, ends = max(width, 1), starts + lengths
    parts = (ends - 1) // width - starts // width + 1
    run = np.repeat(np.arange(len(starts)), parts)
    edge = (starts[run] // width + ranges(np.zeros(len(parts), np.int64), parts)) * width
    return np.maximum(starts[run], edge), np.minimum(ends[run], edge + width), run


# ---- COCO counts ---------------------------------------------------------------------------------------------------
def coco_counts(
    starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the alternating zero and one counts of all objects, joined, and where each object's counts begin."""
    runs = np.diff(offsets)
    ends = starts + lengths
    gaps = starts - np.concatenate([[0], ends[:-1]])
    first = offsets[:-1][runs > 0]
    gaps[first] = starts[first]
    last_end = np.zeros(len(runs), np.int64)
    last_end[runs > 0] = ends[offsets[1:][runs > 0] - 1]
    tail = size - last_end
    has_tail = (tail > 0) | (runs == 0)
    sizes = 2 * runs + has_tail
    bounds = sums_before(sizes)
    counts = np.empty(bounds[-1], np.int64)
    position = np.repeat(bounds[:-1], runs) + 2 * (np.arange(len(starts)) - np.repeat(offsets[:-1], runs))
    counts[position], counts[position + 1] = gaps, lengths
    counts[bounds[1:][has_tail] - 1] = tail[has_tail]
    return counts, bounds


def compress(counts: np.ndarray, bounds: np.ndarray) -> list[str]:
    """Write counts as COCO's ASCII: differences to the count two before, five bits a character, low bits first."""
    within = np.arange(len(counts)) - np.repeat(bounds[:-1], np.diff(bounds))
    value = counts.copy()
    later = np.flatnonzero(within > 2)
    value[later] -= counts[later - 2]
    digits = np.ones(len(value), np.int64)
    for group in range(1, 13):  # a value needs another group while it does not fit 5 * group bits with sign
        limit = 1 << (5 * group - 1)
        more = (value >= limit) | (value < -limit)
        if not more.any():
            break
        digits += more
    place = ranges(np.zeros(len(value), np.int64), digits)
    wide = np.repeat(value, digits)
    letters = (wide >> (5 * place)) & 31
    letters[place < np.repeat(digits, digits) - 1] |= 32
    text = (letters + 48).astype(np.uint8).tobytes().decode("ascii")
    cuts = sums_before(digits)[bounds].tolist()
    return [text[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _decompress(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read COCO's ASCII counts of many objects at once.

    Returns
    -------
    counts : int64
        All counts, joined; those of an ill-formed text mean nothing.
    bounds : (N + 1,) int64
        Where each object's counts begin.
    bad : int64
        Positions of the texts that are not well formed.
    """
    raws = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text) for text in texts]
    bad = {position for position, raw in enumerate(raws) if not raw}
    raws = [raw or b"0" for raw in raws]
    stops = np.cumsum([len(raw) for raw in raws], dtype=np.int64)
    letters = np.frombuffer(b"".join(raws), np.uint8).astype(np.int64) - 48
    last = (letters & 32) == 0
    wrong = (letters < 0) | (letters > 63)
    wrong[stops - 1] |= ~last[stops - 1]
    last[stops - 1] = True
    ends = np.flatnonzero(last)
    begins = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    digits = ends - begins + 1
    wrong[ends] |= digits > 7  # more than 35 bits: no image is that large
    digits = np.minimum(digits, 7)
    place = np.arange(len(letters)) - np.repeat(begins, ends - begins + 1)
    value = np.add.reduceat((letters & 31) << (5 * np.minimum(place, 7)), begins) if len(begins) else begins
    value -= np.where(letters[ends] & 16, 1 << (5 * digits), 0)
    bounds = np.concatenate([[0], np.searchsorted(ends, stops)])
    _sum_of_differences(value, bounds)
    bad |= set(np.searchsorted(stops, np.flatnonzero(wrong), "right").tolist())
    return value, bounds, np.array(sorted(bad), np.int64)


def _sum_of_differences(value: np.ndarray, bounds: np.ndarray) -> None:
    """Undo, in place, that from the third on each count is written as the difference to the one two before."""
    within = np.arange(len(value)) - np.repeat(bounds[:-1], np.diff(bounds))
    for which in ((within & 1) == 1, ((within & 1) == 0) & (within > 0)):
        places = np.flatnonzero(which)
        total = sums_before(value[places])
        first = np.searchsorted(places, bounds)
        value[places] = total[1:] - np.repeat(total[first[:-1]], np.diff(first))


def coco_runs(rles: Sequence[dict], shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return the checked counts of all COCO RLEs of one image, joined, and where each one's begin.

    Raises
    ------
    UserError
        Run lengths of another size, negative ones, or such that do not sum to H * W.
    """
    total = shape[0] * shape[1]
    texts, lists = [], {}
    for position, rle in enumerate(rles):
        counts = _counts_of(rle, shape, position)
        if isinstance(counts, list):
            lists[position] = np.array([min(max(x, -1), total + 1) for x in counts], np.int64)
        texts.append("0" if isinstance(counts, list) else counts)
    counts, bounds, bad = _decompress(texts)
    if bad.size:
        raise _no_run_lengths(int(bad[0]))
    if lists:
        parts = np.split(counts, bounds[1:-1])
        parts = [lists.get(position, part) for position, part in enumerate(parts)]
        counts, bounds = np.concatenate(parts), sums_before([len(part) for part in parts])
    sums = sums_before(counts)
    sums = sums[bounds[1:]] - sums[bounds[:-1]]
    negative = np.searchsorted(bounds, np.flatnonzero(counts < 0), "right") - 1
    wrong = np.union1d(np.flatnonzero(sums != total), negative)
    if wrong.size:
        raise UserError(
            f"RLE {wrong[0] + 1} covers {sums[wrong[0]]} px, its image has {total}",
            "counts are >= 0 and sum to height * width",
        )
    return counts, bounds


def runs_of_coco(counts: np.ndarray, bounds: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, lengths, offsets of the objects' runs from their COCO counts, each of which sum to `size`."""
    objects = np.arange(len(bounds) - 1)
    ends = np.cumsum(counts) - np.repeat(objects * size, np.diff(bounds))
    within = np.arange(len(counts)) - np.repeat(bounds[:-1], np.diff(bounds))
    ones = np.flatnonzero((within & 1 == 1) & (counts > 0))
    return ends[ones] - counts[ones], counts[ones], np.searchsorted(ones, bounds)


def _counts_of(rle: dict, shape: Shape, position: int) -> list[int] | str | bytes:
    """Return the counts of one COCO RLE as they are written, its form and size checked."""
    where = f"RLE {position + 1}"
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise UserError(f"{where} is no COCO RLE: it lacks 'size' or 'counts'", "write {'size': [H, W], 'counts': ...}")
    size = rle["size"]
    if not isinstance(size, (list, tuple)) or [_whole(x) for x in size] != list(shape):
        raise UserError(f"{where} has size {str(size)[:60]}, its image is {list(shape)}", "size is [height, width]")
    counts = rle["counts"]
    if isinstance(counts, list) and all(_whole(x) is not None for x in counts) or isinstance(counts, (str, bytes)):
        return counts
    raise _no_run_lengths(position)


def _no_run_lengths(position: int) -> UserError:
    return UserError(
        f"RLE {position + 1} has counts that are no run lengths", "counts is a list of integers or COCO's text"
    )


def _whole(value) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else None


# ---- Kaggle text ---------------------------------------------------------------------------------------------------
def checked_order(order: str) -> str:
    """Return the name of a pixel order.

    Raises
    ------
    UserError
        Neither row-major nor column-major.
    """
    if order not in ("row-major", "column-major"):
        raise ValueError(f"order is 'row-major' (Sartorius) or 'column-major' (DSB2018), not {order!r}")
    return order


def decimal_texts(numbers: np.ndarray, bounds: np.ndarray) -> list[str]:
    """Write positive numbers in decimal, separated by spaces: one text for each part ``bounds[i]:bounds[i + 1]``."""
    width = len(str(int(numbers.max(initial=0))))
    letters = np.full((len(numbers), width + 1), ord(" "), np.uint8)
    used = np.ones(letters.shape, bool)
    left = numbers.astype(np.uint32 if width < 10 else np.uint64)
    for column in range(width - 1, -1, -1):  # from the last digit to the first
        used[:, column] = left > 0
        tens = left // 10
        letters[:, column] = left - 10 * tens + ord("0")
        left = tens
    text = letters[used].tobytes().decode("ascii")
    cuts = sums_before(used.sum(axis=1))[bounds].tolist()
    return [text[a : max(a, b - 1)] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def kaggle_pairs(text: str, size: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 0-based starts and lengths of one checked Kaggle text; an empty text is an object of no pixel.

    Raises
    ------
    UserError
        No integers, an odd count, a start or length below 1, runs that are unsorted or leave the image.
    """
    words = str(text).split()
    bad = next((word for word in words if not (word.isascii() and word.isdigit() and len(word) < 16)), None)
    if bad is not None:
        raise UserError(f"RLE {position + 1} holds {bad[:20]!r}", "an RLE is positive whole numbers: start length ...")
    if len(words) % 2:
        raise UserError(
            f"RLE {position + 1} has {len(words)} numbers", "an RLE is pairs: start length start length ..."
        )
    numbers = np.array(words, np.int64).reshape(-1, 2)
    starts, lengths = numbers[:, 0] - 1, numbers[:, 1]
    ends = starts + lengths
    if len(numbers) and (starts.min() < 0 or lengths.min() < 1 or ends.max() > size):
        raise UserError(
            f"RLE {position + 1} leaves its image of {size} px",
            "starts are >= 1, lengths >= 1, start + length - 1 <= H * W",
        )
    if np.any(starts[1:] < ends[:-1]):
        raise UserError(f"RLE {position + 1} has runs out of order or overlapping", "sort the runs by start")
    return starts, lengths
