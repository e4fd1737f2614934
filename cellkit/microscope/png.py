"""PNG: the same pixels give the same bytes; written whole or not at all, and read as stored."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cellkit.files import atomic_path, crc32_of
from cellkit.parallel import StopAll

TEMPORARY = ".tmp-"
DEFLATE_BELOW_BITS = 3.0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
