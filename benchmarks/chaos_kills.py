"""Kill a whole run with kill -9 at random moments, let it go on, and compare its files with those of one that nobody disturbed.

python benchmarks/chaos_kills.py OUT                                    # 50 kills of a small run; repeat it as you like
python benchmarks/chaos_kills.py OUT --n 200 --config configs/demo.yaml

The runner and its kernel are killed together, as by a power cut, at a moment drawn from the first half of the time that the
undisturbed run took, or from the first `--within` seconds. A run that ends before its moment is compared and begun anew;
after the last kill the run goes on to its end. What tells times is left out of the comparison: histories, logs, the report,
the manifest. OUT/kills.jsonl has a row for each kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cellkit.manifest import owned_files, read_manifest
from cellkit.run.folder import Run

ROOT = Path(__file__).parents[1]
OF_TIME = ("history.csv", "last.safetensors", "report.html", "summary.json", "manifest.json")
TIMED = re.compile(rb'"(?:date|made|seconds|processor_s|started|finished)": ?[^,}\n]*')


def files_of(run: Path) -> dict[str, bytes]:
    """Return what the stages of a run list, by name, without what tells a time or the place of the run."""
    manifest, found = read_manifest(run), {}
    for place in owned_files(manifest):
        path = run / place
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if one.is_file() and one.name not in OF_TIME:
                content = one.read_bytes().replace(str(run).encode(), b"RUN")
                found[one.relative_to(run).as_posix()] = TIMED.sub(b"", content) if one.suffix == ".json" else content
    return found


def started(config: Path, run: Path) -> subprocess.Popen:
    """Begin a run, or go on with it, in a group of processes of its own."""
    command = [sys.executable, "-m", "cellkit", "run", str(config), "--run", str(run), "--allow-skips"]
    with open(run.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)


def children(pid: int) -> list[int]:
    """Return a process and all that it started."""
    import psutil

    try:
        one = psutil.Process(pid)
        return [pid, *(child.pid for child in one.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def kill_all(running: subprocess.Popen) -> None:
    """Kill a run and its kernel at once."""
    for pid in children(running.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.wait()


def stages(run: Path) -> list[str]:
    """Return the finished stages, each verified by the hashes of what it lists."""
    if not (run / "manifest.json").exists():
        return []
    found = Run(run)
    for entry in found.stages().values():
        for key in entry["outputs"]:
            found.find(key)
    return list(found.stages())


def compare(whole: dict[str, bytes], run: Path) -> list[str]:
    """Return the names of files that differ."""
    now = files_of(run)
    return sorted(name for name in {*whole, *now} if whole.get(name) != now.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=50, help="kills (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=ROOT / "tests" / "run" / "small.yaml")
    parser.add_argument(
        "--within", type=float, metavar="S", help="to the next kill at most (default: half of that time)"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="stop then with what there is (default 0: never)")
    given = parser.parse_args()
    out, config = given.out.resolve(), given.config.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begun, log = time.monotonic(), out / "kills.jsonl"
    took = out / "whole.json"
    if not took.exists():
        shutil.rmtree(out / "whole", ignore_errors=True)  # one that was stopped tells no time
        since = time.monotonic()
        if started(config, out / "whole").wait():
            raise SystemExit(f"the undisturbed run failed: {out / 'whole.log'}")
        took.write_text(json.dumps({"seconds": time.monotonic() - since}))
    seconds, whole = json.loads(took.read_text())["seconds"], files_of(out / "whole")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    different: list[str] = []
    while not different:
        late = bool(given.minutes) and time.monotonic() - begun > 60 * given.minutes
        kills = sum(row["killed"] for row in rows)
        last = late or kills >= given.n
        if last and not (out / "torn").exists():
            break
        rng = random.Random(f"{given.seed} {len(rows)}")
        moment, since = rng.uniform(0, given.within or seconds / 2), time.monotonic()
        running = started(config, out / "torn")
        try:
            code = running.wait(None if last else moment)
        except subprocess.TimeoutExpired:
            kill_all(running)
            code = None
        row = {
            "killed": code is None,
            "after_s": round(time.monotonic() - since, 2),
            "finished": stages(out / "torn"),
            "exit": code,
        }
        if code is not None:
            different = compare(whole, out / "torn") if code == 0 else [f"exit code {code}, see {out / 'torn.log'}"]
            row["different"] = different
            if not different:
                shutil.rmtree(out / "torn")
        rows.append(row)
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\n")
    rounds = sum(row["exit"] == 0 for row in rows)
    kills = sum(row["killed"] for row in rows)
    print("| kills | runs that ended | files compared | different |\n|---|---|---|---|")
    print(f"| {kills} | {rounds} | {len(whole)} | {', '.join(different) or 'none'} |")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
