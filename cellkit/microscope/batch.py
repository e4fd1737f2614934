"""Thousands of files to pictures: shared among processes, each known by its content, so that a killed batch goes on.

`convert_batch` writes one PNG per scene and time, and a journal line per file. Repeated, it reads the journal and skips
what is done: a file whose bytes are those it was made from, converted in the same way, with pictures that are still the
bytes that were written. Nothing depends on dates, nor on how many processes share the work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cellkit.cells.names import check_ids
from cellkit.errors import Quarantined, UserError, counted, of_place, readable
from cellkit.files import content_of
from cellkit.log import LOG
from cellkit.microscope.convert import Conversion, Converted, convert_frame, level_row, light_of_frame, scaled_by
from cellkit.microscope.journal import JOURNAL, Journal, alone_in, png_parts, still_there, write_parts
from cellkit.microscope.light import Light, sum_light
from cellkit.microscope.open import inspect_file, open_file
from cellkit.parallel import map_items

FILES_AT_ONCE = 32  # whose light is summed in one go
NOTES_SHOWN = 10


# ---- files to pictures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What `convert_batch` did: pictures by path, rows of conversion.csv, files skipped as done before, files left out."""

    written: list[Path]
    rows: list[dict]
    quarantined: list[Quarantined]
    resumed: int = 0


@dataclass(frozen=True)
class _Job:
    """One file: its path, the id of its pictures without scene and time, and what the journal says of it."""

    path: Path
    image_id: str
    known: dict | None = field(default=None, compare=False)


def convert_batch(
    files: Iterable[tuple[Path, str]], out: str | Path, conversion: Conversion, workers: int = 1
) -> Batch:
    """Convert files to ``out/<image_id>.png``, one per scene and time; skip what an earlier call has done.

    Parameters
    ----------
    files : iterable of (path, image_id)
        The id is that of a file's only picture; scene and time are added where there are several.
    out : path
        Made when missing. Keeps its journal in ``.conversion.jsonl``.
    conversion : Conversion
        Its `limits` are measured here where `percentiles_of` is "batch".
    workers : int
        Processes; the same bytes for any number.

    Returns
    -------
    Batch
        In the order of `files`. A file that cannot be used is left out with its reason.

    Raises
    ------
    UserError
        Two pictures of one id, a folder that cannot be written, a full disk, or a second conversion into the same folder.
    """
    out = Path(out)
    jobs = [_Job(Path(path), image_id) for path, image_id in files]
    _check_job_ids(jobs)
    if not conversion.names_channels:
        raise UserError("neither nuclei nor cytoplasm is named", "name the channel of one of them, e.g. nuclei: 0")
    with alone_in(out):
        if conversion.percentiles_of == "batch":
            limits = measure_light([job.path for job in jobs], conversion, workers)
            conversion = replace(conversion, limits=limits)
        with Journal(out / JOURNAL, [conversion.to_json(), conversion.percentiles_of]) as journal:
            jobs = [_Job(job.path, job.image_id, journal.done.get(job.image_id)) for job in jobs]
            work = partial(_convert_job, out=out, conversion=conversion)
            note = lambda job, entry: entry == job.known or journal.add(job.image_id, entry)  # noqa: E731
            done, failed = map_items(
                work, jobs, "convert", workers, name=lambda job: readable(str(job.path)), then=note
            )
        _remove_outdated(out, jobs, done)
        _name_others(out, jobs, journal)
    made = [entry for entry in done if entry]
    failed += [Quarantined(name, reason) for entry in made for name, reason in entry["failed"]]
    log_notes(row for entry in made for row in entry["rows"])
    return Batch(
        written=[out / name for entry in made for name in entry["files"]],
        rows=[row for entry in made for row in entry["rows"]],
        quarantined=[one.in_one_line() for one in failed],
        resumed=sum(entry is not None and entry == job.known for job, entry in zip(jobs, done, strict=True)),
    )


def _remove_outdated(out: Path, jobs: Sequence[_Job], done: Sequence[dict | None]) -> None:
    """Remove pictures this folder's journal knows of files that gave them once and now give none; others' files stay."""
    for job, entry in zip(jobs, done, strict=True):
        for name, content in (job.known or {"files": {}})["files"].items():
            gone = name not in (entry or {"files": {}})["files"]
            if gone and (out / name).is_file() and content_of(out / name) == tuple(content):
                (out / name).unlink()
                LOG.warning(f"{readable(str(job.path))} no longer gives {name}: the picture is removed")


def _name_others(out: Path, jobs: Sequence[_Job], journal: Journal) -> None:
    """Say which pictures are there of files that were given once and are not now; they stay, for another call may give them."""
    given = {job.image_id for job in jobs}
    names = [name for item, entry in journal.done.items() if item not in given for name in entry["files"]]
    there = sorted(name for name in names if name.lower().endswith(".png") and (out / name).is_file())
    if there:
        what = f"{counted(len(there), 'picture')} of files that are not among those given now"
        LOG.warning(f"{out} also holds {what}, e.g. {there[0]}; remove what is not to be used")


