"""Images with their cells, from whatever they were read: records, instances, class names, and where they come from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import LeftOut, warn_small
from cellkit.cells.records import ImageRecord, is_scored, read_records
from cellkit.errors import UserError, counted
from cellkit.log import LOG

MARKED = ("corrected", "proposed")  # what other files than labels.json say; there the truth is marked too
MAKERS = ("truth", *MARKED)
AGREEMENT = "agreement with proposals, no accuracy"


def maker_of(mark: Any) -> str:
    """Return who made cells, as a file of another tool may say: "corrected", "proposed", or "" for anything else."""
    return mark if isinstance(mark, str) and mark in MARKED else ""


def read_image(record: ImageRecord, root: str | Path) -> np.ndarray:
    """Read the picture of a record, whose path counts from `root`: (H, W, 3) uint8.

    Raises
    ------
    UserError
        It is not there, outside `root`, damaged, or not what its record says.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(root) / record.path
    if os.path.isabs(record.path) or os.path.normpath(record.path).split(os.sep)[0] == os.pardir:
        raise UserError(
            f"{record.path} of the image '{record.image_id}' lies outside {root}", "name a file in that folder"
        )
    try:
        with Image.open(BytesIO(path.read_bytes()), formats=["PNG"]) as picture:
            image = np.array(picture.convert("RGB") if picture.mode == "L" else picture)
    except Exception as raised:  # Pillow raises many kinds on a damaged file
        error = "it is no PNG" if isinstance(raised, UnidentifiedImageError) else raised
        raise UserError(f"{path} cannot be read: {error}", "run 01_convert again; it writes the file") from raised
    if image.shape != (record.height_px, record.width_px, 3) or image.dtype != np.uint8:
        raise UserError(
            f"{path} is {image.shape} {image.dtype}", f"its record says {record.height_px} x {record.width_px} RGB"
        )
    return image


def class_numbers(own: Iterable[str], names: Iterable[str]) -> np.ndarray:
    """Return the number that each class of `own` has among `names`, by its own number, (1 + classes,) int64; 0 = none stays 0.

    Examples
    --------
    >>> class_numbers(["N2a", "HEK"], ["HEK", "U2OS", "N2a"])
    array([0, 3, 1])
    """
    number = {name: k for k, name in enumerate(names, 1)}
    return np.array([0, *(number[name] for name in own)], np.int64)


