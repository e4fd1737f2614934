"""Cellpose's ``_seg.npy``, there and back: label image, class, score, outlines and the picture.

Reading never runs what a file names, see `cellkit.formats.plain_pickle`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import MARKED, maker_of
from cellkit.cells.disjoint import lost_pixels
from cellkit.cells.instances import Instances
from cellkit.cells.labels import LARGEST_ID
from cellkit.cells.outlines import refuse_boxes
from cellkit.errors import UserError, counted
from cellkit.files import atomic_path
from cellkit.formats.any import ImageCells, ImageToWrite, Reading
from cellkit.formats.label_images import refuse_changed, stamp_of
from cellkit.formats.plain_pickle import read_plain_npy
from cellkit.microscope.open import open_file

ENDINGS = ("_seg.npy",)
WRITES = {"seg": "_seg.npy"}
SAYS_PROPOSED = "the files say so"
NEEDS_PICTURES = True  # the GUI finds a file by its picture
SAVE_AGAIN = "open it in Cellpose and save it again, which drops what cellkit noted there"
DROPS_UNKNOWN = "Cellpose drops what says so when it saves: the image then counts as annotated all over"


@dataclass(frozen=True, eq=False)
class Seg:
    """What a ``_seg.npy`` file holds.

    Attributes
    ----------
    labels : (H, W) int32, 0 = background, -1 = not annotated
        As in the file; ids may have gaps.
    instances : Instances
        The same cells in ascending order of label, with class and score where they are known.
    classes : tuple of str
        Class k is ``classes[k - 1]``.
    filename : str
        The image the masks were drawn on, as Cellpose noted it.
    image : array or None
        The image, where the file has it.
    by_hand : (N,) bool or None
        Which cells were drawn by hand.
    fields : dict
        All that the file holds, as plain values.
    notes : tuple of str
        What to say of how it was read.
    """

    labels: np.ndarray
    instances: Instances
    classes: tuple[str, ...]
    filename: str
    image: np.ndarray | None
    by_hand: np.ndarray | None
    fields: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def made_by(self) -> str:
        """Who made the cells, where cellkit wrote the file and no tool saved it since: "corrected", "proposed", or ""."""
        side = self.fields.get("cellkit")
        return maker_of(side.get("labels") if isinstance(side, dict) else "")


def read_seg(path: str | Path, classes: Sequence[str] = ()) -> Seg:
    """Read a Cellpose ``_seg.npy`` file without unpickling it; one that holds a bare label image is read as that.

    Cells written by `write_seg` come back with class and score, those too that are left where a program changed others and kept
    what was noted; a new one has no class and score 1. The Cellpose GUI drops both when it saves, but keeps the
    colour of every cell: with `classes`, in the order they were written, the colours tell the class; a cell drawn anew has
    a colour of the GUI's and becomes a cell of unknown class. Masks of -1 are not annotated, and so is what `write_seg` noted;
    but in Cellpose's oldest files -1 is the background.

    Raises
    ------
    UserError
        A file that is damaged or names anything but arrays and containers, masks of a stack, masks that are no labels, or
        whose -1 may mean either.
    """
    array = _bare_array(path)
    fields = read_plain_npy(path) if array is None else {"masks": array}
    labels = _seg_labels(fields.get("masks"), path, fields.get("outlines"), is_ours=array is not None)
    labels = np.where((labels == 0) & _noted_unknown(fields, labels.shape, path), np.int32(-1), labels)
    found = Instances.from_labels(labels)
    found, classes, notes = _seg_classes(fields, found, labels, tuple(classes), path)
    name, image, by_hand = fields.get("filename"), fields.get("img"), fields.get("ismanual")
    return Seg(
        labels=labels,
        instances=found,
        classes=classes,
        filename=name if isinstance(name, str) else "",
        image=image if isinstance(image, np.ndarray) and image.size else None,
        by_hand=by_hand if isinstance(by_hand, np.ndarray) and by_hand.shape == (len(found),) else None,
        fields=fields,
        notes=notes,
    )


def _bare_array(path: str | Path) -> np.ndarray | None:
    """Return the array of an .npy file that holds one and no Python object, else None."""
    from numpy.lib.format import MAGIC_PREFIX

    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            return None
    try:
        return np.array(
            np.load(path, mmap_mode="r", allow_pickle=False)
        )  # mapped: a header cannot claim what is not there
    except Exception:  # whatever numpy raises on the text of a header: ValueError, SyntaxError, TokenError ...
        return None


def _noted_unknown(fields: dict, shape: tuple[int, int], path) -> np.ndarray | bool:
    """Return what `write_seg` noted as not annotated, (H, W) bool; False where it noted nothing."""
    side = fields.get("cellkit")
    runs = side.get("unknown") if isinstance(side, dict) else None
    if runs is None:
        return False
    good = isinstance(runs, np.ndarray) and runs.ndim == 2 and runs.shape[1] == 2 and runs.dtype.kind in "iu"
    if not good or (runs < 0).any() or (runs.sum(axis=1) > shape[0] * shape[1]).any():
        raise UserError(f"{path} notes as not annotated what does not fit its masks", SAVE_AGAIN)
    return replace(Instances.empty(shape), unknown=runs.astype(np.int64)).unknown_mask


def _seg_labels(masks: Any, path, edges: Any = None, is_ours: bool = False) -> np.ndarray:
    """Return the masks as a label image; refuse stacks and what is no labels. `is_ours`: -1 is never the background."""
    if not isinstance(masks, np.ndarray):
        raise UserError(f"{path} has no masks", "open it in Cellpose and save it again")
    masks = masks[0] if masks.ndim == 3 and masks.shape[0] == 1 else masks
    if masks.ndim == 3:
        raise UserError(f"{path} holds masks of a stack of {masks.shape[0]} planes", "save the masks plane by plane")
    if masks.ndim != 2 or masks.dtype.kind not in "iub" or not masks.size:
        raise UserError(f"{path} holds masks {masks.shape} {masks.dtype}", "masks are (H, W) integers, 0 = background")
    least, most = int(masks.min()), int(masks.max())
    if least < -1 or most > LARGEST_ID - 1:
        raise UserError(
            f"{path} holds ids from {least} to {most}",
            f"ids are 0 (background) to {LARGEST_ID - 1}, or -1 (not annotated)",
        )
    old = least == -1 and not is_ours and _counts_from_minus_one(masks, edges)
    if least == -1 and most == 0 and not is_ours and not old and edges is None:
        raise UserError(
            f"{path} marks {np.count_nonzero(masks == -1)} px with -1: not annotated, or the background as in Cellpose's oldest "
            "files; it has no other cell that tells which",
            "save the masks as a label image: TIFF, int16, -1 = not annotated",
        )
    return masks.astype(np.int32) + (1 if old else 0)


def _counts_from_minus_one(masks: np.ndarray, edges: Any) -> bool:
    """Tell the oldest files, in which -1 is background and 0 the first cell, from those in which -1 is not annotated.

    The outlines of the oldest files count from -1 too: most of them is -1. Without outlines, the first cell must look like
    the others: one piece, hardly larger than the largest, and less than the background.
    """
    from scipy import ndimage

    edges = edges[0] if isinstance(edges, np.ndarray) and edges.ndim == 3 and edges.shape[0] == 1 else edges
    if isinstance(edges, np.ndarray) and edges.shape == masks.shape and edges.dtype.kind in "iu":
        return np.count_nonzero(edges == -1) > np.count_nonzero(edges == 0)
    ids, areas = np.unique(masks, return_counts=True)
    area = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    others = [size for number, size in area.items() if number > 0]
    if 0 not in area:
        return not others  # no cell at all: -1 everywhere was background
    one = ndimage.label(masks == 0, np.ones((3, 3)))[1] == 1
    return one and bool(others) and area[0] <= 2 * max(others) and area[0] < area[-1]


def _seg_classes(fields: dict, found: Instances, labels: np.ndarray, classes: tuple[str, ...], path) -> tuple:
    """Return the cells with their classes and scores, the names of the classes, and what to say; new cells have no class."""
    ids = np.unique(labels[labels > 0])
    side = fields.get("cellkit")
    if isinstance(side, dict):
        names, class_ids, scores = side.get("classes"), side.get("class_ids"), side.get("scores")
        texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        arrays = [v for v in (class_ids, scores) if isinstance(v, np.ndarray) and v.ndim == 1]
        if not texts or len({len(one) for one in arrays}) != 1 or len(arrays) < 2:
            raise UserError(f"{path} notes classes and scores that are not one of each for each cell", SAVE_AGAIN)
        if class_ids.dtype.kind not in "iu" or scores.dtype.kind != "f":
            raise UserError(
                f"{path} notes classes that are {class_ids.dtype}, scores that are {scores.dtype}", SAVE_AGAIN
            )
        if len(class_ids) and not (class_ids.min() >= 0 and class_ids.max() <= len(names)):
            raise UserError(f"{path} has a cell of class {class_ids.max()} of {len(names)}", SAVE_AGAIN)
        if not ((scores >= 0) & (scores <= 1)).all():
            raise UserError(f"{path} has a score that is no number from 0 to 1", SAVE_AGAIN)
        rows = _rows_noted(labels, ids, fields.get("outlines"), len(class_ids))  # -1: the last one, of no cell
        found = found.with_classes(np.append(class_ids, 0)[rows]).with_scores(np.append(scores, 1.0)[rows])
        new = int((rows < 0).sum()) if names else 0
        told = (
            f"{Path(path).name}: {new} of {counted(len(rows), 'cell')} changed since classes were noted: they have none"
        )
        return found, tuple(names), (told,) if new else ()
    colours = fields.get("colors")
    if not classes or not isinstance(colours, np.ndarray) or colours.shape[1:] != (3,) or colours.dtype != np.uint8:
        return found, classes, ()
    if len(ids) and len(colours) != ids.max():
        raise UserError(f"{path} has {ids.max()} cells but {len(colours)} colours", "save it again with Cellpose")
    known = {tuple(colour): k for k, colour in enumerate(class_colours(len(classes)).tolist())}
    return found.with_classes([known.get(tuple(colour), 0) for colour in colours[ids - 1].tolist()]), classes, ()


def _rows_noted(labels: np.ndarray, ids: np.ndarray, edges: Any, count: int) -> np.ndarray:
    """Return, for each cell of `ids`, its place (N,) among the `count` cells that `write_seg` noted; -1 where it is none of them.

    `write_seg` numbers cells 1 to `count`. A program that changes masks may keep what was noted. Where the outlines are still
    those of all these cells, one is the same if most of its outline has its number. Else nothing tells, unless all numbers are
    there.
    """
    edges = edges[0] if isinstance(edges, np.ndarray) and edges.ndim == 3 and len(edges) == 1 else edges
    usable = isinstance(edges, np.ndarray) and edges.shape == labels.shape and edges.dtype.kind in "iu"
    if usable and np.array_equal(np.unique(edges[edges > 0]), np.arange(1, count + 1)):
        drawn = np.bincount(edges[edges > 0], minlength=count + 1)
        same = np.bincount(edges[(edges > 0) & (edges == labels)], minlength=count + 1)
        kept = (2 * same >= drawn) & (drawn > 0)
        return np.where((ids <= count) & kept[np.minimum(ids, count)], ids - 1, -1)
    return ids - 1 if np.array_equal(ids, np.arange(1, count + 1)) else np.full(len(ids), -1)


def class_colours(count: int) -> np.ndarray:
    """Return (count + 1, 3) uint8: the colour of unknown class, then one for each class, none of the Cellpose GUI's own.

    Examples
    --------
    >>> class_colours(2).tolist()
    [[120, 120, 122], [230, 61, 61], [61, 110, 230]]
    """
    import colorsys

    values = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.735 - 0.13 * (k // 24 % 4), 0.902) for k in range(count)]
    return np.array([(120, 120, 122), *(tuple(round(255 * v) for v in rgb) for rgb in values)], np.uint8)


def write_seg(
    path: str | Path,
    image: np.ndarray | None,
    cells: Instances | np.ndarray,
    classes: Sequence[str] = (),
    filename: str | None = None,
    diameter_px: float = math.nan,
    made_by: str = "",
    stamped: bool = False,
) -> Path:
    """Write a ``_seg.npy`` file that the Cellpose GUI opens, atomically.

    The GUI opens ``a_seg.npy`` together with ``a.png`` beside it, so name it after the image. Cells are numbered 1 to N; of
    overlapping cells the higher score keeps the pixels, and a cell left without any is left out. Class and score are kept
    in the key ``cellkit``, and the class also as the colour of the cell, which the GUI shows and keeps. What is not annotated is
    noted in that key too: the GUI would read masks of -1 as background, and drops the key when it saves.

    Parameters
    ----------
    image : (H, W) or (H, W, C) array, optional
        What the GUI shows when it finds no image file; up to three channels.
    cells : Instances or (H, W) label image
    filename : str, optional
        The image file; default the name of `path` without ``_seg.npy``.
    made_by : str
        "proposed" or "corrected", kept in the key ``cellkit``; the GUI drops it when it saves.
    stamped : bool
        Note what tells later whether it is still as written, see `cellkit.formats.label_images`.

    Raises
    ------
    UserError
        A name that does not end with ``_seg.npy``, masks of a stack, or an image of another size.
    """
    path = Path(path)
    if not path.name.endswith("_seg.npy"):
        raise UserError(f"{path.name} is no name of a Cellpose file", "end it with _seg.npy")
    found, labels = _painted(cells)
    refuse_boxes([found], "a Cellpose file")
    if image is not None and (image.ndim not in (2, 3) or image.shape[:2] != found.shape):
        raise UserError(
            f"the image of {path.name} is {image.shape}, its masks are {found.shape}",
            "give the image that was labelled",
        )
    unnamed = sorted(set(found.class_ids.tolist()) - set(range(len(classes) + 1)))
    if unnamed:
        raise UserError(f"{path.name} has a cell of class {unnamed[0]} of {len(classes)}", "name every class")
    kind = np.uint16 if labels.max(initial=0) < 2**16 - 1 else np.uint32
    fields = {
        "outlines": (labels * _edge_pixels(labels)).astype(kind),
        "colors": class_colours(len(classes))[found.class_ids],
        "masks": labels.astype(kind),
        "filename": filename or path.name.removesuffix("_seg.npy"),
        "flows": [[], [], [], [], [[]]],
        "ismanual": np.zeros(len(found), bool),
        "manual_changes": [],
        "restore": None,
        "ratio": 1.0,
        "diameter": float(diameter_px),
        "cellkit": {"classes": list(classes), "class_ids": found.class_ids, "scores": found.scores},
    }
    fields["cellkit"] |= {"labels": made_by} if made_by in MARKED else {}
    fields["cellkit"] |= {"unknown": found.unknown} if found.unknown_px else {}
    fields |= {} if image is None else {"img": _three_channels(image)}
    if stamped:
        fields["cellkit"]["stamp"] = stamp_of(labels)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(fields, dtype=object), allow_pickle=True)
    return path


def _painted(cells: Instances | np.ndarray) -> tuple[Instances, np.ndarray]:
    """Return the cells that keep a pixel and their label image 1..N."""
    if isinstance(cells, np.ndarray):
        if cells.ndim != 2:
            raise UserError(f"masks of shape {cells.shape} are those of a stack", "write one file per plane")
        cells = Instances.from_labels(cells)
    labels = cells.paint()
    kept = np.bincount(labels.ravel(), minlength=len(cells) + 1)[1:] > 0
    if kept.all():
        return cells, labels
    return cells[kept], np.r_[0, np.cumsum(kept) * kept][labels].astype(np.int32)


def _edge_pixels(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with another label, or the border of the image, on one of four sides."""
    framed = np.pad(labels, 1)
    middle = framed[1:-1, 1:-1]
    beside = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    return (middle > 0) & np.any([other != middle for other in beside], axis=0)


