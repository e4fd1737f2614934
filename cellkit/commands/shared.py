"""What several commands share: their answer, exit codes and flags."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from cellkit.errors import Quarantined, UserError, counted

DONE, FAILED, REFUSED, SKIPPED, INTERRUPTED = 0, 1, 2, 3, 130
SHOWN = 20  # items listed in an answer before the rest is only counted


class Answer(NamedTuple):
    """What a command has to say on stdout, and its exit code."""

    text: str = ""
    code: int = DONE


def json_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout and nothing else")


def set_flag(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--set``."""
    how = {"action": "extend", "nargs": "+", "default": [], "metavar": "KEY=VALUE"}
    parser.add_argument("--set", dest="overrides", **how, help=f"e.g. --set {example}")


def skips_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--allow-skips``."""
    parser.add_argument("--allow-skips", action="store_true", help="exit 0, not 3, when items were skipped")


def cluster_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--cluster``; `cellkit.commands.main` lets the loops of the command run there."""
    kinds = (
        "local, slurm, lsf, pbs, sge, kubernetes, a scheduler's address or file, or a YAML file of the keys of cluster"
    )
    parser.add_argument("--cluster", dest="on_cluster", metavar="C", help=f"share the images there: {kinds}")


def force_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--force``."""
    parser.add_argument("--force", action="store_true", help="begin although the forecast fits no memory or disk here")


def channel_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a conversion."""
    what = "name, index from 0, or wavelength (nm); given again: the first that a file has is taken"
    parser.add_argument("--nuclei", metavar="C", action="append", help=f"channel of the nuclei: {what}")
    parser.add_argument("--cytoplasm", metavar="C", action="append", help="channel of the cytoplasm: likewise")
    parser.add_argument("--z", metavar="max|mean|focus|N", help="how a z-stack becomes one plane (default max)")
    parser.add_argument(
        "--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of a channel: become 0 and 255"
    )


def json_text(value: Any) -> str:
    """Return one JSON object as text."""
    import json

    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def list_quarantined(quarantined: Sequence[Quarantined]) -> None:
    """List on stderr what was skipped, and why."""
    for item in quarantined[:SHOWN]:
        print(f"skipped: {item.item}: {item.reason}", file=sys.stderr)
    if len(quarantined) > SHOWN:
        print(f"... and {len(quarantined) - SHOWN} more", file=sys.stderr)


def exit_code(quarantined: Sequence, allow_skips: bool) -> int:
    """Return the exit code of a command: 3 where it skipped items."""
    return SKIPPED if quarantined and not allow_skips else DONE


def conversion_of(given: argparse.Namespace, of_run: Any, scale: float | None = None) -> Any:
    """Return the conversion that the options ask for, on top of that of the model's run; None when nobody says.

    Raises
    ------
    UserError
        Options that exclude one another, or no channel is named.
    """
    from dataclasses import replace

    from cellkit.microscope.convert import Conversion

    changes: dict[str, Any] = {}
    if given.nuclei is not None or given.cytoplasm is not None:
        named = {"nuclei": given.nuclei, "cytoplasm": given.cytoplasm}
        channels = {name: names[0] if names and len(names) == 1 else names for name, names in named.items()}
        changes |= {"channels": channels, "always": True}
    if given.z is not None:
        changes["projection"] = int(given.z) if given.z.isdecimal() else given.z
    if given.percentiles is not None:
        changes["percentiles"] = tuple(given.percentiles)
    if scale is not None:
        changes |= {"scale": scale, "always": True}
    how = replace(of_run or Conversion(), **changes) if changes else of_run
    if changes and not how.names_channels and scale is None:  # convert says which channels the file has
        raise UserError(
            "neither nuclei nor cytoplasm is named", "say which channel is which: --nuclei C and / or --cytoplasm C"
        )
    return how


def check_file_name(path: str) -> None:
    """Refuse a folder where a file is to be written: one that is there, or a name that ends as one.

    Raises
    ------
    UserError
        It is a folder.

    Examples
    --------
    >>> check_file_name("out/a.json")
    """
    if os.path.isdir(path) or path.endswith(("/", os.sep)):
        raise UserError(f"-o {path} is a folder", "name the file to write")


def is_bare_csv(path: str) -> bool:
    """Tell whether a side is a CSV that does not say how large its images are."""
    from cellkit.formats.submission import is_truth_table

    return path.lower().endswith(".csv") and not (os.path.isfile(path) and is_truth_table(path))


def workers_flag(parser: argparse.ArgumentParser, about: str = "processes") -> None:
    """Add ``--workers``."""
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=f"{about} (default 1)")


def workers_of(given: argparse.Namespace) -> int:
    """Return what ``--workers`` says.

    Raises
    ------
    UserError
        Below 1.
    """
    if given.workers < 1:
        raise UserError(f"--workers is {given.workers}", "give 1 or more")
    return given.workers


def from_flag(parser: argparse.ArgumentParser, about: str, *also: str) -> None:
    """Add ``--from``, the tool whose COCO file it is."""
    tools = "plain, cvat, fiftyone, labelstudio"
    parser.add_argument("--from", *also, dest="from_", metavar="TOOL", help=f"{about}: {tools} (default plain)")


def checked_tool(name: str | None) -> str | None:
    """Return the name of a tool, checked."""
    from cellkit.formats.coco_dialects import checked

    return None if name is None else checked(name)


def read_coco_of(path: str, convention: str | None) -> Any:
    """Read a COCO file and say on stderr what was not read as it stands there."""
    from cellkit.cells.dataset import known_in_part
    from cellkit.formats.coco_reading import read_coco

    coco = read_coco(path, convention=convention)
    for note in filter(None, [*coco.notes, known_in_part(coco.instances)]):
        print(f"note: {note}", file=sys.stderr)
    return coco


def note_polygons(instances: Sequence[Any]) -> None:
    """Say on stderr what polygons lose."""
    from cellkit.cells.outlines import polygons

    counts = [polygons(cells)[1:] for cells in instances if not cells.boxes_only]
    holes, changed = (sum(pair[k] for pair in counts) for k in (0, 1))
    what = f"as polygons, {holes} of {counted(sum(map(len, instances)), 'object')} lost holes"
    print(f"note: {what}, {changed} changed pixels (as pycocotools draws them)", file=sys.stderr)
