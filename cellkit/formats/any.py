"""Cells in any format: which one a file or folder has, then reading or writing it.

A format is a file ``formats/<name>.py``, found by listing (`cellkit.modules`). Where one file holds many images it has

* ``TITLE``: what such a file is called in a message,
* ``is_this(path) -> bool``: whether a file is one,
* ``read(path, how) -> CellDataset``: `how` is a `Reading`.

Where each image has a file of its own it has

* ``ENDINGS``: how the names of its files end, in lower case,
* ``picture_stem(name) -> str``: the name that a file shares with its picture, without suffix,
* ``read_image(file, how, size) -> ImageCells``: `size` (H, W) is that of the picture, None where that is not known,
* optionally ``holds_cells(path) -> bool``: whether a file that is called so holds any, where pictures are called so too,
* to be written, ``WRITES`` {form: ending of the name} and ``write_image(path, image) -> (lost, left_out)``; optionally
  ``NEEDS_PICTURES = True`` (files are called after them) or ``TAKES_PICTURES = True``, ``TAKES_SUFFIX = True``,
  ``TAKES_NUCLEI = True`` (and measurements), ``written_here(path) -> bool`` (nobody saved it since), ``DROPS_UNKNOWN`` (how
  its tool loses what is not annotated), and ``note_makers(folder, ending, images)`` (who made the cells, where the files
  cannot say it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from cellkit.cells.dataset import CellDataset, class_numbers
from cellkit.cells.instances import Instances
from cellkit.cells.names import check_ids, image_id_of, repeated, stem_of
from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined, UserError, counted, nearest
from cellkit.formats.contract import ImageCells, ImageToWrite, Reading
from cellkit.formats.label_images import labels_orientation
from cellkit.microscope.folders import LABEL_SUFFIXES, Pictures, are_all_among, is_run_folder, list_files, run_of
from cellkit.microscope.open import inspect_file
from cellkit.modules import by_key, load, load_all, optional
from cellkit.outdated import warn_outdated
from cellkit.parallel import map_items


# ---- one file or folder of many images -------------------------------------------------------------------------------
def read_side(path: str | Path, **how) -> CellDataset:
    """Read cells of many images: a file of any format, or a folder with a file for each image.

    Parameters
    ----------
    path : path
        Predictions of a run folder are those of the images its models were to predict; a warning says if they are outdated.
    **how
        Fields of `Reading`.

    Raises
    ------
    UserError
        No such file, of no format that is read, damaged, or without what is needed to read it.
    """
    path, reading = Path(path), Reading(**how)
    if is_run_folder(path):
        raise UserError(f"{path} is a run folder", "give its truth.json, coco/test.json, or predictions/NAME.json")
    if path.is_dir():
        return _read_whole(path, reading)
    formats = [module for module in load_all("format").values() if optional(module, "is_this")]
    kinds = f"give {', '.join(module.TITLE for module in formats)}, or a folder of label images"
    if not path.is_file():
        raise UserError(f"no file or folder at {path}", kinds)
    module = next((module for module in formats if module.is_this(path)), None)
    if module is None and not formats_in(path):
        raise UserError(f"{path} is a '{path.suffix}' file", kinds)
    warn_outdated(path)
    return _read_whole(path, reading) if module is None else module.read(path, reading)


def _read_whole(folder: Path, how: Reading) -> CellDataset:
    """Read a folder of which no file may be left out, or one file; of several kinds of file, the label images."""
    found = formats_in(folder)
    if not found or (len(found) > 1 and "labels" not in found):
        raise UserError(f"no label image in the folder {folder}", f"label images end with {_endings('labels')}")
    name = "labels" if "labels" in found else found[0]
    side, failed = _read_files(folder, name, None, how)
    if failed:
        reason = failed[0].reason.removeprefix("UserError: ")
        raise UserError(*(reason.split("\n", 1) if "\n" in reason else reason.rsplit("; ", 1)))
    return side


# ---- a file for each image -------------------------------------------------------------------------------------------
def per_image() -> dict[str, ModuleType]:
    """Return the formats that have a file for each image, by name."""
    return {name: module for name, module in load_all("format").items() if optional(module, "read_image")}


def writable() -> dict[str, ModuleType]:
    """Return {form: format that writes it}."""
    return by_key("format", lambda module: getattr(module, "WRITES", ()))


def _endings(name: str) -> str:
    return ", ".join(load("format", name).ENDINGS)


def formats_in(path: str | Path) -> list[str]:
    """Return the formats that a file, or the files below a folder, have by their names, sorted."""
    path, formats = Path(path), per_image()
    endings = tuple(ending for module in formats.values() for ending in module.ENDINGS)
    names = [path] if _is_one(path) else list_files(path, endings, keep_labels=True)
    return sorted({name for file in names for name, module in formats.items() if _ends(file, module)})


def _is_one(path: Path) -> bool:
    """Tell whether a path is one image, and no folder of several: an OME-Zarr is a folder too."""
    return path.is_file() or path.name.lower().endswith(".zarr")


def _ends(file: Path, module: ModuleType) -> bool:
    """Tell whether a file is of a format by its name, and where pictures are called so too, by what it holds."""
    holds = optional(module, "holds_cells")
    return file.name.lower().endswith(tuple(module.ENDINGS)) and (holds is None or holds(file))


def format_of(path: str | Path, images: str | Path | None = None) -> str:
    """Return the one format that a file or the files of a folder have by their names; pictures in `images` are no labels.

    Raises
    ------
    UserError
        Nothing of the kind, or several: a folder of ``_seg.npy`` files and pictures could mean either.
    """
    kinds = formats_in(path)
    if len(kinds) > 1 and images is not None and are_all_among(path, LABEL_SUFFIXES, Pictures(images).files):
        kinds = [kind for kind in kinds if kind != "labels"]  # all that could be label images are its pictures
    if len(kinds) == 1:
        return kinds[0]
    what = f"holds {' and '.join(kinds)}" if kinds else "holds no label image, _seg.npy file, ROI zip or GeoJSON"
    which = f"keep one kind there, or read one of them: cellkit coco {path} --format {' or '.join(kinds)} -o CELLS.json"
    raise UserError(f"{path} {what}", which if kinds else f"say what to read: --format {', '.join(per_image())}")


def read_folder(
    path: str | Path,
    kind: str | None = None,
    images: str | Path | None = None,
    classes: Sequence[str] = (),
    pieces: str | None = None,
    nuclei: bool = False,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    workers: int = 1,
) -> tuple[CellDataset, list[Quarantined]]:
    """Read every file of a format below a folder (or one such file): label images, ``_seg.npy`` files, ROIs, GeoJSON, ...

    Parameters
    ----------
    kind : str, optional
        The format; by default known by the names, where these are all of a kind.
    images : path, optional
        The pictures, matched by name without suffix: for their file names, their sizes (ROI zips), and as a check.
    classes, pieces, nuclei, shapes, workers
        See `Reading`.

    Returns
    -------
    side : CellDataset
        Records and cells; `classes` is empty where no file names any; `notes` name pictures without labels.
    quarantined : list of Quarantined
        Files that could not be read, or have no picture in `images`; ROIs that are no cells.

    Raises
    ------
    UserError
        No such file, nothing to read, nothing that could be read, or two files of one image.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no folder at {path}", "give the folder of the label images, _seg.npy files or ROI zips")
    formats, kind = per_image(), kind and kind.replace("-", "_")
    if kind is not None and kind not in formats:
        raise UserError(f"no format '{kind}'{nearest(kind, formats)}", f"formats to read: {', '.join(formats)}")
    if pieces not in (None, "keep", "largest", "split"):
        raise UserError(f"pieces is {pieces!r}", "pieces is keep, largest or split")
    how = Reading(classes=tuple(classes), pieces=pieces, nuclei=nuclei, shapes=shapes, workers=workers)
    side, quarantined = _read_files(path, kind or format_of(path, images), images, how)
    return side, [item.in_one_line() for item in quarantined]


