"""Which labelled images teach, which choose and which judge: never the same choose and judge."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellkit.cells.records import ImageRecord
from cellkit.cells.splits import fill_empty_splits, k_folds

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

CHOOSE_FROM = 12  # validation images (groups) from which a third of them choose
FOLDS = 5  # parts of the labelled images that are held back in turn
PARTS = {"choose": 1 / 3, "judge": 2 / 3}  # of twelve validation images and more
LEAST_CHOOSE, MOST_CHOOSE = 1 / 5, 1 / 2  # whatever the images are called
QUARTERS = 4  # parts of a single labelled image
THREE_PARTS, CROSS_FITTING, IN_QUARTERS, NOBODY = "three parts", "cross-fitting", "quarters", "nobody judges"


@dataclass(frozen=True)
class Regime:
    """Who teaches, chooses and judges.

    Attributes
    ----------
    name : {"three parts", "cross-fitting", "quarters", "nobody judges"}
    choosers, judges : tuple of str
        Their image_id.
    folds : tuple of tuple of str
        The judges in the parts that are held back in turn; empty where none is.
    least : int
        Cells that an image needs to teach.
    labelled : int
        Training and validation images that a person labelled.
    near : int
        Judges of a group that teaches too, in three parts.
    """

    name: str
    choosers: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    folds: tuple[tuple[str, ...], ...] = ()
    least: int = 1
    labelled: int = 0
    near: int = 0

    def __str__(self) -> str:
        """Say who judges, and why."""
        few = f"fewer than {CHOOSE_FROM} validation images (groups) have labelled cells"
        count = len(self.judges)
        enough = "holds cells" if self.least == 1 else f"has {self.least} cells or more (finetune.min_train_masks)"
        return {
            THREE_PARTS: f"three parts: training images teach, {len(self.choosers)} validation images choose, {count} others "
            "judge"
            + (
                f"; {self.near} of them are of a group that teaches too, which flatters the tuned model"
                if self.near
                else ""
            ),
            CROSS_FITTING: f"cross-fitting, as {few}: {count} labelled images judge, each an adaptation that did not see it; "
            f"{len(self.folds)} parts are held back in turn",
            IN_QUARTERS: f"quarters, as one labelled image alone {enough}: its four quarters judge, each an adaptation that "
            "did not see it and saw the others",
            NOBODY: "nobody judges, as "
            + (f"none of {self.labelled} labelled images {enough}" if self.labelled else "no person labelled an image"),
        }[self.name]


def regime_of(labelled: CellDataset, folds: int = FOLDS, least: int = 1, seed: int = 0) -> Regime:
    """Decide who teaches, chooses and judges, from the number of images that a person labelled.

    - 12 validation images (groups) with cells or more: **three parts**. About a third of them (a fifth to half) choose checkpoint
      and step, the others, eight or so, judge. From there on the judges left are enough to see a gain of 0.1, and one training
      is enough.
    - Fewer, and two labelled images (groups) with cells or more, of training and validation together: **cross-fitting**.
      Every one of them judges an adaptation that did not see it, so that none is lost for teaching: 12 + 7 images give 19
      judges in place of 7. Up to five images (groups) each is held back alone; more are dealt into five parts.
    - One labelled image with cells: **quarters** of it are held back in turn. All that is known of other images is then
      how far gains usually spread, so only a large gain is kept (`Difference.with_expected_spread`).
    - None: **nobody judges**, and the base is kept.

    Groups (wells, donors, series) are held back in turn as a whole, where there are two with cells; of three parts it is said
    where they were divided. Validation images are a part of their own where they are no more than half of the images: what was
    adapted without that part saw none of them.

    Parameters
    ----------
    labelled : CellDataset
        Images with splits; those of ``train`` and ``val`` that no model's proposals label count.
    folds : int
        Most parts that are held back in turn.
    least : int
        Cells that an image needs to teach.
    seed : int
        Of the dealing into parts.
    """
    known = labelled.without_proposed()
    val, both = known.select("val"), known.subset([r.split in ("train", "val") for r in known.records])
    holding = {unit_of(r) for r, cells in zip(val.records, val.instances, strict=True) if len(cells)}
    if len(holding) >= CHOOSE_FROM:
        chosen, taught = choosers(val.records), {r.group for r in known.select("train").records if r.group}
        others = [r for r in val.records if r.image_id not in chosen]
        near = sum(r.group in taught for r in others)
        return Regime(THREE_PARTS, tuple(chosen), tuple(r.image_id for r in others), least=least, near=near)
    names, least = tuple(record.image_id for record in both.records), max(least, 1)
    able = [r for r, cells in zip(both.records, both.instances, strict=True) if len(cells) >= least]
    about = {"least": least, "labelled": len(names)}
    if not able:
        return Regime(NOBODY, **about)
    if len(able) == 1:
        return Regime(IN_QUARTERS, judges=(able[0].image_id,), **about)
    return Regime(CROSS_FITTING, judges=names, folds=_dealt(both.records, able, folds, seed), **about)


def _dealt(
    records: Sequence[ImageRecord], able: Sequence[ImageRecord], folds: int, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Deal images into folds, so that whatever fold is left out, an image that can teach is left."""
    by = "group" if len({unit_of(record) for record in able}) > 1 else "image"
    unit = unit_of if by == "group" else (lambda record: record.image_id)
    units = {unit(record) for record in able}
    count, val = min(folds, len(units)), {unit(record) for record in records if record.split == "val"}
    apart = 0 < len(val & units) <= len(units) / 2
    rest = [record for record in able if not apart or unit(record) not in val]
    left = min(count - apart, len(units - val)) if apart else count
    dealt = k_folds(rest, left, seed, by, "cell_type") if left > 1 else [rest]
    place = {unit(record): k for k, fold in enumerate(dealt) for record in fold}
    if apart:
        place |= dict.fromkeys(val, left)
        left += 1
    for record in records:  # images without cells follow their group, or are dealt in turn
        place.setdefault(unit(record), len(place) % left)
    return tuple(tuple(r.image_id for r in records if place[unit(r)] == fold) for fold in range(left))


