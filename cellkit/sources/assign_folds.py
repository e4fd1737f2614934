"""Folds of a source: its training and validation images dealt into parts, of which one is held back for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cellkit.cells.records import ImageRecord
from cellkit.cells.splits import groups_across_splits, k_folds, place_of
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, counted, raise_or_collect
from cellkit.log import LOG
from cellkit.sources.assign_splits import unit_of_item
from cellkit.sources.listing import SourceImage


def hold_out_fold(items: Sequence[SourceImage], config: ConvertConfig) -> list[SourceImage]:
    """Make one part of the training and validation images the validation images, the others training images.

    Each cell line is spread evenly over the parts. Frames of one file or series lie in one part; with ``convert.split_by: group``
    so do the images of one group (plate, well, donor). Test images, and images that are not used, stay what they are. Images
    without labels that are kept among others (``convert.unlabelled``) go with their file, series or group, else where their
    names put them: the others are dealt as they are without them.

    Parameters
    ----------
    items : list of SourceImage
        With their splits.
    config : ConvertConfig
        ``folds`` = how many parts, ``fold`` = which is held back, from 1; ``seed`` deals. With folds 0 nothing changes.

    Returns
    -------
    list of SourceImage
        In the order given; who is in which part does not depend on that order.

    Raises
    ------
    UserError
        There are fewer images, files or groups than parts.
    """
    if not config.folds:
        return list(items)
    dealt = [item for item in items if item.split in ("train", "val") and not item.is_left]
    kept = config.unlabelled == "keep" and not all(item.bare for item in dealt)
    units_of = {item.image_id: unit_of_item(item, config) or item.image_id for item in dealt}
    labelled = [item for item in dealt if not (kept and item.bare)]
    records = [ImageRecord(i.image_id, "", 1, 1, cell_type=i.cell_type, group=units_of[i.image_id]) for i in labelled]
    units = len({record.group for record in records})
    if units < config.folds:
        by_group = config.split_by == "group"
        have = (
            counted(units, "group") if by_group else counted(units, "image, file or series", "images, files or series")
        )
        remedy = f"ask for {units} folds or fewer" if units > 1 else "give more of them"
        more = "; convert.split_by: image divides groups, and the scores flatter" if by_group else ""
        raise_or_collect(UserError(f"{config.folds} folds of {have} for training and validation", f"{remedy}{more}"))
        return list(items)
    parts = k_folds(records, config.folds, config.seed, by="group")
    fold_of = {record.group: fold for fold, part in enumerate(parts) for record in part}
    for unit in sorted({*units_of.values()} - {*fold_of}):
        fold_of[unit] = int(place_of(unit, config.seed) * config.folds)
    names = {item.image_id for item in dealt}
    held = {name for name in names if fold_of[units_of[name]] == config.fold - 1}
    made = [
        replace(item, split="val" if item.image_id in held else "train") if item.image_id in names else item
        for item in items
    ]
    LOG.info(
        f"fold {config.fold} of {config.folds} is held back: {len(held)} validation images, {len(names) - len(held)} training"
    )
    divided = groups_across_splits([item for item in made if item.image_id in names])
    if divided and config.split_by != "group":
        LOG.warning(
            f"{counted(len(divided), 'group')} of images in several folds, e.g. {divided[0]}; "
            "convert.split_by: group keeps each (plate, well, donor) in one"
        )
    return made
