"""Label images: read, write, check, clean, renumber. (H, W) integers, 0 = background, one id per cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellkit.errors import UserError
from cellkit.files import atomic_path


def smallest_dtype(largest: int) -> np.dtype:
    """Return the smallest unsigned type that holds `largest`, at least 16 bits.

    Examples
    --------
    >>> smallest_dtype(300), smallest_dtype(65_536)
    (dtype('uint16'), dtype('uint32'))
    """
    return np.dtype(np.uint16 if largest <= 65_535 else np.uint32)


def write_labels(path: str | Path, labels: np.ndarray) -> Path:
    """Write a label image as a compressed TIFF of the smallest safe unsigned type, atomically.

    Raises
    ------
    ValueError
        Not a (H, W) integer array, or negative.
    """
    import tifffile

    if labels.ndim != 2 or labels.dtype.kind not in "iub" or (labels.size and labels.min() < 0):
        raise ValueError(f"a label image is (H, W) integer >= 0, this is {labels.shape} {labels.dtype}")
    dtype = smallest_dtype(int(labels.max()) if labels.size else 0)
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(dtype), compression="zlib", metadata=None, software=False)
    return Path(path)


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label image (TIFF or PNG; palette PNGs give their indices).

    Returns
    -------
    (H, W) int32, 0 = background

    Raises
    ------
    UserError
        A lossy format, a float image, colours, or a damaged file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"no label image at {path}", "give the path of a TIFF or PNG label image")
    if suffix not in (".tif", ".tiff", ".png"):
        raise UserError(
            f"{path} is '{suffix}', which cannot hold labels", "store labels as TIFF or PNG (lossless integers)"
        )
    try:
        labels = _read_tiff(path) if suffix != ".png" else _read_png(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", "write the label image again; it is damaged") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise UserError(
            f"{path} holds {labels.shape} {labels.dtype}", "a label image is (H, W) integers, 0 = background"
        )
    if labels.size and (int(labels.max()) > 2**31 - 1 or int(labels.min()) < 0):
        raise UserError(f"{path} holds ids from {labels.min()} to {labels.max()}", "ids are 0 to 2147483647")
    return labels.astype(np.int32)


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    return np.squeeze(tifffile.imread(path))


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise UserError(
                f"{path} is a colour picture ({image.mode})", "convert the colours to ids first; they are not labels"
            )
        return np.array(image)


def relabel(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber to 1..N in ascending order of the old ids.

    Returns
    -------
    labels : (H, W) int32
    old_ids : (N,) int64
        ``old_ids[k - 1]`` is what label k was.

    Examples
    --------
    >>> relabel(np.array([[0, 7], [3, 7]]))
    (array([[0, 2],
           [1, 2]], dtype=int32), array([3, 7]))
    """
    old, place = np.unique(labels, return_inverse=True)
    kept = old != 0
    lookup = np.cumsum(kept) * kept
    return lookup[place].reshape(labels.shape).astype(np.int32), old[kept].astype(np.int64)


def check_labels(labels: np.ndarray, tiny_px: int = 15) -> dict[str, int]:
    """Count what is unusual in a label image.

    Returns
    -------
    dict
        cells, tiny (area below `tiny_px`), pieces (cells of more than one 8-connected piece), holes (cells with a hole),
        touching (cells that share an edge or corner with another), border (cells cut by the image border).
    """
    from scipy import ndimage

    labels, _ = relabel(labels)
    count = int(labels.max()) if labels.size else 0
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    pieces = holes = 0
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == index
        pieces += ndimage.label(mask, np.ones((3, 3)))[1] > 1
        holes += bool((ndimage.binary_fill_holes(mask) & ~mask).any())
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])) if labels.size else []
    touching = np.unique(np.concatenate([np.zeros(0, np.int32), *_touching_pairs(labels)]))
    return {
        "cells": count,
        "tiny": int((areas < tiny_px).sum()),
        "pieces": int(pieces),
        "holes": int(holes),
        "touching": int(len(touching)),
        "border": int(np.count_nonzero(edge)),
    }


def _touching_pairs(labels: np.ndarray) -> list[np.ndarray]:
    """Return, for each of four directions, the ids on both sides of a border between two cells."""
    found = []
    for a, b in (
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:], labels[:-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    ):
        meet = (a != b) & (a > 0) & (b > 0)
        found += [a[meet], b[meet]]
    return found


def clean_labels(
    labels: np.ndarray, min_area_px: int = 0, fill_holes: bool = False, pieces: str = "keep"
) -> np.ndarray:
    """Drop small cells, fill holes, and decide what a cell of several pieces is; renumber to 1..N.

    Parameters
    ----------
    min_area_px : int
        Cells with fewer pixels are dropped.
    pieces : {"keep", "largest", "split"}
        A cell of several 8-connected pieces stays one cell, keeps its largest piece, or becomes several cells.
    """
    from scipy import ndimage

    if pieces not in ("keep", "largest", "split"):
        raise ValueError(f"pieces is 'keep', 'largest' or 'split', not {pieces!r}")
    labels, _ = relabel(labels)
    out = np.zeros_like(labels)
    next_id = 1
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == index
        parts = [mask]
        if pieces != "keep":
            numbered, count = ndimage.label(mask, np.ones((3, 3)))
            parts = [numbered == k for k in range(1, count + 1)]
            parts = [max(parts, key=np.count_nonzero)] if pieces == "largest" else parts
        for part in parts:
            if np.count_nonzero(part) < min_area_px:
                continue
            if fill_holes:  # a hole another cell lies in stays that cell's
                part = part | (ndimage.binary_fill_holes(part) & (labels[box] == 0))
            out[box][part & (out[box] == 0)] = next_id
            next_id += 1
    return relabel(out)[0]
