"""Which labels an image gets: the truth that came with it, a person's corrections, or a model's proposals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.dataset import CellDataset, known_in_part
from cellkit.cells.instances import Instances
from cellkit.cells.leftout import LeftOut, too_small
from cellkit.cells.outlines import refuse_boxes
from cellkit.cells.records import MIXED
from cellkit.errors import Quarantined, UserError, counted
from cellkit.formats.labels import write_chosen_cells
from cellkit.labelling.pseudo import pseudo_of
from cellkit.log import LOG
from cellkit.models.shared.diameter import MEASURED, as_settings
from cellkit.modules import optional

if TYPE_CHECKING:
    import pandas

    from cellkit.labelling.corrections import Correction
    from cellkit.scores.iou import Overlaps


@dataclass(frozen=True)
class Labelled:
    """The labels of one image.

    Parameters
    ----------
    image_id : str
    labels : (H, W) int32, 0 = background, -1 = not annotated
    made_by : str
        "truth", "corrected" or "proposed".
    cells : Instances, optional
        The same cells whole, overlaps and classes included; default those of `labels`.
    left_out : tuple of int
        Areas in px of the cells that were smaller than the least area.
    is_classed : bool
        Whether cells that are no truth have classes of this run: pseudo-labels have, and corrections of mixed images may.
    """

    image_id: str
    labels: np.ndarray
    made_by: str
    cells: Instances | None = None
    left_out: tuple[int, ...] = ()
    is_classed: bool = False

    @property
    def instances(self) -> Instances:
        """The cells, overlaps included."""
        return Instances.from_labels(self.labels) if self.cells is None else self.cells


def choose_labels(
    images: CellDataset,
    proposals: Sequence[Instances],
    truth: Mapping[str, Path],
    use: str,
    min_area_px: int = 0,
    quarantine: Callable[[Iterable[Quarantined]], None] | None = None,
    classes: Sequence[str] = (),
    teacher: bool = False,
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
        "truth" = the source's labels; "proposed" = the proposals as they are; a folder = corrected labels as Cellpose's
        GUI, Fiji or napari left them (see `cellkit.labelling.corrections`), and the proposals where it has none.
    quarantine : callable, optional
        ``stage.quarantine``: takes the files of the folder that are not used. They are named in the log in any case.
    classes : sequence of str, optional
        Those that the cells of the truth must have; default whatever it has.
    teacher : bool
        Whether the proposals label the training images also where `use` is "truth".

    Returns
    -------
    list of Labelled
        Mixed images are left out where only proposals could label them: the classes of their cells are unknown. So are test
        images that came without truth: they are predicted, not scored.

    Raises
    ------
    UserError
        The source has no labels, none for one of the images, or other classes; the folder is not there, or has no label
        image for any of the images; every cell is smaller than `min_area_px`.
    """
    from cellkit.formats.coco_reading import read_coco
    from cellkit.labelling.corrections import corrections_folder, log_files, read_corrections
    from cellkit.under_way import note_reading

    pseudo = {
        name: Labelled(name, cells.paint(unknown=-1), "proposed", cells, is_classed=True)
        for name, cells in pseudo_of(truth).items()
    }
    if use == "truth":
        refuse_unlabelled("truth" in truth)
        coco = read_coco(truth["truth"], boxes=True)
        refuse_unlabelled(len(coco.without_proposed()) > 0)
        refuse_boxes(coco.instances, "label.use: truth")
        if classes:
            refuse_other_classes(coco.classes, classes, truth["truth"])
        known = _known(coco, images, truth["truth"])
        taught = {r.image_id for r in images.records if teacher and r.split == "train" and r.image_id not in pseudo}
        named = [r.image_id for r in images.records if r.image_id in known and r.image_id not in taught]
        chosen = [Labelled(name, known[name].paint(unknown=-1), "truth", known[name]) for name in named]
        if taught:
            place = {r.image_id: k for k, r in enumerate(images.records)}
            chosen = [*chosen, *(one for one in _proposed(images, proposals, {}) if one.image_id in taught)]
            chosen.sort(key=lambda one: place[one.image_id])
        if replaced := sorted(taught & known.keys()):
            LOG.info(
                f"labels: {counted(len(replaced), 'training image')} came with labels, and the teacher's proposals take their "
                f"place (e.g. {replaced[0]}); label.teacher: false trains on the labels"
            )
    elif use == "proposed":
        chosen = _proposed(images, proposals, {})
    else:
        note_reading(use, "corrections")
        found = read_corrections(images, proposals, corrections_folder(use))
        seen = {name: one for name, one in found[0].items() if one.by_person}
        log_files(use, images, found, classes, "truth" in truth)
        if quarantine is not None:
            quarantine(found[1])
        chosen = _proposed(images, proposals, seen, () if "truth" in truth else classes)
    chosen = [item if item.made_by == "corrected" else pseudo.get(item.image_id, item) for item in chosen]
    if partly := known_in_part([item.instances for item in chosen]):
        LOG.info(f"labels: {partly}")
    if use != "truth" and "truth" in truth:
        _warn_unused(chosen, truth["truth"], use)
    chosen = [_without_small(item, min_area_px) for item in chosen]
    _warn_small(chosen, min_area_px)
    return chosen


