"""Opening microscope files: what a header says, and single planes of pixels on request.

Every reader gives the same thing, an `Opened`: scenes of times, z planes and channels of one (H, W) plane each. Read
are OME-TIFF, ImageJ TIFF and plain TIFF (tifffile), PNG and JPEG (Pillow); CZI, LIF, ND2 and OME-Zarr by
`cellkit.vendors`. What a header claims is checked before a pixel is read, and what a library would only log or guess
(a stack cut short, an axis of no known meaning) is an error.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np

from cellkit.errors import UserError

TIFF_SUFFIXES = (".tif", ".tiff")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
READ_VENDOR_SUFFIXES = (".czi", ".lif", ".nd2", ".zarr")
UNREAD_SUFFIXES = {".lsm": "Zeiss LSM", ".oib": "Olympus OIB", ".oif": "Olympus OIF", ".vsi": "Olympus VSI",
                   ".ims": "Imaris", ".oir": "Olympus OIR", ".zvi": "Zeiss ZVI", ".dv": "DeltaVision", ".r3d": "DeltaVision",
                   ".stk": "MetaMorph STK", ".flex": "Opera Flex", ".mvd2": "Volocity", ".lei": "Leica LEI", ".scn": "Leica SCN",
                   ".svs": "Aperio SVS", ".ndpi": "Hamamatsu NDPI", ".mrxs": "MIRAX", ".bif": "Ventana BIF",
                   ".dm3": "Gatan DM3", ".dm4": "Gatan DM4", ".mrc": "MRC", ".sld": "SlideBook", ".xlif": "Leica XLIF",
                   ".tf2": "BigTIFF", ".tf8": "BigTIFF", ".btf": "BigTIFF", ".qptiff": "Akoya QPTIFF", ".bmp": "BMP",
                   ".webp": "WebP", ".gif": "GIF", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".jxl": "JPEG XL",
                   ".jxr": "JPEG XR", ".heic": "HEIC", ".heif": "HEIF", ".avif": "AVIF", ".jfif": "JFIF", ".pgm": "PGM",
                   ".ppm": "PPM", ".pnm": "PNM", ".tga": "TGA", ".psd": "Photoshop", ".exr": "OpenEXR", ".fits": "FITS",
                   ".dcm": "DICOM", ".nii": "NIfTI", ".nrrd": "NRRD", ".mha": "MetaImage", ".h5": "HDF5",
                   ".hdf5": "HDF5", ".avi": "video", ".mp4": "video", ".mov": "video", ".mkv": "video", ".dng": "camera raw",
                   ".cr2": "camera raw", ".nef": "camera raw"}  # fmt: skip
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
UNREAD_SUFFIXES |= {f"{picture}{end}": f"packed as {end}" for picture in (*TIFF_SUFFIXES, *PICTURE_SUFFIXES, ".nii")
                    for end in PACKED}  # fmt: skip
VENDOR_SUFFIXES = (*READ_VENDOR_SUFFIXES, *UNREAD_SUFFIXES)
READ_SUFFIXES = TIFF_SUFFIXES + PICTURE_SUFFIXES + READ_VENDOR_SUFFIXES
MAX_PLANE_PX = 2**28  # 16,384 x 16,384; asked of the header, before any pixel is read
_MOST_PX: ContextVar[int] = ContextVar("pixels a plane may have", default=MAX_PLANE_PX)
ASK_FOR_MEMORY_BYTES = 500_000_000  # what takes less is begun without asking how much memory is free
AXES = {"T": "time", "C": "channel", "Z": "z plane", "Y": "row", "X": "column", "S": "colour sample"}
COLOURS = ("red", "green", "blue")
UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4,
               "m": 1e6, "Å": 1e-4, "inch": 25400.0, "in": 25400.0}  # fmt: skip


# ---- what a file holds ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Channel:
    """One channel of a file: its name ("" when the file gives none) and wavelength (nm, nan when unknown)."""

    name: str = ""
    wavelength_nm: float = math.nan

    @property
    def told(self) -> str:
        """What a person reads.

        Examples
        --------
        >>> Channel("DAPI", 461.0).told, Channel("", 461.0).told, Channel("emission 550 nm", 550.0).told
        ('DAPI 461 nm', 'unnamed 461 nm', 'emission 550 nm')
        """
        nm = "" if math.isnan(self.wavelength_nm) else f"{self.wavelength_nm:.0f} nm"
        return (self.name or "unnamed") + (f" {nm}" if nm and nm not in self.name else "")


@dataclass(frozen=True)
class Series:
    """One scene of a file, as its header states it.

    Attributes
    ----------
    name : str
    axes : str
        One letter per axis of the stored array: T time, C channel, Z plane, Y row, X column, S colour sample.
    shape : tuple of int
        In the order of `axes`.
    dtype : str
    channels : tuple of Channel
    um_per_px : float
        Along a row; nan when the file does not say.
    problem, remedy : str
        Why no picture can be made of this scene while the file's others can be read, and what to do; "" where it can.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[Channel, ...]
    um_per_px: float = math.nan
    problem: str = ""
    remedy: str = ""

    def size(self, axis: str) -> int:
        """Length of one axis; 1 where the file has none."""
        return math.prod(n for letter, n in zip(self.axes, self.shape, strict=True) if letter == axis)


