"""What is wrong with a submission, found before a competition finds it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastcore.basics import groupby

from cellkit.errors import UserError
from cellkit.formats.competitions import Profile, get_profile, profiles

Shapes = Mapping[str, tuple[int, int]]  # image_id -> (H, W)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBERS = re.compile(r" *[0-9]{1,15}(?: +[0-9]{1,15})* *\Z")
QUOTED = re.compile(r'("[^"]*"|[^",]*),"([^"]*)"')
NOTHING = {"nan", "none", "null", "na", "[]", "-1"}


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
    path: str | Path, profile: str | Profile, shapes: Shapes | None = None, ids: Sequence[str] | None = None
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
        Every id that must have a row, e.g. those of sample_submission.csv (`samples.sample_ids`); default those of `shapes`.
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
    return problems_of(path, get_profile(profile), shapes, shapes if ids is None else ids, guess=shapes is not None)


def problems_of(
    path: str | Path, profile: Profile, shapes: Shapes | None, ids: Iterable[str] | None, guess: bool = False
) -> list[Problem]:
    """Find what is wrong; with `guess` also what only the look of the cells tells."""
    problems, rows, named = read_rows(path, profile, shapes)
    problems += id_problems(rows, named, ids)
    problems += overlap_problems(rows)
    if guess:
        problems += order_problems(rows, profile, shapes) or _size_problems(rows, profile, shapes)
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)


def read_rows(path: str | Path, profile: Profile, shapes: Shapes | None) -> tuple[list[Problem], list[_Row], set[str]]:
    """Read what can be read, say of every other line why not, and list every image that has a line.

    Raises
    ------
    UserError
        There is no such file.
    """
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
    quoted = QUOTED.fullmatch(line)
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
    if not NUMBERS.match(text):
        return image_id, text_fault(text)
    numbers = np.fromstring(text, np.int64, sep=" ")
    shape = None if shapes is None else shapes.get(image_id)
    fault = numbers_fault(numbers, shape)
    return image_id, fault or _Row(number, image_id, text.strip(" "), numbers[::2] - 1, numbers[1::2])


def text_fault(text: str) -> str:
    """Say why a run-length text is not whole numbers."""
    if text.strip().lower() in NOTHING:
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


def numbers_fault(numbers: np.ndarray, shape: tuple[int, int] | None) -> str:
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


def by_image(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    """Return the rows of each image, in the order of the file."""
    return groupby(rows, "image_id")


def id_problems(rows: list[_Row], named: set[str], wanted: Iterable[str] | None) -> list[Problem]:
    """Find unknown and missing images, and empty rows beside others."""
    problems, images = [], by_image(rows)
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


def overlap_problems(rows: list[_Row]) -> list[Problem]:
    """Find objects of one image that share pixels: the later line is named, and the earlier one with it."""
    problems = []
    for own in by_image(rows).values():
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


def order_problems(rows: list[_Row], profile: Profile, shapes: Shapes) -> list[Problem]:
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


def refuse_problems(problems: Sequence[Problem], path: str | Path) -> None:
    """Raise UserError with the first problems, where there are any.

    Raises
    ------
    UserError
        There is any; the first three are named.
    """
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        first = "; ".join(str(problem) for problem in problems[:3])
        raise UserError(
            f"{path} is no valid submission: {first}{more}", "`cellkit check-submission` lists every problem"
        )


@dataclass(frozen=True)
class Problem:
    """Why a submission is refused: the line of the file (1 = header, 0 = the file as a whole) and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason


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