@dataclass(frozen=True)
class CellDataset:
    """Images with their cells: a set to train on, a truth, or what a model found. Pictures are read when they are used.

    Parameters
    ----------
    records : list of ImageRecord
    instances : list of Instances
        One per record; where an image is annotated in part, with what is not (`Instances.unknown`).
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
    numbers : list of (N,) int
        What the cells of each image are called in the files they were read from, e.g. their ids in label images. Empty: 1 to N.
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
    unscored : dict of str -> (H, W)
        Names of images that the file has and its competition does not score: they are none of these images.
    """

    records: list[ImageRecord]
    instances: list[Instances]
    classes: tuple[str, ...] = ()
    root: Path = Path()
    ids: list[int | str] = field(default_factory=list)
    made_by: list[str] = field(default_factory=list)
    numbers: list[np.ndarray] = field(default_factory=list, compare=False)
    categories: dict[int | str, int] = field(default_factory=dict)
    path: Path | None = None
    run: Path | None = None
    of_model: bool = False
    notes: tuple[str, ...] = ()
    unscored: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self):
        if not self.made_by:
            object.__setattr__(self, "made_by", [""] * len(self.records))
        counts = {name: len(getattr(self, name)) for name in ("records", "instances", "made_by", "ids", "numbers")}
        counts = {name: count for name, count in counts.items() if count or name not in ("ids", "numbers")}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(found, "give one of each per image")

    def __repr__(self) -> str:
        """Say how many images there are, in which splits and of which lines, and how many cells have labels."""
        parts = [counted(len(self), "image"), *map(self._counts, ("split", "cell_type"))]
        parts += [f"{self.cells} cells{' of ' * bool(self.classes)}{', '.join(self.classes)}"] if self.cells else []
        flagged = sum(bool(record.flags) for record in self.records)
        return "; ".join(filter(None, [*parts, f"{flagged} flagged" if flagged else "", known_in_part(self.instances)]))

    def _counts(self, column: str) -> str:
        counts = Counter(getattr(record, column) for record in self.records)
        known = [name for name in ("train", "val", "test") if name in counts]
        names = known if column == "split" else sorted(filter(None, counts))
        return ", ".join(f"{name} {counts[name]}" for name in names)

    @property
    def cells(self) -> int:
        """Number of cells in all images."""
        return sum(map(len, self.instances))

    @classmethod
    def from_records(cls, records_path: str | Path, split: str | None = None, unused: bool = False) -> CellDataset:
        """Open the images of a run without labels; images that are not used (no split) are left out, unless `unused` is true."""
        everything = read_records(records_path)
        kept = [(k, r) for k, r in enumerate(everything, 1) if (r.split or unused) and split in (None, r.split)]
        empty = [Instances.empty((r.height_px, r.width_px)) for _, r in kept]
        return cls([r for _, r in kept], empty, (), Path(records_path).parent, [k for k, _ in kept])

    @classmethod
    def of_run(cls, run: Any, split: str | None = None) -> CellDataset:
        """Open the images of a run that are used, without labels; the stage that is under way notes that it reads them.

        Parameters
        ----------
        run : cellkit.run.folder.Run
        split : {"train", "val", "test"}, optional
            Those of one split.

        Raises
        ------
        UserError
            The run has no images yet.
        """
        images = cls.from_records(run.find("records"), split)
        run.find("images")
        return images

    @property
    def boxes_only(self) -> bool:
        """Whether of some image only boxes are known, no outlines."""
        return any(cells.boxes_only for cells in self.instances)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Instances]:
        """Return image (H, W, 3) uint8 and its cells."""
        return self.image(index), self.instances[index]

    def image(self, index: int) -> np.ndarray:
        """Read one image, (H, W, 3) uint8."""
        return read_image(self.records[index], self.root)

    def images(self) -> Iterator[np.ndarray]:
        """Read all images, one after the other."""
        return (self.image(index) for index in range(len(self)))

    def subset(self, chosen: Sequence[int] | np.ndarray) -> CellDataset:
        """Return the images at the given positions (or where a boolean mask is true)."""
        places = np.arange(len(self))[np.asarray(chosen, None if len(chosen) else int)].tolist()
        per_image = ("records", "instances", "ids", "made_by", "numbers")
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

    def by_split(self) -> dict[str, CellDataset]:
        """Return split -> its images, for train, val and test in this order; a split without images is left out."""
        parts = {split: self.select(split) for split in ("train", "val", "test")}
        return {split: part for split, part in parts.items() if len(part)}

    def compared_by(self, score: str) -> str:
        """Return what a comparison with these labels is called: a score, or agreement where a model proposed them all."""
        return score if len(self.without_proposed()) or not len(self) else AGREEMENT

    def with_at_least(self, cells: int) -> CellDataset:
        """Return the images with at least `cells` labelled cells; say which are left out, and refuse to leave out all."""
        refuse_few(self.instances, cells)
        left = [r.image_id for r, x in zip(self.records, self.instances, strict=True) if len(x) < cells]
        if left:
            LOG.info(f"left out, fewer than {cells} labelled cells: {', '.join(left)}")
        return self.subset([len(x) >= cells for x in self.instances])

    def with_classes_of(self, other: CellDataset) -> CellDataset:
        """Return the same cells with their classes numbered as in `other`, by name; those of no known class stay so.

        Raises
        ------
        UserError
            A class that `other` does not know.
        """
        if self.classes == other.classes or not self.classes:
            return self
        if new := sorted(set(self.classes) - set(other.classes)):
            raise UserError(
                f"classes {', '.join(self.classes)} here, {', '.join(other.classes) or 'none'} in the training images",
                f"no training image could teach {', '.join(new)}: name the same classes in both",
            )
        number = class_numbers(self.classes, other.classes)
        again = {category: int(number[k]) for category, k in self.categories.items()}
        cells = [x.with_classes(number[x.class_ids]) for x in self.instances]
        return replace(self, instances=cells, classes=other.classes, categories=again)

    def as_known(self, found: Sequence[Instances]) -> list[Instances]:
        """Return what was found in these images as their own cells are known: as boxes where only boxes are."""
        return [x.as_boxes() if own.boxes_only else x for x, own in zip(found, self.instances, strict=True)]

    def without_small(self, min_area_px: int) -> CellDataset:
        """Return all images without the cells smaller than `min_area_px`; say how many those are."""
        warn_small(self.records, self.instances, min_area_px, "coco.min_area_px", "left out")
        return replace(self, instances=[x[x.areas_px >= min_area_px] for x in self.instances])

    def sample(self, most: int) -> CellDataset:
        """Return at most `most` images, evenly spread over all."""
        return self.subset(evenly_spaced(len(self), most))

    def index(self, image_id: str) -> int:
        """Return the position of an image."""
        return [record.image_id for record in self.records].index(image_id)

    def scored(self, split: str | None = None) -> CellDataset:
        """Return the images (of one split) that are scored: those without a flag."""
        return self.subset([is_scored(r) and split in (None, r.split) for r in self.records])

    def held_out(self) -> CellDataset:
        """Return the validation and test images: those that no model was trained on."""
        return self.subset([record.split in ("val", "test") for record in self.records])

    def select(self, split: str | None = None, cell_type: str | None = None) -> CellDataset:
        """Return the images of one split and / or one cell type."""
        return self.subset([split in (None, r.split) and cell_type in (None, r.cell_type) for r in self.records])


