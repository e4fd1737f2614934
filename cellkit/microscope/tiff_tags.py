"""What the tags of a TIFF page say of its values: which way they lie, and whether 0 is black, by who wrote the file.

For images and label images alike.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellkit.errors import UserError
from cellkit.microscope.file_info import ORIENTATION, damaged

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

COMPRESSION, PHOTOMETRIC, SHORT = 259, 262, 3  # tags of a page, and a type of their values


def refuse_turned(path: Path, tif: TiffFile, series: TiffPageSeries) -> None:
    """Refuse an image of which a page is to be shown mirrored or turned, or is stored otherwise than the first.

    Fiji shows a turned page as stored, Pillow and OpenCV as the tag says. Later pages are decoded by the tags of the first.

    Raises
    ------
    UserError
        Naming the page and its tag.
    """
    first = series.keyframe
    stored = {COMPRESSION: int(first.compression)} | ({} if tif.is_imagej else {PHOTOMETRIC: int(first.photometric)})
    for number, own in _tags_by_page(path, tif, series, (ORIENTATION, *stored)):
        at = f"page {number} of {path.name}" if number else path.name
        if own.get(ORIENTATION, 1) in range(2, 9):
            raise UserError(
                f"{at} has the orientation {own[ORIENTATION]} in its tags: programs disagree which way it lies",
                "turn its pixels and store it again without (Fiji: open, look, save as TIFF)",
            )
        for tag, value in stored.items():
            if own.get(tag, value) != value:
                what = "compression" if tag == COMPRESSION else "photometric interpretation"
                raise UserError(
                    f"{at} has the {what} {own[tag]} in its tags, the first page {value}: one image is stored in two ways",
                    "export the file again (Fiji: open, look, save as TIFF)",
                )


def _tags_by_page(path: Path, tif, series, tags: tuple[int, ...]) -> Iterator[tuple[int, dict[int, int]]]:
    """Yield the number of each page of an image and its `_short_tags`; an ImageJ file may end behind its pixels."""
    from tifffile import TiffFileError

    pages, number = iter(series.pages), 0
    while True:
        try:
            page = next(pages, StopIteration)
            found = {} if page is None or page is StopIteration else _short_tags(page, tags)
        except (TiffFileError, struct.error) as error:
            if tif.is_imagej:  # its pixels lie behind each other, whatever the later directories say
                return
            raise damaged(path, "TIFF", error) from error
        if page is StopIteration:
            return
        yield number, found
        number += 1


def _short_tags(page, tags: tuple[int, ...]) -> dict[int, int]:
    """Return those tags of a page that hold one SHORT, read from its directory: tifffile keeps none of later pages."""
    tiff, file = page.parent.tiff, page.parent.filehandle
    file.seek(page.offset)
    count = struct.unpack(tiff.tagnoformat, file.read(tiff.tagnosize))[0]
    entries = file.read(count * tiff.tagsize)
    found = {}
    for begin in range(0, len(entries) - tiff.tagsize + 1, tiff.tagsize):
        tag, kind = struct.unpack_from(tiff.byteorder + "HH", entries, begin)
        if tag in tags and kind == SHORT:
            found[tag] = struct.unpack_from(
                tiff.byteorder + "H", entries, begin + tiff.tagsize - tiff.tagoffsetthreshold
            )[0]
    return found


def refuse_overlong(path: Path, pages: Iterable[TiffPage | None]) -> None:
    """Refuse pages of which a strip or tile is said to have more bytes than the file: so many would be asked of the memory.

    Raises
    ------
    UserError
        Naming the bytes.
    """
    size = path.stat().st_size
    for page in pages:
        most = max(page.databytecounts, default=0) if page is not None else 0
        if most > size:
            raise damaged(path, "TIFF", f"a strip or tile of {most} bytes in {size}")


def white_is_zero(path: Path, tif: TiffFile, page: TiffPage) -> bool:
    """Tell whether stored values have to be inverted: tagged so, by a writer that means it.

    ImageJ keeps values and only shows them inverted; tifffile tags every bool array so and stores it as it is.

    Raises
    ------
    UserError
        One bit per pixel, tagged so by nobody knows whom.
    """
    if int(page.photometric) != 0 or tif.is_imagej:
        return False
    writer = str(page.tags.valueof("Software") or "").strip()
    if page.bitspersample == 1 and not writer and not page.is_shaped:
        raise UserError(
            f"{path.name} has one bit per pixel, white is zero, and no name of its writer: 0 or 1 may be the background",
            "write it again with 8 bits, 0 = background",
        )
    return page.bitspersample != 1 or not (page.is_shaped or writer.startswith("tifffile"))


def inverted(values: np.ndarray, page: TiffPage) -> np.ndarray:
    """Return unsigned or bool values of a page whose largest stored number is black."""
    if values.dtype == bool:
        return ~values
    bits = page.bitspersample if isinstance(page.bitspersample, int) else values.dtype.itemsize * 8
    return values.dtype.type(2**bits - 1) - values
