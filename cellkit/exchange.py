"""Cells to and from the tools people label with: Cellpose's `_seg.npy`, ImageJ's ROI zips, label pictures.

Reading never runs what a file names (see `cellkit.plain_pickle`) and never unpacks an archive to disk. Writing loses no
pixel: a cell with holes or in several pieces becomes a composite ROI, and only overlaps, for which a label picture has no
place, are counted as lost.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from cellkit.coco import MARKED
from cellkit.dataset import CellDataset
from cellkit.errors import Quarantined, UserError, nearest
from cellkit.files import atomic_path
from cellkit.folders import Pictures
from cellkit.instances import Instances, refuse_boxes
from cellkit.labels import not_annotated
from cellkit.names import plain_stem, stem_of
from cellkit.outlines import FARTHEST_PX, fill, outlines
from cellkit.records import ImageRecord
from cellkit.runs import merge_adjacent
from cellkit.stamps import refuse_changed, stamp_of

FORMATS = {"tif": ".tif", "png": ".png", "seg": "_seg.npy", "roi": "_rois.zip"}
READ = {"labels": (".tif", ".tiff", ".png"), "seg": ("_seg.npy",), "roi": (".zip", ".roi")}


# ---- Cellpose _seg.npy ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Seg:
    """What a ``_seg.npy`` file holds.

    Attributes
    ----------
    labels : (H, W) int32, 0 = background
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
    """

    labels: np.ndarray
    instances: Instances
    classes: tuple[str, ...]
    filename: str
    image: np.ndarray | None
    by_hand: np.ndarray | None
    fields: dict[str, Any]

    @property
    def made_by(self) -> str:
        """Who made the cells, where cellkit wrote the file and no tool saved it since: "corrected", "proposed", or ""."""
        side = self.fields.get("cellkit")
        return _whose(side.get("labels") if isinstance(side, dict) else "")


def read_seg(path: str | Path, classes: Sequence[str] = ()) -> Seg:
    """Read a Cellpose ``_seg.npy`` file without unpickling it; one that holds a bare label image is read as that.

    Cells written by `write_seg` come back with class and score. The Cellpose GUI drops both when it saves, but keeps the
    colour of every cell: with `classes`, in the order they were written, the colours tell the class; a cell drawn anew has
    a colour of the GUI's and becomes a cell of unknown class.

    Raises
    ------
    UserError
        A file that is damaged or names anything but arrays and containers, masks of a stack, masks that are no labels, or
        that mark pixels as not annotated (-1).
    """
    from cellkit.plain_pickle import read_plain_npy

    array = _bare_array(path)
    fields = read_plain_npy(path) if array is None else {"masks": array}
    labels = _seg_labels(fields.get("masks"), path, fields.get("outlines"))
    found = Instances.from_labels(labels)
    found, classes = _seg_classes(fields, found, np.unique(labels[labels > 0]), tuple(classes), path)
    name, image, by_hand = fields.get("filename"), fields.get("img"), fields.get("ismanual")
    return Seg(
        labels=labels,
        instances=found,
        classes=classes,
        filename=name if isinstance(name, str) else "",
        image=image if isinstance(image, np.ndarray) and image.size else None,
        by_hand=by_hand if isinstance(by_hand, np.ndarray) and by_hand.shape == (len(found),) else None,
        fields=fields,
    )


def _whose(mark: Any) -> str:
    return mark if isinstance(mark, str) and mark in MARKED else ""


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
    except (ValueError, OSError, EOFError):
        return None


def _seg_labels(masks: Any, path, edges: Any = None) -> np.ndarray:
    """Return the masks as a label image; refuse stacks and what is no labels."""
    from cellkit.labels import LARGEST_ID

    if not isinstance(masks, np.ndarray):
        raise UserError(f"{path} has no masks", "open it in Cellpose and save it again")
    masks = masks[0] if masks.ndim == 3 and masks.shape[0] == 1 else masks
    if masks.ndim == 3:
        raise UserError(f"{path} holds masks of a stack of {masks.shape[0]} planes", "save the masks plane by plane")
    if masks.ndim != 2 or masks.dtype.kind not in "iub" or not masks.size:
        raise UserError(f"{path} holds masks {masks.shape} {masks.dtype}", "masks are (H, W) integers, 0 = background")
    least, most = int(masks.min()), int(masks.max())
    if least < -1 or most > LARGEST_ID - 1:
        raise UserError(f"{path} holds ids from {least} to {most}", f"ids are 0 to {LARGEST_ID - 1}")
    old = least == -1 and _counts_from_minus_one(masks, edges)
    if least == -1 and not old:
        raise not_annotated(path, int(np.count_nonzero(masks == -1)))
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


def _seg_classes(fields: dict, found: Instances, ids: np.ndarray, classes: tuple[str, ...], path) -> tuple:
    """Return the cells with their classes and scores, and the names of the classes."""
    side = fields.get("cellkit")
    if isinstance(side, dict):
        names, class_ids, scores = side.get("classes"), side.get("class_ids"), side.get("scores")
        texts = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        arrays = [v for v in (class_ids, scores) if isinstance(v, np.ndarray) and v.shape == (len(found),)]
        if not texts or len(arrays) < 2 or class_ids.dtype.kind not in "iu" or scores.dtype.kind != "f":
            raise UserError(
                f"{path} has {len(found)} cells, its classes are those of others", "remove its key 'cellkit'"
            )
        if len(found) and not (class_ids.min() >= 0 and class_ids.max() <= len(names)):
            raise UserError(f"{path} has a cell of class {class_ids.max()} of {len(names)}", "remove its key 'cellkit'")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise UserError(f"{path} has a score that is no number from 0 to 1", "remove its key 'cellkit'")
        return found.with_classes(class_ids).with_scores(scores), tuple(names)
    colours = fields.get("colors")
    if not classes or not isinstance(colours, np.ndarray) or colours.shape[1:] != (3,) or colours.dtype != np.uint8:
        return found, classes
    if len(ids) and len(colours) != ids.max():
        raise UserError(f"{path} has {ids.max()} cells but {len(colours)} colours", "save it again with Cellpose")
    known = {tuple(colour): k for k, colour in enumerate(class_colours(len(classes)).tolist())}
    return found.with_classes([known.get(tuple(colour), 0) for colour in colours[ids - 1].tolist()]), classes


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
    in the key ``cellkit``, and the class also as the colour of the cell, which the GUI shows and keeps.

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
        Note what tells later whether it is still as written, see `cellkit.stamps`.

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


# ---- ImageJ ROI zips -----------------------------------------------------------------------------------------------
MOST_ROIS, LARGEST_ROI_BYTES, LARGEST_ZIP_BYTES = 200_000, 2**26, 2**30
SMALL_BYTES, MOST_PACKED = 2**20, 200  # above a megabyte nothing of an outline packs more than 200 times
MOST_CLASSES = 255  # ImageJ's groups
MOST_PX = 2**31  # of the image that a zip says it belongs to
LARGEST_INTEGER_PX = 32_767  # what ImageJ's integer outlines hold for sure; others are written as floats
SAID = ("cellkit.classes", "cellkit.shape", "cellkit.score", "cellkit.labels")
NO_AREA = {"LINE", "FREELINE", "POLYLINE", "NOROI", "ANGLE", "POINT", "UNKNOWN"}
DRAW_AREA = "draw it as a polygon, freehand, oval or rectangle selection, or delete it"


@dataclass(frozen=True, eq=False)
class Rois:
    """What a ROI zip holds: cells in the order of the zip, class names, the ROIs' names."""

    instances: Instances
    classes: tuple[str, ...]
    names: list[str]


