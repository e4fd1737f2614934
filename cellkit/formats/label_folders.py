"""Folders of label images, and ``labels.json`` beside them: the same cells whole, with class, and who made them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, read_records, select
from cellkit.errors import UserError
from cellkit.files import read_json, sha256_file
from cellkit.formats.coco_reading import parse_coco
from cellkit.formats.coco_writing import write_coco
from cellkit.formats.label_images import read_labels

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


@lru_cache(maxsize=8)  # asked image by image
def _chosen_cells(path: Path, status: tuple[int, int, int]) -> dict[str, tuple[Instances, str, str]]:
    try:
        data = read_json(path)
        coco = parse_coco(data, path)
        told = [(str(entry["labels"]), str(entry["sha256"])) for entry in data["images"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {error}", "delete it: the label images then count as a person's"
        ) from error
    return {
        record.image_id: (cells.with_classes(0), *one)
        for record, cells, one in zip(coco.records, coco.instances, told, strict=True)
    }


def is_proposed(path: Path) -> bool:
    """Tell whether a label image holds what a model proposed: marked so by `write_chosen_cells`, and changed by nobody."""
    _, maker, sha256 = chosen_cells(path.parent).get(path.stem, (None, "", ""))
    return maker == "proposed" and sha256_file(path) == sha256


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


def read_run_labels(
    records_path: str | Path,
    labels_dir: str | Path,
    split: str | None = None,
    cell_type: str | None = None,
    classes: Sequence[str] = (),
) -> CellDataset:
    """Open label images named after the records; images without a label file are left out.

    A label image that is as `annotate.write_chosen` left it brings its cells whole, overlaps included, and who made
    them; one that was changed since is a correction, and read as it is.

    Parameters
    ----------
    records_path : path of ``records.csv``
        Its folder is the root.
    labels_dir : path
        ``<image_id>.tif``, 0 = background.
    classes : sequence of str
        When given, a cell's class is the cell type of its image (unknown where that is no class).
    """

    everything = read_records(records_path)
    number = {record.image_id: k for k, record in enumerate(everything, 1)}
    kept = [r for r in select(everything, split, cell_type) if (Path(labels_dir) / f"{r.image_id}.tif").is_file()]
    chosen = chosen_cells(labels_dir)
    instances, made_by = [], []
    for record in kept:
        path = Path(labels_dir) / f"{record.image_id}.tif"
        found, maker, sha256 = chosen.get(record.image_id, (None, "", ""))
        if found is None or sha256_file(path) != sha256:
            found, maker = Instances.from_labels(read_labels(path)), "corrected" if maker else ""
        if found.shape != (record.height_px, record.width_px):
            raise UserError(
                f"{path} is {found.shape}, {record.path} is {(record.height_px, record.width_px)} px",
                "label this very image",
            )
        made_by.append(maker)
        instances.append(found.with_classes(classes.index(record.cell_type) + 1 if record.cell_type in classes else 0))
    ids = [number[r.image_id] for r in kept]
    return CellDataset(kept, instances, tuple(classes), Path(records_path).parent, ids, made_by)
