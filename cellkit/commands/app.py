"""The command `cellkit app`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer
from cellkit.errors import UserError

ABOUT = "a page in the browser to try models on: drop an image, move thresholds, take the cells away"
ORDER = 5
HOST, MOST_MB = "127.0.0.1", 2000.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="a run folder: its models and its worst images are offered"
    )
    parser.add_argument("--model", metavar="NAME", help="also offer this one, first: as cellkit predict takes it")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="which port (default one that is free)")
    parser.add_argument("--host", default=HOST, help=f"what to listen on (default {HOST}: this machine alone)")
    parser.add_argument(
        "--most-mb",
        metavar="MB",
        type=float,
        default=MOST_MB,
        help=f"largest file that is taken (default {MOST_MB:.0f})",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(given: argparse.Namespace) -> Answer:
    """Serve the page until Ctrl-C.

    Raises
    ------
    UserError
        A package is missing, no such run or model, or a number out of bounds.
    """
    from cellkit.pages.app.desk import Desk
    from cellkit.pages.app.server import check_installed, serve

    check_installed()
    if not 0 <= given.port <= 65535:
        raise UserError(f"--port {given.port}", "a port is a number from 1 to 65535; 0 = one that is free")
    if not given.most_mb > 0:
        raise UserError(f"--most-mb {given.most_mb:g}", "give the megabytes of the largest file")
    serve(Desk(given.run, given.model), given.host, given.port, not given.no_browser, given.most_mb)
    return Answer()
