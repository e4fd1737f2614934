"""A folder of labelled images that no run has seen, read as the images of a run were: to judge its models at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cellkit.cells.dataset import CellDataset
from cellkit.config.sections import ConvertConfig, QualityConfig
from cellkit.errors import UserError
from cellkit.machine import here
from cellkit.sources.ingest import convert_images

FOLDER = "kept_aside"  # in the run folder, for its pictures


def convert_folder(config: ConvertConfig, folder: str | None, stage: Any) -> CellDataset:
    """Convert a folder of the same layout as the run's source; all its labelled images are test images, none is flagged.

    Folders train, val and test in it make no difference. What cannot be used is quarantined.

    Parameters
    ----------
    config : ConvertConfig
        Of the run: source, channels, classes and class names.
    folder : str or None
        None = an empty set is returned.
    stage : cellkit.run.folder.Stage
        Under way; the folder is noted as an input, and pictures are written to `FOLDER` below its own.

    Raises
    ------
    UserError
        No such folder, no labelled image in it, or a run whose images were scaled by the light of all of them.
    """
    if folder is None:
        return CellDataset([], [], tuple(config.classes))
    root = here(folder)
    if not root.is_dir():
        raise UserError(f"test_folder is '{folder}', no such folder", "name a folder of images as those of the run lie")
    if config.percentiles_of == "batch":
        raise UserError(
            "test_folder is set, and convert.percentiles_of is batch: its images would be scaled by their own light",
            "set convert.percentiles_of: image, or use `cellkit predict RUN:MODEL`, which keeps the limits of the run",
        )
    stage.reads(test_folder=folder)
    everything = {"max_images": None, "folds": 0, "pseudo": None, "mixed_images": 0, "published_split": True}
    everything |= {"unlabelled": None}
    unflagged = QualityConfig(**dict.fromkeys(QualityConfig.model_fields, False))
    changed = config.model_copy(update=everything | {"quality": unflagged})
    out = stage.path(f"{FOLDER}/images").parent
    converted = convert_images(changed, root, out)
    stage.quarantine(converted.quarantined)
    labelled = converted.images.with_truth()
    if not len(labelled):
        raise UserError(
            f"test_folder is '{folder}': none of its images is labelled", "`cellkit predict` finds cells without"
        )
    return labelled.with_records([replace(record, split="test", flags="") for record in labelled.records])
