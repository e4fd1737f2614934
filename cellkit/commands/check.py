"""The command `cellkit check`."""

from __future__ import annotations

import argparse

from cellkit.commands.shared import DONE, REFUSED, Answer, json_flag, json_text, set_flag
from cellkit.errors import UserError

ABOUT = "list all that is wrong with a configuration, or which stages of a run are out of date, and why"
ORDER = 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    what = "a configuration (YAML): all that is wrong with it, and what it reads; or a run folder: which stages are out of date"
    parser.add_argument("run", metavar="RUN|CONFIG", help=what)
    more = "the configuration to compare RUN with (default: that of the last cellkit run there)"
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=more)
    parser.add_argument(
        "--run", metavar="DIR", dest="into", help="with a configuration alone: the run folder, as of `run`"
    )
    set_flag(parser, "finetune.steps=100")
    json_flag(parser)


def run(given: argparse.Namespace) -> Answer:
    """List all that is wrong with a configuration, or which stages of a run are out of date, and why.

    Raises
    ------
    UserError
        Options that do not go together; or as `cellkit.run.stale.check`.
    """
    from cellkit.config.reading import set_strings
    from cellkit.forecast.words import summed_up
    from cellkit.machine import here
    from cellkit.manifest import read_manifest
    from cellkit.run.stale import check

    if not given.config and (given.run.lower().endswith((".yaml", ".yml")) or here(given.run).is_file()):
        return _check_config(given)
    if given.into:
        raise UserError(f"--run {given.into} beside the run folder {given.run}", "name one: cellkit check DIR CONFIG")
    if given.overrides and not given.config:
        raise UserError("--set without CONFIG", "name the configuration that is to be overridden")
    states = check(given.run, given.config, set_strings(given.overrides) if given.config else None)
    manifest = read_manifest(here(given.run))
    told = manifest.get("forecast", {})
    if given.json:
        stages = [{"name": s.name, "state": s.state, "why": s.why, "note": s.note} for s in states]
        fresh = all(state.state == "fresh" for state in states)
        return Answer(json_text({"run": given.run, "fresh": fresh, "stages": stages, "forecast": told}))
    lines = []
    for s in states:
        lines += [f"{s.state:<8} {s.name}{f'  ({s.why})' if s.why else ''}"]
        lines += [f"         made with {s.note}"] if s.note else []
    if took := summed_up(told):
        lines.append(f"took     {took}")
    for section, one in manifest.get("searches", {}).items():
        lines.append(f"search   of {section}: {summed_up({section: one})}")
    return Answer("\n".join(lines))


def _check_config(given: argparse.Namespace) -> Answer:
    """List everything that is wrong with a configuration and what it reads, before anything is run."""
    from cellkit.config.reading import set_strings
    from cellkit.run.preflight import check_file

    outlook = check_file(given.run, set_strings(given.overrides), given.into)
    code = REFUSED if outlook.errors() else DONE
    if given.json:
        return Answer(json_text({"config": given.run, **outlook.to_json()}), code)
    return Answer("\n".join(outlook.to_lines()), code)
