"""The split of a source that lies in files of its own: lists of names (``train.txt``), and a column of a table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cellkit.cells.names import plain, split_of_folder, stem_of
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.microscope.folders import IMAGE_SUFFIXES, listed_ends, may_be_named
from cellkit.sources.listing import UNUSED, SourceImage
from cellkit.sources.source_tables import header_of, read_lines, read_table

LIST_FOLDERS = ("", "ImageSets/Main", "ImageSets", "ImageSets/Segmentation", "splits", "split", "lists")
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
NAME_COLUMNS = ("image", "filename", "file_name", "image_name", "file", "path", "name", "image_id", "id")
TRAINVAL = ("trainval", "trainvalid", "trainvalidation")
LIST_WORDS = re.compile(r"(?:^|[ _.\-]+)(?:lists?|files?|filenames?|ids?|names?)(?=$|[ _.\-])", re.IGNORECASE)
NOT_READ = (".csv", ".tsv", ".json", ".yaml", ".yml", ".xlsx", ".xls", ".pkl", ".npy")


def split_lists(root: Path) -> list[tuple[Path, str]]:
    """Return the lists called after a split, (path, split), of the first folder that has any.

    ``trainval.txt`` is training and validation in one, and comes last: where one of the two has a list of its own, the other
    is what that leaves over; where neither has, all of it is training, of which validation images are split off.
    """
    for folder in LIST_FOLDERS:
        paths = sorted((root / folder).glob("*.txt"))
        found = [(path, split) for path in paths if (split := split_of_folder(LIST_WORDS.sub("", path.stem)))]
        there = {split for _, split in found}
        rest = "val" if "train" in there else "train"
        both = [(path, rest) for path in paths if _is_trainval(path.stem) and not {"train", "val"} <= there]
        if found or both:
            return [*found, *both]
    return []


def _bare(line: str) -> str:
    return Path(line).stem if line.lower().endswith(IMAGE_SUFFIXES) else line


def read_split_lists(
    lists: Iterable[tuple[Path, str]], root: Path, name_in: Callable[[str], str] = _bare
) -> dict[str, str]:
    """Return {name: split} of lists, (path, split); ``name_in(line)`` gives a name. A name in two splits is refused.

    Raises
    ------
    UserError
        A name stands in the lists of two splits.
    """
    split_of: dict[str, str] = {}
    for path, split in lists:
        both = _is_trainval(path.stem)
        for name in map(name_in, read_lines(path, root)):
            if split_of.setdefault(name, split) != split and not both:
                raise UserError(f"{path} lists {name}, which is {split_of[name]} already", "list each image once")
    return split_of


def _is_trainval(word: str) -> bool:
    return re.sub(r"[\W\d_]+|and", "", plain(word)) in TRAINVAL


def split_word(row: Mapping[str, object], where: str) -> str:
    """Return the split that a row of a table, or an entry of a JSON file, tells in a field of `SPLIT_COLUMNS`.

    "" where it has no such field, or nothing in it. A field called ``split`` must hold a split; in one that is called
    otherwise any other word may mean something else, and says nothing.

    Raises
    ------
    UserError
        The split is none that is known.

    Examples
    --------
    >>> split_word({"Subset": "valid"}, "a.csv"), split_word({"set": "B"}, "a.csv"), split_word({"id": 1}, "a.csv")
    ('val', '', '')
    """
    for key, value in row.items():
        if plain(key) in SPLIT_COLUMNS and isinstance(value, str) and value.strip():
            found = split_of_folder(value)
            if found or _is_trainval(value):
                return found or "train"
            if plain(key) == "split":
                raise UserError(
                    f"{where}: the split is '{value}'",
                    "write train, val or test, or rename the column if it means another",
                )
    return ""


def read_split_tables(root: Path) -> tuple[dict[str, str], list[Path]]:
    """Return {name: split} of the tables in a folder that have a column of file names and one of splits, and their paths.

    Raises
    ------
    UserError
        A name has two splits.
    """
    split_of: dict[str, str] = {}
    used = []
    for path in sorted(path for path in root.glob("*.[ct]sv") if path.is_file()):
        columns = [plain(name) for name in header_of(path)]
        name = next((name for name in NAME_COLUMNS if name in columns), None)
        if name is None or not set(SPLIT_COLUMNS) & set(columns):
            continue
        for line, row in enumerate(read_table(path, [name], root), 2):
            split = split_word(row, f"{path} line {line}")
            key = _without_suffix(row[name].strip())
            if key and split and split_of.setdefault(key, split) != split:
                raise UserError(f"{path} line {line}: {row[name]} is {split_of[key]} already", "list each image once")
        used.append(path)
    return split_of, used


def with_own_split(
    items: Sequence[SourceImage], root: Path, config: ConvertConfig
) -> tuple[list[SourceImage], list[Path]]:
    """Give each image the split that lists or tables in the data folder name for it; an image in none of them has none.

    A name is the path below the data folder, or the end of one, with suffix or without; or a path that ends with it, as on
    another disk. Lists of which no line is an image are ignored, with a warning.

    Returns
    -------
    items : list of SourceImage
    used : list of Path
        The lists and tables.

    Raises
    ------
    UserError
        An image is in two lists, or its folder is called after another split; or a name could be several images.
    """
    if not config.published_split:
        return list(items), []
    named = split_lists(root)
    lists = read_split_lists(named, root, _without_suffix)
    tables, paths = read_split_tables(root)
    used = [path for path, _ in named] + paths
    listed_in = ", ".join(path.relative_to(root).as_posix() for path in used)
    for name, split in tables.items():
        if lists.setdefault(name, split) != split:
            raise UserError(f"{listed_in}: {name} is {lists[name]} and {split}", "keep one of them")
    unread = [path.name for path in _perhaps_splits(root) if path not in used]
    if unread and not lists:
        LOG.warning(
            f"{', '.join(unread)} may say a split, and is not read: list the names in train.txt, val.txt and test.txt"
        )
    if not lists:
        return list(items), []
    found = _found(lists, items, root, listed_in)
    if not found:
        LOG.warning(f"{listed_in}: no name there is an image, e.g. {next(iter(lists))}; no split is read from it")
        return list(items), used
    missing = sorted(set(lists) - {name for name, _ in found.values()})
    if missing:
        LOG.warning(f"{listed_in}: {len(missing)} of {len(lists)} names are no image, e.g. {missing[0]}")
    done, without = [], 0
    for item in items:
        split = found[item.source][1] if item.source in found else item.split
        if item.split not in ("", split):
            raise UserError(
                f"{item.source} is {split} in {listed_in}, and its folder says {item.split}",
                "keep one of them, or set convert.published_split: false to draw a split",
            )
        if not split and item.cell_type != MIXED and not item.bare:
            split, without = UNUSED, without + 1
        done.append(replace(item, split=split))
    if without:
        LOG.warning(f"{without} of {len(items)} images are in none of {listed_in} and in no split")
    return done, used


def _found(
    split_of: Mapping[str, str], items: Iterable[SourceImage], root: Path, listed_in: str
) -> dict[str, tuple[str, str]]:
    """Return, by the source of an image, the name that lists it and the split."""
    by_end: dict[str, list[SourceImage]] = defaultdict(list)
    places: dict[str, list[str]] = defaultdict(list)
    listed = listed_ends(split_of)
    for item in items:
        for path in item.files:
            places[item.source].append(path.relative_to(root).as_posix())
            *folders, _ = plain(path.as_posix()).split("/")
            for own in dict.fromkeys((plain(stem_of(path)), plain(item.own_id).rpartition("/")[2])):
                parts = [*folders, own]
                for k in range(len(parts)):
                    by_end["/".join(parts[k:])].append(item)
    found: dict[str, tuple[str, str]] = {}
    for name, split in split_of.items():
        parts = name.split("/")
        those = by_end.get(name, [])
        for k in range(1, 0 if those else len(parts)):
            shorter = by_end.get("/".join(parts[k:]), ())
            those = those or [
                item for item in shorter if any(may_be_named(name, there, listed) for there in places[item.source])
            ]
        if len({item.files[0] for item in those}) > 1:  # of one name in several folders
            raise UserError(
                f"{listed_in}: {name} is {len(those)} images, e.g. {those[0].source} and {those[1].source}",
                "write their paths below the data folder",
            )
        for item in those:
            if found.setdefault(item.source, (name, split))[1] != split:
                raise UserError(f"{listed_in}: {item.source} is in two splits", "list each image once")
    return found


def _perhaps_splits(root: Path) -> list[Path]:
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in NOT_READ and path.is_file())
    return [path for path in paths if re.search(r"split|fold", plain(path.stem)) or split_of_folder(path.stem)]


def _without_suffix(name: str) -> str:
    name = plain(name)
    ending = next((end for end in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if name.endswith(end)), "")
    return name.removesuffix(ending).removesuffix(".ome")
