"""Instances: the cells of one image as runs of pixels, each with a class and a score; and the RLE codecs.

Truth and prediction are the same type (truth has score 1). Masks may overlap, and parts of the image may be unknown.
Every conversion is single-pass over the image or over the runs: there is never one mask per cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from cellkit.cells.runs import (
    Shape,
    Values,
    boxes_of,
    checked_order,
    coco_counts,
    coco_runs,
    compress,
    decimal_texts,
    kaggle_pairs,
    merge_adjacent_of_each,
    overpaint,
    placed_runs,
    ranges,
    runs_of,
    runs_of_coco,
    stable_order,
    sums_before,
    turned,
)

IGNORE, IGNORED = "ignore", -1  # name and number of the class whose objects are regions that nobody annotated


@dataclass(frozen=True, eq=False)
class Instances:
    """N objects of one image of shape (H, W).

    Parameters
    ----------
    shape : tuple of int
        (H, W) in px.
    starts, lengths : (R,) int64
        Runs of pixels over the row-major flattened image; sorted and disjoint within an object.
    offsets : (N + 1,) int64
        Object i owns the runs ``offsets[i]:offsets[i + 1]``.
    class_ids : (N,) int64
        0 = class unknown, k = the k-th of the data set's classes.
    scores : (N,) float64
        In [0, 1]; truth has 1.
    boxes_only : bool
        Only the box of each object is known; its mask is the filled box, and no outline may be scored or learned from it.
    unknown : (U, 2) int64
        Start and length of the runs, as above, that are not annotated: they neither train nor score. No object has a pixel there.
    """

    shape: Shape
    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    boxes_only: bool = False
    unknown: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    # ---- made from -------------------------------------------------------------------------------------------------
    @classmethod
    def empty(cls, shape: Shape) -> Instances:
        """No object in an image of `shape`."""
        return cls.from_runs(shape, [], [], [0])

    @classmethod
    def from_runs(
        cls,
        shape: Shape,
        starts: ArrayLike,
        lengths: ArrayLike,
        offsets: ArrayLike,
        class_ids: Values = None,
        scores: Values = None,
    ) -> Instances:
        """Build from runs; classes default to 0 (unknown), scores to 1.

        Raises
        ------
        ValueError
            Not as many classes or scores as objects.
        """
        offsets = np.asarray(offsets, np.int64)
        count = len(offsets) - 1
        class_ids = np.zeros(count, np.int64) if class_ids is None else np.asarray(class_ids, np.int64).reshape(-1)
        scores = np.ones(count) if scores is None else np.asarray(scores, np.float64).reshape(-1)
        if len(class_ids) != count or len(scores) != count:
            raise ValueError(f"{count} objects, but {len(class_ids)} class ids and {len(scores)} scores")
        shape = (int(shape[0]), int(shape[1]))
        return cls(shape, np.asarray(starts, np.int64), np.asarray(lengths, np.int64), offsets, class_ids, scores)

    @classmethod
    def from_labels(cls, labels: np.ndarray, class_ids: Values = None, scores: Values = None) -> Instances:
        """Objects of a label image, in ascending order of label.

        Parameters
        ----------
        labels : (H, W) int, 0 = background, -1 = not annotated
            Ids may have gaps. Other negative ids are refused.
        class_ids, scores : (N,) array, optional
            In the same order.

        Raises
        ------
        ValueError
            Not (H, W) integers, or a negative id other than -1.

        Examples
        --------
        >>> cells = Instances.from_labels(np.array([[0, 2], [7, 2], [-1, -1]]))
        >>> cells.areas_px, cells.unknown_px
        (array([2, 1]), 2)
        """
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            raise ValueError(f"a label image is (H, W) integer, this is {labels.shape} {labels.dtype}")
        starts, lengths, values = runs_of(labels)
        unknown = None
        if values.size and values.min() < -1:
            raise ValueError(f"labels are 0 (background), -1 (not annotated) or positive, found {values.min()}")
        if values.size and values.min() < 0:
            unknown = np.stack([starts, lengths], axis=1)[values < 0]
            starts, lengths, values = (part[values > 0] for part in (starts, lengths, values))
        order = stable_order(values)
        values = values[order]
        firsts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: values.size])
        offsets = np.concatenate([firsts, [values.size]])
        found = cls.from_runs(labels.shape, starts[order], lengths[order], offsets, class_ids, scores)
        return found if unknown is None else replace(found, unknown=unknown)

    @classmethod
    def from_masks(
        cls, masks: Iterable[np.ndarray], shape: Shape, class_ids: Values = None, scores: Values = None
    ) -> Instances:
        """Objects of boolean masks (each (H, W) = `shape`); the masks are consumed one by one and may overlap.

        Raises
        ------
        ValueError
            A mask of another shape.
        """
        runs = []
        for mask in masks:
            if mask.shape != tuple(shape):
                raise ValueError(f"mask of shape {mask.shape} in an image of shape {tuple(shape)}")
            runs.append(runs_of(np.asarray(mask, bool))[:2])
        return cls._joined(shape, runs, class_ids, scores)

    @classmethod
    def from_boxed_masks(
        cls, masks: Iterable, boxes_xy: ArrayLike, shape: Shape, class_ids: Values = None, scores: Values = None
    ) -> Instances:
        """Objects of small boolean masks placed with their upper left corner at integer (x, y); clipped to the image.

        Parameters
        ----------
        masks : iterable of (h, w) bool
        boxes_xy : (N, 2) int
            Column and row of each mask's first pixel; may be negative.
        """
        corners = np.asarray(boxes_xy, np.int64).reshape(-1, 2).tolist()
        runs = [placed_runs(mask, *corner, shape) for mask, corner in zip(masks, corners, strict=True)]
        return cls._joined(shape, runs, class_ids, scores)

    @classmethod
    def from_boxes(
        cls, boxes_xywh: ArrayLike, shape: Shape, class_ids: Values = None, scores: Values = None
    ) -> Instances:
        """Objects of which only the box is known: column, row, width, height in px, inside the image.

        Raises
        ------
        ValueError
            A box that leaves the image.

        Examples
        --------
        >>> found = Instances.from_boxes([[1, 0, 2, 3]], (3, 4))
        >>> found.areas_px, found.boxes_xywh, found.boxes_only
        (array([6]), array([[1, 0, 2, 3]]), True)
        """
        boxes = np.asarray(boxes_xywh, np.int64).reshape(-1, 4)
        x, y, width, height = boxes.T
        if (boxes < 0).any() or (x + width > shape[1]).any() or (y + height > shape[0]).any():
            raise ValueError(f"a box leaves its image of {shape[0]} x {shape[1]} px")
        height = np.where(width > 0, height, 0)
        starts, lengths = ranges(y, height) * int(shape[1]) + np.repeat(x, height), np.repeat(width, height)
        runs = merge_adjacent_of_each(starts, lengths, sums_before(height))
        return replace(cls.from_runs(shape, *runs, class_ids, scores), boxes_only=True)

    @classmethod
    def _joined(cls, shape, runs: Sequence[tuple[np.ndarray, np.ndarray]], class_ids=None, scores=None) -> Instances:
        starts, lengths = (np.concatenate([np.zeros(0, np.int64), *(one[k] for one in runs)]) for k in (0, 1))
        return cls.from_runs(shape, starts, lengths, sums_before([len(begin) for begin, _ in runs]), class_ids, scores)

    @classmethod
    def concatenate(cls, parts: Sequence[Instances]) -> Instances:
        """All objects of several Instances of the same image, in order; not annotated is what one of them says and none labels.

        Raises
        ------
        ValueError
            Parts of images of different size.
        """
        shapes = {part.shape for part in parts}
        if len(shapes) != 1:
            raise ValueError(f"one image has one shape, these parts have {sorted(shapes)}")
        lengths = [np.diff(part.offsets) for part in parts]
        joined = cls.from_runs(
            shapes.pop(),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            sums_before(np.concatenate(lengths)),
            np.concatenate([part.class_ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )
        joined = replace(joined, boxes_only=any(part.boxes_only for part in parts))
        masks = [part.unknown_mask for part in parts if part.unknown_px]
        return joined.with_unknown(np.any(masks, axis=0)) if masks else joined

    # ---- what it holds ---------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Instances({len(self)} objects in {self.shape[0]} x {self.shape[1]} px)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Instances):
            return NotImplemented
        names = ("starts", "lengths", "offsets", "class_ids", "scores", "unknown")
        same = self.shape == other.shape and self.boxes_only == other.boxes_only
        return same and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)

    __hash__ = None

    def __getitem__(self, index) -> Instances:
        """Select objects: an integer, a slice, a boolean mask (N,) or an array of positions."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        counts = np.diff(self.offsets)[chosen]
        runs = ranges(self.offsets[chosen], counts)
        return replace(
            self,
            starts=self.starts[runs],
            lengths=self.lengths[runs],
            offsets=sums_before(counts),
            class_ids=self.class_ids[chosen],
            scores=self.scores[chosen],
        )

    @cached_property
    def owner_of_run(self) -> np.ndarray:
        """(R,) int64: which object each run belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @cached_property
    def areas_px(self) -> np.ndarray:
        """(N,) int64: pixels of each object."""
        total = sums_before(self.lengths)
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    @cached_property
    def boxes_xywh(self) -> np.ndarray:
        """(N, 4) int64: column, row, width, height in px; a one-pixel object is 1 x 1, an object of no pixel 0 x 0."""
        return boxes_of(self.starts, self.lengths, self.offsets, self.shape[1])

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the pixels of one object; a negative index counts from the end."""
        index = range(len(self))[index]
        flat = np.zeros(self.shape[0] * self.shape[1], bool)
        runs = slice(self.offsets[index], self.offsets[index + 1])
        flat[ranges(self.starts[runs], self.lengths[runs])] = True
        return flat.reshape(self.shape)

    @cached_property
    def unknown_px(self) -> int:
        """Pixels that are not annotated."""
        return int(self.unknown[:, 1].sum())

    @property
    def unknown_mask(self) -> np.ndarray:
        """(H, W) bool: the pixels that are not annotated."""
        flat = np.zeros(self.shape[0] * self.shape[1], bool)
        flat[ranges(*self.unknown.T)] = True
        return flat.reshape(self.shape)

    def with_unknown(self, mask: np.ndarray) -> Instances:
        """Return the same objects in an image that is not annotated where `mask` (H, W) is true and no object lies."""
        starts, lengths, _ = runs_of(np.asarray(mask, bool) & (self.paint() == 0))
        return replace(self, unknown=np.stack([starts, lengths], axis=1))

    def without_ignored(self) -> Instances:
        """Return the objects but for those of the class `IGNORED`: what these cover becomes not annotated."""
        no_cells = self[self.class_ids == IGNORED]
        mask = self.unknown_mask | (no_cells.paint() > 0)
        return self[self.class_ids != IGNORED].with_unknown(mask) if len(no_cells) else self

    def region(self) -> Instances:
        """Return what is not annotated as one object of no class; without any, no object."""
        return Instances.from_masks([self.unknown_mask] if self.unknown_px else [], self.shape)

    def paint(self, values: np.ndarray | None = None, unknown: int = 0) -> np.ndarray:
        """Paint a label image; the higher score wins a contested pixel, the earlier object a tie.

        Parameters
        ----------
        values : (N,) int, optional
            What to paint; default 1..N.
        unknown : int
            What to paint where the image is not annotated: -1 in files, which `from_labels` reads.

        Returns
        -------
        (H, W) int32, 0 = background
        """
        if unknown and self.unknown_px:
            return np.where(self.unknown_mask, np.int32(unknown), self.paint(values))
        values = np.arange(1, len(self) + 1) if values is None else np.asarray(values)
        size = self.shape[0] * self.shape[1]
        if self.overlapping:
            rank = np.empty(len(self), np.int64)  # lowest score first, later object first: what is painted last stays
            rank[np.lexsort((-np.arange(len(self)), self.scores))] = np.arange(len(self))
            runs = np.argsort(rank[self.owner_of_run], kind="stable")
            flat = np.zeros(size, np.int32)
            overpaint(flat, self.starts[runs], self.lengths[runs], values[self.owner_of_run[runs]])
            return flat.reshape(self.shape)
        runs = self.by_start
        starts, lengths = self.starts[runs], self.lengths[runs]
        counts, colours = np.empty(2 * len(runs) + 1, np.int64), np.zeros(2 * len(runs) + 1, np.int32)
        counts[1::2], colours[1::2] = lengths, values[self.owner_of_run[runs]]
        counts[::2] = np.concatenate([starts, [size]]) - np.concatenate([[0], starts + lengths])
        return np.repeat(colours, counts).reshape(self.shape)

    @cached_property
    def by_start(self) -> np.ndarray:
        """(R,) int64: the order of all runs by their first pixel."""
        return np.argsort(self.starts, kind="stable")

    @cached_property
    def overlapping(self) -> bool:
        """Whether any pixel belongs to more than one object."""
        starts = self.starts[self.by_start]
        return bool(np.any((starts + self.lengths[self.by_start])[:-1] > starts[1:]))

    def with_classes(self, class_ids: ArrayLike) -> Instances:
        """Return the same objects with other class ids ((N,) or one for all)."""
        return replace(self, class_ids=np.broadcast_to(np.asarray(class_ids, np.int64), (len(self),)).copy())

    def with_scores(self, scores: ArrayLike) -> Instances:
        """Return the same objects with other scores ((N,) or one for all)."""
        return replace(self, scores=np.broadcast_to(np.asarray(scores, np.float64), (len(self),)).copy())

    def as_boxes(self) -> Instances:
        """Return the filled boxes of the objects, known as boxes only."""
        boxes = Instances.from_boxes(self.boxes_xywh, self.shape, self.class_ids, self.scores)
        return boxes.with_unknown(self.unknown_mask) if self.unknown_px else boxes

    def column_major(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return starts, lengths, offsets of the runs over the column-major flattened image."""
        return turned(self.starts, self.lengths, self.offsets, self.shape[1], self.shape[0])

    # ---- codecs ----------------------------------------------------------------------------------------------------
    def to_coco_rle(self, compressed: bool = True) -> list[dict]:
        """COCO run lengths: column-major, starting with a run of zeros.

        Parameters
        ----------
        compressed : bool
            The ASCII form of pycocotools (maskApi.c rleToString) rather than the list of counts.

        Examples
        --------
        >>> mask = np.zeros((3, 4), int); mask[0, 1] = mask[1, 1] = 1
        >>> Instances.from_labels(mask).to_coco_rle(compressed=False)
        [{'size': [3, 4], 'counts': [3, 2, 7]}]
        """
        starts, lengths, offsets = self.column_major()
        counts, bounds = coco_counts(starts, lengths, offsets, self.shape[0] * self.shape[1])
        size = [int(self.shape[0]), int(self.shape[1])]
        if compressed:
            return [{"size": list(size), "counts": text} for text in compress(counts, bounds)]
        parts = np.split(counts, bounds[1:-1]) if len(self) else []
        return [{"size": list(size), "counts": part.tolist()} for part in parts]

    @classmethod
    def from_coco_rle(
        cls, rles: Sequence[dict], shape: Shape, class_ids: Values = None, scores: Values = None
    ) -> Instances:
        """Read COCO run lengths (compressed text or lists), validated before anything is decoded.

        Raises
        ------
        UserError
            A size that is not `shape`, a negative count, or counts that do not sum to H * W.
        """
        height, width = int(shape[0]), int(shape[1])
        columns = runs_of_coco(*coco_runs(rles, (height, width)), height * width)
        return cls.from_runs((height, width), *turned(*columns, height, width), class_ids, scores)

    def to_kaggle_rle(self, order: str) -> list[str]:
        """Kaggle text: pairs of 1-based start and length.

        Parameters
        ----------
        order : {"row-major", "column-major"}
            Sartorius is row-major (whatever its page says), DSB2018 column-major.

        Examples
        --------
        >>> mask = np.zeros((3, 4), int); mask[0, 1] = mask[1, 1] = 1
        >>> cells = Instances.from_labels(mask)
        >>> cells.to_kaggle_rle("row-major"), cells.to_kaggle_rle("column-major")
        (['2 1 6 1'], ['4 2'])
        """
        if checked_order(order) == "row-major":
            starts, lengths, offsets = self.starts, self.lengths, self.offsets
        else:
            starts, lengths, offsets = self.column_major()
        return decimal_texts(np.stack([starts + 1, lengths], axis=1).ravel(), 2 * offsets)

    @classmethod
    def from_kaggle_rle(
        cls, texts: Sequence[str], shape: Shape, order: str, class_ids: Values = None, scores: Values = None
    ) -> Instances:
        """Read Kaggle texts, one per object; validated before anything is decoded.

        Raises
        ------
        UserError
            Not integers, an odd count, a start below 1, a length below 1, runs unsorted, touching back, or past the image.
        """
        height, width = int(shape[0]), int(shape[1])
        checked_order(order)
        runs = [kaggle_pairs(text, height * width, position) for position, text in enumerate(texts)]
        flat = cls._joined((height, width), runs)
        if order == "row-major":
            runs = merge_adjacent_of_each(flat.starts, flat.lengths, flat.offsets)
        else:
            runs = turned(flat.starts, flat.lengths, flat.offsets, height, width)
        return cls.from_runs((height, width), *runs, class_ids, scores)