def known_in_part(instances: Sequence[Instances]) -> str:
    """Say how many images are annotated in part, and how much of them; "" where none is.

    Examples
    --------
    >>> known_in_part([Instances.from_labels(np.array([[1, 0, 0, -1]])), Instances.empty((1, 4))])
    '1 image is annotated in part (75 % known)'
    """
    partly = [cells for cells in instances if cells.unknown_px]
    pixels = sum(cells.shape[0] * cells.shape[1] for cells in partly)
    known = 1 - sum(cells.unknown_px for cells in partly) / pixels if pixels else 1
    which = counted(len(partly), "image is", "images are")
    return f"{which} annotated in part ({100 * known:.0f} % known)" if partly else ""


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` positions, evenly spread over `count`.

    Examples
    --------
    >>> evenly_spaced(10, 4), evenly_spaced(2, 4)
    ([0, 3, 6, 9], [0, 1])
    """
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def refuse_few(instances: Sequence[Instances], cells: int) -> None:
    """Refuse training images of which none has `cells` labelled cells.

    Raises
    ------
    UserError
        With the number of cells that the best labelled one has.
    """
    most = max(map(len, instances), default=cells)
    if most < cells:
        lower = (
            ", or lower finetune.min_train_masks"
            if most
            else " in training images, or change convert.split or convert.seed"
        )
        raise UserError(
            f"finetune.min_train_masks is {cells}, and no training image has more than {counted(most, 'labelled cell')}",
            f"label more cells{lower}",
        )


def predict_all(
    segment: Callable, images: CellDataset, desc: str = "predict", workers: int | None = None
) -> list[Instances]:
    """Run a loaded model over every image, in order, with progress; one set of cells per image.

    What the model left out is logged at the end. A run notes what the finding cost under `desc`, the model's name.

    Parameters
    ----------
    workers : int, optional
        Processes that share the images, each with a model of its own; default those of the notebook's section. The same
        cells for any number.

    Raises
    ------
    UserError
        An image would take more memory than is free; known before the first is read.
    """
    from cellkit.finding import Finder, Found, processes_for, processes_that_fit, take_over
    from cellkit.machine import check_memory
    from cellkit.parallel import map_all
    from cellkit.under_way import measured, workers_of_stage

    workers = processes_for(segment, workers_of_stage() if workers is None else workers, desc)
    if hasattr(segment, "bytes_for"):
        needed = [segment.bytes_for((record.height_px, record.width_px)) for record in images.records]
        for record, one in zip(images.records, needed, strict=True):
            check_memory(images.root / record.path, one, "finding the cells of")
        workers = workers and processes_that_fit(workers, needed, desc)
    find = Finder(segment, partial(_with_record, root=images.root), images.records, workers)
    left = LeftOut()

    def note(record: ImageRecord, found: Found) -> None:
        take_over(found)
        left.of_image(found.left_out, record.image_id)

    with measured(desc, "find", sum(record.height_px * record.width_px for record in images.records) / 1e6):
        every = map_all(find, images.records, desc, workers, lambda record: record.image_id, note)
    left.log(desc)
    return [found.cells for found in every]


def _with_record(record: ImageRecord, root: Path) -> tuple[np.ndarray, None]:
    return read_image(record, root), None


OF_BOXES = "The truth is boxes, and so is what is compared with it: the boxes around the cells found, no outlines"
NO_ACCURACY = (
    "accuracy cannot be measured: no image was labelled by a person; "
    "agreement with the starter's own proposals is no accuracy"
)
