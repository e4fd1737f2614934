"""The command line: `cellkit run | check | inspect | convert | predict | score | coco | labels | submit | ...`.

Exit codes: 0 done; 2 bad usage, configuration or input (two lines: what came, what to do); 3 done, but some items were set
aside; 130 interrupted; 1 anything else. Answers go to stdout, all else to stderr; with ``--json`` stdout is one JSON object.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from cellkit.errors import Quarantined, UserError, nearest, place_fault

DONE, FAILED, REFUSED, SKIPPED, INTERRUPTED = 0, 1, 2, 3, 130
PATH_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
SHOWN = 20  # items listed in an answer before the rest is only counted
PATHS = ("against", "coco", "coco_file", "config", "file", "given", "images", "input", "labels", "model", "out", "overlays",
         "path", "predictions", "run", "sample", "to", "truth")  # arguments in which ~ is the home folder  # fmt: skip
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # that word processors and web pages make of -


class Answer(NamedTuple):
    """What a command has to say on stdout, and its exit code."""

    text: str = ""
    code: int = DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    import contextlib

    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
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
        told = place_fault(error, "standard output")
        _silence()
        return _refuse(str(told)) if told else _report(error)
    except Exception as error:  # the last line of defence: said in a line, with the place of the traceback
        return _report(error)


def _answer(arguments: list[str]) -> Answer:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        names = ", ".join(COMMANDS)
        raise UserError(f"no command '{arguments[0]}'{nearest(arguments[0], COMMANDS)}", f"commands: {names}")
    for argument in arguments:
        if argument.startswith(tuple(DASHES)) and not os.path.lexists(argument):
            plain = "--" + argument.lstrip(DASHES + "-")
            raise UserError(
                f"'{argument}' begins with a typographic dash", f"write {plain}, or ./{argument} for a file"
            )
    parser = _parser(next((word for word in arguments if not word.startswith("-")), None))
    try:
        given = parser.parse_args(arguments)
    except _Told as told:
        return Answer(told.text)
    _check_folder()
    for name in PATHS:
        named = getattr(given, name, None)
        if named:
            setattr(given, name, _at_home(named) if isinstance(named, str) else [_at_home(one) for one in named])
    if given.command is None:
        raise UserError("no command is given", f"commands: {', '.join(COMMANDS)}; see cellkit --help")
    try:
        return given.function(given)
    except OSError as error:
        told = place_fault(error, getattr(given, "out", None) or getattr(given, "to", None) or _run_folder(given))
        if told is None or os.environ.get("CELLKIT_DEBUG") == "1":
            raise
        raise told from error


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


# ---- arguments -----------------------------------------------------------------------------------------------------
class _Told(Exception):
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
        raise _Told(self.format_help())


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> NoReturn:
        from cellkit import __version__

        raise _Told(f"cellkit {__version__}")


def _parser(chosen: str | None) -> _Parser:
    """Return the parser of all commands; only the chosen one gets its flags, which may be costly to tell."""
    parser = _Parser(prog="cellkit", description="Adapt foundation models to the cells in front of you.")
    parser.add_argument("--version", nargs=0, action=_Version, help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for name, (about, add, function) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        if name == chosen:
            add(command)
        command.set_defaults(function=function)
    return parser


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout and nothing else")


def _set_flag(parser: argparse.ArgumentParser, example: str) -> None:
    how = {"action": "extend", "nargs": "+", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", dest="overrides", **how, help=f"e.g. --set {example}")


def _skips_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-skips", action="store_true", help="exit 0, not 3, when items were set aside")


def _channel_flags(parser: argparse.ArgumentParser) -> None:
    what = "name, index from 0, or wavelength (nm); given again: the first that a file has is taken"
    parser.add_argument("--nuclei", metavar="C", action="append", help=f"channel of the nuclei: {what}")
    parser.add_argument("--cytoplasm", metavar="C", action="append", help="channel of the cytoplasm: likewise")
    parser.add_argument("--z", metavar="max|mean|focus|N", help="how a z-stack becomes one plane (default max)")
    parser.add_argument(
        "--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of a channel: become 0 and 255"
    )


def _json_text(value: Any) -> str:
    import json

    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _set_aside(quarantined: Sequence[Quarantined]) -> None:
    """List on stderr what was set aside."""
    for item in quarantined[:SHOWN]:
        print(f"set aside: {item.item}: {item.reason}", file=sys.stderr)
    if len(quarantined) > SHOWN:
        print(f"... and {len(quarantined) - SHOWN} more", file=sys.stderr)


def _code(quarantined: Sequence, allow_skips: bool) -> int:
    return SKIPPED if quarantined and not allow_skips else DONE


# ---- run, check, doctor --------------------------------------------------------------------------------------------
def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, e.g. configs/demo.yaml")
    parser.add_argument("--run", metavar="DIR", help="the run folder (default runs/<name of the config>)")
    parser.add_argument("--from", dest="from_", metavar="03", help="repeat this notebook and all after it")
    parser.add_argument("--only", metavar="05", help="repeat this notebook alone")
    parser.add_argument("--fresh", action="store_true", help="forget what the run folder holds")
    parser.add_argument("--timeout", type=float, metavar="S", help="most seconds one cell may take")
    _set_flag(parser, "finetune.steps=100")
    _skips_flag(parser)


def _run(given: argparse.Namespace) -> Answer:
    from cellkit.config_reading import set_strings
    from cellkit.runner import run_notebooks

    if given.timeout is not None and not given.timeout > 0:
        raise UserError(f"--timeout is {given.timeout:g}", "give seconds, more than 0")
    code = run_notebooks(
        given.config,
        given.run,
        from_=given.from_,
        only=given.only,
        overrides=set_strings(given.overrides),
        fresh=given.fresh,
        timeout_s=given.timeout,
        allow_skips=given.allow_skips,
    )
    return Answer(code=code)


def _add_check(parser: argparse.ArgumentParser) -> None:
    what = "a run folder: which stage is stale; or a configuration (YAML): all that is wrong with it and what it reads"
    parser.add_argument("run", metavar="RUN|CONFIG", help=what)
    more = "the configuration to judge RUN by (default: that of the last cellkit run there)"
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=more)
    parser.add_argument(
        "--run", metavar="DIR", dest="into", help="with a configuration alone: the run folder, as of `run`"
    )
    _set_flag(parser, "finetune.steps=100")
    _json_flag(parser)


def _check(given: argparse.Namespace) -> Answer:
    from cellkit.config_places import here
    from cellkit.config_reading import set_strings
    from cellkit.run_stale import check

    if not given.config and (given.run.lower().endswith((".yaml", ".yml")) or here(given.run).is_file()):
        return _check_config(given)
    if given.into:
        raise UserError(f"--run {given.into} beside the run folder {given.run}", "name one: cellkit check DIR CONFIG")
    if given.overrides and not given.config:
        raise UserError("--set without CONFIG", "name the configuration that is to be overridden")
    states = check(given.run, given.config, set_strings(given.overrides) if given.config else None)
    if given.json:
        stages = [{"name": s.name, "state": s.state, "why": s.why, "note": s.note} for s in states]
        fresh = all(state.state == "fresh" for state in states)
        return Answer(_json_text({"run": given.run, "fresh": fresh, "stages": stages}))
    lines = []
    for s in states:
        lines += [f"{s.state:<8} {s.name}{f'  ({s.why})' if s.why else ''}"]
        lines += [f"         made with {s.note}"] if s.note else []
    return Answer("\n".join(lines))


def _check_config(given: argparse.Namespace) -> Answer:
    """List everything that is wrong with a configuration and what it reads, before anything is run."""
    from cellkit.config_reading import set_strings
    from cellkit.preflight import look_at

    outlook = look_at(given.run, set_strings(given.overrides), given.into)
    code = REFUSED if outlook.errors() else DONE
    if given.json:
        return Answer(_json_text({"config": given.run, **outlook.to_json()}), code)
    return Answer("\n".join(outlook.tell()), code)


def _doctor(given: argparse.Namespace) -> Answer:
    from cellkit.doctor import examine, tell

    found = examine()
    return Answer(_json_text(found) if given.json else tell(found), DONE if found["ok"] else REFUSED)


# ---- inspect, convert ----------------------------------------------------------------------------------------------
def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="a microscope file, a picture, a COCO file, or the folder of a data set"
    )
    parser.add_argument("--source", metavar="KIND", help="layout of the folder (default: told from what lies in it)")
    parser.add_argument("--axes", metavar="AXES", help="what the axes of files are that do not say, e.g. TYX")
    _json_flag(parser)


def _inspect(given: argparse.Namespace) -> Answer:
    from cellkit.open import is_image_folder

    if not os.path.splitext(given.path)[1] and not os.path.lexists(given.path):
        raise UserError(f"no file or folder at {given.path}", "check the path")
    if os.path.isdir(given.path) and not is_image_folder(given.path):
        from cellkit.inspection import inspect_folder, tell_folder

        found, quarantined = inspect_folder(given.path, given.source, given.axes)
        _set_aside(quarantined)
        return Answer(_json_text(found) if given.json else tell_folder(found), _code(quarantined, False))
    if given.source:
        raise UserError(f"--source {given.source}, but {given.path} is no folder", "a layout is that of a folder")
    from cellkit.inspection import inspect_coco, tell_file, tell_folder
    from cellkit.open import inspect_file

    if given.path.lower().endswith(".json"):
        found = inspect_coco(given.path)
        return Answer(_json_text(found) if given.json else tell_folder(found))
    info = inspect_file(given.path, given.axes)
    return Answer(_json_text(info.to_json()) if given.json else tell_file(info))


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="PATH", nargs="+", help="microscope files, pictures, folders, patterns")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the PNGs and conversion.csv")
    _channel_flags(parser)
    parser.add_argument(
        "--percentiles-of", metavar="image|batch", help="whose percentiles: of each image (default) or all"
    )
    parser.add_argument("--axes", metavar="AXES", help="what the axes of files are that do not say, e.g. TYX")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="resize factor (default 1)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    _skips_flag(parser)


def _convert(given: argparse.Namespace) -> Answer:
    from dataclasses import replace

    from cellkit.predict import convert_files

    if given.workers < 1:
        raise UserError(f"--workers is {given.workers}", "give 1 or more")
    how = replace(
        _conversion(given, None, scale=given.scale), axes=given.axes, percentiles_of=given.percentiles_of or "image"
    )
    written, quarantined = convert_files(given.images, given.out, how, given.workers)
    _set_aside(quarantined)
    return Answer(f"{given.out}: {len(written)} picture(s)", _code(quarantined, given.allow_skips))


def _conversion(given: argparse.Namespace, of_run: Any, scale: float | None = None) -> Any:
    """Return the conversion that the options ask for, on top of that of the model's run; None when nobody says."""
    from dataclasses import replace

    from cellkit.conversion import Conversion

    asked: dict[str, Any] = {}
    if given.nuclei is not None or given.cytoplasm is not None:
        named = {"nuclei": given.nuclei, "cytoplasm": given.cytoplasm}
        channels = {name: told[0] if told and len(told) == 1 else told for name, told in named.items()}
        asked |= {"channels": channels, "always": True}
    if given.z is not None:
        asked["projection"] = int(given.z) if given.z.isdigit() else given.z
    if given.percentiles is not None:
        asked["percentiles"] = tuple(given.percentiles)
    if scale is not None:
        asked |= {"scale": scale, "always": True}
    how = replace(of_run or Conversion(), **asked) if asked else of_run
    if asked and not how.names_channels and scale is None:  # convert says which channels the file has
        raise UserError(
            "neither nuclei nor cytoplasm is named", "say which channel is which: --nuclei C and / or --cytoplasm C"
        )
    return how


