"""TIFF files: plain, of ImageJ and OME-TIFF, each read for what its writer meant by it.

What a page's tags say of its values (white is zero, orientation, palette) is decided here, by who wrote the file, for
images and label images alike. Pages that no description accounts for are named.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.errors import UserError, counted
from cellkit.microscope.file_info import (
    COLOURS,
    Channel,
    FileInfo,
    Opened,
    Reader,
    Series,
    check_opaque,
    check_size,
    checked_axes,
    damaged,
)
from cellkit.microscope.ome_xml import length_um, ome_channels, ome_um_per_px, own_images, square_um
from cellkit.microscope.tiff_tags import inverted, refuse_overlong, refuse_turned, white_is_zero

ORDER = -2  # the first to be named
MICROSCOPE_UM = 1.0  # the largest pixel that a resolution in centimetres is believed to give, as ImageJ has it
# what tifffile warns of when planes are missing or left over
REPORTED_WARNINGS = ("missing", "expected", "out of range", "cannot handle", "failed to read", "invalid TiffData")


class _TiffMessages(logging.Handler):
    """Collects what tifffile only logs: a file cut short otherwise opens as one plane of many."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())
        elif any(word in record.getMessage() for word in REPORTED_WARNINGS):
            self.warnings.append(re.sub(r"<tifffile\.\w+ [^>]*> ", "", record.getMessage()))


@dataclass(frozen=True)
class OwnPages:
    """An open TIFF and its images: `series` at full size, the OME <Image> of each (None without), notes and left_out."""

    tif: object
    series: list
    ome: list
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


@contextmanager
def own_pages(path: Path) -> Iterator[OwnPages]:
    """Open a TIFF and list what lies in this file, not in others of its set; what tifffile logs as an error is an error.

    Raises
    ------
    UserError
        A damaged file; an image spread over several files; planes beyond those that ImageJ's description counts.
    """
    import tifffile

    logger, messages = logging.getLogger("tifffile"), _TiffMessages()
    kept = logger.propagate
    logger.addHandler(messages)
    logger.propagate = False
    try:
        with ExitStack() as opened:
            try:
                tif = opened.enter_context(tifffile.TiffFile(path))
                text = tif.ome_metadata if tif.is_ome else None
            except Exception as error:
                raise damaged(path, "TIFF", error) from error
            images, notes = [], ()
            if text:
                images, xml, notes = own_images(path, text)
                if xml is not None:
                    tif = opened.enter_context(tifffile.TiffFile(path, omexml=xml))
                    tif.is_mmstack = False  # which would look for the other files of the set by their names
            try:
                if not tif.is_imagej:
                    len(tif.pages)  # walks the chain of pages and stops where it loops back; `series` would not
                every = list(tif.series)
                beside = {id(series): why for series in every if (why := _why_no_image(series, every))}
                stored = [series for series in every if id(series) not in beside] or every
            except Exception as error:
                raise damaged(path, "TIFF", error) from error
            if messages.errors or not stored:
                raise damaged(path, "TIFF", messages.errors[0] if messages.errors else "no image in it")
            try:
                named = tuple(
                    f"{path.name}: {why}" for why in beside.values() if why != COPY and len(stored) < len(every)
                )
                left_out = _left_out(path, tif, every) + named
            except IndexError as error:
                raise damaged(path, "TIFF", f"a page is missing: {error}") from error
            if images and len(images) != len(stored):
                left_out += (
                    f"{path.name}: its OME metadata describes {len(images)} images, {len(stored)} can be read",
                )
            yield OwnPages(
                tif,
                stored,
                images if len(images) == len(stored) else [None] * len(stored),
                notes,
                left_out + tuple(f"{path.name}: {text}" for text in messages.warnings),
            )
    finally:
        logger.removeHandler(messages)
        logger.propagate = kept


