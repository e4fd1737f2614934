"""Pseudo-labels: what models find in images that nobody labelled, where they are sure and agree, to train the next round with.

What was found and is not sure is neither cell nor background: it becomes a region that is not annotated.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.files import write_table
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.models.shared.contract import Share
from cellkit.models.shared.fusion import FusionSettings, fuse
from cellkit.models.shared.routing import most_frequent
from cellkit.scores.iou import overlaps
from cellkit.scores.matching import THRESHOLDS, count, ratio
from cellkit.settings import Frozen
from cellkit.sources.pseudo_labels import FILE, IMAGES

TABLE = "pseudo.csv"
EVERY_CELL = FusionSettings(least_models=0.0)  # a cell that few models found has a low score; the limits decide


class PseudoSettings(Frozen):
    """Which cells and images are taken."""

    score: Share = Field(0.7, description="cells of at least this score are labels")
    doubtful: Share = Field(
        0.3,
        description="cells below that, of at least this score, are regions that are not annotated; others background",
    )
    agreement: Share = Field(
        0.5, description="least agreement of an image's models: MAP IoU between their cells, mean of all pairs"
    )


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo-labels of one image.

    Attributes
    ----------
    cells : Instances
        Those that are sure; what is doubtful is `Instances.unknown`.
    doubtful : int
        Number of doubtful cells.
    agreement : float
        Of the models; nan for a single one.
    why_not : str
        Why the image is left out, "" where it is taken.
    """

    cells: Instances
    doubtful: int
    agreement: float
    why_not: str = ""


def pseudo_labels(founds: Sequence[Instances], settings: PseudoSettings | None = None) -> PseudoLabels:
    """Choose the pseudo-labels of one image from what models found in it.

    Cells of several models are fused (`cellkit.models.shared.fusion.fuse`): a cell's score counts how many of them found it.

    Parameters
    ----------
    founds : list of Instances
        One per model.
    settings : PseudoSettings, optional

    Raises
    ------
    UserError
        No model, or images of different size.

    Examples
    --------
    >>> found = Instances.from_labels(np.array([[1, 0, 2, 0, 3]]), scores=[0.9, 0.5, 0.1])
    >>> labels = pseudo_labels([found])
    >>> labels.cells.paint(unknown=-1), labels.doubtful
    (array([[ 1,  0, -1,  0,  0]], dtype=int32), 1)
    """
    settings = settings or PseudoSettings()
    cells = fuse(founds, settings=EVERY_CELL)
    agreement = agreement_of(founds)
    sure = cells.scores >= settings.score
    doubtful = ~sure & (cells.scores >= settings.doubtful)
    labels = cells[sure].with_unknown(cells[doubtful].paint() > 0)
    why = ""
    if not sure.any():
        why = f"no cell has a score of {settings.score:g}"
    if agreement < settings.agreement:  # not where it is nan
        why = f"the models agree by {agreement:.2f} only"
    return PseudoLabels(labels, int(doubtful.sum()), agreement, why)


def agreement_of(founds: Sequence[Instances]) -> float:
    """Return how far models agree on an image: MAP IoU (kaggle) between each two of them, overlaps removed, mean; nan for one.

    Examples
    --------
    >>> one, other = (Instances.from_labels(np.array([row])) for row in ([1, 1, 2, 2], [1, 1, 0, 0]))
    >>> agreement_of([one, one]), agreement_of([one, other])
    (1.0, 0.5)
    """
    whole = [resolve_overlaps(found)[0] for found in founds]
    scores = []
    for a, b in itertools.combinations(whole, 2):
        counts = count(overlaps(a, b), THRESHOLDS)
        scores.append(float(ratio(counts.tp, sum(counts), 1).mean()))
    return float(np.mean(scores)) if scores else float("nan")


def pseudo_of(truth: Mapping[str, Path]) -> dict[str, Instances]:
    """Return the pseudo-labels of a run (``convert.pseudo``) by image_id.

    They stay as they are whatever labels are used, but where a person corrected the image.

    Parameters
    ----------
    truth : mapping
        ``run.find_all("truth")``.
    """
    if "truth" not in truth:
        return {}
    data = read_coco(truth["truth"], boxes=True)
    made = zip(data.records, data.instances, data.made_by, strict=True)
    return {record.image_id: cells for record, cells, maker in made if maker == "proposed"}


def write_pseudo(
    folder: str | Path,
    records: Sequence[ImageRecord],
    founds: Sequence[Sequence[Instances]],
    classes: Sequence[str],
    files: Mapping[str, Path],
    settings: PseudoSettings | None = None,
    cell_type: str = "",
) -> list[dict]:
    """Write the pseudo-labels of images, with copies of their files, as a folder that ``convert.pseudo`` takes.

    Parameters
    ----------
    folder : path
    records : list of ImageRecord
        As a prediction has them: path, scene, time and group are kept.
    founds : list of list of Instances
        Of each image, what each model found.
    classes : sequence of str
        Names of the cells' classes.
    files : mapping
        image_id -> the image's file; a folder for one that is stored as a folder.
    cell_type : str, optional
        The line of all images; default of each image the class of most of its cells.

    Returns
    -------
    list of dict
        One row per image: image_id, used ("yes" or "no"), cells, doubtful, agreement, cell_type, why_not.

    Raises
    ------
    UserError
        No image is left.
    """
    folder, rows, kept, cells = Path(folder), [], [], []
    for record, found in zip(records, founds, strict=True):
        labels = pseudo_labels(found, settings)
        line = cell_type or most_frequent(labels.cells, classes)
        told = {"cells": len(labels.cells), "doubtful": labels.doubtful, "agreement": round(labels.agreement, 4)}
        used = {"image_id": record.image_id, "used": "no" if labels.why_not else "yes"}
        rows.append({**used, **told, "cell_type": line, "why_not": labels.why_not})
        if not labels.why_not:
            kept.append(replace(record, cell_type=line, split="train"))
            cells.append(labels.cells)
    write_table(folder / TABLE, rows)
    (folder / FILE).unlink(missing_ok=True)  # what an earlier call took is not what this one does
    if not kept:
        raise UserError(
            f"of {len(records)} images none is taken, e.g. {rows[0]['image_id']}: {rows[0]['why_not']}"
            if rows
            else "no image",
            "lower --score or --agreement",
        )
    for record in kept:
        _copy(files[record.image_id], folder / IMAGES / record.path)
    marks = [{"scene": record.scene, "time": record.time} for record in kept]
    write_coco(folder / FILE, kept, cells, classes, made_by=["proposed"] * len(kept), marks=marks)
    return rows


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or an image that is a folder, over what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
