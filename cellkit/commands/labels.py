"""The command `cellkit labels`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from cellkit.commands.shared import (
    Answer,
    checked_tool,
    exit_code,
    from_flag,
    list_quarantined,
    read_coco_of,
    skips_flag,
)
from cellkit.errors import UserError, counted

ABOUT = "turn a COCO file into label images, Cellpose files, ROI zips, GeoJSON or OME-Zarr"
ORDER = 7


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("coco_file", metavar="COCO_FILE", help="a COCO file, or a results list")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for one file per image")
    forms = "tif (default), png, seg (Cellpose GUI), roi (ImageJ ROI zip), geojson (QuPath), ome-zarr (0.5) or ome-zarr-0.4; "
    forms += "seg and ome-zarr need --images"
    parser.add_argument("--format", default="tif", metavar="F", help=forms)
    parser.add_argument(
        "--images", metavar="DIR", help="the pictures, matched by stem (default those of the run folder)"
    )
    parser.add_argument(
        "--coco", metavar="FILE", help="the COCO file whose image ids a results list uses; in a run folder not needed"
    )
    parser.add_argument("--suffix", default="", metavar="TEXT", help="end of the names of tif and png, e.g. _cp_masks")
    parser.add_argument(
        "--nuclei",
        dest="nuclei_labels",
        metavar="FILE",
        help="for geojson: nuclei of the same images, kept with their cells",
    )
    parser.add_argument(
        "--measurements",
        metavar="CELLS",
        help="for geojson: a table of the cells by image and label (.csv or .parquet), as measure writes it",
    )
    from_flag(parser, "whose COCO file it is", "--convention")
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Turn a COCO file into label images, Cellpose files, ROI zips, GeoJSON or OME-Zarr.

    Raises
    ------
    UserError
        Options that do not go together, or a file that cannot be read or written.
    """
    from cellkit.cells.dataset import known_in_part
    from cellkit.formats.any import read_side, writable, write_folder
    from cellkit.formats.results import is_list
    from cellkit.microscope.folders import run_of

    checked_tool(given.from_)
    if os.path.isfile(given.coco_file) and is_list(given.coco_file):
        of = read_side(given.coco, convention=given.from_) if given.coco else None
        coco = read_side(given.coco_file, of=of)
        for note in coco.notes:
            print(f"note: {note}", file=sys.stderr)
    elif given.coco:
        raise UserError(f"--coco {given.coco}, but {given.coco_file} is no results list", "leave out --coco")
    else:
        coco = read_coco_of(given.coco_file, given.from_)
    module = writable().get(given.format)
    with_picture = any(getattr(module, name, False) for name in ("NEEDS_PICTURES", "TAKES_PICTURES"))
    run = run_of(given.coco_file) if with_picture else None
    images = given.images or (run / "images" if run is not None else None)
    how = {"form": given.format, "images": images, "suffix": given.suffix}
    how |= {"nuclei": _nuclei(given.nuclei_labels, coco), "measured": _measured(given.measurements, coco)}
    done = write_folder(given.out, coco.records, coco.instances, coco.classes, **how, made_by=coco.made_by)
    list_quarantined(done.quarantined)
    proposed = coco.made_by.count("proposed")
    if proposed:
        problem = (
            f"{writable()[given.format].SAYS_PROPOSED} until somebody changes them, and nothing is scored against them"
        )
        print(
            f"{counted(proposed, 'image holds', 'images hold')} what a model proposed, no truth: {problem}",
            file=sys.stderr,
        )
    partly, drops = known_in_part(coco.instances), getattr(writable()[given.format], "DROPS_UNKNOWN", "")
    if partly and drops:
        print(f"{partly}; {drops}", file=sys.stderr)
    if done.lost:
        print(f"{counted(done.lost, 'cell')} lost pixels to overlapping ones of a higher score", file=sys.stderr)
    if done.left_out:
        print(f"left out: {counted(done.left_out, 'cell')} without a pixel of its own", file=sys.stderr)
    known = {
        "seg": "_seg.npy file",
        "roi": "ROI zip",
        "tif": "label image",
        "png": "label image",
        "geojson": "GeoJSON file",
        "ome-zarr": "OME-Zarr",
        "ome-zarr-0.4": "OME-Zarr",
    }
    written = counted(done.files, known.get(given.format, f"{given.format} file"))
    return Answer(f"{given.out}: {written}", exit_code(done.quarantined, given.allow_skips))


def _nuclei(path: str | None, coco: Any) -> list:
    """Return the nuclei of each image, one for each cell; none where no file of nuclei is given.

    Raises
    ------
    UserError
        A file that lacks an image: that is no image without nuclei.
    """
    from cellkit.cells.names import best_pairs
    from cellkit.formats.any import read_side
    from cellkit.formats.sides import NAMES, first_names
    from cellkit.measure.nuclei import nuclear_parts

    if path is None:
        return []
    inner = read_side(path, of=coco, nuclei=True)
    inner = inner if inner.cells else read_side(path, of=coco)
    places = best_pairs(coco.records, inner.records, NAMES)
    missing = [record.image_id for k, record in enumerate(coco.records) if k not in places]
    if missing:
        raise UserError(
            f"{path} lacks the nuclei of {counted(len(missing), 'image')} ({first_names(missing)})",
            "give those of every image; where there is none, an empty label image",
        )
    return [nuclear_parts(cells, inner.instances[places[k]])[1] for k, cells in enumerate(coco.instances)]


def _measured(path: str | None, coco: Any) -> list:
    """Return the measurements of each image; none where no table is given."""
    from cellkit.formats.measured import read_measured

    return [] if path is None else read_measured(path, coco)
