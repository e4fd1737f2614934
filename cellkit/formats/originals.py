"""A run's table of its images as their files are, ``originals.csv``: what is handed in, and under which ids."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellkit.files import from_cell

TABLE = "originals.csv"
NOT_PREDICTED = "not predicted (see its flag in records.csv)"


@dataclass(frozen=True)
class Original:
    """One image that is handed in, as its file is.

    Parameters
    ----------
    id : str
        What the competition calls it.
    image_id : str
        What the run calls it; "" where there is no picture of it.
    shape : (int, int) or None
        Height and width of the file (px); None where it could not be read.
    note : str
        Why it could not be read, "" when it could.
    """

    id: str
    image_id: str
    shape: tuple[int, int] | None
    note: str = ""


def read_originals(path: Path) -> list[dict[str, str]]:
    """Return the rows of ``originals.csv``, see `cellkit.sources.source_tables.list_originals`."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{key: from_cell(text or "") for key, text in row.items() if key} for row in csv.DictReader(file)]


def is_competition(rows: Sequence[dict[str, str]], split: str) -> bool:
    """Tell whether a competition says which images of this split it asks for."""
    return split == "test" and any(row.get("asked") for row in rows)


def asked_for(rows: Sequence[dict[str, str]], split: str = "test") -> list[Original]:
    """Return the images that are handed in: those the competition asks for, where one does, else those of a split."""
    competition = is_competition(rows, split)
    chosen = [row for row in rows if (row["asked"] == "yes" if competition else row["split"] == split)]
    return [
        Original(
            row["id"],
            row["image_id"],
            (int(row["height_px"]), int(row["width_px"])) if row["height_px"] else None,
            row["note"],
        )
        for row in chosen
    ]
