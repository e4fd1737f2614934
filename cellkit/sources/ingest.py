"""From a data set to the images of a run.

A data set is a file ``cellkit/sources/<kind>.py``, found by listing (`cellkit.modules`), with

* ``read(root, config) -> Iterator[SourceImage]``: what is known of each image before it is opened, and ``load()`` for its
  pixels and truth. `config` is the ``convert`` section: channels, percentiles, classes and class_names, split, ...
* ``detect(root) -> bool``, optional: whether a folder is such a set. Files are tried by their ``ORDER``, 0 where there is none.
* ``classes(root) -> set of str``, optional: the classes that it names.

What they share is in `cellkit.sources.listing`. `convert_images` turns every image into records, pictures and instances; an
image that cannot be used is skipped with its reason, and the rest goes on.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.dataset import CellDataset, known_in_part
from cellkit.cells.instances import Instances
from cellkit.cells.names import check_ids
from cellkit.cells.records import ImageRecord
from cellkit.cells.resize import resize_image, resize_instances, resized_shape
from cellkit.cells.splits import groups_across_splits
from cellkit.config.sections import Config, ConvertConfig
from cellkit.errors import Quarantined, UserError, counted, plain_reason, readable
from cellkit.files import content_of, sync, write_table
from cellkit.log import LOG
from cellkit.microscope.batch import log_notes, measure_light
from cellkit.microscope.convert import Level, level_row, scaled_by
from cellkit.microscope.journal import JOURNAL, Journal, png_parts, still_there, without_remains, write_parts
from cellkit.modules import load, load_all, optional
from cellkit.parallel import map_items
from cellkit.sources.assign_folds import hold_out_fold
from cellkit.sources.assign_splits import check_enough
from cellkit.sources.listing import Loaded, SourceImage, converted
from cellkit.sources.loading import light_of_item, noted, without_empty
from cellkit.sources.pseudo_labels import pseudo_folder, pseudo_images
from cellkit.sources.source_tables import asked_ids, list_originals
from cellkit.sources.unlabelled import NO_TRUTH, makes_difference, refuse_untaught, with_truth
from cellkit.under_way import note_no_effect


# ---- which layout ----------------------------------------------------------------------------------------------------
def detect_kind(root: str | Path) -> str:
    """Return the layout of a folder by what is in it; "folder" where nothing special is.

    Raises
    ------
    UserError
        No such folder.
    """
    if not Path(root).is_dir():
        raise UserError(f"no folder at {root}", "give a folder of images")
    known = ((name, optional(module, "detect")) for name, module in load_all("source").items())
    return next((name for name, detect in known if detect and detect(Path(root))), "folder")


# ---- all of it -----------------------------------------------------------------------------------------------------
class ConvertedImages(NamedTuple):
    """What notebook 01 makes of a source.

    images : CellDataset, in the order of the source, records with quality flags; ``made_by`` is "truth" where an image came
    with labels, else "" (a test image to predict, or any image of a source without labels)
    quarantined : list of Quarantined, what was skipped and why
    conversion : list of dict, one per image and colour: image_id, source, colour, channel, low, high, clipped_fraction,
    scaled_by
    quality : list of dict, one per image: image_id, what was measured, flags
    thresholds : dict, the limits behind the flags
    originals : list of dict, one per image of the source and per id of its sample_submission.csv: see `list_originals`
    """

    images: CellDataset
    quarantined: list[Quarantined]
    conversion: list[dict]
    quality: list[dict]
    thresholds: dict
    originals: list[dict]


def convert_images(
    config: ConvertConfig, root: str | Path, out: str | Path, settings: Config | None = None
) -> ConvertedImages:
    """Convert every image of a source into a run folder.

    Writes ``out/images/<image_id>.png`` (each atomically), ``out/conversion.csv``, ``out/quality.csv`` and
    ``out/originals.csv``. After a kill, images that were done are kept if nothing in `root` and in the config has changed
    and they are still what was written. What could not be used is named at once, in the log.

    Parameters
    ----------
    config : ConvertConfig
    root : path
        The folder that holds the source, see `locate_source`.
    out : path
        The run folder, or ``stage.root`` which stands for it.
    settings : Config, optional
        The whole configuration: a set too small for it is refused before anything is converted (`assign_splits.check_enough`).
        The stage under way notes whether ``unlabelled`` makes a difference.

    Returns
    -------
    ConvertedImages
        The same for any `config.workers`.

    Raises
    ------
    UserError
        No such folder, no image in it, two images of one id, an unknown class, too few images, none that could be used, or a
        teacher whose images would be left out.
    """
    root, out = Path(root), Path(out)
    items = list_images(config, root)
    if settings is not None:
        refuse_untaught(items, settings)
        try:
            check_enough([item for item in items if not item.is_left], settings)
        except UserError:
            _name_unusable(_unusable_by_name(items), items)  # perhaps why they are too few
            raise
    limits = None
    if config.percentiles_of == "batch":  # of training images: test images decide nothing
        taught = [i for i in items if i.split == "train" and not i.is_pseudo] or [i for i in items if not i.is_left]
        limits = measure_light(taught, config.conversion, config.workers, light_of_item, attrgetter("source"))
    more = [content_of(pseudo_folder(config))] if config.pseudo else []
    made_from = [config.fingerprint(), content_of(root), limits, *more]
    with Journal(out / JOURNAL, made_from) as journal, without_remains(out / "images"):
        work = partial(_convert_one, root=root, folder=out / "images", scale=config.scale, limits=limits)
        known = [(item, journal.done.get(item.image_id)) for item in items]
        note = lambda item, entry: entry == item[1] or journal.add(item[0].image_id, entry)  # noqa: E731
        entries, quarantined = map_items(
            work, known, "convert", config.workers, name=lambda item: readable(item[0].source), then=note
        )
    quarantined = [one.in_one_line() for one in quarantined]
    left = {
        text: item.source for item, entry in zip(items, entries, strict=True) if entry for text in entry["left_out"]
    }
    done = [_from_entry(entry) for entry in entries if entry is not None]
    if settings is not None:
        note_no_effect(*([] if makes_difference(items, done) else ["unlabelled"]))
    done, bare = with_truth(items, done, config)
    quarantined += bare
    _name_unusable(quarantined, items)
    kept = sum(result[1] is None for result in done)
    if config.unlabelled == "keep" and 0 < kept < len(done):
        LOG.info(f"{kept} of {counted(len(done), 'image')} came without labels: 02 proposes for them")
    refuse_none(done, items, quarantined, root)
    warn_one_channel([result[0] for result in done], config)
    warn_lacking_classes([result[0] for result in done], config, [item for item in items if not item.is_left])
    sync(out / result[0].path for result in done)
    images = [item for item in items if not item.is_left and not item.is_pseudo]
    originals = list_originals(images, done, quarantined, asked_ids(root, images))
    for text, source in left.items():  # their images are used; what else lies in the file is not
        LOG.warning(f"not read: {text}")
        quarantined.append(Quarantined(source, f"not read: {text}"))
    pseudo = {item.image_id for item in items if item.is_pseudo}
    converted = _converted(out, done, quarantined, originals, config, pseudo)
    journal.forget()
    return converted


def warn_one_channel(records: Sequence[ImageRecord], config: ConvertConfig) -> None:
    """Say in the log in how many images nuclei and cytoplasm are one channel, although both are named."""
    if config.channels.nuclei is None or config.channels.cytoplasm is None:
        return
    maps = [dict(part.partition("=")[::2] for part in record.channels.split(";")) for record in records]
    same = [one["blue"] for one in maps if one.get("blue") and one.get("blue") == one.get("green")]
    if same:
        LOG.warning(
            f"nuclei and cytoplasm are one channel ({same[0]}) in {len(same)} of {counted(len(records), 'image')}; name the "
            "channel of each in convert.channels, or only one of them"
        )


def warn_lacking_classes(
    items: Sequence[SourceImage | ImageRecord], config: ConvertConfig, among: Sequence[SourceImage] = ()
) -> None:
    """Say in the log which class no validation or no test image has; mixed images and those of no known line may have any.

    What was said of the images `among` which these are is not said again.
    """
    known = set(_lacking_classes(among, config))
    for text in _lacking_classes(items, config):
        if text not in known:
            LOG.warning(text)


def _lacking_classes(items: Sequence[SourceImage | ImageRecord], config: ConvertConfig) -> Iterator[str]:
    lines = {split: {item.cell_type for item in items if item.split == split} for split in ("train", "val", "test")}
    for split, what in (("val", "validation"), ("test", "test")):
        is_known = lines[split] and lines[split] <= set(config.classes)
        lacking = [name for name in config.classes if name in lines["train"] - lines[split]]
        if is_known and lacking:
            yield (
                f"no {what} image is of the class {' or '.join(lacking)}: the scores of {what} images say nothing of it, and of "
                "telling the classes apart; add images of it, or change convert.split or the folders of the split"
            )


def refuse_none(done: Sequence, items: Sequence[SourceImage], quarantined: Sequence[Quarantined], root: Path) -> None:
    """Refuse a source of whose images not one could be used.

    Raises
    ------
    UserError
        With the reason of the first one.
    """
    if not done:
        first, count = f"{quarantined[0].item}: {quarantined[0].reason}", sum(not item.is_left for item in items)
        raise UserError(
            f"of {counted(count, 'image')} in {root} none could be used; the first: {first}",
            "correct the config or the files; `cellkit inspect FILE` says what a file holds",
        )


def _unusable_by_name(items: Sequence[SourceImage]) -> list[Quarantined]:
    """Return what is known to be of no use before any image is opened: what fits no image, and images without labels."""
    useless = []
    for item in items:
        if item.is_left or item.is_refused:
            try:
                item.load()
            except UserError as error:
                useless.append(Quarantined(readable(item.source), plain_reason(str(error))))
        elif item.bare and not item.split:
            useless.append(Quarantined(readable(item.source), NO_TRUTH))
    return useless


def _name_unusable(quarantined: Sequence[Quarantined], items: Sequence[SourceImage]) -> None:
    """Name in the log every image that cannot be used, and what fits no image, those of one reason together."""
    for what, by_reason in unusable(quarantined, items):
        LOG.warning(f"{sum(map(len, by_reason.values()))} {what}:")
        for reason, names in by_reason.items():
            LOG.warning(f"  {', '.join(names)}: {reason}")


def unusable(
    quarantined: Sequence[Quarantined], items: Sequence[SourceImage]
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yield, of images that cannot be used and of what fits no image, in words which and {reason: names}; neither if empty."""
    left = {readable(item.source) for item in items if item.is_left}
    count = len(items) - len(left)
    for what, fits_none in (
        (f"of {counted(count, 'image')} could not be used", False),
        ("left over (file, folder or row of a table that fits no image)", True),
    ):
        by_reason: dict[str, list[str]] = {}
        for one in quarantined:
            if (one.item in left) == fits_none:
                name = Path(one.item).name
                text = one.reason
                reason = f"it{text.removeprefix(name)}" if name and text.startswith(f"{name} ") else text
                by_reason.setdefault(reason, []).append(one.item)
        if by_reason:
            yield what, by_reason


