"""The cells of a run, measured in the files of its source: notebook 06 writes them as cells.csv."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.config.places import data_path
from cellkit.config.sections import ConvertConfig
from cellkit.errors import Quarantined, UserError, counted, nearest
from cellkit.log import LOG, collected_warnings
from cellkit.measure.images import Job, Measured, joined, of_opened, rows_of
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import Opened, headers_only
from cellkit.modules import load
from cellkit.parallel import map_items
from cellkit.sources.listing import Loaded, SourceImage, converted
from cellkit.under_way import note_reading

if TYPE_CHECKING:
    import pandas as pd

DRAWN = "microscope"  # folder of the run that holds the files of drawn cells


def measure_run(
    predictions: Mapping[str, Mapping[str, Instances]],
    model: str,
    images: CellDataset,
    config: ConvertConfig,
    run_dir: str | Path,
) -> Measured:
    """Measure the cells that a model of a run found, each image in the file it was made from.

    Parameters
    ----------
    predictions : mapping
        Model -> image_id -> cells, from `cellkit.evaluate.evaluation.predictions_of`.
    model : str
        Whose cells are measured.
    images : CellDataset
        The images of the run.
    config : ConvertConfig
        How they were made: source, projection, scale, classes.
    run_dir : path
        The run folder.

    Returns
    -------
    Measured
        An image that no single file of the source holds (halves of two, put together) has no brightness, nor has one whose file
        is gone or damaged: that is named in `quarantined`. The same for any `config.workers`.

    Raises
    ------
    UserError
        There are no predictions of that model, or they are boxes.
    """
    if model not in predictions:
        raise UserError(
            f"evaluate.measure is '{model}', which the run has no predictions of{nearest(model, predictions)}",
            f"name one of them: {', '.join(predictions)}",
        )
    if any(cells.boxes_only for cells in predictions[model].values()):
        raise UserError(f"of the cells of '{model}' only boxes are known", "set evaluate.measure to a model with masks")
    records = {record.image_id: record for record in images.records}
    jobs = [
        Job(records[name], cells, config.classes, scale=config.scale, um_per_px=records[name].um_per_px)
        for name, cells in predictions[model].items()
        if name in records and len(cells)
    ]
    items, problem = _files_of(config, Path(run_dir))
    if problem:
        LOG.warning(f"the cells are measured without their brightness: {problem}")
    work = [(job, items.get(job.record.image_id)) for job in jobs]
    done, failed = map_items(
        partial(_measured, conversion=config.conversion),
        work,
        "measure",
        config.workers,
        name=lambda one: one[0].record.image_id,
    )
    measured = [one if one is not None else (rows_of(job), False) for job, one in zip(jobs, done, strict=True)]
    composed = [job.record.image_id for job, (_, of_two) in zip(jobs, measured, strict=True) if of_two]
    notes = ()
    if composed:
        which = ", ".join(composed[:3]) + (", ..." if len(composed) > 3 else "")
        notes = (f"no brightness in {counted(len(composed), 'image')} put together from two files ({which})",)
        LOG.info(notes[0])
    quarantined = [Quarantined(one.item, f"no brightness: {one.in_one_line().reason}") for one in failed]
    tables = [table for table, _ in measured] or [rows_of(Job(images.records[0], Instances.empty((1, 1))))]
    return Measured(joined(tables), [] if problem else quarantined, notes)


def _files_of(config: ConvertConfig, run_dir: Path) -> tuple[dict[str, SourceImage], str]:
    """Return image_id -> where it comes from, of the run's source; and why nothing can be read of that, "" where it can."""
    try:
        root = run_dir / DRAWN if config.source == "drawn" else data_path(config)
        if not root.exists():
            return {}, f"there is no folder {root}"
        note_reading(root, "data", by="" if config.source == "drawn" else "data")
        with collected_warnings():  # 01 has said them of the splits that it drew
            return {item.image_id: item for item in load("source", config.source).read(root, config)}, ""
    except UserError as error:
        return {}, str(error).replace("\n", "; ")


def _measured(work: tuple[Job, SourceImage | None], conversion: Conversion) -> tuple[pd.DataFrame, bool]:
    """Measure the cells of one image while its file is open: what the source opens for a picture is measured instead.

    Returns
    -------
    table : DataFrame
    of_two : bool
        Whether the image is put together from several frames; then the table has no brightness.
    """
    job, item = work
    if item is None:
        raise UserError(
            f"the source has no image '{job.record.image_id}' any more", "put its file back, or run 01_convert"
        )
    opened: list[pd.DataFrame | UserError] = []
    made = item.load(partial(_in_open_file, opened, job))
    if made.composed or len(opened) != 1:
        return rows_of(job), True
    if isinstance(opened[0], UserError):
        raise opened[0]
    return opened[0], False


def _in_open_file(
    tables: list, job: Job, opened: Opened, conversion: Conversion, scene: int = 0, time: int = 0
) -> Loaded:
    """Add what is measured in a frame to `tables`; return its picture as `converted` does, with all pixels 0."""
    try:
        tables.append(of_opened(opened, scene, time, conversion, job))
    except UserError as error:  # of half of an image it does not matter
        tables.append(error)
    with headers_only():
        return converted(opened, conversion, scene, time)
