"""COCO sets: the truth lies in COCO files. Each image is decoded when it is loaded, not before."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastcore.basics import groupby

from cellkit.cells.instances import IGNORE
from cellkit.cells.names import image_id_of, plain, repeated, split_of_file, split_of_folders, stem_of
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, counted, readable
from cellkit.files import decoded
from cellkit.formats.coco_dialects import crowd_of, key_of, to_plain
from cellkit.formats.coco_maker import maker_in
from cellkit.log import LOG
from cellkit.microscope.folders import (
    IMAGE_SUFFIXES,
    Folders,
    check_inside,
    folders_of,
    list_files,
    listed_ends,
    may_be_named,
)
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import MOST_NAMED, leftovers
from cellkit.sources.listing import (
    UNUSED,
    Convert,
    Loaded,
    SourceImage,
    class_id_of,
    failing,
    known_class,
    only_class,
)
from cellkit.sources.loading import about_annotated, check_shape, load_picture, noted, proposals_are_no_truth
from cellkit.sources.own_split import split_word

ORDER = 70

HEAD_BYTES = 65_536


COCO_KEY = re.compile(r'"(images|annotations|categories|shapes)"\s*:')  # "shapes" is LabelMe's


NUMBER = re.compile(r"\d+|\w$")  # what tells folders of a series apart, the last letter too


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any(looks_like_coco(path) for path in list_files(root, (".json",), True)[:20])


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """COCO files (``*.json``) and the pictures they name, which lie anywhere below the folder.

    A file called after train, val or test, or in a folder called so, is that split; else the ``split`` (``subset``, ``set``)
    of an image, else the folder of the picture; by group, its other folders are the group. Classes go by the names of the
    categories. Files that cellkit wrote bring back cell type, group and split. A file with boxes and no masks gives boxes. Crowd
    regions and objects of a category "ignore" are not annotated.
    """
    root = Path(root)
    listed: list[_Listed] = []
    sheets = read_sheets(root, config.coco_convention)
    pictures = _Pictures(root, sheets)
    _warn_other_names(sheets)
    _warn_unread(root)
    for sheet in sheets:
        for label in sorted(sheet.used_categories()):
            known_class(label, config)
        listed += [_coco_image(root, sheet, entry, pictures, config) for entry in sheet.images]
    items = _once_each(listed)
    yield from assign_splits(items, config, fill_split=True, left=list(leftovers(root, items)))


def _warn_other_names(sheets: list[Sheet]) -> None:
    """Say which categories one file uses and another does not even name: they go by name, whatever their numbers."""
    used = {name for sheet in sheets for name in sheet.used_categories()}
    for sheet in sheets:
        missing = sorted(used - {str(entry.get("name")) for entry in sheet.categories})
        if missing:
            LOG.warning(f"{sheet.path.name} names no category {', '.join(missing)}, which another file uses")


def classes(root: Path) -> set[str]:
    """Return the names of the categories that the annotations below a folder use."""
    return {name for sheet in read_sheets(root) for name in sheet.used_categories()}


@dataclass
class Sheet:
    """One COCO file, its annotations sorted by image but not decoded.

    Polygons are kept as packed numbers: a file of a million cells would not fit into memory as lists.
    """

    path: Path
    split: str
    images: list[dict]
    categories: list[dict]
    rows: dict[str, list[dict]]
    boxes_only: bool

    def head(self) -> Sheet:
        """Return the file without images and annotations: little enough to send to a worker with each image."""
        return replace(self, images=[], rows={})

    def used_categories(self) -> set[str]:
        """Return the names of the categories that occur in annotations."""
        names = {
            str(key_of(entry.get("id"))): str(entry.get("name")) for entry in self.categories if isinstance(entry, dict)
        }
        used = {str(key_of(row.get("category_id"))) for rows in self.rows.values() for row in rows}
        return {names[number] for number in used if number in names} - {"unknown", IGNORE}


def read_sheets(root: Path, convention: str | None = None) -> list[Sheet]:
    """Return the COCO files below a folder, in order of path; other JSON files are left alone.

    `convention` says whose files they are, see `cellkit.formats.coco_dialects`.
    """
    found = []
    for path in list_files(root, (".json",), keep_labels=True):
        check_inside(path, root)
        if looks_like_coco(path):
            sheet = _read_sheet(path, convention)
            folder = split_of_folders(path.relative_to(root).parts[:-1])
            found.append(sheet if sheet.split else replace(sheet, split=folder))
    named = [sheet for sheet in found if split_of_file(sheet.path.stem)]
    if named and not all(sheet.split for sheet in found):
        listed = ", ".join(f"{sheet.path.name} ({sheet.split})" for sheet in named)
        LOG.warning(f"a word of their names makes all images of {listed} a split, and other files name none")
    return found


def looks_like_coco(path: Path) -> bool:
    """Tell whether a JSON file is COCO: an object with images, annotations or categories, wherever in it they begin."""
    return _first_key(path) == ("{", True)


def _first_key(path: Path) -> tuple[str, bool]:
    """Return how a JSON file begins, and whether COCO's names come in it, before LabelMe's or without."""
    with open(path, "rb") as file:
        text = decoded(file.read(HEAD_BYTES), "ignore").lstrip()
        begin = text[:1]
        while begin in ("{", "[") and (more := text):
            if found := COCO_KEY.search(text):
                return begin, found[1] != "shapes" and not ('"shapes":' in text and '"imagePath"' in text)
            more = file.read(HEAD_BYTES)
            text = text[-64:] + decoded(more, "ignore") if more else ""  # a name may lie across two reads
    return begin, False


def _warn_unread(root: Path) -> None:
    """Name the JSON files of another form that speak of images, annotations or categories all the same."""
    paths = list_files(root, (".json",), keep_labels=True)
    unread = [path.relative_to(root).as_posix() for path in paths if _first_key(path) == ("[", True)]
    if unread:
        named = ", ".join(unread[:MOST_NAMED]) + (", ..." if len(unread) > MOST_NAMED else "")
        problem = "hold a list, where COCO is one object with images, annotations and categories: not read"
        LOG.warning(f"{counted(len(unread), 'JSON file')} {problem}: {named}")


def _packed(entry: dict) -> dict:
    """Pack the polygons of an annotation; what are no lists of numbers stays, to be refused where it is decoded."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and polygons:
        with suppress(TypeError, OverflowError):
            entry["segmentation"] = tuple(array("d", polygon) for polygon in polygons)
    return entry


