"""ImageJ's ROIs, zipped or single, there and back without losing a pixel.

Reading never unpacks an archive to disk. A cell with holes or in several pieces becomes a composite ROI.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from zipfile import BadZipFile

import numpy as np

from cellkit.cells.dataset import MARKED, maker_of
from cellkit.cells.instances import IGNORE, IGNORED, Instances
from cellkit.cells.names import plain, stem_of
from cellkit.cells.outlines import outlines, refuse_boxes
from cellkit.errors import Quarantined, UserError, plain_reason
from cellkit.files import atomic_path
from cellkit.formats.any import ImageCells, ImageToWrite, Reading
from cellkit.formats.contract import SIZE_REMEDY, numbers_of_all
from cellkit.formats.roi_shapes import DRAW_AREA, pixels_of_roi

ENDINGS = (".zip", ".roi")
WRITES = {"roi": "_rois.zip"}
SAYS_PROPOSED = "the zips say so"

MOST_ROIS, LARGEST_ROI_BYTES, LARGEST_ZIP_BYTES = 200_000, 2**26, 2**30


SMALL_BYTES, MOST_PACKED = 2**20, 200  # above a megabyte nothing of an outline packs more than 200 times


MOST_CLASSES = 255  # ImageJ's groups


MOST_PX = 2**31  # of the image that a zip says it belongs to


LARGEST_INTEGER_PX = 32_767  # what ImageJ's integer outlines hold for sure; others are written as floats


PROPERTIES = ("cellkit.classes", "cellkit.shape", "cellkit.score", "cellkit.labels")


NO_AREA = {"LINE", "FREELINE", "POLYLINE", "NOROI", "ANGLE", "POINT", "UNKNOWN"}


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
    pixels, overlaps included. What is not annotated is a ROI called "ignore". The group of a ROI is its class (ImageJ colours by
    it, and a new group is a new class); its properties hold the names of the classes, the size of the image, and the score where
    it is not 1.

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
    shared = {
        "cellkit.classes": ",".join(quote(name, safe="") for name in classes),
        "cellkit.shape": _pair(found.shape),
    }
    numbers = list(range(1, len(found) + 1)) if numbers is None else [int(k) for k in numbers]
    if len(set(numbers)) < len(found) or len(numbers) != len(found):
        raise UserError(f"{path.name} has {len(found)} cells called {str(numbers)[:60]}", "number each cell once")
    digits = max(4, len(str(max(numbers, default=0))))
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        whose = {"cellkit.labels": made_by} if made_by in MARKED else {}
        archive.comment = json.dumps(whose | shared).encode()[:65_535]  # the only place when there is no cell
        for k, rings in enumerate([*outlines(found), *outlines(found.region())]):
            name, group, own = IGNORE, 0, shared
            if k < len(found):
                name, group = f"{numbers[k]:0{digits}d}", int(found.class_ids[k])
                own = shared if found.scores[k] == 1 else shared | {"cellkit.score": repr(float(found.scores[k]))}
            roi = _roi(rings, name, group, own)
            archive.writestr(zipfile.ZipInfo(f"{name}.roi", (1980, 1, 1, 0, 0, 0)), roi, zipfile.ZIP_DEFLATED)
    return path


def _pair(shape: tuple[int, int]) -> str:
    return f"{shape[0]},{shape[1]}"


def _roi(rings: list[np.ndarray], name: str, group: int, properties: dict[str, str]) -> bytes:
    """Return the bytes of one ROI."""
    from roifile import ROI_TYPE, ImagejRoi

    points = np.concatenate(rings)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    roi = ImagejRoi(name=name, group=group, top=top, left=left, bottom=bottom, right=right)
    roi.props = "".join(f"{key}: {value}\n" for key, value in properties.items())
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


def read_rois(path: str | Path, shape: tuple[int, int] | None = None, failed: list[Quarantined] | None = None) -> Rois:
    """Read a zip of ImageJ ROIs, or the ``.roi`` that Fiji saves of a single one, as cells.

    One cell per area ROI, clipped to the image, overlaps kept.

    Rectangles (also rotated and rounded), ovals, ellipses, polygons, freehand, traced and composite selections, with
    integer or sub-pixel corners; a pixel belongs to a ROI when its centre does, as in ImageJ. The group of a ROI is its class: by
    the names that `write_rois` left in the zip, else "group 1", "group 2", ... ROIs called "ignore" ("ignore-1", "ignore 2")
    are regions that nobody annotated.

    Parameters
    ----------
    shape : (H, W), optional
        The size of the image; needed for zips that `write_rois` did not begin.
    failed : list of Quarantined, optional
        ROIs that are no cells are added to it, and the others read; without it such a ROI is an error.

    Raises
    ------
    UserError
        Naming zip and member: no zip, damaged, a member that leads outside, is a link, or is suspiciously large; a ROI
        without area, of a spline, or outside the image (with `failed`: no other); ROIs of several planes; no size of the
        image.
    """
    errors: list[UserError] = []
    rois = []
    for name, content in _members(path):
        try:
            rois.append((name, _parsed(content, name, path)))
        except UserError as error:
            errors.append(error)
    if errors and (failed is None or not rois):
        raise errors[0]
    properties = [_properties_of(roi.props) for _, roi in rois]
    size, classes = _agreed(properties or [_comment(path)], shape, path)
    _refuse_planes([roi for _, roi in rois], path)
    most = max([len(classes), *(int(roi.group) for _, roi in rois)])
    classes += tuple(f"group {k}" for k in range(len(classes) + 1, most + 1))
    scores = [_score_of(own, f"{path}: {name}") for own, (name, _) in zip(properties, rois, strict=True)]
    starts, lengths, counts, kept = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [0], []
    for k, (name, roi) in enumerate(rois):
        try:
            begin, length = _covered(roi, size, f"{path}: {name}")
        except UserError as error:
            errors.append(error)
            continue
        starts.append(begin)
        lengths.append(length)
        counts.append(len(begin))
        kept.append(k)
    if errors and (failed is None or not kept):
        raise errors[0]
    if failed is not None:
        failed += [Quarantined(Path(path).name, plain_reason(str(error))) for error in errors]
    names = [Path(rois[k][0]).stem for k in kept]
    regions = [re.fullmatch(rf"{IGNORE}([-_ ]?\d+)?", plain(name)) is not None for name in names]
    class_ids = [IGNORED if no_cell else int(rois[k][1].group) for k, no_cell in zip(kept, regions, strict=True)]
    found = Instances.from_runs(
        size, np.concatenate(starts), np.concatenate(lengths), np.cumsum(counts), class_ids, [scores[k] for k in kept]
    )
    cells = [name for name, no_cell in zip(names, regions, strict=True) if not no_cell]
    return Rois(found.without_ignored(), classes, cells)


def _covered(roi: Any, size: tuple[int, int], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels of one area ROI, at least one."""
    try:
        begin, length = pixels_of_roi(roi, size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not len(begin):
        raise UserError(f"{where} covers no pixel of its image of {size[0]} x {size[1]} px", DRAW_AREA)
    return begin, length


def _members(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every ROI in a zip, each member checked before it is unpacked into memory."""
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
            else "is no ROI but GeoJSON of QuPath's" if name.lower().endswith(".geojson")
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


def _properties_of(props: str) -> dict[str, str]:
    """Return what `write_rois` left in the properties of a ROI."""
    pairs = (line.partition(":" if ":" in line else "=") for line in props.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() in PROPERTIES}


def _comment(path: str | Path) -> dict[str, str]:
    """Return what `write_rois` left in the comment of a zip without ROIs."""
    if _is_single(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        text = archive.comment
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        values = {}
    pairs = values.items() if isinstance(values, dict) else ()
    return {key: value for key, value in pairs if key in PROPERTIES and isinstance(value, str)}


def rois_made_by(path: str | Path) -> str:
    """Return who made the cells of a zip of ROIs that cellkit wrote and ImageJ did not save since, "" where it is unknown."""
    return maker_of(_comment(path).get("cellkit.labels"))


def _agreed(
    properties: list[dict[str, str]], shape: tuple[int, int] | None, path
) -> tuple[tuple[int, int], tuple[str, ...]]:
    """Return the size of the image and the classes that the ROIs agree on."""
    sizes, tables = ({own[key] for own in properties if key in own} for key in ("cellkit.shape", "cellkit.classes"))
    sizes |= {_pair(shape)} if shape is not None else set()
    if len(sizes) > 1 or len(tables) > 1:
        shown = " and ".join(sorted(sizes if len(sizes) > 1 else tables))[:100]
        raise UserError(
            f"{path} holds ROIs of images of different size or classes: {shown}", "keep one image's in a zip"
        )
    if not sizes:
        raise UserError(f"{path} does not say how large its image is", SIZE_REMEDY)
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


def _score_of(properties: dict[str, str], where: str) -> float:
    try:
        score = float(properties.get("cellkit.score", "1"))
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise UserError(f"{where} has the score {properties['cellkit.score'][:40]}", "a score is a number from 0 to 1")
    return score


# ---- the contract of cellkit.formats.any ----
def picture_stem(name: str) -> str:
    """Return the name that a file shares with its picture.

    Examples
    --------
    >>> picture_stem("a_rois.zip"), picture_stem("a.roi"), picture_stem("a_RoiSet.zip")
    ('a', 'a', 'a')
    """
    stem = stem_of(name)
    ending = next((e for e in ("_rois", "_roiset", "_roi", "-rois") if stem.lower().endswith(e)), "")
    return stem[: len(stem) - len(ending)] or stem


def read_image(file: Path, how: Reading, size: tuple[int, int] | None = None) -> ImageCells:
    """Read the cells of one file; ROIs that are none are named.

    Raises
    ------
    UserError
        A single ROI of an unknown picture, or a file that cannot be read.
    """
    if size is None and _is_single(file):
        raise UserError(f"{file} is a single ROI and does not say of which picture", "give their folder: --images DIR")
    failed: list[Quarantined] = []
    rois = read_rois(file, size, failed)
    numbers = numbers_of_all(int(name) if name.isascii() and name.isdigit() else 0 for name in rois.names)
    return ImageCells(rois.instances, rois.classes, rois_made_by(file), tuple(failed), numbers=numbers)


def write_image(path: Path, image: ImageToWrite) -> tuple[int, int]:
    """Write one zip; no cell loses pixels, those without any are left out.

    Raises
    ------
    UserError
        The file is there and ImageJ saved it: it may hold corrections.
    """
    if os.path.lexists(path) and not written_here(path):
        raise UserError(f"{path} was saved by ImageJ and may hold corrections", "move it away, or give another folder")
    some = image.cells.areas_px > 0
    write_rois(path, image.cells[some], image.classes, np.flatnonzero(some) + 1, image.made_by)
    return 0, int(np.count_nonzero(~some))


def written_here(path: Path) -> bool:
    """Tell whether a zip is as cellkit wrote it: ImageJ drops what says so."""
    try:
        return "cellkit.shape" in _comment(path)
    except BadZipFile:
        return False