def _convert_job(job: _Job, out: Path, conversion: Conversion) -> dict:
    """Convert one file, or find that it is done; return its journal entry."""
    source = list(content_of(job.path)) if job.path.exists() else None  # open_file says what is wrong with it
    if job.known and job.known["source"] == source and still_there(out, job.known["files"]):
        return job.known
    files, rows, failed = {}, [], []
    with open_file(job.path, conversion.axes, conversion.most_px) as opened:
        failed += [[readable(f"{job.path}"), f"not read: {text}"] for text in opened.info.left_out]
        frames = list(opened.info.frames())
        for scene, time, suffix in frames:
            image_id = job.image_id + suffix
            try:
                made = convert_frame(opened, scene, time, conversion, suffix)
            except Exception as error:  # whatever a reader raises; the file's other frames may be good
                if len(frames) == 1:
                    raise
                failed.append([readable(f"{job.path} {image_id}"), f"{type(error).__name__}: {error}"])
                continue
            files[f"{image_id}.png"] = list(write_parts(out / f"{image_id}.png", png_parts(made.image, made.um_per_px)))
            rows += _rows(image_id, made, conversion)
    return {"source": source, "files": files, "rows": rows, "failed": failed}


def _rows(image_id: str, made: Converted, conversion: Conversion) -> list[dict]:
    um_per_px = made.um_per_px if math.isfinite(made.um_per_px) else ""
    of = scaled_by(conversion.percentiles, conversion.percentiles_of)
    return [{**level_row(image_id, readable(made.source), level, of), "um_per_px": um_per_px} for level in made.levels]


def log_notes(rows: Iterable[Mapping[str, Any]], all_in: str = "column note of conversion.csv") -> None:
    """Write the notes of rows of (image_id, note) into the log, each once with the images; `all_in` is where all are."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"] and row["image_id"] not in about.setdefault(row["note"], []):
            about[row["note"]].append(row["image_id"])
    for note, images in [*about.items()][:NOTES_SHOWN]:
        others = f" and {len(images) - 3} more" if len(images) > 3 else ""
        LOG.warning(f"note: {', '.join(images[:3])}{others}: {note}")
    if len(about) > NOTES_SHOWN:
        LOG.warning(f"... and {len(about) - NOTES_SHOWN} more: {all_in}")


def _check_job_ids(jobs: Sequence[_Job]) -> None:
    """Refuse two files of one picture id; where a scene's or time's id could be another file's, ask the headers."""
    check_ids((job.image_id, readable(str(job.path))) for job in jobs)
    parts = [re.fullmatch(r"(.+?)((?:_s\d+)?)((?:_t\d+)?)", job.image_id.casefold()).groups() for job in jobs]
    longer = {stem + scene + time: {stem, stem + scene} for stem, scene, time in parts if scene or time}
    doubtful = set().union(*longer.values()) - set(longer)
    named = [(job.image_id, readable(str(job.path))) for job in jobs if job.image_id.casefold() in longer]
    for job in jobs:
        if job.image_id.casefold() in doubtful:
            try:
                frames = inspect_file(job.path).frames()
            except UserError:
                continue  # left out when its turn comes
            named += [(job.image_id + suffix, readable(str(job.path))) for *_, suffix in frames]
    check_ids(named)


# ---- one scale for all ---------------------------------------------------------------------------------------------
def measure_light(
    files: Sequence,
    conversion: Conversion,
    workers: int = 1,
    light_of: Callable[[Any, Conversion], list[dict[str, Light]]] | None = None,
    name: Callable[[Any], str] = str,
) -> dict[str, list[float]]:
    """Return what becomes 0 and 255 in each colour: percentiles of all pixels of all files; nothing is converted.

    Parameters
    ----------
    files : sequence
        Paths, or whatever `light_of` takes. One that cannot be read counts for nothing and is named in the log; it is
        left out when it is converted.
    conversion : Conversion
    workers : int
        Processes; the same values for any number.
    light_of : callable, optional
        (file, conversion) -> the light of each of its frames; picklable. Default: that of all frames of a path.
    name : callable, optional
        What a file is called in the log; picklable.

    Raises
    ------
    UserError
        An error of the place, which is no file's fault: a full disk, too many open files.
    """
    parts = [files[first : first + FILES_AT_ONCE] for first in range(0, len(files), FILES_AT_ONCE)]
    work = partial(_light_of_part, conversion=conversion, light_of=light_of or light_of_file, name=name)
    measured = [part for part in map_items(work, parts, "measure light", workers)[0] if part is not None]
    unread = [readable(one) for _, names in measured for one in names]
    if unread:
        LOG.warning(f"not in the common scale, as they cannot be read: {', '.join(unread)}")
    light = sum_light(part for part, _ in measured)
    return {colour: one.percentiles(conversion.percentiles) for colour, one in light.items()}


def _light_of_part(
    files: Sequence, conversion: Conversion, light_of: Callable, name: Callable[[Any], str]
) -> tuple[dict[str, Light], list[str]]:
    """Return the light of the files together, and the names of those that cannot be read."""
    found: list[dict[str, Light]] = []
    unread = []
    for file in files:
        try:
            found += light_of(file, conversion)
        except Exception as error:  # whatever a reader raises on a damaged file
            if of_place(error):
                raise
            unread.append(name(file))
    return sum_light(found), unread


def light_of_file(path: Path, conversion: Conversion) -> list[dict[str, Light]]:
    """Return the light of every frame of a file that can be read; raises what is wrong where there is none.

    Raises
    ------
    UserError
        No frame of the file can be read; with what is wrong with the first.
    """
    found: list[dict[str, Light]] = []
    bad = None
    with open_file(path, conversion.axes, conversion.most_px) as opened:
        for scene, time, _ in opened.info.frames():
            try:
                found.append(light_of_frame(opened, scene, time, conversion))
            except Exception as error:  # one bad frame: the others count
                if of_place(error):
                    raise
                bad = error
    if bad is not None and not found:
        raise bad
    return found
