"""The command `cellkit fetch`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer, json_flag, json_text
from cellkit.errors import UserError

ABOUT = "download public data sets and weights, verified"
ORDER = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a data set or weights; --list shows all")
    parser.add_argument("--to", metavar="DIR", help="folder (default CELLKIT_DATA or CELLKIT_WEIGHTS, else a cache)")
    how = {"dest": "given", "nargs": "+", "default": [], "metavar": "FILE"}
    parser.add_argument("--from", **how, help="files carried here by hand, or their folder: verified, no network")
    parser.add_argument(
        "--list", action="store_true", help="what can be fetched, under which licence, and what is here"
    )
    json_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Download public data sets and weights, verified.

    Raises
    ------
    UserError
        No name; or as `cellkit.fetch.fetch.fetch`.
    """
    from cellkit.fetch.fetch import fetch, list_entries
    from cellkit.fetch.words import entries_text, fetched_text

    if given.list:
        rows = list_entries(given.to)
        return Answer(json_text({"entries": rows}) if given.json else entries_text(rows))
    if given.name is None:
        raise UserError("cellkit fetch: NAME is missing", "see: cellkit fetch --list")
    found = fetch(given.name, given.to, given.given)
    return Answer(json_text(found) if given.json else fetched_text(found))
