"""The command `cellkit doctor`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import DONE, REFUSED, Answer, json_flag, json_text

ABOUT = "list what this machine can run, what to install for the rest, and how long a run takes"
ORDER = 11


def run(given: argparse.Namespace) -> Answer:
    """List what this machine can run, what to install for the rest, and how long a run takes."""
    from cellkit.commands.machine_report import examine, report_text

    found = examine(config=given.config)
    return Answer(json_text(found) if given.json else report_text(found), DONE if found["ok"] else REFUSED)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file whose run is forecast: time and memory"
    )
    json_flag(parser)