@dataclass(frozen=True)
class FileInfo:
    """What a microscope file holds. `axes`, `shape`, `dtype`, `channels`, `um_per_px` are those of its `first` scene."""

    path: Path
    reader: str
    series: tuple[Series, ...]

    @property
    def first(self) -> Series:
        """The first scene of which a picture can be made."""
        return next((series for series in self.series if not series.problem), self.series[0])

    @property
    def axes(self) -> str:
        """Axes of the first scene."""
        return self.first.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first scene, in the order of `axes`."""
        return self.first.shape

    @property
    def dtype(self) -> str:
        """Pixel type of the first scene."""
        return self.first.dtype

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names of the first scene; "" where the file gives none."""
        return tuple(channel.name for channel in self.first.channels)

    @property
    def um_per_px(self) -> float:
        """Pixel size of the first scene; nan when the file does not say."""
        return self.first.um_per_px

    def frames(self) -> Iterator[tuple[int, int, str]]:
        """Yield (scene, time, suffix) of every picture the file becomes; a suffix like "_s1_t03" says which it is.

        A scene with a `problem` is one frame, so that whoever reads it is told why.
        """
        for number, series in enumerate(self.series):
            times = series.size("T") if not series.problem else 1
            for time in range(times):
                scene = f"_s{number:0{len(str(len(self.series) - 1))}d}" if len(self.series) > 1 else ""
                yield number, time, scene + (f"_t{time:0{len(str(times - 1))}d}" if times > 1 else "")

    def to_json(self) -> dict:
        """Plain values: kind, reader, those of the first scene, scenes, images, and `series` with each scene's own."""
        refused = sum(bool(series.problem) for series in self.series)
        return {
            "kind": "file",
            "reader": self.reader,
            **_plain(self.first),
            "scenes": len(self.series),
            "images": sum(1 for _ in self.frames()) - refused,
            "series": [{"name": s.name, **_plain(s), "problem": s.problem, "remedy": s.remedy} for s in self.series],
        }


def _plain(series: Series) -> dict:
    """Return axes, shape, dtype, channels, wavelengths_nm and um_per_px as JSON has them: None for nan."""
    number = lambda value: None if math.isnan(value) else value  # noqa: E731
    return {
        "axes": series.axes,
        "shape": list(series.shape),
        "dtype": series.dtype,
        "channels": [channel.name for channel in series.channels],
        "wavelengths_nm": [number(channel.wavelength_nm) for channel in series.channels],
        "um_per_px": number(series.um_per_px),
    }


def inspect_file(path: str | Path, axes: str | None = None, most_px: int = MAX_PLANE_PX) -> FileInfo:
    """Say what a microscope file holds, from its header; no pixel is read.

    Parameters
    ----------
    path : path
    axes : str, optional
        What the axes are, where the file does not say or says it wrongly, e.g. "TYX".
    most_px : int
        Most pixels a plane may have.

    Raises
    ------
    UserError
        A format that is not read, a damaged file, or a header that claims more than `most_px` pixels.
    """
    with open_file(path, axes, most_px) as opened:
        return opened.info


