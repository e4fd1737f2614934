"""Records: one line per image, what it is and where it came from."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cellkit.errors import UserError, readable
from cellkit.files import UnixLines, as_cell, atomic_path, from_cell

SPLITS = ("train", "val", "test", "")
MIXED = "mixed"  # the cell type of an image of several lines
OVERALL = ("all", "all images")  # what rows over all images are called; the second where an image is called "all"
SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}
SPLIT_IMAGES = {split: f"{title} images" for split, title in SPLIT_TITLES.items()}


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
        train, val, test, or "" (not used).
    um_per_px : float
        Pixel size; nan when unknown.
    flags : str
        Quality flags joined by ";", "" when good.
    source : str
        Where it came from, for a person to read: file, scene, time, planes.
    file : str
        The file it was made from, relative to the folder of the source (of one file per channel the first); "" when it is
        put together from others.
    scene, time : int
        Which frame of the file, from 0.
    planes : str
        What became of the z planes, "" when there was one: "z max of 5".
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
    file: str = ""
    scene: int = 0
    time: int = 0
    planes: str = ""


def write_records(path: str | Path, records: Sequence[ImageRecord]) -> Path:
    r"""Write `records` as CSV, atomically, in the order given.

    Text that a spreadsheet would run as a formula gets a leading apostrophe, which `read_records` takes off again. Bytes of
    a file name that are not UTF-8 are written as ``\xNN`` in `source`, `file`, `group` and `channels`, and stay so: they tell a
    reader what the file is called, no more.

    Raises
    ------
    UserError
        Two records have the same image_id, or an image_id or a path is not valid UTF-8.
    """
    _refuse_duplicates(records)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(UnixLines(file), [field.name for field in fields(ImageRecord)])
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in asdict(record).items()} for record in records)
    return Path(path)


def _refuse_duplicates(records: Sequence[ImageRecord]) -> None:
    seen: dict[str, ImageRecord] = {}
    for record in records:
        if readable(record.image_id + record.path) != record.image_id + record.path:
            raise UserError(
                f"the image {readable(record.image_id)} at {readable(record.path)} has a name that is no UTF-8",
                "name images with letters, digits, '_', '-' and '.'",
            )
        if record.image_id in seen:
            other = seen[record.image_id].source or seen[record.image_id].path
            raise UserError(
                f"two images are called '{record.image_id}': {other} and {record.source or record.path}",
                "rename one of them",
            )
        seen[record.image_id] = record


def _cell(value):
    if isinstance(value, str):
        return as_cell(readable(value))
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
                    f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
                    "run 01_convert again; it writes the file",
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
            **{f.name: from_cell(row[f.name]) for f in fields(ImageRecord) if f.type == "str"},
            height_px=int(row["height_px"]),
            width_px=int(row["width_px"]),
            um_per_px=float(row["um_per_px"] or "nan"),
            scene=int(row["scene"] or 0),
            time=int(row["time"] or 0),
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {error}", "height_px, width_px, scene and time are whole numbers, um_per_px a number or empty"
        ) from error
    if record.height_px < 1 or record.width_px < 1:
        raise UserError(f"{where}: an image of {record.height_px} x {record.width_px} px", "sizes are 1 px or more")
    if record.split not in SPLITS:
        raise UserError(f"{where}: split is '{record.split}'", "a split is train, val, test or empty")
    return record


def is_scored(record: ImageRecord) -> bool:
    """Tell whether an image counts in scores: it has a split, and no flag."""
    return bool(record.split) and not record.flags


def select(records: Sequence[ImageRecord], split: str | None = None, cell_type: str | None = None) -> list[ImageRecord]:
    """Return the records of one split and / or one cell type, in order."""
    return [r for r in records if split in (None, r.split) and cell_type in (None, r.cell_type)]


# ---- what is in the colours of a picture -----------------------------------------------------------------------------
COLOURS = ("red", "green", "blue")


def channel_names(channels: str) -> dict[str, str]:
    """Return what is in each colour of a record's `channels` text; empty colours are left out.

    Examples
    --------
    >>> channel_names("red=;green=GFP;blue=DAPI")
    {'green': 'GFP', 'blue': 'DAPI'}
    """
    pairs = (part.partition("=") for part in channels.split(";"))
    return {colour: name for colour, _, name in pairs if colour in COLOURS and name}


def common_channels(maps: Iterable[str]) -> dict[str, str]:
    """Return what is in each colour where the `channels` of all records agree on it.

    Examples
    --------
    >>> common_channels(["red=;green=GFP;blue=DAPI", "red=;green=GFP;blue=Hoechst"])
    {'green': 'GFP'}
    """
    named = [channel_names(one) for one in maps]
    return {c: named[0][c] for c in COLOURS if named and len({one.get(c) for one in named}) == 1 and c in named[0]}
