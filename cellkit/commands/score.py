"""The command `cellkit score`."""

from __future__ import annotations

import argparse
import sys

from cellkit.commands.shared import (
    Answer,
    checked_tool,
    cluster_flag,
    from_flag,
    is_bare_csv,
    json_flag,
    json_text,
    workers_flag,
    workers_of,
)
from cellkit.errors import UserError
from cellkit.modules import names_of

ABOUT = "score predictions against the truth, conventions side by side"
ORDER = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    from cellkit.scores.conventions import find_conventions

    sides = (
        "a COCO file, a COCO results list, a folder of label images, ROI zips or GeoJSON, a submission (with --profile), or a "
        "table of truth such as Sartorius' train.csv"
    )
    parser.add_argument("truth", metavar="TRUTH", help=sides)
    parser.add_argument("predictions", metavar="PRED", help=sides)
    parser.add_argument("--convention", metavar="A,B,...", help="some of the conventions below; default all")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "conventions:\n" + "\n".join(f"  {name:<13} {how.WHY}" for name, how in find_conventions().items())
    parser.add_argument("--by", metavar="WHAT", help="also by cell_type, group, split, class_name or size (MAP IoU)")
    parser.add_argument(
        "--profile", metavar="P", help=f"how a CSV counts pixels: {' or '.join(names_of('competition'))}"
    )
    parser.add_argument("--images", metavar="DIR", help="the images of a CSV, for their sizes")
    parser.add_argument(
        "--common", action="store_true", help="score the images both sides have; default: refuse others"
    )
    parser.add_argument(
        "--bootstrap", type=int, metavar="N", help="resamples of the images for intervals (default 2000)"
    )
    parser.add_argument("--against", metavar="OTHER", help="another model's predictions: say whether PRED is better")
    from_flag(parser, "whose COCO files they are")
    workers_flag(parser)
    cluster_flag(parser)
    json_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Score predictions against the truth, conventions side by side.

    Raises
    ------
    UserError
        A negative number of draws, or two sides that cannot be compared.
    """
    from cellkit.commands.comparison import compare_models, score_sides, scores_to_text
    from cellkit.formats.any import read_side
    from cellkit.formats.sides import image_shapes, match_sides, refuse_proposed

    if given.bootstrap is not None and given.bootstrap < 0:
        raise UserError(f"--bootstrap is {given.bootstrap}", "give 0 (no interval) or more")
    how = {"profile": given.profile, "shapes": image_shapes(given.images) if given.images else None}
    how |= {"convention": checked_tool(given.from_), "workers": workers_of(given)}
    other = given.predictions if is_bare_csv(given.truth) and not given.images else None
    sized = read_side(other, **how) if other and not is_bare_csv(other) else None
    truth = read_side(given.truth, of=sized, **how)
    refuse_proposed(truth)
    found = sized or read_side(given.predictions, of=truth, common=given.common, **how)
    before = truth, found
    truth, found = match_sides(truth, found, given.common)
    other = read_side(given.against, of=truth, common=given.common, **how) if given.against else None
    conventions = [name.strip() for name in given.convention.split(",")] if given.convention else None
    result = score_sides(truth, found, conventions, given.by, given.bootstrap, given.workers)
    notes = [*before[0].notes, *found.notes]
    for side in before:
        if len(side.records) > len(truth.records):
            what = f"{len(truth.records)} of the {len(side.records)} images of {side.path}"
            notes.append(f"scored on {what}, those that the other side has too")
    for note in dict.fromkeys(notes):  # not before it is sure that there is a score
        print(f"note: {note}", file=sys.stderr)
    if other is not None:
        result["against"] = compare_models(truth, other, found, given.common, given.bootstrap)
    return Answer(json_text(result) if given.json else scores_to_text(result, given.truth, given.predictions))
