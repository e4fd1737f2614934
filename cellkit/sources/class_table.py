"""The table of classes of a data set: which class a cell of a label image has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cellkit.cells.names import LABEL_ENDINGS, plain
from cellkit.errors import UserError, refuse_or_note
from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_FOLDERS, list_files
from cellkit.sources.listing import LEFT, UNUSED, SourceImage, class_id_of, refuse
from cellkit.sources.source_tables import read_table


class ClassTable:
    """The table of classes of a data set: ``truth/classes.csv`` with file, label and class of each cell.

    The file is the path of the image below the data folder, with or without suffix; that of its label image; or the bare
    name, where one image only is called so.
    """

    def __init__(self, root: Path, config):
        self.root, self.config = root, config
        self.rows: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        self.files: set[Path] = set()
        self.asked: dict[str, str] = {}
        self.keys: dict[Path, str] = {}  # of the files of images: what the table would call them
        folders = [root, *(child for child in sorted(root.iterdir()) if plain(child.name) in LABEL_FOLDERS)]
        found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())
                 if plain(path.name) in ("classes.csv", "classes.tsv")]  # fmt: skip
        if len(found) > 1:
            told = f"there are two tables of classes, {found[0]} and {found[1]}"
            refuse_or_note(UserError(told, "keep one of them"))
        self.first: dict[str, tuple[str, int]] = {}
        for path in found:
            self.path = path
            self.files.add(path)
            for line, row in enumerate(_rows_of(path, root), 2):
                try:
                    self._add(row, line)
                except UserError as error:
                    refuse_or_note(error)
        stems = Counter(key.rpartition("/")[2] for key in self._images())
        self.unique = {stem for stem, count in stems.items() if count == 1}

    def _images(self) -> list[str]:
        paths = list_files(self.root, IMAGE_SUFFIXES) if self.rows else []
        return [_key_of(path.relative_to(self.root).as_posix()) for path in paths]

    def _add(self, row: dict[str, str], line: int) -> None:
        where = f"{self.path} line {line}"
        try:
            number = float(row["label"])
            if number != int(number) or number < 1:
                raise ValueError(f"label is {row['label']}")
            known = class_id_of(row["class"].strip(), self.config)
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{where}: {error}", "the columns are file, label (a number from 1, as in the label image), class"
            ) from error
        except UserError as error:
            problem, _, remedy = str(error).partition("\n")
            raise UserError(f"{where}: {problem}", remedy) from None
        key = _key_of(row["file"])
        if not key:
            raise UserError(f"{where} names no file", "write the path of the image below the data folder")
        other = self.rows[key].setdefault(int(number), (known, line))
        if other[0] != known:
            raise UserError(
                f"{where}: label {int(number)} of {row['file']} has another class in line {other[1]}",
                "keep one row for each cell",
            )
        self.first.setdefault(key, (row["file"], line))

    def rows_of(self, relative: Path, suffix: str) -> dict[int, tuple[int, int]]:
        """Return {label: (class id, line)} of a frame of a file: rows of the frame, else of the file."""
        key = _key_of(relative.as_posix())
        bare = key.rpartition("/")[2]
        frame = self._rows_called(key + plain(suffix), bare + plain(suffix), key, bare in self.unique)
        return frame or (self._rows_called(key, bare, key, bare in self.unique) if suffix else {})

    def _rows_called(self, name: str, bare: str, key: str, is_unique: bool) -> dict[int, tuple[int, int]]:
        """Return the rows of all spellings of one name together; a label that has two classes in them is refused."""
        names = [name, *(f"{plain(folder)}/{name}" for folder in LABEL_FOLDERS), *([bare] if is_unique else ())]
        names += [one + ending for one in names for ending in LABEL_ENDINGS]
        found: dict[int, tuple[int, int]] = {}
        for one in dict.fromkeys(names):
            rows = self.rows.get(one, {})
            self.asked |= {one: key} if rows else {}
            for number, (known, line) in rows.items():
                other = found.setdefault(number, (known, line))
                if other[0] != known:
                    told = f"{self.path} line {line}: label {number} of {key} has another class in line {other[1]}"
                    refuse_or_note(UserError(told, "keep one row for each cell"))
        return found

    def unmatched(self, items: Sequence[SourceImage]) -> Iterator[SourceImage]:
        """Yield an item, to be set aside, for each file of the table that is no image, or an image without labels."""
        labelled = {self.key(item) for item in items if not item.bare}
        for name in sorted(self.rows):
            file, line = self.first[name]
            if name not in self.asked:
                bare = "/" not in name and any(one.rpartition("/")[2] == name for one in self._images())
                why = "the name of several images: write their folder too" if bare else "no image below the data folder"
            elif self.asked[name] not in labelled:
                why = "an image without labels"
            else:
                continue
            source = f"{self.path.relative_to(self.root).as_posix()} line {line}"
            told = f"line {line} names '{file}', which is {why}"
            loader = partial(refuse, told, "write it as HEK/a.tif, or take the row out")
            yield SourceImage(f"{LEFT}{source}", "", "", UNUSED, source, loader)

    def key(self, item: SourceImage) -> str:
        """Return what the table would call the file of an image."""
        return self.keys.get(item.files[0], "")


def _rows_of(path: Path, root: Path) -> list[dict[str, str]]:
    try:
        return read_table(path, ("file", "label", "class"), root)
    except UserError as error:
        refuse_or_note(error)
        return []


def _key_of(file: str) -> str:
    """Return a file of the table without suffix, in the one spelling.

    Examples
    --------
    >>> _key_of(" mixed\\\\A.ome.tif"), _key_of("a.b")
    ('mixed/a', 'a.b')
    """
    name = plain(file)
    known = next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(known).removesuffix(".ome")
