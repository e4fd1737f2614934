"""Records: one line per image, what it is and where it came from; and the splits, by whole image or by group."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TextIO

from cellkit.errors import UserError
from cellkit.files import atomic_path

SPLITS = ("train", "val", "test", "")


@dataclass(frozen=True)
class ImageRecord:
    """One image of a run.

    Parameters
    ----------
    image_id : str
        Unique within the run; names the files made from it.
    path : str
        Relative to the run folder, with forward slashes.
    height_px, width_px : int
    channels : str
        What is in red, green and blue, e.g. ``red=;green=GFP;blue=DAPI``.
    cell_type : str
        The line of the whole image, "mixed", or "" when unknown.
    group : str
        Plate, well or donor: images of one group never stand on both sides of a split.
    split : str
        train, val, test, or "" (set aside).
    um_per_px : float
        Pixel size; nan when unknown.
    flags : str
        Quality flags joined by ";", "" when good.
    source : str
        Where it came from: file, scene, time, plane.
    """

    image_id: str
    path: str
    height_px: int
    width_px: int
    channels: str = ""
    cell_type: str = ""
    group: str = ""
    split: str = ""
    um_per_px: float = math.nan
    flags: str = ""
    source: str = ""


def write_records(path: str | Path, records: Sequence[ImageRecord]) -> Path:
    """Write `records` as CSV, atomically, in the order given.

    Raises
    ------
    UserError
        Two records have the same image_id.
    """
    _refuse_duplicates(records)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(_UnixLines(file), [field.name for field in fields(ImageRecord)])
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in asdict(record).items()} for record in records)
    return Path(path)


class _UnixLines:
    """Ends lines with a line feed only; told so directly, csv would leave a carriage return in a name unquoted."""

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> None:
        """Write one line that ends with CR LF."""
        self.file.write(line.removesuffix("\r\n") + "\n")


def _refuse_duplicates(records: Sequence[ImageRecord]) -> None:
    seen: dict[str, ImageRecord] = {}
    for record in records:
        if record.image_id in seen:
            other = seen[record.image_id].source or seen[record.image_id].path
            raise UserError(
                f"two images are called '{record.image_id}': {other} and {record.source or record.path}",
                "rename one of them",
            )
        seen[record.image_id] = record


def _cell(value):
    return "" if isinstance(value, float) and math.isnan(value) else value


def read_records(path: str | Path) -> list[ImageRecord]:
    """Read a records CSV.

    Raises
    ------
    UserError
        There is no file, a column or a field is missing, a number is none, a split is unknown, or two images have the
        same image_id; with file and line.
    """
    if not Path(path).is_file():
        raise UserError(f"no file at {path}", "run 01_convert; it writes the file")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [f.name for f in fields(ImageRecord) if f.name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path} lacks the column(s) {', '.join(missing)}", "run 01_convert again; it writes the file"
                )
            records = [_record(row, f"{path} line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV in UTF-8: {error}", "run 01_convert again; it writes the file") from error
    _refuse_duplicates(records)
    return records


def _record(row: dict, where: str) -> ImageRecord:
    if None in row or None in row.values():
        raise UserError(f"{where} has too {'many' if None in row else 'few'} fields", "give one field per column")
    try:
        record = ImageRecord(
            **{f.name: row[f.name] for f in fields(ImageRecord) if f.type == "str"},
            height_px=int(row["height_px"]),
            width_px=int(row["width_px"]),
            um_per_px=float(row["um_per_px"] or "nan"),
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {error}", "height_px and width_px are whole numbers, um_per_px a number or empty"
        ) from error
    if record.height_px < 1 or record.width_px < 1:
        raise UserError(f"{where}: an image of {record.height_px} x {record.width_px} px", "sizes are 1 px or more")
    if record.split not in SPLITS:
        raise UserError(f"{where}: split is '{record.split}'", "a split is train, val, test or empty")
    return record


def select(records: Sequence[ImageRecord], split: str | None = None, cell_type: str | None = None) -> list[ImageRecord]:
    """Return the records of one split and / or one cell type, in order."""
    return [r for r in records if split in (None, r.split) and cell_type in (None, r.cell_type)]


def split_records(
    records: Sequence[ImageRecord], fractions: dict[str, float], seed: int, by: str = "image", stratify: bool = True
) -> list[ImageRecord]:
    """Assign every record to a split, whole images or whole groups at a time.

    Parameters
    ----------
    fractions : dict
        E.g. ``{"train": 0.6, "val": 0.2, "test": 0.2}``; sums to 1. A split with a fraction above 0 gets at least one unit
        of every stratum that has enough of them.
    by : {"image", "group"}
    stratify : bool
        Split each cell type on its own, so that all are in every split. Groups may hold several cell types and are drawn
        together.

    Returns
    -------
    list of ImageRecord
        In the order given; who goes where does not depend on that order.

    Raises
    ------
    UserError
        An unknown split, a negative fraction, fractions that do not sum to 1, or another `by`.
    """
    import numpy as np

    sums = abs(sum(fractions.values()) - 1) <= 1e-6 and min(fractions.values()) >= 0
    if not sums or not set(fractions) <= set(SPLITS):
        raise UserError(f"split fractions are {fractions}", "give train, val and test, summing to 1")
    if by not in ("image", "group"):
        raise UserError(f"split_by is '{by}'", "split by 'image' or by 'group'")
    strata: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, record in enumerate(records):
        unit = record.group if by == "group" and record.group else record.image_id
        stratum = record.cell_type if stratify and by == "image" else ""
        strata[stratum][unit].append(position)
    split_of: dict[int, str] = {}
    for number, stratum in enumerate(sorted(strata)):
        units = sorted(strata[stratum])
        order = np.random.default_rng([seed, number]).permutation(len(units))
        for name, chosen in zip(fractions, _shares(len(units), list(fractions.values())), strict=True):
            for unit in order[chosen]:
                split_of.update({position: name for position in strata[stratum][units[unit]]})
    return [replace(record, split=split_of[position]) for position, record in enumerate(records)]


def _shares(count: int, fractions: list[float]) -> list[slice]:
    """Cut 0..count into parts near the fractions; each wanted part gets at least one unit while there are enough."""
    sizes = [math.floor(count * fraction) for fraction in fractions]
    wanted = [i for i, fraction in enumerate(fractions) if fraction > 0]
    rest = sorted(wanted, key=lambda i: sizes[i] - count * fractions[i])
    for i in rest[: count - sum(sizes)] if rest else []:
        sizes[i] += 1
    for i in wanted:
        largest = max(range(len(sizes)), key=lambda k: sizes[k])
        if sizes[i] == 0 and sizes[largest] > 1:
            sizes[i], sizes[largest] = 1, sizes[largest] - 1
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def check_groups(records: Sequence[ImageRecord]) -> None:
    """Refuse a split that has images of one group on both sides.

    Raises
    ------
    UserError
        Naming the groups.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.group and record.split:
            splits[record.group].add(record.split)
    leaking = sorted(group for group, names in splits.items() if len(names) > 1)
    if leaking:
        raise UserError(f"group {', '.join(leaking[:5])} is in more than one split", "set convert.split_by: group")
