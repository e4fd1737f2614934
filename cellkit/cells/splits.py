"""Splits of a data set: by image or by group, drawn or by the hash of a name; k-fold; shares in whole numbers."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from fastcore.basics import groupby

from cellkit.cells.records import SPLITS, ImageRecord
from cellkit.errors import UserError, counted, raise_or_collect, readable

STEPS = tuple(int(2**64 * x) for x in (0.6180339887498949, 0.41421356237309515, 0.7320508075688772, 0.6457513110645907))
LISTED = re.compile(r"^(.+?\.json) image .*?: ", re.IGNORECASE)  # begins the source of an image of a COCO file
Item = TypeVar("Item")


# ---- groups --------------------------------------------------------------------------------------------------------
def name_groups(items: Sequence[Item], pattern: str | None) -> list[Item]:
    """Take each image's group (plate, well, donor, field) from its name.

    Parameters
    ----------
    items : sequence of ImageRecord or SourceImage
        Anything frozen with source, image_id and group.
    pattern : str or None
        A regular expression with a group called "group", looked for in the image's name in the source (`name_in_source`), then
        in the path of the file that lists it, then in the image_id: ``(?P<group>[A-H]\\d\\d)`` for wells. None leaves the
        groups as they are.

    Returns
    -------
    list
        The same items with their groups.

    Raises
    ------
    UserError
        No such expression, or images that it does not fit: without a group they could stand on any side of the split.

    Examples
    --------
    >>> images = [ImageRecord("a", "a.png", 1, 1, source=f"plate1/{well}_{k}.tif") for well in ("A01", "B02") for k in (1, 2)]
    >>> [image.group for image in name_groups(images, r"(?P<group>[A-H]\\d\\d)_")]
    ['A01', 'A01', 'B02', 'B02']
    """
    if pattern is None:
        return list(items)
    rule = group_rule(pattern)
    named, without = [], []
    for item in items:
        found = next(filter(None, map(rule.search, _searched(item))), None)
        if found is None or not found["group"]:
            without.append(item)
        else:
            named.append(replace(item, group=found["group"]))
    if without:
        searched = " or ".join(f"'{readable(text)}'" for text in _searched(without[0]))
        problem = f"convert.group_from {pattern!r} fits {len(named)} of {len(items)} images, not e.g. {searched}"
        raise_or_collect(
            UserError(problem, "write an expression that fits every image, or null to take the folders as groups")
        )
    return named if not without else list(items)


def _searched(item: Any) -> list[str]:
    """Return where the group of an image is looked for, in this order."""
    sheet = LISTED.match(item.source)
    texts = (name_in_source(item.source), sheet[1] if sheet else "", item.image_id)
    return list(dict.fromkeys(filter(None, texts)))


def name_in_source(source: str) -> str:
    """Return the path below the data folder in an image's source: without the file that lists it and its number there.

    Examples
    --------
    >>> name_in_source("sets/train.json image 7: plate1/a.tif"), name_in_source("plate1/a: b.tif")
    ('plate1/a.tif', 'plate1/a: b.tif')
    """
    return LISTED.sub("", source)


def group_rule(pattern: str) -> re.Pattern:
    """Return the compiled expression of ``convert.group_from``, checked.

    Raises
    ------
    UserError
        No regular expression, or none with a group called "group".
    """
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"convert.group_from is {pattern!r}: {error}", "give a regular expression, e.g. (?P<group>[A-H][0-9][0-9])"
        ) from None
    if "group" not in rule.groupindex:
        raise UserError(
            f"convert.group_from is {pattern!r}, which names no group",
            "mark the part that is the group: (?P<group>[A-H][0-9][0-9])",
        )
    return rule


# ---- splits --------------------------------------------------------------------------------------------------------
def split_records(
    records: Sequence[ImageRecord], fractions: dict[str, float], seed: int, by: str = "image", stratify: bool = True
) -> list[ImageRecord]:
    """Assign every record to a split, whole images or whole groups at a time, each by its own name alone.

    An image's place follows from its name (see `place_of`), so that one image more moves no other image: what was a test
    image in the last round is one in the next. Only in a set so small that a split would stay empty is an image moved there,
    the one whose place is nearest.

    Parameters
    ----------
    fractions : dict
        E.g. ``{"train": 0.6, "val": 0.2, "test": 0.2}``; sums to 1. A split with a fraction above 0 gets at least one unit
        (of every stratum) while there are enough, the largest fractions first.
    by : {"image", "group"}
        Images without a group are a group of their own each.
    stratify : bool
        Each cell type gets a unit in every split while it has enough.

    Returns
    -------
    list of ImageRecord
        In the order given; who goes where does not depend on that order.

    Raises
    ------
    UserError
        An unknown split, a negative fraction, fractions that do not sum to 1, or another `by`.

    Examples
    --------
    >>> images = [ImageRecord(f"a_{k:02d}", f"{k}.png", 8, 8) for k in range(10)]
    >>> [r.split for r in split_records(images, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=0)].count("train")
    6
    """
    sums = abs(sum(fractions.values()) - 1) <= 1e-6 and min(fractions.values()) >= 0
    if not sums or not set(fractions) <= set(SPLITS):
        raise UserError(f"split fractions are {fractions}", "give train, val and test, summing to 1")
    if by not in ("image", "group"):
        raise UserError(f"split_by is '{by}'", "split by 'image' or by 'group'")
    units = _units(records, by)
    places = {unit: place_of(unit, seed) for unit in sorted(units)}
    split_of = {unit: split_by_name(unit, fractions, seed) for unit in places}
    kinds = {
        unit: sorted({records[k].cell_type for k in places}) if stratify else ("",) for unit, places in units.items()
    }
    strata = groupby([(kind, unit) for unit in sorted(units) for kind in kinds[unit]], 0, 1)
    fill_empty_splits(split_of, places, strata, fractions)
    return [
        replace(records[k], split=name)
        for k, name in sorted((k, split_of[unit]) for unit, positions in units.items() for k in positions)
    ]


def place_of(name: str, seed: int = 0) -> float:
    """Return a place in [0, 1) that follows from a name and a seed alone.

    The text of the name gives a random place (sha256), each number in it a further step: numbered names spread evenly, for
    multiples of an irrational number do (Weyl 1916, Math. Ann. 77), and the golden ratio's best of all. From 256 on each 32
    numbers begin at a random place of their own: numbers far apart (every 55th frame) are no even steps of that ratio.

    Examples
    --------
    >>> round((place_of("field_8") - place_of("field_7")) % 1, 6)
    0.618034
    """
    name = unicodedata.normalize("NFC", name)
    numbers = [int(text) for text in re.findall("[0-9]+", name)]
    blocks = iter("#" if number < 256 else f"#{number // 32}" for number in numbers)
    text = re.sub("[0-9]+", lambda _: next(blocks), name)
    place = int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogateescape")).digest()[:8], "big")
    for k, number in enumerate(reversed(numbers)):
        place += (number if number < 256 else number % 32) * STEPS[k % len(STEPS)]
    return place % 2**64 / 2**64


def split_by_name(name: str, fractions: dict[str, float], seed: int = 0) -> str:
    """Return the split that an image (a group) of that name has in a set large enough to fill all splits."""
    return _part_at(place_of(name, seed), fractions)


def _part_at(place: float, fractions: dict[str, float]) -> str:
    """Return the split whose share of [0, 1) holds `place`."""
    wanted = [(name, share) for name, share in fractions.items() if share > 0]
    end = 0.0
    for name, share in wanted:
        end += share
        if place < end:
            return name
    return wanted[-1][0]


def fill_empty_splits(
    split_of: dict[str, str], places: dict[str, float], strata: dict[str, list[str]], fractions: dict[str, float]
) -> None:
    """Move a unit into each split in which a stratum has none, from the split where it has most; change `split_of`."""
    parts = sorted((name for name in fractions if fractions[name] > 0), key=lambda name: -fractions[name])
    middles, begin = {}, 0.0
    for name, share in fractions.items():
        middles[name], begin = begin + share / 2, begin + share
    for units in [strata[kind] for kind in sorted(strata)] + [sorted(places)]:
        for name in parts[: len(units)]:
            members = {part: [unit for unit in units if split_of[unit] == part] for part in parts}
            most = max(parts, key=lambda part: (len(members[part]), -fractions[part]))
            if members[name]:
                continue
            spare = [unit for unit in members[most] if _can_leave(unit, most, split_of, strata)] or members[most]
            split_of[min(spare, key=lambda unit: (abs(places[unit] - middles[name]), unit))] = name


def _can_leave(unit: str, part: str, split_of: dict[str, str], strata: dict[str, list[str]]) -> bool:
    """Tell whether every stratum of `unit` keeps another unit in `part`."""
    mine = [units for units in strata.values() if unit in units]
    return all(any(other != unit and split_of[other] == part for other in units) for units in mine)


def _units(records: Sequence[ImageRecord], by: str) -> dict[str, list[int]]:
    """Return what stays in one split, by name: the positions of the images of a group, or of one image."""
    names = [record.group if by == "group" and record.group else record.image_id for record in records]
    return groupby(enumerate(names), 1, 0)


def _apportion(units: dict[str, list[int]], kinds: Sequence[str], fractions: Sequence[float], rng) -> dict[str, int]:
    """Give whole units out to parts, so that every kind comes near its share in each; return unit -> part.

    Units of about the same size (within a factor of two) come in random order, larger ones first. Each goes where the
    squared distance of all kinds from their shares grows least; a rare kind counts as much as a frequent one. A part that
    got nothing then takes the smallest unit of the part that has most units.
    """
    import numpy as np

    columns = {kind: k for k, kind in enumerate(sorted(set(kinds)))}
    holds = {unit: np.bincount([columns[kinds[k]] for k in units[unit]], minlength=len(columns)) for unit in units}
    names = [sorted(units)[k] for k in rng.permutation(len(units))]
    names.sort(key=lambda unit: -int(math.log2(len(units[unit]))))
    total = np.sum([holds[unit] for unit in names], axis=0) if names else np.zeros(len(columns))
    wanted = np.outer(fractions, total)
    given, place = np.zeros_like(wanted), {}
    open_parts = [part for part, fraction in enumerate(fractions) if fraction > 0]
    for unit in names:
        lack = wanted - given
        grows = ((lack - holds[unit]) ** 2 - lack**2) / np.maximum(total, 1) ** 2
        cost = grows.sum(axis=1) + 1e-6 * (given.sum(axis=1) / np.maximum(wanted.sum(axis=1), 1e-9))
        place[unit] = min(open_parts, key=lambda part: (round(float(cost[part]), 12), part))
        given[place[unit]] += holds[unit]
    _fill_empty(place, units, open_parts)
    return place


def _fill_empty(place: dict[str, int], units: dict[str, list[int]], parts: Sequence[int]) -> None:
    """Move the smallest unit of the part with most units into each part without, while there is one to spare."""
    for part in parts:
        members = {other: [unit for unit in place if place[unit] == other] for other in parts}
        most = max(parts, key=lambda other: len(members[other]))
        if not members[part] and len(members[most]) > 1:
            place[min(members[most], key=lambda unit: (len(units[unit]), unit))] = part


def k_folds(
    records: Sequence[ImageRecord], k: int, seed: int, by: str = "image", stratify: str | None = "cell_type"
) -> list[list[ImageRecord]]:
    """Deal the images out to k folds: every image is in one fold, no group is in two.

    Parameters
    ----------
    k : int
        Number of folds, 2 or more.
    seed : int
        The same seed gives the same folds, whatever the order of the records.
    by : {"image", "group"}
        What stays in one fold. Images without a group are a group of their own each.
    stratify : str or None
        Field whose values are spread evenly: each fold has about 1 / k of every cell type. None looks at numbers only.

    Returns
    -------
    list of list of ImageRecord
        k folds, each in the order given. `hold_out` makes a split of one of them.

    Raises
    ------
    UserError
        k is below 2, or there are fewer images or groups than folds; another `by`, or no such field.

    Examples
    --------
    >>> images = [ImageRecord(str(n), f"{n}.png", 1, 1, cell_type="AB"[n % 2], group=f"well {n // 2}") for n in range(8)]
    >>> [[image.group for image in fold] for fold in k_folds(images, 4, seed=0, by="group")][0]
    ['well 2', 'well 2']
    """
    import numpy as np

    if by not in ("image", "group"):
        raise UserError(f"folds by '{by}'", "fold by 'image' or by 'group'")
    if stratify is not None and stratify not in (field.name for field in fields(ImageRecord)):
        raise UserError(f"folds cannot be stratified by '{stratify}'", "name a column of records.csv, e.g. cell_type")
    units = _units(records, by)
    if not 2 <= k <= len(units):
        raise UserError(
            f"{k} folds of {counted(len(units), by)}", f"ask for 2 folds or more, and no more than there are {by}s"
        )
    kinds = ["" if stratify is None else str(getattr(record, stratify)) for record in records]
    place = _apportion(units, kinds, [1 / k] * k, np.random.default_rng(seed))
    fold_of = {position: place[unit] for unit, positions in units.items() for position in positions}
    return [[record for position, record in enumerate(records) if fold_of[position] == fold] for fold in range(k)]


def hold_out(folds: Sequence[Sequence[ImageRecord]], held: int) -> list[ImageRecord]:
    """Return all records of the folds, fold `held` (from 0) as validation and the others as training images.

    Raises
    ------
    UserError
        There is no such fold.
    """
    if not 0 <= held < len(folds):
        raise UserError(f"fold {held} of {len(folds)}", f"folds are 0 to {len(folds) - 1}")
    return [
        replace(record, split="val" if number == held else "train")
        for number, fold in enumerate(folds)
        for record in fold
    ]


def groups_across_splits(records: Iterable[Any]) -> list[str]:
    """Return, sorted, the groups with images in more than one split; anything with a `group` and a `split` will do."""
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.group and record.split:
            splits[record.group].add(record.split)
    return sorted(group for group, names in splits.items() if len(names) > 1)


def check_groups(records: Sequence[ImageRecord]) -> None:
    """Refuse a split that has images of one group on both sides.

    Raises
    ------
    UserError
        Naming the groups.
    """
    leaking = groups_across_splits(records)
    if leaking:
        raise UserError(f"group {', '.join(leaking[:5])} is in more than one split", "set convert.split_by: group")
