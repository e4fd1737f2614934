"""Thousands of files to pictures: shared among processes, each known by its content, so that a killed batch goes on.

`convert_batch` writes one PNG per scene and time, and a journal line per file. Repeated, it reads the journal and skips
what is done: a file whose bytes are those it was made from, converted in the same way, with pictures that are still the
bytes that were written. Nothing depends on dates, nor on how many processes share the work.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cellkit import __version__
from cellkit.convert import Converted, Level, Light, colour_map, convert_frame, measured_light, shared_limits, sum_light
from cellkit.errors import Quarantined, UserError
from cellkit.files import atomic_path
from cellkit.loop import StopAll, map_items
from cellkit.names import check_ids

JOURNAL = ".conversion.jsonl"
LOCK = ".conversion.lock"
TEMPORARY = ".tmp-"
FORMAT = 2  # of the journal and the pictures: another one, or another version of the package, makes everything anew
FILES_AT_ONCE = 32  # whose light is summed in one go
DEFLATE_BELOW_BITS = 3.0
READ_AT_ONCE = 2**20
NOTES_SHOWN = 10
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# ---- pictures ------------------------------------------------------------------------------------------------------
def encode_png(image: np.ndarray, um_per_px: float = math.nan) -> bytes:
    """Return a PNG; the same pixels give the same bytes.

    Rows are deflated where that saves three fifths or more (dark fields, drawings), and stored where it does not: the
    noise of a camera fills most bits of a stretched picture, and deflating it takes longer than reading and scaling the
    stack it comes from.

    Parameters
    ----------
    image : (H, W, 3) uint8
    um_per_px : float
        Pixel size, kept as pixels per metre (pHYs); nan when unknown.
    """
    return b"".join(png_parts(image, um_per_px))


def png_parts(image: np.ndarray, um_per_px: float) -> list[bytes]:
    """Return the pieces of a PNG, to be written one after the other."""
    import imagecodecs

    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image).reshape(height, 3 * width)
    lines = np.empty((height, 3 * width + 1), np.uint8)
    lines[:, 1:] = rows
    small = _bits_per_byte(rows[:: max(1, height // 8)]) < DEFLATE_BELOW_BITS
    lines[:, 0] = small  # the filter of each row: 1 = minus the pixel before, 0 = as it is
    if small:
        lines[:, 4:] -= rows[:, :-3]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    if math.isfinite(um_per_px) and 1 <= round(1e6 / um_per_px) < 2**31:
        chunks.append((b"pHYs", struct.pack(">IIB", round(1e6 / um_per_px), round(1e6 / um_per_px), 1)))
    chunks += [(b"IDAT", imagecodecs.deflate_encode(lines, level=1 if small else 0)), (b"IEND", b"")]
    return [PNG_SIGNATURE, *(part for kind, data in chunks for part in _chunk(kind, data))]


def _bits_per_byte(rows: np.ndarray) -> float:
    """Return the entropy of rows (N, 3 W) uint8 after taking each pixel from the next: what deflate can come near."""
    if rows.shape[1] <= 3:
        return 8.0
    counts = np.bincount((rows[:, 3:] - rows[:, :-3]).ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _chunk(kind: bytes, data: bytes) -> Iterator[bytes]:
    yield struct.pack(">I", len(data)) + kind
    yield data
    yield struct.pack(">I", crc32_of(data, crc32_of(kind)))


def write_png(path: str | Path, image: np.ndarray, um_per_px: float = math.nan) -> Path:
    """Write `encode_png` atomically and synced to disk; return the path."""
    content = encode_png(image, um_per_px)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def put(path: Path, parts: Sequence[bytes]) -> tuple[int, int]:
    """Write a file of a batch, given in pieces, whole or not at all; return its bytes and CRC-32.

    It is not synced to disk by itself, which would cost more than the conversion: the journal holds its CRC-32, and what
    a power cut tore is made again.

    Raises
    ------
    StopAll
        The folder cannot be written, or the disk is full: no fault of the file that is converted.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StopAll(
            f"{path} cannot be written: {error.strerror or error}",
            "free space or choose another folder, then repeat the command: what is done is kept",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    crc = 0
    for part in parts:
        crc = crc32_of(part, crc)
    return sum(map(len, parts)), crc


def sync(paths: Iterable[Path]) -> None:
    """Make sure that files are on the disk, not only in memory."""
    for path in paths:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


# ---- content -------------------------------------------------------------------------------------------------------
def crc32_of(content: Any, start: int = 0) -> int:
    """Return the CRC-32 of bytes or an array; zlib-ng's, where it is there, is ten times as fast and the same number."""
    import imagecodecs

    if imagecodecs.ZLIBNG.available:
        return imagecodecs.zlibng_crc32(content, start)
    import zlib

    return zlib.crc32(content, start)


def content_of(path: Path) -> tuple[int, int]:
    """Return the bytes and CRC-32 of a file, or of the names and contents of all files in a folder (OME-Zarr)."""
    total = crc = 0
    if not path.is_dir():
        with open(path, "rb", buffering=0) as file:
            while part := file.read(READ_AT_ONCE):
                total += len(part)
                crc = crc32_of(part, crc)
        return total, crc
    for child in sorted(child for child in path.rglob("*") if child.is_file()):
        size, own = content_of(child)
        total += size
        crc = crc32_of(f"{child.relative_to(path).as_posix()}\0{size}\0{own}\n".encode("utf-8", "surrogateescape"), crc)
    return total, crc


def readable(text: str) -> str:
    r"""Return text that can be written as UTF-8: bytes of a file name that are not UTF-8 become ``\xNN``.

    Examples
    --------
    >>> readable("caf\udce9.tif")
    'caf\\xe9.tif'
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


# ---- journal -------------------------------------------------------------------------------------------------------
class Journal:
    """What a batch has done so far: one JSON line per item, added by the main process; a torn last line counts as none.

    Parameters
    ----------
    path : Path
        Read when it exists.
    how : object
        What the results depend on besides the items; lines made in another way are not used.
    """

    def __init__(self, path: Path, how: Any):
        self.path = path
        ground = json.dumps([FORMAT, __version__, how], sort_keys=True, default=str)
        self.how = crc32_of(ground.encode())
        self.done: dict[str, dict] = {}
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            entry = self._entry(line)
            if entry is not None:
                self.done[entry["item"]] = entry

    def _entry(self, line: bytes) -> dict | None:
        try:
            check, text = line.split(b" ", 1)
            entry = json.loads(text) if int(check, 16) == crc32_of(text) else None
        except ValueError:
            return None
        return entry if entry and entry["how"] == self.how else None

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = open(self.path, "ab")  # noqa: SIM115  closed by __exit__
            self._file.write(b"\n" if torn else b"")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written: {error.strerror}", "choose another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, item: str, entry: Mapping[str, Any]) -> None:
        """Note that an item is done, at once."""
        text = json.dumps({"item": item, "how": self.how, **entry}, ensure_ascii=True).encode()
        try:
            self._file.write(b"%08x %s\n" % (crc32_of(text), text))
            self._file.flush()
        except OSError as error:
            raise StopAll(
                f"{self.path} cannot be written: {error.strerror}", "free space, then repeat the command"
            ) from error

    def forget(self) -> None:
        """Remove the journal: what it was kept for is finished."""
        self.path.unlink(missing_ok=True)


def still_there(folder: Path, files: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether files are what was written: {name: (bytes, CRC-32)}."""
    try:
        return all(list(content_of(folder / name)) == list(known) for name, known in files.items())
    except OSError:
        return False


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder, and remove what a killed process left half-written in it.

    Raises
    ------
    UserError
        The folder cannot be made or written, or another conversion writes to it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another conversion writes to {folder}", "wait for it, or choose another folder") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}", "choose another folder") from error
    try:
        remove_remains(folder)
        yield
    finally:
        lock.release()


