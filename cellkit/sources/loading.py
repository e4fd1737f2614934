"""One image of a source, loaded: its picture, the label image beside it, and its frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.labels import clean_labels, refuse_foreground
from cellkit.cells.names import image_id_of, plain, split_of_folders, stem_of
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, counted
from cellkit.formats.label_images import labels_orientation, read_labels, stamp_of
from cellkit.formats.zarr_labels import about_labels, is_zarr_labels
from cellkit.microscope.channel_files import ChannelFiles, open_image
from cellkit.microscope.convert import Conversion, blank_frame, chosen_channels, light_of_frame
from cellkit.microscope.file_info import PICTURE_SUFFIXES, Opened
from cellkit.microscope.folders import IMAGE_FOLDERS, check_inside
from cellkit.microscope.light import Light
from cellkit.microscope.open import inspect_file, open_file
from cellkit.sources.listing import (
    Convert,
    Loaded,
    SourceImage,
    _loaded,
    cell_type_of,
    class_id_of,
    failing,
    named_class,
)


def measured(
    found: list[dict[str, Light]], opened: Opened, conversion: Conversion, scene: int = 0, time: int = 0
) -> Loaded:
    """Add the light of one frame to `found`, and return what `converted` does with all pixels 0."""
    found.append(light_of_frame(opened, scene, time, conversion))
    chosen = chosen_channels(opened.info, scene, conversion)
    return _loaded(blank_frame(opened.info, scene, replace(conversion, scale=1.0), chosen))


def light_of_item(item: SourceImage, conversion: Conversion) -> list[dict[str, Light]]:
    """Return the light of the frames an image is made of; raises what is wrong with it or its truth."""
    found: list[dict[str, Light]] = []
    item.load(partial(measured, found))
    return found


def noted(made: Loaded, notes: Sequence[str]) -> Loaded:
    """Return an image with further notes beside those on how it was read, see `log_notes`."""
    first, *others = made.levels or (None,)
    if first is None or not notes:
        return made
    return made._replace(levels=(replace(first, note="; ".join(filter(None, (first.note, *notes)))), *others))


def without_empty(made: Loaded) -> Loaded:
    """Leave out true cells that cover no pixel, which nobody could find, and note how many."""
    if made.instances is None or made.instances.boxes_only:
        return made
    empty = made.instances.areas_px == 0
    if not empty.any():
        return made
    note = f"left out: {counted(int(empty.sum()), 'true outline or mask', 'true outlines or masks')} without a pixel"
    return noted(made._replace(instances=made.instances[~empty]), [note])


def load_picture(root: Path, path: Path, config: ConvertConfig, convert: Convert) -> Loaded:
    """Load a file of one frame."""
    check_inside(path, root)
    with open_file(path, config.axes, config.max_plane_px) as opened:
        refuse_frames(opened, path.name)
        return convert(opened, config.conversion)


def refuse_frames(opened: Opened, name: str) -> None:
    """Refuse a file of several frames where one is meant.

    Raises
    ------
    UserError
        With their number.
    """
    count = len(list(opened.info.frames()))
    if count > 1:
        raise UserError(
            f"{name} holds {count} frames (scenes or times), and its annotations do not say which one they are of",
            "save that frame as a file of its own; where they are channels or z planes, set convert.axes",
        )


class ClassRow(NamedTuple):
    """A row of a table of classes: of one frame, or `of_file`, which has several."""

    class_id: int
    line: int
    of_file: bool = False


class Label(NamedTuple):
    """A label image of a frame; `plane` = (number, count) where it is a stack with one plane for each of `count` frames."""

    path: Path
    plane: tuple[int, int] | None = None


def load_file(
    root: Path,
    path: Path | ChannelFiles,
    config: ConvertConfig,
    label_of: Callable[[], Path | Label | None],
    cell_type: str,
    scene: int | None = None,
    time: int = 0,
    rows: Mapping[int, ClassRow] | None = None,
    frames: Sequence[Label] = (),
    *,
    convert: Convert,
) -> Loaded:
    """Load one frame of a file and the label image that `label_of()` finds: a path, a `Label`, or None.

    `rows` = {label: row} of a table of classes; a label that the image does not have is refused, and one of a row for the whole
    file that none of its `frames`' label images has. Where no scene is given, the file must hold one frame.
    """
    image, path = path, getattr(path, "path", path)
    for part in files_of(image):
        check_inside(part, root)
    with open_image(image, config.axes, config.max_plane_px) as opened:
        if scene is None:
            refuse_frames(opened, path.name)
        made = convert(opened, config.conversion, scene or 0, time)
    return with_labels(root, path, made, label_of(), config, cell_type, rows, frames)


def files_of(image: Path | ChannelFiles) -> tuple[Path, ...]:
    """Return the files of an image: one, or one per channel."""
    return (image,) if isinstance(image, Path) else tuple(path for _, path in image.files)


def with_labels(
    root: Path,
    path: Path,
    made: Loaded,
    label: Path | Label | None,
    config: ConvertConfig,
    cell_type: str,
    rows: Mapping[int, ClassRow] | None = None,
    frames: Sequence[Label] = (),
) -> Loaded:
    """Return a picture with the objects of its label image; parameters as in `load_file`.

    Raises
    ------
    UserError
        The labels do not fit the picture, or are a model's proposals.
    """
    from cellkit.formats.labels import is_proposed

    if label is None:
        return made
    label = label if isinstance(label, Label) else Label(label)
    check_inside(label.path, root)
    check_same_way(made, path, label.path, labels_orientation(label.path))
    if is_proposed(label.path):
        raise proposals_are_no_truth(label.path.name)
    labels = read_labels(label.path, label.plane)
    check_shape(labels.shape, made.image.shape[:2], label.path, path)
    class_id = class_id_of(cell_type, config) if cell_type not in ("", MIXED) else 0
    ids = _classes_inside(label.path, labels, config) | {number: row.class_id for number, row in (rows or {}).items()}
    cells = labelled(labels, class_id, ids, config.pieces, label.path)
    return made._replace(
        instances=cells, planes=f"{made.planes} {_check_rows(rows, labels, label, tuple(frames))}".strip()
    )


def _classes_inside(path: Path, labels: np.ndarray, config: ConvertConfig) -> dict[int, int]:
    """Return {label: class id} as the metadata of a label image in an OME-Zarr tell it; refuse a model's proposals."""
    if not is_zarr_labels(path):
        return {}
    about = about_labels(path)
    if about.made_by == "proposed" and about.stamp == stamp_of(labels):
        raise proposals_are_no_truth(f"{path.parent.parent.name}/labels/{path.name}")
    return {number: class_id_of(name, config) for number, name in about.class_of.items()}


