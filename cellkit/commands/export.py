"""The command `cellkit export`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer, set_flag
from cellkit.errors import UserError, nearest
from cellkit.export import FORMATS

ABOUT = "a model for other programs: bioimage.io, ONNX, TorchScript, Hugging Face"
ORDER = 9


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", help="RUN:NAME, starter, or a checkpoint")
    parser.add_argument("--format", required=True, metavar="F", help=", ".join(FORMATS))
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="what is written; a folder for huggingface")
    parser.add_argument("--licence", metavar="SPDX", help="e.g. CC-BY-4.0 (default: the one its card begins with)")
    parser.add_argument(
        "--author", metavar="NAME", action="append", default=[], help="of the package; may be given again"
    )
    set_flag(parser, "cellprob_threshold=1")


def run(given: argparse.Namespace) -> Answer:
    """Write the model.

    Raises
    ------
    UserError
        An unknown format; or as `cellkit.export.formats.export_model`.
    """
    from cellkit.config.reading import set_strings
    from cellkit.export.formats import export_model
    from cellkit.predict.model import find_model

    if given.format not in FORMATS:
        raise UserError(
            f"'{given.format}' is no format of a model{nearest(given.format, FORMATS)}", f"use {', '.join(FORMATS)}"
        )
    _refuse_several(given.model)
    model = find_model(given.model, set_strings(given.overrides))
    return Answer("\n".join(export_model(model, given.format, given.out, given.licence, given.author)))


def _refuse_several(name: str) -> None:
    """Refuse a file of models, and the folds of a run: no format holds several models."""
    from cellkit.predict.joined import SUFFIXES, is_folds

    if name.lower().endswith(SUFFIXES) or is_folds(name):
        raise UserError(
            f"{name} is made of several models, which no format holds",
            "export each of them, or take all along for a competition: cellkit kaggle-bundle",
        )
