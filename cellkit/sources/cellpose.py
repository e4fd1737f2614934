"""Pictures with Cellpose's files beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cellkit.config.sections import ConvertConfig
from cellkit.sources.folder import read_pictures
from cellkit.sources.label_files import classes_drawn
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
    """Return the classes that the files of cells below a folder name."""
    return classes_drawn(root)
