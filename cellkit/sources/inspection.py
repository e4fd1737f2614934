"""What a file or a data set holds, before anything is done with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import IGNORE, Instances
from cellkit.cells.names import plain
from cellkit.errors import Quarantined, UserError, counted
from cellkit.microscope.file_info import Channel, FileInfo
from cellkit.modules import load, names_of, optional
from cellkit.sources.statistics import three_numbers

FAULTS = ("tiny", "pieces", "holes", "touching", "border")


def file_to_text(info: FileInfo) -> str:
    """Return a `FileInfo` in words: axes, shape, type, channels, pixel size, and how many pictures it becomes."""
    alike = _alike(info.series)
    lines = [
        f"{info.path}: {info.reader}, "
        + (_series_text(info.first) if len(alike) == 1 else f"{len(info.series)} scenes")
    ]
    if len(alike) == 1:
        lines.append(f"channels: {_channels(info.first)}")
    else:
        for numbers, series in alike:
            count = f"scenes {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"scene {numbers[0]} {series.name}"
            end = (
                f"; not read: {series.problem}; {series.remedy}"
                if series.problem
                else f"; channels: {_channels(series)}"
            )
            lines.append(f"{count.strip()}: {_series_text(series)}{end}")
    found = info.to_json()
    unusable = sum(bool(series.problem) for series in info.series)
    scenes = f"{counted(found['scenes'], 'scene')}{f', {unusable} of them not read' if unusable else ''}"
    lines += [f"note: {note}" for note in info.notes]
    lines += [f"note: {f'scene {number}: ' if len(info.series) > 1 else ''}{note}"
              for number, series in enumerate(info.series) for note in series.notes]  # fmt: skip
    lines += [f"not read: {text}" for text in info.left_out]
    lines.append(f"becomes {counted(found['images'], 'picture')} ({scenes}), once nuclei, cytoplasm or both are named")
    return "\n".join(lines)


def _alike(series: Sequence) -> list[tuple[list[int], Any]]:
    """Group scenes that follow each other and differ in nothing but their name: (numbers, the first of them)."""
    groups: list[tuple[list[int], Any]] = []
    for number, one in enumerate(series):
        if groups and repr(replace(one, name="")) == repr(replace(groups[-1][1], name="")):  # repr: nan is no nan
            groups[-1][0].append(number)
        else:
            groups.append(([number], one))
    return groups


def _series_text(series) -> str:
    size = "pixel size unknown" if math.isnan(series.um_per_px) else f"{series.um_per_px:.4g} um per px"
    return f"{series.axes} {' x '.join(map(str, series.shape))} {series.dtype}, {size}"


def _channels(series) -> str:
    return ", ".join(f"{k} {channel.text}" for k, channel in enumerate(series.channels))


# ---- a folder of microscope files ----------------------------------------------------------------------------------
FILE_COLUMNS = ("file", "reader", "axes", "shape", "type", "channels", "um per px", "outcome")


def list_microscope_files(root: str | Path, axes: str | None = None) -> list[dict[str, Any]]:
    """Say what each microscope file below a folder holds, from its header; PNG and JPEG are not listed.

    Returns
    -------
    list of dict
        Sorted by path; file, and what `FileInfo.to_json` says or, where the file is refused, problem and remedy.
    """
    from cellkit.microscope.file_info import PICTURE_SUFFIXES
    from cellkit.microscope.folders import list_files
    from cellkit.microscope.open import READ_SUFFIXES, UNREAD_SUFFIXES, inspect_file

    root = Path(root)
    rows = []
    for path in list_files(root, [s for s in (*READ_SUFFIXES, *UNREAD_SUFFIXES) if s not in PICTURE_SUFFIXES]):
        row = {"file": path.relative_to(root).as_posix()}
        try:
            rows.append(row | inspect_file(path, axes).to_json())
        except UserError as error:
            rows.append(row | {"problem": error.problem, "remedy": error.remedy})
    return rows


def count_pictures(root: str | Path, sources: Sequence[str]) -> dict[str, int]:
    """Count the PNG and JPEG pictures among the images of a folder by what they hold, from their headers.

    Parameters
    ----------
    sources : sequence of str
        Paths of the images, relative to `root`; others than pictures, and what cannot be read, do not count.

    Returns
    -------
    dict
        E.g. "channels 0 red, 1 green, 2 blue, uint8" -> pictures, the most first.
    """
    from cellkit.microscope.file_info import PICTURE_SUFFIXES
    from cellkit.microscope.open import inspect_file

    told: Counter[str] = Counter()
    for path in (Path(root) / source for source in dict.fromkeys(sources)):
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
            try:
                first = inspect_file(path).first
            except UserError:
                continue
            told[f"channels {_channels(first)}, {first.dtype}"] += 1
    return dict(told.most_common())


def files_to_text(rows: Sequence[dict[str, Any]], most: int = 200) -> str:
    """Return a table of microscope files, a line each; the first `most` of them."""
    cells = [FILE_COLUMNS, *(_file_cells(row) for row in rows[:most])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(FILE_COLUMNS) - 1)] + [0]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells]
    lines.insert(1, f"|{'|'.join('-' * max(width + 2, 3) for width in widths)}|")
    return "\n".join(lines + [f"... and {len(rows) - most} more: --json lists all"] * (len(rows) > most))


def _file_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "problem" in row:
        return (
            row["file"],
            "",
            "",
            "",
            "",
            "",
            "",
            f"refused: {row['problem'].removeprefix(Path(row['file']).name + ' ')}",
        )
    shape = " x ".join(map(str, row["shape"]))
    size = f"{row['um_per_px']:.4g}" if row["um_per_px"] else ""
    named = [Channel(name, math.nan if nm is None else nm).text
             for name, nm in zip(row["channels"], row["wavelengths_nm"], strict=True)]  # fmt: skip
    channels = ", ".join(named if len(named) <= 7 else [*named[:2], "...", named[-1]])
    problems = [series["problem"] for series in row["series"] if series["problem"]]
    outcome = f"{counted(row['images'], 'picture')}"
    if row["scenes"] > 1:
        outcome += f" of {row['scenes']} scenes" + (f"; {len(problems)} refused: {problems[0]}" if problems else "")
    left = [text.removeprefix(f"{Path(row['file']).name}: ") for text in row["left_out"]]
    notes = [*row["notes"], *(note for series in row["series"] for note in series["notes"])]
    outcome += "".join(f"; not read: {text}" for text in left) + "".join(f"; {note}" for note in dict.fromkeys(notes))
    return (row["file"], row["reader"], row["axes"], shape, row["dtype"], channels, size, outcome)


# ---- a data set ----------------------------------------------------------------------------------------------------
def inspect_folder(
    root: str | Path, kind: str | None = None, axes: str | None = None
) -> tuple[dict[str, Any], list[Quarantined]]:
    """Read every image and label of a data set and count what is there.

    Parameters
    ----------
    root : path
    kind : str, optional
        A layout, the name of a file in ``cellkit/sources``; default: recognised by what is in the folder.
    axes : str, optional
        What the axes of files are that do not say, e.g. "TYX".

    Returns
    -------
    dict
        See `summarise`; kind is the layout, spellings the labels that are spelled otherwise than the class that they are read
        as. For folders of pictures or microscope files, files: one dict per microscope file, see `list_microscope_files`;
        pictures: see `count_pictures`.
    list of Quarantined
        Images that could not be read.

    Raises
    ------
    UserError
        No such folder or layout, no image of that layout in it, or axes that are none.
    """
    from cellkit.config.sections import ChannelsConfig, ConvertConfig, SplitConfig
    from cellkit.microscope.open import why_unread
    from cellkit.parallel import map_items
    from cellkit.sources.ingest import detect_kind

    root = Path(root)
    _check_axes(axes)
    unread = why_unread(root)
    if unread:
        raise unread
    kind = kind or detect_kind(root)
    spellings = spellings_of(root, kind)
    classes = _named_in(spellings)
    source = kind if kind != "drawn" else "microscope"
    how = ConvertConfig(
        source=source,
        classes=classes,
        class_names={label: None for label, name in spellings.items() if not name},
        channels=ChannelsConfig(nuclei=0),  # pixels are read to see that they can be, whatever they show
        projection=0,
        axes=axes,
        split=SplitConfig(train=1.0, val=0.0, test=0.0),
    )
    items = list(load("source", source).read(root, how))
    if not items:
        raise UserError(
            f"no image of the layout '{kind}' in {root}", f"layouts: --source {', '.join(names_of('source'))}"
        )
    done, failed = map_items(_read_one, items, "inspect", name=lambda item: item.source)
    quarantined = [one.in_one_line() for one in failed]
    seen = [(item.split, item.cell_type, *found) for item, found in zip(items, done, strict=True) if found is not None]
    result = summarise(kind, [row[2] for row in seen], [row[3] for row in seen], classes)
    result["spellings"] = {label: name for label, name in spellings.items() if label != name}
    result["cell_types"] = dict(sorted(Counter(row[1] or "unknown" for row in seen).items()))
    some_truth = not all(item.bare for item in items)
    told = [not item.bare or (some_truth and item.is_own_test) for item in items]
    named = [item.split for item, found, has in zip(items, done, told, strict=True) if found is not None and has]
    splits = dict(sorted(Counter(named).items()))
    if set(splits) - {"train"}:  # the source's own; images without one were put into train above
        result["splits"] = {name or "unused": count for name, count in splits.items()}
    result["set_aside"] = [{"item": q.item, "reason": q.reason} for q in quarantined]
    if kind in ("folder", "microscope"):
        result["files"] = list_microscope_files(root, axes)
        result["pictures"] = count_pictures(root, [item.source for item in items])
    return result, quarantined


def classes_of(root: str | Path, kind: str) -> tuple[str, ...]:
    """Return the classes that a data set names, sorted; ("cell",) where it names none. Spellings of one name are one."""
    return _named_in(spellings_of(root, kind))


def _named_in(spellings: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted(set(spellings.values()) - {""})) or ("cell",)


def spellings_of(root: str | Path, kind: str) -> dict[str, str]:
    """Return every spelling of a class in a data set -> the class that it is read as, "" for a name that is empty.

    Those that differ by upper and lower case or spaces at their ends are one, as `cellkit.cells.names.plain` has it: the first
    of them, those without such spaces before others.
    """
    classes = optional(load("source", kind), "classes")
    named = sorted(classes(Path(root)) if classes else (), key=lambda name: (name != name.strip(), name))
    chosen: dict[str, str] = {}
    for name in named:
        chosen.setdefault(plain(name), name.strip())
    return {name: chosen[plain(name)] for name in named if plain(name) != IGNORE}


def _check_axes(axes: str | None) -> None:
    """Refuse what `ConvertConfig` takes for no axes."""
    from cellkit.microscope.file_info import AXES

    if axes is not None and not (2 <= len(axes) <= len(AXES) and set(axes) <= set(AXES)):
        letters = ", ".join(f"{letter} {name}" for letter, name in AXES.items())
        raise UserError(f"axes is '{axes}'", f"give 2 to {len(AXES)} letters, such as TYX: {letters}")


def inspect_coco(path: str | Path) -> dict[str, Any]:
    """Count what a COCO file holds; see `summarise`."""
    from cellkit.formats.coco_reading import read_coco

    coco = read_coco(path, boxes=True)
    found = summarise("coco", [cells.shape for cells in coco.instances], coco.instances, coco.classes)
    return found | {"set_aside": []}


def _read_one(item) -> tuple[tuple[int, int], Instances | None]:
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
        cell), empty (labelled images without object), in_part (images that are annotated in part), known (share of all labelled
        images' pixels that is annotated), overlapping (images whose objects share pixels), faults {tiny,
        pieces, holes, touching, border}: see `cellkit.cells.labels.check_labels`. Where only boxes are known, truth is "boxes",
        areas are those of boxes, and faults is empty.
    """
    from cellkit.cells.labels import check_labels

    known = [cells for cells in instances if cells is not None]
    ids = np.concatenate([np.zeros(0, np.int64), *(cells.class_ids for cells in known)])
    areas = np.concatenate([np.zeros(0, np.int64), *(cells.areas_px for cells in known)])
    counts = np.bincount(ids, minlength=len(classes) + 1)
    boxes = any(cells.boxes_only for cells in known)
    faults = [] if boxes else [check_labels(cells.paint()) for cells in known]
    return {
        "kind": kind,
        "truth": "boxes" if boxes else "masks" if known else "none",
        "images": len(shapes),
        "unlabelled": len(shapes) - len(known),
        "objects": len(ids),
        "classes": {
            name: int(counts[k]) for k, name in [*enumerate(classes, 1), *([(0, "unknown")] if counts[0] else [])]
        },
        "height_px": _ends([height for height, _ in shapes]),
        "width_px": _ends([width for _, width in shapes]),
        "objects_per_image": three_numbers([len(cells) for cells in known]),
        "area_px": three_numbers(areas),
        "diameter_px": round(float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)), 1) if areas.size else None,
        "empty": sum(not len(cells) for cells in known),
        "in_part": sum(bool(cells.unknown_px) for cells in known),
        "known": round(
            1 - sum(cells.unknown_px for cells in known) / max(sum(map(math.prod, (c.shape for c in known))), 1), 4
        ),
        "overlapping": sum(bool(cells.overlapping) for cells in known),
        "faults": {} if boxes else {name: sum(fault[name] for fault in faults) for name in FAULTS},
    }


