"""Which predictions are handed in, in the size and under the name of the competition's own images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import note_changes, resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.cells.leftout import LeftOut
from cellkit.cells.resize import fit_to
from cellkit.errors import UserError, counted
from cellkit.formats.originals import NOT_PREDICTED, Original, asked_for, is_competition, read_originals
from cellkit.formats.submission import write_submission
from cellkit.log import LOG

if TYPE_CHECKING:
    import pandas

LEAST = 3  # images, of which one is to train on, one to choose by and one to report on


def handed_in(originals: Mapping[str, Path], split: str, images: CellDataset | None = None) -> list[Original]:
    """Return the images that are handed in, each once: those of a split, or those the competition asks for.

    Parameters
    ----------
    originals : mapping
        ``run.find_all("originals")``: {"originals": path} of ``originals.csv``, {} where the run has none.
    split : str
        ``evaluate.report_split``.
    images : CellDataset, optional
        All images of the run: what is handed in, under their image_id, where there is no ``originals.csv``.

    Returns
    -------
    list of Original
        Empty, and said so, where there is no test image.

    Raises
    ------
    UserError
        There is no image of another split.
    """
    if not originals:
        found = [] if images is None else images.select(split).records
        if not found:
            _tell_none(split, [] if images is None else [record.split for record in images.records])
        return [Original(r.image_id, r.image_id, (r.height_px, r.width_px), "") for r in found]
    rows = read_originals(originals["originals"])
    chosen = asked_for(rows, split)
    if not chosen:
        _tell_none(split, [row["split"] for row in rows])
    if is_competition(rows, split):
        own = sum(row["split"] == split and row["asked"] == "no" for row in rows)
        more = f"; scored and not handed in: {counted(own, 'other test image')} of this run" if own else ""
        LOG.info(f"handed in: {counted(len(chosen), 'image')} that the competition asks for{more}")
    return chosen


def _tell_none(split: str, splits: Sequence[str]) -> None:
    """Say that no image of a split is there to hand in, and what to do with those that are: of other splits than test an error.

    Raises
    ------
    UserError
        There is no image of another split than test.
    """
    there = [name for name in splits if name]
    if len(there) < LEAST:
        remedy = f"give {LEAST} images or more: one to train on, one for validation and one for test"
    else:
        remedy = f"raise convert.split.{split}"
        words = {"test": "test", "val": "validation"}
        others = [name for name in words if name != split and name in there]
        if others:
            remedy += f", or report on the {words[others[0]]} images: evaluate.report_split={others[0]}"
    if split != "test":
        raise UserError(f"no image of the split '{split}' to hand in", remedy)
    LOG.warning(f"there is no test image: the submission is empty; {remedy}")


def submit_best(
    path: str | Path, found: Mapping[str, Instances], originals: Sequence[Original], profile: str, min_area_px: int = 0
) -> tuple[Path, pandas.DataFrame]:
    """Write the submission: every image asked for, at the size of its file, no overlaps; name those without a prediction.

    Cells found in a resized picture are brought back to the pixels of the file (`cells.resize.fit_to`). An image that
    could not be read, or was not predicted, has one empty row; the log names it, and counts cells that are dropped or cut.

    Parameters
    ----------
    found : mapping
        One model's cells by the run's image_id, at the size of the run's pictures.
    originals : sequence of Original
    min_area_px : int
        Smaller objects are dropped, in pixels of the file.

    Returns
    -------
    path : Path
    log : DataFrame
        image_id, index (of the object), what, pixels.
    """
    import pandas as pd

    resolved, rows, left = [], [], LeftOut()
    for one in originals:
        if one.image_id not in found or one.shape is None:
            LOG.info(f"{one.id}: an empty row, {one.note or NOT_PREDICTED}")
            resolved.append(Instances.empty(one.shape or (1, 1)))
            continue
        cells, log = resolve_overlaps(found[one.image_id])
        fitted = fit_to(cells, one.shape)
        left.add("left out: smaller than a pixel of the file", one.id, len(cells) - len(fitted))
        cells, dropped = resolve_overlaps(fitted, min_area_px=min_area_px)
        for changes in (log, dropped):
            note_changes(left, one.id, changes)
        log += dropped
        resolved.append(cells)
        rows += [{"image_id": one.image_id, "index": c.index, "what": c.what, "pixels": c.pixels} for c in log]
    left.log("submission")
    written = write_submission(path, [one.id for one in originals], resolved, profile)
    return written, pd.DataFrame(rows, columns=["image_id", "index", "what", "pixels"])
