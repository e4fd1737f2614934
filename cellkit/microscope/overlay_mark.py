"""Pictures with outlines that cellkit drew carry a mark, so that nobody takes them for images, and of which cells they are."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances

KEY = b"cellkit-overlay"
AFTER_HEADER = 33  # bytes: a PNG's signature and its first chunk


def stamp_of(cells: Instances) -> str:
    """Return what tells these cells from others: a hash of their pixels and classes."""
    digest = hashlib.sha256(repr(cells.shape).encode())
    for values in (cells.starts, cells.lengths, cells.offsets, cells.class_ids):
        digest.update(np.ascontiguousarray(values, np.int64).tobytes())
    return digest.hexdigest()[:16]


def marked(png: bytes, stamp: str) -> bytes:
    """Return a PNG with the mark: a text chunk right behind its header.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> made = io.BytesIO()
    >>> Image.new("L", (2, 2)).save(made, "PNG")
    >>> Image.open(io.BytesIO(marked(made.getvalue(), "abc"))).text
    {'cellkit-overlay': 'abc'}
    """
    content = b"tEXt" + KEY + b"\0" + stamp.encode()
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:AFTER_HEADER] + chunk + png[AFTER_HEADER:]


def mark_of(path: Path) -> str | None:
    """Return the stamp of a picture that cellkit drew outlines in; None for any other file, or where there is none."""
    if path.suffix.lower() != ".png":
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(AFTER_HEADER + 8 + len(KEY) + 1 + 64)[AFTER_HEADER:]
    except OSError:
        return None
    if head[4:8] != b"tEXt" or not head[8:].startswith(KEY + b"\0"):
        return None
    (length,) = struct.unpack(">I", head[:4])
    return head[8 + len(KEY) + 1 : 8 + length].decode("ascii", errors="replace")