def _unpacked(row: dict) -> dict:
    polygons = row.get("segmentation")
    return row | {"segmentation": [list(p) for p in polygons]} if isinstance(polygons, tuple) else row


def _read_sheet(path: Path, convention: str | None) -> Sheet:
    try:
        data = json.loads(decoded(path.read_bytes()), object_hook=_packed)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {str(error)[:100]}", "fetch it again; it is damaged") from error
    if isinstance(data.get("annotations"), dict):  # some exports number them as keys
        data["annotations"] = list(data["annotations"].values())
    data, _ = to_plain(data, convention, path)
    images, annotations, categories = (data.get(key) for key in ("images", "annotations", "categories"))
    if not all(
        isinstance(part, list) and all(isinstance(x, dict) for x in part) for part in (images, annotations, categories)
    ):
        raise UserError(f"{path} lacks lists of images, annotations and categories", "give a whole COCO file")
    ignored = {key_of(entry.get("id")) for entry in categories if plain(str(entry.get("name"))) == IGNORE}
    objects = [row for row in annotations if not crowd_of(row) and key_of(row.get("category_id")) not in ignored]
    no_masks = bool(objects) and not any(row.get("segmentation") for row in objects)
    return Sheet(path, split_of_file(path.stem), images, categories, _by_image(path, images, annotations), no_masks)


def _by_image(path: Path, images: list[dict], annotations: list[dict]) -> dict[Any, list[dict]]:
    """Group the annotations; refuse duplicate image ids, and annotations of images that are not there."""
    if twice := repeated(str(key_of(entry.get("id"))) for entry in images):
        raise UserError(f"{path}: image id {twice[0]} is there twice", "give every image an id of its own")
    rows = groupby(annotations, lambda row: str(key_of(row.get("image_id"))))
    orphans = set(rows) - {str(key_of(entry.get("id"))) for entry in images}
    if orphans:
        count = sum(len(rows[number]) for number in orphans)
        raise UserError(
            f"{path}: {counted(count, 'annotation')} without their image in the file, e.g. image_id {min(orphans)}",
            "give the file the images it was made for",
        )
    return rows