def _read_files(
    path: Path, kind: str, images: str | Path | None, how: Reading
) -> tuple[CellDataset, list[Quarantined]]:
    """Read the files of one format; reasons are as the reader gave them."""
    module = load("format", kind)
    root, files = path.parent, [path]
    if not _is_one(path):
        root, files = path, [file for file in list_files(path, module.ENDINGS, keep_labels=True) if _ends(file, module)]
    if not files:
        raise UserError(f"no file of format {kind} in the folder {path}", f"they end with {_endings(kind)}")
    apart = optional(module, "labels_and_pictures")
    files, bare = apart(files) if apart and not _is_one(path) else (files, [])
    pictures = Pictures(images) if images is not None else None
    shapes = {} if pictures is not None else _known_shapes(how)
    items = [(file, _size_in(shapes, _picture_name(file, root, module))) for file in files]
    read = partial(_read_one, root=root, kind=kind, pictures=pictures, how=replace(how, of=None, shapes=None))
    done, failed = map_items(read, items, "read", how.workers, lambda item: item[0].relative_to(root).as_posix())
    good = [item for item in done if item is not None]
    if not good:
        lines = [item.in_one_line() for item in failed]
        raise none_left(f"of {counted(len(files), 'file')} in {path} none could be read", lines)
    _refuse_twice([record.image_id for record, _ in good], path)
    names = dict.fromkeys(name for _, own in good for name in own.classes)
    cells = [own.cells.with_classes(class_numbers(own.classes, names)[own.cells.class_ids]) for _, own in good]
    if pictures is not None and not _is_one(path):
        bare += pictures.besides([_picture_name(file, root, module) for file in files])
        bare = list({file.resolve(): file for file in bare}.values())
    side = CellDataset(
        [record for record, _ in good],
        cells,
        tuple(names),
        made_by=[own.made_by for _, own in good],
        numbers=[np.arange(1, len(own.cells) + 1) if own.numbers is None else own.numbers for _, own in good],
        path=path,
        run=run_of(path),
        notes=(
            *_bare_note(bare, files[0].relative_to(root).as_posix()),
            *(note for _, own in good for note in own.notes),
        ),
    )
    return side, failed + [item for _, own in good for item in own.quarantined]


