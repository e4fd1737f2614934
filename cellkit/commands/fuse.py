"""The command `cellkit fuse`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer, check_file_name, checked_tool, from_flag
from cellkit.errors import UserError, counted

ABOUT = "fuse what several models found into one file of predictions"
ORDER = 4


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    what = "COCO files with scores, results lists of runs, or label images; the first says which images"
    parser.add_argument("predictions", metavar="PREDICTIONS", nargs="+", help=what)
    parser.add_argument("-o", "--out", required=True, metavar="OUT.json", help="COCO file with scores")
    fusion_flags(parser)
    parser.add_argument("--common", action="store_true", help="fuse the images that all files have, and no others")
    from_flag(parser, "whose COCO files they are")


def fusion_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``, ``--iou``, ``--least-models`` and ``--least-votes``."""
    parser.add_argument("--weights", metavar="W,W", help="one number per model, in their order (default 1 each)")
    parser.add_argument(
        "--iou", type=float, default=0.5, metavar="X", help="above it two masks are one cell (default 0.5)"
    )
    some = "of the weights must have found a cell (default 0.5; 0 = keep every cell)"
    parser.add_argument("--least-models", type=float, default=0.5, metavar="X", help=f"models of this share {some}")
    votes = "of a cell's masks, by weight times score, must hold a pixel (default 0.5)"
    parser.add_argument("--least-votes", type=float, default=0.5, metavar="X", help=f"this share {votes}")


def fusion_of(given: argparse.Namespace) -> tuple[list[float] | None, object]:
    """Return the weights and the settings that the flags of `fusion_flags` give.

    Raises
    ------
    UserError
        Weights that are no numbers, or a share that is not in [0, 1].
    """
    from pydantic import ValidationError

    from cellkit.models.shared.fusion import FusionSettings

    try:
        weights = None if given.weights is None else [float(text) for text in given.weights.split(",")]
    except ValueError:
        raise UserError(f"--weights is '{given.weights}'", "give numbers with commas between, e.g. 2,1,1") from None
    try:
        return weights, FusionSettings(iou=given.iou, least_models=given.least_models, least_votes=given.least_votes)
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise UserError(f"{flag} is {first['input']}", "give a number from 0 to 1") from None


def run(given: argparse.Namespace) -> Answer:
    """Fuse what several models found into one file of predictions.

    Raises
    ------
    UserError
        The file to write is one of those to fuse; or as `fusion_of` and `fuse_sides`.
    """
    from pathlib import Path

    from cellkit.formats.any import read_side
    from cellkit.formats.coco import write_coco
    from cellkit.formats.sides import marks_of, skipped_by
    from cellkit.predict.fuse_files import fuse_sides

    check_file_name(given.out)
    weights, settings = fusion_of(given)
    if any(Path(given.out).resolve() == Path(path).resolve() for path in given.predictions):
        raise UserError(f"'{given.out}' is one of the files to fuse", "name another file to write: -o")
    tool = checked_tool(given.from_)
    sides = [read_side(path, convention=tool) for path in given.predictions]
    made = fuse_sides(sides, weights, settings, given.common)
    told = {name: marks for side in reversed(sides) for name, marks in marks_of(side).items()}
    marks = [told.get(record.image_id, {}) for record in made.records]
    ids = made.ids if made.ids and all(isinstance(one, int) and one > 0 for one in made.ids) else None
    skipped = list({one["item"]: one for side in reversed(sides) for one in skipped_by(side)}.values())
    more = {"made_by": made.made_by, "marks": marks, "quarantined": skipped}
    write_coco(given.out, made.records, made.instances, made.classes, ids, True, **more)
    total = f"{counted(len(made), 'image')}, {counted(made.cells, 'cell')}"
    return Answer(f"{given.out}: {counted(len(sides), 'model')} fused, {total}")
