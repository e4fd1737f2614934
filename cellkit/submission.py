"""Submissions: Kaggle's two cell competitions, written, checked and read; and the resolver that makes objects disjoint.

Sartorius is row-major although its page says column-major (a column-major file scored 0.000); DSB2018 is column-major.
Both count pixels from 1 and refuse overlapping objects. An image without a prediction has one row with an empty second
column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellkit.errors import UserError, nearest
from cellkit.files import atomic_path
from cellkit.instances import Instances
from cellkit.modules import load_all
from cellkit.records import ImageRecord

FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBERS = re.compile(r" *[0-9]{1,15}(?: +[0-9]{1,15})* *\Z")
_QUOTED = re.compile(r'("[^"]*"|[^",]*),"([^"]*)"')
_NOTHING = {"nan", "none", "null", "na", "[]", "-1"}


@dataclass(frozen=True)
class Profile:
    """What one competition wants: a file ``kaggle_<name>.py``, found by listing (`cellkit.modules`).

    Attributes
    ----------
    name : str
    columns : (str, str)
        Of the image id and of the pixels: ``COLUMNS`` of the file.
    order : str
        How pixels are counted, "row-major" or "column-major": ``PIXEL_ORDER``.
    truth_columns : tuple of str
        What its own table of truth may call the pixels of a cell, in lower case: ``TRUTH_COLUMNS``.
    """

    name: str
    columns: tuple[str, str]
    order: str
    truth_columns: tuple[str, ...] = ()


def profiles() -> dict[str, Profile]:
    """Return all competitions by name."""
    return {
        name: Profile(name, module.COLUMNS, module.PIXEL_ORDER, module.TRUTH_COLUMNS)
        for name, module in load_all("kaggle").items()
    }


@dataclass(frozen=True)
class Problem:
    """Why a submission is refused: the line of the file (1 = header, 0 = the file as a whole) and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason


def get_profile(name: str | Profile) -> Profile:
    """Return the profile of that name.

    Raises
    ------
    UserError
        There is none.
    """
    if isinstance(name, Profile):
        return name
    known = profiles()
    if name not in known:
        raise UserError(f"no profile '{name}'{nearest(name, known)}", f"choose from {', '.join(known)}")
    return known[name]


# ---- write ---------------------------------------------------------------------------------------------------------
def write_submission(
    path: str | Path, image_ids: Sequence[str], instances: Sequence[Instances], profile: str | Profile
) -> Path:
    """Write a submission, atomically, and check what was written before it takes its place.

    Every image has at least one row, in the order given; an image without objects one with an empty second column.

    Raises
    ------
    UserError
        Objects overlap or have no pixel (see `resolve_overlaps`), an id occurs twice, is empty, would be read as a
        formula by a spreadsheet, or holds a control character.
    """
    profile = get_profile(profile)
    ids = [str(image_id) for image_id in image_ids]
    if len(ids) != len(instances):
        raise UserError(f"{len(ids)} image ids, {len(instances)} predictions", "give one Instances per image, in order")
    lines = [",".join(profile.columns)]
    for image_id, objects in zip(ids, instances, strict=True):
        if fault := id_fault(image_id):
            raise UserError(f"image id {image_id!r} {fault}", "rename the image")
        if objects.overlapping or not np.all(objects.areas_px):
            what = "overlap" if objects.overlapping else "have no pixel"
            raise UserError(f"objects of image '{image_id}' {what}", "pass them through resolve_overlaps first")
        cell = '"' + image_id.replace('"', '""') + '"' if set(image_id) & set(',"') else image_id
        lines += [f"{cell},{text}" for text in objects.to_kaggle_rle(profile.order) or [""]]
    if len(set(ids)) != len(ids):
        twice = sorted({image_id for image_id in ids if ids.count(image_id) > 1})
        raise UserError(f"image id '{twice[0]}' is given twice", "give every image once")
    shapes = {image_id: objects.shape for image_id, objects in zip(ids, instances, strict=True)}
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        _refuse(_problems(temporary, profile, shapes, shapes), path)
    return Path(path)


def id_fault(image_id: str) -> str:
    """Return what is wrong with an image id, "" when nothing is."""
    if not image_id:
        return "is empty"
    if image_id.startswith(FORMULA):
        return f"begins with {image_id[0]!r}: a spreadsheet would run it as a formula"
    if image_id != image_id.strip():
        return "begins or ends with a space"
    if not image_id.isprintable():
        return "holds a control character"
    return ""


