"""What a file or a data set holds, told before anything is done with it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.errors import Quarantined, UserError, nearest
from cellkit.instances import Instances

FAULTS = ("tiny", "pieces", "holes", "touching", "border")


def tell_file(info) -> str:
    """Return a `FileInfo` in words: axes, shape, type, channels, pixel size, and how many pictures it becomes."""
    told = info.to_json()
    named = zip(told["channels"], told["wavelengths_nm"], strict=True)
    channels = ", ".join(
        f"{k} {name or 'unnamed'}{f' {nm:.0f} nm' if nm else ''}" for k, (name, nm) in enumerate(named)
    )
    size = f"{told['um_per_px']:.4g} um per px" if told["um_per_px"] else "pixel size not told"
    lines = [
        f"{info.path}: {told['reader']}, {told['axes']} {' x '.join(map(str, told['shape']))} {told['dtype']}, {size}",
        f"channels: {channels}",
        f"becomes {told['images']} picture(s) ({told['scenes']} scene(s)), once nuclei and cytoplasm are named",
    ]
    return "\n".join(lines)


def inspect_folder(root: str | Path, kind: str | None = None) -> tuple[dict[str, Any], list[Quarantined]]:
    """Read every image and label of a data set and count what is there.

    Parameters
    ----------
    root : path
    kind : str, optional
        A layout of `cellkit.sources.SOURCES`; default told from what lies in the folder.

    Returns
    -------
    dict
        See `summarise`; kind is the layout.
    list of Quarantined
        Images that could not be read.

    Raises
    ------
    UserError
        No such folder or layout, or no image of that layout in it.
    """
    from cellkit.config import ChannelsConfig, ConvertConfig, SplitConfig
    from cellkit.loop import map_items
    from cellkit.sources import SOURCES

    root = Path(root)
    if kind is not None and kind not in SOURCES:
        raise UserError(f"no source '{kind}'{nearest(kind, SOURCES)}", f"choose from {', '.join(SOURCES)}")
    kind = kind or detect_kind(root)
    classes = discover_classes(root, kind)
    source = kind if kind != "drawn" else "microscope"
    how = ConvertConfig(
        source=source,
        classes=classes,
        channels=ChannelsConfig(nuclei=0),  # pixels are read to see that they can be, whatever they show
        projection=0,
        split=SplitConfig(train=1.0, val=0.0, test=0.0),
    )
    items = list(SOURCES[source](root, how))
    if not items:
        raise UserError(f"no image of the layout '{kind}' in {root}", f"layouts: --source {', '.join(SOURCES)}")
    done, failed = map_items(partial(_look), items, "inspect", name=lambda item: item.source)
    quarantined = [Quarantined(q.item, "; ".join(q.reason.removeprefix("UserError: ").splitlines())) for q in failed]
    seen = [(item.split, item.cell_type, *found) for item, found in zip(items, done, strict=True) if found is not None]
    told = summarise(kind, [row[2] for row in seen], [row[3] for row in seen], classes)
    told["cell_types"] = dict(sorted(Counter(row[1] or "unknown" for row in seen).items()))
    splits = dict(sorted(Counter(row[0] for row in seen).items()))
    if kind in ("labelme", "folder") and set(splits) - {"train"}:  # the source's own; others were put into train above
        told["splits"] = splits
    told["set_aside"] = [{"item": q.item, "reason": q.reason} for q in quarantined]
    return told, quarantined


def inspect_coco(path: str | Path) -> dict[str, Any]:
    """Count what a COCO file holds; see `summarise`."""
    from cellkit.coco import read_coco

    coco = read_coco(path)
    told = summarise("coco", [cells.shape for cells in coco.instances], coco.instances, coco.classes)
    return told | {"crowd": sum(map(len, coco.crowd)), "set_aside": []}


def _look(item) -> tuple[tuple[int, int], Instances | None]:
    loaded = item.load()
    return loaded.image.shape[:2], loaded.instances


def summarise(
    kind: str, shapes: Sequence[tuple[int, int]], instances: Sequence[Instances | None], classes: Sequence[str]
) -> dict[str, Any]:
    """Count images, objects per class, sizes and label faults.

    Returns
    -------
    dict
        kind, images, unlabelled (images without truth), objects, classes {name: objects}, height_px and width_px
        [least, most], objects_per_image [least, median, most], area_px [least, median, most], diameter_px (of the median
        cell), empty (labelled images without object), overlapping (images whose objects share pixels), faults {tiny,
        pieces, holes, touching, border}: see `cellkit.labels.check_labels`.
    """
    from cellkit.labels import check_labels

    known = [cells for cells in instances if cells is not None]
    ids = np.concatenate([np.zeros(0, np.int64), *(cells.class_ids for cells in known)])
    areas = np.concatenate([np.zeros(0, np.int64), *(cells.areas_px for cells in known)])
    counts = np.bincount(ids, minlength=len(classes) + 1)
    faults = [check_labels(cells.paint()) for cells in known]
    return {
        "kind": kind,
        "images": len(shapes),
        "unlabelled": len(shapes) - len(known),
        "objects": len(ids),
        "classes": {
            name: int(counts[k]) for k, name in [*enumerate(classes, 1), *([(0, "unknown")] if counts[0] else [])]
        },
        "height_px": _ends([height for height, _ in shapes]),
        "width_px": _ends([width for _, width in shapes]),
        "objects_per_image": _spread([len(cells) for cells in known]),
        "area_px": _spread(areas),
        "diameter_px": round(float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)), 1) if areas.size else None,
        "empty": sum(not len(cells) for cells in known),
        "overlapping": sum(bool(cells.overlapping) for cells in known),
        "faults": {name: sum(fault[name] for fault in faults) for name in FAULTS},
    }


def _ends(values: Sequence[int]) -> list[int]:
    return [int(min(values)), int(max(values))] if len(values) else []


def _spread(values: Sequence[int] | np.ndarray) -> list[float]:
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))] if len(values) else []


def tell_folder(told: dict[str, Any]) -> str:
    """Return the counts of a data set in words."""
    sizes = " x ".join("-".join(map(str, dict.fromkeys(told[side]))) for side in ("height_px", "width_px"))
    lines = [f"{told['kind']}: {told['images']} image(s) of {sizes} px, {told['unlabelled']} without labels"]
    for name in ("splits", "cell_types"):
        if told.get(name):
            lines.append(f"{name.replace('_', ' ')}: {_listed(told[name])}")
    lines.append(f"objects: {told['objects']} ({_listed(told['classes'])})")
    if told["objects"]:
        least, median, most = told["objects_per_image"]
        areas = told["area_px"]
        lines.append(f"per image: {least:.0f} to {most:.0f}, median {median:.0f}; {told['empty']} image(s) with none")
        lines.append(
            f"area: {areas[0]:.0f} to {areas[2]:.0f} px, median {areas[1]:.0f}; diameter {told['diameter_px']:.0f} px"
        )
        lines.append(f"labels: {_listed(told['faults'])}; objects overlap in {told['overlapping']} image(s)")
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


# ---- which layout, which classes -----------------------------------------------------------------------------------
def detect_kind(root: str | Path) -> str:
    """Tell the layout of a folder from what lies in it; "folder" where nothing special does.

    Raises
    ------
    UserError
        No such folder.
    """
    from cellkit.sources import SPLIT_NAMES, list_files

    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no folder at {root}", "give a folder of images")
    below = [child for child in sorted(root.iterdir()) if (child / "images").is_dir()]
    if (root / "index.csv").is_file() and (root / "labels").is_dir():
        return "dsb2018"
    if below and all((child / "masks").is_dir() for child in below):
        return "dsb2018"
    if len(below) > 1 and all((child / "labels").is_dir() and child.name.lower() not in SPLIT_NAMES for child in below):
        return "two_lines"
    if (root / "truth").is_dir():
        return "microscope"
    return "labelme" if any(_labelme_labels(path) for path in list_files(root, (".json",))[:3]) else "folder"


def discover_classes(root: str | Path, kind: str) -> tuple[str, ...]:
    """Return the classes a data set names, sorted; ("cell",) where it names none."""
    from cellkit.sources import list_files

    root = Path(root)
    names: set[str] = set()
    if kind == "labelme":
        for path in list_files(root, (".json",)):
            names |= _labelme_labels(path)
    elif kind == "two_lines":
        names = {child.name for child in root.iterdir() if (child / "images").is_dir()}
    elif kind in ("microscope", "drawn"):
        names = {child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")}
        names -= {"truth", "mixed"}
        table = root / "truth" / "classes.csv"
        if table.is_file():
            with open(table, newline="", encoding="utf-8-sig") as file:
                names |= {row["class"] for row in csv.DictReader(file) if row.get("class")}
    return tuple(sorted(names)) or ("cell",)


def _labelme_labels(path: Path) -> set[str]:
    """Return the labels in a labelme file; none where it is no such file."""
    try:
        shapes = json.loads(path.read_text(encoding="utf-8-sig"))["shapes"]
        return {str(shape["label"]) for shape in shapes}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()
