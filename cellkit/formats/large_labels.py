"""Label images larger than the memory: written from a Zarr array as a tiled BigTIFF or an OME-Zarr, piece by piece."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import MARKED
from cellkit.cells.instances import Instances
from cellkit.cells.labels import smallest_dtype
from cellkit.cells.windows import taken, windows_of
from cellkit.errors import UserError
from cellkit.files import atomic_path
from cellkit.formats.label_images import MARK, PROPOSED
from cellkit.formats.zarr_labels import NAME, OURS
from cellkit.formats.zarr_writing import (
    CHUNK_PX,
    array_of_level,
    describe,
    image_label,
    level_shapes,
    multiscales,
    new_group,
    shown_channel,
    whole_folder,
)
from cellkit.log import LOG
from cellkit.microscope.file_info import MAX_PLANE_PX

FORMS = {"tif": ".tif", "ome-zarr": ".ome.zarr", "ome-zarr-0.4": ".ome.zarr"}
MOST_DESCRIBED = (
    50_000  # cells whose class, score and colour are listed in the metadata of an OME-Zarr: viewers read it at once
)


def stamp_of_rows(shape: Sequence[int], rows: Iterable[np.ndarray]) -> str:
    """Return what `cellkit.formats.label_images.stamp_of` gives for a label image, from stretches of its rows."""
    found = hashlib.sha256(f"{tuple(int(side) for side in shape)}".encode())
    for some in rows:
        found.update(np.ascontiguousarray(some, np.int32).tobytes())
    return f"{MARK}{found.hexdigest()[:32]}"


def rows_of(labels: Any) -> Iterator[np.ndarray]:
    """Yield an array (H, W) in stretches of rows."""
    for top in range(0, labels.shape[0], CHUNK_PX):
        yield np.asarray(labels[top : top + CHUNK_PX])


def refuse_changed_large(path: Path) -> None:
    """Refuse to write over a large label file that is not as cellkit wrote it; it is read row by row.

    Raises
    ------
    UserError
        Naming the file.
    """
    if os.path.lexists(path) and not as_written_large(path):
        raise UserError(f"{path} is there and not as cellkit wrote it: it may hold corrections", "move it away")


def is_large_file(path: Path) -> bool:
    """Tell by its header whether a file holds a label image that is not to be read as a whole."""
    import tifffile
    import zarr

    try:
        if path.name.lower().endswith(".zarr") and path.is_dir():
            return math.prod(zarr.open_group(str(path / "labels" / NAME), mode="r")["0"].shape) > MAX_PLANE_PX
        if path.suffix.lower() in (".tif", ".tiff") and path.is_file():
            with tifffile.TiffFile(path) as file:
                return file.pages[0].size > MAX_PLANE_PX
    except Exception:  # whatever a library raises on a file of another kind
        return False
    return False


def as_written_large(path: Path) -> bool:
    """Tell whether a large label file carries the stamp of the cells it holds; it is read row by row."""
    import tifffile
    import zarr

    try:
        if path.is_dir():
            group = zarr.open_group(str(path / "labels" / NAME), mode="r")
            return group.attrs[OURS]["stamp"] == stamp_of_rows(group["0"].shape, rows_of(group["0"]))
        with tifffile.TiffFile(path) as file:
            labels = zarr.open_array(file.aszarr(level=0), mode="r")
            return str(file.pages[0].software).removesuffix(PROPOSED) == stamp_of_rows(labels.shape, rows_of(labels))
    except Exception:  # whatever a library raises on a file of another kind
        return False


def write_large_tiff(path: Path, labels: Any, largest: int, proposed: bool = False) -> Path:
    """Write a label image (H, W) as a tiled BigTIFF of the smallest safe type, atomically.

    Parameters
    ----------
    labels : zarr.Array, (H, W) int
    largest : int
        The largest number in it.
    proposed : bool
        The stamp says that a model proposed the cells.
    """
    import tifffile

    dtype = smallest_dtype(largest)
    side = max(16, min(CHUNK_PX, -(-max(labels.shape) // 16) * 16))

    def tiles() -> Iterator[np.ndarray]:
        for window in windows_of(labels.shape, side):
            tile = np.zeros((side, side), dtype)
            tile[: window.shape[0], : window.shape[1]] = labels[window.slices]
            yield tile

    how = {"shape": tuple(labels.shape), "dtype": dtype, "tile": (side, side), "compression": "zlib", "metadata": None}
    stamp = f"{stamp_of_rows(labels.shape, rows_of(labels))}{PROPOSED if proposed else ''}"
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, tiles(), **how, photometric="minisblack", bigtiff=True, software=stamp)
    return path


def write_large_zarr(
    path: Path,
    planes: Sequence[Any],
    names: Sequence[str],
    um_per_px: float,
    labels: Any,
    cells: Instances,
    classes: Sequence[str],
    form: str = "ome-zarr",
    made_by: str = "",
) -> Path:
    """Write an image with all its channels and the label image of its cells as an OME-Zarr, whole or not at all.

    Class, score and colour of each cell are listed up to `MOST_DESCRIBED` cells.

    Parameters
    ----------
    planes : sequence of dask.array.Array, (H, W)
        The channels, in their own values.
    names : sequence of str
        What they are called.
    labels : zarr.Array, (H, W) int
    cells : Instances
        Their classes and scores count, not their runs.
    made_by : str
        "proposed" or "corrected", noted with the labels for as long as nobody changes them.
    """
    version = "0.4" if form.endswith("0.4") else "0.5"
    levels = level_shapes(labels.shape)
    scale = [float(um_per_px) if um_per_px > 0 else 1.0] * 2
    with whole_folder(path) as folder:
        group = new_group(folder, version)
        dtype = np.dtype(np.uint8) if planes[0].dtype == bool else planes[0].dtype.newbyteorder("=")
        arrays = [
            array_of_level(group, k, (len(planes), *level), dtype, "cyx", version) for k, level in enumerate(levels)
        ]
        shown = []
        for number, (plane, name) in enumerate(zip(planes, names, strict=True)):
            for window in windows_of(plane.shape, CHUNK_PX):
                arrays[0][number, *window.slices] = taken(plane, window).astype(dtype, copy=False)
            _write_copies([_Channel(array, number) for array in arrays])
            shown.append(shown_channel(name, number, len(planes), np.asarray(arrays[-1][number])))
        about = multiscales("cyx", [1.0, *scale], um_per_px, labels.shape, levels, version, path.name.split(".")[0])
        model = {"model": "color" if len(planes) > 1 else "greyscale"}
        describe(
            group, {"multiscales": [about], "omero": {"version": version, "channels": shown, "rdefs": model}}, version
        )
        parent = group.require_group("labels")
        own = new_group(folder / "labels" / NAME, version)
        dtype = smallest_dtype(len(cells))
        arrays = [array_of_level(own, k, level, dtype, "yx", version) for k, level in enumerate(levels)]
        for window in windows_of(labels.shape, CHUNK_PX):
            arrays[0][window.slices] = np.asarray(labels[window.slices]).astype(dtype)
        _write_copies(arrays)
        about = multiscales("yx", scale, um_per_px, labels.shape, levels, version, NAME)
        told = {"version": version, "source": {"image": "../../"}}
        if len(cells) <= MOST_DESCRIBED:
            told = image_label(np.arange(1, len(cells) + 1), cells, classes, version)
        else:
            LOG.info(f"{path.name} has {len(cells)} cells: their classes and scores are in the COCO file alone")
        describe(own, {"multiscales": [about], "image-label": told}, version)
        ours = {"classes": list(classes), "stamp": stamp_of_rows(labels.shape, rows_of(labels))}
        own.attrs[OURS] = ours | ({"labels": made_by} if made_by in MARKED else {})
        describe(parent, {"labels": [NAME]}, version)
    return path


class _Channel:
    """One channel of an array (C, H, W), as an array (H, W)."""

    def __init__(self, array: Any, number: int):
        self.array, self.number, self.shape = array, number, array.shape[1:]

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        return self.array[self.number, *key]

    def __setitem__(self, key: tuple[slice, slice], values: np.ndarray) -> None:
        self.array[self.number, *key] = values


def _write_copies(levels: Sequence[Any]) -> None:
    """Write each copy (h, w) by every second pixel of the one before; the first is there."""
    for larger, smaller in zip(levels, levels[1:], strict=False):
        for window in windows_of(smaller.shape, CHUNK_PX):
            twice = tuple(
                slice(2 * one.start, min(2 * one.stop, side))
                for one, side in zip(window.slices, larger.shape, strict=True)
            )
            smaller[window.slices] = np.asarray(larger[twice])[::2, ::2]
