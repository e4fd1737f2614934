"""What names say: which two are one, what is no data, which split, which series of frames, which channel of an image."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# what file managers, shared drives and archives leave behind; names with a leading dot are hidden anyway
NO_DATA = {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "__pycache__", "$recycle.bin", "lost+found",
           "system volume information"}  # fmt: skip
SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development", "tuning", "tune"),
    # what is evaluated on is neither trained on nor chosen by, whichever of the two a source means
    "test": ("test", "testing", "tst", "holdout", "heldout", "eval", "evaluation", "unseen", "blind"),
}
SPLIT_NAMES = {word: split for split, words in SPLIT_WORDS.items() for word in words}
LABEL_WORDS = {"label", "labels", "mask", "masks", "truth", "gt", "groundtruth", "seg", "segs", "segmentation", "segmentations",
               "annotation", "annotations"}  # fmt: skip
FILLERS = {
    "set",
    "sets",
    "images",
    "image",
    "imgs",
    "img",
    "data",
    "dataset",
    "split",
    "part",
    "stage",
    "coco",
    "subset",
    "final",
    "public",
    "private",
}
END, BEGIN = r"(?=$|[ _.\-])", r"(?:^|[ _.\-]+)"
FRAME = re.compile(rf"{BEGIN}(?:t|tp|time|timepoint|frame|z|slice|plane)[ _\-=]?\d+{END}", re.IGNORECASE)
SITE = re.compile(rf"{BEGIN}(?:s|site|f|fld|field|fov|p|pos|position|xy)[ _\-=]?\d+{END}", re.IGNORECASE)
WELL = re.compile(rf"{BEGIN}[A-P](?:0?[1-9]|1\d|2[0-4]){END}")
HARMONY = re.compile(r"(?P<well>r\d+c\d+)f\d+(?:p\d+)?-(?P<channel>ch\d+)\w*", re.IGNORECASE)
STAINS = (r"dapi|hoechst\d*|[ey]?gfp|egfp|yfp|cfp|rfp|m?cherry|fitc|tritc|cy\d(?:\.5)?|texas[ ]?red|alexa[ ]?\d+|af\d{3}|"
          r"phalloidin|actin|tubulin|bf|brightfield|dic|phase")  # fmt: skip
CHANNEL = re.compile(
    rf"(?:^(?P<first>C\d+)(?=-)|{BEGIN}(?P<channel>C=?\d+(?:-[^_. ]+)?|w\d+[^_. ]*|ch(?:annel)?[ _\-=]?\d+|{STAINS}){END})",
    re.IGNORECASE,
)


def is_no_data(name: str) -> bool:
    """Tell whether a file or folder is hidden, or is what an operating system leaves behind.

    Examples
    --------
    >>> [is_no_data(name) for name in ("._a.tif", ".ipynb_checkpoints", "Thumbs.db", "@eaDir", "a.tif")]
    [True, True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in NO_DATA


def plain(name: str) -> str:
    r"""Return what two spellings of one name or path have in common.

    Unicode composed (a Mac stores an umlaut as two signs), ``\`` as ``/``, no spaces at the ends of its parts, lower case.

    Examples
    --------
    >>> plain("Mu\u0308ller \\a.TIF") == plain("./M\xfcller/A.tif")
    True
    """
    parts = unicodedata.normalize("NFC", str(name)).replace("\\", "/").split("/")
    return "/".join(part.strip() for part in parts if part.strip() not in ("", ".")).casefold()


# ---- splits --------------------------------------------------------------------------------------------------------
def split_of_folder(name: str) -> str:
    """Return the split that a folder is called after, "" where it is called otherwise.

    Examples
    --------
    >>> [split_of_folder(name) for name in ("Valid", "train2017", "Test set", "hold_out", "test plate", "train_val")]
    ['val', 'train', 'test', 'test', '', '']
    """
    words = _words(name)
    return _only_split(words) if all(word in SPLIT_NAMES or word in FILLERS for word in words) else ""


def split_of_folders(parts: Iterable[str]) -> str:
    """Return the split of the innermost folder that is called after one, else ""."""
    return next((split for part in reversed(list(parts)) if (split := split_of_folder(part))), "")


def split_of_file(stem: str) -> str:
    """Return the split that a word of a file's name tells, "" where none does or several do.

    Examples
    --------
    >>> [split_of_file(name) for name in ("livecell_coco_train", "instances_Valid2017", "cells", "train_and_val")]
    ['train', 'val', '', '']
    """
    return _only_split(_words(stem))


def _words(name: str) -> list[str]:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    name = re.sub(r"(hold|held)[\W_]*out", "holdout", name.lower())
    words = re.findall(r"[^\W\d_]+", name)
    return [short if (short := word.removesuffix("set")) in SPLIT_NAMES else word for word in words]


def _only_split(words: Iterable[str]) -> str:
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else ""


# ---- files that belong together ------------------------------------------------------------------------------------
def series_of(stem: str) -> str | None:
    """Return what the names of the frames of one series share: times, z planes, and positions of one well.

    None where a name tells no time, plane or position. That files belong together is known only when several share it.

    Examples
    --------
    >>> series_of("movie_t001"), series_of("cells_z03_c1"), series_of("A01_s2"), series_of("cells_s2")
    ('movie', 'cells_c1', 'A01', None)
    """
    harmony = HARMONY.fullmatch(stem)
    if harmony:
        return harmony["well"]
    shared = FRAME.sub("", stem)
    well = WELL.search(shared)
    if well:  # a position is told after its well: what stands before may be a plate
        shared = shared[: well.end()] + SITE.sub("", shared[well.end() :])
    return shared.strip(" _.-") if shared != stem else None


def channel_of(stem: str, rule: re.Pattern | None = None) -> tuple[str, str] | None:
    """Return (what the files of one image share, channel) of a name that tells a channel, else None.

    Parameters
    ----------
    stem : str
        A file's name without suffix.
    rule : pattern, optional
        With a group called "channel", which is the channel's name; what the whole expression fits is left out of the
        image's name. Without it, names that microscopes and Fiji give: ``_C1-DAPI``, ``_w1``, ``_ch00``, ``-C=0``,
        ``C1-``, and a stain as the last word.

    Examples
    --------
    >>> channel_of("a_C1-DAPI"), channel_of("C2-a"), channel_of("a-C=0"), channel_of("a_b")
    (('a', 'C1-DAPI'), ('a', 'C2'), ('a', 'C=0'), None)
    >>> channel_of("a_1_DAPI", re.compile(r"_[0-9]+_(?P<channel>[A-Za-z]+)"))
    ('a', 'DAPI')
    """
    found = (rule or CHANNEL).search(stem)
    if found is None and rule is None:
        found = HARMONY.fullmatch(stem)
        return (stem[: found.start("channel") - 1], found["channel"]) if found else None
    if found is None:
        return None
    channel = found["channel"] or (found["first"] if rule is None else "")
    rest = (stem[: found.start()] + stem[found.end() :]).strip(" _.-")
    return (rest, channel) if channel else None