class _Pictures:
    """The pictures below a folder, found by the path a COCO file names, else by file name where no folder contradicts."""

    def __init__(self, root: Path, sheets: Sequence[Sheet]):
        self.root = root
        self.by_name = groupby(list_files(root, IMAGE_SUFFIXES, keep_labels=True), lambda path: plain(path.name))
        names = [readable(str(entry.get("file_name") or "")) for sheet in sheets for entry in sheet.images]
        self.listed = listed_ends(names)
        self.renamed = self._renamed(names)
        self.told: set[str] = set()

    def find(self, named: str, sheet: Path, split: str = "") -> Path:
        """Return the one picture, of several that in folders of the file's `split`; raises where that leaves none or several."""
        named = named.replace("\\", "/")
        for folder in dict.fromkeys((sheet.parent, self.root, sheet.parent / "images", self.root / "images")):
            if named and (folder / named).is_file():
                return folder / named
        found = self.by_name.get(plain(Path(named).name), [])
        for spelled in (str, plain):  # exactly so, else the same name spelled in another way
            ending = [path for path in found if f"/{spelled(path.as_posix())}".endswith(f"/{spelled(named)}")]
            if ending:
                break
        ending = ending or [path for path in found if self._may_be(path, named, sheet.parent)]
        ending = ending or self._in_renamed(found, plain(named).rpartition("/")[0], sheet)
        if len(ending) > 1 and split:  # instances_train.json and images/train/
            own = [p for p in ending if split_of_folders(p.relative_to(self.root).parts[:-1]) == split]
            ending = own or ending
        if len(ending) != 1:
            problem = f"is {len(ending)} pictures, e.g. {ending[0]}, {ending[1]}" if ending else "is not there"
            if found and not ending:
                problem += f"; {found[0].relative_to(self.root).as_posix()} is, in another folder"
            raise UserError(f"{named} of {sheet.name} {problem}", "put each picture where the COCO file says it is")
        return ending[0]

    def _may_be(self, path: Path, named: str, beside: Path) -> bool:
        """Whether folders leave open that `path` is `named`, and no other picture that the files name."""
        places = [path.relative_to(base).as_posix() for base in (self.root, beside) if path.is_relative_to(base)]
        return any(may_be_named(named, there, self.listed) for there in places)

    def _renamed(self, names: Sequence[str]) -> dict[str, Path]:
        """Return {folder that the files name: folder that holds all of its pictures and no other}, where no name comes twice.

        The folder here is none that the files name besides.
        """
        entries = [plain(name).rpartition("/")[::2] for name in names]
        uses = Counter(file for _, file in entries)
        here = Counter(path.parent for paths in self.by_name.values() for path in paths)
        by_folder = groupby(entries, 0, 1)
        ends = {end for folder in by_folder for end in _ends(folder)}
        found = {}
        for folder, files in by_folder.items():
            is_whole = all(uses[file] == 1 == len(self.by_name.get(file, ())) for file in files)
            homes = {self.by_name[file][0].parent for file in files} if folder and is_whole else ()
            if len(homes) == 1 and here[home := homes.pop()] == len(files):
                there = plain(home.relative_to(self.root).as_posix())
                if there not in ends and not any(end in by_folder for end in _ends(there)):
                    found[folder] = home
        return found

    def _in_renamed(self, found: list[Path], folder: str, sheet: Path) -> list[Path]:
        """Return the picture of a folder that has another name here, and say so once."""
        said = folders_of((sheet.parent.relative_to(self.root) / folder / sheet.name).as_posix())
        ending = [path for path in found if path.parent == self.renamed.get(folder)]
        ending = [path for path in ending if not _are_apart(said, folders_of(path.relative_to(self.root).as_posix()))]
        if ending and folder not in self.told:
            self.told.add(folder)
            there = ending[0].parent.relative_to(self.root).as_posix()
            LOG.warning(
                f"the COCO file's folder {folder} is taken for {there}, which holds the same names and no other"
            )
        return ending


def _ends(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[k:]) for k in range(len(parts))]


def _are_apart(one: Folders, other: Folders) -> bool:
    """Tell whether two folders are of two splits, or differ as plate1 and plate2 do: neither is the other renamed."""
    pairs = [(a, b) for a in one.names for b in other.names if NUMBER.sub("#", a) == NUMBER.sub("#", b)]
    is_same = one.names[-1:] == other.names[-1:]
    return is_same or any(a != b for a, b in pairs) or bool(one.split and other.split and one.split != other.split)


class _Listed(NamedTuple):
    """An entry of a COCO file: the image made of it, and how many cells it has."""

    item: SourceImage
    cells: int


