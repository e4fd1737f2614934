"""Which labels an image gets: the truth that came with it, a person's corrections, or a model's proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.dataset import CellDataset
from cellkit.errors import UserError
from cellkit.instances import Instances, refuse_boxes

if TYPE_CHECKING:
    from cellkit.coco import Coco


@dataclass(frozen=True)
class Labelled:
    """The labels of one image.

    Parameters
    ----------
    image_id : str
    labels : (H, W) int32
    made_by : str
        "truth", "corrected" or "proposed".
    """

    image_id: str
    labels: np.ndarray
    made_by: str


def choose_labels(
    images: CellDataset, proposals: Sequence[Instances], truth: Mapping[str, Path], use: str, min_area_px: int = 0
) -> list[Labelled]:
    """Decide, image by image, which labels are used from here on.

    Parameters
    ----------
    images : CellDataset
        The images that were proposed for.
    proposals : list of Instances
        One per image.
    truth : mapping
        ``run.find_all("truth")``: {"truth": path} where the source has labels, {} where it has none.
    use : str
        "truth" = the source's labels; "proposed" = the proposals as they are; a folder = corrected label images named after
        the images (``<image_id>.tif`` or ``<image_id>_masks.tif``), and the proposals where it has none.

    Returns
    -------
    list of Labelled
        Mixed images are left out where only proposals could label them: their class is what is asked later.

    Raises
    ------
    UserError
        The source has no labels, or none for one of the images; the folder is not there, or has no label image for any
        of the images.
    """
    from cellkit.coco import read_coco

    if use == "truth":
        if "truth" not in truth:
            raise UserError(
                "label.use is truth, but the images came without labels", "set label.use: proposed, or a folder"
            )
        coco = read_coco(truth["truth"], boxes=True)
        refuse_boxes(coco.instances, "label.use: truth")
        known = _known(coco, images, truth["truth"])
        chosen = [Labelled(r.image_id, known[r.image_id].paint(), "truth") for r in images.records]
    elif use == "proposed":
        chosen = _proposed(images, proposals, {})
    else:
        chosen = _proposed(images, proposals, _corrections(images, Path(use)))
    return [_without_small(item, min_area_px) for item in chosen]


def _known(coco: Coco, images: CellDataset, path: str | Path) -> dict[str, Instances]:
    """Return the true objects of every image by its id; refuse a truth that lacks one of the images."""
    known = dict(zip([r.image_id for r in coco.records], coco.instances, strict=True))
    missing = [r.image_id for r in images.records if r.image_id not in known]
    if missing:
        raise UserError(
            f"{path} has no labels for {len(missing)} of {len(images)} images, e.g. {missing[0]}",
            "run 01_convert again",
        )
    return known


def _proposed(images: CellDataset, proposals: Sequence[Instances], corrected: dict[str, np.ndarray]) -> list[Labelled]:
    """Take the correction where there is one, else the proposal; a mixed image needs a correction."""
    chosen = []
    for record, found in zip(images.records, proposals, strict=True):
        if record.image_id in corrected:
            chosen.append(Labelled(record.image_id, corrected[record.image_id], "corrected"))
        elif record.cell_type != "mixed":
            chosen.append(Labelled(record.image_id, found.paint(), "proposed"))
    return chosen


def _corrections(images: CellDataset, folder: Path) -> dict[str, np.ndarray]:
    from cellkit.labels import read_labels

    if not folder.is_dir():
        raise UserError(
            f"label.use is '{folder}', no such folder", "set label.use: truth, proposed, or a folder of label images"
        )
    corrected = {}
    for record in images.records:
        stem = folder / record.image_id
        path = next(
            (p for s in (".tif", "_masks.tif", ".png", "_masks.png") if (p := Path(f"{stem}{s}")).is_file()), None
        )
        if path is None:
            continue
        labels = read_labels(path)
        if labels.shape != (record.height_px, record.width_px):
            raise UserError(
                f"{path} is {labels.shape}, {record.path} is {(record.height_px, record.width_px)} px",
                "label this very image",
            )
        corrected[record.image_id] = labels
    if not corrected:
        raise UserError(f"{folder} has no label image for any of the {len(images)} images", "name them <image_id>.tif")
    return corrected


def _without_small(item: Labelled, min_area_px: int) -> Labelled:
    _, place, areas = np.unique(item.labels, return_inverse=True, return_counts=True)  # ids may be huge
    large = (areas >= min_area_px)[place].reshape(item.labels.shape)
    labels = np.where(large, item.labels, 0).astype(np.int32)
    return Labelled(item.image_id, labels, item.made_by)


def write_chosen(chosen: Sequence[Labelled], folder: str | Path, table: str | Path) -> Path:
    """Write each label image as ``<image_id>.tif`` and a table of image_id, made_by, cells; return the folder."""
    from cellkit.labels import write_labels
    from cellkit.sources import write_table

    for item in chosen:
        write_labels(Path(folder) / f"{item.image_id}.tif", item.labels)
    rows = [
        {"image_id": c.image_id, "made_by": c.made_by, "cells": len(np.unique(c.labels[c.labels > 0]))} for c in chosen
    ]
    write_table(table, rows)
    return Path(folder)


def diameter_for(
    backend: Any, checkpoint: Path | None, config: Any, images: CellDataset, most: int = 4
) -> float | None:
    """Return the cell diameter to label with, in px: the config's, else estimated on up to `most` images, else None.

    Only backends with an ``estimate_diameter`` need one.
    """
    if config.diameter_px is not None or not hasattr(backend, "estimate_diameter"):
        return config.diameter_px
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    network, card = backend.load_network(checkpoint)
    own = {key: card[key] for key in ("flow_threshold", "cellprob_threshold") if key in card}
    return backend.estimate_diameter(network, [images.image(k) for k in chosen], channels=config.channels, **own)


def with_truth_classes(labelled: CellDataset, truth: str | Path) -> CellDataset:
    """Give each labelled cell the class of the true object that covers most of it (unknown where none does).

    Parameters
    ----------
    labelled : CellDataset
    truth : path
        The COCO file of 01_convert, whose objects have classes; boxes serve as well as masks.
    """
    from dataclasses import replace

    from cellkit.coco import read_coco
    from cellkit.scores import overlaps

    coco = read_coco(truth, boxes=True)
    known = _known(coco, labelled, truth)
    found = []
    for record, cells in zip(labelled.records, labelled.instances, strict=True):
        pairs = overlaps(known[record.image_id], cells)
        classes = np.zeros(len(cells), np.int64)
        order = np.argsort(pairs.shared_px, kind="stable")  # the largest overlap is written last
        classes[pairs.found[order]] = known[record.image_id].class_ids[pairs.truth[order]]
        found.append(cells.with_classes(classes))
    return replace(labelled, instances=found, classes=tuple(coco.classes))