def remove_remains(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


# ---- files to pictures ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recipe:
    """How files become pictures; fields as the arguments of `cellkit.convert.convert_file`.

    `percentiles_of` is what the percentiles are taken of: each "image", or all pixels of the "batch", colour by colour.
    """

    channels: Mapping[str, str | int | None]
    projection: str | int = "max"
    percentiles: tuple[float, float] = (0.3, 99.8)
    scale: float = 1.0
    axes: str | None = None
    percentiles_of: str = "image"

    def __post_init__(self) -> None:
        if not colour_map(self.channels):
            raise UserError("neither nuclei nor cytoplasm is named", "name the channel of one of them, e.g. nuclei: 0")
        if self.percentiles_of not in ("image", "batch"):
            raise UserError(f"percentiles_of is '{self.percentiles_of}'", "choose image or batch")

    def to_json(self) -> dict:
        """Plain values, what the journal knows a recipe by."""
        return {**vars(self), "channels": dict(self.channels), "percentiles": list(self.percentiles)}


@dataclass(frozen=True)
class Batch:
    """What `convert_batch` did: pictures by path, rows of conversion.csv, files skipped as done before, files set aside."""

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


def convert_batch(files: Iterable[tuple[Path, str]], out: str | Path, recipe: Recipe, workers: int = 1) -> Batch:
    """Convert files to ``out/<image_id>.png``, one per scene and time; skip what an earlier call has done.

    Parameters
    ----------
    files : iterable of (path, image_id)
        The id is that of a file's only picture; scene and time are added where there are several.
    out : path
        Made when missing. Keeps its journal in ``.conversion.jsonl``.
    recipe : Recipe
    workers : int
        Processes; the same bytes for any number.

    Returns
    -------
    Batch
        In the order of `files`. A file that cannot be used is set aside with its reason.

    Raises
    ------
    UserError
        Two pictures of one id, a folder that cannot be written, a full disk, or a second conversion into the same folder.
    """
    out = Path(out)
    jobs = [_Job(Path(path), image_id) for path, image_id in files]
    _check_job_ids(jobs)
    with alone_in(out):
        limits = None
        if recipe.percentiles_of == "batch":
            limits = limits_of_batch(partial(_convert_all_frames, recipe=recipe), jobs, recipe.percentiles, workers)
        with Journal(out / JOURNAL, [recipe.to_json(), limits]) as journal:
            jobs = [_Job(job.path, job.image_id, journal.done.get(job.image_id)) for job in jobs]
            work = partial(_convert_job, out=out, recipe=recipe, limits=limits)
            note = lambda job, entry: entry == job.known or journal.add(job.image_id, entry)  # noqa: E731
            done, failed = map_items(
                work, jobs, "convert", workers, name=lambda job: readable(str(job.path)), then=note
            )
        _remove_outdated(out, jobs, done)
    made = [entry for entry in done if entry]
    failed += [Quarantined(name, reason) for entry in made for name, reason in entry["failed"]]
    tell_notes(row for entry in made for row in entry["rows"])
    return Batch(
        written=[out / name for entry in made for name in entry["files"]],
        rows=[row for entry in made for row in entry["rows"]],
        quarantined=[Quarantined(q.item, plain_reason(q.reason)) for q in failed],
        resumed=sum(entry is not None and entry == job.known for job, entry in zip(jobs, done, strict=True)),
    )


def _remove_outdated(out: Path, jobs: Sequence[_Job], done: Sequence[dict | None]) -> None:
    """Remove pictures this folder's journal knows of files that gave them once and now give none; others' files stay."""
    for job, entry in zip(jobs, done, strict=True):
        for name, content in (job.known or {"files": {}})["files"].items():
            gone = name not in (entry or {"files": {}})["files"]
            if gone and (out / name).is_file() and content_of(out / name) == tuple(content):
                (out / name).unlink()
                print(f"{readable(str(job.path))} no longer gives {name}: the picture is removed", file=sys.stderr)


def plain_reason(reason: str) -> str:
    """Return the reason of a set-aside item as one readable line, the same in every run: without addresses of memory.

    Examples
    --------
    >>> plain_reason("UserError: cannot identify image file <_io.BytesIO object at 0x7f42>\\nexport it again")
    'cannot identify image file; export it again'
    """
    reason = re.sub(r" ?<[\w.]+ object at 0x[0-9a-fA-F]+>", "", reason)
    return "; ".join(readable(reason.removeprefix("UserError: ")).splitlines())


def _convert_job(job: _Job, out: Path, recipe: Recipe, limits) -> dict:
    """Convert one file, or find that it is done; return its journal entry."""
    from cellkit.readers import open_file

    source = list(content_of(job.path)) if job.path.exists() else None  # open_file says what is wrong with it
    if job.known and job.known["source"] == source and still_there(out, job.known["files"]):
        return job.known
    files, rows, failed = {}, [], []
    with open_file(job.path, recipe.axes) as opened, shared_limits(limits):
        failed += [[readable(f"{job.path}"), f"not read: {text}"] for text in opened.info.left_out]
        frames = list(opened.info.frames())
        for scene, time, suffix in frames:
            image_id = job.image_id + suffix
            try:
                made = convert_frame(
                    opened, scene, time, recipe.channels, recipe.projection, recipe.percentiles, recipe.scale, suffix
                )
            except Exception as error:  # whatever a reader raises; the file's other frames may be good
                if len(frames) == 1:
                    raise
                failed.append([readable(f"{job.path} {image_id}"), f"{type(error).__name__}: {error}"])
                continue
            files[f"{image_id}.png"] = list(put(out / f"{image_id}.png", png_parts(made.image, made.um_per_px)))
            rows += _rows(image_id, made, recipe)
    return {"source": source, "files": files, "rows": rows, "failed": failed}


def _rows(image_id: str, made: Converted, recipe: Recipe) -> list[dict]:
    um_per_px = made.um_per_px if math.isfinite(made.um_per_px) else ""
    of = scaled_by(recipe.percentiles, recipe.percentiles_of)
    return [{**level_row(image_id, readable(made.source), level, of), "um_per_px": um_per_px} for level in made.levels]


def level_row(image_id: str, source: str, level: Level, of: str) -> dict:
    """Return the row of conversion.csv that says how one colour of a picture was made."""
    return {
        "image_id": image_id, "source": source, "colour": level.colour, "channel": readable(level.channel),
        "low": level.low, "high": level.high, "clipped_fraction": level.clipped_fraction, "scaled_by": of,
        "note": readable(level.note),
    }  # fmt: skip


def tell_notes(rows: Iterable[Mapping[str, Any]], all_in: str = "column note of conversion.csv") -> None:
    """Print the notes of rows of (image_id, note) to stderr, each once with the images; `all_in` is where all are."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"] and row["image_id"] not in about.setdefault(row["note"], []):
            about[row["note"]].append(row["image_id"])
    for note, images in [*about.items()][:NOTES_SHOWN]:
        others = f" and {len(images) - 3} more" if len(images) > 3 else ""
        print(f"note: {', '.join(images[:3])}{others}: {note}", file=sys.stderr)
    if len(about) > NOTES_SHOWN:
        print(f"... and {len(about) - NOTES_SHOWN} more: {all_in}", file=sys.stderr)


def scaled_by(percentiles: Sequence[float], of: str) -> str:
    """Say where `low` and `high` come from.

    Examples
    --------
    >>> scaled_by((0.3, 99.8), "batch")
    'percentiles 0.3 and 99.8 of the batch'
    """
    return f"percentiles {percentiles[0]:g} and {percentiles[1]:g} of the {of}"


def _check_job_ids(jobs: Sequence[_Job]) -> None:
    """Refuse two files of one picture id; where a scene's or time's id could be another file's, ask the headers."""
    from cellkit.readers import inspect_file

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
                continue  # set aside when its turn comes
            named += [(job.image_id + suffix, readable(str(job.path))) for *_, suffix in frames]
    check_ids(named)


# ---- one scale for all ---------------------------------------------------------------------------------------------
def limits_of_batch(convert, items: Sequence, percentiles: tuple[float, float], workers: int) -> dict[str, list[float]]:
    """Return what becomes 0 and 255 in each colour: percentiles of all pixels of all items that can be converted.

    Parameters
    ----------
    convert : callable
        Converts one item by way of `convert.convert_frame`; picklable. An item it cannot convert counts for nothing: it is
        set aside when it is converted for good.
    """
    parts = [items[first : first + FILES_AT_ONCE] for first in range(0, len(items), FILES_AT_ONCE)]
    light, _ = map_items(partial(_light_of, convert), parts, "measure light", workers)
    return {colour: one.percentiles(percentiles) for colour, one in sum_light(filter(None, light)).items()}


def _light_of(convert, items: Sequence) -> dict[str, Light]:
    found: list[Mapping[str, Light]] = []
    for item in items:
        try:
            with measured_light() as frames:
                convert(item)
        except Exception:  # whatever a reader raises on a damaged file
            continue
        found += frames
    return sum_light(found)


def _convert_all_frames(job: _Job, recipe: Recipe) -> None:
    from cellkit.readers import open_file

    with open_file(job.path, recipe.axes) as opened:
        for scene, time, _ in opened.info.frames():
            with suppress(Exception):  # one bad frame: the others count
                convert_frame(opened, scene, time, recipe.channels, recipe.projection, recipe.percentiles)