# ---- what is handed in -----------------------------------------------------------------------------------------------


def list_images(config: ConvertConfig, root: Path) -> list[SourceImage]:
    """Return the source's images; refuse a missing folder, an empty one, and two images of one id.

    Raises
    ------
    UserError
        With what is missing, or the two images.
    """
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist", "set data: and convert.path, or CELLKIT_DATA=FOLDER")
    items = list(load("source", config.source).read(root, config))
    if not items:
        raise UserError(
            f"no image of the source '{config.source}' in {root}",
            "set convert.source and convert.path; data/README.md shows the layouts that are read",
        )
    items = hold_out_fold(items, config)
    items += pseudo_images(items, config)
    check_ids((item.image_id, item.source) for item in items)
    warn_lacking_classes([item for item in items if not item.is_left], config)
    odd = {item.source for item in items if item.is_left}  # a folder of no class is named already
    across = [group for group in groups_across_splits(items) if f"{group}/" not in odd]
    if across:
        some = ", ".join(across[:5]) + (", ..." if len(across) > 5 else "")
        LOG.warning(
            f"{counted(len(across), 'group has', 'groups have')} images in more than one split ({some}): the score on "
            "validation and test images may flatter; set convert.split_by: group to keep each group on one side"
        )
    return items


def _convert_one(known: tuple[SourceImage, dict | None], root: Path, folder: Path, scale: float, limits) -> dict:
    """Load one image, resize, write the PNG; return its journal entry, or the one it has if that still holds."""
    from cellkit.microscope.quality import measure

    item, entry = known
    if entry and still_there(folder, entry["files"]):
        return entry
    loaded = without_empty(item.load(partial(converted, limits=limits)))
    image = resize_image(loaded.image, scale)
    instances = None if loaded.instances is None else resize_instances(loaded.instances, scale)
    if instances is not None and len(instances) < len(loaded.instances):
        lost = len(loaded.instances) - len(instances)
        loaded = noted(loaded, [f"left out: {counted(lost, 'cell')} without a pixel at convert.scale {scale:g}"])
    folder.mkdir(parents=True, exist_ok=True)
    record, name = record_of(item, loaded, scale, root), f"{item.image_id}.png"
    clipped = max((level.clipped_fraction for level in loaded.levels), default=None)
    measured = measure(image, clipped) | ({"uneven": math.nan} if loaded.composed else {})
    return {
        "files": {name: list(write_parts(folder / name, png_parts(image, record.um_per_px)))},
        "record": asdict(record),
        "instances": None if instances is None else _cells_to_json(instances),
        "levels": [asdict(level) for level in loaded.levels],
        "left_out": list(loaded.left_out),
        "measured": {key: value.item() if hasattr(value, "item") else value for key, value in measured.items()},
        "size": list(loaded.image.shape[:2]),
    }


