"""A folder of corrected labels as the label tools left it: Cellpose's GUI, Fiji, napari, or cellkit's own label images.

Files are matched to images by image id or by the name of the file the image came from. Every file that is not used is
named; files of one image that hold different cells are all left. A label file that only repeats the model's proposal is no
correction, unless a label tool saved it or a person says in ``confirmed.csv`` that it is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import MIXED, ImageRecord
from cellkit.errors import Quarantined, UserError, counted, plain_reason
from cellkit.files import sha256_file
from cellkit.formats.labels import chosen_cells
from cellkit.labelling.label_files import CONFIRMED, WANTED, ImageNames, match_files, why_unused
from cellkit.labelling.pictures import are_labels, is_picture, is_shown
from cellkit.log import LOG

ORDER = (
    "seg",
    "roi",
    "geojson",
    "plain",
    "marked",
)  # which of an image's files is read first, and used where several hold the same cells
SPLIT = (
    "number the cells: cellkit coco FOLDER -o CELLS.json --pieces split, then cellkit labels CELLS.json -o OTHER_FOLDER"
)


@dataclass(frozen=True)
class Correction:
    """The cells that a file of a person's gives to an image.

    Parameters
    ----------
    cells : Instances
    labels : (H, W) int32, 0 = background, -1 = not annotated
        The same painted, with the file's own ids where it has any.
    path : Path
        The file.
    by_person : bool
        False where nothing tells it from the model's proposal: a copy of it that nobody has changed, saved or confirmed.
    classes : tuple of str
        That of each cell in the file, "" for none; empty where the file keeps none.
    """

    cells: Instances
    labels: np.ndarray
    path: Path
    by_person: bool
    classes: tuple[str, ...] = ()

    def class_ids(self, classes: Sequence[str]) -> list[int]:
        """Return the class of each cell among those of a run; 0 = unknown."""
        return [classes.index(name) + 1 if name in classes else 0 for name in self.classes] or [0] * len(self.cells)


def corrections_folder(use: str) -> Path | None:
    """Return the folder that `label.use` names, None where it is "truth" or "proposed".

    Raises
    ------
    UserError
        There is no such folder.
    """
    from cellkit.machine import here

    if use in ("truth", "proposed"):
        return None
    if not here(use).is_dir():
        raise UserError(
            f"label.use is '{use}', no such folder", "set label.use: truth, proposed, or a folder of label images"
        )
    return here(use)


def read_corrections(
    images: CellDataset, proposals: Sequence[Instances | None], folder: Path, sources: Container[Path] = ()
) -> tuple[dict[str, Correction], list[Quarantined], list[str]]:
    """Read what a folder holds for the given images.

    Parameters
    ----------
    images : CellDataset
    proposals : list of Instances or None
        The model's, one per image: what was corrected. None: not known yet; the image's files then count as a person's.
    folder : Path
        Looked through with all folders below it.
    sources : container of Path
        Files that the images are read from, where they are not converted yet.

    Returns
    -------
    corrections : dict
        image_id -> Correction.
    unused : list of Quarantined
        Every file that is not used, and why.
    beside : list of str
        Pictures of the images, by-products of Cellpose, and copies of the proposal beside a correction: no labels.

    Raises
    ------
    UserError
        No file of the folder labels any image, or the folder is where the run keeps its own labels.
    """
    refuse_own(folder, images.root)
    of_image, unused, beside = match_files(images.records, folder)
    confirmed, strange = _confirmed(images.records, of_image, folder)
    unused += strange
    copied = chosen_cells(folder)
    corrections, proposed = {}, set()  # and the files whose images keep their proposals
    for record, found in zip(images.records, proposals, strict=True):
        files = of_image.get(record.image_id, [])
        painted = None if found is None else Instances.from_labels(found.paint())
        shown = [path for _, path in files if path.resolve() in sources]
        files = [(kind, path) for kind, path in files if path not in shown]
        chosen, refused, pictures = _choose(files, record, painted, copied, images.root / record.path)
        pictures += shown
        seen = chosen is not None and (chosen.by_person or record.image_id in confirmed)
        names = [path.relative_to(folder).as_posix() for path, _ in refused]
        unused += [Quarantined(name, why) for name, (_, why) in zip(names, refused, strict=True)]
        proposed |= set() if seen or record.cell_type == MIXED else set(names)
        beside += [path.relative_to(folder).as_posix() for path in pictures]
        if chosen is not None and (seen or not refused):  # a proposal beside what somebody saved is not what they left
            corrections[record.image_id] = replace(chosen, by_person=seen)
    unused.sort(key=lambda item: item.item)
    _refuse_none(corrections, folder, images.records, unused)
    left = "; until then its image has the proposal"
    unused = [replace(one, reason=f"{one.reason}{left}") if one.item in proposed else one for one in unused]
    return corrections, unused, sorted(beside)


def proposals_beside(images: CellDataset, folder: Path | None) -> dict[str, Instances]:
    """Return the proposals that a folder still has as they were put there, by image: what a person opened and corrected."""
    found: dict[str, Instances] = {}
    of_image = {} if folder is None else match_files(images.records, folder)[0]
    for record in images.records:
        for kind, path in of_image.get(record.image_id, ()):
            with contextlib.suppress(UserError):  # `read_corrections` names it
                cells, _, _, maker, _ = _read(kind, path, record)
                if maker == "proposed":
                    found.setdefault(record.image_id, cells)
    return found


def log_files(
    use: str,
    images: CellDataset,
    found: tuple[Mapping[str, Correction], Sequence[Quarantined], Sequence[str]],
    classes: Sequence[str],
    truth: bool = False,
) -> None:
    """Say in the log what of a folder of corrections is not used, and what in it nobody has changed.

    Parameters
    ----------
    use : str
        The folder, as it was named.
    images : CellDataset
    found : tuple
        From `read_corrections`.
    classes : sequence of str
        Those of the run; where there are several, those in the files are missed.
    truth : bool
        Whether the images came with true cells, whose classes cells of mixed images get.
    """
    corrections, unused, beside = found
    lines = [f"{use}: {item.item} is not used: {item.reason}" for item in unused]
    if beside:
        lines.append(f"{use}: pictures, by-products and copies of a proposal, no labels: {', '.join(beside)}")
    if unchanged := [name for name, one in corrections.items() if not one.by_person]:
        names = ", ".join(unchanged)
        lines.append(
            f"{use}: as the model proposed them, so they count as proposals and nothing is scored there: {names}; those that "
            "are right as they are: list them in confirmed.csv there (column image_id)"
        )
    of_image = ((record, corrections.get(record.image_id)) for record in images.records)
    classed = [
        one.path.name for record, one in of_image if one and one.by_person and _lost(one, record, classes, truth)
    ]
    if classed and len(classes) > 1:
        lines.append(
            f"{use}: classes in {counted(len(classed), 'file')} are not used (e.g. {classed[0]}): a cell gets the class of its "
            "image's line or of the true cell that it covers; classes of your own come with the images: truth/classes.csv"
        )
    for line in lines:
        LOG.warning(line)


def _lost(one: Correction, record: ImageRecord, classes: Sequence[str], truth: bool) -> bool:
    """Tell whether cells have another class in their file than they get in the run."""
    used = {"", record.cell_type} | (set(classes) if record.cell_type == MIXED and not truth else set())
    return not used.issuperset(one.classes)


def labelled_by_person(images: CellDataset, folder: Path) -> tuple[set[str], list[Quarantined]]:
    """Return the images (image_id) that a folder holds a person's labels for, and the files of it that are not used.

    What lies there as a model proposed it does not count, unless ``confirmed.csv`` there says that it is right.
    """
    if not match_files(images.records, folder)[0]:
        return set(), []
    found, unused, _ = read_corrections(images, [None] * len(images), folder)
    return {name for name, one in found.items() if one.by_person}, unused


def confirmed_in(folder: Path, records: Sequence[ImageRecord]) -> set[str]:
    """Return the images that ``confirmed.csv`` of a folder calls right, whether or not their label files are there."""
    return {name for _, _, found in _confirmed_rows(records, folder) if len(found) == 1 for name in found}


def _confirmed_rows(records: Sequence[ImageRecord], folder: Path) -> list[tuple[int, str, set[str]]]:
    """Return the rows of ``confirmed.csv``: the line, what stands there, and which images that may be."""
    from cellkit.sources.source_tables import read_table

    path = folder / CONFIRMED
    if not path.is_file():
        return []
    names = ImageNames(records)
    written = [Path(row["image_id"].strip()) for row in read_table(path, ("image_id",), folder)]
    return [(line, str(one), names.of(one, [one.name])) for line, one in enumerate(written, 2)]


def _confirmed(
    records: Sequence[ImageRecord], of_image: Mapping[str, Sequence], folder: Path
) -> tuple[set[str], list[Quarantined]]:
    """Return the images whose label file a person calls right in ``confirmed.csv``, and the rows that name no such image."""
    confirmed, strange = set(), []
    for line, written, found in _confirmed_rows(records, folder):
        if len(found) == 1 and found <= set(of_image):
            confirmed |= found
        elif len(found) == 1:
            why = f"no label file of {found.pop()} is in this folder; put there what you looked at: labels/ of the run has it"
            strange.append(Quarantined(f"{CONFIRMED} line {line}", why))
        else:
            strange.append(Quarantined(f"{CONFIRMED} line {line}", f"'{written}': {why_unused('', found)}"))
    return confirmed, strange


def refuse_own(folder: Path, run_dir: Path) -> None:
    """Refuse the folder where a run keeps its own labels.

    Raises
    ------
    UserError
        It is that folder.
    """
    if folder.resolve().is_relative_to((run_dir / "labels").resolve()):
        raise UserError(
            f"label.use is '{folder}', which this run writes itself",
            "copy it to a folder of your own, correct it there",
        )


def _refuse_none(found: Container, folder: Path, records: Sequence[ImageRecord], unused: list[Quarantined]) -> None:
    from cellkit.formats.any import none_left

    if not found:
        what = f"{folder} has no label image for any of {counted(len(records), 'image')}"
        raise none_left(what, unused) if unused else UserError(what, f"name them {WANTED}")


def _choose(
    files: Sequence[tuple[str, Path]],
    record: ImageRecord,
    proposal: Instances | None,
    copied: Mapping[str, tuple],
    picture: Path,
) -> tuple[Correction | None, list[tuple[Path, str]], list[Path]]:
    """Return the correction of an image, the files that are refused and why, and its pictures and copies of a proposal."""
    from cellkit.cells.labels import refuse_foreground

    read, refused, pictures = [], [], []
    for kind, path in sorted(files, key=lambda pair: (ORDER.index(pair[0]), pair[1].suffix.lower() == ".png", pair[1])):
        try:
            cells, labels, saved, marked, classes = _read(kind, path, record)
        except UserError as error:
            why = plain_reason(str(error))
            shown = kind == "plain" and (
                is_picture(path, picture, record) if len(files) > 1 else is_shown(path, picture)
            )
            pictures.append(path) if shown else refused.append((path, why))
            continue
        whole, maker, sha256 = copied.get(path.stem) or copied.get(record.image_id, (None, "", ""))
        as_left = bool(maker) and sha256_file(path) == sha256
        ours = maker if as_left else marked
        saved |= path.stem in copied and not as_left
        if as_left:  # the cells are known whole
            cells, classes = whole, ()
        unknown = saved or proposal is None
        by_person = ours in ("truth", "corrected") or not ours and (unknown or not same_cells(cells, proposal))
        try:
            if kind not in ("roi", "geojson") and by_person and not ours:
                refuse_foreground(labels, path.name, SPLIT)
        except UserError as error:
            refused.append((path, plain_reason(str(error))))
            continue
        if kind == "plain" and (not are_labels(cells) if len(files) > 1 else is_shown(path, picture)):
            pictures.append(path)
            continue
        read.append(Correction(cells, labels, path, by_person, classes))
    if not read:
        return None, refused, pictures
    by_person = [one for one in read if one.by_person] or read[:1]
    if by_person[0].by_person:
        pictures += [one.path for one in read if not one.by_person]
    if all(same_cells(one.cells, by_person[0].cells) for one in by_person):
        return by_person[0], refused, pictures
    for one in by_person:
        others = ", ".join(other.path.name for other in by_person if other is not one)
        refused.append((one.path, f"{others} labels the same image otherwise; keep one"))
    return None, refused, pictures


def _read(kind: str, path: Path, record: ImageRecord) -> tuple[Instances, np.ndarray, bool, str, tuple[str, ...]]:
    """Return the cells of a file, the label image, whether a label tool saved it, who made the cells where cellkit wrote
    that into it and nobody changed it, and the class of each; refuse those of another size."""
    from cellkit.formats.any import written_here
    from cellkit.formats.geojson_reading import read_geojson
    from cellkit.formats.label_images import as_written, is_stamped_proposal, read_labels
    from cellkit.formats.roi import read_rois, rois_made_by
    from cellkit.formats.seg import read_seg

    shape = record.height_px, record.width_px
    saved, maker, names = kind in ("seg", "roi", "geojson") and not written_here(path), "", ()
    if kind == "seg":
        seg = read_seg(path)
        cells, labels, names = seg.instances, seg.labels, seg.classes
        maker = seg.made_by if not saved and as_written(path) else ""
    elif kind == "roi":
        rois = read_rois(path, shape)
        cells, names = rois.instances, rois.classes
        labels, maker = cells.paint(unknown=-1), rois_made_by(path)
    elif kind == "geojson":
        found = read_geojson(path, shape)
        cells, maker, names = found.instances, found.made_by, found.classes
        labels = cells.paint(unknown=-1)
    else:
        labels = read_labels(path)
        cells = Instances.from_labels(labels)
        maker = "proposed" if is_stamped_proposal(path, labels) else ""
    if cells.shape != shape:
        raise UserError(f"{path.name} is {cells.shape}, {record.path} is {shape} px", "label this very image")
    if not len(cells) and cells.unknown_px == labels.size:
        raise UserError(f"{path.name} marks every pixel as not annotated", "take it out, or label some cells")
    classes = tuple(names[k - 1] if 0 < k <= len(names) else "" for k in cells.class_ids) if names else ()
    return cells.with_classes(0).with_scores(1.0), labels, saved, maker, classes


def same_cells(a: Instances, b: Instances) -> bool:
    """Tell whether two sets of cells of one image are the same masks, in whatever order, and alike in what is not annotated."""
    from cellkit.scores.iou import overlaps

    pairs = overlaps(a, b)
    exact = int(np.count_nonzero(pairs.shared_px == pairs.union_px))
    return len(a) == len(b) == exact and np.array_equal(a.unknown, b.unknown)