# ---- check ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Row:
    """One line that could be read; starts count from 0 in the profile's order of pixels."""

    line: int
    image_id: str
    text: str
    starts: np.ndarray
    lengths: np.ndarray


def check_submission(
    path: str | Path,
    profile: str | Profile,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Problem]:
    """Find everything for which the competition would refuse the file, or score it as nonsense.

    Parameters
    ----------
    path : path
    profile : str or Profile
    shapes : dict of image_id -> (H, W), optional
        The images of the test set. Without it, bounds and the order of pixels are not checked. Run lengths do not say in
        which size of picture they were counted: a larger one shows where runs leave the image, a smaller one where the rows
        of cells lie another width apart, which takes some twenty rows and cells narrower than the difference.
    ids : sequence of str, optional
        Every id that must have a row, e.g. those of sample_submission.csv (`sample_ids`); default those of `shapes`.
        Without either, missing and unknown ids are not checked.

    Returns
    -------
    list of Problem
        By line, problems of the file as a whole first; empty when the file is good.

    Raises
    ------
    UserError
        There is no such file or profile.
    """
    return _problems(path, get_profile(profile), shapes, shapes if ids is None else ids, guess=shapes is not None)


def _problems(path, profile: Profile, shapes, ids, guess: bool = False) -> list[Problem]:
    """Find what is wrong; with `guess` also what only the look of the cells tells."""
    problems, rows, named = _read_rows(path, profile, shapes)
    problems += _id_problems(rows, named, ids)
    problems += _overlap_problems(rows)
    if guess:
        problems += _order_problems(rows, profile, shapes) or _size_problems(rows, profile, shapes)
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)


def sample_ids(path: str | Path, profile: str | Profile) -> list[str]:
    """Return the image ids of a competition's sample_submission.csv, each once, in its order.

    Raises
    ------
    UserError
        No file, no such column, or no row.
    """
    import csv

    column = get_profile(profile).columns[0]
    if not Path(path).is_file():
        raise UserError(f"no file at {path}", "give the competition's sample_submission.csv")
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file)
        ids = [row[column] for row in rows if row.get(column)] if column in (rows.fieldnames or ()) else []
    if not ids:
        raise UserError(f"{path} has no column '{column}', or no row", "give the competition's sample_submission.csv")
    return list(dict.fromkeys(ids))


def _read_rows(path, profile: Profile, shapes) -> tuple[list[Problem], list[_Row], set[str]]:
    """Read what can be read, say of every other line why not, and list every image that has a line."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", "give the path of a submission CSV")
    text, problems = _decoded(path.read_bytes())
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    if not lines:
        return [*problems, Problem(1, f"the file is empty, wanted the header '{','.join(profile.columns)}'")], [], set()
    if fault := _header_fault(lines[0], profile):
        problems.append(Problem(1, fault))
        if lines[0].count(",") != 1:  # every row would fail in the same way
            return problems, [], set(shapes or ())
    rows, named = [], set()
    for number, line in enumerate(lines[1:], 2):
        image_id, row = _row(number, line, shapes)
        named.add(image_id)
        if isinstance(row, _Row):
            rows.append(row)
        else:
            problems.append(Problem(number, row))
    return problems, rows, named


def _decoded(raw: bytes) -> tuple[str, list[Problem]]:
    """Return the text (of what precedes the first bad byte) and what is wrong with its encoding."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "\n", [Problem(1, "the file is UTF-16; save it as UTF-8")]
    problems = []
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
        problems.append(Problem(1, "the file begins with a byte order mark (BOM); save it as plain UTF-8"))
    try:
        return raw.decode("utf-8"), problems
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        problems.append(Problem(before.count(b"\n") + 1, f"byte {error.start + 1} of the file is not UTF-8"))
        return before[: before.rfind(b"\n") + 1].decode("utf-8"), problems


def _header_fault(line: str, profile: Profile) -> str:
    """Return what is wrong with the header, "" when nothing is."""
    wanted = ",".join(profile.columns)
    if line == wanted:
        return ""
    fields = [field.strip().strip('"') for field in line.split(",")]
    if tuple(fields[1:]) == profile.columns:
        return f"an index column ('{fields[0][:40]}') stands before '{wanted}'; write the CSV without an index"
    if tuple(fields[::-1]) == profile.columns:
        return f"the columns are in the wrong order: '{line}', wanted '{wanted}'"
    other = next((p for p in profiles().values() if tuple(fields) == p.columns and p is not profile), None)
    if other is not None:
        return f"the header '{line}' is that of {other.name}; {profile.name} wants '{wanted}'"
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if line.replace(separator, ",") == wanted:
            return f"the columns are separated by {name}, wanted commas"
    return f"the header is '{line[:80]}', wanted '{wanted}'"


