"""The command `cellkit pseudo-label`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cellkit.commands.shared import (
    Answer,
    channel_flags,
    cluster_flag,
    conversion_of,
    exit_code,
    list_quarantined,
    set_flag,
    skips_flag,
    workers_flag,
    workers_of,
)
from cellkit.errors import UserError, counted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cellkit.microscope.frames import Frame

ABOUT = "label images with models that are sure and agree, to train the next round with"
ORDER = 4


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="images nobody labelled: files, folders, patterns")
    models = "as for cellkit predict; given again: several, whose cells are fused and whose agreement counts"
    parser.add_argument("--model", metavar="MODEL", action="append", required=True, help=models)
    parser.add_argument(
        "-o", "--out", required=True, metavar="FOLDER", help="what convert.pseudo of the next run names"
    )
    parser.add_argument(
        "--score", type=float, metavar="X", help="cells of at least this score are labels (default 0.7)"
    )
    doubtful = "cells below that and of at least this score become regions that are not annotated (default 0.3)"
    parser.add_argument("--doubtful", type=float, metavar="X", help=doubtful)
    agreement = "images whose models agree less are left out: MAP IoU between their cells (default 0.5)"
    parser.add_argument("--agreement", type=float, metavar="X", help=agreement)
    group = "expression that finds an image's group (plate, well) in its name, (?P<group>...); default its folders"
    parser.add_argument("--group-from", metavar="EXPR", help=group)
    parser.add_argument(
        "--line", metavar="NAME", help="cell line of all images (default: the class of most cells of each)"
    )
    channel_flags(parser)
    set_flag(parser, "cellprob_threshold=-1")
    workers_flag(parser, "processes, each with a model of its own; on a GPU one does it")
    cluster_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Label images with models that are sure and agree, to train the next round with.

    Raises
    ------
    UserError
        A limit that is no share, a folder among the images, models of other classes, or as `predict_files` and `write_pseudo`.
    """
    import shutil
    from dataclasses import replace
    from pathlib import Path

    from cellkit.config.reading import set_strings
    from cellkit.formats.coco_reading import read_coco
    from cellkit.labelling.pseudo import write_pseudo
    from cellkit.microscope.file_info import LARGEST_PLANE_PX
    from cellkit.microscope.frames import find_frames, find_images
    from cellkit.predict.files import predict_files
    from cellkit.predict.joined import open_model
    from cellkit.predict.outputs import parts_folder

    settings, out, workers = _limits(given), Path(given.out), workers_of(given)
    listed = find_images(given.images, outside=[])
    _refuse_among(given.images, out, [path for path, _ in listed])
    frames = {frame.image_id: frame for frame in find_frames(listed, most_px=LARGEST_PLANE_PX)[0]}
    groups = _groups_of(frames.values(), given.group_from)
    models = [open_model(name, set_strings(given.overrides)) for name in given.model]
    classes = tuple(dict.fromkeys(name for model in models for name in model.classes))
    found, quarantined = [], []
    paths = [out / "found" / f"{number}.json" for number in range(1, len(models) + 1)]
    for path, model in zip(paths, models, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        how = conversion_of(given, model.conversion)
        done = predict_files(model, given.images, path, conversion=how, workers=workers, keep_parts=True)
        quarantined += [one for one in done.quarantined if one not in quarantined]
        found.append(_by_id(read_coco(path), classes))
    records = [record for record, _ in found[0].values() if all(record.image_id in one for one in found)]
    placed = [
        replace(record, group=groups[name], scene=frames[name].scene, time=frames[name].time)
        for name, record in ((record.image_id, record) for record in records)
    ]
    cells = [[one[record.image_id][1] for one in found] for record in records]
    files = {name: frame.path for name, frame in frames.items()}
    rows = write_pseudo(out, placed, cells, classes, files, settings, given.line or "")
    for path in paths:
        shutil.rmtree(parts_folder(path), ignore_errors=True)
    list_quarantined(quarantined)
    used = [row for row in rows if row["used"] == "yes"]
    labels, doubtful = (sum(row[key] for row in used) for key in ("cells", "doubtful"))
    taken = f"{len(used)} of {counted(len(rows), 'image')} taken"
    lines = [
        f"{out}: {taken}, {counted(labels, 'cell')}, {doubtful} doubtful; pseudo.csv there says why",
        f"train with them: cellkit run CONFIG --run NEW --set convert.pseudo={out}",
    ]
    return Answer("\n".join(lines), exit_code(quarantined, given.allow_skips))


def _limits(given: argparse.Namespace):
    """Return the limits that are given."""
    from pydantic import ValidationError

    from cellkit.labelling.pseudo import PseudoSettings

    told = {key: value for key in ("score", "doubtful", "agreement") if (value := getattr(given, key)) is not None}
    try:
        settings = PseudoSettings(**told)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]} is {first['input']}", "give a number from 0 to 1") from None
    if settings.doubtful > settings.score:
        raise UserError(
            f"--doubtful is {settings.doubtful:g}, more than --score {settings.score:g}",
            "give a lower score for doubtful cells",
        )
    return settings


def _groups_of(frames: Iterable[Frame], pattern: str | None) -> dict[str, str]:
    """Return the group of each image, by its id: what the expression finds in its name, else its folders.

    Raises
    ------
    UserError
        As `name_groups`; before any model has looked at an image.
    """
    from pathlib import Path

    from cellkit.cells.records import ImageRecord
    from cellkit.cells.splits import name_groups
    from cellkit.predict.images import source_of

    placed = [
        ImageRecord(
            one.image_id, one.relative, 1, 1, source=source_of(one), group="/".join(Path(one.relative).parts[:-1])
        )
        for one in frames
    ]
    return {record.image_id: record.group for record in name_groups(placed, pattern)}


def _refuse_among(named: list[str], out: Path, images: list[Path]) -> None:
    """Refuse a place among the images: the copies there would be images of the next call."""
    from pathlib import Path

    place = out.resolve()
    within = [name for name in named if place.is_relative_to(Path(name).resolve())]
    within += [str(path) for path in images if path.resolve().is_relative_to(place)]
    if within:
        raise UserError(f"'{out}' for the copies lies among the images, '{within[0]}'", "name a folder elsewhere: -o")


def _by_id(data, classes: tuple[str, ...]) -> dict:
    """Return record and cells of each image; classes by their place in `classes`."""
    from cellkit.cells.dataset import class_numbers

    place = class_numbers(data.classes, classes)
    pairs = zip(data.records, data.instances, strict=True)
    return {record.image_id: (record, cells.with_classes(place[cells.class_ids])) for record, cells in pairs}
