"""Tables and lists that lie in a source: CSV as programs write it, names, splits, classes of cells, ids of a competition."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from cellkit.cells.names import LABEL_ENDINGS, plain
from cellkit.config.sections import ConvertConfig
from cellkit.errors import Quarantined, UserError, raise_or_collect, readable
from cellkit.files import decoded
from cellkit.formats.samples import sample_files, sample_ids
from cellkit.log import LOG
from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_FOLDERS, check_inside, list_files
from cellkit.sources.listing import LEFT, UNUSED, SourceImage, class_id_of, failing, named_class
from cellkit.sources.loading import ClassRow


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
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; its first line says: {there[:200]}",
            "use the table as it came, its columns parted by commas, semicolons or tabs",
        )
    uneven = next((n for n, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if uneven is not None:
        raise UserError(f"{path} line {uneven} has more or fewer fields than the header", "use the table as it came")
    return rows


def read_lines(path: Path, root: Path) -> list[str]:
    """Return the lines of a list of file names, without blank ones.

    Raises
    ------
    UserError
        The file is no text, or lies outside `root`.
    """
    check_inside(path, root)
    try:
        return [line.strip() for line in decoded(path.read_bytes()).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error}", "it lists one image name per line") from error


def header_of(path: Path) -> list[str]:
    """Return the column names of a CSV file, none where there is no such file or no text in it."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        lines = decoded(file.read(10_000), "ignore").splitlines()
    text = lines[0].strip() if lines else ""
    return [name.strip().strip('"') for name in text.split(max(",;\t", key=text.count))]


class ClassTable:
    """The table of classes of a data set: ``truth/classes.csv`` with file, label and class of each cell.

    The file is the path of the image below the data folder, with or without suffix; that of its label image; or the bare
    name, where one image only is called so.
    """

    def __init__(self, root: Path, config: ConvertConfig):
        self.root, self.config = root, config
        self.rows: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        self.files: set[Path] = set()
        self.matched: dict[str, str] = {}
        self.keys: dict[Path, str] = {}  # of the files of images: what the table would call them
        folders = [root, *(child for child in sorted(root.iterdir()) if plain(child.name) in LABEL_FOLDERS)]
        found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())
                 if plain(path.name) in ("classes.csv", "classes.tsv")]  # fmt: skip
        if len(found) > 1:
            problem = f"there are two tables of classes, {found[0]} and {found[1]}"
            raise_or_collect(UserError(problem, "keep one of them"))
        self.first: dict[str, tuple[str, int]] = {}
        for path in found:
            self.path = path
            self.files.add(path)
            for line, row in enumerate(_rows_of(path, root), 2):
                try:
                    self._add(row, line)
                except UserError as error:
                    raise_or_collect(error)
        stems = Counter(key.rpartition("/")[2] for key in self._images())
        self.unique = {stem for stem, count in stems.items() if count == 1}

    def _images(self) -> list[str]:
        is_class = partial(named_class, config=self.config)
        paths = list_files(self.root, IMAGE_SUFFIXES, is_class=is_class) if self.rows else []
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
            raise UserError(f"{where}: {error}") from None
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

    def rows_of(self, relative: Path, suffix: str) -> dict[int, ClassRow]:
        """Return {label: row} of a frame of a file: rows of the file, and before them rows of the frame."""
        key = _key_of(relative.as_posix())
        bare = key.rpartition("/")[2]
        rows = self._rows_called(key, bare, key, bare in self.unique, bool(suffix))
        if suffix:
            rows |= self._rows_called(key + plain(suffix), bare + plain(suffix), key, bare in self.unique)
        return rows

    def _rows_called(
        self, name: str, bare: str, key: str, is_unique: bool, of_file: bool = False
    ) -> dict[int, ClassRow]:
        """Return the rows of all spellings of one name together; a label that has two classes in them is refused."""
        names = [name, *(f"{plain(folder)}/{name}" for folder in LABEL_FOLDERS), *([bare] if is_unique else ())]
        names += [one + ending for one in names for ending in LABEL_ENDINGS]
        found: dict[int, ClassRow] = {}
        for one in dict.fromkeys(names):
            rows = self.rows.get(one, {})
            self.matched |= {one: key} if rows else {}
            for number, (known, line) in rows.items():
                other = found.setdefault(number, ClassRow(known, line, of_file))
                if other.class_id != known:
                    problem = f"{self.path} line {line}: label {number} of {key} has another class in line {other[1]}"
                    raise_or_collect(UserError(problem, "keep one row for each cell"))
        return found

    def unmatched(self, items: Sequence[SourceImage]) -> Iterator[SourceImage]:
        """Yield an item, to be skipped, for each file of the table that is no image, or an image without labels."""
        labelled = {self.key(item) for item in items if not item.bare}
        for name in sorted(self.rows):
            file, line = self.first[name]
            if name not in self.matched:
                bare = "/" not in name and any(one.rpartition("/")[2] == name for one in self._images())
                why = "the name of several images: write their folder too" if bare else "no image below the data folder"
            elif self.matched[name] not in labelled:
                why = "an image without labels"
            else:
                continue
            source = f"{self.path.relative_to(self.root).as_posix()} line {line}"
            problem = f"line {line} names '{file}', which is {why}"
            loader = failing(problem, "write it as HEK/a.tif, or take the row out")
            yield SourceImage(f"{LEFT}{source}", "", "", UNUSED, source, loader)

    def key(self, item: SourceImage) -> str:
        """Return what the table would call the file of an image."""
        return self.keys.get(item.files[0], "")