# ---- opening files -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Opened:
    """An open file: `info`, and `plane(scene, time, z, channel)` -> (H, W) in the file's own type and byte order."""

    info: FileInfo
    plane: Callable[[int, int, int, int], np.ndarray]


@contextmanager
def open_file(path: str | Path, axes: str | None = None, most_px: int = MAX_PLANE_PX) -> Iterator[Opened]:
    """Open a microscope file by its suffix; errors as in `inspect_file`."""
    path = Path(path)
    suffix = path.suffix.lower()
    unread = why_unread(path)
    if unread:
        raise unread
    if suffix not in READ_SUFFIXES:
        raise UserError(f"{path.name} is no image format that is read", f"give {', '.join(READ_SUFFIXES)}")
    if not (path.is_dir() if suffix == ".zarr" else path.is_file()):
        kind = "OME-Zarr, a folder," if suffix == ".zarr" else "file"
        raise UserError(f"no {kind} at {path}", "give the path of a microscope file")
    if suffix != ".zarr" and not path.stat().st_size:
        raise UserError(f"{path.name} is empty (0 bytes)", "copy the file again")
    with ExitStack() as stack:
        token = _MOST_PX.set(most_px)
        try:
            opened = stack.enter_context(_opener(suffix)(path, axes))
        finally:
            _MOST_PX.reset(token)
        yield opened


def why_unread(path: Path) -> UserError | None:
    """Return why a picture of a kind that is known and not read is refused, by its name; None for all others."""
    end = max((end for end in UNREAD_SUFFIXES if path.name.lower().endswith(end)), key=len, default="")
    if not end:
        return None
    remedy = "unpack it" if end.endswith(PACKED) else "export it as OME-TIFF from the microscope's software or Fiji"
    return UserError(f"{path.name} is {UNREAD_SUFFIXES[end]}, which is not read", remedy)


def _opener(suffix: str) -> Callable:
    """Return what opens files of a suffix: a context manager of (path, axes)."""
    if suffix in TIFF_SUFFIXES:
        return _open_tiff
    if suffix in PICTURE_SUFFIXES:
        return lambda path, axes: open_picture(path)
    from cellkit.vendors import open_vendor

    return open_vendor


def is_image_folder(path: str | Path) -> bool:
    """Tell whether a folder is one image, an OME-Zarr, by its name."""
    return Path(path).suffix.lower() == ".zarr" and Path(path).is_dir()


def check_size(path: Path, height: int, width: int) -> None:
    """Refuse a plane whose header claims more pixels than `open_file` was told."""
    if height * width > _MOST_PX.get():
        raise UserError(
            f"{path.name} claims {height} x {width} px, more than {_MOST_PX.get():,}",
            "check the file, cut the image into tiles, or raise convert.max_plane_px",
        )


def check_memory(path: Path, needed_bytes: int, what: str) -> None:
    """Refuse what would take more memory than is free, before it is begun.

    Parameters
    ----------
    path : Path
        The image.
    needed_bytes : int
        An estimate; nothing is asked below `ASK_FOR_MEMORY_BYTES`.
    what : str
        What is about to be done: "converting", "finding the cells of".

    Raises
    ------
    UserError
        Naming the file, what it takes and what is free.
    """
    if needed_bytes < ASK_FOR_MEMORY_BYTES:
        return
    from cellkit import doctor

    free_gb = doctor.check_memory()["free_gb"]
    if needed_bytes > free_gb * 1e9:
        raise UserError(
            f"{what} {path.name} takes about {needed_bytes / 1e9:.1f} GB of memory, {free_gb:.1f} GB are free",
            "cut the image into tiles, use fewer workers, or a machine with more memory",
        )


