"""Images with their cells, from whatever they were read: records, instances, class names, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from cellkit.errors import UserError
from cellkit.instances import Instances
from cellkit.leftout import LeftOut, say_small
from cellkit.records import ImageRecord, is_scored, read_records, select

AGREEMENT = "agreement with proposals, no accuracy"
LABELS_FILE = "labels.json"  # beside label images: the same cells whole, with class, and who made them


def chosen_cells(folder: str | Path) -> dict[str, tuple[Instances, str, str]]:
    """Return image_id -> (cells without class, who made them, sha256 of the label image) of a folder of label images.

    Empty where a folder has no ``labels.json``, which `annotate.write_chosen` and `cellkit labels` write.
    """
    from cellkit.coco import parse_coco
    from cellkit.files import read_json

    path = Path(folder) / LABELS_FILE
    if not path.is_file():
        return {}
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
    from cellkit.files import sha256_file

    table = path.parent / LABELS_FILE
    known = _proposed_of(table, table.stat().st_mtime_ns) if table.is_file() else {}
    return path.stem in known and sha256_file(path) == known[path.stem]


@lru_cache(maxsize=8)  # asked image by image
def _proposed_of(table: Path, changed_ns: int) -> dict[str, str]:
    return {name: sha256 for name, (_, maker, sha256) in chosen_cells(table.parent).items() if maker == "proposed"}


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
        The images of the run, in any order: their records and ids make it a COCO file that `CellDataset.from_coco` opens.
    """
    from cellkit.coco import write_coco
    from cellkit.files import sha256_file

    records = [ImageRecord(file.stem, file.name, *found.shape) for file, found in zip(files, cells, strict=True)]
    ids = None
    if images is not None:
        of_run = {record.image_id: (record, number) for record, number in zip(images.records, images.ids, strict=True)}
        records, ids = [list(column) for column in zip(*(of_run[file.stem] for file in files), strict=True)] or ([], [])
    marks = [{"labels": maker, "sha256": sha256_file(file)} for file, maker in zip(files, made_by, strict=True)]
    return write_coco(Path(folder) / LABELS_FILE, records, cells, classes, ids, marks=marks)