def write_rois(
    path: str | Path,
    found: Instances,
    classes: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    made_by: str = "",
) -> Path:
    """Write one ImageJ ROI per cell into a zip, atomically; the same cells give the same bytes.

    A cell of one piece without hole is a traced selection, any other a composite one; `read_rois` gives back the very
    pixels, overlaps included. The group of a ROI is its class (ImageJ colours by it, and a new group is a new class); its
    properties hold the names of the classes, the size of the image, and the score where it is not 1.

    Parameters
    ----------
    numbers : sequence of int, optional
        What each cell is called, e.g. its id in a label image; default 1 to N.
    made_by : str
        "proposed" or "corrected", kept in the comment of the zip; ImageJ drops it when it saves.

    Raises
    ------
    UserError
        A cell without pixels or with a class that has no name; more than 255 classes; a name that does not end with .zip;
        a number given twice.
    """
    import zipfile

    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise UserError(f"{path.name} is no name of a zip", "end it with .zip")
    if len(classes) > MOST_CLASSES:
        raise UserError(f"{len(classes)} classes", f"ImageJ has {MOST_CLASSES} groups")
    if len(found) and not 0 <= found.class_ids.min() <= found.class_ids.max() <= len(classes):
        raise UserError(
            f"{path.name} has a cell of class {found.class_ids.max()} of {len(classes)}", "name every class"
        )
    if (found.areas_px == 0).any():
        raise UserError(f"cell {int(np.argmin(found.areas_px)) + 1} of {path.name} has no pixel", "leave it out")
    refuse_boxes([found], "a zip of ROIs")
    said = {"cellkit.classes": ",".join(quote(name, safe="") for name in classes), "cellkit.shape": _pair(found.shape)}
    numbers = list(range(1, len(found) + 1)) if numbers is None else [int(k) for k in numbers]
    if len(set(numbers)) < len(found) or len(numbers) != len(found):
        raise UserError(f"{path.name} has {len(found)} cells called {str(numbers)[:60]}", "number each cell once")
    digits = max(4, len(str(max(numbers, default=0))))
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        whose = {"cellkit.labels": made_by} if made_by in MARKED else {}
        archive.comment = json.dumps(whose | said).encode()[:65_535]  # the only place when there is no cell
        for k, rings in enumerate(outlines(found)):
            name = f"{numbers[k]:0{digits}d}"
            own = said if found.scores[k] == 1 else said | {"cellkit.score": repr(float(found.scores[k]))}
            roi = _roi(rings, name, int(found.class_ids[k]), own)
            archive.writestr(zipfile.ZipInfo(f"{name}.roi", (1980, 1, 1, 0, 0, 0)), roi, zipfile.ZIP_DEFLATED)
    return path


def _pair(shape: tuple[int, int]) -> str:
    return f"{shape[0]},{shape[1]}"


def _roi(rings: list[np.ndarray], name: str, group: int, said: dict[str, str]) -> bytes:
    """Return the bytes of one ROI."""
    from roifile import ROI_TYPE, ImagejRoi

    points = np.concatenate(rings)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    roi = ImagejRoi(name=name, group=group, top=top, left=left, bottom=bottom, right=right)
    roi.props = "".join(f"{key}: {value}\n" for key, value in said.items())
    if len(rings) == 1 and max(right, bottom) <= LARGEST_INTEGER_PX:
        roi.roitype = ROI_TYPE.TRACED
        roi.integer_coordinates = (points - (left, top)).astype(np.int32)
        roi.n_coordinates = len(points)
        return roi.tobytes()
    roi.roitype = ROI_TYPE.RECT  # so says ImageJ of composites; what counts is the path
    path = np.concatenate([_path(ring) for ring in rings]).astype(np.float32)
    roi.multi_coordinates, roi.shape_roi_size = path, len(path)
    return roi.tobytes()


def _path(ring: np.ndarray) -> np.ndarray:
    """Return an outline as Java's path: 0 = move to x y, 1 = line to x y, 4 = close."""
    steps = np.column_stack([np.r_[0, np.ones(len(ring) - 1)], ring])
    return np.r_[steps.ravel(), 4]


