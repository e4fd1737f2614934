"""Pictures with Cellpose's files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.microscope.folders import check_inside, list_files
from cellkit.sources.folder import read_pictures
from cellkit.sources.listing import SourceImage

ORDER = 80


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return any(root.rglob("*_seg.npy"))


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """Images with Cellpose's ``a_seg.npy`` or ``a_cp_masks.png`` (``_masks.tif``, ...) beside them.

    Folders mean what they mean to `folder.read`. Classes that cellkit wrote into a ``_seg.npy`` come back. Where an image
    has both, they must hold the same cells.
    """
    yield from read_pictures(Path(root), config)


def classes(root: Path) -> set[str]:
    """Return the classes that the ``_seg.npy`` files below a folder name; damaged files name none."""
    from cellkit.formats.seg import read_seg

    names: set[str] = set()
    for path in list_files(root, ("_seg.npy",), keep_labels=True):
        with suppress(UserError):
            check_inside(path, root)
            names |= set(read_seg(path).classes)
    return names
