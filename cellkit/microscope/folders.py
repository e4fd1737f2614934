"""The files below a folder: which are pictures, which label images, and which picture a name means."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from fastcore.basics import groupby

from cellkit.cells.names import (
    HASHED,
    LABEL_ENDINGS,
    Keys,
    image_id_of,
    is_no_data,
    plain,
    same,
    split_of_folder,
    split_of_folders,
    stem_of,
)
from cellkit.errors import UserError, counted
from cellkit.log import LOG
from cellkit.manifest import MANIFEST
from cellkit.microscope.file_info import PICTURE_SUFFIXES, TIFF_SUFFIXES
from cellkit.microscope.open import READ_SUFFIXES, UNREAD_SUFFIXES, is_zarr_by_another_name
from cellkit.microscope.overlay_mark import mark_of

MAX_NAME_BYTES = 255


def ids_of(name: str) -> Keys:
    """Return the image ids that a path without suffix may have become; several where they carry a digest of the path.

    Examples
    --------
    >>> sorted(ids_of("HEK/cell 1"))
    ['HEK_cell_1']
    >>> "50-0b3ee8" in ids_of("50%"), len(ids_of("50%")) > 1
    (True, True)
    """
    name = same(name)
    first = image_id_of(f"{name}.png")
    if not HASHED.search(first) or first == name:
        return frozenset([first])
    suffixes = {*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff", ""}
    return frozenset(image_id_of(name + cased) for suffix in suffixes for cased in (suffix, suffix.upper()))


def are_all_among(folder: str | Path, suffixes: Sequence[str], files: Iterable[str | Path]) -> bool:
    """Tell whether all files below a folder that end so, those called as labels too, are among `files`."""
    among = {os.path.realpath(file) for file in files}
    return all(os.path.realpath(file) in among for file in list_files(folder, suffixes, keep_labels=True))


class Pictures:
    """The pictures below a folder, found by what a label file or an annotation calls them.

    Parameters
    ----------
    folder : path

    Raises
    ------
    UserError
        No such folder.
    """

    def __init__(self, folder: str | Path):

        if not Path(folder).is_dir():
            raise UserError(f"no folder at {folder}", "give the folder that holds the images")
        self.folder = Path(folder)
        self.files = list_files(self.folder, IMAGE_SUFFIXES)
        self._found: tuple[dict[str, list[Path]], ...] = ({}, {}, {})
        for file in self.files:
            whole = self._whole(file.relative_to(self.folder).as_posix())
            keys = ({same(whole)}, {same(stem_of(whole))}, ids_of(whole) | ids_of(stem_of(whole)))
            for table, names in zip(self._found, keys, strict=True):
                for name in names:
                    table.setdefault(name, []).append(file)

    @staticmethod
    def _whole(relative: str) -> str:
        return (Path(relative).parent / stem_of(relative)).as_posix()

    def find(self, name: str) -> tuple[Path, str]:
        """Return the one picture of a name (a path without suffix), and its path below the folder.

        Raises
        ------
        UserError
            There is none, or several.
        """
        by_path, by_stem, by_id = self._found
        stem = name.replace("\\", "/").rsplit("/", 1)[-1]
        lookups = [(by_path, {same(name)}), (by_stem, {same(stem)}), (by_id, ids_of(name)), (by_id, ids_of(stem))]
        for table, names in lookups:
            files = sorted({file for key in names for file in table.get(key, [])})
            if len(files) == 1:
                return files[0], files[0].relative_to(self.folder).as_posix()
            if files:
                shown = " and ".join(file.relative_to(self.folder).as_posix() for file in files[:2])
                raise UserError(
                    f"there are {len(files)} pictures called {stem}: {shown}",
                    "keep labels in the folders of their pictures, or give a folder with one of them",
                )
        near = f"; there are {self.some(3)}" if self.files else ""
        raise UserError(f"there is no picture called {stem}{near}", "name image and labels alike, one of each")

    def besides(self, names: Iterable[str]) -> list[Path]:
        """Return the pictures that none of the names finds."""
        used = set()
        for name in names:
            with suppress(UserError):
                used.add(self.find(name)[0])
        return [file for file in self.files if file not in used]

    def some(self, most: int) -> str:
        """Name the first pictures."""
        names = [file.relative_to(self.folder).as_posix() for file in self.files[:most]]
        return ", ".join([*names, *(["..."] if len(self.files) > most else [])])


IMAGE_SUFFIXES = (*READ_SUFFIXES, *UNREAD_SUFFIXES)


LABEL_SUFFIXES = (".tif", ".tiff", ".png")


NOT_IMAGES = (*LABEL_ENDINGS, "_flows", "_outlines", "_cp_outlines")


LABEL_FOLDERS = ("labels", "masks", "truth", "label", "mask", "gt", "ground_truth", "groundtruth")


IMAGE_FOLDERS = ("images", "image", "imgs", "img", "raw", "raw_images", "rawimages")


def list_files(
    root: Path, suffixes: Sequence[str], keep_labels: bool = False, is_class: Callable[[str], object] = str.isspace
) -> list[Path]:
    """Return the files below `root` with one of `suffixes`, sorted by relative path.

    Hidden names, what file managers leave behind, and unless `keep_labels` label images and their folders (``gt`` is none where
    it `is_class`), are left out; so are pictures with outlines that cellkit drew, which is said.
    Links to folders are not followed, so a loop of links ends; what a link to a file points to must lie below `root`.
    """
    root = Path(root)
    found, drawn = [], []
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not is_no_data(name) and not is_run_folder(Path(folder, name))]
        images = [name for name in folders if name.lower().endswith(".zarr")]  # an OME-Zarr is a folder, and one image
        folders[:] = [name for name in folders if name not in images]
        if not keep_labels:
            folders[:] = [name for name in folders if plain(name) not in LABEL_FOLDERS or is_class(name)]
        for name in names + images:
            path = Path(folder, name)
            if is_no_data(name) or not name.strip().lower().endswith(tuple(suffixes)):
                continue
            if keep_labels or not plain(stem_of(path)).endswith(NOT_IMAGES):
                (drawn if not keep_labels and mark_of(path) is not None else found).append(path)
    if drawn:
        LOG.warning(f"{counted(len(drawn), 'picture')} with outlines that cellkit drew left out, e.g. {min(drawn)}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def odd_zarrs(root: Path) -> list[Path]:
    """Return the folders below `root` that are an OME-Zarr by another name, sorted by path."""
    found = []
    for folder, folders, _ in os.walk(root, followlinks=False):
        below = [Path(folder, name) for name in folders if not is_no_data(name) and not name.lower().endswith(".zarr")]
        odd = [path for path in below if is_zarr_by_another_name(path)]
        folders[:] = [path.name for path in below if path not in odd]
        found += odd
    return sorted(found)


def is_run_folder(folder: Path) -> bool:
    """Tell whether a folder is that of a run: its pictures are made of others, and are no data."""
    return (folder / MANIFEST).is_file() and (folder / "records.csv").is_file()


def check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads out of the data folder, and what cannot be the name of a file.

    Raises
    ------
    UserError
        The link leads out of the folder, or nowhere; or no file can be called so.
    """
    try:
        if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts) or "\0" in str(path):
            raise ValueError("a name too long, or with a sign that no name has")
    except ValueError as error:
        shown = path.name.encode("unicode_escape").decode("ascii")[:80]
        raise UserError(f"no file can be called '{shown}'", "write the file that names it again") from error
    try:
        inside = path.resolve().is_relative_to(Path(root).resolve())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path.name} is a link that leads nowhere: {error}", "remove it") from error
    if not inside:
        raise UserError(f"{path.name} is a link that leads out of {root}", "copy the file into the data folder")


