"""Zeiss CZI, by pylibCZIrw (LGPL, the extra `czi`): scenes, mosaics put together, times, z planes and channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from cellkit.errors import UserError
from cellkit.microscope.file_info import Channel, Opened, Reader, damaged
from cellkit.microscope.ome_xml import length_um, square_um, wavelength_nm
from cellkit.microscope.stacks import Stack, open_stacks, parse_xml

CZI_TYPES = {"Gray8": ("uint8", 1), "Gray16": ("uint16", 1), "Gray32Float": ("float32", 1), "Bgr24": ("uint8", 3),
             "Bgr48": ("uint16", 3), "Bgr96Float": ("float32", 3)}  # fmt: skip
SEGMENT_BYTES, ENTRY_BYTES, DIMENSION_BYTES, MOST_DIMENSIONS = (
    32,
    32,
    20,
    40,
)  # of a sub-block and its entry in the directory
CZI_OTHER_AXES = "VHIRB"  # view, phase, illumination, rotation, block


@contextmanager
def czi_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of a CZI: one per scene; the tiles of a mosaic are put together by the library, gaps are 0."""
    _refuse_part_of_czi(path)
    _refuse_damaged_blocks(path)
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
        tree = parse_xml(path, text) if text else None
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


def _refuse_damaged_blocks(path: Path) -> None:
    """Refuse a file with a sub-block of more dimensions than there are: Zeiss's library ends the process there.

    Read are the directory and the beginning of each sub-block, as Zeiss's specification of the format has them.
    """
    with open(path, "rb") as file:
        head = file.read(92)
        if len(head) < 92 or head[:10] != b"ZISRAWFILE":
            return  # which the library refuses
        directory = int.from_bytes(head[84:92], "little")
        if directory <= 0 or directory > path.stat().st_size:
            return
        file.seek(directory + SEGMENT_BYTES)
        count = int.from_bytes(file.read(4), "little")
        at = directory + SEGMENT_BYTES + 128
        for number in range(count):  # one after another: a damaged count asks for no memory
            file.seek(at)
            entry = file.read(ENTRY_BYTES)
            if len(entry) < ENTRY_BYTES or entry[:2] != b"DV":
                return
            file.seek(int.from_bytes(entry[6:14], "little", signed=True) % 2**62)
            block = file.read(SEGMENT_BYTES + 16 + ENTRY_BYTES)
            own = block[SEGMENT_BYTES + 16 :]
            dimensions = int.from_bytes(entry[28:32], "little")
            stored = int.from_bytes(own[28:32], "little") if own[:2] == b"DV" else 0
            if max(dimensions, stored) > MOST_DIMENSIONS:
                raise damaged(path, "CZI", f"sub-block {number} has {max(dimensions, stored)} dimensions")
            at += ENTRY_BYTES + dimensions * DIMENSION_BYTES


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
        return region(index, slice(0, height), slice(0, width))

    def region(index: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        wanted = tuple(values[axis][i] for axis, i in zip(lead, index, strict=True))
        if wanted not in stored:
            where = ", ".join(f"{axis} {value}" for axis, value in zip(lead, wanted, strict=True))
            raise UserError(
                f"{path.name} holds no pixels of {where}", "the recording was stopped, or the file is cut short"
            )
        at = {axis: values[axis][0] for axis in "TCZ"} | dict(zip(lead, wanted, strict=True))
        roi = (left + columns.start, top + rows.start, columns.stop - columns.start, rows.stop - rows.start)
        pixels = czi.read(roi=roi, plane=at, scene=None if scene < 0 else scene, pixel_type=types[0])
        return pixels[..., 0] if samples == 1 else pixels[..., ::-1]  # stored blue, green, red

    shape = (*(len(values[axis]) for axis in lead), height, width, *((samples,) if samples > 1 else ()))
    axes = f"{lead}YX{'S' * (samples > 1)}"
    notes: list[str] = []
    listed = _czi_channels(tree, notes)
    channels = tuple(listed[i] for i in values["C"]) if len(listed) > values["C"][-1] else ()
    without = [listed[i].name or f"channel {i}" for i in range(len(listed)) if i not in values["C"]]
    if without:
        notes.append(f"no pixels are stored of the channels {', '.join(without)}")
    refused = _czi_refusal(f"{path.name} has axes {axes} {shape}", extra, types)
    um_per_px = _czi_um_per_px(tree, notes)
    name = _czi_scene_name(tree, scene)
    return Stack(name, axes, shape, dtype, channels, um_per_px, block, len(lead), *refused, notes, region)


def _czi_refusal(text: str, extra: str, types: list[str]) -> tuple[str, str]:
    """Return why a scene with other axes than T, C, Z or with several pixel types cannot be read, and what to do."""
    if extra:
        remedy = "make one file of each in ZEN (Create Image Subset), or export OME-TIFF"
        return f"{text}: {', '.join(extra)} is no time, channel or z plane", remedy
    if len(types) > 1 or types[0] not in CZI_TYPES:
        remedy = f"make one file of each type in ZEN; {', '.join(CZI_TYPES)} are read"
        return f"{text} and pixels of type {', '.join(types)}", remedy
    return "", ""


def _czi_channels(tree, notes: list[str]) -> list[Channel]:
    """Names and wavelengths, as recorded; display names may be anyone's and are not used."""
    listed = [] if tree is None else tree.iterfind(".//Information/Image/Dimensions/Channels/Channel")
    return [
        Channel.lit(
            channel.get("Name") or "",
            *(
                wavelength_nm(channel.findtext(f"{kind}Wavelength"), "nm", notes, f"{kind} of {channel.get('Name')}")
                for kind in ("Emission", "Excitation")
            ),
        )
        for channel in listed
    ]


def _czi_um_per_px(tree, notes: list[str]) -> float:
    listed = [] if tree is None else tree.iterfind(".//Scaling/Items/Distance")
    lengths = {d.get("Id"): length_um(d.findtext("Value"), "m", notes) for d in listed if d.get("Id") in ("X", "Y")}
    return square_um(lengths.get("X", math.nan), lengths.get("Y", math.nan), notes)


def _czi_scenes(tree) -> list:
    return [] if tree is None else list(tree.iterfind(".//Information/Image/Dimensions/S/Scenes/Scene"))


def _czi_scene_name(tree, scene: int) -> str:
    return next((s.get("Name") or "" for s in _czi_scenes(tree) if s.get("Index") == str(scene)), "")


def open_czi(path: Path, axes: str | None, most_px: int) -> AbstractContextManager[Opened]:
    """Open a Zeiss CZI; errors as in `cellkit.microscope.stacks.open_stacks`."""
    return open_stacks(READER, czi_stacks, path, axes, most_px)


READER = Reader("czi", "Zeiss CZI", (".czi",), open_czi, "pylibCZIrw.czi", "pylibCZIrw>=6.1", "LGPL-3.0, by Zeiss")
