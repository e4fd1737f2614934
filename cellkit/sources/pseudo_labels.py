"""Images with pseudo-labels, added to those of a source: training images that judge nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, counted
from cellkit.files import read_json
from cellkit.formats.coco_reading import read_coco
from cellkit.log import LOG
from cellkit.machine import here
from cellkit.microscope.folders import check_inside
from cellkit.microscope.open import open_file
from cellkit.sources.listing import Convert, Loaded, SourceImage, class_id_of, only_class

FILE, IMAGES = "pseudo.json", "images"  # what `cellkit pseudo-label` writes
PREFIX = "pseudo_"


def pseudo_images(items: Sequence[SourceImage], config: ConvertConfig) -> list[SourceImage]:
    """Return the images of ``convert.pseudo`` that may teach: training images whose labels count as proposed.

    Left out, and said, are those that the source holds itself, and those of a group (plate, well, donor) of which it holds
    validation or test images back; the latter not where ``convert.pseudo_held_out`` is true.

    Parameters
    ----------
    items : list of SourceImage
        The source's own images, with their splits.

    Raises
    ------
    UserError
        There is no such folder or file, or a class or cell line of it is unknown.
    """
    if not config.pseudo:
        return []
    folder = pseudo_folder(config)
    data, entries = read_coco(folder / FILE, folder / IMAGES), read_json(folder / FILE)["images"]
    place = np.array([0, *(class_id_of(name, config) for name in data.classes)])
    if (place < 0).any():
        raise UserError(f"{folder / FILE} has cells of a class that convert.class_names ignores", "name another class")
    found = []
    for record, cells, entry in zip(data.records, data.instances, entries, strict=True):
        path, numbered = folder / IMAGES / record.path, cells.with_classes(place[cells.class_ids]).with_scores(1.0)
        frame = {"scene": int(entry.get("scene", 0)), "time": int(entry.get("time", 0))}
        line = _line_of(record.cell_type, folder / FILE, config)
        loader = partial(_load, folder, path, config, numbered, **frame)
        about = (f"{PREFIX}{record.image_id}", line, record.group, "train", f"pseudo: {record.path}", loader)
        found.append(SourceImage(*about, **frame, is_pseudo=True))
    return _without_held_out(found, items, config)


def _line_of(named: str, file: Path, config: ConvertConfig) -> str:
    """Return the cell line of an image by its name in the file; where it has none, the only class there is."""
    if named in ("", MIXED):
        return named or only_class(config)
    number = class_id_of(named, config)
    if number < 0:
        raise UserError(f"{file} has images of a line that convert.class_names ignores", "name another line")
    return config.classes[number - 1] if number else ""


def pseudo_folder(config: ConvertConfig) -> Path:
    """Return the folder of ``convert.pseudo``.

    Raises
    ------
    UserError
        It does not hold what `cellkit pseudo-label` writes.
    """
    folder = here(config.pseudo)
    if not (folder / FILE).is_file():
        raise UserError(
            f"convert.pseudo is '{config.pseudo}', which holds no {FILE}",
            "make it: cellkit pseudo-label IMAGES --model MODEL -o FOLDER",
        )
    return folder


def _without_held_out(
    found: list[SourceImage], items: Sequence[SourceImage], config: ConvertConfig
) -> list[SourceImage]:
    """Leave out what the source holds itself, and what is of a group that is held back."""
    own = {item.image_id: item.split for item in items if not item.is_left}
    held = {item.group for item in items if item.split in ("val", "test") and item.group}
    allowed = config.pseudo_held_out
    same = [
        i
        for i in found
        if (split := own.get(i.image_id.removeprefix(PREFIX))) is not None and not (allowed and split == "test")
    ]
    groups = [] if allowed else [i for i in found if i.group in held and i not in same]
    for which, why in ((same, "images of the source itself"), (groups, "images of groups that are held back")):
        if which:
            LOG.warning(f"pseudo-labels: {counted(len(which), 'image')} not used, {why}, e.g. {which[0].source}")
    kept = [item for item in found if item not in same and item not in groups]
    known = {item.group for item in items if item.group}
    named = sorted({item.group for item in kept if item.group})
    if held and named and not allowed and not known & {item.group for item in found}:
        LOG.warning(
            f"pseudo-labels: none of their groups is one of the source's (e.g. '{named[0]}', there '{min(known)}'): which are "
            "held back cannot be told where a group has two names; name them alike: cellkit pseudo-label --group-from"
        )
    unknown = [item for item in kept if not item.group]
    if held and unknown and not allowed:
        LOG.warning(
            f"pseudo-labels: no group is known of {counted(len(unknown), 'image')}, e.g. {unknown[0].source}: whether they "
            "are of groups that are held back cannot be told; name them: cellkit pseudo-label --group-from"
        )
    LOG.info(f"pseudo-labels: {counted(len(kept), 'training image')} of {config.pseudo}")
    return kept


def _load(
    folder: Path, path: Path, config: ConvertConfig, cells: Instances, scene: int, time: int, *, convert: Convert
) -> Loaded:
    """Load a frame as the source's own are, with its pseudo-labels.

    Raises
    ------
    UserError
        The file has another size than the one the labels were made on.
    """
    check_inside(path, folder)
    with open_file(path, config.axes, config.max_plane_px) as opened:
        made = convert(opened, config.conversion, scene, time)
    if made.image.shape[:2] != cells.shape:
        raise UserError(
            f"{path.name} is {made.image.shape[:2]} px, its pseudo-labels {cells.shape}",
            "make the pseudo-labels again",
        )
    return made._replace(instances=cells)
