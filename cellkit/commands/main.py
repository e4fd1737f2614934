"""The command line: `cellkit run | check | inspect | convert | predict | score | coco | labels | submit | ...`.

Exit codes: 0 done; 2 bad usage, configuration or input (two lines: what came, what to do); 3 done, but some items were
skipped; 130 interrupted; 1 anything else. Answers go to stdout, all else to stderr; with ``--json`` stdout is one JSON object.
Nothing heavy is imported before a command needs it.

A command is a module ``cellkit/commands/NAME.py``, found by its file: ``ABOUT`` (a sentence), ``add_flags(parser)``,
``run(given)`` and ``ORDER``, its place in the help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from cellkit.commands.shared import DONE, FAILED, INTERRUPTED, REFUSED, Answer
from cellkit.errors import UserError, nearest, place_fault
from cellkit.log import show_log
from cellkit.modules import load_all

PATH_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
PATHS = ("against", "cells", "coco", "coco_file", "config", "curve", "file", "fuse", "given", "images", "input", "into",
         "labelled", "labels", "lock", "measurements", "model", "nuclei_labels", "out", "overlays", "path", "predictions",
         "run", "sample", "to", "truth", "wheels")  # arguments where ~ is the home folder  # fmt: skip
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # that word processors and web pages make of -


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    import contextlib

    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    show_log()  # on stderr, as stdout is sent there until the answer is ready
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = _answer(arguments)
        if answer.text:
            print(answer.text.rstrip("\n"))
        sys.stdout.flush()
        return answer.code
    except UserError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        _silence()
        return DONE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except PATH_ERRORS as error:
        if error.filename is None or os.environ.get("CELLKIT_DEBUG") == "1":
            return _report(error)
        return _refuse(f"'{error.filename}': {error.strerror}\ncheck the path")
    except OSError as error:
        fault = place_fault(error, "standard output")
        _silence()
        return _refuse(str(fault)) if fault else _report(error)
    except Exception as error:  # the last line of defence: said in a line, with the place of the traceback
        return _report(error)


def _answer(arguments: list[str]) -> Answer:
    commands = find_commands()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        names = ", ".join(commands)
        raise UserError(f"no command '{arguments[0]}'{nearest(arguments[0], commands)}", f"commands: {names}")
    for argument in arguments:
        if argument.startswith(tuple(DASHES)) and not os.path.lexists(argument):
            plain = "--" + argument.lstrip(DASHES + "-")
            raise UserError(
                f"'{argument}' begins with a typographic dash", f"write {plain}, or ./{argument} for a file"
            )
    parser = _parser(commands, next((word for word in arguments if not word.startswith("-")), None))
    try:
        given = parser.parse_args(arguments)
    except _HelpText as fault:
        return Answer(fault.text)
    _check_folder()
    for name in PATHS:
        named = getattr(given, name, None)
        if named == "" or (isinstance(named, list) and "" in named):
            remedy = "name a file or folder; . is the current one. Is a variable unset?"
            raise UserError(f"a path is empty ({name.replace('_', ' ')})", remedy)
        if named:
            setattr(given, name, _at_home(named) if isinstance(named, str) else [_at_home(one) for one in named])
    if given.command is None:
        raise UserError("no command is given", f"commands: {', '.join(commands)}; see cellkit --help")
    try:
        return _with_cluster(given)
    except OSError as error:
        fault = place_fault(error, getattr(given, "out", None) or getattr(given, "to", None) or _run_folder(given))
        if fault is None or os.environ.get("CELLKIT_DEBUG") == "1":
            raise
        raise fault from error


def _with_cluster(given: argparse.Namespace) -> Answer:
    """Run a command; its loops run on the cluster that it or the environment names. A run opens one in each notebook."""
    named = getattr(given, "on_cluster", None) or os.environ.get("CELLKIT_CLUSTER")
    if not named or not hasattr(given, "on_cluster") or given.command == "run":
        return given.function(given)
    from cellkit.cluster.opened import cluster_of

    with cluster_of(given.on_cluster, getattr(given, "workers", None) or 1):
        return given.function(given)


def _open_streams() -> None:
    """Let what a stream's encoding lacks be escaped as in JSON, and a stream that was closed (``>&-``) take all.

    A descriptor left closed would be that of the first file opened: it would get what was meant for the stream.
    """
    import codecs
    import json

    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(nowhere, True)
        os.close(nowhere)
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as we live
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    escape = lambda error: ("".join(json.dumps(c)[1:-1] for c in error.object[error.start : error.end]), error.end)  # noqa: E731
    codecs.register_error("cellkit-json", escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="cellkit-json")


def _check_folder() -> None:
    """Refuse to start in a folder that is gone: relative names count from it, and a kernel is started in it."""
    try:
        os.getcwd()
    except OSError as error:
        why = "was deleted or moved" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"the current folder {why}", "change to a folder that is there (cd), then repeat") from None


def _at_home(path: str) -> str:
    """Return a path with its ``~`` as the home folder: the shell leaves that of ``--out=~/x`` and ``"~/x"`` alone."""
    found = os.path.expanduser(path)
    user, slash, _ = found.partition("/")
    if user.startswith("~") and slash and not os.path.lexists(user):
        raise UserError(
            f"'{path}': no home folder of {user} is known", f"write it in full, or ./{path} for a folder {user}"
        )
    return found


def _run_folder(given: argparse.Namespace) -> str:
    """Return the run folder that a command writes to; "" for a command that writes to none."""
    if given.command != "run":
        return ""
    return given.run or f"runs/{os.path.splitext(os.path.basename(given.config))[0]}"


def _refuse(message: str) -> int:
    """Say in two lines what came and what to do."""
    first, *rest = message.splitlines() or ["bad input"]
    print(first, file=sys.stderr)
    if rest:
        print("; ".join(rest), file=sys.stderr)
    return REFUSED


def _report(error: Exception) -> int:
    """Say in two lines what failed and where the traceback is; with CELLKIT_DEBUG=1 show it here."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    if os.environ.get("CELLKIT_DEBUG") == "1":
        print(text, file=sys.stderr)
        return FAILED
    first = (str(error).splitlines() or [""])[0][:300]
    print(f"failed: {type(error).__name__}: {first}", file=sys.stderr)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="cellkit-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write(text)
        print(f"traceback: {file.name} (or repeat with CELLKIT_DEBUG=1)", file=sys.stderr)
    except OSError:  # no room for a log either
        print("repeat with CELLKIT_DEBUG=1 for the traceback", file=sys.stderr)
    return FAILED


def _silence() -> None:
    """Nobody reads any more: let what is still buffered go nowhere, without a complaint at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


class _HelpText(Exception):
    """Help or the version was asked for: the text to print."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of printing and leaving."""

    def __init__(self, **how: Any):
        super().__init__(allow_abbrev=False, **how)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", f"see: {self.prog} --help")

    def print_help(self, file=None) -> None:
        raise _HelpText(self.format_help())


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> NoReturn:
        from cellkit import __version__

        raise _HelpText(f"cellkit {__version__}")


def find_commands() -> dict[str, ModuleType]:
    """Return the commands by name, in the order of the help: the modules ``cellkit/commands/NAME.py``."""
    return {name.replace("_", "-"): module for name, module in load_all("command").items()}


def _parser(known: Mapping[str, ModuleType], chosen: str | None) -> _Parser:
    """Return the parser of all commands; only the chosen one gets its flags, which may be costly to tell."""
    parser = _Parser(prog="cellkit", description="Adapt foundation models to the cells in front of you.")
    parser.add_argument("--version", nargs=0, action=_Version, help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for name, module in known.items():
        about = module.ABOUT
        command = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        if name == chosen:
            module.add_flags(command)
        command.set_defaults(function=module.run)
    return parser
