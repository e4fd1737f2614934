"""Which label files are still as cellkit wrote them: each carries a hash of its cells, so that a correction is seen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from cellkit.errors import UserError

MARK = "cellkit labels "


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
    said = " proposed" if proposed else ""
    return f"{MARK}{hashlib.sha256(f'{ids.shape}'.encode() + ids.tobytes()).hexdigest()[:32]}{said}"


def is_stamped_proposal(path: Path, labels: np.ndarray) -> bool:
    """Tell whether a label TIFF that holds these ids is a model's proposal as `annotate.write_chosen` left it."""
    import tifffile

    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with tifffile.TiffFile(path) as file:
        return str(file.pages[0].software) == stamp_of(labels, proposed=True)


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
    from cellkit.formats.label_images import read_labels

    if path.name.endswith(".npy"):
        from cellkit.formats.plain_pickle import read_plain_npy

        fields = read_plain_npy(path)
        ours = fields.get("cellkit")
        return str(ours.get("stamp", "")) if isinstance(ours, dict) else "", np.asarray(fields["masks"])
    if path.suffix.lower() == ".png":
        from PIL import Image

        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("Software", "")), read_labels(path)
    import tifffile

    with tifffile.TiffFile(path) as file:
        return str(file.pages[0].software), read_labels(path)