def proposals_are_no_truth(name: str) -> UserError:
    """Return the refusal of labels that a model proposed."""
    return UserError(
        f"{name}: the cells of the image are a model's proposals, no truth",
        'correct them (label.use, or in the file itself; a COCO file\'s key "labels" without "labels_stamp" has to go then)',
    )


def perhaps(made: Loaded, class_ids: Iterable[int]) -> Loaded:
    """Return a picture of which only the header was read, with what its labels could hold: one cell, as large, of each class."""
    ids = np.unique(np.fromiter(class_ids, np.int64))
    height, width = made.image.shape[:2]
    starts, lengths = np.zeros(len(ids), np.int64), np.full(len(ids), height * width)
    cells = Instances.from_runs((height, width), starts, lengths, np.arange(len(ids) + 1), ids, np.ones(len(ids)))
    return made._replace(instances=cells)


def is_perhaps(cells: Instances) -> bool:
    """Tell the cells of `perhaps`, each as large as its picture, from real ones."""
    return bool(len(cells)) and bool((cells.areas_px == math.prod(cells.shape)).all())


def _check_rows(
    rows: Mapping[int, ClassRow] | None, labels: np.ndarray, label: Label, frames: tuple[Label, ...]
) -> str:
    """Refuse rows of a table of classes for labels that are not there; say how many cells have no row."""
    if not rows:
        return ""
    there = set(np.unique(labels[labels > 0]).tolist())
    wrong = sorted(set(rows) - there)
    if frames and wrong:  # of a series, each frame has some of the cells
        changed = tuple(path.stat().st_mtime_ns for path in dict.fromkeys(frame.path for frame in frames))
        wrong = [number for number in wrong if not (rows[number].of_file and number in _labels_in(frames, changed))]
    if wrong:
        of_file = bool(frames) and rows[wrong[0]].of_file
        has = f"{label.path.name} has {len(there)} labels, {f'{min(there)} to {max(there)}' if there else 'none'}"
        raise UserError(
            f"line {rows[wrong[0]].line} of the table of classes names label {wrong[0]}, and "
            + ("no frame of the file has it" if of_file else has),
            "correct the row, or take it out",
        )
    bare = len(there - set(rows))
    return f"({counted(bare, 'cell')} without a row in the table of classes)" if bare else ""


@lru_cache(4)
def _labels_in(frames: tuple[Label, ...], changed: tuple[int, ...]) -> Container[int]:
    """Return the labels of all frames of a file, last `changed` then; all there could be where a label image cannot be read."""
    found: set[int] = set()
    for frame in frames:
        try:
            found.update(np.unique(read_labels(frame.path, frame.plane)).tolist())
        except UserError:
            return range(2**31)
    return found


def check_same_way(made: Loaded, path: Path, label_path: Path, orientation: int = 1) -> None:
    """Refuse labels that are not turned as their image is: whether they were drawn on it as stored or as shown is unknown.

    Raises
    ------
    UserError
        With both orientations.
    """
    if made.turned != orientation:
        raise UserError(
            f"{path.name} has the EXIF orientation {made.turned}, its labels {label_path} have {orientation}",
            "store image and labels turned alike, without an orientation",
        )


