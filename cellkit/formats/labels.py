"""Label images (TIFF, PNG): one file per image, one id per cell; ``labels.json`` beside them has the same cells whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import lost_pixels
from cellkit.cells.instances import Instances
from cellkit.cells.labels import clean_labels, refuse_foreground, relabel
from cellkit.cells.names import plain_stem, stem_of
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.files import atomic_path, read_json, sha256_file
from cellkit.formats.any import ImageCells, ImageToWrite, Reading
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import parse_coco
from cellkit.formats.label_images import (
    is_marked_proposal,
    is_stamped_proposal,
    read_labels,
    refuse_changed,
    stamp_of,
    write_labels,
)
from cellkit.formats.large_cells import read_large_cells
from cellkit.formats.large_labels import as_written_large
from cellkit.microscope.folders import LABEL_SUFFIXES

LABELS_FILE = "labels.json"  # beside label images: the same cells whole, with class, and who made them


def chosen_cells(folder: str | Path) -> dict[str, tuple[Instances, str, str]]:
    """Return image_id -> (cells without class, who made them, sha256 of the label image) of a folder of label images.

    Empty where a folder has no ``labels.json``, which `annotate.write_chosen` and `cellkit labels` write.
    """
    path = Path(folder) / LABELS_FILE
    if not path.is_file():
        return {}
    status = path.stat()
    return _chosen_cells(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=8)  # called image by image
def _chosen_cells(path: Path, status: tuple[int, int, int]) -> dict[str, tuple[Instances, str, str]]:
    try:
        data = read_json(path)
        coco = parse_coco(data, path)
        makers = [(str(entry["labels"]), str(entry["sha256"])) for entry in data["images"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {error}", "delete it: the label images then count as a person's"
        ) from error
    return {
        record.image_id: (cells.with_classes(0), *one)
        for record, cells, one in zip(coco.records, coco.instances, makers, strict=True)
    }


def is_proposed(path: Path) -> bool:
    """Tell whether a label image holds what a model proposed: marked so by `write_chosen_cells` or in itself, and not changed."""
    _, maker, sha256 = chosen_cells(path.parent).get(path.stem, (None, "", ""))
    if maker and sha256_file(path) == sha256:
        return maker == "proposed"
    return is_marked_proposal(path) and is_stamped_proposal(path, read_labels(path))


def write_chosen_cells(
    folder: Path,
    files: Sequence[Path],
    cells: Sequence[Instances],
    made_by: Sequence[str],
    images: CellDataset | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Write beside the label images of a folder whose cells they show and who made them; `chosen_cells` reads it.

    Parameters
    ----------
    images : CellDataset, optional
        The images of the run, in any order: their records and ids make it a COCO file that `read_coco` opens.
    """
    records = [ImageRecord(file.stem, file.name, *found.shape) for file, found in zip(files, cells, strict=True)]
    ids = None
    if images is not None:
        of_run = {record.image_id: (record, number) for record, number in zip(images.records, images.ids, strict=True)}
        records, ids = [list(column) for column in zip(*(of_run[file.stem] for file in files), strict=True)] or ([], [])
    marks = [{"labels": maker, "sha256": sha256_file(file)} for file, maker in zip(files, made_by, strict=True)]
    return write_coco(Path(folder) / LABELS_FILE, records, cells, classes, ids, marks=marks)


ENDINGS = LABEL_SUFFIXES
WRITES = {"tif": ".tif", "png": ".png"}
TAKES_SUFFIX = True
SAYS_PROPOSED = "they and labels.json beside them say so"


def write_label_png(path: str | Path, labels: np.ndarray, stamp: str | None = None) -> Path:
    """Write a label image as a 16-bit PNG, atomically; `read_labels` reads it. `stamp` as for `write_labels`.

    Raises
    ------
    UserError
        More ids than 16 bits hold, parts that are not annotated, or a name that does not end with .png.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{Path(path).name} is no name of a PNG", "end it with .png")
    if labels.ndim == 2 and labels.dtype.kind == "i" and labels.min(initial=0) == -1:
        raise UserError(
            f"{Path(path).name} has parts that are not annotated (-1), and a PNG holds no negative numbers",
            "write TIFF: --format tif",
        )
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or (labels.size and labels.min() < 0):
        raise UserError(f"a label image is (H, W) integer >= 0, this is {labels.shape} {labels.dtype}", "relabel first")
    if labels.max(initial=0) > 65_535:
        raise UserError(
            f"{Path(path).name} would need ids up to {labels.max()}, a PNG holds 65535", "write TIFF: --format tif"
        )
    about = PngInfo()
    if stamp:
        about.add_text("Software", stamp)
    with atomic_path(path) as temporary:
        Image.fromarray(labels.astype(np.uint16)).save(temporary, format="PNG", pnginfo=about)
    return Path(path)


def labels_and_pictures(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the label images of a folder, and the pictures that have none.

    Where label images lie beside their pictures, ``a_masks.tif`` beside ``a.tif``, a file without such a name is a picture.
    Where no picture of theirs lies there, all files are label images, whatever they are called.

    Examples
    --------
    >>> names = lambda *texts: [Path(text) for text in texts]
    >>> [[file.name for file in part] for part in labels_and_pictures(names("a.tif", "a_masks.tif", "b.tif"))]
    [['a_masks.tif'], ['b.tif']]
    >>> [[file.name for file in part] for part in labels_and_pictures(names("a.tif", "control_mask.tif"))]
    [['a.tif', 'control_mask.tif'], []]
    """
    marked = {(file.parent, plain_stem(file.name)) for file in files if plain_stem(file.name) != stem_of(file.name)}
    plain = [file for file in files if plain_stem(file.name) == stem_of(file.name)]
    bare = [file for file in plain if (file.parent, stem_of(file.name)) not in marked]
    if len(bare) == len(plain):
        return list(files), []
    return [file for file in files if file not in set(plain)], bare


