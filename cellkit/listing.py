"""One image of a source before it is opened: which files there are, which belong together, which class, which split.

What every layout shares. A layout lists what a folder holds and makes a `SourceImage` of each picture; `assign_splits` then
refuses two images of one name, thins, and splits. Nothing is opened before `SourceImage.load` is called.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.channelfiles import ChannelFiles, open_image
from cellkit.conversion import Conversion, Level
from cellkit.convert import Converted, blank_frame, chosen_channels, convert_frame, light_of_frame
from cellkit.errors import UserError, nearest, refuse_or_note
from cellkit.file_info import PICTURE_SUFFIXES, Opened
from cellkit.files import decoded
from cellkit.folders import IMAGE_FOLDERS, IMAGE_SUFFIXES, check_inside
from cellkit.instances import Instances
from cellkit.labels import clean_labels, labels_orientation, read_labels, refuse_foreground
from cellkit.light import Light, Limits
from cellkit.log import LOG
from cellkit.names import check_ids, image_id_of, plain, series_of, split_of_folders, stem_of
from cellkit.open import inspect_file, open_file
from cellkit.records import ImageRecord
from cellkit.splits import name_groups, split_by_name, split_records

SPLIT_WORDS = {"train": "training image", "val": "validation image", "test": "test image"}
MIXED = "mixed"
LEFT = "left/"  # begins the id of what fits no image
UNUSED = "unused"  # the source's own split leaves the image out


Convert = Callable[..., "Loaded"]  # (opened, conversion, scene=0, time=0) -> one frame as a picture without truth


# ---- one image of a source -----------------------------------------------------------------------------------------
class Loaded(NamedTuple):
    """Pixels and truth of one image, before resizing.

    image : (H, W, 3) uint8; instances : Instances or None (no truth); um_per_px : float, nan unknown;
    channels : str, as in ImageRecord; levels : how each channel was scaled; planes : what became of the z planes;
    composed : put together from parts whose light differs, so that uneven light says nothing; left_out : what lies in the
    file and becomes no picture; turned : EXIF orientation by which the pixels were turned, 1 where they were not.
    """

    image: np.ndarray
    instances: Instances | None
    um_per_px: float = math.nan
    channels: str = ""
    levels: tuple[Level, ...] = ()
    planes: str = ""
    composed: bool = False
    left_out: tuple[str, ...] = ()
    turned: int = 1


@dataclass(frozen=True)
class SourceImage:
    """What is known of an image before it is opened; fields as in `ImageRecord`.

    `split` is "" where the source has none of its own, and "unused" where its own split leaves the image out. `loader` is
    picklable, so that worker processes can load. `own_id` is what the source itself calls the image, and a competition
    wants to hear: the file's name without its suffix; "" where there is no such name. `files` are those of the data folder
    that the image is made of, picture first: what no image is made of is named, see `cellkit.leftovers`. `unit` names the
    file, or the series of files, that it is one of several frames of: they stay on one side of a split. `bare` is an image
    of which no labels are known. `is_asked`: the source itself, no draw, calls it a test image. `scene` and `time` say which
    frame of its file it is.
    """

    image_id: str
    cell_type: str
    group: str
    split: str
    source: str
    loader: Callable[..., Loaded]
    own_id: str = ""
    files: tuple[Path, ...] = ()
    unit: str = ""
    bare: bool = False
    is_asked: bool = False
    scene: int = 0
    time: int = 0

    @property
    def is_left(self) -> bool:
        """Whether it stands for something that fits no image, and is there to be set aside with its reason."""
        return self.image_id.startswith(LEFT)

    def load(self, convert: Convert | None = None) -> Loaded:
        """Read, convert and return the image and its truth; raises what is wrong with it.

        Parameters
        ----------
        convert : callable, optional
            Makes the picture; see `converted`, the default.
        """
        return self.loader(convert=convert or converted)


def refuse(problem: str, remedy: str = "", convert: Convert | None = None) -> Loaded:
    """Stand in for an image that cannot be used: the reason appears where the others are loaded."""
    raise UserError(problem, remedy)


# ---- files and names -----------------------------------------------------------------------------------------------


def refuse_several(root: Path, *found: Sequence[Path]) -> Callable[[], Loaded] | None:
    """Return what refuses an image whose picture or truth is several files of one name; None where each is one at most."""
    paths = next((paths for paths in found if len(paths) > 1), ())
    names = " and ".join(path.relative_to(root).as_posix() for path in paths[:2])
    told = f"{len(paths)} files are called {stem_of(paths[0])}: {names}" if paths else ""
    return partial(refuse, told, "keep one of them") if paths else None


def read_table(path: Path, columns: Iterable[str], root: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file below `root`; fields are parted by ",", or by ";" or tabs as some programs write it.

    Names of columns may differ in upper and lower case.

    Raises
    ------
    UserError
        It is not there, no CSV in UTF-8, or lacks one of `columns`.
    """
    if not path.is_file():
        raise UserError(f"no table at {path}", f"put the source's own table there, with {', '.join(columns)}")
    check_inside(path, root)
    try:
        text = decoded(path.read_bytes())
        parted = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=parted)
        wanted = {plain(name): name for name in columns}
        reader.fieldnames = names = [wanted.get(plain(name), name.strip()) for name in reader.fieldnames or []]
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is no CSV in UTF-8: {error}", "use the table as it came, or save it as CSV UTF-8"
        ) from error
    missing = [name for name in columns if name not in names]
    twice = next((name for name in columns if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has {names.count(twice)} columns called {twice}", "keep the one that counts")
    if missing:
        there = ", ".join(names) or "nothing"
        raise UserError(
            f"{path} lacks the column(s) {', '.join(missing)}; its first line says: {there[:200]}",
            "use the table as it came, its columns parted by commas, semicolons or tabs",
        )
    torn = next((n for n, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if torn is not None:
        raise UserError(f"{path} line {torn} has more or fewer fields than the header", "use the table as it came")
    return rows


def read_names(path: Path, root: Path) -> list[str]:
    """Return the lines of a list of file names, without blank ones and without suffixes of pictures."""
    check_inside(path, root)
    try:
        lines = [line.strip() for line in decoded(path.read_bytes()).splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error}", "it lists one image name per line") from error
    return [Path(line).stem if line.lower().endswith(IMAGE_SUFFIXES) else line for line in lines if line]


def read_split_lists(lists: Iterable[tuple[Path, str]], root: Path) -> dict[str, str]:
    """Return {name: split} of lists of names; a name in two lists is refused, a list that is not there is left out."""
    split_of: dict[str, str] = {}
    for path, split in lists:
        for name in read_names(path, root) if path.is_file() else ():
            if split_of.setdefault(name, split) != split:
                raise UserError(f"{path} lists {name}, which is {split_of[name]} already", "list each image once")
    return split_of


# ---- classes -------------------------------------------------------------------------------------------------------
def named_class(folder: str, config) -> str:
    """Return the class a folder is called after, "mixed", or "" when it is called otherwise."""
    names = {plain(name): name for name in (*config.classes, MIXED)}
    return names.get(plain(_renamed(folder, config) or ""), "")


def _renamed(label: str, config) -> str | None:
    """Return what ``convert.class_names`` makes of a label, spelled in any way; the label itself where it is not there."""
    if label in config.class_names:
        return config.class_names[label]
    return {plain(known): name for known, name in config.class_names.items()}.get(plain(label), label)


def cell_type_of(folders: Iterable[str], config) -> str:
    """Return the class of the innermost folder that is called after one; else the only class there is; else ""."""
    named = [named_class(folder, config) for folder in folders]
    return next((name for name in reversed(named) if name), only_class(config))


def only_class(config) -> str:
    """Return the class where there is one class only, else ""."""
    return config.classes[0] if len(config.classes) == 1 else ""


def class_id_of(label: str, config) -> int:
    """Return the class id of a label of the source: by class_names, else by name; 0 where class_names says null."""
    name = _renamed(label, config)
    if name is None:
        return 0
    ids = {plain(known): number for number, known in enumerate(config.classes, 1)}
    if plain(name) not in ids:
        raise unknown_class(label, config, f"the source's label '{label}'")
    return ids[plain(name)]


def known_class(label: str, config) -> int:
    """Return what `class_id_of` does: where a layout is listed, a label that is no class is noted with the others of its kind."""
    try:
        return class_id_of(label, config)
    except UserError as error:
        refuse_or_note(error)
        return 0


def class_of_line(label: str, config) -> str:
    """Return the class that a whole image of the source's `label` has; "" where class_names says null."""
    number = known_class(label, config)
    return config.classes[number - 1] if number else ""


def unknown_class(label: str, config, what: str) -> UserError:
    """Return the error of a label that is no class and that the config does not name."""
    return UserError(
        f"{what} is none of the classes ({', '.join(config.classes)}){nearest(label, config.classes)}",
        f"name it in convert.class_names, e.g. {label}: {config.classes[0]} (or null: cells of no known class)",
    )


# ---- pictures and label images -------------------------------------------------------------------------------------
def converted(
    opened: Opened, conversion: Conversion, scene: int = 0, time: int = 0, limits: Limits | None = None
) -> Loaded:
    """Return one frame of an opened file as an 8-bit picture without truth, at full size; `limits` are those of a batch."""
    return _loaded(convert_frame(opened, scene, time, replace(conversion, scale=1.0, limits=limits)))


def measured(
    found: list[dict[str, Light]], opened: Opened, conversion: Conversion, scene: int = 0, time: int = 0
) -> Loaded:
    """Add the light of one frame to `found`, and return what `converted` does with all pixels 0."""
    found.append(light_of_frame(opened, scene, time, conversion))
    chosen = chosen_channels(opened.info, scene, conversion)
    return _loaded(blank_frame(opened.info, scene, replace(conversion, scale=1.0), chosen))


def _loaded(made: Converted) -> Loaded:
    return Loaded(
        made.image, None, made.um_per_px, made.channels, made.levels, made.planes, False, made.left_out, made.turned
    )


def light_of_item(item: SourceImage, conversion: Conversion) -> list[dict[str, Light]]:
    """Return the light of the frames an image is made of; raises what is wrong with it or its truth."""
    found: list[dict[str, Light]] = []
    item.load(partial(measured, found))
    return found


def noted(made: Loaded, notes: Sequence[str]) -> Loaded:
    """Return an image with words about it, which are told with those of how it was read; see `cellkit.batch.tell_notes`."""
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
    told = f"{int(empty.sum())} outline(s) or mask(s) of its truth cover no pixel: no cells, left out"
    return noted(made._replace(instances=made.instances[~empty]), [told])


def load_picture(root: Path, path: Path, config, convert: Convert = converted) -> Loaded:
    """Load a file of one frame."""
    check_inside(path, root)
    with open_file(path, config.axes, config.max_plane_px) as opened:
        return convert(opened, config.conversion)


class Label(NamedTuple):
    """A label image of a frame; `plane` = (number, count) where it is a stack with one plane for each of `count` frames."""

    path: Path
    plane: tuple[int, int] | None = None


def load_file(
    root, path, config, label_of, cell_type, scene=0, time=0, rows=None, convert: Convert = converted
) -> Loaded:
    """Load one frame of a file and the label image that `label_of()` finds: a path, a `Label`, or None.

    `rows` = {label: (class id, line of the table)} of a table of classes; a label that the image does not have is refused.
    """
    image, path = path, getattr(path, "path", path)
    for part in files_of(image):
        check_inside(part, root)
    with open_image(image, config.axes, config.max_plane_px) as opened:
        made = convert(opened, config.conversion, scene, time)
    return with_labels(root, path, made, label_of(), config, cell_type, rows)


def files_of(image: Path | ChannelFiles) -> tuple[Path, ...]:
    """Return the files of an image: one, or one per channel."""
    return (image,) if isinstance(image, Path) else tuple(path for _, path in image.files)


def with_labels(root: Path, path: Path, made: Loaded, label, config, cell_type: str, rows=None) -> Loaded:
    """Return a picture with the objects of its label image; parameters as in `load_file`."""
    from cellkit.label_folders import is_proposed

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
    ids = {number: known for number, (known, _) in (rows or {}).items()}
    cells = labelled(labels, class_id, ids, config.pieces, label.path)
    return made._replace(instances=cells, planes=f"{made.planes} {_check_rows(rows, labels, label)}".strip())


def proposals_are_no_truth(name: str) -> UserError:
    """Return the refusal of labels that a model proposed."""
    return UserError(f"{name}: the cells of the image are a model's proposals, no truth", "correct them (label.use)")


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


def _check_rows(rows: dict | None, labels: np.ndarray, label: Label) -> str:
    """Refuse rows of a table of classes for labels that are not there; say how many cells have no row."""
    if not rows:
        return ""
    there = set(np.unique(labels[labels > 0]).tolist())
    wrong = [] if label.plane else sorted(set(rows) - there)  # of a series, each frame has some of the cells
    if wrong:
        raise UserError(
            f"line {rows[wrong[0]][1]} of the table of classes names label {wrong[0]}, and {label.path.name} has "
            f"{len(there)} labels, {f'{min(there)} to {max(there)}' if there else 'none'}",
            "correct the row, or take it out",
        )
    bare = len(there - set(rows))
    return f"({bare} cell(s) without a row in the table of classes)" if bare else ""


def check_same_way(made: Loaded, path: Path, label_path: Path, orientation: int = 1) -> None:
    """Refuse labels that are not turned as their image is: whether they were drawn on it as stored or as shown is not told."""
    if made.turned != orientation:
        raise UserError(
            f"{path.name} has the EXIF orientation {made.turned}, its labels {label_path} have {orientation}",
            "store image and labels turned alike, without an orientation",
        )


def check_shape(labels: tuple[int, int], image: tuple[int, int], label_path: Path, path: Path) -> None:
    """Refuse labels that are not as large as their image, naming both files."""
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
    image: Path | ChannelFiles, root: Path, config, label_of: Callable, rows_of: Callable = dict.get
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
        refusal = partial(refuse, *str(error).split("\n", 1))
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
    for number, (scene, time, suffix) in enumerate(frames):
        label, files = resolved(partial(label_of, suffix, number, len(frames)))
        rows = rows_of(relative, suffix)
        loader = partial(load_file, root, image, config, label, about["cell_type"], scene, time, rows)
        told = (
            relative.as_posix() if parts == (path,) else " + ".join(part.relative_to(root).as_posix() for part in parts)
        )
        source = told + suffix.replace("_s", " scene ").replace("_t", " t ")
        yield SourceImage(
            image_id_of(name, suffix), source=source, loader=loader, own_id=stem_of(relative) + suffix,
            files=(*parts, *files), unit=unit, bare=label.args == (None,), scene=scene, time=time, **about,
        )  # fmt: skip


def about_folders(folders: Sequence[str], config) -> dict[str, str]:
    """Return cell type, group and split that the folders of an image tell: those that are neither of the others are the group."""
    folders = [part for part in folders if plain(part) not in IMAGE_FOLDERS]
    rest = [part for part in folders if not named_class(part, config)]  # a class called test is a class
    split = split_of_folders(rest)
    other = [part for part in rest if not split_of_folders([part])]
    return {"cell_type": cell_type_of(folders, config), "group": "/".join(other), "split": split}


def resolved(find: Callable[[], Label | Path | None]) -> tuple[Callable, tuple[Path, ...]]:
    """Return what gives the label image that `find()` finds now, or raises what it raises now, and the files of it."""
    try:
        found = find()
    except UserError as error:
        return partial(refuse, *str(error).split("\n", 1)), ()
    return partial(_given, found), () if found is None else (found.path if isinstance(found, Label) else found,)


def _given(found):
    return found


# ---- which images, which split -------------------------------------------------------------------------------------
def limit_images(items: Sequence[SourceImage], max_images: int | None) -> list[SourceImage]:
    """Keep at most `max_images` per cell type, each chosen by its own name alone, in the order given.

    So an image more takes the place of one other, or of none. Each of the source's own splits keeps its share, and at least
    one image while there are enough; what they leave out goes.
    Test images that the source itself calls so, and that have no truth while others have, all stay: each is asked for.
    """
    if max_images is None:
        return list(items)
    some_truth = not all(item.bare for item in items)
    kept = {position for position, item in enumerate(items) if some_truth and item.bare and item.is_asked}
    if kept and len(items) > max_images:
        LOG.warning(f"convert.max_images: all {len(kept)} test images without truth stay, each is asked for")
    by_type: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, item in enumerate(items):
        if item.split != UNUSED and position not in kept:
            by_type[item.cell_type][item.split].append(position)
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


def draw_split(items: Sequence[SourceImage], fractions: dict, config) -> dict[str, SourceImage]:
    """Return the items by id, each with a split drawn by `records.split_records`.

    The frames of one file or series (`SourceImage.unit`) get one split; by group, those of one group. Where
    ``convert.group_from`` tells frames of one file apart, they are dealt out one by one.
    """
    units = [_unit_of(item, config) for item in items]
    bare = [
        ImageRecord(i.image_id, i.source, 1, 1, cell_type=i.cell_type, group=unit)
        for i, unit in zip(items, units, strict=True)
    ]
    drawn = split_records(bare, fractions, config.seed, by="group")
    _say_uneven(drawn, fractions, config.seed)
    return {item.image_id: replace(item, split=record.split) for item, record in zip(items, drawn, strict=True)}


def _say_uneven(drawn: Sequence[ImageRecord], fractions: dict, seed: int) -> None:
    """Say which images fill a split that would stay empty (they may move back), and shares far from those asked for."""
    units = {record.group or record.image_id: record.split for record in drawn}
    filling = sorted(unit for unit, split in units.items() if split != split_by_name(unit, fractions, seed))
    counts = {name: sum(record.split == name for record in drawn) for name in fractions}
    if filling and all(
        counts[name] for name, share in fractions.items() if share
    ):  # else the set is refused as too small
        some = ", ".join(f"{unit} to {units[unit]}" for unit in filling[:4]) + (", ..." if len(filling) > 4 else "")
        LOG.warning(
            f"few images: moved, so that no split lacks images or a class: {some}. They may move on when images are added; "
            f"if some will be, name the splits now by folders {', '.join(fractions)}, where the source reads such folders"
        )
    wanted = {name: len(drawn) * share for name, share in fractions.items()}
    if len(drawn) >= 10 and any(abs(counts[name] - wanted[name]) > max(2.5, wanted[name] / 2) for name in fractions):
        told = " / ".join(f"{counts[name]} {name}" for name in fractions)
        asked = " / ".join(f"{wanted[name]:.0f}" for name in fractions)
        LOG.warning(f"the split by name is {told} (asked: {asked}); another convert.seed deals anew")


def _unit_of(item: SourceImage, config) -> str:
    if config.split_by == "group" and item.group:
        return item.group
    return f"{item.unit} {item.group}" if item.unit and config.group_from else item.unit


def _check_filled(items: Sequence[SourceImage], units: Sequence[str], fractions: dict) -> None:
    """Refuse a split without training or validation images for want of files, not of frames; say it of test images."""
    missing = [name for name, share in fractions.items() if share and not any(item.split == name for item in items)]
    largest = Counter(unit for unit in units if unit).most_common(1)
    if not missing or not largest or largest[0][1] < 2:
        return
    count = len(set(filter(None, units))) + units.count("")
    told = f"{len(units)} images are of {count} file(s), series or group(s), e.g. {largest[0][0]}, that are not torn apart: "
    told += f"none is left for {' and '.join(missing)}"
    remedy = "set convert.group_from: (?P<group>.*) to deal the frames out one by one (their scores will flatter), or add files"
    if missing == ["test"]:
        LOG.warning(f"{told}; {remedy}")
    else:
        refuse_or_note(UserError(told, remedy))


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
    folder = item.source.split(": ")[-1].rpartition("/")[0]  # below the data folder: its place on a disk says nothing
    return "" if shared is None else image_id_of(f"{folder}/{shared or 'series'}.x".lstrip("/"))


def split_off(items: list[SourceImage], config, wanted: Sequence[str] = ("val", "test")) -> list[SourceImage]:
    """Give shares of the training images to those of `wanted` that the source's own split has no images for.

    The shares are those of ``config.split``: of all training images, whatever other splits there are.
    """
    splits = {item.split for item in items}
    shares = {name: dict(config.split).get(name, 0) for name in wanted if name not in splits}
    shares = {name: share for name, share in shares.items() if share}
    if "train" not in splits or not shares:
        return items
    train = [item for item in items if item.split == "train"]
    drawn = draw_split(train, {"train": 1 - sum(shares.values()), **shares}, config)
    return [drawn.get(item.image_id, item) for item in items]


def assign_splits(
    items: Sequence[SourceImage],
    config,
    mixed_is_test: bool = False,
    fill_split: bool = False,
    left: Iterable[SourceImage] = (),
) -> Iterator[SourceImage]:
    """Check ids, keep `config.max_images` of each cell type, and give a split to those the source gave none.

    Groups come from the names where ``config.group_from`` says so. With `mixed_is_test` mixed images without a split of the
    source become test images: nothing can be trained on them. With `fill_split` the splits that the source's own lacks are
    split off its training images, see `split_off`. `left` follows as it is: what fits no image, see `cellkit.leftovers`.

    Raises
    ------
    UserError
        Two images of one id; the split goes by group, and no image has one, or the source's own split tears one apart; or
        the frames of too few files for a split.
    """
    check_ids((item.image_id, item.source) for item in items)
    items = _without_common_folder(name_groups(name_series(items), config.group_from), config)
    if config.split_by == "group" and items and not any(item.group for item in items):
        refuse_or_note(
            UserError(
                "convert.split_by is group, and no image has a group",
                "set convert.group_from to an expression that finds it in the names, such as (?P<group>[A-H][0-9][0-9]), put "
                "the images into a folder for each plate or donor, or set convert.split_by: image",
            )
        )
    if not config.published_split:  # what has no truth can be a test image only
        items = [item if item.bare and item.split == "test" else replace(item, split="") for item in items]
    items = [replace(item, is_asked=item.split == "test") for item in items]
    if fill_split:
        items = split_off(items, config)
    if mixed_is_test:
        mixed = [item.cell_type == MIXED and not item.split for item in items]
        items = [replace(item, split="test") if m else item for item, m in zip(items, mixed, strict=True)]
    items = limit_images(items, config.max_images)
    without = [item for item in items if not item.split]
    drawn = draw_split(without, dict(config.split), config) if without else {}
    if without and any(item.split and item.split != UNUSED and item.cell_type != MIXED for item in items):
        LOG.warning(
            f"{len(without)} of {len(items)} images are called after no split, e.g. {without[0].source}, and others are: "
            "theirs is drawn; rename their folder or list them if the source has a split for them"
        )
    done = [drawn.get(item.image_id, item) for item in items]
    if len(without) == len(items):
        _check_filled(done, [_unit_of(item, config) for item in items], dict(config.split))
    if config.split_by == "group":
        _refuse_groups_across_splits(done)
    own = {item.split for item in items}
    if len(own) == 1 and (only := own.pop()) not in ("", "train", UNUSED) and not all(item.bare for item in items):
        LOG.warning(
            f"the source's own names make all {len(items)} images {SPLIT_WORDS[only]}s; "
            "convert.published_split: false draws a split"
        )
    yield from (replace(item, split="") if item.split == UNUSED else item for item in done)
    yield from left


def _without_common_folder(items: list[SourceImage], config) -> list[SourceImage]:
    """Drop a group that all images share because they lie in one folder: it tells none of them from another."""
    common = len({item.group for item in items}) == 1 and not any(item.unit for item in items)
    asked = config.group_from or config.split_by == "group"
    return [replace(item, group="") for item in items] if common and not asked else items


def apart_from_bare(items: list[SourceImage]) -> tuple[list[SourceImage], list[SourceImage]]:
    """Return the images to use, and those without labels among others with, which are no test images by chance.

    Test images that the source itself calls so, and mixed ones, stay: they are predicted. `gather` names the others.
    """
    if all(item.bare for item in items):
        return items, []
    wanted = [not item.bare or bool(item.split) or item.cell_type == MIXED for item in items]
    kept = [item for item, use in zip(items, wanted, strict=True) if use]
    return kept, [item for item, use in zip(items, wanted, strict=True) if not use]


def check_enough(images: Sequence, settings, of: str = "images") -> None:
    """Refuse a set too small for what the notebooks do with it: train, choose, report, and tell the classes apart.

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
    told, mend = [], []
    missing = [split for split in dict.fromkeys(("train", "val", report)) if not count[split]]
    if missing:
        told.append(f"no {' and no '.join(SPLIT_WORDS[split] for split in missing)}")
        mend.append(
            f"give {2 if report == 'val' else 3} images or more, better 3 per cell line (convert.split says which share "
            "goes where; of a source with a split of its own each part needs one)"
        )
    if missing == ["test"]:
        mend[0] += (
            ", or report on the validation images: evaluate.report_split=val (it is then said that they also chose)"
        )
    elif missing:
        mend[0] += ", or only predict: cellkit predict starter IMAGES -o OUT.json"
    lines = {image.cell_type for image in images if image.split == "train"}
    without = [name for name in settings.classes if name not in lines]
    if settings.coco.class_from == "cell_type" and without and count["train"]:
        told.append(f"no training image is of the class {' or '.join(without)}")
        mend.append(
            "give more images of it in a folder of its name, or take it out of classes, or set coco.class_from: truth where "
            "the labels name the classes"
        )
    if report == chooses == "val" and count["test"]:
        told.append("evaluate.report_split is val, whose images also choose the model, although there are test images")
        mend.append("set evaluate.report_split: test")
    if told:
        held = f"{count['train']} for training, {count['val']} for validation, {count['test']} for test"
        refuse_or_note(UserError(f"{len(images)} {of} ({held}): {'; '.join(told)}", "; ".join(mend)))


def check_labelled(records: Sequence[ImageRecord], instances: Sequence[Instances | None] | None, settings) -> None:
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
        refuse_or_note(
            UserError(
                f"no training image has a labelled cell of {', '.join(without)}; the class of a cell is told by {how}",
                "label cells of it in training images, change convert.split, or take it out of classes",
            )
        )


def _refuse_groups_across_splits(items: Sequence[SourceImage]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.group and item.split != UNUSED:
            splits[item.group].add(item.split)
    torn = sorted(group for group, names in splits.items() if len(names) > 1)
    if torn:
        refuse_or_note(
            UserError(
                f"{len(torn)} group(s), e.g. {torn[0]}, are in more than one split ({', '.join(sorted(splits[torn[0]]))})",
                "set convert.published_split: false to draw a split by group, or convert.split_by: image to keep the source's",
            )
        )


def header_of(path: Path) -> list[str]:
    """Return the column names of a CSV file, none where there is no such file or no text in it."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        lines = decoded(file.read(10_000), "ignore").splitlines()
    text = lines[0].strip() if lines else ""
    return [name.strip().strip('"') for name in text.split(max(",;\t", key=text.count))]