def _three_channels(image: np.ndarray) -> np.ndarray:
    """Return an image as the GUI wants it, (H, W, 3): missing channels are empty."""
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] > 3:
        raise UserError(f"an image of {image.shape[2]} channels", "give up to three")
    return np.pad(image, ((0, 0), (0, 0), (0, 3 - image.shape[2])))


def _read_picture(path: Path) -> np.ndarray:
    """Return a picture of one plane as (H, W, C), up to three channels."""
    with open_file(path) as opened:
        series = opened.info.series[0]
        count = len(series.channels)
        if series.size("Z") * series.size("T") > 1 or len(opened.info.series) > 1 or count > 3:
            raise UserError(
                f"{path.name} is {series.axes} {series.shape}", "convert it to one picture: cellkit convert"
            )
        planes = [opened.plane(0, 0, 0, channel) for channel in range(count)]
    image = np.stack(planes, axis=-1)
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def shows(path: Path, picture: Path) -> bool:
    """Tell whether a ``_seg.npy`` file holds the very pixels of a picture: that is the one it was written with.

    Raises
    ------
    UserError
        The ``_seg.npy`` file is damaged.
    """
    image = read_seg(path).image
    try:
        return image is not None and np.array_equal(image, _three_channels(_read_picture(picture)))
    except UserError:  # it is no picture
        return False