def read_rois(
    path: str | Path, shape: tuple[int, int] | None = None, set_aside: list[Quarantined] | None = None
) -> Rois:
    """Read a zip of ImageJ ROIs, or the ``.roi`` that Fiji saves of a single one, as cells.

    One cell per area ROI, clipped to the image, overlaps kept.

    Rectangles (also rotated and rounded), ovals, ellipses, polygons, freehand, traced and composite selections, with
    integer or sub-pixel corners; a pixel belongs to a ROI when its centre does, as in ImageJ. The group of a ROI is its class: by
    the names that `write_rois` left in the zip, else "group 1", "group 2", ...

    Parameters
    ----------
    shape : (H, W), optional
        The size of the image; needed for zips that `write_rois` did not begin.
    set_aside : list of Quarantined, optional
        ROIs that are no cells are added to it, and the others read; without it such a ROI is an error.

    Raises
    ------
    UserError
        Naming zip and member: no zip, damaged, a member that leads outside, is a link, or is suspiciously large; a ROI
        without area, of a spline, or outside the image (with `set_aside`: no other); ROIs of several planes; no size of the
        image.
    """
    aside: list[UserError] = []
    rois = []
    for name, content in _members(path):
        try:
            rois.append((name, _parsed(content, name, path)))
        except UserError as error:
            aside.append(error)
    if aside and (set_aside is None or not rois):
        raise aside[0]
    said = [_said(roi.props) for _, roi in rois]
    size, classes = _agreed(said or [_comment(path)], shape, path)
    _refuse_planes([roi for _, roi in rois], path)
    most = max([len(classes), *(int(roi.group) for _, roi in rois)])
    classes += tuple(f"group {k}" for k in range(len(classes) + 1, most + 1))
    scores = [_score_of(told, f"{path}: {name}") for told, (name, _) in zip(said, rois, strict=True)]
    starts, lengths, counts, kept = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [0], []
    for k, (name, roi) in enumerate(rois):
        try:
            begin, length = _covered(roi, size, f"{path}: {name}")
        except UserError as error:
            aside.append(error)
            continue
        starts.append(begin)
        lengths.append(length)
        counts.append(len(begin))
        kept.append(k)
    if aside and (set_aside is None or not kept):
        raise aside[0]
    if set_aside is not None:
        set_aside += [Quarantined(Path(path).name, "; ".join(str(error).splitlines())) for error in aside]
    class_ids = [int(rois[k][1].group) for k in kept]
    found = Instances.from_runs(
        size,
        np.concatenate(starts),
        np.concatenate(lengths),
        np.cumsum(counts),
        class_ids,
        [scores[k] for k in kept],
    )
    return Rois(found, classes, [Path(rois[k][0]).stem for k in kept])


def _covered(roi: Any, size: tuple[int, int], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels of one area ROI, at least one."""
    try:
        begin, length = _pixels(roi, size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not len(begin):
        raise UserError(f"{where} covers no pixel of its image of {size[0]} x {size[1]} px", DRAW_AREA)
    return begin, length


def _members(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every ROI in a zip, each member checked before it is unpacked into memory."""
    import zipfile
    import zlib

    if not Path(path).is_file():
        raise UserError(f"no file at {path}", "give a zip of ImageJ ROIs")
    if _is_single(path):
        if Path(path).stat().st_size > LARGEST_ROI_BYTES:
            raise UserError(f"{path} has {Path(path).stat().st_size} bytes", "save the ROI again")
        yield Path(path).name, Path(path).read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not _of_finder(info.filename)]
            _check_members(infos, path)
            for info in infos:
                try:
                    content = archive.read(info)
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
                    raise UserError(f"{path}: {info.filename} cannot be unpacked: {error}", "zip it again") from error
                yield info.filename, content
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise UserError(f"{path} is no zip: {error}", "save the ROIs again (ROI Manager, More, Save)") from error


def _is_single(path: str | Path) -> bool:
    """Tell whether a file holds one ROI; several are zipped."""
    return Path(path).suffix.lower() == ".roi"


def _of_finder(name: str) -> bool:
    """Tell whether a member is what macOS adds to a zip, or a folder."""
    return name.endswith("/") or name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1] == ".DS_Store"


def _check_members(infos: Sequence, path) -> None:
    """Refuse, by name, a member that leads out of the zip, is a link, is no ROI, is there twice, or is too large."""
    import stat

    if len(infos) > MOST_ROIS or sum(info.file_size for info in infos) > LARGEST_ZIP_BYTES:
        raise UserError(
            f"{path} unpacks to {len(infos)} members of too many bytes", f"up to {MOST_ROIS} and 1 GiB are read"
        )
    seen: set[str] = set()
    for info in infos:
        name, parts = info.filename, info.filename.replace("\\", "/").split("/")
        packed = info.file_size / max(info.compress_size, 1)
        problem = (
            "leads out of the zip" if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]
            else "is a link" if stat.S_ISLNK(info.external_attr >> 16)
            else "is no ROI" if not name.lower().endswith(".roi")
            else "is there twice" if name in seen
            else f"unpacks to {info.file_size} bytes" if info.file_size > LARGEST_ROI_BYTES
            else f"is packed {packed:.0f} times" if info.file_size > SMALL_BYTES and packed > MOST_PACKED
            else ""
        )  # fmt: skip
        if problem:
            raise UserError(f"{path}: {name[:80]!r} {problem}", "take it out of the zip; the ROIs were not read")
        seen.add(name)


def _parsed(content: bytes, name: str, path) -> Any:
    """Return one ROI, its type checked."""
    from roifile import ImagejRoi

    try:
        roi = ImagejRoi.frombytes(content)
    except Exception as error:  # whatever the parser meets in a damaged ROI
        raise UserError(f"{path}: {name} is no ImageJ ROI: {str(error)[:80]}", "save it again, or delete it") from error
    kind = roi.subtype.name if roi.subtype.name in ("TEXT", "ARROW", "IMAGE") else roi.roitype.name
    if kind in NO_AREA or kind != roi.roitype.name:
        raise UserError(f"{path}: {name} is a selection of kind {kind.lower()}: it has no area", DRAW_AREA)
    if int(roi.options) & 1:  # spline fit
        raise UserError(f"{path}: {name} is a fitted spline", "turn it into a polygon: Edit, Selection, Interpolate")
    return roi