# ---- predict -------------------------------------------------------------------------------------------------------
def _add_predict(parser: argparse.ArgumentParser) -> None:
    models = "a checkpoint, RUN:NAME (runs/demo:cellpose_tuned, runs/demo:maskrcnn), starter, or threshold"
    parser.add_argument("model", metavar="MODEL", help=models)
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="pictures or microscope files, folders, patterns")
    parser.add_argument("-o", "--out", required=True, metavar="OUT.json", help="COCO file with scores")
    parser.add_argument("--labels", metavar="DIR", help="also one label image (TIFF) per image")
    parser.add_argument("--overlays", metavar="DIR", help="also one PNG per image with the outlines drawn")
    parser.add_argument("--diameter", metavar="PX", help="cell diameter in px of the given files, or auto: estimated")
    _channel_flags(parser)
    _set_flag(parser, "cellprob_threshold=-1")
    _skips_flag(parser)


def _predict(given: argparse.Namespace) -> Answer:
    from cellkit.config_reading import set_strings
    from cellkit.predict import find_model, predict_files

    overrides = set_strings(given.overrides)
    if given.diameter is not None:
        if "diameter_px" in overrides:
            raise UserError("--diameter and --set diameter_px", "give one of them")
        overrides |= {"diameter_px": set_strings([f"diameter_px={given.diameter}"])["diameter_px"]}
    model = find_model(given.model, overrides)
    conversion = _conversion(given, model.conversion)
    done = predict_files(model, given.images, given.out, given.labels, given.overlays, conversion)
    _set_aside(done.quarantined)
    classes = ", ".join(f"{name} {count}" for name, count in done.cells_by_class.items() if name != "unknown")
    text = f"{done.path}: {done.images} image(s), {done.cells} cell(s){f' ({classes})' if classes else ''}"
    return Answer(text, _code(done.quarantined, given.allow_skips))


