"""Label images of pictures, found by name: beside them, in ``labels/`` and ``masks/``, in ``train_masks/`` or ``01_GT/SEG/``.

What lies in folders called so is no picture; whether it is the truth of one, two folders of one name but for these words tell.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from fastcore.basics import groupby

from cellkit.cells.names import LABEL_ENDINGS, LABEL_WORDS, plain, stem_of
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.formats.any import Reading, read_cells
from cellkit.formats.geojson import ENDINGS as GEOJSON
from cellkit.formats.geojson import picture_stem
from cellkit.formats.geojson_reading import class_names
from cellkit.formats.zarr_labels import about_labels, cells_in
from cellkit.microscope.channel_files import ChannelFiles
from cellkit.microscope.folders import IMAGE_FOLDERS, LABEL_FOLDERS, LABEL_SUFFIXES, check_inside, list_files
from cellkit.sources.listing import SourceImage, named_class
from cellkit.sources.loading import Label

WHOLE_CELLS = ("_seg.npy", *GEOJSON)  # cells with class, where a label image has numbers
LOSSY_SUFFIXES = (".jpg", ".jpeg")  # found, so that `read_labels` refuses them; an image without truth says nothing


class LabelFiles:
    """The label images below a folder, found by name whatever its spelling; `used` are those that were found."""

    def __init__(self, root: Path):
        self.root = root
        self.used: set[Path] = set()
        self.folders: dict[Path, tuple[str, ...]] = {}  # of label images, by other names, see `label_folders`
        files = list_files(root, (*LABEL_SUFFIXES, *LOSSY_SUFFIXES, *WHOLE_CELLS), keep_labels=True)
        self.by_name = groupby(files, lambda path: plain((path.relative_to(root).parent / _stem(path)).as_posix()))

    def find_folders(self, pictures: Iterable[Path], config: ConvertConfig) -> None:
        """Note which folders, of pictures or of what may be label images, are those of label images, see `label_folders`."""
        files = (path for found in self.by_name.values() for path in found)
        self.folders = label_folders(self.root, pictures, files, config)

    def of_image(self, image: Path | ChannelFiles, suffix: str, number: int, count: int) -> Label | None:
        """Return the label image of a frame of a file, called after it or after its file; see `folder.read`.

        That of an image with a file per channel may be called after what they share, or after one of them.
        """
        path, *parts = (image,) if isinstance(image, Path) else (image.path, *(part for _, part in image.files))
        relative = path.relative_to(self.root)
        stems = list(dict.fromkeys(name for one in (path, *parts) for name in (stem_of(one), one.name)))
        found = self._called(relative.parent, [stem + suffix for stem in stems], path)
        of_file = self._called(relative.parent, stems, path) if suffix else None
        if found:
            return Label(_only(found, of_file, path, suffix))
        found = of_file or self._inside(path)
        return Label(found, (number, count) if suffix else None) if found else None

    def _called(self, folder: Path, stems: Sequence[str], path: Path) -> Path | None:
        found = self._only_one(names_of_labels(folder, stems), path)
        return found or self._only_one(names_in_label_folders(folder, stems, self.folders), path)

    def _inside(self, path: Path) -> Path | None:
        """Return the labels that lie in an OME-Zarr, listed there or not; refuse several that others wrote."""
        return cells_in(path)

    def of_pair(self, path: Path, pair: tuple[str, str], suffix: str, number: int, count: int) -> Label | None:
        """Return the label image whose name is that of the image with the one text in place of the other."""
        stem = stem_of(path).replace(*pair, 1)
        folder = path.relative_to(self.root).parent
        found = self._only_one([folder / (stem + suffix)], path) or self._called(folder, [stem + suffix], path)
        if not suffix:
            return Label(found) if found else None
        of_file = self._only_one([folder / stem], path) or self._called(folder, [stem], path)
        if found:
            return Label(_only(found, of_file, path, suffix))
        return Label(of_file, (number, count)) if of_file else None

    def required(self, folder: Path, stem: Path, image: Path) -> Path:
        """Return the label image ``folder/stem.*``; refuse an image without.

        Raises
        ------
        UserError
            There is none, or more than one.
        """
        found = self._only_one([(folder / stem).relative_to(self.root)], image)
        if found is None:
            raise UserError(
                f"{image.name} has no label image {stem}.tif or .png in {folder}", "add it, or remove the image"
            )
        return found

    def cells_of(self, path: Path, frame: str) -> Path | None:
        """Return the ``_seg.npy`` of a file, or of its frame with that suffix, where labels may lie; else its GeoJSON there.

        Raises
        ------
        UserError
            There are several.
        """
        relative = path.relative_to(self.root)
        for suffix in dict.fromkeys((frame, "")):
            stem = f"{stem_of(path)}{suffix}"
            names = [relative.parent / stem, *names_of_labels(relative.parent, [stem])]
            names += names_in_label_folders(relative.parent, [stem], self.folders)
            there = [one for name in dict.fromkeys(names) for one in self.by_name.get(plain(name.as_posix()), ())]
            found = [one for one in dict.fromkeys(there) if one.name.lower().endswith("_seg.npy")] or [
                one for one in dict.fromkeys(there) if one.name.lower().endswith(GEOJSON)
            ]
            self.used.update(found)
            if len(found) > 1:
                raise UserError(
                    f"{path.name} has several files of cells: {found[0]} and {found[1]}", "keep one of them"
                )
            if found:
                return found[0]
        return None

    def looked_for(self, items: Sequence[SourceImage]) -> str:
        """Say how a label image of the first image without one would be called."""
        bare = next((item for item in items if len(item.files) == 1), None)
        if bare is None:
            return ""
        path = bare.files[0].relative_to(self.root)
        below = next((name for name in ("truth", "labels", "masks") if (self.root / name).is_dir()), "labels")
        beside = (path.parent / f"{stem_of(path)}_masks.tif").as_posix()
        places = f"for {path.as_posix()} labels are looked for as {below}/{path.parent / stem_of(path)}.tif or {beside}"
        pairs = "; images/ and masks/, or A_images/ and A_masks/, hold files of the same names, else set convert.pair"
        return places + (pairs if self.folders else "")

    def _only_one(self, names: Iterable[Path], image: Path) -> Path | None:
        paths = [path for name in names for path in self.by_name.get(plain(name.as_posix()), ())]
        found = [path for path in dict.fromkeys(paths) if path != image and not path.name.lower().endswith(WHOLE_CELLS)]
        self.used.update(found)
        if len(found) > 1:
            raise UserError(f"{image.name} has several label images: {found[0]} and {found[1]}", "keep one of them")
        return found[0] if found else None


def _only(found: Path, of_file: Path | None, image: Path, suffix: str) -> Path:
    """Return the label image of a frame; refuse another one that has labels of all frames."""
    if of_file is None or of_file == found:
        return found
    raise UserError(
        f"frame {suffix} of {image.name} has several label images: {found} and {of_file}", "keep one of them"
    )


def _stem(path: Path) -> str:
    """Return the name under which a file is found: without suffix, a GeoJSON without that of its picture either."""
    return picture_stem(path.name) if path.name.lower().endswith(GEOJSON) else stem_of(path)


def classes_drawn(root: Path) -> set[str]:
    """Return the classes that files of cells below a folder name (``_seg.npy``, GeoJSON, OME-Zarr); damaged ones name none."""
    names: set[str] = set()
    for path in list_files(root, WHOLE_CELLS, keep_labels=True):
        with suppress(UserError):
            check_inside(path, root)
            is_geojson = path.name.lower().endswith(GEOJSON)
            names |= class_names(path) if is_geojson else set(read_cells(path, Reading(), None).classes)
    for path in list_files(root, (".zarr",)):
        with suppress(UserError):
            own = cells_in(path)
            names |= set(about_labels(own).classes) if own is not None else set()
    return names


def names_of_labels(folder: Path, stems: Iterable[str]) -> list[Path]:
    """Return the names, without suffix, under which the labels of an image in `folder` are looked for."""
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


PICTURE_WORDS = {"image", "images", "img", "imgs", "raw", "rawimage", "rawimages", "picture", "pictures", "original",
                 "originals"}  # fmt: skip


FURTHER_WORDS = {"manual", "instance", "instances", "png", "tif", "tiff"}  # say nothing of which pictures


def words_of(name: str) -> list[str]:
    """Return the words and numbers of a folder's name.

    Examples
    --------
    >>> words_of("imagesTr"), words_of("01_GT"), words_of("Ground truth_png")
    (['images', 'tr'], ['01', 'gt'], ['groundtruth', 'png'])
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W_]+", re.sub(r"ground[\W_]*truth", "groundtruth", plain(parted)))


