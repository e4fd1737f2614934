"""Files to open for a correction: of each image its picture, a Cellpose file and a zip of ROIs, with what a model proposed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.files import atomic_path
from cellkit.formats import roi, seg
from cellkit.formats.any import ImageToWrite, written_here
from cellkit.formats.label_images import as_written

FOLDER = "to_correct"  # in the run folder, and no stage's: what is saved there stays
MOST = 200  # images; more are written by `cellkit labels`


def write_to_correct(run: Any, use: str, images: CellDataset, proposals: Sequence[Instances]) -> str:
    """Write what a person opens to correct proposals, and say where it is, how to open it, and how to come back.

    The files are no output of a stage: nothing becomes out of date by a correction before ``label.use`` names the folder.
    An image one of whose files was saved by a person or another program is left as it is.

    Parameters
    ----------
    run : cellkit.run.folder.Run
    use : str
        ``label.use``; where it is a folder already, that is where to go on, and nothing is written.
    images : CellDataset
    proposals : list of Instances
        One per image.
    """
    if use not in ("truth", "proposed"):
        return f"The labels come from {use}: go on there, save, and run 02 again."
    proposed = replace(images, instances=list(proposals)).sample(MOST)
    kept = [
        record.image_id
        for record, cells in zip(proposed.records, proposed.instances, strict=True)
        if not _write(run.folder / FOLDER, images.root / record.path, record.image_id, cells.with_classes(0))
    ]
    place, name = f"{run.name}/{FOLDER}", next((record.image_id for record in proposed.records), "IMAGE")
    lines = [f"{len(proposed)} images with what the model proposes: {place}"]
    if kept:
        lines.append(f"left as they are, because somebody saved them: {', '.join(kept)}")
    if len(images) > MOST:
        lines.append(f"all {len(images)}: cellkit labels {run.name}/labels/labels.json --format seg -o FOLDER")
    lines += [
        f"Cellpose: python -m cellpose, and drag {name}.png into its window (it finds {name}_seg.npy); save with Ctrl+S",
        f"Fiji: open {name}.png and then {name}_rois.zip; correct in the ROI Manager, and More > Save... over the zip",
        f"Back: set label.use: {place} and run 02 again. What you did not save stays a proposal;",
        "what is right as it is you list in confirmed.csv there (a column image_id)",
    ]
    return "\n".join(lines)


def _write(folder: Path, picture: Path, name: str, cells: Instances) -> bool:
    """Write the files of one image; False, and nothing, where one of them is not as cellkit wrote it."""
    files = {folder / f"{name}_seg.npy": seg, folder / f"{name}_rois.zip": roi}
    if any(os.path.lexists(path) and not as_left(path) for path in files):
        return False
    with atomic_path(folder / f"{name}.png") as temporary:
        temporary.write_bytes(picture.read_bytes())
    for path, form in files.items():
        form.write_image(path, ImageToWrite(name, cells, (), "proposed", picture))
    return True


def as_left(path: Path) -> bool:
    """Tell whether a ``_seg.npy`` file or a zip of ROIs is as cellkit wrote it; one that cannot be read is not."""
    try:
        return written_here(path) and (path.suffix != ".npy" or as_written(path))
    except UserError:
        return False