def record_of(item: SourceImage, loaded: Loaded, scale: float, root: Path) -> ImageRecord:
    """Return what a run notes of an image below `root` that was loaded, or of which only the header was read."""
    height_px, width_px = resized_shape(loaded.image.shape[:2], scale)
    return ImageRecord(
        image_id=item.image_id,
        path=f"images/{item.image_id}.png",
        height_px=height_px,
        width_px=width_px,
        channels=readable(loaded.channels),
        cell_type=item.cell_type,
        group=readable(item.group),
        split=item.split,
        um_per_px=loaded.um_per_px / scale,
        source=readable(f"{item.source} {loaded.planes}".rstrip()),
        file=readable(item.files[0].relative_to(root).as_posix()) if item.files else "",
        scene=item.scene,
        time=item.time,
        planes=readable(loaded.planes),
    )


def _cells_to_json(cells: Instances) -> dict:
    arrays = ("starts", "lengths", "offsets", "class_ids", "scores")
    plain_values = {key: getattr(cells, key).tolist() for key in (*arrays, "unknown")}
    return {"shape": list(cells.shape), "boxes_only": cells.boxes_only} | plain_values


def _cells_from_json(stored: dict) -> Instances:
    arrays = (stored[key] for key in ("starts", "lengths", "offsets", "class_ids", "scores"))
    unknown = np.array(stored.get("unknown", []), np.int64).reshape(-1, 2)
    return replace(Instances.from_runs(stored["shape"], *arrays), boxes_only=stored["boxes_only"], unknown=unknown)