# ---- score ---------------------------------------------------------------------------------------------------------
def _add_score(parser: argparse.ArgumentParser) -> None:
    from cellkit.scores_conventions import find_conventions

    sides = (
        "a COCO file, a COCO results list, a folder of label images, a submission (with --profile), or a table of truth "
        "such as Sartorius' train.csv"
    )
    parser.add_argument("truth", metavar="TRUTH", help=sides)
    parser.add_argument("predictions", metavar="PRED", help=sides)
    parser.add_argument("--convention", metavar="A,B,...", help="some of the conventions below; default all")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "conventions:\n" + "\n".join(f"  {name:<13} {how.WHY}" for name, how in find_conventions().items())
    parser.add_argument("--by", metavar="WHAT", help="also by cell_type, group, split, class_name or size (MAP IoU)")
    parser.add_argument("--profile", metavar="P", help="how a CSV counts pixels: sartorius or dsb2018")
    parser.add_argument("--images", metavar="DIR", help="the images of a CSV, for their sizes")
    parser.add_argument(
        "--common", action="store_true", help="score the images both sides have; default: refuse others"
    )
    parser.add_argument(
        "--bootstrap", type=int, metavar="N", help="resamples of the images for intervals (default 2000)"
    )
    parser.add_argument("--against", metavar="OTHER", help="another model's predictions: say whether PRED is better")
    _from_flag(parser, "whose COCO files they are")
    _json_flag(parser)


