"""Leica LIF, by liffile: images and stage positions, wavelength sweeps as channels."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from cellkit.microscope.file_info import Channel, Opened, Reader, damaged
from cellkit.microscope.ome_xml import length_um, positive, square_um
from cellkit.microscope.stacks import SWEEPS, Stack, open_stacks


@contextmanager
def lif_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of a LIF: one per image and stage position; a file shorter than what its header announces is damaged.

    Raises
    ------
    UserError
        The file is shorter than its header announces.
    """
    bytes_there = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(13)  # of the first block: 0x70, its bytes, 0x2A, the letters of the XML, two bytes each
    if len(head) == 13 and (letters := struct.unpack_from("<I", head, 9)[0]) * 2 > bytes_there:
        raise damaged(path, "Leica LIF", f"{2 * letters} bytes of XML are announced, {bytes_there} are there")
    with module.LifFile(path) as lif:
        stacks = [stack for image in lif.images for stack in _split_along("M", _lif_stack(path, image))]
        ends = [image.memory_block.offset + image.memory_block.size for image in lif.images if not image.is_flim]
        if any(end > bytes_there for end in ends):
            raise damaged(path, "Leica LIF", f"{max(ends)} bytes are announced, {bytes_there} are there")
        yield stacks


def _split_along(axis: str, stack: Stack) -> list[Stack]:
    """Return a stack per position along an axis that is no part of a picture; the stack itself where it has none."""
    if axis not in stack.axes or stack.problem:
        return [stack]
    at = stack.axes.index(axis)
    taken = lambda number: lambda index: stack.block(index)[(slice(None),) * at + (number,)]  # noqa: E731
    rest = {"axes": stack.axes.replace(axis, ""), "shape": stack.shape[:at] + stack.shape[at + 1 :]}
    names = [f"{stack.name} position {number}" for number in range(stack.shape[at])]
    return [replace(stack, name=name, block=taken(number), **rest) for number, name in enumerate(names)]


def _lif_stack(path: Path, image) -> Stack:
    """Describe one image; axes in the order they are stored."""
    called = f"{path.name}, image '{image.name}',"
    if image.is_flim:
        return _unreadable(image, f"{called} is a lifetime measurement (FLIM)", "export its intensity image")
    try:
        axes, shape, dtype = "".join(image.dims), tuple(int(n) for n in image.shape), image.dtype
    except ValueError as error:  # channels of several types, or stored with gaps
        return _unreadable(image, f"{called} cannot be described: {str(error).split(';')[0]}", "export it as OME-TIFF")
    if len(axes) != len(shape):
        return _unreadable(image, f"{called} has axes {', '.join(image.dims)} {shape}", "export it as OME-TIFF")
    wanted, stored = math.prod(shape) * dtype.itemsize, image.memory_block.size
    if wanted > stored:
        problem = f"{called} has axes {axes} {shape}, {wanted} bytes, and {stored} are stored"
        return _unreadable(image, problem, "the recording was stopped before it was complete: leave it out")
    notes: list[str] = []
    channels, um_per_px = _lif_bands(image, axes) or _lif_channels(image), _lif_um_per_px(image, axes, notes)
    read = lambda index: _lif_pixels(image)  # noqa: E731
    return Stack(image.name, axes, shape, str(dtype), channels, um_per_px, read, notes=notes)


def _unreadable(image, problem: str, remedy: str) -> Stack:
    return Stack(image.name, "", (), "", (), math.nan, lambda index: None, 0, problem, remedy)


def _lif_pixels(image) -> np.ndarray:
    """All of an image: mapped from disk, or read where colours must be put in order."""
    if "S" in image.dims:
        return image.asarray()
    return image.memory_block.read_array(image.shape, image.dtype, out="memmap")


def _lif_bands(image, axes: str) -> tuple[Channel, ...]:
    """Return a channel per band of a wavelength sweep, where the image is one."""
    found = [axis for axis in SWEEPS if axis in axes]
    if len(found) != 1 or "C" in axes or found[0] not in image.coords:
        return ()
    bands = [round(float(metre) * 1e9, 1) for metre in image.coords[found[0]]]
    return tuple(Channel(f"{SWEEPS[found[0]]} {nm:g} nm", nm) for nm in bands)


def _lif_channels(image) -> tuple[Channel, ...]:
    """Return the dye of each channel, else the colour it is displayed in; LIF tells no wavelength of a channel."""
    found = []
    for element in image.xml_element.iterfind("./Data/Image/ImageDescription/Channels/ChannelDescription"):
        properties = {p.findtext("Key"): p.findtext("Value") for p in element.iterfind("./ChannelProperty")}
        colour = element.get("LUTName")
        found.append(Channel(properties.get("DyeName") or (f"LUT {colour}" if colour else "")))
    return tuple(found)


def _lif_um_per_px(image, axes: str, notes: list[str]) -> float:
    """Micrometres from one column to the next; the length told is that from the first to the last."""
    lengths = {"1": math.nan, "2": math.nan}
    for element in image.xml_element.iterfind("./Data/Image/ImageDescription/Dimensions/DimensionDescription"):
        steps, length = positive(element.get("NumberOfElements")) - 1, (element.get("Length") or "").lstrip("-")
        if element.get("DimID") in lengths and steps > 0:
            whole = (
                length_um(length, element.get("Unit"), notes, largest_um=math.inf) if length.strip("0.") else math.nan
            )
            lengths[element.get("DimID")] = whole / steps
    return square_um(lengths["1"], lengths["2"] if "Y" in axes else math.nan, notes)


def open_lif(path: Path, axes: str | None, most_px: int) -> AbstractContextManager[Opened]:
    """Open a Leica LIF; errors as in `cellkit.microscope.stacks.open_stacks`."""
    return open_stacks(READER, lif_stacks, path, axes, most_px)


READER = Reader("lif", "Leica LIF", (".lif",), open_lif, "liffile", "liffile>=2026.2", "BSD-3-Clause")