def _ends(values: Sequence[int]) -> list[int]:
    return [int(min(values)), int(max(values))] if len(values) else []


def folder_to_text(found: dict[str, Any]) -> str:
    """Return the counts of a data set in words."""
    sizes = " x ".join("-".join(map(str, dict.fromkeys(found[side]))) for side in ("height_px", "width_px"))
    lines = [
        f"{found['kind']}: {counted(found['images'], 'image')} of {sizes} px, {found['unlabelled']} without labels"
    ]
    for name in ("splits", "cell_types"):
        if found.get(name):
            lines.append(f"{name.replace('_', ' ')}: {_listed(found[name])}")
    lines.append(f"objects: {found['objects']} ({_listed(found['classes'])})")
    lines += [
        f"label '{label}' is read as {name or 'no known class'}" for label, name in found.get("spellings", {}).items()
    ]
    if found["in_part"]:
        lines.append(
            f"annotated in part: {counted(found['in_part'], 'image')}; of all {100 * found['known']:.0f} % is known"
        )
    if found["objects"]:
        least, median, most = found["objects_per_image"]
        areas = found["area_px"]
        lines.append(
            f"per image: {least:.0f} to {most:.0f}, median {median:.0f}; {counted(found['empty'], 'image')} with none"
        )
        lines.append(
            f"area: {areas[0]:.0f} to {areas[2]:.0f} px, median {areas[1]:.0f}; diameter {found['diameter_px']:.0f} px"
        )
        labels = _listed(found["faults"]) or "boxes, not masks: no outline can be learned from them or scored"
        lines.append(f"labels: {labels}; objects overlap in {counted(found['overlapping'], 'image')}")
    for text, count in found.get("pictures", {}).items():
        lines.append(f"{counted(count, 'picture')} (PNG, JPEG): {text}")
    if found.get("files"):
        lines.append(files_to_text(found["files"]))
        if all(len(row.get("channels", ())) == 1 for row in found["files"]):
            lines.append("one channel per file: state what it shows, e.g. convert: {channels: {nuclei: 0}}")
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
