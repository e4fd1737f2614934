"""Clusters of a queue, by stand-ins for its commands: the job scripts are real, run here, and real workers come up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from queues import stand_in
from work import slowly, where

from cellkit.cluster import opened
from cellkit.cluster.jobs import job_options, log_tail
from cellkit.cluster.opened import cluster_of, current
from cellkit.cluster.setting import ClusterSetting
from cellkit.errors import UserError
from cellkit.parallel import map_items

NAMES = {"slurm": ("sbatch", "scancel"), "lsf": ("bsub", "bkill"), "pbs": ("qsub", "qdel"), "sge": ("qsub", "qdel")}
HEADS = {
    "slurm": ["#SBATCH -J cellkit", "#SBATCH -p short", "#SBATCH -A cells", "#SBATCH --cpus-per-task=2",
              "#SBATCH --mem=954M", "#SBATCH -t 00:30:00", "#SBATCH --gres=gpu:1"],
    "lsf": ["#BSUB -J cellkit", "#BSUB -q short", '#BSUB -P "cells"', "#BSUB -n 2", "#BSUB -M 1000000", "#BSUB -W 00:30",
            "#BSUB --gres=gpu:1"],
    "pbs": ["#PBS -N cellkit", "#PBS -q short", "#PBS -A cells", "#PBS -l select=1:ncpus=2:mem=954MB",
            "#PBS -l walltime=00:30:00", "#PBS --gres=gpu:1"],
    "sge": ["#$ -N cellkit", "#$ -q short", "#$ -P cells", "#$ -l h_rt=00:30:00", "#$ --gres=gpu:1"],
}  # fmt: skip


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Return the folder of stand-ins, first on the path; whatever their jobs left is ended."""
    home = stand_in(tmp_path / "queue", *{name for pair in NAMES.values() for name in pair})
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    places = [Path(__file__).parent, Path(__file__).parents[2], *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    yield home
    for file in home.glob("*.pid"):
        try:
            os.killpg(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def setting(kind: str, folder: Path, **more) -> dict:
    small = {"kind": kind, "workers": 1, "cores": 2, "memory": "1 GB", "walltime": "00:30:00", "host": "127.0.0.1"}
    return {**small, "queue": "short", "account": "cells", "folder": str(folder / "shared"), "wait_s": 60.0, **more}


@pytest.mark.parametrize("kind", list(NAMES))
def test_a_job_is_asked_for_and_its_worker_works(kind, queue, tmp_path):
    with cluster_of(setting(kind, tmp_path, directives=["--gres=gpu:1"], prologue=["export MINE='a b'"])):
        seen = map_items(where, range(5), "where", 1)
        script = (queue / "101.sh").read_text().splitlines()
        keys = [path for path in (tmp_path / "shared").rglob("*") if path.is_file() and "key" in path.name]
        assert keys and {path.stat().st_mode & 0o077 for path in keys} == {0}, "keys are for us alone"
    assert seen == (seen[0], []) and {one[1:3] for one in seen[0]} == {("2", os.getcwd())}
    assert [line for line in HEADS[kind] if line not in script] == []
    assert "export MINE='a b'" in script and "export OMP_NUM_THREADS=2" in script
    assert "--nthreads 1 --no-dashboard --protocol tls://" in script[-1]
    assert (queue / "101.cancelled").exists() and not (queue / "102.sh").exists()
    assert list((tmp_path / "shared").iterdir()) == [], "keys and logs are gone"


def test_a_job_that_ends_early_is_handed_in_again(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "REPLACE_EVERY_S", 0.5)
    seen = []

    def end_it(item: int, result: int) -> None:
        seen.append(item)
        if len(seen) == 1:
            os.killpg(int((queue / "101.pid").read_text()), signal.SIGKILL)

    import dask

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}), cluster_of(setting("slurm", tmp_path)):
        assert map_items(slowly, range(6), "wait", 1, then=end_it) == (list(range(6)), [])
    assert (queue / "102.sh").exists() and seen == list(range(6))


def test_a_queue_that_refuses_says_why(queue, tmp_path):
    (queue / "refuse").touch()
    with (
        pytest.raises(
            UserError, match="sbatch did not take the job: error: Batch job .*: Invalid account\ncheck queue, acc"
        ),
        cluster_of(setting("slurm", tmp_path)),
    ):
        map_items(where, [1], "where", 1)
    assert current() is None


@pytest.mark.parametrize(("host", "said"), [("no.such.invalid", "is not found"), ("192.0.2.77", "no address of this")])
def test_a_host_that_is_not_this_machine_is_refused_before_a_job_is_handed_in(host, said, queue, tmp_path):
    with (
        pytest.raises(UserError, match=f"cluster.host is '{host}'.*{said}"),
        cluster_of(setting("slurm", tmp_path, host=host)),
    ):
        map_items(where, [1], "where", 1)
    assert not list(queue.glob("*.sh"))


def test_no_worker_in_time_shows_the_job_log(queue, tmp_path, capfd):
    words = setting("pbs", tmp_path, workers=2, wait_s=4.0, prologue=["echo module: no such module cuda/99", "exit 1"])
    with (
        pytest.raises(
            UserError, match="no worker within 4 s; 2 were asked for\nsee the lines .* ask the queue .qsub. why"
        ),
        cluster_of(words),
    ):
        map_items(where, [1], "where", 1)
    told = capfd.readouterr().err
    assert "the last lines of " in told and "module: no such module cuda/99" in told
    assert (queue / "101.cancelled").exists() and (queue / "102.cancelled").exists()


def test_ctrl_c_gives_the_jobs_back(queue, tmp_path):
    code = f"""
import signal
from cellkit.cluster.opened import cluster_of
from cellkit.parallel import map_items
from work import slowly
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background of a shell ignore it
with cluster_of({setting("slurm", tmp_path)!r}):
    map_items(slowly, range(1000), "wait", 1, then=lambda item, _: print(item, flush=True))
"""
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "0\n"
    begun = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=40)
    assert "KeyboardInterrupt" in told, (running.returncode, told, _)
    assert time.monotonic() - begun < 20
    assert (queue / "101.cancelled").exists()
    assert list((tmp_path / "shared").iterdir()) == []


def test_what_a_job_is_told():
    options = job_options(ClusterSetting(kind="lsf", walltime="12:00:00"), Path("/shared"))
    assert options["walltime"] == "12:00" and options["use_stdin"] and options["memory"] == "4 GB"
    assert job_options(ClusterSetting(kind="sge", account="a"), Path("/shared"))["project"] == "a"


def test_a_folder_without_a_log_has_no_last_lines(tmp_path):
    assert log_tail(tmp_path) == ""
    (tmp_path / "a.out").write_text("\n".join(map(str, range(20))))
    assert log_tail(tmp_path).splitlines()[1:] == [str(n) for n in range(12, 20)]
