"""OME-Zarr folders whose chunks are looked at before they are unpacked: none becomes much more than its array says.

What lies inside a shard is not looked at. To be imported where a folder is opened: zarr takes long.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore

from cellkit.errors import UserError

SLACK_BYTES = (
    2**28
)  # what a chunk may be larger than its array says before it is refused: nobody runs out of memory by it
AT_ONCE = 2**24
DEFLATED = 1032  # times at most that deflate makes something smaller
ZSTD, SKIPPED = 0xFD2FB528, 0x184D2A50  # how frames begin, and those that hold nothing
STREAMS = {"gzip": gzip.open, "bz2": bz2.open, "lzma": lzma.open}  # each reads all that follow one another


class Checked(LocalStore):
    """A folder of OME-Zarr, each chunk of which is checked when it is read."""

    async def get(self, key, prototype, byte_range=None):
        """Return what is stored under a key, None where nothing is."""
        found = await super().get(key, prototype, byte_range)
        if found is not None and not key.rpartition("/")[2].startswith((".z", "zarr.json")):
            check_chunk(Path(self.root), key, found.to_bytes)
        return found


def open_zarr_group(path: str | Path) -> zarr.Group:
    """Return the group of an OME-Zarr folder, to be read; the chunks of its arrays are checked as they are read.

    Raises
    ------
    UserError
        When a chunk is read: it would unpack to more than its array says.
    """
    return zarr.open_group(store=Checked(Path(path), read_only=True), mode="r", use_consolidated=False)


def check_chunk(root: Path, key: str, content: Callable[[], bytes]) -> None:
    """Refuse a chunk that would unpack to much more than its array says.

    Parameters
    ----------
    root : Path
        The folder of the OME-Zarr.
    key : str
        The chunk's name below it.
    content : callable
        () -> its bytes.

    Raises
    ------
    UserError
        It would.
    """
    codecs, chunk_bytes = _array_of(root, key)
    most = chunk_bytes + SLACK_BYTES
    for codec in codecs:
        if unpacks_to_more(codec, content(), most):
            problem = f"{root.name}: the chunk {key} unpacks to more than the {chunk_bytes:,} bytes that its array says"
            raise UserError(problem, "the file is damaged or meant to do harm: write it again")


def unpacks_to_more(codec: str, packed: bytes, most: int) -> bool:
    """Tell whether bytes become more than `most` when they are unpacked; of what is damaged, no.

    Examples
    --------
    >>> unpacks_to_more("zlib", zlib.compress(bytes(10**6)), 999_999), unpacks_to_more("zlib", zlib.compress(b"a"), 1)
    (True, False)
    >>> unpacks_to_more("bz2", bz2.compress(b"a") + bz2.compress(bytes(10**6)), 10**6)
    True
    """
    if codec in ("blosc", "lz4"):
        at = 4 if codec == "blosc" else 0
        return len(packed) >= at + 4 and struct.unpack_from("<I", packed, at)[0] > most
    if codec == "zstd":
        return _zstd_size(packed) > most
    if codec not in ("zlib", *STREAMS) or (codec in ("zlib", "gzip") and len(packed) * DEFLATED <= most):
        return False
    total = 0
    try:
        for piece in _unpacked(codec, packed):
            total += len(piece)
            if total > most:
                return True
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        pass
    return False


def _unpacked(codec: str, packed: bytes) -> Iterator[bytes]:
    """Unpack piece by piece, to forget each."""
    if codec != "zlib":
        with STREAMS[codec](io.BytesIO(packed)) as stream:
            while piece := stream.read(AT_ONCE):
                yield piece
        return
    unpacker, left = zlib.decompressobj(), packed
    while not unpacker.eof:
        piece = unpacker.decompress(left, AT_ONCE)
        left = unpacker.unconsumed_tail
        if not piece and not left:
            return
        yield piece


def _zstd_size(packed: bytes) -> int:
    """Return the size that the first frame of zstd says it has, which is all that is unpacked then (RFC 8878, 3.1.1); where it
    says none, as much as all frames may become."""
    at, size, _ = _zstd_head(packed, 0)
    if size is not None:
        return size
    total, frame = 0, 0
    while frame + 8 <= len(packed):
        magic = int.from_bytes(packed[frame : frame + 4], "little")
        if magic & ~0xF == SKIPPED:
            frame += 8 + int.from_bytes(packed[frame + 4 : frame + 8], "little")
        elif magic == ZSTD:
            at, _, checksum = _zstd_head(packed, frame)
            most, frame = _zstd_blocks(packed, at)
            total, frame = total + most, frame + checksum
        else:
            break
    return total


def _zstd_head(packed: bytes, frame: int) -> tuple[int, int | None, int]:
    """Return where the blocks of a frame begin, the size that it says it has, and the bytes of the checksum behind them."""
    if len(packed) < frame + 6 or int.from_bytes(packed[frame : frame + 4], "little") != ZSTD:
        return frame, None, 0
    about = packed[frame + 4]
    flag, single, dictionary = about >> 6, about >> 5 & 1, (0, 1, 2, 4)[about & 3]
    at, wide = frame + 5 + (not single) + dictionary, (single, 2, 4, 8)[flag]
    size = int.from_bytes(packed[at : at + wide], "little") + 256 * (wide == 2) if wide else None
    return at + wide, size, 4 * (about >> 2 & 1)


def _zstd_blocks(packed: bytes, at: int) -> tuple[int, int]:
    """Return the most bytes that the blocks of a frame may become, 128 kB each (RFC 8878, 3.1.1.2), and where they end."""
    total, last = 0, False
    while not last and at + 3 <= len(packed):
        head = int.from_bytes(packed[at : at + 3], "little")
        last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
        total += 2**17 if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)
    return total, at


def _array_of(root: Path, key: str) -> tuple[list[str], int]:
    """Return the codecs of the array that a chunk belongs to, and the bytes of its chunks (of its shards) unpacked."""
    folder = (root / key).parent
    while folder != root.parent:
        for name in (".zarray", "zarr.json"):
            if (folder / name).is_file():
                return _about(json.loads((folder / name).read_text(encoding="utf-8")))
        folder = folder.parent
    return [], 0


def _about(array: dict) -> tuple[list[str], int]:
    """Return what `_array_of` does, of the metadata of an array of format 2 or 3."""
    if array.get("zarr_format") == 3:
        shape, kind = array["chunk_grid"]["configuration"]["chunk_shape"], array["data_type"]
        packed = [str(one.get("name")) for one in array["codecs"] if isinstance(one, dict)]
    else:
        shape, kind = array["chunks"], array["dtype"]
        both = [array.get("compressor"), *(array.get("filters") or ())]
        packed = [str(one.get("id")) for one in both if isinstance(one, dict)]
    return [one.removeprefix("numcodecs.") for one in packed], math.prod(shape) * np.dtype(kind).itemsize
