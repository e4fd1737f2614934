"""Layouts of pictures with label images beside them: a folder per cell line, any folder, two lines, DSB2018.

Each ``read_X(root, config)`` lists what a folder holds and yields `SourceImage`; see `cellkit.sources`.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.convert import image_id_of
from cellkit.errors import UserError, nearest
from cellkit.instances import Instances
from cellkit.labels import read_labels, relabel
from cellkit.listing import (
    IMAGE_SUFFIXES,
    LABEL_ENDINGS,
    LABEL_FOLDERS,
    LABEL_SUFFIXES,
    MIXED,
    Loaded,
    SourceImage,
    cell_type_of,
    check_inside,
    check_shape,
    class_id_of,
    converted,
    finished,
    frames_of,
    list_files,
    load_file,
    only_class,
    read_table,
    stem_of,
    unknown_class,
)  # fmt: skip
from cellkit.readers import PICTURE_SUFFIXES, open_file

MIN_PIECE_PX = 50
DSB2018_PARTS = {
    "stage1_train": "",
    "train": "",
    "stage1_test": "test",
    "test": "test",
}  # folder: its split, "" = drawn
LOSSY_SUFFIXES = (".jpg", ".jpeg")  # found, so that `read_labels` refuses them; an image without truth says nothing


# ---- layouts -------------------------------------------------------------------------------------------------------
def read_microscope(root: Path, config) -> Iterator[SourceImage]:
    """Microscope files in folders called after their cell line; several lines in one image lie in ``mixed/``.

    ``<root>/HEK/a.ome.tif`` has its truth, where there is one, in ``<root>/truth/HEK/a.tif`` (a label image), and the
    classes of mixed cells in ``<root>/truth/classes.csv`` (file, label, class). Each scene and time point is an image.
    Mixed images are test images: their line is not known without truth. This is what `synthetic.write_fields` writes.
    """
    root = Path(root)
    classes = _read_class_table(root / "truth" / "classes.csv", root, config)
    items = []
    for path in list_files(root, IMAGE_SUFFIXES):
        relative = path.relative_to(root)
        for item in frames_of(path, root, config, partial(_truth_beside, root, relative), classes):
            items.append(item)
    yield from finished(items, config, mixed_is_test=True)


def read_folder(root: Path, config) -> Iterator[SourceImage]:
    """Any folder of pictures or microscope files, with label images where they are found by name.

    A label image is ``a_masks.tif`` or ``.png`` beside ``a.png`` (also _cp_masks, _labels, _label, _mask), or lies
    under ``labels/`` or ``masks/`` in place of ``images/`` (``<root>/images/x/a.png``, ``<root>/labels/x/a.tif``), or
    below ``<root>/labels/`` at the same relative path. Folders called train, val and test are the split; a folder
    called after a class is the cell type, and mixed images are test images; other folders are the group.

    With ``config.pair`` = [img, mask] the images are the files with "img" in their name, and ``img2d.tif`` has its labels
    in ``mask2d.tif``.
    """
    root = Path(root)
    items = []
    for path in list_files(root, IMAGE_SUFFIXES, keep_labels=config.pair is not None):
        if config.pair is None:
            label_of = partial(_label_by_name, root, path.relative_to(root))
        elif config.pair[0] in path.name:
            label_of = partial(_label_of_pair, path, config.pair)
        else:
            continue
        items += frames_of(path, root, config, label_of, {})
    yield from finished(items, config, mixed_is_test=True)


def read_cellpose(root: Path, config) -> Iterator[SourceImage]:
    """Images with Cellpose's ``a_seg.npy`` or ``a_cp_masks.png`` (``_masks.tif``, ...) beside them.

    Folders mean what they mean to `read_folder`. Classes that cellkit wrote into a ``_seg.npy`` come back. Where an image
    has both, they must hold the same cells.
    """
    root = Path(root)
    items = []
    for path in list_files(root, IMAGE_SUFFIXES):
        label_of = partial(_label_by_name, root, path.relative_to(root))
        for item in frames_of(path, root, config, label_of, {}):
            seg = path.with_name(f"{stem_of(path)}_seg.npy")
            loader = (
                partial(_load_seg, item.loader, root, path, seg, item.cell_type, config)
                if seg.is_file()
                else item.loader
            )
            items.append(replace(item, loader=loader))
    yield from finished(items, config, mixed_is_test=True)


def read_two_lines(root: Path, config) -> Iterator[SourceImage]:
    """One folder per cell line, each with ``images/`` and ``labels/`` of the same names: one line per image.

    The layout of Coelho, Shariff and Murphy (ISBI 2009) as ``u2os/`` and ``nih3t3/``. With ``config.mixed_images`` = n,
    n mixed test images follow, each the left half of a test image of one line beside the right half of a test image of
    the other; the lines take turns on the left. See `compose_halves`.
    """
    root = Path(root)
    items: list[SourceImage] = []
    for folder in sorted(child for child in root.iterdir() if (child / "images").is_dir()):
        line = cell_type_of([folder.name], config)
        if not line or line == MIXED:
            raise unknown_class(folder.name, config, f"the folder {folder.name}/")
        for path in list_files(folder / "images", IMAGE_SUFFIXES, keep_labels=True):
            relative = path.relative_to(folder / "images")
            label = partial(_required, folder / "labels", relative.with_suffix(""), path)
            image_id = image_id_of(f"{folder.name}/{relative.as_posix()}")
            source = path.relative_to(root).as_posix()
            loader = partial(load_file, root, path, config, label, line)
            items.append(SourceImage(image_id, line, "", "", source, loader, stem_of(path)))
    items = list(finished(items, config))
    yield from items
    yield from _mixed_halves(items, config)


def read_dsb2018(root: Path, config) -> Iterator[SourceImage]:
    """2018 Data Science Bowl nuclei, in either form.

    Packed: ``images/ID.png``, ``labels/ID.png`` (16-bit ids) and ``index.csv``; ``config.modalities`` keeps the rows
    with these modalities (null: all). Kaggle's own: ``ID/images/ID.png``, ``ID/masks/*.png`` with
    one nucleus each; also below ``stage1_train`` and ``stage1_test`` (or ``train`` and ``test``). Those of test are test
    images, and what has no folder ``masks`` has no truth.
    """
    root = Path(root)
    packed = (root / "index.csv").is_file()
    items = list(_packed_dsb2018(root, config) if packed else _kaggle_dsb2018(root, config))
    yield from finished(items, config)


# ---- truth ---------------------------------------------------------------------------------------------------------
def _truth_beside(root: Path, relative: Path, suffix: str) -> Path | None:
    """Return ``<root>/truth/<folders>/<stem><suffix>.tif`` where it exists."""
    path = root / "truth" / relative.parent / f"{stem_of(relative)}{suffix}.tif"
    return path if path.is_file() else None


def _label_by_name(root: Path, relative: Path, suffix: str) -> Path | None:
    """Return the one label image that belongs to a picture, or None; see `read_folder`."""
    stem = stem_of(relative) + suffix
    folders = [root / relative.parent / (stem + ending) for ending in LABEL_ENDINGS]
    for name in LABEL_FOLDERS:
        parts = [name if part.lower() == "images" else part for part in relative.parent.parts]
        below = Path(*parts) if name in parts else Path(name, relative.parent)
        folders += [root / below / (stem + ending) for ending in ("", *LABEL_ENDINGS)]
    return _only_one(folders, root / relative)


def _label_of_pair(path: Path, pair: tuple[str, str], suffix: str) -> Path | None:
    """Return the label image whose name is that of the image with the one text in place of the other."""
    return _only_one([path.with_name(stem_of(path).replace(*pair, 1) + suffix)], path)


def _load_seg(load: Callable[[], Loaded], root: Path, path: Path, seg: Path, cell_type: str, config) -> Loaded:
    """Load an image and the cells of its ``_seg.npy``; refuse masks beside it that say otherwise."""
    from cellkit.exchange import read_seg

    made = load()
    check_inside(seg, root)
    found = read_seg(seg, config.classes)
    check_shape(found.labels.shape, made.image.shape[:2], seg, path)
    if made.instances is not None and (relabel(found.labels)[0] != made.instances.paint()).any():
        raise UserError(
            f"{path.name} has masks beside it that differ from {seg.name}",
            "keep what you corrected last, remove the other",
        )
    own = class_id_of(cell_type, config) if cell_type not in ("", MIXED) else 0
    number = [own, *(class_id_of(name, config) for name in found.classes)]
    return made._replace(
        instances=found.instances.with_scores(1).with_classes([number[k] for k in found.instances.class_ids])
    )


def seg_classes(root: Path) -> set[str]:
    """Return the classes that the ``_seg.npy`` files below a folder name; damaged files name none."""
    from cellkit.exchange import read_seg

    names: set[str] = set()
    for path in list_files(root, ("_seg.npy",)):
        with suppress(UserError):
            check_inside(path, root)
            names |= set(read_seg(path).classes)
    return names


def _required(folder: Path, stem: Path, image: Path, suffix: str = "") -> Path:
    """Return the label image ``folder/stem.*``; refuse an image without."""
    found = _only_one([folder / stem], image)
    if found is None:
        raise UserError(
            f"{image.name} has no label image {stem}.tif or .png in {folder}", "add it, or remove the image"
        )
    return found


def _only_one(stems: Iterable[Path], image: Path) -> Path | None:
    paths = [Path(f"{stem}{suffix}") for stem in stems for suffix in (*LABEL_SUFFIXES, *LOSSY_SUFFIXES)]
    found = [path for path in paths if os.path.isfile(path)]  # False, too, where the name would be too long
    if len(found) > 1:
        raise UserError(f"{image.name} has several label images: {found[0]} and {found[1]}", "keep one of them")
    return found[0] if found else None


def _read_class_table(path: Path, root: Path, config) -> dict[str, dict[int, int]]:
    """Return {file: {label: class id}} of a ``classes.csv``; empty where there is none."""
    table: dict[str, dict[int, int]] = defaultdict(dict)
    if not path.is_file():
        return table
    for line, row in enumerate(read_table(path, ("file", "label", "class"), root), 2):
        try:
            table[row["file"]][int(row["label"])] = class_id_of(row["class"], config)
        except ValueError as error:
            raise UserError(
                f"{path} line {line}: {error!r}", "the columns are file, label (a number), class"
            ) from error
    return table


# ---- DSB2018 -------------------------------------------------------------------------------------------------------
def _packed_dsb2018(root: Path, config) -> Iterator[SourceImage]:
    rows = read_table(root / "index.csv", ("id", "modality"), root)
    if not rows:
        raise UserError(f"{root / 'index.csv'} lacks rows", "use the packed form as it came")
    rows.sort(key=lambda row: row["id"])
    wanted = config.modalities
    known = sorted({row["modality"] for row in rows})
    for name in wanted or ():
        if name not in known:
            raise UserError(
                f"no image has the modality '{name}'{nearest(name, known)}", f"choose of {', '.join(known)}"
            )
    cell_type = only_class(config)
    for row in rows:
        if not wanted or row["modality"] in wanted:
            path = root / "images" / f"{row['id']}.png"
            label = partial(_required, root / "labels", Path(row["id"]), path)
            loader = partial(load_file, root, path, config, label, cell_type)
            image_id = image_id_of(f"{row['id']}.png")
            yield SourceImage(image_id, cell_type, "", "", f"images/{path.name}", loader, row["id"])


def _kaggle_dsb2018(root: Path, config) -> Iterator[SourceImage]:
    if config.modalities:
        raise UserError(
            f"convert.modalities is {', '.join(config.modalities)}, and {root} has no index.csv that tells them",
            "set convert.modalities: null; Kaggle's form does not say what kind a picture is",
        )
    cell_type = only_class(config)
    for place, split in ((root, ""), *((root / name, split) for name, split in DSB2018_PARTS.items())):
        for folder in sorted(child for child in place.glob("*") if (child / "images").is_dir()):
            for path in list_files(folder / "images", PICTURE_SUFFIXES, keep_labels=True):
                loader = partial(_load_masks, root, path, folder / "masks", config, cell_type)
                source = path.relative_to(root).as_posix()
                yield SourceImage(image_id_of(path.name), cell_type, "", split, source, loader, stem_of(path))


def _load_masks(root: Path, image: Path, masks: Path, config, cell_type: str) -> Loaded:
    """Load Kaggle's form: an image and a folder with one mask per object."""
    check_inside(image, root)
    with open_file(image, most_px=config.max_plane_px) as opened:
        made = converted(opened, config)
    if not masks.is_dir():
        return made
    shape = made.image.shape[:2]
    paths = list_files(masks, (".png",), keep_labels=True)
    for path in paths:
        check_inside(path, root)
    objects = Instances.from_masks((_one_mask(path, shape) for path in paths), shape)
    return made._replace(instances=objects.with_classes(class_id_of(cell_type, config) if cell_type else 0))


