"""The command `cellkit convert`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import (
    Answer,
    channel_flags,
    cluster_flag,
    conversion_of,
    exit_code,
    force_flag,
    list_quarantined,
    skips_flag,
    workers_flag,
    workers_of,
)
from cellkit.errors import counted

ABOUT = "turn microscope files into pictures (nuclei blue, cytoplasm green)"
ORDER = 3


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("images", metavar="PATH", nargs="+", help="microscope files, pictures, folders, patterns")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the PNGs and conversion.csv")
    channel_flags(parser)
    parser.add_argument(
        "--percentiles-of", metavar="image|batch", help="whose percentiles: of each image (default) or all"
    )
    parser.add_argument("--axes", metavar="AXES", help="axes of files that do not state them, e.g. TYX")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="resize factor (default 1)")
    workers_flag(parser)
    cluster_flag(parser)
    force_flag(parser)
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Turn microscope files into pictures (nuclei blue, cytoplasm green).

    Raises
    ------
    UserError
        A number of workers below 1; or as `cellkit.predict.files.convert_files`.
    """
    from dataclasses import replace
    from pathlib import Path

    from cellkit.commands.loops import loop_of_convert
    from cellkit.predict.images import convert_files

    workers = workers_of(given)
    how = replace(
        conversion_of(given, None, scale=given.scale), axes=given.axes, percentiles_of=given.percentiles_of or "image"
    )
    loop = loop_of_convert(given, how)
    written, quarantined = convert_files(given.images, given.out, how, workers, loop.begin)
    loop.end([Path(given.out)])
    list_quarantined(quarantined)
    return Answer(f"{given.out}: {counted(len(written), 'picture')}", exit_code(quarantined, given.allow_skips))
