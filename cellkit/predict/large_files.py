"""A frame of a file that is larger than the memory, through a model: found, numbered, measured and written piece by piece."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import StopAll, UserError, counted, of_place
from cellkit.files import read_json, write_json
from cellkit.formats.coco import write_coco
from cellkit.formats.large_labels import FORMS, write_large_tiff, write_large_zarr
from cellkit.log import LOG
from cellkit.measure.channels import column_names
from cellkit.measure.large import measure_large
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import COLOURS, LARGEST_PLANE_PX, Opened
from cellkit.microscope.frames import Frame, reason_of
from cellkit.microscope.open import open_file
from cellkit.microscope.windows import large_picture, plane_array
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.in_windows import WholeImage
from cellkit.parallel import progress
from cellkit.predict.each import MADE_BY
from cellkit.predict.images import Picture, record_of
from cellkit.predict.large import (
    PIECED,
    cells_of_window,
    fitted,
    joined_cells,
    left_out_of,
    paint_labels,
    strips_of,
    window_side,
    windows_with_parts,
    write_part,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LargeFound:
    """What was found in a large frame: what to say of how it was read, cells left out by reason, and the table of measurements
    where it was asked for, or why there is none."""

    notes: tuple[str, ...]
    left_out: Counter[str]
    table: pd.DataFrame | None = None
    unmeasured: str = ""


def refuse_form(form: str, name: str) -> None:
    """Refuse a form of label files that is not written piece by piece.

    Raises
    ------
    UserError
        With those that are.
    """
    if form not in FORMS:
        raise UserError(
            f"{name} is larger than the memory, and files of the form {form} are written of whole images",
            f"choose --format {', '.join(FORMS)}",
        )


def find_large(
    frame: Frame,
    segment: Segmenter,
    conversion: Conversion,
    classes: tuple[str, ...],
    part: Path,
    window_px: int | None = None,
    labels: Path | None = None,
    form: str = "tif",
    measured: bool = False,
) -> LargeFound:
    """Find the cells of a frame window by window, and write them; repeated after a kill it goes on with the next window.

    Parameters
    ----------
    segment : Segmenter
        One with `in_windows`.
    part : Path
        The file that is written last: a COCO file of the image that names the folder of strips with its cells, which lies
        beside it, see `contents_of`.
    window_px : int, optional
        Side of the windows; as large as takes little memory unless given.
    labels : Path, optional
        Where the label image goes, in the given `form`.
    measured : bool
        Measure the cells too. Where that fails, the cells that were found are kept all the same.

    Raises
    ------
    UserError
        A file that is decoded as a whole; or as `large_picture`.
    """
    folder = part.with_suffix(".large")
    folder.mkdir(exist_ok=True)
    with open_file(frame.path, conversion.axes, LARGEST_PLANE_PX) as opened:
        series = opened.info.series[frame.scene]
        size = series.size("Y"), series.size("X")
        LOG.info(
            f"{frame.relative}: {size[0]} x {size[1]} px, read window by window; first the light of the whole image"
        )
        picture = large_picture(opened, frame.scene, frame.time, conversion)
        shape = picture.image.shape[:2]
        light = tuple(
            None if colour not in picture.light else (picture.light[colour].values, picture.light[colour].counts)
            for colour in COLOURS
        )
        finder = segment.in_windows(WholeImage(picture.image, light, folder))
        side = window_side(segment, finder, window_px, shape)
        todo = windows_with_parts(folder, shape, side)
        LOG.info(
            f"{frame.relative}: {counted(len(todo), 'window')} of {side} px, each seen with {finder.halo_px} px around it"
        )
        for core, kept in progress(todo, f"predict {frame.relative}", len(todo)):
            if not kept.is_file():
                write_part(kept, *cells_of_window(finder, core, shape))
        parts = [kept for _, kept in todo]
        cells = joined_cells([core for core, _ in todo], parts, shape)
        painted = paint_labels(folder / "labels.zarr", parts, cells, shape)
        if shape != size:
            painted, cells = fitted(folder / "fitted.zarr", painted, cells, size)
        blank = np.broadcast_to(np.uint8(0), (*size, 3))
        record = record_of(frame, Picture(blank, size, picture.channels, picture.um_per_px))
        _write_strips(part, record, painted, cells, classes)
        planes = _planes(opened, frame, picture.projection) if measured or form.startswith("ome-zarr") else {}
        if labels is not None:
            bare = Instances.from_runs(size, [], [], np.zeros(len(cells.boxes) + 1), cells.class_ids, cells.scores)
            if form == "tif":
                write_large_tiff(labels, painted, len(cells.boxes), proposed=True)
            else:
                about = (picture.um_per_px, painted, bare, classes, form)
                write_large_zarr(labels, list(planes.values()), list(planes), *about, made_by=MADE_BY)
        about = frame, painted, planes, picture.um_per_px, cells, classes
        table, unmeasured = _measured(*about) if measured else (None, "")
        notes = tuple(dict.fromkeys(level.note for level in picture.levels if level.note))
    left_out = left_out_of(parts)
    if cells.pieced:
        left_out[PIECED] += cells.pieced
    _write_summary(part, notes)
    return LargeFound(notes, left_out, table, unmeasured)


def _measured(
    frame: Frame, painted: Any, planes: dict[str, Any], um_per_px: float, cells: Any, classes: tuple[str, ...]
) -> tuple[pd.DataFrame | None, str]:
    """Return the table of the cells, or None and why there is none: what is wrong with a channel that no model looked at."""
    try:
        strips = lambda: strips_of(painted, cells.boxes)  # noqa: E731
        table = measure_large(strips, painted, planes, um_per_px, cells.scores, cells.class_ids, classes)
    except StopAll:
        raise
    except Exception as error:  # as for any image that cannot be measured
        if of_place(error):
            raise
        return None, str(error) if isinstance(error, UserError) else reason_of(error)
    names = {"image": frame.image_id, "line": "", "group": ""}
    for place, (name, value) in enumerate(names.items()):
        table.insert(place, name, np.full(len(table), value, object))
    return table, ""


def _planes(opened: Opened, frame: Frame, projection: str | int) -> dict[str, Any]:
    """Return the channels of a frame in the values of its file, by the names that a table gives them."""
    names = column_names([channel.name for channel in opened.info.series[frame.scene].channels])
    return {name: plane_array(opened, frame.scene, frame.time, k, projection) for k, name in enumerate(names)}


# ---- the COCO file of one image, in strips -------------------------------------------------------------------------
def _write_strips(part: Path, record: ImageRecord, labels: Any, cells: Any, classes: tuple[str, ...]) -> None:
    """Write the cells in their order, a COCO file for each strip of the label image."""
    folder = part.with_suffix(".large") / "coco"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shape = tuple(labels.shape)
    write_coco(folder / "0.json", [record], [Instances.empty(shape)], classes, with_scores=True, made_by=[MADE_BY])
    for k, (window, numbers, values) in enumerate(strips_of(labels, cells.boxes), 1):
        found = Instances.from_labels(np.where((values >= numbers[0]) & (values <= numbers[-1]), values, 0))
        starts = found.starts + window.top * shape[1]
        about = cells.class_ids[numbers - 1], cells.scores[numbers - 1]
        placed = Instances.from_runs(shape, starts, found.lengths, found.offsets, *about)
        write_coco(folder / f"{k}.json", [record], [placed], classes, with_scores=True, made_by=[MADE_BY])


def _write_summary(part: Path, notes: tuple[str, ...]) -> None:
    """Write the file that stands for the image; it is listed last: then all of it is there."""
    folder = part.with_suffix(".large") / "coco"
    first = read_json(folder / "0.json")
    write_json(part, first | {"strips": sum(1 for _ in folder.iterdir()), "notes": list(notes)})


def contents_of(part: Path) -> Any:
    """Yield the COCO content of one image, as `write_coco` wrote it: one, or of a large image one for each strip."""
    content = read_json(part)
    yield content
    for k in range(1, content.get("strips", 1)):
        yield read_json(part.with_suffix(".large") / "coco" / f"{k}.json")
