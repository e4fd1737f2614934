"""Files of microscope makers and OME-Zarr, opened like any other: each reader is named here, none is searched for.

Zeiss CZI by pylibCZIrw (LGPL, the extra `czi`), Leica LIF by liffile, Nikon ND2 by nd2, OME-Zarr by zarr. A reader
turns its file into `Stack`s, one per scene; what is the same for all of them (which axis is what, channels, planes,
refusals) is done once, in `Scene`.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cellkit.errors import UserError
from cellkit.headers import length_um, ome_um_per_px, positive, square_um, wavelength_nm
from cellkit.readers import (
    COLOURS,
    Channel,
    FileInfo,
    Opened,
    Series,
    check_size,
    checked_axes,
    damaged,
)
from cellkit.tiffs import ome_channels

SWEEPS = {"λ": "emission", "Λ": "excitation"}  # axes of wavelengths: each band is a channel
MAX_BLOCK_BYTES = 2**31  # of one chunk of an OME-Zarr, asked of its header


# ---- what a reader gives -------------------------------------------------------------------------------------------
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
        Why the scene cannot be read, known before its axes are looked at.
    notes : tuple of str
        As in `Series`.
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
    notes: tuple[str, ...] = ()


class Scene:
    """A stack whose axes have been given a meaning: its description, and its planes on request."""

    def __init__(self, path: Path, kind: str, stack: Stack, axes: str | None, last: dict):
        self.path, self.kind, self.stack, self.axes = path, kind, stack, stack.axes
        self.samples, self._last = 1, last  # what was read last, of any scene of the file
        plain = Series(
            stack.name, stack.axes, stack.shape, stack.dtype, stack.channels, stack.um_per_px, notes=stack.notes
        )
        try:
            self.series = self._described(plain, axes)
        except UserError as error:
            problem, _, remedy = str(error).partition("\n")
            self.series = replace(plain, problem=problem, remedy=remedy)

    def _described(self, plain: Series, given: str | None) -> Series:
        """Return the series with axes that are known, checked sizes and one channel per sample."""
        stack = self.stack
        if stack.problem:
            raise UserError(stack.problem, stack.remedy)
        self.axes = _meant_axes(self.path, stack, given)
        sizes = dict(zip(self.axes, stack.shape, strict=True))
        check_size(self.path, sizes["Y"], sizes["X"])
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
        """(H, W) of one time, z and channel, in native byte order."""
        if self.series.problem:
            raise UserError(self.series.problem, self.series.remedy)
        which, sample = divmod(channel, self.samples)
        at = {"T": time, "Z": z, "C": which, "S": sample}
        index = tuple(slice(None) if axis in "YX" else at.get(axis, 0) for axis in self.axes)
        lead = self.stack.lead
        key = (id(self), index[:lead])
        try:
            if key not in self._last:
                self._last.clear()
                self._last[key] = self.stack.block(index[:lead])
            plane = np.asarray(self._last[key][index[lead:]])
        except UserError:
            raise
        except Exception as error:
            raise damaged(self.path, self.kind, error) from error
        plane = plane if self.axes.index("Y") < self.axes.index("X") else plane.T
        wanted = self.series.size("Y"), self.series.size("X")
        if plane.shape != wanted:
            raise damaged(self.path, self.kind, f"a plane of {plane.shape} where {wanted} is announced")
        return np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("="))


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
    """Return which two axes a plane was recorded along: the last, channels and samples aside."""
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


# ---- opening -------------------------------------------------------------------------------------------------------
class Vendor(NamedTuple):
    """A format: what it is called, what reads it, how that is installed, and its stacks.

    `stacks` is given a list for what lies in the file and is in none of the stacks, see `FileInfo.left_out`.
    """

    kind: str
    reader: str
    module: str
    requirement: str
    licence: str
    stacks: Callable[[ModuleType, Path, list[str]], AbstractContextManager[list[Stack]]]

    @property
    def package(self) -> str:
        """Name of what is installed, without its version."""
        return self.requirement.split(">")[0]


@contextmanager
def open_vendor(path: Path, axes: str | None = None) -> Iterator[Opened]:
    """Open a CZI, LIF, ND2 or OME-Zarr.

    Raises
    ------
    UserError
        Its reader is not installed; the file is damaged; no picture can be made of any of its scenes.
    """
    vendor = VENDORS[path.suffix.lower()]
    module = load_reader(vendor, path.name)
    with ExitStack() as opened:
        try:
            left_out: list[str] = []
            stacks = opened.enter_context(vendor.stacks(module, path, left_out))
        except UserError:
            raise
        except Exception as error:
            raise damaged(path, vendor.kind, error) from error
        if not stacks:
            raise damaged(path, vendor.kind, "no image in it")
        last: dict = {}
        scenes = [Scene(path, vendor.kind, stack, axes, last) for stack in stacks]
        _refuse_if_none_is_left(path, scenes)
        info = FileInfo(path, vendor.reader, tuple(scene.series for scene in scenes), left_out=tuple(left_out))
        yield Opened(info, lambda scene, time, z, channel: scenes[scene].plane(time, z, channel))


def load_reader(vendor: Vendor, name: str) -> ModuleType:
    """Import what reads a format; `name` is the file the error is about."""
    try:
        return importlib.import_module(vendor.module)
    except ImportError as error:
        raise UserError(
            f"{name} is {vendor.kind}, which {vendor.package} ({vendor.licence}) reads; it cannot be imported: {error}",
            f"pip install '{vendor.requirement}'",
        ) from error


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


def _xml(path: Path, text: str):
    """Parse metadata that comes with an image; a document type could make it expand without end."""
    from xml.etree import ElementTree

    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path.name} has metadata with a document type", "export the file again without it")
    return ElementTree.fromstring(text)


# ---- Zeiss CZI -----------------------------------------------------------------------------------------------------
CZI_TYPES = {"Gray8": ("uint8", 1), "Gray16": ("uint16", 1), "Gray32Float": ("float32", 1), "Bgr24": ("uint8", 3),
             "Bgr48": ("uint16", 3), "Bgr96Float": ("float32", 3)}  # fmt: skip
CZI_OTHER_AXES = "VHIRB"  # view, phase, illumination, rotation, block


@contextmanager
def czi_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of a CZI: one per scene; the tiles of a mosaic are put together by the library, gaps are 0."""
    _refuse_part_of_czi(path)
    blocks: list[tuple[dict, tuple, str]] = []
    seen: set[int] = set()

    def note(_, block) -> bool:
        seen.add(block.coordinate.to_dict().get("S", -1))
        if abs(block.get_zoom() - 1) < 1e-6:  # the others are smaller copies of these
            rect = block.logicalRect
            blocks.append((block.coordinate.to_dict(), (rect.x, rect.y, rect.w, rect.h), block.pixelType.name))
        return True

    with module.open_czi(str(path)) as czi:
        czi.enumerate_subblocks(note)
        text = czi.raw_metadata
        tree = _xml(path, text) if text else None
        scenes = sorted({at.get("S", -1) for at, *_ in blocks})
        announced = (
            [int(i) for s in _czi_scenes(tree) if (i := s.get("Index") or "").isdigit()] if scenes != [-1] else []
        )
        left_out += [
            f"{path.name}: scene {number} '{_czi_scene_name(tree, number)}' has no pixels at full size"
            for number in sorted(seen.union(announced) - set(scenes))
        ]
        yield [_czi_stack(path, czi, tree, s, [b for b in blocks if b[0].get("S", -1) == s]) for s in scenes]