@contextmanager
def open_tiff(path: Path, axes: str | None, most_px: int) -> Iterator[Opened]:
    """Open a TIFF of any kind tifffile knows.

    Raises
    ------
    UserError
        As in `own_pages`; or tags of kinds and lengths that no TIFF has.
    """
    with own_pages(path) as own:
        tif = own.tif
        try:
            scenes = [
                _TiffScene(path, tif, series, axes, ome, most_px)
                for series, ome in zip(own.series, own.ome, strict=True)
            ]
        except UserError:
            raise
        except Exception as error:  # tags of kinds and lengths that no TIFF has
            raise damaged(path, "TIFF", error) from error
        reader = "ome-tiff" if tif.is_ome else "imagej-tiff" if tif.is_imagej else "tiff"
        info = FileInfo(path, reader, tuple(scene.info for scene in scenes), own.notes, own.left_out)
        yield Opened(
            info,
            lambda scene, time, z, channel: scenes[scene].plane(time, z, channel),
            lambda scene, *where: scenes[scene].window(*where),
        )


COPY = "a smaller copy, marked as one"  # a level of a pyramid: not worth a word
THUMBNAIL = 4  # how many times smaller than the first image, on both sides, an unmarked one is taken for its preview


def _why_no_image(series, every: list) -> str:
    """Return why a series is no image to work on, "" where it is one: a mask, a smaller copy, a slide's label or macro."""
    page, first = series.keyframe, every[0].keyframe
    height, width = page.imagelength, page.imagewidth
    what = f"a page of {height} x {width} px"
    if page.dtype is None:
        bits, kind = page.bitspersample, page.sampleformat
        return f"{what} is of no type that is known ({bits} bits, sample format {kind}) and is not read"
    if not height * width:
        return f"{what} holds no pixel and is not read"
    if page.is_mask:
        return f"{what} is a transparency mask and is not read"
    if series.kind == "svs" and series is not every[0]:
        return f"{what} is the slide's {series.name.lower()} and is not read"
    if page.is_reduced:
        others = [other.keyframe for other in every if not other.keyframe.is_reduced]
        return COPY if any(height < other.imagelength and width < other.imagewidth for other in others) else ""
    whole_height, whole_width = first.imagelength, first.imagewidth
    alike = abs(height * whole_width - width * whole_height) <= max(whole_height, whole_width)
    small = height * THUMBNAIL <= whole_height and width * THUMBNAIL <= whole_width
    if series.kind == "generic" and alike and small:
        return f"{what} is a preview of the first by its size and is not read"
    return ""


