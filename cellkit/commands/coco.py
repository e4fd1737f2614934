"""The command `cellkit coco`."""

from __future__ import annotations

import argparse
import sys

from cellkit.commands.shared import (
    Answer,
    check_file_name,
    exit_code,
    from_flag,
    list_quarantined,
    note_polygons,
    read_coco_of,
    skips_flag,
)
from cellkit.errors import UserError, counted

ABOUT = "turn label images, Cellpose files, ROI zips, GeoJSON or OME-Zarr into a COCO file"
ORDER = 6


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    inputs = (
        "folder of label images (TIFF, PNG), Cellpose _seg.npy files, ImageJ ROI zips, QuPath GeoJSON or OME-Zarr; one such "
        "file; a COCO file"
    )
    parser.add_argument("input", metavar="INPUT", help=inputs)
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the COCO file")
    parser.add_argument(
        "--format", metavar="F", help="what INPUT is: labels, seg, roi or geojson (default: by the suffixes)"
    )
    parser.add_argument("--images", metavar="DIR", help="the pictures, matched by stem: for file names and sizes")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="class of cells without one (default cell)")
    parser.add_argument(
        "--classes", metavar="A,B", help="classes of _seg.npy files that the Cellpose GUI saved, in order"
    )
    parser.add_argument(
        "--pieces",
        metavar="HOW",
        help="a cell of several pieces in a label image: split (each a cell), keep or largest",
    )
    parser.add_argument("--nuclei", action="store_true", help="of cells drawn with nuclei, take the nuclei (GeoJSON)")
    from_flag(parser, "whose COCO file INPUT is")
    parser.add_argument(
        "--convention", default="plain", metavar="TOOL", help="tool that reads FILE: plain, cvat or fiftyone"
    )
    parser.add_argument(
        "--polygons", action="store_true", help="polygons, not RLE; prints how many objects change by it"
    )
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Turn label images, Cellpose files, ROI zips, GeoJSON or OME-Zarr into a COCO file."""
    from cellkit.formats.coco import write_coco
    from cellkit.formats.coco_dialects import WRITTEN, checked, common_folder

    check_file_name(given.out)
    checked(given.convention, WRITTEN)
    read = _of_coco if given.input.lower().endswith(".json") else _of_files
    records, instances, classes, ids, quarantined, made_by = read(given)
    list_quarantined(quarantined)
    scored = any((cells.scores != 1).any() for cells in instances)
    write_coco(given.out, records, instances, classes, ids, scored, given.convention, given.polygons, made_by)
    if given.polygons:
        note_polygons(instances)
    folder = common_folder([record.path for record in records]) if given.convention == "fiftyone" else ""
    if folder:
        print(f"file names are relative to {folder}/, the data_path of FiftyOne's importer", file=sys.stderr)
    text = f"{given.out}: {counted(len(records), 'image')}, {counted(sum(map(len, instances)), 'cell')}"
    return Answer(text, exit_code(quarantined, given.allow_skips))


def _of_files(given: argparse.Namespace) -> tuple:
    """Return records, cells, classes, no ids, what was skipped, and who made the cells, of the files of a folder."""
    from cellkit.formats.any import format_of, read_folder

    if given.from_:
        raise UserError(
            f"--from {given.from_}, but {given.input} is no COCO file", "--format says what label files are"
        )
    classes = [name.strip() for name in given.classes.split(",")] if given.classes else []
    if given.nuclei and (given.format or format_of(given.input, given.images)) != "geojson":
        raise UserError("--nuclei, but only GeoJSON holds nuclei with their cells", "leave out --nuclei")
    side, quarantined = read_folder(given.input, given.format, given.images, classes, given.pieces, given.nuclei)
    for note in side.notes:
        print(f"note: {note}", file=sys.stderr)
    if given.nuclei and not side.cells:
        raise UserError(f"no cell of {given.input} is drawn with a nucleus", "leave out --nuclei")
    if side.classes:
        named, instances = side.classes, side.instances
    else:
        named, instances = (given.class_name or "cell",), [cells.with_classes(1) for cells in side.instances]
    if given.class_name and side.classes:
        raise UserError(
            f"--class {given.class_name}, but the cells have classes: {', '.join(named)}", "leave out --class"
        )
    return side.records, instances, named, None, quarantined, side.made_by


def _of_coco(given: argparse.Namespace) -> tuple:
    """Return records, cells, classes, ids, nothing skipped, and who made the cells, of a COCO file."""
    if given.format or given.images or given.class_name or given.classes or given.pieces or given.nuclei:
        raise UserError(
            f"{given.input} is a COCO file: it names its images and classes itself",
            "leave out --format, --images, --class, --classes, --pieces and --nuclei",
        )
    coco = read_coco_of(given.input, given.from_)
    ids = coco.ids if all(isinstance(number, int) and number > 0 for number in coco.ids) else None
    if ids is None:
        count, first = len(coco.ids), coco.ids[0]
        what = f"image ids began with {first!r}: in {given.out} they are 1 to {count}"
        print(f"note: {what}, and results that name the old ids do not fit it", file=sys.stderr)
    return coco.records, coco.instances, coco.classes, ids, [], coco.made_by