def _row(number: int, line: str, shapes) -> tuple[str, _Row | str]:
    """Read one line: its image ("" where there is none), and the row or the reason why it cannot be read."""
    if not line.strip():
        return "", "the line is blank"
    quoted = _QUOTED.fullmatch(line)
    cell, comma, text = (quoted[1], ",", f'"{quoted[2]}"') if quoted else line.rpartition(",")
    if not comma:
        return line, "the line has one column, wanted two"
    image_id = cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
    if image_id == cell and "," in cell:
        return cell.partition(",")[0], f"the line has {line.count(',') + 1} columns, wanted two"
    if fault := id_fault(image_id):
        return image_id, f"the image id {image_id[:80]!r} {fault}"
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not text.strip(" "):
        return image_id, _Row(number, image_id, "", np.zeros(0, np.int64), np.zeros(0, np.int64))
    if not _NUMBERS.match(text):
        return image_id, _text_fault(text)
    numbers = np.fromstring(text, np.int64, sep=" ")
    shape = None if shapes is None else shapes.get(image_id)
    fault = _numbers_fault(numbers, shape)
    return image_id, fault or _Row(number, image_id, text.strip(" "), numbers[::2] - 1, numbers[1::2])


def _text_fault(text: str) -> str:
    """Say why a run-length text is not whole numbers."""
    if text.strip().lower() in _NOTHING:
        return f"the second column holds '{text.strip()}'; leave it empty where nothing is predicted"
    word = next(word for word in re.split(" +", text.strip(" ")) if not re.fullmatch("[0-9]{1,15}", word))
    shown = repr(word[:20])
    if re.fullmatch(r"[+-]?[0-9]*\.[0-9]*(e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+", word.lower()):
        return f"the pairs hold {shown}, a float; write whole numbers"
    if re.fullmatch("-[0-9]+", word):
        return f"the pairs hold {shown}, a negative number"
    if re.fullmatch("[0-9]+", word):
        return f"the pairs hold {shown}, larger than any image"
    return f"the pairs hold {shown}, wanted whole numbers separated by single spaces"


def _numbers_fault(numbers: np.ndarray, shape: tuple[int, int] | None) -> str:
    """Return what is wrong with start length start length ..., "" when nothing is."""
    if numbers.size % 2:
        return f"the pairs are {numbers.size} numbers; start and length alternate, so they are even in number"
    starts, lengths = numbers[::2], numbers[1::2]
    if (lengths < 1).any():
        return f"the run at {starts[int(np.argmax(lengths < 1))]} has length 0"
    if starts.min() < 1:
        return "a run starts at 0; pixels count from 1"
    ends = starts + lengths - 1
    back = np.flatnonzero(starts[1:] <= ends[:-1])
    if back.size:
        first, second = int(starts[back[0]]), int(starts[back[0] + 1])
        what = "the pairs are not sorted" if second < first else "runs of the line overlap"
        return f"{what}: the run at {second} follows the one at {first} of length {lengths[back[0]]}"
    if shape is not None and ends[-1] > shape[0] * shape[1]:
        size = f"{shape[0]} x {shape[1]} = {shape[0] * shape[1]}"
        return f"the run at {starts[-1]} ends at pixel {ends[-1]}, the image has {size}"
    return ""