def _refuse_part_of_czi(path: Path) -> None:
    """Refuse a file that its header calls a further part of another one."""
    with open(path, "rb") as file:
        head = file.read(84)
    if head[:10] == b"ZISRAWFILE" and len(head) == 84 and int.from_bytes(head[80:84], "little", signed=True) > 0:
        raise UserError(
            f"{path.name} is part {int.from_bytes(head[80:84], 'little') + 1} of a CZI of several files",
            "give the first file of it, or save it as one file in ZEN",
        )


def _czi_stack(path: Path, czi, tree, scene: int, blocks: list) -> Stack:
    """Describe one scene from the header of its sub-blocks."""
    values = {axis: sorted({at.get(axis, 0) for at, *_ in blocks}) for axis in CZI_OTHER_AXES + "TCZ"}
    extra = "".join(axis for axis in CZI_OTHER_AXES if len(values[axis]) > 1)
    lead = extra + "".join(axis for axis in "TCZ" if len(values[axis]) > 1)
    left, top = (min(rect[i] for _, rect, _ in blocks) for i in (0, 1))
    width, height = (max(rect[i] + rect[i + 2] for _, rect, _ in blocks) - (left, top)[i] for i in (0, 1))
    types = sorted({kind for *_, kind in blocks})
    dtype, samples = CZI_TYPES.get(types[0], (types[0], 1))
    stored = {tuple(at.get(axis, 0) for axis in lead) for at, *_ in blocks}

    def block(index: tuple[int, ...]) -> np.ndarray:
        wanted = tuple(values[axis][i] for axis, i in zip(lead, index, strict=True))
        if wanted not in stored:
            where = ", ".join(f"{axis} {value}" for axis, value in zip(lead, wanted, strict=True))
            raise UserError(
                f"{path.name} holds no pixels of {where}", "the recording was stopped, or the file is cut short"
            )
        at = {axis: values[axis][0] for axis in "TCZ"} | dict(zip(lead, wanted, strict=True))
        roi = (left, top, width, height)
        pixels = czi.read(roi=roi, plane=at, scene=None if scene < 0 else scene, pixel_type=types[0])
        return pixels[..., 0] if samples == 1 else pixels[..., ::-1]  # stored blue, green, red

    shape = (*(len(values[axis]) for axis in lead), height, width, *((samples,) if samples > 1 else ()))
    axes = f"{lead}YX{'S' * (samples > 1)}"
    said: list[str] = []
    told = _czi_channels(tree, said)
    channels = tuple(told[i] for i in values["C"]) if len(told) > values["C"][-1] else ()
    without = [told[i].name or f"channel {i}" for i in range(len(told)) if i not in values["C"]]
    if without:
        said.append(f"no pixels are stored of the channels {', '.join(without)}")
    refused = _czi_refusal(f"{path.name} has axes {axes} {shape}", extra, types)
    um_per_px = _czi_um_per_px(tree, said)
    return Stack(
        _czi_scene_name(tree, scene),
        axes,
        shape,
        dtype,
        channels,
        um_per_px,
        block,
        len(lead),
        *refused,
        tuple(dict.fromkeys(said)),
    )