def refuse_unlabelled(labelled: bool) -> None:
    """Refuse ``label.use: truth`` of images none of which came with labels.

    Raises
    ------
    UserError
        No image came with labels.
    """
    if not labelled:
        raise UserError(
            "label.use is truth, but the images came without labels", "set label.use: proposed, or a folder"
        )


def _whole(image_id: str, labels: np.ndarray, made_by: str, cells: Instances) -> Labelled:
    """Keep the cells beside the image painted from them where that image loses some of them."""
    overlap = int(cells.areas_px.sum()) > int(np.count_nonzero(labels > 0))
    return Labelled(image_id, labels, made_by, cells if overlap else None)


def _warn_unused(chosen: Sequence[Labelled], truth: Path, use: str) -> None:
    """Say how many images came with labels and get proposals all the same."""
    from cellkit.formats.coco_reading import read_coco

    own = {record.image_id for record in read_coco(truth, boxes=True).without_proposed().records}
    unused = [item.image_id for item in chosen if item.made_by == "proposed" and item.image_id in own]
    if unused:
        LOG.warning(
            f"labels: {counted(len(unused), 'image')} came with labels that are not used, since label.use is {use} "
            f"(e.g. {unused[0]}); labels of your own are used with label.use: truth, and corrected where they lie; or with "
            "label.use: the folder of them, which leaves proposals to images that it has no labels for"
        )


def _known(coco: CellDataset, images: CellDataset, path: str | Path) -> dict[str, Instances]:
    """Return the true objects of every image by its id; refuse a truth that lacks one, but for a test image."""
    known = dict(zip([r.image_id for r in coco.records], coco.instances, strict=True))
    missing = [r.image_id for r in images.records if r.image_id not in known and r.split != "test"]
    if missing:
        raise UserError(
            f"{path} has no labels for {len(missing)} of {counted(len(images), 'image')}, e.g. {missing[0]}",
            "run 01_convert again",
        )
    return known


def _proposed(
    images: CellDataset,
    proposals: Sequence[Instances],
    corrected: Mapping[str, Correction],
    classes: Sequence[str] = (),
) -> list[Labelled]:
    """Take the correction where there is one, else the proposal; a mixed image needs a correction, and keeps its `classes`."""
    chosen = []
    for record, found in zip(images.records, proposals, strict=True):
        if record.image_id in corrected:
            own = corrected[record.image_id]
            item = _whole(record.image_id, own.labels, "corrected", own.cells)
            if record.cell_type == MIXED and any(ids := own.class_ids(classes)):
                item = replace(item, cells=own.cells.with_classes(ids), is_classed=True)
            chosen.append(item)
        elif record.cell_type != MIXED:
            chosen.append(_whole(record.image_id, found.paint(), "proposed", found))
    return chosen


def _without_small(item: Labelled, min_area_px: int) -> Labelled:
    ids, place, areas = np.unique(item.labels, return_inverse=True, return_counts=True)  # ids may be huge
    large = ((areas >= min_area_px) | (ids < 0))[place].reshape(item.labels.shape)
    labels = np.where(large, item.labels, 0).astype(np.int32)
    cells = item.cells if item.cells is None else item.cells[item.cells.areas_px >= min_area_px]
    areas = areas[ids > 0] if item.cells is None else item.cells.areas_px
    left_out = tuple(areas[areas < min_area_px].tolist())
    return Labelled(item.image_id, labels, item.made_by, cells, left_out, item.is_classed)


def _warn_small(chosen: Sequence[Labelled], min_area_px: int) -> None:
    """Say how many cells of which labels were too small; refuse where nothing is left of them."""
    left = LeftOut()
    for item in chosen:
        left.add(f"{too_small(min_area_px, 'label.min_area_px')}, {item.made_by}", item.image_id, len(item.left_out))
    small = [area for item in chosen for area in item.left_out]
    if small and not any((item.labels > 0).any() for item in chosen):
        raise UserError(
            f"label.min_area_px is {min_area_px}, and the largest of {counted(len(small), 'cell')} has {max(small)} px",
            "lower min_area_px of label, finetune, coco and maskrcnn",
        )
    left.log("labels")