def _read_one(
    item: tuple[Path, tuple[int, int] | None], root: Path, kind: str, pictures: Pictures | None, how: Reading
) -> tuple[ImageRecord, ImageCells]:
    """Return the record of one file, called as its picture where that is known, and what the file holds."""
    file, size = item
    module, relative = load("format", kind), file.relative_to(root)
    stem = module.picture_stem(file.name)
    name = relative.as_posix() if kind == "labels" else stem
    if pictures is not None:
        picture, name = pictures.find(_picture_name(file, root, module))
        series = inspect_file(picture).series[0]
        if series.turned != (labels_orientation(file) if kind == "labels" else 1):
            raise UserError(
                f"{picture.name} has the EXIF orientation {series.turned}, and {file} is not turned alike",
                "store picture and labels turned alike, without an orientation",
            )
        size = (series.size("Y"), series.size("X"))
    found = module.read_image(file, how, size)
    shape = found.cells.shape
    if pictures is not None and shape != size:
        raise UserError(
            f"{file} is {shape[0]} x {shape[1]} px, its picture {size[0]} x {size[1]}",
            "label the picture itself, not a resized copy",
        )
    return ImageRecord((relative.parent / stem).as_posix(), name, *shape), found


def _known_shapes(how: Reading) -> dict[str, tuple[int, int]]:
    """Return the sizes of images that the other side of a score knows, or the folder of the images, by name and id."""
    named = () if how.of is None else ((key, r) for r in how.of.records for key in (stem_of(r.path), r.image_id))
    return {key: (r.height_px, r.width_px) for key, r in named} | dict(how.shapes or {})


def _size_in(shapes: Mapping[str, tuple[int, int]], name: str) -> tuple[int, int] | None:
    """Return the size of an image that is called so."""
    return next((shapes[k] for k in (name, stem_of(f"{name}.png"), image_id_of(f"{name}.png")) if k in shapes), None)