def _said(props: str) -> dict[str, str]:
    """Return what `write_rois` left in the properties of a ROI."""
    pairs = (line.partition(":" if ":" in line else "=") for line in props.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() in SAID}


def _comment(path: str | Path) -> dict[str, str]:
    """Return what `write_rois` left in the comment of a zip without ROIs."""
    import zipfile

    if _is_single(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        text = archive.comment
    try:
        said = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        said = {}
    return {k: v for k, v in said.items() if k in SAID and isinstance(v, str)} if isinstance(said, dict) else {}


def rois_made_by(path: str | Path) -> str:
    """Return who made the cells of a zip of ROIs that cellkit wrote and ImageJ did not save since, "" where it is not told."""
    return _whose(_comment(path).get("cellkit.labels"))


def _agreed(said: list[dict[str, str]], shape: tuple[int, int] | None, path) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Return the size of the image and the classes that the ROIs agree on."""
    sizes, tables = ({told[key] for told in said if key in told} for key in ("cellkit.shape", "cellkit.classes"))
    sizes |= {_pair(shape)} if shape is not None else set()
    if len(sizes) > 1 or len(tables) > 1:
        shown = " and ".join(sorted(sizes if len(sizes) > 1 else tables))[:100]
        raise UserError(
            f"{path} holds ROIs of images of different size or classes: {shown}", "keep one image's in a zip"
        )
    if not sizes:
        raise UserError(f"{path} does not say how large its image is", "give the folder of the images: --images DIR")
    parts = sizes.pop().split(",")
    good = len(parts) == 2 and all(p.isascii() and p.isdigit() and len(p) < 7 and int(p) > 0 for p in parts)
    if not good or math.prod(map(int, parts)) > MOST_PX:
        raise UserError(f"{path}: an image of {','.join(parts)[:40]} px", "sizes are height,width in px")
    names = tables.pop().split(",") if tables else []
    return (int(parts[0]), int(parts[1])), tuple(unquote(name) for name in names) if names != [""] else ()


def _refuse_planes(rois: Iterable, path) -> None:
    """Refuse ROIs of different slices or times; 0 is bound to none, and Fiji writes both into one zip."""
    for axis in ("position", "z_position", "t_position"):
        planes = sorted({int(getattr(roi, axis)) for roi in rois} - {0, -1})
        if len(planes) > 1:
            shown = ", ".join(map(str, planes[:5])) + (", ..." if len(planes) > 5 else "")
            raise UserError(
                f"{path} holds ROIs of {len(planes)} planes of a stack ({axis.replace('_', ' ')} {shown})",
                "save the ROIs of one plane per zip; or, if they all belong to one picture, unbind them first (ROI "
                "Manager, More, Remove Positions)",
            )


def _score_of(told: dict[str, str], where: str) -> float:
    try:
        score = float(told.get("cellkit.score", "1"))
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise UserError(f"{where} has the score {told['cellkit.score'][:40]}", "a score is a number from 0 to 1")
    return score


# ---- the area of a ROI ---------------------------------------------------------------------------------------------
def _pixels(roi: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels of one area ROI."""
    if roi.composite:
        return fill(_composite(roi.multi_coordinates), shape)
    if roi.roitype.name == "OVAL":
        return _oval(*_box(roi), shape)
    if roi.roitype.name == "RECT":
        return fill([_rectangle(*_box(roi), roi.rounded_rect_arc_size)], shape)
    special = {"ELLIPSE": _ellipse, "ROTATED_RECT": _rotated}.get(roi.subtype.name)
    if special is not None:
        return fill([special(roi)], shape)
    return fill([roi.coordinates()], shape)


def _composite(numbers: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of Java's path: move, line, quadratic and cubic curve, close."""
    values, rings, place = numbers.astype(np.float64).tolist(), [], 0
    sizes = {0: 2, 1: 2, 2: 4, 3: 6, 4: 0}
    while place < len(values):
        step = values[place]
        if step not in sizes or place + sizes[step] >= len(values) or (step != 0 and not rings):
            raise UserError("its composite path is damaged", "save it again, or delete it")
        points = np.array(values[place + 1 : place + 1 + sizes[step]]).reshape(-1, 2)
        place += 1 + sizes[step]
        if step == 0:
            rings.append([points])
        elif step != 4:
            rings[-1].append(_curve(np.vstack([rings[-1][-1][-1:], points])))
    return [np.vstack(ring) for ring in rings]


def _curve(control: np.ndarray, steps: int = 32) -> np.ndarray:
    """Return points on a Bezier curve of any degree, the first left out (de Casteljau)."""
    if len(control) == 2:
        return control[1:]
    t = np.linspace(0, 1, steps + 1)[1:, None, None]
    points = np.repeat(control[None], steps, axis=0)
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - t) + points[:, 1:] * t
    return points[:, 0]


def _box(roi: Any) -> tuple[float, float, float, float]:
    """Return x, y, width, height of a rectangle or oval."""
    if roi.subpixelrect:
        return roi.xd, roi.yd, roi.widthd, roi.heightd
    return roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top


def _oval(x: float, y: float, width: float, height: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels whose centres lie in an ellipse with upright axes."""
    if not (all(abs(value) <= FARTHEST_PX for value in (x, y, width, height)) and width > 0 and height > 0):
        raise UserError("its box is empty, not finite or far away", DRAW_AREA)
    row = np.arange(max(0, math.floor(y)), min(shape[0], math.ceil(y + height)))
    off = (row + 0.5 - y - height / 2) / (height / 2)
    half = np.sqrt(np.maximum(1 - off**2, 0)) * (width / 2)
    begin = np.clip(np.ceil(x + width / 2 - half - 0.5), 0, shape[1]).astype(np.int64)
    end = np.clip(np.floor(x + width / 2 + half - 0.5) + 1, 0, shape[1]).astype(np.int64)
    some = (np.abs(off) <= 1) & (end > begin)
    return merge_adjacent(row[some] * shape[1] + begin[some], (end - begin)[some])


def _rectangle(x: float, y: float, width: float, height: float, arc: float = 0) -> np.ndarray:
    """Return the outline of a rectangle, its corners rounded by quarters of a circle `arc` px across."""
    radius = min(arc, width, height) / 2
    if not radius > 0:
        return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64)
    angle = np.linspace(0, np.pi / 2, 256)
    right, left, top, bottom = x + width - radius, x + radius, y + radius, y + height - radius
    turns = [(right, bottom), (left, bottom), (left, top), (right, top)]
    angles = [angle + quarter * np.pi / 2 for quarter in range(4)]
    quarters = [np.column_stack([cx + radius * np.cos(a), cy + radius * np.sin(a)])
                for (cx, cy), a in zip(turns, angles, strict=True)]  # fmt: skip
    return np.vstack(quarters)


def _float_at_52(roi: Any) -> float:
    """Return the number that ellipses (aspect ratio) and rotated rectangles (width) keep where arrows keep their style."""
    order = roi.byteorder
    parts = roi.arrow_style_or_aspect_ratio, roi.arrow_head_size, roi.rounded_rect_arc_size
    return struct.unpack(f"{order}f", struct.pack(f"{order}BBh", *parts))[0]


def _ellipse(roi: Any) -> np.ndarray:
    """Return the 72 corners that ImageJ gives an ellipse: its major axis from (x1, y1) to (x2, y2), and the ratio."""
    centre = np.array([(roi.x1 + roi.x2) / 2, (roi.y1 + roi.y2) / 2])
    half = np.array([roi.x2 - roi.x1, roi.y2 - roi.y1]) / 2
    ratio = min(max(_float_at_52(roi), 0.0), 1.0)
    angle = np.arange(72)[:, None] * (2 * np.pi / 72)
    return centre + np.cos(angle) * half + np.sin(angle) * ratio * np.array([-half[1], half[0]])


def _rotated(roi: Any) -> np.ndarray:
    """Return the corners of a rotated rectangle: its middle line from (x1, y1) to (x2, y2), and its width."""
    a, b = np.array([roi.x1, roi.y1]), np.array([roi.x2, roi.y2])
    length = float(np.hypot(*(b - a)))
    if not length > 0:
        raise UserError("it is a rotated rectangle without length", DRAW_AREA)
    side = np.array([a[1] - b[1], b[0] - a[0]]) / length * (_float_at_52(roi) / 2)
    return np.array([a + side, b + side, b - side, a - side])


# ---- label pictures ------------------------------------------------------------------------------------------------
def write_label_png(path: str | Path, labels: np.ndarray, stamp: str | None = None) -> Path:
    """Write a label image as a 16-bit PNG, atomically; `cellkit.labels.read_labels` reads it. `stamp` as for `write_labels`.

    Raises
    ------
    UserError
        More ids than 16 bits hold, or a name that does not end with .png.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{Path(path).name} is no name of a PNG", "end it with .png")
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or (labels.size and labels.min() < 0):
        raise UserError(f"a label image is (H, W) integer >= 0, this is {labels.shape} {labels.dtype}", "relabel first")
    if labels.max(initial=0) > 65_535:
        raise UserError(
            f"{Path(path).name} would need ids up to {labels.max()}, a PNG holds 65535", "write TIFF: --format tif"
        )
    about = PngInfo()
    if stamp:
        about.add_text("Software", stamp)
    with atomic_path(path) as temporary:
        Image.fromarray(labels.astype(np.uint16)).save(temporary, format="PNG", pnginfo=about)
    return Path(path)


# ---- folders of either ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Written:
    """What `write_folder` did: files, cells that lost pixels to others, cells left out for want of pixels, set aside."""

    files: int
    lost: int
    left_out: int
    quarantined: list[Quarantined]


def told_format(path: str | Path) -> str:
    """Return what a file or the files of a folder are: "labels", "seg" or "roi", told by their suffixes.

    Raises
    ------
    UserError
        Nothing of the kind, or several: a folder of ``_seg.npy`` files and pictures could mean either.
    """
    from cellkit.folders import list_files

    path = Path(path)
    names = [path] if path.is_file() else list_files(path, sum(READ.values(), ()), keep_labels=True)
    kinds = {kind for name in names for kind, endings in READ.items() if name.name.lower().endswith(endings)}
    if len(kinds) == 1:
        return kinds.pop()
    what = f"holds {' and '.join(sorted(kinds))}" if kinds else "holds no label image, _seg.npy file or ROI zip"
    raise UserError(f"{path} {what}", f"say which to read: --format {', '.join(READ)}")


def read_folder(
    path: str | Path,
    kind: str | None = None,
    images: str | Path | None = None,
    classes: Sequence[str] = (),
    pieces: str | None = None,
) -> tuple[Any, list[Quarantined]]:
    """Read every label image, ``_seg.npy`` file, ROI zip or single ROI below a folder (or one such file).

    Parameters
    ----------
    kind : {"labels", "seg", "roi"}, optional
        Default: told by the suffixes, where these are all of a kind.
    images : path, optional
        The pictures, matched by name without suffix: for their file names, their sizes (ROI zips), and as a check.
    classes : sequence of str
        For ``_seg.npy`` files that the Cellpose GUI saved: the classes in the order in which they were written.
    pieces : {"keep", "largest", "split"}, optional
        What a cell of several pieces in a label image is, see `cellkit.labels.clean_labels`. Without it cells stay as they
        are, but a mask of where cells are is set aside.

    Returns
    -------
    side : CellDataset
        Records and cells; `classes` is empty where no file names any; `notes` name pictures without labels.
    quarantined : list of Quarantined
        Files that could not be read, or have no picture in `images`; ROIs that are no cells.

    Raises
    ------
    UserError
        No such file, nothing to read, nothing that could be read, or two files of one image.
    """
    from cellkit.loop import map_items

    path = Path(path)
    if not path.exists():
        raise UserError(f"no folder at {path}", "give the folder of the label images, _seg.npy files or ROI zips")
    kind = _checked_kind(kind) if kind is not None else told_format(path)
    root, files, bare = _files_of(path, kind)
    pictures = Pictures(images) if images is not None else None
    if pieces not in (None, "keep", "largest", "split"):
        raise UserError(f"pieces is {pieces!r}", "pieces is keep, largest or split")
    read = partial(_read_one, root=root, kind=kind, pictures=pictures, classes=tuple(classes), pieces=pieces)
    done, failed = map_items(read, files, "read", name=lambda file: file.relative_to(root).as_posix())
    quarantined = [_in_a_line(item) for item in failed]
    good = [item for item in done if item is not None]
    if not good:
        raise none_left(f"none of the {len(files)} file(s) in {path} could be read", quarantined)
    quarantined += [item for _, _, _, aside, _ in good for item in aside]
    _refuse_twice([record.image_id for record, *_ in good], path)
    names = list(dict.fromkeys(name for _, _, own, *_ in good for name in own))
    cells = [
        found.with_classes(np.array([0, *(names.index(n) + 1 for n in own)])[found.class_ids])
        for _, found, own, *_ in good
    ]
    makers = _makers(root, files) if kind == "labels" else {}
    made_by = [makers.get(file, item[-1]) for file, item in zip(files, done, strict=True) if item is not None]
    if pictures is not None and path.is_dir():
        bare += _without_labels(pictures, [_picture_name(file, root, kind) for file in files])
        bare = list({file.resolve(): file for file in bare}.values())
    notes = bare_note(bare, files[0].relative_to(root).as_posix())
    records = [record for record, *_ in good]
    return CellDataset(records, cells, tuple(names), made_by=made_by, path=path, notes=notes), quarantined


def _without_labels(pictures: Pictures, names: Sequence[str]) -> list[Path]:
    """Return the pictures that no label file is called after."""
    used = set()
    for name in names:
        with suppress(UserError):
            used.add(pictures.find(name)[0])
    return [file for file in pictures.files if file not in used]


def bare_note(bare: Sequence[Path], example: str) -> tuple[str, ...]:
    """Say which pictures have no label file: no cells, or forgotten?"""
    if not bare:
        return ()
    names = ", ".join(file.name for file in bare[:5]) + (", ..." if len(bare) > 5 else "")
    what = f"{len(bare)} picture(s) have no label file and are left out: {names}"
    return (f"{what}; where there is no cell, give an empty one (files are called like {example})",)


def _makers(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Return who made the label images that lie as a run left them."""
    from cellkit.files import sha256_file
    from cellkit.label_folders import chosen_cells

    chosen = chosen_cells(root)
    known = {file: chosen.get(file.stem, (None, "", "")) for file in files}
    return {file: maker for file, (_, maker, sha256) in known.items() if maker and sha256_file(file) == sha256}


def _checked_kind(kind: str) -> str:
    if kind not in READ:
        raise UserError(f"no format '{kind}'{nearest(kind, READ)}", f"formats to read: {', '.join(READ)}")
    return kind


def _in_a_line(item: Quarantined) -> Quarantined:
    return Quarantined(item.item, "; ".join(item.reason.removeprefix("UserError: ").splitlines()))


def none_left(what: str, quarantined: list[Quarantined]) -> UserError:
    """Say that nothing is left, and why the first was set aside."""
    problem, _, remedy = quarantined[0].reason.rpartition("; ")
    return UserError(f"{what}; {quarantined[0].item}: {problem or remedy}", remedy if problem else "")


def _refuse_twice(names: list[str], path) -> None:
    for before, name in pairwise(sorted(names)):
        if name == before:
            raise UserError(f"{path} has two files of the image '{name}'", "keep one")


def _files_of(path: Path, kind: str) -> tuple[Path, list[Path], list[Path]]:
    """Return the root, the files of a kind, and the pictures among them that have no label image; see `told_apart`."""
    from cellkit.folders import list_files

    if path.is_file():
        return path.parent, [path], []
    files = list_files(path, READ[kind], keep_labels=True)
    if not files:
        raise UserError(f"no file of format {kind} in the folder {path}", f"they end with {', '.join(READ[kind])}")
    return (path, *(told_apart(files) if kind == "labels" else (files, [])))


def told_apart(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the label images of a folder, and the pictures that have none.

    Where label images lie beside their pictures, ``a_masks.tif`` beside ``a.tif``, a file without such a name is a picture.
    Where no picture of theirs lies there, all files are label images, whatever they are called.

    Examples
    --------
    >>> names = lambda *texts: [Path(text) for text in texts]
    >>> [[file.name for file in part] for part in told_apart(names("a.tif", "a_masks.tif", "b.tif"))]
    [['a_masks.tif'], ['b.tif']]
    >>> [[file.name for file in part] for part in told_apart(names("a.tif", "control_mask.tif"))]
    [['a.tif', 'control_mask.tif'], []]
    """
    marked = {(file.parent, plain_stem(file.name)) for file in files if plain_stem(file.name) != stem_of(file.name)}
    plain = [file for file in files if plain_stem(file.name) == stem_of(file.name)]
    bare = [file for file in plain if (file.parent, stem_of(file.name)) not in marked]
    if len(bare) == len(plain):
        return list(files), []
    return [file for file in files if file not in set(plain)], bare


def _stem_of(name: str, kind: str) -> str:
    """Return the name that a file shares with its image.

    Examples
    --------
    >>> _stem_of("a_seg.npy", "seg"), _stem_of("a_rois.zip", "roi"), _stem_of("a_cp_masks.tif", "labels")
    ('a', 'a', 'a')
    """
    if kind == "labels":
        return plain_stem(name)
    if kind == "seg":
        return name[: -len("_seg.npy")]
    stem = stem_of(name)
    ending = next((e for e in ("_rois", "_roiset", "_roi", "-rois") if kind == "roi" and stem.lower().endswith(e)), "")
    return stem[: len(stem) - len(ending)] or stem


def _picture_name(file: Path, root: Path, kind: str) -> str:
    """Return what the picture of a label file is called: a path without suffix."""
    return (file.relative_to(root).parent / _stem_of(file.name, kind)).as_posix()


def _read_one(file: Path, root: Path, kind: str, pictures, classes: tuple[str, ...], pieces: str | None) -> tuple:
    """Return record, cells and class names of one file, what of it was set aside, and who made the cells if it says so."""
    from cellkit.labels import clean_labels, labels_orientation, read_labels, refuse_foreground
    from cellkit.open import inspect_file

    relative = file.relative_to(root)
    stem, maker = _stem_of(file.name, kind), ""
    name, shape = relative.as_posix() if kind == "labels" else stem, None
    if pictures is None and kind == "roi" and _is_single(file):
        raise UserError(f"{file} is a single ROI and does not say of which picture", "give their folder: --images DIR")
    if pictures is not None:
        picture, name = pictures.find(_picture_name(file, root, kind))
        series = inspect_file(picture).series[0]
        if series.turned != (labels_orientation(file) if kind == "labels" else 1):
            raise UserError(
                f"{picture.name} has the EXIF orientation {series.turned}, and {file} is not turned alike",
                "store picture and labels turned alike, without an orientation",
            )
        shape = (series.size("Y"), series.size("X"))
    aside: list[Quarantined] = []
    if kind == "labels":
        labels = read_labels(file)
        refuse_noise(labels, file)
        if pieces is None:
            refuse_foreground(labels, file, "say what the pieces are: --pieces split (each a cell), keep or largest")
        found, names = Instances.from_labels(labels if pieces is None else clean_labels(labels, pieces=pieces)), ()
    elif kind == "seg":
        seg = read_seg(file, classes)
        found, names, maker = seg.instances, seg.classes, seg.made_by
    else:
        rois = read_rois(file, shape, aside)
        found, names, maker = rois.instances, rois.classes, rois_made_by(file)
    if shape is not None and found.shape != shape:
        raise UserError(
            f"{file} is {found.shape[0]} x {found.shape[1]} px, its picture {shape[0]} x {shape[1]}",
            "label the picture itself, not a resized copy",
        )
    record = ImageRecord((relative.parent / stem).as_posix(), name, *found.shape)
    return record, found, names, aside, maker


def write_folder(
    folder: str | Path,
    records: Sequence[ImageRecord],
    instances: Sequence[Instances],
    classes: Sequence[str] = (),
    form: str = "tif",
    images: str | Path | None = None,
    suffix: str = "",
    made_by: Sequence[str] = (),
) -> Written:
    """Write one file per image: a label TIFF or PNG, a ``_seg.npy`` file, or a ROI zip.

    Files are called ``<image_id><suffix>.tif`` (or .png) and ``<image_id>_rois.zip``; a ``_seg.npy`` file is called after
    its picture, because that is how the GUI finds it, and lies beside it where `folder` is the pictures' own.

    Parameters
    ----------
    form : {"tif", "png", "seg", "roi"}
    images : path, optional
        The pictures; needed for "seg".
    suffix : str
        E.g. "_cp_masks" or "_masks", which Cellpose looks for.
    made_by : sequence of str, optional
        Who made the cells of each image: kept in the files, or beside label images in ``labels.json``, for as long as nobody
        changes them.

    Raises
    ------
    UserError
        An unknown format, "seg" without pictures, two images of one name, or no image that could be written.
    """
    from cellkit.label_folders import chosen_cells
    from cellkit.loop import map_items
    from cellkit.names import check_ids, image_id_of

    if form not in FORMATS:
        raise UserError(f"no format '{form}'{nearest(form, FORMATS)}", f"formats to write: {', '.join(FORMATS)}")
    if form == "seg" and images is None:
        raise UserError("a _seg.npy file goes with its picture", "give the folder of the pictures: --images DIR")
    if suffix and (form not in ("tif", "png") or "/" in suffix or "\\" in suffix):
        raise UserError(f"the suffix '{suffix}'", "a suffix such as _cp_masks is for the formats tif and png")
    names = [image_id_of(f"{record.image_id}.png") for record in records]
    check_ids(zip(names, [record.path for record in records], strict=True))
    pictures = Pictures(images) if images is not None else None
    beside = _beside(Path(folder), records, pictures) if form == "seg" else {}
    makers = list(made_by) or [""] * len(names)
    before = chosen_cells(folder) if any(makers) and form in ("tif", "png") else {}
    items = list(zip(names, records, instances, makers, strict=True))
    write = partial(_write_one, Path(folder), tuple(classes), form, pictures, suffix, beside)
    done, failed = map_items(write, items, "write", name=lambda item: item[1].image_id)
    quarantined = [_in_a_line(item) for item in failed]
    if items and len(failed) == len(items):
        raise none_left(f"none of the {len(items)} image(s) could be written", quarantined)
    if any(makers) and form in ("tif", "png"):
        kept = [item for item, pair in zip(items, done, strict=True) if pair is not None]
        _mark(Path(folder), f"{suffix}{FORMATS[form]}", kept, before)
    lost, left_out = (sum(pair[k] for pair in done if pair is not None) for k in (0, 1))
    return Written(len(items) - len(failed), lost, left_out, quarantined)


def _picture_of(record: ImageRecord, pictures: Pictures) -> Path:
    return pictures.find((Path(record.path).parent / stem_of(record.path)).as_posix())[0]


def _beside(folder: Path, records: Sequence[ImageRecord], pictures: Pictures) -> dict[Path, Path]:
    """Return {picture: its ``_seg.npy`` file}: beside it where `folder` is the pictures' own, else in `folder` itself; in the
    pictures' folders below it where names repeat. Refuses two images of one picture, or two pictures of one file."""
    found = []
    for record in records:
        with suppress(UserError):  # told where it is written
            found.append(_picture_of(record, pictures))
    names = [f"{picture.stem}_seg.npy" for picture in found]
    below = [picture.relative_to(pictures.folder).parent / name for picture, name in zip(found, names, strict=True)]
    apart = folder.resolve() == pictures.folder.resolve() or len({name.casefold() for name in names}) < len(set(found))
    _refuse_twice([path.as_posix().removesuffix("_seg.npy") for path in below], pictures.folder)
    return {picture: folder / (path if apart else path.name) for picture, path in zip(found, below, strict=True)}


def _mark(folder: Path, ending: str, items: Sequence[tuple], before: dict[str, tuple]) -> None:
    """Note beside label images who made them, and of those that lay there before what still holds."""
    from cellkit.files import sha256_file
    from cellkit.label_folders import write_chosen_cells

    marked = [(folder / f"{name}{ending}", found.paint(), maker) for name, _, found, maker in items]
    cells = [Instances.from_labels(labels) for _, labels, _ in marked]
    files, makers = [file for file, _, _ in marked], [maker for _, _, maker in marked]
    known = {file.stem for file in files}
    for stem, (found, maker, sha256) in before.items():
        here = [file for file in (folder / f"{stem}.tif", folder / f"{stem}.png") if file.is_file()]
        if stem not in known and any(sha256_file(file) == sha256 for file in here):
            files, cells, makers = [*files, here[0]], [*cells, found], [*makers, maker]
    write_chosen_cells(folder, files, cells, makers)


def _write_one(
    folder: Path, classes: tuple[str, ...], form: str, pictures, suffix: str, beside: dict[Path, Path], item: tuple
) -> tuple[int, int]:
    """Write one image; return how many cells lost pixels to others, and how many are left out because they have none."""
    from cellkit.labels import write_labels

    name, record, found, maker = item
    path = folder / f"{name}{suffix}{FORMATS[form]}"
    if form == "roi":
        _refuse_corrections(path)
        some = found.areas_px > 0
        write_rois(path, found[some], classes, np.flatnonzero(some) + 1, maker)
        return 0, int(np.count_nonzero(~some))
    labels = found.paint()
    left = np.bincount(labels.ravel(), minlength=len(found) + 1)[1:]
    if form in ("tif", "png"):
        refuse_picture(path, pictures.files if pictures else ())
        refuse_changed(path, labels)
        (write_labels if form == "tif" else write_label_png)(path, labels, stamp_of(labels))
    else:
        picture = _picture_of(record, pictures)
        path = beside[picture]
        _refuse_corrections(path)
        refuse_changed(path, _painted(found)[1])
        write_seg(path, _read_picture(picture), found, classes, picture.name, made_by=maker, stamped=True)
    return int(np.count_nonzero((left < found.areas_px) & (left > 0))), int(np.count_nonzero(left == 0))


def written_here(path: Path) -> bool:
    """Tell whether a ``_seg.npy`` file or a zip of ROIs is as cellkit wrote it: Cellpose and ImageJ drop what says so."""
    from zipfile import BadZipFile

    from cellkit.plain_pickle import read_plain_npy

    try:
        of_rois = path.suffix.lower() == ".zip" or _is_single(path)
        return "cellkit.shape" in _comment(path) if of_rois else "cellkit" in read_plain_npy(path)
    except BadZipFile:
        return False


def _refuse_corrections(path: Path) -> None:
    """Refuse to write over a file that the Cellpose GUI or ImageJ saved since: it may hold hours of work."""
    if os.path.lexists(path) and not written_here(path):
        tool = "ImageJ" if path.suffix == ".zip" else "Cellpose"
        raise UserError(f"{path} was saved by {tool} and may hold corrections", "move it away, or give another folder")


def refuse_picture(path: Path, pictures: Sequence[Path] = ()) -> None:
    """Refuse to write a label image over what is none: a picture may be the only one of its kind.

    Parameters
    ----------
    path : Path
        Where the label image is to be written.
    pictures : sequence of Path
        Files that are known to be pictures.

    Raises
    ------
    UserError
        Something is there that is no label image.
    """
    from cellkit.labels import read_labels

    if not os.path.lexists(path):
        return
    known = {os.path.realpath(file) for file in pictures}
    try:
        labels = None if os.path.realpath(path) in known else read_labels(path)
    except UserError:
        labels = None
    if labels is None or is_noise(labels):
        raise UserError(f"{path} is there and is no label image", "give another folder, or a suffix: --suffix _masks")


NOISE_PX = 1024


def is_noise(labels: np.ndarray) -> bool:
    """Tell whether a grey picture was read as labels: most neighbours differ, and hardly a pixel is background."""
    return labels.shape[1] > 1 and np.mean(labels[:, 1:] != labels[:, :-1]) > 0.5 and np.mean(labels == 0) < 0.5


def refuse_noise(labels: np.ndarray, path: Path) -> None:
    """Refuse a grey picture that was read as labels; see `is_noise`, which tells nothing of a few pixels.

    Raises
    ------
    UserError
        Naming the file.
    """
    if labels.size >= NOISE_PX and is_noise(labels):
        raise UserError(f"{path} is a grey picture by its values, no label image", "take it out, or give its labels")


def _read_picture(path: Path) -> np.ndarray:
    """Return a picture of one plane as (H, W, C), up to three channels."""
    from cellkit.open import open_file

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
