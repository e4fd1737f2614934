"""Many images: the cells of each measured in its raw file, and the table written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.names import best_pairs, stem_of
from cellkit.cells.records import ImageRecord, read_records
from cellkit.cells.resize import resized_shape
from cellkit.errors import Quarantined, UserError, counted
from cellkit.files import atomic_path, write_frame
from cellkit.formats.any import formats_in, read_folder, read_side
from cellkit.formats.sides import NAMES, first_names
from cellkit.manifest import finished_entries, read_manifest
from cellkit.measure.channels import projection_of, raw_channels
from cellkit.measure.dictionary import columns_of
from cellkit.measure.intensity import Plane
from cellkit.measure.table import measure
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import LARGEST_PLANE_PX, Opened
from cellkit.microscope.folders import LABEL_SUFFIXES, are_all_among
from cellkit.microscope.frames import Frame, find_frames, find_images, id_of, none_used
from cellkit.microscope.open import inspect_file, open_file
from cellkit.parallel import map_items

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Measured:
    """A table with one row per cell, and what could not be measured; `notes` say what was left out, a sentence each."""

    table: pd.DataFrame
    quarantined: list[Quarantined]
    notes: tuple[str, ...] = ()


def measure_files(
    images: Sequence[str | Path],
    labels: str | Path,
    nuclei: str | Path | None = None,
    *,
    convention: str | None = None,
    conversion: Conversion | None = None,
    um_per_px: float = math.nan,
    workers: int = 1,
    avoid: Sequence[Path] = (),
    but: Collection[str] = (),
    before: Callable[[list[Frame], int, int], None] | None = None,
) -> Measured:
    """Measure cells in the raw files that they were found in; images are matched by name.

    Parameters
    ----------
    images : sequence
        Microscope files or pictures, folders, patterns; see `cellkit.microscope.frames.find_images`.
    labels, nuclei : path
        A COCO file, a results list of a run, or a folder of label images, ROI zips or ``_seg.npy`` files: the cells, and the
        nuclei in them.
    convention : str, optional
        Whose COCO file it is, see `cellkit.formats.coco_dialects`.
    conversion : Conversion, optional
        How the pictures were made: its `projection` says what becomes of z planes, where no run tells which were projected
        (default the brightest), its `axes` what the axes of files are that do not state them.
    um_per_px : float
        Side of a pixel of the files, in place of what they say; nan: as they say.
    avoid : sequence of Path
        Folders below those of the images that hold none.
    but : collection of str
        Ids of images that are not measured.
    before : callable, optional
        Called with the images, how many are done (none) and how many cells there are, before any is measured; may refuse.

    Returns
    -------
    Measured
        The same for any number of workers.

    Raises
    ------
    UserError
        Nothing to read, no image that both have, or none that could be measured.
    """
    links: list[Quarantined] = []
    conversion = conversion or Conversion()
    listed = find_images(images, avoid=avoid, outside=links)
    frames, failed = find_frames(listed, conversion.axes, LARGEST_PLANE_PX)
    frames = [frame for frame in frames if frame.image_id not in but]
    unopened = [*links, *failed]
    if not frames:
        raise none_used(0, unopened)
    side, unread = read_cells(labels, convention, frames, axes=conversion.axes, workers=workers)
    side = side.subset([record.image_id not in but for record in side.records]) if but else side
    others, more = (None, []) if nuclei is None else read_nuclei(nuclei, convention, frames, conversion.axes)
    pairs, alone, notes = _matched(side, frames, unopened)
    if others is not None:
        inner, without = _nuclei_by_image(side, others, [k for k, _ in pairs])
        pairs, more = (
            [pair for pair in pairs if pair[0] in inner],
            [*(one for one in more if one not in unread), *without],
        )
        notes = (*others.notes, *notes)
    else:
        inner = {}
    records, scale = _with_planes(side), _scale_of_run(side)
    work = [
        Job(
            records[k],
            side.instances[k],
            side.classes,
            side.numbers[k] if side.numbers else None,
            inner.get(k),
            scale,
            um_per_px,
            frame,
        )
        for k, frame in pairs
    ]
    if before is not None and work:
        before([job.frame for job in work], 0, sum(len(job.cells) for job in work))
    tables, broken = map_items(partial(_of_file, conversion=conversion), work, "measure", workers, name=_name_of)
    tables = [table for table in tables if table is not None]
    quarantined = [*unopened, *unread, *more, *alone, *(item.in_one_line() for item in broken)]
    if not tables:
        raise none_measured(len(work), broken or quarantined)
    return Measured(joined(tables), quarantined, tuple(dict.fromkeys((*side.notes, *notes))))


def none_measured(images: int, broken: Sequence[Quarantined]) -> UserError:
    """Say that nothing could be measured, and why not the first image."""
    problem, _, remedy = broken[0].reason.removeprefix("UserError: ").partition("\n")
    return UserError(f"of {counted(images, 'image')} none could be measured; {problem}", remedy)


# ---- cells and their images ----------------------------------------------------------------------------------------
def read_cells(
    path: str | Path,
    convention: str | None = None,
    frames: Sequence[Frame] = (),
    nuclei: bool = False,
    axes: str | None = None,
    workers: int = 1,
) -> tuple[CellDataset, list[Quarantined]]:
    """Read cells of many images, from one file or a folder with a file for each image; bad files of a folder are left out.

    Parameters
    ----------
    frames : sequence of Frame
        The images, which tell their sizes to files that do not (ROI zips of ImageJ, GeoJSON of QuPath).
    nuclei : bool
        Of cells that are drawn with their nuclei, read the nuclei.
    axes : str, optional
        Of images that do not state them.
    workers : int
        Processes that share the files of a folder.

    Raises
    ------
    UserError
        No such file, of no format that is read, or nothing that could be read.
    """
    path = Path(path)
    kinds = formats_in(path) if path.exists() else []
    if not path.is_dir() and not kinds:
        return read_side(path, convention=convention), []
    if len(kinds) > 1 and "labels" in kinds:
        are_images = are_all_among(path, LABEL_SUFFIXES, [frame.path for frame in frames])  # cells lie beside them
        kinds = [kind for kind in kinds if kind != "labels"] if are_images else ["labels"]
    shapes = None if kinds == ["labels"] else _shapes_of(frames, axes)
    return read_folder(path, kinds[0] if len(kinds) == 1 else None, nuclei=nuclei, shapes=shapes, workers=workers)


def read_nuclei(
    path: str | Path, convention: str | None = None, frames: Sequence[Frame] = (), axes: str | None = None
) -> tuple[CellDataset, list[Quarantined]]:
    """Read nuclei of many images: of QuPath's cells the nuclei in them, else all objects; otherwise as `read_cells`."""
    side, failed = read_cells(path, convention, frames, nuclei=True, axes=axes)
    return (side, failed) if side.cells else read_cells(path, convention, frames, axes=axes)


