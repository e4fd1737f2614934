"""Files read by a library of their own: a reader turns its file into `Stack`s, one per scene.

What is the same for all of them (which axis is what, channels, planes, refusals) is done once, in `Scene`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.errors import UserError
from cellkit.microscope.file_info import (
    COLOURS,
    Channel,
    FileInfo,
    Opened,
    Reader,
    Series,
    check_size,
    checked_axes,
    damaged,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SWEEPS = {"λ": "emission", "Λ": "excitation"}  # axes of wavelengths: each band is a channel


@dataclass(frozen=True)
class Stack:
    """One scene as its file stores it.

    Attributes
    ----------
    name, dtype, um_per_px
        As in `Series`.
    axes : str
        The file's own letters: T, C, Z, Y, X, S, λ and Λ (wavelengths), others as they are called there.
    shape : tuple of int
        In the order of `axes`.
    channels : tuple of Channel
        Along C, or along λ or Λ; empty where the file tells nothing.
    block : callable
        Given the indices along the first `lead` axes, returns the rest as an array, or what can be sliced like one.
    lead : int
    problem, remedy : str
        Why the scene cannot be read, known before its axes are checked.
    notes : sequence of str
        As in `Series`.
    region : callable, optional
        (indices along the first `lead` axes, rows, columns) -> what `block` gives, in two slices of its rows and columns; where
        a block cannot be sliced before it is read.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[Channel, ...]
    um_per_px: float
    block: Callable[[tuple[int, ...]], Any]
    lead: int = 0
    problem: str = ""
    remedy: str = ""
    notes: Sequence[str] = ()
    region: Callable[[tuple[int, ...], slice, slice], Any] | None = None


class Scene:
    """A stack whose axes have been given a meaning: its description, and its planes on request."""

    def __init__(self, path: Path, kind: str, stack: Stack, axes: str | None, last: dict, most_px: int):
        self.path, self.kind, self.stack, self.axes = path, kind, stack, stack.axes
        self.samples, self._last = 1, last  # what was read last, of any scene of the file
        notes = tuple(dict.fromkeys(stack.notes))
        plain = Series(stack.name, stack.axes, stack.shape, stack.dtype, stack.channels, stack.um_per_px, notes=notes)
        try:
            self.series = self._described(plain, axes, most_px)
        except UserError as error:
            self.series = replace(plain, problem=error.problem, remedy=error.remedy)

    def _described(self, plain: Series, given: str | None, most_px: int) -> Series:
        """Return the series with axes that are known, checked sizes and one channel per sample."""
        stack = self.stack
        if stack.problem:
            raise UserError(stack.problem, stack.remedy)
        self.axes = _meant_axes(self.path, stack, given)
        sizes = dict(zip(self.axes, stack.shape, strict=True))
        check_size(self.path, sizes["Y"], sizes["X"], most_px)
        text = f"{_called(self.path, stack)} has axes {stack.axes} {stack.shape}"
        if min(sizes["Y"], sizes["X"]) < 2:
            raise UserError(f"{text}: a line scan, no picture", "leave it out, or state other axes")
        if min(self.axes.index("Y"), self.axes.index("X")) < stack.lead:
            raise UserError(f"{text}: no plane can be cut as '{self.axes}'", "export it as OME-TIFF with those axes")
        self.samples = sizes.get("S", 1)
        known, count = len(stack.channels), sizes.get("C", 1)
        unnamed = (f"names {known} channels and holds {count}: their names are taken as unknown",)
        notes = plain.notes + unnamed * (known not in (0, count))
        return replace(plain, axes=self.axes, channels=self._channels(count), notes=notes)

    def _channels(self, count: int) -> tuple[Channel, ...]:
        known = self.stack.channels if len(self.stack.channels) == count else (Channel(),) * count
        if self.samples == 1:
            return known
        colours = COLOURS if self.samples == 3 else tuple(f"sample {i}" for i in range(self.samples))
        if count == 1:
            return tuple(Channel(colour) for colour in colours)
        names = [channel.name or f"channel {i}" for i, channel in enumerate(known)]
        return tuple(Channel(f"{name} {colour}") for name in names for colour in colours)

    def plane(self, time: int, z: int, channel: int) -> np.ndarray:
        """(H, W) of one time, z and channel, in native byte order.

        Raises
        ------
        UserError
            The scene has a problem, or its pixels cannot be read.
        """
        if self.series.problem:
            raise UserError(self.series.problem, self.series.remedy)
        return self.window(time, z, channel, slice(0, self.series.size("Y")), slice(0, self.series.size("X")))

    def window(self, time: int, z: int, channel: int, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) of a plane in two slices, in native byte order.

        Raises
        ------
        UserError
            The scene has a problem, or its pixels cannot be read.
        """
        if self.series.problem:
            raise UserError(self.series.problem, self.series.remedy)
        which, sample = divmod(channel, self.samples)
        at = {"T": time, "Z": z, "C": which, "S": sample, "Y": rows, "X": columns}
        index = tuple(at.get(axis, 0) for axis in self.axes)
        lead = self.stack.lead
        wanted = rows.stop - rows.start, columns.stop - columns.start
        try:
            if self.stack.region is not None and wanted != (self.series.size("Y"), self.series.size("X")):
                whole = tuple(slice(None) if axis in "YX" else k for axis, k in zip(self.axes, index, strict=True))
                plane = np.asarray(self.stack.region(index[:lead], rows, columns)[whole[lead:]])
            else:
                plane = np.asarray(self._block(index[:lead])[index[lead:]])
        except UserError:
            raise
        except Exception as error:
            raise damaged(self.path, self.kind, error) from error
        plane = plane if self.axes.index("Y") < self.axes.index("X") else plane.T
        if plane.shape != wanted:
            raise damaged(self.path, self.kind, f"a plane of {plane.shape} where {wanted} is announced")
        return np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("="))

    def _block(self, index: tuple[int, ...]) -> Any:
        """Return a block; the last one read, of any scene of the file, is kept."""
        key = (id(self), index)
        if key not in self._last:
            self._last.clear()
            self._last[key] = self.stack.block(index)
        return self._last[key]


def _called(path: Path, stack: Stack) -> str:
    return f"{path.name}, image '{stack.name}'," if stack.name else path.name


def _meant_axes(path: Path, stack: Stack, given: str | None) -> str:
    """Return one known letter per axis: those given, else the file's, whose planes must be rows by columns."""
    found, shape = stack.axes, stack.shape
    if given is None:
        flat = _of_a_plane(found)
        if len(flat) == 2 and {found[i] for i in flat} != {"Y", "X"} and not set(found) - {*"TCZYXS"}:
            raise UserError(
                f"{_called(path, stack)} has axes {found} {shape}: its planes lie along {' and '.join(found[i] for i in flat)}, "
                "not along rows and columns",
                f"leave it out, or state what its axes are to count as, e.g. axes: {_as_rows_and_columns(found)}",
            )
        for sweep in SWEEPS:
            found = found.replace(sweep, "C" if "C" not in found else sweep)
    if min(shape, default=0) < 1:
        raise UserError(f"{_called(path, stack)} has axes {stack.axes} {shape}: it holds no pixel", "leave it out")
    return checked_axes(path, found, shape, given)


