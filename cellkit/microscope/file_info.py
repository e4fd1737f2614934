"""What every reader returns: a file's scenes and channels as its header states them, and single planes of pixels on request.

What a header claims is checked before a pixel is read; a file that its reader stumbles over is named for what it is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from cellkit.errors import UserError, plain_reason

TIFF_SUFFIXES = (".tif", ".tiff")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PLANE_PX = 2**28  # 16,384 x 16,384; checked in the header, before any pixel is read
LARGEST_PLANE_PX = 2**36  # 262,144 x 262,144: of a plane that is read window by window
_HEADERS: ContextVar[bool] = ContextVar("only headers are read", default=False)
AXES = {"T": "time", "C": "channel", "Z": "z plane", "Y": "row", "X": "column", "S": "colour sample"}
COLOURS = ("red", "green", "blue")
ORIENTATION = 0x112  # tag of EXIF and TIFF: 1 as stored; 2 to 8 mirrored, turned, or both


@dataclass(frozen=True)
class Channel:
    """One channel of a file: its name ("" when the file gives none) and wavelength (nm, nan when unknown).

    The wavelength is that of the emission, else of the excitation; `excitation_nm` is nan where the two are not distinguished.
    """

    name: str = ""
    wavelength_nm: float = math.nan
    excitation_nm: float = math.nan

    @classmethod
    def lit(cls, name: str, emission_nm: float, excitation_nm: float) -> Channel:
        """Return the channel of two wavelengths of which either may be nan."""
        return cls(name, excitation_nm if math.isnan(emission_nm) else emission_nm, excitation_nm)

    @property
    def text(self) -> str:
        """The channel as messages show it: its name, and its wavelength where the name lacks it.

        Examples
        --------
        >>> Channel("DAPI", 461.0).text, Channel("", 461.0).text, Channel("emission 550 nm", 550.0).text
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
        Side of a pixel; nan when the file does not say, or pixels are not square.
    problem, remedy : str
        Why no picture can be made of this scene while the file's others can be read, and what to do; "" where it can.
    notes : tuple of str
        What a user has to know of how it was read: a size that was not believed, chunks that are not there.
    turned : int
        EXIF orientation by which the stored pixels were turned, 1 where they were not.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[Channel, ...]
    um_per_px: float = math.nan
    problem: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()
    turned: int = 1

    def size(self, axis: str) -> int:
        """Length of one axis; 1 where the file has none."""
        return math.prod(n for letter, n in zip(self.axes, self.shape, strict=True) if letter == axis)


@dataclass(frozen=True)
class FileInfo:
    """What a microscope file holds. `axes`, `shape`, `dtype`, `channels`, `um_per_px` are those of its `first` scene.

    `notes` are about the whole file; `left_out` says what lies in it and becomes no picture, besides scenes with a problem.
    """

    path: Path
    reader: str
    series: tuple[Series, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def notes_of(self, scene: int) -> tuple[str, ...]:
        """What a user has to know of one scene: the file's notes and its own."""
        return self.notes + self.series[scene].notes

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

        A scene with a `problem` is one frame, so that whoever reads it gets the reason.
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
            "series": [
                {"name": s.name, **_plain(s), "problem": s.problem, "remedy": s.remedy, "notes": list(s.notes)}
                for s in self.series
            ],
            "notes": list(self.notes),
            "left_out": list(self.left_out),
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


@dataclass(frozen=True)
class Opened:
    """An open file: `info`, and `plane(scene, time, z, channel)` -> (H, W) in the file's own type, native byte order.

    `window(scene, time, z, channel, rows, columns)` -> the same plane in two slices, of which nothing else is read; None where
    the format is decoded as a whole.
    """

    info: FileInfo
    plane: Callable[[int, int, int, int], np.ndarray]
    window: Callable[[int, int, int, int, slice, slice], np.ndarray] | None = None


@dataclass(frozen=True)
class Reader:
    """A format: which files it opens, what they are called, and the package it needs.

    Attributes
    ----------
    name : str
        As in `FileInfo.reader`.
    kind : str
        What a person calls the format: "Zeiss CZI".
    suffixes : tuple of str
    open : callable
        (path, axes or None, most pixels a plane may have) -> a context that gives an `Opened`.
    module, requirement, licence : str
        What has to be imported, how it is installed, and its licence; "" where cellkit itself requires it.
    is_folder : bool
        Whether an image is a folder and no file.
    """

    name: str
    kind: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, str | None, int], AbstractContextManager[Opened]]
    module: str = ""
    requirement: str = ""
    licence: str = ""
    is_folder: bool = False

    @property
    def package(self) -> str:
        """Name of what is installed, without its version."""
        return self.requirement.split(">")[0]

    def library(self, name: str) -> ModuleType:
        """Import what reads the format.

        Raises
        ------
        UserError
            It is not installed, or cannot be imported; `name` is the file the error is about.
        """
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise UserError(
                f"{name} is {self.kind}, which {self.package} ({self.licence}) reads; it cannot be imported: {error}",
                f"pip install '{self.requirement}'",
            ) from error


