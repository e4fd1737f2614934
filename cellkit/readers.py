"""Opening microscope files: what a header says, and single planes of pixels on request.

Every reader gives the same thing, an `Opened`: scenes of times, z planes and channels of one (H, W) plane each. Read
are OME-TIFF, ImageJ TIFF and plain TIFF by `cellkit.tiffs`, PNG and JPEG here (Pillow); CZI, LIF, ND2 and OME-Zarr by
`cellkit.vendors`. What a header claims is checked before a pixel is read, and what a library would only log or guess
(a stack cut short, an axis of no known meaning) is an error. What a file holds besides its pictures is named.
"""

from __future__ import annotations

import math
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
_HEADERS: ContextVar[bool] = ContextVar("only headers are read", default=False)
_MOST_PX: ContextVar[int] = ContextVar("pixels a plane may have", default=MAX_PLANE_PX)
ASK_FOR_MEMORY_BYTES = 500_000_000  # what takes less is begun without asking how much memory is free
AXES = {"T": "time", "C": "channel", "Z": "z plane", "Y": "row", "X": "column", "S": "colour sample"}
COLOURS = ("red", "green", "blue")


# ---- what a file holds ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Channel:
    """One channel of a file: its name ("" when the file gives none) and wavelength (nm, nan when unknown).

    The wavelength is that of the emission, else of the excitation; `excitation_nm` is nan where the two are not told apart.
    """

    name: str = ""
    wavelength_nm: float = math.nan
    excitation_nm: float = math.nan

    @classmethod
    def lit(cls, name: str, emission_nm: float, excitation_nm: float) -> Channel:
        """Return the channel of two wavelengths of which either may be nan."""
        return cls(name, excitation_nm if math.isnan(emission_nm) else emission_nm, excitation_nm)

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


@contextmanager
def headers_only() -> Iterator[None]:
    """Let pictures be opened inside the block, everything about them be checked, and no pixel of them be read.

    Pictures are then all 0, of the right size. Label images are read whole; see `listing.perhaps` for other forms of cells.
    """
    token = _HEADERS.set(True)
    try:
        yield
    finally:
        _HEADERS.reset(token)


def only_headers() -> bool:
    """Tell whether pixels are left alone, see `headers_only`."""
    return _HEADERS.get()


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
    """Return why a picture of a kind that is known and not read is refused, by its name; None for all others.

    An OME-Zarr is known by its name too, so that nobody has to look into every folder: one called otherwise is refused.
    """
    if is_zarr_by_another_name(path):
        return UserError(f"{path.name} is an OME-Zarr by another name", f"rename the folder to {path.name}.zarr")
    end = max((end for end in UNREAD_SUFFIXES if path.name.lower().endswith(end)), key=len, default="")
    if not end:
        return None
    remedy = "unpack it" if end.endswith(PACKED) else "export it as OME-TIFF from the microscope's software or Fiji"
    return UserError(f"{path.name} is {UNREAD_SUFFIXES[end]}, which is not read", remedy)


def _opener(suffix: str) -> Callable:
    """Return what opens files of a suffix: a context manager of (path, axes)."""
    if suffix in TIFF_SUFFIXES:
        from cellkit.tiffs import open_tiff

        return open_tiff
    if suffix in PICTURE_SUFFIXES:
        return lambda path, axes: open_picture(path)
    from cellkit.vendors import open_vendor

    return open_vendor


ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata")