def _shapes_of(frames: Sequence[Frame], axes: str | None) -> dict[str, tuple[int, int]]:
    """Return image id, and name without suffix -> (H, W); an image whose header cannot be read is named when it is measured."""
    shapes, stems = {}, Counter(stem_of(frame.relative) for frame in frames)
    for path, own in groupby(frames, lambda frame: frame.path):  # a file is opened once for all its scenes and times
        with suppress(Exception):  # whatever a reader raises on a damaged file
            scenes = inspect_file(path, axes).series
            for frame in own:
                size = scenes[frame.scene].size("Y"), scenes[frame.scene].size("X")
                shapes[frame.image_id] = size
                if stems[stem_of(frame.relative)] == 1:
                    shapes.setdefault(stem_of(frame.relative), size)
    return shapes


def _matched(
    side: CellDataset, frames: Sequence[Frame], unopened: Sequence[Quarantined]
) -> tuple[list[tuple[int, Frame]], list[Quarantined], tuple[str, ...]]:
    """Return (place in `side`, frame) of the images that both have, what has no image, and notes on images without cells.

    An image among `unopened` is there, and named already.
    """
    named = [ImageRecord(frame.image_id, frame.relative, 1, 1) for frame in frames]
    places = best_pairs(side.records, named, NAMES)
    if not places:
        ours, theirs = ([record.image_id for record in records] for records in (side.records, named))
        raise UserError(
            f"none of the images of {side.path} ({first_names(ours)}) is among those given ({first_names(theirs)})",
            "cells and images are matched by name: give the images in which these cells were found",
        )
    pairs = sorted((k, frames[place]) for k, place in places.items())
    unmatched = [k for k in range(len(side.records)) if k not in places]
    broken = [ImageRecord(id_of(Path(one.item).name), Path(one.item).name, 1, 1) for one in unopened]
    told = best_pairs([side.records[k] for k in unmatched], broken, NAMES)
    problem = f"{side.path} has its cells, and no image given is called so; give the image"
    alone = [Quarantined(side.records[k].image_id, problem) for place, k in enumerate(unmatched) if place not in told]
    used = set(places.values())
    bare = [frame.image_id for k, frame in enumerate(frames) if k not in used]
    empty = [record.image_id for k, record in enumerate(side.records) if k in places and not len(side.instances[k])]
    notes = [f"no cells are known of {counted(len(bare), 'image')} ({first_names(bare)})"] if bare else []
    notes += (
        [f"{counted(len(empty), 'image')} without a cell, and so without a row ({first_names(empty)})"] if empty else []
    )
    return pairs, alone, tuple(notes)