@dataclass(frozen=True)
class CellDataset:
    """Images with their cells: a set to train on, a truth, or what a model found. Pictures are read when they are used.

    Parameters
    ----------
    records : list of ImageRecord
    instances : list of Instances
        One per record; without `crowd` regions.
    classes : tuple of str
        Class k is ``classes[k - 1]``; empty when the cells have none.
    root : Path
        The folder that the records' paths start from.
    ids : list of int or str
        The images' ids in COCO files: one numbering for the whole run, or as a file from elsewhere has them. Empty where
        the images have none.
    made_by : list of str
        Who made the cells of each image: "truth", "corrected", "proposed" (a model; nothing is scored against it), or ""
        where it is not known. Empty when it is known of none.
    crowd : list of Instances
        Regions that are no single object (``iscrowd`` of COCO), one entry per record; empty where there are none.
    categories : dict
        Category id in the COCO file -> class id; 0 is unknown.
    path : Path, optional
        The file or folder that the cells were read from.
    run : Path, optional
        The run folder, for a file that a run wrote.
    of_model : bool
        Predictions of a run: the images are those its models were to predict, no others.
    notes : tuple of str
        What was read otherwise than it stands in the file, one sentence each.
    """

    records: list[ImageRecord]
    instances: list[Instances]
    classes: tuple[str, ...] = ()
    root: Path = Path()
    ids: list[int | str] = field(default_factory=list)
    made_by: list[str] = field(default_factory=list)
    crowd: list[Instances] = field(default_factory=list)
    categories: dict[int | str, int] = field(default_factory=dict)
    path: Path | None = None
    run: Path | None = None
    of_model: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.made_by:
            object.__setattr__(self, "made_by", [""] * len(self.records))
        counts = {name: len(getattr(self, name)) for name in ("records", "instances", "made_by", "ids", "crowd")}
        counts = {name: count for name, count in counts.items() if count or name not in ("ids", "crowd")}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(found, "give one of each per image")

    @property
    def cells(self) -> int:
        """Number of cells in all images."""
        return sum(map(len, self.instances))

    @classmethod
    def from_coco(cls, path: str | Path, root: str | Path) -> CellDataset:
        """Open a COCO file; `root` is the folder its file names start from (the run folder)."""
        from cellkit.coco import read_coco

        return read_coco(path, root)

    @classmethod
    def from_labels(
        cls,
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
        from cellkit.files import sha256_file
        from cellkit.labels import read_labels

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
            instances.append(
                found.with_classes(classes.index(record.cell_type) + 1 if record.cell_type in classes else 0)
            )
        ids = [number[r.image_id] for r in kept]
        return cls(kept, instances, tuple(classes), Path(records_path).parent, ids, made_by)

    @classmethod
    def from_records(cls, records_path: str | Path, split: str | None = None) -> CellDataset:
        """Open the images of a run without labels; images set aside (no split) are left out."""
        everything = read_records(records_path)
        kept = [(k, r) for k, r in enumerate(everything, 1) if r.split and split in (None, r.split)]
        empty = [Instances.empty((r.height_px, r.width_px)) for _, r in kept]
        return cls([r for _, r in kept], empty, (), Path(records_path).parent, [k for k, _ in kept])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Instances]:
        """Return image (H, W, 3) uint8 and its cells."""
        return self.image(index), self.instances[index]

    def image(self, index: int) -> np.ndarray:
        """Read one image, (H, W, 3) uint8."""
        from PIL import Image

        record = self.records[index]
        path = self.root / record.path
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                image = np.array(picture.convert("RGB") if picture.mode == "L" else picture)
        except Exception as error:  # Pillow raises many kinds on a damaged file
            raise UserError(f"{path} cannot be read: {error}", "run 01_convert again; it writes the file") from error
        if image.shape != (record.height_px, record.width_px, 3) or image.dtype != np.uint8:
            raise UserError(
                f"{path} is {image.shape} {image.dtype}", f"its record says {record.height_px} x {record.width_px} RGB"
            )
        return image

    def images(self) -> Iterator[np.ndarray]:
        """Read all images, one after the other."""
        return (self.image(index) for index in range(len(self)))

    def subset(self, chosen: Sequence[int] | np.ndarray) -> CellDataset:
        """Return the images at the given positions (or where a boolean mask is true)."""
        places = np.arange(len(self))[np.asarray(chosen, None if len(chosen) else int)].tolist()
        per_image = ("records", "instances", "ids", "made_by", "crowd")
        picked = {name: [values[k] for k in places] for name in per_image if (values := getattr(self, name))}
        return replace(self, **picked)

    def with_records(self, records: Sequence[ImageRecord]) -> CellDataset:
        """Return the same images under changed records, e.g. with flags."""
        return replace(self, records=list(records))

    def with_truth(self) -> CellDataset:
        """Return the images whose cells came with the source."""
        return self.subset([maker == "truth" for maker in self.made_by])

    def without_proposed(self) -> CellDataset:
        """Return the images whose cells no model proposed: those that something may be scored against."""
        return self.subset([maker != "proposed" for maker in self.made_by])

    def compared_by(self, score: str) -> str:
        """Return what a comparison with these labels is called: a score, or agreement where a model proposed them all."""
        return score if len(self.without_proposed()) or not len(self) else AGREEMENT

    def with_at_least(self, cells: int) -> CellDataset:
        """Return the images with at least `cells` labelled cells; say which are left out, and refuse to leave out all."""
        refuse_few(self.instances, cells)
        left = [r.image_id for r, x in zip(self.records, self.instances, strict=True) if len(x) < cells]
        if left:
            print(f"left out, fewer than {cells} labelled cells: {', '.join(left)}")
        return self.subset([len(x) >= cells for x in self.instances])

    def without_small(self, min_area_px: int, key: str = "coco.min_area_px") -> CellDataset:
        """Return all images without the cells smaller than `min_area_px`; say how many those are, and which `key` does it."""
        say_small(self.records, self.instances, min_area_px, key, "left out")
        return replace(self, instances=[x[x.areas_px >= min_area_px] for x in self.instances])

    def thinned(self, most: int) -> CellDataset:
        """Return at most `most` images, evenly spread over all."""
        return self.subset(np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)))

    def index(self, image_id: str) -> int:
        """Return the position of an image."""
        return [record.image_id for record in self.records].index(image_id)

    def scored(self, split: str | None = None) -> CellDataset:
        """Return the images (of one split) that are scored: those without a flag."""
        return self.subset([is_scored(r) and split in (None, r.split) for r in self.records])

    def select(self, split: str | None = None, cell_type: str | None = None) -> CellDataset:
        """Return the images of one split and / or one cell type."""
        return self.subset([split in (None, r.split) and cell_type in (None, r.cell_type) for r in self.records])


def refuse_few(instances: Sequence[Instances], cells: int) -> None:
    """Refuse training images of which none has `cells` labelled cells.

    Raises
    ------
    UserError
        With the number of cells that the best labelled one has.
    """
    most = max(map(len, instances), default=cells)
    if most < cells:
        raise UserError(
            f"finetune.min_train_masks is {cells}, and no training image has more than {most} labelled cell(s)",
            "label more cells, or lower finetune.min_train_masks",
        )


def predict_all(segment: Callable, images: CellDataset, desc: str = "predict") -> list[Instances]:
    """Run a loaded model over every image, in order, with progress; one set of cells per image.

    What the model left out is said at the end.

    Raises
    ------
    UserError
        An image would take more memory than is free; asked before the first is read.
    """
    from cellkit.loop import progress
    from cellkit.machine import check_memory

    if hasattr(segment, "bytes_for"):
        for record in images.records:
            shape = (record.height_px, record.width_px)
            check_memory(images.root / record.path, segment.bytes_for(shape), "finding the cells of")
    left, found = LeftOut(), []
    for record, cells in zip(images.records, progress(segment(images.images()), desc, total=len(images)), strict=True):
        left.take(segment, record.image_id)
        found.append(cells)
    left.say(desc)
    return found


NO_ACCURACY = (
    "no accuracy can be told: no image was labelled by a person; "
    "agreement with the starter's own proposals is no accuracy"
)
