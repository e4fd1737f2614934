"""The command `cellkit kaggle-bundle`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer, set_flag
from cellkit.errors import counted
from cellkit.modules import names_of

ABOUT = "a model as a folder that writes a submission without a network"
ORDER = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "model",
        metavar="RUN[:NAME]",
        help="a model of a finished run; RUN alone: the one 06 handed in; a file of models, or RUN/folds/of_5:NAME",
    )
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the bundle: a folder, or a .zip file")
    parser.add_argument("--profile", metavar="P", help=f"{' or '.join(names_of('competition'))} (default: the run's)")
    parser.add_argument(
        "--wheels", metavar="DIR", help="folder of wheels: those of the lock are copied into the bundle"
    )
    parser.add_argument("--lock", metavar="FILE", help="locked packages with hashes (default: requirements/lock.txt)")
    set_flag(parser, "min_area_px=80")


def run(given: argparse.Namespace) -> Answer:
    """Write the bundle of a model.

    Raises
    ------
    UserError
        As `write_bundle`.
    """
    from cellkit.config.reading import set_strings
    from cellkit.predict.kaggle_bundle import profile_of, write_bundle

    profile = given.profile or profile_of(given.model)
    made = write_bundle(given.model, given.out, profile, set_strings(given.overrides), given.wheels, given.lock)
    wheels = sum(name.endswith(".whl") for name in made["files"])
    text = (
        f"{given.out}: {made['model']} for {profile}, {counted(len(made['files']), 'file')}, {counted(wheels, 'wheel')}"
    )
    return Answer(text)