def damaged(path: Path, kind: str, error: object) -> UserError:
    """Return what to raise about a file that its reader stumbles over."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{path.name} cannot be read as {kind}: {said}", "the file is damaged or cut short: copy or export it again"
    )


PICTURE_MODES = {"1": (1, "bool"), "L": (1, "uint8"), "LA": (1, "uint8"), "I;16": (1, "uint16"), "I;16B": (1, "uint16"),
                 "I": (1, "int32"), "F": (1, "float32"), "RGB": (3, "uint8"), "RGBA": (3, "uint8"),
                 "P": (3, "uint8")}  # fmt: skip


@contextmanager
def open_picture(path: Path, content: bytes | None = None) -> Iterator[Opened]:
    """Open a PNG or JPEG: grey or colours, with or without alpha, palette (as its colours), 8 or 16 bit.

    Parameters
    ----------
    path : Path
        The file, or what messages call the picture when `content` is given.
    content : bytes, optional
        The encoded picture, when it does not lie in a file of its own.
    """
    import warnings

    from PIL import Image

    content = path.read_bytes() if content is None else content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(content), formats=["PNG", "JPEG"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path.name}: {error}", "store an image this large as TIFF") from error
    except Exception as error:
        raise damaged(path, "PNG or JPEG", error) from error
    with picture:
        if picture.mode not in PICTURE_MODES or getattr(picture, "n_frames", 1) > 1:
            raise UserError(f"{path.name} is a {picture.mode} picture", "store it as grey, RGB or RGBA with one frame")
        check_size(path, picture.height, picture.width)
        count, dtype = PICTURE_MODES[picture.mode]
        deep = _is_deep_colour_png(content)
        series = Series(
            name="",
            axes="YXS" if count == 3 else "YX",
            shape=(picture.height, picture.width, 3)[: 2 + (count == 3)],
            dtype="uint16" if deep else dtype,
            channels=tuple(map(Channel, COLOURS)) if count == 3 else (Channel("grey"),),
        )
        pixels = _PictureRead(path, picture, content if deep else None)
        yield Opened(
            FileInfo(path, picture.format.lower(), (series,)),
            lambda scene, time, z, channel: pixels.samples[..., channel],
        )


def _is_deep_colour_png(content: bytes) -> bool:
    """Tell whether a PNG has 16-bit colours or 16-bit grey with alpha, which Pillow would cut to 8 bits."""
    return content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10" and content[25] in (2, 4, 6)


@dataclass
class _PictureRead:
    path: Path
    picture: object
    deep: bytes | None

    @cached_property
    def samples(self) -> np.ndarray:
        """(H, W, C): the colours without alpha, which must be opaque."""
        try:
            if self.deep is not None:
                import imagecodecs

                pixels = imagecodecs.png_decode(self.deep)
            else:
                pixels = np.asarray(self.picture.convert("RGBA") if self.picture.mode == "P" else self.picture)
        except Exception as error:
            raise damaged(self.path, "a picture", error) from error
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        if pixels.ndim == 2:
            return pixels[..., None]
        if pixels.shape[2] in (2, 4):
            _check_opaque(self.path, pixels[..., -1])
            pixels = pixels[..., :-1]
        return pixels


def _check_opaque(path: Path, alpha: np.ndarray) -> None:
    """Refuse an alpha channel that hides anything: it says that some pixels are no measurement."""
    full = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    if (alpha != full).any():
        raise UserError(
            f"{path.name} has {int(np.count_nonzero(alpha != full))} transparent pixels",
            "store it without transparency",
        )


# ---- TIFF ----------------------------------------------------------------------------------------------------------
class _TiffErrors(logging.Handler):
    """Collects what tifffile only logs: a file cut short otherwise opens as one plane of many."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _open_tiff(path: Path, axes: str | None) -> Iterator[Opened]:
    """Open a TIFF of any kind tifffile knows; what it logs as an error is an error."""
    import tifffile

    logger, errors = logging.getLogger("tifffile"), _TiffErrors()
    kept = logger.propagate
    logger.addHandler(errors)
    logger.propagate = False
    try:
        try:
            tif = tifffile.TiffFile(path)
        except Exception as error:
            raise damaged(path, "TIFF", error) from error
        with tif:
            try:
                if not tif.is_imagej:
                    len(tif.pages)  # walks the chain of pages and stops where it loops back; `series` would not
                stored = [series for series in tif.series if not series.keyframe.is_reduced] or list(tif.series)
            except Exception as error:
                raise damaged(path, "TIFF", error) from error
            if errors.messages or not stored:
                raise damaged(path, "TIFF", errors.messages[0] if errors.messages else "no image in it")
            ome = _ome_images(tif, len(stored)) or [None] * len(stored)
            scenes = [_TiffScene(path, tif, series, axes, image) for series, image in zip(stored, ome, strict=True)]
            reader = "ome-tiff" if tif.is_ome else "imagej-tiff" if tif.is_imagej else "tiff"
            info = FileInfo(path, reader, tuple(scene.info for scene in scenes))
            yield Opened(info, lambda scene, time, z, channel: scenes[scene].plane(time, z, channel))
    finally:
        logger.removeHandler(errors)
        logger.propagate = kept