class Folders(NamedTuple):
    """What the folders of a path tell: a split, and the names that are neither a split nor a word for images."""

    split: str
    names: tuple[str, ...]


def folders_of(path: str) -> Folders:
    """Return what the folders of a path tell, in one spelling.

    Examples
    --------
    >>> folders_of("train/images/Plate 2/a.tif")
    Folders(split='train', names=('plate 2',))
    """
    parts = plain(path).split("/")[:-1]
    names = tuple(part for part in parts if part not in IMAGE_FOLDERS and not split_of_folder(part))
    return Folders(split_of_folders(parts), names)


def listed_ends(names: Iterable[str]) -> dict[str, set[Folders]]:
    """Return what the folders of listed paths tell, by each end of a path: several where a list tells files of one name apart.

    Examples
    --------
    >>> ends = listed_ends(["D:/p1/a.tif", "D:/p2/a.tif"])
    >>> [len(ends[end]) for end in ("a.tif", "p1/a.tif", "p2/a.tif")]
    [2, 1, 1]
    """
    found: dict[str, set[Folders]] = {}
    for name in names:
        told, file = folders_of(name), plain(name).rpartition("/")[2]
        for k in range(len(told.names) + 1):
            found.setdefault("/".join((*told.names[k:], file)), set()).add(told)
    return found


def may_be_named(named: str, there: str, listed: Mapping[str, set[Folders]] = MappingProxyType({})) -> bool:
    """Tell whether a list that says `named` may mean the file of that name at the path `there`, where none fits exactly.

    It may not where the folders of the two tell different splits, or different names. Folders that only the list names may lead
    to the data folder, unless another path of the list (`listed_ends`) ends as the path there does.

    Examples
    --------
    >>> [may_be_named(named, "plate1/a.tif") for named in ("a.tif", "train/a.tif", "D:/data/plate1/a.tif", "plate2/a.tif")]
    [True, True, True, False]
    """
    told, here = folders_of(named), folders_of(there)
    if _are_two_splits(told, here):
        return False
    if not told.names or told.names == here.names:
        return True
    ends = told.names[len(told.names) - len(here.names) :] == here.names
    others = listed.get("/".join((*here.names, plain(named).rpartition("/")[2])), ()) if ends else ()
    return ends and all(other == told or _are_two_splits(other, here) for other in others)


def _are_two_splits(one: Folders, other: Folders) -> bool:
    return bool(one.split and other.split) and one.split != other.split


def by_stem(root: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files below a folder by name without suffix: more than one where folders hold files of one name."""
    return groupby(list_files(root, suffixes, keep_labels=True), stem_of)


def find_picture(folder: Path, stem: str) -> Path | None:
    """Return the one picture of `folder` called `stem`, in any spelling; None where there is none.

    Raises
    ------
    UserError
        There are two.
    """
    suffixes = (*PICTURE_SUFFIXES, *TIFF_SUFFIXES)
    stems = dict.fromkeys((stem, *(unicodedata.normalize(form, stem) for form in ("NFC", "NFD"))))
    paths = [folder / f"{one}{end}" for one in stems for suffix in suffixes for end in (suffix, suffix.upper())]
    found = {
        (status.st_dev, status.st_ino): path for path in reversed(paths) if path.is_file() and (status := path.stat())
    }
    first, *others = reversed(found.values()) if found else (None,)
    if others:
        raise UserError(f"'{stem}' is two pictures: {first} and {others[0].name}", "keep one of them")
    return first


def run_of(path: str | Path) -> Path | None:
    """Return the run folder in which a file or folder lies, by its manifest and its table of images; else None."""
    above = Path(path).absolute().parents
    return next((p for p in above[:2] if is_run_folder(p)), None)
