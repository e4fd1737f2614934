"""Layouts of pictures with label images beside them: a folder per cell line, any folder, two lines, DSB2018.

Each ``read_X(root, config)`` lists what a folder holds and yields `SourceImage`; see `cellkit.sources`.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cellkit.channelfiles import ChannelFiles, join_channels
from cellkit.errors import UserError, nearest, refuse_or_note
from cellkit.file_info import PICTURE_SUFFIXES, only_headers
from cellkit.folders import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    LABEL_SUFFIXES,
    check_inside,
    find_picture,
    list_files,
)
from cellkit.instances import Instances
from cellkit.labelfolders import label_folders, names_in_label_folders
from cellkit.labels import labels_orientation, read_labels, relabel
from cellkit.leftovers import leftovers
from cellkit.listing import (
    LEFT,
    MIXED,
    UNUSED,
    Label,
    Loaded,
    SourceImage,
    apart_from_bare,
    cell_type_of,
    check_same_way,
    check_shape,
    class_id_of,
    converted,
    files_of,
    finished,
    frames_of,
    load_file,
    named_class,
    only_class,
    perhaps,
    proposals_are_no_truth,
    read_table,
    refuse,
    settled,
    unknown_class,
)
from cellkit.names import LABEL_ENDINGS, image_id_of, plain, split_of_folder, split_of_folders, stem_of
from cellkit.open import open_file, why_unread
from cellkit.ownsplit import with_own_split

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

    ``<root>/HEK/a.ome.tif`` has its truth, where there is one, in ``<root>/truth/HEK/a.tif`` (a label image; other places
    and names as for `read_folder`), and the classes of mixed cells in ``<root>/truth/classes.csv`` (file, label, class).
    Each scene and time point is an image. Mixed images are test images: their line is not known without truth. This is what
    `synthetic.write_fields` writes.
    """
    yield from _read_pictures(Path(root), config, folders_are_classes=True)


def read_folder(root: Path, config) -> Iterator[SourceImage]:
    """Any folder of pictures or microscope files, with label images where they are found by name.

    A label image is ``a_masks.tif`` or ``.png`` beside ``a.png`` (also _cp_masks, _labels, _label, _mask, _seg.npy), or
    lies under ``labels/`` or ``masks/`` in place of ``images/`` (``<root>/images/x/a.png``, ``<root>/labels/x/a.tif``), or
    below ``<root>/labels/`` at the same relative path. Folders that words of their names call labels (``train_masks`` beside
    ``train_images``, ``labelsTr``, ``seg``, ``01_GT/SEG``) hold no pictures, see `cellkit.labelfolders`. A stack of labels
    has a plane for each frame of its file. Folders called train, val and test are the split, else lists (``train.txt``, ...)
    or a table with a column ``split`` in the data folder; a folder called after a class is the cell type, and mixed images
    are test images; other folders are the group.

    With ``config.pair`` = [img, mask] the images are the files with "img" in their name, and ``img2d.tif`` has its labels
    in ``mask2d.tif``.
    """
    yield from _read_pictures(Path(root), config)


def read_cellpose(root: Path, config) -> Iterator[SourceImage]:
    """Images with Cellpose's ``a_seg.npy`` or ``a_cp_masks.png`` (``_masks.tif``, ...) beside them.

    Folders mean what they mean to `read_folder`. Classes that cellkit wrote into a ``_seg.npy`` come back. Where an image
    has both, they must hold the same cells.
    """
    yield from _read_pictures(Path(root), config)


