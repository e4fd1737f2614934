"""How far the forecasts of runs were off: a table of what was said before and what was taken, from their manifests.

    .venv/bin/python benchmarks/bench_forecast.py runs/demo runs/two_lines
    .venv/bin/python benchmarks/bench_forecast.py --stages runs/demo

Minutes are those of a computer that does nothing else: on one thread the processor's own. `cellkit check RUN` says the same in a
line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellkit.run.foretold import undisturbed_s

MB = 1e6


def rows_of(run: Path) -> dict[str, tuple[float, ...]]:
    """Return {stage or "whole": (seconds said, taken, memory said, taken, disk said, taken)} of a run; memory and disk in MB."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    told = manifest["forecast"]
    done = {name: one for name, one in told.items() if "took_disk_bytes" in one and one["seconds"]}
    rows = {name: tuple(_values(one, manifest["stages"][name])) for name, one in done.items()}
    columns = list(zip(*rows.values(), strict=True))
    disk = [_most(done, *keys) for keys in (("disk_bytes", "kept_bytes"), ("took_disk_bytes", "took_kept_bytes"))]
    return rows | {"whole": (sum(columns[0]), sum(columns[1]), max(columns[2]), max(columns[3]), *disk)}


def _values(one: Mapping[str, Any], entry: Mapping[str, Any]) -> list[float]:
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
        for name, values in rows_of(run).items():
            if given.stages or name == "whole":
                cells = [run.name if name == "whole" else f"{run.name}: {name}"]
                for said, taken in zip(values[::2], values[1::2], strict=True):
                    cells += [f"{said:,.0f}", f"{taken:,.0f}", f"{100 * (said / max(taken, 0.1) - 1):+.0f} %"]
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