def _score(given: argparse.Namespace) -> Answer:
    from cellkit.compare import (
        compare_models,
        image_shapes,
        match_sides,
        read_side,
        refuse_proposed,
        score_sides,
        tell_scores,
    )

    if given.bootstrap is not None and given.bootstrap < 0:
        raise UserError(f"--bootstrap is {given.bootstrap}", "give 0 (no interval) or more")
    how = {"profile": given.profile, "shapes": image_shapes(given.images) if given.images else None}
    how["convention"] = _checked_tool(given.from_)
    other = given.predictions if _is_bare(given.truth) and not given.images else None
    sized = read_side(other, **how) if other and not _is_bare(other) else None
    truth = read_side(given.truth, of=sized, **how)
    refuse_proposed(truth)
    found = sized or read_side(given.predictions, of=truth, common=given.common, **how)
    for note in dict.fromkeys([*truth.notes, *found.notes]):
        print(f"note: {note}", file=sys.stderr)
    before = truth, found
    truth, found = match_sides(truth, found, given.common)
    for note in found.notes[len(before[1].notes) :]:
        print(f"note: {note}", file=sys.stderr)
    for side in before:
        if len(side.records) > len(truth.records):
            what = f"{len(truth.records)} of the {len(side.records)} images of {side.path}"
            print(f"note: scored on {what}, those that the other side has too", file=sys.stderr)
    other = read_side(given.against, of=truth, common=given.common, **how) if given.against else None
    conventions = [name.strip() for name in given.convention.split(",")] if given.convention else None
    result = score_sides(truth, found, conventions, given.by, given.bootstrap)
    if other is not None:
        result["against"] = compare_models(truth, other, found, given.common, given.bootstrap)
    return Answer(_json_text(result) if given.json else tell_scores(result, given.truth, given.predictions))


