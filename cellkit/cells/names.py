"""The names of images: which two are one, what they tell (split, series, channel), and the ids that they become.

A tool keeps the name of the picture (``HEK/cell 1.ome.tif``, ``HEK_cell_1_masks.png``), cellkit writes the id that such a
name becomes (`image_id_of`), and macOS writes an umlaut as two characters. All of them are the same name, and a stricter
agreement goes before a looser one.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import PurePath, PurePosixPath

from cellkit.errors import UserError, raise_or_collect

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


FILLERS = {"set", "sets", "images", "image", "imgs", "img", "data", "dataset", "split", "part", "stage", "coco", "subset",
           "final", "public", "private"}  # fmt: skip


END, BEGIN = r"(?=$|[ _.\-])", r"(?:^|[ _.\-]+)"


PLACE = r"x[=_\-]*\d+(?:-\d+)?[ _,\-]*y[=_\-]*\d+(?:-\d+)?|y[=_\-]*\d+(?:-\d+)?[ _,\-]*x[=_\-]*\d+(?:-\d+)?"


CLOCK = r"(?:\d+y\d+m\d+d_|\d+d)\d+h\d+m(?:\d+s)?"  # IncuCyte: 00d04h00m, 2024y03m01d_12h30m


FRAME = re.compile(
    rf"{BEGIN}(?:(?:t|tp|time|timepoint|frame|z|slice|plane)[ _\-=]?\d+|{PLACE}|{CLOCK}){END}"
    rf"|(?<=[^\W_])(?:frame|timepoint)\d+{END}|(?<=\d)(?!(?<=3)t3)(?:time|slice|plane|[tz](?=\d\d\d))\d+{END}"
    r"| ?\[[^\[\]]*\bx=\d+,y=\d+[^\[\]]*\]",  # QuPath: slide [x=0,y=512,w=512,h=512]
    re.IGNORECASE,
)


TILE = re.compile(rf"{BEGIN}(?:tile|patch|crop)[ _\-=]?\d+(?:[ _\-]\d+)?{END}", re.IGNORECASE)


SITES = r"(?:s|site|f|fld|field|fov|p|pos|position|xy)[ _\-=]?\d+"


SITE = re.compile(rf"{BEGIN}{SITES}{END}", re.IGNORECASE)


# in lower case a position must follow for it to be a well; B16-F10 is a cell line
WELL = re.compile(
    rf"(?<![Bb]16){BEGIN}(?![Bb]16[ _.\-]?[Ff]10?{END})(?:[A-P](?:0?[1-9]|1\d|2[0-4]){END}"
    rf"|[a-p](?:0[1-9]|1\d|2[0-4])(?=[ _.\-]+(?i:{SITES}){END})"
    rf"|(?i:well|slide|dish|coverslip|donor|patient|mouse)[ _\-]?\d+{END})"
)


GLUED = re.compile(  # Nikon's xy01t001c1, Zeiss' s1t02z3, Cellomics' A01f00d0
    rf"{BEGIN}(?:[A-P]\d\d(?=[fs]\d)|(?i:xy|tp|[fmpstz])\d+)(?:(?i:xy|tp|[cdfmpstwz])\d+)+{END}"
)


GUID = re.compile(r"[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12}", re.IGNORECASE)  # MetaXpress, after w1


VOYAGER = re.compile(r"(?P<well>.+)_(?P<field>T\d{4}F\d{3}L\d+)A\d+(?P<plane>Z\d+)(?P<channel>C\d+)", re.IGNORECASE)


INCUCYTE = re.compile(rf"(?P<well>(?:.*[ _\-])?[A-P]\d{{1,2}})_\d+_{CLOCK}(?:_\d+)?", re.IGNORECASE)


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


def split_of_folder(name: str) -> str:
    """Return the split that a folder is called after, "" where it is called otherwise.

    Examples
    --------
    >>> [split_of_folder(name) for name in ("Valid", "train2017", "Test set", "hold_out", "test plate", "imagesTs")]
    ['val', 'train', 'test', 'test', '', 'test']
    """
    nnunet = re.fullmatch(r"(?:images|labels)[ _]?(tr|ts)", name.strip(), re.IGNORECASE)
    if nnunet:
        return {"tr": "train", "ts": "test"}[nnunet[1].lower()]
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


def series_of(stem: str) -> str | None:
    """Return what the names of one series share: times, z planes, tiles of one slide, and positions of one well.

    None where a name tells none of these. That files belong together is known only when several share it. A bare number at
    the end may count anything, so it tells nothing; nor does a tile of nothing that has a name.

    Examples
    --------
    >>> series_of("movie_t001"), series_of("cells_z03_c1"), series_of("A01_s2"), series_of("cells_s2")
    ('movie', 'cells_c1', 'A01', None)
    >>> series_of("BV2_Phase_A4_2_03d00h00m_1"), series_of("P1_A01_T0001F001L01A01Z01C01"), series_of("stack_a01_s1")
    ('BV2_Phase_A4', 'P1_A01', 'stack_a01')
    >>> series_of("exp_xy01t001c1"), series_of("donor1frame003"), series_of("slide1_tile_01"), series_of("img1_x0_y512")
    ('exp_xy01_c1', 'donor1', 'slide1', 'img1')
    >>> [series_of(name) for name in ("cell_12", "A01_3", "nih3t3_01", "C2C12_s1", "B16-F10_s1", "img_tile_01", "exp_a01_2")]
    [None, None, None, None, None, None, None]
    """
    for vendor in (HARMONY, VOYAGER, INCUCYTE):
        if found := vendor.fullmatch(stem):
            return found["well"]
    stem = GUID.sub("", stem)
    stem = GLUED.sub(lambda word: re.sub(r"(?<=\d)(?=[A-Za-z])", "_", word[0]), stem)
    shared = FRAME.sub("", stem)
    whole = TILE.sub("", shared)
    if any(word not in FILLERS and word not in SPLIT_NAMES for word in re.findall(r"[^\W_]+", whole.lower())):
        shared = whole
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
    if rule is None and (found := VOYAGER.fullmatch(stem)):  # its action, A01, goes with the channel
        return f"{found['well']}_{found['field']}{found['plane']}", found["channel"]
    found = (rule or CHANNEL).search(stem)
    if found is None and rule is None:
        found = HARMONY.fullmatch(stem)
        return (stem[: found.start("channel") - 1], found["channel"]) if found else None
    if found is None:
        return None
    channel = found["channel"] or (found["first"] if rule is None else "")
    rest = (stem[: found.start()] + stem[found.end() :]).strip(" _.-")
    return (rest, channel) if channel else None


RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def image_id_of(relative: str | PurePosixPath, suffix: str = "") -> str:
    """Return the id of the image at a path relative to its data folder: parts joined by "_", suffix dropped.

    Letters (of any script), digits, "_", "-" and "." stay; spaces become "_". Where anything else had to give way
    (other signs, a leading "-" or ".", a name Windows reserves, more than 120 bytes), six hexadecimal digits of the
    path's sha256 are added, so that two such names stay two.

    Examples
    --------
    >>> image_id_of("a/1.tif"), image_id_of("b/cell 1.ome.tif", "_t0")
    ('a_1', 'b_cell_1_t0')
    >>> image_id_of("-{x}.png")
    'x-46d2a1'
    """
    import hashlib

    path = unicodedata.normalize("NFC", str(relative).replace(os.sep, "/"))
    stem = re.sub(r"(\.ome)?\.[^./]*$", "", path, flags=re.IGNORECASE) if "." in path.rsplit("/", 1)[-1][1:] else path
    plain = stem.replace("/", "_").replace(" ", "_")
    safe = re.sub(r"[^\w.\-]+", "-", plain).strip("-.")
    if safe == plain and len(safe.encode()) <= 120 and not RESERVED.fullmatch(safe) and safe:
        return safe + suffix
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    short = safe.encode()[:110].decode("utf-8", "ignore").strip("-.")
    return f"{short or 'image'}-{digest}{suffix}"


def check_ids(named: Iterable[tuple[str, str]]) -> None:
    """Refuse two files that would become the same image, or two that differ in upper and lower case only.

    Parameters
    ----------
    named : iterable of (image_id, source)

    Raises
    ------
    UserError
        Naming both files.
    """
    seen: dict[str, tuple[str, str]] = {}
    for image_id, source in named:
        key = unicodedata.normalize("NFC", image_id).casefold()
        if key in seen:
            same = "would both be" if seen[key][0] == image_id else "differ in upper and lower case only:"
            raise_or_collect(UserError(f"{seen[key][1]} and {source} {same} image '{image_id}'", "rename one of them"))
        seen[key] = (image_id, source)


def repeated(values: Iterable[Hashable]) -> list:
    """Return the values that are there more than once, in their order.

    Examples
    --------
    >>> repeated(["b", "a", "b", "c", "a"])
    ['b', 'a']
    """
    return [value for value, count in Counter(values).items() if count > 1]


HASHED = re.compile(r"-[0-9a-f]{6}$")


Keys = frozenset[str]


def stem_of(name: str | PurePath) -> str:
    """Return a file name without folder and suffix; ``.ome.tif`` is one suffix. In a text, a backslash parts folders too.

    Examples
    --------
    >>> stem_of("labels/a.b.ome.tif"), stem_of(".a.png"), stem_of("a")
    ('a.b', '.a', 'a')
    """
    name = name.name if isinstance(name, PurePath) else name.replace("\\", "/").rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def plain_stem(path: str) -> str:
    """Return the name an image and its label image share: without folder, suffix and ``_masks`` and the like.

    Examples
    --------
    >>> plain_stem("labels/a_cp_masks.tif"), plain_stem("a.ome.tif"), plain_stem("a.b.png")
    ('a', 'a', 'a.b')
    """

    stem = stem_of(path)
    ending = next((ending for ending in LABEL_ENDINGS if stem.lower().endswith(ending) and len(stem) > len(ending)), "")
    return stem[: len(stem) - len(ending)]


def same(name: str) -> str:
    """Return a name in the one form in which equal names are equal: composed characters, forward slashes.

    Examples
    --------
    >>> same("a\\\\Zu\\u0308rich") == "a/Z\\u00fcrich"
    True
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def pairs(mine: Sequence[Keys], other: Sequence[Keys]) -> dict[int, int]:
    """Return {position in `mine`: position in `other`} where they share a key; nothing when any pair is not one to one.

    Examples
    --------
    >>> pairs([frozenset("a"), frozenset("b")], [frozenset("bc"), frozenset("d")])
    {1: 0}
    >>> pairs([frozenset("a"), frozenset("a")], [frozenset("a")])
    {}
    """
    place: dict[str, int] = {}
    for k, keys in enumerate(other):
        for key in keys:
            if place.setdefault(key, k) != k:
                return {}
    found: dict[int, int] = {}
    for k, keys in enumerate(mine):
        hits = {place[key] for key in keys if key in place}
        if len(hits) > 1:
            return {}
        found |= {k: hits.pop()} if hits else {}
    return found if len(set(found.values())) == len(found) else {}


