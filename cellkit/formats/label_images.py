"""Label images in files: TIFF, PNG and OME-Zarr, read exactly or refused; (H, W) integers, 0 = background, -1 = not annotated."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np

from cellkit.cells.labels import LARGEST_ID, MOST_PX, MOST_PX_PER_BYTE, SURELY_PX, smallest_dtype
from cellkit.errors import UserError, counted
from cellkit.files import atomic_path
from cellkit.formats.zarr_labels import is_zarr_labels, one_plane, read_zarr_labels

# bilevel codes, none, LZW, PackBits, Deflate (two codes), PNG, LZMA, Zstandard; all others may change a pixel
LOSSLESS_TIFF = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 34933, 50000}


def write_labels(path: str | Path, labels: np.ndarray, stamp: str | None = None) -> Path:
    """Write a label image as a compressed TIFF of the smallest safe type, atomically; unsigned where all is annotated.

    Parameters
    ----------
    labels : (H, W) int, 0 = background, -1 = not annotated
    stamp : str, optional
        What tells later whether it is still as written, see `cellkit.formats.label_images`.

    Raises
    ------
    ValueError
        Not a (H, W) integer array, an id below -1 or above 2147483647.
    UserError
        The file name does not end with .tif or .tiff.
    """
    import tifffile

    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"labels are written as TIFF, not as {Path(path).name}", "end the file name with .tif")

    if labels.ndim != 2 or labels.dtype.kind not in "iub" or (labels.size and labels.min() < -1):
        raise ValueError(f"a label image is (H, W) integer >= -1, this is {labels.shape} {labels.dtype}")
    largest = int(labels.max()) if labels.size else 0
    if largest > LARGEST_ID:
        raise ValueError(f"ids are 0 to {LARGEST_ID}, found {largest}; relabel first")
    dtype = smallest_dtype(largest, signed=labels.min(initial=0) < 0)
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(dtype), compression="zlib", metadata=None, software=stamp or False)
    return Path(path)


def read_labels(path: str | Path, plane: tuple[int, int] | None = None) -> np.ndarray:
    """Read a label image (TIFF or PNG; the labels of an OME-Zarr): stored numbers, of palettes the indices.

    Parameters
    ----------
    path : path
        A file, or the folder ``labels/NAME`` in an OME-Zarr.
    plane : (number, count), optional
        Read this plane, from 0, of a stack that has `count`: one for each frame of a file.

    Returns
    -------
    (H, W) int32, 0 = background, -1 = not annotated

    Raises
    ------
    UserError
        A lossy format, colours, several images, planes that differ, numbers that are no ids, a damaged file, or tags that
        leave open which number is the background or which way the image lies. Whole numbers stored as float (CLIJ,
        MorphoLibJ) are ids, and equal planes of a stack are one label image.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    zarr = is_zarr_labels(path)
    if not path.is_file() and not zarr:
        raise UserError(f"no label image at {path}", "give the path of a TIFF or PNG label image")
    if suffix not in (".tif", ".tiff", ".png") and not zarr:
        raise UserError(
            f"{path} is '{suffix}', which cannot hold labels", "store labels as TIFF or PNG (lossless integers)"
        )
    try:
        labels = (
            read_zarr_labels(path, plane) if zarr else _read_tiff(path, plane) if suffix != ".png" else _read_png(path)
        )
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(str(error).replace(path.name, str(path), 1)) from error
    except Exception as error:
        from cellkit.microscope.file_info import misnamed

        other = misnamed(path, (".png",))
        if other is not None:
            raise UserError(f"{str(other).replace(path.name, str(path), 1)}") from error
        raise UserError(f"{path} cannot be read: {error}", "write the label image again; it is damaged") from error
    if plane is not None:
        labels = _plane_of(labels, *plane, path)
    if labels.dtype.kind == "f" and labels.ndim == 2 and labels.size:
        labels = _whole(labels, path)
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or not labels.size:
        raise UserError(
            f"{path} holds {labels.shape} {labels.dtype}", "a label image is (H, W) integers, 0 = background"
        )
    least, most = int(labels.min()), int(labels.max())
    if labels.dtype in (np.uint8, np.uint16) and _is_border(labels, np.iinfo(labels.dtype).max):
        raise _border_refused(path, most)
    if most > LARGEST_ID or least < -1:
        raise UserError(
            f"{path} holds ids from {least} to {most}", f"ids are 0 (background) to {LARGEST_ID}, or -1 (not annotated)"
        )
    return labels.astype(np.int32)


