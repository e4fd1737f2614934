"""OME-Zarr 0.1 to 0.5, by zarr: an image, the images of bioformats2raw, or every field of a plate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from cellkit.errors import UserError
from cellkit.microscope.file_info import Channel, Opened, Reader
from cellkit.microscope.ome_xml import length_um, ome_channels, ome_um_per_px, positive, square_um, wavelength_nm
from cellkit.microscope.stacks import Stack, open_stacks, parse_xml

MAX_BLOCK_BYTES = 2**31  # of one chunk of an OME-Zarr, checked in its header


@contextmanager
def zarr_stacks(module: ModuleType, path: Path, left_out: list[str]) -> Iterator[list[Stack]]:
    """Stacks of an OME-Zarr 0.1 to 0.5: an image, the images of bioformats2raw, or every field of a plate's wells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about extensions of the format that are not used here
        from cellkit.microscope.zarr_chunks import open_zarr_group

        root = open_zarr_group(path)
        names = _zarr_images(root)
        described = _bioformats_images(path)
        left_out += _zarr_left_out(path, root, names, len(described))
        described = described if len(described) == len(names) else [None] * len(names)
        stacks = [_zarr_stack(path, root, name, image) for name, image in zip(names, described, strict=True)]
    yield stacks


def _ome(group) -> dict:
    """Return the OME metadata of a group: below "ome" since 0.5."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _zarr_images(root) -> list[str]:
    """Return where below the root the images lie, in order; "" is the root itself."""
    metadata = _ome(root)
    if "multiscales" in metadata:
        return [""]
    if "plate" in metadata:
        wells = [str(well["path"]) for well in metadata["plate"]["wells"]]
        return [f"{well}/{field['path']}" for well in wells for field in _ome(root[well])["well"]["images"]]
    listed = _ome(root["OME"]).get("series") if "OME" in root else None
    listed = metadata.get("series") or listed
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
    metadata = _ome(group)
    scales = metadata["multiscales"][0]
    dataset = str(scales["datasets"][0]["path"])
    array = group[dataset]
    listed = scales.get("axes") or list("tczyx")
    letters = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in listed]
    axes = "".join(letter.upper() if len(letter) == 1 else "Q" for letter in letters)
    if len(axes) != array.ndim:
        raise UserError(f"{path.name} names axes {letters} of an array of shape {array.shape}", "write the file again")
    notes: list[str] = []
    channels = tuple(
        Channel(
            label := str(c.get("label") or ""),
            wavelength_nm(c.get("emissionWave"), "nm", notes, f"Emission of {label}"),
        )
        for c in (metadata.get("omero") or {}).get("channels", [])
    )
    um_per_px = _zarr_um_per_px(scales, listed, notes)
    if image is not None:
        known = ome_channels(image, notes)
        named = len(known) == len(channels) and not any(c.wavelength_nm > 0 for c in channels)
        channels = tuple(known) if named or not channels else channels
        um_per_px = um_per_px if um_per_px > 0 else ome_um_per_px(image, notes)
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
        notes += _missing_chunks(path / name / dataset, array, axes)
        for level in scales["datasets"][1:]:
            if str(level["path"]) in group and math.prod(group[str(level["path"])].shape) > math.prod(array.shape):
                problem = (
                    f"{path.name}: level {level['path']} is larger than {dataset}, the first, which should be full size"
                )
                remedy = "write the file again"
    shape = tuple(int(n) for n in array.shape)
    read = lambda index: array  # noqa: E731
    return Stack(name, axes, shape, str(array.dtype), channels, um_per_px, read, 0, problem, remedy, notes)


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
    stored = {
        child.relative_to(folder).as_posix()
        for child in folder.rglob("*")
        if child.name not in ("zarr.json", ".zarray", ".zattrs") and child.is_file()
    }
    if math.prod(grid) > MOST_CHUNKS:
        lost = math.prod(grid) - len(stored)
        return [f"{lost} of {math.prod(grid)} chunks are not stored: they count as empty"] if lost > 0 else []
    metadata = array.metadata
    key = getattr(metadata, "encode_chunk_key", None) or metadata.chunk_key_encoding.encode_chunk_key
    lost = [at for at in np.ndindex(*grid) if key(at) not in stored]
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


def _zarr_um_per_px(scales: dict, axes: list, notes: list[str]) -> float:
    """Micrometres per pixel of the full resolution: its own scale times that of all resolutions, axis by axis."""
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    sides = {str(axis["name"]): [i, axis.get("unit"), 1.0] for i, axis in enumerate(named)}
    scaled = False
    for transforms in (scales["datasets"][0].get("coordinateTransformations"), scales.get("coordinateTransformations")):
        for transform in transforms or []:
            if transform.get("type") == "scale" and isinstance(transform.get("scale"), list):
                scaled = True
                for side in sides.values():
                    factor = transform["scale"][side[0]] if side[0] < len(transform["scale"]) else "nothing"
                    if isinstance(side[2], float):
                        side[2] = side[2] * positive(factor) if positive(factor) > 0 else str(factor)
    if not scaled:
        return math.nan
    found = [length_um(sides[side][2], sides[side][1], notes, f"scale of {side}") for side in "xy" if side in sides]
    return square_um(*found, notes) if len(found) == 2 else math.nan


def _bioformats_images(path: Path) -> list:
    """Return the <Image> elements that bioformats2raw writes beside its images; none where there is no such file."""
    sidecar = path / "OME" / "METADATA.ome.xml"
    return parse_xml(path, sidecar.read_text(encoding="utf-8")).findall("{*}Image") if sidecar.is_file() else []


def open_zarr(path: Path, axes: str | None, most_px: int) -> AbstractContextManager[Opened]:
    """Open a OME-Zarr; errors as in `cellkit.microscope.stacks.open_stacks`."""
    return open_stacks(READER, zarr_stacks, path, axes, most_px)


READER = Reader("ome-zarr", "OME-Zarr", (".zarr",), open_zarr, "zarr", "zarr>=3.1", "MIT", is_folder=True)
