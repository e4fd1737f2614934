"""A competition's ``sample_submission.csv``: the ids that want a row, whatever program wrote the table."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from cellkit.cells.names import plain
from cellkit.errors import UserError
from cellkit.files import decoded
from cellkit.formats.competitions import Profile, get_profile, profiles

SEPARATORS = ",;\t"
NAME = re.compile(r"sample[ _.-]?submission.*\.(csv|tsv)(\.(zip|gz|7z))?\Z")
REMEDY = "give the competition's sample_submission.csv"


def sample_files(folder: str | Path) -> list[Path]:
    """Return the files of a folder that are called as a sample submission, sorted: ``stage1_sample_submission.csv`` too."""
    return [path for path in sorted(Path(folder).glob("*")) if NAME.search(plain(path.name)) and path.is_file()]


def id_column(names: list[str], profile: str | Profile | None = None) -> str | None:
    """Return which of some columns holds the ids, in whatever case it is written; None where none does.

    Parameters
    ----------
    names : list of str
        As the file has them.
    profile : str or Profile, optional
        The competition; by default the column of any.

    Examples
    --------
    >>> id_column(["Predicted", "ID"]), id_column(["imageid"], "dsb2018"), id_column(["imageid"], "sartorius")
    ('ID', 'imageid', None)
    """
    wanted = [one.columns[0] for one in ([get_profile(profile)] if profile else profiles().values())]
    exact = [name for name in names if name in wanted]
    return next(iter(exact or [name for name in names if plain(name) in map(plain, wanted)]), None)


def sample_ids(path: str | Path, profile: str | Profile | None = None) -> list[str]:
    """Return the image ids of a competition's sample_submission.csv, each once, in its order.

    Fields are parted by commas, semicolons or tabs; the name of the column may differ in upper and lower case.

    Parameters
    ----------
    path : path
    profile : str or Profile, optional
        As for `id_column`.

    Raises
    ------
    UserError
        No file, no text, no such column, or no row.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", REMEDY)
    if plain(path.suffix) in (".zip", ".gz", ".7z"):
        raise UserError(f"{path} is packed", "unpack it")
    try:
        text = decoded(path.read_bytes())
        parted = max(SEPARATORS, key=text.partition("\n")[0].count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=parted))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV in UTF-8: {error}", REMEDY) from error
    names = [name.strip() for name in lines[0]] if lines else []
    column = id_column(names, profile)
    place = None if column is None else names.index(column)
    ids = [] if place is None else [line[place] for line in lines[1:] if len(line) > place and line[place]]
    if not ids:
        known = [get_profile(profile)] if profile else profiles().values()
        wanted = " or ".join(f"'{name}'" for name in dict.fromkeys(one.columns[0] for one in known))
        there = ", ".join(names)[:200] or "nothing"
        raise UserError(f"{path} has no column {wanted}, or no row; its first line says: {there}", REMEDY)
    return list(dict.fromkeys(ids))