# ---- the contract of cellkit.formats.any ----
def picture_stem(name: str) -> str:
    """Return the name that a file shares with its picture.

    Examples
    --------
    >>> picture_stem("a_seg.npy")
    'a'
    """
    return name[: -len("_seg.npy")]


def read_image(file: Path, how: Reading, size: tuple[int, int] | None = None) -> ImageCells:
    """Read the cells of one file."""
    seg = read_seg(file, how.classes)
    return ImageCells(seg.instances, seg.classes, seg.made_by, notes=seg.notes)


def write_image(path: Path, image: ImageToWrite) -> tuple[int, int]:
    """Write one file beside its picture; return how many cells lost pixels, and how many are left out without any.

    Raises
    ------
    UserError
        The file is there and Cellpose saved it: it may hold corrections.
    """
    if os.path.lexists(path) and not written_here(path):
        raise UserError(
            f"{path} was saved by Cellpose and may hold corrections", "move it away, or give another folder"
        )
    refuse_changed(path, _painted(image.cells)[1])
    about = {"made_by": image.made_by, "stamped": True}
    write_seg(path, _read_picture(image.picture), image.cells, image.classes, image.picture.name, **about)
    return lost_pixels(image.cells)


def written_here(path: Path) -> bool:
    """Tell whether a file is as cellkit wrote it: Cellpose drops what says so."""
    return "cellkit" in read_plain_npy(path)
