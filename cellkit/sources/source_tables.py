"""Tables and lists that lie in a source: CSV as programs write it, names, splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from cellkit.cells.names import plain
from cellkit.errors import UserError
from cellkit.files import decoded
from cellkit.microscope.folders import IMAGE_SUFFIXES, check_inside


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


def header_of(path: Path) -> list[str]:
    """Return the column names of a CSV file, none where there is no such file or no text in it."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        lines = decoded(file.read(10_000), "ignore").splitlines()
    text = lines[0].strip() if lines else ""
    return [name.strip().strip('"') for name in text.split(max(",;\t", key=text.count))]
