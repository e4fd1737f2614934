"""COCO as CVAT, FiftyOne and Label Studio write it, and as they import it.

One JSON form, four habits. A file does not say whose it is, and what it means depends on that: CVAT marks every painted mask
``iscrowd``, which for everyone else is a region that is no object. So the convention is named, never guessed; a file that
bears the marks of CVAT and is read without one is refused.

Sources, read in 2026: CVAT's exporter and importer (datumaro, ``plugins/coco_format``), FiftyOne's (``fiftyone/utils/coco.py``),
Label Studio's (``label_studio_converter/converter.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cellkit.cells.instances import Instances
from cellkit.errors import UserError, counted, nearest

CONVENTIONS = {
    "plain": "as the COCO data set itself: iscrowd marks regions that are no objects",
    "cvat": "masks are marked iscrowd and are single objects all the same",
    "fiftyone": "labels.json beside data/, file names relative to data/",
    "labelstudio": "file names may have backslashes",
}
WRITTEN = ("plain", "cvat", "fiftyone")
CVAT_INFO = ("contributor", "date_created", "description", "url", "version", "year")


def checked(convention: str, known: Sequence[str] = tuple(CONVENTIONS)) -> str:
    """Return the name of a convention.

    Raises
    ------
    UserError
        It is none of `known`.
    """
    if convention not in known:
        raise UserError(f"no convention '{convention}'{nearest(convention, known)}", f"conventions: {', '.join(known)}")
    return convention


# ---- reading -------------------------------------------------------------------------------------------------------
def to_plain(data: Any, convention: str | None, path: str | Path) -> tuple[Any, list[str]]:
    """Return a COCO file's content in the plain convention, and what was done to that end; ids stay the file's own.

    Parameters
    ----------
    data : parsed JSON
        Not changed; what is no COCO file is returned as it is, for the reader to refuse.
    convention : str, optional
        None reads like "plain", but refuses a file that looks like CVAT's where that would lose objects.

    Returns
    -------
    data : dict
    notes : list of str
        One sentence for everything that was read otherwise than "plain" would.

    Raises
    ------
    UserError
        An unknown convention, or an ambiguous file.
    """
    if convention is not None:
        checked(convention)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        return data, []
    if convention == "fiftyone" and "annotations" not in data:  # what FiftyOne writes for unlabelled images
        data = data | {"annotations": []}
    if not isinstance(data.get("annotations"), list):
        return data, []
    if convention is None:
        _refuse_ambiguous(data, path)
    if convention == "cvat":
        return _without_crowds(data)
    if convention == "labelstudio":
        return data | {"images": [_with_slashes(entry) for entry in data["images"]]}, []
    return data, []


def _refuse_ambiguous(data: dict, path) -> None:
    """Refuse crowds in a file with CVAT's marks: attributes at the annotations, or its empty header."""
    crowds = [row for row in data["annotations"] if isinstance(row, dict) and crowd_of(row)]
    info = data.get("info")
    header = isinstance(info, dict) and all(info.get(key) == "" for key in CVAT_INFO)
    if crowds and (header or any(isinstance(row.get("attributes"), dict) for row in crowds)):
        raise UserError(
            f"{path} marks {counted(len(crowds), 'annotation')} iscrowd: CVAT marks its masks so, others mark what is no object",
            'say whose file it is: convention="cvat" or "plain" (cellkit coco, labels, score and submit: --from cvat or '
            "--from plain; a run: convert.coco_convention)",
        )


def crowd_of(row: Mapping[str, Any]) -> bool | None:
    """Tell whether an annotation is marked as a region of no single object; None where the mark is neither 0 nor 1.

    Tools write the mark also as true, 1.0 or "1".

    Examples
    --------
    >>> [crowd_of({"iscrowd": mark}) for mark in (0, "1", True, "False", 2)], crowd_of({})
    ([False, True, True, False, None], False)
    """
    mark = str(row.get("iscrowd", 0)).strip().casefold()
    return {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "none": False,
            "": False}.get(mark)  # fmt: skip


def key_of(value: Any) -> int | str | None:
    """Return the id that a COCO file means: a whole number from 0 on, or a text; None for what is no id.

    Tools write 7 also as 7.0 or "7"; "007" is a text.

    Examples
    --------
    >>> key_of("7"), key_of(7.0), key_of("007"), key_of("6f3a"), key_of(-1)
    (7, 7, '007', '6f3a', None)
    """
    if isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdigit() and str(int(value)) == value:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return value if value.strip() else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _without_crowds(data: dict) -> tuple[dict, list[str]]:
    marked = sum(isinstance(row, dict) and bool(crowd_of(row)) for row in data["annotations"])
    rows = [row | {"iscrowd": 0} if isinstance(row, dict) else row for row in data["annotations"]]
    notes = [f"read as single objects, as CVAT means them: {counted(marked, 'mask')} marked iscrowd"] if marked else []
    return data | {"annotations": rows}, notes


def _with_slashes(entry: Any) -> Any:
    """Return an image with forward slashes in its name: Label Studio on Windows writes the others."""
    if isinstance(entry, dict) and isinstance(entry.get("file_name"), str):
        return entry | {"file_name": entry["file_name"].replace("\\", "/")}
    return entry


# ---- writing -------------------------------------------------------------------------------------------------------
def segmentations(found: Instances, convention: str, as_polygons: bool) -> list[Any] | None:
    """Return what an annotation's ``segmentation`` is, one per object; None to leave the compressed RLE.

    CVAT gets run lengths as lists, which every version of it reads. Polygons only where `as_polygons`: they lose holes; an
    object that has no outline keeps its RLE.
    """
    if as_polygons:
        from cellkit.cells.outlines import polygons

        shapes = polygons(found)[0]
        return [shape or rle for shape, rle in zip(shapes, found.to_coco_rle(), strict=True)]
    return found.to_coco_rle(compressed=False) if convention == "cvat" else None


def from_plain(data: dict[str, Any], convention: str) -> dict[str, Any]:
    """Return a COCO file's content with what the importer of a tool wants besides.

    CVAT: its header, one empty licence, ``attributes`` at each annotation; iscrowd stays 0, its importer reads the mask either
    way. FiftyOne: its header, and file names relative to the folder that all images share.
    """
    if convention == "cvat":
        place = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
        return {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": dict.fromkeys(CVAT_INFO, ""),
            "categories": [entry | {"supercategory": ""} for entry in data["categories"]],
            "images": [entry | place for entry in data["images"]],
            "annotations": [row | {"attributes": {"occluded": False}} for row in data["annotations"]],
        }
    if convention == "fiftyone":
        folder = common_folder([entry["file_name"] for entry in data["images"]])
        cut = len(folder) + 1 if folder else 0
        place = {"license": None, "coco_url": None}
        info = dict.fromkeys(CVAT_INFO, "") | {"description": "cellkit"}
        return data | {
            "info": info,
            "licenses": [],
            "images": [entry | {"file_name": entry["file_name"][cut:]} | place for entry in data["images"]],
        }
    return data


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths share, "" where there is none.

    Examples
    --------
    >>> common_folder(["images/a.png", "images/b/c.png"]), common_folder(["a.png", "images/b.png"])
    ('images', '')
    """
    folders = [PurePosixPath(path).parent.parts for path in paths]
    shared: list[str] = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    folder = "/".join(shared)
    return folder if all(path.startswith(f"{folder}/") for path in paths) else ""