def best_pairs(mine: Sequence, other: Sequence, names: Iterable[Callable[..., Keys]]) -> dict[int, int]:
    """Return the `pairs` by the first of `names` that fits any; later ones add what is left, where no folders contradict.

    Where all pairs so far put the images of a folder into one folder of the other side, another of that folder is in no other.

    Parameters
    ----------
    mine, other : sequence of ImageRecord
    names : iterable of callable
        The strictest first.

    Examples
    --------
    >>> from cellkit.cells.records import ImageRecord
    >>> truth, found = ([ImageRecord(path, path, 1, 1) for path in paths.split()] for paths in ("A/a A/b c", "A/a B/b C/c"))
    >>> best_pairs(truth, found, [lambda one: frozenset([one.path]), lambda one: frozenset([stem_of(one.path)])])
    {0: 0, 2: 2}
    """
    best: dict[int, int] = {}
    ours, theirs = ([same(item.path).rpartition("/")[0] for item in side] for side in (mine, other))
    for name in names:
        found = pairs([name(item) for item in mine], [name(item) for item in other])
        if best:
            taken, with_mine, with_other = set(best.values()), defaultdict(set), defaultdict(set)
            for k, j in best.items():
                with_mine[ours[k]].add(theirs[j])
                with_other[theirs[j]].add(ours[k])
            new = {k: j for k, j in found.items() if k not in best and j not in taken}
            found = {k: j for k, j in new.items() if not _contradict(ours[k], theirs[j], with_mine, with_other)}
        best |= found
        if len(best) == min(len(mine), len(other)):
            break
    return dict(sorted(best.items()))


