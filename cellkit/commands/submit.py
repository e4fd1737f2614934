"""The command `cellkit submit`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cellkit.commands.shared import (
    Answer,
    check_file_name,
    checked_tool,
    exit_code,
    from_flag,
    list_quarantined,
    skips_flag,
)
from cellkit.errors import UserError, counted
from cellkit.modules import names_of

ABOUT = "write predictions as a Kaggle submission"
ORDER = 8


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", help="a COCO file with scores, a results list, or label images"
    )
    parser.add_argument("--profile", required=True, metavar="P", help=" or ".join(names_of("competition")))
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the CSV")
    parser.add_argument(
        "--coco", metavar="FILE", help="the COCO file whose image ids a results list uses; in a run folder not needed"
    )
    parser.add_argument("--images", metavar="DIR", help="the test images: each must have a prediction")
    parser.add_argument(
        "--sample",
        metavar="FILE",
        help="sample_submission.csv: a row for each id of it, empty without a picture; no other",
    )
    parser.add_argument("--min-area", type=int, default=0, metavar="PX", help="leave out smaller objects (default 0)")
    from_flag(parser, "whose COCO files they are")
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Write predictions as a Kaggle submission.

    Raises
    ------
    UserError
        What is read would be written over; an area below 0; or as the readers and `write_submission`.
    """
    from cellkit.cells.dataset import known_in_part
    from cellkit.cells.disjoint import note_changes, resolve_overlaps
    from cellkit.cells.leftout import LeftOut
    from cellkit.formats.any import read_side
    from cellkit.formats.competitions import get_profile
    from cellkit.formats.hand_in import as_asked, named_after, refuse_scaled, unread_by, with_empty_rows
    from cellkit.formats.samples import sample_ids
    from cellkit.formats.sides import match_sides
    from cellkit.formats.submission import write_submission

    check_file_name(given.out)
    if given.min_area < 0:
        raise UserError(f"--min-area is {given.min_area}", "give 0 or more (px)")
    _refuse_inputs(given.out, given.predictions, given.coco, given.sample)
    profile, tool = get_profile(given.profile), checked_tool(given.from_)
    asked = sample_ids(given.sample, profile) if given.sample else None
    of = read_side(given.coco, convention=tool) if given.coco else None
    side = read_side(given.predictions, of=of, convention=tool)
    if of is not None and side.of_model:
        side = match_sides(of, side)[1]
    unread = unread_by(side)
    if given.images:
        side, skipped = named_after(side, given.images)
    else:
        refuse_scaled(side)
        side, skipped, note = with_empty_rows(side, test=of is None)
        if note:
            print(f"note: {note}", file=sys.stderr)
        lacking = [one.item for one in skipped if one.reason.startswith("no row")]
        if lacking and asked is None:
            remedy = "--images DIR or --sample FILE gives empty ones"
            print(f"note: no row for {', '.join(lacking)}: not predicted; {remedy}", file=sys.stderr)
    if asked is not None:
        side, skipped, note = as_asked(side, skipped, unread, asked, given.sample)
        if note:
            print(f"note: {note}", file=sys.stderr)
    if partly := known_in_part(side.instances):
        print(f"note: {partly}; a submission cannot say so, and the rest counts as background", file=sys.stderr)
    ids = [record.image_id for record in side.records]
    resolved = [resolve_overlaps(cells, given.min_area) for cells in side.instances]
    write_submission(given.out, ids, [cells for cells, _ in resolved], profile)
    left = LeftOut()
    for image_id, (_, log) in zip(ids, resolved, strict=True):
        note_changes(left, image_id, log)
    left.log("submit")
    list_quarantined(skipped)
    text = f"{given.out}: {counted(len(ids), 'image')}, {counted(sum(len(cells) for cells, _ in resolved), 'object')}"
    if asked is not None:
        text += f"; {given.sample} asks for {len(asked)}, each has a row"
    return Answer(text, exit_code(skipped, given.allow_skips))


def _refuse_inputs(out: str, *inputs: str | None) -> None:
    """Refuse to write over what is read: the predictions, which come first, a file of them, a COCO file, or a sample."""
    place, read = Path(out).resolve(), [Path(path).resolve() for path in filter(None, inputs)]
    within = read[0].is_dir() and read[0] in place.parents and place.suffix.lower() != ".csv"
    if place in read or (within and place.exists()):
        raise UserError(f"'{out}' is read for the submission", "name another file to write: -o FILE.csv")