def _left_out(path: Path, tif, every: list) -> tuple[str, ...]:
    """Say which pages and SubIFDs belong to no image; refuse planes that ImageJ's description does not count."""
    total = len(
        tif.pages
    )  # of an ImageJ stack it may end early: the planes follow the first page without pages of their own
    if every[0].kind == "imagej":
        pages_each = max(math.prod(every[0].shape) // max(every[0].keyframe.size, 1), 1)
        if total > pages_each:
            raise UserError(
                f"{path.name} describes {counted(pages_each, 'plane')} and holds {total}",
                "its planes were joined or added without a new description: open it in Fiji, look, and save it again",
            )
        return ()
    found = []
    places = [
        page.index
        for series in every
        for level in series.levels
        for page in level.pages
        if page is not None and isinstance(page.index, int) and page.parent is tif
    ]
    used = set(places)
    if every[0].kind == "ome" and len(used) < len(places):
        raise UserError(
            f"{path.name}: its OME metadata gives {len(places)} planes the pixels of {len(used)} pages",
            "export the file again: some planes would be shown twice",
        )
    rest = sorted(set(range(total)) - used) if every[0].kind in ("ome", "svs") else []
    if rest:
        listed = ", ".join(map(str, rest[:8])) + (", ..." if len(rest) > 8 else "")
        why = "are in no image that it describes" if every[0].kind == "ome" else "are no images"
        found.append(f"{path.name}: {len(rest)} of its {total} pages {why}: {listed}")
    for series in every:
        page = series.keyframe
        if page.subifds and len(series.levels) == 1:
            found += _larger_subifds(path, page)
    return tuple(found)


def _larger_subifds(path: Path, page) -> list[str]:
    """Name the SubIFDs of a page that are no smaller copies of it."""
    try:
        below = [(int(one.imagelength), int(one.imagewidth)) for one in page.pages]
    except Exception as error:
        return [f"{path.name}: {counted(len(page.subifds), 'SubIFD')} cannot be read: {error}"]
    return [
        f"{path.name}: a SubIFD of {height} x {width} px, no smaller copy of its page, is not read"
        for height, width in below
        if height >= page.imagelength and width >= page.imagewidth
    ]


class _TiffScene:
    """One series of a TIFF: its description (with its OME <Image> element, if any), and its planes on request."""

    def __init__(self, path: Path, tif, series, axes: str | None, ome, most_px: int):
        self.path, self.tif, self.series, self.page = path, tif, series, series.keyframe
        self.shape = tuple(int(n) for n in series.shape)
        self.axes = checked_axes(path, series.axes, self.shape, axes)
        sizes = dict(zip(self.axes, self.shape, strict=True))
        check_size(path, sizes["Y"], sizes["X"], most_px)
        refuse_turned(path, tif, series)
        self.inverted = white_is_zero(path, tif, self.page)
        if series.is_multifile:
            raise UserError(
                f"{path.name} is one of several files of one OME data set", "export each image as one OME-TIFF"
            )
        self.colormap = (
            self.page.colormap if self.page.photometric == 3 and series.kind not in ("imagej", "ome") else None
        )
        self.samples_axis = "S" if sizes.get("S", 1) > 1 else "C"
        samples, extra = sizes.get("S", 1), [int(kind) for kind in self.page.extrasamples]
        self.alpha = samples - 1 if samples > 1 and extra[-1:] and extra[-1] in (1, 2) else None
        notes: list[str] = []
        self.info = Series(
            name=str(series.name or ""),
            axes=self.axes,
            shape=self.shape,
            dtype=str(series.dtype),
            channels=self._channels(sizes, ome, notes),
            um_per_px=_tiff_um_per_px(tif, self.page, notes) if ome is None else ome_um_per_px(ome, notes),
            notes=tuple(dict.fromkeys(notes)),
        )

    def _channels(self, sizes: dict[str, int], ome, notes: list[str]) -> tuple[Channel, ...]:
        """Colours by name; else what the metadata says; else unnamed."""
        photometric, samples = int(self.page.photometric), sizes.get("S", 1)
        if samples > 1 and sizes.get("C", 1) > 1:
            raise UserError(
                f"{self.path.name} has colour samples in several channels: axes {self.axes} {self.shape}",
                "split it into one file per channel",
            )
        unread = photometric == 6 and int(self.page.compression) not in (6, 7)  # JPEG is decoded to RGB
        if photometric not in (0, 1, 2, 3, 6) or unread or (self.inverted and self.series.dtype.kind not in "ub"):
            raise UserError(f"{self.path.name} has photometric interpretation {photometric}", "store it as grey or RGB")
        if self.colormap is not None:
            return tuple(map(Channel, COLOURS))
        if samples > 1:
            kept = samples - (self.alpha is not None)
            names = COLOURS if photometric in (2, 6) else ("grey",) if kept == 1 else ()
            return tuple(Channel(names[i] if i < len(names) else "") for i in range(kept))
        known = _imagej_channels(self.tif) if ome is None else ome_channels(ome, notes)
        if len(known) not in (0, sizes.get("C", 1)):
            notes.append(f"names {len(known)} channels and holds {sizes.get('C', 1)}: their names are taken as unknown")
        return tuple(known) if len(known) == sizes.get("C", 1) else tuple(Channel() for _ in range(sizes.get("C", 1)))

    def plane(self, time: int, z: int, channel: int) -> np.ndarray:
        """(H, W) of one time, z and channel, in native byte order."""
        return self._shown(time, z, channel, None)

    def window(self, time: int, z: int, channel: int, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) of the same plane in two slices: of a file in tiles or strips those that hold them are read."""
        return self._shown(time, z, channel, (rows, columns))

    def _shown(self, time: int, z: int, channel: int, window: tuple[slice, slice] | None) -> np.ndarray:
        if self.alpha is not None:
            check_opaque(self.path, self._stored(time, z, self.alpha, window))
        if self.colormap is not None:
            return self.colormap[channel][self._stored(time, z, 0, window)]
        plane = self._stored(time, z, channel, window)
        return inverted(plane, self.page) if self.inverted else plane

    def _stored(self, time: int, z: int, channel: int, window: tuple[slice, slice] | None = None) -> np.ndarray:
        at = {"T": time, "Z": z, "C": 0, "S": 0, self.samples_axis: channel}
        at |= dict(zip("YX", window or (slice(None), slice(None)), strict=True))
        lead = len(self.shape) - len(self._page_axes)
        index = tuple(at.get(axis, 0) for axis in self.axes)
        try:
            if self._mapped is not None:
                plane = self._mapped[index]
            elif window is not None:
                plane = self._chunked[index]
            elif lead:
                number = int(np.ravel_multi_index(index[:lead], self.shape[:lead]))
                plane = self._read_page(number)[index[lead:]]
            else:
                plane = self._read_page(0)[index]
        except UserError:
            raise
        except Exception as error:
            raise damaged(self.path, "TIFF", error) from error
        plane = plane if self.axes.index("Y") < self.axes.index("X") else plane.T
        return np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("="))

    @cached_property
    def _page_axes(self) -> str:
        """Axes inside one page; all of them where rows or columns run across pages."""
        for lead in range(len(self.axes), -1, -1):
            inside, pages = self.axes[lead:], math.prod(self.shape[:lead])
            if math.prod(self.shape[lead:]) == self.page.size and pages == len(self.series.pages):
                return inside if "Y" in inside and "X" in inside else self.axes
        return self.axes

    @cached_property
    def _mapped(self) -> np.ndarray | None:
        """The whole series mapped from disk, where it lies there uncompressed in one piece."""
        offset = self.series.dataoffset
        if offset is None:
            return None
        dtype = np.dtype(self.series.dtype).newbyteorder(self.tif.byteorder)
        wanted, size = offset + math.prod(self.shape) * dtype.itemsize, os.path.getsize(self.path)
        if wanted > size:
            raise damaged(self.path, "TIFF", f"it should have {wanted} bytes and has {size}")
        return np.memmap(self.path, dtype, "r", offset, self.shape)

    @cached_property
    def _chunked(self) -> Any:
        """The series as a Zarr array of its tiles or strips."""
        import zarr

        return zarr.open_array(self.series.aszarr(level=0), mode="r")

    def _read_page(self, number: int) -> np.ndarray:
        """One page, or the whole series where planes run across pages; the last one read is kept."""
        if getattr(self, "_last", (None, None))[0] != number:
            whole = self._page_axes == self.axes
            page = self.series if whole else self.series.pages[number]
            if page is None:
                raise damaged(self.path, "TIFF", f"page {number} is missing")
            shape = self.shape[len(self.axes) - len(self._page_axes) :]
            refuse_overlong(self.path, self.series.pages if whole else [page])
            self._last = (number, page.asarray().reshape(shape))
        return self._last[1]


def _imagej_channels(tif) -> list[Channel]:
    """Channel names from ImageJ's slice labels, where they differ between channels and not within one."""
    metadata = tif.imagej_metadata or {}
    labels = metadata.get("Labels") or []
    labels = [labels] if isinstance(labels, str) else [str(label) for label in labels]
    names = [re.sub(r"^([czt]:\d+/\d+\s*)+-\s*", "", label).strip() for label in labels]
    count = int(metadata.get("channels", 1) or 1)
    first = names[:count]
    if len(set(first)) < count or any(name != first[i % count] for i, name in enumerate(names)):
        return []
    return [Channel(name) for name in first]


def _tiff_um_per_px(tif, page, notes: list[str]) -> float:
    """Micrometres per pixel: ImageJ's, else a resolution in centimetres; nan when unknown.

    Dots per inch, and more than `MICROSCOPE_UM` given in centimetres, are a printer's and no microscope's: they are not used,
    nor where ImageJ took them over from such a file.
    """
    sides = [_units_per_px(page.tags.valueof(f"{side}Resolution")) for side in "XY"]
    if tif.is_imagej:
        unit = str((tif.imagej_metadata or {}).get("unit") or "").replace("\\u00B5", "µ").strip()
        if unit.casefold() in ("inch", "inches", "in"):
            return math.nan
    else:
        unit = "cm" if page.tags.valueof("ResolutionUnit") == 3 else ""
    if unit == "cm" and any(side is not None and side * 1e4 > MICROSCOPE_UM for side in sides):
        return math.nan
    lengths = [length_um(side, unit, notes, "pixel size") for side in sides if side is not None]
    return square_um(lengths[0], lengths[-1], notes) if lengths else math.nan


def _units_per_px(resolution) -> float | None:
    """Return the inverse of a TIFF resolution, None where it is no number."""
    try:
        return float(resolution[1]) / float(resolution[0])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None


READER = Reader("tiff", "TIFF", (".tif", ".tiff"), open_tiff)
