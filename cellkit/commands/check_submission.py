"""The command `cellkit check-submission`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import (
    REFUSED,
    SHOWN,
    Answer,
    exit_code,
    json_flag,
    json_text,
    list_quarantined,
    skips_flag,
)
from cellkit.errors import Quarantined, counted
from cellkit.modules import names_of

ABOUT = "find all that Kaggle would refuse in a submission"
ORDER = 9


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("file", metavar="FILE", help="the CSV")
    parser.add_argument("--profile", required=True, metavar="P", help=" or ".join(names_of("competition")))
    parser.add_argument(
        "--images", metavar="DIR", help="the original test images: also check ids, bounds, order of pixels and size"
    )
    parser.add_argument("--sample", metavar="FILE", help="sample_submission.csv: every id of it must have a row")
    json_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Find all that Kaggle would refuse in a submission."""
    from cellkit.formats.samples import sample_ids
    from cellkit.formats.sides import image_shapes
    from cellkit.formats.submission_check import check_submission

    unread: dict[str, str] = {}
    shapes = image_shapes(given.images, unread) if given.images else None
    ids = sample_ids(given.sample, given.profile) if given.sample else None if shapes is None else [*shapes, *unread]
    problems = check_submission(given.file, given.profile, shapes, ids)
    left = [Quarantined(name, f"only its id is checked, {reason}") for name, reason in unread.items()]
    code = REFUSED if problems else exit_code(left, given.allow_skips)
    if given.json:
        rows = [{"line": problem.line, "reason": problem.reason} for problem in problems]
        found = {
            "file": given.file,
            "profile": given.profile,
            "images": given.images,
            "valid": not rows,
            "problems": rows,
            "skipped": [{"item": one.item, "reason": one.reason} for one in left],
        }
        return Answer(json_text(found), code)
    list_quarantined(left)
    what = "bounds, pixel order and picture size" if given.sample else "ids, bounds, pixel order and picture size"
    unchecked = "" if given.images else f" ({what} are not checked without --images)"
    lines = [f"{given.file}: {counted(len(problems), 'problem') if problems else 'valid'}{unchecked}"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    return Answer(
        "\n".join([*lines, *([f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])]), code
    )