def choosers(records: Sequence[ImageRecord]) -> list[str]:
    """Return the validation images that choose a training's checkpoint; the others judge it.

    With fewer than 12 images (or groups of images) none chooses: the last weights are taken. A choice among a few evaluations
    gains little there, and each judge is needed. From 12 on about a third choose, by a hash of the name (of the group): an
    image more changes no other's part. Only where fewer than a fifth would choose, or more than half, those whose places are
    nearest change their part; and where all images (groups) of a cell type would choose, or all would judge, the one
    whose place is nearest: what is chosen on one line need not suit another. Of two of a type one chooses, the
    only one judges, unless all would; types come first, so that of many types with one image each fewer choose.

    Parameters
    ----------
    records : sequence of ImageRecord
        The labelled validation images.

    Returns
    -------
    list of str
        Their image_id, in order; empty where none chooses.
    """
    units = {record.image_id: unit_of(record) for record in records}
    if len(set(units.values())) < CHOOSE_FROM:
        return []
    places = {unit: _place_of(unit) for unit in sorted(set(units.values()))}
    by_place = sorted(places, key=lambda unit: (places[unit], unit))
    least, most = math.ceil(LEAST_CHOOSE * len(places)), int(MOST_CHOOSE * len(places))
    count = min(max(sum(place < PARTS["choose"] for place in places.values()), least), most)
    part = {unit: "choose" if k < count else "judge" for k, unit in enumerate(by_place)}
    strata: dict[str, set[str]] = {}
    for record in records:
        strata.setdefault(record.cell_type, set()).add(units[record.image_id])
    fill_empty_splits(part, places, {kind: sorted(own) for kind, own in strata.items()}, PARTS)
    return [name for name, unit in units.items() if part[unit] == "choose"]


def judges(images: CellDataset) -> CellDataset:
    """Return the images that chose no checkpoint, see `choosers`; of a split that never chooses, all."""
    chose = set(choosers([record for record in images.records if record.split == "val"]))
    return images.subset([record.image_id not in chose for record in images.records])


def unit_of(record: ImageRecord) -> str:
    """Return what is held back as a whole: the group of an image, or the image itself."""
    return record.group or record.image_id


def _place_of(name: str) -> float:
    """Return a place in [0, 1) that follows from a name alone."""
    digest = hashlib.sha256(f"choose\0{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape"))
    return digest.digest()[0] / 256