@contextmanager
def headers_only() -> Iterator[None]:
    """Let pictures be opened inside the block, everything about them be checked, and no pixel of them be read.

    Pictures are then all 0, of the right size. Label images are read whole; see `loading.perhaps` for other forms of cells.
    """
    token = _HEADERS.set(True)
    try:
        yield
    finally:
        _HEADERS.reset(token)


def only_headers() -> bool:
    """Tell whether pixels are left alone, see `headers_only`."""
    return _HEADERS.get()


def check_size(path: Path, height: int, width: int, most_px: int) -> None:
    """Refuse a plane whose header claims more than `most_px` pixels.

    Raises
    ------
    UserError
        With the size that is claimed.
    """
    if height * width > most_px:
        raise UserError(
            f"{path.name} claims {height} x {width} px, more than {most_px:,}",
            "check the file, cut the image into tiles, or raise convert.max_plane_px",
        )


def check_opaque(path: Path, alpha: np.ndarray) -> None:
    """Refuse an alpha channel that hides anything: it says that some pixels are no measurement.

    Raises
    ------
    UserError
        With the number of transparent pixels.
    """
    full = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    if (alpha != full).any():
        raise UserError(
            f"{path.name} has {int(np.count_nonzero(alpha != full))} transparent pixels",
            "store it without transparency",
        )


def damaged(path: Path, kind: str, error: object) -> UserError:
    """Return what to raise about a file that its reader stumbles over: damaged, or of another kind than it is called."""
    reason = plain_reason(" ".join(str(error).split()))[:200] or type(error).__name__
    return misnamed(path) or UserError(
        f"{path.name} cannot be read as {kind}: {reason}", "the file is damaged or cut short: copy or export it again"
    )


# how files begin: (bytes, from where, what it is, what it may be called; "" where renaming does not help)
SIGNS = (
    (b"\x89PNG\r\n", 0, "a PNG", ".png"), (b"\xff\xd8\xff", 0, "a JPEG", ".jpg"), (b"II*\0", 0, "a TIFF", ".tif"),
    (b"MM\0*", 0, "a TIFF", ".tif"), (b"II+\0", 0, "a TIFF", ".tif"), (b"MM\0+", 0, "a TIFF", ".tif"),
    (b"ZISRAWFILE", 0, "a Zeiss CZI", ".czi"), (b"\xda\xce\xbe\x0a", 0, "a Nikon ND2", ".nd2"),
    (b"p\0\0\0", 0, "a Leica LIF", ".lif"), (b"GIF8", 0, "a GIF", ""), (b"BM", 0, "a BMP", ""),
    (b"WEBP", 8, "a WebP", ""), (b"ftyp", 4, "a HEIC, AVIF or video", ""),
    (b"\x89HDF", 0, "an HDF5 file", ""), (b"PK\x03\x04", 0, "a zip", ""), (b"\x1f\x8b", 0, "packed with gzip", ""),
    (b"%PDF", 0, "a PDF", ""), (b"version https://git-lfs", 0, "a pointer of Git LFS, not the picture", ""),
    (b"<!doctype html", 0, "a web page", ""), (b"<html", 0, "a web page", ""),
)  # fmt: skip


def kind_of(begin: bytes) -> tuple[str, str]:
    """Return what a file is by its first bytes, and which suffix it should have; ("", "") where they tell nothing.

    Examples
    --------
    >>> kind_of(b"\\x89PNG\\r\\n\\x1a\\n"), kind_of(b"<!DOCTYPE html><html>"), kind_of(b"text")
    (('a PNG', '.png'), ('a web page', ''), ('', ''))
    """
    found = (sign[2:] for sign in SIGNS if begin[sign[1] :].lower().startswith(sign[0].lower()))
    return next(found, ("", ""))


def misnamed(path: Path, pictures: tuple[str, ...] = PICTURE_SUFFIXES) -> UserError | None:
    """Return what to raise about a file that is of another kind than its name says, None where it is not.

    `pictures` are suffixes of which each is read whichever of them the file should have.
    """
    try:
        with open(path, "rb") as file:
            what, suffix = kind_of(file.read(32))
    except OSError:
        return None
    alike = next((kinds for kinds in (TIFF_SUFFIXES, pictures) if suffix in kinds), (suffix,))
    if not what or path.suffix.lower() in alike:
        return None
    remedy = f"rename it to {path.stem}{suffix}" if suffix else "get the picture itself, or export it as TIFF or PNG"
    return UserError(f"{path.name} is {what} by its first bytes, whatever its name says", remedy)


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels (H, W, ...) as an EXIF or TIFF orientation (1 to 8) wants them shown.

    Examples
    --------
    >>> stored = np.array([[1, 2], [3, 4]])
    >>> [turned_upright(stored, way).ravel().tolist() for way in (2, 3, 4, 5, 6, 8)]
    [[2, 1, 4, 3], [4, 3, 2, 1], [3, 4, 1, 2], [1, 3, 2, 4], [3, 1, 4, 2], [2, 4, 1, 3]]
    """
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def checked_axes(path: Path, found: str, shape: tuple[int, ...], given: str | None) -> str:
    """Return the axes to use: those given, else the file's; each known or of length 1, none twice, Y and X there.

    Raises
    ------
    UserError
        Another number of letters, an unknown axis, one named twice, or no rows and columns.
    """
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