def refuse_other_classes(found: Sequence[str], wanted: Sequence[str], path: str | Path) -> None:
    """Refuse cells whose class ids stand for other names than those of a section of the configuration.

    Raises
    ------
    UserError
        With both lists of classes.
    """
    if tuple(found) != tuple(wanted):
        raise UserError(
            f"{path} has the classes {', '.join(found) or 'none'}, wanted {', '.join(wanted)}",
            "set classes once, at the top of the configuration",
        )


def write_chosen(
    chosen: Sequence[Labelled],
    folder: str | Path,
    table: str | Path,
    images: CellDataset | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Write ``labels.json`` and, for people and other programs, each label image; return the folder.

    ``labels.json`` is a COCO file of the cells as they are, overlaps and classes (of true cells) included; it says who made
    them and the sha256 of each label image ``<image_id>.tif``, by which a changed one is known later.

    Parameters
    ----------
    table : path
        Where a table of image_id, made_by, cells goes.
    images : CellDataset, optional
        Their images, as `CellDataset.from_records` gives them: `read_coco` then opens ``labels.json``.
    classes : sequence of str, optional
        Names of the cells' classes; without them no cell has one.
    """
    from cellkit.files import write_table
    from cellkit.formats.label_images import stamp_of, write_labels

    cells = [item.instances.with_scores(1.0) for item in chosen]
    named = [bool(classes) and (item.made_by == "truth" or item.is_classed) for item in chosen]
    cells = [found if known else found.with_classes(0) for found, known in zip(cells, named, strict=True)]
    stamps = [stamp_of(item.labels, proposed=True) if item.made_by == "proposed" else None for item in chosen]
    places = [Path(folder) / f"{item.image_id}.tif" for item in chosen]
    files = [write_labels(path, item.labels, stamp) for path, item, stamp in zip(places, chosen, stamps, strict=True)]
    write_chosen_cells(Path(folder), files, cells, [item.made_by for item in chosen], images, classes)
    rows = [
        {"image_id": item.image_id, "made_by": item.made_by, "cells": len(own)}
        for item, own in zip(chosen, cells, strict=True)
    ]
    write_table(table, rows)
    return Path(folder)


def images_to_propose(images: CellDataset, use: str, preview: int, teacher: bool = False) -> CellDataset:
    """Return the images that a model proposes labels for: all, or `preview` of them where `use` is "truth" and it is no teacher.

    Those show what the model can do; none is a test image.
    """
    if use != "truth" or teacher:
        return images
    return images.subset([r.split != "test" for r in images.records]).sample(preview)


def with_diameter(config: Any, backend: Any, checkpoint: Path | None, images: CellDataset) -> Any:
    """Return the settings of a section with the diameter of `diameter_for`, and say it."""
    diameter_px = diameter_for(backend, checkpoint, config, images)
    told = {"diameter_px": None} if diameter_px is None else as_settings(diameter_px, config, checkpoint)
    each = ", which differ: each image is scaled by its own" if "diameter_of" in told else ""
    LOG.info(f"{config.model}: cells of {'any size' if diameter_px is None else f'about {diameter_px:.0f} px'}{each}")
    return config.model_copy(update=told)


def diameter_for(
    backend: Any, checkpoint: Path | None, config: Any, images: CellDataset, most: int = MEASURED
) -> float | None:
    """Return the cell diameter to label with, in px: the config's, else estimated on up to `most` images, else None.

    Of images that differ it is a `cellkit.models.shared.diameter.First`.

    Only training images are measured, where there are any: test images decide nothing, validation images only what is
    kept. Only backends with an ``estimate_diameter`` need one.

    Raises
    ------
    UserError
        There is no image to estimate it on.
    """
    from cellkit.models import if_able

    given = getattr(config, "diameter_px", None)
    if given is not None or optional(backend, "estimate_diameter") is None:
        return given
    measured = next((part for split in ("train", "val") if len(part := images.select(split))), images)
    if not len(images.select("train")):
        what = f"the {measured.records[0].split or 'given'} images" if len(measured) else "none"
        LOG.warning(f"there is no training image; the cell diameter is measured on {what}")
    if not len(measured):
        raise UserError("there is no image to measure the cell diameter on", "set label.diameter_px")
    images = measured
    return if_able(backend, "estimate_diameter", checkpoint, list(images.sample(most).images()), config)


def with_classes(
    labelled: CellDataset, class_from: str, classes: Sequence[str], truth: Mapping[str, Path]
) -> CellDataset:
    """Give the cells of every image their class: the line of the image, or that of the true cell.

    Parameters
    ----------
    labelled : CellDataset
        Of ``labels.json``: true cells have their own class, proposed ones none, and corrected ones of mixed images may have one.
    class_from : {"cell_type", "truth"}
        "cell_type" = the line of the image, where that is a class (else unknown); cells of mixed images have the class of the
        true cell all the same. Of images that came without truth it is the line in either case, and of mixed ones what their
        cells have.
    classes : sequence of str
        Their names, in order.
    truth : mapping
        ``run.find_all("truth")``: where corrected and proposed cells find the true cell they cover.
    """
    from cellkit.formats.coco_reading import read_coco

    records, found = labelled.records, list(labelled.instances)
    of_truth = [bool(truth) and (class_from == "truth" or record.cell_type == MIXED) for record in records]
    if any(of_truth):  # images that came without labels, others with, have none that their cells could cover
        with_labels = {record.image_id for record in read_coco(truth["truth"], boxes=True).records}
        of_truth = [has and record.image_id in with_labels for has, record in zip(of_truth, records, strict=True)]
    for k, record in enumerate(records):
        if not of_truth[k] and not (record.cell_type == MIXED and tuple(labelled.classes) == tuple(classes)):
            found[k] = found[k].with_classes(classes.index(record.cell_type) + 1 if record.cell_type in classes else 0)
    own = [maker == "truth" for maker in labelled.made_by]
    if any(wanted and has for wanted, has in zip(of_truth, own, strict=True)):
        refuse_other_classes(labelled.classes, classes, "labels.json")
    covering = [k for k, wanted in enumerate(of_truth) if wanted and not own[k]]
    if covering:
        classed = with_truth_classes(labelled.subset(covering), truth["truth"])
        refuse_other_classes(classed.classes, classes, truth["truth"])
        for k, cells in zip(covering, classed.instances, strict=True):
            found[k] = cells
    return replace(labelled, instances=found, classes=tuple(classes))


def check_classes(train: CellDataset) -> pandas.DataFrame:
    """Count the training cells of each class (`counts_by_class`); refuse a class that has none.

    Raises
    ------
    UserError
        With the counts.
    """
    from cellkit.scores.matching import counts_by_class

    counts = counts_by_class(train.instances, train.classes)
    if not (counts["cells"] > 0).all():
        found = counts.to_dict("list")
        raise UserError(f"a class has no training cell: {found}", "give labelled images of it, or change classes")
    return counts


def with_truth_classes(labelled: CellDataset, truth: str | Path) -> CellDataset:
    """Give each labelled cell the class of the true object that covers most of it (unknown where none does, and in test
    images that came without truth).

    Parameters
    ----------
    labelled : CellDataset
    truth : path
        The COCO file of 01_convert, whose objects have classes; boxes serve as well as masks.
    """
    from cellkit.formats.coco_reading import read_coco
    from cellkit.scores.iou import overlaps

    coco = read_coco(truth, boxes=True)
    known = _known(coco, labelled, truth)
    found = []
    for record, cells in zip(labelled.records, labelled.instances, strict=True):
        true = known.get(record.image_id, Instances.empty(cells.shape))
        pairs = overlaps(true, cells)
        place = np.zeros(len(cells), np.int64) - 1
        order = np.lexsort((-pairs.union_px, pairs.shared_px))  # the largest overlap is written last; of equal ones the
        place[pairs.found[order]] = pairs.truth[
            order
        ]  # smaller true cell: one that lies in another keeps its own class
        place = _one_each(pairs, place)
        classes = np.where(place < 0, 0, np.append(true.class_ids, 0)[place])
        found.append(cells.with_classes(classes))
    return replace(labelled, instances=found, classes=tuple(coco.classes))


def _one_each(pairs: Overlaps, place: np.ndarray) -> np.ndarray:
    """Give cells that are true cells to the pixel one each, in order: the same mask may be there twice, of two classes."""
    place = place.copy()
    exact = np.flatnonzero(pairs.shared_px == pairs.union_px)
    last: dict[int, int] = {}  # first true cell of a mask -> the one that was given last
    for k in np.unique(pairs.found[exact]).tolist():
        same = np.sort(pairs.truth[exact][pairs.found[exact] == k]).tolist()
        later = [t for t in same if t > last.get(same[0], -1)] or same
        place[k] = last[same[0]] = later[0]
    return place
