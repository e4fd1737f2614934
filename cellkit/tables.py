"""Tables as CSV: written atomically, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellkit.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def write_table(path: str | Path, rows: Sequence[dict]) -> Path:
    """Write rows as CSV, atomically; text a spreadsheet would run as a formula gets a leading apostrophe."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return Path(path)


def _cell(value):
    if isinstance(value, str):
        return as_cell(value)
    return round(value, 6) if isinstance(value, float) else value


FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would run, or what stands for it here


def as_cell(text: str) -> str:
    """Return text as it may stand in a table that a spreadsheet opens; `from_cell` takes it back.

    OWASP's rule against CSV injection: an apostrophe before = + - @ TAB and CR.

    Examples
    --------
    >>> as_cell("=1+1"), from_cell(as_cell("=1+1")), as_cell("plain")
    ("'=1+1", '=1+1', 'plain')
    """
    return f"'{text}" if FORMULA.match(text) else text


def write_frame(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a table as CSV, atomically and without its index; text that would run as a formula is escaped by `as_cell`."""
    import pandas as pd

    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    safe = frame.assign(**{name: [as_cell(x) if isinstance(x, str) else x for x in frame[name]] for name in texts})
    with atomic_path(path) as temporary:
        safe.to_csv(temporary, index=False)
    return Path(path)


def from_cell(text: str) -> str:
    """Return what `as_cell` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
