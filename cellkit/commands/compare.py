"""The command `cellkit compare`."""

from __future__ import annotations

import argparse
import sys

from cellkit.commands.shared import Answer, exit_code, json_flag, json_text, list_quarantined, skips_flag

ABOUT = "which way wins: every model of some runs on the same images: score, classes, counts, CPU seconds, memory"
ORDER = 4


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders; those with the same labels are compared with each other"
    )
    parser.add_argument("--split", metavar="test|val", help="the images that are reported (default test, else val)")
    what = "also write the tables to a page: between its marks ways:begin and ways:end, or a new file"
    parser.add_argument("--markdown", metavar="FILE.md", help=what)
    json_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Compare every model of some runs; see `cellkit.pages.ways.compare_runs`."""
    from cellkit.pages.ways import compare_runs
    from cellkit.pages.ways_tables import to_json, to_text, write_markdown

    comparisons, left_out = compare_runs(given.runs, given.split)
    list_quarantined(left_out)
    if given.markdown:
        print(f"written: {write_markdown(given.markdown, comparisons, left_out)}", file=sys.stderr)
    text = json_text(to_json(comparisons, left_out)) if given.json else to_text(comparisons, left_out)
    return Answer(text, exit_code(left_out, given.allow_skips))
