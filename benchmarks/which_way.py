"""Which way wins on the real sets: every recipe and engine, run and compared by one command.

    python benchmarks/which_way.py --data FOLDER --work runs/ways --page docs/which-way-wins.md

Each set is run with its configuration, in float32 and on one thread, and with the recipes that `--recipes` names. The run of
another engine begins as a copy of the set's own, in which only what changes is made again. What is finished is kept: kill and
repeat the command as you like. Then all runs are compared as `cellkit compare` does, and the tables are written to the page, with
what was not run and why. `--only-compare` runs nothing; `--set-of SET KEY=VALUE` gives a set other settings; the page names them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellkit.config.recipes import recipe_name, recipe_paths
from cellkit.errors import Quarantined, UserError
from cellkit.machine import DATA_VARIABLE
from cellkit.manifest import finished_entries, read_manifest
from cellkit.models import check_backend, title_of
from cellkit.pages.ways import compare_runs
from cellkit.pages.ways_tables import read_parts, to_text, write_markdown

ROOT = Path(__file__).resolve().parents[1]
SETS = ("dkfz", "two_lines", "dsb2018")
ENGINES = ("maskrcnn_torchvision", "maskrcnn_detectron2")  # of notebook 05; the first is that of the configurations
LAST = "06_evaluate_map_iou"


@dataclass(frozen=True)
class Job:
    """A run: the set, the engine of its detector, what else its configuration is told."""

    set_name: str
    engine: str = ENGINES[0]
    recipes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return (
            self.set_name if self.engine == ENGINES[0] else f"{self.set_name}_{self.engine.removeprefix('maskrcnn_')}"
        )

    def command(self, folder: Path) -> list[str]:
        """Return the command that makes it, or goes on with it."""
        told = ["precision=float32", *(f"recipes.{name}={{}}" for name in self.recipes), *self.settings]
        told += [] if self.engine == ENGINES[0] else [f"maskrcnn.backend={self.engine}"]
        config = f"configs/{self.set_name}.yaml"
        return [sys.executable, "-m", "cellkit", "run", config, "--run", str(folder), "--set", *told]


def jobs_of(
    sets: Sequence[str], engines: Sequence[str], recipes: Sequence[str], settings: Mapping[str, Sequence[str]]
) -> tuple[list[Job], list[Quarantined]]:
    """Return the runs to make, a set's own first, and those that cannot be made here, with the reason."""
    jobs, missing = [], []
    for engine in engines:
        try:
            check_backend(engine)
        except UserError as error:
            reason = str(error).splitlines()[0]
            missing += [Quarantined(f"{name}, {title_of(engine)}", reason) for name in sets]
            continue
        jobs += [Job(name, engine, tuple(recipes), tuple(settings.get(name, ()))) for name in sets]
    return sorted(jobs, key=lambda job: sets.index(job.set_name)), missing


def run_job(job: Job, work: Path) -> None:
    """Make a run, or go on with it; a run of another engine begins with a copy of the set's own."""
    folder, own = work / job.name, work / job.set_name
    if folder != own and not folder.exists() and LAST in finished(own):
        shutil.copytree(own, folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(job.command(folder), cwd=ROOT, env=environment, check=False)


def finished(folder: Path) -> list[str]:
    """Return the stages of a run that are finished; none where there is no run."""
    return list(finished_entries(read_manifest(folder))) if folder.is_dir() else []


def unfinished(jobs: Sequence[Job], work: Path, also: Sequence[Path] = ()) -> list[Quarantined]:
    """Return what of the runs is not there: whole runs, and recipes that neither a set's run has nor another called after it."""
    lacking = []
    for job in jobs:
        stages = finished(work / job.name)
        if LAST not in stages:
            done = ", ".join(stages) or "nothing"
            lacking.append(Quarantined(job.name, f"not run to its end (finished: {done})"))
        elif job.engine == ENGINES[0]:
            beside = [stage for run in also if run.name.startswith(f"{job.set_name}_") for stage in finished(run)]
            made = {recipe_name(stage) for stage in [*stages, *beside]}
            others = [recipe_name(path.stem) for path in recipe_paths(ROOT / "notebooks")]
            lacking += [Quarantined(f"{job.name}, recipe {name}", "not run") for name in others if name not in made]
    return lacking


def of_other_sets(page: Path, sets: Sequence[str]) -> tuple[list[str], list[Quarantined]]:
    """Return what the page tells of sets that are not run now: their parts, and what they lack."""
    parts, lacking = read_parts(page)
    kept = [name for name in SETS if name not in sets]
    return (
        [part for part in parts if part.splitlines()[0].removeprefix("## ").split(",")[0].startswith(tuple(kept))]
        if kept
        else [],
        [item for item in lacking if item.item.startswith(tuple(kept))] if kept else [],
    )


def main() -> int:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=f"the folder of real data (default: {DATA_VARIABLE})")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--page", type=Path, help="the page whose tables are written")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--recipes", nargs="*", default=[], metavar="NAME", help="recipes that every set is run with")
    parser.add_argument(
        "--set-of", nargs="+", action="append", default=[], metavar="SET KEY=VALUE", help="other settings of a set"
    )
    parser.add_argument("--only-compare", action="store_true", help="run nothing")
    parser.add_argument("--also", nargs="+", default=[], type=Path, metavar="RUN", help="finished runs to compare too")
    given = parser.parse_args()
    if given.data:
        os.environ[DATA_VARIABLE] = str(Path(given.data).resolve())
    settings = {name: values for name, *values in given.set_of}
    jobs, missing = jobs_of(given.sets, given.engines, given.recipes, settings)
    for job in [] if given.only_compare else jobs:
        run_job(job, given.work.resolve())
    missing += unfinished(jobs, given.work, given.also)
    folders = [given.work / job.name for job in jobs if (given.work / job.name).is_dir()]
    try:
        comparisons, left_out = compare_runs([*folders, *given.also])
    except UserError as error:
        sys.exit(str(error))
    known = {item.item for item in missing}
    missing += [item for item in left_out if item.item not in known]
    print(to_text(comparisons, missing))
    if given.page:
        others, lacking = of_other_sets(given.page, given.sets)
        write_markdown(given.page, comparisons, [*lacking, *missing], others)
    return 0


if __name__ == "__main__":
    sys.exit(main())