def _is_bare(path: str) -> bool:
    """Tell whether a side is a CSV that does not say how large its images are."""
    from cellkit.submission import is_truth_table

    return path.lower().endswith(".csv") and not (os.path.isfile(path) and is_truth_table(path))


# ---- coco, labels --------------------------------------------------------------------------------------------------
def _from_flag(parser: argparse.ArgumentParser, about: str, *also: str) -> None:
    tools = "plain, cvat, fiftyone, labelstudio"
    parser.add_argument("--from", *also, dest="from_", metavar="TOOL", help=f"{about}: {tools} (default plain)")


def _checked_tool(name: str | None) -> str | None:
    from cellkit.conventions import checked

    return None if name is None else checked(name)


def _add_coco(parser: argparse.ArgumentParser) -> None:
    inputs = "folder of label images (TIFF, PNG), of Cellpose _seg.npy files or of ImageJ ROI zips; one such file; a COCO file"
    parser.add_argument("input", metavar="INPUT", help=inputs)
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the COCO file")
    parser.add_argument(
        "--format", metavar="F", help="what INPUT is: labels, seg or roi (default: told by the suffixes)"
    )
    parser.add_argument("--images", metavar="DIR", help="the pictures, matched by stem: for file names and sizes")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="class of cells without one (default cell)")
    parser.add_argument(
        "--classes", metavar="A,B", help="classes of _seg.npy files that the Cellpose GUI saved, in order"
    )
    parser.add_argument(
        "--pieces",
        metavar="HOW",
        help="a cell of several pieces in a label image: split (each a cell), keep or largest",
    )
    _from_flag(parser, "whose COCO file INPUT is")
    parser.add_argument("--convention", default="plain", metavar="TOOL", help="who reads FILE: plain, cvat or fiftyone")
    parser.add_argument("--polygons", action="store_true", help="polygons, not RLE; tells how many objects lose by it")
    _skips_flag(parser)


