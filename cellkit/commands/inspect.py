"""The command `cellkit inspect`."""

from __future__ import annotations

import argparse
import os

from cellkit.commands.shared import Answer, exit_code, json_flag, json_text, list_quarantined
from cellkit.errors import UserError

ABOUT = "list what a microscope file or a data set holds"
ORDER = 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "path", metavar="PATH", help="a microscope file, a picture, a COCO file, or the folder of a data set"
    )
    parser.add_argument("--source", metavar="KIND", help="layout of the folder (default: recognised by what is in it)")
    parser.add_argument("--axes", metavar="AXES", help="axes of files that do not state them, e.g. TYX")
    json_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """List what a microscope file or a data set holds.

    Raises
    ------
    UserError
        Nothing at that path, or a layout given for a file that is no folder.
    """
    from cellkit.microscope.open import is_image_folder

    if not os.path.splitext(given.path)[1] and not os.path.lexists(given.path):
        raise UserError(f"no file or folder at {given.path}", "check the path")
    if os.path.isdir(given.path) and not is_image_folder(given.path):
        from cellkit.sources.inspection import folder_to_text, inspect_folder

        found, quarantined = inspect_folder(given.path, given.source, given.axes)
        list_quarantined(quarantined)
        return Answer(json_text(found) if given.json else folder_to_text(found), exit_code(quarantined, False))
    if given.source:
        raise UserError(f"--source {given.source}, but {given.path} is no folder", "a layout is that of a folder")
    from cellkit.microscope.open import inspect_file
    from cellkit.sources.inspection import file_to_text, folder_to_text, inspect_coco

    if given.path.lower().endswith(".json"):
        found = inspect_coco(given.path)
        return Answer(json_text(found) if given.json else folder_to_text(found))
    info = inspect_file(given.path, given.axes)
    return Answer(json_text(info.to_json()) if given.json else file_to_text(info))