def _read_pictures(root: Path, config, folders_are_classes: bool = False) -> Iterator[SourceImage]:
    """List the pictures of a folder with their label images, and what is left: what the layouts above share."""
    pair = config.pair
    labels = LabelFiles(root)
    table = ClassTable(root, config)
    paths = [path for path in list_files(root, IMAGE_SUFFIXES, keep_labels=pair is not None) if not why_unread(path)]
    if pair is not None:
        paths = [path for path in paths if is_image_of_pair(path.name, pair)]
        if not paths:
            raise UserError(
                f"no picture below {root} has '{pair[0]}' in its name (convert.pair: [{', '.join(pair)}])",
                "name what pictures have there, or take convert.pair out",
            )
    labels.folders = label_folders(root, paths, (path for found in labels.by_name.values() for path in found), config)
    if pair is None:
        paths = [path for path in paths if path.relative_to(root).parent not in labels.folders]
    items: list[SourceImage] = []
    for image in join_channels(paths, config.channel_from) if pair is None else paths:
        path = image.path if isinstance(image, ChannelFiles) else image
        label_of = partial(labels.of_image, image) if pair is None else partial(labels.of_pair, path, pair)
        table.keys |= dict.fromkeys(files_of(image), _key_of(path.relative_to(root).as_posix()))
        for item in frames_of(image, root, config, label_of, table.rows_of):
            items.append(_with_seg(item, labels.seg_of(path, item), root, path, config))
    items, lists = with_own_split(items, root, config)
    also_used = labels.used | table.files | set(lists)
    left = [*table.unmatched(items), *leftovers(root, items, also_used, labels.looked_for(items))]
    if folders_are_classes:
        left += odd_folders([item for item in items if table.key(item) not in table.asked.values()], items, config)
    _refuse_doubtful_splits(items, config)
    items, bare = apart_from_bare(items)
    left += bare
    fill = all(item.split for item in items if item.cell_type != MIXED)
    yield from finished(items, config, mixed_is_test=True, fill_split=fill, left=left)


def is_image_of_pair(name: str, pair: tuple[str, str]) -> bool:
    """Tell whether a file is a picture of ``convert.pair``, where one text may be part of the other.

    Examples
    --------
    >>> [is_image_of_pair(name, ("_img", "_img_mask")) for name in ("0_img.png", "0_img_mask.png", "0.png")]
    [True, False, False]
    """
    image, label = pair
    return image in (name.replace(label, "") if image in label else name)


def _refuse_doubtful_splits(items: Sequence[SourceImage], config) -> None:
    """Refuse folders called after a class that is also the name of a split, where other folders are splits."""
    doubtful = sorted(
        {
            part
            for item in items
            for part in item.source.split("/")[:-1]
            if split_of_folder(part) and named_class(part, config)
        }
    )
    if doubtful and any(item.split for item in items):
        raise UserError(
            f"the folder {doubtful[0]} is called after a class and after a split, and other folders are splits",
            f"rename it, e.g. to {doubtful[0]}_cells with convert.class_names: {{{doubtful[0]}_cells: {doubtful[0]}}}",
        )


def _with_seg(item: SourceImage, seg: Path | None, root: Path, path: Path, config) -> SourceImage:
    if seg is None:
        return item
    loader = partial(_load_seg, item.loader, root, path, seg, item.cell_type, config)
    return replace(item, loader=loader, files=(*item.files, seg), bare=False)


def read_two_lines(root: Path, config) -> Iterator[SourceImage]:
    """One folder per cell line, each with ``images/`` and ``labels/`` of the same names: one line per image.

    The layout of Coelho, Shariff and Murphy (ISBI 2009) as ``u2os/`` and ``nih3t3/``. With ``config.mixed_images`` = n,
    n mixed test images follow, each the left half of a test image of one line beside the right half of a test image of
    the other; the lines take turns on the left. See `compose_halves`.
    """
    root = Path(root)
    items: list[SourceImage] = []
    labels = LabelFiles(root)
    for folder in sorted(child for child in root.iterdir() if (child / "images").is_dir()):
        line = cell_type_of([folder.name], config)
        if not line or line == MIXED:
            refuse_or_note(unknown_class(folder.name, config, f"the folder {folder.name}/"))
            continue
        for path in list_files(folder / "images", IMAGE_SUFFIXES, keep_labels=True):
            relative = path.relative_to(folder / "images")
            label, files = settled(partial(labels.required, folder / "labels", relative.parent / stem_of(path), path))
            image_id = image_id_of(f"{folder.name}/{relative.as_posix()}")
            source = path.relative_to(root).as_posix()
            split = split_of_folders(relative.parts[:-1])
            loader = partial(load_file, root, path, config, label, line)
            items.append(SourceImage(image_id, line, "", split, source, loader, stem_of(path), files=(path, *files)))
    left = list(leftovers(root, items, labels.used))
    fill = all(item.split for item in items)
    items = list(finished(items, config, fill_split=fill, left=left))
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
    if packed:
        items, used = _packed_dsb2018(root, config)
        wanted = [item for item in items if item.split != UNUSED]
    else:
        items, used = list(_kaggle_dsb2018(root, config)), set()
        wanted = items
    left = list(leftovers(root, items, used))
    wanted, bare = apart_from_bare(wanted)
    yield from finished(wanted, config, left=[*left, *bare])