def _coco_image(
    root: Path, sheet: Sheet, entry: dict, pictures: _Pictures, config: ConvertConfig, line=None
) -> _Listed:
    """Make a SourceImage of one entry; with `line` = (cell type, group) all its cells are of that type."""
    rows = sheet.rows.get(str(key_of(entry.get("id"))), [])
    named = readable(str(entry.get("file_name") or ""))
    label = str(entry.get("cell_type") or "")
    cell_type = (
        {plain(name): name for name in (*config.classes, MIXED)}.get(plain(label)) or only_class(config) or MIXED
    )
    cell_type, group = line or (cell_type, str(entry.get("group") or ""))
    split = sheet.split or split_word(entry, f"{sheet.path.name} image {entry.get('id')}")
    files: tuple[Path, ...] = ()
    try:
        path = Path(os.path.normpath(pictures.find(named, sheet.path, sheet.split)))
        named = path.relative_to(root).as_posix() if path.is_relative_to(root) else named
        files = (path,)
        loader = partial(_load_coco, root, path, sheet.head(), entry, rows, cell_type if line else None, config)
    except UserError as error:
        loader = failing(*str(error).split("\n", 1))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        loader = failing(f"no file can be called '{named[:80]}': {reason}", "write the COCO file again")
    parts = [part for part in named.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    *folders, name = parts or [f"{sheet.path.stem}_{entry.get('id')}"]
    split = split or split_of_folders(folders)
    group = group or (about_annotated(folders, config)["group"] if files and line is None else "")
    image_id = image_id_of("/".join([*(part for part in folders if part.lower() != "images"), name]))
    source = f"{sheet.path.relative_to(root).as_posix()} image {entry.get('id')}: {named}"
    own_id = stem_of(Path(name)) if parts else ""
    return _Listed(SourceImage(image_id, cell_type, group, split, source, loader, own_id, files=files), len(rows))


def _load_coco(
    root: Path,
    path: Path,
    sheet: Sheet,
    entry: dict,
    rows: list[dict],
    line: str | None,
    config: ConvertConfig,
    convert: Convert,
) -> Loaded:
    from cellkit.formats.coco_reading import parse_coco

    rows = [_unpacked(row) | {"image_id": 1} for row in rows]
    if maker_in(entry, rows, sheet.categories) == "proposed":
        raise proposals_are_no_truth(sheet.path.name)
    made = load_picture(root, path, config, convert)
    content = {"images": [entry | {"id": 1}], "categories": sheet.categories, "annotations": rows}
    coco = parse_coco(content, sheet.path.name, boxes=sheet.boxes_only, convention="plain", one_image=True)
    cells = coco.instances[0]
    check_shape(cells.shape, made.image.shape[:2], f"{sheet.path.name} image {entry.get('id')}", path)
    if line is None:
        used = np.unique(cells.class_ids[cells.class_ids > 0]).tolist()
        number = {0: 0} | {k: class_id_of(coco.classes[k - 1], config) for k in used}
        ids = [number[k] for k in cells.class_ids.tolist()]
    else:
        ids = class_id_of(line, config) if line else 0
    cells = replace(cells.with_classes(ids), boxes_only=sheet.boxes_only)
    return noted(made._replace(instances=cells, planes="".join(f"({text})" for text in coco.notes)), coco.notes)


def _once_each(listed: list[_Listed]) -> list[SourceImage]:
    """Keep one entry of each image; the others stay in the list, to be skipped with the reason."""
    order = {"test": 0, "val": 1, "train": 2, "": 3}
    best: dict[str, _Listed] = {}
    for one in sorted(listed, key=lambda one: not one.item.files):  # what has no picture yields to what has
        other = best.setdefault(one.item.image_id, one)
        if not one.item.files:
            continue
        if (order[one.item.split], -one.cells) < (order[other.item.split], -other.cells):
            best[one.item.image_id] = one
    kept, again = [], Counter()
    for one in listed:
        winner = best[one.item.image_id].item
        if one.item is not winner:
            again[winner.image_id] += 1
            refusal = failing(f"the image is listed twice; {winner.source} is used", "remove one of the two")
            refusal = refusal if one.item.files else one.item.loader  # its own reason: no one picture is called so
            name = f"{winner.image_id}_again{again[winner.image_id]}"
            kept.append(replace(one.item, image_id=name, split=UNUSED, loader=refusal))
        else:
            kept.append(winner)
    return kept