def _from_entry(entry: dict) -> tuple[ImageRecord, Instances | None, list[Level], dict, list[int]]:
    """Return (record, instances, levels, measurements, height and width of the file) of a journal entry."""
    instances = None if entry["instances"] is None else _cells_from_json(entry["instances"])
    levels = [Level(**level) for level in entry["levels"]]
    return ImageRecord(**entry["record"]), instances, levels, entry["measured"], entry["size"]


def _converted(
    out: Path,
    done: list,
    quarantined: list[Quarantined],
    originals: list[dict],
    config: ConvertConfig,
    pseudo: Container[str],
) -> ConvertedImages:
    """Flag the images by what the training images are like, write the tables."""
    from cellkit.microscope.flags import flag_records

    taught = [result[0].split == "train" and result[0].image_id not in pseudo for result in done]
    measured = [result[3] for result in done]
    flags, thresholds = flag_records(measured, learned_from=taught, off=config.quality.off)
    of = scaled_by(config.percentiles, "training images" if config.percentiles_of == "batch" else "image")
    records = [replace(result[0], flags=flag) for result, flag in zip(done, flags, strict=True)]
    instances = [
        Instances.empty((record.height_px, record.width_px)) if cells is None else cells
        for record, (_, cells, *_) in zip(records, done, strict=True)
    ]
    made_by = ["" if own is None else "proposed" if r.image_id in pseudo else "truth" for r, own, *_ in done]
    if partly := known_in_part(instances):
        LOG.info(partly)
    conversion = [
        level_row(record.image_id, record.source, level, of)
        for record, result in zip(records, done, strict=True)
        for level in result[2]
    ]
    quality = [
        {"image_id": record.image_id, **result[3], "flags": record.flags}
        for record, result in zip(records, done, strict=True)
    ]
    log_notes(conversion)
    write_table(out / "conversion.csv", conversion)
    write_table(out / "quality.csv", quality)
    write_table(out / "originals.csv", originals)
    ids = list(range(1, len(records) + 1))
    images = CellDataset(records, instances, tuple(config.classes), Path(out), ids, made_by)
    return ConvertedImages(images, quarantined, conversion, quality, thresholds, originals)


def locate_source(config: ConvertConfig, stage: Any) -> Path:
    """Return the folder of a run's images: drawn into the run folder, or below the data folder and noted as an input.

    Parameters
    ----------
    config : ConvertConfig
    stage : Stage
        The running stage.

    Raises
    ------
    UserError
        There is no data folder, or nothing at `config.path` in it, or the run folder lies in it.
    """
    from cellkit.config.places import data_path, refuse_in_data
    from cellkit.sources.drawn.files import write_fields

    if config.pseudo:
        stage.note_reading(pseudo_folder(config), "pseudo")
    if config.source == "drawn":
        folder = stage.path("microscope")
        drawn = config.drawn.model_dump()
        write_fields(folder, lines=config.classes, seed=config.seed, **drawn)
        return folder
    root = data_path(config)
    refuse_in_data(stage.root, root)
    stage.note_reading(root, "data", by="data")
    return root
