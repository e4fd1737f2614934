"""The command `cellkit run`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import Answer, cluster_flag, force_flag, set_flag, skips_flag
from cellkit.errors import UserError

ABOUT = "run the six notebooks of a configuration, skipping what is unchanged"
ORDER = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, e.g. configs/demo.yaml")
    parser.add_argument("--run", metavar="DIR", help="the run folder (default runs/<name of the config>)")
    parser.add_argument("--from", dest="from_", metavar="03", help="repeat this notebook and all after it")
    parser.add_argument("--only", metavar="05", help="repeat this notebook alone")
    parser.add_argument("--until", metavar="04", help="stop after this notebook")
    parser.add_argument("--fresh", action="store_true", help="forget what the run folder holds")
    parser.add_argument("--folds", type=int, metavar="K", help="once for each of K parts held back, in DIR/folds/of_K")
    force_flag(parser)
    parser.add_argument("--timeout", type=float, metavar="S", help="most seconds one cell may take")
    cluster_flag(parser)
    set_flag(parser, "finetune.steps=100")
    skips_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """Run the six notebooks of a configuration, skipping what is unchanged.

    Raises
    ------
    UserError
        A timeout that is not above 0; or as `cellkit.run.runner.run_notebooks` and `cellkit.run.folds.run_folds`.
    """
    from cellkit.cluster.setting import read_setting
    from cellkit.config.reading import set_strings
    from cellkit.run.folds import run_folds
    from cellkit.run.runner import run_notebooks

    if given.timeout is not None and not given.timeout > 0:
        raise UserError(f"--timeout is {given.timeout:g}", "give seconds, more than 0")
    overrides, how = set_strings(given.overrides), {"from_": given.from_, "only": given.only, "fresh": given.fresh}
    how |= {"until": given.until, "timeout_s": given.timeout, "allow_skips": given.allow_skips}
    if given.on_cluster is not None:
        overrides = {"cluster": read_setting(given.on_cluster, "--cluster").model_dump(exclude_unset=True), **overrides}
    how |= {"force": given.force}
    if given.folds is not None:
        return Answer(code=run_folds(given.config, given.folds, given.run, overrides, **how))
    return Answer(code=run_notebooks(given.config, given.run, overrides=overrides, **how))
