"""Which images of a source, and which split each: its own, or drawn by whole groups; whether they are enough."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.names import check_ids, image_id_of, series_of, stem_of
from cellkit.cells.records import MIXED, SPLIT_TITLES, ImageRecord
from cellkit.cells.splits import name_groups, name_in_source, split_by_name, split_records
from cellkit.config.sections import Config, ConvertConfig
from cellkit.errors import UserError, counted, raise_or_collect
from cellkit.log import LOG
from cellkit.sources.listing import UNUSED, SourceImage, is_usable, useless_alone


# ---- which images, which split -------------------------------------------------------------------------------------
def limit_images(items: Sequence[SourceImage], max_images: int | None) -> list[SourceImage]:
    """Keep at most `max_images` per cell type, each chosen by its own name alone, in the order given.

    So an image that is added takes the place of one other, or of none. Each of the source's own splits keeps its share, and
    at least one image while there are enough; what they leave out goes. Images without labels among others with are counted by
    themselves: which of the others stay does not depend on whether these are kept.
    Test images that the source itself calls so, and that have no truth while others have, all stay: each needs a prediction.
    """
    if max_images is None:
        return list(items)
    some_truth = not all(item.bare for item in items)
    kept = {position for position, item in enumerate(items) if some_truth and item.bare and item.is_own_test}
    if kept and len(items) > max_images:
        LOG.warning(
            f"convert.max_images: {counted(len(kept), 'test image')} without truth kept, as each needs a prediction"
        )
    by_type: dict[tuple[str, bool], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, item in enumerate(items):
        if item.split != UNUSED and position not in kept:
            by_type[item.cell_type, item.bare][item.split].append(position)
    for splits in by_type.values():
        counts = _shares_of([len(positions) for positions in splits.values()], max_images)
        for positions, count in zip(splits.values(), counts, strict=True):
            kept.update(sorted(positions, key=lambda position: _rank_of(items[position].image_id))[:count])
    return [item for position, item in enumerate(items) if position in kept]


def _rank_of(image_id: str) -> bytes:
    """Return what orders images at random by their names; it has nothing to do with the places that split them."""
    return hashlib.sha256(unicodedata.normalize("NFC", image_id).encode("utf-8", "surrogateescape")).digest()


def _shares_of(sizes: Sequence[int], most: int) -> list[int]:
    """Return how many of each size make `most` in all, in proportion, at least 1 each while `most` allows it.

    Examples
    --------
    >>> _shares_of([60, 30, 2], 10), _shares_of([2, 1], 5)
    ([6, 3, 1], [2, 1])
    """
    if sum(sizes) <= most:
        return list(sizes)
    exact = [most * size / sum(sizes) for size in sizes]
    counts = [max(1, int(share)) for share in exact]
    while sum(counts) != most:
        step = 1 if sum(counts) < most else -1
        place = max(range(len(sizes)), key=lambda k: (step < 0) * (counts[k] > 1) * 1e9 + step * (exact[k] - counts[k]))
        counts[place] += step
    return counts


def draw_split(items: Sequence[SourceImage], fractions: dict, config: ConvertConfig) -> dict[str, SourceImage]:
    """Return the items by id, each with a split drawn by `splits.split_records`.

    The frames of one file or series (`SourceImage.unit`) get one split; by group, those of one group. Where
    ``convert.group_from`` tells frames of one file apart, each is drawn by itself. Images that cannot be used fill no split that
    would be empty without them: they go with their group, else to training, and are skipped.
    """
    usable, drawn = list(items), list[ImageRecord]()
    while usable:
        bare = [
            ImageRecord(i.image_id, i.source, 1, 1, cell_type=i.cell_type, group=unit_of_item(i, config))
            for i in usable
        ]
        drawn = split_records(bare, fractions, config.seed, by="group")
        useless = useless_alone(usable, drawn)
        if not useless or len(useless) == len(usable):
            break
        usable = [item for item in usable if item.image_id not in useless]
    _warn_uneven(drawn, fractions, config.seed)
    of_image = {record.image_id: record.split for record in drawn}
    of_unit = {record.group: record.split for record in drawn if record.group}
    splits = [of_image.get(i.image_id) or of_unit.get(unit_of_item(i, config), "train") for i in items]
    return {item.image_id: replace(item, split=split) for item, split in zip(items, splits, strict=True)}


def _warn_uneven(drawn: Sequence[ImageRecord], fractions: dict, seed: int) -> None:
    """Say which images fill a split that would stay empty (they may move back), and shares far from those wanted."""
    units = {record.group or record.image_id: record.split for record in drawn}
    filling = sorted(unit for unit, split in units.items() if split != split_by_name(unit, fractions, seed))
    counts = {name: sum(record.split == name for record in drawn) for name in fractions}
    if filling and all(
        counts[name] for name, share in fractions.items() if share
    ):  # else the set is refused as too small
        some = ", ".join(f"{unit} to {units[unit]}" for unit in filling[:2]) + (", ..." if len(filling) > 2 else "")
        LOG.warning(
            f"few images: {len(filling)} moved, so that every split has images of every class ({some}); more images may move "
            "them back"
        )
    wanted = {name: len(drawn) * share for name, share in fractions.items()}
    if len(drawn) >= 10 and any(abs(counts[name] - wanted[name]) > max(2.5, wanted[name] / 2) for name in fractions):
        counted = " / ".join(f"{counts[name]} {name}" for name in fractions)
        wanted_counts = " / ".join(f"{wanted[name]:.0f}" for name in fractions)
        LOG.warning(
            f"the split by name is {counted} (wanted: {wanted_counts}); another convert.seed draws another split"
        )


def unit_of_item(item: SourceImage, config: ConvertConfig) -> str:
    """Return what an image is kept together with in a split: its group, or the file or series that it is a frame of; else ""."""
    if config.split_by == "group" and item.group:
        return item.group
    return f"{item.unit} {item.group}" if item.unit and config.group_from else item.unit


def _check_filled(items: Sequence[SourceImage], units: Sequence[str], fractions: dict) -> None:
    """Refuse a split without training or validation images for want of files, not of frames; say it of test images."""
    missing = [name for name, share in fractions.items() if share and not any(item.split == name for item in items)]
    largest = Counter(unit for unit in units if unit).most_common(1)
    if (
        not missing or not largest or largest[0][1] < 2 or not all(map(is_usable, items))
    ):  # which cannot be is said, and why
        return
    count = len(set(filter(None, units))) + units.count("")
    units_of = counted(count, "file, series or group", "files, series or groups")
    problem = f"{len(units)} images are frames of {units_of} (e.g. {largest[0][0]}), each kept together: "
    problem += f"none is left for {' and '.join(missing)}"
    remedy = (
        "set convert.group_from: (?P<group>.*) to split frame by frame (scores will then be too high), or add files"
    )
    if missing == ["test"]:
        LOG.warning(f"{problem}; {remedy}")
    else:
        raise_or_collect(UserError(problem, remedy))


def name_series(items: Sequence[SourceImage]) -> list[SourceImage]:
    """Name what each image is a frame of: its file, or by their names the files of one series in one folder.

    That is also the group of frames that have no other.
    """
    keys = [_series_key(item) or item.unit for item in items]
    count = Counter(key for key in keys if key)
    return [
        replace(item, unit=key, group=item.group or (key if count[key] > 1 else "")) if key else item
        for item, key in zip(items, keys, strict=True)
    ]


def _series_key(item: SourceImage) -> str:
    shared = series_of(stem_of(item.files[0])) if item.files else None
    folder = name_in_source(item.source).rpartition("/")[0]  # below the data folder: its place on a disk says nothing
    return "" if shared is None else image_id_of(f"{folder}/{shared or 'series'}.x".lstrip("/"))


def split_off(items: list[SourceImage], config: ConvertConfig) -> list[SourceImage]:
    """Give shares of the training images to validation and test, where the source's own split has no images for them.

    The shares are those of ``config.split``: of all training images, whatever other splits there are.
    """
    splits = {item.split for item in items}
    shares = {name: dict(config.split).get(name, 0) for name in ("val", "test") if name not in splits}
    shares = {name: share for name, share in shares.items() if share}
    if "train" not in splits or not shares:
        return items
    train = [item for item in items if item.split == "train"]
    drawn = draw_split(train, {"train": 1 - sum(shares.values()), **shares}, config)
    return [drawn.get(item.image_id, item) for item in items]


def assign_splits(
    items: Sequence[SourceImage],
    config: ConvertConfig,
    mixed_is_test: bool = False,
    fill_split: bool = False,
    left: Iterable[SourceImage] = (),
) -> Iterator[SourceImage]:
    """Check ids, keep `config.max_images` of each cell type, and give a split to those the source gave none.

    Groups come from the names where ``config.group_from`` says so. With `mixed_is_test` mixed images without a split of the
    source become test images, and with them, by group, all of their group: nothing can be trained on them. With `fill_split` the
    splits that the source's own lacks are split off its training images, see `split_off`. `left` follows as it is: what fits no
    image, see `cellkit.sources.leftovers`.

    Raises
    ------
    UserError
        Two images of one id; the split goes by group, and no image has one, or the source's own split divides a group; or
        the frames of too few files for a split.
    """
    check_ids((item.image_id, item.source) for item in items)
    items = _without_common_folder(name_groups(name_series(items), config.group_from), config)
    if config.split_by == "group" and items and not any(item.group for item in items):
        raise_or_collect(
            UserError(
                "convert.split_by is group, and no image has a group",
                "set convert.group_from to an expression that finds it in the names, such as (?P<group>[A-H][0-9][0-9]), put "
                "the images into a folder for each plate or donor, or set convert.split_by: image",
            )
        )
    if not config.published_split:  # what has no truth can be a test image only; what is listed again is in no split
        kept = [(item.bare and item.split == "test") or (item.is_refused and item.split == UNUSED) for item in items]
        items = [item if keep else replace(item, split="") for item, keep in zip(items, kept, strict=True)]
    items = [replace(item, is_own_test=item.split == "test") for item in items]
    if fill_split:
        items = split_off(items, config)
    if mixed_is_test:
        items = _with_mixed_as_test(items, config)
    items = limit_images(items, config.max_images)
    without = [item for item in items if not item.split]
    drawn = draw_splits(items, without, config)
    some_truth = not all(item.bare for item in items)  # a test set without any is no split that the others lack
    told = [item for item in items if item.split not in ("", UNUSED) and item.cell_type != MIXED]
    told = [item for item in told if not (some_truth and item.bare and item.is_own_test)]
    if without and told:
        LOG.warning(
            f"the split of {len(without)} of {counted(len(items), 'image')} is drawn: their names tell none, others' do "
            f"(e.g. {without[0].source}); rename their folder or list them if the source has a split for them"
        )
    done = [drawn.get(item.image_id, item) for item in items]
    if len(without) == len(items):
        _check_filled(done, [unit_of_item(item, config) for item in items], dict(config.split))
    if config.split_by == "group":
        _refuse_groups_across_splits(done)
    own = {item.split for item in items}
    if len(own) == 1 and (only := own.pop()) not in ("", "train", UNUSED) and not all(item.bare for item in items):
        LOG.warning(
            f"the source's own names make all {len(items)} images {SPLIT_TITLES[only]} images; "
            "convert.published_split: false draws a split"
        )
    yield from (replace(item, split="") if item.split == UNUSED else item for item in done)
    yield from left


def _with_mixed_as_test(items: list[SourceImage], config: ConvertConfig) -> list[SourceImage]:
    """Make mixed images without a split test images, and where the split goes by group, what shares a group with them."""
    of_mixed = {
        item.group for item in items if item.cell_type == MIXED and not item.split and config.split_by == "group"
    } - {""}
    done = [
        replace(item, split="test") if not item.split and (item.cell_type == MIXED or item.group in of_mixed) else item
        for item in items
    ]
    moved = sum(new.split != old.split and old.cell_type != MIXED for new, old in zip(done, items, strict=True))
    if moved and not any(item.split in ("", "train") for item in done):
        raise_or_collect(
            UserError(
                f"convert.split_by is group, and every group has mixed images (e.g. {min(of_mixed)}), which are test images: no "
                "group is left to train on",
                "take the mixed images of some groups out, or set convert.split_by: image",
            )
        )
        return [
            replace(old, split="test", group="") if old.cell_type == MIXED and not old.split else old for old in items
        ]
    if moved:
        LOG.warning(
            f"{counted(moved, 'image is a test image', 'images are test images')}, as mixed images of the same group are (e.g. "
            f"{min(of_mixed)})"
        )
    return done


def _without_common_folder(items: list[SourceImage], config: ConvertConfig) -> list[SourceImage]:
    """Drop a group that all images share because they lie in one folder: it tells none of them from another."""
    common = len({item.group for item in items}) == 1 and not any(item.unit for item in items)
    is_wanted = config.group_from or config.split_by == "group"
    return [replace(item, group="") for item in items] if common and not is_wanted else items


def draw_splits(
    items: Sequence[SourceImage], without: Sequence[SourceImage], config: ConvertConfig
) -> dict[str, SourceImage]:
    """Return the items `without` a split by id, each with one; `items` are all.

    Images without labels that are kept among others with go with their file, series or group, else where their names alone put
    them: the others are drawn as they are where these are left out.
    """
    fractions, kept = dict(config.split), config.unlabelled == "keep" and not all(item.bare for item in items)
    labelled = [item for item in without if not (kept and item.bare)]
    drawn = draw_split(labelled, fractions, config) if labelled else {}
    split_of = {
        unit_of_item(one, config): one.split for one in (*items, *drawn.values()) if one.split not in ("", UNUSED)
    }
    for item in without:
        if item.image_id not in drawn:
            unit = unit_of_item(item, config)
            own = split_of.get(unit) if unit else None
            split = own or split_by_name(unit or item.image_id, fractions, config.seed)
            drawn[item.image_id] = replace(item, split=split)
    return drawn


def check_enough(images: Sequence, settings: Config, of: str = "images") -> None:
    """Refuse a set too small for what the notebooks do with it: train, report, and tell the classes apart.

    One training image is enough to train and to judge on (`cellkit.models.gate.regime_of`). That there is no validation or no
    test image is said, since less is told of the models then.

    Parameters
    ----------
    images : sequence of SourceImage or ImageRecord
        Anything with a split and a cell_type.
    settings : Config
        The whole configuration.
    of : str
        What the images are called.

    Raises
    ------
    UserError
        What is missing, and which key or how many images mend it.
    """
    count = {split: sum(image.split == split for image in images) for split in ("train", "val", "test")}
    report, chooses = settings.evaluate.report_split, settings.evaluate.choose_split
    problems, mend = [], []
    missing = [split for split in dict.fromkeys(("train", "val", report)) if not count[split]]
    if count["train"] and (report == "test" or count[report]):
        if missing:
            LOG.warning(_less_told(missing))
        missing = []
    if missing:
        problems.append(f"no {' and no '.join(f'{SPLIT_TITLES[split]} image' for split in missing)}")
        mend.append(
            f"give {2 if report == 'val' else 3} images or more, better 3 per cell line (convert.split says which share "
            "goes where; of a source with a split of its own each part needs one)"
        )
    unused = sum(not image.split and not getattr(image, "is_refused", False) for image in images)
    if missing and unused:
        mend[0] = (
            f"{counted(unused, 'image is', 'images are')} in no split of the source: list them too (train.txt, val.txt), "
        )
        mend[0] += "or set convert.published_split: false to draw a split"
    elif missing:
        mend[0] += ", or only predict: cellkit predict starter IMAGES -o OUT.json"
    lines = {image.cell_type for image in images if image.split == "train"}
    without = [name for name in settings.classes if name not in lines]
    if settings.coco.class_from == "cell_type" and without and count["train"]:
        problems.append(f"no training image is of the class {' or '.join(without)}")
        mend.append(
            "give more images of it in a folder of its name, or take it out of classes, or set coco.class_from: truth where "
            "the labels name the classes"
        )
    if report == chooses == "val" and count["test"]:
        problems.append(
            "evaluate.report_split is val, whose images also choose the model, although there are test images"
        )
        mend.append("set evaluate.report_split: test")
    if problems:
        held = f"{count['train']} for training, {count['val']} for validation, {count['test']} for test"
        raise_or_collect(UserError(f"{len(images)} {of} ({held}): {'; '.join(problems)}", "; ".join(mend)))


def _less_told(missing: Sequence[str]) -> str:
    """Say what is not told where validation or test images are missing."""
    what = {
        "val": "no validation image: training images judge the adaptation, each held back in turn, and no model is chosen by "
        "its score",
        "test": "no test image: no score is reported and nothing is handed in",
    }
    told = "; ".join(what[split] for split in missing)
    return f"{told}; give 3 images or more and a share in convert.split, where that is wanted"


def check_left(images: CellDataset, settings: Config) -> None:
    """Refuse what is left of a set once the flagged images are out: too small, or with a class that no cell has.

    Parameters
    ----------
    images : CellDataset
        All images; those out of the splits count for nothing.
    settings : Config

    Raises
    ------
    UserError
        As `check_enough` and `check_labelled` do.
    """
    left = [record for record in images.records if record.split]
    check_enough(left, settings, "images are left (the others are named above, with the key that keeps them)")
    labelled = images.with_truth()
    check_labelled(labelled.records, labelled.instances, settings)


def check_labelled(
    records: Sequence[ImageRecord], instances: Sequence[Instances | None] | None, settings: Config
) -> None:
    """Refuse a set whose labels have no training cell of one of the classes, as notebook 04 would after the training.

    Parameters
    ----------
    records : sequence of ImageRecord
    instances : sequence of Instances or None
        Of each record; None where there are no labels, which says nothing.
    settings : Config

    Raises
    ------
    UserError
        Naming the classes without a cell.
    """
    if instances is None or settings.label.use != "truth":
        return
    by_line = settings.coco.class_from == "cell_type"
    least = max(settings.label.min_area_px, settings.coco.min_area_px)
    found: set[str] = set()
    for record, cells in zip(records, instances, strict=True):
        if record.split == "train" and cells is not None and not cells.boxes_only:
            seen = cells.class_ids[cells.areas_px >= least]
            named = {settings.classes[k - 1] for k in seen.tolist() if 0 < k <= len(settings.classes)}
            found |= ({record.cell_type} if len(seen) else set()) if by_line else named
    without = [name for name in settings.classes if name not in found]
    if without and any(cells is not None and not cells.boxes_only for cells in instances):
        how = "the line of its image (coco.class_from: cell_type)" if by_line else "the labels (coco.class_from: truth)"
        raise_or_collect(
            UserError(
                f"no training image has a labelled cell of {', '.join(without)}; the class of a cell is {how}",
                "label cells of it in training images, change convert.split or convert.seed, or take it out of classes",
            )
        )


def _refuse_groups_across_splits(items: Sequence[SourceImage]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.group and item.split != UNUSED:
            splits[item.group].add(item.split)
    across = sorted(group for group, names in splits.items() if len(names) > 1)
    if across:
        first = f"{across[0]} ({', '.join(sorted(splits[across[0]]))})"
        raise_or_collect(
            UserError(
                f"{counted(len(across), 'group is', 'groups are')} in more than one split, e.g. {first}",
                "set convert.published_split: false to draw a split by group, or convert.split_by: image to keep the source's",
            )
        )
