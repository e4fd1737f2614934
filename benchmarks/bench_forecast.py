"""How far the forecasts of runs were off: a table of what was said before and what was taken, from their manifests.

    .venv/bin/python benchmarks/bench_forecast.py runs/demo runs/two_lines
    .venv/bin/python benchmarks/bench_forecast.py --stages runs/demo

Minutes are those of a computer that does nothing else: on one thread the processor's own; "-" of runs in which too little is
trained to be timed. `cellkit check RUN` says the same in a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellkit.run.foretold import undisturbed_s

MB = 1e6


def rows_of(run: Path) -> dict[str, tuple[float | None, ...]]:
    """Return {stage or "whole": (seconds said, taken, memory said, taken, disk said, taken)} of a run; memory and disk in MB.

    Seconds that were said are None of a run that was not timed; {} where nothing was foretold of any stage that is done.
    """
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    done = {name: one for name, one in manifest.get("forecast", {}).items() if "took_disk_bytes" in one}
    done = {name: one for name, one in done.items() if one["seconds"]} or done
    if not done:
        return {}
    rows = {name: tuple(_values(one, manifest["stages"][name])) for name, one in done.items()}
    columns = list(zip(*rows.values(), strict=True))
    disk = [_most(done, *keys) for keys in (("disk_bytes", "kept_bytes"), ("took_disk_bytes", "took_kept_bytes"))]
    seconds = None if None in columns[0] else sum(columns[0])
    return rows | {"whole": (seconds, sum(columns[1]), max(columns[2]), max(columns[3]), *disk)}


def _values(one: Mapping[str, Any], entry: Mapping[str, Any]) -> list[float | None]:
    memory, disk = ([one[key] / MB, one[f"took_{key}"] / MB] for key in ("peak_bytes", "disk_bytes"))
    return [one["seconds"], one.get("took_undisturbed_s") or undisturbed_s(entry), *memory, *disk]


def _most(done: Mapping[str, Mapping[str, Any]], while_at_work: str, kept: str) -> float:
    """Return the most disk of a whole run (MB): what stays of the stages before, and what one at work takes."""
    most = stayed = 0.0
    for one in done.values():
        most, stayed = max(most, stayed + one[while_at_work]), stayed + one[kept]
    return most / MB


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--stages", action="store_true", help="a row for each stage too")
    given = parser.parse_args()
    print("| run | s forecast | taken | off | memory, MB | taken | off | disk, MB | taken | off |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for run in given.runs:
        rows = rows_of(run)
        if not rows:
            print(f"{run}: no stage that is done was foretold", file=sys.stderr)
        for name, values in rows.items():
            if given.stages or name == "whole":
                cells = [run.name if name == "whole" else f"{run.name}: {name}"]
                for said, taken in zip(values[::2], values[1::2], strict=True):
                    off = "-" if said is None else f"{100 * (said / max(taken, 0.1) - 1):+.0f} %"
                    cells += ["-" if said is None else f"{said:,.0f}", f"{taken:,.0f}", off]
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
