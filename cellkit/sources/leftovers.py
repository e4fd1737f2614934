"""What lies in a data folder and fits no image: named, so that nothing that was meant to be used is missed in silence.

A file that was expected to be used (a label image, a picture among others that are used, a table of classes) becomes an
item that is skipped with its reason; what is harmless is only logged; files of notes are ignored.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cellkit.cells.names import LABEL_ENDINGS, LABEL_WORDS, is_no_data, plain, stem_of
from cellkit.errors import UserError, counted, raise_or_collect
from cellkit.files import decoded
from cellkit.log import LOG
from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_FOLDERS, NOT_IMAGES, is_run_folder
from cellkit.microscope.open import is_zarr_by_another_name, why_unread
from cellkit.sources.label_files import is_called_labels
from cellkit.sources.listing import LEFT, UNUSED, SourceImage, failing

CLASS_TABLE = re.compile(r"class(es)?\b.*\.(csv|tsv|txt|xlsx?|ods)")
NOTES = (".txt", ".md", ".rst", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".html", ".htm", ".css", ".log", ".csv", ".tsv",
         ".xls", ".xlsx", ".ods", ".json", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".py", ".ipynb", ".ijm", ".m",
         ".r", ".sh", ".bat", ".lnk", ".url", ".bib", ".cff", ".jsonl")  # fmt: skip
SIGNS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM")  # pictures begin so
LABEL_LIKE = (".roi", ".zip", ".npy", ".npz", ".geojson", ".mat")  # what other tools store labels in
LABEL_TEXTS = (".txt", ".xml", ".json", ".csv", ".tsv")  # and in text
MOST_NAMED = 3
HEAD_BYTES = 65_536
YOLO_ROW = re.compile(r"\d+([ \t]+-?\d*\.?\d+(e-?\d+)?){4,}[ \t]*(\r?\n|$)")


def leftovers(
    root: Path, items: Sequence[SourceImage], also_used: Iterable[Path] = (), looked_for: str = ""
) -> Iterator[SourceImage]:
    """Yield an item, to be skipped with its reason, for each file below `root` that was expected to be used and is not.

    Parameters
    ----------
    root : Path
    items : sequence of SourceImage
        All images of the source, before any are left out; their `files` are used, folders with all that lies in them.
    also_used : iterable of Path
        Tables, lists and other files that the layout reads.
    looked_for : str
        Where labels are looked for, in words with an example.

    Raises
    ------
    UserError
        There are label images, at least one for every two images, and not one fits an image.
    """
    used = {path for item in items for path in item.files} | set(also_used)
    labels, unread, strays, elsewhere, others = [], [], [], defaultdict(list), Counter()
    stems = {plain(stem_of(item.files[0])) for item in items if item.files}
    bare = {plain(stem_of(item.files[0])) for item in items if item.files and item.bare}
    folders_used = {path.parent for path in used}
    pictures_in = {item.files[0].parent for item in items if item.files}
    for path in _files_below(root, used):
        relative = path.relative_to(root)
        if path.is_symlink() and path.is_dir():
            strays.append((relative, "is a link to a folder, and is not followed", "put the folder itself there"))
            continue
        name, folder = plain(path.name), path.parent
        in_labels = any(plain(part) in LABEL_FOLDERS for part in relative.parts[:-1])
        picture = name.endswith(IMAGE_SUFFIXES) or _looks_like_picture(path)
        in_labels |= bool(
            picture and looked_for and folder not in pictures_in and any(map(is_called_labels, relative.parts[:-1]))
        )
        text = foreign_labels(path, bare) if looked_for else None
        if text:
            strays.append((relative, *text))
        elif CLASS_TABLE.match(name):
            strays.append(
                (relative, "is a table of classes that is not read", "call it truth/classes.csv, and save it as CSV")
            )
        elif name.endswith(LABEL_LIKE) and (image := _image_of(path, stems)):
            unread.append((relative, *_why_not_read(name, image, image in bare)))
        elif _is_label(path, name) or (in_labels and not name.endswith(NOTES)):
            labels.append(relative)
        elif refusal := why_unread(path):
            strays.append((relative, refusal.problem, refusal.remedy))
        elif picture and plain(stem_of(path)).endswith(NOT_IMAGES):
            others["pictures of outlines and flows"] += 1
        elif picture and folder in folders_used:
            strays.append((relative, *_why_not_used(name)))
        elif picture:
            elsewhere[relative.parts[0] if len(relative.parts) > 1 else "."].append(relative)
        elif not name.endswith(NOTES) and path.suffix:
            others[f"*{path.suffix.lower()}"] += 1
    for path in {item.files[0] for item in items if item.files}:
        for inside in path.glob("**/labels/*/") if path.suffix.lower() == ".zarr" and path.is_dir() else ():
            if inside not in used and (inside.parent / inside.name).is_dir():
                text = "is a label image in an OME-Zarr of several images, which is not read"
                strays.append((inside.relative_to(root), text, "write it as a label image of its own"))
    _check_labels(labels, unread, items, looked_for)
    strays += unread
    text = f"is a label image or labels, and no image is called so{f'; {looked_for}' if looked_for else ''}"
    strays += [(relative, text, "rename it after its image, or take it out of the data folder") for relative in labels]
    _warn_unused(root, elsewhere, others)
    for relative, problem, remedy in sorted(strays):
        loader = failing(problem, remedy)
        yield SourceImage(f"{LEFT}{relative.as_posix()}", "", "", UNUSED, relative.as_posix(), loader)


def _files_below(root: Path, used: set[Path]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=False):
        runs = [name for name in folders if is_run_folder(Path(folder, name))]
        if runs:
            LOG.warning(f"run folders in {folder} are no data and not read: {', '.join(sorted(runs))}")
        folders[:] = sorted(
            name for name in folders
            if name not in runs and not is_no_data(name) and not name.lower().endswith(".zarr") and Path(folder, name) not in used
        )  # fmt: skip
        zarrs = [name for name in folders if is_zarr_by_another_name(Path(folder, name))]
        folders[:] = [name for name in folders if name not in zarrs]
        yield from (Path(folder, name) for name in zarrs)
        links = [path for name in folders if (path := Path(folder, name)).is_symlink()]
        yield from (path for path in links if not Path(folder).resolve().is_relative_to(path.resolve()))  # no loop
        yield from (path for name in sorted(names) if not is_no_data(name) and (path := Path(folder, name)) not in used)


def _is_label(path: Path, name: str) -> bool:
    """Whether a file is called as labels are: ``a_masks.tif``, ``a_seg.npy``."""
    return name.endswith("_seg.npy") or (name.endswith(IMAGE_SUFFIXES) and plain(stem_of(path)).endswith(LABEL_ENDINGS))


def _image_of(path: Path, stems: set[str]) -> str:
    """Return which image of `stems` a file is called after (``a_seg.npy`` or ``a_rois.zip`` after ``a.tif``), or ""."""
    stem = plain(stem_of(path))
    ends = [len(stem), *(found.start() for found in reversed(list(re.finditer(r"[ _.\-]", stem))))]
    return next((stem[:end] for end in ends if stem[:end] in stems), "")


def _why_not_read(name: str, image: str, is_bare: bool) -> tuple[str, str]:
    """Return what is said of labels in a form of other tools, and what to do: most formats are read by ``cellkit coco``."""
    if not is_bare:
        return f"holds labels, and those of {image} are read from another file", "keep one of the two"
    if name.endswith((".roi", ".zip")):
        remedy = (
            "write COCO of ImageJ ROIs (cellkit coco FOLDER -o FILE.json --images FOLDER), and set convert.source: coco"
        )
    elif name.endswith(("_seg.npy", ".geojson")):
        remedy = "set convert.source: folder"
    else:
        remedy = "save them as a label image: 0 = background, 1, 2, 3 ... = cells"
    return "holds labels in a form that this source does not read", remedy


def foreign_labels(path: Path, stems: set[str]) -> tuple[str, str] | None:
    """Tell labels in the text files of other layouts, called after an image of `stems`: (what it is, what to do), or None."""
    name, stem = path.name.lower(), plain(stem_of(path))
    own = stem in stems
    ends = re.search(rf"[ _.\-]+({'|'.join(sorted(LABEL_WORDS))})$", stem)
    if name.endswith(LABEL_TEXTS) and ends and stem[: ends.start()] in stems:
        return (
            "is called as labels of an image are, in a form that is not read",
            "export them as label images, or as COCO",
        )
    if not name.endswith((".txt", ".xml", ".json")) or not (own or name.endswith(".json")):
        return None
    try:
        with open(path, "rb") as file:
            head = decoded(file.read(HEAD_BYTES), "ignore")
    except OSError:
        return None
    if name.endswith(".txt"):
        yolo = YOLO_ROW.match(head.lstrip())
        return (
            ("holds labels as YOLO writes them, which are not read", "export them as COCO, with outlines")
            if yolo
            else None
        )
    if name.endswith(".xml"):
        boxes = "<annotation" in head and "<bndbox" in head
        return (
            ("holds boxes as Pascal VOC, which this source does not read", "set convert.source: voc") if boxes else None
        )
    kinds = {"labelme": ('"shapes"', '"imagePath"'), "coco": ('"images"', '"annotations"')}
    kind = next((kind for kind, signs in kinds.items() if all(sign in head for sign in signs)), "")
    if kind == "coco" or (kind and own):
        return f"holds labels as {kind}, which this source does not read", f"set convert.source: {kind}"
    return None


def _looks_like_picture(path: Path) -> bool:
    """Tell from its first bytes whether a file of another suffix, or none, is a picture."""
    if path.name.lower().endswith(NOTES):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNS)
    except OSError:
        return False


def _why_not_used(name: str) -> tuple[str, str]:
    if not name.endswith(IMAGE_SUFFIXES):
        return "is a picture by its first bytes, and its name does not end as one", "add .tif, .png or .jpg to its name"
    return (
        "is a picture that belongs to no image of this layout",
        "add what names it, or take it out of the data folder",
    )


def _check_labels(
    labels: Sequence[Path], unread: Sequence[tuple[Path, str, str]], items: Sequence[SourceImage], looked_for: str
) -> None:
    if any(len(item.files) > 1 for item in items):
        return
    if labels and 2 * len(labels) >= len(items) > 0:
        problem = f"of {counted(len(labels), 'label file')}, e.g. {labels[0].as_posix()}, none is named after an image"
        raise_or_collect(UserError(problem, looked_for or "call label images after their images"))
    if unread and 2 * len(unread) >= len(items) and all(item.bare for item in items):
        path, problem, remedy = unread[0]
        raise_or_collect(UserError(f"{path.as_posix()} {problem}; there are {len(unread)} such files", remedy))


def _warn_unused(root: Path, elsewhere: dict[str, list[Path]], others: Counter) -> None:
    for folder, found in sorted(elsewhere.items()):
        named = ", ".join(path.as_posix() for path in found[:MOST_NAMED]) + (", ..." if len(found) > MOST_NAMED else "")
        LOG.warning(f"not used, as no part of this layout: {counted(len(found), 'picture')} below {folder} ({named})")
    if others:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
        LOG.warning(f"files in {root} that are not used: {listed}")