# ---- truth ---------------------------------------------------------------------------------------------------------
class LabelFiles:
    """The label images below a folder, found by name whatever its spelling; `used` are those that were found."""

    def __init__(self, root: Path):
        self.root = root
        self.used: set[Path] = set()
        self.folders: dict[Path, tuple[str, ...]] = {}  # of label images, by other names, see `label_folders`
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        suffixes = (*LABEL_SUFFIXES, *LOSSY_SUFFIXES, "_seg.npy")
        for path in list_files(root, suffixes, keep_labels=True):
            relative = path.relative_to(root)
            self.by_name[plain((relative.parent / stem_of(path)).as_posix())].append(path)

    def of_image(self, image: Path | ChannelFiles, suffix: str, number: int, count: int) -> Label | None:
        """Return the label image of a frame of a file, called after it or after its file; see `read_folder`.

        That of an image with a file per channel may be called after what they share, or after one of them.
        """
        path, *parts = (image,) if isinstance(image, Path) else (image.path, *(part for _, part in image.files))
        relative = path.relative_to(self.root)
        stems = list(dict.fromkeys(name for one in (path, *parts) for name in (stem_of(one), one.name)))
        found = self._called(relative.parent, [stem + suffix for stem in stems], path)
        if found:
            return Label(found)
        found = self._called(relative.parent, stems, path) if suffix else None
        found = found or self._inside(path)
        return Label(found, (number, count) if suffix else None) if found else None

    def _called(self, folder: Path, stems: Sequence[str], path: Path) -> Path | None:
        found = self._only_one(names_of_labels(folder, stems), path)
        return found or self._only_one(names_in_label_folders(folder, stems, self.folders), path)

    def _inside(self, path: Path) -> Path | None:
        """Return the labels that lie in an OME-Zarr, listed there or not; refuse several."""
        folder = path / "labels"
        if path.suffix.lower() != ".zarr" or not folder.is_dir():
            return None
        found = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        if len(found) > 1:
            names = ", ".join(child.name for child in found)
            raise UserError(f"{path.name} holds several label images: {names}", "keep those of the cells only")
        return found[0] if found else None

    def of_pair(self, path: Path, pair: tuple[str, str], suffix: str, number: int, count: int) -> Label | None:
        """Return the label image whose name is that of the image with the one text in place of the other."""
        stem = stem_of(path).replace(*pair, 1)
        folder = path.relative_to(self.root).parent
        found = self._only_one([folder / (stem + suffix)], path) or self._called(folder, [stem + suffix], path)
        if found or not suffix:
            return Label(found) if found else None
        found = self._only_one([folder / stem], path) or self._called(folder, [stem], path)
        return Label(found, (number, count)) if found else None

    def required(self, folder: Path, stem: Path, image: Path) -> Path:
        """Return the label image ``folder/stem.*``; refuse an image without."""
        found = self._only_one([(folder / stem).relative_to(self.root)], image)
        if found is None:
            raise UserError(
                f"{image.name} has no label image {stem}.tif or .png in {folder}", "add it, or remove the image"
            )
        return found

    def seg_of(self, path: Path, item: SourceImage) -> Path | None:
        """Return the ``_seg.npy`` beside a file, or that of one of its frames."""
        relative = path.relative_to(self.root)
        frame = item.image_id.removeprefix(item.unit) if item.unit else ""
        for suffix in dict.fromkeys((frame, "")):
            for seg in self.by_name.get(plain((relative.parent / f"{stem_of(path)}{suffix}_seg").as_posix()), ()):
                if seg.suffix.lower() == ".npy":
                    self.used.add(seg)
                    return seg
        return None

    def looked_for(self, items: Sequence[SourceImage]) -> str:
        """Say how a label image of the first image without one would be called."""
        bare = next((item for item in items if len(item.files) == 1), None)
        if bare is None:
            return ""
        path = bare.files[0].relative_to(self.root)
        below = next((name for name in ("truth", "labels", "masks") if (self.root / name).is_dir()), "labels")
        beside = (path.parent / f"{stem_of(path)}_masks.tif").as_posix()
        told = f"for {path.as_posix()} labels are looked for as {below}/{path.parent / stem_of(path)}.tif or {beside}"
        pairs = "; images/ and masks/, or A_images/ and A_masks/, hold files of the same names, else set convert.pair"
        return told + (pairs if self.folders else "")

    def _only_one(self, names: Iterable[Path], image: Path) -> Path | None:
        paths = [path for name in names for path in self.by_name.get(plain(name.as_posix()), ())]
        found = [path for path in dict.fromkeys(paths) if path != image and path.suffix.lower() != ".npy"]
        self.used.update(found)
        if len(found) > 1:
            raise UserError(f"{image.name} has several label images: {found[0]} and {found[1]}", "keep one of them")
        return found[0] if found else None


