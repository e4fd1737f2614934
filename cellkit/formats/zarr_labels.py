"""Label images in an OME-Zarr: which there are, their numbers, and what their metadata say of each; OME-NGFF 0.4 and 0.5.

The specification: https://ngff.openmicroscopy.org/0.5 (`labels`, `image-label`, `multiscales`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import maker_of
from cellkit.cells.labels import MOST_PX
from cellkit.errors import UserError

NAME = "cells"  # of the label image that cellkit writes
OURS = "cellkit"  # a key beside the metadata: all classes, who made the cells, and what tells whether they were changed


@dataclass(frozen=True)
class About:
    """What the metadata of a label image say.

    Attributes
    ----------
    classes : tuple of str
        All classes, in order.
    class_of : dict of id -> str
        The class of each cell that has one.
    score_of : dict of id -> float
    made_by : str
        Who made the cells, "" where it is not known.
    stamp : str
        What cellkit noted of the numbers it wrote, "" where it did not write them.
    """

    classes: tuple[str, ...]
    class_of: Mapping[int, str]
    score_of: Mapping[int, float]
    made_by: str
    stamp: str


def is_zarr_labels(path: Path) -> bool:
    """Tell whether a folder is one of the label images of an OME-Zarr."""
    return path.parent.name == "labels" and path.parent.parent.suffix.lower() == ".zarr" and path.is_dir()


def label_images_in(path: Path) -> list[Path]:
    """Return the label images of an OME-Zarr, listed in it or not."""
    folder = path / "labels"
    if path.suffix.lower() != ".zarr" or not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def cells_in(path: Path) -> Path | None:
    """Return the label image of the cells in an OME-Zarr: of several the one that cellkit wrote; None without any.

    Raises
    ------
    UserError
        There are several, and cellkit wrote none of them, or more than one.
    """
    found = label_images_in(path)
    if len(found) > 1:
        written = [child for child in found if _is_ours(child)]
        if len(written) != 1:
            names = ", ".join(child.name for child in found)
            raise UserError(f"{path.name} holds several label images: {names}", "keep those of the cells only")
        found = written
    return next(iter(found), None)


def _is_ours(path: Path) -> bool:
    """Tell whether cellkit wrote a label image, whoever changed it since."""
    try:
        return bool(about_labels(path).stamp)
    except UserError:
        return False


def read_zarr_labels(path: Path, plane: tuple[int, int] | None = None) -> np.ndarray:
    """Read the labels of an OME-Zarr at full resolution, without axes of length 1 before rows and columns.

    Parameters
    ----------
    plane : (number, count), optional
        Keep all planes: one of them is wanted.

    Raises
    ------
    UserError
        An image larger than any is, or planes that differ.
    """
    from cellkit.microscope.zarr_chunks import open_zarr_group

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about extensions of the format that are not used here
        group = open_zarr_group(path)
        array = group[str(ome_of(group)["multiscales"][0]["datasets"][0]["path"])]
        if math.prod(array.shape) > MOST_PX:
            raise UserError(f"{path} claims to be {array.shape} px", "cut the image into tiles")
        if array.dtype.kind not in "iubf":
            raise UserError(
                f"{path} holds {array.shape} {array.dtype}", "a label image is (H, W) integers, 0 = background"
            )
        labels = np.asarray(array[...])
    for place in range(labels.ndim - 3, -1, -1) if plane is None else ():
        labels = one_plane(labels, place, "", path)
    single = [axis for axis, length in enumerate(labels.shape[:-2]) if length == 1]
    return np.squeeze(labels, tuple(single))


def ome_of(group: Any) -> dict[str, Any]:
    """Return the OME metadata of a group: below "ome" since 0.5."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def about_labels(path: Path) -> About:
    """Read what the metadata of a label image say of its cells; what is of another kind than expected says nothing.

    Raises
    ------
    UserError
        The metadata that cellkit wrote are damaged.
    """
    from cellkit.microscope.zarr_chunks import open_zarr_group

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            group = open_zarr_group(path)
            metadata, ours = ome_of(group), dict(group.attrs).get(OURS)
        except Exception as error:  # zarr raises many kinds on a damaged file
            raise UserError(f"{path} cannot be read: {str(error)[:80]}", "copy the whole folder again") from error
    ours = ours if isinstance(ours, dict) else {}
    image_label = metadata.get("image-label") if isinstance(metadata, dict) else None
    rows = image_label.get("properties") if isinstance(image_label, dict) else None
    class_of, score_of = {}, {}
    for row in rows if isinstance(rows, list) else ():
        number = row.get("label-value") if isinstance(row, dict) else None
        if type(number) is not int:
            continue
        if isinstance(row.get("class"), str) and row["class"].strip():
            class_of[number] = row["class"].strip()
        if type(row.get("score")) in (int, float) and 0 <= row["score"] <= 1:
            score_of[number] = float(row["score"])
    named = ours.get("classes", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named) or len(set(named)) < len(named):
        raise UserError(f"{path} names its classes as {str(named)[:60]}", f"take the key '{OURS}' out of its metadata")
    classes = (*named, *sorted(set(class_of.values()) - set(named)))
    stamp = ours.get("stamp")
    return About(classes, class_of, score_of, maker_of(ours.get("labels")), stamp if isinstance(stamp, str) else "")


def one_plane(labels: np.ndarray, axis: int, name: str, path: Path) -> np.ndarray:
    """Return equal planes of a label image as one; the axis stays, of length 1.

    Raises
    ------
    UserError
        The planes differ.
    """
    first = labels[(slice(None),) * axis + (slice(0, 1),)]
    if (labels != first).any():
        what = {"Z": "a z-stack", "T": "a time-lapse"}.get(name, "a stack")
        raise UserError(
            f"{path} holds labels of {what}, {labels.shape[axis]} planes that differ",
            "give one label image (H, W) per picture: that of the projection, or a file per plane or time",
        )
    return first