def is_called_labels(name: str) -> bool:
    """Tell whether a word of a folder's name says label images.

    Examples
    --------
    >>> [is_called_labels(name) for name in ("labelsTr", "train_masks", "Label_images", "labelled", "HEK")]
    [True, True, True, False, False]
    """
    return not LABEL_WORDS.isdisjoint(words_of(name))


def is_called_pictures(name: str) -> bool:
    """Tell whether a word of a folder's name says pictures, and none says label images."""
    return not PICTURE_WORDS.isdisjoint(words_of(name)) and not is_called_labels(name)


def key_of_folder(parts: Sequence[str]) -> tuple[str, ...]:
    """Return what a folder of pictures and that of their label images have in common.

    Examples
    --------
    >>> key_of_folder(["train_images", "a"]) == key_of_folder(["train_masks", "a"]) == ("train", "a")
    True
    >>> key_of_folder(["01_GT", "SEG"]), key_of_folder(["raw"]), key_of_folder(["binary masks"])
    (('01',), (), ('binary',))
    """
    without = LABEL_WORDS | PICTURE_WORDS | FURTHER_WORDS
    left = (" ".join(word for word in words_of(part) if word not in without) for part in parts)
    return tuple(key for key in left if key)


def label_folders(
    root: Path, pictures: Iterable[Path], labels: Iterable[Path], config: ConvertConfig
) -> dict[Path, tuple[str, ...]]:
    """Return the folders of label images, below `root`, each with its key.

    A folder is none if its name or a part of it is a class, if it holds pictures with labels of their own, or if no picture
    were left without it: then its name says something else.

    Parameters
    ----------
    root : Path
    pictures, labels : iterable of Path
        Files that may be pictures, without those called as labels are; files that may be label images.
    config : ConvertConfig
    """
    stems: dict[Path, set[str]] = defaultdict(set)
    for path in labels:
        stems[path.relative_to(root).parent].add(plain(stem_of(path)))
    of_pictures = {path.relative_to(root).parent for path in pictures}
    holds_both = {part for folder in {*stems, *of_pictures} for part in _with_truth_of_their_own(folder, stems)}
    found = {}
    for folder in sorted({*stems, *of_pictures}):
        above = [Path(*folder.parts[: k + 1]) for k in range(len(folder.parts))]
        called = [one for one in above if is_called_labels(one.name) and not named_class(one.name, config)]
        if any(one not in holds_both for one in called):
            found[folder] = key_of_folder(folder.parts)
    return found if of_pictures - set(found) else {}