def _czi_refusal(text: str, extra: str, types: list[str]) -> tuple[str, str]:
    """Return why a scene with other axes than T, C, Z or with several pixel types cannot be read, and what to do."""
    if extra:
        remedy = "make one file of each in ZEN (Create Image Subset), or export OME-TIFF"
        return f"{text}: {', '.join(extra)} is no time, channel or z plane", remedy
    if len(types) > 1 or types[0] not in CZI_TYPES:
        remedy = f"make one file of each type in ZEN; {', '.join(CZI_TYPES)} are read"
        return f"{text} and pixels of type {', '.join(types)}", remedy
    return "", ""


def _czi_channels(tree, said: list[str]) -> list[Channel]:
    """Names and wavelengths, as recorded; display names may be anyone's and are not used."""
    listed = [] if tree is None else tree.iterfind(".//Information/Image/Dimensions/Channels/Channel")
    return [
        Channel.lit(
            channel.get("Name") or "",
            *(
                wavelength_nm(channel.findtext(f"{kind}Wavelength"), "nm", said, f"{kind} of {channel.get('Name')}")
                for kind in ("Emission", "Excitation")
            ),
        )
        for channel in listed
    ]


def _czi_um_per_px(tree, said: list[str]) -> float:
    listed = [] if tree is None else tree.iterfind(".//Scaling/Items/Distance")
    told = {d.get("Id"): length_um(d.findtext("Value"), "m", said) for d in listed if d.get("Id") in ("X", "Y")}
    return square_um(told.get("X", math.nan), told.get("Y", math.nan), said)


def _czi_scenes(tree) -> list:
    return [] if tree is None else list(tree.iterfind(".//Information/Image/Dimensions/S/Scenes/Scene"))


def _czi_scene_name(tree, scene: int) -> str:
    return next((s.get("Name") or "" for s in _czi_scenes(tree) if s.get("Index") == str(scene)), "")