def _coco(given: argparse.Namespace) -> Answer:
    from cellkit.coco import write_coco
    from cellkit.conventions import WRITTEN, checked, common_folder

    checked(given.convention, WRITTEN)
    read = _of_coco if given.input.lower().endswith(".json") else _of_files
    records, instances, classes, ids, quarantined, made_by = read(given)
    _set_aside(quarantined)
    scored = any((cells.scores != 1).any() for cells in instances)
    write_coco(given.out, records, instances, classes, ids, scored, given.convention, given.polygons, made_by)
    if given.polygons:
        _tell_polygons(instances)
    folder = common_folder([record.path for record in records]) if given.convention == "fiftyone" else ""
    if folder:
        print(f"file names are relative to {folder}/, the data_path of FiftyOne's importer", file=sys.stderr)
    text = f"{given.out}: {len(records)} image(s), {sum(map(len, instances))} cell(s)"
    return Answer(text, _code(quarantined, given.allow_skips))


def _of_files(given: argparse.Namespace) -> tuple:
    """Return records, cells, classes, no ids, what was set aside, and who made the cells, of the files of a folder."""
    from cellkit.exchange import read_folder

    if given.from_:
        raise UserError(
            f"--from {given.from_}, but {given.input} is no COCO file", "--format says what label files are"
        )
    classes = [name.strip() for name in given.classes.split(",")] if given.classes else []
    side, quarantined = read_folder(given.input, given.format, given.images, classes, given.pieces)
    for note in side.notes:
        print(f"note: {note}", file=sys.stderr)
    if side.classes:
        named, instances = side.classes, side.instances
    else:
        named, instances = (given.class_name or "cell",), [cells.with_classes(1) for cells in side.instances]
    if given.class_name and side.classes:
        raise UserError(
            f"--class {given.class_name}, but the cells have classes: {', '.join(named)}", "leave out --class"
        )
    return side.records, instances, named, None, quarantined, side.made_by


def _of_coco(given: argparse.Namespace) -> tuple:
    """Return records, cells, classes, ids, nothing set aside, and who made the cells, of a COCO file."""
    if given.format or given.images or given.class_name or given.classes or given.pieces:
        raise UserError(
            f"{given.input} is a COCO file: it names its images and classes itself",
            "leave out --format, --images, --class, --classes and --pieces",
        )
    coco = _read_coco(given.input, given.from_)
    ids = coco.ids if all(isinstance(number, int) and number > 0 for number in coco.ids) else None
    if ids is None:
        count, first = len(coco.ids), coco.ids[0]
        what = f"image ids began with {first!r}: in {given.out} they are 1 to {count}"
        print(f"note: {what}, and results that name the old ids do not fit it", file=sys.stderr)
    return coco.records, coco.instances, coco.classes, ids, [], coco.made_by


def _read_coco(path: str, convention: str | None) -> Any:
    """Read a COCO file and say on stderr what was not read as it stands there."""
    from cellkit.coco import read_coco

    coco = read_coco(path, convention=convention)
    crowds = sum(map(len, coco.crowd))
    left = [f"{crowds} region(s) marked iscrowd are no single objects and left out"] if crowds else []
    for note in [*coco.notes, *left]:
        print(f"note: {note}", file=sys.stderr)
    return coco


def _tell_polygons(instances: Sequence[Any]) -> None:
    """Say on stderr what polygons lose."""
    from cellkit.outlines import polygons

    told = [polygons(cells)[1:] for cells in instances if not cells.boxes_only]
    holes, changed = (sum(pair[k] for pair in told) for k in (0, 1))
    what = f"{holes} of {sum(map(len, instances))} object(s) lose holes as polygons"
    print(f"note: {what}, {changed} have other pixels when pycocotools draws them", file=sys.stderr)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("coco_file", metavar="COCO_FILE", help="a COCO file, or a results list")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for one file per image")
    forms = "tif (default), png, seg (Cellpose GUI; needs --images) or roi (ImageJ ROI zip)"
    parser.add_argument("--format", default="tif", metavar="F", help=forms)
    parser.add_argument(
        "--images", metavar="DIR", help="the pictures, matched by stem (default those of the run folder)"
    )
    parser.add_argument(
        "--coco", metavar="FILE", help="the COCO file whose image ids a results list uses; in a run folder not needed"
    )
    parser.add_argument("--suffix", default="", metavar="TEXT", help="end of the names of tif and png, e.g. _cp_masks")
    _from_flag(parser, "whose COCO file it is", "--convention")
    _skips_flag(parser)