def _with_truth_of_their_own(folder: Path, stems: dict[Path, set[str]]) -> list[Path]:
    """Return the folder and those above it that hold pictures with their labels: beside them, or in folders below."""
    if not any(map(is_called_labels, folder.parts)):
        return []
    called = stems.get(folder, set())
    both = [folder] if any(stem + ending in called for stem in called for ending in LABEL_ENDINGS) else []
    for k in range(1, len(folder.parts)):
        if any(is_called_pictures(part) for part in folder.parts[k:]):
            below = [other.parts[k:] for other in stems if other.parts[:k] == folder.parts[:k]]
            both += (
                [Path(*folder.parts[:k])] if any(is_called_labels(part) for parts in below for part in parts) else []
            )
    return both


def names_in_label_folders(folder: Path, stems: Iterable[str], folders: dict[Path, tuple[str, ...]]) -> list[Path]:
    """Return the names, without suffix, that the labels of an image in `folder` have in those of `label_folders`.

    Called as the image or as labels beside it would be; as nnU-Net does without ``_0000``; or ``man_seg000`` for ``t000``.
    """
    key = key_of_folder(folder.parts)
    places = [place for place, other in folders.items() if other == key and place != folder]
    names = []
    for stem in stems:
        called = [stem + ending for ending in ("", *LABEL_ENDINGS)]
        called += [stem.removesuffix("_0000")] if stem.endswith("_0000") else []
        called += [f"man_seg{stem[1:]}"] if re.fullmatch(r"t\d+", stem) else []
        names += [place / name for place in places for name in called]
    return names