# ---- Leica LIF -----------------------------------------------------------------------------------------------------
@contextmanager
def lif_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of a LIF: one per image and stage position; a file shorter than what its header announces is damaged."""
    bytes_there = path.stat().st_size
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
    said: list[str] = []
    channels, um_per_px = _lif_bands(image, axes) or _lif_channels(image), _lif_um_per_px(image, axes, said)
    read = lambda index: _lif_pixels(image)  # noqa: E731
    return Stack(image.name, axes, shape, str(dtype), channels, um_per_px, read, notes=tuple(dict.fromkeys(said)))


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
        told = {p.findtext("Key"): p.findtext("Value") for p in element.iterfind("./ChannelProperty")}
        colour = element.get("LUTName")
        found.append(Channel(told.get("DyeName") or (f"LUT {colour}" if colour else "")))
    return tuple(found)


def _lif_um_per_px(image, axes: str, said: list[str]) -> float:
    """Micrometres from one column to the next; the length told is that from the first to the last."""
    told = {"1": math.nan, "2": math.nan}
    for element in image.xml_element.iterfind("./Data/Image/ImageDescription/Dimensions/DimensionDescription"):
        steps, length = positive(element.get("NumberOfElements")) - 1, (element.get("Length") or "").lstrip("-")
        if element.get("DimID") in told and steps > 0:
            whole = (
                length_um(length, element.get("Unit"), said, largest_um=math.inf) if length.strip("0.") else math.nan
            )
            told[element.get("DimID")] = whole / steps
    return square_um(told["1"], told["2"] if "Y" in axes else math.nan, said)


# ---- Nikon ND2 -----------------------------------------------------------------------------------------------------
@contextmanager
def nd2_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of an ND2: one per stage position; a file shorter than its uncompressed frames is damaged."""
    with module.ND2File(path) as nd2:
        told = nd2.attributes
        wanted = told.sequenceCount * told.heightPx * (told.widthBytes or 0) if not told.compressionType else 0
        if wanted > path.stat().st_size:
            raise damaged(path, "Nikon ND2", f"{wanted} bytes are announced, {path.stat().st_size} are there")
        yield [_nd2_stack(nd2, position) for position in range(nd2.sizes.get("P", 1))]


def _nd2_stack(nd2, position: int) -> Stack:
    loops = "".join(axis for axis in nd2.sizes if axis not in "PCYXS")
    axes = loops + "".join(axis for axis in nd2.sizes if axis in "CYXS")
    sequence = {tuple(at.get(axis, 0) for axis in "P" + loops): number for number, at in enumerate(nd2.loop_indices)}

    def block(index: tuple[int, ...]) -> np.ndarray:
        return nd2.read_frame(sequence[position, *index])

    channels, um_per_px, said = [], math.nan, []
    for told in nd2.metadata.channels or []:
        name = told.channel.name or ""
        nm = positive(told.channel.emissionLambdaNm)  # 0 where the microscope knows none
        channels.append(Channel(name, wavelength_nm(nm, "nm", said, f"Emission of {name}") if nm > 0 else math.nan))
        if told.volume.axesCalibrated[0]:
            um_per_px = square_um(*(length_um(side, "um", said) for side in told.volume.axesCalibration[:2]), said)
    name = f"position {position}" if nd2.sizes.get("P", 1) > 1 else ""
    shape = tuple(int(nd2.sizes[axis]) for axis in axes)
    notes = tuple(dict.fromkeys(said))
    return Stack(name, axes, shape, str(nd2.dtype), tuple(channels), um_per_px, block, len(loops), notes=notes)


# ---- OME-Zarr ------------------------------------------------------------------------------------------------------
@contextmanager
def zarr_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of an OME-Zarr 0.1 to 0.5: an image, the images of bioformats2raw, or every field of a plate's wells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about extensions of the format that are not used here
        root = module.open_group(str(path), mode="r")
        names = _zarr_images(root)
        told = _bioformats_images(path)
        left_out += _zarr_left_out(path, root, names, len(told))
        told = told if len(told) == len(names) else [None] * len(names)
        stacks = [_zarr_stack(path, root, name, image) for name, image in zip(names, told, strict=True)]
    yield stacks