def _is_border(labels: np.ndarray, mark: int) -> bool:
    """Tell whether the largest number of the type is no cell but the border around the others, as in Pascal VOC.

    It lies in several pieces or has holes, and every other id touches it.
    """
    from scipy import ndimage

    border = labels == mark
    if not border.any():
        return False
    near = ndimage.binary_dilation(border, np.ones((3, 3))) & ~border & (labels > 0)
    ids = np.unique(labels[(labels > 0) & ~border])
    if not len(ids) or ids[-1] == mark - 1 or len(np.unique(labels[near])) < len(ids):
        return False
    holes = (ndimage.binary_fill_holes(border) & ~border).any()
    return bool(holes) or ndimage.label(border, np.ones((3, 3)))[1] > 1


def _border_refused(path: Path, mark: int) -> UserError:
    return UserError(
        f"{path} has {mark} around all its other ids: as in Pascal VOC, that is a void border, no cell",
        f"set {mark} to 0; if it is a cell of several pieces, give it another number",
    )


def _whole(labels: np.ndarray, path: Path) -> np.ndarray:
    """Return the ids of a float image; refuse what are no whole numbers, or more than the type counts one by one."""
    exact = 2 ** (np.finfo(labels.dtype).nmant + 1)
    odd = ~np.isfinite(labels) | (labels != np.rint(labels))
    if odd.any():
        raise UserError(
            f"{path} holds {labels.shape} {labels.dtype} with values such as {labels[odd][0]:g}: no ids",
            "a label image is (H, W) integers, 0 = background; of a probability map make labels first",
        )
    if np.abs(labels).max() > min(exact, LARGEST_ID):
        raise UserError(
            f"{path} holds ids up to {labels.max():g} as {labels.dtype}, which counts one by one to {exact} only",
            "write the label image as integers",
        )
    return labels.astype(np.int64)


def _read_tiff(path: Path, plane: tuple[int, int] | None = None) -> np.ndarray:
    """Read the one image of a TIFF by the same rules as a picture: what white is zero means, which file of a set."""
    import tifffile

    from cellkit.microscope.tiff import own_pages
    from cellkit.microscope.tiff_tags import inverted, refuse_overlong, refuse_turned, white_is_zero

    with own_pages(path) as own:
        series, page = own.series[0], own.series[0].keyframe
        if len(own.series) > 1 or own.left_out:
            what = own.left_out[0] if own.left_out else f"{path} holds {len(own.series)} images"
            raise UserError(f"{what}; one label image was wanted", "store each label image as a file of its own")
        code = int(page.compression)
        if code not in LOSSLESS_TIFF:
            raise UserError(
                f"{path} is compressed as {tifffile.COMPRESSION(code).name}, which may change ids",
                "write labels without compression, or with Deflate, LZW or Zstandard",
            )
        refuse_turned(path, own.tif, series)
        if series.is_multifile:
            raise UserError(f"{path} is one of several files of one OME data set", "store each label image by itself")
        shape, size = series.shape, path.stat().st_size
        if math.prod(shape) > MOST_PX or math.prod(shape) > max(SURELY_PX, MOST_PX_PER_BYTE * size):
            raise UserError(f"{path} claims to be {shape} px in {size} bytes", "write it again; its header is damaged")
        refuse_overlong(path, series.pages)
        invert = white_is_zero(path, own.tif, page)
        if invert and page.bitspersample != 1:
            raise UserError(
                f"{path} stores {page.bitspersample}-bit ids as white-is-zero: 0 or the largest number may be the background",
                "write it again as black-is-zero (Fiji: Image > Lookup Tables > Invert LUT, save)",
            )
        labels = inverted(series.asarray(), page) if invert else series.asarray()
        axes = series.axes
    if plane is None:
        apart = [k for k, axis in enumerate(axes) if axis not in "YXS" and labels.ndim > 2 and labels.shape[k] > 1]
        for place in reversed(apart):
            labels = one_plane(labels, place, axes[place], path)
    single = [axis for axis, length in enumerate(labels.shape) if length == 1]
    return np.squeeze(labels, tuple(single[: max(labels.ndim - 2, 0)]))


def _plane_of(labels: np.ndarray, number: int, count: int, path: Path) -> np.ndarray:
    planes = int(np.prod(labels.shape[:-2]))
    if planes != count or labels.ndim < 2:
        raise UserError(
            f"{path} holds {counted(planes, 'plane')} of labels for a file of {count} frames",
            "store one plane for each frame, or a label image for each, called after the frame (a_t0, a_t1, ...)",
        )
    return labels.reshape(-1, *labels.shape[-2:])[number]


