"""What a batch writes: PNG pictures, the same bytes for the same pixels, and a journal of what is done."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cellkit import __version__
from cellkit.errors import UserError
from cellkit.files import content_of, crc32_of, locked
from cellkit.parallel import StopAll

TEMPORARY = ".tmp-"
DEFLATE_BELOW_BITS = 3.0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_parts(image: np.ndarray, um_per_px: float) -> list[bytes]:
    """Return the pieces of a PNG, to be written one after the other; the same pixels give the same bytes.

    Rows are deflated where that saves three fifths or more (dark fields, drawings), and stored where it does not: the
    noise of a camera fills most bits of a stretched picture, and deflating it takes longer than reading and scaling the
    stack it comes from.

    Parameters
    ----------
    image : (H, W, 3) uint8
    um_per_px : float
        Pixel size, kept as pixels per metre (pHYs); nan when unknown.
    """
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


def write_parts(path: Path, parts: Sequence[bytes]) -> tuple[int, int]:
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


JOURNAL = ".conversion.jsonl"
LOCK = ".conversion.lock"
FORMAT = 2  # of the journal and the pictures: another one, or another version of the package, makes everything anew


class Journal:
    """What a batch has done so far: one JSON line per item, added by the main process; an incomplete last line counts as none.

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
            incomplete = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            self._file = open(self.path, "ab")  # noqa: SIM115  closed by __exit__
            self._file.write(b"\n" if incomplete else b"")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written: {error.strerror}", "choose another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, item: str, entry: Mapping[str, Any]) -> None:
        """Note that an item is done, at once.

        Raises
        ------
        StopAll
            The journal cannot be written.
        """
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
    busy = f"another conversion writes to {folder}"
    with locked(folder / LOCK, busy, "wait for it, or choose another folder"), without_remains(folder):
        yield


@contextmanager
def without_remains(folder: Path) -> Iterator[None]:
    """Remove what a killed process left half-written in a folder: before the block, and of killed workers after it."""
    remove_remains(folder)
    yield
    remove_remains(folder)


def remove_remains(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)