def _one_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    labels = read_labels(path)
    if labels.shape != shape:
        raise UserError(f"the mask {path} is {labels.shape}, its image {shape}", "masks are as large as their image")
    values = np.unique(labels)
    if len(values[values > 0]) > 1:
        raise UserError(f"the mask {path} holds {len(values)} values", "a mask is one object: 0 and one other value")
    return labels > 0


# ---- halves --------------------------------------------------------------------------------------------------------
def _mixed_halves(items: list[SourceImage], config) -> Iterator[SourceImage]:
    """Yield `config.mixed_images` mixed test images of the first two lines' test images; every pair is used once."""
    lines = [name for name in config.classes if any(item.cell_type == name for item in items)][:2]
    if not config.mixed_images:
        return
    tests = [[item for item in items if item.cell_type == line and item.split == "test"] for line in lines]
    possible = math.prod(map(len, tests)) if len(lines) == 2 else 0
    if config.mixed_images > possible:
        raise UserError(
            f"{config.mixed_images} mixed images are wanted, {possible} can be made of the test images",
            "lower convert.mixed_images or raise convert.split.test; two lines are needed",
        )
    a, b = tests
    for number in range(config.mixed_images):
        turn = number // math.lcm(len(a), len(b))
        pair = (a[number % len(a)], b[(number + turn) % len(b)])
        left, right = pair if number % 2 == 0 else pair[::-1]
        source = f"left half of {left.source}, right half of {right.source}"
        loader = partial(_load_halves, left.loader, right.loader)
        yield SourceImage(f"mixed_{number + 1:02d}", MIXED, "", "test", source, loader)


def _load_halves(left: Callable[[], Loaded], right: Callable[[], Loaded]) -> Loaded:
    a, b = left(), right()
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
