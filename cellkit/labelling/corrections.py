"""A folder of corrected labels as the label tools left it: Cellpose's GUI, Fiji, napari, or cellkit's own label images.

Files are matched to images by image id or by the name of the file the image came from. Every file that is not used is
named; files of one image that hold different cells are all left. A label file that only repeats the model's proposal is no
correction, unless a label tool saved it or a person says in ``confirmed.csv`` that it is right.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined, UserError, counted, plain_reason
from cellkit.files import sha256_file
from cellkit.formats.labels import LABELS_FILE, chosen_cells

ORDER = (
    "seg",
    "roi",
    "geojson",
    "plain",
    "marked",
)  # which of an image's files is read first, and used where several hold the same cells
BY_PRODUCTS = ("_flows", "_cp_outlines", "_outlines")  # what Cellpose writes beside masks
OF_SYSTEM = ("thumbs.db", "desktop.ini")
PLAN_FILE = "plan.csv"  # what `cellkit plan` writes beside the files to correct
CONFIRMED = "confirmed.csv"  # column image_id: images whose label file there is right as it is, says a person
SPLIT = (
    "number the cells: cellkit coco FOLDER -o CELLS.json --pieces split, then cellkit labels CELLS.json -o OTHER_FOLDER"
)
WANTED = "<image_id>.tif, _masks.tif, _cp_masks.png, _seg.npy, _rois.zip or .geojson, or so called after the image's own file"


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
    """

    cells: Instances
    labels: np.ndarray
    path: Path
    by_person: bool


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
    images: CellDataset, proposals: Sequence[Instances | None], folder: Path
) -> tuple[dict[str, Correction], list[Quarantined], list[str]]:
    """Read what a folder holds for the given images.

    Parameters
    ----------
    images : CellDataset
    proposals : list of Instances or None
        The model's, one per image: what was corrected. None: not known yet; the image's files then count as a person's.
    folder : Path
        Looked through with all folders below it.

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
    corrections = {}
    for record, found in zip(images.records, proposals, strict=True):
        files = of_image.get(record.image_id, [])
        painted = None if found is None else Instances.from_labels(found.paint())
        chosen, refused, pictures = _choose(files, record, painted, copied)
        unused += [Quarantined(path.relative_to(folder).as_posix(), why) for path, why in refused]
        beside += [path.relative_to(folder).as_posix() for path in pictures]
        if chosen is not None:
            seen = chosen.by_person or record.image_id in confirmed
            corrections[record.image_id] = replace(chosen, by_person=seen)
    unused.sort(key=lambda item: item.item)
    _refuse_none(corrections, folder, images.records, unused)
    return corrections, unused, sorted(beside)


def labelled_by_person(images: CellDataset, folder: Path) -> tuple[set[str], list[Quarantined]]:
    """Return the images (image_id) that a folder holds a person's labels for, and the files of it that are not used.

    What lies there as a model proposed it does not count, unless ``confirmed.csv`` there says that it is right.
    """
    if not match_files(images.records, folder)[0]:
        return set(), []
    found, unused, _ = read_corrections(images, [None] * len(images), folder)
    return {name for name, one in found.items() if one.by_person}, unused


def _confirmed(
    records: Sequence[ImageRecord], of_image: Mapping[str, Sequence], folder: Path
) -> tuple[set[str], list[Quarantined]]:
    """Return the images whose label file a person calls right in ``confirmed.csv``, and the rows that name no such image."""
    from cellkit.sources.source_tables import read_table

    path = folder / CONFIRMED
    if not path.is_file():
        return set(), []
    names, confirmed, strange = _Names(records), set(), []
    for line, row in enumerate(read_table(path, ("image_id",), folder), 2):
        found = names.of(Path(row["image_id"].strip()), [Path(row["image_id"].strip()).name])
        if len(found) == 1 and found <= set(of_image):
            confirmed |= found
        elif len(found) == 1:
            why = f"no label file of {found.pop()} is in this folder; put there what you looked at: labels/ of the run has it"
            strange.append(Quarantined(f"{CONFIRMED} line {line}", why))
        else:
            strange.append(Quarantined(f"{CONFIRMED} line {line}", f"'{row['image_id']}': {_why_unused('', found)}"))
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


def match_files(
    records: Sequence[ImageRecord], folder: Path
) -> tuple[dict[str, list[tuple[str, Path]]], list[Quarantined], list[str]]:
    """Match the files of a folder to images by their names: {image_id: (kind, path)}, what fits none, and what is no label."""
    names = _Names(records)
    unused, beside, of_image = [], [], {}
    for path in _files(folder):
        kind, stems = _kind(path, names)
        found = names.of(path.relative_to(folder), stems)
        name = path.relative_to(folder).as_posix()
        if kind == "other" or len(found) != 1:
            unused.append(Quarantined(name, _why_unused(kind, found)))
        elif kind == "beside":
            beside.append(name)
        else:
            of_image.setdefault(found.pop(), []).append((kind, path))
    return of_image, unused, beside


def _files(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted; hidden ones, the system's and the list of cellkit's own left out."""
    found = []
    for place, below, names in os.walk(folder, followlinks=False):
        below[:] = [name for name in below if not name.startswith(".") and name != "__MACOSX"]
        plain = [name for name in names if not name.startswith(".") and name.lower() not in OF_SYSTEM]
        found += [Path(place, name) for name in plain if name not in (LABELS_FILE, CONFIRMED, PLAN_FILE)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _why_unused(kind: str, found: set[str]) -> str:
    if kind == "other":
        return "no label image, _seg.npy file, ROI zip or GeoJSON"
    if not found:
        return f"named after no image; wanted {WANTED}"
    return f"fits {len(found)} images ({', '.join(sorted(found)[:3])}); name it after one image_id"


class _Names:
    """By which names the images of a run are known.

    Parameters
    ----------
    records : list of ImageRecord
    """

    def __init__(self, records: Sequence[ImageRecord]):
        self.ids = {record.image_id for record in records}
        self.paths: dict[str, set[str]] = {}
        self.stems: dict[str, set[str]] = {}
        for record in records:
            for path in (*_sources(record), record.path.rsplit("/", 1)[-1]):
                self.paths.setdefault(path, set()).add(record.image_id)
                self.stems.setdefault(path.rsplit("/", 1)[-1], set()).add(record.image_id)

    def of(self, relative: Path, stems: Sequence[str]) -> set[str]:
        """Return the images that a file may belong to: by id, by path, by file name, the first that fits any."""
        from cellkit.cells.names import image_id_of

        for stem in stems:
            below = (relative.parent / stem).as_posix()
            ways = ({stem}, {image_id_of(f"{below}.png")}, {image_id_of(f"{stem}.png")})
            for way in (*(w & self.ids for w in ways), self.paths.get(below, set()), self.stems.get(stem, set())):
                if way:
                    return set(way)
        return set()


def _sources(record: ImageRecord) -> Iterator[str]:
    """Yield the path of the file an image came from, with and without its suffix; ``.ome.tif`` is one, or two for others.

    Examples
    --------
    >>> list(_sources(ImageRecord("x", "images/x.png", 4, 4, file="HEK/a 1.ome.tif")))
    ['HEK/a 1.ome.tif', 'HEK/a 1.ome', 'HEK/a 1']
    """
    from cellkit.cells.names import stem_of

    if record.file:
        path = Path(record.file)
        yield from dict.fromkeys(p.as_posix() for p in (path, path.with_suffix(""), path.parent / stem_of(path)))


def _kind(path: Path, names: _Names) -> tuple[str, list[str]]:
    """Return what a file is by its name (seg, roi, geojson, marked, plain, beside, other), and what its image may be called."""
    from cellkit.cells.names import LABEL_ENDINGS, stem_of
    from cellkit.formats.geojson import ENDINGS as GEOJSON
    from cellkit.formats.geojson import picture_stem
    from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_SUFFIXES

    name, stem = path.name, stem_of(path)
    lower = name.lower()
    if lower.endswith("_seg.npy"):
        return "seg", [name[: -len("_seg.npy")]]
    if lower.endswith(".zip"):
        return "roi", _without(stem, ("_rois", "-rois", "_roiset", "-roiset", "_roi"))
    if lower.endswith(GEOJSON):
        whole = name[: lower.rindex(".geojson")]
        return "geojson", list(dict.fromkeys((whole, picture_stem(name))))
    product = next((ending for ending in BY_PRODUCTS if stem.lower().endswith(ending)), "")
    if product and stem not in names.ids:
        return "beside", [stem[: -len(product)]]
    if lower.endswith(LABEL_SUFFIXES):
        stems = _without(stem, LABEL_ENDINGS)
        marked = len(stems) > 1 and not names.of(Path(name), stems[:1])
        return ("marked" if marked else "plain"), stems
    return ("beside" if lower.endswith(IMAGE_SUFFIXES) else "other"), [stem]


def _without(stem: str, endings: Sequence[str]) -> list[str]:
    """Return a stem as it is, and without the first of the endings it has."""
    ending = next((e for e in endings if stem.lower().endswith(e) and len(stem) > len(e)), "")
    return [stem, stem[: -len(ending)]] if ending else [stem]


def _choose(
    files: Sequence[tuple[str, Path]], record: ImageRecord, proposal: Instances | None, copied: Mapping[str, tuple]
) -> tuple[Correction | None, list[tuple[Path, str]], list[Path]]:
    """Return the correction of an image, the files that are refused and why, and its pictures and copies of a proposal."""
    from cellkit.cells.labels import refuse_foreground

    read, refused, pictures = [], [], []
    for kind, path in sorted(files, key=lambda pair: (ORDER.index(pair[0]), pair[1].suffix.lower() == ".png", pair[1])):
        try:
            cells, labels, saved, marked = _read(kind, path, record)
        except UserError as error:
            why = plain_reason(str(error))
            pictures.append(path) if kind == "plain" and len(files) > 1 else refused.append((path, why))
            continue
        whole, maker, sha256 = copied.get(path.stem) or copied.get(record.image_id, (None, "", ""))
        as_left = bool(maker) and sha256_file(path) == sha256
        ours = maker if as_left else marked
        saved |= path.stem in copied and not as_left
        if as_left:  # the cells are known whole
            cells = whole
        unknown = saved or proposal is None
        by_person = ours in ("truth", "corrected") or not ours and (unknown or not same_cells(cells, proposal))
        try:
            if kind not in ("roi", "geojson") and by_person and not ours:
                refuse_foreground(labels, path.name, SPLIT)
        except UserError as error:
            refused.append((path, plain_reason(str(error))))
            continue
        if kind == "plain" and len(files) > 1 and not _are_labels(cells):
            pictures.append(path)
            continue
        read.append(Correction(cells, labels, path, by_person))
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


def _read(kind: str, path: Path, record: ImageRecord) -> tuple[Instances, np.ndarray, bool, str]:
    """Return the cells of a file, the label image, whether a label tool saved it, and who made the cells where cellkit wrote
    that into it and nobody changed it; refuse those of another size."""
    from cellkit.formats.any import written_here
    from cellkit.formats.geojson_reading import read_geojson
    from cellkit.formats.label_images import as_written, is_stamped_proposal, read_labels
    from cellkit.formats.roi import read_rois, rois_made_by
    from cellkit.formats.seg import read_seg

    shape = record.height_px, record.width_px
    saved, maker = kind in ("seg", "roi", "geojson") and not written_here(path), ""
    if kind == "seg":
        seg = read_seg(path)
        cells, labels = seg.instances, seg.labels
        maker = seg.made_by if not saved and as_written(path) else ""
    elif kind == "roi":
        cells = read_rois(path, shape).instances
        labels, maker = cells.paint(unknown=-1), rois_made_by(path)
    elif kind == "geojson":
        found = read_geojson(path, shape)
        cells, maker = found.instances, found.made_by
        labels = cells.paint(unknown=-1)
    else:
        labels = read_labels(path)
        cells = Instances.from_labels(labels)
        maker = "proposed" if is_stamped_proposal(path, labels) else ""
    if cells.shape != shape:
        raise UserError(f"{path.name} is {cells.shape}, {record.path} is {shape} px", "label this very image")
    if not len(cells) and cells.unknown_px == labels.size:
        raise UserError(f"{path.name} marks every pixel as not annotated", "take it out, or label some cells")
    return cells.with_classes(0).with_scores(1.0), labels, saved, maker


def same_cells(a: Instances, b: Instances) -> bool:
    """Tell whether two sets of cells of one image are the same masks, in whatever order, and alike in what is not annotated."""
    from cellkit.scores.iou import overlaps

    pairs = overlaps(a, b)
    exact = int(np.count_nonzero(pairs.shared_px == pairs.union_px))
    return len(a) == len(b) == exact and np.array_equal(a.unknown, b.unknown)


def _are_labels(cells: Instances) -> bool:
    """Tell a label image from a grey picture read as one: in a picture each value lies in many pieces."""
    from skimage.measure import label

    from cellkit.formats.labels import is_noise

    labels = cells.paint()
    return not is_noise(labels) and label(labels, connectivity=2).max(initial=0) <= 2 * len(cells) + 4
