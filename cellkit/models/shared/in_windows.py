"""A model on an image that is larger than the memory: what it is asked, and how any model answers that sees pictures.

A window with what lies around it is shown to the model as a picture, in the light of the whole image. What it finds there is
what it finds in the whole image as far as it looks no farther than the halo; where a network's tiles begin may differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.windows import BLOCK_PX, Window, taken, windows_of
from cellkit.models.shared.whole_light import in_light_of

HALO = 3  # diameters that are seen around a window
ASSUMED_PX = 60.0  # diameter of the cells of a model that states none
AGAIN = " (counted in windows that overlap: some more than once)"


@dataclass(frozen=True, eq=False)
class WholeImage:
    """What a model may know of an image that it sees window by window.

    Attributes
    ----------
    image : dask.array.Array, (H, W, 3) uint8
    light : tuple of three
        Of red, green and blue: (values that occur, rising, how often each), None for a colour that is empty.
    folder : Path
        Where the model may keep what takes long; a call that was killed finds it there again.
    """

    image: Any
    light: tuple[tuple[np.ndarray, np.ndarray] | None, ...]
    folder: Path

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (px)."""
        return self.image.shape[:2]

    def part(self, window: Window) -> np.ndarray:
        """Return the picture in a window, (h, w, 3) uint8."""
        return np.ascontiguousarray(taken(self.image, window))

    def for_model(self, name: str) -> WholeImage:
        """Return the same image with a folder of its own for one of several models."""
        (self.folder / name).mkdir(exist_ok=True)
        return replace(self, folder=self.folder / name)


class InWindows(Protocol):
    """A model on one image that is larger than the memory.

    Attributes
    ----------
    halo_px : int
        What has to be seen around a window, so that nearly every cell with its centre in the window is seen whole.
    min_area_px : int
        Smaller cells are dropped, by who asks: each is to be counted once.

    One that leaves out cells by itself has them in ``left_out``, a Counter by reason, of the last window.
    """

    halo_px: int
    min_area_px: int

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which of them are what the whole image would give, (N,) bool."""


def halo_of(diameter_px: float | None) -> int:
    """Return how much is seen around a window of an image with cells of that diameter (px)."""
    return math.ceil(HALO * (diameter_px or ASSUMED_PX)) + 8


def inner(found: Instances, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """Return which cells of a window do not reach a side of it within the image of `shape`, (N,) bool."""
    return ~window.cuts(boxes_in(found, window), shape).any(axis=1)


def boxes_in(found: Instances, window: Window) -> np.ndarray:
    """Return the boxes of a window's cells in the whole image: left, top, right, lower side, (N, 4)."""
    x, y, width, height = found.boxes_xywh.T
    x, y = x + window.left, y + window.top
    return np.stack([x, y, x + width, y + height], axis=1)


def within(window: Window, boxes: np.ndarray) -> np.ndarray:
    """Return which boxes (N, 4) have their centre in a window, (N,) bool."""
    left, top, right, bottom = boxes.T
    x, y = (left + right) / 2, (top + bottom) / 2
    return (window.top <= y) & (y < window.bottom) & (window.left <= x) & (x < window.right)


class AsPictures:
    """Any model on one image: each window is shown to it as a picture, see `InWindows`.

    Parameters
    ----------
    segment : Segmenter
        See `cellkit.models.shared.contract`.
    """

    min_area_px = 0  # the model drops what is small by itself

    def __init__(self, segment: Any, whole: WholeImage):
        self.segment, self.whole, self.left_out = segment, whole, Counter()
        self.halo_px = halo_of(segment.diameter_px)

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which do not reach a side of it, (N,) bool."""
        with in_light_of(self.whole.light):
            (found,) = self.segment([self.whole.part(window)])
        self.left_out = Counter({f"{why}{AGAIN}": cells for why, cells in self.segment.left_out.items()})
        self.segment.left_out.clear()
        return found, inner(found, window, self.whole.shape)


class Changed:
    """What a model finds in windows, each cell changed.

    Parameters
    ----------
    finder : InWindows
    change : callable
        (Window, Instances) -> as many Instances.
    notes : Counter, optional
        What is left out besides, by reason, of every window.
    """

    def __init__(
        self,
        finder: InWindows,
        change: Callable[[Window, Instances], Instances],
        notes: Mapping[str, int] | None = None,
    ):
        self.finder, self.change, self.notes = finder, change, Counter(notes or {})
        self.halo_px, self.min_area_px = finder.halo_px, finder.min_area_px

    @property
    def left_out(self) -> Counter[str]:
        """Of the last window."""
        return left_out_by(self.finder) + self.notes

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, and which of them are what the whole image would give."""
        found, sure = self.finder.find(window)
        return self.change(window, found), sure


class Together:
    """Several models on one image, whose cells of each window are made one set.

    Parameters
    ----------
    finders : sequence of InWindows
    join : callable
        Cells of each model in a window -> cells.
    """

    min_area_px = 0  # each model's own is used here

    def __init__(self, finders: Sequence[InWindows], whole: WholeImage, join: Callable[[list[Instances]], Instances]):
        self.finders, self.whole, self.join, self.left_out = finders, whole, join, Counter()
        self.halo_px = max(finder.halo_px for finder in finders)

    def find(self, window: Window) -> tuple[Instances, np.ndarray]:
        """Return the cells in a window, in its own pixels, and which do not reach a side of it, (N,) bool."""
        from cellkit.cells.leftout import too_small

        founds, self.left_out = [], Counter()
        for finder in self.finders:
            found, _ = finder.find(window)
            small = found.areas_px < finder.min_area_px
            self.left_out.update(left_out_by(finder))
            if small.any():
                self.left_out[f"{too_small(finder.min_area_px)}{AGAIN}"] += int(small.sum())
            founds.append(found[~small])
        found = self.join(founds)
        return found, inner(found, window, self.whole.shape)


def left_out_by(finder: InWindows) -> Counter[str]:
    """Return what a model left out by itself in the last window."""
    return getattr(finder, "left_out", Counter())


def own_cells(finder: InWindows, shape: tuple[int, int]) -> Iterator[Instances]:
    """Yield the cells of an image block by block, each once and whole, in the pixels of its block: for counts and medians."""
    for block in windows_of(shape, BLOCK_PX):
        seen = block.grown(finder.halo_px, shape)
        found, sure = finder.find(seen)
        yield found[sure & within(block, boxes_in(found, seen)) & (found.areas_px >= finder.min_area_px)]