def names_of_labels(folder: Path, stems: Iterable[str]) -> list[Path]:
    """Return the names, without suffix, under which the labels of an image in `folder` are looked for; see `read_folder`."""
    names = []
    for stem in stems:
        names += [folder / (stem + ending) for ending in LABEL_ENDINGS]
        for name in LABEL_FOLDERS:
            parts = [name if plain(part) in IMAGE_FOLDERS else part for part in folder.parts]
            places = {Path(*parts) if name in parts else Path(name, folder), folder / name}
            plainer = [part for part in folder.parts if plain(part) not in IMAGE_FOLDERS]
            places.add(Path(name, *plainer))
            names += [place / (stem + ending) for place in sorted(places) for ending in ("", *LABEL_ENDINGS)]
    return names


def _load_seg(load: Callable[[], Loaded], root: Path, path: Path, seg: Path, cell_type: str, config) -> Loaded:
    """Load an image and the cells of its ``_seg.npy``; refuse masks beside it that say otherwise."""
    from cellkit.exchange import read_seg

    made = load()
    check_inside(seg, root)
    if only_headers():  # which cells of which classes only the whole file tells
        return perhaps(made, range(len(config.classes) + 1))
    found = read_seg(seg, config.classes)
    if found.made_by == "proposed":
        raise proposals_are_no_truth(seg.name)
    check_same_way(made, path, seg)
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
    for path in list_files(root, ("_seg.npy",), keep_labels=True):
        with suppress(UserError):
            check_inside(path, root)
            names |= set(read_seg(path).classes)
    return names


