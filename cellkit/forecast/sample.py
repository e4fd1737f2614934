"""One image of a run, read as notebook 01 will read it: how long that takes, and how large its picture is on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cellkit.sources.listing import SourceImage


@dataclass(frozen=True)
class Sample:
    """What converting takes: seconds a megapixel, and bytes a pixel of the picture that is written."""

    convert_s: float = 0.3  # of a file of three planes
    picture_bytes: float = 3.0  # at most: rows are stored as they are, unless deflating them saves much


USUAL = Sample()


def sample_of(items: Sequence[SourceImage], most_px: float = 2**24) -> Sample:
    """Read one image from the middle of the list; the usual sample where that fails, or it is larger than a moment's work.

    Parameters
    ----------
    items : sequence
        The images, not read so far.
    most_px : float
        Most pixels that are read for this.
    """
    from cellkit.microscope.file_info import headers_only
    from cellkit.microscope.journal import png_parts

    if not items:
        return USUAL
    item = items[len(items) // 2]
    with suppress(Exception):  # whatever is wrong with it is said by the check of all images
        with headers_only():
            height, width = item.load().image.shape[:2]
        if height * width > most_px:
            return USUAL
        began = time.process_time()
        loaded = item.load()
        pixels = loaded.image.shape[0] * loaded.image.shape[1]
        size = sum(map(len, png_parts(loaded.image, loaded.um_per_px)))
        return Sample((time.process_time() - began) / pixels * 1e6 + 0.1, size / pixels)
    return USUAL