def _of_a_plane(axes: str) -> list[int]:
    """Return which two axes a plane was recorded along: the last, but for channels and samples."""
    return [i for i, axis in enumerate(axes) if axis not in "CS"][-2:]


def _as_rows_and_columns(axes: str) -> str:
    """Return axes with the two of each plane called Y and X, and others of that name called time or z.

    Examples
    --------
    >>> _as_rows_and_columns("TCZX"), _as_rows_and_columns("YCZX")
    ('TCYX', 'TCYX')
    """
    letters, flat = list(axes), _of_a_plane(axes)
    letters[flat[0]], letters[flat[1]] = "Y", "X"
    free = iter([axis for axis in "TZC" if axis not in letters])
    return "".join(axis if i in flat or axis not in "YX" else next(free, axis) for i, axis in enumerate(letters))


@contextmanager
def open_stacks(
    reader: Reader,
    stacks: Callable[[ModuleType, Path, list[str]], AbstractContextManager[list[Stack]]],
    path: Path,
    axes: str | None,
    most_px: int,
) -> Iterator[Opened]:
    """Open a file of `reader`; `stacks` gives its stacks, and fills a list with what is in none (`FileInfo.left_out`).

    Raises
    ------
    UserError
        Its library is not installed; the file is damaged; no picture can be made of any of its scenes.
    """
    module = reader.library(path.name)
    with ExitStack() as opened:
        try:
            left_out: list[str] = []
            found = opened.enter_context(stacks(module, path, left_out))
            if not found:
                raise damaged(path, reader.kind, "no image in it")
            last: dict = {}
            scenes = [Scene(path, reader.kind, stack, axes, last, most_px) for stack in found]
        except UserError:
            raise
        except Exception as error:
            raise damaged(path, reader.kind, error) from error
        _refuse_if_none_is_left(path, scenes)
        info = FileInfo(path, reader.name, tuple(scene.series for scene in scenes), left_out=tuple(left_out))
        yield Opened(
            info,
            lambda scene, time, z, channel: scenes[scene].plane(time, z, channel),
            lambda scene, *where: scenes[scene].window(*where),
        )


def _refuse_if_none_is_left(path: Path, scenes: Sequence[Scene]) -> None:
    if not all(scene.series.problem for scene in scenes):
        return
    first = scenes[0].series
    if len(scenes) == 1:
        raise UserError(first.problem, first.remedy)
    listed = ", ".join(f"{i} '{s.series.name}' {s.stack.axes} {s.stack.shape}" for i, s in enumerate(scenes[:6]))
    listed += ", ..." if len(scenes) > 6 else ""
    reason = first.problem.split(": ", 1)[-1]
    raise UserError(
        f"{path.name} holds {len(scenes)} images, and none can be read: {listed}; the first: {reason}", first.remedy
    )


def parse_xml(path: Path, text: str) -> Element:
    """Parse metadata that comes with an image; a document type could make it expand without end.

    Raises
    ------
    UserError
        A document type, or no XML.
    """
    from xml.etree import ElementTree

    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path.name} has metadata with a document type", "export the file again without it")
    return ElementTree.fromstring(text)