def _ome(group) -> dict:
    """Return the OME metadata of a group: below "ome" since 0.5."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _zarr_images(root) -> list[str]:
    """Return where below the root the images lie, in order; "" is the root itself."""
    told = _ome(root)
    if "multiscales" in told:
        return [""]
    if "plate" in told:
        wells = [str(well["path"]) for well in told["plate"]["wells"]]
        return [f"{well}/{field['path']}" for well in wells for field in _ome(root[well])["well"]["images"]]
    listed = _ome(root["OME"]).get("series") if "OME" in root else None
    listed = told.get("series") or listed
    return [str(name) for name in listed or sorted((n for n in root.group_keys() if n.isdecimal()), key=int)]


def _zarr_left_out(path: Path, root, names: list[str], described: int) -> list[str]:
    """Name the images that the metadata of the root does not lead to, and those it describes that are not there."""
    if "plate" in _ome(root):
        return []
    below = [name for name in root.group_keys() if name not in names and "multiscales" in _ome(root[name])]
    found = [f"{path.name}: image '{name}' is not listed in its metadata" for name in sorted(below)]
    for name in names:
        scales = _ome(root[name] if name else root)["multiscales"]
        found += [f"{path.name}: image {scale.get('name') or number} {f'of {name} ' if name else ''}is not the first listed"
                  for number, scale in enumerate(scales[1:], 1)]  # fmt: skip
    if described and described != len(names):
        found.append(f"{path.name}: its OME-XML describes {described} images, {len(names)} are there")
    return found


def _zarr_stack(path: Path, root, name: str, image) -> Stack:
    """Describe one image at full resolution."""
    group = root[name] if name else root
    told = _ome(group)
    scales = told["multiscales"][0]
    dataset = str(scales["datasets"][0]["path"])
    array = group[dataset]
    listed = scales.get("axes") or list("tczyx")
    letters = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in listed]
    axes = "".join(letter.upper() if len(letter) == 1 else "Q" for letter in letters)
    if len(axes) != array.ndim:
        raise UserError(f"{path.name} names axes {letters} of an array of shape {array.shape}", "write the file again")
    said: list[str] = []
    channels = tuple(
        Channel(
            label := str(c.get("label") or ""), wavelength_nm(c.get("emissionWave"), "nm", said, f"Emission of {label}")
        )
        for c in (told.get("omero") or {}).get("channels", [])
    )
    um_per_px = _zarr_um_per_px(scales, listed, said)
    if image is not None:
        known = ome_channels(image, said)
        named = len(known) == len(channels) and not any(c.wavelength_nm > 0 for c in channels)
        channels = tuple(known) if named or not channels else channels
        um_per_px = um_per_px if um_per_px > 0 else ome_um_per_px(image, said)
    problem, remedy = "", ""
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    if chunk_bytes > MAX_BLOCK_BYTES:
        problem, remedy = f"{path.name} has chunks of {chunk_bytes:,} bytes", "store it in smaller chunks"
    elif array.dtype.kind not in "biufc" or "pickle" in _zarr_codecs(array):
        problem, remedy = f"{path.name} holds Python objects, no pixels: nothing of it was read", "store it as numbers"
    elif not _has_chunks(path / name / dataset):
        problem, remedy = (
            f"{path.name}: no pixels are stored in {Path(name, dataset).as_posix()}",
            "copy the whole folder again",
        )
    else:
        said += _missing_chunks(path / name / dataset, array, axes)
        for level in scales["datasets"][1:]:
            if str(level["path"]) in group and math.prod(group[str(level["path"])].shape) > math.prod(array.shape):
                problem = (
                    f"{path.name}: level {level['path']} is larger than {dataset}, the first, which should be full size"
                )
                remedy = "write the file again"
    shape = tuple(int(n) for n in array.shape)
    read = lambda index: array  # noqa: E731
    return Stack(
        name, axes, shape, str(array.dtype), channels, um_per_px, read, 0, problem, remedy, tuple(dict.fromkeys(said))
    )


def _zarr_codecs(array) -> set[str]:
    """Return what the chunks of an array of format 2 are packed with; unpacking a pickle runs what it names."""
    packed = (*(getattr(array.metadata, "filters", None) or ()), getattr(array.metadata, "compressor", None))
    return {str(getattr(codec, "codec_id", "")) for codec in packed}


def _has_chunks(folder: Path) -> bool:
    """Tell whether an array has any chunk: those that are all 0 need not be there, but not a single one is no image."""
    return not folder.is_dir() or any(
        child.name not in ("zarr.json", ".zarray", ".zattrs") for child in folder.iterdir()
    )


MOST_CHUNKS = 10**6  # up to which each is looked for; of more, only how many there are


def _missing_chunks(folder: Path, array, axes: str) -> list[str]:
    """Say which chunks are not stored: they count as one value (0), whether they were empty or lost."""
    if not folder.is_dir():
        return []
    whole = getattr(array, "shards", None) or array.chunks
    grid = [-(-length // side) for length, side in zip(array.shape, whole, strict=True)]
    there = {
        child.relative_to(folder).as_posix()
        for child in folder.rglob("*")
        if child.name not in ("zarr.json", ".zarray", ".zattrs") and child.is_file()
    }
    if math.prod(grid) > MOST_CHUNKS:
        lost = math.prod(grid) - len(there)
        return [f"{lost} of {math.prod(grid)} chunks are not stored: they count as empty"] if lost > 0 else []
    metadata = array.metadata
    key = getattr(metadata, "encode_chunk_key", None) or metadata.chunk_key_encoding.encode_chunk_key
    lost = [at for at in np.ndindex(*grid) if key(at) not in there]
    if not lost:
        return []
    text = f"{len(lost)} of {math.prod(grid)} chunks are not stored: they count as {array.fill_value or 0}"
    for axis, word in (("C", "channel"), ("T", "time")):
        if axis in axes:
            i = axes.index(axis)
            each = math.prod(grid) // grid[i]
            gone = [n for n in range(grid[i]) if sum(at[i] == n for at in lost) == each]
            if gone:
                text += f"; none of {word} {', '.join(map(str, _indices(gone, whole[i], array.shape[i])))}"
    return [text]


def _indices(chunks: list[int], side: int, length: int) -> list[int]:
    """Return the indices along an axis that lie in chunks of it.

    Examples
    --------
    >>> _indices([1], 2, 5), _indices([2], 2, 5)
    ([2, 3], [4])
    """
    return [i for chunk in chunks for i in range(chunk * side, min((chunk + 1) * side, length))]


def _zarr_um_per_px(scales: dict, axes: list, said: list[str]) -> float:
    """Micrometres per pixel of the full resolution: its own scale times that of all resolutions, axis by axis."""
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    sides = {str(axis["name"]): [i, axis.get("unit"), 1.0] for i, axis in enumerate(named)}
    told = False
    for transforms in (scales["datasets"][0].get("coordinateTransformations"), scales.get("coordinateTransformations")):
        for transform in transforms or []:
            if transform.get("type") == "scale" and isinstance(transform.get("scale"), list):
                told = True
                for side in sides.values():
                    factor = transform["scale"][side[0]] if side[0] < len(transform["scale"]) else "nothing"
                    if isinstance(side[2], float):
                        side[2] = side[2] * positive(factor) if positive(factor) > 0 else str(factor)
    if not told:
        return math.nan
    found = [length_um(sides[side][2], sides[side][1], said, f"scale of {side}") for side in "xy" if side in sides]
    return square_um(*found, said) if len(found) == 2 else math.nan


def _bioformats_images(path: Path) -> list:
    """Return the <Image> elements that bioformats2raw writes beside its images; none where there is no such file."""
    told = path / "OME" / "METADATA.ome.xml"
    return _xml(path, told.read_text(encoding="utf-8")).findall("{*}Image") if told.is_file() else []


VENDORS = {
    ".czi": Vendor("Zeiss CZI", "czi", "pylibCZIrw.czi", "pylibCZIrw>=6.1", "LGPL-3.0, by Zeiss", czi_stacks),
    ".lif": Vendor("Leica LIF", "lif", "liffile", "liffile>=2026.2", "BSD-3-Clause", lif_stacks),
    ".nd2": Vendor("Nikon ND2", "nd2", "nd2", "nd2>=0.11", "BSD-3-Clause", nd2_stacks),
    ".zarr": Vendor("OME-Zarr", "ome-zarr", "zarr", "zarr>=3.1", "MIT", zarr_stacks),
}