def is_zarr_by_another_name(path: str | Path) -> bool:
    """Tell whether a folder holds what an OME-Zarr begins with and is not called so."""
    path = Path(path)
    return path.suffix.lower() not in READ_SUFFIXES and path.is_dir() and any((path / n).is_file() for n in ZARR_FILES)


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
    """Return what to raise about a file that its reader stumbles over: damaged, or of another kind than it is called."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return misnamed(path) or UserError(
        f"{path.name} cannot be read as {kind}: {said}", "the file is damaged or cut short: copy or export it again"
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
    if not what or path.suffix.lower() in alike or path.suffix.lower() not in READ_SUFFIXES:
        return None
    remedy = f"rename it to {path.stem}{suffix}" if suffix else "get the picture itself, or export it as TIFF or PNG"
    return UserError(f"{path.name} is {what} by its first bytes, whatever its name says", remedy)


PICTURE_MODES = {"1": (1, "bool"), "L": (1, "uint8"), "LA": (1, "uint8"), "I;16": (1, "uint16"), "I;16B": (1, "uint16"),
                 "I": (1, "int32"), "F": (1, "float32"), "RGB": (3, "uint8"), "RGBA": (3, "uint8"),
                 "P": (3, "uint8")}  # fmt: skip


@contextmanager
def open_picture(path: Path, content: bytes | None = None) -> Iterator[Opened]:
    """Open a PNG or JPEG: grey or colours, with or without alpha, palette (as its colours), 8 or 16 bit.

    A file is turned as its EXIF orientation says, as labelme, browsers, Pillow and OpenCV show it; a picture that lies in
    another file and has such an orientation is refused.

    Parameters
    ----------
    path : Path
        The file, or what messages call the picture when `content` is given.
    content : bytes, optional
        The encoded picture, when it does not lie in a file of its own.
    """
    import warnings

    from PIL import Image

    embedded = content is not None
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
        frames = getattr(picture, "n_frames", 1)
        smaller = frames > 1 and _others_are_smaller(path, picture)
        if picture.mode not in PICTURE_MODES or (frames > 1 and not smaller):
            what = f"a {picture.mode} picture" + (f" of {frames} frames" if frames > 1 else "")
            raise UserError(f"{path.name} is {what}", "store it as grey, RGB or RGBA with one frame")
        check_size(path, picture.height, picture.width)
        turned = orientation_of(path, picture, content)
        if turned > 1 and embedded:
            raise UserError(
                f"the picture in {path.name} has the EXIF orientation {turned}: nobody knows which way it was outlined",
                "turn its pixels, then outline it again",
            )
        height, width = (picture.height, picture.width) if turned < 5 else (picture.width, picture.height)
        count, dtype = PICTURE_MODES[picture.mode]
        deep = _is_deep_colour_png(content)
        series = Series(
            name="",
            axes="YXS" if count == 3 else "YX",
            shape=(height, width, 3)[: 2 + (count == 3)],
            dtype="uint16" if deep else dtype,
            channels=tuple(map(Channel, COLOURS)) if count == 3 else (Channel("grey"),),
            notes=(
                *([f"turned as its EXIF orientation {turned} says"] if turned > 1 else []),
                *([f"the first of the {frames} pictures in it: the others are smaller, as previews are"] * smaller),
            ),
            turned=turned,
        )
        pixels = _PictureRead(path, picture, content if deep else None, turned)
        yield Opened(
            FileInfo(path, picture.format.lower(), (series,)),
            lambda scene, time, z, channel: pixels.samples[..., channel],
        )


def _others_are_smaller(path: Path, picture) -> bool:
    """Tell whether a JPEG of several (MPO) is a camera's: the picture, then previews of it or maps of its brightness."""
    if picture.format != "MPO":
        return False
    sizes = []
    try:
        for number in range(picture.n_frames):
            picture.seek(number)
            sizes.append(picture.size)
        picture.seek(0)
    except Exception as error:
        raise damaged(path, "JPEG of several pictures", error) from error
    return all(width < sizes[0][0] and height < sizes[0][1] for width, height in sizes[1:])


PNG_START = b"\x89PNG"
ORIENTATION = 0x112  # tag of EXIF and TIFF: 1 as stored; 2 to 8 mirrored, turned, or both


def orientation_of(path: Path, picture, content: bytes) -> int:
    """Return the EXIF orientation of an opened PNG or JPEG, 1 to 8; refuse one that only XMP tells."""
    from PIL import Image

    exif = Image.Exif()
    try:
        if content[:4] == PNG_START and b"eXIf" in content and "exif" not in picture.info:
            picture.load()  # it may follow the pixels
        exif.load(picture.info.get("exif") or b"")
        told = exif.get(ORIENTATION, 1)
        everywhere = Image.Image.getexif(picture).get(ORIENTATION, 1)  # also of XMP
    except Exception as error:
        raise damaged(path, "a picture with EXIF", error) from error
    if told == 1 and everywhere in range(2, 9):
        raise UserError(
            f"{path.name} has the orientation {everywhere} in its XMP and none in its EXIF: programs show it differently",
            "turn its pixels and store it again",
        )
    return told if told in range(2, 9) else 1


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


def _is_deep_colour_png(content: bytes) -> bool:
    """Tell whether a PNG has 16-bit colours or 16-bit grey with alpha, which Pillow would cut to 8 bits."""
    return content[:4] == PNG_START and content[24:25] == b"\x10" and content[25] in (2, 4, 6)


@dataclass
class _PictureRead:
    path: Path
    picture: object
    deep: bytes | None
    turned: int = 1

    @cached_property
    def samples(self) -> np.ndarray:
        """(H, W, C): the colours without alpha, which must be opaque; turned as the orientation says."""
        try:
            if self.deep is not None:
                import imagecodecs

                pixels = imagecodecs.png_decode(self.deep)
            else:
                pixels = np.asarray(self.picture.convert("RGBA") if self.picture.mode == "P" else self.picture)
        except Exception as error:
            raise damaged(self.path, "a picture", error) from error
        pixels = turned_upright(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), self.turned)
        clear = self.picture.info.get("transparency")
        if clear is not None and self.picture.mode != "P" and self.deep is None:
            _check_opaque(self.path, self._opaque_but(pixels, clear))
        if pixels.ndim == 2:
            return pixels[..., None]
        if pixels.shape[2] in (2, 4):
            _check_opaque(self.path, pixels[..., -1])
            pixels = pixels[..., :-1]
        return pixels

    def _opaque_but(self, pixels: np.ndarray, clear) -> np.ndarray:
        """(H, W) uint8 alpha where one value, or colour, is declared transparent."""
        if self.picture.mode in ("1", "L", "RGB"):
            return turned_upright(np.asarray(self.picture.convert("RGBA"))[..., 3], self.turned)
        return np.where(pixels == clear, 0, 255).astype(np.uint8)


def _check_opaque(path: Path, alpha: np.ndarray) -> None:
    """Refuse an alpha channel that hides anything: it says that some pixels are no measurement."""
    full = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    if (alpha != full).any():
        raise UserError(
            f"{path.name} has {int(np.count_nonzero(alpha != full))} transparent pixels",
            "store it without transparency",
        )


# ---- axes ---------------------------------------------------------------------------------------------------------
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
