"""Arithmetic of runs: (start, length) pairs over a flattened image, all objects in one go."""

from __future__ import annotations

import numpy as np

Shape = tuple[int, int]


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


def runs_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, length and value of the runs of equal non-zero values, row-major."""
    flat = np.ascontiguousarray(labels).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begins = np.r_[0, edges]
    ends = np.r_[edges, flat.size]
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
    new = np.flatnonzero(np.r_[True, starts[1:] != starts[:-1] + lengths[:-1]])
    return starts[new], np.add.reduceat(lengths, new)


def merge_adjacent_of_each(
    starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join touching runs of the same object; object i has the runs ``offsets[i]:offsets[i + 1]``."""
    if not len(starts):
        return starts, lengths, offsets
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    new = np.flatnonzero(np.r_[True, (starts[1:] != starts[:-1] + lengths[:-1]) | (owner[1:] != owner[:-1])])
    counts = np.bincount(owner[new], minlength=len(offsets) - 1)
    return starts[new], np.add.reduceat(lengths, new), np.r_[0, np.cumsum(counts)]


def turned(starts, lengths, offsets, line: int, lines: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    new = np.r_[True, begins[1:] != ends[:-1]]  # else the run goes on in the next line
    bounds = np.searchsorted(begins, firsts)
    new[bounds[:-1][np.diff(bounds) > 0]] = True
    begins, ends = begins[new], ends[np.r_[new[1:], True]]
    bounds = np.searchsorted(begins, firsts)
    return begins - np.repeat(firsts[:-1], np.diff(bounds)), ends - begins, bounds


def _crossed(events, side, which: int, line: int, lines: int) -> np.ndarray:
    """Return, in order and along the other axis, the pixels between the events where `side` is `which`."""
    here = np.flatnonzero(side[:-1] == which)
    owner, pixels = np.divmod(ranges(events[here], events[here + 1] - events[here]), (lines + 1) * line)
    across, along = np.divmod(pixels, line)
    keys = (owner * line + along) * lines + across
    keys.sort(kind="stable")
    return keys


def overpaint(flat: np.ndarray, starts, lengths, values, block_px: int = 2**15) -> None:
    """Paint runs one after the other, later over earlier, in blocks that bound the memory."""
    if not len(starts):
        return
    block, long = np.cumsum(lengths) // block_px, lengths > block_px
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
