"""One image of a prediction, in whichever process: read, its cells found, everything of it written; or told to wait its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.resize import fit_to
from cellkit.errors import UserError, of_place
from cellkit.finding import Finder
from cellkit.machine import check_memory
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import MAX_PLANE_PX, check_size
from cellkit.microscope.frames import Frame, reason_of
from cellkit.microscope.overlay_mark import mark_of, stamp_of
from cellkit.predict.images import Picture, read_picture, record_of
from cellkit.predict.outputs import write_overlay

LARGE, ALONE, SCALED = "large", "alone", "scaled"  # turns
MADE_BY = "proposed"  # by a model, and nothing is scored against it


class Later(Exception):
    """An image whose turn comes later: read window by window, alone in the memory, or by a model of its scale."""

    def __init__(self, turn: str, scale: float = 1.0):
        super().__init__(turn, scale)
        self.turn, self.scale = turn, scale


@dataclass(frozen=True)
class Outcome:
    """What became of an image: what to say of how it was read, and of cells left out; or when its `turn` comes, see `Later`."""

    notes: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    turn: str = ""
    scale: float = 1.0
    elsewhere_s: float = 0.0


@dataclass(frozen=True)
class Outputs:
    """What is written of each image beside its part: label files of a form, pictures with outlines."""

    classes: tuple[str, ...]
    labels: Path | None = None
    overlays: Path | None = None
    form: str = "tif"

    def keep(self, frame: Frame, picture: Picture, found: Instances, part: Path) -> None:
        """Write everything of one image; its part last."""
        from cellkit.formats.coco import write_coco

        drawn, found = found, fit_to(found, picture.file_shape)
        if self.overlays:
            path = self.overlays / f"{frame.image_id}.png"
            write_overlay(path, picture.image, drawn, self.classes, stamp_of(found))
        self.write_labels(frame, found, self.classes)
        write_coco(part, [record_of(frame, picture)], [found], self.classes, with_scores=True, made_by=[MADE_BY])

    def are_of(self, frame: Frame, part: Path) -> bool:
        """Take up what an earlier call left of an image; False when there is nothing, or not all."""
        from cellkit.formats.coco_reading import read_coco

        if part.with_suffix(".large").is_dir():  # what is done of it is taken up window by window
            return False
        if not part.is_file():
            return False
        coco = read_coco(part) if self.labels or self.overlays else None
        if self.overlays and mark_of(self.overlays / f"{frame.image_id}.png") != stamp_of(coco.instances[0]):
            return False  # there is none, or one of other cells
        if self.labels:
            self.write_labels(frame, coco.instances[0], coco.classes)
        return True

    def write_labels(self, frame: Frame, found: Instances, classes: Sequence[str]) -> None:
        """Write the label file of one image, where any are wanted."""
        from cellkit.formats.any import writable
        from cellkit.formats.contract import ImageToWrite

        if self.labels:
            module = writable()[self.form]
            image = ImageToWrite(frame.image_id, found, tuple(classes), MADE_BY, picture=frame.path, form=self.form)
            module.write_image(self.labels / f"{frame.image_id}{module.WRITES[self.form]}", image)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads a frame as the picture that a loaded model is shown; refuses what does not fit into the memory.

    Parameters
    ----------
    segment : Segmenter
        Loaded for pictures that were resized by `scale`.
    own_px : bool
        Whether that matters: its diameter is in pixels of the files.
    window_px : int or None
        Larger images are read window by window, where they can be; None = those that do not fit into the memory.
    workers : int
        Processes that share the memory.
    """

    segment: Any
    conversion: Conversion | None
    scale: float
    own_px: bool
    window_px: int | None
    workers: int

    def __call__(self, frame: Frame) -> tuple[np.ndarray, Picture]:
        """Return the picture, as an array and with what is told of it.

        Raises
        ------
        Later
            It is not its turn.
        UserError
            As `read_picture`, or it does not fit into the memory.
        """

        def ask(shape: tuple[int, int], own: float, in_windows: bool) -> None:
            if own == self.scale or not self.own_px:  # of another scale: when its turn comes
                self._ask(frame, shape, own, in_windows)

        picture = read_picture(frame, self.conversion, ask)
        if self.own_px and picture.scale != self.scale:
            raise Later(SCALED, picture.scale)
        return picture.image, picture

    def _ask(self, frame: Frame, shape: tuple[int, int], own: float, in_windows: bool) -> None:
        """Refuse an image that does not fit into the memory; one that can be read window by window, or alone, has its turn."""
        reason = getattr(self.segment, "whole_only", "of it nothing else is known")  # a function that is no `Segmenter`
        able = in_windows and not reason
        if able and self.window_px is not None and max(shape) > self.window_px:
            raise Later(LARGE, own)
        try:
            check_size(frame.path, *shape, MAX_PLANE_PX)
            if hasattr(self.segment, "bytes_for"):
                check_memory(frame.path, self.segment.bytes_for(shape) * self.workers, "finding the cells of")
        except UserError as error:
            if self.workers > 1:
                raise Later(ALONE) from error
            if able:
                raise Later(LARGE, own) from error
            if in_windows:
                raise UserError(
                    f"{error.problem}, and this model sees whole images only: {reason}",
                    "cut the image into tiles, use more memory, or a model that sees windows, such as cellpose_unet",
                ) from error
            raise


@dataclass(frozen=True, eq=False)
class FindAndWrite:
    """One image and its part -> its `Outcome`: what `cellkit.parallel.map_items` calls."""

    find: Finder[Frame]
    outputs: Outputs

    def __call__(self, work: tuple[Frame, Path]) -> Outcome:
        """Find the cells of an image and write everything of it.

        Raises
        ------
        UserError
            It cannot be read, or the model fails on it.
        """
        frame, part = work
        try:
            found = self.find(frame)
        except Later as later:
            return Outcome(turn=later.turn, scale=later.scale)
        except Exception as error:  # whatever a reader or a model raises
            if of_place(error):
                raise
            raise UserError(reason_of(error)) from error
        self.outputs.keep(frame, found.about, found.cells, part)
        return Outcome(found.about.notes, found.left_out, elsewhere_s=found.elsewhere_s)