class _TiffScene:
    """One series of a TIFF: its description (with its OME <Image> element, if any), and its planes on request."""

    def __init__(self, path: Path, tif, series, axes: str | None, ome):
        self.path, self.tif, self.series, self.page = path, tif, series, series.keyframe
        self.shape = tuple(int(n) for n in series.shape)
        self.axes = checked_axes(path, series.axes, self.shape, axes)
        sizes = dict(zip(self.axes, self.shape, strict=True))
        check_size(path, sizes["Y"], sizes["X"])
        if series.is_multifile:
            raise UserError(
                f"{path.name} is one of several files of one OME data set", "export each image as one OME-TIFF"
            )
        self.colormap = (
            self.page.colormap if self.page.photometric == 3 and series.kind not in ("imagej", "ome") else None
        )
        self.samples_axis = "S" if sizes.get("S", 1) > 1 else "C"
        self.alpha = self._alpha_index(sizes.get("S", 1))
        self.info = Series(
            name=str(series.name or ""),
            axes=self.axes,
            shape=self.shape,
            dtype=str(series.dtype),
            channels=self._channels(sizes, ome),
            um_per_px=_tiff_um_per_px(tif, self.page) if ome is None else ome_um_per_px(ome),
        )

    def _alpha_index(self, samples: int) -> int | None:
        extra = [int(kind) for kind in self.page.extrasamples]
        return samples - 1 if samples > 1 and extra[-1:] and extra[-1] in (1, 2) else None

    def _channels(self, sizes: dict[str, int], ome) -> tuple[Channel, ...]:
        """Colours by name; else what the metadata says; else unnamed."""
        photometric, samples = int(self.page.photometric), sizes.get("S", 1)
        if samples > 1 and sizes.get("C", 1) > 1:
            raise UserError(
                f"{self.path.name} has colour samples in several channels: axes {self.axes} {self.shape}",
                "split it into one file per channel",
            )
        if photometric not in (0, 1, 2, 3, 6) or (photometric == 0 and self.series.dtype.kind != "u"):
            raise UserError(f"{self.path.name} has photometric interpretation {photometric}", "store it as grey or RGB")
        if self.colormap is not None:
            return tuple(map(Channel, COLOURS))
        if samples > 1:
            kept = samples - (self.alpha is not None)
            names = COLOURS if photometric in (2, 6) else ("grey",) if kept == 1 else ()
            return tuple(Channel(names[i] if i < len(names) else "") for i in range(kept))
        known = _imagej_channels(self.tif) if ome is None else ome_channels(ome)
        return tuple(known) if len(known) == sizes.get("C", 1) else tuple(Channel() for _ in range(sizes.get("C", 1)))

    def plane(self, time: int, z: int, channel: int) -> np.ndarray:
        """(H, W) of one time, z and channel, in native byte order."""
        if self.alpha is not None:
            _check_opaque(self.path, self._stored(time, z, self.alpha))
        if self.colormap is not None:
            return self.colormap[channel][self._stored(time, z, 0)]
        plane = self._stored(time, z, channel)
        return np.iinfo(plane.dtype).max - plane if int(self.page.photometric) == 0 else plane

    def _stored(self, time: int, z: int, channel: int) -> np.ndarray:
        at = {"T": time, "Z": z, "C": 0, "S": 0, self.samples_axis: channel}
        lead = len(self.shape) - len(self._page_axes)
        index = tuple(at.get(axis, 0) if axis not in "YX" else slice(None) for axis in self.axes)
        try:
            if self._mapped is not None:
                plane = self._mapped[index]
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
        wanted, there = offset + math.prod(self.shape) * dtype.itemsize, os.path.getsize(self.path)
        if wanted > there:
            raise damaged(self.path, "TIFF", f"it should have {wanted} bytes and has {there}")
        return np.memmap(self.path, dtype, "r", offset, self.shape)

    def _read_page(self, number: int) -> np.ndarray:
        """One page, or the whole series where planes run across pages; the last one read is kept."""
        if getattr(self, "_last", (None, None))[0] != number:
            whole = self._page_axes == self.axes
            page = self.series if whole else self.series.pages[number]
            if page is None:
                raise damaged(self.path, "TIFF", f"page {number} is missing")
            shape = self.shape[len(self.axes) - len(self._page_axes) :]
            self._last = (number, page.asarray().reshape(shape))
        return self._last[1]


