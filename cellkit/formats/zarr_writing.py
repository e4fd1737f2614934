"""Images and label images written as OME-Zarr 0.4 and 0.5, each with smaller copies, whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import MARKED
from cellkit.cells.instances import Instances
from cellkit.cells.labels import smallest_dtype
from cellkit.errors import UserError
from cellkit.formats.seg import class_colours
from cellkit.formats.zarr_labels import NAME, OURS, ome_of
from cellkit.microscope.open import open_file

CHUNK_PX = 1024
SMALLEST_PX = 512  # copies are made until the longer side is no longer than this
UM = "micrometer"
STORED = {"write_empty_chunks": True}  # so that what is empty can be told from what was lost


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes its place, on any error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        former = temporary.with_name(f"{temporary.name}.former")
        if path.exists():
            os.replace(path, former)  # at no time is there half of it
        os.replace(temporary, path)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_image_group(path: Path, picture: Path, version: str, um_per_px: float = math.nan) -> Any:
    """Write a picture of one plane, with all its channels in their own values, as an OME-Zarr image; return its group.

    Parameters
    ----------
    um_per_px : float
        Side of a pixel where the picture does not say it.

    Raises
    ------
    UserError
        A stack, a time-lapse or several images: labels are those of one plane.
    """
    with open_file(picture) as opened:
        series = opened.info.series[0]
        if len(opened.info.series) > 1 or series.size("Z") * series.size("T") > 1:
            raise UserError(
                f"{picture.name} is {series.axes} {series.shape}", "convert it to one picture: cellkit convert"
            )
        group = new_group(path, version)
        shape, count = (series.size("Y"), series.size("X")), len(series.channels)
        axes = "cyx"
        um = series.um_per_px if series.um_per_px > 0 else um_per_px
        scale = [1.0, *_scale(um)]
        levels = level_shapes(shape)
        arrays = None
        channels = []
        for number in range(count):
            plane = opened.plane(0, 0, 0, number)
            plane = (
                plane.astype(np.uint8)
                if plane.dtype == bool
                else plane.astype(plane.dtype.newbyteorder("="), copy=False)
            )
            if arrays is None:
                arrays = [
                    array_of_level(group, k, (count, *level), plane.dtype, axes, version)
                    for k, level in enumerate(levels)
                ]
            for array, level in zip(arrays, levels, strict=True):
                array[number] = smaller(plane, level)
            channels.append(shown_channel(series.channels[number].text, number, count, plane))
    omero = {"version": version, "channels": channels, "rdefs": {"model": "color" if count > 1 else "greyscale"}}
    scales = multiscales(axes, scale, um, shape, levels, version, picture.stem)
    describe(group, {"multiscales": [scales], "omero": omero}, version)
    return group


def write_labels_group(
    group: Any,
    path: Path,
    labels: np.ndarray,
    cells: Instances,
    classes: Sequence[str],
    made_by: str,
    stamp: str,
    version: str,
) -> None:
    """Write a label image into the group of its image, whole or not at all, with classes, scores and colours.

    It has as many smaller copies as the image.

    Parameters
    ----------
    group : zarr.Group
        The image.
    path : Path
        Where it lies.
    labels : (H, W) int, 0 = background, -1 = not annotated
        Numbers are the positions of the cells, from 1.
    stamp : str
        What tells later whether the numbers are still as written.

    Raises
    ------
    UserError
        The image is of another size, or a stack.
    """
    image = ome_of(group)["multiscales"][0]
    axes, keep = _axes_without_channel(image, group)
    first, *_ = shapes = [tuple(group[str(one["path"])].shape[k] for k in keep) for one in image["datasets"]]
    if first[-2:] != labels.shape or math.prod(first) != labels.size:
        raise UserError(
            f"the image is {first} px ({axes}), its labels are {labels.shape}", "give labels of this very image"
        )
    parent = group.require_group("labels")
    listed = ome_of(parent).get("labels", [])
    listed = [name for name in listed if name != NAME] if isinstance(listed, list) else []
    datasets = [
        {"path": str(k), "coordinateTransformations": _kept(one, keep)} for k, one in enumerate(image["datasets"])
    ]
    scales = {"name": NAME, "axes": [image["axes"][k] for k in keep], "datasets": datasets, "type": "nearest"}
    scales |= {"version": version} if version == "0.4" else {}
    whole = [one for one in image.get("coordinateTransformations", []) if isinstance(one, dict)]
    scales |= {"coordinateTransformations": _kept({"coordinateTransformations": whole}, keep)} if whole else {}
    about = {
        "multiscales": [scales],
        "image-label": image_label(np.unique(labels[labels != 0]), cells, classes, version),
    }
    ours = {"classes": list(classes), "stamp": stamp} | ({"labels": made_by} if made_by in MARKED else {})
    dtype = smallest_dtype(int(labels.max(initial=0)), signed=bool(labels.min(initial=0) < 0))
    with whole_folder(path / "labels" / NAME) as folder:
        own = new_group(folder, version)
        for k, shape in enumerate(shapes):
            array = array_of_level(own, k, shape, dtype, axes, version)
            array[...] = smaller(labels, shape[-2:]).astype(dtype).reshape(shape)
        describe(own, about, version)
        own.attrs[OURS] = ours
    describe(parent, {"labels": [*listed, NAME]}, version)  # listed last: then it is whole


def image_label(present: np.ndarray, cells: Instances, classes: Sequence[str], version: str) -> dict[str, Any]:
    """Return colour, class and score of every number that occurs; number k is cell k - 1."""
    palette = class_colours(max(len(classes), 1)).tolist()
    ids, scores = cells.class_ids.tolist(), cells.scores.tolist()
    colours, properties = [], []
    for number in present.tolist():
        colour = palette[0] if number < 0 else palette[ids[number - 1] if classes else 1]
        colours.append({"label-value": number, "rgba": [*colour, 255]})
        about: dict[str, Any] = {"annotated": False}
        if number > 0:
            named = {"class": classes[ids[number - 1] - 1]} if ids[number - 1] else {}
            about = named | {"score": scores[number - 1]}
        properties.append({"label-value": number} | about)
    return {"version": version, "colors": colours, "properties": properties, "source": {"image": "../../"}}


# ---- copies --------------------------------------------------------------------------------------------------------
def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of an image and of its copies, each half as large.

    Examples
    --------
    >>> level_shapes((700, 1201))
    [(700, 1201), (350, 601), (175, 301)]
    """
    shapes = [(int(shape[0]), int(shape[1]))]
    while max(shapes[-1]) > SMALLEST_PX:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def smaller(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a copy of a plane by taking pixels of it, so that no number occurs in it that is not in the plane.

    Examples
    --------
    >>> smaller(np.arange(15).reshape(3, 5), (2, 3)).tolist()
    [[0, 2, 4], [10, 12, 14]]
    """
    steps = [max(1, round(whole / part)) for whole, part in zip(plane.shape, shape, strict=True)]
    places = [
        np.minimum(np.arange(part) * step, whole - 1)
        for whole, part, step in zip(plane.shape, shape, steps, strict=True)
    ]
    return plane if tuple(shape) == plane.shape else plane[np.ix_(*places)]


# ---- metadata ------------------------------------------------------------------------------------------------------
def multiscales(
    axes: str,
    scale: Sequence[float],
    um_per_px: float,
    shape: tuple[int, int],
    levels: Sequence[tuple[int, int]],
    version: str,
    name: str,
) -> dict[str, Any]:
    """Return what says how large the pixels of an image and of its copies are: in um, where that is known."""
    unit = {"unit": UM} if um_per_px > 0 else {}
    described = [
        {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", **unit} for axis in axes
    ]
    datasets = []
    for k, _ in enumerate(levels):
        steps = [*scale[:-2], *(side * 2**k for side in scale[-2:])]
        datasets.append({"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": steps}]})
    found = {"name": name, "axes": described, "datasets": datasets, "type": "nearest"}
    return found | ({"version": version} if version == "0.4" else {})


def _scale(um_per_px: float) -> list[float]:
    return [float(um_per_px) if um_per_px > 0 else 1.0] * 2


def _axes_without_channel(image: dict[str, Any], group: Any) -> tuple[str, list[int]]:
    """Return the axes of an image but for that of its channels, and their places."""
    axes = image.get("axes") or list("tczyx")
    names = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in axes]
    if len(names) != group[str(image["datasets"][0]["path"])].ndim or names[-2:] != ["y", "x"]:
        raise UserError(f"the image has the axes {names}", "write it with rows and columns last")
    image["axes"] = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    keep = [k for k, name in enumerate(names) if name != "c"]
    return "".join(names[k] for k in keep), keep


def _kept(dataset: dict[str, Any], keep: Sequence[int]) -> list[dict[str, Any]]:
    """Return the transformations of an image for the axes that its labels have."""
    found = []
    for one in dataset.get("coordinateTransformations") or [{"type": "scale"}]:
        kind = one.get("type")
        values = one.get(kind) if kind in ("scale", "translation") else None
        if isinstance(values, list) and len(values) > max(keep):
            found.append({"type": kind, kind: [values[k] for k in keep]})
    return found or [{"type": "scale", "scale": [1.0] * len(keep)}]


def shown_channel(name: str, number: int, count: int, plane: np.ndarray) -> dict[str, Any]:
    """Return how a viewer shows a channel, by its values in a plane: one of `count`."""
    colour = "FFFFFF" if count == 1 else ("FF0000", "00FF00", "0000FF", "FFFFFF", "FF00FF", "00FFFF")[number % 6]
    low, high = (float(value) for value in np.percentile(plane, (0.1, 99.9)))
    least, most = (float(value) for value in (plane.min(), plane.max()))
    window = {"start": low, "end": max(high, low + 1), "min": least, "max": max(most, least + 1)}
    return {"label": name, "color": colour, "active": True, "window": window}


def new_group(path: Path, version: str) -> Any:
    """Create an empty group."""
    import zarr

    return zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)


def array_of_level(group: Any, level: int, shape: Sequence[int], dtype: np.dtype, axes: str, version: str) -> Any:
    """Create the array of one level."""
    chunks = tuple(1 if k < len(shape) - 2 else max(1, min(CHUNK_PX, side)) for k, side in enumerate(shape))
    how = (
        {"dimension_names": list(axes)}
        if version != "0.4"
        else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is not final in zarr 3
        return group.create_array(
            str(level), shape=tuple(shape), chunks=chunks, dtype=dtype, fill_value=0, config=STORED, **how
        )


def describe(group: Any, metadata: dict[str, Any], version: str) -> None:
    """Add OME metadata to a group."""
    if version == "0.4":
        group.attrs.update(metadata)
    else:
        group.attrs["ome"] = {"version": version} | dict(group.attrs.get("ome", {})) | metadata


def version_of(group: Any) -> str:
    """Return the version of OME-Zarr that an image is written in: 0.5 for zarr 3, else 0.4, to which older ones are near."""
    return "0.5" if group.metadata.zarr_format == 3 else "0.4"
