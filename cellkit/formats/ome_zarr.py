"""Label images in OME-Zarr as a format: read with class and score, and written beside their image.

What is read is in `cellkit.formats.zarr_labels`, what is written in `cellkit.formats.zarr_writing`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cellkit.cells.disjoint import lost_pixels
from cellkit.cells.instances import Instances
from cellkit.cells.labels import clean_labels, refuse_foreground
from cellkit.cells.names import stem_of
from cellkit.cells.outlines import refuse_boxes
from cellkit.errors import UserError
from cellkit.formats.contract import ImageCells, ImageToWrite, Reading
from cellkit.formats.label_images import read_labels, stamp_of
from cellkit.formats.large_cells import read_large_cells
from cellkit.formats.large_labels import as_written_large
from cellkit.formats.zarr_labels import NAME, about_labels, cells_in, label_images_in
from cellkit.formats.zarr_writing import version_of, whole_folder, write_image_group, write_labels_group

ENDINGS = (".zarr",)
WRITES = {"ome-zarr": ".ome.zarr", "ome-zarr-0.4": ".ome.zarr"}
SAYS_PROPOSED = "the label images say so"
TAKES_PICTURES = True  # labels lie in the OME-Zarr of their image


def picture_stem(name: str) -> str:
    """Return the name that a file shares with its picture.

    Examples
    --------
    >>> picture_stem("a.ome.zarr")
    'a'
    """
    return stem_of(name)


def holds_cells(path: Path) -> bool:
    """Tell whether an OME-Zarr holds label images: pictures are called so too."""
    return bool(label_images_in(path))


def read_image(file: Path, how: Reading, size: tuple[int, int] | None = None) -> ImageCells:
    """Read the cells of the label image in an OME-Zarr, with class and score where its metadata tell them.

    Raises
    ------
    UserError
        No label image, several, one that is no label image, or metadata that are damaged.
    """
    path = cells_in(file)
    if path is None:
        raise UserError(f"{file} holds no label image", "give an OME-Zarr with labels/NAME")
    about, large = about_labels(path), read_large_cells(path) if how.pieces is None else None
    if large is not None:
        cells, numbers = large.cells, large.numbers.tolist()
        maker = about.made_by if about.made_by and as_written_large(file) else ""
    else:
        labels = read_labels(path)
        if how.pieces is None:
            refuse_foreground(labels, path, "say what the pieces are: --pieces split (each a cell), keep or largest")
        cells = Instances.from_labels(labels if how.pieces is None else clean_labels(labels, pieces=how.pieces))
        numbers = labels.ravel()[cells.starts[cells.offsets[:-1]]].tolist()
        maker = about.made_by if about.stamp == stamp_of(labels) else ""
    class_id = {"": 0} | {name: k for k, name in enumerate(about.classes, 1)}
    cells = cells.with_classes([class_id[about.class_of.get(number, "")] for number in numbers])
    cells = cells.with_scores([about.score_of.get(number, 1.0) for number in numbers])
    return ImageCells(cells, about.classes, maker, numbers=np.array(numbers, np.int64))


def write_image(path: Path, image: ImageToWrite) -> tuple[int, int]:
    """Write the cells into the OME-Zarr of their image; return how many lost pixels to others, and how many have none left.

    Where the folder is that of the pictures and the picture is an OME-Zarr itself, its own version is kept and ``labels/cells``
    is added to it. Else the picture, with all its channels, and the labels become a new OME-Zarr.

    Raises
    ------
    UserError
        Labels are there that cellkit did not write, or that were changed since; a stack; or a picture of another size.
    """
    import zarr

    refuse_boxes([image.cells], "an OME-Zarr")
    labels = image.cells.paint(unknown=-1)
    about = labels, image.cells, image.classes, image.made_by, stamp_of(labels)
    picture = image.picture
    if picture.suffix.lower() == ".zarr" and picture.parent.resolve() == path.parent.resolve():
        own = picture / "labels" / NAME
        if own.is_dir() and not _is_as_written(own):
            raise UserError(f"{own} is there and not as cellkit wrote it: it may hold corrections", "move it away")
        group = zarr.open_group(str(picture), mode="r+")
        write_labels_group(group, picture, *about, version_of(group))
        return lost_pixels(image.cells)
    if os.path.lexists(path) and not (label_images_in(path) == [path / "labels" / NAME] and written_here(path)):
        raise UserError(f"{path} is there and not as cellkit wrote it", "move it away, or give another folder")
    version = "0.4" if image.form.endswith("0.4") else "0.5"
    with whole_folder(path) as temporary:
        group = write_image_group(temporary, picture, version, image.um_per_px)
        write_labels_group(group, temporary, *about, version)
    return lost_pixels(image.cells)


def _is_as_written(path: Path) -> bool:
    stamp = about_labels(path).stamp
    return bool(stamp) and stamp == stamp_of(np.asarray(read_labels(path)))


def written_here(path: Path) -> bool:
    """Tell whether the cells of an OME-Zarr are as cellkit wrote them."""
    try:
        found = cells_in(path)
        return found is not None and _is_as_written(found)
    except UserError:
        return False