def refuse_picture(path: Path, pictures: Sequence[Path] = ()) -> None:
    """Refuse to write a label image over what is none: a picture may be the only one of its kind.

    Parameters
    ----------
    path : Path
        Where the label image is to be written.
    pictures : sequence of Path
        Files that are known to be pictures.

    Raises
    ------
    UserError
        Something is there that is no label image.
    """
    if not os.path.lexists(path):
        return
    known = {os.path.realpath(file) for file in pictures}
    try:
        labels = None if os.path.realpath(path) in known else read_labels(path)
    except UserError:
        labels = None
    if labels is None or is_noise(labels):
        raise UserError(f"{path} is there and is no label image", "give another folder, or a suffix: --suffix _masks")


NOISE_PX, DIFFERING, BACKGROUND = 1024, 0.5, 0.5


def is_noise(labels: np.ndarray) -> bool:
    """Tell whether a grey picture was read as labels: most neighbours differ, and hardly a pixel is background."""
    differing, background = _shares(labels)
    return differing > DIFFERING and background < BACKGROUND


def _shares(labels: np.ndarray) -> tuple[float, float]:
    """Return which share of neighbours in a row differs, and of pixels is background."""
    differing = np.mean(labels[:, 1:] != labels[:, :-1]) if labels.shape[1] > 1 else 0
    return float(differing), float(np.mean(labels == 0))


def refuse_noise(labels: np.ndarray, path: Path) -> None:
    """Refuse a grey picture that was read as labels; see `is_noise`, which tells nothing of a few pixels.

    Raises
    ------
    UserError
        Naming the file.
    """
    if labels.size >= NOISE_PX:
        _refuse_shares(*_shares(labels), path)


def _refuse_shares(differing: float, background: float, path: Path) -> None:
    if differing > DIFFERING and background < BACKGROUND:
        raise UserError(f"{path} is a grey picture by its values, no label image", "take it out, or give its labels")


# ---- the contract of cellkit.formats.any ----
def picture_stem(name: str) -> str:
    """Return the name that a file shares with its picture, see `cellkit.cells.names.plain_stem`."""
    return plain_stem(name)


def read_image(file: Path, how: Reading, size: tuple[int, int] | None = None) -> ImageCells:
    """Read the cells of one label image; whole, and with who made them, where ``labels.json`` has them and nobody changed it."""
    whole, maker, sha256 = chosen_cells(file.parent).get(stem_of(file.name), (None, "", ""))
    known = whole is not None and sha256_file(file) == sha256
    if known and how.pieces is None:
        return ImageCells(whole, made_by=maker)
    large = read_large_cells(file) if how.pieces is None else None
    if large is not None:
        _refuse_shares(large.differing, large.background, file)
        maker = "proposed" if is_marked_proposal(file) and as_written_large(file) else ""
        return ImageCells(large.cells, made_by=maker, numbers=large.numbers)
    labels = read_labels(file)
    refuse_noise(labels, file)
    if not known:
        maker = "proposed" if is_stamped_proposal(file, labels) else ""
    if how.pieces is None:
        each = f"cellkit coco {file.parent} -o FILE.json --pieces split (each a cell), keep or largest"
        refuse_foreground(labels, file, f"say what the pieces are: {each}")
        return ImageCells(Instances.from_labels(labels), made_by=maker, numbers=relabel(labels)[1])
    return ImageCells(Instances.from_labels(clean_labels(labels, pieces=how.pieces)), made_by=maker)


def write_image(path: Path, image: ImageToWrite) -> tuple[int, int]:
    """Write one label image; return how many cells lost pixels to others, and how many are left out without any."""
    labels = image.cells.paint(unknown=-1)
    refuse_picture(path, image.pictures)
    refuse_changed(path, labels)
    (write_label_png if path.suffix == ".png" else write_labels)(
        path, labels, stamp_of(labels, proposed=image.made_by == "proposed")
    )
    return lost_pixels(image.cells)


def note_makers(folder: Path, ending: str, images: Sequence[ImageToWrite]) -> None:
    """Note in ``labels.json`` who made label images, and of those that lay there before what still holds."""
    before = chosen_cells(folder)
    files = [folder / f"{image.name}{ending}" for image in images]
    cells = [Instances.from_labels(image.cells.paint(unknown=-1)) for image in images]
    makers = [image.made_by for image in images]
    known = {file.stem for file in files}
    for stem, (found, maker, sha256) in before.items():
        existing = [file for file in (folder / f"{stem}.tif", folder / f"{stem}.png") if file.is_file()]
        if stem not in known and any(sha256_file(file) == sha256 for file in existing):
            files, cells, makers = [*files, existing[0]], [*cells, found], [*makers, maker]
    write_chosen_cells(folder, files, cells, makers)