def _rows_of(path: Path, root: Path) -> list[dict[str, str]]:
    try:
        return read_table(path, ("file", "label", "class"), root)
    except UserError as error:
        raise_or_collect(error)
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


def competition_ids(items: Sequence[SourceImage], done: Sequence) -> set[str]:
    """Return the image_ids of the test images that a source names as such, where others have truth and none of them has."""
    test_ids = {item.image_id for item in items if item.is_own_test}
    truth = {result[0].image_id for result in done if result[1] is not None}
    return set() if test_ids & truth or not truth else test_ids


def asked_ids(root: Path, items: Sequence[SourceImage]) -> list[str]:
    """Return the ids of the competition's ``*sample_submission*.csv`` in a folder, in its order; [] where there is none.

    Of several files the one that names most of the images. One that names none of them is not followed, with a warning; nor one
    that is packed, or has no ids.

    Raises
    ------
    UserError
        It asks for an image that no submission can name: said now, before anything is trained.
    """
    from cellkit.formats.submission_check import id_fault

    own, best, path, unread = {item.own_id for item in items}, [], None, []
    for found in sample_files(root):
        check_inside(found, root)
        try:
            ids = sample_ids(found)
        except UserError as error:
            unread.append(error)
            continue
        if path is None or len(own & set(ids)) > len(own & set(best)):
            best, path = ids, found
    for error in unread:
        LOG.warning(f"{error.problem}: it is not followed; {error.remedy}, as it says what is handed in")
    if path is not None and not own & set(best):
        LOG.warning(f"{path.name} names {len(best)} images, none of which is here: it is not followed")
        return []
    if faults := [(name, fault) for name in best if (fault := id_fault(name))]:
        name, fault = faults[0]
        raise UserError(f"{path} asks for the image {name!r}, and that {fault}", "rename the image, in the table too")
    return best


def list_originals(
    items: Sequence[SourceImage], done: Sequence, quarantined: Sequence[Quarantined], sample: Sequence[str] = ()
) -> list[dict]:
    """Say of every image of a source what it was before it was converted: by these a submission is written.

    Returns
    -------
    list of dict
        image_id; id : what the source calls it, or the image_id where two would be called so, or where a competition's
        file cannot hold the name; split; height_px, width_px : of the file ("" where it could not be read); asked : "yes" or
        "no", whether the competition asks for it, by its sample_submission.csv, else by its test images without truth; ""
        where there is no such thing; note : why there is no picture.
        Ids of the sample that are no image here follow, without image_id.
    """
    from cellkit.formats.submission_check import id_fault

    size_of = {result[0].image_id: result[4] for result in done}
    names = [(readable(item.own_id), item.split) for item in items]
    count, wanted, competition = Counter(names), set(sample), competition_ids(items, done)
    ids = [
        name if count[name, split] == 1 and not id_fault(name) else item.image_id
        for (name, split), item in zip(names, items, strict=True)
    ]
    tests = {own_id for own_id, item in zip(ids, items, strict=True) if item.split == "test"}
    rows = []
    for item, own_id in zip(items, ids, strict=True):
        height_px, width_px = size_of.get(item.image_id, ("", ""))
        is_wanted = own_id in wanted and (item.split == "test" or own_id not in tests)
        is_wanted = is_wanted if sample else item.image_id in competition
        note = "" if item.image_id in size_of else why_unused(readable(item.source), quarantined)
        rows.append(
            {"image_id": item.image_id, "id": own_id, "split": item.split, "height_px": height_px, "width_px": width_px,
             "asked": {True: "yes", False: "no"}[is_wanted] if sample or competition else "", "note": note}
        )  # fmt: skip
    blank = {"image_id": "", "split": "test", "height_px": "", "width_px": "", "asked": "yes"}
    known = set(ids)
    return rows + [{**blank, "id": name, "note": "no picture of it is here"} for name in sample if name not in known]


def why_unused(source: str, quarantined: Sequence[Quarantined]) -> str:
    """Return the reason why an image was skipped; its name may be followed by what became of its planes."""
    named = [one for one in quarantined if one.item == source] or [
        q for q in quarantined if q.item.startswith(f"{source} ")
    ]
    return named[0].reason if named else "could not be used"