def check_shape(labels: tuple[int, int], image: tuple[int, int], label_path: Path, path: Path) -> None:
    """Refuse labels that are not as large as their image, naming both files.

    Raises
    ------
    UserError
        With both sizes.
    """
    if tuple(labels) != tuple(image):
        raise UserError(
            f"{path.name} is {image[0]} x {image[1]} px, its label image {label_path} is {labels[0]} x {labels[1]}",
            "label the image itself, not a resized or cropped copy",
        )


def labelled(
    labels: np.ndarray, class_id: int, ids: dict[int, int], pieces: str | None = None, path: Path | str = "it"
) -> Instances:
    """Return the objects of a label image: each of its own class in `ids` where that is given, else of `class_id`.

    `pieces` is what becomes of an object of several pieces (``convert.pieces``). Without it such objects stay as they are,
    but an image that knows one id only, in three pieces or more, is refused: that is a mask of cells, not of each cell.
    """
    old = labels
    if pieces in ("largest", "split"):
        labels = clean_labels(labels, pieces=pieces)
    instances = Instances.from_labels(labels)
    if pieces is None:
        refuse_foreground(labels, path, "set convert.pieces: split (each piece is a cell), keep or largest")
    if not ids:
        return instances.with_classes(class_id)
    firsts = instances.starts[instances.offsets[:-1]]
    return instances.with_classes([ids.get(int(k), class_id) for k in old.reshape(-1)[firsts]])


def frames_of(
    image: Path | ChannelFiles, root: Path, config: ConvertConfig, label_of: Callable, rows_of: Callable
) -> Iterator[SourceImage]:
    """Yield one SourceImage per scene and time of a file, or of the files of an image's channels.

    `label_of(suffix, number, count)` finds the `Label` of a frame, the number-th of count; ``rows_of(relative, suffix)`` what
    a table of classes says of it.
    """
    path, parts = getattr(image, "path", image), files_of(image)
    relative = path.relative_to(root)
    about = about_folders(relative.parts[:-1], config)
    name = "/".join((*(part for part in relative.parts[:-1] if part.lower() != "images"), relative.name))
    try:
        for part in parts:
            check_inside(part, root)
        single = path.suffix.lower() in PICTURE_SUFFIXES  # one frame: the header can wait
        frames = [(0, 0, "")] if single else list(inspect_file(parts[0], config.axes, config.max_plane_px).frames())
    except UserError as error:
        with suppress(UserError):
            label_of("", 0, 1)  # it belongs to this file, whatever is wrong with that
        refusal = failing(error.problem, error.remedy)
        own_id = stem_of(relative)
        yield SourceImage(
            image_id_of(name),
            source=relative.as_posix(),
            loader=refusal,
            own_id=own_id,
            files=parts,
            bare=True,
            **about,
        )
        return
    unit = image_id_of(name) if len(frames) > 1 else ""
    found = [resolved(partial(label_of, suffix, number, len(frames))) for number, (_, _, suffix) in enumerate(frames)]
    all_labels = tuple(label.args[0] for label, files in found if files)
    for (scene, time, suffix), (label, files) in zip(frames, found, strict=True):
        rows = rows_of(relative, suffix)
        others = all_labels if unit and any(row.of_file for row in rows.values()) else ()
        loader = partial(load_file, root, image, config, label, about["cell_type"], scene, time, rows, others)
        origin = (
            relative.as_posix() if parts == (path,) else " + ".join(part.relative_to(root).as_posix() for part in parts)
        )
        source = origin + suffix.replace("_s", " scene ").replace("_t", " t ")
        yield SourceImage(
            image_id_of(name, suffix), source=source, loader=loader, own_id=stem_of(relative) + suffix,
            files=(*parts, *files), unit=unit, bare=label.args == (None,), scene=scene, time=time, **about,
        )  # fmt: skip


def about_folders(folders: Sequence[str], config: ConvertConfig) -> dict[str, str]:
    """Return cell type, group and split that the folders of an image tell: those that are neither of the others are the group."""
    folders = [part for part in folders if plain(part) not in IMAGE_FOLDERS]
    rest = [part for part in folders if not named_class(part, config)]  # a class called test is a class
    split = split_of_folders(rest)
    other = [part for part in rest if not split_of_folders([part])]
    return {"cell_type": cell_type_of(folders, config), "group": "/".join(other), "split": split}


def about_annotated(folders: Sequence[str], config: ConvertConfig) -> dict[str, str]:
    """Return what `about_folders` does, for annotations in files of their own: a group only where the split goes by group.

    Folders there may be mere batches, and groups are counted in place of images where models are compared.
    """
    about = about_folders(folders, config)
    return about if config.split_by == "group" else about | {"group": ""}


def resolved(find: Callable[[], Label | Path | None]) -> tuple[Callable, tuple[Path, ...]]:
    """Return what gives the label image that `find()` finds now, or raises what it raises now, and the files of it."""
    try:
        found = find()
    except UserError as error:
        return failing(error.problem, error.remedy), ()
    return partial(_given, found), () if found is None else (found.path if isinstance(found, Label) else found,)


def _given(found):
    return found