def _bare_note(bare: Sequence[Path], example: str) -> tuple[str, ...]:
    """Say which pictures have no label file: no cells, or forgotten?"""
    if not bare:
        return ()
    names = ", ".join(file.name for file in bare[:5]) + (", ..." if len(bare) > 5 else "")
    what = f"left out: {counted(len(bare), 'picture')} without a label file ({names})"
    return (f"{what}; where there is no cell, give an empty one (files are called like {example})",)


def none_left(what: str, quarantined: list[Quarantined]) -> UserError:
    """Say that nothing is left, and why the first was left out."""
    problem, _, remedy = quarantined[0].reason.rpartition("; ")
    return UserError(f"{what}; {quarantined[0].item}: {problem or remedy}", remedy if problem else "")


def _refuse_twice(names: list[str], path: Path) -> None:
    if twice := repeated(names):
        raise UserError(f"{path} has two files of the image '{twice[0]}'", "keep one")


def _picture_name(file: Path, root: Path, module: ModuleType) -> str:
    """Return what the picture of a label file is called: a path without suffix."""
    return (file.relative_to(root).parent / module.picture_stem(file.name)).as_posix()


def read_cells(file: Path, how: Reading, size: tuple[int, int] | None) -> ImageCells:
    """Read the cells of one file of one image, whose format its name tells.

    Raises
    ------
    UserError
        A file of no format, damaged, or of an image of another size.
    """
    module = next((module for module in per_image().values() if _ends(file, module)), None)
    if module is None:
        raise UserError(f"{file} is a '{file.suffix}' file", f"formats of one image: {', '.join(per_image())}")
    return module.read_image(file, how, size)


def written_here(path: Path) -> bool:
    """Tell whether a file is as cellkit wrote it, as far as its format keeps that."""
    own = next((module for module in per_image().values() if _ends(path, module)), None)
    ours = optional(own, "written_here") if own else None
    return bool(ours and ours(path))


# ---- writing a file for each image -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Written:
    """What `write_folder` did: files, cells that lost pixels to others, cells left out for want of pixels, files left out."""

    files: int
    lost: int
    left_out: int
    quarantined: list[Quarantined]


