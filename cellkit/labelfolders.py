"""Folders of label images by other names than labels/ and masks/: ``train_masks/`` beside ``train_images/``, ``01_GT/SEG/``.

What lies in them is no picture; whether it is the truth of a picture, two folders of one name but for these words tell.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from cellkit.listing import named_class
from cellkit.names import LABEL_ENDINGS, LABEL_WORDS, plain, stem_of

PICTURE_WORDS = {
    "image",
    "images",
    "img",
    "imgs",
    "raw",
    "rawimage",
    "rawimages",
    "picture",
    "pictures",
    "original",
    "originals",
}
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


def label_folders(root: Path, pictures: Iterable[Path], labels: Iterable[Path], config) -> dict[Path, tuple[str, ...]]:
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