def checked_axes(path: Path, found: str, shape: tuple[int, ...], given: str | None) -> str:
    """Return the axes to use: those given, else the file's; each known or of length 1, none twice, Y and X there."""
    axes = (given or found).upper()
    text = f"{path.name} has axes {found} {shape}"
    known = "T time, C channel, Z plane, Y row, X column, S colour sample"
    if len(axes) != len(shape):
        raise UserError(f"{text}, and axes is '{given}'", f"give one letter for each of the {len(shape)} axes: {known}")
    odd = [axis for axis, length in zip(axes, shape, strict=True) if axis not in AXES and length > 1]
    if odd:
        raise UserError(
            f"{text}: the meaning of {', '.join(odd)} is not known", f"state it, e.g. axes: {_example(axes)} ({known})"
        )
    doubled = {axis for axis in axes if axis in AXES and axes.count(axis) > 1}
    if doubled or "Y" not in axes or "X" not in axes:
        raise UserError(
            f"{text}: no plane of rows and columns can be taken from '{axes}'", f"state each axis once: {known}"
        )
    return axes


def _example(axes: str) -> str:
    """Return axes with the unknown ones replaced by the first free of T, C, Z, S."""
    free = iter([axis for axis in "TCZS" if axis not in axes])
    return "".join(axis if axis in AXES else next(free, "?") for axis in axes)


def _ome_images(tif, count: int) -> list:
    """Return the <Image> elements of the OME metadata when there are as many as series, else none."""
    from xml.etree import ElementTree

    text = tif.ome_metadata if tif.is_ome else None
    if not text:
        return []
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{tif.filename} has OME metadata with a document type", "export the file again without it")
    try:
        images = ElementTree.fromstring(text).findall("{*}Image")
    except ElementTree.ParseError:
        return []
    return images if len(images) == count else []


def ome_channels(image) -> list[Channel]:
    """Names and wavelengths (emission, else excitation) from an OME <Image> element."""
    found = []
    for element in image.iterfind("{*}Pixels/{*}Channel"):
        nm = math.nan
        for kind in ("Excitation", "Emission"):
            if element.get(f"{kind}Wavelength"):
                unit = UM_PER_UNIT.get(element.get(f"{kind}WavelengthUnit", "nm"), math.nan)
                nm = round(float(element.get(f"{kind}Wavelength")) * unit * 1000, 3)
        found.append(Channel(element.get("Name") or "", nm))
    return found


def ome_um_per_px(image) -> float:
    """Micrometres per pixel along a row from an OME <Image> element; nan when it does not say."""
    pixels = image.find("{*}Pixels")
    if pixels is None or not pixels.get("PhysicalSizeX"):
        return math.nan
    return float(pixels.get("PhysicalSizeX")) * UM_PER_UNIT.get(pixels.get("PhysicalSizeXUnit", "µm"), math.nan)


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


def _tiff_um_per_px(tif, page) -> float:
    """Micrometres per pixel along a row: ImageJ's, else a resolution in centimetres; nan when unknown.

    A plain TIFF's dots per inch are a printer's, not a microscope's, and are not used.
    """
    resolution = page.tags.valueof("XResolution")
    if not resolution or not resolution[0] or not resolution[1]:
        return math.nan
    units_per_px = resolution[1] / resolution[0]
    if tif.is_imagej:
        unit = str((tif.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
        return units_per_px * UM_PER_UNIT.get(unit, math.nan)
    return units_per_px * 1e4 if page.tags.valueof("ResolutionUnit") == 3 and units_per_px < 0.005 else math.nan
