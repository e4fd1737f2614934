"""Kill workers of a local cluster with kill -9 at random moments, and compare the files with those of one process.

python benchmarks/chaos_cluster.py OUT                 # 100 kills during convert and predict, in turns; repeat it as you like
python benchmarks/chaos_cluster.py OUT --n 20 --only convert

Drawn z-stacks are converted, and the cells of the pictures found by the starter model, on `--workers` workers. While a command
runs, one of its workers, chosen at random, is killed again and again: when a file has been written since the last kill (a
killed worker takes seconds to start anew), and a random time after that. The command itself is left alone.
When it has ended its exit code must be 0, and every file that it wrote, journal and tables too, the same bytes as by one
process without a cluster. OUT/kills.jsonl has a row for each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from chaos_kills import ROOT, children

COMMANDS = ("convert", "predict")


def draw(folder: Path, count: int, size_px: int) -> None:
    """Draw z-stacks once: 6 distinct ones, copied under other names until there are `count`."""
    from cellkit.sources.drawn.files import write_fields

    if (folder / "drawn.json").exists():
        return
    made = write_fields(
        folder / "drawn", images_per_line=3, mixed_images=0, size_px=size_px, planes=8, defect_images_per_line=0
    )
    (folder / "stacks").mkdir(exist_ok=True)
    for number in range(count):
        shutil.copyfile(
            folder / "drawn" / made[number % len(made)].path, folder / "stacks" / f"stack_{number:03d}.ome.tif"
        )
    (folder / "drawn.json").write_text("{}")


def begun(command: str, out: Path, to: Path, workers: int) -> subprocess.Popen:
    """Begin a command that writes into `to`: on a cluster, or with 0 workers in one process."""
    to.mkdir(parents=True)
    given = {
        "convert": ["convert", out / "stacks", "-o", to / "images", "--nuclei", "DAPI", "--cytoplasm", "GFP"],
        "predict": [
            "predict",
            "starter",
            out / "convert" / "images",
            "-o",
            to / "cells.json",
            "--labels",
            to / "labels",
        ],
    }[command]
    cluster = {"kind": "local", "workers": workers}
    where = ["--cluster", json.dumps(cluster)] if workers else []
    with open(out / f"{command}.log", "ab") as log:
        line = [sys.executable, "-m", "cellkit", *map(str, given), *where]
        return subprocess.Popen(line, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def workers_of(running: subprocess.Popen) -> list[int]:
    """Return the processes of a command that are workers."""
    import psutil

    found = []
    for pid in children(running.pid)[1:]:
        try:
            line = " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            continue
        if "spawn_main" in line:
            found.append(pid)
    return found


def written(folder: Path) -> int:
    """Return how many bytes a folder holds."""
    count = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                count += os.path.getsize(os.path.join(place, name))
            except FileNotFoundError:  # written under another name first
                continue
    return count


def disturbed(running: subprocess.Popen, folder: Path, rng: random.Random, most: int, every_s: float) -> int:
    """Kill workers at random moments until the command ends or `most` are killed; return how many were."""
    killed, before = 0, 0
    while killed < most:
        while written(folder) == before:
            if running.poll() is not None:
                return killed
            time.sleep(0.2)
        try:
            running.wait(rng.uniform(0, 2 * every_s))
            return killed
        except subprocess.TimeoutExpired:
            pass
        if found := workers_of(running):
            try:
                os.kill(rng.choice(found), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed, before = killed + 1, written(folder)
    running.wait()
    return killed


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by name, without what tells the folder or a date."""
    found = {}
    for one in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = one.read_bytes()
        found[one.relative_to(folder).as_posix()] = content.replace(str(folder).encode(), b"OUT")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=100, help="kills (default 100), of each command its share")
    parser.add_argument("--only", choices=COMMANDS, help="this command alone")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--size", type=int, default=320, metavar="PX", help="side of an image (default 320)")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="S", help="mean time to the next kill (default 2 s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    out, log = given.out.resolve(), given.out.resolve() / "kills.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    draw(out, given.images, given.size)
    commands = [given.only] if given.only else list(COMMANDS)
    whole = {}
    for command in COMMANDS if "predict" in commands else commands:  # whose pictures are those of convert
        if not (out / f"{command}.whole").exists():
            shutil.rmtree(out / command, ignore_errors=True)  # one that was stopped is no measure
            if begun(command, out, out / command, 0).wait():
                raise SystemExit(f"the undisturbed command failed: {out / command}.log")
            (out / f"{command}.whole").touch()
        whole[command] = files_of(out / command)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    different = [name for row in rows for name in row["different"]]
    while not different:
        left = {c: given.n // len(commands) - sum(r["kills"] for r in rows if r["command"] == c) for c in commands}
        command = max(left, key=lambda one: left[one])
        if left[command] <= 0:
            break
        shutil.rmtree(out / "torn", ignore_errors=True)
        since = time.monotonic()
        running = begun(command, out, out / "torn", given.workers)
        rng = random.Random(f"{given.seed} {len(rows)}")
        kills = disturbed(running, out / "torn", rng, left[command], given.every)
        now = files_of(out / "torn")
        different = sorted(n for n in {*whole[command], *now} if whole[command].get(n) != now.get(n))
        different += [f"exit code {running.returncode}, see {out / command}.log"] if running.returncode else []
        seconds = round(time.monotonic() - since, 1)
        rows.append({"command": command, "kills": kills, "seconds": seconds, "files": len(now), "different": different})
        with open(log, "a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print("| command | workers killed | rounds | files compared in each | different |\n|---|---|---|---|---|")
    for command in commands:
        own = [row for row in rows if row["command"] == command]
        wrong = ", ".join(name for row in own for name in row["different"]) or "none"
        kills = sum(row["kills"] for row in own)
        print(f"| {command} | {kills} | {len(own)} | {len(whole[command])} | {wrong} |")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
