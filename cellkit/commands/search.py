"""The command `cellkit search`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cellkit.commands.shared import Answer, force_flag, set_flag
from cellkit.errors import UserError

ABOUT = "search settings of a training: many with few steps, the better half with twice as many"
ORDER = 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, e.g. configs/demo.yaml")
    values = "values to try, all of one section; may be repeated: every combination is a trial"
    parser.add_argument("--over", metavar="KEY=V,V", action="append", default=[], help=values)
    cost = "most that it may cost, in whole trainings (default 6: eight trials, two of them to the end)"
    parser.add_argument("--budget", type=float, default=6.0, metavar="N", help=cost)
    parser.add_argument("--run", metavar="DIR", help="the run folder (default runs/<name of the config>)")
    force_flag(parser)
    set_flag(parser, "finetune.steps=100")


def run(given: argparse.Namespace) -> Answer:
    """Search settings of a training."""
    from cellkit.config.reading import set_strings
    from cellkit.run.search import run_search
    from cellkit.show.search import show_search
    from cellkit.show.style import save_figure

    overrides = set_strings(given.overrides)
    done = run_search(given.config, over_of(given.over), given.budget, given.run, overrides, force=given.force)
    if done.code:
        return Answer(code=done.code)
    picture = save_figure(show_search(done.table), done.path.with_suffix(".png"))
    best = done.best
    last = done.table[done.table["trial"] == best.number].iloc[-1]
    first = done.table[(done.table["trial"] == 0)].iloc[-1]
    lines = [
        done.table.drop(columns="images")
        .round({"score": 3})
        .to_string(index=False, float_format=lambda value: f"{value:.4g}"),
        f"compared on {done.who}; they chose, so the best score flatters",
        f"best: trial {best.number}, {last['score']:.3f}; the configuration as it is {first['score']:.3f} (rung {first['rung']})",
        f"use it: {run_with(given.config, best.changes, given.overrides, given.run)}"
        if best.changes
        else "nothing that was tried is better than the configuration",
        f"written: {done.path}, {picture}",
    ]
    return Answer("\n".join(lines))


def run_with(config: str, changes: Mapping[str, Any], overrides: Sequence[str] = (), run: str | None = None) -> str:
    """Return the command, for a shell, that runs a configuration with the settings of a trial.

    Examples
    --------
    >>> run_with("my cells.yaml", {"finetune.steps": 9, "finetune.crop_px": None}, ["finetune.steps=5", "data=d"], "r")
    "cellkit run 'my cells.yaml' --set data=d finetune.steps=9 finetune.crop_px=null --run r"
    """
    kept = [text for text in overrides if text.partition("=")[0].strip() not in changes]
    chosen = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]  # which YAML reads
    return shlex.join(["cellkit", "run", config, "--set", *kept, *chosen, *(["--run", run] if run else [])])


def over_of(strings: list[str]) -> dict[str, list[Any]]:
    """Return the values to try by key, from ``KEY=V,V``.

    Raises
    ------
    UserError
        A key without values, given twice, or with a value twice.

    Examples
    --------
    >>> over_of(["maskrcnn.learning_rate=1e-3,0.0005", "maskrcnn.backbone=[a, b]"])
    {'maskrcnn.learning_rate': [0.001, 0.0005], 'maskrcnn.backbone': ['a', 'b']}
    """
    from cellkit.config.reading import set_strings

    over: dict[str, list[Any]] = {}
    for string in strings:
        key, equals, text = string.partition("=")
        text = text.strip()
        if not equals or not text:
            raise UserError(
                f"--over {string!r} has no values", "write it as --over finetune.learning_rate=0.001,0.0005"
            )
        listed = text if text.startswith("[") and text.endswith("]") else f"[{text}]"
        if key.strip() in over:
            raise UserError(f"--over {key.strip()} is given twice", "give each key once, with all its values")
        values = [_number(value) for value in set_strings([f"{key}={listed}"])[key.strip()]]
        if any(value in values[:k] for k, value in enumerate(values)):
            raise UserError(f"--over {key.strip()} has a value twice", "give each value once")
        over[key.strip()] = values
    return over


def _number(value: Any) -> Any:
    """Return 1e-3, which YAML reads as text, as a number; anything else as it is."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) and value[:1].isdigit() else value
    return value