def _nuclei_by_image(
    side: CellDataset, nuclei: CellDataset, chosen: Sequence[int]
) -> tuple[dict[int, Instances], list[Quarantined]]:
    """Return place in `side` -> the nuclei of that image, and the images that `nuclei` lacks: these are not without nuclei.

    Parameters
    ----------
    chosen : sequence of int
        Places of the images that are measured.

    Raises
    ------
    UserError
        It lacks all of them.
    """
    places = best_pairs(side.records, nuclei.records, NAMES)
    missing = [side.records[k].image_id for k in chosen if k not in places]
    remedy = "give the nuclei of every image; where there is none, an empty label image"
    if len(missing) == len(chosen):
        raise UserError(f"{nuclei.path} has no image of {side.path} ({first_names(missing)})", remedy)
    without = [Quarantined(name, f"{nuclei.path} lacks its nuclei; {remedy}") for name in missing]
    return {k: nuclei.instances[places[k]] for k in chosen if k in places}, without


def _with_planes(side: CellDataset) -> list[ImageRecord]:
    """Return the records with the z planes that the pictures of a run were made of, as its records.csv has them."""
    path = side.run / "records.csv" if side.run is not None else None
    known = {record.image_id: record.planes for record in read_records(path)} if path and path.is_file() else {}
    return [replace(record, planes=known.get(record.image_id, record.planes)) for record in side.records]


def _scale_of_run(side: CellDataset) -> float:
    """Return by how much the pictures of a run were resized, 1 for cells that come from no run."""
    config = finished_entries(read_manifest(side.run)).get("01_convert", {}).get("config") if side.run else None
    return float(config.get("scale", 1)) if isinstance(config, Mapping) else 1.0


# ---- one image -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Job:
    """One image: the cells that are measured in it, and what is known of it.

    `labels` are the cells' numbers in their label image, None for 1 to N; `scale` is by how much a run resized its pictures;
    `um_per_px` is that of the image of the cells, nan for what file or record say.
    """

    record: ImageRecord
    cells: Instances
    classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    nuclei: Instances | None = None
    scale: float = 1.0
    um_per_px: float = math.nan
    frame: Frame | None = None


def _name_of(job: Job) -> str:
    return f"{job.frame.path}{job.frame.suffix}"


