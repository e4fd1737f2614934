"""Nikon ND2, by the package nd2: stage positions as scenes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from cellkit.microscope.file_info import Channel, Opened, Reader, damaged
from cellkit.microscope.ome_xml import length_um, positive, square_um, wavelength_nm
from cellkit.microscope.stacks import Stack, open_stacks


@contextmanager
def nd2_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of an ND2: one per stage position; a file shorter than its uncompressed frames is damaged.

    Raises
    ------
    UserError
        The file is shorter than its frames.
    """
    with module.ND2File(path) as nd2:
        attributes = nd2.attributes
        wanted = (
            attributes.sequenceCount * attributes.heightPx * (attributes.widthBytes or 0)
            if not attributes.compressionType
            else 0
        )
        if wanted > path.stat().st_size:
            raise damaged(path, "Nikon ND2", f"{wanted} bytes are announced, {path.stat().st_size} are there")
        yield [_nd2_stack(nd2, position) for position in range(nd2.sizes.get("P", 1))]


def _nd2_stack(nd2, position: int) -> Stack:
    loops = "".join(axis for axis in nd2.sizes if axis not in "PCYXS")
    axes = loops + "".join(axis for axis in nd2.sizes if axis in "CYXS")
    sequence = {tuple(at.get(axis, 0) for axis in "P" + loops): number for number, at in enumerate(nd2.loop_indices)}

    def block(index: tuple[int, ...]) -> np.ndarray:
        return nd2.read_frame(sequence[position, *index])

    channels, um_per_px, sentences = [], math.nan, []
    for entry in nd2.metadata.channels or []:
        name = entry.channel.name or ""
        nm = positive(entry.channel.emissionLambdaNm)  # 0 where the microscope knows none
        channels.append(
            Channel(name, wavelength_nm(nm, "nm", sentences, f"Emission of {name}") if nm > 0 else math.nan)
        )
        if entry.volume.axesCalibrated[0]:
            um_per_px = square_um(
                *(length_um(side, "um", sentences) for side in entry.volume.axesCalibration[:2]), sentences
            )
    name = f"position {position}" if nd2.sizes.get("P", 1) > 1 else ""
    shape = tuple(int(nd2.sizes[axis]) for axis in axes)
    return Stack(name, axes, shape, str(nd2.dtype), tuple(channels), um_per_px, block, len(loops), notes=sentences)


def open_nd2(path: Path, axes: str | None, most_px: int) -> AbstractContextManager[Opened]:
    """Open a Nikon ND2; errors as in `cellkit.microscope.stacks.open_stacks`."""
    return open_stacks(READER, nd2_stacks, path, axes, most_px)


READER = Reader("nd2", "Nikon ND2", (".nd2",), open_nd2, "nd2", "nd2>=0.11", "BSD-3-Clause")