class ClassTable:
    """The table of classes of a data set: ``truth/classes.csv`` with file, label and class of each cell.

    The file is the path of the image below the data folder, with or without suffix; that of its label image; or the bare
    name, where one image only is called so.
    """

    def __init__(self, root: Path, config):
        self.root, self.config = root, config
        self.rows: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        self.files: set[Path] = set()
        self.asked: dict[str, str] = {}
        self.keys: dict[Path, str] = {}  # of the files of images: what the table would call them
        folders = [root, *(child for child in sorted(root.iterdir()) if plain(child.name) in LABEL_FOLDERS)]
        found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())
                 if plain(path.name) in ("classes.csv", "classes.tsv")]  # fmt: skip
        if len(found) > 1:
            told = f"there are two tables of classes, {found[0]} and {found[1]}"
            refuse_or_note(UserError(told, "keep one of them"))
        self.first: dict[str, tuple[str, int]] = {}
        for path in found:
            self.path = path
            self.files.add(path)
            for line, row in enumerate(_rows_of(path, root), 2):
                try:
                    self._add(row, line)
                except UserError as error:
                    refuse_or_note(error)
        stems = Counter(key.rpartition("/")[2] for key in self._images())
        self.unique = {stem for stem, count in stems.items() if count == 1}

    def _images(self) -> list[str]:
        paths = list_files(self.root, IMAGE_SUFFIXES) if self.rows else []
        return [_key_of(path.relative_to(self.root).as_posix()) for path in paths]

    def _add(self, row: dict[str, str], line: int) -> None:
        where = f"{self.path} line {line}"
        try:
            number = float(row["label"])
            if number != int(number) or number < 1:
                raise ValueError(f"label is {row['label']}")
            known = class_id_of(row["class"].strip(), self.config)
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{where}: {error}", "the columns are file, label (a number from 1, as in the label image), class"
            ) from error
        except UserError as error:
            problem, _, remedy = str(error).partition("\n")
            raise UserError(f"{where}: {problem}", remedy) from None
        key = _key_of(row["file"])
        if not key:
            raise UserError(f"{where} names no file", "write the path of the image below the data folder")
        other = self.rows[key].setdefault(int(number), (known, line))
        if other[0] != known:
            raise UserError(
                f"{where}: label {int(number)} of {row['file']} has another class in line {other[1]}",
                "keep one row for each cell",
            )
        self.first.setdefault(key, (row["file"], line))

    def rows_of(self, relative: Path, suffix: str) -> dict[int, tuple[int, int]]:
        """Return {label: (class id, line)} of a frame of a file: rows of the frame, else of the file."""
        key = _key_of(relative.as_posix())
        bare = key.rpartition("/")[2]
        frame = self._rows_called(key + plain(suffix), bare + plain(suffix), key, bare in self.unique)
        return frame or (self._rows_called(key, bare, key, bare in self.unique) if suffix else {})

    def _rows_called(self, name: str, bare: str, key: str, is_unique: bool) -> dict[int, tuple[int, int]]:
        """Return the rows of all spellings of one name together; a label that has two classes in them is refused."""
        names = [name, *(f"{plain(folder)}/{name}" for folder in LABEL_FOLDERS), *([bare] if is_unique else ())]
        names += [one + ending for one in names for ending in LABEL_ENDINGS]
        found: dict[int, tuple[int, int]] = {}
        for one in dict.fromkeys(names):
            rows = self.rows.get(one, {})
            self.asked |= {one: key} if rows else {}
            for number, (known, line) in rows.items():
                other = found.setdefault(number, (known, line))
                if other[0] != known:
                    told = f"{self.path} line {line}: label {number} of {key} has another class in line {other[1]}"
                    refuse_or_note(UserError(told, "keep one row for each cell"))
        return found

    def unmatched(self, items: Sequence[SourceImage]) -> Iterator[SourceImage]:
        """Yield an item, to be set aside, for each file of the table that is no image, or an image without labels."""
        labelled = {self.key(item) for item in items if not item.bare}
        for name in sorted(self.rows):
            file, line = self.first[name]
            if name not in self.asked:
                bare = "/" not in name and any(one.rpartition("/")[2] == name for one in self._images())
                why = "the name of several images: write their folder too" if bare else "no image below the data folder"
            elif self.asked[name] not in labelled:
                why = "an image without labels"
            else:
                continue
            source = f"{self.path.relative_to(self.root).as_posix()} line {line}"
            told = f"line {line} names '{file}', which is {why}"
            loader = partial(refuse, told, "write it as HEK/a.tif, or take the row out")
            yield SourceImage(f"{LEFT}{source}", "", "", UNUSED, source, loader)

    def key(self, item: SourceImage) -> str:
        """Return what the table would call the file of an image."""
        return self.keys.get(item.files[0], "")


def _rows_of(path: Path, root: Path) -> list[dict[str, str]]:
    try:
        return read_table(path, ("file", "label", "class"), root)
    except UserError as error:
        refuse_or_note(error)
        return []


def _key_of(file: str) -> str:
    """Return a file of the table without suffix, in the one spelling.

    Examples
    --------
    >>> _key_of(" mixed\\\\A.ome.tif"), _key_of("a.b")
    ('mixed/a', 'a.b')
    """
    name = plain(file)
    known = next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(known).removesuffix(".ome")