def write_folder(
    folder: str | Path,
    records: Sequence[ImageRecord],
    instances: Sequence[Instances],
    classes: Sequence[str] = (),
    form: str = "tif",
    images: str | Path | None = None,
    suffix: str = "",
    made_by: Sequence[str] = (),
    nuclei: Sequence[Instances] = (),
    measured: Sequence[Mapping[str, np.ndarray]] = (),
) -> Written:
    """Write one file per image, in one of the forms of `writable`: a label TIFF or PNG, a ``_seg.npy`` file, a ROI zip, ...

    Files are called ``<image_id><suffix>.tif`` (or .png) and ``<image_id>_rois.zip``; a ``_seg.npy`` file is called after
    its picture, because that is how the GUI finds it, and lies beside it where `folder` is the pictures' own.

    Parameters
    ----------
    form : str
        "tif", "png", "seg", "roi", "geojson", "ome-zarr", or that of another format.
    images : path, optional
        The pictures; needed for "seg" and "ome-zarr".
    suffix : str
        E.g. "_cp_masks" or "_masks", which Cellpose looks for.
    made_by : sequence of str, optional
        Who made the cells of each image: kept in the files, or beside label images in ``labels.json``, for as long as nobody
        changes them.
    nuclei : sequence of Instances, optional
        Of each image the nuclei, one for each cell, without pixels where it has none; for formats that keep them.
    measured : sequence of mapping, optional
        Of each image {name: one number for each cell}; for formats that keep them.

    Raises
    ------
    UserError
        An unknown format or one that does not keep nuclei or measurements, "seg" without pictures, two images of one name, or
        no image that could be written.
    """
    folder, forms = Path(folder), writable()
    if form not in forms:
        raise UserError(f"no format '{form}'{nearest(form, forms)}", f"formats to write: {', '.join(forms)}")
    module = forms[form]
    by_picture, takes = (bool(getattr(module, name, False)) for name in ("NEEDS_PICTURES", "TAKES_PICTURES"))
    if (by_picture or takes) and images is None:
        raise UserError(
            f"a file *{module.WRITES[form]} goes with its picture", "give the folder of the pictures: --images DIR"
        )
    if suffix and (not getattr(module, "TAKES_SUFFIX", False) or "/" in suffix or "\\" in suffix):
        raise UserError(f"the suffix '{suffix}'", "a suffix such as _cp_masks is for the formats tif and png")
    kept = [name for name, other in forms.items() if optional(other, "TAKES_NUCLEI")]
    if (nuclei or measured) and form not in kept:
        what = "nuclei" if nuclei else "measurements"
        raise UserError(f"files '{form}' do not keep {what}", f"choose from {', '.join(kept)}")
    names = [image_id_of(f"{record.image_id}.png") for record in records]
    check_ids(zip(names, [record.path for record in records], strict=True))
    pictures = Pictures(images) if images is not None else None
    ending = f"{suffix}{module.WRITES[form]}"
    beside = _beside(folder, records, pictures, ending) if by_picture else None
    files = tuple(pictures.files) if pictures else ()
    makers = list(made_by) or [""] * len(names)
    if "proposed" in makers and not optional(module, "SAYS_PROPOSED"):
        marking = ", ".join(sorted(name for name, other in forms.items() if optional(other, "SAYS_PROPOSED")))
        raise UserError(f"files '{form}' cannot say that their cells are a model's proposals", f"choose from {marking}")
    inner, numbers = nuclei or [None] * len(names), measured or [{}] * len(names)
    items = [
        (record, ImageToWrite(name, found, tuple(classes), maker, None, files, form, record.um_per_px, *more))
        for name, record, found, maker, *more in zip(names, records, instances, makers, inner, numbers, strict=True)
    ]
    how = {"pictures": pictures if by_picture or takes else None, "beside": beside}
    write = partial(_write_one, folder=folder, module=module.__name__, ending=ending, **how)
    done, failed = map_items(write, items, "write", name=lambda item: item[0].image_id)
    quarantined = [item.in_one_line() for item in failed]
    if items and len(failed) == len(items):
        raise none_left(f"of {counted(len(items), 'image')} none could be written", quarantined)
    note_makers = optional(module, "note_makers")
    if note_makers and any(makers):
        kept = [image for (_, image), pair in zip(items, done, strict=True) if pair is not None]
        note_makers(folder, ending, kept)
    lost, left_out = (sum(pair[k] for pair in done if pair is not None) for k in (0, 1))
    return Written(len(items) - len(failed), lost, left_out, quarantined)


def _picture_of(record: ImageRecord, pictures: Pictures) -> Path:
    return pictures.find((Path(record.path).parent / stem_of(record.path)).as_posix())[0]


def _beside(folder: Path, records: Sequence[ImageRecord], pictures: Pictures, ending: str) -> dict[Path, Path]:
    """Return {picture: its file}: beside it where `folder` is the pictures' own, else in `folder` itself; in the
    pictures' folders below it where names repeat. Refuses two images of one picture, or two pictures of one file."""
    found = []
    for record in records:
        with suppress(UserError):  # reported where it is written
            found.append(_picture_of(record, pictures))
    names = [f"{picture.stem}{ending}" for picture in found]
    below = [picture.relative_to(pictures.folder).parent / name for picture, name in zip(found, names, strict=True)]
    apart = folder.resolve() == pictures.folder.resolve() or len({name.casefold() for name in names}) < len(set(found))
    _refuse_twice([path.as_posix().removesuffix(ending) for path in below], pictures.folder)
    return {picture: folder / (path if apart else path.name) for picture, path in zip(found, below, strict=True)}


def _write_one(
    item: tuple[ImageRecord, ImageToWrite],
    folder: Path,
    module: str,
    ending: str,
    pictures: Pictures | None,
    beside: dict[Path, Path] | None,
) -> tuple[int, int]:
    """Write one image; return how many cells lost pixels to others, and how many are left out because they have none."""
    record, image = item
    write_image = load("format", module.removeprefix("cellkit.formats.")).write_image
    picture = None if pictures is None else _picture_of(record, pictures)
    path = folder / f"{image.name}{ending}" if beside is None else beside[picture]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, image._replace(picture=picture))