def _labels(given: argparse.Namespace) -> Answer:
    from cellkit.compare import is_results, read_side, run_of
    from cellkit.exchange import write_folder

    _checked_tool(given.from_)
    if os.path.isfile(given.coco_file) and is_results(given.coco_file):
        of = read_side(given.coco, convention=given.from_) if given.coco else None
        coco = read_side(given.coco_file, of=of)
        for note in coco.notes:
            print(f"note: {note}", file=sys.stderr)
    elif given.coco:
        raise UserError(f"--coco {given.coco}, but {given.coco_file} is no results list", "leave out --coco")
    else:
        coco = _read_coco(given.coco_file, given.from_)
    run = run_of(given.coco_file) if given.format == "seg" else None
    images = given.images or (run / "images" if run is not None else None)
    how = {"form": given.format, "images": images, "suffix": given.suffix}
    done = write_folder(given.out, coco.records, coco.instances, coco.classes, **how, made_by=coco.made_by)
    _set_aside(done.quarantined)
    proposed = coco.made_by.count("proposed")
    if proposed:
        where = {"seg": "the files say so", "roi": "the zips say so"}.get(
            given.format, "labels.json beside them says so"
        )
        told = f"{where} until somebody changes them, and nothing is scored against them"
        print(f"{proposed} image(s) hold what a model proposed, no truth: {told}", file=sys.stderr)
    if done.lost:
        print(f"{done.lost} cell(s) share pixels with others: the higher score kept them", file=sys.stderr)
    if done.left_out:
        print(f"{done.left_out} cell(s) without a pixel of their own are left out", file=sys.stderr)
    kind = {"seg": "_seg.npy file(s)", "roi": "ROI zip(s)"}.get(given.format, "label image(s)")
    return Answer(f"{given.out}: {done.files} {kind}", _code(done.quarantined, given.allow_skips))


# ---- submit, check-submission --------------------------------------------------------------------------------------
def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", help="a COCO file with scores, a results list, or label images"
    )
    parser.add_argument("--profile", required=True, metavar="P", help="sartorius or dsb2018")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the CSV")
    parser.add_argument(
        "--coco", metavar="FILE", help="the COCO file whose image ids a results list uses; in a run folder not needed"
    )
    parser.add_argument("--images", metavar="DIR", help="the test images: each must have a prediction")
    parser.add_argument("--min-area", type=int, default=0, metavar="PX", help="leave out smaller objects (default 0)")
    _from_flag(parser, "whose COCO files they are")


def _submit(given: argparse.Namespace) -> Answer:
    from cellkit.compare import match_sides, named_after, of_test, read_side, refuse_scaled
    from cellkit.disjoint import note_changes, resolve_overlaps
    from cellkit.leftout import LeftOut
    from cellkit.submission import get_profile, write_submission

    profile, tool = get_profile(given.profile), _checked_tool(given.from_)
    of = read_side(given.coco, convention=tool) if given.coco else None
    side = read_side(given.predictions, of=of, convention=tool)
    if of is not None and side.of_model:
        side = match_sides(of, side)[1]
    if given.images:
        side = named_after(side, given.images)
    else:
        refuse_scaled(side)
        side, note = of_test(side) if of is None else (side, "")
        if note:
            print(f"note: {note}", file=sys.stderr)
    ids = [record.image_id for record in side.records]
    resolved = [resolve_overlaps(cells, given.min_area) for cells in side.instances]
    write_submission(given.out, ids, [cells for cells, _ in resolved], profile)
    left = LeftOut()
    for image_id, (_, log) in zip(ids, resolved, strict=True):
        note_changes(left, image_id, log)
    left.say("submit")
    return Answer(f"{given.out}: {len(ids)} image(s), {sum(len(cells) for cells, _ in resolved)} object(s)")