def _of_file(job: Job, conversion: Conversion) -> pd.DataFrame:
    """Measure the cells of one image; the pixel size of the job is that of the file, not of the picture that a run made of it."""
    with open_file(job.frame.path, conversion.axes, LARGEST_PLANE_PX) as opened:
        scale = scale_of_picture(opened, job.frame.scene, job.cells, job.scale)
        job = replace(job, um_per_px=job.um_per_px / scale)
        return of_opened(opened, job.frame.scene, job.frame.time, conversion, job)


def of_opened(opened: Opened, scene: int, time: int, conversion: Conversion, job: Job) -> pd.DataFrame:
    """Return the rows of cells.csv of one frame of an open file.

    Raises
    ------
    UserError
        Cells of an image of another size, or as `raw_channels` and `measure`.
    """
    scale = scale_of_picture(opened, scene, job.cells, job.scale)
    stated = opened.info.series[scene].um_per_px / scale
    um = next((um for um in (job.um_per_px, stated, job.record.um_per_px) if not math.isnan(um)), math.nan)
    how = replace(conversion, projection=projection_of(job.record.planes, conversion.projection))
    return rows_of(replace(job, um_per_px=um), raw_channels(opened, scene, time, how))


def scale_of_picture(opened: Opened, scene: int, cells: Instances, scale: float) -> float:
    """Return by how much the image that cells were found in is larger than the raw file: 1, or the `scale` of the run.

    Raises
    ------
    UserError
        Neither: with both sizes.
    """
    series = opened.info.series[scene]
    size = series.size("Y"), series.size("X")
    if cells.shape not in (size, resized_shape(size, scale)):
        raise UserError(
            f"{opened.info.path.name} is {size[0]} x {size[1]} px, its cells were found in {cells.shape[0]} x "
            f"{cells.shape[1]} px",
            "give the very image that the cells were found in",
        )
    return 1.0 if cells.shape == size else scale


def rows_of(job: Job, channels: Mapping[str, Plane | Callable[[], Plane]] | None = None) -> pd.DataFrame:
    """Return the rows of cells.csv of one image: what `measure` gives, after the image's id, line and group."""
    about = {"classes": job.classes, "labels": job.labels, "nuclei": job.nuclei}
    table = measure(job.cells, channels, job.um_per_px, **about)
    names = {"image": job.record.image_id, "line": job.record.cell_type, "group": job.record.group}
    for place, (name, value) in enumerate(names.items()):
        table.insert(place, name, np.full(len(table), value, object))
    return table


# ---- the table -----------------------------------------------------------------------------------------------------
def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all images in one table; of channels that an image lacks its cells have nothing."""
    import pandas as pd

    some = [table for table in tables if len(table)]
    table = pd.concat(some, ignore_index=True, sort=False) if some else tables[0]
    every = list(dict.fromkeys(name for table in tables for name in table))
    known = columns_of(nuclei="nuclei" in every)
    return table.reindex(columns=[*(name for name in known if name in every), *(n for n in every if n not in known)])


def write_cells(path: str | Path, table: pd.DataFrame) -> Path:
    """Write the table as CSV or Parquet, by the suffix of `path`, atomically.

    In a CSV, text that a spreadsheet would run as a formula has a leading apostrophe (`cellkit.files.as_cell`).

    Raises
    ------
    UserError
        Another suffix, or Parquet without pyarrow.
    """
    check_table_name(path)
    if Path(path).suffix.lower() == ".csv":
        return write_frame(path, table)
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    return Path(path)


def check_table_name(path: str | Path) -> None:
    """Refuse a name that no table can be written to, before anything is measured.

    Raises
    ------
    UserError
        A folder, another suffix than .csv or .parquet, or Parquet without pyarrow.
    """
    from importlib.util import find_spec

    suffix = Path(path).suffix.lower()
    if Path(path).is_dir():
        raise UserError(f"'{path}' is a folder", "name a file for the table, such as cells.csv in it")
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"'{path}' is no name of a table", "end it with .csv or .parquet")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(
            "Parquet files are written by pyarrow, which is not installed",
            'pip install "pyarrow>=17", or name a .csv',
        )
