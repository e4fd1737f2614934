"""Opening microscope files: which reader opens a file, and which formats are not read.

Every reader gives the same thing, an `Opened`: scenes of times, z planes and channels of one (H, W) plane each. What a
library would only log or guess (a stack cut short, an axis of no known meaning) is an error. A reader is a file
``cellkit/microscope/<name>.py`` with a `READER`; a new format is a new file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellkit.errors import UserError
from cellkit.microscope.file_info import MAX_PLANE_PX, PICTURE_SUFFIXES, TIFF_SUFFIXES, FileInfo, Opened
from cellkit.modules import by_key, load_all

READERS = tuple(module.READER for module in load_all("reader").values())
READER_OF = {
    suffix: module.READER for suffix, module in by_key("reader", lambda module: module.READER.suffixes).items()
}
READ_SUFFIXES = tuple(READER_OF)
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
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
UNREAD_SUFFIXES |= {f"{picture}{end}": f"packed as {end}" for picture in (*TIFF_SUFFIXES, *PICTURE_SUFFIXES, ".nii")
                    for end in PACKED}  # fmt: skip


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


@contextmanager
def open_file(path: str | Path, axes: str | None = None, most_px: int = MAX_PLANE_PX) -> Iterator[Opened]:
    """Open a microscope file by its suffix; errors as in `inspect_file`.

    Raises
    ------
    UserError
        As in `inspect_file`.
    """
    path = Path(path)
    unread = why_unread(path)
    if unread:
        raise unread
    reader = READER_OF.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path.name} is no image format that is read", f"give {', '.join(READ_SUFFIXES)}")
    if not (path.is_dir() if reader.is_folder else path.is_file()):
        kind = f"{reader.kind}, a folder," if reader.is_folder else "file"
        raise UserError(f"no {kind} at {path}", "give the path of a microscope file")
    if not reader.is_folder and not path.stat().st_size:
        raise UserError(f"{path.name} is empty (0 bytes)", "copy the file again")
    with reader.open(path, axes, most_px) as opened:
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


ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata")


def is_zarr_by_another_name(path: str | Path) -> bool:
    """Tell whether a folder holds what an OME-Zarr begins with and is not called so."""
    path = Path(path)
    return path.suffix.lower() not in READ_SUFFIXES and path.is_dir() and any((path / n).is_file() for n in ZARR_FILES)


def is_image_folder(path: str | Path) -> bool:
    """Tell whether a folder is one image, an OME-Zarr, by its name."""
    return Path(path).suffix.lower() == ".zarr" and Path(path).is_dir()
