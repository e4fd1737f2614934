"""The command `cellkit measure`."""

from __future__ import annotations

import argparse
import sys

from cellkit.commands.shared import (
    Answer,
    cluster_flag,
    exit_code,
    force_flag,
    from_flag,
    list_quarantined,
    skips_flag,
    workers_flag,
    workers_of,
)
from cellkit.errors import UserError, counted

ABOUT = "measure cells in their raw files: size, shape, brightness in every channel"
ORDER = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    cells = "the cells: a COCO file, or a folder of label images, ROI zips or Cellpose _seg.npy files"
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="microscope files or pictures, folders, patterns")
    parser.add_argument("labels", metavar="LABELS|COCO", help=cells)
    parser.add_argument(
        "-o", "--out", required=True, metavar="CELLS.csv", help="the table, .csv or .parquet; a row a cell"
    )
    parser.add_argument(
        "--nuclei", dest="nuclei_labels", metavar="LABELS|COCO", help="the nuclei too: sets nucleus against cytoplasm"
    )
    parser.add_argument("--um-per-px", type=float, metavar="UM", help="side of a pixel, in place of what the files say")
    parser.add_argument(
        "--z", default="max", metavar="max|mean|focus|N", help="how a z-stack becomes one plane (default max)"
    )
    parser.add_argument("--axes", metavar="AXES", help="axes of files that do not state them, e.g. TYX")
    workers_flag(parser)
    force_flag(parser)
    from_flag(parser, "whose COCO file it is")
    cluster_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Measure cells in their raw files.

    Raises
    ------
    UserError
        A number of workers below 1, a scale that is not above 0; or as `measure_files` and `write_cells`.
    """
    import math

    from cellkit.commands.loops import loop_of_measure
    from cellkit.measure.images import check_table_name, measure_files, write_cells
    from cellkit.microscope.convert import Conversion

    check_table_name(given.out)
    workers = workers_of(given)
    um = math.nan if given.um_per_px is None else given.um_per_px
    if not (given.um_per_px is None or 0 < um < math.inf):
        raise UserError(f"--um-per-px is {um:g}", "give the side of a pixel in um, above 0")
    conversion = Conversion(projection=int(given.z) if given.z.isdecimal() else given.z, axes=given.axes)
    loop = loop_of_measure(given, conversion)
    done = measure_files(
        given.images,
        given.labels,
        given.nuclei_labels,
        convention=given.from_,
        conversion=conversion,
        um_per_px=um,
        workers=workers,
        before=loop.begin,
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    list_quarantined(done.quarantined)
    path = write_cells(given.out, done.table)
    loop.end([path])
    images = counted(done.table["image"].nunique(), "image")
    unscaled = ""
    if not done.table["um_per_px"].notna().all():
        unscaled = (
            "; of some no pixel size is known, or their pixels are not square (`cellkit inspect` tells): columns in um are "
            "empty, --um-per-px states it"
        )
    return Answer(
        f"{path}: {counted(len(done.table), 'cell')} of {images}{unscaled}",
        exit_code(done.quarantined, given.allow_skips),
    )
