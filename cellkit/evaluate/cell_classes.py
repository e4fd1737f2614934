"""Cellpose's cells with a class, in a run: which of its models, trained on what, and how they are called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset, read_image
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import counted
from cellkit.evaluate.evaluation import KEY, predictions_of
from cellkit.files import PACKAGE
from cellkit.finding import Finder, opens_again, processes_for, take_over
from cellkit.log import LOG
from cellkit.models import cell_classes
from cellkit.models.shared.contract import Segmenter

CLASSED = "cellpose_classes"  # the model: its predictions are called so
STARTER = PACKAGE / "starter" / "starter_light.safetensors"  # no image of the run taught it


def train_classes(
    checkpoints: Mapping[str, Path],
    train: CellDataset,
    settings: cell_classes.Settings,
    out: Path,
    detector: Path | None = None,
) -> Path | None:
    """Learn to give the cells of the Cellpose model that 03 kept a class; say why where that is not done.

    Parameters
    ----------
    checkpoints : mapping
        ``run.find_all("cellpose_*checkpoint")``.
    train : CellDataset
        Training images with the class of their cells.
    out : Path
        Folder for the checkpoint.
    detector : Path, optional
        Checkpoint of the run's detector.

    Returns
    -------
    Path or None
        ``cellpose_classes.safetensors``, see `cellkit.models.cell_classes.train`.
    """
    taught = {
        name: sum(int((c.class_ids == k).sum()) for c in train.instances) for k, name in enumerate(train.classes, 1)
    }
    lacking = ", ".join(name for name, cells in taught.items() if not cells)
    why = (
        "maskrcnn.cell_classes.train is false"
        if not settings.train
        else f"{counted(len(taught), 'class', 'classes')}, nothing to tell apart"
        if len(taught) < 2
        else f"no training cell of {lacking}"
        if lacking
        else "03 kept no Cellpose model"
        if "cellpose_checkpoint" not in checkpoints
        else ""
    )
    if why:
        LOG.info(f"Cellpose's cells get no class: {why}")
        return None
    path = cell_classes.train(train, checkpoints["cellpose_checkpoint"], STARTER, settings, out, detector)
    cells = ", ".join(f"{count} {name}" for name, count in taught.items())
    LOG.info(f"Cellpose's cells get a class by their texture and the features of {STARTER.stem}, learned from {cells}")
    return path


def name_cells(
    checkpoint: Path | None, images: CellDataset, predictions: Mapping[str, Path], checkpoints: Mapping[str, Path]
) -> list[Instances] | None:
    """Return what the Cellpose model that 03 kept found in validation and test images, each cell with a class.

    The outlines are those of its predictions file: of a validation image that taught the model, those of a run that did not
    see it.

    Parameters
    ----------
    checkpoint : Path or None
        From `train_classes`; None = nothing is done.
    images : CellDataset
        All images of the run.
    predictions : mapping
        ``run.find_all("predictions_cellpose_*")``.
    checkpoints : mapping
        ``run.find_all("cellpose_*checkpoint")``.

    Returns
    -------
    list of Instances or None
        One per image of ``images.held_out()``.
    """
    from cellkit.parallel import map_all
    from cellkit.under_way import measured, workers_of_stage

    name = kept_model(checkpoints)
    if checkpoint is None or f"{KEY}{name}" not in predictions:
        return None
    found = predictions_of({f"{KEY}{name}": predictions[f"{KEY}{name}"]}, images)[name]
    held_out, namer = images.held_out(), _namer(checkpoint)
    work = [(record, found[record.image_id]) for record in held_out.records]
    workers = processes_for(namer, workers_of_stage(), CLASSED)
    find = Finder(namer, partial(_with_cells, root=held_out.root), work, workers)
    with measured(CLASSED, "find", sum(record.height_px * record.width_px for record in held_out.records) / 1e6):
        named = map_all(find, work, CLASSED, workers, lambda one: one[0].image_id, lambda _, one: take_over(one))
    return [one.cells for one in named]


@opens_again
def _namer(checkpoint: Path) -> Segmenter:
    """Return a function from a stream of (image, cells) to the cells with a class."""
    named = cell_classes.load(checkpoint)
    return Segmenter(lambda pair, left_out: named(*pair), {})


def _with_cells(work: tuple[ImageRecord, Instances], root: Path) -> tuple[tuple[np.ndarray, Instances], None]:
    return (read_image(work[0], root), work[1]), None


def kept_model(checkpoints: Mapping[str, Path]) -> str:
    """Return which of base and tuned 03 kept; "" where it kept none.

    Examples
    --------
    >>> base, tuned = Path("base.safetensors"), Path("tuned.safetensors")
    >>> kept_model({"cellpose_checkpoint": base, "cellpose_base_checkpoint": base, "cellpose_tuned_checkpoint": tuned})
    'cellpose_base'
    """
    kept = checkpoints.get("cellpose_checkpoint")
    names = (name for name in ("cellpose_tuned", "cellpose_base") if checkpoints.get(f"{name}_checkpoint") == kept)
    return next(names, "") if kept is not None else ""


def describe_named(found: list[Instances] | None, classes: tuple[str, ...]) -> str:
    """Say how many cells of each class there are; that none has a class where nothing was done.

    Examples
    --------
    >>> describe_named([Instances.from_labels(np.eye(2, dtype=int), class_ids=[2])], ("HEK", "N2a"))
    'Cellpose, with a class: 0 HEK, 1 N2a'
    """
    if found is None:
        return "Cellpose's cells have no class"
    counts: Any = sum(
        (np.bincount(c.class_ids, minlength=len(classes) + 1) for c in found), np.zeros(len(classes) + 1, int)
    )
    return "Cellpose, with a class: " + ", ".join(f"{counts[k]} {name}" for k, name in enumerate(classes, 1))
