"""One folder per cell line, with mixed test images made of halves (Coelho, Shariff and Murphy, ISBI 2009)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.names import SPLIT_NAMES, image_id_of, split_of_folders, stem_of
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, raise_or_collect
from cellkit.microscope.folders import IMAGE_SUFFIXES, list_files
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.label_files import LabelFiles
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import Convert, Loaded, SourceImage, cell_type_of, unknown_class
from cellkit.sources.loading import load_file, resolved

ORDER = 100

MIN_PIECE_PX = 50


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set; folders called after a split are no cell lines."""
    below = [child for child in sorted(root.iterdir()) if (child / "images").is_dir()]
    lines = [child for child in below if (child / "labels").is_dir() and child.name.lower() not in SPLIT_NAMES]
    return len(lines) == len(below) > 1


def classes(root: Path) -> set[str]:
    """Return the names of the folders."""
    return {child.name for child in root.iterdir() if (child / "images").is_dir()}


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """One folder per cell line, each with ``images/`` and ``labels/`` of the same names: one line per image.

    The layout of Coelho, Shariff and Murphy (ISBI 2009) as ``u2os/`` and ``nih3t3/``. With ``config.mixed_images`` = n,
    n mixed test images follow, each the left half of a test image of one line beside the right half of a test image of
    the other; the lines take turns on the left. See `compose_halves`.

    Raises
    ------
    UserError
        A folder that is no class, or an image without labels.
    """
    root = Path(root)
    items: list[SourceImage] = []
    labels = LabelFiles(root)
    for folder in sorted(child for child in root.iterdir() if (child / "images").is_dir()):
        line = cell_type_of([folder.name], config)
        if not line or line == MIXED:
            raise_or_collect(unknown_class(folder.name, config, f"the folder {folder.name}/"))
            continue
        for path in list_files(folder / "images", IMAGE_SUFFIXES, keep_labels=True):
            relative = path.relative_to(folder / "images")
            label, files = resolved(partial(labels.required, folder / "labels", relative.parent / stem_of(path), path))
            image_id = image_id_of(f"{folder.name}/{relative.as_posix()}")
            source = path.relative_to(root).as_posix()
            split = split_of_folders(relative.parts[:-1])
            loader = partial(load_file, root, path, config, label, line)
            items.append(SourceImage(image_id, line, "", split, source, loader, stem_of(path), files=(path, *files)))
    left = list(leftovers(root, items, labels.used))
    fill = all(item.split for item in items)
    items = list(assign_splits(items, config, fill_split=fill, left=left))
    yield from items
    yield from _mixed_halves(items, config)


def _mixed_halves(items: list[SourceImage], config: ConvertConfig) -> Iterator[SourceImage]:
    """Yield `config.mixed_images` mixed test images of the first two lines' test images; every pair is used once."""
    lines = [name for name in config.classes if any(item.cell_type == name for item in items)][:2]
    if not config.mixed_images:
        return
    tests = [[item for item in items if item.cell_type == line and item.split == "test"] for line in lines]
    possible = math.prod(map(len, tests)) if len(lines) == 2 else 0
    if config.mixed_images > possible:
        problem = f"{config.mixed_images} mixed images are wanted, {possible} can be made of the test images"
        raise_or_collect(
            UserError(problem, "lower convert.mixed_images or raise convert.split.test; two lines are needed")
        )
        return
    a, b = tests
    for number in range(config.mixed_images):
        turn = number // math.lcm(len(a), len(b))
        pair = (a[number % len(a)], b[(number + turn) % len(b)])
        left, right = pair if number % 2 == 0 else pair[::-1]
        source = f"left half of {left.source}, right half of {right.source}"
        loader = partial(_load_halves, left.loader, right.loader)
        yield SourceImage(f"mixed_{number + 1:02d}", MIXED, "", "test", source, loader)


def _load_halves(left: Callable[..., Loaded], right: Callable[..., Loaded], convert: Convert) -> Loaded:
    a, b = left(convert=convert), right(convert=convert)
    image, instances = compose_halves((a.image, a.instances), (b.image, b.instances))
    um_per_px = a.um_per_px if a.um_per_px == b.um_per_px else math.nan
    return Loaded(image, instances, um_per_px, a.channels, a.levels + b.levels, composed=True)


def compose_halves(left: tuple, right: tuple, min_piece_px: int = MIN_PIECE_PX) -> tuple[np.ndarray, Instances]:
    """Put the left half of one image beside the right half of another, with their truth.

    Parameters
    ----------
    left, right : (image, instances)
        (H, W, 3) uint8, scaled each on its own, and its cells. Both are cut to the common height and width, from the
        upper left; the seam is the middle column of that, and belongs to the right.
    min_piece_px : int
        A cell cut by the seam or the cut edge is cut in the truth as well; a piece with fewer pixels is dropped.

    Returns
    -------
    image : (H, W, 3) uint8
    instances : Instances
        Cells of the left, then of the right, with their class ids.
    """
    height = min(left[0].shape[0], right[0].shape[0])
    width = min(left[0].shape[1], right[0].shape[1])
    seam = width // 2
    image = np.concatenate([left[0][:height, :seam], right[0][:height, seam:width]], axis=1)
    parts = []
    for (_, cells), columns in ((left, slice(0, seam)), (right, slice(seam, width))):
        labels = np.zeros((height, width), np.int32)
        labels[:, columns] = cells.paint()[:height, columns]
        here = np.unique(labels[labels > 0]) - 1
        piece = Instances.from_labels(labels, cells.class_ids[here])
        parts.append(piece[(piece.areas_px == cells.areas_px[here]) | (piece.areas_px >= min_piece_px)])
    return image, Instances.concatenate(parts)