def odd_folders(told_by_folder: Sequence[SourceImage], items: Sequence[SourceImage], config) -> Iterator[SourceImage]:
    """Name folders that are called after no class while some class has no image; say it where that does no harm.

    `told_by_folder` are the images of `items` whose cells have their class of nothing else.
    """
    if not items:
        return
    if len(config.classes) == 1:
        _tell_odd_folders_of_one_class(told_by_folder, config)
        return
    classless = Counter(item.source.rpartition("/")[0] for item in told_by_folder if not item.cell_type)
    missing = [name for name in config.classes if not any(item.cell_type == name for item in items)]
    without = f"; no image is in a folder called after {', '.join(missing)}" if missing else ""
    for folder, count in sorted(classless.items()):
        told = f"is called after none of the classes ({', '.join(config.classes)}): its {count} image(s) are of no known class"
        if missing:
            loader = partial(refuse, told + without, "rename the folder, or name it in convert.class_names")
            yield SourceImage(f"{LEFT}{folder}/", "", "", UNUSED, f"{folder or 'the data folder'}/", loader)
        else:
            print(f"{folder or '.'}/ {told}", file=sys.stderr)
    if missing and not classless:
        only = ", ".join(missing)
        print(f"class {only} has no folder, and so no image that is known to be of it", file=sys.stderr)


def _tell_odd_folders_of_one_class(items: Sequence[SourceImage], config) -> None:
    """Say which folders are called otherwise than the only class, where one is called so: their cells count as it too."""
    count = Counter(item.source.rpartition("/")[0] for item in items)
    own = {folder for folder in count if any(named_class(part, config) for part in folder.split("/"))}
    for folder in sorted(set(count) - own) if own else ():
        told = f"{folder or '.'}/ is called after none of the classes; with one class its cells count as {config.classes[0]}"
        print(
            f"{told}: {count[folder]} image(s); add its class to classes, or take the folder out, where that is not meant",
            file=sys.stderr,
        )


# ---- DSB2018 -------------------------------------------------------------------------------------------------------
def _packed_dsb2018(root: Path, config) -> tuple[list[SourceImage], set[Path]]:
    """Return the images, those of other modalities as unused, and the label images that were found."""
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
    labels, items = LabelFiles(root), []
    for row in rows:
        path = find_picture(root / "images", row["id"]) or root / "images" / f"{row['id']}.png"
        label, files = settled(partial(labels.required, root / "labels", Path(row["id"]), path))
        loader = partial(load_file, root, path, config, label, cell_type)
        split = split_of_folder(row.get("split") or "") if not wanted or row["modality"] in wanted else UNUSED
        image_id, source = image_id_of(f"{row['id']}.png"), f"images/{path.name}"
        items.append(SourceImage(image_id, cell_type, "", split, source, loader, row["id"], files=(path, *files)))
    return items, labels.used


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
                image_id, source = image_id_of(path.name), path.relative_to(root).as_posix()
                files, bare = (path, folder / "masks"), not (folder / "masks").is_dir()
                yield SourceImage(image_id, cell_type, "", split, source, loader, stem_of(path), files=files, bare=bare)


def _load_masks(root: Path, image: Path, masks: Path, config, cell_type: str) -> Loaded:
    """Load Kaggle's form: an image and a folder with one mask per object."""
    check_inside(image, root)
    with open_file(image, most_px=config.max_plane_px) as opened:
        made = converted(opened, config)
    if not masks.is_dir():
        return made
    if only_headers():
        return perhaps(made, [class_id_of(cell_type, config) if cell_type else 0])
    shape = made.image.shape[:2]
    paths = list_files(masks, (".png",), keep_labels=True)
    for path in paths:
        check_inside(path, root)
        check_same_way(made, image, path, labels_orientation(path))
    objects = Instances.from_masks((_one_mask(path, shape) for path in paths), shape)
    black = [path for path, area in zip(paths, objects.areas_px.tolist(), strict=True) if not area]
    told = tuple(f"{path.relative_to(root).as_posix()}: no pixel of it is above 0" for path in black)
    objects = objects[objects.areas_px > 0].with_classes(class_id_of(cell_type, config) if cell_type else 0)
    return made._replace(instances=objects, left_out=(*made.left_out, *told))


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
        told = f"{config.mixed_images} mixed images are wanted, {possible} can be made of the test images"
        refuse_or_note(UserError(told, "lower convert.mixed_images or raise convert.split.test; two lines are needed"))
        return
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