def _read_png(path: Path) -> np.ndarray:
    from cellkit.microscope.file_info import turned_upright

    with _opened_png(path) as (image, orientation):
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B") or getattr(image, "n_frames", 1) > 1:
            frames = f" of {image.n_frames} frames" if getattr(image, "n_frames", 1) > 1 else ""
            raise UserError(
                f"{path} is a colour picture ({image.mode}){frames}",
                "convert the colours to ids first; they are not labels",
            )
        labels = np.array(image)
    with open(path, "rb") as file:
        bits = file.read(25)[24]
    if image.mode == "L" and bits in (2, 4):  # which Pillow spreads over 0 to 255
        labels //= 255 // (2**bits - 1)
    return turned_upright(labels, orientation)


@contextmanager
def _opened_png(path: Path) -> Iterator[tuple]:
    """Open a PNG with Pillow; yield it and its EXIF orientation."""
    from PIL import Image, UnidentifiedImageError

    from cellkit.microscope.pictures import orientation_of

    content = path.read_bytes()  # read from a file, Pillow asks the memory for as much as a damaged length says
    try:
        image = Image.open(BytesIO(content), formats=["PNG"])
    except UnidentifiedImageError:
        raise OSError("it is no PNG") from None  # as Pillow does
    with image:
        yield image, orientation_of(path, image, content)


def labels_orientation(path: str | Path) -> int:
    """Return the EXIF orientation by which `read_labels` turns a label image; 1 where it does not."""
    if Path(path).suffix.lower() != ".png":
        return 1
    try:
        with _opened_png(Path(path)) as (_, orientation):
            return orientation
    except OSError:
        return 1  # read_labels says what is wrong with it


MARK, PROPOSED = "cellkit labels ", " proposed"


def stamp_of(labels: np.ndarray, proposed: bool = False) -> str:
    """Return what is written into the file of a label image: a hash of its shape and ids.

    Parameters
    ----------
    labels : (H, W) int
    proposed : bool
        The stamp says that a model proposed them.

    Examples
    --------
    >>> stamp_of(np.array([[0, 1]])) == stamp_of(np.array([[0, 1]], np.uint16)) != stamp_of(np.array([[0, 2]]))
    True
    """
    ids = np.ascontiguousarray(labels, np.int32)
    suffix = PROPOSED if proposed else ""
    return f"{MARK}{hashlib.sha256(f'{ids.shape}'.encode() + ids.tobytes()).hexdigest()[:32]}{suffix}"


def is_stamped_proposal(path: Path, labels: np.ndarray) -> bool:
    """Tell whether a label TIFF or PNG that holds these ids is a model's proposal, as its stamp says."""
    return is_marked_proposal(path) and _stamp_in(path) == stamp_of(labels, proposed=True)


def is_marked_proposal(path: Path) -> bool:
    """Tell whether a label TIFF or PNG was written as a model's proposal; somebody may have changed it since."""
    if path.suffix.lower() not in (".tif", ".tiff", ".png") or not path.is_file():
        return False
    try:
        return _stamp_in(path).endswith(PROPOSED)
    except Exception:  # whoever reads its labels says what is wrong with it
        return False


def as_written(path: str | Path) -> bool:
    """Tell whether a label TIFF, a label PNG or a ``_seg.npy`` file carries the stamp of the cells it holds."""
    stamp, labels = _stamp_and_labels(Path(path))
    return stamp in (stamp_of(labels), stamp_of(labels, proposed=True))


def refuse_changed(path: str | Path, labels: np.ndarray | None = None) -> None:
    """Refuse to write over a label file that was changed by hand or made elsewhere: that work cannot be repeated.

    Parameters
    ----------
    labels : (H, W) int, optional
        What is to be written: a file that holds these very ids loses nothing.

    Raises
    ------
    UserError
        A file is there that is not as cellkit wrote it.
    """
    if not os.path.lexists(path):
        return
    stamp, found = _stamp_and_labels(Path(path))
    if stamp in (stamp_of(found), stamp_of(found, proposed=True)) or (
        labels is not None and np.array_equal(found, labels)
    ):
        return
    why = (
        "was changed since cellkit wrote it"
        if stamp.startswith(MARK)
        else "is there already and was made by hand or by another program"
    )
    raise UserError(f"{path} {why}: it may hold corrections", "move it away, or give another folder")


def _stamp_and_labels(path: Path) -> tuple[str, np.ndarray]:
    if path.name.endswith(".npy"):
        from cellkit.formats.plain_pickle import read_plain_npy

        fields = read_plain_npy(path)
        ours = fields.get("cellkit")
        return str(ours.get("stamp", "")) if isinstance(ours, dict) else "", np.asarray(fields["masks"])
    return _stamp_in(path), read_labels(path)


def _stamp_in(path: Path) -> str:
    if path.suffix.lower() == ".png":
        with _opened_png(path) as (image, _):
            return str(image.info.get("Software", ""))
    import tifffile

    with tifffile.TiffFile(path) as file:
        return str(file.pages[0].software)