def _add_check_submission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the CSV")
    parser.add_argument("--profile", required=True, metavar="P", help="sartorius or dsb2018")
    parser.add_argument(
        "--images", metavar="DIR", help="the original test images: also check ids, bounds, order of pixels and size"
    )
    parser.add_argument("--sample", metavar="FILE", help="sample_submission.csv: every id of it must have a row")
    _json_flag(parser)


def _check_submission(given: argparse.Namespace) -> Answer:
    from cellkit.compare import image_shapes
    from cellkit.submission import check_submission, sample_ids

    ids = sample_ids(given.sample, given.profile) if given.sample else None
    problems = check_submission(given.file, given.profile, image_shapes(given.images) if given.images else None, ids)
    code = REFUSED if problems else DONE
    if given.json:
        rows = [{"line": problem.line, "reason": problem.reason} for problem in problems]
        told = {
            "file": given.file,
            "profile": given.profile,
            "images": given.images,
            "valid": not rows,
            "problems": rows,
        }
        return Answer(_json_text(told), code)
    what = "bounds, pixel order and picture size" if given.sample else "ids, bounds, pixel order and picture size"
    unchecked = "" if given.images else f" ({what} are not checked without --images)"
    lines = [f"{given.file}: {f'{len(problems)} problem(s)' if problems else 'valid'}{unchecked}"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    return Answer(
        "\n".join([*lines, *([f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])]), code
    )


# ---- fetch ---------------------------------------------------------------------------------------------------------
def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a data set or weights; --list shows all")
    parser.add_argument("--to", metavar="DIR", help="folder (default CELLKIT_DATA or CELLKIT_WEIGHTS, else a cache)")
    how = {"dest": "given", "nargs": "+", "default": [], "metavar": "FILE"}
    parser.add_argument("--from", **how, help="files carried here by hand, or their folder: verified, no network")
    parser.add_argument(
        "--list", action="store_true", help="what can be fetched, under which licence, and what is here"
    )
    _json_flag(parser)


def _fetch(given: argparse.Namespace) -> Answer:
    from cellkit.fetch import fetch, list_entries, tell_entries, tell_fetched

    if given.list:
        rows = list_entries(given.to)
        return Answer(_json_text({"entries": rows}) if given.json else tell_entries(rows))
    if given.name is None:
        raise UserError("cellkit fetch: NAME is missing", "see: cellkit fetch --list")
    found = fetch(given.name, given.to, given.given)
    return Answer(_json_text(found) if given.json else tell_fetched(found))


COMMANDS: dict[str, tuple[str, Callable, Callable]] = {
    "run": ("run the six notebooks of a configuration, skipping what is unchanged", _add_run, _run),
    "check": ("tell which stages of a run are out of date, and why", _add_check, _check),
    "inspect": ("tell what a microscope file or a data set holds", _add_inspect, _inspect),
    "convert": ("turn microscope files into pictures (nuclei blue, cytoplasm green)", _add_convert, _convert),
    "predict": ("find the cells of images with any model", _add_predict, _predict),
    "score": ("score predictions against the truth, conventions side by side", _add_score, _score),
    "coco": ("turn label images, Cellpose files or ROI zips into a COCO file", _add_coco, _coco),
    "labels": ("turn a COCO file into label images, Cellpose files or ROI zips", _add_labels, _labels),
    "submit": ("write predictions as a Kaggle submission", _add_submit, _submit),
    "check-submission": ("find all that Kaggle would refuse in a submission", _add_check_submission, _check_submission),
    "fetch": ("download public data sets and weights, verified", _add_fetch, _fetch),
    "doctor": ("tell what this machine can run, and what to install for the rest", _json_flag, _doctor),
}


if __name__ == "__main__":
    sys.exit(main())
