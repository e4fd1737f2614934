"""What a chunk of an OME-Zarr becomes is known before it is unpacked, however many streams follow one another in it."""

import bz2
import gzip
import lzma
import zlib

import numpy as np
import pytest
from numcodecs import Zstd

from cellkit.microscope.zarr_chunks import unpacks_to_more

MB = 2**20
NOISE = np.random.default_rng(0).bytes(64_000)
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"  # a frame of zstd that holds nothing


def repeated(blocks: int, checksum: bool = False) -> bytes:
    """Return a frame of zstd that does not say its size: blocks of 128 kB, each of one byte that is repeated."""
    body = [(2**17 << 3 | 1 << 1 | (k == blocks - 1)).to_bytes(3, "little") + b"\0" for k in range(blocks)]
    return b"\x28\xb5\x2f\xfd" + bytes([4 * checksum, 0x40]) + b"".join(body) + bytes(4 * checksum)


@pytest.mark.parametrize("codec, pack", [("gzip", gzip.compress), ("bz2", bz2.compress), ("lzma", lzma.compress)])
def test_a_second_stream_is_counted_too(codec, pack):
    packed = pack(NOISE) + pack(bytes(4 * MB))
    assert unpacks_to_more(codec, packed, 4 * MB)
    assert not unpacks_to_more(codec, packed, 4 * MB + len(NOISE))
    assert not unpacks_to_more(codec, packed[: len(packed) // 2], 4 * MB), "of what is damaged, no"


def test_of_zlib_the_first_stream_is_all():
    assert unpacks_to_more("zlib", zlib.compress(bytes(4 * MB)), 4 * MB - 1)
    assert not unpacks_to_more("zlib", zlib.compress(bytes(4 * MB)), 4 * MB)


@pytest.mark.parametrize("before", [b"", repeated(1), SKIPPED, SKIPPED + repeated(1)])
def test_every_frame_of_zstd_that_does_not_say_its_size_is_counted(before):
    packed = before + repeated(32)
    whole = len(Zstd().decode(packed))
    assert whole >= 4 * MB
    assert unpacks_to_more("zstd", packed, whole - 1) and not unpacks_to_more("zstd", packed, whole)


def test_a_checksum_behind_a_frame_of_zstd_is_passed_over():
    assert unpacks_to_more("zstd", repeated(1, checksum=True) + repeated(32), 4 * MB)


@pytest.mark.parametrize("size", [1, 255, 256, 70_000, 4 * MB])
def test_a_frame_of_zstd_is_as_large_as_it_says(size):
    packed = Zstd().encode(bytes(size))
    assert unpacks_to_more("zstd", packed, size - 1) and not unpacks_to_more("zstd", packed, size)


@pytest.mark.parametrize(
    "packed", [b"", b"\x28", b"\x28\xb5\x2f\xfd", SKIPPED[:6], SKIPPED, repeated(3)[:9], b"no zstd at all"]
)
def test_what_is_cut_short_is_no_more_than_it_can_be(packed):
    assert not unpacks_to_more("zstd", packed, MB)