def _contradict(mine: str, other: str, with_mine: Mapping[str, set[str]], with_other: Mapping[str, set[str]]) -> bool:
    """Tell whether one of two folders goes with a single other one so far; no folder contradicts nothing."""
    if not mine or not other:
        return False
    of_mine, of_other = with_mine.get(mine, set()), with_other.get(other, set())
    return (len(of_mine) == 1 and other not in of_mine) or (len(of_other) == 1 and mine not in of_other)


LABEL_ENDINGS = ("_cp_masks", "_masks", "_labels", "_label", "_mask", "-masks", "-labels", "-label", "-mask", "_seg", "_gt",
                 "_segmentation")  # beside the image, as Cellpose and others write  # fmt: skip


EACH = "each"


def channel_rule(pattern: str) -> re.Pattern | None:
    """Return the compiled expression of ``convert.channel_from``, None for "each".

    Raises
    ------
    UserError
        It is no expression, or names no group called "channel".
    """
    if pattern == EACH:
        return None
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UserError(f"is {pattern!r}: {error}", "give a regular expression, e.g. _(?P<channel>C[0-9])") from None
    if "channel" not in rule.groupindex:
        raise UserError(
            f"is {pattern!r}, which names no channel", "mark the part that is the channel: _(?P<channel>C[0-9])"
        )
    return rule