def _by_image(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    images: dict[str, list[_Row]] = {}
    for row in rows:
        images.setdefault(row.image_id, []).append(row)
    return images


def _id_problems(rows: list[_Row], named: set[str], wanted: Iterable[str] | None) -> list[Problem]:
    """Find unknown and missing images, and empty rows beside others."""
    problems, images = [], _by_image(rows)
    wanted = None if wanted is None else dict.fromkeys(wanted)
    for image_id, own in images.items():
        if wanted is not None and image_id not in wanted:
            problems += [Problem(row.line, f"image '{image_id[:80]}' is not in the test set") for row in own]
        for row in own:
            other = next((x.line for x in own if x is not row), None)
            if not row.text and other is not None:
                problems.append(Problem(row.line, f"image '{image_id[:80]}' has an empty row, and line {other} too"))
    missing = [image_id for image_id in wanted or () if image_id not in named]
    reason = "image '{}' is missing; an image without objects has one with an empty second column"
    return problems + [Problem(0, reason.format(image_id)) for image_id in missing]


def _overlap_problems(rows: list[_Row]) -> list[Problem]:
    """Find objects of one image that share pixels: the later line is named, and the earlier one with it."""
    problems = []
    for own in _by_image(rows).values():
        starts = np.concatenate([row.starts for row in own])
        if len(own) < 2 or not starts.size:
            continue
        order = np.argsort(starts, kind="stable")
        owner = np.repeat(np.arange(len(own)), [len(row.starts) for row in own])[order]
        starts, ends = starts[order], (starts + np.concatenate([row.lengths for row in own]))[order]
        reach = np.maximum.accumulate(ends)
        last = np.maximum.accumulate(np.where(ends == reach, np.arange(len(ends)), 0))
        clash = np.flatnonzero(starts[1:] < reach[:-1]) + 1
        pairs = np.sort(np.stack([owner[clash], owner[last[clash - 1]]], axis=1), axis=1)
        for a, b in np.unique(pairs, axis=0).tolist():
            word = "repeats" if own[a].text == own[b].text else "shares pixels with"
            problems.append(Problem(own[b].line, f"the object {word} line {own[a].line}; objects may not overlap"))
    return problems


def _order_problems(rows: list[_Row], profile: Profile, shapes) -> list[Problem]:
    """Tell a file whose pixels were counted in the other order: a cell's next run lies one row (or column) further."""
    votes = np.zeros(3, np.int64)
    for row in rows:
        shape = shapes.get(row.image_id)
        if shape is None or shape[0] == shape[1] or len(row.starts) < 2:
            continue
        right, wrong = (shape[1], shape[0]) if profile.order == "row-major" else shape
        ends = row.starts + row.lengths
        for k, stride in enumerate((right, wrong)):
            votes[k] += ((row.starts[1:] < ends[:-1] + stride) & (ends[1:] > row.starts[:-1] + stride)).sum()
        votes[2] += len(row.starts) - 1
    if votes[2] < 20 or votes[1] < 0.8 * votes[2] or votes[0] > 0.2 * votes[2]:
        return []
    other = "column-major" if profile.order == "row-major" else "row-major"
    return [Problem(0, f"the pairs were counted {other}, {profile.name} counts pixels {profile.order}")]


def _size_problems(rows: list[_Row], profile: Profile, shapes) -> list[Problem]:
    """Tell a file whose pixels were counted in pictures of another size: the rows of cells lie another width apart."""
    lines: dict[int, list[_Row]] = {}  # by the length of the image's rows (columns, where these are counted)
    for row in rows:
        if row.image_id in shapes and len(row.starts) > 1:
            lines.setdefault(shapes[row.image_id][profile.order == "row-major"], []).append(row)
    problems = []
    for right, own in sorted(lines.items()):
        steps = np.concatenate([np.diff(row.starts) for row in own])
        before, after = (np.concatenate([row.lengths[cut] for row in own]) for cut in (slice(-1), slice(1, None)))
        step, run = int(np.median(steps)), float(np.median(before))
        share = [float(np.mean((steps < before + k) & (steps + after > k))) for k in (right, step)]
        off = abs(step - max(round(step / right), 1) * right)
        if (
            len(steps) < 20
            or share[0] > 0.2
            or share[1] < 0.8
            or off <= 1.5 * run + 2
            or step <= max(3 * run, right / 8)
        ):
            continue
        height, width = shapes[own[0].image_id]
        what = "rows" if profile.order == "row-major" else "columns"
        problems.append(
            Problem(
                0,
                f"the pairs were counted in pictures with {what} of about {step} px; '{own[0].image_id[:80]}' is "
                f"{height} x {width}: write the cells in the size of the original images",
            )
        )
    return problems


def _refuse(problems: Sequence[Problem], path) -> None:
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        told = "; ".join(str(problem) for problem in problems[:3])
        raise UserError(
            f"{path} is no valid submission: {told}{more}", "`cellkit check-submission` lists every problem"
        )


# ---- read ----------------------------------------------------------------------------------------------------------
def read_submission(
    path: str | Path, profile: str | Profile, shapes: Mapping[str, tuple[int, int]], allow_overlaps: bool = False
) -> dict[str, Instances]:
    """Read a submission; everything is checked before anything is decoded.

    Parameters
    ----------
    shapes : dict of image_id -> (H, W)
        The images of the test set.
    allow_overlaps : bool
        For a truth in the same form: true cells do overlap.

    Returns
    -------
    dict of image_id -> Instances
        In the order of `shapes`; scores are 1, classes unknown.

    Raises
    ------
    UserError
        The first problems of `check_submission`.
    """
    profile = get_profile(profile)
    problems, rows, named = _read_rows(path, profile, shapes)
    problems += _id_problems(rows, named, shapes) + _order_problems(rows, profile, shapes)
    problems += [] if allow_overlaps else _overlap_problems(rows)
    _refuse(sorted(problems, key=lambda problem: problem.line), path)
    images = _by_image(rows)
    texts = {image_id: [row.text for row in images[image_id] if row.text] for image_id in shapes}
    return {k: Instances.from_kaggle_rle(texts[k], shape, profile.order) for k, shape in shapes.items()}


# ---- tables of truth -----------------------------------------------------------------------------------------------
def _pixel_columns() -> dict[str, str]:
    """Return {column of a table of truth: how its pixels are counted}."""
    return {column: profile.order for profile in profiles().values() for column in profile.truth_columns}


def _id_columns() -> list[str]:
    return [profile.columns[0].lower() for profile in profiles().values()]


def is_truth_table(path: str | Path) -> bool:
    """Tell whether a CSV is a competition's own truth: a cell a row, with the size of its image (Sartorius' train.csv)."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        names = {name.strip().strip('"').lower() for name in file.readline().split(",")}
    return {"height", "width"} <= names and bool(names & set(_pixel_columns())) and bool(names & set(_id_columns()))


def read_truth_table(path: str | Path) -> tuple[list[ImageRecord], list[Instances], tuple[str, ...]]:
    """Read Sartorius' train.csv (id, annotation, width, height, cell_type, ...), or DSB2018's stage1_solution.csv.

    Returns
    -------
    records : list of ImageRecord
        In the order of the table.
    instances : list of Instances
        Overlaps are kept.
    classes : tuple of str
        The cell types, sorted; empty where the table has none.

    Raises
    ------
    UserError
        No CSV in UTF-8; a row without size, with two sizes of an image, or with pairs that are no runs of its image.
    """
    import csv

    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [{str(k).strip().lower(): v or "" for k, v in row.items()} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV in UTF-8: {error}", "use the table as it came") from error
    if not rows:
        raise UserError(f"{path} has no row", "use the table as it came")
    orders, ids = _pixel_columns(), _id_columns()
    column = next(name for name in orders if name in rows[0])
    sizes: dict[str, tuple[int, int]] = {}
    images: dict[str, list[tuple[str, str]]] = {}
    for line, row in enumerate(rows, 2):
        name, text = next(filter(None, map(row.get, ids)), ""), row[column].strip(" ")
        told = row["height"].removesuffix(".0"), row["width"].removesuffix(".0")
        if not name or not all(part.isascii() and part.isdigit() and 0 < len(part) < 7 for part in told):
            raise UserError(f"{path} line {line} has no id, height or width", "use the table as it came")
        shape = int(told[0]), int(told[1])
        if sizes.setdefault(name, shape) != shape:
            raise UserError(f"{path} line {line}: image '{name}' has two sizes", "use the table as it came")
        cells = images.setdefault(name, [])
        if not text:
            continue
        fault = (
            _text_fault(text) if not _NUMBERS.match(text) else _numbers_fault(np.fromstring(text, int, sep=" "), shape)
        )
        if fault:
            raise UserError(f"{path} line {line}: {fault}", "use the table as it came")
        cells.append((text, row.get("cell_type", "").strip()))
    classes = tuple(sorted({kind for cells in images.values() for _, kind in cells if kind}))
    records, instances = [], []
    for name, cells in images.items():
        kinds = {kind for _, kind in cells}
        records.append(ImageRecord(name, name, *sizes[name], cell_type=kinds.pop() if len(kinds) == 1 else ""))
        found = Instances.from_kaggle_rle([text for text, _ in cells], sizes[name], orders[column])
        instances.append(found.with_classes([classes.index(kind) + 1 if kind else 0 for _, kind in cells]))
    return records, instances, classes
