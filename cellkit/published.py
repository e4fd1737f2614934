"""Published sets whose layout is their own: BBBC039, Sartorius (Kaggle 2021), HepG2 and Huh7 (Koyuncu)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.errors import UserError
from cellkit.file_info import only_headers
from cellkit.folders import IMAGE_SUFFIXES, by_stem, check_inside, list_files
from cellkit.instances import Instances
from cellkit.leftovers import leftovers
from cellkit.listing import (
    UNUSED,
    Loaded,
    SourceImage,
    apart_from_bare,
    check_same_way,
    check_shape,
    class_id_of,
    class_of_line,
    finished,
    load_picture,
    only_class,
    perhaps,
    read_split_lists,
    read_table,
    refuse,
    refuse_several,
)
from cellkit.names import image_id_of, stem_of

# ---- BBBC039 -------------------------------------------------------------------------------------------------------
BBBC039_LISTS = (("training", "train"), ("validation", "val"), ("test", "test"))
WELL_OF_FIELD = re.compile(r"_([A-P]\d{2})_s\d+_")


def read_bbbc039(root: Path, config) -> Iterator[SourceImage]:
    """BBBC039: ``images/*.tif`` (16 bit), ``masks/*.png``, and the split in ``metadata/{training,validation,test}.txt``.

    The lists name the masks (``.png``). A mask is a map of three colours in the red channel, chosen so that touching
    nuclei differ: each 8-connected region of one value is a nucleus, as in the authors' own code (Caicedo et al., Cytometry
    A 2019). A listed field without any nucleus stays, empty. The well is the group.
    """
    root = Path(root)
    lists = {path.name: path for path in list_files(root / "metadata", (".txt",), keep_labels=True)}
    named = [(lists[f"{name}.txt"], split) for name, split in BBBC039_LISTS if f"{name}.txt" in lists]
    split_of = read_split_lists(named, root)
    pictures, masks = by_stem(root / "images", IMAGE_SUFFIXES), by_stem(root / "masks", (".png",))
    items = []
    for stem in sorted({*pictures, *split_of}):
        found, found_masks = pictures.get(stem, []), masks.get(stem, [])
        path, mask = next(iter(found), None), next(iter(found_masks), None)
        split = split_of.get(stem, UNUSED if split_of else "")
        well = WELL_OF_FIELD.search(stem)
        if path is None:
            loader = partial(refuse, f"{stem} is in metadata/ but not in images/", "add the image, or correct the list")
        else:
            loader = refuse_several(root, found, found_masks) or partial(_load_bbbc039, root, path, mask, config)
        source = f"images/{path.name if path else stem}"
        group = well[1] if well else ""
        files = (*found, *found_masks)
        image_id = image_id_of(f"{stem}.png")
        items.append(SourceImage(image_id, only_class(config), group, split, source, loader, stem, files=files))
    yield from finished(items, config, fill_split=True, left=list(leftovers(root, items)))


def _load_bbbc039(root: Path, path: Path, mask: Path | None, config) -> Loaded:
    made = load_picture(root, path, config)
    if mask is None:
        raise UserError(f"{path.name} has no mask masks/{stem_of(path)}.png", "add masks.zip, or remove the image")
    check_inside(mask, root)
    check_same_way(made, path, mask)
    class_id = 1 if only_class(config) else 0
    if only_headers():
        return perhaps(made, [class_id])
    colours = read_red(mask, made.image.shape[:2], path)
    return made._replace(instances=Instances.from_labels(regions_of_colours(colours)).with_classes(class_id))


def read_red(path: Path, shape: tuple[int, int], image: Path) -> np.ndarray:
    """Return the red channel (H, W) uint8 of a colour PNG, or a grey one as it is; it must be as large as `image`."""
    from io import BytesIO

    from PIL import Image

    content = path.read_bytes()
    if content[24:25] == b"\x10" and content[25:26] in (b"\x02", b"\x06"):  # Pillow would cut them to 8
        raise UserError(f"{path} has 16 bits per colour", "a mask of BBBC039 has 8; use the masks as they came")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            check_shape((picture.height, picture.width), shape, path, image)
            if picture.mode not in ("RGBA", "RGB", "L"):
                raise UserError(f"{path} is a {picture.mode} picture", "a mask of BBBC039 is an 8-bit RGBA PNG")
            pixels = np.asarray(picture)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", "fetch it again; it is damaged") from error
    return pixels if pixels.ndim == 2 else pixels[..., 0]


def regions_of_colours(colours: np.ndarray) -> np.ndarray:
    """Number the 8-connected regions of each value but 0.

    Returns
    -------
    (H, W) int32
        Numbered by value, then by first pixel.

    Examples
    --------
    >>> regions_of_colours(np.array([[1, 1, 2, 0, 1], [0, 0, 2, 0, 1]]))
    array([[1, 1, 3, 0, 2],
           [0, 0, 3, 0, 2]], dtype=int32)
    """
    from scipy import ndimage

    labels = np.zeros(colours.shape, np.int32)
    count = 0
    for value in np.unique(colours[colours > 0]):
        found, more = ndimage.label(colours == value, np.ones((3, 3)))
        labels[found > 0] = found[found > 0] + count
        count += more
    return labels


# ---- Sartorius -----------------------------------------------------------------------------------------------------
def read_sartorius(root: Path, config) -> Iterator[SourceImage]:
    """Kaggle's Sartorius set: ``train/ID.png`` and ``train.csv`` with one row (id, annotation, cell_type) per cell.

    Run lengths are 1-based and row-major. Cells overlap in the truth, and stay so. The plate and well (``sample_id``) is the
    group where the table has that column: then set ``convert.split_by: group``. Pictures of ``test/`` are test images
    without truth: predicted and handed in.
    """
    root = Path(root)
    rows_of: dict[str, list[dict]] = defaultdict(list)
    for row in read_table(root / "train.csv", ("id", "annotation", "width", "height", "cell_type"), root):
        rows_of[row["id"]].append(row)
    pictures = by_stem(root / "train", IMAGE_SUFFIXES)
    items = [
        _sartorius_image(root, name, rows_of.get(name), pictures.get(name, []), config)
        for name in sorted({*rows_of, *pictures})
    ]
    for path in list_files(root / "test", IMAGE_SUFFIXES, keep_labels=True):
        name, source = stem_of(path), path.relative_to(root).as_posix()
        loader = partial(load_picture, root, path, config)
        items.append(SourceImage(image_id_of(f"{name}.png"), "", "", "test", source, loader, name, files=(path,)))
    left = list(leftovers(root, items))
    items, bare = apart_from_bare(items)
    yield from finished(items, config, left=[*left, *bare])


def sartorius_lines(root: Path) -> set[str]:
    """Return the cell types that ``train.csv`` names."""
    return {row["cell_type"] for row in read_table(Path(root) / "train.csv", ("cell_type",), Path(root))}


def _sartorius_image(root: Path, name: str, rows: list[dict] | None, found: list[Path], config) -> SourceImage:
    path = next(iter(found), None)
    about = {(row["cell_type"], row.get("sample_id", ""), row["height"], row["width"]) for row in rows or ()}
    line, group, *size = min(about) if about else ("", "", "", "")
    cell_type = class_of_line(line, config) if line else ""
    if path is None:
        problem = f"{name} has {len(rows)} cells in train.csv, no picture train/{name}.png"
        loader = partial(refuse, problem, "add the picture")
    elif len(about) > 1:
        problem = f"the rows of {name} in train.csv differ in cell type, sample or size"
        loader = partial(refuse, problem, "correct the table")
    else:
        runs = [row["annotation"] for row in rows] if rows else None
        loader = partial(_load_sartorius, root, path, runs, tuple(size), cell_type, config)
    loader = refuse_several(root, found) or loader
    source = path.relative_to(root).as_posix() if path else f"train/{name}.png"
    files = tuple(found)
    bare = path is not None and rows is None
    return SourceImage(image_id_of(f"{name}.png"), cell_type, group, "", source, loader, name, files=files, bare=bare)


def _load_sartorius(root, path, runs: list[str] | None, size: tuple[str, str], cell_type: str, config) -> Loaded:
    made = load_picture(root, path, config)
    if runs is None:
        return made
    shape = made.image.shape[:2]
    if size != (str(shape[0]), str(shape[1])):
        raise UserError(
            f"train.csv says {path.stem} is {size[0]} x {size[1]} px, {path.name} is {shape[0]} x {shape[1]}",
            "use the picture the cells were outlined on",
        )
    check_same_way(made, path, Path("train.csv"))
    class_id = class_id_of(cell_type, config) if cell_type else 0
    cells = Instances.from_kaggle_rle(runs, shape, "row-major")
    if (cells.areas_px == 0).any():
        raise UserError(f"{path.stem} has a cell without a pixel in train.csv", "remove the row")
    return made._replace(instances=cells.with_classes(class_id))


# ---- HepG2 and Huh7 ------------------------------------------------------------------------------------------------
HEPG2_LAST = 25  # images 1 to 25 are HepG2, the others Huh7
HEPG2_TRAIN = {1, 3, 7, 15, 23, 27, 28, 33, 35, 39}
HEPG2_UNUSED = {8, 9, 10, 22}  # in no list of the authors
MOST_TEXT_BYTES = 200_000_000


def read_hepg2_huh7(root: Path, config) -> Iterator[SourceImage]:
    """Koyuncu's nuclei of two lines: ``images/N.jpg``, ``annotations/N.gz`` with the label image as text.

    The number tells the line (1 to 25 HepG2, from 26 on Huh7) and the published split. That has no validation images:
    ``config.split.val`` of its training images become them.
    """
    root = Path(root)
    pictures = by_stem(root / "images", IMAGE_SUFFIXES)
    items = []
    for stem, (path, *others) in sorted(pictures.items(), key=lambda item: (len(item[0]), item[0])):
        number = int(stem) if stem.isascii() and stem.isdigit() else 0
        cell_type = class_of_line("HepG2" if number <= HEPG2_LAST else "Huh7", config) if number else ""
        split = "train" if number in HEPG2_TRAIN else UNUSED if number in HEPG2_UNUSED or not number else "test"
        labels = root / "annotations" / f"{stem}.gz"
        loader = partial(_load_text_labels, root, path, labels, cell_type, config)
        loader = refuse_several(root, [path, *others]) or loader
        source, files = path.relative_to(root).as_posix(), (path, *others, labels)
        items.append(SourceImage(image_id_of(path.name), cell_type, "", split, source, loader, stem, files=files))
    yield from finished(items, config, fill_split=True, left=list(leftovers(root, items)))


def _load_text_labels(root: Path, path: Path, labels_path: Path, cell_type: str, config) -> Loaded:
    made = load_picture(root, path, config)
    if not labels_path.is_file():
        raise UserError(f"{path.name} has no {labels_path.name} in annotations/", "add it, or remove the image")
    check_inside(labels_path, root)
    check_same_way(made, path, labels_path)
    class_id = class_id_of(cell_type, config) if cell_type else 0
    if only_headers():
        return perhaps(made, [class_id])
    labels = read_text_labels(labels_path)
    check_shape(labels.shape, made.image.shape[:2], labels_path, path)
    return made._replace(instances=Instances.from_labels(labels).with_classes(class_id))


def read_text_labels(path: Path) -> np.ndarray:
    """Read a gzipped text of whole numbers, one image row per line: (H, W) int32, 0 = background.

    Raises
    ------
    UserError
        Damaged, too large unpacked, rows of different length, or not whole numbers >= 0.
    """
    import gzip
    import io
    import zlib

    try:
        with gzip.open(path) as file:
            text = file.read(MOST_TEXT_BYTES + 1)
        if len(text) > MOST_TEXT_BYTES or not text.strip():
            raise ValueError(f"{len(text)} bytes unpacked")
        labels = np.loadtxt(io.BytesIO(text), dtype=np.int64, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {str(error)[:100]}", "it is a gzipped text of label numbers"
        ) from error
    if not labels.size or labels.min() < 0 or labels.max() > 2**31 - 1:
        raise UserError(
            f"{path} holds numbers from {labels.min(initial=0)} to {labels.max(initial=0)}", "labels are 0, 1, 2 ..."
        )
    return labels.astype(np.int32)
